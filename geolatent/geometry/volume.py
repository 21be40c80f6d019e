"""Volume of a metric: magnification factor, condition number, samples by volume."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.arrays import Array, Result
from geolatent.checks import check_box, check_codes, check_integer, requirement, returned
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.rows import Rows
from geolatent.shapes import CodeShape


def check_at(metric: object, z: object) -> tuple[Metric, Tensor]:
    """Return a metric and codes (n, d) that it takes, without gradients, or refuse them."""
    shape = CodeShape.of(z)
    known = shape.metric(check_metric(metric))
    codes = check_codes("z", shape.flat("z", z), known.dim, like=known.like).detach()
    known.check("z", codes[:1])
    return known, codes


def _eigenvalues(rows: Rows, z: Tensor) -> Tensor:
    """Return the eigenvalues of G, ascending, (n, d), float64; rounding errors below 0 are 0."""
    tensors = rows.tensor(z).double()
    finite = tensors.isfinite().all(2).all(1)
    values = torch.full_like(tensors[:, 0], torch.nan)
    values[finite] = torch.linalg.eigvalsh(tensors[finite]).clamp_min(0.0)
    return values


def volume_element(rows: Rows, z: Tensor) -> Tensor:
    """Return sqrt(det G(z)), (n,), float64; NaN where G is not finite."""
    # the product of square roots neither over- nor underflows as the determinant does
    return _eigenvalues(rows, z).sqrt().prod(1)


def magnification_factor(metric: Metric, z: Array) -> Tensor:
    """Return the magnification factor sqrt(det G(z)), in output units^d per latent unit^d.

    Parameters
    ----------
    metric
        The metric.
    z
        Codes, (n, d), or of any shape, (n, ...).

    Returns
    -------
    Tensor
        Shape (n,); NaN where G is not finite.

    References
    ----------
    Bishop, Svensen, Williams, "Magnification factors for the GTM algorithm", 1997.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> magnification_factor(PullbackMetric(lambda z: 3.0 * z), torch.zeros(1, 2))
    tensor([9.])
    """
    metric, codes = check_at(metric, z)
    return volume_element(Rows.of(metric, codes), codes).to(codes.dtype)


def condition_number(metric: Metric, z: Array) -> Tensor:
    """Return the ratio of the largest to the smallest eigenvalue of G(z), 1 where isotropic.

    Parameters
    ----------
    metric, z
        As for `magnification_factor`.

    Returns
    -------
    Tensor
        Shape (n,), without units; infinite where G is singular.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> stretched = PullbackMetric(lambda z: z * torch.tensor([1.0, 3.0]))
    >>> condition_number(stretched, torch.zeros(1, 2))
    tensor([9.])
    """
    metric, codes = check_at(metric, z)
    values = _eigenvalues(Rows.of(metric, codes), codes)
    return (values[:, -1] / values[:, 0]).to(codes.dtype)


@dataclass(frozen=True)
class VolumeSample(Result):
    """Codes drawn by the volume measure.

    Attributes
    ----------
    codes
        Shape (n, d).
    volume
        Volume of the box in the metric, estimated, in units of the decoder's output to the power d
        (times the weight's units).
    standard_error
        Of that estimate.
    acceptance
        Share of the proposals that were accepted.
    """

    codes: Tensor
    volume: float
    standard_error: float
    acceptance: float


def sample_volume(
    metric: Metric,
    low: Array,
    high: Array,
    n: int,
    *,
    weight: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    max_proposals: int = 10_000_000,
) -> VolumeSample:
    """Draw codes uniformly by the volume measure sqrt(det G) dz of a box.

    Rejection sampling from the uniform distribution on the box, whose bound is the largest
    magnification factor met (the empirical supremum, Caffo, Booth and Davis, 2002): when a larger
    one turns up, those drawn before are thinned to match. Meant for few dimensions, and boxes
    around the data: the acceptance falls with the ratio of mean to largest factor.

    Parameters
    ----------
    metric
        The metric.
    low, high
        Corners of the box, (d,) each.
    n
        Number of codes.
    weight
        A density by the volume measure to draw from instead, not normalised: (m, d) -> (m,), not
        negative.
    seed
        Seed of the draws.
    max_proposals
        Proposals after which it gives up.

    Returns
    -------
    VolumeSample
        The codes, and the volume of the box.

    Raises
    ------
    RuntimeError
        Where the proposals are used up.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 3.0 * z)
    >>> sample = sample_volume(plane, torch.zeros(2), torch.ones(2), 100)
    >>> tuple(sample.codes.shape), round(sample.volume, 3), sample.acceptance
    ((100, 2), 9.0, 1.0)
    """
    metric = check_metric(metric)
    low, high = check_box(low, high, metric.dim, like=metric.like)
    n = check_integer("n", n)
    max_proposals = check_integer("max_proposals", max_proposals)
    metric.check("low", low[None])
    rows = Rows.of(metric, low[None])
    generator = torch.Generator().manual_seed(check_integer("seed", seed, minimum=0))
    d = low.numel()
    codes, factors = low.new_empty((0, d)), low.new_empty(0, dtype=torch.float64)
    bound, proposals = 0.0, 0
    total, total_square = 0.0, 0.0
    while codes.shape[0] < n:
        if proposals >= max_proposals:
            raise RuntimeError(
                f"{max_proposals} proposals gave {codes.shape[0]} of {n} codes: the magnification "
                "factor is too uneven on this box"
            )
        share = codes.shape[0] / proposals if proposals else 0.25
        missing = n - codes.shape[0]
        m = int(min(max(64, 1.2 * missing / max(share, 1e-3)), 65_536, max_proposals - proposals))
        draws = torch.rand(m, d, generator=generator, dtype=torch.float64).to(low)
        z = low + (high - low) * draws
        factor = volume_element(rows, z)
        if weight is not None:
            factor = factor * _weights(weight, z)
        usable = factor.isfinite()
        if not bool(usable.all()):
            warnings.warn(
                f"{int((~usable).sum())} proposals with a magnification factor that is not finite "
                "were left out",
                stacklevel=2,
            )
            factor = torch.where(usable, factor, 0.0)
        proposals += m
        total += float(factor.sum())
        total_square += float(factor.square().sum())
        largest = max(bound, float(factor.max()))
        if largest > bound:
            # accepted with probability factor / bound before; thin to factor / largest
            chance = torch.rand(codes.shape[0], generator=generator, dtype=torch.float64)
            kept = chance.to(factors) * largest < bound
            codes, factors = codes[kept], factors[kept]
            bound = largest
        chance = torch.rand(m, generator=generator, dtype=torch.float64).to(factor)
        accepted = chance * bound < factor
        codes = torch.cat([codes, z[accepted]])
        factors = torch.cat([factors, factor[accepted]])
        if bound == 0.0:
            raise ValueError(requirement("metric", "regular somewhere on the box", "det G = 0"))
    box = float((high - low).double().prod())
    mean = total / proposals
    variance = max(0.0, total_square / proposals - mean**2)
    return VolumeSample(
        codes=codes[:n],
        volume=box * mean,
        standard_error=box * (variance / proposals) ** 0.5,
        acceptance=mean / bound,
    )


def _weights(weight: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    with torch.no_grad():
        values = weight(z)
    required = f"a tensor of shape ({z.shape[0]},), not negative"
    if not isinstance(values, Tensor) or values.shape != z.shape[:1] or bool((values < 0).any()):
        raise ValueError(returned("weight", required, values))
    return values.double()
