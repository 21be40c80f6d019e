"""Interpolations in common use: straight lines, great circles, spirals, and paths through codes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from geolatent.arrays import Array, as_tensor
from geolatent.checks import (
    check_alike,
    check_codes,
    check_integer,
    check_pairs,
    check_tensor,
    describe,
    requirement,
)
from geolatent.curves import CubicBSpline
from geolatent.shapes import CodeShape

Interpolation = Callable[[Tensor, Tensor, Tensor], Tensor]


def _check_times(t: object, n_pairs: int, like: Tensor) -> tuple[Tensor, bool]:
    """Return t as float64 of shape (B or 1, T), and whether it was one number."""
    required = f"a number, or a floating-point tensor or array of shape (T,) or ({n_pairs}, T)"
    if isinstance(t, int | float) and not isinstance(t, bool):
        t = torch.tensor(float(t), dtype=torch.float64)
    t = as_tensor(t)
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError(requirement("t", required, describe(t)))
    if t.ndim > 2 or t.numel() == 0 or (t.ndim == 2 and t.shape[0] not in (1, n_pairs)):
        raise ValueError(requirement("t", required, describe(t)))
    if not bool(torch.isfinite(t).all()):
        raise ValueError(requirement("t", "finite", describe(t)))
    times = t.detach().to(device=like.device, dtype=torch.float64)
    return times.reshape(1, -1) if t.ndim < 2 else times, t.ndim == 0


def _result(points: Tensor, like: Tensor, is_number: bool) -> Tensor:
    points = points.to(like.dtype)
    return points[:, 0] if is_number else points


def _meeting_ends(points: Tensor, start: Tensor, end: Tensor, s: Tensor) -> Tensor:
    """Return points (B, T, d) with the ends themselves, free of rounding, where s is 0 or 1."""
    points = torch.where(s == 0.0, start[:, None], points)
    return torch.where(s == 1.0, end[:, None], points)


def lerp(start: Array, end: Array, t: Array | float) -> Tensor:
    """Interpolate linearly, z(t) = (1 - t) a + t b.

    Parameters
    ----------
    start, end
        Codes a and b, (d,) or (B, d) each, broadcast, or of any shape, (B, ...).
    t
        A number, or a tensor (T,) or (B, T); values outside [0, 1] extrapolate.

    Returns
    -------
    Tensor
        Shape (B, T, d); (B, d) where ``t`` is a number. Exactly ``start`` at 0 and ``end`` at 1.

    Examples
    --------
    >>> lerp(torch.zeros(2), torch.tensor([2.0, 4.0]), torch.tensor([0.0, 0.25]))
    tensor([[[0.0000, 0.0000],
             [0.5000, 1.0000]]])
    """
    shape = CodeShape.of(start)
    first, last = check_pairs(shape.flat("start", start), shape.flat("end", end))
    times, is_number = _check_times(t, first.shape[0], first)
    a, b, s = first.double()[:, None], last.double()[:, None], times[..., None]
    return shape.back(_result((1.0 - s) * a + s * b, first, is_number))


def slerp(start: Array, end: Array, t: Array | float) -> Tensor:
    r"""Interpolate on the sphere: the direction along a great circle, the norm linearly.

    .. math::

        z(t) = r(t) (\cos(t w) \, u + \sin(t w) \, e), \qquad r(t) = (1 - t) |a| + t |b|,

    u the direction of a, e the unit vector orthogonal to u in the plane of a and b on b's side,
    w in [0, pi] their angle. For end points of one norm this is
    sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b. Every case is defined:

    ================================  ============================================================
    parallel                          w = 0: the straight line between them
    antiparallel                      half a great circle through the coordinate axis to which a
                                      is most orthogonal (the first of equals), made orthogonal
    one vector zero                   it has no direction and takes the other's: the straight line
    both zero                         zero
    one dimension, opposite signs     there is no way around: the straight line
    ================================  ============================================================

    Worked out in float64 whatever the dtype, with no difference of almost equal numbers: float32
    end points that differ in their last bit are told apart.

    Parameters
    ----------
    start, end
        Codes a and b, (d,) or (B, d) each, broadcast, or of any shape, (B, ...).
    t
        A number, or a tensor (T,) or (B, T); values outside [0, 1] extrapolate.

    Returns
    -------
    Tensor
        Shape (B, T, d); (B, d) where ``t`` is a number. Exactly ``start`` at 0 and ``end`` at 1.

    References
    ----------
    Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985. White, "Sampling
    Generative Networks", 2016, https://arxiv.org/abs/1609.04468. Kahan, "How futile are mindless
    assessments of roundoff", 2006, section 12 (the angle).

    Examples
    --------
    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), 0.5)
    tensor([[1.4142, 1.4142]])
    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0]), 0.5).round(decimals=6).abs()
    tensor([[0., 1.]])
    """
    shape = CodeShape.of(start)
    first, last = check_pairs(shape.flat("start", start), shape.flat("end", end))
    times, is_number = _check_times(t, first.shape[0], first)
    a, b = first.double(), last.double()
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    u, w = _unit(a), _unit(b)
    u, w = torch.where(norm_a > 0, u, w), torch.where(norm_b > 0, w, u)
    e, angle = _frame(u, w)
    s = times[..., None]
    radius = (1.0 - s) * norm_a[:, None] + s * norm_b[:, None]
    turn = s * angle[:, None]
    points = radius * (turn.cos() * u[:, None] + turn.sin() * e[:, None])
    if first.shape[1] == 1:  # two opposite numbers: a circle needs a plane
        points = torch.where(angle[:, None] > 1.0, torch.lerp(a[:, None], b[:, None], s), points)
    return shape.back(_result(_meeting_ends(points, a, b, s), first, is_number))


def _check_nonzero(name: str, vectors: Tensor) -> None:
    if bool((vectors == 0).all(1).any()):
        raise ValueError(requirement(name, "nonzero in every row", "a zero vector"))


def _unit(vectors: Tensor) -> Tensor:
    """Return unit vectors; zero for zero. Tiny and huge vectors neither vanish nor overflow."""
    largest = vectors.abs().amax(-1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1.0)
    norm = scaled.norm(dim=-1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1.0)


def _frame(u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return e with u, e orthonormal in the plane of unit vectors u and w, and their angle.

    Shapes (B, d) and (B, 1). e is zero where the vectors are equal.
    """
    difference, total = w - u, w + u
    apart, together = (part.norm(dim=1, keepdim=True) for part in (difference, total))
    angle = 2.0 * torch.atan2(apart, together)
    # the shorter of difference and sum is exact to rounding where the vectors nearly (anti)agree
    side = torch.where(apart <= together, difference, total)
    side = side - (side * u).sum(1, keepdim=True) * u
    e = _unit(side)
    e = _unit(e - (e * u).sum(1, keepdim=True) * u)
    antiparallel = together <= 4.0 * torch.finfo(torch.float64).eps
    if bool(antiparallel.any()):
        axis = torch.zeros_like(u).scatter(1, u.abs().argmin(1, keepdim=True), 1.0)
        around = _unit(axis - (axis * u).sum(1, keepdim=True) * u)
        e = torch.where(antiparallel, around, e)
        angle = torch.where(antiparallel & (w != 0).any(1, keepdim=True), math.pi, angle)
    return e, angle


def great_circle(start: Array, toward: Array, t: Array | float) -> Tensor:
    r"""Walk around the origin on the great circle of a code, once for t from 0 to 1.

    .. math::

        z(t) = |a| (\cos(2 \pi t) \, u + \sin(2 \pi t) \, e),

    u the direction of a = ``start`` and e the unit vector orthogonal to u in the plane of a and
    ``toward``, on that one's side.

    Parameters
    ----------
    start, toward
        Codes, (d,) or (B, d) each, broadcast. Where they are antiparallel, the plane is that of
        `slerp`.
    t
        Turns: a number, or a tensor (T,) or (B, T).

    Returns
    -------
    Tensor
        Shape (B, T, d); (B, d) where ``t`` is a number.

    Raises
    ------
    ValueError
        Where a code is zero or the two are parallel: they span no plane.

    Examples
    --------
    >>> walk = great_circle(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]), 0.25)
    >>> walk.round(decimals=5).abs()
    tensor([[0., 2.]])
    """
    shape = CodeShape.of(start)
    toward, start = shape.flat("toward", toward), shape.flat("start", start)
    first, last = check_pairs(start, toward, names=("start", "toward"))
    times, is_number = _check_times(t, first.shape[0], first)
    a, b = first.double(), last.double()
    if a.shape[1] < 2:
        raise ValueError(requirement("start", "of dimension 2 or more", describe(start)))
    _check_nonzero("start", a)
    _check_nonzero("toward", b)
    e, angle = _frame(_unit(a), _unit(b))
    if bool((e == 0).all(1).any()) or bool((angle == 0).any()):
        raise ValueError(requirement("toward", "not parallel to `start`", "a parallel vector"))
    turn = 2.0 * math.pi * times[..., None]
    radius = a.norm(dim=1)[:, None, None]
    points = radius * (turn.cos() * _unit(a)[:, None] + turn.sin() * e[:, None])
    return shape.back(_result(points, first, is_number))


def spherical_coordinates(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return radius (...,) and the d - 1 angles (..., d - 1) of codes (..., d), d at least 2.

    z_k = r cos(phi_k) prod_{j<k} sin(phi_j); the last angle is in (-pi, pi], the others in [0, pi].

    Examples
    --------
    >>> radius, angles = spherical_coordinates(torch.tensor([0.0, 0.0, 2.0]))
    >>> print(float(radius), [round(float(angle), 4) for angle in angles])
    2.0 [1.5708, 1.5708]
    """
    z = check_tensor("z", z, "(..., d)")
    if z.shape[-1] < 2:
        raise ValueError(requirement("z", "a tensor of shape (..., d), d >= 2", describe(z)))
    # norms of the tails z_k, ..., z_d
    tails = z.square().flip(-1).cumsum(-1).flip(-1).sqrt()
    angles = torch.atan2(tails[..., 1:], z[..., :-1])
    last = torch.atan2(z[..., -1], z[..., -2])
    return tails[..., 0], torch.cat([angles[..., :-1], last[..., None]], dim=-1)


def from_spherical_coordinates(radius: Tensor, angles: Tensor) -> Tensor:
    """Return the codes (..., d) of radius (...,) and angles (..., d - 1).

    Examples
    --------
    >>> z = torch.tensor([[1.0, -2.0, 3.0]])
    >>> from_spherical_coordinates(*spherical_coordinates(z)).round(decimals=4)
    tensor([[ 1., -2.,  3.]])
    """
    sines = torch.cat([torch.ones_like(angles[..., :1]), angles.sin().cumprod(-1)], dim=-1)
    cosines = torch.cat([angles.cos(), torch.ones_like(angles[..., :1])], dim=-1)
    return radius[..., None] * sines * cosines


def spherical_spiral(start: Array, end: Array, t: Array | float, *, turns: int = 0) -> Tensor:
    """Interpolate radius and angles of spherical coordinates linearly: a spiral on the n-sphere.

    The last angle takes the shorter way around. It is no great circle unless all angles but one
    agree, and it depends on the order of the coordinates.

    Parameters
    ----------
    start, end
        Codes, (d,) or (B, d) each, broadcast, d at least 2.
    t
        A number, or a tensor (T,) or (B, T).
    turns
        More full turns of the last angle on the way; negative ones run the other way.

    Returns
    -------
    Tensor
        Shape (B, T, d); (B, d) where ``t`` is a number.

    Examples
    --------
    >>> spherical_spiral(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), 0.5)
    tensor([[1.4142, 1.4142]])
    """
    shape = CodeShape.of(start)
    first, last = check_pairs(shape.flat("start", start), shape.flat("end", end))
    times, is_number = _check_times(t, first.shape[0], first)
    if isinstance(turns, bool) or not isinstance(turns, int):
        raise TypeError(requirement("turns", "an integer", describe(turns)))
    radius_a, angles_a = spherical_coordinates(first.double())
    radius_b, angles_b = spherical_coordinates(last.double())
    # a zero vector has no angles of its own
    angles_a, angles_b = (
        torch.where(radius_a[:, None] > 0, angles_a, angles_b),
        torch.where(radius_b[:, None] > 0, angles_b, angles_a),
    )
    change = angles_b - angles_a
    around = change[:, -1:]
    around = around - 2.0 * math.pi * (around / (2.0 * math.pi)).round()
    change = torch.cat([change[:, :-1], around + 2.0 * math.pi * turns], dim=1)
    s = times[..., None]
    radius = (1.0 - times) * radius_a[:, None] + times * radius_b[:, None]
    points = from_spherical_coordinates(radius, angles_a[:, None] + s * change[:, None])
    return shape.back(
        _result(_meeting_ends(points, first.double(), last.double(), s), first, is_number)
    )


def radial_walk(direction: Array, radii: Array) -> Tensor:
    """Walk from the origin along the ray of a code, z(r) = r u with u its direction.

    Parameters
    ----------
    direction
        Nonzero codes, (d,) or (B, d).
    radii
        Distances from the origin in latent units, (T,).

    Returns
    -------
    Tensor
        Shape (B, T, d).

    Examples
    --------
    >>> radial_walk(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0]))
    tensor([[[0., 0.],
             [6., 8.]]])
    """
    shape = CodeShape.of(direction)
    direction = shape.flat("direction", direction)
    codes = torch.atleast_2d(check_tensor("direction", direction, "(d,) or (B, d)"))
    radii = check_tensor("radii", radii, "(T,)")
    check_alike("radii", radii, "direction", codes)
    _check_nonzero("direction", codes)
    points = radii.double()[None, :, None] * _unit(codes.double())[:, None]
    return shape.back(points.to(codes.dtype))


def through_points(
    points: Array, t: Array, interpolation: Interpolation = lerp, *, lengths: Array | None = None
) -> Tensor:
    """Follow a path through many codes in turn, leg by leg.

    Parameters
    ----------
    points
        Codes, (K, d), or of any shape, (K, ...), K at least 2.
    t
        Parameters along the whole path, (T,) in [0, 1].
    interpolation
        What a leg is, called once with the starts and ends of all legs, (K - 1, d) each, and times
        (K - 1, S), giving (K - 1, S, d): `lerp`, `slerp`, `spherical_spiral`, or for a geodesic
        path ``lambda a, b, s: solve_geodesic(metric, a, b).curve(s)``.
    lengths
        Lengths of the legs, (K - 1,), not negative, by which t is shared out; the distances in the
        latent space by default.

    Returns
    -------
    Tensor
        Shape (T, d).

    Examples
    --------
    >>> corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]])
    >>> through_points(corners, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    tensor([[0., 0.],
            [1., 0.],
            [1., 1.],
            [1., 3.]])
    """
    shape = CodeShape.of(points)
    points = check_codes("points", shape.flat("points", points))
    if points.shape[0] < 2:
        raise ValueError(requirement("points", "at least two codes", describe(points)))
    t = check_tensor("t", t, "(T,)")
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(requirement("t", "in [0, 1]", f"{float(t.min())} to {float(t.max())}"))
    n_legs = points.shape[0] - 1
    if lengths is None:
        lengths = points.double().diff(dim=0).norm(dim=1)
    lengths = check_tensor("lengths", lengths, f"({n_legs},)")
    if bool((lengths < 0).any()):
        raise ValueError(requirement("lengths", "not negative", lengths.tolist()))
    lengths = lengths.detach().to(device=points.device, dtype=torch.float64)
    if float(lengths.sum()) == 0.0:
        lengths = torch.ones_like(lengths)
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    ends = ends / ends[-1].clone()
    times = t.detach().to(ends)
    leg = (torch.searchsorted(ends, times, right=True) - 1).clamp(0, n_legs - 1)
    gap = ends[leg + 1] - ends[leg]
    local = ((times - ends[leg]) / torch.where(gap > 0, gap, 1.0)).clamp(0.0, 1.0)
    # one row of times for each leg, so that every leg is set up once
    order = torch.zeros_like(leg)
    for k in range(n_legs):
        chosen = leg == k
        order[chosen] = torch.arange(int(chosen.sum()), device=leg.device)
    table = ends.new_zeros((n_legs, int(order.max()) + 1))
    table[leg, order] = local
    curves = interpolation(shape.back(points[:-1]), shape.back(points[1:]), table)
    sizes = (*table.shape, *shape.back(points).shape[1:])
    if not isinstance(curves, Tensor) or curves.shape != sizes:
        required = f"a callable returning a tensor of shape {sizes}"
        raise ValueError(requirement("interpolation", required, describe(curves)))
    return curves[leg, order]


def spline_through_points(points: Array) -> CubicBSpline:
    """Return the natural cubic splines that pass through given codes at equal steps of t.

    They have continuous second derivatives, zero at both ends. A spline can be measured
    (`path_length`) and plotted like a geodesic, and `solve_geodesic` can start from it.

    Parameters
    ----------
    points
        Codes, (K, d) or (B, K, d), K at least 2; code k is met at t = k / (K - 1).

    Returns
    -------
    CubicBSpline
        Batch size B, with max(K, 2) + 2 control points.

    Examples
    --------
    >>> curve = spline_through_points(torch.tensor([[0.0], [2.0], [1.0]]))
    >>> curve(torch.tensor([0.0, 0.5, 1.0])).flatten()
    tensor([0., 2., 1.])
    """
    codes = check_tensor("points", points, "(K, d) or (B, K, d)").detach()
    codes = codes if codes.ndim == 3 else codes[None]
    k = codes.shape[1]
    if k < 2:
        raise ValueError(requirement("points", "at least two codes", describe(points)))
    from scipy.interpolate import make_interp_spline  # slow to import, and seldom needed

    values = codes.double().cpu().numpy()
    spline = make_interp_spline(np.linspace(0.0, 1.0, k), values, bc_type="natural", axis=1)
    control_points = torch.from_numpy(spline.c).movedim(0, 1).to(codes)
    control_points[:, 0], control_points[:, -1] = codes[:, 0], codes[:, -1]
    return CubicBSpline(control_points, torch.from_numpy(spline.t))


def slerp_curve(start: Array, end: Array, n_points: int = 33) -> CubicBSpline:
    """Return `slerp` as splines, which can be measured and drawn like geodesics.

    They pass through its points at equal steps of t. Between them they are within 0.05 % of the
    radius of it, at the default number and whatever the angle.

    Parameters
    ----------
    start, end
        Codes, (d,) or (B, d) each, broadcast.
    n_points
        Points, the ends included.

    Examples
    --------
    >>> curve = slerp_curve(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    >>> print(f"{curve(torch.tensor([0.3]))[0, 0].norm().item():.3f}")
    1.000
    """
    times = torch.linspace(0.0, 1.0, check_integer("n_points", n_points, minimum=2))
    shape = CodeShape.of(start)
    start, end = shape.flat("start", start), shape.flat("end", end)
    return shape.back(spline_through_points(slerp(start, end, times.double())))
