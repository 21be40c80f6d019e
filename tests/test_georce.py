"""GEORCE: how its accuracy grows with the segments, and what it does in flat space."""

import itertools
import math

import pytest
import torch
from problems import PROBLEMS

from geolatent import (
    GEORCESolver,
    PullbackMetric,
    Status,
    TensorMetric,
    solve_geodesic,
)
from geolatent.curves import basis_matrix
from geolatent.solvers.georce import polyline

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", ["sphere", "half-plane", "cone"])
def test_distances_converge_with_the_number_of_segments(name):
    problem = PROBLEMS[name]
    start, end = problem.sample(8), problem.sample(8)
    distance = problem.distance(start, end)
    excess = []
    for segments in (10, 20, 40, 80):
        solver = GEORCESolver(segments=segments, tolerance=1e-10, max_iterations=500)
        solution = solve_geodesic(problem.metric, start, end, solver, length_tolerance=1e-5)
        assert (solution.length > distance * (1 - 2e-5)).all()
        assert (solution.length <= solution.straight_length).all()
        excess.append((solution.length / distance - 1).amax().item())
    # at least the first order in 1/T, down to the tolerance of the lengths
    for coarse, fine in itertools.pairwise(excess):
        assert fine < 0.6 * coarse + 2e-5
    assert excess[-1] < 1e-3


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
