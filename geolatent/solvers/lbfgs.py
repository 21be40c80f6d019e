"""Batched minimisers: many small problems at once, each with its own step length and its own end.

They know callables and tensors, not geometry. ``init`` makes a state, ``step`` returns the next
one; a problem that is told to rest keeps its state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from geolatent.checks import check_integer, check_number

# values (A,), gradients (A, m) and, where it comes for free, approximate Hessians (A, m, m) of the
# problems ``index`` (A,) at x (A, m)
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]


def cholesky(matrix: Tensor, ridge: float = 1e-8) -> Tensor:
    """Factor H + ridge * mean(diag H) I, (A, m, m); where that fails, the diagonal of H.

    A matrix that is not finite is replaced by the identity.
    """
    finite = matrix.isfinite().flatten(1).all(1)
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    matrix = torch.where(finite[:, None, None], matrix, eye)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    scale = diagonal.mean(1).clamp_min(torch.finfo(matrix.dtype).tiny)
    factor, failed = torch.linalg.cholesky_ex(matrix + (ridge * scale)[:, None, None] * eye)
    floor = diagonal.clamp_min(0.0) + scale[:, None] * 1e-3
    return torch.where((failed > 0)[:, None, None], torch.diag_embed(floor.sqrt()), factor)


def cholesky_solved(factor: Tensor, vectors: Tensor) -> Tensor:
    """Return (L L^T)^-1 V for factors L (..., m, m) and V (A, m, k).

    By two solves, which are batched on every device; `torch.cholesky_solve` goes through large
    matrices one by one, and several times slower.
    """
    lower = torch.linalg.solve_triangular(factor, vectors, upper=False)
    return torch.linalg.solve_triangular(factor.mT, lower, upper=True)


@dataclass(frozen=True)
class Preconditioner(ABC):
    """Positive definite matrices H, one for each of A problems, of which H^-1 V can be had.

    Attributes
    ----------
    rescaled
        Whether H is known but for a factor, so that it is multiplied by y^T H^-1 y / s^T y, with
        the last accepted step s and the change y of the gradient on it.
    """

    rescaled: ClassVar[bool] = False

    @abstractmethod
    def solve(self, vectors: Tensor) -> Tensor:
        """Return H^-1 V for V (A, m, k)."""

    def select(self, chosen: Tensor) -> Self:
        """Return those of the problems at some places."""
        return replace(self, **{name: value[chosen] for name, value in self._own()})

    def join(self, other: Self) -> Self:
        """Return those of both."""
        joined = zip(self._own(), other._own(), strict=True)
        return replace(self, **{name: torch.cat([one, two]) for (name, one), (_, two) in joined})

    def _own(self) -> list[tuple[str, Tensor]]:
        """Return the tensors with one entry for each problem."""
        names = (field.name for field in fields(self) if field.name != "shared")
        return [(name, getattr(self, name)) for name in names]


@dataclass(frozen=True)
class DensePreconditioner(Preconditioner):
    """H by its Cholesky factors.

    Attributes
    ----------
    factor
        Shape (A, m, m).
    """

    factor: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> DensePreconditioner:
        """Factor H (A, m, m)."""
        return cls(cholesky(matrix))

    def solve(self, vectors: Tensor) -> Tensor:
        """Return H^-1 V for V (A, m, k)."""
        return cholesky_solved(self.factor, vectors)

    def where(self, taken: Tensor, other: DensePreconditioner) -> DensePreconditioner:
        """Return ``other`` for the problems (A,) that are marked, and this for the rest."""
        return DensePreconditioner(torch.where(taken[:, None, None], other.factor, self.factor))


@dataclass(frozen=True)
class KroneckerPreconditioner(Preconditioner):
    """H = S x G of a matrix S that the problems share and one G each; H is not formed.

    Attributes
    ----------
    factor
        Cholesky factors of G, (A, d, d).
    shared
        Cholesky factor of S, (n, n) with m = n d.
    """

    factor: Tensor
    shared: Tensor

    @classmethod
    def of(cls, shared: Tensor, matrix: Tensor) -> KroneckerPreconditioner:
        """Factor S (n, n) and G (A, d, d)."""
        return cls(cholesky(matrix), cholesky(shared[None])[0])

    def solve(self, vectors: Tensor) -> Tensor:
        """Return H^-1 V for V (A, m, k)."""
        return _solve_kronecker(
            self.shared, lambda parts: cholesky_solved(self.factor, parts), vectors
        )


@dataclass(frozen=True)
class LowRankPreconditioner(Preconditioner):
    """H = S x (c I + U diag(w) U^T), of a matrix S that the problems share; nothing is d x d.

    Attributes
    ----------
    ridge
        c, (A,).
    basis, weights
        U with orthonormal columns, (A, d, r), and w, (A, r); r may be zero.
    shared
        Cholesky factor of S, (n, n) with m = n d.
    """

    rescaled = True

    ridge: Tensor
    basis: Tensor
    weights: Tensor
    shared: Tensor

    def solve(self, vectors: Tensor) -> Tensor:
        """Return H^-1 V for V (A, m, k)."""

        def blocks(parts: Tensor) -> Tensor:
            # (c I + U w U^T)^-1 = (I - U w / (w + c) U^T) / c
            shrunk = (self.weights / (self.weights + self.ridge[:, None]))[:, :, None]
            along = self.basis @ (shrunk * (self.basis.mT @ parts))
            return (parts - along) / self.ridge[:, None, None]

        return _solve_kronecker(self.shared, blocks, vectors)


def _solve_kronecker(shared: Tensor, blocks: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    """Return (S x G)^-1 V for V (A, n d, k), with the factor of S and G^-1 of columns (A, d, c)."""
    a, m, k = vectors.shape
    n = shared.shape[0]
    solved = cholesky_solved(shared, vectors.reshape(a, n, (m // n) * k))
    # (A, n, d, k) -> (A, d, n k): the right factor acts on d
    solved = solved.reshape(a, n, m // n, k).transpose(1, 2).reshape(a, m // n, n * k)
    return blocks(solved).reshape(a, m // n, n, k).transpose(1, 2).reshape(a, m, k)


@dataclass(frozen=True)
class Memory:
    """The last h accepted steps of A problems, newest first; zeros where there are fewer.

    Attributes
    ----------
    differences, gradient_differences
        The steps and the changes of the gradient on them, (A, h, m).
    curvature
        The inverse inner products of both, (A, h).
    length
        Steps that may be remembered; entries beyond are zeros.
    """

    differences: Tensor
    gradient_differences: Tensor
    curvature: Tensor
    length: int = 0

    @classmethod
    def none(cls, x: Tensor, history: int) -> Memory:
        """Return the memory of problems at x (A, m) that have taken no step."""
        a, m = x.shape
        empty = x.new_zeros((a, history, m))
        return cls(empty, empty, x.new_zeros((a, history)))

    def _each(self, function: Callable[..., Tensor], *others: Memory) -> Memory:
        """Return the memory of what a function makes of every tensor of this and of others."""
        memories = (self, *others)
        return Memory(
            function(*(memory.differences for memory in memories)),
            function(*(memory.gradient_differences for memory in memories)),
            function(*(memory.curvature for memory in memories)),
            max(memory.length for memory in memories),
        )

    def select(self, chosen: Tensor) -> Memory:
        """Return that of the problems at some places."""
        return self._each(lambda mine: mine[chosen])

    def join(self, other: Memory) -> Memory:
        """Return that of both's problems."""
        return self._each(lambda mine, its: torch.cat([mine, its]), other)

    def put(self, index: Tensor, other: Memory) -> Memory:
        """Return this memory with that of some problems (A',) replaced by another's."""
        return self._each(lambda mine, its: mine.index_copy(0, index, its), other)

    def moved(self, steps: Tensor, gradients: Tensor) -> Memory:
        """Return what is remembered in other coordinates, x' = W x on each of d columns.

        Gradients change by another matrix, V, with V^T W the identity: inner products of both
        stay.

        Parameters
        ----------
        steps, gradients
            W and V, (n', n) with m = n d.
        """

        def apply(matrix: Tensor, values: Tensor) -> Tensor:
            a, h, m = values.shape
            blocks = values.reshape(a, h, matrix.shape[1], m // matrix.shape[1])
            return (matrix @ blocks).flatten(2)

        return replace(
            self,
            differences=apply(steps, self.differences),
            gradient_differences=apply(gradients, self.gradient_differences),
        )

    def push(self, useful: Tensor, move: Tensor, change: Tensor, inverse: Tensor) -> Memory:
        """Return the memory with one step more where it is useful, (A,)."""

        def pushed(values: Tensor, newest: Tensor) -> Tensor:
            newer = torch.cat([newest[:, None], values[:, :-1]], dim=1)
            return torch.where(useful.reshape(-1, *[1] * (values.ndim - 1)), newer, values)

        return Memory(
            pushed(self.differences, move),
            pushed(self.gradient_differences, change),
            pushed(self.curvature, inverse),
            min(self.length + 1, self.curvature.shape[1]),
        )


@dataclass(frozen=True)
class LBFGSState:
    """The state of A problems under `LBFGS`; all tensors have A rows.

    Attributes
    ----------
    x, value, gradient
        Point, value and gradient, (A, m), (A,), (A, m).
    direction, slope
        Search direction (A, m) and its inner product with the gradient (A,).
    step
        Step length to be tried next, (A,).
    memory
        The last accepted steps.
    rejections
        Rejected steps since the last accepted one, (A,).
    preconditioner
        H, factored.
    newton_decrement
        g^T H^-1 g, (A,).
    convex
        Whether the value curved upwards along the last accepted step, (A,).
    index
        The number of each problem among all.
    """

    x: Tensor
    value: Tensor
    gradient: Tensor
    direction: Tensor
    slope: Tensor
    step: Tensor
    memory: Memory
    rejections: Tensor
    preconditioner: Preconditioner
    newton_decrement: Tensor
    convex: Tensor
    index: Tensor

    def select(self, chosen: Tensor) -> LBFGSState:
        """Return the state of the problems at some places alone."""
        parts: dict[str, Any] = {
            name: value[chosen] if isinstance(value, Tensor) else value.select(chosen)
            for name, value in vars(self).items()
        }
        return LBFGSState(**parts)

    def join(self, other: LBFGSState) -> LBFGSState:
        """Return the state of both's problems, this one's first."""
        parts: dict[str, Any] = {}
        for name, mine in vars(self).items():
            its = getattr(other, name)
            parts[name] = torch.cat([mine, its]) if isinstance(mine, Tensor) else mine.join(its)
        return LBFGSState(**parts)

    @property
    def predicted_decrease(self) -> Tensor:
        """Decrease of the value that the quadratic model promises, (A,).

        The larger of the preconditioner's and the L-BFGS model's, so that neither a preconditioner
        that is too stiff nor a poor memory ends a problem early.
        """
        return 0.5 * torch.maximum(self.newton_decrement, -self.slope)


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a preconditioner as initial Hessian, batched.

    Every problem backtracks by itself: an evaluation that one problem spends on a shorter step is
    a new iteration for the others.

    Parameters
    ----------
    history
        Number of step pairs kept.
    sufficient_decrease
        Armijo's constant.
    max_rejections
        A problem whose step was rejected so often in a row is stalled.

    References
    ----------
    Nocedal, Wright, "Numerical Optimization", 2006, algorithms 7.4 and 3.1. Oren, Luenberger,
    "Self-scaling variable metric algorithms", 1974.
    """

    history: int = 20
    sufficient_decrease: float = 1e-4
    max_rejections: int = 12

    def __post_init__(self) -> None:
        check_integer("history", self.history)
        check_number("sufficient_decrease", self.sufficient_decrease, above=0.0, at_most=0.5)
        check_integer("max_rejections", self.max_rejections)

    def init(
        self,
        x: Tensor,
        value: Tensor,
        gradient: Tensor,
        preconditioner: Preconditioner,
        memory: Memory | None = None,
    ) -> LBFGSState:
        """Return the state at x (B, m), whose values and gradients are known.

        What was remembered of steps before, in the same coordinates, may be given.
        """
        index = torch.arange(x.shape[0], device=x.device)
        state = LBFGSState(
            x=x,
            value=value,
            gradient=gradient,
            direction=gradient,
            slope=value,
            step=torch.ones_like(value),
            memory=Memory.none(x, self.history) if memory is None else memory,
            rejections=torch.zeros_like(index),
            preconditioner=preconditioner,
            newton_decrement=value,
            convex=torch.ones_like(index, dtype=torch.bool),
            index=index,
        )
        direction, decrement = self._direction(state)
        slope = (direction * gradient).sum(1)
        return replace(state, direction=direction, slope=slope, newton_decrement=decrement)

    def step(self, state: LBFGSState, objective: Objective) -> LBFGSState:
        """Evaluate each problem once, at its trial point, and return the next state.

        A Hessian that comes with the objective becomes the preconditioner where the step is taken.
        """
        move = state.step[:, None] * state.direction
        trial = state.x + move
        value, gradient, hessian = objective(trial, state.index)
        finite = value.isfinite() & gradient.isfinite().all(1)
        promised = state.step * state.slope
        accepted = finite & (value <= state.value + self.sufficient_decrease * promised)

        # where rejected: the minimiser of the parabola through what is known, within bounds
        curvature = 2.0 * (value - state.value - promised)
        factor = torch.where(curvature > 0, -promised / curvature, 0.5)
        factor = torch.where(finite, factor.nan_to_num(0.1).clamp(0.1, 0.5), 0.1)
        step = torch.where(accepted, torch.ones_like(state.step), state.step * factor)
        rejections = torch.where(accepted, 0, state.rejections + 1)

        take = accepted[:, None]
        change = torch.where(take, gradient - state.gradient, 0.0)
        state = replace(
            state,
            x=torch.where(take, trial, state.x),
            value=torch.where(accepted, value, state.value),
            gradient=torch.where(take, gradient, state.gradient),
            step=step,
            rejections=rejections,
        )
        state = self._remember(state, torch.where(take, move, 0.0), change)
        if hessian is not None:
            newer = DensePreconditioner.of(hessian)
            state = replace(state, preconditioner=_dense(state).where(accepted, newer))
        direction, decrement = self._direction(state)
        # a rejected step keeps its direction
        direction = torch.where(take, direction, state.direction)
        return replace(
            state,
            direction=direction,
            slope=(direction * state.gradient).sum(1),
            newton_decrement=torch.where(accepted, decrement, state.newton_decrement),
        )

    def renew(self, state: LBFGSState, chosen: Tensor, hessian: Tensor) -> LBFGSState:
        """Give the problems at some places new dense Hessians; they go on from where they are."""
        factor = _dense(state).factor.index_copy(0, chosen, cholesky(hessian))
        state = replace(state, preconditioner=DensePreconditioner(factor))
        part = state.select(chosen)
        found, decrement = self._direction(part)
        direction = state.direction.index_copy(0, chosen, found)
        return replace(
            state,
            direction=direction,
            slope=(direction * state.gradient).sum(1),
            newton_decrement=state.newton_decrement.index_copy(0, chosen, decrement),
        )

    def stalled(self, state: LBFGSState) -> Tensor:
        """Return which problems found no decrease along their direction, (A,)."""
        return state.rejections >= self.max_rejections

    def _remember(self, state: LBFGSState, move: Tensor, change: Tensor) -> LBFGSState:
        """Put a step in front of the history where its curvature is positive."""
        inner = (move * change).sum(1)
        floor = 1e-10 * move.norm(dim=1) * change.norm(dim=1)
        useful = inner > floor
        inverse = torch.where(useful, 1.0 / inner, 0.0)
        return replace(
            state,
            convex=torch.where(move.any(1), useful, state.convex),
            memory=state.memory.push(useful, move, change, inverse),
        )

    def _direction(self, state: LBFGSState) -> tuple[Tensor, Tensor]:
        """Return the two-loop recursion's direction, and g^T H^-1 g."""
        memory = state.memory
        rest = state.gradient
        coefficients = []
        for k in range(memory.length):
            moved = memory.differences[:, k]
            coefficient = memory.curvature[:, k] * (moved * rest).sum(1)
            rest = rest - coefficient[:, None] * memory.gradient_differences[:, k]
            coefficients.append(coefficient)
        # all right sides in one solve; empty memories (zeros) change nothing in the loops
        last = memory.gradient_differences[:, 0]
        sides = torch.stack([rest, state.gradient, last], dim=2)
        downhill, newton, secant = state.preconditioner.solve(sides).unbind(2)
        if state.preconditioner.rescaled:
            inverse = memory.curvature[:, 0] * (last * secant).sum(1)
            downhill = torch.where(inverse > 0, 1.0 / inverse, 1.0)[:, None] * downhill
        for k in reversed(range(memory.length)):
            changed = memory.gradient_differences[:, k]
            correction = memory.curvature[:, k] * (changed * downhill).sum(1)
            step = (coefficients[k] - correction)[:, None]
            downhill = downhill + step * memory.differences[:, k]
        return -downhill, (state.gradient * newton).sum(1)


def _dense(state: LBFGSState) -> DensePreconditioner:
    """Return the preconditioner, which new Hessians can take the place of."""
    if not isinstance(state.preconditioner, DensePreconditioner):
        raise RuntimeError("only dense preconditioners are renewed")
    return state.preconditioner
