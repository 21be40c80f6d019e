"""Hamilton's equations of the geodesics of a metric."""

from __future__ import annotations

import torch
from torch import Tensor

from geolatent.curves import CubicBSpline
from geolatent.metrics.base import Metric
from geolatent.metrics.budget import RowBudget
from geolatent.quadrature import composite_rule
from geolatent.solution import Evaluations


class HamiltonianFlow:
    """Hamilton's equations of the geodesics of a metric, for states (z, p) in float64.

    With the momentum p = G(z) v,

        z' = v = G(z)^-1 p,    p' = 1/2 grad_z (v^T G(z) v), v held fixed,

    which needs one metric tensor and one gradient of the quadratic form, and no Christoffel symbol.

    Parameters
    ----------
    metric
        The metric.
    dtype
        Floating-point type that the metric's functions work in.
    dim
        Latent dimension d.
    budget
        The rows that may go through the decoder at once.
    """

    def __init__(self, metric: Metric, dtype: torch.dtype, dim: int, budget: RowBudget) -> None:
        self.metric = metric
        self.dtype = dtype
        self.dim = dim
        self.budget = budget

    def tensors(self, z: Tensor) -> Tensor:
        """Return G at codes (n, d), float64, without gradients."""

        def chunk(items: slice) -> Tensor:
            with torch.no_grad():
                return self.metric._tensor(z[items].to(self.dtype)).double()

        return torch.cat(self.budget.run(chunk, z.shape[0], self.metric.tensor_rows(self.dim)))

    def __call__(self, states: Tensor) -> Tensor:
        """Return the time derivatives of states (n, 2 d)."""
        rows = self.metric.tensor_rows(self.dim) + 2
        return torch.cat(
            self.budget.run(lambda items: self._slopes(states[items]), states.shape[0], rows)
        )

    def _slopes(self, states: Tensor) -> Tensor:
        z, momentum = states[:, : self.dim], states[:, self.dim :]
        point = z.to(self.dtype).detach().requires_grad_()
        whole = self.metric.quadratic_cost == "forward"  # a tensor costs no more than its use
        with torch.set_grad_enabled(whole):
            tensor = self.metric._tensor(point)
        velocity = solve_metric(tensor.detach().double(), momentum)
        v = velocity.to(self.dtype)
        with torch.enable_grad():
            if whole:
                square = torch.einsum("ni,nij,nj->n", v, tensor, v)
            else:
                square = self.metric._quadratic(point, v)
        if not square.requires_grad:  # a constant metric
            return torch.cat([velocity, torch.zeros_like(momentum)], dim=1)
        (force,) = torch.autograd.grad(square.sum(), point, materialize_grads=True)
        return torch.cat([velocity, 0.5 * force.double()], dim=1)

    def start_velocities(self, curve: CubicBSpline, evaluations: Evaluations) -> Tensor:
        """Return the velocities of the geodesics that splines approximate, at t = 0, (B, d).

        From the momentum in weak form, with p and f the two halves of the gradient of v^T G v / 2,

            p(0) = integral_0^1 (p(t) - (1 - t) f(t)) dt,

        the derivative of the energy by the start (envelope theorem). Its error is of the order of
        the spline's excess energy, that of the spline's own derivative of its square root.
        """
        t, weights = composite_rule(curve.knots, 4)
        z, v = (part.to(self.dtype) for part in (curve(t), curve.derivative(t)))

        def chunk(items: slice) -> Tensor:
            point = z[items].flatten(0, 1).detach().requires_grad_()
            velocity = v[items].flatten(0, 1).detach().requires_grad_()
            with torch.enable_grad():
                half = 0.5 * self.metric._quadratic(point, velocity)
            if not half.requires_grad:
                return torch.zeros_like(z[items][:, 0]).double()
            force, momentum = torch.autograd.grad(
                half.sum(), (point, velocity), materialize_grads=True
            )
            whole = momentum.double().reshape(-1, len(t), self.dim)
            whole = whole - (1.0 - t)[:, None] * force.double().reshape(whole.shape)
            return torch.einsum("q,bqd->bd", weights, whole)

        momentum = torch.cat(self.budget.run(chunk, z.shape[0], 3 * len(t)))
        start = curve.control_points[:, 0].double()
        if self.metric.quadratic_cost == "forward":
            evaluations.forward.add_(len(t))
            evaluations.backward.add_(len(t))
        else:
            evaluations.jvp.add_(3 * len(t))
        evaluations.forward.add_(self.metric.tensor_rows(self.dim))
        return solve_metric(self.tensors(start), momentum)


def solve_metric(tensors: Tensor, covectors: Tensor) -> Tensor:
    """Return G^-1 p for (n, d, d) and (n, d); NaN where G is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(tensors)
    vectors = torch.cholesky_solve(covectors[:, :, None], factor)[:, :, 0]
    return torch.where((info == 0)[:, None], vectors, torch.nan)
