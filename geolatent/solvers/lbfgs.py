"""Batched minimisers: many small problems at once, each with its own step length and its own end.

They know callables and tensors, not geometry. ``init`` makes a state, ``step`` returns the next
one; a problem that is told to rest keeps its state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Preconditioner:
    """Factored positive definite matrices H, one for each of A problems.

    H is dense, or a Kronecker product S x G of a matrix S that the problems share and one G each;
    then nothing of the size of H is formed.

    Attributes
    ----------
    factor
        Cholesky factors of H (A, m, m), or of G (A, d, d).
    shared
        Cholesky factor of S (n, n) with m = n d, or None where H is dense.
    """

    factor: Tensor
    shared: Tensor | None = None

    @classmethod
    def dense(cls, matrix: Tensor) -> Preconditioner:
        """Factor H (A, m, m)."""
        return cls(cholesky(matrix))

    @classmethod
    def kronecker(cls, shared: Tensor, matrix: Tensor) -> Preconditioner:
        """Factor S (n, n) and G (A, d, d)."""
        return cls(cholesky(matrix), cholesky(shared[None])[0])

    def solve(self, vectors: Tensor) -> Tensor:
        """Return H^-1 V for V (A, m, k)."""
        if self.shared is None:
            return torch.cholesky_solve(vectors, self.factor)
        a, m, k = vectors.shape
        n = self.shared.shape[0]
        blocks = vectors.reshape(a, n, (m // n) * k)
        blocks = torch.cholesky_solve(blocks, self.shared.expand(a, n, n))
        # (A, n, d, k) -> (A, d, n k): the right factor acts on d
        blocks = blocks.reshape(a, n, m // n, k).transpose(1, 2).reshape(a, m // n, n * k)
        solved = torch.cholesky_solve(blocks, self.factor).reshape(a, m // n, n, k)
        return solved.transpose(1, 2).reshape(a, m, k)

    def select(self, chosen: Tensor) -> Preconditioner:
        """Return those of the chosen problems."""
        return Preconditioner(self.factor[chosen], self.shared)

    def join(self, other: Preconditioner) -> Preconditioner:
        """Return those of both."""
        return Preconditioner(torch.cat([self.factor, other.factor]), self.shared)

    def where(self, taken: Tensor, other: Preconditioner) -> Preconditioner:
        """Return ``other`` for the problems (A,) that are marked, and this for the rest."""
        return Preconditioner(
            torch.where(taken[:, None, None], other.factor, self.factor), self.shared
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
    differences, gradient_differences, curvature
        Last h accepted steps, (A, h, m), the changes of the gradient on them, and the inverse inner
        products of both, (A, h), newest first; zeros where there are fewer.
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
    differences: Tensor
    gradient_differences: Tensor
    curvature: Tensor
    rejections: Tensor
    preconditioner: Preconditioner
    newton_decrement: Tensor
    convex: Tensor
    index: Tensor

    def select(self, chosen: Tensor) -> LBFGSState:
        """Return the state of the chosen problems alone."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        preconditioner = fields.pop("preconditioner").select(chosen)
        selected = {name: value[chosen] for name, value in fields.items()}
        return LBFGSState(preconditioner=preconditioner, **selected)

    def join(self, other: LBFGSState) -> LBFGSState:
        """Return the state of both's problems, this one's first."""
        names = set(self.__dataclass_fields__) - {"preconditioner"}
        joined = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in names}
        return LBFGSState(preconditioner=self.preconditioner.join(other.preconditioner), **joined)

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
    Nocedal, Wright, "Numerical Optimization", 2006, algorithms 7.4 and 3.1.
    """

    history: int = 8
    sufficient_decrease: float = 1e-4
    max_rejections: int = 12

    def __post_init__(self) -> None:
        check_integer("history", self.history)
        check_number("sufficient_decrease", self.sufficient_decrease, above=0.0, at_most=0.5)
        check_integer("max_rejections", self.max_rejections)

    def init(
        self, x: Tensor, value: Tensor, gradient: Tensor, preconditioner: Preconditioner
    ) -> LBFGSState:
        """Return the state at x (B, m), whose values and gradients are known."""
        b, m = x.shape
        index = torch.arange(b, device=x.device)
        empty = x.new_zeros((b, self.history, m))
        downhill = preconditioner.solve(gradient.unsqueeze(2)).squeeze(2)
        decrement = (gradient * downhill).sum(1)
        return LBFGSState(
            x=x,
            value=value,
            gradient=gradient,
            direction=-downhill,
            slope=-decrement,
            step=torch.ones_like(value),
            differences=empty,
            gradient_differences=empty,
            curvature=x.new_zeros((b, self.history)),
            rejections=torch.zeros_like(index),
            preconditioner=preconditioner,
            newton_decrement=decrement,
            convex=torch.ones_like(index, dtype=torch.bool),
            index=index,
        )

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
            newer = state.preconditioner.where(accepted, Preconditioner.dense(hessian))
            state = replace(state, preconditioner=newer)
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
        """Give the chosen problems (A,) new dense Hessians; they go on from where they are."""
        place = chosen.nonzero().squeeze(1)
        factor = state.preconditioner.factor.index_copy(0, place, cholesky(hessian))
        state = replace(state, preconditioner=Preconditioner(factor))
        direction, decrement = self._direction(state)
        direction = torch.where(chosen[:, None], direction, state.direction)
        return replace(
            state,
            direction=direction,
            slope=(direction * state.gradient).sum(1),
            newton_decrement=torch.where(chosen, decrement, state.newton_decrement),
        )

    def stalled(self, state: LBFGSState) -> Tensor:
        """Return which problems found no decrease along their direction, (A,)."""
        return state.rejections >= self.max_rejections

    def _remember(self, state: LBFGSState, move: Tensor, change: Tensor) -> LBFGSState:
        """Put a step in front of the history where its curvature is positive."""
        inner = (move * change).sum(1)
        floor = 1e-10 * move.norm(dim=1) * change.norm(dim=1)
        useful = inner > floor
        keep = useful[:, None, None]

        def push(memory: Tensor, newest: Tensor) -> Tensor:
            return torch.where(keep, torch.cat([newest[:, None], memory[:, :-1]], dim=1), memory)

        inverse = torch.where(useful, 1.0 / inner, 0.0)
        pushed = torch.cat([inverse[:, None], state.curvature[:, :-1]], dim=1)
        return replace(
            state,
            convex=torch.where(move.any(1), useful, state.convex),
            differences=push(state.differences, move),
            gradient_differences=push(state.gradient_differences, change),
            curvature=torch.where(useful[:, None], pushed, state.curvature),
        )

    def _direction(self, state: LBFGSState) -> tuple[Tensor, Tensor]:
        """Return the two-loop recursion's direction, and g^T H^-1 g."""
        rest = state.gradient
        coefficients = []
        for k in range(self.history):
            moved = state.differences[:, k]
            coefficient = state.curvature[:, k] * (moved * rest).sum(1)
            rest = rest - coefficient[:, None] * state.gradient_differences[:, k]
            coefficients.append(coefficient)
        # both right sides in one solve; empty memories (zeros) change nothing in the loops
        both = torch.stack([rest, state.gradient], dim=2)
        downhill, newton = state.preconditioner.solve(both).unbind(2)
        for k in reversed(range(self.history)):
            changed = state.gradient_differences[:, k]
            correction = state.curvature[:, k] * (changed * downhill).sum(1)
            downhill = downhill + (coefficients[k] - correction)[:, None] * state.differences[:, k]
        return -downhill, (state.gradient * newton).sum(1)
