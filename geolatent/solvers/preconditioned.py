"""The default solver: preconditioned L-BFGS on the path energy, coarse to fine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geolatent.checks import check_integer, check_number, describe, requirement
from geolatent.curves import refine
from geolatent.solution import Status
from geolatent.solvers.certificate import (
    DENSE_SIZE,
    LEAST_STEPS,
    TENSOR_DIM,
    Certificate,
    MetricSketch,
    MetricTensors,
    Proof,
    certificate,
    gained,
    metric_model,
    next_level,
    relative_decrease,
    stiffness_matrix,
)
from geolatent.solvers.lbfgs import LBFGS, DensePreconditioner, LBFGSState, Memory
from geolatent.solvers.problem import Outcome, Problem, Solver, Stage
from geolatent.transfers import places, sent

# control points of the first level, and where the metric is sketched
_FIRST_CONTROL_POINTS, _FIRST_SKETCHED = 7, 5
# predictions are scaled up or down by what levels really gained, by this factor at most
_LARGEST_RATIO = 32.0
# steps on one level after which little gain means that there is little
_FAIR_STEPS = 20
# steps after which a level's preconditioner is renewed where there are kinks, and the level left
_RENEWED, _ROUGH_STEPS = 8, 16
# of the predicted improvement: a level is left there at the latest where so much of it remains
_ROUGH_REDUCTION = 0.1
# chords that converge with a lower order cross kinks; so many of them can tell: in up to three
# dimensions, where levels are cheap, more
_SMOOTH_ORDER, _TELLING_CHORDS, _TELLING_CHORDS_IN_FEW = 1.35, 16, 96
# so many allow to end for it, where they converge at all: what a level gained whose chords miss
# more than the ones before tells nothing of what is left
_ENDING_CHORDS, _RESOLVED_ORDER = 32, 0.0
# where the metric is sketched every level is dear, and its steps are many and small: where there
# are kinks a level is left after so many, as many chords may end as tell, and about what the last
# level gained is left
_SKETCHED_STEPS, _SKETCHED_LEFT = 10, 1.0
# and of fewer chords than these the order must be lower
_KINKED_ORDER = 0.7
# predicted to be left where a pair ends for kinks, in units of what its last level gained
_ROUGH_LEFT = 2.5
# a level that took more steps, or gained more than this times what was promised, found a valley
# that is nearly flat in some direction
_MANY_STEPS, _ROUGH_RATIO = 4, 1.5


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

    A decoder with kinks (ReLU) shows by its chords, whose lengths converge with the first order in
    the distance of nodes instead of the second. There every level gains about half of what the one
    before gained, and the tolerance may be out of reach at any price. A pair that has met kinks
    takes Gauss-Newton Hessians, d rows a node, at the beginning of its levels and on the way, and
    ends with the status ``ROUGH`` where a level gained at most ``rough_tolerance``; twice that gain
    is what is predicted to be left.

    Parameters
    ----------
    tolerance
        Predicted relative improvement in length at which a pair has converged.
    first_control_points
        Control points of the first level; a starting curve with more begins with its own. By
        default 7, or 5 in more than 64 dimensions.
    max_control_points
        Largest number of control points of a returned curve.
    nodes_per_span, max_nodes
        Decoder rows per knot span in the discrete energy; where that makes more than ``max_nodes``
        on a curve, fewer, but two at least. By default two, or three where Hessians come with the
        energy (up to three dimensions).
    metric_points
        Metric tensors per curve for the preconditioner of the first levels; the levels after them
        keep the last ones. Unused where Gauss-Newton Hessians come with the energy. In more than 64
        dimensions eight products with the metric in the middle of the curve take their place, and
        nothing of the size d x d is formed.
    rough_tolerance
        Relative gain in length of a level after which a pair that has met kinks ends; 0 goes on to
        the largest number of control points.
    level_reduction
        A level is left when the predicted improvement has fallen by this factor.
    max_iterations
        Minimiser steps for each pair, all levels together.
    minimizer
        Settings of the minimiser.
    """

    tolerance: float = 1e-4
    first_control_points: int | None = None
    max_control_points: int = 67
    nodes_per_span: int | None = None
    max_nodes: int = 32
    metric_points: tuple[int, ...] = (4, 6)
    rough_tolerance: float = 0.025
    level_reduction: float = 0.05
    max_iterations: int = 200
    minimizer: LBFGS = field(default_factory=LBFGS)

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, above=0.0)
        if self.first_control_points is not None:
            check_integer("first_control_points", self.first_control_points, minimum=5)
        least = self.first_control_points or _FIRST_CONTROL_POINTS
        check_integer("max_control_points", self.max_control_points, minimum=least)
        if self.nodes_per_span is not None:
            check_integer("nodes_per_span", self.nodes_per_span, minimum=2)
        check_integer("max_nodes", self.max_nodes, minimum=2)
        if not self.metric_points:
            raise ValueError(requirement("metric_points", "at least one number", "()"))
        for number in self.metric_points:
            check_integer("metric_points", number)
        check_number("rough_tolerance", self.rough_tolerance, at_least=0.0)
        check_number("level_reduction", self.level_reduction, above=0.0, at_most=1.0)
        check_integer("max_iterations", self.max_iterations)
        if not isinstance(self.minimizer, LBFGS):
            raise TypeError(requirement("minimizer", "an LBFGS", describe(self.minimizer)))

    def pair_bytes(self, dim: int) -> int:
        """Return the memory one pair takes: matrices, their factors, what makes them, history."""
        size = (self.max_control_points - 2) * dim
        history = 4 * self.minimizer.history * size  # of a level and of the one before
        dense = 0 if dim > TENSOR_DIM else max(dim, min(size, DENSE_SIZE))
        return 8 * (6 * dense**2 + history)

    def stages(self, problem: Problem, outcome: Outcome) -> Iterator[Stage]:
        """Run the levels until every pair has converged or run out of means."""
        lessons = _Lessons.none(outcome)
        _, n, d = problem.control_points.shape
        few = _FIRST_SKETCHED if d > TENSOR_DIM else _FIRST_CONTROL_POINTS
        n = max(n, self.first_control_points or few)
        model: MetricTensors | MetricSketch | None = None
        memory: Memory | None = None
        turn = 0
        pairs = outcome.pairs
        while pairs.numel():
            knots, matrix = refine(outcome.knots, n)
            points = sent(matrix, outcome.control_points) @ outcome.control_points[pairs]
            if memory is not None:
                memory = _refined(memory, outcome.knots, knots, matrix)
            if self._wants_model(problem, model, turn):
                m = self.metric_points[turn]
                model = metric_model(problem, outcome, knots, points, pairs, m)
            spans = knots.unique().numel() - 1
            wanted = self.nodes_per_span or (3 if problem.has_gauss_newton else 2)
            per_span = max(2, min(wanted, -(-self.max_nodes // spans)))
            energy = problem.energy(outcome, knots, per_span, points, pairs)
            found = certificate(
                energy,
                knots,
                flat=lessons.flat[pairs],
                rough=lessons.rough[pairs],
                model=model,
                minimizer=self.minimizer,
                memory=memory,
            )
            final = n > self.max_control_points
            converged, going = self._judge(outcome, lessons, found, final=final)
            probed, begun = places(converged & ~lessons.trusted[pairs], going)
            yield (proof := Proof(outcome, found, probed, self.tolerance))
            if final:
                outcome.end(proof.refuted_pairs, Status.MAX_CONTROL_POINTS)
                return
            outcome.going[pairs] = going
            last = next_level(n) > self.max_control_points
            yield (descent := _Descent(self, outcome, lessons, found, begun, proof, last=last))
            (left,) = places(outcome.going[pairs])
            pairs = pairs[left]
            model = None if model is None else model.select(left)
            # where more than a sketch is known, what was learned against the last matrix misleads
            memory = descent.memory.select(left) if found.sketched else None
            n = next_level(n)
            turn += 1

    def _wants_model(
        self, problem: Problem, model: MetricTensors | MetricSketch | None, turn: int
    ) -> bool:
        """Whether a level evaluates the metric for its preconditioner; a sketch serves all."""
        if problem.has_gauss_newton or isinstance(model, MetricSketch):
            return False
        return turn < len(self.metric_points)

    def _judge(
        self, outcome: Outcome, lessons: _Lessons, found: Certificate, *, final: bool
    ) -> tuple[Tensor, Tensor]:
        """Note what certificates say; return which pairs have converged, and which go on."""
        pairs = found.pairs
        predicted = found.predicted * lessons.gain_ratio[pairs] + lessons.unseen[pairs]
        predicted = found.caution * predicted
        outcome.predicted_improvement[pairs] = predicted
        first = outcome.predicted_at_start[pairs]
        outcome.predicted_at_start[pairs] = torch.where(first.isnan(), predicted, first)
        finite = found.finite
        converged = finite & found.convex & (predicted <= self.tolerance)
        exhausted = outcome.iterations[pairs] >= self.max_iterations
        status = outcome.status[pairs]
        if final:
            stalled = status == Status.STALLED
            status = torch.where(stalled, status, int(Status.MAX_CONTROL_POINTS))
        status = torch.where(exhausted, int(Status.MAX_ITERATIONS), status)
        status = torch.where(converged, int(Status.CONVERGED), status)
        outcome.status[pairs] = torch.where(finite, status, int(Status.NON_FINITE))
        return converged, finite & ~converged & ~exhausted


@dataclass
class _Lessons:
    """What the last level of each pair taught about the predictions of the next, (B,) each.

    Attributes
    ----------
    gain_ratio
        What it really gained over what had been predicted of it.
    unseen
        The relative improvement left that only the steps taken tell of, not the metric at the
        curve.
    trusted
        Whether there was a level, and the energy was convex where it began.
    flat
        Whether a valley was found that is nearly flat in some direction.
    rough
        Whether kinks were met.
    """

    gain_ratio: Tensor
    unseen: Tensor
    trusted: Tensor
    flat: Tensor
    rough: Tensor

    @classmethod
    def none(cls, outcome: Outcome) -> _Lessons:
        none = torch.zeros_like(outcome.going)
        return cls(none.double() + 1.0, none.double(), none, none.clone(), none.clone())


class _Descent(Stage):
    """Minimise the energy of a level's pairs until its goal, a predicted improvement left.

    Those whose certificate was refuted go on from where the proof left them; ``begun`` are the
    places of the others.
    """

    def __init__(
        self,
        solver: PreconditionedSolver,
        outcome: Outcome,
        lessons: _Lessons,
        found: Certificate,
        begun: Tensor,
        proof: Proof,
        *,
        last: bool,
    ) -> None:
        self.solver = solver
        self.outcome = outcome
        self.lessons = lessons
        self.found = found
        self.energy = found.objective.energy
        self.n_control_points = self.energy.points.shape[1]
        self.state = found.state.select(begun).join(proof.refuted)
        outcome.going.index_fill_(0, self.open, True)
        self.memory = found.state.memory
        self.steps = torch.zeros_like(found.pairs)
        self.steps.index_fill_(0, proof.refuted.index, proof.steps)
        self.last = last
        self.sketched = found.sketched
        self.goal = torch.full_like(found.predicted, 0.5 * solver.tolerance)
        if not last:
            least = torch.full_like(found.predicted, solver.level_reduction)
            rough = lessons.rough[found.pairs]
            reduction = torch.where(rough, least.clamp_min(_ROUGH_REDUCTION), least)
            reduced = reduction * found.predicted
            self.goal = torch.maximum(self.goal, reduced)

    @property
    def open(self) -> Tensor:  # type: ignore[override]
        """The pairs that have not come to the level's goal."""
        return self.found.pairs[self.state.index]

    def step(self) -> None:
        """Take a step; pairs leave at the goal, without a way down, or when their steps are up."""
        solver, outcome, lessons = self.solver, self.outcome, self.lessons
        self.state = state = solver.minimizer.step(self.state, self.found.objective)
        index, pairs = state.index, self.open
        self.steps[index] += 1
        outcome.iterations[pairs] += 1
        predicted = relative_decrease(state)
        enough = self.energy.gauss_newton | (self.steps[index] >= LEAST_STEPS)
        got = gained(self.found, state)
        promised = self.found.predicted[index]
        rough = self._rough(index)
        expected = self.found.caution * predicted
        if not self.energy.gauss_newton:
            # what promised too little of a level promises too little of what is left of it
            ratio = torch.maximum(got / promised, lessons.gain_ratio[pairs]).nan_to_num(1.0)
            smooth = self.energy.order[index] >= _SMOOTH_ORDER
            ratio = ratio if self.sketched else torch.where(smooth, ratio, 1.0)
            expected = expected * ratio.clamp(1.0, _LARGEST_RATIO)
        reached = enough & (expected <= self.goal[index])
        stalled = solver.minimizer.stalled(state)
        lingering = rough & (self.steps[index] >= _ROUGH_STEPS)
        if self.sketched:
            # steps that lead on to finer levels are not lost: what they taught is kept
            lingering = self._kinked(index) & (self.steps[index] >= _SKETCHED_STEPS)
        spent = outcome.iterations[pairs] >= solver.max_iterations
        leaving = reached | stalled | spent | lingering
        # the one wait of a step
        out, staying, due = places(leaving, ~leaving, self._due() & ~leaving)
        if due.numel():
            hessian = self.energy.with_hessian(state.x[due], index[due])[2]
            self.state = solver.minimizer.renew(state, due, hessian)
        if not out.numel():
            return
        self.state = self.state.select(staying)
        # a level that had many steps and has not come to its goal shows what is to be had
        exhausted = stalled | (spent & (self.steps[index] >= _FAIR_STEPS))
        ratio = _gain_ratio(got, promised, predicted, exhausted)
        end = torch.where(stalled & ~reached, int(Status.STALLED), int(Status.MAX_ITERATIONS))
        self._leave(state.select(out), end[out], ratio[out])
        pairs = pairs[out]
        lessons.rough[pairs] |= rough[out]
        done = self._may_end(index[out]) & (got[out] <= solver.rough_tolerance)
        # were every level to gain half of what the one before did, as much would be left
        left = (_SKETCHED_LEFT if self.sketched else _ROUGH_LEFT) * got[out]
        predictions = outcome.predicted_improvement
        predictions[pairs] = torch.where(done, left, predictions[pairs])
        outcome.end(pairs, Status.ROUGH, done)

    def _rough(self, index: Tensor) -> Tensor:
        """Return which curves have met kinks, by the order at which their chords converge."""
        few = self.energy.gauss_newton
        telling = self.n_chords >= (_TELLING_CHORDS_IN_FEW if few else _TELLING_CHORDS)
        return (self.energy.order[index] < _SMOOTH_ORDER) & telling

    def _may_end(self, index: Tensor) -> Tensor:
        """Return which pairs may end for kinks; on the last level all that have ever met some."""
        if self.last:
            return self.lessons.rough[self.found.pairs[index]]
        resolved = self.energy.order[index] > _RESOLVED_ORDER
        if self.sketched:
            return self._kinked(index) & resolved & (self.n_chords >= _TELLING_CHORDS)
        return self._rough(index) & resolved & (self.n_chords >= _ENDING_CHORDS)

    def _kinked(self, index: Tensor) -> Tensor:
        """Return which curves cross so many kinks that few chords tell of them."""
        few = self.n_chords < _ENDING_CHORDS
        return self.energy.order[index] < (_KINKED_ORDER if few else _SMOOTH_ORDER)

    @property
    def n_chords(self) -> int:
        """Chords along each curve."""
        return self.energy.basis.shape[0] + 1

    def _due(self) -> Tensor:
        """Return which pairs have met kinks and are due for Gauss-Newton Hessians, (A,)."""
        state, energy = self.state, self.energy
        if not energy.renewable or not isinstance(state.preconditioner, DensePreconditioner):
            return torch.zeros_like(state.convex)
        # few chords tell of kinks only where these are dense
        telling = self.n_chords >= _TELLING_CHORDS
        low = energy.order[state.index] < (_SMOOTH_ORDER if telling else 1.0)
        return low & (self.steps[state.index] % _RENEWED == 0) & (state.rejections == 0)

    def _leave(self, state: LBFGSState, status: Tensor, ratio: Tensor) -> None:
        """Store the curves of pairs that leave, and what the level tells of their next one."""
        outcome, lessons = self.outcome, self.lessons
        pairs = self.found.pairs[state.index]
        self.memory = self.memory.put(state.index, state.memory)
        outcome.refine(self.n_control_points)
        outcome.control_points[pairs] = self.energy.curves(state.x, state.index)
        outcome.n_control_points.index_fill_(0, pairs, self.n_control_points)
        outcome.status[pairs] = status
        lessons.gain_ratio[pairs] = ratio
        # at the first level curves have far to go, and predictions are rough
        trusted = lessons.trusted[pairs]
        many = torch.where(trusted, _MANY_STEPS, 2 * _MANY_STEPS)
        long = self.steps[state.index] > many
        lessons.flat[pairs] |= (trusted & (ratio > _ROUGH_RATIO)) | long
        unseen = 0.25 * (-state.slope - state.newton_decrement) / state.value
        lessons.unseen[pairs] = unseen.clamp_min(0.0)
        lessons.trusted[pairs] = self.found.convex[state.index] & state.convex


def _refined(memory: Memory, coarse: Tensor, fine: Tensor, matrix: Tensor) -> Memory:
    """Return what was remembered on coarse knots in the free control points of finer ones.

    Gradients are lifted by their Riesz representatives in the space of the B-splines' stiffness
    matrix, V = S W S_coarse^-1 for control points that are inserted by W.
    """
    inserted = matrix[1:-1, 1:-1]
    lifted = torch.linalg.solve(stiffness_matrix(coarse), inserted.T @ stiffness_matrix(fine)).T
    like = memory.curvature
    return memory.moved(sent(inserted, like), sent(lifted, like))


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
