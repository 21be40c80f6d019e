"""Metrics made of others, and of data: ensembles, densities, local variances."""

import pytest
import torch
from derivatives import check_metric
from problems import perceptron
from torch import nn

from geolatent import (
    GaussianPullbackMetric,
    PullbackMetric,
    Status,
    TensorMetric,
    path_length,
    slerp,
    solve_geodesic,
)
from geolatent.metrics.composite import ConformalMetric, EnsembleMetric, LocalVarianceMetric
from geolatent.metrics.sphere import SphereMetric

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


def network(n_inputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_inputs, 8), nn.Tanh(), nn.Linear(8, 6)).requires_grad_(False)


@pytest.mark.parametrize("dim", [2, 5])
def test_on_a_sphere_of_flat_space_geodesics_are_slerp(dim):
    """Arc, radius and change of norm are the legs of a right-angled triangle."""
    start, end = torch.randn(2, 6, dim)
    radius, weight = 1.7, 0.6
    metric = SphereMetric(PullbackMetric(nn.Identity()), radius, weight)
    solution = solve_geodesic(metric, start, end)
    assert (solution.status == Status.CONVERGED).all()
    angle = torch.nn.functional.cosine_similarity(start, end).acos()
    norms = end.norm(dim=1) - start.norm(dim=1)
    length = torch.hypot(radius * angle, weight * norms)
    torch.testing.assert_close(solution.length, length, rtol=2e-4, atol=0)
    assert (solution.length >= length * (1 - 1e-6)).all()
    t = torch.linspace(0, 1, 9)
    apart = (solution.curve(t) - slerp(start, end, t)).norm(dim=-1)
    assert apart.max() < 0.05 * start.norm(dim=1).max()


@pytest.mark.parametrize("kind", ["immersion", "none"])
def test_the_metric_of_a_sphere_is_the_products_pull_back(kind):
    decoder, radius, weight = network(3), 2.0, 0.5
    inner = PullbackMetric(decoder)
    if kind == "none":  # a factor of 1 hides the immersion
        inner = ConformalMetric(inner, lambda z: torch.ones_like(z[:, 0]))

    def product(z):
        norm = z.norm(dim=1, keepdim=True)
        return torch.cat([decoder(radius * z / norm), weight * norm], dim=1)

    z = torch.randn(5, 3)
    metric = SphereMetric(inner, radius, weight)
    assert (metric.immersion is None) == (kind == "none")
    check_metric(metric, PullbackMetric(product).tensor(z).detach(), z)
    # by default the radius is sqrt(d)
    default, same, other = (SphereMetric(inner, r).tensor(z) for r in (None, 3**0.5, 1.0))
    torch.testing.assert_close(default, same)
    assert not torch.allclose(default, other)


def test_geodesics_on_the_sphere_are_shorter_than_slerp():
    decoder = network(4)
    plain = PullbackMetric(decoder)
    start, end = 2.0 * torch.nn.functional.normalize(torch.randn(2, 8, 4), dim=-1)
    solution = solve_geodesic(SphereMetric(plain), start, end)
    norms = solution.curve(torch.linspace(0, 1, 33)).norm(dim=-1)
    assert (norms - 2.0).abs().max() < 0.02
    t = torch.linspace(0, 1, 400)
    around = decoder(slerp(start, end, t)).diff(dim=1).norm(dim=-1).sum(1)
    assert (path_length(plain, solution.curve) < around * (1 + 1e-3)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda _: SphereMetric(nn.Identity()), TypeError, "`metric`"),
        (lambda _: SphereMetric(PullbackMetric(nn.Identity()), 0.0), ValueError, "`radius`"),
        (
            lambda _: SphereMetric(PullbackMetric(nn.Identity()), norm_weight=0.0),
            ValueError,
            "`norm_weight`",
        ),
        (
            lambda z: SphereMetric(PullbackMetric(nn.Identity())).tensor(0.0 * z),
            ValueError,
            "`z` should be codes other than the origin",
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
        (lambda z: LocalVarianceMetric(z, bandwidth=0.0), ValueError, "`bandwidth`"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.tensor([[0.5, 1.5], [-0.5, 3.0]], dtype=torch.float32))
