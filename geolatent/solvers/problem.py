"""What a solver gets and gives: curves to be shortened, and what became of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geolatent.curves import basis_matrix, refine
from geolatent.metrics.base import Metric, indefinite
from geolatent.metrics.budget import RowBudget, metric_tensors
from geolatent.solution import Evaluations, Status
from geolatent.solvers.energy import DiscreteEnergy, has_gauss_newton


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


@dataclass
class Problem:
    """B curves to be shortened, as a solver gets them. All small tensors are float64.

    Attributes
    ----------
    metric, dtype, budget
        The metric, the floating-point type its functions work in, the rows it may see at once.
    control_points, knots
        The starting curves, (B, n, d) and (n + 4,).
    ends
        Outputs at the end points, (B, 2, D), where energies are to be those of chords; else None.
    evaluations
        Counts to be added to.
    report
        Called after every step with (pairs done so far, control points, iteration).
    indefinite, inadmissible
        Marks, (B,): pairs on whose curves a metric tensor had a negative eigenvalue, and pairs with
        a curve tried along which v^T G v was negative.
    """

    metric: Metric
    dtype: torch.dtype
    budget: RowBudget
    control_points: Tensor
    knots: Tensor
    ends: Tensor | None
    evaluations: Evaluations
    report: Callable[[int, int, int], None]
    indefinite: Tensor = field(init=False)
    inadmissible: Tensor = field(init=False)

    def __post_init__(self) -> None:
        points = self.control_points
        self.indefinite = torch.zeros(points.shape[0], dtype=torch.bool, device=points.device)
        self.inadmissible = self.indefinite.clone()

    def energy(
        self, knots: Tensor, nodes_per_span: int, *, gauss_newton: bool = True
    ) -> DiscreteEnergy:
        """Return the discrete energy of splines on ``knots``."""
        return DiscreteEnergy(
            self.metric,
            knots,
            nodes_per_span,
            self.ends,
            self.control_points.shape[2],
            self.dtype,
            self.budget,
            gauss_newton=gauss_newton,
            inadmissible=self.inadmissible,
        )

    @property
    def has_gauss_newton(self) -> bool:
        """Whether energies come with Hessians."""
        dim = self.control_points.shape[2]
        return self.ends is not None and has_gauss_newton(self.metric, dim)

    def metric_tensors(self, knots: Tensor, points: Tensor, pairs: Tensor, m: int) -> Tensor:
        """Return G in the middles of m equal intervals of t, (A, m, d, d), and count it."""
        at = (torch.arange(m, dtype=knots.dtype, device=knots.device) + 0.5) / m
        places = (basis_matrix(knots, at) @ points).to(self.dtype)
        self.evaluations.forward[pairs] += m * self.metric.tensor_rows(points.shape[2])
        return self.tensors_at(places, pairs)

    def tensors_at(self, places: Tensor, pairs: Tensor) -> Tensor:
        """Return G at codes (A, m, d) on the pairs' curves, and mark where it is indefinite."""
        tensors = metric_tensors(self.metric, places, self.budget)
        if self.metric.chords is None:  # else it is a sum of squares
            self.indefinite[pairs] |= indefinite(tensors).any(1)
        return tensors

    def judge(self, status: Tensor) -> Tensor:
        """Return the statuses (B,), changed where the metric was found to be indefinite.

        A step too far that was rejected does not count where the pair went on and converged.
        """
        ended = (status == Status.NON_FINITE) | (status == Status.STALLED)
        lost = self.indefinite | (self.inadmissible & ended)
        return torch.where(lost, int(Status.INDEFINITE_METRIC), status)


@dataclass
class Outcome:
    """What a solver makes of a problem, pair by pair; the curves share one knot vector.

    ``predicted_improvement`` is that of the curves as they are, ``predicted_at_start`` that of the
    starting curves; NaN where it is not known. Of the last level, ``gain_ratio`` is what it really
    gained over what had been predicted of it, and ``unseen`` the relative improvement left that
    only the steps taken tell of, not the metric at the curve; ``trusted`` says whether there was a
    level, and the energy was convex where it began. ``flat`` marks pairs whose valley was found to
    be nearly flat in some direction.
    """

    control_points: Tensor
    knots: Tensor
    status: Tensor
    predicted_improvement: Tensor
    predicted_at_start: Tensor
    gain_ratio: Tensor
    unseen: Tensor
    trusted: Tensor
    flat: Tensor
    iterations: Tensor
    n_control_points: Tensor

    @classmethod
    def start(cls, problem: Problem) -> Outcome:
        """Return the outcome in which nothing has been done yet."""
        b, n, _ = problem.control_points.shape
        zeros = torch.zeros(b, dtype=torch.int64, device=problem.control_points.device)
        return cls(
            control_points=problem.control_points.clone(),
            knots=problem.knots,
            status=zeros + int(Status.MAX_ITERATIONS),
            predicted_improvement=zeros.double() + torch.nan,
            predicted_at_start=zeros.double() + torch.nan,
            gain_ratio=zeros.double() + 1.0,
            unseen=zeros.double(),
            trusted=zeros > 0,
            flat=zeros > 0,
            iterations=zeros,
            n_control_points=zeros + n,
        )

    def refine(self, n_control_points: int) -> None:
        """Give all curves more control points; their geometry stays."""
        if n_control_points > self.control_points.shape[1]:
            self.knots, matrix = refine(self.knots, n_control_points)
            self.control_points = matrix @ self.control_points


class Solver(ABC):
    """A way to shorten curves. Subclasses are frozen dataclasses of their settings."""

    @abstractmethod
    def shorten(self, problem: Problem) -> Outcome:
        """Return shorter curves; what comes back longer is not used."""

    def pair_bytes(self, dim: int) -> int:
        """Return about how much memory one pair takes, beside the decoder's outputs."""
        return 2**15 * dim
