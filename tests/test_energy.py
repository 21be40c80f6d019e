"""Lengths and energies against closed forms, the minimiser's against finite differences."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import half_plane, sphere
from torch import nn

from geolatent import (
    CubicBSpline,
    GaussianPullbackMetric,
    PullbackMetric,
    TensorMetric,
    path_energy,
    path_length,
)
from geolatent.curves import basis_matrix, clamped_knots, greville_abscissae, insertion_matrix
from geolatent.lengths import measure
from geolatent.metrics.rows import Rows
from geolatent.quadrature import composite_rule
from geolatent.solvers.energy import DiscreteEnergy

pytestmark = pytest.mark.usefixtures("float64")


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 12))

    def forward(self, z):
        mean, log_std = self.body(z).chunk(2, dim=1)
        return mean, log_std.exp()


def decoder():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))


def features():
    return nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 3))


def all_metrics():
    return {
        "chords": PullbackMetric(decoder()),
        "chords, features": PullbackMetric(decoder(), features()),
        "chords, gaussian": GaussianPullbackMetric(Heads()),
        "weighted chords": GaussianPullbackMetric(Heads(), features()),
        "estimated chords": GaussianPullbackMetric(
            Heads(), features(), diagonal="hutchinson", n_probes=3
        ),
        "quadrature, tensor": TensorMetric(
            lambda z: torch.eye(2) * (1 + z.square().sum(1))[:, None, None], dim=2
        ),
    }


NAMES = list(all_metrics())


def random_curve(n=7, batch=3):
    """Bent, uneven curves from left to right: nowhere near a stop, where the speed has a kink."""
    knots = clamped_knots(n)
    x = 3 * greville_abscissae(knots).expand(batch, n) ** 1.2 - 1.5
    return CubicBSpline(torch.stack([x, 0.5 * torch.randn(batch, n)], dim=2), knots)


def fine_reference(metric, curve):
    """Length and energy by Simpson's rule on 2 x 500 panels of every knot span."""
    lengths, energies = 0.0, 0.0
    breaks = curve.knots.unique()
    for low, high in itertools.pairwise(breaks):
        # the speed has one-sided values at the knots; a curve is smooth up to them
        t = torch.linspace(float(low), float(high), 1001)
        z, v = curve(t), curve.derivative(t)
        square = metric.quadratic(z.flatten(0, 1), v.flatten(0, 1)).reshape(z.shape[:2])
        weights = torch.ones(1001)
        weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
        weights *= (high - low) / 1000 / 3
        lengths = lengths + (square.clamp_min(0).sqrt() * weights).sum(1)
        energies = energies + 0.5 * (square * weights).sum(1)
    return lengths.detach(), energies.detach()


def discrete_energy(metric, curve, nodes_per_span, max_rows=None):
    ends = None
    first_last = curve.control_points[:, [0, -1]].flatten(0, 1)
    if metric.immersion is None:
        metric.check("curve", first_last)
    if metric.chords is not None:
        ends = metric.chords.values(first_last).detach().reshape(curve.batch_size, 2, -1)
    b = curve.batch_size
    rows = Rows.of(metric.limited(max_rows), first_last).counting(b)
    pairs = torch.arange(b, device=first_last.device)
    return DiscreteEnergy(rows, curve.knots, nodes_per_span, curve.control_points, pairs, ends)


def at_curves(energy):
    """Value, gradient by free control points (B, n - 2, d) and Hessians at the curves."""
    value, gradient, hessian = energy(energy.start, energy.pairs)
    return value, gradient.reshape(energy.points[:, 1:-1].shape), hessian


def naive_chord_square(metric, a, b):
    """Squared chord between two codes, for a feature map by its explicit Jacobians."""
    if metric.immersion is not None:
        return (metric.immersion(b[None]) - metric.immersion(a[None])).square().sum().detach()
    (mean_a, std_a), (mean_b, std_b) = (metric.decoder.function(z[None]) for z in (a, b))
    h = metric.features.function
    jacobians = [torch.autograd.functional.jacobian(h, mean[0]) for mean in (mean_a, mean_b)]
    signs = torch.stack(list(metric._combinations(torch.eye(len(jacobians[0])))))
    weights = sum((signs @ jacobian).square().sum(0) for jacobian in jacobians) / 2
    spread = (weights * (std_b - std_a)[0].square()).sum()
    return ((h(mean_b) - h(mean_a)).square().sum() + spread).detach()


# lengths and energies


def test_lines_under_a_linear_decoder():
    # f(z) = A z + 1: a line from a to b has length |A (b - a)|, and energy half its square
    matrix = torch.randn(2, 5)
    start, end = torch.randn(6, 2), torch.randn(6, 2)
    line = CubicBSpline.straight(start, end)
    metric = PullbackMetric(lambda z: z @ matrix + 1.0)
    length = ((end - start) @ matrix).norm(dim=1)
    torch.testing.assert_close(path_length(metric, line), length, rtol=1e-12, atol=0)
    torch.testing.assert_close(path_energy(metric, line), length**2 / 2, rtol=1e-12, atol=0)


def test_radial_lines_on_the_sphere():
    # a ray from the pole z = 0 out to |z| = r runs along a meridian: arc 2 arctan(r)
    radius = torch.tensor([0.1, 0.5, 1.0, 2.0])
    line = CubicBSpline.straight(torch.zeros(2), radius[:, None] * torch.tensor([[0.6, 0.8]]))
    length = path_length(PullbackMetric(sphere), line, tolerance=1e-9)
    torch.testing.assert_close(length, 2 * radius.arctan(), rtol=1e-9, atol=0)


def test_vertical_lines_in_the_half_plane():
    # from (x, y) up to (x, y') in Poincare's metric: log(y' / y); energy of the straight line
    # 1/2 integral of (y' - y)^2 / (y + t (y' - y))^2 dt = (y' - y)^2 / (2 y y')
    low, high = torch.tensor([0.5, 1.0, 0.2]), torch.tensor([1.0, 4.0, 0.3])
    x = torch.randn(3)
    line = CubicBSpline.straight(torch.stack([x, low], 1), torch.stack([x, high], 1))
    metric = TensorMetric(half_plane, dim=2)
    length = path_length(metric, line, tolerance=1e-9)
    torch.testing.assert_close(length, (high / low).log(), rtol=1e-9, atol=0)
    energy = path_energy(metric, line, tolerance=1e-9)
    torch.testing.assert_close(energy, (high - low) ** 2 / (2 * low * high), rtol=1e-9, atol=0)


def test_absolute_length_does_not_depend_on_the_number_of_nodes():
    # a quarter of the unit circle, run through unevenly: pi / 2, not N / (N - 1) times it
    metric = PullbackMetric(lambda z: torch.cat([z.cos(), z.sin()], dim=1))
    points = torch.tensor([[[0.0], [0.1], [0.2], [1.5], [math.pi / 2]]])
    curve = CubicBSpline(points, clamped_knots(5))
    for tolerance in (1e-2, 1e-4, 1e-8):
        length = path_length(metric, curve, tolerance=tolerance)
        assert length.item() == pytest.approx(math.pi / 2, rel=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_length_and_energy_equal_a_fine_quadrature(name):
    metric, curve = all_metrics()[name], random_curve()
    length, energy = fine_reference(metric, curve)
    for tolerance in (1e-4, 1e-8):
        got = path_length(metric, curve, tolerance=tolerance)
        # successive rules agree to the tolerance, which estimates the error and is no bound on it
        torch.testing.assert_close(got, length, rtol=10 * tolerance, atol=0)
    got = path_energy(metric, curve, tolerance=1e-8)
    torch.testing.assert_close(got, energy, rtol=1e-7, atol=0)


@given(st.integers(0, 10**6), st.integers(4, 12))
def test_length_squared_is_at_most_twice_the_energy(seed, n):
    torch.manual_seed(seed)
    curve = random_curve(n)
    for metric in (
        PullbackMetric(sphere),
        TensorMetric(lambda z: torch.eye(2).repeat(len(z), 1, 1), 2),
    ):
        length, energy = path_length(metric, curve), path_energy(metric, curve)
        assert (length**2 <= 2 * energy * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", NAMES)
def test_reversal_and_knot_insertion_change_nothing(name):
    metric, curve = all_metrics()[name], random_curve()
    for other in (curve.reverse(), curve.insert_knot(at=0.3), curve.insert_knot()):
        for quantity in (path_length, path_energy):
            torch.testing.assert_close(
                quantity(metric, other, tolerance=1e-9),
                quantity(metric, curve, tolerance=1e-9),
                rtol=1e-8,
                atol=0,
            )


def test_a_point_has_length_zero():
    curve = CubicBSpline.straight(torch.ones(2), torch.ones(2))
    for metric in all_metrics().values():
        assert path_length(metric, curve).item() < 1e-13
        assert path_energy(metric, curve).item() < 1e-26


def test_curves_are_measured_each_by_itself():
    curve = random_curve(batch=4)
    metric = PullbackMetric(sphere)
    # the second curve is much harder than the others
    curve.control_points[1] *= 20.0
    together = path_length(metric, curve)
    alone = torch.cat([path_length(metric, curve[k]) for k in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


def test_a_curve_through_nan_does_not_touch_the_others():
    def holed(z):
        return torch.where((z[:, :1] - 5.0).abs() < 0.5, torch.nan, sphere(z))

    end = torch.tensor([[1.0, 0.0], [6.0, 0.0], [0.0, 1.0]])
    line = CubicBSpline.straight(torch.zeros(2), end)
    length = path_length(PullbackMetric(holed), line)
    assert length.isnan().tolist() == [False, True, False]
    expected = path_length(PullbackMetric(sphere), line)
    torch.testing.assert_close(length[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["chords", "quadrature"])
def test_a_line_through_nan_does_not_touch_the_curve_round_it(kind):
    def hole(z):
        return torch.where(z.norm(dim=1, keepdim=True) < 0.2, torch.nan, 1.0)

    metric = PullbackMetric(lambda z: hole(z) * sphere(z))
    if kind == "quadrature":
        metric = TensorMetric(lambda z: hole(z)[:, None] * half_plane(z + 3.0), dim=2)
    points = torch.tensor([[[-1.0, 0.0], [-0.5, 0.9], [0.5, 0.9], [1.0, 0.0]]])
    curve = CubicBSpline(points, clamped_knots(4))
    line = CubicBSpline.straight(points[:, 0], points[:, -1])
    for curves in ([line, curve], [curve, line]):
        rows = Rows.of(metric, torch.zeros(1, 2)).counting(1)
        lengths = measure(rows, curves, tolerance=1e-8).length[:, 0]
        lengths = lengths if curves[1] is curve else lengths.flip(0)
        assert lengths[0].isnan()
        expected = path_length(metric, curve, tolerance=1e-8)
        torch.testing.assert_close(lengths[1:], expected, rtol=1e-7, atol=0)


def test_a_length_that_does_not_settle_is_told():
    # steps of a staircase are seen or missed by every finer rule
    metric = TensorMetric(
        lambda z: torch.eye(2) * (1 + (3e3 * z[:, :1, None]).sin().sign() * 0.9), dim=2
    )
    line = CubicBSpline.straight(torch.zeros(2), torch.tensor([1.0, 0.3]))
    with pytest.warns(UserWarning, match=r"the lengths of 1 of 1 pairs did not reach"):
        path_length(metric, line, tolerance=1e-12)


def test_float32_codes_give_float32_lengths():
    curve = random_curve()
    expected = path_length(PullbackMetric(sphere), curve)
    length = path_length(PullbackMetric(sphere), curve.to(dtype=torch.float32))
    assert length.dtype == torch.float32
    torch.testing.assert_close(length.double(), expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("separation", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("name", ["chords", "weighted chords"])
def test_codes_close_together_in_float32(name, separation):
    # differences of outputs lose all digits here, derivatives none
    metric = all_metrics()[name]
    start = torch.randn(5, 2)
    end = start + separation * nn.functional.normalize(torch.randn(5, 2))
    line = CubicBSpline.straight(start.float(), end.float())
    expected = path_length(metric, line.to(dtype=torch.float64))
    metric.decoder.function.float()
    if metric.features is not None:
        metric.features.function.float()
    length = path_length(metric, line)
    torch.testing.assert_close(length.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_lengths_without_gradients_enabled(name, mode):
    metric, curve = all_metrics()[name], random_curve()
    expected = path_length(metric, curve), path_energy(metric, curve)
    with mode():
        length, energy = path_length(metric, curve), path_energy(metric, curve)
    torch.testing.assert_close(length, expected[0])
    torch.testing.assert_close(energy, expected[1])
    assert not length.requires_grad


@pytest.mark.parametrize("per_interval", [1, 2, 5])
def test_composite_rule_is_exact_for_polynomials(per_interval):
    breaks = torch.tensor([0.0, 0.0, 0.2, 0.7, 0.7, 1.0])
    t, weights = composite_rule(breaks, per_interval)
    assert t.numel() == 3 * per_interval
    for power in range(2 * per_interval):
        assert (t**power * weights).sum().item() == pytest.approx(1 / (power + 1), abs=1e-14)


# energies for the minimiser


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gauss_newton", [True, False])
def test_gradient_of_the_discrete_energy_equals_finite_differences(name, gauss_newton):
    metric, curve = all_metrics()[name], random_curve(n=6, batch=2)
    energy = discrete_energy(metric, curve, 4)
    energy.gauss_newton &= gauss_newton
    x, pairs = energy.start, torch.arange(2)
    value, gradient, _ = energy(x, pairs)
    assert value.shape == (2,)
    assert gradient.shape == x.shape == (2, 8)  # the ends are fixed
    step = 1e-5
    for i in range(8):
        move = torch.zeros_like(x)
        move[:, i] = step
        slope = (energy(x + move, pairs)[0] - energy(x - move, pairs)[0]) / (2 * step)
        torch.testing.assert_close(gradient[:, i], slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("chords")])
def test_gauss_newton_hessian_equals_the_explicit_product(name):
    # E = 1/2 |r|^2 with r_i = (F(z_{i+1}) - F(z_i)) / sqrt(t_{i+1} - t_i); H = J_r^T J_r
    metric, curve = all_metrics()[name], random_curve(n=6, batch=2)  # inner knots 1/4, 1/2
    energy = discrete_energy(metric, curve, 3)
    assert energy.gauss_newton
    t = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0]) / 12
    basis = basis_matrix(curve.knots, t)
    value, gradient, hessian = at_curves(energy)
    inner = slice(2, -2)  # the ends are fixed
    for b in range(2):

        def residuals(flat):
            points = metric.immersion(basis @ flat.reshape(6, 2))
            return (points.diff(dim=0) / t.diff().sqrt()[:, None]).flatten()

        flat = curve.control_points[b].flatten()
        full = torch.autograd.functional.jacobian(residuals, flat)[:, inner]
        r = residuals(flat).detach()
        torch.testing.assert_close(value[b], r.square().sum() / 2, rtol=1e-12, atol=0)
        got = gradient[b].flatten()
        torch.testing.assert_close(got, full.T @ r, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(hessian[b], full.T @ full, rtol=1e-10, atol=1e-10)
    energy.gauss_newton = False  # as in many dimensions
    by_backward = at_curves(energy)
    torch.testing.assert_close(by_backward[0], value, rtol=1e-12, atol=0)
    torch.testing.assert_close(by_backward[1], gradient, rtol=1e-10, atol=1e-10)
    assert by_backward[2] is None


@pytest.mark.parametrize("name", NAMES)
def test_discrete_energy_equals_a_naive_sum(name):
    metric, curve = all_metrics()[name], random_curve(n=6, batch=2)
    value, *_ = at_curves(discrete_energy(metric, curve, 4))
    breaks = curve.knots.unique().tolist()
    for b in range(2):
        total = 0.0
        for low, high in itertools.pairwise(breaks):
            if "chords" in name:
                points = curve[b](torch.linspace(low, high, 5))[0]
                for i in range(4):
                    square = naive_chord_square(metric, points[i], points[i + 1])
                    total += 0.5 * square / ((high - low) / 4)
            else:
                t, weights = composite_rule(torch.tensor([0.0, 1.0]), 4)
                t = low + (high - low) * t
                z, v = curve[b](t)[0], curve[b].derivative(t)[0]
                for i in range(4):
                    form = v[i] @ metric.tensor(z[i : i + 1])[0].detach() @ v[i]
                    total += 0.5 * form * weights[i] * (high - low)
        assert value[b].item() == pytest.approx(float(total), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_discrete_energy_converges_to_the_path_energy(name):
    metric, curve = all_metrics()[name], random_curve()
    exact = path_energy(metric, curve, tolerance=1e-10)
    errors = [
        (at_curves(discrete_energy(metric, curve, nodes))[0] / exact - 1).abs()
        for nodes in (8, 16, 32)
    ]
    if "chords" in name:
        # second order in the number of segments
        for coarse, fine in itertools.pairwise(errors):
            assert (coarse / fine - 4).abs().max() < 0.5
    assert errors[-1].max() < (2e-3 if "chords" in name else 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_reversal_keeps_the_discrete_energy(name):
    metric, curve = all_metrics()[name], random_curve(n=7)
    back = curve.reverse()
    ahead = at_curves(discrete_energy(metric, curve, 4))
    behind = at_curves(discrete_energy(metric, back, 4))
    torch.testing.assert_close(behind[0], ahead[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(behind[1].flip(1), ahead[1], rtol=1e-10, atol=1e-10)


def test_gradient_of_the_quadrature_follows_knot_insertion():
    # E(M p) as a function of p: by the chain rule the gradients differ by M^T
    metric, curve = all_metrics()["quadrature, tensor"], random_curve(n=6)
    matrix = insertion_matrix(curve.knots, 0.5)
    finer = CubicBSpline(matrix @ curve.control_points, curve.insert_knot(at=0.5).knots)
    coarse = at_curves(discrete_energy(metric, curve, 24))[1]
    fine = at_curves(discrete_energy(metric, finer, 24))[1]
    # the ends, which are fixed, have no part in it
    free = matrix[1:-1, 1:-1]
    torch.testing.assert_close(free.T @ fine, coarse, rtol=1e-8, atol=1e-8)


def test_constant_decoder_has_no_energy():
    metric = PullbackMetric(lambda z: torch.ones(len(z), 3))
    curve = random_curve()
    value, gradient, _ = at_curves(discrete_energy(metric, curve, 4))
    assert value.abs().max() == 0
    assert gradient.abs().max() == 0


# rows at once


@pytest.mark.parametrize("name", NAMES)
def test_small_budgets_change_nothing(name):
    metric, curve = all_metrics()[name], random_curve(batch=5)
    whole = at_curves(discrete_energy(metric, curve, 4))
    z = curve(torch.linspace(0, 1, 4))
    tensors = Rows.of(metric, z[0]).tensor(z)
    assert tensors.shape == (5, 4, 2, 2)
    torch.testing.assert_close(tensors.flatten(0, 1), metric.tensor(z.flatten(0, 1)))
    length = path_length(metric, curve)
    for rows in (1, 40, 1000):
        parts = at_curves(discrete_energy(metric, curve, 4, rows))
        torch.testing.assert_close(parts[0], whole[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(parts[1], whole[1], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(Rows.of(metric.limited(rows), z[0]).tensor(z), tensors)
        torch.testing.assert_close(path_length(metric.limited(rows), curve), length)


def limited(max_rows):
    return Rows.of(PullbackMetric(sphere).limited(max_rows), torch.zeros(1, 2))


@given(st.integers(0, 40), st.integers(1, 7), st.one_of(st.none(), st.integers(1, 50)))
def test_every_item_is_covered_once_within_the_rows(n_items, rows_each, max_rows):
    sizes = []

    def noted(part):
        sizes.append(len(part))
        return part, 2 * part

    found, doubled = limited(max_rows).each(noted, rows_each, torch.arange(n_items))
    assert found.tolist() == list(range(n_items))
    assert doubled.tolist() == [2 * i for i in range(n_items)]
    if max_rows is not None:
        assert max(sizes) <= max(1, max_rows // rows_each)


@pytest.mark.parametrize("name", ["chords", "weighted chords"])
@pytest.mark.parametrize("capacity", [300, 2000, 20000])
def test_out_of_memory_halves_the_rows(name, capacity):
    metric, curve = all_metrics()[name], random_curve(batch=20)
    expected = path_length(metric, curve)
    seen = []
    f = metric.decoder.function

    def limited(z):
        seen.append(len(z))
        if len(z) > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return f(z)

    metric.decoder.function = limited
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        length = path_length(metric, curve)
    torch.testing.assert_close(length, expected, rtol=1e-12, atol=0)
    failures = sum(rows > capacity for rows in seen)
    assert len(caught) == failures
    assert (failures > 0) == (capacity < 2000)
    for warning in caught:
        assert "out of memory; going on with at most" in str(warning.message)


def test_out_of_memory_with_one_item_is_raised():
    def full(part):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with (
        pytest.warns(UserWarning, match="at most [421] decoder rows"),
        pytest.raises(torch.OutOfMemoryError),
    ):
        limited(8).each(full, 1, torch.arange(8))


def test_halving_redoes_what_failed_and_stays_halved():
    sizes = []

    def short_of_memory(part):
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(part))
        return (part,)

    rows = limited(8)
    with pytest.warns(UserWarning, match="at most 4 decoder rows"):
        assert rows.each(short_of_memory, 2, torch.arange(16))[0].tolist() == list(range(16))
    assert max(sizes) <= 3
    sizes.clear()
    rows.each(short_of_memory, 2, torch.arange(4))
    assert len(sizes) == 2


def test_measuring_several_curves_uses_one_rule_for_each_pair():
    # a curve that needs a fine rule takes its straight line along
    metric = PullbackMetric(sphere)
    curve = random_curve(batch=2)
    curve.control_points[1] *= 3.0
    ends = curve.control_points[:, [0, -1]].unbind(1)
    line = CubicBSpline.straight(*ends)
    rows = Rows.of(metric, ends[0]).counting(2)
    measured = measure(rows, [line, curve])
    assert measured.length.shape == (2, 2)
    assert rows.spent.forward[1] > rows.spent.forward[0]
    tight = torch.stack([path_length(metric, c, tolerance=1e-9) for c in (line, curve)])
    torch.testing.assert_close(measured.length, tight, rtol=1e-4, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["chords, features", "weighted chords"])
def test_lengths_on_cuda(name):
    torch.manual_seed(0)
    metric, curve = all_metrics()[name], random_curve()
    expected = path_length(metric, curve), path_energy(metric, curve)
    metric.decoder.function.cuda()
    metric.features.function.cuda()
    there = curve.to("cuda")
    length = path_length(metric, there)
    assert length.is_cuda
    torch.testing.assert_close(length.cpu(), expected[0], rtol=1e-8, atol=0)
    torch.testing.assert_close(path_energy(metric, there).cpu(), expected[1], rtol=1e-8, atol=0)
    value, gradient, _ = at_curves(discrete_energy(metric, there, 4))
    assert value.is_cuda
    assert gradient.is_cuda
