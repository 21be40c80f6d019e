"""The geodesic equation: accelerations, and how far a curve is from fulfilling it."""

from __future__ import annotations

import torch
from torch import Tensor

from geolatent.arrays import Array
from geolatent.checks import check_tensor
from geolatent.curves import DEGREE, CubicBSpline
from geolatent.geometry.exponential import check_tangents
from geolatent.lengths import check_curve
from geolatent.metrics.base import Metric
from geolatent.metrics.operators import metric_operator
from geolatent.metrics.rows import Rows


def geodesic_acceleration(metric: Metric, z: Array, v: Array) -> Tensor:
    """Return the acceleration z'' = -Gamma(v, v) of the geodesic through z with velocity v.

        G z'' = 1/2 grad_z (v^T G v) - (D_v G) v,

    D_v the derivative along v. The Christoffel symbols Gamma themselves are not formed; the last
    term is a double backward of the quadratic form.

    Parameters
    ----------
    metric
        The metric.
    z, v
        Codes and velocities, (d,) or (B, d) each, broadcast.

    Returns
    -------
    Tensor
        Shape (B, d); NaN where G is singular.

    Examples
    --------
    >>> from geolatent import TensorMetric
    >>> half_plane = TensorMetric(
    ...     lambda z: torch.eye(2).expand(len(z), 2, 2) / z[:, 1, None, None] ** 2, dim=2
    ... )
    >>> geodesic_acceleration(half_plane, torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0]))
    tensor([[0., 2.]])
    """
    metric, codes, vectors, shape = check_tangents(metric, z, v)
    return shape.back(acceleration(Rows.of(metric, codes), codes, vectors).to(codes.dtype))


def acceleration(rows: Rows, z: Tensor, v: Tensor) -> Tensor:
    """Return `geodesic_acceleration` for codes that are known to be good, (n, d) each, float64."""
    (force,) = rows.each(
        lambda z, v: (_force(rows, z, v),), 2 * z.shape[1] + 6, z.detach(), v.detach()
    )
    return metric_operator(rows, z).solve(force.double())


def _force(rows: Rows, z: Tensor, v: Tensor) -> Tensor:
    """Return 1/2 grad_z (v^T G v) - (D_v G) v for codes and velocities (n, d)."""
    point, velocity = z.requires_grad_(), v.requires_grad_()
    with torch.enable_grad():
        square = rows.differentiable_quadratic(point, velocity)
        if not square.requires_grad:
            return torch.zeros_like(z)
        by_z, by_v = torch.autograd.grad(
            square.sum(), (point, velocity), create_graph=True, materialize_grads=True
        )
    return force(by_z, by_v, point, velocity)


def force(by_z: Tensor, by_v: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """Return 1/2 grad_z (v^T G v) - (D_v G) v, the lowered -G Gamma(v, v), (n, d).

    From the gradients of v^T G v by z and by v; the latter, 2 G v, as a function of z.
    """
    along = torch.zeros_like(by_z)
    if by_v.requires_grad:
        with torch.enable_grad():
            cotangent = torch.zeros_like(by_v, requires_grad=True)
            (pulled,) = torch.autograd.grad(
                by_v, z, cotangent, create_graph=True, materialize_grads=True
            )
        if pulled.requires_grad:
            (along,) = torch.autograd.grad(pulled, cotangent, v.detach(), materialize_grads=True)
    return 0.5 * (by_z.detach() - along)


def geodesic_residual(metric: Metric, curve: CubicBSpline, t: Array | None = None) -> Tensor:
    r"""Return by how much splines fail the geodesic equation: a second certificate.

    .. math::

        r(t) = \frac{|\gamma'' + \Gamma(\gamma', \gamma')|_G}{L},
        \qquad L \text{ the length of the curve},

    the covariant acceleration. On a curve run through at constant speed, r is the geodesic
    curvature times the length: the angle in radians by which a curve of that curvature turns away
    from a geodesic on its way. It is zero along a geodesic. The splines of `solve_geodesic` have
    the right place and length long before the right second derivative: residuals of some tenths go
    with excess lengths of 1e-4.

    Parameters
    ----------
    metric
        The metric.
    curve
        B curves.
    t
        Parameters, (T,) in [0, 1]; by default 33 points, none of them a knot.

    Returns
    -------
    Tensor
        Shape (B, T), without units.

    Examples
    --------
    >>> line = CubicBSpline.straight(torch.zeros(1), torch.ones(1))
    >>> from geolatent import PullbackMetric
    >>> plane = PullbackMetric(lambda z: 2.0 * z)
    >>> bool((geodesic_residual(plane, line).abs() < 1e-5).all())
    True
    """
    metric, curve, _ = check_curve(metric, curve)
    if t is None:
        t = (torch.arange(33, dtype=torch.float64) + 0.5) / 33.0
    t = check_tensor("t", t, "(T,)").detach().to(curve.knots)
    z, v = curve(t), curve.derivative(t)
    b, n, d = z.shape
    rows = Rows.of(metric, z[:, 0])
    flat_z, flat_v = z.reshape(-1, d), v.reshape(-1, d)
    geodesic = acceleration(rows, flat_z, flat_v)
    excess = second_derivative(curve, t).reshape(-1, d) - geodesic
    tensors = metric_operator(rows, flat_z)
    length = tensors.norms(flat_v.double()).reshape(b, n).mean(1, keepdim=True)
    size = tensors.norms(excess).reshape(b, n)
    residual = size / torch.where(length > 0, length, 1.0)
    return residual.to(z.dtype)


def second_derivative(curve: CubicBSpline, t: Tensor) -> Tensor:
    """Return gamma''(t), (B, T, d), float64, for t (T,) in [0, 1]."""
    knots, points = curve.knots, curve.control_points.double()
    # the control points of the derivative, twice
    for degree in (DEGREE, DEGREE - 1):
        span = knots[degree + 1 : -1] - knots[1 : -degree - 1]
        points = degree * points.diff(dim=1) / torch.where(span > 0, span, 1.0)[:, None]
        knots = knots[1:-1]
    # gamma'' is linear between its knots, and each basis function is a hat
    at = (torch.searchsorted(knots, t.contiguous(), right=True) - 1).clamp(1, knots.numel() - 3)
    share = (t - knots[at]) / (knots[at + 1] - knots[at])
    return torch.lerp(points[:, at - 1], points[:, at], share[:, None])
