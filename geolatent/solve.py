"""Geodesics between pairs of latent codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geolatent.arrays import Array, as_tensor
from geolatent.checks import (
    check_alike,
    check_number,
    check_pairs,
    check_tensor,
    describe,
    requirement,
)
from geolatent.curves import CubicBSpline, clamped_knots, refine, straight_control_points
from geolatent.graph import LatentGraph, curve_through_points, graph_curve
from geolatent.lengths import measure
from geolatent.metrics.base import Metric, check_metric
from geolatent.metrics.rows import Rows
from geolatent.shapes import CodeShape
from geolatent.solution import Evaluations, GeodesicSolution, Status
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Callback, Problem, Progress, Solver, shorten
from geolatent.transfers import places, sent

# control points of a curve that starts on a graph's path or on given points: enough to follow it
_PATH_CONTROL_POINTS = 24
# outputs closer together than this many roundings have chords too short to tell energies
_RESOLVED = 2.0**14
# tolerance of reported lengths: the least, as a share of what is predicted to be left, the most
_LENGTH_TOLERANCE, _LENGTH_SHARE, _ROUGHEST_LENGTH = 1e-4, 0.2, 3e-3
# curves whose lengths differ relatively by less are taken for one
_SAME_LENGTH = 1e-3


@torch.inference_mode(False)
def solve_geodesic(
    metric: Metric,
    start: Array,
    end: Array,
    solver: Solver | None = None,
    *,
    initial: LatentGraph | CubicBSpline | Array | None = None,
    length_tolerance: float | None = None,
    max_rows: int | None = None,
    callback: Callback | None = None,
) -> GeodesicSolution:
    r"""Find the geodesics between pairs of latent codes.

    Minimises the path energy over cubic B-splines with fixed end points,

    .. math::

        E(\gamma) = \frac{1}{2} \int_0^1 \gamma'(t)^T \, G(\gamma(t)) \, \gamma'(t) \, dt.

    No returned curve is longer than the straight line: where none shorter was
    found, the straight line is returned and the status says so. A pair that fails does not touch
    the others.

    Parameters
    ----------
    metric
        The metric.
    start, end
        Codes, (d,) or (B, d) each, broadcast; or codes of any shape, (B, ...), such as images
        (B, channels, height, width), in which the metric's functions then get them.
    solver
        How curves are shortened; by default `PreconditionedSolver()`.
    initial
        Where to start. None: the straight line. A `LatentGraph`: its shortest paths and the
        straight line, of which the shorter result is kept. Curves: `CubicBSpline`, batch 1 or B.
        Points along curves, (B, T, d) or (T, d), from start to end, of the codes' shape.
    length_tolerance
        Relative tolerance of the reported lengths. By default 1e-4, or the solver's tolerance, or a
        fifth of what is predicted to be left of a pair, whichever is largest.
    max_rows
        Largest number of rows sent through the decoder at once (one pair's nodes at least);
        chosen automatically by default.
    callback
        Called with a `Progress` after every step.

    Returns
    -------
    GeodesicSolution
        Curves, lengths, statuses and costs, pair by pair.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong kind, shape, dtype or device or not finite; the message
        names it, what was required and what was found.

    Examples
    --------
    The inverse stereographic projection maps the plane to the unit sphere; geodesics between
    points of the unit circle a quarter turn apart have length pi / 2.

    >>> from geolatent import PullbackMetric
    >>> def sphere(z):
    ...     square = z.square().sum(1, keepdim=True)
    ...     return torch.cat([2 * z, square - 1], dim=1) / (square + 1)
    >>> start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> solution = solve_geodesic(PullbackMetric(sphere), start, end)
    >>> print(f"{solution.length.item():.3f}, {solution.relative_improvement.item():.1%} shorter")
    1.571, 8.1% shorter
    >>> solution.statuses
    [Status.CONVERGED]

    References
    ----------
    Michelis, Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
    2021, https://arxiv.org/abs/2105.03663. Arvanitidis, Hansen, Hauberg, "Latent Space Oddity",
    ICLR 2018, https://arxiv.org/abs/1710.11379.
    """
    check_metric(metric)
    solver = PreconditionedSolver() if solver is None else solver
    if not isinstance(solver, Solver):
        raise TypeError(requirement("solver", "a geolatent Solver or None", describe(solver)))
    if callback is not None and not callable(callback):
        raise TypeError(requirement("callback", "callable or None", describe(callback)))
    if length_tolerance is not None:
        length_tolerance = check_number("length_tolerance", length_tolerance, above=0.0)
    shape = CodeShape.of(start)
    metric, initial = shape.metric(metric), shape.flat("initial", initial)
    start, end = shape.flat("start", start), shape.flat("end", end)
    like = metric.like
    first, last = check_pairs(start, end, metric.dim, like=like)
    if max_rows is not None:
        metric = metric.limited(max_rows)
    metric.check("start", first[:1])
    metric.check_definite("start", first)
    metric.check_definite("end", last)
    n_pairs, d = first.shape
    rows = Rows.of(metric, first).counting(n_pairs)
    curves = check_initial(rows, first, last, initial, like)

    solved = _Solved(first, last)
    (open_pairs,) = places((first != last).any(1))
    pair_bytes = solver.pair_bytes(d) + 2 * rows.budget.width * first.element_size()
    groups = open_pairs.split(max(1, rows.budget.memory(first) // pair_bytes))
    furthest = 0.0
    for number, group in enumerate(groups):

        def report(share: float, n: int, iteration: int, number: int = number) -> None:
            nonlocal furthest
            furthest = max(furthest, (number + share) / len(groups))
            if callback is not None:
                callback(Progress(furthest, n_pairs, n, iteration))

        for pairs, ends in _by_resolution(rows, first, last, group):
            chosen = curves[pairs] if isinstance(curves, CubicBSpline) else curves
            part = rows.counting(pairs.numel())
            starts = _starts(part, first[pairs], last[pairs], chosen)
            from_line = not isinstance(chosen, CubicBSpline)
            _solve_group(
                solved, pairs, part, ends, solver, starts, length_tolerance, report, from_line
            )
            rows.spent.add(pairs, part.spent)
    solution = solved.solution(rows.spent)
    if callback is not None:
        callback(Progress(1.0, n_pairs, solution.curve.n_control_points, 0))
    return shape.back(solution)


def check_initial(
    rows: Rows, start: Tensor, end: Tensor, initial: object, like: Tensor | None = None
) -> LatentGraph | CubicBSpline | None:
    """Return where to start: None, a graph, or B curves that run from start to end."""
    if initial is None:
        return None
    wanted = "None, a LatentGraph, a CubicBSpline, or points of shape (B, T, d)"
    if isinstance(initial, LatentGraph):
        if initial.codes.shape[1] != start.shape[1]:
            required = f"a graph of codes of dimension {start.shape[1]}"
            raise ValueError(requirement("initial", required, describe(initial.codes)))
        check_alike("initial", initial.codes, "start", start)
        initial.metric.check("start", start[:1])  # that of a graph from a file was never called
        return initial
    if isinstance(initial, CubicBSpline):
        points = initial.control_points.detach()
        points = points if like is None else points.to(like)
    elif isinstance(as_tensor(initial), Tensor):
        points = check_tensor("initial", initial, "(B, T, d) or (T, d)", like=like).detach()
        points = points if points.ndim == 3 else points[None]
    else:
        raise TypeError(requirement("initial", wanted, describe(initial)))
    check_alike("initial", points, "start", start)
    b, d = start.shape
    if points.shape[0] not in (1, b) or points.shape[1] < 2 or points.shape[2] != d:
        required = f"{wanted}, with B = 1 or {b}, T at least 2 and d = {d}"
        raise ValueError(requirement("initial", required, describe(points)))
    points = points.expand(b, -1, -1)
    scale = 1e-5 * (end - start).norm(dim=1).clamp_min(1e-30)
    gap = torch.maximum((points[:, 0] - start).norm(dim=1), (points[:, -1] - end).norm(dim=1))
    if bool((gap > scale).any()):
        found = f"a gap of {float(gap.max()):.3g}"
        raise ValueError(requirement("initial", "curves from `start` to `end`", found))
    points = torch.cat([start[:, None], points[:, 1:-1], end[:, None]], dim=1)
    if isinstance(initial, CubicBSpline):
        return CubicBSpline(points, initial.knots.to(points.device))
    return curve_through_points(rows, points, _PATH_CONTROL_POINTS)


def _by_resolution(
    rows: Rows, start: Tensor, end: Tensor, group: Tensor
) -> list[tuple[Tensor, Tensor | None]]:
    """Split a group of pairs by whether chords between them stand out of the outputs' rounding.

    Returns the pairs of each part with the outputs at their ends, (A, 2, D), or None where energies
    are to be had from the speed.
    """
    if not group.numel() or rows.chords is None:
        return [(group, None)] if group.numel() else []
    ends = rows.outputs(torch.stack([start[group], end[group]], dim=1), group)
    rounding = rows.chords.values.rounding(ends) * ends.norm(dim=2).amax(1)
    # what is not finite is met later, pair by pair
    close = (ends[:, 1] - ends[:, 0]).norm(dim=1) < _RESOLVED * rounding
    apart, near = places(~close, close)
    parts = [(group[apart], ends[apart]), (group[near], None)]
    return [(pairs, outputs) for pairs, outputs in parts if pairs.numel()]


def _starts(
    rows: Rows, start: Tensor, end: Tensor, initial: LatentGraph | CubicBSpline | None
) -> list[CubicBSpline]:
    """Return the curves from which a solver is to start, in float64; the first may be lines.

    End points may be few roundings apart.
    """
    if isinstance(initial, CubicBSpline):
        return [initial.to(dtype=torch.float64)]
    knots = clamped_knots(4)
    line = CubicBSpline.trusted(straight_control_points(start.double(), end.double(), knots), knots)
    if initial is None:
        return [line]
    curve = graph_curve(initial, start, end, _PATH_CONTROL_POINTS, rows.spent)
    return [line, curve.to(dtype=torch.float64)]


class _Solved:
    """The results of a call, filled in as pairs are solved; at first all stay where they are."""

    def __init__(self, start: Tensor, end: Tensor) -> None:
        zeros = torch.zeros(start.shape[0], dtype=torch.int64, device=start.device)
        zero = torch.zeros_like(zeros, dtype=torch.float64)
        self.start, self.end = start.double(), end.double()
        self.dtype = start.dtype
        # pairs, and their control points and knots
        self.curves: list[tuple[Tensor, Tensor, Tensor]] = []
        self.length, self.straight_length, self.energy = zero, zero.clone(), zero.clone()
        self.predicted_improvement = zero.clone()
        self.status = zeros + int(Status.EQUAL_END_POINTS)
        self.iterations, self.control_points = zeros, zeros + 4

    def solution(self, evaluations: Evaluations) -> GeodesicSolution:
        """Return the results in the type of the codes."""
        knots = clamped_knots(4)
        for _, _, others in self.curves:
            knots = others if others.numel() > knots.numel() else knots
        points = straight_control_points(self.start, self.end, knots)
        for pairs, controls, others in self.curves:
            points[pairs] = sent(refine(others, points.shape[1])[1], controls) @ controls
        return GeodesicSolution(
            curve=CubicBSpline.trusted(points.to(self.dtype), sent(knots, points)),
            length=self.length.to(self.dtype),
            straight_length=self.straight_length.to(self.dtype),
            energy=self.energy.to(self.dtype),
            predicted_improvement=self.predicted_improvement.to(self.dtype),
            status=self.status,
            iterations=self.iterations,
            control_points=self.control_points,
            evaluations=evaluations,
        )


def _solve_group(
    solved: _Solved,
    pairs: Tensor,
    rows: Rows,
    ends: Tensor | None,
    solver: Solver,
    starts: list[CubicBSpline],
    length_tolerance: float | None,
    report: Callable[[float, int, int], None],
    from_line: bool,
) -> None:
    """Solve pairs with different end points that fit into memory together, and fill them in."""
    outcomes = []
    for turn, curve in enumerate(starts):

        def tell(share: float, n: int, iteration: int, turn: int = turn) -> None:
            report((turn + share) / len(starts), n, iteration)

        problem = Problem(rows, curve.control_points, curve.knots.cpu(), ends, tell)
        outcomes.append(shorten(solver, problem))

    knots = clamped_knots(4)
    line = straight_control_points(solved.start[pairs], solved.end[pairs], knots)
    candidates = [(line, knots), *((found.control_points, found.knots) for found in outcomes)]
    curves = [CubicBSpline.trusted(points.to(solved.dtype), knots) for points, knots in candidates]
    tolerance: float | Tensor | None = length_tolerance
    if tolerance is None:
        left = torch.stack([outcome.predicted_improvement for outcome in outcomes]).amin(0)
        least = max(_LENGTH_TOLERANCE, solver.tolerance)
        share = _LENGTH_SHARE * left.nan_to_num(0.0)
        tolerance = share.clamp(least, max(least, _ROUGHEST_LENGTH))
    measured = measure(rows, curves, tolerance=tolerance)

    # the shortest of the curves, the first of equals; NaN is never shortest
    lengths = measured.length[1:].nan_to_num(torch.inf)
    best = lengths.argmin(0)
    own = torch.arange(pairs.numel(), device=pairs.device)

    def chosen(values: list[Tensor]) -> Tensor:
        return torch.stack(values)[best, own]

    status = chosen([outcome.judged() for outcome in outcomes])
    straight_length = measured.length[0]
    shorter = lengths[best, own] < straight_length.nan_to_num(torch.inf)
    failed = (status == Status.NON_FINITE) | ~straight_length.isfinite()
    kept = torch.where(failed, int(Status.NON_FINITE), int(Status.STRAIGHT_IS_SHORTEST))
    indefinite = measured.indefinite | (status == Status.INDEFINITE_METRIC)
    status = torch.where(shorter, status, kept)
    solved.status[pairs] = torch.where(indefinite, int(Status.INDEFINITE_METRIC), status)

    predicted = chosen([outcome.predicted_improvement for outcome in outcomes])
    # where no solver began with the line, nothing is known of it
    at_start = (
        outcomes[0].predicted_at_start if from_line else torch.full_like(predicted, torch.nan)
    )
    left = _left_for_line(at_start, predicted, lengths[best, own] / straight_length)
    solved.predicted_improvement[pairs] = torch.where(shorter, predicted, left)
    place = torch.where(shorter, best + 1, 0)  # among the candidates
    solved.length[pairs] = measured.length[place, own]
    solved.straight_length[pairs] = straight_length
    solved.energy[pairs] = measured.energy[place, own]
    solved.iterations[pairs] = torch.stack([outcome.iterations for outcome in outcomes]).sum(0)
    needed = chosen([outcome.n_control_points for outcome in outcomes])
    solved.control_points[pairs] = torch.where(shorter, needed, 4)
    for outcome in outcomes:
        outcome.refine(max(other.control_points.shape[1] for other in outcomes))
    knots = outcomes[0].knots
    lines = straight_control_points(solved.start[pairs], solved.end[pairs], knots)
    points = chosen([outcome.control_points for outcome in outcomes])
    solved.curves.append((pairs, torch.where(shorter[:, None, None], points, lines), knots))


def _left_for_line(at_start: Tensor, predicted: Tensor, ratio: Tensor) -> Tensor:
    """Return the predicted improvement of straight lines, where no shorter curve was found.

    A line's own prediction takes the energy that it loses by running at constant speed for a gain
    in length. A curve that came out as long as the line, but for measuring, is that line at
    constant speed: what is predicted to be left for the curve is left for the line.

    Parameters
    ----------
    at_start
        Predicted of the lines themselves, (B,).
    predicted
        Predicted of the curves that solvers made of them, (B,).
    ratio
        Length of the curves over that of the lines, (B,).
    """
    left = (1.0 - ratio * (1.0 - predicted)).clamp_min(0.0)
    return torch.where((ratio - 1.0).abs() <= _SAME_LENGTH, left, at_start)
