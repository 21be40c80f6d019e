"""Metrics made of others, and of data: ensembles, densities, local variances."""

import pytest
import torch
from derivatives import check_metric
from problems import perceptron
from torch import nn

from geolatent import GaussianPullbackMetric, PullbackMetric, TensorMetric, solve_geodesic
from geolatent.metrics.composite import ConformalMetric, EnsembleMetric, LocalVarianceMetric

pytestmark = pytest.mark.usefixtures("float64")


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
        (lambda z: LocalVarianceMetric(z, bandwidth=0.0), ValueError, "`bandwidth`"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.tensor([[0.5, 1.5], [-0.5, 3.0]], dtype=torch.float32))
