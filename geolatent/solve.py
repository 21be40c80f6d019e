"""Geodesics between pairs of latent codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
from geolatent.metrics.budget import RowBudget
from geolatent.solution import Evaluations, GeodesicSolution, Status
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Callback, Problem, Progress, Solver

# control points of a curve that starts on a graph's path or on given points: enough to follow it
_PATH_CONTROL_POINTS = 24
# outputs closer together than this many roundings have chords too short to tell energies
_RESOLVED = 2.0**14
# curves whose lengths differ relatively by less are taken for one
_SAME_LENGTH = 1e-3


@torch.inference_mode(False)
def solve_geodesic(
    metric: Metric,
    start: Tensor,
    end: Tensor,
    solver: Solver | None = None,
    *,
    initial: LatentGraph | CubicBSpline | Tensor | None = None,
    length_tolerance: float = 1e-4,
    max_rows: int | None = None,
    callback: Callback | None = None,
) -> GeodesicSolution:
    """Find the geodesics between pairs of latent codes.

    Minimises the path energy E = 1/2 integral of gamma'^T G(gamma) gamma' over cubic B-splines with
    fixed end points. No returned curve is longer than the straight line: where none shorter was
    found, the straight line is returned and the status says so. A pair that fails does not touch
    the others.

    Parameters
    ----------
    metric
        The metric.
    start, end
        Codes, (d,) or (B, d) each, broadcast.
    solver
        How curves are shortened; by default `PreconditionedSolver()`.
    initial
        Where to start. None: the straight line. A `LatentGraph`: its shortest paths and the
        straight line, of which the shorter result is kept. Curves: `CubicBSpline`, batch 1 or B.
        Points along curves, (B, T, d) or (T, d), from start to end.
    length_tolerance
        Relative tolerance of the reported lengths.
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
    length_tolerance = check_number("length_tolerance", length_tolerance, above=0.0)
    first, last = check_pairs(start, end, metric.dim)
    metric.check("start", first[:1])
    metric.check_definite("start", first)
    metric.check_definite("end", last)
    budget = RowBudget(max_rows)
    budget.fit(metric, first[:1])
    curves = check_initial(metric, first, last, initial, budget)

    n_pairs, d = first.shape
    apart = (first != last).any(1)
    open_pairs = apart.nonzero().squeeze(1)
    pair_bytes = solver.pair_bytes(d) + 2 * budget.width * first.element_size()
    size = max(1, budget.memory(first) // pair_bytes)
    groups = list(open_pairs.split(size)) if open_pairs.numel() else []
    parts, order = [], []
    furthest = 0.0
    for number, group in enumerate(groups):

        def report(share: float, n: int, iteration: int, number: int = number) -> None:
            nonlocal furthest
            furthest = max(furthest, (number + share) / len(groups))
            if callback is not None:
                callback(Progress(furthest, n_pairs, n, iteration))

        for pairs, ends in _by_resolution(metric, first, last, group, budget):
            chosen = curves[pairs] if isinstance(curves, CubicBSpline) else curves
            solved = _solve_group(
                metric,
                first[pairs],
                last[pairs],
                ends,
                solver,
                chosen,
                length_tolerance,
                budget,
                report,
            )
            parts.append(solved)
            order.append(pairs)
    solution = _assemble(first, last, torch.cat(order) if order else open_pairs, parts)
    if callback is not None:
        callback(Progress(1.0, n_pairs, solution.curve.n_control_points, 0))
    return solution


def check_initial(
    metric: Metric,
    start: Tensor,
    end: Tensor,
    initial: object,
    budget: RowBudget,
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
        return initial
    if isinstance(initial, Tensor):
        points = check_tensor("initial", initial, "of shape (B, T, d) or (T, d)", (2, 3)).detach()
        points = points if points.ndim == 3 else points[None]
    elif isinstance(initial, CubicBSpline):
        points = initial.control_points.detach()
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
        return CubicBSpline(points, initial.knots)
    return curve_through_points(metric, points, _PATH_CONTROL_POINTS, budget)


def _by_resolution(
    metric: Metric, start: Tensor, end: Tensor, group: Tensor, budget: RowBudget
) -> list[tuple[Tensor, Tensor | None]]:
    """Split a group of pairs by whether chords between them stand out of the outputs' rounding.

    Returns the pairs of each part with the outputs at their ends, (A, 2, D), or None where energies
    are to be had from the speed.
    """
    if metric.chords is None:
        return [(group, None)]
    values = metric.chords.values
    both = torch.stack([start[group], end[group]], dim=1).flatten(0, 1)

    def decode(items: slice) -> Tensor:
        with torch.no_grad():
            return values(both[items])

    ends = torch.cat(budget.run(decode, both.shape[0], 1)).reshape(group.numel(), 2, -1)
    rounding = torch.finfo(ends.dtype).eps * ends.norm(dim=2).amax(1)
    # what is not finite is met later, pair by pair
    close = (ends[:, 1] - ends[:, 0]).norm(dim=1) < _RESOLVED * rounding
    parts = [(group[~close], ends[~close]), (group[close], None)]
    return [(pairs, outputs) for pairs, outputs in parts if pairs.numel()]


def _solve_group(
    metric: Metric,
    start: Tensor,
    end: Tensor,
    ends: Tensor | None,
    solver: Solver,
    initial: LatentGraph | CubicBSpline | None,
    length_tolerance: float,
    budget: RowBudget,
    report: Callable[[float, int, int], None],
) -> GeodesicSolution:
    """Solve pairs with different end points that fit into memory together."""
    b = start.shape[0]
    evaluations = Evaluations.zeros(b, start.device)
    # in float64, for end points may be few roundings apart
    line = CubicBSpline.straight(start.double(), end.double())
    starts: list[CubicBSpline] = []
    if not isinstance(initial, CubicBSpline):
        starts.append(line)
    if isinstance(initial, CubicBSpline):
        starts.append(initial)
    elif initial is not None:
        curve, rows = graph_curve(initial, start, end, _PATH_CONTROL_POINTS, budget)
        evaluations.forward.add_(rows)
        starts.append(curve)

    if metric.chords is not None:
        evaluations.forward.add_(2)

    outcomes = []
    for turn, curve in enumerate(starts):

        def tell(done: int, n: int, iteration: int, turn: int = turn) -> None:
            report((turn + done / b) / len(starts), n, iteration)

        points = curve.control_points.double()
        problem = Problem(metric, start.dtype, budget, points, curve.knots, ends, evaluations, tell)
        outcome = solver.shorten(problem)
        outcome.status = problem.judge(outcome.status)
        outcomes.append(outcome)

    curves = [line, *(CubicBSpline(o.control_points, o.knots) for o in outcomes)]
    curves = [curve.to(dtype=start.dtype) for curve in curves]
    measured = measure(metric, curves, tolerance=length_tolerance, budget=budget)
    evaluations.forward.add_(measured.forward)
    evaluations.jvp.add_(measured.jvp)

    # the shortest of the curves, the first of equals; NaN is never shortest
    lengths = measured.length[1:].nan_to_num(torch.inf)
    best = lengths.argmin(0)
    pairs = torch.arange(b, device=start.device)
    n = max(int(o.control_points.shape[1]) for o in outcomes)
    for outcome in outcomes:
        outcome.refine(n)

    def chosen(values: list[Tensor]) -> Tensor:
        return torch.stack(values)[best, pairs]

    status = chosen([o.status for o in outcomes])
    straight_length = measured.length[0]
    shorter = lengths[best, pairs] < straight_length.nan_to_num(torch.inf)
    failed = (status == Status.NON_FINITE) | ~straight_length.isfinite()
    kept = torch.where(failed, int(Status.NON_FINITE), int(Status.STRAIGHT_IS_SHORTEST))
    indefinite = measured.indefinite | (status == Status.INDEFINITE_METRIC)
    status = torch.where(shorter, status, kept)
    status = torch.where(indefinite, int(Status.INDEFINITE_METRIC), status)
    predicted = chosen([o.predicted_improvement for o in outcomes])
    at_start = _left_for_line(
        outcomes[0].predicted_at_start, predicted, lengths[best, pairs] / straight_length
    )
    if isinstance(initial, CubicBSpline):  # no solver began with the line
        at_start = torch.full_like(at_start, torch.nan)
    lines = straight_control_points(start.double(), end.double(), outcomes[0].knots)
    points = torch.where(
        shorter[:, None, None], chosen([o.control_points for o in outcomes]), lines
    )
    return GeodesicSolution(
        curve=CubicBSpline(points, outcomes[0].knots),
        length=torch.where(shorter, measured.length[1:][best, pairs], straight_length),
        straight_length=straight_length,
        energy=torch.where(shorter, measured.energy[1:][best, pairs], measured.energy[0]),
        predicted_improvement=torch.where(shorter, predicted, at_start),
        status=status,
        iterations=torch.stack([o.iterations for o in outcomes]).sum(0),
        control_points=torch.where(shorter, chosen([o.n_control_points for o in outcomes]), 4),
        evaluations=evaluations,
    )


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


def _assemble(
    start: Tensor, end: Tensor, solved: Tensor, parts: list[GeodesicSolution]
) -> GeodesicSolution:
    """Join the groups' solutions and the pairs that need none, in the order of the call."""
    b = start.shape[0]
    n = max((part.curve.n_control_points for part in parts), default=4)
    if parts:
        refined = [refine(part.curve.knots, n) for part in parts]
        knots = refined[0][0]
        points = straight_control_points(start.double(), end.double(), knots)
        points[solved] = torch.cat(
            [
                matrix @ part.curve.control_points
                for part, (_, matrix) in zip(parts, refined, strict=True)
            ]
        )
    else:
        knots = clamped_knots(n)
        points = straight_control_points(start.double(), end.double(), knots)

    def joined(name: str, fill: float, dtype: torch.dtype) -> Tensor:
        values = torch.full((b,), fill, dtype=dtype, device=start.device)
        if parts:
            values[solved] = torch.cat([getattr(part, name) for part in parts]).to(dtype)
        return values

    evaluations = Evaluations.zeros(b, start.device)
    for name in ("forward", "backward", "jvp"):
        if parts:
            counts = [getattr(part.evaluations, name) for part in parts]
            getattr(evaluations, name)[solved] = torch.cat(counts)
    dtype = start.dtype
    return GeodesicSolution(
        curve=CubicBSpline(points.to(dtype), knots),
        length=joined("length", 0.0, dtype),
        straight_length=joined("straight_length", 0.0, dtype),
        energy=joined("energy", 0.0, dtype),
        predicted_improvement=joined("predicted_improvement", 0.0, dtype),
        status=joined("status", float(Status.EQUAL_END_POINTS), torch.int64),
        iterations=joined("iterations", 0, torch.int64),
        control_points=joined("control_points", 4, torch.int64),
        evaluations=evaluations,
    )
