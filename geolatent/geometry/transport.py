"""Parallel transport of tangent vectors along curves."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.arrays import Array
from geolatent.checks import check_alike, check_number, check_tensor, requirement
from geolatent.curves import CubicBSpline, basis_matrix
from geolatent.lengths import check_curve
from geolatent.metrics.base import Metric
from geolatent.metrics.operators import check_formed
from geolatent.metrics.rows import Rows

# equal intervals of t, each of which is halved by itself
_INTERVALS = 8
# steps of one curve that are looked at
_MAX_STEPS = 2**14
# halves whose Jacobians change so differently (0: alike, 1/2: only in one) are not smooth
_UNEVEN = 0.1
# what two creases within a step may do lies at least so far below its bound
_BOUND_EXCESS = 30.0
# a direction counts as one without length below this part of the longest one's length
_NO_LENGTH = 1e-6


def parallel_transport(
    metric: Metric,
    curve: CubicBSpline,
    vectors: Array,
    t: Array | None = None,
    *,
    tolerance: float = 1e-4,
) -> Tensor:
    r"""Return vectors V(t) that start as V(0) = v and stay parallel along curves gamma.

    .. math::

        \frac{dV}{dt} + \Gamma(\gamma', V) = 0,

    Gamma the Christoffel symbols of the metric, which are not formed. Over a step from z to y, with
    the symmetric roots of the tensors as orthonormal frames,

    .. math::

        V(y) = G(y)^{-1/2} R \, G(z)^{1/2} V(z),
        \quad R \text{ the rotation nearest to } G(y)^{-1/2} C \, G(z)^{-1/2},

    so that inner products are kept to rounding, and a curve run backwards undoes its transport. C
    holds the inner products of the coordinate directions at y with those at z:

    - where the metric has an immersion F, C = J_F(y)^T J_F(z): each tangent space of the image is
      turned into the next by the smallest rotation. No second derivative enters, so kinks (ReLU,
      ELU) need no care: across a crease the image is unfolded;
    - else C = (G(y) + G(z)) / 2 - h K with K = (B - B^T) / 2 and B_ij = d (G gamma')_i / dz_j in
      the middle of the step h, by reverse mode (d passes; d is the latent dimension). The tensor
      must then be continuous: a jump, as ReLU makes, has a warning.

    Either is of second order in the step, and of fourth order after Richardson's extrapolation,
    which takes R from a step and its two halves. Each of eight equal intervals of t is halved by
    itself until the two agree. Where the Jacobian jumps, halving goes on until the creases that a
    curve crosses lie apart, one in a step, however close they are: between them R is exact.

    Where decoders ignore directions, transport is that of the others (pseudo-inverses of the
    roots): directions shorter than 1e-6 of the longest count as without length, and the parts of
    vectors in them are dropped, with a warning.

    Parameters
    ----------
    metric
        The metric.
    curve
        B curves.
    vectors
        Tangent vectors at gamma(0), (B, d), or k for each curve, (B, k, d); of the curve's dtype
        and device.
    t
        Times in [0, 1] at which to return them, (T,), in any order; by default only 1.
    tolerance
        What a vector may be off at t = 1, as a part of its length; an aim, no bound: halving goes
        on until what it changes is below ten times the step's share of it, or a hundredth of it
        where steps are very short.

    Returns
    -------
    Tensor
        Of the shape of ``vectors``, or (B, T, d), or (B, T, k, d), in units of the codes; without
        gradients. NaN, with a warning, for curves along which the metric is not finite, negative in
        a direction, or changes its rank.

        Decoder rows: three metric tensors for each step that is looked at, d forward rows each;
        without an immersion five, three of them with d backward rows. At least eight steps for each
        curve, one more for each triple knot and time in ``t``; some tens on a smooth decoder; with
        ReLU some ten for each crease.

    References
    ----------
    do Carmo, "Riemannian Geometry", 1992, chapter 2. Singer, Wu, "Vector diffusion maps and the
    connection Laplacian", Comm. Pure Appl. Math. 65, 2012, https://arxiv.org/abs/1102.0075, section
    2, for rotations between tangent spaces. Kabsch, "A solution for the best rotation to relate two
    sets of vectors", Acta Cryst. A32, 1976.

    Examples
    --------
    In polar coordinates (radius, angle) of the plane, the vector that points outwards at angle 0
    points against the growing angle a quarter of a turn later:

    >>> from geolatent import PullbackMetric
    >>> def plane(z):
    ...     return torch.stack([z[:, 0] * z[:, 1].cos(), z[:, 0] * z[:, 1].sin()], dim=1)
    >>> arc = CubicBSpline.straight(torch.tensor([1.0, 0.0]), torch.tensor([1.0, torch.pi / 2]))
    >>> moved = parallel_transport(PullbackMetric(plane), arc, torch.tensor([[1.0, 0.0]]))
    >>> bool(torch.allclose(moved, torch.tensor([[0.0, -1.0]]), atol=1e-4))
    True
    """
    metric, curve, code_shape = check_curve(metric, curve)
    vectors = code_shape.flat("vectors", vectors)
    instead = "vectors along a curve are turned in all directions at once, which has no shorter way"
    check_formed("curve", curve.dim, instead)
    codes = curve.control_points[:, 0].detach()
    b, d = codes.shape
    shape = f"({b}, {d}) or ({b}, k, {d})"
    v = check_tensor("vectors", vectors, shape, like=metric.like).detach()
    check_alike("vectors", v, "curve", codes)
    times = torch.ones(1, dtype=torch.float64, device=v.device)
    if t is not None:
        times = check_tensor("t", t, "(T,)").detach().double()
        if not bool(((times >= 0.0) & (times <= 1.0)).all()):
            found = f"{float(times.min())} to {float(times.max())}"
            raise ValueError(requirement("t", "in [0, 1]", found))
        times = times.to(v.device)
    tolerance = check_number("tolerance", tolerance, above=0.0)
    matrices = _transports(Rows.of(metric, codes), curve, times, tolerance)
    moved = torch.einsum("btij,bkj->btki", matrices, v.reshape(b, -1, d).double()).to(v.dtype)
    moved = moved if v.ndim == 3 else moved[:, :, 0]
    return code_shape.back(moved[:, 0] if t is None else moved)


@dataclass(frozen=True)
class _Steps:
    """The metric at both ends and in the middle of n steps.

    Attributes
    ----------
    tensors
        G at start, middle and end, (n, 3, d, d).
    first, second, whole
        C of both halves and of the whole step, (n, d, d).
    jump
        What the tensor changes by beyond its derivative, as a part of itself, (n,), or None where
        jumps do no harm.
    """

    tensors: Tensor
    first: Tensor
    second: Tensor
    whole: Tensor
    jump: Tensor | None = None


class _Field(ABC):
    """A metric along curves."""

    def __init__(self, rows: Rows, curve: CubicBSpline) -> None:
        self.rows = rows
        self.dtype = curve.control_points.dtype
        self.knots = curve.knots
        self.control_points = curve.control_points.detach().double()

    def along(self, curves: Tensor, t: Tensor, derivative: int = 0) -> Tensor:
        """Return points or derivatives of the curves at times of each's own, (n, T, d)."""
        basis = basis_matrix(self.knots, t, derivative)
        return (basis @ self.control_points[curves]).to(self.dtype)

    @abstractmethod
    def steps(self, curves: Tensor, start: Tensor, end: Tensor) -> _Steps:
        """Evaluate the metric on n steps between times, (n,) each."""


class _ImmersedField(_Field):
    """By the columns of the immersion's Jacobian, of which only inner products are kept."""

    def steps(self, curves: Tensor, start: Tensor, end: Tensor) -> _Steps:
        d = self.control_points.shape[2]
        t = torch.stack([start, 0.5 * (start + end), end], dim=1)

        def part(t: Tensor, curves: Tensor) -> tuple[Tensor, ...]:
            columns = self.rows.columns(self.along(curves, t))[1].double()
            tensors = torch.einsum("nkiD,nkjD->nkij", columns, columns)
            start, middle, end = columns.unbind(1)
            crossed = (
                torch.einsum("niD,njD->nij", there, here)
                for there, here in ((middle, start), (end, middle), (end, start))
            )
            return tensors, *crossed

        return _Steps(*self.rows.each(part, 3 * d, t, curves))


class _TensorField(_Field):
    """By the metric tensor and its derivative, which is taken in the middle of what is crossed."""

    def steps(self, curves: Tensor, start: Tensor, end: Tensor) -> _Steps:
        d = self.control_points.shape[2]
        share = torch.linspace(0.0, 1.0, 5, dtype=start.dtype, device=start.device)
        t = start[:, None] + (end - start)[:, None] * share
        t[:, 4] = end

        def part(t: Tensor, curves: Tensor) -> tuple[Tensor, ...]:
            z = self.along(curves, t)
            v = self.along(curves, t[:, 1:4], derivative=1)
            n = len(z)
            point = z[:, 1:4].reshape(-1, d).requires_grad_()
            velocity = v.reshape(-1, d)
            with torch.enable_grad():
                inner = self.rows.differentiable_tensor(point)
                lowered = torch.einsum("nij,nj->ni", inner, velocity)
            gradient = torch.zeros_like(inner)
            for i in range(d if lowered.requires_grad else 0):
                (gradient[:, i],) = torch.autograd.grad(
                    lowered[:, i].sum(), point, retain_graph=i < d - 1, materialize_grads=True
                )
            outer = self.rows.tensor(z[:, ::4]).double()
            middle = inner.detach().reshape(n, 3, d, d)[:, 1].double()
            gradients = gradient.double().reshape(n, 3, d, d)
            tensors = torch.stack([outer[:, 0], middle, outer[:, 1]], dim=1)
            return tensors, gradients, v.double()

        cost = 5 * self.rows.metric.tensor_rows(d) + 3 * d
        tensors, gradients, v = self.rows.each(part, cost, t, curves)
        turning = 0.5 * (gradients - gradients.mT)
        length = (end - start)[:, None, None]

        def crossed(here: int, there: int, at: int, h: Tensor) -> Tensor:
            return 0.5 * (tensors[:, here] + tensors[:, there]) - h * turning[:, at]

        # of G gamma' with gamma' held, whose derivative is known; per unit of |gamma'|
        change = tensors[:, 2] - tensors[:, 0] - length * gradients[:, 1]
        excess = torch.einsum("nij,nj->ni", change, v[:, 1]).norm(dim=1)
        speed = torch.einsum("nij,nj->ni", tensors[:, 1], v[:, 1]).norm(dim=1)
        return _Steps(
            tensors,
            crossed(0, 1, 0, 0.5 * length),
            crossed(1, 2, 2, 0.5 * length),
            crossed(0, 2, 1, length),
            torch.where(speed > 0.0, excess / speed, 0.0),
        )


@dataclass(frozen=True)
class _Roots:
    """Symmetric roots of tensors (..., d, d), and of their pseudo-inverses; ranks, (...).

    ``bad``, (...), marks tensors that are not finite or have a negative eigenvalue.
    """

    root: Tensor
    inverse: Tensor
    rank: Tensor
    bad: Tensor

    @classmethod
    def of(cls, tensors: Tensor, dtype: torch.dtype) -> _Roots:
        """Take the roots; ``dtype`` is the type whose rounding the tensors have."""
        bad = ~tensors.isfinite().all(-1).all(-1)
        values, vectors = torch.linalg.eigh(_unit_where(bad, tensors))
        largest = values.abs().amax(-1, keepdim=True)
        bad = bad | (values < -(torch.finfo(dtype).eps ** 0.5) * largest).any(-1)
        long = values > _NO_LENGTH**2 * largest
        roots = torch.where(long, values, 0.0).sqrt()
        inverses = torch.where(long, values, torch.inf).rsqrt()
        root, inverse = ((vectors * part[..., None, :]) @ vectors.mT for part in (roots, inverses))
        return cls(root, inverse, long.sum(-1), bad)


def _unit_where(bad: Tensor, matrices: Tensor) -> Tensor:
    """Put unit matrices where they are bad: decompositions raise for all at what is not finite."""
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    return torch.where(bad[..., None, None], eye, matrices)


def _rotations(matrices: Tensor, rank: Tensor) -> Tensor:
    """Return the nearest rotations; below full rank the nearest partial isometries of that rank.

    Orthogonal matrices of determinant 1: along a curve orientation is kept, also where a fold
    turns a tangent space by more than a right angle.
    """
    d = matrices.shape[-1]
    bad = ~matrices.isfinite().all(-1).all(-1)
    left, _, right = torch.linalg.svd(_unit_where(bad, matrices))
    signs = (rank[:, None] > torch.arange(d, device=rank.device)).to(matrices)
    mirrored = (torch.linalg.det(left) * torch.linalg.det(right) < 0.0) & (rank == d)
    signs[:, -1] = torch.where(mirrored, -1.0, signs[:, -1])
    return (left * signs[:, None, :]) @ right


@dataclass(frozen=True)
class _Turned:
    """Rotations over n steps, (n, d, d), roots at start, middle and end, and what is left to do.

    ``error``, (n,), is what halving the step changes; ``bound``, (n,), what two creases in one of
    its halves may do; ``noise``, (n,), what rounding may.
    """

    rotation: Tensor
    roots: _Roots
    error: Tensor
    bound: Tensor
    noise: Tensor

    @classmethod
    def over(cls, steps: _Steps, dtype: torch.dtype) -> _Turned:
        """Turn the tangent spaces at the start into those at the end."""
        roots = _Roots.of(steps.tensors, dtype)
        rank = roots.rank[:, 0]
        start, middle, end = roots.inverse.unbind(1)
        first = _rotations(middle @ steps.first @ start, rank)
        second = _rotations(end @ steps.second @ middle, rank)
        whole = _rotations(end @ steps.whole @ start, rank)
        fine = second @ first
        # (4 fine - coarse) / 3 cancels the leading error
        rotation = _rotations((4.0 * fine - whole) / 3.0, rank)
        error = torch.linalg.matrix_norm(fine - whole)
        if steps.jump is not None:
            bound = torch.zeros_like(error)
            error = torch.maximum(error, steps.jump)
        else:
            bound = _crease_bound(steps, start)
        noise = torch.linalg.matrix_norm(roots.root[:, 0]) * torch.linalg.matrix_norm(start)
        return cls(rotation, roots, error, bound, 16.0 * torch.finfo(dtype).eps * noise)


def _crease_bound(steps: _Steps, inverse: Tensor) -> Tensor:
    """Return the product of the two largest stretches by which the Jacobian changes in a half.

    A crease changes it by a matrix of rank one, so that of one alone the bound is zero. It is also
    zero where the halves change alike, as on smooth maps in short steps.
    """
    start, middle, end = steps.tensors.unbind(1)
    squares = []
    for here, there, crossed in (
        (start, middle, steps.first),
        (middle, end, steps.second),
        (start, end, steps.whole),
    ):
        squares.append(inverse @ (here + there - crossed - crossed.mT) @ inverse)
    halves = torch.stack(squares[:2], dim=1)
    finite = halves.isfinite().all(-1).all(-1)
    values = torch.linalg.eigvalsh(_unit_where(~finite, halves)).clamp_min(0.0)
    two = values[..., -2:].prod(-1).sqrt() if values.shape[-1] > 1 else 0.0 * values[..., 0]
    parts = halves.diagonal(dim1=2, dim2=3).sum((1, 2))
    uneven = 2.0 * parts - squares[2].diagonal(dim1=1, dim2=2).sum(1) > 2.0 * _UNEVEN * parts
    return torch.where(uneven, two.amax(1), 0.0)


def _transports(rows: Rows, curve: CubicBSpline, times: Tensor, tolerance: float) -> Tensor:
    """Return the matrices that take v to V(t), (B, T, d, d), float64; NaN and warnings as told."""
    b, knots = curve.batch_size, curve.knots
    equal = torch.linspace(0.0, 1.0, _INTERVALS + 1, dtype=torch.float64, device=knots.device)
    # simple knots are passed over: the curve is smooth there
    kinks = knots[1:-2][knots[1:-2] == knots[3:]]
    breaks = torch.cat([equal, kinks, times]).unique()
    kind = _TensorField if rows.metric.immersion is None else _ImmersedField
    found = _follow(kind(rows, curve), breaks, tolerance)
    at = torch.searchsorted(breaks, times)
    jump = "" if rows.metric.immersion else "; does the metric's tensor jump?"
    for curves, before, after in (
        (
            found.lost,
            "the metric is not finite, is negative in a direction or changes its rank along",
            ": their vectors are NaN",
        ),
        (
            found.singular,
            "the metric is singular along",
            ": parts of vectors in directions without length are dropped",
        ),
        (
            found.unresolved,
            "the parallel transport along",
            f" did not reach the tolerance {tolerance} with the shortest steps{jump}",
        ),
    ):
        if bool(curves.any()):
            text = f"{before} {int(curves.sum())} of {b} curves{after}"
            warnings.warn(text, stacklevel=3)
    return found.matrices[:, at]


@dataclass(frozen=True)
class _Followed:
    """Matrices that take v to the breaks, (B, K + 1, d, d); which curves have a defect, (B,)."""

    matrices: Tensor
    unresolved: Tensor
    singular: Tensor
    lost: Tensor


def _follow(field: _Field, breaks: Tensor, tolerance: float) -> _Followed:
    """Halve steps, all curves' at once, until what that changes is small; compose what they do."""
    b, _, d = field.control_points.shape
    device, eps = breaks.device, torch.finfo(field.dtype).eps
    curves = torch.arange(b, device=device).repeat_interleave(len(breaks) - 1)
    start, end = breaks[:-1].repeat(b), breaks[1:].repeat(b)
    unresolved, lost = (torch.zeros(b, dtype=torch.bool, device=device) for _ in range(2))
    looked_at = torch.zeros(b, dtype=torch.int64, device=device)
    levels: list[tuple[Tensor, Tensor]] = []
    deepest = int(-math.log2(eps)) - 1  # where times next to each other give the same codes
    for level in range(deepest + 1):
        turned = _Turned.over(field.steps(curves, start, end), field.dtype)
        roots = turned.roots
        if level == 0:
            ends = _at_breaks(roots, b)
            rank = ends.rank[:, 0]
        bad = roots.bad.any(1) | (roots.rank != rank[curves, None]).any(1)
        lost[curves[bad]] = True
        looked_at.index_add_(0, curves, torch.ones_like(curves))
        enough = tolerance * (10.0 * (end - start)).clamp_min(0.01)
        open_ = (turned.error > torch.maximum(enough, turned.noise)) | (turned.bound > tolerance)
        open_ &= ~lost[curves]
        last = (looked_at[curves] >= _MAX_STEPS) | (level == deepest)
        # the bound is far above what creases do, and is for telling where to look
        off = turned.error > turned.noise.clamp_min(tolerance)
        off |= turned.bound > _BOUND_EXCESS * tolerance
        unresolved[curves[open_ & last & off]] = True
        halved = (open_ & ~last).nonzero()[:, 0]
        levels.append((turned.rotation, halved))
        if not halved.numel():
            break
        middle = 0.5 * (start + end)[halved]
        curves = curves[halved].repeat_interleave(2)
        start, end = (
            torch.stack(pair, dim=1).flatten()
            for pair in ((start[halved], middle), (middle, end[halved]))
        )
    whole, _ = levels.pop()
    while levels:
        halves = whole
        whole, halved = levels.pop()
        whole[halved] = halves[1::2] @ halves[::2]
    turns = [torch.eye(d, dtype=torch.float64, device=device).expand(b, d, d)]
    for step in whole.reshape(b, -1, d, d).unbind(1):
        turns.append(step @ turns[-1])
    matrices = ends.inverse @ torch.stack(turns, dim=1) @ ends.root[:, :1]
    matrices[lost] = torch.nan
    return _Followed(matrices, unresolved & ~lost, (rank < d) & ~lost, lost)


def _at_breaks(roots: _Roots, b: int) -> _Roots:
    """Return the roots at the breaks of b curves from those of the steps between."""

    def joined(values: Tensor) -> Tensor:
        by_curve = values.unflatten(0, (b, -1))
        return torch.cat([by_curve[:, :, 0], by_curve[:, -1:, 2]], dim=1)

    return _Roots(*(joined(part) for part in (roots.root, roots.inverse, roots.rank, roots.bad)))
