"""What a solver gets and gives: curves to be shortened, and what became of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.curves import refine
from geolatent.metrics.base import indefinite
from geolatent.metrics.rows import Rows
from geolatent.solution import Status
from geolatent.solvers.energy import DiscreteEnergy, has_gauss_newton
from geolatent.transfers import places, sent


@dataclass(frozen=True)
class Progress:
    """What a callback is told after every step of the minimiser.

    Attributes
    ----------
    fraction
        Share of the work that is done, in [0, 1], counted in pairs.
    n_pairs
        Pairs in the call.
    n_control_points
        Control points of the curves being optimised.
    iteration
        Steps taken on the present level.
    """

    fraction: float
    n_pairs: int
    n_control_points: int
    iteration: int


Callback = Callable[[Progress], None]


@dataclass(frozen=True)
class Problem:
    """B curves to be shortened, as a solver gets them. All small tensors are float64.

    Attributes
    ----------
    rows
        The metric at work; it counts for the B pairs.
    control_points, knots
        The starting curves, (B, n, d) and (n + 4,); knots lie in the processor's memory.
    ends
        Outputs at the end points, (B, 2, D), where energies are to be those of chords; else None.
    report
        Called after every step with (pairs done so far, control points, iteration).
    """

    rows: Rows
    control_points: Tensor
    knots: Tensor
    ends: Tensor | None
    report: Callable[[float, int, int], None]

    @property
    def has_gauss_newton(self) -> bool:
        """Whether energies come with Hessians."""
        return has_gauss_newton(self.rows, self.control_points.shape[2], self.ends)

    def energy(
        self,
        outcome: Outcome,
        knots: Tensor,
        nodes_per_span: int,
        points: Tensor,
        pairs: Tensor,
        *,
        gauss_newton: bool = True,
    ) -> DiscreteEnergy:
        """Return the discrete energy of some pairs' curves (A, n, d) on ``knots``."""
        ends = None if self.ends is None else self.ends[pairs]
        return DiscreteEnergy(
            self.rows,
            knots,
            nodes_per_span,
            points,
            pairs,
            ends,
            gauss_newton=gauss_newton,
            inadmissible=outcome.inadmissible,
        )

    def tensors(self, outcome: Outcome, codes: Tensor, pairs: Tensor) -> Tensor:
        """Return G at codes (A, m, d) on some pairs' curves; note where it is indefinite."""
        tensors = self.rows.tensor(codes, pairs)
        if self.rows.chords is None:  # else it is a sum of squares
            outcome.indefinite[pairs] |= indefinite(tensors).any(1)
        return tensors


@dataclass
class Outcome:
    """What a solver makes of a problem, pair by pair; the curves share one knot vector.

    Attributes
    ----------
    control_points, knots
        The curves, (B, n, d) and (n + 4,).
    going
        Pairs that have not ended, (B,).
    status
        How the others ended, (B,); of pairs that go on, how they would if nothing came after.
    predicted_improvement, predicted_at_start
        Of the curves as they are, and of the starting curves, (B,); NaN where it is not known.
    iterations, n_control_points
        Steps spent, and control points that the curves needed, (B,).
    indefinite, inadmissible
        Pairs on whose curves a metric tensor had a negative eigenvalue, and pairs with a curve
        tried along which v^T G v was negative, (B,).
    """

    control_points: Tensor
    knots: Tensor
    going: Tensor
    status: Tensor
    predicted_improvement: Tensor
    predicted_at_start: Tensor
    iterations: Tensor
    n_control_points: Tensor
    indefinite: Tensor
    inadmissible: Tensor

    @classmethod
    def start(cls, problem: Problem) -> Outcome:
        """Return the outcome in which nothing has been done yet."""
        b, n, _ = problem.control_points.shape
        zeros = torch.zeros(b, dtype=torch.int64, device=problem.control_points.device)
        unknown = torch.full_like(zeros, torch.nan, dtype=torch.float64)
        return cls(
            control_points=problem.control_points.clone(),
            knots=problem.knots,
            going=zeros == 0,
            status=zeros + int(Status.MAX_ITERATIONS),
            predicted_improvement=unknown,
            predicted_at_start=unknown.clone(),
            iterations=zeros,
            n_control_points=zeros + n,
            indefinite=zeros > 0,
            inadmissible=zeros > 0,
        )

    @property
    def pairs(self) -> Tensor:
        """The numbers of the pairs that have not ended."""
        return places(self.going)[0]

    def refine(self, n_control_points: int) -> None:
        """Give all curves more control points; their geometry stays."""
        if n_control_points > self.control_points.shape[1]:
            self.knots, matrix = refine(self.knots, n_control_points)
            self.control_points = sent(matrix, self.control_points) @ self.control_points

    def end(self, pairs: Tensor, status: Status, ended: Tensor | None = None) -> None:
        """Note that pairs, or those of them that are marked, (A,), have ended, and how."""
        marks = self.going.new_ones(pairs.shape) if ended is None else ended
        self.status[pairs] = torch.where(marks, int(status), self.status[pairs])
        self.going[pairs] &= ~marks

    def judged(self) -> Tensor:
        """Return the statuses, (B,), changed where the metric was found to be indefinite.

        A step too far that was rejected does not count where the pair went on and converged.
        """
        ended = (self.status == Status.NON_FINITE) | (self.status == Status.STALLED)
        lost = self.indefinite | (self.inadmissible & ended)
        return torch.where(lost, int(Status.INDEFINITE_METRIC), self.status)


class Stage(ABC):
    """A part of a solve: some pairs' curves on one knot vector, stepped until each has left it.

    Attributes
    ----------
    n_control_points
        Control points of the curves.
    open
        The numbers of the pairs that have not left the stage, (A,).
    """

    n_control_points: int
    open: Tensor

    @abstractmethod
    def step(self) -> None:
        """Take one step with all pairs of the stage, and store in the outcome those that leave."""

    def settled(self, n_pairs: int, n_begun: int) -> float:
        """Return how many of all pairs are done with, as far as can be told.

        Half of the pairs that leave a stage may come back in the next one.
        """
        return n_pairs - 0.5 * (n_begun + self.open.numel())


class Solver(ABC):
    """A way to shorten curves. Subclasses are frozen dataclasses of their settings.

    Attributes
    ----------
    tolerance
        Predicted relative improvement in length at which a pair has converged.
    """

    tolerance: float = 0.0

    @abstractmethod
    def stages(self, problem: Problem, outcome: Outcome) -> Iterator[Stage]:
        """Yield the stages of a solve, each made when the one before has been run.

        A stage takes up those of ``outcome.pairs`` that it is for and says which of them end.
        """

    def pair_bytes(self, dim: int) -> int:
        """Return about how much memory one pair takes, beside the decoder's outputs."""
        return 2**15 * dim


def shorten(solver: Solver, problem: Problem) -> Outcome:
    """Run a solver on a problem; what comes back longer than it was is not used."""
    outcome = Outcome.start(problem)
    n_pairs = problem.control_points.shape[0]
    for stage in solver.stages(problem, outcome):
        n_begun, steps = stage.open.numel(), 0
        while stage.open.numel():
            stage.step()
            steps += 1
            settled = stage.settled(n_pairs, n_begun)
            problem.report(settled / n_pairs, stage.n_control_points, steps)
    return outcome
