"""Logarithms of many points at codes that move, as means and clusters need them."""

from __future__ import annotations

import torch
from torch import Tensor

from geolatent.curves import CubicBSpline, clamped_knots, greville_abscissae
from geolatent.geometry.flow import HamiltonianFlow
from geolatent.geometry.integrators import Integrator
from geolatent.geometry.shooting import shoot_to
from geolatent.graph import LatentGraph
from geolatent.metrics.base import Metric
from geolatent.metrics.operators import metric_operator
from geolatent.metrics.rows import Rows
from geolatent.solution import Evaluations
from geolatent.solve import solve_geodesic
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Callback, Solver
from geolatent.transfers import sent

# control points of the curves that the next iteration starts from
_WARM_CONTROL_POINTS = 15


class Logarithms:
    """Logarithms of points at moving codes: geodesics that start from those of the last call.

    Parameters
    ----------
    metric
        The metric.
    points
        Codes x, (P, d).
    solver, initial, integrator
        As for `frechet_mean`.
    callback
        Told of the progress of every call's geodesics.
    """

    def __init__(
        self,
        metric: Metric,
        points: Tensor,
        solver: Solver | None,
        initial: LatentGraph | None,
        integrator: Integrator | None,
        callback: Callback | None = None,
    ) -> None:
        self.metric = metric
        self.points = points
        # logarithms need better curves than lengths do
        self.solver = PreconditionedSolver(tolerance=1e-5) if solver is None else solver
        self.initial = initial
        self.integrator = integrator
        self.callback = callback
        self.rows = Rows.of(metric, points)
        # control points of the last curve to each point; NaN before the first
        shape = (points.shape[0], _WARM_CONTROL_POINTS, points.shape[1])
        self._controls = points.new_full(shape, torch.nan)

    def __call__(self, codes: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Evaluations]:
        """Return log_z(x), (A, d), |log|_G, (A,), and costs, for codes (A, d) and point numbers."""
        points = self.points[which]
        initial: LatentGraph | CubicBSpline | None = self.initial
        if bool(self._controls[which].isfinite().all()):
            initial = self._warm(codes, which)
        if self.integrator is not None:
            shot = shoot_to(
                self.metric,
                codes,
                points,
                solver=self.solver,
                initial=initial,
                integrator=self.integrator,
                callback=self.callback,
            )
            velocity, length, spent = shot.velocity.double(), shot.length, shot.evaluations
            curve = shot.solution.curve
        else:
            solution = solve_geodesic(
                self.metric, codes, points, self.solver, initial=initial, callback=self.callback
            )
            length, curve = solution.length, solution.curve
            rows = self.rows.counting(len(codes))
            velocity = HamiltonianFlow(rows).start_velocities(curve)
            spent = solution.evaluations + rows.spent
            # the quadrature knows the length better still
            speed = metric_operator(self.rows, codes).norms(velocity)
            scale = torch.where(speed > 0, length.double() / speed, 1.0)
            velocity = velocity * scale[:, None]
        at = greville_abscissae(clamped_knots(_WARM_CONTROL_POINTS)).to(codes.device)
        self._controls[which] = curve(at)
        return velocity, length.double(), spent

    def _warm(self, codes: Tensor, which: Tensor) -> CubicBSpline:
        """Return the last curves with their starts moved to the codes."""
        controls = self._controls[which]
        knots = clamped_knots(_WARM_CONTROL_POINTS)
        rest = 1.0 - greville_abscissae(knots).to(codes)
        controls = controls + rest[:, None] * (codes - controls[:, 0])[:, None]
        controls[:, 0], controls[:, -1] = codes, self.points[which]
        return CubicBSpline.trusted(controls, sent(knots, controls))
