"""Volume of a metric: magnification factor, condition number, samples by volume."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.arrays import Array, Result
from geolatent.checks import (
    check_boolean,
    check_box,
    check_codes,
    check_integer,
    requirement,
    returned,
)
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.operators import ByProducts, Krylov, check_formed, is_formed, lanczos
from geolatent.metrics.rows import Rows
from geolatent.shapes import CodeShape

# products with G of one Krylov space at most
_MOST_PRODUCTS = 256
# what refining an estimate may change, as a part of its standard error
_SETTLED = 0.2


def check_at(metric: object, z: object) -> tuple[Metric, Tensor]:
    """Return a metric and codes (n, d) that it takes, without gradients, or refuse them."""
    shape = CodeShape.of(z)
    known = shape.metric(check_metric(metric))
    codes = check_codes("z", shape.flat("z", z), known.dim, like=known.like).detach()
    known.check("z", codes[:1])
    return known, codes


def _eigenvalues(rows: Rows, z: Tensor) -> Tensor:
    """Return the eigenvalues of G, ascending, (n, d), float64; rounding errors below 0 are 0."""
    d = z.shape[1]
    found = []
    for part in z.split(max(1, rows.budget.memory(z) // (32 * d * d))):
        tensors = rows.tensor(part).double()
        finite = tensors.isfinite().all(2).all(1)
        values = torch.full_like(tensors[:, 0], torch.nan)
        values[finite] = torch.linalg.eigvalsh(tensors[finite]).clamp_min(0.0)
        found.append(values)
    return torch.cat(found)


def volume_element(rows: Rows, z: Tensor) -> Tensor:
    """Return sqrt(det G(z)), (n,), float64; NaN where G is not finite."""
    # the product of square roots neither over- nor underflows as the determinant does
    return _eigenvalues(rows, z).sqrt().prod(1)


def magnification_factor(metric: Metric, z: Array) -> Tensor:
    """Return the magnification factor sqrt(det G(z)), in output units^d per latent unit^d.

    In many dimensions it leaves the range of numbers: see `log_magnification_factor`.

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
    check_formed("z", codes.shape[1], "use log_magnification_factor")
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
    check_formed("z", codes.shape[1], "principal_directions has the largest eigenvalues")
    values = _eigenvalues(Rows.of(metric, codes), codes)
    return (values[:, -1] / values[:, 0]).to(codes.dtype)


@dataclass(frozen=True)
class LogVolume(Result):
    """Logarithms of magnification factors.

    Attributes
    ----------
    value
        log sqrt(det G), (n,); -inf where G is singular to rounding, NaN where it is not finite.
    standard_error
        Of the value, (n,): 0 where it is no estimate.
    """

    value: Tensor
    standard_error: Tensor


def log_magnification_factor(
    metric: Metric, z: Array, *, exact: bool | None = None, n_probes: int = 16, seed: int = 0
) -> LogVolume:
    r"""Return the logarithm of the magnification factor, 1/2 log det G(z), in any dimension.

    From the eigenvalues of G, or estimated by stochastic Lanczos quadrature, which needs products
    with G alone:

        log det G = E[u^T (log G) u] ~ mean of d sum_k w_k log theta_k,

    u vectors of random signs, theta_k and w_k the nodes and weights of the Gauss quadrature that
    Lanczos' method makes of u and G. They are refined until what that changes is a fifth of the
    standard error.

    Parameters
    ----------
    metric
        The metric.
    z
        Codes, (n, d), or of any shape, (n, ...).
    exact
        Whether to form G, d decoder rows for each code, in up to 4096 dimensions. By default in up
        to 512. An estimate takes some hundreds of products, of some five rows each, whatever d.
    n_probes
        Vectors of an estimate, 2 at least.
    seed
        Of the signs, which all codes share: differences between codes have smaller errors.

    Returns
    -------
    LogVolume
        Values and standard errors. Where the decoder has fewer outputs than d the value is -inf.

    References
    ----------
    Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J.
    Matrix Anal. Appl. 38, 2017, algorithm 1.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> log_magnification_factor(PullbackMetric(lambda z: 3.0 * z), torch.zeros(1, 2)).value
    tensor([2.1972])
    """
    metric, codes = check_at(metric, z)
    d = codes.shape[1]
    n_probes = check_integer("n_probes", n_probes, minimum=2)
    seed = check_integer("seed", seed, minimum=0)
    exact = is_formed(metric, d) if exact is None else check_boolean("exact", exact)
    if exact:
        check_formed("z", d, "exact=False estimates")
    rows = Rows.of(metric, codes)
    zero = torch.zeros_like(codes[:, 0])
    if metric.immersion is not None and metric.immersion.width(codes) < d:
        return LogVolume(zero - torch.inf, zero)
    if exact:
        values = _eigenvalues(rows, codes)
        return LogVolume((0.5 * _logarithms(values, codes.dtype).sum(1)).to(codes.dtype), zero)
    generator = torch.Generator().manual_seed(seed)
    signs = (
        2.0 * torch.randint(0, 2, (n_probes, d), generator=generator, device="cpu").double() - 1.0
    )
    most = min(d, _MOST_PRODUCTS)
    at_once = max(1, rows.budget.memory(codes) // (16 * most * d * n_probes))
    parts = [_estimated(rows, part, signs.to(codes.device)) for part in codes.split(at_once)]
    mean, error, settled = (torch.cat(values) for values in zip(*parts, strict=True))
    if not bool(settled.all()):
        warnings.warn(
            f"{int((~settled).sum())} of {len(codes)} log-determinants are off by more than their "
            f"standard errors tell: {most} products were too few",
            stacklevel=2,
        )
    return LogVolume(mean.to(codes.dtype), error.to(codes.dtype))


def _logarithms(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the logarithms of eigenvalues (n, m); -inf of those that are zero to rounding."""
    least = torch.finfo(dtype).eps * values.amax(1, keepdim=True)
    return torch.where(values <= least, -torch.inf, values.clamp_min(0.0).log())


def _estimated(rows: Rows, z: Tensor, signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return estimates of 1/2 log det G, standard errors and whether they have settled, (n,)."""
    n, (n_probes, d) = len(z), signs.shape
    operator = ByProducts(rows, z.repeat_interleave(n_probes, dim=0), None)
    last = torch.full((n,), torch.nan, dtype=torch.float64, device=z.device)
    error, settled = last, torch.zeros_like(last, dtype=torch.bool)

    def enough(found: Krylov) -> bool:
        nonlocal last, error, settled
        weights = found.vectors[:, 0].square()
        logarithms = _logarithms(found.values, rows.dtype)
        # where a Krylov space was exhausted, nodes beyond it have no weight
        terms = torch.where(weights > 1e-28, weights * logarithms, 0.0)
        estimates = 0.5 * d * terms.sum(1).reshape(n, n_probes)
        mean = estimates.mean(1)
        error = torch.where(mean.isfinite(), estimates.std(1) / n_probes**0.5, 0.0)
        change = (mean - last).abs()
        settled = (change <= (_SETTLED * error).clamp_min(1e-9 * d)) | ~mean.isfinite()
        settled |= torch.full_like(settled, found.values.shape[1] == d)
        last = mean
        return bool(settled.all())

    found = lanczos(operator.product, signs.repeat(n, 1), enough, _MOST_PRODUCTS)
    if found.values.shape[1] == min(d, _MOST_PRODUCTS):
        enough(found)
    return last, error, settled


@dataclass(frozen=True)
class PrincipalDirections(Result):
    """Directions in which the output changes most.

    Attributes
    ----------
    eigenvalues
        The largest of G, descending, (n, k): squared lengths in the output of a unit step.
    directions
        Eigenvectors, orthonormal in the latent space, (n, k, d); their signs mean nothing.
    """

    with_codes = ("directions",)

    eigenvalues: Tensor
    directions: Tensor


def principal_directions(metric: Metric, z: Array, k: int = 1) -> PrincipalDirections:
    """Return the directions in which the decoder's output changes most, in any dimension.

    The leading eigenvectors of G(z), for a pull-back metric the leading right singular vectors of
    the decoder's Jacobian. In more than 512 dimensions by Lanczos' method from products with G,
    some tens of five rows each; eigenvalues equal to rounding are then found once.

    Parameters
    ----------
    metric
        The metric.
    z
        Codes, (n, d), or of any shape, (n, ...).
    k
        Directions of each code, at most d.

    Returns
    -------
    PrincipalDirections
        Eigenvalues and eigenvectors; NaN where the metric is not finite.

    References
    ----------
    Shao, Kumar, Fletcher, "The Riemannian geometry of deep generative models", 2018,
    https://arxiv.org/abs/1711.08014. Golub, Van Loan, "Matrix Computations", 2013, section 10.1.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> stretched = PullbackMetric(lambda z: z * torch.tensor([1.0, 3.0]))
    >>> found = principal_directions(stretched, torch.zeros(1, 2))
    >>> found.eigenvalues, found.directions.abs()
    (tensor([[9.]]), tensor([[[0., 1.]]]))
    """
    shape = CodeShape.of(z)
    metric, codes = check_at(metric, z)
    d = codes.shape[1]
    k = check_integer("k", k)
    if k > d:
        raise ValueError(requirement("k", f"at most the dimension of the codes, {d}", k))
    rows = Rows.of(metric, codes)
    formed = is_formed(metric, d)
    each = 32 * d * (d if formed else min(d, _MOST_PRODUCTS))
    found = [
        (_leading if formed else _leading_by_products)(rows, part, k)
        for part in codes.split(max(1, rows.budget.memory(codes) // each))
    ]
    values, directions = (torch.cat(part).to(codes.dtype) for part in zip(*found, strict=True))
    return shape.back(PrincipalDirections(values, directions))


def _leading(rows: Rows, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues of G, (n, k), and eigenvectors, (n, k, d)."""
    tensors = rows.tensor(z).double()
    bad = ~tensors.isfinite().all(2).all(1)
    values, vectors = torch.linalg.eigh(torch.where(bad[:, None, None], 0.0, tensors))
    values[bad], vectors[bad] = torch.nan, torch.nan
    return values.flip(1)[:, :k], vectors.mT.flip(1)[:, :k]


def _leading_by_products(rows: Rows, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    tolerance = 32.0 * torch.finfo(rows.dtype).eps

    def off(found: Krylov) -> Tensor:
        """Return |G x - theta x| / |G| of the leading vectors, (n, k)."""
        ends = found.vectors[:, -1, -k:].abs() * found.residual[:, None]
        return ends / found.values[:, -1:].clamp_min(1e-300)

    def enough(found: Krylov) -> bool:
        return found.values.shape[1] >= k and not bool((off(found) > tolerance).any())

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(z.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    start = start.to(z.device).expand(z.shape)
    found = lanczos(ByProducts(rows, z, None).product, start, enough, max(k, _MOST_PRODUCTS))
    worst = off(found).nan_to_num(0.0)
    if bool((worst > tolerance).any()):
        warnings.warn(
            f"principal directions are off by up to {float(worst.max()):.1g} of the largest "
            f"eigenvalue after {found.values.shape[1]} products",
            stacklevel=3,
        )
    vectors = torch.einsum("nmd,nmk->nkd", found.basis, found.vectors[:, :, -k:].flip(2))
    values = found.values[:, -k:].flip(1)
    return values, torch.where(values.isfinite()[:, :, None], vectors, torch.nan)


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
        draws = torch.rand(m, d, generator=generator, dtype=torch.float64, device="cpu").to(low)
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
            chance = torch.rand(
                codes.shape[0], generator=generator, dtype=torch.float64, device="cpu"
            )
            kept = chance.to(factors) * largest < bound
            codes, factors = codes[kept], factors[kept]
            bound = largest
        chance = torch.rand(m, generator=generator, dtype=torch.float64, device="cpu").to(factor)
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
