"""Frechet means and Brownian motion."""

import math

import pytest
import torch
from problems import HALF_PLANE, SPHERE, sphere, sphere_mean
from torch import nn

from geolatent import PullbackMetric
from geolatent.geometry.brownian import brownian_motion
from geolatent.geometry.integrators import DiscreteGeodesic, RungeKutta
from geolatent.geometry.means import frechet_mean

pytestmark = pytest.mark.usefixtures("float64")


def test_mean_on_the_sphere_by_splines():
    points, weights = 1.2 * torch.rand(12, 2) - 0.4, torch.rand(3, 12)
    found = frechet_mean(SPHERE, points, weights)
    assert found.converged.all()
    for k in range(3):
        expected = sphere_mean(sphere(points), weights[k])
        assert (sphere(found.mean[k : k + 1])[0] - expected).norm() < 2e-3
        # the variance is that of the closed-form distances
        angles = (sphere(points) @ expected).acos()
        variance = (weights[k] * angles**2).sum() / weights[k].sum()
        assert found.variance[k].item() == pytest.approx(variance.item(), rel=1e-3)
    assert (found.evaluations.equivalents > 0).all()


def test_mean_on_the_sphere_to_many_digits():
    points = 0.8 * torch.rand(4, 2) - 0.2
    found = frechet_mean(SPHERE, points, integrator=RungeKutta(1e-6), tolerance=1e-5)
    assert found.converged
    expected = sphere_mean(sphere(points), torch.ones(4) / 4)
    assert (sphere(found.mean[None])[0] - expected).norm() < 1e-5


def test_mean_of_a_symmetric_set_is_its_centre():
    angles = torch.arange(5) * 2 * math.pi / 5
    points = 0.5 * torch.stack([angles.cos(), angles.sin()], dim=1)
    found = frechet_mean(SPHERE, points, start=torch.tensor([0.2, -0.1]))
    assert found.converged
    assert found.mean.norm() < 2e-3


def test_mean_of_two_codes_of_the_half_plane():
    # on the geodesic upwards from i, w parts log y
    points = torch.tensor([[0.0, 1.0], [0.0, 4.0]])
    for weight in (0.5, 0.25):
        found = frechet_mean(HALF_PLANE, points, torch.tensor([1 - weight, weight]))
        assert found.mean[1].item() == pytest.approx(4**weight, rel=2e-3)
        assert found.mean[0].abs() < 1e-3


def test_flat_mean_takes_one_step():
    points, weights = torch.randn(6, 3), torch.rand(6)
    plane = PullbackMetric(nn.Linear(3, 5))
    found = frechet_mean(plane, points, weights, start=torch.zeros(3))
    torch.testing.assert_close(found.mean, weights @ points / weights.sum(), rtol=0, atol=1e-4)
    assert found.iterations <= 2


def test_points_without_weight_and_one_point():
    points = torch.tensor([[0.3, 0.1], [50.0, 80.0]])
    found = frechet_mean(SPHERE, points, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found.mean, points[0])
    assert found.variance == 0
    assert found.converged


def test_unreachable_points_are_left_out():
    def fenced(z):
        return torch.cat([z, torch.where(z[:, :1] > 5.0, torch.nan, 1.0)], dim=1)

    points = torch.tensor([[0.0, 0.0], [1.0, 2.0], [9.0, 9.0]])
    with pytest.warns(UserWarning, match="1 points are left out"):
        found = frechet_mean(PullbackMetric(fenced), points, start=torch.zeros(2))
    assert found.converged
    torch.testing.assert_close(found.mean, torch.tensor([0.5, 1.0]), rtol=0, atol=1e-3)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="`points` should be within reach"),
    ):
        frechet_mean(PullbackMetric(fenced), points[2:], start=torch.zeros(2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3),), ValueError, "`points`"),
        ((torch.ones(3, 2), -torch.ones(3)), ValueError, "`weights`.*negative"),
        ((torch.ones(3, 2), torch.ones(4)), ValueError, "`weights`"),
        ((torch.ones(3, 2), torch.zeros(3)), ValueError, "`weights`"),
    ],
)
def test_bad_means(arguments, error, message):
    with pytest.raises(error, match=message):
        frechet_mean(SPHERE, *arguments)


# Brownian motion


def test_brownian_motion_on_the_sphere():
    """E cos(distance) = exp(-t), and E distance^2 = 2 t for short times, within sampling error."""
    n, time = 3000, 0.5
    walks = brownian_motion(SPHERE, torch.zeros(n, 2), time, n_steps=10, seed=3)
    assert walks.shape == (n, 11, 2)
    cosine = -sphere(walks.flatten(0, 1))[:, 2].reshape(n, 11)  # the start is the south pole
    times = torch.linspace(0, time, 11)
    error = cosine.std(0) / n**0.5
    # the walk's own error is of order dt: exp(-t) t dt / 6 for the sphere
    bias = times * (-times).exp() * (time / 10) / 6
    assert ((cosine.mean(0) - (-times).exp()).abs() <= 4 * error + 2 * bias + 1e-12).all()
    square = cosine[:, 1].clamp(-1, 1).acos().square()
    assert (square.mean() - 2 * times[1]).abs() < 4 * square.std() / n**0.5


def test_brownian_motion_in_the_stretched_plane():
    plane = PullbackMetric(lambda z: z * torch.tensor([2.0, 0.5]))
    walks = brownian_motion(plane, torch.zeros(4000, 2), 1.0, n_steps=3)
    variance = walks[:, -1].var(0)
    torch.testing.assert_close(variance, torch.tensor([0.25, 4.0]), rtol=0.1, atol=0)


def test_brownian_motion_repeats_itself_and_warns_of_walls():
    start = torch.rand(5, 2) - 0.5
    one, other = (brownian_motion(SPHERE, start, 0.1, 3, seed=7) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert torch.equal(one[:, 0], start)

    def fenced(z):
        return z * torch.where(z[:, :1] > 0.1, torch.nan, 1.0)

    with pytest.warns(UserWarning, match="walks ran into"):
        walks = brownian_motion(
            PullbackMetric(fenced), torch.zeros(20, 2), 4.0, 10, integrator=DiscreteGeodesic(2)
        )
    lost = walks[:, -1].isnan().any(1)
    assert lost.any()


def test_bad_walks():
    with pytest.raises(ValueError, match="`time`"):
        brownian_motion(SPHERE, torch.zeros(2), -1.0)
