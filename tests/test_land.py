"""The locally adaptive normal distribution: its constant, its density, and what it gains."""

import math

import numpy as np
import pytest
import torch
from problems import sphere
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from torch import nn

from geolatent import PullbackMetric, TensorMetric
from geolatent.geometry.integrators import DiscreteGeodesic, RungeKutta
from geolatent.learn import estimators
from geolatent.learn.land import LandMixture, TangentSample, fit_precision, sample_tangents
from geolatent.metrics.composite import LocalVarianceMetric
from geolatent.metrics.rows import Rows

pytestmark = pytest.mark.usefixtures("float64")


def arc(n, seed):
    """A half circle with a little noise across: curved data."""
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    radius = 1 + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def test_constant_on_the_sphere():
    """C = 2 pi integral_0^pi exp(-a t^2 / 2) sin t dt, and m(v) = sin |v| / |v|."""
    metric = PullbackMetric(sphere)
    mean = torch.tensor([0.2, -0.3])
    scale = metric.tensor(mean[None])[0]  # isotropic: 4 / (1 + |z|^2)^2
    precision = 12.0 * scale
    rows = Rows.of(metric.limited(10_000), torch.zeros(1, 2))
    noise = torch.randn(1500, 2)
    sample = sample_tangents(rows, mean, torch.linalg.inv(10.0 * scale), noise, RungeKutta(1e-4))
    lengths = torch.einsum("si,ij,sj->s", sample.vectors, scale, sample.vectors).sqrt()
    expected = lengths.sin() / lengths * torch.linalg.det(scale).sqrt()
    torch.testing.assert_close(sample.log_volume.exp(), expected, rtol=2e-3, atol=1e-4)
    t = torch.linspace(0, math.pi, 20_001)
    constant = 2 * math.pi * torch.trapezoid((-6 * t**2).exp() * t.sin(), t)
    assert sample.log_normalizer(precision).item() == pytest.approx(constant.log().item(), abs=0.02)
    assert (sample.mean(precision).abs() < 0.02).all()


def test_precision_reproduces_the_scatter():
    # m(v) = 1: the maximum is the inverse scatter
    noise = torch.randn(20_000, 2)
    covariance = torch.tensor([[2.0, 0.6], [0.6, 1.0]])
    factor = torch.linalg.cholesky(covariance)
    vectors = noise @ factor.mT
    log_proposal = (
        -0.5 * noise.square().sum(1) - math.log(2 * math.pi) - factor.diagonal().log().sum()
    )
    sample = TangentSample(vectors, torch.zeros(20_000), -log_proposal)
    scatter = torch.tensor([[1.0, -0.2], [-0.2, 0.5]])
    precision = fit_precision(scatter, sample)
    torch.testing.assert_close(precision, torch.linalg.inv(scatter), rtol=0.05, atol=0.05)
    # the expected v v^T of the fitted density is the scatter itself
    exponent = -0.5 * torch.einsum("si,ij,sj->s", vectors, precision, vectors)
    weights = torch.softmax(exponent + sample.log_weight, 0)
    found = torch.einsum("s,si,sj->ij", weights, vectors, vectors)
    torch.testing.assert_close(found, scatter, rtol=1e-5, atol=1e-6)


def test_in_flat_space_it_is_the_normal_distribution():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(150, 2, generator=generator) @ torch.tensor([[1.0, 0.5], [0.0, 0.7]]) + 3.0
    plane = PullbackMetric(lambda z: z @ torch.tensor([[2.0, 0.3, 0.0], [0.0, 1.0, 1.0]]))
    model = LandMixture(plane, n_samples=4000, random_state=0, max_iter=3).fit(codes)
    assert model.means_[0] == pytest.approx(codes.mean(0).numpy(), abs=0.1)
    plain = GaussianMixture(1).fit(codes.numpy())
    np.testing.assert_allclose(model.score_samples(codes), plain.score_samples(codes), atol=0.15)
    assert model.score(codes) == pytest.approx(plain.score(codes), abs=0.02)
    volume = model.score_samples(codes, "volume")
    factor = 0.5 * torch.linalg.slogdet(plane.tensor(codes[:1]))[1].item()
    np.testing.assert_allclose(model.score_samples(codes) - volume, factor)


def test_fit_tells_how_far_it_is():
    told = []
    codes = line((0.0, 20))
    model = LandMixture(
        PLANE,
        n_samples=50,
        n_nodes=50,
        max_iter=2,
        random_state=0,
        callback=lambda *step: told.append(step),
    ).fit(codes)
    assert [number for number, _ in told] == list(range(model.n_iter_ + 1))
    assert max(bound for _, bound in told) == model.lower_bound_


def test_a_slow_fit_tells_on_standard_error(capsys, monkeypatch):
    codes = line((0.0, 20))
    model = LandMixture(PLANE, n_samples=50, n_nodes=50, max_iter=2, random_state=0)
    model.fit(codes)
    assert capsys.readouterr().err == ""  # quick
    monkeypatch.setattr(estimators, "_QUIET_SECONDS", 0.0)
    model.fit(codes)
    told = capsys.readouterr().err
    for part in ("graph of 50 nodes", "20 geodesics", "iteration 1 of at most 2: mean", "end: "):
        assert part in told
    assert all(each.startswith("LandMixture, ") for each in told.splitlines())
    model.set_params(verbose=False).fit(codes)
    assert capsys.readouterr().err == ""


def walls(z):
    """The plane with a steep wall around it, as of a decoder's uncertainty away from data."""
    height = 40.0 * torch.sigmoid(10.0 * (z.norm(dim=1, keepdim=True) - 1.5))
    return torch.cat([z, height], dim=1)


def default_integrator(metric, integrator=None):
    """The integrator of a component whose vectors lead beyond the wall."""
    logs, noise = torch.randn(2, 30, 2, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([[0.7, 0.2]])
    model = LandMixture(metric, n_nodes=40, integrator=integrator)
    model._prepare(metric, mean + logs, np.random.RandomState(0))
    model._choose_integrator(mean, 3.0 * logs[None], torch.ones(1, 30), noise)
    return model._integrator


def test_where_geodesics_run_into_walls_they_are_chains():
    assert default_integrator(PLANE) == RungeKutta(1e-3)
    assert default_integrator(PullbackMetric(walls)) == DiscreteGeodesic(128)
    # where chains are not possible, or something else is asked for, they are not taken
    tensors = TensorMetric(lambda z: PullbackMetric(walls)._tensor(z), dim=2)
    assert default_integrator(tensors) == RungeKutta(1e-3)
    assert default_integrator(PullbackMetric(walls), RungeKutta(0.1)) == RungeKutta(0.1)


def test_density_integrates_to_one():
    metric = TensorMetric(lambda z: (1 + z**2).square()[:, :, None], dim=1)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    model = LandMixture(metric, 2, random_state=0, max_iter=3, n_samples=200).fit(codes)
    grid = torch.linspace(-4, 4, 101)[:, None]
    density = np.exp(model.score_samples(grid))
    assert np.trapezoid(density, grid[:, 0].numpy()) == pytest.approx(1.0, abs=0.03)
    shares = model.predict_proba(grid)
    np.testing.assert_allclose(shares.sum(1), 1.0)
    assert (model.predict(grid) == shares.argmax(1)).all()
    assert model.weights_.sum() == pytest.approx(1.0)
    assert (model.normalizer_error_ < 0.1).all()


def test_it_beats_the_normal_distribution_on_curved_data():
    train, test = arc(60, 0), arc(60, 1)
    metric = LocalVarianceMetric(train, bandwidth=0.15, floor=0.1)
    model = LandMixture(metric, n_samples=150, max_iter=2, n_nodes=600, random_state=0).fit(train)
    assert model.score(test) > GaussianMixture(1).fit(train).score(test) + 0.1
    # its mean is on the arc, that of the normal distribution is not
    assert np.linalg.norm(model.means_[0]) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: LandMixture("flat").fit(z), TypeError, "`metric`"),
        (lambda z: LandMixture(PLANE, 0).fit(z), ValueError, "`n_components`"),
        (lambda z: LandMixture(PLANE).fit(z[:2]), ValueError, "at least 3 codes"),
        (lambda z: LandMixture(PLANE, tol=-1.0).fit(z), ValueError, "`tol`"),
        (lambda z: LandMixture(PLANE, graph=z).fit(z), TypeError, "`graph`"),
        (lambda z: LandMixture(PLANE, integrator="euler").fit(z), TypeError, "`integrator`"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.rand(5, 2))


PLANE = PullbackMetric(nn.Identity())


def test_estimator_interface():
    model = LandMixture(PLANE, 2, n_samples=77)
    again = clone(model)
    assert again.get_params()["n_samples"] == 77
    with pytest.raises(ValueError, match="not fitted"):
        model.score_samples(torch.rand(3, 2))


def walled(z):
    """A flat metric that is not finite beyond z_1 = 5."""
    return torch.where(
        z[:, :1, None] > 5.0, torch.nan, torch.eye(z.shape[1]).expand(len(z), -1, -1)
    )


def line(*clusters):
    """Codes (n, 1): normal clusters of (centre, number)."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([c + torch.randn(n, 1, generator=generator) for c, n in clusters])


@pytest.fixture
def behind_a_wall():
    """One component on codes around 0, three of which lie where there is no metric."""
    codes = torch.cat([0.5 * line((0.0, 40)), torch.tensor([[6.0], [6.5], [7.0]])])
    metric = TensorMetric(walled, dim=1)
    model = LandMixture(metric, random_state=0, max_iter=3, n_samples=200, n_nodes=100)
    with pytest.warns(UserWarning, match="3 of 43 codes, which no mean reaches, are left out"):
        return model.fit(codes), codes


def test_codes_out_of_reach_have_no_density(behind_a_wall):
    model, codes = behind_a_wall
    with pytest.warns(UserWarning, match="3 of 43 codes have density 0"):
        values = model.score_samples(codes)
    assert (values[-3:] == -np.inf).all()
    assert np.isfinite(values[:-3]).all()
    with pytest.warns(UserWarning, match="density 0"):
        assert (model.predict(codes) == np.r_[np.zeros(40), [-1] * 3]).all()
    with pytest.warns(UserWarning, match="density 0"):
        assert np.isnan(model.predict_proba(codes)[-3:]).all()


def test_codes_out_of_reach_do_not_pull_at_the_fit(behind_a_wall):
    model, codes = behind_a_wall
    near = codes[:-3]
    assert model.means_[0, 0] == pytest.approx(near.mean().item(), abs=0.05)
    variance = near.var(correction=0).item()
    assert 1.0 / model.precisions_[0, 0, 0] == pytest.approx(variance, rel=0.1)
    assert math.isfinite(model.lower_bound_)


@pytest.mark.filterwarnings("ignore:the graph has no path")
def test_a_component_without_codes_is_dropped():
    codes = line((0.0, 30), (3.0, 30), (12.0, 20))
    metric = TensorMetric(walled, dim=1)
    model = LandMixture(metric, 3, random_state=0, max_iter=2, n_samples=200, n_nodes=200)
    with pytest.warns(UserWarning, match="1 of 3 components, which have no code left, are dropped"):
        model.fit(codes)
    assert model.means_.shape == (2, 1)
    assert model.weights_.sum() == pytest.approx(1.0, abs=1e-12)
    grid = torch.linspace(-6, 4.99, 201)[:, None]
    density = np.exp(model.score_samples(grid))
    assert np.trapezoid(density, grid[:, 0].numpy()) == pytest.approx(1.0, abs=0.04)


@pytest.mark.filterwarnings("ignore:the graph has no path")
def test_no_component_that_reaches_a_code():
    metric = TensorMetric(lambda z: torch.nan * z[:, :, None], dim=1)
    with pytest.raises(ValueError, match="`X` should be within reach of finite geodesics"):
        LandMixture(metric, n_nodes=20).fit(torch.randn(10, 1))
