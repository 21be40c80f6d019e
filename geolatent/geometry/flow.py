"""Hamilton's equations of the geodesics of a metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.curves import CubicBSpline
from geolatent.metrics.rows import Rows
from geolatent.quadrature import composite_rule


@dataclass(frozen=True)
class HamiltonianFlow:
    """Hamilton's equations of the geodesics of a metric, for states (z, p) in float64.

    With the momentum p = G(z) v,

        z' = v = G(z)^-1 p,    p' = 1/2 grad_z (v^T G(z) v), v held fixed,

    which needs one metric tensor and one gradient of the quadratic form, and no Christoffel symbol.

    Attributes
    ----------
    rows
        The metric at work.
    """

    rows: Rows

    def tensors(self, z: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return G at codes (A, ..., d), float64."""
        return self.rows.tensor(z, pairs).double()

    def __call__(self, z: Tensor, momentum: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the time derivatives of places and momenta (A, ..., d)."""
        velocity, slope = self.rows.tensor_and_slope(z, momentum, solve_metric, pairs)
        return velocity, 0.5 * slope

    def start_velocities(self, curve: CubicBSpline) -> Tensor:
        """Return the velocities of the geodesics that splines approximate, at t = 0, (B, d).

        From the momentum in weak form, with p and f the two halves of the gradient of v^T G v / 2,

            p(0) = integral_0^1 (p(t) - (1 - t) f(t)) dt,

        the derivative of the energy by the start (envelope theorem). Its error is of the order of
        the spline's excess energy, that of the spline's own derivative of its square root.
        """
        t, weights = composite_rule(curve.knots, 4)
        _, by_z, by_v = self.rows.slopes(curve(t), curve.derivative(t))
        whole = 0.5 * (by_v.double() - (1.0 - t)[:, None] * by_z.double())
        momentum = torch.einsum("q,bqd->bd", weights, whole)
        return solve_metric(self.tensors(curve.control_points[:, 0]), momentum)


def norms(tensors: Tensor, vectors: Tensor) -> Tensor:
    """Return |v|_G = sqrt(v^T G v) for (..., d, d) and (..., d); 0 where rounding makes it less."""
    squares = torch.einsum("...i,...ij,...j->...", vectors, tensors, vectors)
    return squares.clamp_min(0.0).sqrt()


def solve_metric(tensors: Tensor, covectors: Tensor) -> Tensor:
    """Return G^-1 p for (..., d, d) and (..., d); NaN where G is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(tensors.double())
    vectors = torch.cholesky_solve(covectors[..., None], factor)[..., 0]
    return torch.where((info == 0)[..., None], vectors, torch.nan)
