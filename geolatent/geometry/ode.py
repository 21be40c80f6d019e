"""A batched Runge-Kutta integrator in which every trajectory has steps of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.display import StatusEnum

# right-hand side: states (A, m) of the trajectories with the given numbers (A,) -> (A, m)
RightHandSide = Callable[[Tensor, Tensor], Tensor]
ErrorRatio = Callable[[Tensor, Tensor, Tensor], Tensor]

# Dormand and Prince's tableau: stages, weights of order 5, and their difference to those of order 4
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _SMALLEST, _LARGEST = 0.9, 0.2, 5.0
# steps below this share of the whole time are given up
_UNDERFLOW = 1e-13


class TrajectoryStatus(StatusEnum):
    """How the integration of one trajectory ended; ``explanation`` says it in a sentence.

    Examples
    --------
    >>> print(TrajectoryStatus.FINISHED.explanation)
    The trajectory reached the last time asked for.
    """

    FINISHED = 0
    MAX_STEPS = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3

    @property
    def explanation(self) -> str:
        """The status as a sentence."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    TrajectoryStatus.FINISHED: "The trajectory reached the last time asked for.",
    TrajectoryStatus.MAX_STEPS: "The steps were used up; later points are NaN.",
    TrajectoryStatus.STEP_UNDERFLOW: (
        "The tolerance could not be met with any step; later points are NaN."
    ),
    TrajectoryStatus.NON_FINITE: (
        "The trajectory ran into a place where the metric is NaN, infinite or singular; later "
        "points are NaN."
    ),
}


@dataclass(frozen=True)
class Integrated:
    """States at the times asked for, (B, T, m), and status and steps, (B,)."""

    states: Tensor
    status: Tensor
    steps: Tensor


def integrate(
    right_hand_side: RightHandSide,
    state: Tensor,
    times: Tensor,
    error_ratio: ErrorRatio,
    *,
    first_step: float = 0.02,
    max_steps: int = 10_000,
) -> Integrated:
    """Integrate y' = f(y) from 0 for B trajectories at once.

    Dormand and Prince's method of order 5(4) with a proportional-integral step control. Every
    trajectory chooses its own steps, so that a stiff or failing one costs and harms no other; those
    that have ended leave the batch. A right-hand side that jumps (a decoder with kinks) is met by
    steps that shrink to its place.

    Parameters
    ----------
    right_hand_side
        f, called with the states (A, m) of some trajectories and their numbers (A,).
    state
        y(0), (B, m), float64.
    times
        When the states are wanted, (T,), ascending, not negative.
    error_ratio
        Size of the estimated errors of a step, (A,), in units of what is allowed, from the errors
        (A, m), the new states (A, m) and their numbers (A,).
    first_step
        Length of the first step that is tried, as a share of the last time.
    max_steps
        Steps of each trajectory, rejected ones counted.

    References
    ----------
    Dormand, Prince, "A family of embedded Runge-Kutta formulae", J. Comp. Appl. Math. 6, 1980.
    Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, sections II.4-6
    (step control) and II.6, equation 6.12 (interpolation within a step).
    """
    b, m = state.shape
    device = state.device
    last = float(times[-1])
    states = state.new_full((b, times.numel(), m), torch.nan)
    states[:, times <= 0.0] = state[:, None]
    status = torch.full((b,), int(TrajectoryStatus.FINISHED), device=device)
    steps = torch.zeros(b, dtype=torch.int64, device=device)
    if last <= 0.0:
        return Integrated(states, status, steps)

    index = torch.arange(b, device=device)
    y = state
    slope = right_hand_side(y, index)
    t = y.new_zeros(b)
    step = y.new_full((b,), first_step * last)
    past_error = torch.ones_like(t)
    rejected = torch.zeros_like(t, dtype=torch.bool)
    going = slope.isfinite().all(1) & y.isfinite().all(1)
    status[~going] = int(TrajectoryStatus.NON_FINITE)
    while bool(going.any()):
        index, y, slope, t, step, past_error, rejected = (
            part[going] for part in (index, y, slope, t, step, past_error, rejected)
        )
        final = t + step >= last * (1.0 - 1e-12)
        step = torch.where(final, last - t, step)
        slopes = [slope]
        for row in _STAGES:
            increment = sum(a * k for a, k in zip(row, slopes, strict=True) if a)
            new = y + step[:, None] * increment
            slopes.append(right_hand_side(new, index))
        steps[index] += 1
        error = step[:, None] * sum(e * k for e, k in zip(_ERROR, slopes, strict=True) if e)
        ratio = error_ratio(error, new, index)
        finite = ratio.isfinite() & slopes[-1].isfinite().all(1)
        accepted = finite & (ratio <= 1.0)
        small = ratio.clamp_min(1e-10)
        factor = _SAFETY * small ** (-0.7 / 5.0) * past_error ** (0.4 / 5.0)
        factor = torch.where(accepted, factor, _SAFETY * small ** (-1.0 / 5.0))
        factor = torch.where(finite, factor, _SMALLEST).clamp(_SMALLEST, _LARGEST)
        # right after a rejection the step does not grow
        factor = torch.where(rejected | ~accepted, factor.clamp_max(1.0), factor)

        if times.numel() > 1:
            _interpolate(states, times, index, accepted, t, step, y, slopes)
        arrived = accepted & final
        states[index[arrived], -1] = new[arrived]
        t = torch.where(accepted, t + step, t)
        y = torch.where(accepted[:, None], new, y)
        slope = torch.where(accepted[:, None], slopes[-1], slopes[0])
        past_error = torch.where(accepted, small.clamp_min(1e-4), past_error)
        rejected = ~accepted
        step = step * factor

        underflow = step < _UNDERFLOW * last
        exhausted = steps[index] >= max_steps
        status[index[exhausted & ~arrived]] = int(TrajectoryStatus.MAX_STEPS)
        lost = underflow & ~arrived
        reason = torch.where(
            finite, int(TrajectoryStatus.STEP_UNDERFLOW), int(TrajectoryStatus.NON_FINITE)
        )
        status[index[lost]] = reason[lost]
        going = ~(arrived | exhausted | underflow)
    return Integrated(states, status, steps)


def _interpolate(
    states: Tensor,
    times: Tensor,
    index: Tensor,
    accepted: Tensor,
    t: Tensor,
    step: Tensor,
    y: Tensor,
    slopes: list[Tensor],
) -> None:
    """Write the states at the times that lie in the accepted steps (equation 6.12)."""
    place = (times[None] - t[:, None]) / step[:, None]
    row, column = ((place > 0.0) & (place <= 1.0) & accepted[:, None]).nonzero(as_tuple=True)
    if not row.numel():
        return
    x = place[row, column][:, None]
    square, rest = x * x, x - 1.0
    hermite = square * (3.0 - 2.0 * x)
    middle = square * rest**2
    first = (
        hermite * (35 / 384) + x * rest**2 - middle * 5 * (2558722523 - 31403016 * x) / 11282082432
    )
    third = hermite * (500 / 1113) + middle * 100 * (882725551 - 15701508 * x) / 32700410799
    fourth = hermite * (125 / 192) - middle * 25 * (443332067 - 31403016 * x) / 1880347072
    fifth = -hermite * (2187 / 6784) + middle * 32805 * (23143187 - 3489224 * x) / 199316789632
    sixth = hermite * (11 / 84) - middle * 55 * (29972135 - 7076736 * x) / 822651844
    seventh = square * rest + middle * 10 * (7414447 - 829305 * x) / 29380423
    weights = (first, None, third, fourth, fifth, sixth, seventh)
    increment = sum(w * k[row] for w, k in zip(weights, slopes, strict=True) if w is not None)
    states[index[row], column] = y[row] + step[row][:, None] * increment
