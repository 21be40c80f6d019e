"""Metrics of information: Fisher-Rao's and divergences', against their definitions."""

import math

import pytest
import torch
from derivatives import check_metric, jacobian
from problems import perceptron
from torch import nn

from geolatent import PullbackMetric, solve_geodesic
from geolatent.metrics.information import (
    BernoulliPullbackMetric,
    CategoricalPullbackMetric,
    DivergenceMetric,
    GaussianFisherRaoMetric,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_fisher_information_of_bernoulli_and_categorical_decoders():
    linear = nn.Linear(3, 6)
    z = torch.randn(4, 3)
    p = torch.sigmoid(linear(z)).detach()
    expected = []
    for row, values in zip(z, p, strict=True):
        full = jacobian(lambda z: torch.sigmoid(linear(z)), row)
        expected.append(full.T @ torch.diag(1 / (values * (1 - values))) @ full)
    expected = torch.stack(expected)
    check_metric(BernoulliPullbackMetric(linear, output="logits"), expected, z)
    check_metric(BernoulliPullbackMetric(lambda z: torch.sigmoid(linear(z))), expected, z)

    def classes(z):  # two variables of three classes
        return linear(z).reshape(-1, 2, 3).softmax(2)

    expected = []
    for row in z:
        full = jacobian(classes, row)
        expected.append(full.T @ torch.diag(1 / classes(row[None]).flatten().detach()) @ full)
    expected = torch.stack(expected)
    check_metric(CategoricalPullbackMetric(classes), expected, z)
    by_logits = CategoricalPullbackMetric(lambda z: linear(z).reshape(-1, 2, 3), output="logits")
    check_metric(by_logits, expected, z)


def test_extreme_logits_stay_finite():
    z = torch.tensor([[-2000.0], [-40.0], [0.0], [40.0], [2000.0]], requires_grad=True)
    for dtype in (torch.float64, torch.float32):
        metric = BernoulliPullbackMetric(nn.Identity(), output="logits")
        value = metric.quadratic(z.to(dtype), torch.ones(5, 1, dtype=dtype))
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
    assert value[2].item() == pytest.approx(0.25)


def test_gaussian_fisher_information():
    heads = nn.Linear(3, 8)

    def decoder(z):
        mean, log_std = heads(z).chunk(2, dim=1)
        return mean.sin(), log_std.exp()

    z = torch.randn(4, 3)
    expected = []
    for row in z:
        of_mean, of_std = (jacobian(lambda z, k=k: decoder(z)[k], row) for k in (0, 1))
        inverse = torch.diag(decoder(row[None])[1][0].detach() ** -2)
        expected.append(of_mean.T @ inverse @ of_mean + 2 * of_std.T @ inverse @ of_std)
    check_metric(GaussianFisherRaoMetric(decoder), torch.stack(expected), z)


def test_divergence_of_squared_distances_is_the_pull_back():
    decoder, features = perceptron(0), nn.Sequential(nn.Linear(5, 6), nn.Softplus())

    def perceptual(x, y):  # as LPIPS returns it
        return (features(x) - features(y)).square().sum(1).reshape(-1, 1, 1, 1)

    z = torch.randn(4, 2)
    expected = PullbackMetric(decoder, features).tensor(z).detach()
    check_metric(DivergenceMetric(decoder, perceptual), expected, z)
    start, end = torch.randn(2, 2), torch.randn(2, 2)
    one = solve_geodesic(PullbackMetric(decoder, features), start, end)
    other = solve_geodesic(DivergenceMetric(decoder, perceptual), start, end)
    torch.testing.assert_close(one.length, other.length, rtol=1e-3, atol=0)


def test_twice_the_kullback_leibler_divergence_is_fisher_rao():
    decoder = nn.Sequential(perceptron(0), nn.Sigmoid())

    def divergence(p, q):
        terms = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        return 2 * terms.sum(1)

    z = torch.randn(4, 2)
    expected = BernoulliPullbackMetric(decoder).tensor(z).detach()
    check_metric(DivergenceMetric(decoder, divergence), expected, z)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda z: BernoulliPullbackMetric(nn.Identity()).tensor(z),
            ValueError,
            r"inside \(0, 1\)",
        ),
        (lambda _: BernoulliPullbackMetric(nn.Identity(), output="odds"), ValueError, "`output`"),
        (lambda z: CategoricalPullbackMetric(torch.sigmoid).tensor(z), ValueError, "sum 1"),
        (
            lambda z: GaussianFisherRaoMetric(lambda z: (z, -z.exp())).tensor(z),
            ValueError,
            "positive standard",
        ),
        (
            lambda z: DivergenceMetric(nn.Identity(), lambda x, y: (x - y).sum()).tensor(z),
            ValueError,
            "`divergence`",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.tensor([[0.5, 1.5], [-0.5, math.pi]], dtype=torch.float32))
