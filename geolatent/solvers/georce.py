"""GEORCE: geodesics as polylines, by a control problem solved in closed form at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.checks import check_integer, check_number
from geolatent.curves import basis_matrix
from geolatent.metrics.base import negative
from geolatent.solution import Status
from geolatent.solvers.problem import Outcome, Problem, Solver


@dataclass(frozen=True)
class GEORCESolver(Solver):
    """GEORCE (Rygaard and Hauberg 2025), batched, for polylines of T segments.

    Minimises E = sum_t u_t^T G(z_t) u_t over the steps u_t = z_{t+1} - z_t. With the tensors
    G_t = G(z_t) and the slopes nu_t = grad_z u_t^T G(z) u_t of the present curve held, the best
    steps that lead from a to b are known in closed form,

        mu = (sum_t G_t^-1)^-1 (2 (a - b) - sum_t G_t^-1 sum_{j>t} nu_j),
        u_t = -1/2 G_t^-1 (mu + sum_{j>t} nu_j);

    the curve moves towards them as far as backtracking allows, each pair by itself. This is a
    second solver, to compare with: it asks for T metric tensors in every iteration.

    Parameters
    ----------
    segments
        Number of segments, T.
    tolerance
        Predicted relative improvement in length, among polylines, at which a pair has converged.
    max_iterations
        Steps for each pair.
    max_halvings
        Shorter trials in one step; a pair that needs more has stalled.

    Raises
    ------
    TypeError, ValueError
        Where a setting is out of its range.

    References
    ----------
    Rygaard, Hauberg, "GEORCE: A Fast New Control Algorithm for Computing Geodesics", 2025,
    https://arxiv.org/abs/2505.05961, algorithm 1.
    """

    segments: int = 100
    tolerance: float = 3e-4
    max_iterations: int = 100
    max_halvings: int = 20

    def __post_init__(self) -> None:
        check_integer("segments", self.segments, minimum=2)
        check_number("tolerance", self.tolerance, above=0.0)
        check_integer("max_iterations", self.max_iterations)
        check_integer("max_halvings", self.max_halvings)

    def shorten(self, problem: Problem) -> Outcome:
        """Iterate until every pair has converged, stalled or used up its iterations."""
        n_segments = self.segments
        device = problem.control_points.device
        t = torch.linspace(0.0, 1.0, n_segments + 1, dtype=torch.float64, device=device)
        z = basis_matrix(problem.knots, t) @ problem.control_points
        b = z.shape[0]
        outcome = Outcome.start(problem)
        outcome.n_control_points[:] = 3 * n_segments + 1
        active = torch.arange(b, device=device)
        energy = self._energy(problem, z, active)
        bad = ~energy.isfinite()
        outcome.status[bad] = int(Status.NON_FINITE)
        active = active[~bad]
        while active.numel():
            proposal, decrement = self._proposal(problem, z[active], active)
            predicted = decrement / (4.0 * energy[active])
            outcome.predicted_improvement[active] = predicted
            done = predicted <= self.tolerance
            failed = ~predicted.isfinite()
            spent = outcome.iterations[active] >= self.max_iterations
            status = torch.where(spent, int(Status.MAX_ITERATIONS), outcome.status[active])
            status = torch.where(done, int(Status.CONVERGED), status)
            outcome.status[active] = torch.where(failed, int(Status.NON_FINITE), status)
            going = ~(done | failed | spent)
            active, proposal, decrement = active[going], proposal[going], decrement[going]
            if not active.numel():
                break
            outcome.iterations[active] += 1
            moved = self._line_search(problem, z, energy, active, proposal, decrement)
            outcome.status[active[~moved]] = int(Status.STALLED)
            active = active[moved]
            taken = int(outcome.iterations.max())
            problem.report(b - active.numel(), 3 * n_segments + 1, taken)
        outcome.knots, outcome.control_points = polyline(t, z)
        return outcome

    def _energy(self, problem: Problem, z: Tensor, pairs: Tensor) -> Tensor:
        """Return sum_t u_t^T G(z_t) u_t of polylines (A, T + 1, d), and count it."""
        start, steps = z[:, :-1], z.diff(dim=1)
        a, n, d = steps.shape

        def chunk(items: slice) -> Tensor:
            points = start[items].reshape(-1, d).to(problem.dtype)
            with torch.no_grad():
                squares = problem.metric._quadratic(
                    points, steps[items].reshape(-1, d).to(problem.dtype)
                )
            squares = squares.reshape(-1, n)
            bad = negative(squares)
            problem.inadmissible[pairs[items]] |= bad
            return torch.where(bad, torch.inf, squares.double().sum(1))

        spent = problem.evaluations
        counts = spent.jvp if problem.metric.quadratic_cost == "jvp" else spent.forward
        counts[pairs] += n
        return torch.cat(problem.budget.run(chunk, a, n))

    def _slopes(self, problem: Problem, z: Tensor, pairs: Tensor) -> Tensor:
        """Return grad_z u_t^T G(z) u_t at all points but the last, (A, T, d), and count it."""
        start, steps = z[:, :-1], z.diff(dim=1)
        a, n, d = steps.shape

        def chunk(items: slice) -> Tensor:
            points = start[items].reshape(-1, d).to(problem.dtype).requires_grad_()
            with torch.enable_grad():
                squares = problem.metric._quadratic(
                    points, steps[items].reshape(-1, d).to(problem.dtype)
                )
            if not squares.requires_grad:  # a constant metric
                return torch.zeros_like(points).double().reshape(-1, n, d)
            (slope,) = torch.autograd.grad(squares.sum(), points, materialize_grads=True)
            return slope.double().reshape(-1, n, d)

        spent = problem.evaluations
        if problem.metric.quadratic_cost == "jvp":
            spent.jvp[pairs] += 3 * n
        else:
            spent.forward[pairs] += n
            spent.backward[pairs] += n
        return torch.cat(problem.budget.run(chunk, a, n))

    def _proposal(self, problem: Problem, z: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best polylines with tensors and slopes held, and the Newton decrement."""
        d = z.shape[2]
        start, end = z[:, 0], z[:, -1]
        tensors = problem.tensors_at(z[:, :-1].to(problem.dtype), pairs)
        problem.evaluations.forward[pairs] += self.segments * problem.metric.tensor_rows(d)
        tensors = tensors.double()
        eye = torch.eye(d, dtype=tensors.dtype, device=tensors.device)
        scale = tensors.diagonal(dim1=2, dim2=3).mean((1, 2)).clamp_min(1e-300)
        # a decoder that ignores a direction has a singular G there
        inverses = torch.linalg.inv_ex(tensors + (1e-9 * scale)[:, None, None, None] * eye)[0]
        slopes = self._slopes(problem, z, pairs)
        later = slopes.flip(1).cumsum(1).flip(1) - slopes  # sum over j > t
        pulled = (inverses @ later.unsqueeze(3)).squeeze(3)
        right = 2.0 * (start - end) - pulled.sum(1)
        mu = torch.linalg.solve_ex(inverses.sum(1), right)[0]
        steps = -0.5 * ((inverses @ mu[:, None, :, None]).squeeze(3) + pulled)
        proposal = torch.cat([start[:, None], start[:, None] + steps.cumsum(1)], dim=1)
        proposal[:, -1] = end  # the sum of the steps rounds
        # dE in the direction of the proposal: -1 times the decrement of the held model
        moves = proposal - z
        forces = 2.0 * torch.einsum("atij,atj->ati", tensors, z.diff(dim=1))
        by_point = slopes[:, 1:] + forces[:, :-1] - forces[:, 1:]
        return proposal, -(by_point * moves[:, 1:-1]).sum((1, 2))

    def _line_search(
        self,
        problem: Problem,
        z: Tensor,
        energy: Tensor,
        active: Tensor,
        proposal: Tensor,
        decrement: Tensor,
    ) -> Tensor:
        """Move ``z`` and ``energy`` of the active pairs in place; return which of them moved."""
        moved = torch.zeros_like(active, dtype=torch.bool)
        trying = torch.arange(active.numel(), device=active.device)
        step = 1.0
        for _ in range(self.max_halvings + 1):
            pairs = active[trying]
            trial = torch.lerp(z[pairs], proposal[trying], step)
            value = self._energy(problem, trial, pairs)
            accepted = value <= energy[pairs] - 1e-4 * step * decrement[trying]
            z[pairs[accepted]] = trial[accepted]
            energy[pairs[accepted]] = value[accepted]
            moved[trying[accepted]] = True
            trying = trying[~accepted]
            if not trying.numel():
                break
            step *= 0.5
        return moved


def polyline(t: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return polylines (B, T + 1, d) with breaks at t as cubic splines with triple knots.

    Returns
    -------
    tuple[Tensor, Tensor]
        Knots (3 T + 5,) and control points (B, 3 T + 1, d).
    """
    knots = torch.cat([t[:1], t.repeat_interleave(3), t[-1:]])
    thirds = torch.arange(3, dtype=points.dtype, device=points.device)[:, None] / 3.0
    inner = points[:, :-1, None] + thirds * points.diff(dim=1)[:, :, None]
    return knots, torch.cat([inner.flatten(1, 2), points[:, -1:]], dim=1)
