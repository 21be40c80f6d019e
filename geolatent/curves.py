"""Clamped cubic B-spline curves in the latent space, batched over one shared knot vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.arrays import Array, Result, as_tensor
from geolatent.checks import (
    check_integer,
    check_number,
    check_pairs,
    check_tensor,
    describe,
    requirement,
)
from geolatent.shapes import CodeShape
from geolatent.transfers import sent

DEGREE = 3


def clamped_knots(n_control_points: int) -> Tensor:
    """Return the knots that repeated insertion at the middle of the largest interval leads to.

    Starts from {0,0,0,0,1,1,1,1} (four control points); ties go to the leftmost interval. float64,
    in the processor's memory.

    Parameters
    ----------
    n_control_points
        At least 4.

    Returns
    -------
    Tensor
        Shape (n_control_points + 4,).

    Examples
    --------
    >>> clamped_knots(6)[4:-4].tolist()
    [0.25, 0.5]
    """
    count = check_integer("n_control_points", n_control_points, minimum=DEGREE + 1)
    knots = torch.tensor([0.0] * 4 + [1.0] * 4, dtype=torch.float64, device="cpu")
    while knots.numel() < count + DEGREE + 1:
        middle = _middle_of_largest_interval(knots)
        knots = torch.cat([knots, knots.new_tensor([middle])]).sort().values
    return knots


def _middle_of_largest_interval(knots: Tensor) -> float:
    gaps = knots.diff()
    # rounding in the knots must not decide between intervals of equal length
    largest = int((gaps >= gaps.max() * (1.0 - 1e-9)).nonzero()[0])
    return float(knots[largest] + knots[largest + 1]) / 2.0


def basis_matrix(knots: Tensor, t: Tensor, derivative: int = 0) -> Tensor:
    """Evaluate all cubic B-spline basis functions, or their first derivatives.

    Uses the Cox-de Boor recursion on the four functions that are not zero on the knot span of t.

    Parameters
    ----------
    knots
        Clamped knot vector, shape (n + 4,).
    t
        Parameters in [0, 1], any shape.
    derivative
        0 for the functions, 1 for their derivatives with respect to t.

    Returns
    -------
    Tensor
        Shape (*t.shape, n).

    References
    ----------
    de Boor, "A Practical Guide to Splines", 1978, chapter X.
    """
    n = knots.numel() - DEGREE - 1
    span = torch.searchsorted(knots, t.contiguous(), right=True) - 1
    span = span.clamp(DEGREE, n - 1)  # t = 1 belongs to the last span
    degree = DEGREE - derivative
    values = [torch.ones_like(t)]
    for j in range(1, degree + 1):
        saved = torch.zeros_like(t)
        raised = []
        for r in range(j):
            left = t - knots[span + 1 - j + r]
            right = knots[span + r + 1] - t
            ratio = values[r] / (right + left)
            raised.append(saved + right * ratio)
            saved = left * ratio
        values = [*raised, saved]
    if derivative == 1:
        # B_i' = 3 (N_i / (u_{i+3} - u_i) - N_{i+1} / (u_{i+4} - u_{i+1})), N quadratic
        scaled = [
            DEGREE * values[r] / (knots[span + r + 1] - knots[span + r + 1 - DEGREE])
            for r in range(DEGREE)
        ]
        values = [-scaled[0], scaled[0] - scaled[1], scaled[1] - scaled[2], scaled[2]]
    matrix = t.new_zeros((*t.shape, n))
    columns = span.unsqueeze(-1) + torch.arange(-DEGREE, 1, device=t.device)
    return matrix.scatter(-1, columns, torch.stack(values, dim=-1))


def insertion_matrix(knots: Tensor, at: float) -> Tensor:
    """Return the matrix that maps control points to those after one knot insertion.

    Boehm's rule: Q_i = a_i P_i + (1 - a_i) P_{i-1} with a_i = (u - u_i) / (u_{i+3} - u_i) for the
    three points whose functions see the new knot u.

    Parameters
    ----------
    knots
        Shape (n + 4,).
    at
        The new knot, inside (0, 1).

    Returns
    -------
    Tensor
        Shape (n + 1, n).

    References
    ----------
    Boehm, "Inserting new knots into B-spline curves", Computer-Aided Design 12, 1980.
    """
    n = knots.numel() - DEGREE - 1
    span = int(torch.searchsorted(knots, knots.new_tensor(at), right=True)) - 1
    number = torch.arange(n + 1, device=knots.device)
    weights = (at - knots[: n + 1]) / (knots[DEGREE : n + 1 + DEGREE] - knots[: n + 1])
    weights = torch.where(number > span, 0.0, weights)
    weights = torch.where(number <= span - DEGREE, 1.0, weights)
    matrix = knots.new_zeros((n + 1, n))
    matrix.diagonal().copy_(weights[:n])
    matrix.diagonal(-1).copy_(1.0 - weights[1:])
    return matrix


def refine(knots: Tensor, n_control_points: int) -> tuple[Tensor, Tensor]:
    """Insert knots, each in the middle of the largest interval, up to a number of control points.

    Returns
    -------
    tuple[Tensor, Tensor]
        The new knots, and the matrix that maps the old control points to the new ones, of shape
        (n_control_points, n).
    """
    n = knots.numel() - DEGREE - 1
    matrix = torch.eye(n, dtype=knots.dtype, device=knots.device)
    for _ in range(n, n_control_points):
        middle = _middle_of_largest_interval(knots)
        matrix = insertion_matrix(knots, middle) @ matrix
        knots = torch.cat([knots, knots.new_tensor([middle])]).sort().values
    return knots, matrix


def union_of_knots(*vectors: Tensor) -> Tensor:
    """Return the knots of all vectors, each as often as where it comes most often.

    Splines on any of the vectors can be given these knots; see `inserting_matrix`.

    Examples
    --------
    >>> union_of_knots(clamped_knots(5), clamped_knots(6))[4:-4].tolist()
    [0.25, 0.5]
    """
    every, place = torch.cat(vectors).unique(return_inverse=True)
    parts = place.split([len(knots) for knots in vectors])
    counts = torch.stack([torch.bincount(part, minlength=len(every)) for part in parts])
    return every.repeat_interleave(counts.amax(0))


def inserting_matrix(knots: Tensor, wanted: Tensor) -> Tensor:
    """Return the matrix that maps control points on ``knots`` to those on more knots, ``wanted``.

    Parameters
    ----------
    knots
        Shape (n + 4,).
    wanted
        Shape (m + 4,), with all of ``knots`` among them.

    Returns
    -------
    Tensor
        Shape (m, n).
    """
    matrix = torch.eye(knots.numel() - DEGREE - 1, dtype=knots.dtype, device=knots.device)
    for at in wanted.unique():
        for _ in range(int((wanted == at).sum() - (knots == at).sum())):
            matrix = insertion_matrix(knots, float(at)) @ matrix
            knots = torch.cat([knots, at[None]]).sort().values
    return matrix


def greville_abscissae(knots: Tensor) -> Tensor:
    """Return the Greville abscissae, the means of three consecutive inner knots, shape (n,).

    A spline whose control points are g(abscissae) reproduces g exactly where g is linear, and is
    Schoenberg's variation-diminishing approximation of it otherwise.
    """
    n = knots.numel() - DEGREE - 1
    return torch.stack([knots[i + 1 : i + 1 + DEGREE].mean() for i in range(n)])


def straight_control_points(start: Tensor, end: Tensor, knots: Tensor) -> Tensor:
    """Return control points (B, n, d) of the lines from (B, d) to (B, d) at constant speed."""
    at = sent(greville_abscissae(knots).to(start.dtype), start)[None, :, None]
    points = torch.lerp(start[:, None], end[:, None], at)
    points[:, -1] = end  # lerp may round
    return points


@dataclass(frozen=True, eq=False)
class CubicBSpline(Result):
    """Clamped cubic B-spline curves gamma(t) = sum_i B_i(t) P_i, t in [0, 1].

    Parameters
    ----------
    control_points
        Shape (B, n, d), n at least 4; the first and last one are the curve's end points. B may be
        0, as where none of a batch was chosen.
    knots
        Shape (n + 4,), clamped: four zeros, nondecreasing inner knots in (0, 1) each at most
        three-fold, four ones. Shared by the batch. Kept in float64.
    code_shape
        Shape of one code, of d numbers, which points of the curves then have: (B, T, *code_shape).
        None where codes are flat. Control points always are.

    Raises
    ------
    ValueError, TypeError
        Where shapes do not fit or the knots are not clamped.

    Examples
    --------
    >>> curve = CubicBSpline.straight(torch.zeros(2), torch.tensor([2.0, 4.0]))
    >>> curve(torch.tensor([0.0, 0.5, 1.0]))
    tensor([[[0., 0.],
             [1., 2.],
             [2., 4.]]])
    >>> curve.insert_knot().n_control_points
    5
    """

    control_points: Tensor
    knots: Tensor
    code_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        points = check_tensor("control_points", self.control_points, "(B, n, d)", empty=True)
        knots = check_tensor("knots", self.knots, "(n + 4,)").double()
        n = points.shape[1]
        if n < DEGREE + 1:
            required = "a tensor of shape (B, n, d) with n at least 4"
            raise ValueError(requirement("control_points", required, describe(points)))
        if knots.numel() != n + DEGREE + 1:
            required = f"a tensor of shape ({n + DEGREE + 1},) for {n} control points"
            raise ValueError(requirement("knots", required, describe(knots)))
        clamped = bool((knots[:4] == 0).all()) and bool((knots[-4:] == 1).all())
        inner = knots[4:-4]
        inside = bool((inner > 0).all()) and bool((inner < 1).all())
        smooth = bool((knots[1:-1].diff() >= 0).all()) and bool((inner[3:] > inner[:-3]).all())
        if not (clamped and inside and smooth):
            required = "four zeros, nondecreasing inner knots in (0, 1) at most 3-fold, four ones"
            raise ValueError(requirement("knots", required, knots.tolist()))
        if self.code_shape is not None and math.prod(self.code_shape) != points.shape[2]:
            required = f"of {points.shape[2]} numbers, as the control points have"
            raise ValueError(requirement("code_shape", required, self.code_shape))
        object.__setattr__(self, "control_points", points)
        object.__setattr__(self, "knots", knots.to(points.device))

    @classmethod
    def trusted(
        cls, control_points: Tensor, knots: Tensor, code_shape: tuple[int, ...] | None = None
    ) -> CubicBSpline:
        """Return curves made inside the package, whose parts are known to fit, unchecked.

        A check of values would make the processor wait for the device.
        """
        curve = object.__new__(cls)
        object.__setattr__(curve, "control_points", control_points)
        object.__setattr__(curve, "knots", knots)
        object.__setattr__(curve, "code_shape", code_shape)
        return curve

    @classmethod
    def straight(cls, start: Array, end: Array, n_control_points: int = 4) -> CubicBSpline:
        """Return straight lines at constant speed.

        Parameters
        ----------
        start, end
            Shape (d,) or (B, d) each, broadcast, or codes of any shape, (B, ...).
        n_control_points
            At least 4.
        """
        shape = CodeShape.of(start)
        first, last = check_pairs(shape.flat("start", start), shape.flat("end", end))
        knots = sent(clamped_knots(n_control_points), first)
        return cls.trusted(straight_control_points(first, last, knots), knots, shape.sizes)

    def shaped(self, shape: CodeShape) -> CubicBSpline:
        """Return the same curves, whose points are codes of a shape."""
        return CubicBSpline.trusted(self.control_points, self.knots, shape.sizes)

    def flat(self) -> CubicBSpline:
        """Return the same curves, whose points are flat codes, (B, T, d)."""
        return CubicBSpline.trusted(self.control_points, self.knots)

    @property
    def batch_size(self) -> int:
        """Number of curves, B."""
        return self.control_points.shape[0]

    @property
    def n_control_points(self) -> int:
        """Number of control points, n."""
        return self.control_points.shape[1]

    @property
    def dim(self) -> int:
        """Latent dimension, d."""
        return self.control_points.shape[2]

    def _evaluate(self, t: Array, derivative: int) -> Tensor:
        times = as_tensor(t)
        floats = isinstance(times, Tensor) and times.is_floating_point()
        if not isinstance(times, Tensor) or not floats or times.ndim not in (1, 2):
            required = "a floating-point tensor or array of shape (T,) or (B, T)"
            raise TypeError(requirement("t", required, describe(t)))
        t = times
        if t.ndim == 2 and t.shape[0] not in (1, self.batch_size):
            required = f"a tensor of shape (T,) or ({self.batch_size}, T)"
            raise ValueError(requirement("t", required, describe(t)))
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(requirement("t", "in [0, 1]", f"{float(t.min())} to {float(t.max())}"))
        basis = basis_matrix(self.knots, t.to(self.knots), derivative)
        points = basis.to(self.control_points) @ self.control_points
        return CodeShape(self.code_shape).back(points)

    def __call__(self, t: Array) -> Tensor:
        """Return the points gamma(t).

        Parameters
        ----------
        t
            Shape (T,), or (B, T) for parameters of each curve's own, in [0, 1].

        Returns
        -------
        Tensor
            Shape (B, T, d), or (B, T, *code_shape).
        """
        return self._evaluate(t, 0)

    def derivative(self, t: Array) -> Tensor:
        """Return gamma'(t), of the shape of the points, for ``t`` as in a call."""
        return self._evaluate(t, 1)

    def insert_knot(self, at: float | None = None) -> CubicBSpline:
        """Return the same curves with one more knot and control point (Boehm's rule).

        Parameters
        ----------
        at
            The new knot in (0, 1); by default the middle of the largest knot interval, the
            leftmost of equals.

        Examples
        --------
        >>> curve = CubicBSpline.straight(torch.zeros(1), torch.ones(1))
        >>> curve.insert_knot(at=0.3).knots[4:-4].tolist()
        [0.3]
        """
        where = _middle_of_largest_interval(self.knots) if at is None else at
        where = check_number("at", where, above=0.0)
        if where >= 1.0:
            raise ValueError(requirement("at", "a number in (0, 1)", at))
        if int((self.knots == where).sum()) >= DEGREE:
            raise ValueError(requirement("at", "a knot present at most twice", at))
        matrix = insertion_matrix(self.knots.cpu(), where).to(self.control_points)
        knots = torch.cat([self.knots, self.knots.new_tensor([where])]).sort().values
        return CubicBSpline.trusted(matrix @ self.control_points, knots, self.code_shape)

    def reverse(self) -> CubicBSpline:
        """Return the curves run backwards, gamma(1 - t)."""
        points, knots = self.control_points.flip(1), (1.0 - self.knots).flip(0)
        return CubicBSpline.trusted(points, knots, self.code_shape)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> CubicBSpline:
        """Return the curves with control points on another device or of another dtype."""
        points = self.control_points.to(device=device, dtype=dtype)
        return CubicBSpline.trusted(points, self.knots.to(points.device), self.code_shape)

    def __getitem__(self, index: int | slice | Tensor) -> CubicBSpline:
        """Return the chosen curves of the batch, as a batch."""
        points = self.control_points[index]
        points = points if points.ndim == 3 else points[None]
        return CubicBSpline.trusted(points, self.knots, self.code_shape)
