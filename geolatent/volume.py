"""Volume and curvature of a metric: magnification factor, condition number, sectional curvature."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.checks import (
    check_alike,
    check_codes,
    check_integer,
    check_tensor,
    describe,
    requirement,
)
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.budget import RowBudget


def _check(metric: object, z: object) -> tuple[Metric, Tensor]:
    metric = check_metric(metric)
    codes = check_codes("z", z, metric.dim).detach()
    metric.check("z", codes[:1])
    return metric, codes


def _eigenvalues(metric: Metric, z: Tensor, max_rows: int | None) -> Tensor:
    """Return the eigenvalues of G, ascending, (n, d), float64; rounding errors below 0 are 0."""
    budget = RowBudget(max_rows)
    budget.fit(metric, z[:1])

    def chunk(items: slice) -> Tensor:
        with torch.no_grad():
            return metric._tensor(z[items]).double()

    tensors = torch.cat(budget.run(chunk, z.shape[0], metric.tensor_rows(z.shape[1])))
    finite = tensors.isfinite().all(2).all(1)
    values = torch.full_like(tensors[:, 0], torch.nan)
    values[finite] = torch.linalg.eigvalsh(tensors[finite]).clamp_min(0.0)
    return values


def magnification_factor(metric: Metric, z: Tensor, *, max_rows: int | None = None) -> Tensor:
    """Return the magnification factor sqrt(det G(z)), in output units^d per latent unit^d.

    Parameters
    ----------
    metric
        The metric.
    z
        Codes, (n, d).
    max_rows
        Largest number of rows sent through the decoder at once; chosen automatically by default.

    Returns
    -------
    Tensor
        Shape (n,); NaN where G is not finite.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind or shape or not finite.

    References
    ----------
    Bishop, Svensen, Williams, "Magnification factors for the GTM algorithm", 1997.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> magnification_factor(PullbackMetric(lambda z: 3.0 * z), torch.zeros(1, 2))
    tensor([9.])
    """
    metric, codes = _check(metric, z)
    # the product of square roots neither over- nor underflows as the determinant does
    return _eigenvalues(metric, codes, max_rows).sqrt().prod(1).to(codes.dtype)


def condition_number(metric: Metric, z: Tensor, *, max_rows: int | None = None) -> Tensor:
    """Return the ratio of the largest to the smallest eigenvalue of G(z), 1 where isotropic.

    Parameters
    ----------
    metric, z, max_rows
        As for `magnification_factor`.

    Returns
    -------
    Tensor
        Shape (n,), without units; infinite where G is singular.

    Raises
    ------
    TypeError, ValueError
        As for `magnification_factor`.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> stretched = PullbackMetric(lambda z: z * torch.tensor([1.0, 3.0]))
    >>> condition_number(stretched, torch.zeros(1, 2))
    tensor([9.])
    """
    metric, codes = _check(metric, z)
    values = _eigenvalues(metric, codes, max_rows)
    return (values[:, -1] / values[:, 0]).to(codes.dtype)


def gaussian_curvature(metric: Metric, z: Tensor, *, max_rows: int | None = None) -> Tensor:
    """Return the Gaussian curvature of a metric in two dimensions.

    `sectional_curvature` of the plane of the coordinates, which is Brioschi's formula; 1 / r^2 on a
    sphere of radius r, -1 on the half-plane, 0 where the decoder only bends the plane.

    Parameters
    ----------
    metric, z, max_rows
        As for `magnification_factor`, with d = 2.

    Returns
    -------
    Tensor
        Shape (n,), in inverse squared units of the decoder's output.

    Raises
    ------
    TypeError, ValueError
        As for `magnification_factor`, and where d is not 2.

    Examples
    --------
    >>> from geolatent import TensorMetric
    >>> half_plane = TensorMetric(
    ...     lambda z: torch.eye(2).expand(len(z), 2, 2) / z[:, 1, None, None] ** 2, dim=2
    ... )
    >>> gaussian_curvature(half_plane, torch.tensor([[0.0, 1.0]]))
    tensor([-1.])
    """
    metric, codes = _check(metric, z)
    if codes.shape[1] != 2:
        required = "codes of dimension 2 (use sectional_curvature in others)"
        raise ValueError(requirement("z", required, describe(codes)))
    axes = torch.eye(2, dtype=codes.dtype, device=codes.device)
    return _sectional(
        metric, codes, axes[0].expand_as(codes), axes[1].expand_as(codes), max_rows
    ).to(codes.dtype)


def sectional_curvature(
    metric: Metric, z: Tensor, u: Tensor, v: Tensor, *, max_rows: int | None = None
) -> Tensor:
    r"""Return the sectional curvature of the planes that pairs of tangent vectors span.

        K = R(u, v, v, u) / (|u|^2 |v|^2 - <u, v>^2),
        R(u, v, v, u) = D_u D_v <u, v> - (D_v D_v |u|^2 + D_u D_u |v|^2) / 2
                        + |Gamma(u, v)|^2 - <Gamma(u, u), Gamma(v, v)>,

    products in G(z), derivatives of G along constant u and v. From gradients of the quadratic form
    u^T G u, which are exact; the decoder is differentiated three times. On a decoder with kinks it
    is the curvature between the kinks and knows nothing of theirs.

    Parameters
    ----------
    metric
        The metric.
    z, u, v
        Codes and tangent vectors, (n, d) each, d at least 2.
    max_rows
        As for `magnification_factor`.

    Returns
    -------
    Tensor
        Shape (n,), in inverse squared units of the decoder's output; NaN where G is singular or u
        and v are parallel.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind, shape, dtype or device or not finite.

    References
    ----------
    do Carmo, "Riemannian Geometry", 1992, chapter 4.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> paraboloid = PullbackMetric(lambda z: torch.cat([z, z.square().sum(1, keepdim=True)], 1))
    >>> axes = torch.eye(2)
    >>> sectional_curvature(paraboloid, torch.zeros(1, 2), axes[:1], axes[1:])
    tensor([4.])
    """
    metric, codes = _check(metric, z)
    vectors = []
    for name, value in (("u", u), ("v", v)):
        vector = check_codes(name, value, codes.shape[1]).detach()
        check_alike(name, vector, "z", codes)
        if vector.shape != codes.shape:
            required = f"of the shape of `z`, {tuple(codes.shape)}"
            raise ValueError(requirement(name, required, describe(vector)))
        vectors.append(vector)
    return _sectional(metric, codes, vectors[0], vectors[1], max_rows).to(codes.dtype)


def _sectional(metric: Metric, z: Tensor, u: Tensor, v: Tensor, max_rows: int | None) -> Tensor:
    budget = RowBudget(max_rows)
    budget.fit(metric, z[:1])
    rows = metric.tensor_rows(z.shape[1]) + 12
    return torch.cat(
        budget.run(lambda s: _sectional_rows(metric, z[s], u[s], v[s]), z.shape[0], rows)
    )


def _sectional_rows(metric: Metric, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
    directions = {"u": u, "v": v, "both": u + v}
    squares, bent, lowered = {}, {}, {}
    for name, w in directions.items():
        point, vector = z.detach().requires_grad_(), w.detach().requires_grad_()
        with torch.enable_grad():
            square = metric._quadratic(point, vector)
            squares[name] = square.detach().double()
            by_z, by_w = _gradients(square.sum(), (point, vector))
            # second derivatives of |w|^2 by z, along u and v
            bent[name] = {
                pair: _along((by_z * a).sum(), point, b)
                for pair, (a, b) in {"uu": (u, u), "uv": (u, v), "vv": (v, v)}.items()
            }
            # the lowered G Gamma(w, w) = (D_w G) w - grad |w|^2 / 2, where by_w = 2 G w
            turned = torch.zeros_like(by_z)
            if by_w.requires_grad:
                cotangent = torch.zeros_like(by_w, requires_grad=True)
                (pulled,) = _gradients((by_w * cotangent).sum(), (point,))
                if pulled.requires_grad:
                    (turned,) = torch.autograd.grad(
                        (pulled * w.detach()).sum(), cotangent, materialize_grads=True
                    )
        lowered[name] = 0.5 * (turned - by_z.detach()).double()
    # polarisation: 2 b(u, v) = q(u + v) - q(u) - q(v)
    inner = 0.5 * (squares["both"] - squares["u"] - squares["v"])
    mixed = 0.5 * (bent["both"]["uv"] - bent["u"]["uv"] - bent["v"]["uv"])
    crossed = 0.5 * (lowered["both"] - lowered["u"] - lowered["v"])
    with torch.no_grad():
        tensors = metric._tensor(z).double()
    factor, info = torch.linalg.cholesky_ex(tensors)

    def product(a: Tensor, b: Tensor) -> Tensor:
        raised = torch.cholesky_solve(b[:, :, None], factor)[:, :, 0]
        return (a * raised).sum(1)

    curvature = (
        mixed
        - 0.5 * (bent["u"]["vv"] + bent["v"]["uu"])
        + product(crossed, crossed)
        - product(lowered["u"], lowered["v"])
    )
    area = squares["u"] * squares["v"] - inner.square()
    degenerate = (info != 0) | (area <= 1e-14 * squares["u"] * squares["v"])
    return torch.where(degenerate, torch.nan, curvature / area)


def _gradients(value: Tensor, by: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not value.requires_grad:
        return tuple(torch.zeros_like(part) for part in by)
    return torch.autograd.grad(value, by, create_graph=True, materialize_grads=True)


def _along(value: Tensor, point: Tensor, direction: Tensor) -> Tensor:
    """Return the derivative of a sum over rows along a direction, row by row, float64."""
    if not value.requires_grad:
        return torch.zeros_like(point[:, 0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(value, point, retain_graph=True, materialize_grads=True)
    return (gradient.detach() * direction).sum(1).double()


@dataclass(frozen=True)
class VolumeSample:
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
    low: Tensor,
    high: Tensor,
    n: int,
    *,
    weight: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    max_proposals: int = 10_000_000,
    max_rows: int | None = None,
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
    max_rows
        Largest number of rows sent through the decoder at once; chosen automatically by default.

    Returns
    -------
    VolumeSample
        The codes, and the volume of the box.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind or the corners are not in order.
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
    low = check_tensor("low", low, "of shape (d,)", (1,)).detach()
    high = check_tensor("high", high, f"of shape {tuple(low.shape)}", (1,)).detach()
    check_alike("high", high, "low", low)
    if high.shape != low.shape or not bool((high > low).all()):
        required = f"above `low` ({low.tolist()}) in every dimension"
        raise ValueError(requirement("high", required, high.tolist()))
    if metric.dim is not None and low.numel() != metric.dim:
        raise ValueError(requirement("low", f"of shape ({metric.dim},)", describe(low)))
    n = check_integer("n", n)
    max_proposals = check_integer("max_proposals", max_proposals)
    metric.check("low", low[None])
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
        factor = _eigenvalues(metric, z, max_rows).sqrt().prod(1)
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
    required = f"a callable returning a tensor of shape ({z.shape[0]},), not negative"
    if not isinstance(values, Tensor) or values.shape != z.shape[:1] or bool((values < 0).any()):
        raise ValueError(requirement("weight", required, f"one returning {describe(values)}"))
    return values.double()
