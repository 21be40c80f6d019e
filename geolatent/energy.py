"""Path energy and path length: quadrature of the speed, and energies for the minimiser."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from geolatent.checks import check_codes, check_integer, check_number, describe, requirement
from geolatent.chords import Chords
from geolatent.curves import CubicBSpline, basis_matrix
from geolatent.metrics import Metric, check_metric
from geolatent.solution import Evaluations

T = TypeVar("T")

# Gauss-Legendre nodes in each of equal intervals: so many at first, doubled until lengths agree
_SPEED_NODES = 3
_FIRST_INTERVALS = 8
_MAX_INTERVALS = 2**11
# chords along a curve: so many at first, doubled until two extrapolated lengths agree
_FIRST_CHORDS = 16
_MAX_CHORDS = 2**13
# an extrapolated length is trusted to this part of the last change of the sum of chords
_TRUSTED_EXTRAPOLATION = 30.0
# up to this latent dimension the minimiser gets Gauss-Newton Hessians
GAUSS_NEWTON_DIM = 3
# bytes of decoder outputs held at once while lengths are measured
_OUTPUT_BYTES = 2**28


@dataclass
class RowBudget:
    """How many rows go through the decoder at once.

    Parameters
    ----------
    max_rows
        Rows per call; None chooses from the size of the decoder's output.

    Attributes
    ----------
    width
        Size of the decoder's output for one row, D, once `fit` was called.
    """

    max_rows: int | None = None
    width: int = field(default=0, init=False)
    _rows: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.max_rows is not None:
            self._rows = check_integer("max_rows", self.max_rows)

    def fit(self, metric: Metric, z: Tensor) -> None:
        """Learn the size of a decoder's output, and choose the rows where the user has not."""
        if self.width:
            return
        self.width = z.shape[1]
        if metric.chords is not None:
            with torch.no_grad():
                self.width = max(self.width, metric.chords.values(z[:1]).shape[1])
        if self._rows:
            return
        # a decoder's activations are taken as sixty times its output, for values and derivatives
        row_bytes = 60 * self.width * z.element_size()
        self._rows = max(16, min(2**17, self.memory(z) // row_bytes))

    @staticmethod
    def memory(z: Tensor) -> int:
        """Return the bytes that one thing may take: a quarter of what CUDA has free, or 2 GiB."""
        return torch.cuda.mem_get_info(z.device)[0] // 4 if z.is_cuda else 2**31

    def run(self, function: Callable[[slice], T], n_items: int, rows_each: int) -> list[T]:
        """Call ``function`` on consecutive slices of the items, at most the budget's rows each.

        An out-of-memory error of CUDA halves the rows and goes on, with a warning.
        """
        results = []
        first = 0
        while first < n_items:
            items = max(1, self._rows // max(1, rows_each)) if self._rows else n_items
            try:
                results.append(function(slice(first, min(first + items, n_items))))
            except torch.OutOfMemoryError:
                if items == 1:
                    raise
                self._rows = max(1, min(items, n_items) * rows_each // 2)
                warnings.warn(
                    f"out of memory; going on with at most {self._rows} decoder rows at once",
                    stacklevel=2,
                )
                continue
            first += items
        return results


def metric_tensors(metric: Metric, z: Tensor, budget: RowBudget) -> Tensor:
    """Return G at codes (B, M, d), shape (B, M, d, d), without gradients."""
    b, m, d = z.shape

    def chunk(items: slice) -> Tensor:
        part = z[items]
        with torch.no_grad():
            return metric._tensor(part.reshape(-1, d)).reshape(part.shape[0], m, d, d)

    return torch.cat(budget.run(chunk, b, m * metric.tensor_rows(d)))


class DiscreteEnergy:
    """Path energy of splines on fixed knots as a function of their control points.

    Where the metric has `Chords`, as one that is immersed by F, the energy of the chain of output
    points on N segments, E = 1/2 sum_i |F(z_{i+1}) - F(z_i)|^2 / (t_{i+1} - t_i); otherwise
    Gauss-Legendre quadrature of v^T G v / 2. Both converge to the path energy as the nodes get
    denser.

    Parameters
    ----------
    metric
        The metric.
    knots
        Knots of the splines, float64.
    nodes_per_span
        Segments (chords) or quadrature nodes on each knot span.
    ends
        Values of F at start and end of every curve, (B, 2, D), which do not change; unused where
        the metric has no chords.
    dim
        Latent dimension d.
    dtype
        Floating-point type that the metric's functions work in.
    budget
        The rows that may go through the decoder at once.
    gauss_newton
        Whether to return Hessians where they are cheap.
    """

    def __init__(
        self,
        metric: Metric,
        knots: Tensor,
        nodes_per_span: int,
        ends: Tensor | None,
        dim: int,
        dtype: torch.dtype,
        budget: RowBudget,
        *,
        gauss_newton: bool = True,
    ) -> None:
        self.metric = metric
        self.dim = dim
        self.dtype = dtype
        self.ends = ends
        self.budget = budget
        # with so few dimensions all columns of J cost no more than a backward pass
        cheap = metric.immersion is not None and dim <= GAUSS_NEWTON_DIM
        self.gauss_newton = cheap and gauss_newton
        self.chords = metric.chords
        if self.chords is not None:
            t = _uniform_nodes(knots, nodes_per_span)
            self.steps = t.diff()
            self.basis = basis_matrix(knots, t[1:-1])
        else:
            t, self.weights = composite_rule(knots, nodes_per_span)
            self.basis = basis_matrix(knots, t)
            self.slope = basis_matrix(knots, t, derivative=1)
        self.rows = self.basis.shape[0]

    def count(self, evaluations: Evaluations, pairs: Tensor) -> None:
        """Add one evaluation of value and gradient to the counts of the given pairs."""
        if self.chords is None and self.metric.quadratic_cost == "jvp":
            evaluations.jvp[pairs] += 3 * self.rows
        elif self.gauss_newton:
            evaluations.forward[pairs] += self.dim * self.rows
        else:
            evaluations.forward[pairs] += self.rows
            evaluations.backward[pairs] += self.rows

    def __call__(
        self, control_points: Tensor, pairs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return energies, gradients and, in few dimensions, Gauss-Newton Hessians, in float64.

        Parameters
        ----------
        control_points
            Shape (A, n, d), float64.
        pairs
            Index of each of the A curves among the B pairs.

        Returns
        -------
        tuple[Tensor, Tensor, Tensor | None]
            Shapes (A,), (A, n, d) and (A, n d, n d).
        """

        def chunk(items: slice) -> tuple[Tensor, Tensor, Tensor | None]:
            if self.chords is None:
                return *self._quadrature(control_points[items]), None
            if self.gauss_newton:
                return self._chords_by_columns(control_points[items], pairs[items])
            return *self._chords(control_points[items], pairs[items]), None

        rows = self.rows * (self.dim if self.gauss_newton else 1)
        parts = self.budget.run(chunk, control_points.shape[0], rows)
        hessians = [part[2] for part in parts if part[2] is not None]
        return (
            torch.cat([part[0] for part in parts]),
            torch.cat([part[1] for part in parts]),
            torch.cat(hessians) if hessians else None,
        )

    def _chain(self, inner: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (A,) and their derivatives by the inner output points (A, Q, D)."""
        if self.ends is None:
            raise RuntimeError("the chord energy needs the output at the end points")
        ends = self.ends[pairs]
        chords: Chords = self.chords  # type: ignore[assignment]
        values = torch.cat([ends[:, :1], inner, ends[:, 1:]], dim=1)
        squares = chords.squares(values[:, :-1], values[:, 1:]).double()
        energy = 0.5 * (squares / self.steps).sum(1)
        return energy, chords.gradients(values, 1.0 / self.steps.to(values))

    def _chords(self, control_points: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        a, _, d = control_points.shape
        z = (self.basis @ control_points).to(self.dtype).reshape(-1, d).requires_grad_()
        with torch.enable_grad():
            inner = self.chords.values(z)  # type: ignore[union-attr]
        energy, cotangent = self._chain(inner.detach().reshape(a, self.rows, -1), pairs)
        if not inner.requires_grad:  # a constant decoder
            return energy, torch.zeros_like(control_points)
        (slope,) = torch.autograd.grad(inner, z, cotangent.reshape(inner.shape))
        return energy, self.basis.T @ slope.reshape(a, self.rows, d).double()

    def _chords_by_columns(
        self, control_points: Tensor, pairs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Differentiate the chords r_i by forward mode; the Hessian is sum_i (dr_i)^T dr_i."""
        a, n, d = control_points.shape
        z = (self.basis @ control_points).to(self.dtype).reshape(-1, d)
        with torch.no_grad():
            inner, columns = self.metric.immersion.columns(z)  # type: ignore[union-attr]
        energy, cotangent = self._chain(inner.reshape(a, self.rows, -1), pairs)
        columns = columns.reshape(d, a, self.rows, -1)
        slope = torch.einsum("kaqD,aqD->aqk", columns, cotangent)
        gradient = self.basis.T @ slope.double()
        # node q meets itself in two chords, and node q + 1 in the chord between them
        same = torch.einsum("kaqD,laqD->klaq", columns, columns).double()
        next_ = torch.einsum("kaqD,laqD->klaq", columns[:, :, :-1], columns[:, :, 1:]).double()
        inverse = 1.0 / self.steps
        products = torch.einsum("q,qi,qj->qij", inverse[:-1] + inverse[1:], self.basis, self.basis)
        neighbours = torch.einsum("q,qi,qj->qij", inverse[1:-1], self.basis[:-1], self.basis[1:])
        hessian = torch.einsum("klaq,qij->aikjl", same, products)
        mixed = torch.einsum("klaq,qij->aikjl", next_, neighbours).reshape(a, n * d, n * d)
        return energy, gradient, hessian.reshape(a, n * d, n * d) - mixed - mixed.mT

    def _quadrature(self, control_points: Tensor) -> tuple[Tensor, Tensor]:
        a, _, d = control_points.shape
        z = (self.basis @ control_points).to(self.dtype).reshape(-1, d).requires_grad_()
        v = (self.slope @ control_points).to(self.dtype).reshape(-1, d).requires_grad_()
        with torch.enable_grad():
            squares = self.metric._quadratic(z, v)
        energy = 0.5 * (squares.detach().reshape(a, -1).double() * self.weights).sum(1)
        weights = (0.5 * self.weights).to(self.dtype).repeat(a)
        by_z, by_v = torch.autograd.grad(squares, (z, v), weights, materialize_grads=True)
        gradient = self.basis.T @ by_z.reshape(a, -1, d).double()
        return energy, gradient + self.slope.T @ by_v.reshape(a, -1, d).double()


def _uniform_nodes(knots: Tensor, per_span: int) -> Tensor:
    """Return the ends of ``per_span`` equal segments of every knot span."""
    breaks = knots.unique()
    fractions = torch.arange(per_span, dtype=breaks.dtype, device=breaks.device) / per_span
    inner = breaks[:-1, None] + breaks.diff()[:, None] * fractions
    return torch.cat([inner.flatten(), breaks[-1:]])


@lru_cache
def _gauss_legendre(n_nodes: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    return torch.from_numpy((nodes + 1.0) / 2.0), torch.from_numpy(weights / 2.0)


def composite_rule(breaks: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the composite Gauss-Legendre rule on [0, 1].

    Parameters
    ----------
    breaks
        End points of the intervals, in any order, with repetitions; a knot vector will do.
    n_nodes
        Nodes on each interval.

    Returns
    -------
    tuple[Tensor, Tensor]
        float64, shape (intervals * n_nodes,) each.
    """
    edges = breaks.double().unique()
    nodes, weights = (part.to(edges.device) for part in _gauss_legendre(n_nodes))
    lengths = edges.diff()[:, None]
    return (edges[:-1, None] + lengths * nodes).flatten(), (lengths * weights).flatten()


@dataclass(frozen=True)
class Measured:
    """Lengths and energies of C batches of B curves, (C, B) each, and rows spent, (B,) each."""

    length: Tensor
    energy: Tensor
    forward: Tensor
    jvp: Tensor

    @classmethod
    def empty(cls, n_curves: int, n_pairs: int, device: torch.device) -> Measured:
        """Return NaN lengths and no rows."""
        zeros = torch.zeros(n_pairs, dtype=torch.int64, device=device)
        nan = torch.full((n_curves, n_pairs), torch.nan, dtype=torch.float64, device=device)
        return cls(nan, nan.clone(), zeros, zeros.clone())


def measure(
    metric: Metric,
    curves: Sequence[CubicBSpline],
    *,
    tolerance: float = 1e-4,
    budget: RowBudget | None = None,
) -> Measured:
    """Measure C batches of B curves each; the C curves of one pair always by the same rule.

    Where the metric has `Chords`: sums of the chords |F(z_{i+1}) - F(z_i)| over N equal intervals
    of t, Richardson-extrapolated in N (their error is of order N^-2), N doubled and the old values
    kept. Where it has none, or the chords are so short that rounding would tell:
    Gauss-Legendre quadrature of the speed on equal intervals, their number doubled. Either ends for
    a pair when two successive values agree for all its curves. A pair that never agrees keeps its
    last value, with a warning.
    """
    budget = budget or RowBudget()
    first = curves[0].control_points
    budget.fit(metric, first[0, :1])
    n_pairs = first.shape[0]
    result = Measured.empty(len(curves), n_pairs, first.device)
    pairs = torch.arange(n_pairs, device=first.device)
    n_open = 0
    by_speed = [pairs]
    if metric.chords is not None:
        kept = len(curves) * 8 * _FIRST_CHORDS * budget.width * first.element_size()
        by_speed = []
        for chunk in pairs.split(max(1, _OUTPUT_BYTES // kept)):
            still_open, too_short = _measure_by_chords(
                metric, curves, chunk, tolerance, budget, result
            )
            n_open += still_open
            by_speed.append(too_short)
    rest = torch.cat(by_speed)
    if rest.numel():
        n_open += _measure_by_speed(metric, curves, rest, tolerance, budget, result)
    if n_open:
        warnings.warn(
            f"the lengths of {n_open} of {n_pairs} pairs did not reach the relative tolerance "
            f"{tolerance} with the finest rule",
            stacklevel=3,
        )
    return result


def _along(curves: Sequence[CubicBSpline], t: Tensor, pairs: Tensor, derivative: int = 0) -> Tensor:
    """Return points or derivatives of the chosen pairs' curves, (C, A, T, d), in their dtype."""
    parts = []
    for curve in curves:
        points = curve.control_points[pairs].double()
        if derivative:  # the basis' derivatives add up to zero; so a point gets no speed
            points = points - points[:, :1]
        parts.append(basis_matrix(curve.knots, t, derivative) @ points)
    return torch.stack(parts).to(curves[0].control_points.dtype)


def _measure_by_chords(
    metric: Metric,
    curves: Sequence[CubicBSpline],
    pairs: Tensor,
    tolerance: float,
    budget: RowBudget,
    result: Measured,
) -> tuple[int, Tensor]:
    """Fill in the chosen pairs; return how many did not agree, and which chords are too short."""
    d = curves[0].dim
    chords: Chords = metric.chords  # type: ignore[assignment]

    def outputs(t: Tensor, pairs: Tensor) -> Tensor:
        """Return F along the chosen pairs' curves, (C, A, T, D), and count it."""
        z = _along(curves, t, pairs)
        flat = z.reshape(-1, d)

        def decode(items: slice) -> Tensor:
            with torch.no_grad():
                return chords.values(flat[items])

        result.forward[pairs] += len(curves) * t.numel()
        return torch.cat(budget.run(decode, flat.shape[0], 1)).reshape(*z.shape[:3], -1)

    n = _FIRST_CHORDS
    t = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64, device=pairs.device)
    values = outputs(t, pairs)
    # rounding of F, taken as a few units in the last place, must not lengthen the chords
    size = chords.squares(torch.zeros_like(values[..., :1, :]), values).double().mean(2)
    eps = torch.finfo(values.dtype).eps
    shortest = (8.0 * eps) ** 2 * size.nan_to_num(0.0) / tolerance
    too_short: list[Tensor] = []
    coarse: tuple[Tensor, Tensor] | None = None
    while pairs.numel():
        squares = chords.squares(values[:, :, :-1], values[:, :, 1:]).double()
        fine = squares.sqrt().sum(2), 0.5 * n * squares.sum(2)
        # a curve that is not finite will not get better; the others of its pair go on without it
        hopeless = ~fine[0].isfinite()
        leaving = (squares.mean(2) <= shortest).any(0)
        too_short.append(pairs[leaving])
        if coarse is not None:
            # (4 fine - coarse) / 3 cancels the leading error; a NaN change is the first value's
            length, energy = ((4.0 * a - b) / 3.0 for a, b in zip(fine, coarse, strict=True))
            change = (length - result.length[:, pairs]).abs()
            # two values may agree by accident: the extrapolation must be a small one too
            moved = fine[0] - coarse[0]
            limit = _TRUSTED_EXTRAPOLATION * max(tolerance, 1e-4)
            agreed = (change <= tolerance * length) & (moved <= limit * length)
            leaving |= (agreed | hopeless).all(0)
            result.length[:, pairs] = length
            result.energy[:, pairs] = torch.maximum(energy, 0.5 * length.square())
        leaving |= hopeless.all(0)
        if bool(leaving.any()):
            pairs, values, shortest = pairs[~leaving], values[:, ~leaving], shortest[:, ~leaving]
            fine = fine[0][:, ~leaving], fine[1][:, ~leaving]
        if n >= _MAX_CHORDS or not pairs.numel():
            break
        coarse = fine
        n *= 2
        middles = (torch.arange(n // 2, dtype=t.dtype, device=t.device) + 0.5) / (n // 2)
        woven = torch.stack([values[:, :, :-1], outputs(middles, pairs)], dim=3).flatten(2, 3)
        values = torch.cat([woven, values[:, :, -1:]], dim=2)
    return pairs.numel(), torch.cat(too_short)


def _measure_by_speed(
    metric: Metric,
    curves: Sequence[CubicBSpline],
    pairs: Tensor,
    tolerance: float,
    budget: RowBudget,
    result: Measured,
) -> int:
    """Fill in the chosen pairs; return how many did not agree."""
    d = curves[0].dim
    by_jvp = metric.quadratic_cost == "jvp"
    result.length[:, pairs] = torch.nan  # what chords may have left
    # simple knots are passed over: they depend on the batch, and the curve is smooth there
    kinks = torch.cat([curve.knots[1:-2][curve.knots[1:-2] == curve.knots[3:]] for curve in curves])
    n = _FIRST_INTERVALS
    while pairs.numel():
        breaks = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64, device=pairs.device)
        t, weights = composite_rule(torch.cat([breaks, kinks]), _SPEED_NODES)
        z, v = _along(curves, t, pairs), _along(curves, t, pairs, derivative=1)
        points, tangents = z.reshape(-1, d), v.reshape(-1, d)

        def decode(items: slice, points: Tensor = points, tangents: Tensor = tangents) -> Tensor:
            with torch.no_grad():
                return metric._quadratic(points[items], tangents[items])

        squares = torch.cat(budget.run(decode, points.shape[0], 1)).double().clamp_min(0.0)
        squares = squares.reshape(z.shape[:3])
        (result.jvp if by_jvp else result.forward)[pairs] += len(curves) * t.numel()
        length = (squares.sqrt() * weights).sum(2)
        # a NaN change is the first value's; a length that is not finite will not get better
        change = (length - result.length[:, pairs]).abs()
        settled = ((change <= tolerance * length) | ~length.isfinite()).all(0)
        result.length[:, pairs] = length
        result.energy[:, pairs] = 0.5 * (squares * weights).sum(2)
        pairs = pairs[~settled]
        if n >= _MAX_INTERVALS:
            break
        n *= 2
    return pairs.numel()


def _check_path(metric: Metric, curve: CubicBSpline, tolerance: float) -> float:
    check_metric(metric)
    if not isinstance(curve, CubicBSpline):
        raise TypeError(requirement("curve", "a CubicBSpline", describe(curve)))
    codes = check_codes("curve", curve.control_points[:, 0], metric.dim)
    metric.check("curve", codes[:1])
    return check_number("tolerance", tolerance, above=0.0)


def path_length(
    metric: Metric, curve: CubicBSpline, *, tolerance: float = 1e-4, max_rows: int | None = None
) -> Tensor:
    """Return the lengths L = integral of sqrt(gamma'^T G(gamma) gamma') over [0, 1].

    Parameters
    ----------
    metric
        The metric.
    curve
        B curves.
    tolerance
        Relative tolerance: the rule is refined until two successive values agree to it.
    max_rows
        Largest number of rows sent through the decoder at once; chosen automatically by default.

    Returns
    -------
    Tensor
        Shape (B,), in the units of the decoder's output.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind, or the curve's dimension is not the metric's.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> metric = PullbackMetric(lambda z: 3.0 * z)
    >>> line = CubicBSpline.straight(torch.zeros(2), torch.tensor([3.0, 4.0]))
    >>> print(f"{path_length(metric, line).item():.4f}")
    15.0000
    """
    tolerance = _check_path(metric, curve, tolerance)
    measured = measure(metric, [curve], tolerance=tolerance, budget=RowBudget(max_rows))
    return measured.length[0].to(curve.control_points.dtype)


def path_energy(
    metric: Metric, curve: CubicBSpline, *, tolerance: float = 1e-4, max_rows: int | None = None
) -> Tensor:
    """Return the path energies E = 1/2 integral of gamma'^T G(gamma) gamma' over [0, 1].

    It bounds the length, L^2 <= 2 E, with equality at constant speed. Arguments, rule and errors
    are those of `path_length`.

    Returns
    -------
    Tensor
        Shape (B,), in squared units of the decoder's output.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> metric = PullbackMetric(lambda z: 3.0 * z)
    >>> line = CubicBSpline.straight(torch.zeros(2), torch.tensor([3.0, 4.0]))
    >>> print(f"{path_energy(metric, line).item():.2f}")
    112.50
    """
    tolerance = _check_path(metric, curve, tolerance)
    measured = measure(metric, [curve], tolerance=tolerance, budget=RowBudget(max_rows))
    return measured.energy[0].to(curve.control_points.dtype)
