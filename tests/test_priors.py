"""What the priors say: norms of the codes drawn from them, and densities."""

import math

import pytest
import torch

from geolatent import lerp, slerp
from geolatent.lab.pairs import draw_prior
from geolatent.priors import (
    PRIORS,
    log_prior,
    mean_log_prior,
    norm_profile,
    onto_sphere,
    prior_norm,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_norms_of_the_priors_to_two_digits():
    """The figures of the tent-pole effect in 100 dimensions."""
    mean, deviation = prior_norm(100)
    assert (round(mean), round(deviation, 1)) == (10, 0.7)
    mean, deviation = prior_norm(100, "uniform")
    assert (round(mean, 2), round(deviation, 2)) == (5.77, 0.26)
    codes = torch.randn(2000, 2, 100)
    profile = norm_profile(lerp(codes[:, 0], codes[:, 1], torch.linspace(0, 1, 11)))
    middle = profile.norms[:, 5].mean()
    assert middle == pytest.approx(7.07, abs=0.05)
    assert profile.deviation[:, 5].mean() == pytest.approx(-4.2, abs=0.2)
    assert profile.deviation[:, 0].mean() == pytest.approx(0.0, abs=0.1)
    around = norm_profile(slerp(codes[:, 0], codes[:, 1], torch.linspace(0, 1, 11)))
    assert around.norms.mean() == pytest.approx(9.97, abs=0.05)


@pytest.mark.parametrize("dim", [1, 2, 3, 10, 100, 1000])
def test_norms_of_the_normal_distribution(dim):
    mean, deviation = prior_norm(dim)
    gammas = math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2)
    assert mean == pytest.approx(math.sqrt(2.0) * math.exp(gammas), rel=1e-11)
    assert mean**2 + deviation**2 == pytest.approx(dim, rel=1e-12)


def test_norms_in_the_cube():
    # E |x| = 1/2 on the line; in the square (sqrt 2 + asinh 1) / 3
    assert prior_norm(1, "uniform") == pytest.approx((0.5, 12**-0.5), rel=1e-9)
    mean = (2**0.5 + math.asinh(1.0)) / 3
    assert prior_norm(2, "uniform") == pytest.approx((mean, (2 / 3 - mean**2) ** 0.5), rel=1e-9)
    for dim in (5, 300):
        norms = (2 * torch.rand(20_000, dim) - 1).norm(dim=1)
        mean, deviation = prior_norm(dim, "uniform")
        assert mean == pytest.approx(float(norms.mean()), abs=5 * deviation / 20_000**0.5)
        assert deviation == pytest.approx(float(norms.std()), rel=0.03)


@pytest.mark.parametrize("dim", [1, 2, 30, 784])
def test_logistic_norms(dim):
    """On the line E |x| = 2 s log 2; above, those of draws."""
    mean, deviation = prior_norm(dim, "logistic")
    assert mean**2 + deviation**2 == pytest.approx(dim, rel=1e-12)  # variance 1 each
    if dim == 1:
        assert mean == pytest.approx(2 * math.sqrt(3) / math.pi * math.log(2), rel=1e-9)
    norms = draw_prior(20_000, dim, prior="logistic").norm(dim=1)
    assert mean == pytest.approx(float(norms.mean()), abs=5 * deviation / 20_000**0.5)
    assert deviation == pytest.approx(float(norms.std()), rel=0.04)


@pytest.mark.parametrize("prior", PRIORS)
def test_draws_are_of_their_prior(prior):
    codes = draw_prior(50_000, 3, seed=1, like=torch.empty(0), prior=prior)
    assert codes.dtype == torch.float64
    torch.testing.assert_close(codes[:7], draw_prior(7, 3, seed=1, like=codes, prior=prior))
    mean, deviation = prior_norm(3, prior)
    error = 5 * deviation / len(codes) ** 0.5 + 1e-12
    assert float(codes.norm(dim=1).mean()) == pytest.approx(mean, abs=error)
    if prior != "sphere":
        density = log_prior(codes, prior)
        error = 5 * float(density.std()) / len(codes) ** 0.5 + 1e-12
        assert float(density.mean()) == pytest.approx(mean_log_prior(3, prior), abs=error)


def test_the_logistic_density_is_one_over_the_line():
    x = torch.linspace(-40.0, 40.0, 80_001)
    density = log_prior(x[:, None], "logistic").exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1.0, rel=1e-9)
    assert float(torch.trapezoid(x.square() * density, x)) == pytest.approx(1.0, rel=1e-9)


def test_straight_midpoints_leave_the_shell_of_the_prior():
    """The "tent-pole" effect in 100 dimensions, and slerp, which has none."""
    start, end = torch.randn(2, 20_000, 100)
    for points, mean, deviation in (
        (start, 10.0, 0.7),
        (lerp(start, end, 0.5), 7.0, 0.5),
        (slerp(start, end, 0.5), 10.0, 0.5),
    ):
        norms = points.norm(dim=1)
        assert float(norms.mean()) == pytest.approx(mean, abs=0.06)
        assert float(norms.std()) == pytest.approx(deviation, abs=0.02)
    assert prior_norm(100, "uniform") == pytest.approx((5.77, 0.26), abs=0.01)


def test_log_prior():
    points = torch.randn(2, 5, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(points).sum(-1)
    torch.testing.assert_close(log_prior(points), expected)
    inside = log_prior(torch.tensor([[0.5, -1.0], [0.0, 1.5]]), "uniform")
    assert inside[0] == pytest.approx(-2 * math.log(2))
    assert inside[1] == -math.inf


def test_a_sphere_has_one_norm_and_no_density():
    codes = onto_sphere(torch.randn(50, 3, 7))
    profile = norm_profile(codes, "sphere")
    torch.testing.assert_close(profile.norms, torch.full((50, 3), 7**0.5))
    assert (profile.mean, profile.standard_deviation) == (pytest.approx(7**0.5), 0.0)
    with pytest.raises(ValueError, match="`standard_deviation` should be above 0"):
        _ = profile.deviation
    with pytest.raises(ValueError, match="`prior` should be one of normal, logistic, uniform"):
        log_prior(codes, "sphere")
    # great circles between codes of the sphere stay on it
    on_the_way = slerp(codes[:, 0], codes[:, 1], torch.linspace(0, 1, 5))
    torch.testing.assert_close(on_the_way.norm(dim=-1), torch.full((50, 5), 7**0.5))


def test_unknown_priors():
    for call in (lambda: norm_profile(torch.ones(2, 3), "cauchy"), lambda: prior_norm(2, "cauchy")):
        with pytest.raises(ValueError, match="`prior`"):
            call()
