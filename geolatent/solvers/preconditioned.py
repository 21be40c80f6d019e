"""The default solver: preconditioned L-BFGS on the path energy, coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from geolatent.checks import check_integer, check_number, describe, requirement
from geolatent.curves import basis_matrix, refine
from geolatent.quadrature import composite_rule
from geolatent.solution import Status
from geolatent.solvers.lbfgs import LBFGS, LBFGSState, Preconditioner
from geolatent.solvers.problem import Outcome, Problem, Solver

# up to this size, (n - 2) d, a level's preconditioner is a dense matrix for each pair
_DENSE_SIZE = 600
# of the mean eigenvalue of the metric, added to its diagonal in the preconditioner
_RIDGE = 0.1
# predictions are scaled up or down by what levels really gained, by this factor at most
_LARGEST_RATIO = 32.0
# steps on one level after which little gain means that there is little
_FAIR_STEPS = 20
# steps after which the minimiser's memory is trusted to know the directions that are nearly flat,
# where no Hessians tell of them
_LEAST_STEPS = 2
# a level that took more steps, or gained more than this times what was promised, found a valley
# that is nearly flat in some direction
_MANY_STEPS, _ROUGH_RATIO = 4, 1.5
# of the tolerance: so little left is taken for nothing
_NOTHING = 1e-3


def sobolev_preconditioner(knots: Tensor, n_control_points: int, tensors: Tensor) -> Preconditioner:
    """Factor H_(i,j) = integral of B_i' B_j' G(gamma) over the free control points.

    G is interpolated linearly between M points, the middles of M equal intervals of [0, 1], and
    gets a tenth of its mean eigenvalue on the diagonal: in directions that it hardly sees, the
    metric changes long before a step that trusts it would end. Where H would be large, G is
    replaced by its mean over the curve, so that H is the Kronecker product of the B-splines'
    stiffness matrix and a d x d matrix.

    Parameters
    ----------
    knots, n_control_points
        Of the curves.
    tensors
        G at the M points of every curve, (A, M, d, d).
    """
    n = n_control_points
    a, m, d, _ = tensors.shape
    tensors = tensors.double()
    scale = _RIDGE * tensors.diagonal(dim1=2, dim2=3).mean((1, 2))
    eye = torch.eye(d, dtype=tensors.dtype, device=tensors.device)
    tensors = tensors + scale[:, None, None, None] * eye
    kinks = torch.arange(1, 2 * m, dtype=knots.dtype, device=knots.device) / (2 * m)
    t, weights = composite_rule(torch.cat([knots, kinks]), 3)
    slopes = basis_matrix(knots, t, derivative=1)[:, 1:-1]
    if (n - 2) * d > _DENSE_SIZE:
        stiffness = torch.einsum("q,qi,qj->ij", weights, slopes, slopes)
        return Preconditioner.kronecker(stiffness, tensors.mean(1))
    places = torch.arange(m, dtype=t.dtype, device=t.device)
    hats = (1.0 - (t[:, None] * m - 0.5 - places).abs()).clamp_min(0.0)
    hats = hats / hats.sum(1, keepdim=True)  # constant before the first and after the last point
    stiffness = torch.einsum("qm,qi,qj->mij", hats * weights[:, None], slopes, slopes)
    matrix = torch.einsum("mij,amkl->aikjl", stiffness, tensors)
    return Preconditioner.dense(matrix.reshape(a, (n - 2) * d, (n - 2) * d))


@dataclass(frozen=True)
class PreconditionedSolver(Solver):
    """Metric-preconditioned L-BFGS on the path energy, coarse to fine. The default.

    Every level halves the knot spans of the one before. It begins with the certificate: at the
    unchanged curve in the richer spline space the Newton decrement g^T H^-1 g / (4 E) predicts a
    relative improvement, times what the last level gained over what had been predicted of it; what
    only the steps of that level tell of is added. A pair is done where that is at most
    ``tolerance``. Where it is so at the first level, or after one that was not convex, two steps of
    the minimiser put it to the proof: what they gain, and what is predicted after them, must be at
    most ``tolerance`` too.

    Parameters
    ----------
    tolerance
        Predicted relative improvement in length at which a pair has converged.
    first_control_points
        Control points of the first level; a starting curve with more begins with its own.
    max_control_points
        Largest number of control points of a returned curve.
    nodes_per_span, max_nodes
        Decoder rows per knot span in the discrete energy; where that makes more than ``max_nodes``
        on a curve, fewer, but two at least. By default two, or three where Hessians come with the
        energy (up to three dimensions).
    metric_points
        Metric tensors per curve for the preconditioner of the first levels; the levels after them
        keep the last ones. Unused where Gauss-Newton Hessians come with the energy.
    level_reduction
        A level is left when the predicted improvement has fallen by this factor.
    max_iterations
        Minimiser steps for each pair, all levels together.
    minimizer
        Settings of the minimiser.

    Raises
    ------
    TypeError, ValueError
        Where a setting is out of its range.
    """

    tolerance: float = 1e-4
    first_control_points: int = 7
    max_control_points: int = 67
    nodes_per_span: int | None = None
    max_nodes: int = 32
    metric_points: tuple[int, ...] = (4, 6)
    level_reduction: float = 0.05
    max_iterations: int = 200
    minimizer: LBFGS = field(default_factory=LBFGS)

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, above=0.0)
        check_integer("first_control_points", self.first_control_points, minimum=5)
        check_integer(
            "max_control_points", self.max_control_points, minimum=self.first_control_points
        )
        if self.nodes_per_span is not None:
            check_integer("nodes_per_span", self.nodes_per_span, minimum=2)
        check_integer("max_nodes", self.max_nodes, minimum=2)
        if not self.metric_points:
            raise ValueError(requirement("metric_points", "at least one number", "()"))
        for number in self.metric_points:
            check_integer("metric_points", number)
        check_number("level_reduction", self.level_reduction, above=0.0, at_most=1.0)
        check_integer("max_iterations", self.max_iterations)
        if not isinstance(self.minimizer, LBFGS):
            raise TypeError(requirement("minimizer", "an LBFGS", describe(self.minimizer)))

    def pair_bytes(self, dim: int) -> int:
        """Return the memory one pair takes: matrices, their factors, what makes them, history."""
        size = (self.max_control_points - 2) * dim
        dense = max(dim, min(size, _DENSE_SIZE))
        return 8 * (6 * dense**2 + 2 * self.minimizer.history * size)

    def shorten(self, problem: Problem) -> Outcome:
        """Run the levels until every pair has converged or run out of means."""
        outcome = Outcome.start(problem)
        active = torch.arange(problem.control_points.shape[0], device=problem.control_points.device)
        n = max(problem.control_points.shape[1], self.first_control_points)
        tensors = None
        turn = 0
        while active.numel():
            knots, matrix = refine(outcome.knots, n)
            points = matrix @ outcome.control_points[active]
            if not problem.has_gauss_newton and turn < len(self.metric_points):
                tensors = problem.metric_tensors(knots, points, active, self.metric_points[turn])
            level = Level(self, problem, knots, points, active, tensors, outcome.flat[active])
            final = n > self.max_control_points
            going = level.certify(outcome, final)
            last = next_level(n) > self.max_control_points
            going = level.run(outcome, going, last=last, final=final)
            active = active[going]
            tensors = None if tensors is None else tensors[going]
            n = next_level(n)
            turn += 1
        return outcome


def next_level(n_control_points: int) -> int:
    """Return the number of control points after every knot span is halved."""
    return 2 * n_control_points - 3


class Level:
    """One level of the coarse-to-fine solve: the active pairs on one knot vector."""

    def __init__(
        self,
        solver: PreconditionedSolver,
        problem: Problem,
        knots: Tensor,
        points: Tensor,
        active: Tensor,
        tensors: Tensor | None,
        flat: Tensor | None = None,
    ) -> None:
        self.solver = solver
        self.problem = problem
        self.active = active
        self.points = points
        spans = knots.unique().numel() - 1
        wanted = solver.nodes_per_span or (3 if problem.has_gauss_newton else 2)
        per_span = max(2, min(wanted, -(-solver.max_nodes // spans)))
        self.energy = problem.energy(knots, per_span)
        everyone = torch.arange(active.numel(), device=points.device)
        x = points[:, 1:-1].flatten(1)
        self.flat = flat
        self.residual: Tensor | None = None
        self.convex = torch.ones_like(active, dtype=torch.bool)
        if problem.has_gauss_newton and flat is not None and flat.any():
            value, gradient, hessian = self._with_residual(x, flat)
        else:
            value, gradient, hessian = self.objective(x, everyone)
        if hessian is None:
            if tensors is None:
                raise RuntimeError("a level needs the Hessians of its energy, or metric tensors")
            preconditioner = sobolev_preconditioner(knots, points.shape[1], tensors)
        else:
            preconditioner = Preconditioner.dense(hessian)
        self.state = solver.minimizer.init(x, value, gradient, preconditioner)

    def _with_residual(self, x: Tensor, flat: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Evaluate the curves as they came; for the pairs marked, all of the Hessian."""
        a, n, d = self.points.shape
        value, gradient = x.new_empty(a), torch.empty_like(x)
        hessian = x.new_empty((a, (n - 2) * d, (n - 2) * d))
        self.residual = torch.zeros_like(hessian)
        rest, chosen = (~flat).nonzero().squeeze(1), flat.nonzero().squeeze(1)
        if rest.numel():
            value[rest], gradient[rest], hessian[rest] = self.objective(x[rest], rest)  # type: ignore[assignment]
        pairs = self.active[chosen]
        found = self.energy.with_residual(self.points[chosen], pairs)
        self.energy.count(self.problem.evaluations, pairs, residual=True)
        value[chosen], gradient[chosen] = found[0], found[1][:, 1:-1].flatten(1)
        self.residual[chosen] = found[3][:, d:-d, d:-d]
        whole, convex = self._add_residual(found[2][:, d:-d, d:-d], chosen)
        hessian[chosen], self.convex[chosen] = whole, convex
        return value, gradient, hessian

    def objective(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return energies and derivatives by free control points (A, m) of the level's pairs."""
        ends = self.points[index]
        inner = x.reshape(-1, ends.shape[1] - 2, ends.shape[2])
        curve = torch.cat([ends[:, :1], inner, ends[:, -1:]], dim=1)
        pairs = self.active[index]
        value, gradient, hessian = self.energy(curve, pairs)
        self.energy.count(self.problem.evaluations, pairs)
        d = curve.shape[2]
        if hessian is not None:
            hessian = self._add_residual(hessian[:, d:-d, d:-d], index)[0]
        return value, gradient[:, 1:-1].flatten(1), hessian

    def _add_residual(self, hessian: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Add the residual to the marked pairs' Hessians where the sum is positive definite.

        Returns the Hessians, and where that was so; the others stay as they are.
        """
        convex = torch.ones_like(index, dtype=torch.bool)
        if self.residual is None or self.flat is None:
            return hessian, convex
        # the others' would be factored for nothing
        chosen = self.flat[index].nonzero().squeeze(1)
        whole = hessian[chosen] + self.residual[index[chosen]]
        bad = ~whole.isfinite().flatten(1).all(1)
        whole = torch.where(bad[:, None, None], hessian[chosen], whole)
        convex[chosen] = (torch.linalg.cholesky_ex(whole)[1] == 0) & ~bad
        added = convex[chosen][:, None, None]
        return hessian.index_copy(0, chosen, torch.where(added, whole, hessian[chosen])), convex

    def certify(self, outcome: Outcome, final: bool) -> Tensor:
        """Judge the curves as they came, in this level's spline space; return who goes on.

        Those who do not and have no status of failure are to be put to the proof.
        """
        active = self.active
        predicted = _relative_decrease(self.state) * outcome.gain_ratio[active]
        predicted = predicted + outcome.unseen[active]
        outcome.predicted_improvement[active] = predicted
        first = outcome.predicted_at_start[active]
        outcome.predicted_at_start[active] = torch.where(first.isnan(), predicted, first)
        finite = self.state.value.isfinite() & self.state.gradient.isfinite().all(1)
        converged = finite & self.convex & (predicted <= self.solver.tolerance)
        exhausted = outcome.iterations[active] >= self.solver.max_iterations
        status = outcome.status[active]
        if final:
            stalled = status == Status.STALLED
            status = torch.where(stalled, status, int(Status.MAX_CONTROL_POINTS))
        status = torch.where(exhausted, int(Status.MAX_ITERATIONS), status)
        status = torch.where(converged, int(Status.CONVERGED), status)
        status = torch.where(finite, status, int(Status.NON_FINITE))
        outcome.status[active] = status
        return finite & ~converged & ~exhausted & (not final)

    def run(self, outcome: Outcome, going: Tensor, *, last: bool, final: bool = False) -> Tensor:
        """Minimise until the level's goal; put certificates to the proof on the way.

        Returns who goes on to the next level.
        """
        solver, minimizer = self.solver, self.solver.minimizer
        converged = outcome.status[self.active] == Status.CONVERGED
        probed = converged & ~outcome.trusted[self.active]
        going = going.clone()
        state = self.state.select(going | probed)
        promised = _relative_decrease(self.state)
        n_working = state.index.numel()
        floor = 0.5 * solver.tolerance
        goal = torch.full_like(self.state.value, floor)
        if not last:
            goal = (solver.level_reduction * promised).clamp_min(floor)
        iteration = 0
        while state.index.numel():
            state = minimizer.step(state, self.objective)
            iteration += 1
            index = state.index
            pairs = self.active[index]
            outcome.iterations[pairs] += (~probed[index]).long()
            predicted = _relative_decrease(state)
            gained = 0.5 * (self.state.value[index] / state.value - 1.0)
            stalled = minimizer.stalled(state)
            spent = outcome.iterations[pairs] >= solver.max_iterations

            judged = probed[index] & ((iteration >= _LEAST_STEPS) | stalled | spent)
            left = gained + predicted
            # in what little is left rounding may look like anything
            convex = state.convex | (left <= _NOTHING * solver.tolerance)
            proved = judged & convex & (left <= solver.tolerance)
            refuted = judged & ~proved
            outcome.predicted_improvement[pairs[judged]] = left[judged]
            if final:
                outcome.status[pairs[refuted]] = int(Status.MAX_CONTROL_POINTS)
            else:
                going[index[refuted]] = True
            probed[index[refuted]] = False

            enough = self.problem.has_gauss_newton or iteration >= _LEAST_STEPS
            reached = ~probed[index] & enough & (predicted <= goal[index])
            leaving = going[index] & (reached | stalled | spent)
            if leaving.any():
                # a level that had many steps and has not come to its goal shows what is to be had
                exhausted = stalled | (spent & (iteration >= _FAIR_STEPS))
                ratio = _gain_ratio(gained, promised[index], predicted, exhausted)
                end = torch.where(
                    stalled & ~reached, int(Status.STALLED), int(Status.MAX_ITERATIONS)
                )
                left_level = state.select(leaving)
                self._store(outcome, left_level, end[leaving], ratio[leaving], iteration)
            state = state.select(~(leaving | proved | (refuted & final)))
            if not final:
                # half of the pairs that leave the level may come back on the next one
                n_pairs = self.problem.control_points.shape[0]
                settled = n_pairs - n_working + (n_working - state.index.numel()) // 2
                self.problem.report(settled, self.points.shape[1], iteration)
        return going

    def _store(
        self, outcome: Outcome, state: LBFGSState, status: Tensor, ratio: Tensor, steps: int
    ) -> None:
        """Store the curves of pairs that leave the level, and what it tells of their next one."""
        pairs = self.active[state.index]
        outcome.refine(self.points.shape[1])
        inner = state.x.reshape(pairs.numel(), -1, self.points.shape[2])
        outcome.control_points[pairs, 1:-1] = inner
        outcome.n_control_points[pairs] = self.points.shape[1]
        outcome.status[pairs] = status
        outcome.gain_ratio[pairs] = ratio
        # at the first level curves have far to go, and predictions are rough
        trusted = outcome.trusted[pairs]
        many = torch.where(trusted, _MANY_STEPS, 2 * _MANY_STEPS)
        outcome.flat[pairs] |= (trusted & (ratio > _ROUGH_RATIO)) | (many < steps)
        unseen = 0.25 * (-state.slope - state.newton_decrement) / state.value
        outcome.unseen[pairs] = unseen.clamp_min(0.0)
        outcome.trusted[pairs] = self.convex[state.index] & state.convex


def _gain_ratio(gained: Tensor, promised: Tensor, left: Tensor, exhausted: Tensor) -> Tensor:
    """Return what a level gained over what it was predicted to gain, by which predictions scale.

    A preconditioner that is too stiff promises too little, again and again: its next prediction is
    raised by the same ratio. Where the gradient jumps, as on decoders with kinks, it promises what
    nobody can have: a pair that found no way down any more, or many steps that came to little,
    scales its prediction down. Short of that a level may have ended early, and nothing is scaled
    down.
    """
    fulfilled = torch.where(exhausted, promised, promised - left)
    ratio = torch.where(fulfilled > 0, gained / fulfilled, 1.0).nan_to_num(1.0)
    least = torch.where(exhausted, 1.0 / _LARGEST_RATIO, 1.0)
    return torch.maximum(ratio, least).clamp_max(_LARGEST_RATIO)


def _relative_decrease(state: LBFGSState) -> Tensor:
    """Turn a predicted decrease of the energy into one of the length: dL / L = dE / (2 E)."""
    decrease = state.predicted_decrease
    return torch.where(decrease > 0, decrease / (2.0 * state.value), 0.0)
