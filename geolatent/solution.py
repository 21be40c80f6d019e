"""What a solve returns: a curve, its lengths, its status and its cost, pair by pair."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from geolatent.curves import CubicBSpline


class Status(enum.IntEnum):
    """How the solve of one pair ended; ``explanation`` says it in a sentence.

    Examples
    --------
    >>> print(Status.CONVERGED.explanation)
    The predicted relative improvement left is at most the tolerance.
    """

    CONVERGED = 0
    STRAIGHT_IS_SHORTEST = 1
    EQUAL_END_POINTS = 2
    MAX_CONTROL_POINTS = 3
    MAX_ITERATIONS = 4
    STALLED = 5
    NON_FINITE = 6
    INDEFINITE_METRIC = 7

    @property
    def explanation(self) -> str:
        """The status as a sentence."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    Status.CONVERGED: "The predicted relative improvement left is at most the tolerance.",
    Status.STRAIGHT_IS_SHORTEST: (
        "No curve shorter than the straight line was found; the straight line is returned."
    ),
    Status.EQUAL_END_POINTS: "Start and end are the same point; the curve stays there.",
    Status.MAX_CONTROL_POINTS: (
        "The largest number of control points was reached before the predicted improvement "
        "fell to the tolerance; the curve is the best one found."
    ),
    Status.MAX_ITERATIONS: (
        "The iterations were used up before the predicted improvement fell to the tolerance; "
        "the curve is the best one found."
    ),
    Status.STALLED: (
        "The line search found no further decrease, as happens at the limit of the floating-point "
        "precision or on a decoder with kinks; the curve is the best one found."
    ),
    Status.NON_FINITE: (
        "The metric is NaN or infinite on the way between the end points; the straight line is "
        "returned where no finite curve was found."
    ),
    Status.INDEFINITE_METRIC: (
        "The metric has a negative direction on the way between the end points, where lengths mean "
        "nothing; the curve is not a geodesic."
    ),
}


@dataclass(frozen=True)
class Evaluations:
    """Decoder rows spent, per pair.

    A metric tensor counts as d forward rows, a JVP row that is differentiated as three JVP rows
    (as forward and backward together count as three forward rows).

    Attributes
    ----------
    forward, backward, jvp
        Rows, int64 of shape (B,).
    """

    forward: Tensor
    backward: Tensor
    jvp: Tensor

    @classmethod
    def zeros(cls, n_pairs: int, device: torch.device | str = "cpu") -> Evaluations:
        """Return the counts of ``n_pairs`` pairs for which nothing was evaluated yet."""
        zero = torch.zeros(n_pairs, dtype=torch.int64, device=device)
        return cls(zero, zero.clone(), zero.clone())

    @property
    def equivalents(self) -> Tensor:
        """Cost in forward rows, float64 of shape (B,): forward 1, backward 2, JVP 2.5."""
        return self.forward.double() + 2.0 * self.backward.double() + 2.5 * self.jvp.double()

    def __add__(self, other: Evaluations) -> Evaluations:
        return Evaluations(
            self.forward + other.forward, self.backward + other.backward, self.jvp + other.jvp
        )


@dataclass(frozen=True)
class GeodesicSolution:
    """Geodesics between B pairs of latent codes.

    Attributes
    ----------
    curve
        The curves, batched: `CubicBSpline` of batch size B.
    length, straight_length
        Lengths of the curve and of the straight line by the same quadrature, in the units of the
        decoder's output (or of the feature map's), shape (B,).
    energy
        Path energy of the curve, shape (B,); at constant speed it is ``length**2 / 2``.
    predicted_improvement
        Relative length still to be gained, predicted by the Newton decrement in the spline space
        after one more refinement: g^T H^-1 g / (4 E), shape (B,). Where the straight line is
        returned it is the line's own; NaN where that is not known.
    status
        `Status` of every pair as an int64 tensor of shape (B,).
    iterations
        Accepted and rejected steps of the minimiser, shape (B,).
    control_points
        Control points that the solver needed, shape (B,). All curves of ``curve`` share one knot
        vector, that of the pair that needed most.
    evaluations
        Decoder rows spent, per pair.
    """

    curve: CubicBSpline
    length: Tensor
    straight_length: Tensor
    energy: Tensor
    predicted_improvement: Tensor
    status: Tensor
    iterations: Tensor
    control_points: Tensor
    evaluations: Evaluations

    @property
    def relative_improvement(self) -> Tensor:
        """(straight length - length) / straight length, shape (B,); 0 for equal end points."""
        gain = self.straight_length - self.length
        return torch.where(gain == 0, torch.zeros_like(gain), gain / self.straight_length)

    @property
    def statuses(self) -> list[Status]:
        """The statuses as enumeration members, which explain themselves."""
        return [Status(value) for value in self.status.tolist()]

    def summary(self) -> str:
        """Count the pairs by status, one line each, in words."""
        statuses = self.statuses
        lines = []
        for status in Status:
            count = statuses.count(status)
            if count:
                lines.append(f"{count} {status.name}: {status.explanation}")
        return "\n".join(lines)
