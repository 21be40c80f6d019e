"""GEORCE: geodesics as polylines, by a control problem solved in closed form at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.checks import check_integer, check_number
from geolatent.curves import basis_matrix
from geolatent.metrics.base import negative
from geolatent.solution import Status
from geolatent.solvers.problem import Outcome, Problem, Solver, Stage
from geolatent.transfers import places, sent


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

    def stages(self, problem: Problem, outcome: Outcome) -> Iterator[Stage]:
        """Iterate until every pair has converged, stalled or used up its iterations."""
        yield _Polylines(self, problem, outcome)


class _Polylines(Stage):
    """Polylines with the same breaks, each moved until it has ended."""

    def __init__(self, solver: GEORCESolver, problem: Problem, outcome: Outcome) -> None:
        self.solver = solver
        self.problem = problem
        self.outcome = outcome
        points = problem.control_points
        knots = problem.knots
        self.t = torch.linspace(
            0.0, 1.0, solver.segments + 1, dtype=torch.float64, device=knots.device
        )
        self.z = sent(basis_matrix(knots, self.t), points) @ points
        self.n_control_points = 3 * solver.segments + 1
        outcome.n_control_points[:] = self.n_control_points
        outcome.knots, outcome.control_points = polyline(self.t, self.z)
        every = outcome.pairs
        self.energy = self._energies(self.z, every)
        outcome.end(every, Status.NON_FINITE, ~self.energy.isfinite())
        self._open = outcome.pairs

    @property
    def open(self) -> Tensor:  # type: ignore[override]
        """The pairs that have not ended."""
        return self._open

    def settled(self, n_pairs: int, n_begun: int) -> float:  # noqa: ARG002
        """Return how many pairs have ended."""
        return n_pairs - self.open.numel()

    def step(self) -> None:
        """Move every polyline towards the best one with tensors and slopes held."""
        outcome, pairs = self.outcome, self.open
        proposal, decrement = self._proposal(pairs)
        predicted = decrement / (4.0 * self.energy[pairs])
        outcome.predicted_improvement[pairs] = predicted
        spent = outcome.iterations[pairs] >= self.solver.max_iterations
        outcome.end(pairs, Status.MAX_ITERATIONS, spent)
        outcome.end(pairs, Status.CONVERGED, predicted <= self.solver.tolerance)
        outcome.end(pairs, Status.NON_FINITE, ~predicted.isfinite())
        (going,) = places(outcome.going[pairs])
        pairs = pairs[going]
        outcome.iterations[pairs] += 1
        moved = self._line_search(pairs, proposal[going], decrement[going])
        outcome.end(pairs, Status.STALLED, ~moved)
        outcome.control_points[pairs] = polyline(self.t, self.z[pairs])[1]
        self._open = pairs[places(moved)[0]]

    def _energies(self, z: Tensor, pairs: Tensor) -> Tensor:
        """Return sum_t u_t^T G(z_t) u_t of polylines (A, T + 1, d)."""
        squares = self.problem.rows.quadratic(z[:, :-1], z.diff(dim=1), pairs)
        bad = negative(squares)
        self.outcome.inadmissible[pairs] |= bad
        return torch.where(bad, torch.inf, squares.double().sum(1))

    def _proposal(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best polylines with tensors and slopes held, and the Newton decrement."""
        z = self.z[pairs]
        start, end, d = z[:, 0], z[:, -1], z.shape[2]
        tensors = self.problem.tensors(self.outcome, z[:, :-1], pairs).double()
        eye = torch.eye(d, dtype=tensors.dtype, device=tensors.device)
        scale = tensors.diagonal(dim1=2, dim2=3).mean((1, 2)).clamp_min(1e-300)
        # a decoder that ignores a direction has a singular G there
        inverses = torch.linalg.inv_ex(tensors + (1e-9 * scale)[:, None, None, None] * eye)[0]
        slopes = self.problem.rows.slopes(z[:, :-1], z.diff(dim=1), pairs)[1].double()
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

    def _line_search(self, pairs: Tensor, proposal: Tensor, decrement: Tensor) -> Tensor:
        """Move polylines as far as that lowers their energies; return which of them moved."""
        moved = torch.zeros_like(pairs, dtype=torch.bool)
        trying = torch.arange(pairs.numel(), device=pairs.device)
        step = 1.0
        for _ in range(self.solver.max_halvings + 1):
            if not trying.numel():
                break
            tried = pairs[trying]
            trial = torch.lerp(self.z[tried], proposal[trying], step)
            value = self._energies(trial, tried)
            accepted = value <= self.energy[tried] - 1e-4 * step * decrement[trying]
            self.z[tried] = torch.where(accepted[:, None, None], trial, self.z[tried])
            self.energy[tried] = torch.where(accepted, value, self.energy[tried])
            moved[trying] = accepted
            trying = trying[places(~accepted)[0]]
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
