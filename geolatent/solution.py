"""What a solve returns: a curve, its lengths, its status and its cost, pair by pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from geolatent.arrays import Result
from geolatent.checks import describe, requirement
from geolatent.display import StatusEnum, Table

if TYPE_CHECKING:
    from geolatent.curves import CubicBSpline


class Status(StatusEnum):
    """How the solve of one pair ended; ``explanation`` says it in a sentence.

    Examples
    --------
    >>> print(Status.CONVERGED)
    CONVERGED
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
    ROUGH = 8

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
    Status.ROUGH: (
        "The decoder has kinks on the way, and the last level of control points gained little, "
        "half of what is predicted to be left; more of them cost more than they gain."
    ),
    Status.INDEFINITE_METRIC: (
        "The metric has a negative direction on the way between the end points, where lengths mean "
        "nothing; the curve is not a geodesic."
    ),
}


@dataclass(frozen=True, eq=False)
class Evaluations(Result):
    """Decoder rows spent, per pair: codes sent through the decoder, each counted every time.

    A metric tensor counts as d forward rows, a JVP row that is differentiated as three JVP rows
    (as forward and backward together count as three forward rows). ``equivalents`` adds them up.

    Attributes
    ----------
    forward, backward, jvp
        Rows of plain evaluations, of gradients (reverse mode) and of Jacobian-vector products
        (forward mode), int64 of shape (B,).
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

    def add(self, pairs: Tensor, other: Evaluations) -> None:
        """Add the counts of others to those of the pairs whose numbers are given, (A,)."""
        for name in ("forward", "backward", "jvp"):
            getattr(self, name).index_add_(0, pairs, getattr(other, name))

    def __getitem__(self, index: slice | Tensor) -> Evaluations:
        """Return the counts of the chosen pairs."""
        return Evaluations(self.forward[index], self.backward[index], self.jvp[index])

    def __add__(self, other: Evaluations) -> Evaluations:
        return Evaluations(
            self.forward + other.forward, self.backward + other.backward, self.jvp + other.jvp
        )


@dataclass(frozen=True, eq=False)
class GeodesicSolution(Result):
    """Geodesics between B pairs of latent codes.

    Printed, and as the last line of a notebook's cell, it is a table: the first and last few pairs
    by their numbers in this solution, means, and how many pairs have each status; "rows" is
    ``evaluations.equivalents``. It is a sequence of pairs: ``solution[3]``, ``solution[2:5]`` and
    ``solution[solution.status == Status.STALLED]`` are solutions of the pairs chosen, and a loop
    goes through solutions of one pair.

    Attributes
    ----------
    curve
        The curves, a `CubicBSpline` of batch size B: ``curve(t)`` are the codes on the way at
        parameters t in [0, 1], from start to end, shape (B, T, d),
        or (B, T, ...) where the end points were codes of such a shape.
    length, straight_length
        Lengths of the curve and of the straight line by the same rule, in the units of the
        decoder's output (or of the feature map's), shape (B,).
    energy
        Path energy of the curve, shape (B,); at constant speed it is ``length**2 / 2``.
    predicted_improvement
        Relative length still to be gained, predicted by the Newton decrement in the spline space
        after one more refinement: g^T H^-1 g / (4 E), shape (B,). Where the straight line is
        returned it is the line's own; NaN where that is not known.
    status
        How the pairs ended, int64 of shape (B,), to be compared with the members of `Status`;
        ``statuses`` are those members, ``summary()`` says them in sentences.
    iterations
        Accepted and rejected steps of the minimiser, shape (B,).
    control_points
        Control points that the solver needed, shape (B,). All curves of ``curve`` share one knot
        vector, that of the pair that needed most, so that they may have more.
    evaluations
        Decoder rows spent, per pair.

    Examples
    --------
    >>> from geolatent import PullbackMetric, solve_geodesic
    >>> def hill(z):
    ...     return torch.cat([z, torch.exp(-z.square().sum(1, keepdim=True))], dim=1)
    >>> start, end = torch.tensor([[-2.0, 0.1], [2.0, 1.0], [0.0, 0.0]]), torch.tensor([2.0, 1.0])
    >>> solution = solve_geodesic(PullbackMetric(hill), start, end)
    >>> print(len(solution), solution[1].statuses)  # a pair that stays where it is
    3 [Status.EQUAL_END_POINTS]
    >>> bent = solution[solution.relative_improvement > 0.01]
    >>> print(f"{bent.length.item():.2f} instead of {bent.straight_length.item():.2f}")
    4.28 instead of 4.43
    """

    with_codes = ("curve",)

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
        """(straight length - length) / straight length, shape (B,).

        0 where the end points are equal, NaN where a length is not finite.
        """
        gain = self.straight_length - self.length
        return torch.where(gain == 0, torch.zeros_like(gain), gain / self.straight_length)

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Return the fields and ``relative_improvement`` as NumPy arrays by their names.

        Parts' as ``"curve.control_points"``; the statuses are numbers. `numpy.savez` takes them
        all.
        """
        return {
            **super().numpy(),
            "relative_improvement": self.relative_improvement.numpy(force=True),
        }

    @property
    def statuses(self) -> list[Status]:
        """The statuses as enumeration members, which explain themselves."""
        return [Status(value) for value in self.status.tolist()]

    def __len__(self) -> int:
        """Return the number of pairs, B."""
        return self.status.numel()

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> GeodesicSolution:
        """Return the solution of the chosen pairs, of the same fields.

        Parameters
        ----------
        index
            The number of a pair, negative ones from the end; a slice; a mask of shape (B,), such
            as ``solution.status == Status.STALLED``; or numbers of pairs, of shape (n,).

        Raises
        ------
        IndexError
            If there is no such pair, or the mask has another shape.
        TypeError
            If the index is of another kind.
        """
        chosen = _chosen(index, len(self), self.status.device)
        parts = {field.name: getattr(self, field.name)[chosen] for field in fields(self)}
        return GeodesicSolution(**parts)

    def __iter__(self) -> Iterator[GeodesicSolution]:
        """Go through the pairs, each as a solution of one pair."""
        return (self[i] for i in range(len(self)))

    def __str__(self) -> str:
        return str(self._table())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        """Describe the first and last few pairs, and all of them by means and counts.

        Nothing of a pair that is not shown leaves its device.
        """
        n = len(self)
        count = "1 pair" if n == 1 else f"{n:,} pairs"
        points = self.curve.control_points
        title = (
            f"GeodesicSolution: {count}, d = {points.shape[2]}, "
            f"{str(points.dtype).removeprefix('torch.')} on {points.device}"
        )
        columns = [
            self.length,
            self.straight_length,
            100.0 * self.relative_improvement,
            100.0 * self.predicted_improvement,
            self.control_points,
            self.evaluations.equivalents,
        ]
        shown = list(range(n))
        if n > _MOST_ROWS:
            shown = [*range(_END_ROWS), *range(n - _END_ROWS, n)]
        at = torch.tensor(shown, dtype=torch.int64, device=points.device)
        numbers = torch.stack([column[at].double() for column in columns], dim=1).tolist()
        statuses = [str(Status(value)) for value in self.status[at].tolist()]
        rows = [
            [str(i), *_cells(values), status]
            for i, values, status in zip(shown, numbers, statuses, strict=True)
        ]
        if n > _MOST_ROWS:
            rows.insert(_END_ROWS, ["...", *[""] * (len(columns) + 1)])
        notes = []
        if n > 1:
            finite = [column[column.isfinite()].double() for column in columns]
            means = [values.mean().item() for values in finite]
            some = any(values.numel() < n for values in finite)
            rows.append(["mean", *_cells(means), "of the finite values" if some else ""])
            notes.append(
                ", ".join(f"{count:,} {status}" for status, count in self._counts().items())
            )
        hints = {str(status): status.explanation for status in Status}
        return Table(title, _HEADER, rows, notes, hints)

    def summary(self) -> str:
        """Count the pairs by status, one line each, in words."""
        return "\n".join(
            f"{count} {status}: {status.explanation}" for status, count in self._counts().items()
        )

    def _counts(self) -> dict[Status, int]:
        """Return how many pairs have each status that is there at all."""
        counts = {status: int((self.status == status).sum()) for status in Status}
        return {status: count for status, count in counts.items() if count}


_HEADER = (
    "pair",
    "length",
    "straight\nlength",
    "shorter\nby %",
    "predicted\nleft %",
    "control\npoints",
    "rows",
    "status",
)
# so many pairs are all shown; of more, so many of either end
_MOST_ROWS = 12
_END_ROWS = 5


def _cells(values: Sequence[float]) -> list[str]:
    """Return the numbers of a row: lengths, percentages, control points and rows."""
    *measures, points, rows = values
    cells = [
        f"{value:#.{digits}g}".rstrip(".")  # "#" keeps zeros at the end, and a point there too
        for value, digits in zip(measures, (4, 4, 3, 2), strict=True)
    ]
    return [*cells, f"{points:.4g}", f"{rows:,.0f}" if rows < 1e7 else f"{rows:.3g}"]


def _chosen(index: object, n: int, device: torch.device) -> slice | Tensor:
    """Return what picks the chosen of n pairs out of tensors: a slice, a mask or indices."""
    if isinstance(index, slice):
        index = range(n)[index]
        if index.step > 0:
            return slice(index.start, index.stop, index.step)
    try:
        numbers = index if isinstance(index, Tensor) else torch.tensor(index)
    except (TypeError, ValueError, RuntimeError):  # what torch raises for what is no numbers
        numbers = None
    if numbers is None or numbers.ndim > 1 or (numbers.is_floating_point() and numbers.numel()):
        required = f"an integer, a slice, a mask of shape ({n},) or integers of shape (n,)"
        raise TypeError(requirement("index", required, describe(index)))
    if numbers.dtype == torch.bool:
        if numbers.shape != (n,):
            raise IndexError(requirement("index", f"a mask of shape ({n},)", describe(index)))
        return numbers.to(device)
    numbers = numbers.long()
    outside = numbers[(numbers < -n) | (numbers >= n)]
    if outside.numel():
        required = f"from {-n} to {n - 1}, for there are {n} pairs"
        raise IndexError(requirement("index", required, int(outside[0])))
    if numbers.ndim == 0:  # a slice shares the memory
        first = int(numbers) % n
        return slice(first, first + 1)
    return numbers.to(device)
