"""GEORCE against closed forms, at the accuracy that polylines of T segments have."""

import itertools
import math

import pytest
import torch
from problems import half_plane, half_plane_distance, sphere, sphere_distance

from geolatent import (
    GEORCESolver,
    PullbackMetric,
    Status,
    TensorMetric,
    path_length,
    solve_geodesic,
)
from geolatent.curves import basis_matrix
from geolatent.solvers.georce import polyline

pytestmark = pytest.mark.usefixtures("float64")


def sphere_problem(n):
    radius, angle = torch.rand(2, n).sqrt(), 2 * math.pi * torch.rand(2, n)
    start, end = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)
    # the lower half-sphere is convex
    return PullbackMetric(sphere), start, end, sphere_distance(start, end)


def half_plane_problem(n):
    start, end = (torch.rand(2, n, 2) + torch.tensor([-0.5, 0.6])).unbind()
    return TensorMetric(half_plane, dim=2), start, end, half_plane_distance(start, end)


SLOPE = 1.0  # of the cone: height over radius


def cone(z):
    radius = z.norm(dim=1, keepdim=True)
    return torch.cat([z, SLOPE * radius], dim=1)


def cone_problem(n):
    angle = 2 * math.pi * torch.rand(n)
    turn = 0.4 + 0.8 * torch.rand(n)
    radius = 0.8 + torch.rand(2, n)
    start, end = (
        torch.stack([r * a.cos(), r * a.sin()], dim=1)
        for r, a in zip(radius, (angle, angle + turn), strict=True)
    )
    # unrolled, the cone is a plane: slant lengths s r, angles divided by s = sqrt(1 + slope^2)
    scale = math.sqrt(1 + SLOPE**2)
    r, q = scale * radius
    return (
        PullbackMetric(cone),
        start,
        end,
        (r**2 + q**2 - 2 * r * q * (turn / scale).cos()).sqrt(),
    )


PROBLEMS = pytest.mark.parametrize("make", [sphere_problem, half_plane_problem, cone_problem])


@PROBLEMS
def test_distances_converge_with_the_number_of_segments(make):
    metric, start, end, distance = make(8)
    excess = []
    for segments in (10, 20, 40, 80):
        solver = GEORCESolver(segments=segments, tolerance=1e-10, max_iterations=500)
        solution = solve_geodesic(metric, start, end, solver, length_tolerance=1e-5)
        assert (solution.length > distance * (1 - 2e-5)).all()
        assert (solution.length <= solution.straight_length).all()
        excess.append((solution.length / distance - 1).amax().item())
    # at least the first order in 1/T, down to the tolerance of the lengths
    for coarse, fine in itertools.pairwise(excess):
        assert fine < 0.6 * coarse + 2e-5
    assert excess[-1] < 1e-3


@PROBLEMS
def test_default_settings_reach_their_tolerance(make):
    metric, start, end, distance = make(16)
    solution = solve_geodesic(metric, start, end, GEORCESolver())
    done = (solution.status == Status.CONVERGED) | (solution.status == Status.STRAIGHT_IS_SHORTEST)
    assert done.all()
    assert (solution.length <= solution.straight_length).all()
    # what is left to gain among polylines, 3e-4, and their own error
    assert (solution.length <= distance * (1 + 1.5e-3)).all()
    assert torch.allclose(path_length(metric, solution.curve), solution.length, rtol=3e-4)


def test_a_pair_alone_equals_the_same_pair_in_a_batch():
    metric, start, end, _ = sphere_problem(6)
    solver = GEORCESolver(segments=20)
    together = solve_geodesic(metric, start, end, solver)
    for i in range(6):
        alone = solve_geodesic(metric, start[i], end[i], solver)
        assert torch.allclose(alone.length, together.length[i], rtol=1e-10)
        assert alone.iterations == together.iterations[i]
        assert alone.evaluations.equivalents == together.evaluations.equivalents[i]
        t = torch.linspace(0, 1, 33)
        assert torch.allclose(alone.curve(t)[0], together.curve(t)[i], atol=1e-10)


def test_a_pair_that_is_not_finite_leaves_the_others_alone():
    metric, start, end, _ = sphere_problem(4)

    def decoder(z):
        hole = (z[:, :1] > 2.5) & (z[:, :1] < 3.5)
        return torch.where(hole, torch.nan, sphere(z))

    # a pair whose straight line crosses the hole, with both ends outside of it
    far_start = torch.cat([start, torch.tensor([[2.0, 0.0]])])
    far_end = torch.cat([end, torch.tensor([[4.0, 0.0]])])
    solver = GEORCESolver(segments=20)
    expected = solve_geodesic(metric, start, end, solver)
    solution = solve_geodesic(PullbackMetric(decoder), far_start, far_end, solver)
    assert solution.statuses[4] is Status.NON_FINITE
    assert torch.equal(solution.status[:4], expected.status)
    assert torch.allclose(solution.length[:4], expected.length, rtol=1e-10)
    assert solution.length[:4].isfinite().all()
    assert solution.curve.control_points.isfinite().all()


def test_polyline_is_represented_exactly():
    t = torch.linspace(0, 1, 6)
    points = torch.randn(3, 6, 2)
    knots, control_points = polyline(t, points)
    assert control_points.shape == (3, 16, 2)
    assert knots.shape == (20,)
    s = torch.linspace(0, 1, 101)
    segment = (5 * s).floor().clamp(max=4).long()
    share = (5 * s - segment)[:, None]
    expected = torch.lerp(points[:, segment], points[:, segment + 1], share)
    found = basis_matrix(knots, s) @ control_points
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(basis_matrix(knots, t) @ control_points, points, atol=1e-12)


def test_flat_space_needs_no_step_and_equal_end_points_no_solve():
    metric = PullbackMetric(lambda z: 2.0 * z)
    start = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    end = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    solution = solve_geodesic(metric, start, end, GEORCESolver(segments=5))
    assert torch.allclose(solution.length, torch.tensor([10.0, 0.0]))
    assert solution.iterations.tolist() == [0, 0]
    assert solution.statuses[1] is Status.EQUAL_END_POINTS
    assert solution.evaluations.equivalents[1] == 0


def test_a_metric_that_does_not_depend_on_the_code_is_flat():
    constant = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    metric = TensorMetric(lambda z: constant.expand(len(z), 2, 2), dim=2)
    start, end = torch.zeros(3, 2), torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, -1.0]])
    solution = solve_geodesic(metric, start, end, GEORCESolver(segments=8))
    assert set(solution.statuses) == {Status.STRAIGHT_IS_SHORTEST}
    assert solution.iterations.tolist() == [0, 0, 0]
    torch.testing.assert_close(solution.length, torch.tensor([18.0, 4.0, 2.0]).sqrt())


def test_single_precision_stays_single():
    _, start, end, distance = sphere_problem(4)
    solution = solve_geodesic(
        PullbackMetric(sphere), start.float(), end.float(), GEORCESolver(segments=30)
    )
    assert solution.length.dtype == torch.float32
    assert torch.allclose(solution.length.double(), distance, rtol=5e-3)


@pytest.mark.parametrize(
    ("settings", "error", "name"),
    [
        ({"segments": 1}, ValueError, "segments"),
        ({"segments": 2.5}, TypeError, "segments"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"tolerance": math.nan}, ValueError, "tolerance"),
        ({"max_iterations": 0}, ValueError, "max_iterations"),
        ({"max_halvings": 0}, ValueError, "max_halvings"),
    ],
)
def test_settings_are_validated(settings, error, name):
    with pytest.raises(error, match=rf"`{name}` should be"):
        GEORCESolver(**settings)
