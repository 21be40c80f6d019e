"""Discrete path energies, which the minimisers lower."""

from __future__ import annotations

import torch
from torch import Tensor

from geolatent.curves import basis_matrix
from geolatent.metrics.base import negative
from geolatent.metrics.chords import Chords, convergence_order
from geolatent.metrics.rows import Rows
from geolatent.quadrature import composite_rule
from geolatent.transfers import sent

# up to this latent dimension the minimiser gets Gauss-Newton Hessians
GAUSS_NEWTON_DIM = 3
# and up to this one, where it is worth their price, at single curves
RENEWAL_DIM = 32
# at so many nodes of a curve at most what Gauss-Newton leaves out is evaluated
RESIDUAL_NODES = 12
# of the mean eigenvalue of the metric, added to its diagonal in preconditioners
RIDGE = 0.1


class DiscreteEnergy:
    """Path energies of splines on fixed knots as functions of their free control points.

    With outputs at the end points, which the metric's `Chords` need, the energy of the chain of
    output points on N segments, E = 1/2 sum_i |F(z_{i+1}) - F(z_i)|^2 / (t_{i+1} - t_i); without,
    Gauss-Legendre quadrature of v^T G v / 2. Both converge to the path energy as the nodes get
    denser.

    Parameters
    ----------
    rows
        The metric at work.
    knots
        Knots of the splines, float64; best in the processor's memory.
    nodes_per_span
        Segments (chords) or quadrature nodes on each knot span.
    points
        Control points of the curves, (A, n, d), float64; the first and the last stay.
    pairs
        The numbers of the curves, (A,), among the pairs that ``rows`` counts for.
    ends
        Outputs at start and end of the curves, (A, 2, D). None where the metric has no chords, or
        where these would be too short for their rounding: then the energy is had by quadrature.
    gauss_newton
        Whether to return Hessians where they are cheap: with so few dimensions all columns of an
        immersion's Jacobian cost no more than a backward pass.
    inadmissible
        Marks for all pairs, set where v^T G v was negative along a curve that was tried: its energy
        is infinite.

    Attributes
    ----------
    order
        Order in the distance of nodes at which the chords' lengths converge, (A,), by those of the
        curves that were tried last: 2 on a smooth decoder, about 1 or less on one with kinks. NaN
        where it is not known.
    """

    def __init__(
        self,
        rows: Rows,
        knots: Tensor,
        nodes_per_span: int,
        points: Tensor,
        pairs: Tensor,
        ends: Tensor | None,
        *,
        gauss_newton: bool = True,
        inadmissible: Tensor | None = None,
    ) -> None:
        self.rows = rows
        self.knots = knots
        self.points = points
        self.pairs = pairs
        self.ends = ends
        self.inadmissible = inadmissible
        self.order = torch.full_like(pairs, torch.nan, dtype=torch.float64)
        self.gauss_newton = gauss_newton and has_gauss_newton(rows, points.shape[2], ends)
        self.chords = None if ends is None else rows.chords
        if self.chords is not None:
            t = _uniform_nodes(knots, nodes_per_span)
            self.steps = sent(t.diff(), points)
            self.basis = sent(basis_matrix(knots, t[1:-1]), points)
        else:
            t, weights = composite_rule(knots, nodes_per_span)
            self.weights = sent(weights, points)
            self.basis = sent(basis_matrix(knots, t), points)
            self.slope = sent(basis_matrix(knots, t, derivative=1), points)

    @property
    def start(self) -> Tensor:
        """The free control points of the curves as they are, (A, (n - 2) d)."""
        return self.points[:, 1:-1].flatten(1)

    def curves(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the control points (A', n, d) of curves whose free ones are x (A', (n - 2) d)."""
        ends = self.points[index]
        inner = x.reshape(-1, ends.shape[1] - 2, ends.shape[2])
        return torch.cat([ends[:, :1], inner, ends[:, -1:]], dim=1)

    def __call__(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return energies, gradients and, in few dimensions, Gauss-Newton Hessians, in float64.

        Parameters
        ----------
        x
            Free control points, (A', m) with m = (n - 2) d.
        index
            Which of the A curves they are of, (A',).

        Returns
        -------
        tuple[Tensor, Tensor, Tensor | None]
            Shapes (A',), (A', m) and (A', m, m).
        """
        curves = self.curves(x, index)
        if self.gauss_newton:
            value, gradient, hessian, _ = self._by_columns(curves, index, residual=False)
            return value, gradient, hessian
        if self.chords is None:
            value, gradient = self._quadrature(curves, index)
        else:
            z = self.basis @ curves
            ends: Tensor = self.ends  # type: ignore[assignment]
            value, slope = self.rows.pulled(
                z, self._chain, ends[index], index, pairs=self.pairs[index]
            )
            gradient = self.basis.T @ slope.double()
        return value, gradient[:, 1:-1].flatten(1), None

    @property
    def renewable(self) -> bool:
        """Whether `with_hessian` can be had, at the price of all columns of the Jacobian."""
        immersed = self.chords is not None and self.rows.metric.immersion is not None
        return immersed and self.points.shape[2] <= RENEWAL_DIM and not self.gauss_newton

    def with_hessian(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values, gradients and Gauss-Newton Hessians with a ridge, whatever they cost.

        The ridge is a tenth of the mean eigenvalue of the metric: in directions that the metric
        hardly sees, it changes long before a step that trusts it would end.
        """
        value, gradient, hessian, _ = self._by_columns(self.curves(x, index), index, residual=False)
        d = self.points.shape[2]
        free = self.basis[:, 1:-1]
        change = torch.cat([torch.zeros_like(free[:1]), free, torch.zeros_like(free[:1])]).diff(
            dim=0
        )
        stiffness = change.T @ (change / self.steps[:, None])
        scale = hessian.diagonal(dim1=1, dim2=2).sum(1) / (d * stiffness.diagonal().sum())
        ridge = torch.kron(stiffness, torch.eye(d, dtype=free.dtype, device=free.device))
        return value, gradient, hessian + RIDGE * scale[:, None, None] * ridge

    def with_residual(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what a call does in few dimensions, and what the Gauss-Newton Hessian leaves out.

        That is sum_q <c_q, F''(z_q)> over the nodes q, with c_q the derivative of the energy by the
        output F(z_q). Along a valley that is nearly flat it cancels almost all of the Gauss-Newton
        Hessian. F'' is had from differences of F' at `RESIDUAL_NODES` nodes at most, on the scale
        of the distances between nodes, so that kinks between two nodes count by the change across
        them.

        Returns
        -------
        tuple[Tensor, Tensor, Tensor, Tensor]
            Shapes (A',), (A', m), (A', m, m) and (A', m, m).
        """
        value, gradient, hessian, rest = self._by_columns(
            self.curves(x, index), index, residual=True
        )
        return value, gradient, hessian, rest

    def _chain(self, inner: Tensor, ends: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (A,) and their derivatives by the inner output points (A, Q, D)."""
        chords: Chords = self.chords  # type: ignore[assignment]
        values = torch.cat([ends[:, :1], inner, ends[:, 1:]], dim=1)
        squares = chords.squares(values[:, :-1], values[:, 1:]).double()
        energy = 0.5 * (squares / self.steps).sum(1)
        self._note_order(squares, values, index)
        return energy, chords.gradients(values, 1.0 / self.steps.to(values))

    def _note_order(self, squares: Tensor, values: Tensor, index: Tensor) -> None:
        """Note the order of the chords of outputs (A, N + 1, D), by every second and fourth."""
        if squares.shape[1] % 4:
            return
        chords: Chords = self.chords  # type: ignore[assignment]
        lengths = [squares.sqrt().sum(1)]
        for stride in (2, 4):
            every = values[:, ::stride]
            lengths.append(chords.squares(every[:, :-1], every[:, 1:]).double().sqrt().sum(1))
        fine, middle, coarse = lengths
        self.order[index] = convergence_order(coarse, middle, fine)

    def _by_columns(self, curves: Tensor, index: Tensor, *, residual: bool) -> tuple[Tensor, ...]:
        """Differentiate the chords r_i by forward mode; the Hessian is sum_i (dr_i)^T dr_i.

        The last entry is empty, (A', 0), unless the residual is asked for.
        """
        _, n, d = curves.shape
        free = slice(d, -d)
        inverse = 1.0 / self.steps
        products = torch.einsum("q,qi,qj->qij", inverse[:-1] + inverse[1:], self.basis, self.basis)
        neighbours = torch.einsum("q,qi,qj->qij", inverse[1:-1], self.basis[:-1], self.basis[1:])

        def chunk(curves: Tensor, ends: Tensor, index: Tensor) -> tuple[Tensor, ...]:
            z = self.basis @ curves
            pairs = self.pairs[index]
            inner, columns = self.rows.columns(z, pairs)
            energy, cotangent = self._chain(inner, ends, index)
            slope = torch.einsum("aqkD,aqD->aqk", columns, cotangent)
            gradient = self.basis.T @ slope.double()
            # node q meets itself in two chords, and node q + 1 in the chord between them
            same = torch.einsum("aqkD,aqlD->aqkl", columns, columns).double()
            next_ = torch.einsum("aqkD,aqlD->aqkl", columns[:, :-1], columns[:, 1:]).double()
            hessian = torch.einsum("aqkl,qij->aikjl", same, products).reshape(-1, n * d, n * d)
            mixed = torch.einsum("aqkl,qij->aikjl", next_, neighbours).reshape(-1, n * d, n * d)
            hessian = (hessian - mixed - mixed.mT)[:, free, free]
            rest = hessian.new_empty((len(curves), 0))
            if residual:
                rest = self._residual(z, columns, cotangent, pairs)[:, free, free]
            return energy, gradient[:, 1:-1].flatten(1), hessian, rest

        ends: Tensor = self.ends  # type: ignore[assignment]
        rows_each = self.basis.shape[0] * d
        return self.rows.each(chunk, rows_each, curves, ends[index], index)

    def _residual(self, z: Tensor, columns: Tensor, cotangent: Tensor, pairs: Tensor) -> Tensor:
        """Return sum_q <c_q, F''(z_q)> by control points, for F' by columns (A, Q, d, D)."""
        a, n_nodes, d = z.shape
        groups = torch.arange(n_nodes, device=z.device).tensor_split(min(RESIDUAL_NODES, n_nodes))
        middles = torch.stack([group[len(group) // 2] for group in groups])
        pulls = torch.stack([cotangent[:, group].sum(1) for group in groups], dim=1)
        # where nodes coincide any step will do: no chord pulls at them
        tiny = torch.finfo(self.rows.dtype).tiny ** 0.5
        steps = z.diff(dim=1).norm(dim=2).mean(1).clamp_min(tiny)[:, None, None, None]
        # (A, groups, l, d): each middle, moved along each axis
        moved = z[:, middles, None] + steps * torch.eye(d, dtype=z.dtype, device=z.device)
        shifted = self.rows.columns(moved, pairs)[1]
        change = shifted - columns[:, middles, None]
        blocks = torch.einsum("aglkD,agD->agkl", change, pulls) / steps.to(change)
        blocks = 0.5 * (blocks + blocks.mT).double()
        weights = torch.stack(
            [self.basis[group].T @ self.basis[group] / len(group) for group in groups]
        )
        n = self.basis.shape[1]
        return torch.einsum("agkl,gij->aikjl", blocks, weights).reshape(a, n * d, n * d)

    def _quadrature(self, curves: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        pairs = self.pairs[index]

        def chunk(curves: Tensor, pairs: Tensor) -> tuple[Tensor, ...]:
            squares, by_z, by_v = self.rows.slopes(self.basis @ curves, self.slope @ curves, pairs)
            half = 0.5 * self.weights[:, None]
            gradient = self.basis.T @ (half * by_z.double())
            gradient = gradient + self.slope.T @ (half * by_v.double())
            return 0.5 * (squares.double() * self.weights).sum(1), gradient, negative(squares)

        energy, gradient, bad = self.rows.each(chunk, self.basis.shape[0], curves, pairs)
        if self.inadmissible is not None:
            self.inadmissible[pairs] |= bad
        return torch.where(bad, torch.inf, energy), gradient


def has_gauss_newton(rows: Rows, dim: int, ends: Tensor | None) -> bool:
    """Whether energies come with Hessians."""
    return ends is not None and rows.metric.immersion is not None and dim <= GAUSS_NEWTON_DIM


def _uniform_nodes(knots: Tensor, per_span: int) -> Tensor:
    """Return the ends of ``per_span`` equal segments of every knot span."""
    breaks = knots.unique()
    fractions = torch.arange(per_span, dtype=breaks.dtype, device=breaks.device) / per_span
    inner = breaks[:-1, None] + breaks.diff()[:, None] * fractions
    return torch.cat([inner.flatten(), breaks[-1:]])
