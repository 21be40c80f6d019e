"""Interpolations: edge cases of slerp, splines and paths through codes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import assert_same_to_rounding
from scipy.interpolate import CubicSpline

from geolatent import CubicBSpline, PullbackMetric, path_length, solve_geodesic
from geolatent.interpolations import (
    from_spherical_coordinates,
    great_circle,
    lerp,
    radial_walk,
    slerp,
    slerp_curve,
    spherical_coordinates,
    spherical_spiral,
    spline_through_points,
    through_points,
)

pytestmark = pytest.mark.usefixtures("float64")

BETWEEN = [lerp, slerp, spherical_spiral]


def textbook_slerp(a, b, t):
    """The usual formula, good where the angle is neither small nor near pi."""
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    return ((1 - t) * angle).sin() / angle.sin() * a + (t * angle).sin() / angle.sin() * b


@pytest.mark.parametrize("interpolation", BETWEEN)
def test_shapes(interpolation):
    start, end = torch.randn(5, 3), torch.randn(5, 3)
    t = torch.linspace(0, 1, 7)
    many = interpolation(start, end, t)
    assert many.shape == (5, 7, 3)
    assert_same_to_rounding(interpolation(start, end, t.expand(5, 7)), many)
    assert_same_to_rounding(interpolation(start, end, 0.5), many[:, 3])
    assert_same_to_rounding(interpolation(start, end, torch.tensor(0.5)), many[:, 3])
    assert interpolation(start[0], end, t).shape == (5, 7, 3)
    assert_same_to_rounding(interpolation(start[0], end[0], t), many[:1])
    own = torch.rand(5, 4)
    for pair in range(5):
        alone = interpolation(start[pair], end[pair], own[pair])
        assert_same_to_rounding(interpolation(start, end, own)[pair : pair + 1], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("interpolation", BETWEEN)
def test_end_points_are_exact(interpolation, dtype):
    start, end = torch.randn(20, 6, dtype=dtype), torch.randn(20, 6, dtype=dtype)
    points = interpolation(start, end, torch.tensor([0.0, 1.0]))
    assert points.dtype == dtype
    assert torch.equal(points[:, 0], start)
    assert torch.equal(points[:, 1], end)


@pytest.mark.parametrize("interpolation", BETWEEN)
def test_reversal(interpolation):
    start, end, t = torch.randn(20, 4), torch.randn(20, 4), torch.linspace(0, 1, 9)
    there, back = interpolation(start, end, t), interpolation(end, start, t).flip(1)
    torch.testing.assert_close(there, back, rtol=1e-12, atol=1e-12)


@given(st.integers(2, 50), st.integers(0, 10_000))
def test_slerp_equals_the_textbook_formula(dim, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    b = b * a.norm() / b.norm()
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    if not 0.05 < float(angle) < 3.09:
        return
    for t in (0.1, 0.5, 0.8):
        torch.testing.assert_close(
            slerp(a, b, t)[0], textbook_slerp(a, b, t), rtol=1e-10, atol=1e-10
        )


def test_slerp_norm_and_angle_are_linear_in_t():
    a, b = torch.randn(30, 8), 3 * torch.randn(30, 8)
    t = torch.linspace(0, 1, 11)
    points = slerp(a, b, t)
    expected = torch.lerp(a.norm(dim=1)[:, None], b.norm(dim=1)[:, None], t)
    torch.testing.assert_close(points.norm(dim=2), expected)
    units = points / points.norm(dim=2, keepdim=True)
    steps = 2 * ((units[:, 1:] - units[:, :-1]).norm(dim=2) / 2).asin()
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-9, atol=1e-12)


X, Y = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
HALF = 0.5**0.5
EDGE_CASES = {
    "orthogonal": (X, Y, [HALF, HALF, 0.0]),
    "equal": (X, X, X),
    "parallel": (X, [3.0, 0.0, 0.0], [2.0, 0.0, 0.0]),
    # the axes y and z are equally orthogonal to x: the first one is taken
    "antiparallel": (X, [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
    "antiparallel, other norm": ([0.0, -2.0, 0.0], [0.0, 4.0, 0.0], [3.0, 0.0, 0.0]),
    "zero start": ([0.0] * 3, Y, [0.0, 0.5, 0.0]),
    "zero end": (X, [0.0] * 3, [0.5, 0.0, 0.0]),
    "both zero": ([0.0] * 3, [0.0] * 3, [0.0] * 3),
    "tiny": ([1e-200, 0.0, 0.0], [0.0, 1e-200, 0.0], [HALF * 1e-200, HALF * 1e-200, 0.0]),
}


@pytest.mark.parametrize("name", EDGE_CASES)
def test_slerp_edge_cases(name):
    start, end, middle = (torch.tensor(value) for value in EDGE_CASES[name])
    torch.testing.assert_close(slerp(start, end, 0.5)[0], middle, rtol=1e-12, atol=1e-15)
    # in one batch with an ordinary pair as well, which it leaves alone
    batch = slerp(torch.stack([start, torch.tensor(X)]), torch.stack([end, torch.tensor(Y)]), 0.5)
    torch.testing.assert_close(batch[0], middle, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(batch[1], torch.tensor([HALF, HALF, 0.0]))
    assert torch.equal(slerp(start, end, torch.tensor([0.0, 1.0]))[0], torch.stack([start, end]))


def test_slerp_of_antiparallel_vectors_stays_on_the_sphere():
    a = torch.randn(40, 5)
    points = slerp(a, -a, torch.linspace(0, 1, 9))
    norms = a.norm(dim=1, keepdim=True).expand(-1, 9)
    torch.testing.assert_close(points.norm(dim=2), norms)
    assert ((points[:, 4] * a).sum(1).abs() < 1e-12).all()


def test_slerp_in_one_dimension_is_the_straight_line():
    points = slerp(torch.tensor([-1.0]), torch.tensor([3.0]), torch.linspace(0, 1, 5))
    torch.testing.assert_close(points[0, :, 0], torch.linspace(-1, 3, 5))
    points = slerp(torch.tensor([1.0]), torch.tensor([3.0]), 0.5)
    torch.testing.assert_close(points, torch.tensor([[2.0]]))


@pytest.mark.parametrize("offset", [0.0, 1e-7, 1e-4, 1e-3])
def test_slerp_near_parallel_in_float32(offset):
    a = torch.randn(50, 16, dtype=torch.float32)
    b = a + offset * torch.randn(50, 16, dtype=torch.float32)
    t = torch.linspace(0, 1, 5)
    points = slerp(a, b, t)
    assert points.dtype == torch.float32
    exact = slerp(a.double(), b.double(), t)
    # the values are those of float64, rounded once
    assert ((points.double() - exact).abs() <= 6e-8 * exact.abs() + 1e-37).all()
    # between nearly equal points there is nothing but the straight line, to second order
    straight = lerp(a.double(), b.double(), t)
    assert ((exact - straight).norm(dim=2) <= 20 * offset**2 + 1e-14).all()


@given(st.floats(-12, -1), st.integers(0, 1000))
def test_slerp_near_antiparallel(exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    a, side = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    b = -a + 10**exponent * side
    points = slerp(a, b, torch.linspace(0, 1, 9))[0]
    radius = torch.lerp(a.norm(), b.norm(), torch.linspace(0, 1, 9))
    torch.testing.assert_close(points.norm(dim=1), radius, rtol=1e-12, atol=0)
    # the last step does not jump to the end point
    steps = points.diff(dim=0).norm(dim=1)
    assert steps.max() < 1.2 * steps.min() + 10 ** (exponent / 2)


def test_great_circle():
    a, b = torch.randn(10, 4), torch.randn(10, 4)
    t = torch.linspace(0, 1, 13)
    walk = great_circle(a, b, t)
    torch.testing.assert_close(walk.norm(dim=2), a.norm(dim=1, keepdim=True).expand(-1, 13))
    torch.testing.assert_close(walk[:, 0], a)
    torch.testing.assert_close(walk[:, -1], a)
    torch.testing.assert_close(walk[:, 6], -a)
    # the walk meets the direction of b at their angle
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    meeting = great_circle(a, b, (cosine.acos() / (2 * math.pi))[:, None])[:, 0]
    torch.testing.assert_close(meeting / a.norm(dim=1)[:, None], b / b.norm(dim=1)[:, None])


@pytest.mark.parametrize(
    ("start", "toward", "message"),
    [(X, [2.0, 0.0, 0.0], "not parallel"), ([0.0] * 3, X, "nonzero"), (X, [0.0] * 3, "nonzero")],
)
def test_great_circle_needs_a_plane(start, toward, message):
    with pytest.raises(ValueError, match=message):
        great_circle(torch.tensor(start), torch.tensor(toward), 0.5)
    with pytest.raises(ValueError, match=r"`toward`.*broadcasts with `start`"):
        great_circle(torch.ones(3), torch.ones(2), 0.5)


@given(st.integers(2, 30), st.integers(0, 1000))
def test_spherical_coordinates_and_back(dim, seed):
    z = torch.randn(4, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    radius, angles = spherical_coordinates(z)
    assert angles.shape == (4, dim - 1)
    assert (angles[:, :-1] >= 0).all()
    assert (angles[:, :-1] <= math.pi).all()
    torch.testing.assert_close(from_spherical_coordinates(radius, angles), z)


def test_spherical_spiral_is_linear_in_the_angles():
    start, end = torch.randn(20, 5), torch.randn(20, 5)
    t = torch.linspace(0, 1, 11)
    points = spherical_spiral(start, end, t)
    radius, angles = spherical_coordinates(points)
    torch.testing.assert_close(
        radius, torch.lerp(start.norm(dim=1)[:, None], end.norm(dim=1)[:, None], t)
    )
    first, last = (spherical_coordinates(z)[1][:, None, :-1] for z in (start, end))
    torch.testing.assert_close(angles[..., :-1], first + t[None, :, None] * (last - first))
    # the last angle goes the shorter way, that is by at most half a turn
    turned = np.unwrap(angles[..., -1].numpy(), axis=1)
    assert (np.abs(turned[:, -1] - turned[:, 0]) <= math.pi + 1e-9).all()
    around = np.unwrap(spherical_coordinates(spherical_spiral(start, end, t, turns=1))[1][..., -1])
    np.testing.assert_allclose(
        around[:, -1] - around[:, 0] - 2 * math.pi, turned[:, -1] - turned[:, 0], atol=1e-8
    )


def test_spiral_in_the_plane_is_slerp():
    start, end, t = torch.randn(20, 2), torch.randn(20, 2), torch.linspace(0, 1, 7)
    torch.testing.assert_close(spherical_spiral(start, end, t), slerp(start, end, t))


def test_radial_walk():
    walk = radial_walk(torch.randn(3, 5), torch.linspace(0, 4, 9))
    assert walk.shape == (3, 9, 5)
    torch.testing.assert_close(walk.norm(dim=2), torch.linspace(0, 4, 9).expand(3, 9))
    with pytest.raises(ValueError, match="nonzero"):
        radial_walk(torch.zeros(3), torch.ones(2))


@pytest.mark.parametrize("interpolation", [*BETWEEN, "geodesic"])
def test_path_through_points_meets_them_all(interpolation):
    if interpolation == "geodesic":
        metric = PullbackMetric(lambda z: torch.cat([z, z.square()], dim=1))

        def interpolation(a, b, t):
            return solve_geodesic(metric, a, b).curve(t)

    points = torch.randn(6, 3)
    lengths = torch.rand(5) + 0.1
    places = torch.cat([torch.zeros(1), lengths.cumsum(0)]) / lengths.sum()
    path = through_points(points, places.clamp_max(1.0), interpolation, lengths=lengths)
    torch.testing.assert_close(path, points)


def test_path_through_points_by_length():
    points = torch.randn(5, 3)
    t = torch.linspace(0, 1, 400)
    steps = through_points(points, t).diff(dim=0).norm(dim=1)
    total = points.diff(dim=0).norm(dim=1).sum()
    assert (steps <= total / 399 * (1 + 1e-9)).all()
    torch.testing.assert_close(steps.median(), total / 399, rtol=1e-6, atol=0)
    same = torch.ones(3, 2)
    assert torch.equal(through_points(same, t), torch.ones(400, 2))


@pytest.mark.parametrize("k", [2, 3, 4, 9])
def test_spline_through_points_is_the_natural_spline(k):
    points = torch.randn(3, k, 2)
    curve = spline_through_points(points)
    sites = torch.linspace(0, 1, k)
    torch.testing.assert_close(curve(sites), points)
    t = torch.linspace(0, 1, 101)
    if k > 2:
        natural = CubicSpline(sites.numpy(), points.numpy(), axis=1, bc_type="natural")
        np.testing.assert_allclose(curve(t).numpy(), natural(t.numpy()), atol=1e-12)
    else:
        torch.testing.assert_close(curve(t), CubicBSpline.straight(points[:, 0], points[:, 1])(t))
    assert (path_length(PullbackMetric(torch.nn.Identity()), curve) > 0).all()


def test_slerp_curves_follow_slerp():
    start, end = torch.randn(2, 20, 3, dtype=torch.float64)
    end[0] = -2 * start[0]
    curve = slerp_curve(start, end)
    times = torch.linspace(0, 1, 201, dtype=torch.float64)
    gap = (curve(times) - slerp(start, end, times)).norm(dim=2)
    radius = torch.maximum(start.norm(dim=1), end.norm(dim=1))
    assert (gap.amax(1) < 5e-4 * radius).all()
    assert torch.equal(curve.control_points[:, [0, -1]], torch.stack([start, end], 1))


@pytest.mark.parametrize("interpolation", BETWEEN)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2, 3), torch.ones(3, 3), 0.5), ValueError, "`end`.*broadcasts"),
        ((torch.ones(3), torch.full((3,), torch.nan), 0.5), ValueError, "`end`.*finite"),
        ((torch.ones(3), torch.ones(3), "half"), TypeError, "`t`"),
        ((torch.ones(3), torch.ones(3), torch.tensor([torch.inf])), ValueError, "`t`.*finite"),
        ((torch.ones(2, 3), torch.ones(3), torch.zeros(3, 4)), ValueError, "`t`.*\\(2, T\\)"),
        ((torch.ones(3), torch.ones(3, dtype=torch.float64), 0.5), TypeError, "`end`.*dtype"),
    ],
)
def test_bad_input(interpolation, arguments, error, message):
    with pytest.raises(error, match=message):
        interpolation(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: through_points(torch.ones(1, 2), torch.zeros(1)), "two codes"),
        (lambda: through_points(torch.ones(3, 2), torch.tensor([1.5])), "in \\[0, 1\\]"),
        (lambda: through_points(torch.ones(3, 2), torch.zeros(2), lengths=-torch.ones(2)), "neg"),
        (lambda: spherical_coordinates(torch.ones(3, 1)), "d >= 2"),
        (lambda: spline_through_points(torch.ones(1, 2)), "two codes"),
    ],
)
def test_bad_paths(call, message):
    with pytest.raises(ValueError, match=message):
        call()
