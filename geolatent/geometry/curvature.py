"""Curvature of a metric: Gaussian and sectional."""

from __future__ import annotations

import torch
from torch import Tensor

from geolatent.arrays import Array
from geolatent.checks import check_vectors, describe, requirement
from geolatent.geometry.acceleration import force
from geolatent.geometry.volume import check_at
from geolatent.metrics.base import Metric
from geolatent.metrics.operators import is_formed, metric_operator
from geolatent.metrics.rows import Rows
from geolatent.shapes import CodeShape


def gaussian_curvature(metric: Metric, z: Array) -> Tensor:
    """Return the Gaussian curvature of a metric in two dimensions.

    `sectional_curvature` of the plane of the coordinates, which is Brioschi's formula; 1 / r^2 on a
    sphere of radius r, -1 on the half-plane, 0 where the decoder only bends the plane.

    Parameters
    ----------
    metric, z
        As for `magnification_factor`, with d = 2.

    Returns
    -------
    Tensor
        Shape (n,), in inverse squared units of the decoder's output.

    Examples
    --------
    >>> from geolatent import TensorMetric
    >>> half_plane = TensorMetric(
    ...     lambda z: torch.eye(2).expand(len(z), 2, 2) / z[:, 1, None, None] ** 2, dim=2
    ... )
    >>> gaussian_curvature(half_plane, torch.tensor([[0.0, 1.0]]))
    tensor([-1.])
    """
    metric, codes = check_at(metric, z)
    if codes.shape[1] != 2:
        required = "codes of dimension 2 (use sectional_curvature in others)"
        raise ValueError(requirement("z", required, describe(codes)))
    axes = torch.eye(2, dtype=codes.dtype, device=codes.device)
    return _sectional(metric, codes, axes[0].expand_as(codes), axes[1].expand_as(codes))


def sectional_curvature(metric: Metric, z: Array, u: Array, v: Array) -> Tensor:
    r"""Return the sectional curvature of the planes that pairs of tangent vectors span.

    .. math::

        K &= \frac{R(u, v, v, u)}{|u|^2 |v|^2 - \langle u, v \rangle^2}, \\
        R(u, v, v, u) &= D_u D_v \langle u, v \rangle
            - \tfrac{1}{2} (D_v D_v |u|^2 + D_u D_u |v|^2) \\
            &\quad + |\Gamma(u, v)|^2 - \langle \Gamma(u, u), \Gamma(v, v) \rangle,

    products in G(z), derivatives of G along constant u and v. From gradients of the quadratic form
    u^T G u, which are exact; the decoder is differentiated three times. On a decoder with kinks it
    is the curvature between the kinks and knows nothing of theirs.

    Parameters
    ----------
    metric
        The metric.
    z, u, v
        Codes and tangent vectors, (n, d) each, d at least 2.

    Returns
    -------
    Tensor
        Shape (n,), in inverse squared units of the decoder's output; NaN where G is singular or u
        and v are parallel.

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
    shape = CodeShape.of(z)
    u, v = shape.flat("u", u), shape.flat("v", v)
    metric, codes = check_at(metric, z)
    like = metric.like
    u, v = (
        check_vectors(name, each, codes, like=like).detach() for name, each in (("u", u), ("v", v))
    )
    return _sectional(metric, codes, u, v)


def _sectional(metric: Metric, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
    rows = Rows.of(metric, z)
    cost = 12 + (metric.tensor_rows(z.shape[1]) if is_formed(metric, z.shape[1]) else 0)
    (curvature,) = rows.each(lambda *part: (_sectional_part(rows, *part),), cost, z, u, v)
    return curvature.to(z.dtype)


def _sectional_part(rows: Rows, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
    directions = {"u": u, "v": v, "both": u + v}
    squares, bent, lowered = {}, {}, {}
    for name, w in directions.items():
        point, vector = z.detach().requires_grad_(), w.detach().requires_grad_()
        with torch.enable_grad():
            square = rows.differentiable_quadratic(point, vector)
            squares[name] = square.detach().double()
            by_z, by_w = _gradients(square.sum(), (point, vector))
            # second derivatives of |w|^2 by z, along u and v
            bent[name] = {
                pair: _along((by_z * a).sum(), point, b)
                for pair, (a, b) in {"uu": (u, u), "uv": (u, v), "vv": (v, v)}.items()
            }
        lowered[name] = -force(by_z, by_w, point, vector).double()
    # polarisation: 2 b(u, v) = q(u + v) - q(u) - q(v)
    inner = 0.5 * (squares["both"] - squares["u"] - squares["v"])
    mixed = 0.5 * (bent["both"]["uv"] - bent["u"]["uv"] - bent["v"]["uv"])
    crossed = 0.5 * (lowered["both"] - lowered["u"] - lowered["v"])
    metric = metric_operator(rows, z)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a * metric.solve(b)).sum(1)

    curvature = (
        mixed
        - 0.5 * (bent["u"]["vv"] + bent["v"]["uu"])
        + product(crossed, crossed)
        - product(lowered["u"], lowered["v"])
    )
    area = squares["u"] * squares["v"] - inner.square()
    degenerate = area <= 1e-14 * squares["u"] * squares["v"]
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
