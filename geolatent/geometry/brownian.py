"""Brownian motion under a metric."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from geolatent.arrays import Array
from geolatent.checks import check_integer, check_number, check_tensor
from geolatent.geometry.integrators import Integrator, check_integrator
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.operators import ByProducts, Krylov, lanczos, metric_operator
from geolatent.metrics.rows import Rows
from geolatent.shapes import CodeShape

# relative change of a draw by more products at which it is taken, and products of one draw
_OF_DRAWS, _MOST_PRODUCTS = 1e-4, 512


def brownian_motion(
    metric: Metric,
    start: Array,
    time: float,
    n_steps: int = 100,
    *,
    integrator: Integrator | None = None,
    seed: int = 0,
) -> Tensor:
    """Walk at random: Brownian motion, the diffusion whose generator is half the Laplacian.

    A geodesic random walk: every step draws a tangent vector from N(0, dt G(z)^-1) and goes along
    its geodesic, z <- exp_z(v). It converges to Brownian motion as the steps get shorter, with an
    error in expectations of order dt. For short times the mean squared distance from the start is
    d t; on the unit sphere E cos(distance) = exp(-t).

    Parameters
    ----------
    metric
        The metric.
    start
        Codes, (d,) or (B, d), or of any shape, (B, ...): one walk for each.
    time
        Length of the walks, in squared units of the decoder's output.
    n_steps
        Steps of the walks.
    integrator
        How geodesics are followed; by default ``RungeKutta(tolerance=1e-3)``, for the steps are
        short.
    seed
        Seed of the draws.

    Returns
    -------
    Tensor
        Shape (B, n_steps + 1, d), the start included. A walk that runs into a place where the
        metric is not finite or singular, or where the integrator cannot follow the geodesic of a
        step (shorter steps may help), is NaN from there on, with a warning.

    References
    ----------
    Jorgensen, "The central limit problem for geodesic random walks", 1975. Hsu, "Stochastic
    Analysis on Manifolds", 2002, chapter 3.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> walks = brownian_motion(plane, torch.zeros(4, 2), time=1.0, n_steps=10)
    >>> tuple(walks.shape)
    (4, 11, 2)
    """
    check_metric(metric)
    shape = CodeShape.of(start)
    metric, start = shape.metric(metric), shape.flat("start", start)
    codes = torch.atleast_2d(check_tensor("start", start, "(d,) or (B, d)", like=metric.like))
    codes = codes.detach()
    metric.check("start", codes[:1])
    time = check_number("time", time, above=0.0)
    n_steps = check_integer("n_steps", n_steps)
    generator = torch.Generator().manual_seed(check_integer("seed", seed, minimum=0))
    integrator = check_integrator(integrator, tolerance=1e-3)
    rows = Rows.of(metric, codes)
    deviation = (time / n_steps) ** 0.5
    b, d = codes.shape
    z, one = codes.double(), torch.ones(1, dtype=torch.float64, device=codes.device)
    walk = z.new_full((b, n_steps + 1, d), torch.nan)
    walk[:, 0] = z
    alive = torch.arange(b, device=codes.device)
    for step in range(1, n_steps + 1):
        noise = torch.randn(b, d, generator=generator, dtype=torch.float64, device="cpu").to(
            z.device
        )[alive]
        v = _with_inverse_covariance(rows, z, noise)
        good = v.isfinite().all(1)
        alive, z, v = alive[good], z[good], v[good]
        if not alive.numel():
            break
        v = deviation * v
        z = integrator.follow(rows.counting(len(z)), z[:, None], v[:, None], one).points[:, 0, 0]
        good = z.isfinite().all(1)
        alive, z = alive[good], z[good]
        walk[alive, step] = z
        if not alive.numel():
            break
    lost = b - alive.numel()
    if lost:
        warnings.warn(
            f"{lost} of {b} walks ran into a place where the metric is not finite or singular, or "
            "where the geodesic of a step could not be followed, and are NaN from there on",
            stacklevel=2,
        )
    return shape.back(walk.to(codes.dtype))


def _with_inverse_covariance(rows: Rows, z: Tensor, noise: Tensor) -> Tensor:
    """Turn noise of covariance I, (n, d), into that of G(z)^-1; NaN where G is singular."""
    metric = metric_operator(rows, z)
    if isinstance(metric, ByProducts):
        # G^-1/2 e in the Krylov space of e
        last = torch.zeros_like(noise[:, :1])

        def coefficients(found: Krylov) -> Tensor:
            inverse = torch.where(found.values > 0, found.values, torch.nan) ** -0.5
            return torch.einsum("nmk,nk->nm", found.vectors, inverse * found.vectors[:, 0])

        def enough(found: Krylov) -> bool:
            nonlocal last
            now = coefficients(found)
            before = torch.nn.functional.pad(last, (0, now.shape[1] - last.shape[1]))
            last = now
            return not bool(((now - before).norm(dim=1) > _OF_DRAWS * now.norm(dim=1)).any())

        found = lanczos(metric.product, noise, enough, _MOST_PRODUCTS)
        size = noise.norm(dim=1, keepdim=True)
        return size * torch.einsum("nmd,nm->nd", found.basis, coefficients(found))
    # G = L L^T, so L^-T e has the covariance G^-1
    factor, info = torch.linalg.cholesky_ex(metric.tensors)
    v = torch.linalg.solve_triangular(factor.mT, noise[:, :, None], upper=True)[:, :, 0]
    return torch.where((info == 0)[:, None], v, torch.nan)
