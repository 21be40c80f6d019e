"""Lengths and energies of curves, to a tolerance."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.checks import check_codes, check_number, describe, requirement
from geolatent.curves import CubicBSpline, basis_matrix
from geolatent.metrics.base import Metric, check_metric, negative
from geolatent.metrics.chords import Chords, convergence_order
from geolatent.metrics.rows import Rows
from geolatent.quadrature import composite_rule
from geolatent.shapes import CodeShape
from geolatent.transfers import places, sent

# Gauss-Legendre nodes in each of equal intervals: so many at first, doubled until lengths agree
_SPEED_NODES = 3
_FIRST_INTERVALS = 8
_MAX_INTERVALS = 2**11
# chords along a curve: so many at first, doubled until two extrapolated lengths agree
_FIRST_CHORDS = 16
_MAX_CHORDS = 2**13
# an extrapolated length is trusted to this part of the last change of the sum of chords
_TRUSTED_EXTRAPOLATION = 30.0
# chords that converge with a lower order cross kinks; from so many on their lengths are trusted,
# where two in succession differ by no more than so many tolerances, and noise is so little of one
_SMOOTH_ORDER, _KINKED_CHORDS, _KINKED_CHANGE, _KINKED_NOISE = 1.5, 64, 3.0, 0.5
# bytes of decoder outputs held at once while lengths are measured
_OUTPUT_BYTES = 2**28


@dataclass(frozen=True)
class Measured:
    """Lengths and energies of C batches of B curves, (C, B) each.

    ``indefinite``, (B,), marks pairs with a curve along which v^T G v is negative: its length is
    NaN.
    """

    length: Tensor
    energy: Tensor
    indefinite: Tensor


def measure(
    rows: Rows, curves: Sequence[CubicBSpline], *, tolerance: float | Tensor = 1e-4
) -> Measured:
    """Measure C batches of B curves each; the C curves of one pair always by the same rule.

    Where the metric has `Chords`: sums of the chords |F(z_{i+1}) - F(z_i)| over N equal intervals
    of t, Richardson-extrapolated in N (their error is of order N^-2), N doubled and the old values
    kept. Where the order that chords show is lower, the decoder has kinks on the way, and what N
    chords lack is had from longer ones, `_lacking`. Where the metric has no chords, or they are so
    short that rounding would tell:
    Gauss-Legendre quadrature of the speed on equal intervals, their number doubled. Either ends for
    a pair when two successive values agree for all its curves. A pair that never agrees keeps its
    last value, with a warning.

    Parameters
    ----------
    rows
        The metric at work; it counts for the B.
    curves
        The curves.
    tolerance
        Relative tolerance, for all pairs or for each, (B,).
    """
    first = curves[0].control_points
    n_pairs = first.shape[0]
    if not isinstance(tolerance, Tensor):
        tolerance = first.new_full((n_pairs,), tolerance, dtype=torch.float64)
    nan = torch.full((len(curves), n_pairs), torch.nan, dtype=torch.float64, device=first.device)
    pairs = torch.arange(n_pairs, device=first.device)
    result = Measured(nan, nan.clone(), torch.zeros_like(pairs, dtype=torch.bool))
    n_open = 0
    by_speed = [pairs]
    if rows.chords is not None:
        kept = len(curves) * 8 * _FIRST_CHORDS * rows.budget.width * first.element_size()
        by_speed = []
        for chunk in pairs.split(max(1, _OUTPUT_BYTES // kept)):
            still_open, too_short = _measure_by_chords(rows, curves, chunk, tolerance, result)
            n_open += still_open
            by_speed.append(too_short)
    rest = torch.cat(by_speed)
    if rest.numel():
        n_open += _measure_by_speed(rows, curves, rest, tolerance, result)
    if n_open:
        warnings.warn(
            f"the lengths of {n_open} of {n_pairs} pairs did not reach the relative tolerance "
            f"{float(tolerance.min()):g} with the finest rule",
            stacklevel=3,
        )
    return result


def _along(curves: Sequence[CubicBSpline], t: Tensor, pairs: Tensor, derivative: int = 0) -> Tensor:
    """Return points or derivatives of the chosen pairs' curves, (A, C, T, d), in their dtype.

    ``t`` lies in the processor's memory, and it is best that knots do.
    """
    parts = []
    for curve in curves:
        points = curve.control_points[pairs].double()
        if derivative:  # the basis' derivatives add up to zero; so a point gets no speed
            points = points - points[:, :1]
        parts.append(sent(basis_matrix(curve.knots.to(t.device), t, derivative), points) @ points)
    return torch.stack(parts, dim=1).to(curves[0].control_points.dtype)


def _measure_by_chords(
    rows: Rows,
    curves: Sequence[CubicBSpline],
    pairs: Tensor,
    tolerance: Tensor,
    result: Measured,
) -> tuple[int, Tensor]:
    """Fill in the chosen pairs; return how many did not agree, and which chords are too short."""
    chords: Chords = rows.chords  # type: ignore[assignment]

    def outputs(t: Tensor, pairs: Tensor) -> Tensor:
        """Return F along the chosen pairs' curves, (C, A, T, D)."""
        return rows.outputs(_along(curves, t, pairs), pairs).transpose(0, 1)

    n = _FIRST_CHORDS
    t = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64, device="cpu")
    values = outputs(t, pairs)
    # rounding of F, taken as a few units in the last place, must not lengthen the chords
    size = chords.squares(torch.zeros_like(values[..., :1, :]), values).double().mean(2)
    eps = chords.values.rounding(values)
    shortest = (8.0 * eps) ** 2 * size.nan_to_num(0.0) / tolerance[pairs]
    short: list[Tensor] = []
    coarse: tuple[Tensor, Tensor] | None = None
    while pairs.numel():
        squares = chords.squares(values[:, :, :-1], values[:, :, 1:]).double()
        fine = squares.sqrt().sum(2), 0.5 * n * squares.sum(2)
        # a curve that is not finite will not get better; the others of its pair go on without it
        hopeless = ~fine[0].isfinite()
        too_short = leaving = (squares.mean(2) <= shortest).any(0)
        if coarse is not None:
            # (4 fine - coarse) / 3 cancels the leading error; a NaN change is the first value's
            length, energy = ((4.0 * a - b) / 3.0 for a, b in zip(fine, coarse, strict=True))
            lacking, noise, kinked = _lacking(chords, values, squares.sqrt())
            length = torch.where(kinked, fine[0] + lacking, length)
            energy = torch.where(kinked, fine[1], energy)
            change = (length - result.length[:, pairs]).abs()
            # two values may agree by accident: the extrapolation must be a small one too
            moved = fine[0] - coarse[0]
            allowed = tolerance[pairs]
            limit = _TRUSTED_EXTRAPOLATION * allowed.clamp_min(1e-4)
            agreed = (change <= allowed * length) & (moved <= limit * length)
            if n >= _KINKED_CHORDS:
                close = (change <= _KINKED_CHANGE * allowed * length) & (
                    noise <= _KINKED_NOISE * allowed * length
                )
                agreed |= kinked & close
            leaving = leaving | (agreed | hopeless).all(0)
            result.length[:, pairs] = length
            result.energy[:, pairs] = torch.maximum(energy, 0.5 * length.square())
        leaving = leaving | hopeless.all(0)
        shorts, staying = places(too_short, ~leaving)
        short.append(pairs[shorts])
        if staying.numel() < pairs.numel():
            pairs, values, shortest = pairs[staying], values[:, staying], shortest[:, staying]
            fine = fine[0][:, staying], fine[1][:, staying]
        if n >= _MAX_CHORDS or not pairs.numel():
            break
        coarse = fine
        n *= 2
        middles = (torch.arange(n // 2, dtype=t.dtype, device=t.device) + 0.5) / (n // 2)
        woven = torch.stack([values[:, :, :-1], outputs(middles, pairs)], dim=3).flatten(2, 3)
        values = torch.cat([woven, values[:, :, -1:]], dim=2)
    return pairs.numel(), torch.cat(short)


def _lacking(chords: Chords, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what N chords lack where there are kinks, its noise, and whether chords show kinks.

    Let h be the distance of nodes. A kink makes the chord over it too short by h s (1 - s) k, s its
    place in the interval, in the mean over s by h k / 6; smooth bending makes chords too short by
    h^2 b in all. Chords over m intervals, in the mean over where they begin, so lack more than the
    fine ones by (m - 1) h k / 6 + (m^2 - 1) h^2 b. Both parts are fitted, by least squares, to what
    m = 2, 3, 4 lack. The places s are chance: by how much lengths change with where the longer
    chords begin, the fine ones may be off, in proportion to m.

    Parameters
    ----------
    chords
        The chords.
    values
        Outputs along the curves, (C, A, N + 1, D).
    lengths
        Of the chords between them, (C, A, N).

    Returns
    -------
    tuple[Tensor, Tensor, Tensor]
        Shape (C, A) each, float64 and, the last, boolean.
    """
    n = lengths.shape[2]
    fine = lengths.sum(2)
    strided = {}
    per_interval, variances = [], []
    for m in (2, 3, 4):
        sums = []
        for begin in range(m):
            inner = values[:, :, begin or m : n : m]
            every = torch.cat([values[:, :, :1], inner, values[:, :, n:]], dim=2)
            between = chords.squares(every[:, :, :-1], every[:, :, 1:]).double()
            sums.append(between.sqrt().sum(2))
        strided[m] = sums[0]
        every_sum = torch.stack(sums)
        per_interval.append((fine - every_sum.mean(0)) / (m - 1))
        variances.append(every_sum.var(0) / m**2)
    # (fine - strided) / (m - 1) = kinks + (m + 1) bent
    first, _, last = per_interval
    mean = torch.stack(per_interval).mean(0)
    bent = 0.5 * (last - first)
    kinks = mean - 4.0 * bent
    alone = sum((m + 1) * part for m, part in zip((2, 3, 4), per_interval, strict=True)) / 50.0
    lacking = torch.where(kinks < 0, alone, torch.where(bent < 0, mean, kinks + bent))
    order = convergence_order(strided[4], strided[2], fine)
    return lacking, torch.stack(variances).mean(0).sqrt(), order < _SMOOTH_ORDER


def _measure_by_speed(
    rows: Rows,
    curves: Sequence[CubicBSpline],
    pairs: Tensor,
    tolerance: Tensor,
    result: Measured,
) -> int:
    """Fill in the chosen pairs; return how many did not agree."""
    result.length[:, pairs] = torch.nan  # what chords may have left
    # simple knots are passed over: they depend on the batch, and the curve is smooth there
    every = [curve.knots.cpu() for curve in curves]
    kinks = torch.cat([knots[1:-2][knots[1:-2] == knots[3:]] for knots in every])
    n = _FIRST_INTERVALS
    while pairs.numel():
        breaks = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64, device="cpu")
        t, weights = composite_rule(torch.cat([breaks, kinks]), _SPEED_NODES)
        z, v = _along(curves, t, pairs), _along(curves, t, pairs, derivative=1)
        squares = rows.quadratic(z, v, pairs).transpose(0, 1)
        bad = negative(squares)
        result.indefinite[pairs] |= bad.any(0)
        squares = torch.where(bad[..., None], torch.nan, squares.double()).clamp_min(0.0)
        weights = sent(weights, squares)
        length = (squares.sqrt() * weights).sum(2)
        # a NaN change is the first value's; a length that is not finite will not get better
        change = (length - result.length[:, pairs]).abs()
        settled = ((change <= tolerance[pairs] * length) | ~length.isfinite()).all(0)
        result.length[:, pairs] = length
        result.energy[:, pairs] = 0.5 * (squares * weights).sum(2)
        pairs = pairs[places(~settled)[0]]
        if n >= _MAX_INTERVALS:
            break
        n *= 2
    return pairs.numel()


def check_curve(metric: Metric, curve: object) -> tuple[Metric, CubicBSpline, CodeShape]:
    """Return a metric of flat codes, flat curves of its dtype and device, and the codes' shape."""
    check_metric(metric)
    if not isinstance(curve, CubicBSpline):
        raise TypeError(requirement("curve", "a CubicBSpline", describe(curve)))
    shape = CodeShape.of(curve)
    metric, curve = shape.metric(metric), curve.flat()
    like = metric.like
    if like is not None:
        curve = curve.to(like.device, like.dtype)
    codes = check_codes("curve", curve.control_points[:, 0].detach(), metric.dim)
    metric.check("curve", codes[:1])
    return metric, curve, shape


def _measure_path(metric: Metric, curve: CubicBSpline, tolerance: float) -> tuple[Tensor, Tensor]:
    """Check the arguments of what follows, and return lengths and energies, (B,) each."""
    metric, curve, _ = check_curve(metric, curve)
    tolerance = check_number("tolerance", tolerance, above=0.0)
    codes = curve.control_points[:, 0].detach()
    rows = Rows.of(metric, codes).counting(len(codes))
    measured = measure(rows, [curve], tolerance=tolerance)
    return measured.length[0].to(codes.dtype), measured.energy[0].to(codes.dtype)


def path_length(metric: Metric, curve: CubicBSpline, *, tolerance: float = 1e-4) -> Tensor:
    r"""Return the lengths of curves under a metric.

    .. math::

        L(\gamma) = \int_0^1 \sqrt{\gamma'^T G(\gamma) \gamma'} \, dt.

    Parameters
    ----------
    metric
        The metric.
    curve
        B curves.
    tolerance
        Relative tolerance: the rule is refined until two successive values agree to it.

    Returns
    -------
    Tensor
        Shape (B,), in the units of the decoder's output; NaN where the metric is negative along the
        curve.

    Examples
    --------
    >>> from geolatent import PullbackMetric
    >>> metric = PullbackMetric(lambda z: 3.0 * z)
    >>> line = CubicBSpline.straight(torch.zeros(2), torch.tensor([3.0, 4.0]))
    >>> print(f"{path_length(metric, line).item():.4f}")
    15.0000
    """
    return _measure_path(metric, curve, tolerance)[0]


def path_energy(metric: Metric, curve: CubicBSpline, *, tolerance: float = 1e-4) -> Tensor:
    r"""Return the path energies of curves under a metric.

    .. math::

        E(\gamma) = \frac{1}{2} \int_0^1 \gamma'^T G(\gamma) \gamma' \, dt.

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
    return _measure_path(metric, curve, tolerance)[1]
