"""Geodesics between pairs of latent codes: `solve_geodesic` and its solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geolatent.checks import (
    check_alike,
    check_integer,
    check_number,
    check_pairs,
    check_tensor,
    describe,
    requirement,
)
from geolatent.curves import (
    CubicBSpline,
    basis_matrix,
    clamped_knots,
    refine,
    straight_control_points,
)
from geolatent.energy import (
    DiscreteEnergy,
    RowBudget,
    composite_rule,
    count_measured,
    measure,
    metric_tensors,
)
from geolatent.initial import LatentGraph, curve_through_points, graph_curve
from geolatent.metrics import Metric
from geolatent.minimize import LBFGS, LBFGSState
from geolatent.solution import Evaluations, GeodesicSolution, Status

# bytes for the state of the pairs that are solved together
_GROUP_BYTES = 2**30
# control points of a curve that starts on a graph's path or on given points: enough to follow it
_PATH_CONTROL_POINTS = 24


@dataclass(frozen=True)
class Progress:
    """What a callback is told after every step of the minimiser.

    Attributes
    ----------
    fraction
        Share of the work that is done, in [0, 1], counted in pairs.
    n_pairs
        Pairs in the call.
    n_control_points
        Control points of the curves being optimised.
    iteration
        Steps taken on the present level.
    """

    fraction: float
    n_pairs: int
    n_control_points: int
    iteration: int


Callback = Callable[[Progress], None]


@dataclass
class Problem:
    """B curves to be shortened, as a solver gets them. All small tensors are float64.

    Attributes
    ----------
    metric, dtype, budget
        The metric, the floating-point type its functions work in, the rows it may see at once.
    control_points, knots
        The starting curves, (B, n, d) and (n + 4,).
    ends
        Values of the immersion at the end points, (B, 2, D); None without an immersion.
    evaluations
        Counts to be added to.
    report
        Called after every step with (pairs done so far, control points, iteration).
    """

    metric: Metric
    dtype: torch.dtype
    budget: RowBudget
    control_points: Tensor
    knots: Tensor
    ends: Tensor | None
    evaluations: Evaluations
    report: Callable[[int, int, int], None]

    def energy(
        self, knots: Tensor, nodes_per_span: int, *, gauss_newton: bool = True
    ) -> DiscreteEnergy:
        """Return the discrete energy of splines on ``knots``."""
        return DiscreteEnergy(
            self.metric,
            knots,
            nodes_per_span,
            self.ends,
            self.control_points.shape[2],
            self.dtype,
            self.budget,
            gauss_newton=gauss_newton,
        )


@dataclass
class Outcome:
    """What a solver makes of a problem, pair by pair; the curves share one knot vector."""

    control_points: Tensor
    knots: Tensor
    status: Tensor
    predicted_improvement: Tensor
    iterations: Tensor
    n_control_points: Tensor

    @classmethod
    def start(cls, problem: Problem) -> Outcome:
        """Return the outcome in which nothing has been done yet."""
        b, n, _ = problem.control_points.shape
        zeros = torch.zeros(b, dtype=torch.int64, device=problem.control_points.device)
        return cls(
            control_points=problem.control_points.clone(),
            knots=problem.knots,
            status=zeros + int(Status.MAX_ITERATIONS),
            predicted_improvement=zeros.double() + torch.nan,
            iterations=zeros,
            n_control_points=zeros + n,
        )

    def refine(self, n_control_points: int) -> None:
        """Give all curves more control points; their geometry stays."""
        if n_control_points > self.control_points.shape[1]:
            self.knots, matrix = refine(self.knots, n_control_points)
            self.control_points = matrix @ self.control_points


class Solver(ABC):
    """A way to shorten curves. Subclasses are frozen dataclasses of their settings."""

    @abstractmethod
    def shorten(self, problem: Problem) -> Outcome:
        """Return shorter curves; what comes back longer is not used."""


def sobolev_hessian(knots: Tensor, n_control_points: int, tensors: Tensor) -> Tensor:
    """Return H_(i,j) = integral of B_i' B_j' G(gamma) over the free control points.

    G is interpolated linearly between M points, the middles of M equal intervals of [0, 1].

    Parameters
    ----------
    knots, n_control_points
        Of the curves.
    tensors
        G at the M points of every curve, (A, M, d, d).

    Returns
    -------
    Tensor
        Shape (A, (n - 2) d, (n - 2) d), float64.
    """
    n = n_control_points
    a, m, d, _ = tensors.shape
    kinks = torch.arange(1, 2 * m, dtype=knots.dtype, device=knots.device) / (2 * m)
    t, weights = composite_rule(torch.cat([knots, kinks]), 3)
    slopes = basis_matrix(knots, t, derivative=1)[:, 1:-1]
    places = torch.arange(m, dtype=t.dtype, device=t.device)
    hats = (1.0 - (t[:, None] * m - 0.5 - places).abs()).clamp_min(0.0)
    hats = hats / hats.sum(1, keepdim=True)  # constant before the first and after the last point
    stiffness = torch.einsum("qm,qi,qj->mij", hats * weights[:, None], slopes, slopes)
    matrix = torch.einsum("mij,amkl->aikjl", stiffness, tensors.double())
    return matrix.reshape(a, (n - 2) * d, (n - 2) * d)


@dataclass(frozen=True)
class PreconditionedSolver(Solver):
    """Metric-preconditioned L-BFGS on the path energy, coarse to fine. The default.

    Every level halves the knot spans of the one before. Its first evaluation, of the unchanged
    curve in the richer spline space, is the certificate: a pair whose Newton decrement
    g^T H^-1 g / (4 E) predicts a relative improvement of at most ``tolerance`` is done.

    Parameters
    ----------
    tolerance
        Predicted relative improvement in length at which a pair has converged.
    first_control_points
        Control points of the first level; a starting curve with more begins with its own.
    max_control_points
        Largest number of control points of a returned curve.
    nodes_per_span, max_nodes
        Decoder rows per knot span in the discrete energy; where that makes more than ``max_nodes``
        on a curve, fewer, but two at least.
    metric_points
        Metric tensors per curve for the preconditioner of the first level; up to twice as many on
        the finer ones.
    level_reduction
        A level is left when the predicted improvement has fallen by this factor.
    max_iterations
        Minimiser steps for each pair, all levels together.
    minimizer
        Settings of the minimiser.

    Raises
    ------
    TypeError, ValueError
        Where a setting is out of its range.
    """

    tolerance: float = 3e-4
    first_control_points: int = 7
    max_control_points: int = 67
    nodes_per_span: int = 4
    max_nodes: int = 32
    metric_points: int = 4
    level_reduction: float = 0.05
    max_iterations: int = 200
    minimizer: LBFGS = field(default_factory=LBFGS)

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, above=0.0)
        check_integer("first_control_points", self.first_control_points, minimum=5)
        check_integer(
            "max_control_points", self.max_control_points, minimum=self.first_control_points
        )
        check_integer("nodes_per_span", self.nodes_per_span, minimum=2)
        check_integer("max_nodes", self.max_nodes, minimum=2)
        check_integer("metric_points", self.metric_points)
        check_number("level_reduction", self.level_reduction, above=0.0, at_most=1.0)
        check_integer("max_iterations", self.max_iterations)

    def shorten(self, problem: Problem) -> Outcome:
        """Run the levels until every pair has converged or run out of means."""
        outcome = Outcome.start(problem)
        active = torch.arange(problem.control_points.shape[0], device=problem.control_points.device)
        n = max(problem.control_points.shape[1], self.first_control_points)
        metric_points = self.metric_points
        while active.numel():
            knots, matrix = refine(outcome.knots, n)
            points = matrix @ outcome.control_points[active]
            level = _Level(self, problem, knots, points, active, metric_points)
            going = level.certify(outcome, final=n > self.max_control_points)
            if going.any():
                outcome.refine(n)
                active = level.run(outcome, going, last=_next_level(n) > self.max_control_points)
            else:
                active = active[:0]
            n = _next_level(n)
            metric_points = 2 * self.metric_points
        return outcome


def _next_level(n_control_points: int) -> int:
    """Return the number of control points after every knot span is halved."""
    return 2 * n_control_points - 3


class _Level:
    """One level of the coarse-to-fine solve: the active pairs on one knot vector."""

    def __init__(
        self,
        solver: PreconditionedSolver,
        problem: Problem,
        knots: Tensor,
        points: Tensor,
        active: Tensor,
        metric_points: int,
    ) -> None:
        self.solver = solver
        self.problem = problem
        self.active = active
        self.points = points
        spans = knots.unique().numel() - 1
        per_span = max(2, min(solver.nodes_per_span, -(-solver.max_nodes // spans)))
        self.energy = problem.energy(knots, per_span)
        _, n, d = points.shape
        everyone = torch.arange(active.numel(), device=points.device)
        x = points[:, 1:-1].flatten(1)
        value, gradient, hessian = self.objective(x, everyone)
        if hessian is None:
            m = metric_points
            at = (torch.arange(m, dtype=knots.dtype, device=knots.device) + 0.5) / m
            places = (basis_matrix(knots, at) @ points).to(problem.dtype)
            tensors = metric_tensors(problem.metric, places, problem.budget)
            problem.evaluations.forward[active] += m * problem.metric.tensor_rows(d)
            hessian = sobolev_hessian(knots, n, tensors)
        self.state = solver.minimizer.init(x, value, gradient, hessian)

    def objective(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return energies and derivatives by free control points (A, m) of the level's pairs."""
        ends = self.points[index]
        inner = x.reshape(-1, ends.shape[1] - 2, ends.shape[2])
        curve = torch.cat([ends[:, :1], inner, ends[:, -1:]], dim=1)
        pairs = self.active[index]
        value, gradient, hessian = self.energy(curve, pairs)
        self.energy.count(self.problem.evaluations, pairs)
        d = curve.shape[2]
        if hessian is not None:
            hessian = hessian[:, d:-d, d:-d]
        return value, gradient[:, 1:-1].flatten(1), hessian

    def certify(self, outcome: Outcome, final: bool) -> Tensor:
        """Judge the curves as they came, in this level's spline space; return who goes on."""
        active = self.active
        predicted = _relative_decrease(self.state)
        outcome.predicted_improvement[active] = predicted
        finite = self.state.value.isfinite() & self.state.gradient.isfinite().all(1)
        converged = finite & (predicted <= self.solver.tolerance)
        exhausted = outcome.iterations[active] >= self.solver.max_iterations
        status = outcome.status[active]
        if final:
            stalled = status == Status.STALLED
            status = torch.where(stalled, status, int(Status.MAX_CONTROL_POINTS))
        status = torch.where(exhausted, int(Status.MAX_ITERATIONS), status)
        status = torch.where(converged, int(Status.CONVERGED), status)
        status = torch.where(finite, status, int(Status.NON_FINITE))
        outcome.status[active] = status
        return finite & ~converged & ~exhausted & (not final)

    def run(self, outcome: Outcome, going: Tensor, last: bool) -> Tensor:
        """Minimise until the level's goal; return the pairs that ran."""
        solver, minimizer = self.solver, self.solver.minimizer
        state = self.state.select(going)
        ran = self.active[state.index]
        outcome.n_control_points[ran] = self.points.shape[1]
        floor = 0.5 * solver.tolerance
        goal = torch.full_like(self.state.value, floor)
        if not last:
            goal = (solver.level_reduction * _relative_decrease(self.state)).clamp_min(floor)
        iteration = 0
        while state.index.numel():
            state = minimizer.step(state, self.objective)
            iteration += 1
            pairs = self.active[state.index]
            outcome.iterations[pairs] += 1
            predicted = _relative_decrease(state)
            reached = predicted <= goal[state.index]
            stalled = minimizer.stalled(state)
            leaving = reached | stalled | (outcome.iterations[pairs] >= solver.max_iterations)
            if leaving.any():
                left = pairs[leaving]
                inner = state.x[leaving].reshape(left.numel(), -1, self.points.shape[2])
                outcome.control_points[left, 1:-1] = inner
                state_now = torch.where(
                    stalled & ~reached, int(Status.STALLED), int(Status.MAX_ITERATIONS)
                )
                outcome.status[left] = state_now[leaving]
                state = state.select(~leaving)
            done = self.points.shape[0] - state.index.numel()
            self.problem.report(done, self.points.shape[1], iteration)
        return ran


def _relative_decrease(state: LBFGSState) -> Tensor:
    """Turn a predicted decrease of the energy into one of the length: dL / L = dE / (2 E)."""
    decrease = state.predicted_decrease
    return torch.where(decrease > 0, decrease / (2.0 * state.value), 0.0)


@dataclass(frozen=True)
class FirstOrderSolver(Solver):
    """A `torch.optim` optimiser on the path energy, one knot at a time.

    For every number of control points the optimiser runs in ``drops + 1`` stages, each starting
    from the best curve so far with a learning rate lower by ``drop_factor``; then one knot is
    inserted. The best curve of each pair is kept. All pairs take the same steps; their
    optimisation variables are separate, so optimisers that work elementwise (SGD, Adam, RMSprop and
    the like) treat each pair as if it were alone.

    Parameters
    ----------
    optimizer
        Class of the optimiser, called with the variables and ``lr``.
    learning_rate
        In latent units for optimisers that normalise the gradient, such as Adam.
    decay
        Factor on the learning rate after every step.
    drops, drop_factor
        Number of learning-rate drops at each number of control points, and their factor.
    steps
        Steps in each stage.
    first_control_points, max_control_points
        Control points at the beginning and at the end.
    nodes
        Decoder rows per curve and step, at least.
    tolerance
        Predicted relative improvement at which a pair counts as converged.

    Raises
    ------
    TypeError, ValueError
        Where a setting is out of its range.
    """

    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam
    learning_rate: float = 0.05
    decay: float = 0.98
    drops: int = 1
    drop_factor: float = 0.3
    steps: int = 50
    first_control_points: int = 4
    max_control_points: int = 10
    nodes: int = 32
    tolerance: float = 5e-4

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, type) or not issubclass(
            self.optimizer, torch.optim.Optimizer
        ):
            required = "a subclass of torch.optim.Optimizer"
            raise TypeError(requirement("optimizer", required, describe(self.optimizer)))
        if issubclass(self.optimizer, torch.optim.LBFGS):
            required = "an optimiser that steps without a closure (use PreconditionedSolver)"
            raise ValueError(requirement("optimizer", required, self.optimizer.__name__))
        check_number("learning_rate", self.learning_rate, above=0.0)
        check_number("decay", self.decay, above=0.0, at_most=1.0)
        check_integer("drops", self.drops, minimum=0)
        check_number("drop_factor", self.drop_factor, above=0.0, at_most=1.0)
        check_integer("steps", self.steps)
        check_integer("first_control_points", self.first_control_points, minimum=4)
        check_integer("max_control_points", self.max_control_points, self.first_control_points)
        check_integer("nodes", self.nodes, minimum=2)
        check_number("tolerance", self.tolerance, above=0.0)

    @classmethod
    def michelis_becker(cls) -> FirstOrderSolver:
        """Return the recipe of Michelis and Becker (2021).

        Adam with learning rate 1, halved at every step, restarted five times at 0.3 times the rate;
        from 4 to 10 control points, 16 nodes. Their code moves the nodes at random in each step;
        here they stay.
        """
        return cls(learning_rate=1.0, decay=0.5, drops=5, drop_factor=0.3, steps=10, nodes=16)

    def shorten(self, problem: Problem) -> Outcome:
        """Run all stages for all pairs."""
        outcome = Outcome.start(problem)
        b = problem.control_points.shape[0]
        pairs = torch.arange(b, device=problem.control_points.device)
        first = max(problem.control_points.shape[1], self.first_control_points)
        stages = self.drops + 1
        last = max(first, self.max_control_points)
        total = (last - first + 1) * stages * self.steps
        taken = 0
        for n in range(first, last + 1):
            outcome.refine(n)
            spans = outcome.knots.unique().numel() - 1
            per_span = max(2, -(-self.nodes // spans))
            energy = problem.energy(outcome.knots, per_span, gauss_newton=False)
            best, gradient, _ = energy(outcome.control_points, pairs)
            energy.count(problem.evaluations, pairs)
            for stage in range(stages):
                start = outcome.control_points.clone()
                inner = start[:, 1:-1].clone().requires_grad_()
                optimizer = self.optimizer(
                    [inner],
                    lr=self.learning_rate * self.drop_factor**stage,  # type: ignore[call-arg]
                )
                schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)
                _, gradient, _ = energy(start, pairs) if stage else (best, gradient, None)
                if stage:
                    energy.count(problem.evaluations, pairs)
                for _ in range(self.steps):
                    inner.grad = gradient[:, 1:-1].nan_to_num(0.0, 0.0, 0.0)
                    optimizer.step()
                    schedule.step()
                    curve = torch.cat([start[:, :1], inner.detach(), start[:, -1:]], dim=1)
                    value, gradient, _ = energy(curve, pairs)
                    energy.count(problem.evaluations, pairs)
                    better = value < best.nan_to_num(torch.inf)
                    best = torch.where(better, value, best)
                    outcome.control_points = torch.where(
                        better[:, None, None], curve, outcome.control_points
                    )
                    outcome.iterations += 1
                    taken += 1
                    problem.report(b * taken // total, n, taken)
        outcome.n_control_points[:] = last
        judge = PreconditionedSolver(tolerance=self.tolerance)
        knots, matrix = refine(outcome.knots, _next_level(last))
        points = matrix @ outcome.control_points
        _Level(judge, problem, knots, points, pairs, 8).certify(outcome, final=True)
        return outcome


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

    >>> def sphere(z):
    ...     square = z.square().sum(1, keepdim=True)
    ...     return torch.cat([2 * z, square - 1], dim=1) / (square + 1)
    >>> start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> solution = solve_geodesic(PullbackMetric(sphere), start, end)
    >>> print(f"{solution.length.item():.3f}, {solution.relative_improvement.item():.1%} shorter")
    1.571, 8.0% shorter
    >>> solution.statuses
    [<Status.CONVERGED: 0>]

    References
    ----------
    Michelis, Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
    2021, https://arxiv.org/abs/2105.03663. Arvanitidis, Hansen, Hauberg, "Latent Space Oddity",
    ICLR 2018, https://arxiv.org/abs/1710.11379.
    """
    if not isinstance(metric, Metric):
        raise TypeError(requirement("metric", "a geolatent Metric", describe(metric)))
    solver = PreconditionedSolver() if solver is None else solver
    if not isinstance(solver, Solver):
        raise TypeError(requirement("solver", "a geolatent Solver or None", describe(solver)))
    length_tolerance = check_number("length_tolerance", length_tolerance, above=0.0)
    first, last = check_pairs(start, end, metric.dim)
    metric.check("start", first[:1])
    budget = RowBudget(max_rows)
    budget.fit(metric, first[:1])
    curves = check_initial(metric, first, last, initial, budget)

    n_pairs, d = first.shape
    apart = (first != last).any(1)
    open_pairs = apart.nonzero().squeeze(1)
    pair_bytes = 8 * (2 * (32 * d) ** 2 + 20 * 32 * d)
    size = max(1, min(_GROUP_BYTES // pair_bytes, 4096))
    groups = list(open_pairs.split(size)) if open_pairs.numel() else []
    parts = []
    for number, group in enumerate(groups):

        def report(share: float, n: int, iteration: int, number: int = number) -> None:
            if callback is not None:
                fraction = (number + share) / len(groups)
                callback(Progress(fraction, n_pairs, n, iteration))

        chosen = curves[group] if isinstance(curves, CubicBSpline) else curves
        parts.append(
            _solve_group(
                metric, first[group], last[group], solver, chosen, length_tolerance, budget, report
            )
        )
    solution = _assemble(first, last, open_pairs, parts)
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


def _solve_group(
    metric: Metric,
    start: Tensor,
    end: Tensor,
    solver: Solver,
    initial: LatentGraph | CubicBSpline | None,
    length_tolerance: float,
    budget: RowBudget,
    report: Callable[[float, int, int], None],
) -> GeodesicSolution:
    """Solve pairs with different end points that fit into memory together."""
    b = start.shape[0]
    evaluations = Evaluations.zeros(b, start.device)
    starts: list[CubicBSpline] = []
    if not isinstance(initial, CubicBSpline):
        starts.append(CubicBSpline.straight(start, end))
    if isinstance(initial, CubicBSpline):
        starts.append(initial)
    elif initial is not None:
        curve, rows = graph_curve(initial, start, end, _PATH_CONTROL_POINTS, budget)
        evaluations.forward.add_(rows)
        starts.append(curve)

    ends = None
    if metric.immersion is not None:
        immersion = metric.immersion
        both = torch.stack([start, end], dim=1).flatten(0, 1)

        def decode(items: slice) -> Tensor:
            with torch.no_grad():
                return immersion(both[items])

        ends = torch.cat(budget.run(decode, 2 * b, 1)).reshape(b, 2, -1)
        evaluations.forward.add_(2)

    outcomes = []
    for turn, curve in enumerate(starts):

        def tell(done: int, n: int, iteration: int, turn: int = turn) -> None:
            report((turn + done / b) / len(starts), n, iteration)

        points = curve.control_points.double()
        problem = Problem(metric, start.dtype, budget, points, curve.knots, ends, evaluations, tell)
        outcomes.append(solver.shorten(problem))

    line = CubicBSpline.straight(start, end)
    curves = [CubicBSpline(o.control_points.to(start), o.knots) for o in outcomes]
    measured = measure(metric, [line, *curves], tolerance=length_tolerance, budget=budget)
    count_measured(metric, evaluations, len(curves) * measured.rows + measured.rows)

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
    failed = status == Status.NON_FINITE
    status = torch.where(shorter | failed, status, int(Status.STRAIGHT_IS_SHORTEST))
    lines = straight_control_points(start.double(), end.double(), outcomes[0].knots)
    points = torch.where(
        shorter[:, None, None], chosen([o.control_points for o in outcomes]), lines
    )
    return GeodesicSolution(
        curve=CubicBSpline(points, outcomes[0].knots),
        length=torch.where(shorter, measured.length[1:][best, pairs], straight_length),
        straight_length=straight_length,
        energy=torch.where(shorter, measured.energy[1:][best, pairs], measured.energy[0]),
        predicted_improvement=chosen([o.predicted_improvement for o in outcomes]),
        status=status,
        iterations=torch.stack([o.iterations for o in outcomes]).sum(0),
        control_points=torch.where(shorter, chosen([o.n_control_points for o in outcomes]), 4),
        evaluations=evaluations,
    )


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
