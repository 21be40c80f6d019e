"""Geometry by products with the metric tensor: what the formed tensor gives, in any dimension."""

import warnings

import pytest
import torch
from torch import nn

import geolatent as gl
from geolatent.geometry import volume
from geolatent.geometry.acceleration import geodesic_acceleration
from geolatent.metrics import operators
from geolatent.metrics.rows import Rows
from geolatent.solvers.first_order import FirstOrderSolver

D = 64


class Wide(nn.Module):
    """A smooth decoder of 64 numbers whose metric is regular: a part goes straight through."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(D, 96), nn.Tanh(), nn.Linear(96, D))

    def forward(self, z):
        return torch.cat([z, 2.0 * self.inner(z)], dim=1)


def pullback(dtype=torch.float64):
    torch.manual_seed(0)
    return gl.PullbackMetric(Wide().to(dtype).requires_grad_(False))


METRICS = {
    "immersion": pullback,
    "sphere": lambda: gl.SphereMetric(pullback()),
    "none": lambda: gl.ConformalMetric(pullback(), lambda z: 1.0 + 0.1 * z.square().sum(1)),
}


def codes(n=3, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator, dtype=dtype)


@pytest.fixture
def by_products(monkeypatch):
    """Let tensors be formed in no more than 8 dimensions; return a switch."""

    def switch(*, on=True):
        monkeypatch.setattr(operators, "FORMED_UP_TO", 8 if on else 512)

    switch(on=False)
    return switch


@pytest.fixture
def unformed(monkeypatch):
    """Make whole tensors and Jacobians fail."""

    def never(*_, **__):
        raise AssertionError("a whole tensor was formed")

    def switch():
        for kind in (Rows,):
            monkeypatch.setattr(kind, "tensor", never)
            monkeypatch.setattr(kind, "columns", never)
            monkeypatch.setattr(kind, "tensor_and_slope", never)

    return switch


CALLS = {
    "exponential": lambda metric, a, b: gl.exp_map(metric, a, 0.2 * b),
    "velocities": lambda metric, a, b: gl.shoot(metric, a, 0.2 * b).velocities,
    "energy": lambda metric, a, b: gl.shoot(metric, a, 0.2 * b).energy,
    "acceleration": geodesic_acceleration,
    "residual": lambda metric, a, b: gl.geodesic_residual(
        metric, gl.CubicBSpline.straight(a, b), torch.tensor([0.3, 0.8])
    ),
    "curvature": lambda metric, a, b: gl.sectional_curvature(metric, a, b, b.flip(0)),
    "eigenvalues": lambda metric, a, b: gl.principal_directions(metric, a, 3).eigenvalues,  # noqa: ARG005
}


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("name", CALLS)
def test_products_give_what_the_tensor_gives(name, kind, by_products, unformed):
    metric = METRICS[kind]()
    a, b = codes(2, seed=1), codes(2, seed=2)
    expected = CALLS[name](metric, a, b)
    by_products()
    unformed()
    torch.testing.assert_close(CALLS[name](metric, a, b), expected, rtol=1e-6, atol=1e-8)


def test_principal_directions_are_eigenvectors(by_products, unformed):
    metric, z = pullback(), codes()
    tensors = metric.tensor(z)
    values = torch.linalg.eigvalsh(tensors).flip(1)[:, :4]
    by_products()
    unformed()
    found = gl.principal_directions(metric, z, 4)
    torch.testing.assert_close(found.eigenvalues, values, rtol=1e-9, atol=0.0)
    moved = torch.einsum("nij,nkj->nki", tensors, found.directions)
    expected = found.eigenvalues[:, :, None] * found.directions
    torch.testing.assert_close(moved, expected, rtol=0.0, atol=1e-9 * float(values.max()))
    gram = found.directions @ found.directions.mT
    torch.testing.assert_close(gram, torch.eye(4).to(gram).expand_as(gram), rtol=0.0, atol=1e-12)


def test_principal_directions_of_an_isotropic_metric_are_orthonormal(by_products):
    by_products()
    found = gl.principal_directions(gl.PullbackMetric(lambda z: 3.0 * z), codes(), 3)
    torch.testing.assert_close(found.eigenvalues, torch.full_like(found.eigenvalues, 9.0))
    gram = found.directions @ found.directions.mT
    torch.testing.assert_close(gram, torch.eye(3).to(gram).expand_as(gram), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("kind", METRICS)
def test_log_determinants_are_within_their_standard_errors(kind, unformed):
    metric, z = METRICS[kind](), codes(4)
    exact = gl.log_magnification_factor(metric, z)
    expected = 0.5 * torch.linalg.slogdet(metric.tensor(z)).logabsdet
    torch.testing.assert_close(exact.value, expected)
    assert not exact.standard_error.any()
    unformed()
    found = gl.log_magnification_factor(metric, z, exact=False, n_probes=64)
    off = (found.value - exact.value).abs()
    assert bool((off < 4.0 * found.standard_error).all())
    # 1/2 sqrt(2 / m sum of squares of log G beside its diagonal) for m probes
    values, vectors = torch.linalg.eigh(metric.tensor(z)[:1])
    logarithm = (vectors * values.log()[:, None]) @ vectors.mT
    beside = logarithm - torch.diag_embed(logarithm.diagonal(dim1=1, dim2=2))
    predicted = 0.5 * (2.0 * beside.square().sum() / 64) ** 0.5
    assert 0.6 < float(found.standard_error[0] / predicted) < 1.5


def test_log_determinants_are_deterministic_and_share_their_signs():
    metric, z = pullback(), codes(1).repeat(2, 1)
    found = gl.log_magnification_factor(metric, z, exact=False, seed=3)
    torch.testing.assert_close(found.value[0], found.value[1], rtol=1e-9, atol=0.0)
    again = gl.log_magnification_factor(metric, z, exact=False, seed=3)
    torch.testing.assert_close(found.value, again.value, rtol=1e-9, atol=0.0)
    other = gl.log_magnification_factor(metric, z, exact=False, seed=4)
    assert not torch.allclose(found.value, other.value, rtol=1e-9, atol=0.0)


def test_log_determinants_beyond_the_range_of_numbers():
    stretched = gl.PullbackMetric(lambda z: 1e4 * z)
    z, expected = codes(1), D * 9.210340371976184
    assert bool(gl.magnification_factor(stretched, z.float()).isinf())
    found = gl.log_magnification_factor(stretched, z.float()).value
    assert float(found) == pytest.approx(expected, rel=1e-5)
    # log G is diagonal here: signs of any kind give it without an error
    found = gl.log_magnification_factor(stretched, z, exact=False)
    assert float(found.value) == pytest.approx(expected, rel=1e-9)
    assert float(found.standard_error) < 1e-6


@pytest.mark.parametrize("exact", [True, False])
def test_log_determinants_of_singular_metrics_are_infinite(exact):
    fewer = gl.PullbackMetric(lambda z: z[:, :5].sin())
    found = gl.log_magnification_factor(fewer, codes(), exact=exact)
    assert bool((found.value == -torch.inf).all())
    assert not found.standard_error.any()
    flat = gl.PullbackMetric(lambda z: torch.cat([z[:, :5], 0.0 * z], dim=1))
    found = gl.log_magnification_factor(flat, codes(), exact=exact)
    assert bool((found.value == -torch.inf).all())


def test_random_walks_have_the_covariance_of_the_tensor(by_products, unformed):
    metric = gl.PullbackMetric(lambda z: z * torch.linspace(0.5, 2.0, D, dtype=torch.float64))
    start = torch.zeros(400, D, dtype=torch.float64)
    by_products()
    unformed()
    walks = gl.brownian_motion(metric, start, 0.5, 1)[:, 1]
    # the variance of 400 draws has a standard error of 7 %, their 64 means of 1 %
    spread = walks.var(0) * torch.linspace(0.5, 2.0, D, dtype=torch.float64).square() / 0.5
    assert float((spread - 1.0).abs().max()) < 0.35
    assert float(spread.mean()) == pytest.approx(1.0, abs=0.04)


def test_logarithms_lead_to_the_end(by_products):
    metric = pullback()
    start = codes(2, seed=1)
    end = start + 0.15 * codes(2, seed=2)
    by_products()
    solver = FirstOrderSolver()
    found = gl.shoot_to(metric, start, end, solver=solver, integrator=gl.RungeKutta(1e-7))
    assert bool(found.converged.all())
    reached = gl.exp_map(metric, start, found.velocity, integrator=gl.RungeKutta(1e-7))
    torch.testing.assert_close(reached, end, rtol=0.0, atol=1e-5)


def test_no_corrections_leave_the_splines_velocities():
    metric, start = pullback(), codes(1, seed=1)
    found = gl.shoot_to(metric, start, codes(1, seed=2), max_corrections=0)
    assert not found.corrections.any()
    assert not found.converged.any()
    assert bool(found.miss > 0)


def test_means_are_those_of_the_tensor(by_products):
    metric, points = pullback(), codes(3)
    solver = FirstOrderSolver()
    expected = gl.frechet_mean(metric, points, solver=solver)
    by_products()
    found = gl.frechet_mean(metric, points, solver=solver)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0.0, atol=1e-4)
    assert bool(found.converged)


def test_products_are_counted(by_products):
    metric, z = pullback(), codes(2)
    by_products()
    rows = Rows.of(metric, z).counting(2)
    operators.metric_operator(rows, z[:, None].expand(2, 3, D)).times(torch.ones(2, 3, D).double())
    assert rows.spent.jvp.tolist() == rows.spent.backward.tolist() == [3, 3]
    assert rows.spent.forward.tolist() == [3, 3]


def test_solves_of_singular_metrics_are_nan(by_products):
    by_products()
    flat = gl.PullbackMetric(lambda z: torch.cat([z[:, :5], 0.0 * z], dim=1))
    z = codes(2)
    rows = Rows.of(flat, z)
    covectors = torch.zeros(2, D, dtype=torch.float64)
    covectors[0, 7] = 1.0  # no vector has it
    covectors[1, 2] = 1.0
    found = operators.metric_operator(rows, z).solve(covectors)
    assert bool(found[0].isnan().all())
    torch.testing.assert_close(found[1], covectors[1])
    with pytest.warns(UserWarning, match="not finite or singular"):
        gl.brownian_motion(flat, z, 0.1, 1)


def test_single_precision_follows_geodesics(by_products):
    a, b = codes(2, seed=1, dtype=torch.float32), codes(2, seed=2, dtype=torch.float32)
    metric = pullback(torch.float32)
    expected = gl.exp_map(metric, a, 0.2 * b)
    by_products()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gl.exp_map(metric, a, 0.2 * b)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)


REFUSED = {
    "magnification": gl.magnification_factor,
    "condition": gl.condition_number,
    "exact logarithm": lambda metric, z: gl.log_magnification_factor(metric, z, exact=True),
    "transport": lambda metric, z: gl.parallel_transport(
        metric, gl.CubicBSpline.straight(z, z + 1.0), z
    ),
    "logarithm": lambda metric, z: gl.log_map(metric, z, z + 1.0),
    "chains": lambda metric, z: gl.exp_map(metric, z, z, integrator=gl.DiscreteGeodesic()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_forms_tensors_refuses_many_dimensions(name):
    z = torch.zeros(1, 4097)
    metric = gl.PullbackMetric(lambda z: z.sin())
    with pytest.raises(ValueError, match=r"at most \d+ dimensions, of which whole metric tensors"):
        REFUSED[name](metric, z)


def test_eigenvalues_are_taken_in_parts_of_the_memory(monkeypatch):
    metric, z = pullback(), codes(5)
    expected = gl.condition_number(metric, z)
    monkeypatch.setattr(volume.Rows, "tensor", _watched(volume.Rows.tensor, sizes := []))
    monkeypatch.setattr(
        "geolatent.metrics.rows.RowBudget.memory", staticmethod(lambda _: 2 * 32 * D * D)
    )
    torch.testing.assert_close(gl.condition_number(metric, z), expected)
    assert sizes == [2, 2, 1]


def _watched(function, sizes):
    def watched(self, z, pairs=None):
        sizes.append(len(z))
        return function(self, z, pairs)

    return watched
