"""B-splines against SciPy's, and the identities that knot insertion and reversal must keep."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import assert_same_to_rounding
from scipy.interpolate import BSpline

from geolatent import CubicBSpline
from geolatent.curves import (
    basis_matrix,
    clamped_knots,
    greville_abscissae,
    inserting_matrix,
    insertion_matrix,
    refine,
    straight_control_points,
    union_of_knots,
)

pytestmark = pytest.mark.usefixtures("float64")

TIMES = torch.linspace(0, 1, 193, dtype=torch.float64)

# inner knots on a grid of 1/32, each one- to three-fold: no, few, many and repeated knots
inner_knots = st.dictionaries(st.integers(1, 31), st.integers(1, 3), max_size=6)


def make_knots(inner):
    repeated = [place / 32 for place in sorted(inner) for _ in range(inner[place])]
    return torch.tensor([0.0] * 4 + repeated + [1.0] * 4, dtype=torch.float64)


def random_curve(knots, batch=3, dim=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, knots.numel() - 4, dim)
    return CubicBSpline(torch.randn(shape, generator=generator, dtype=torch.float64), knots)


@given(inner_knots)
def test_basis_and_derivative_equal_scipy(inner):
    knots = make_knots(inner)
    n = knots.numel() - 4
    t = torch.cat([TIMES, knots])
    reference = BSpline(knots.numpy(), np.eye(n), 3)
    values = basis_matrix(knots, t).numpy()
    slopes = basis_matrix(knots, t, derivative=1).numpy()
    np.testing.assert_allclose(values, reference(t.numpy()), rtol=0, atol=1e-12)
    np.testing.assert_allclose(slopes, reference.derivative()(t.numpy()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [4, 5, 9, 35])
def test_curve_and_derivative_equal_scipy_on_the_default_knots(n):
    curve = random_curve(clamped_knots(n))
    for points, curve_points, slopes in zip(
        curve.control_points, curve(TIMES), curve.derivative(TIMES), strict=True
    ):
        reference = BSpline(curve.knots.numpy(), points.numpy(), 3)
        np.testing.assert_allclose(curve_points, reference(TIMES), rtol=0, atol=1e-12)
        expected = reference.derivative()(TIMES.numpy())
        np.testing.assert_allclose(slopes, expected, rtol=1e-12, atol=1e-12)


@given(inner_knots)
def test_basis_is_a_partition_of_unity_and_its_derivative_sums_to_zero(inner):
    knots = make_knots(inner)
    assert (basis_matrix(knots, TIMES) >= 0).all()
    assert (basis_matrix(knots, TIMES).sum(1) - 1).abs().max() < 1e-14
    assert basis_matrix(knots, TIMES, derivative=1).sum(1).abs().max() < 1e-12


def test_curve_derivative_equals_autograd():
    curve = random_curve(clamped_knots(8), batch=1, dim=1)
    t = TIMES[1:-1].clone().requires_grad_()
    basis = basis_matrix(curve.knots, t)
    (slope,) = torch.autograd.grad((basis @ curve.control_points[0]).sum(), t)
    torch.testing.assert_close(slope, curve.derivative(t.detach())[0, :, 0], rtol=1e-12, atol=1e-12)


def test_curve_interpolates_its_end_points():
    curve = random_curve(clamped_knots(11))
    ends = curve(torch.tensor([0.0, 1.0]))
    assert torch.equal(ends, curve.control_points[:, [0, -1]])


@given(inner_knots, st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=5))
def test_knot_insertion_moves_no_point(inner, places):
    curve = random_curve(make_knots(inner))
    finer = curve
    for place in places:
        if int((finer.knots == place).sum()) < 3:
            finer = finer.insert_knot(at=place)
    assert finer.n_control_points == finer.knots.numel() - 4
    t = torch.cat([TIMES, torch.tensor(places)])
    assert (finer(t) - curve(t)).abs().max() <= 1e-12


@given(inner_knots.filter(bool), st.data())
def test_inserting_a_present_knot_moves_no_point(inner, data):
    curve = random_curve(make_knots(inner))
    place = data.draw(st.sampled_from(sorted(inner))) / 32
    if inner[round(place * 32)] == 3:
        with pytest.raises(ValueError, match="`at` should be a knot present at most twice"):
            curve.insert_knot(at=place)
    else:
        finer = curve.insert_knot(at=place)
        assert finer.n_control_points == curve.n_control_points + 1
        assert (finer(TIMES) - curve(TIMES)).abs().max() <= 1e-12


def test_default_insertion_halves_the_leftmost_largest_interval_and_moves_no_point():
    curve = random_curve(clamped_knots(4))
    finer = curve
    added = []
    for _ in range(31):
        before = finer.knots.tolist()
        finer = finer.insert_knot()
        added.append(next(k for k in finer.knots.tolist() if k not in before))
    assert added[:7] == [0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875]
    assert finer.knots.unique().tolist() == [i / 32 for i in range(33)]
    assert (finer(TIMES) - curve(TIMES)).abs().max() <= 1e-12
    assert torch.equal(finer.knots, clamped_knots(35))


def test_refine_equals_repeated_insertion():
    curve = random_curve(make_knots({3: 1, 17: 2}))
    knots, matrix = refine(curve.knots, 16)
    finer = curve
    while finer.n_control_points < 16:
        finer = finer.insert_knot()
    assert torch.equal(knots, finer.knots)
    torch.testing.assert_close(
        matrix @ curve.control_points, finer.control_points, rtol=1e-13, atol=1e-13
    )


@given(inner_knots, st.floats(0.001, 0.999))
def test_insertion_matrix_averages(inner, at):
    knots = make_knots(inner)
    if int((knots == at).sum()) < 3:
        matrix = insertion_matrix(knots, at)
        assert (matrix >= 0).all()
        assert (matrix.sum(1) - 1).abs().max() < 1e-14


@given(inner_knots)
def test_greville_abscissae_reproduce_linear_functions(inner):
    knots = make_knots(inner)
    at = greville_abscissae(knots)
    assert at[0] == 0
    assert at[-1] == 1
    assert (at.diff() > 0).all()
    assert (basis_matrix(knots, TIMES) @ at - TIMES).abs().max() < 1e-14


@pytest.mark.parametrize("n", [4, 5, 12])
def test_straight_is_the_line_at_constant_speed(n):
    start, end = torch.randn(4, 3), torch.randn(4, 3)
    line = CubicBSpline.straight(start, end, n)
    assert line.n_control_points == n
    expected = start[:, None] + TIMES[:, None] * (end - start)[:, None]
    torch.testing.assert_close(line(TIMES), expected, rtol=0, atol=1e-14)
    velocity = (end - start)[:, None].expand(-1, TIMES.numel(), -1)
    torch.testing.assert_close(line.derivative(TIMES), velocity, rtol=0, atol=1e-13)
    assert torch.equal(line.control_points[:, 0], start)
    assert torch.equal(line.control_points[:, -1], end)


def test_straight_broadcasts_single_codes():
    line = CubicBSpline.straight(torch.zeros(2), torch.randn(5, 2))
    assert (line.batch_size, line.n_control_points, line.dim) == (5, 4, 2)


def test_straight_ends_exactly_in_float32():
    # a + (b - a) differs from b in float32 for most pairs
    start, end = torch.randn(200, 3).float() * 1e3, torch.randn(200, 3).float()
    points = straight_control_points(start, end, clamped_knots(6))
    assert torch.equal(points[:, 0], start)
    assert torch.equal(points[:, -1], end)
    assert points.dtype == torch.float32


@given(inner_knots)
def test_reverse_runs_backwards(inner):
    curve = random_curve(make_knots(inner))
    back = curve.reverse()
    torch.testing.assert_close(back(TIMES), curve(TIMES.flip(0)), rtol=0, atol=1e-12)
    torch.testing.assert_close(back.reverse()(TIMES), curve(TIMES), rtol=0, atol=1e-12)


def test_parameters_of_each_curves_own():
    curve = random_curve(clamped_knots(7))
    t = torch.rand(3, 9)
    own = curve(t)
    assert own.shape == (3, 9, 2)
    for k in range(3):
        torch.testing.assert_close(own[k], curve[k](t[k])[0], rtol=0, atol=1e-14)
        torch.testing.assert_close(
            curve.derivative(t)[k], curve[k].derivative(t[k])[0], rtol=0, atol=1e-13
        )
    shared = curve(t[:1])
    assert_same_to_rounding(shared, curve(t[0]))


def test_indexing_keeps_a_batch():
    curve = random_curve(clamped_knots(6))
    assert torch.equal(curve[1].control_points, curve.control_points[1:2])
    assert torch.equal(curve[1:].control_points, curve.control_points[1:])
    chosen = torch.tensor([True, False, True])
    assert torch.equal(curve[chosen].control_points, curve.control_points[chosen])


def test_to_changes_the_points_and_keeps_float64_knots():
    curve = random_curve(clamped_knots(7)).to(dtype=torch.float32)
    assert curve(TIMES).dtype == torch.float32
    assert curve(TIMES.float()).dtype == torch.float32
    assert curve.knots.dtype == torch.float64


def test_curve_is_differentiable_in_its_control_points():
    points = torch.randn(1, 5, 2, requires_grad=True)
    curve = CubicBSpline(points, clamped_knots(5))
    curve(TIMES[:8]).sum().backward()
    expected = basis_matrix(clamped_knots(5), TIMES[:8]).sum(0)
    torch.testing.assert_close(points.grad[0, :, 0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("t", "error", "required", "found"),
    [
        ([0.5], TypeError, r"of shape \(T,\) or \(B, T\)", "list of 1"),
        (torch.tensor([0, 1]), TypeError, "floating-point", "torch.int64"),
        (torch.tensor(0.5), TypeError, r"of shape \(T,\)", r"shape \(\)"),
        (torch.zeros(1, 1, 1), TypeError, r"of shape \(T,\)", r"shape \(1, 1, 1\)"),
        (torch.zeros(2, 4), ValueError, r"\(3, T\)", r"shape \(2, 4\)"),
        (torch.tensor([0.0, 1.5]), ValueError, r"in \[0, 1\]", "1.5"),
        (torch.tensor([-0.5, 1.0]), ValueError, r"in \[0, 1\]", "-0.5"),
        (torch.tensor([float("nan")]), ValueError, r"in \[0, 1\]", "nan"),
    ],
)
def test_bad_parameters(t, error, required, found):
    curve = random_curve(clamped_knots(5))
    for evaluate in (curve, curve.derivative):
        with pytest.raises(error, match=f"`t` should be .*{required}.*Found `t = .*{found}"):
            evaluate(t)


def knots_of(*inner):
    return torch.tensor([0.0] * 4 + list(inner) + [1.0] * 4)


@pytest.mark.parametrize(
    "knots",
    [
        torch.tensor([0.0, 0.0, 0.0, 0.1, 0.5, 1.0, 1.0, 1.0, 1.0]),  # three zeros
        torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 0.9, 1.0, 1.0, 1.0]),  # three ones
        knots_of(0.0),
        knots_of(1.0),
        knots_of(-0.5),
        knots_of(1.5),
        knots_of(0.6, 0.4),
        knots_of(0.5, 0.5, 0.5, 0.5),
    ],
)
def test_knots_that_are_not_clamped(knots):
    points = torch.zeros(1, knots.numel() - 4, 2)
    with pytest.raises(ValueError, match=r"`knots` should be four zeros.*at most 3-fold"):
        CubicBSpline(points, knots)


@pytest.mark.parametrize(
    ("points", "knots", "error", "name"),
    [
        (torch.zeros(1, 3, 2), torch.zeros(7), ValueError, "control_points"),
        (torch.zeros(5, 2), knots_of(0.5), ValueError, "control_points"),
        (torch.full((1, 5, 2), torch.inf), knots_of(0.5), ValueError, "control_points"),
        (np.zeros((1, 5, 2), int), knots_of(0.5), TypeError, "control_points"),
        (torch.zeros(1, 5, 2, dtype=torch.int64), knots_of(0.5), TypeError, "control_points"),
        (torch.zeros(1, 5, 2), knots_of(), ValueError, "knots"),
        (torch.zeros(1, 5, 2), [0.0] * 9, TypeError, "knots"),
        (torch.zeros(1, 5, 2), knots_of(float("nan")), ValueError, "knots"),
    ],
)
def test_bad_curves(points, knots, error, name):
    with pytest.raises(error, match=f"Parameter `{name}` should be .* Found `{name} = "):
        CubicBSpline(points, knots)


@pytest.mark.parametrize("at", [0.0, 1.0, -0.1, 1.1, float("nan")])
def test_new_knot_outside(at):
    with pytest.raises(ValueError, match="Parameter `at` should be"):
        random_curve(clamped_knots(5)).insert_knot(at=at)


@pytest.mark.cuda
def test_curve_on_cuda():
    curve = random_curve(clamped_knots(9))
    there = curve.to("cuda")
    assert there.knots.is_cuda
    finer = there.insert_knot(at=0.3)
    torch.testing.assert_close(finer(TIMES.cuda()).cpu(), curve(TIMES), rtol=0, atol=1e-12)


@given(inner_knots, inner_knots)
def test_curves_on_the_union_of_knots_are_the_same(inner, other):
    vectors = make_knots(inner), make_knots(other)
    union = union_of_knots(*vectors)
    most = {place: max(inner.get(place, 0), other.get(place, 0)) for place in {**inner, **other}}
    assert torch.equal(union, make_knots(most))
    for knots in vectors:
        curve = random_curve(knots)
        finer = CubicBSpline(inserting_matrix(knots, union) @ curve.control_points, union)
        assert (finer(TIMES) - curve(TIMES)).abs().max() <= 1e-12
