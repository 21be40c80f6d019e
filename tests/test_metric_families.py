"""Fisher information against its definition; ensembles, densities and divergences."""

import math

import pytest
import torch
from torch import nn

from geolatent import (
    GaussianPullbackMetric,
    PullbackMetric,
    TensorMetric,
    solve_geodesic,
)
from geolatent.metrics.composite import ConformalMetric, EnsembleMetric, LocalVarianceMetric
from geolatent.metrics.information import (
    BernoulliPullbackMetric,
    CategoricalPullbackMetric,
    DivergenceMetric,
    GaussianFisherRaoMetric,
)

pytestmark = pytest.mark.usefixtures("float64")


def jacobian(function, row):
    return torch.autograd.functional.jacobian(lambda z: function(z[None]).flatten(), row)


def check_metric(metric, expected, z):
    """Compare tensor and quadratic form with the given tensors."""
    v = torch.randn_like(z)
    torch.testing.assert_close(metric.tensor(z), expected, rtol=1e-10, atol=1e-12)
    quadratic = torch.einsum("ni,nij,nj->n", v, expected, v)
    torch.testing.assert_close(metric.quadratic(z, v), quadratic, rtol=1e-10, atol=1e-12)


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


def perceptron(seed, n_outputs=5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, n_outputs))


def test_ensemble_of_one_equals_the_plain_metric():
    plain = PullbackMetric(perceptron(0))
    ensemble = EnsembleMetric([plain])
    z = torch.randn(6, 2)
    check_metric(ensemble, plain.tensor(z).detach(), z)
    start, end = torch.randn(4, 2), torch.randn(4, 2)
    one, other = (solve_geodesic(metric, start, end) for metric in (plain, ensemble))
    torch.testing.assert_close(one.length, other.length, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.evaluations.equivalents, other.evaluations.equivalents)


def test_ensemble_is_the_mean():
    head = perceptron(1)
    members = [
        PullbackMetric(perceptron(0)),
        GaussianPullbackMetric(lambda z: (head(z), head(z).exp())),
        PullbackMetric(perceptron(2, 3)),
    ]
    z = torch.randn(5, 2)
    tensors = torch.stack([member.tensor(z) for member in members]).detach()
    ensemble = EnsembleMetric(members)
    assert ensemble.immersion is not None
    check_metric(ensemble, tensors.mean(0), z)
    full = ensemble.immersion.columns(z)[1]
    torch.testing.assert_close(torch.einsum("inD,jnD->nij", full, full), tensors.mean(0))
    weights = torch.tensor([0.5, 0.2, 0.3])
    weighted = EnsembleMetric(members, weights=[5.0, 2.0, 3.0])
    check_metric(weighted, torch.einsum("m,mnij->nij", weights, tensors), z)
    # where a member has no immersion there is none, and the metric is the mean all the same
    mixed = EnsembleMetric(
        [members[0], TensorMetric(lambda z: torch.eye(2).to(z).expand(len(z), 2, 2), dim=2)]
    )
    assert mixed.immersion is None
    assert mixed.dim == 2
    check_metric(mixed, (tensors[0] + torch.eye(2)) / 2, z)


def test_density_draws_geodesics_to_the_data():
    def log_density(z):  # a ring of radius 1
        return -((z.norm(dim=1) - 1) ** 2) / (2 * 0.2**2)

    plane = PullbackMetric(nn.Identity())
    metric = ConformalMetric.from_log_density(plane, log_density, strength=1.0, floor=1e-2)
    start, end = torch.tensor([1.0, 0.0]), torch.tensor([-0.6, 0.8])
    solution = solve_geodesic(metric, start, end)
    radii = solution.curve(torch.linspace(0, 1, 21))[0].norm(dim=1)
    assert radii.min() > 0.85  # the straight line passes at 0.45
    assert solution.relative_improvement > 0.2
    # where the density is the reference's, the metric is unchanged; far away it is bounded
    torch.testing.assert_close(metric.quadratic(start[None], end[None]), torch.ones(1))
    far = metric.quadratic(torch.full((1, 2), 50.0), start[None])
    assert far == pytest.approx(1.01 / 0.01)
    same = ConformalMetric.from_log_density(plane, log_density, strength=0.0)
    torch.testing.assert_close(same.tensor(torch.randn(3, 2)), torch.eye(2).expand(3, 2, 2))


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


def test_local_variance_metric():
    data, z = torch.randn(50, 3), torch.randn(4, 3)
    metric = LocalVarianceMetric(data, bandwidth=0.7, floor=0.05)
    expected = []
    for row in z:
        weights = torch.stack([(-(x - row).square().sum() / (2 * 0.7**2)).exp() for x in data])
        spread = sum(w * (x - row) ** 2 for w, x in zip(weights, data, strict=True))
        expected.append(torch.diag(1 / (spread + 0.05)))
    check_metric(metric, torch.stack(expected), z)
    far = metric.tensor(torch.full((1, 3), 100.0))
    torch.testing.assert_close(far, 20 * torch.eye(3)[None])


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
        (lambda _: EnsembleMetric([]), TypeError, "`members`"),
        (lambda _: EnsembleMetric([nn.Identity()]), TypeError, r"`members\[0\]`"),
        (
            lambda _: EnsembleMetric([PullbackMetric(nn.Identity())], [1.0, 2.0]),
            ValueError,
            "`weights`",
        ),
        (lambda _: ConformalMetric(nn.Identity(), torch.sum), TypeError, "`metric`"),
        (
            lambda z: ConformalMetric(PullbackMetric(nn.Identity()), lambda z: -z[:, 0]).tensor(
                z.abs()
            ),
            ValueError,
            "`factor`.*positive",
        ),
        (
            lambda z: ConformalMetric(PullbackMetric(nn.Identity()), lambda z: z).tensor(z),
            ValueError,
            "`factor`.*shape",
        ),
        (
            lambda z: DivergenceMetric(nn.Identity(), lambda x, y: (x - y).sum()).tensor(z),
            ValueError,
            "`divergence`",
        ),
        (lambda z: LocalVarianceMetric(z, bandwidth=0.0), ValueError, "`bandwidth`"),
        (
            lambda z: LocalVarianceMetric(z, bandwidth=1.0).tensor(z.double()),
            TypeError,
            "`z`.*dtype",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.tensor([[0.5, 1.5], [-0.5, math.pi]], dtype=torch.float32))
