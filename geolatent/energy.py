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
from geolatent.curves import CubicBSpline, basis_matrix
from geolatent.metrics import Metric
from geolatent.solution import Evaluations

T = TypeVar("T")

# Gauss-Legendre nodes per interval of the successive rules, and the fewest intervals of a curve
_RULES = (2, 3, 5, 8, 13, 21, 34, 55)
_MIN_INTERVALS = 8
# chords along a curve: so many at first, doubled until two extrapolated lengths agree
_FIRST_CHORDS = 16
_MAX_CHORDS = 2**13
# up to this latent dimension the minimiser gets Gauss-Newton Hessians
_GAUSS_NEWTON_DIM = 3
# bytes of decoder outputs held at once while lengths are measured
_OUTPUT_BYTES = 2**28


@dataclass
class RowBudget:
    """How many rows go through the decoder at once.

    Parameters
    ----------
    max_rows
        Rows per call; None chooses from the size of the decoder's output.
    """

    max_rows: int | None = None
    _rows: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.max_rows is not None:
            self._rows = check_integer("max_rows", self.max_rows)

    def fit(self, metric: Metric, z: Tensor) -> None:
        """Choose the number of rows for a decoder, where the user has not."""
        if self._rows:
            return
        width = z.shape[1]
        if metric.immersion is not None:
            with torch.no_grad():
                width = max(width, metric.immersion(z[:1]).shape[1])
        available = torch.cuda.mem_get_info(z.device)[0] // 4 if z.is_cuda else 2**30
        # a decoder's activations are taken as sixty times its output, for values and derivatives
        self._rows = max(16, min(2**17, available // (60 * width * z.element_size())))

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

    Where the metric is immersed by F, the energy of the chain of output points on N segments,
    E = 1/2 sum_i |F(z_{i+1}) - F(z_i)|^2 / (t_{i+1} - t_i); otherwise Gauss-Legendre quadrature of
    v^T G v / 2. Both converge to the path energy as the nodes get denser.

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
        the metric is not immersed.
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
        cheap = metric.immersion is not None and dim <= _GAUSS_NEWTON_DIM
        self.gauss_newton = cheap and gauss_newton
        if metric.immersion is not None:
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
        if self.metric.immersion is None and self.metric.quadratic_cost == "jvp":
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
            if self.metric.immersion is None:
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
        chords = torch.cat([ends[:, :1], inner, ends[:, 1:]], dim=1).diff(dim=1)
        energy = 0.5 * (chords.square().sum(2).double() / self.steps).sum(1)
        pull = chords / self.steps.to(chords)[:, None]
        return energy, pull[:, :-1] - pull[:, 1:]

    def _chords(self, control_points: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        a, _, d = control_points.shape
        z = (self.basis @ control_points).to(self.dtype).reshape(-1, d).requires_grad_()
        with torch.enable_grad():
            inner = self.metric.immersion(z)  # type: ignore[misc]
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
    """Lengths and energies of C batches of B curves, (C, B) each, and the rows spent, (B,)."""

    length: Tensor
    energy: Tensor
    rows: Tensor


def measure(
    metric: Metric,
    curves: Sequence[CubicBSpline],
    *,
    tolerance: float = 1e-4,
    budget: RowBudget | None = None,
) -> Measured:
    """Measure C batches of B curves each; the C curves of one pair always by the same rule.

    Where the metric is immersed by F: sums of the chords |F(z_{i+1}) - F(z_i)| over N equal
    intervals of t, Richardson-extrapolated in N (their error is of order N^-2), N doubled and the
    old values kept. Otherwise: composite Gauss-Legendre quadrature of the speed on the knot spans,
    with more and more nodes. Either ends for a pair when two successive values agree for all its
    curves. A pair that never agrees keeps its last value, with a warning.
    """
    budget = budget or RowBudget()
    first = curves[0].control_points
    budget.fit(metric, first[0, :1])
    if metric.immersion is not None:
        with torch.no_grad():
            width = metric.immersion(first[0, :1]).shape[1]
        kept = len(curves) * 8 * _FIRST_CHORDS * width * first.element_size()
        size = max(1, _OUTPUT_BYTES // kept)
        rule = _measure_by_chords
    else:
        size = first.shape[0]
        rule = _measure_by_speed
    parts, n_open = [], 0
    for begin in range(0, first.shape[0], size):
        chunk = [curve[begin : begin + size] for curve in curves]
        measured, still_open = rule(metric, chunk, tolerance, budget)
        parts.append(measured)
        n_open += still_open
    if n_open:
        warnings.warn(
            f"the lengths of {n_open} of {first.shape[0]} pairs did not reach the relative "
            f"tolerance {tolerance} with the finest rule",
            stacklevel=3,
        )
    return Measured(
        torch.cat([part.length for part in parts], dim=1),
        torch.cat([part.energy for part in parts], dim=1),
        torch.cat([part.rows for part in parts]),
    )


def _measure_by_chords(
    metric: Metric, curves: Sequence[CubicBSpline], tolerance: float, budget: RowBudget
) -> tuple[Measured, int]:
    """Measure by extrapolated chord sums; also return how many pairs did not agree."""
    first = curves[0].control_points
    n_curves, n_pairs, d = len(curves), first.shape[0], first.shape[2]

    def outputs(t: Tensor, pairs: Tensor) -> Tensor:
        """Return F along the chosen pairs' curves, (C, A, T, D)."""
        z = torch.stack(
            [
                basis_matrix(curve.knots, t) @ curve.control_points[pairs].double()
                for curve in curves
            ]
        ).to(first.dtype)
        flat = z.reshape(-1, t.numel(), d)

        def decode(items: slice) -> Tensor:
            with torch.no_grad():
                values = metric.immersion(flat[items].reshape(-1, d))  # type: ignore[misc]
            return values.reshape(-1, t.numel(), values.shape[1])

        values = torch.cat(budget.run(decode, flat.shape[0], t.numel()))
        return values.reshape(n_curves, pairs.numel(), t.numel(), -1)

    active = torch.arange(n_pairs, device=first.device)
    length = first.new_full((n_curves, n_pairs), torch.nan, dtype=torch.float64)
    energy = length.clone()
    rows = torch.zeros(n_pairs, dtype=torch.int64, device=first.device)
    n = _FIRST_CHORDS
    t = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64, device=first.device)
    values = outputs(t, active)
    rows += n + 1
    coarse: tuple[Tensor, Tensor] | None = None
    while active.numel():
        squares = values.diff(dim=2).square().sum(3).double()
        fine = squares.sqrt().sum(2), 0.5 * n * squares.sum(2)
        agreed = torch.zeros_like(active, dtype=torch.bool)
        if coarse is not None:
            # (4 fine - coarse) / 3 cancels the leading error; a NaN change is the first value's
            new_length, new_energy = (
                (4.0 * a - b) / 3.0 for a, b in zip(fine, coarse, strict=True)
            )
            change = (new_length - length[:, active]).abs()
            agreed = (change <= tolerance * new_length).all(0)
            length[:, active] = new_length
            energy[:, active] = torch.maximum(new_energy, 0.5 * new_length.square())
        agreed |= ~fine[0].isfinite().all(0)
        if bool(agreed.any()):
            active, values = active[~agreed], values[:, ~agreed]
            fine = fine[0][:, ~agreed], fine[1][:, ~agreed]
        if n >= _MAX_CHORDS or not active.numel():
            break
        coarse = fine
        n *= 2
        middles = (torch.arange(n // 2, dtype=t.dtype, device=t.device) + 0.5) / (n // 2)
        new = outputs(middles, active)
        rows[active] += n // 2
        woven = torch.stack([values[:, :, :-1], new], dim=3).flatten(2, 3)
        values = torch.cat([woven, values[:, :, -1:]], dim=2)
    return Measured(length, energy, rows), active.numel()


def _measure_by_speed(
    metric: Metric, curves: Sequence[CubicBSpline], tolerance: float, budget: RowBudget
) -> tuple[Measured, int]:
    """Measure by quadrature of the speed; also return how many pairs did not agree."""
    first = curves[0].control_points
    n_curves, n_pairs, d = len(curves), first.shape[0], first.shape[2]
    breaks = torch.cat([curve.knots for curve in curves]).unique()
    while breaks.numel() <= _MIN_INTERVALS:
        breaks = torch.cat([breaks, (breaks[1:] + breaks[:-1]) / 2.0]).sort().values

    length = first.new_full((n_curves, n_pairs), torch.nan, dtype=torch.float64)
    energy = length.clone()
    rows = torch.zeros(n_pairs, dtype=torch.int64, device=first.device)
    active = torch.arange(n_pairs, device=first.device)
    for rule in _RULES:
        t, weights = composite_rule(breaks, rule)
        z, v = (
            torch.stack(
                [
                    basis_matrix(curve.knots, t, k) @ curve.control_points[active].double()
                    for curve in curves
                ]
            )
            .to(first.dtype)
            .reshape(-1, t.numel(), d)
            for k in (0, 1)
        )

        def squares(items: slice, z: Tensor = z, v: Tensor = v) -> Tensor:
            with torch.no_grad():
                values = metric._quadratic(z[items].reshape(-1, d), v[items].reshape(-1, d))
            return values.double().clamp_min(0.0).reshape(-1, z.shape[1])

        parts = torch.cat(budget.run(squares, z.shape[0], t.numel()))
        square = parts.reshape(n_curves, active.numel(), -1)
        new_length = (square.sqrt() * weights).sum(2)
        change = (new_length - length[:, active]).abs()
        length[:, active] = new_length
        energy[:, active] = 0.5 * (square * weights).sum(2)
        rows[active] += t.numel()
        # a NaN change is the first rule's; a NaN length will not get better
        settled = (change <= tolerance * new_length).all(0) | ~new_length.isfinite().all(0)
        active = active[~settled]
        if active.numel() == 0:
            break
    return Measured(length, energy, rows), active.numel()


def count_measured(metric: Metric, evaluations: Evaluations, rows: Tensor) -> None:
    """Add the rows of a measurement, (B,), to the counts."""
    by_jvp = metric.immersion is None and metric.quadratic_cost == "jvp"
    spent = evaluations.jvp if by_jvp else evaluations.forward
    spent += rows


def _check_path(metric: Metric, curve: CubicBSpline, tolerance: float) -> float:
    if not isinstance(metric, Metric):
        raise TypeError(requirement("metric", "a geolatent Metric", describe(metric)))
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
    >>> metric = PullbackMetric(lambda z: 3.0 * z)
    >>> line = CubicBSpline.straight(torch.zeros(2), torch.tensor([3.0, 4.0]))
    >>> print(f"{path_energy(metric, line).item():.2f}")
    112.50
    """
    tolerance = _check_path(metric, curve, tolerance)
    measured = measure(metric, [curve], tolerance=tolerance, budget=RowBudget(max_rows))
    return measured.energy[0].to(curve.control_points.dtype)
