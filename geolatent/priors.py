"""What the prior says of codes: their log density, and the norms that codes drawn from it have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from geolatent.arrays import Array, Result
from geolatent.checks import check_choice, check_integer, check_tensor, requirement

_DENSITIES = ("normal", "logistic", "uniform")
PRIORS = (*_DENSITIES, "sphere")
# of a logistic distribution of variance 1
LOGISTIC_SCALE = math.sqrt(3.0) / math.pi


@dataclass(frozen=True)
class NormProfile(Result):
    """Norms along paths, beside those of codes drawn from the prior.

    Attributes
    ----------
    norms
        |z| along the paths, (..., T) for points (..., T, d).
    mean, standard_deviation
        Of the norm of a code from the prior.
    """

    norms: Tensor
    mean: float
    standard_deviation: float

    @property
    def deviation(self) -> Tensor:
        """How far the norms are from the prior's mean, in its standard deviations.

        There is no such number for a sphere, whose norms are all alike.
        """
        if self.standard_deviation == 0.0:
            required = "above 0, while codes on a sphere are of one norm"
            raise ValueError(requirement("standard_deviation", required, 0.0))
        return (self.norms - self.mean) / self.standard_deviation


def norm_profile(points: Array, prior: str = "normal") -> NormProfile:
    """Compare the norms along paths with the prior's.

    In many dimensions almost all codes of N(0, I) have a norm near sqrt(d); a straight line between
    two of them passes at sqrt(d / 2), where the prior has hardly any (the "tent-pole" effect).

    Parameters
    ----------
    points
        Points along paths, (..., T, d).
    prior
        ``"normal"``, N(0, I), whose norms follow the chi distribution; ``"logistic"``, independent
        logistic distributions of mean 0 and variance 1; ``"uniform"`` on the cube [-1, 1]^d; or
        ``"sphere"``, uniform on the sphere of radius sqrt(d).

    Returns
    -------
    NormProfile
        Norms of the points, mean and standard deviation of the prior's norms.

    References
    ----------
    White, "Sampling Generative Networks", 2016, https://arxiv.org/abs/1609.04468.

    Examples
    --------
    >>> profile = norm_profile(torch.full((3, 100), 0.707))
    >>> print(f"{profile.mean:.1f} +- {profile.standard_deviation:.1f}, {profile.norms[0]:.2f}")
    10.0 +- 0.7, 7.07
    """
    points = check_tensor("points", points, "(..., T, d)")
    mean, deviation = prior_norm(points.shape[-1], prior)
    return NormProfile(points.double().norm(dim=-1).to(points.dtype), mean, deviation)


@lru_cache
def prior_norm(dim: int, prior: str = "normal") -> tuple[float, float]:
    """Return mean and standard deviation of |z| for z from the prior.

    For N(0, I) the norm follows the chi distribution, of mean
    sqrt(2) Gamma((d + 1) / 2) / Gamma(d / 2). Of the other densities,

        E sqrt(Y) = (1 / sqrt(pi)) integral_0^inf (1 - E exp(-u^2 Y)) / u^2 du

    with Y = |z|^2 and E exp(-u^2 Y) = (E exp(-u^2 z_1^2))^d, which on the cube is
    (sqrt(pi) erf(u) / (2 u))^d. The variance is E |z|^2 less the squared mean. On the sphere all
    norms are sqrt(d).

    Parameters
    ----------
    dim
        Latent dimension d.
    prior
        As for `norm_profile`.

    Examples
    --------
    >>> ["{:.2f} +- {:.2f}".format(*prior_norm(100, prior)) for prior in ("normal", "uniform")]
    ['9.98 +- 0.71', '5.77 +- 0.26']
    """
    dim = check_integer("dim", dim)
    check_choice("prior", prior, PRIORS)
    if prior == "sphere":
        return math.sqrt(dim), 0.0
    if prior == "normal":
        from scipy.stats import chi  # slow to import, and seldom needed, as is the next

        return float(chi.mean(dim)), float(chi.std(dim))
    from scipy.integrate import quad

    square, transform = (
        (1.0 / 3.0, _cube_transform) if prior == "uniform" else (1.0, _logistic_transform())
    )

    def integrand(u: float) -> float:
        if u < 1e-4:  # the leading term of the series
            return dim * square
        return -math.expm1(dim * math.log(transform(u))) / u**2

    # one cut where the integrand falls from its value at 0 to u^-2
    cut = 4.0 / math.sqrt(dim)
    value = quad(integrand, 0.0, cut, epsabs=1e-13, epsrel=1e-12)[0]
    value += quad(integrand, cut, math.inf, epsabs=1e-13, epsrel=1e-12)[0]
    mean = value / math.sqrt(math.pi)
    return mean, math.sqrt(dim * square - mean**2)


def _cube_transform(u: float) -> float:
    """Return E exp(-u^2 x^2), x uniform on [-1, 1]."""
    return math.sqrt(math.pi) * math.erf(u) / (2.0 * u)


def _logistic_transform() -> Callable[[float], float]:
    """Return the function E exp(-u^2 x^2) of u, x logistic of variance 1."""
    # the trapezoidal rule, which converges exponentially: both factors are analytic and fall
    # like exp(-|x| / s) at least; at large u the first is as narrow as 1 / u
    s = LOGISTIC_SCALE

    def transform(u: float) -> float:
        step = min(0.1, 0.3 / u)
        x = step * np.arange(0.0, min(22.0, 7.0 / u) / step)
        values = np.exp(-((u * x) ** 2)) / np.cosh(x / (2.0 * s)) ** 2 / (4.0 * s)
        return float(step * (2.0 * values.sum() - values[0]))

    return transform


def log_prior(points: Array, prior: str = "normal") -> Tensor:
    """Return the log density of the prior at points, in nats.

    -(d log(2 pi) + |z|^2) / 2 for N(0, I); for the logistic prior the sum of
    -log s - log(1 + exp(z_i / s)) - log(1 + exp(-z_i / s)), s = sqrt(3) / pi; -d log 2 within the
    cube and minus infinity outside. A prior on a sphere has no density in the space around it.

    Parameters
    ----------
    points
        Shape (..., d).
    prior
        ``"normal"``, ``"logistic"`` or ``"uniform"``, as for `norm_profile`.

    Returns
    -------
    Tensor
        Shape (...,).

    Examples
    --------
    >>> log_prior(torch.zeros(1, 2))
    tensor([-1.8379])
    """
    points = check_tensor("points", points, "(..., d)")
    dim = points.shape[-1]
    if check_choice("prior", prior, _DENSITIES) == "normal":
        return -0.5 * (dim * math.log(2.0 * math.pi) + points.square().sum(-1))
    if prior == "logistic":
        scaled = points / LOGISTIC_SCALE
        # in a form that is safe for any value
        softplus = nn.functional.softplus(scaled) + nn.functional.softplus(-scaled)
        return -(softplus + math.log(LOGISTIC_SCALE)).sum(-1)
    inside = (points.abs() <= 1.0).all(-1)
    value = torch.full(points.shape[:-1], -dim * math.log(2.0)).to(points)
    return torch.where(inside, value, -torch.inf)


def mean_log_prior(dim: int, prior: str = "normal") -> float:
    """Return the mean of `log_prior` over codes of the prior, its negative entropy, in nats.

    Examples
    --------
    >>> round(mean_log_prior(2), 3), round(mean_log_prior(2, "uniform"), 3)
    (-2.838, -1.386)
    """
    entropy = {
        "normal": 0.5 * (1.0 + math.log(2.0 * math.pi)),
        "logistic": 2.0 + math.log(LOGISTIC_SCALE),
        "uniform": math.log(2.0),
    }
    return -check_integer("dim", dim) * entropy[check_choice("prior", prior, _DENSITIES)]


def onto_sphere(codes: Tensor) -> Tensor:
    """Return codes (..., d) moved along their rays to the norm sqrt(d).

    Those of N(0, I) become uniform on the sphere.

    Examples
    --------
    >>> onto_sphere(torch.tensor([[3.0, 4.0]])).norm()
    tensor(1.4142)
    """
    return codes * (math.sqrt(codes.shape[-1]) / codes.norm(dim=-1, keepdim=True))
