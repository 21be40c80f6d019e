"""Discrete path energies, which the minimiser lowers."""

from __future__ import annotations

import torch
from torch import Tensor

from geolatent.curves import basis_matrix
from geolatent.metrics.base import Metric, negative
from geolatent.metrics.budget import RowBudget
from geolatent.metrics.chords import Chords
from geolatent.quadrature import composite_rule
from geolatent.solution import Evaluations

# up to this latent dimension the minimiser gets Gauss-Newton Hessians
GAUSS_NEWTON_DIM = 3
# at so many nodes of a curve at most what these leave out is evaluated
RESIDUAL_NODES = 12


def has_gauss_newton(metric: Metric, dim: int) -> bool:
    """Whether energies come with Hessians.

    With so few dimensions all columns of an immersion's Jacobian cost no more than a backward pass.
    """
    return metric.immersion is not None and dim <= GAUSS_NEWTON_DIM


class DiscreteEnergy:
    """Path energy of splines on fixed knots as a function of their control points.

    Where ``ends`` are given, which the metric's `Chords` need, the energy of the chain of output
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
        Values of F at start and end of every curve, (B, 2, D), which do not change. None where the
        metric has no chords, or where these would be too short for their rounding: then the energy
        is had by quadrature.
    dim
        Latent dimension d.
    dtype
        Floating-point type that the metric's functions work in.
    budget
        The rows that may go through the decoder at once.
    gauss_newton
        Whether to return Hessians where they are cheap.
    inadmissible
        Marks for the B pairs, set where v^T G v was negative: the energy is infinite there.
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
        inadmissible: Tensor | None = None,
    ) -> None:
        self.metric = metric
        self.dim = dim
        self.dtype = dtype
        self.ends = ends
        self.budget = budget
        self.inadmissible = inadmissible
        self.gauss_newton = gauss_newton and ends is not None and has_gauss_newton(metric, dim)
        self.chords = None if ends is None else metric.chords
        if self.chords is not None:
            t = _uniform_nodes(knots, nodes_per_span)
            self.steps = t.diff()
            self.basis = basis_matrix(knots, t[1:-1])
        else:
            t, self.weights = composite_rule(knots, nodes_per_span)
            self.basis = basis_matrix(knots, t)
            self.slope = basis_matrix(knots, t, derivative=1)
        self.rows = self.basis.shape[0]

    def count(self, evaluations: Evaluations, pairs: Tensor, *, residual: bool = False) -> None:
        """Add one evaluation of value and gradient to the counts of the given pairs."""
        if residual:
            evaluations.forward[pairs] += self.dim**2 * min(RESIDUAL_NODES, self.rows)
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
        if self.gauss_newton:
            return self._by_columns(control_points, pairs, residual=False)[:3]

        def chunk(items: slice) -> tuple[Tensor, Tensor]:
            if self.chords is None:
                return self._quadrature(control_points[items], pairs[items])
            return self._chords(control_points[items], pairs[items])

        parts = self.budget.run(chunk, control_points.shape[0], self.rows)
        value, gradient = (torch.cat(values) for values in zip(*parts, strict=True))
        return value, gradient, None

    def with_residual(
        self, control_points: Tensor, pairs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what a call does in few dimensions, and what the Gauss-Newton Hessian leaves out.

        That is sum_q <c_q, F''(z_q)> over the nodes q, with c_q the derivative of the energy by the
        output F(z_q). Along a valley that is nearly flat it cancels almost all of the Gauss-Newton
        Hessian. F'' is had from differences of F' at `RESIDUAL_NODES` nodes at most, on the scale
        of the distances between nodes, so that kinks between two nodes count by the change across
        them.

        Returns
        -------
        tuple[Tensor, Tensor, Tensor, Tensor]
            Shapes (A,), (A, n, d), (A, n d, n d) and (A, n d, n d).
        """
        return self._by_columns(control_points, pairs, residual=True)

    def _by_columns(
        self, control_points: Tensor, pairs: Tensor, *, residual: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        def chunk(items: slice) -> tuple[Tensor, ...]:
            return self._chords_by_columns(control_points[items], pairs[items], residual=residual)

        parts = self.budget.run(chunk, control_points.shape[0], self.rows * self.dim)
        value, gradient, hessian, rest = (torch.cat(values) for values in zip(*parts, strict=True))
        return value, gradient, hessian, rest

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
        self, control_points: Tensor, pairs: Tensor, *, residual: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Differentiate the chords r_i by forward mode; the Hessian is sum_i (dr_i)^T dr_i.

        The last entry is empty, (A, 0), unless the residual is asked for.
        """
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
        hessian = hessian.reshape(a, n * d, n * d) - mixed - mixed.mT
        rest = hessian.new_empty((a, 0))
        if residual:
            rest = self._residual(z.reshape(a, -1, d), columns, cotangent)
        return energy, gradient, hessian, rest

    def _residual(self, z: Tensor, columns: Tensor, cotangent: Tensor) -> Tensor:
        """Return sum_q <c_q, F''(z_q)> by control points, for F' by columns (d, A, Q, D)."""
        a, n_nodes, d = z.shape
        groups = torch.arange(n_nodes, device=z.device).tensor_split(min(RESIDUAL_NODES, n_nodes))
        middles = torch.stack([group[len(group) // 2] for group in groups])
        pulls = torch.stack([cotangent[:, group].sum(1) for group in groups], dim=1)
        # where nodes coincide any step will do: no chord pulls at them
        steps = z.diff(dim=1).norm(dim=2).mean(1).clamp_min(torch.finfo(z.dtype).tiny ** 0.5)
        places = z[:, middles]
        moves = (
            steps[None, :, None, None] * torch.eye(d, dtype=z.dtype, device=z.device)[:, None, None]
        )
        with torch.no_grad():
            shifted = self.metric.immersion.columns((places + moves).reshape(-1, d))[1]  # type: ignore[union-attr]
        shifted = shifted.reshape(d, d, a, len(groups), -1)
        change = shifted - columns[:, None, :, middles]
        blocks = torch.einsum("lkagD,agD->agkl", change, pulls) / steps[:, None, None, None]
        blocks = 0.5 * (blocks + blocks.mT).double()
        weights = torch.stack(
            [self.basis[group].T @ self.basis[group] / len(group) for group in groups]
        )
        n = self.basis.shape[1]
        return torch.einsum("agkl,gij->aikjl", blocks, weights).reshape(a, n * d, n * d)

    def _quadrature(self, control_points: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        a, _, d = control_points.shape
        z = (self.basis @ control_points).to(self.dtype).reshape(-1, d).requires_grad_()
        v = (self.slope @ control_points).to(self.dtype).reshape(-1, d).requires_grad_()
        with torch.enable_grad():
            squares = self.metric._quadratic(z, v)
        values = squares.detach().reshape(a, -1)
        energy = 0.5 * (values.double() * self.weights).sum(1)
        bad = negative(values)
        energy = torch.where(bad, torch.inf, energy)
        if self.inadmissible is not None:
            self.inadmissible[pairs] |= bad
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
