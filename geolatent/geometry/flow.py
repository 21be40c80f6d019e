"""Hamilton's equations of the geodesics of a metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.curves import CubicBSpline
from geolatent.metrics.operators import (
    MetricOperator,
    is_formed,
    metric_operator,
    solve_metric,
)
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
    tolerance
        Of the velocities, where they are found by products; see `MetricOperator.solve`.
    """

    rows: Rows
    tolerance: float | None = None

    def metric(self, z: Tensor, pairs: Tensor | None = None) -> MetricOperator:
        """Return G at codes (A, ..., d)."""
        return metric_operator(self.rows, z, pairs)

    def __call__(
        self, z: Tensor, momentum: Tensor, pairs: Tensor, guess: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the time derivatives of places and momenta (A, ..., d).

        Velocities that are found by products are sought from a guess.
        """
        if not is_formed(self.rows.metric, z.shape[-1]):
            velocity = self.metric(z, pairs).solve(momentum, self.tolerance, guess)
            # a velocity that is not known has no slope
            known = velocity.isfinite().all(-1, keepdim=True)
            slope = self.rows.slopes(z, torch.where(known, velocity, 0.0), pairs)[1]
            return velocity, torch.where(known, 0.5 * slope.double(), torch.nan)
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
        return self.metric(curve.control_points[:, 0]).solve(momentum, self.tolerance)
