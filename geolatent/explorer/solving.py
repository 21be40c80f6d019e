"""What the page asks for: geodesics of two codes, walks along them, means, clusters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolatent.checks import check_choice, check_integer, check_number, check_tensor, requirement
from geolatent.curves import CubicBSpline
from geolatent.explorer.jobs import Job, part
from geolatent.explorer.subject import Subject
from geolatent.geometry.means import frechet_mean
from geolatent.learn.kmeans import GeodesicKMeans
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows
from geolatent.solution import Status
from geolatent.solve import solve_geodesic
from geolatent.solvers.preconditioned import PreconditionedSolver

STARTS = {"straight": "straight line", "graph": "graph of codes"}
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
# of a first answer that is shown, and called so, until the asked one is there
EARLY = PreconditionedSolver(tolerance=1e-2, max_control_points=7)
# points at which the speed in the output is taken
_CLOCK = 129
# codes of a selection that a mean or clusters take, more would keep others waiting
MOST_SELECTED = 500


@dataclass(frozen=True)
class Settings:
    """How pairs are solved.

    Attributes
    ----------
    metric
        Name of a metric of the subject.
    tolerance
        Predicted relative improvement in length at which a pair has converged.
    start
        "straight" or "graph".
    """

    metric: str
    tolerance: float = 1e-4
    start: str = "straight"

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, above=0.0)
        check_choice("start", self.start, tuple(STARTS))


@dataclass(frozen=True)
class PairResult:
    """A solved pair, in the types of JSON: it lives in the page.

    Attributes
    ----------
    start, end
        The two codes, d numbers each.
    settings
        How it was solved.
    control_points, knots
        The geodesic, a cubic B-spline.
    length, straight_length
        In units of the decoder's output, or of the features'.
    improvement, predicted_improvement
        Relative: by how much the geodesic is shorter, and how much is predicted to be left; None
        where it is not known.
    status
        Name of the `Status`.
    rows
        Decoder rows spent, in forward rows.
    seconds
        Time that the solve took.
    early
        Whether this is a first answer, to be followed by the asked one.
    clocks
        Of the straight line and of the geodesic: the share of the length, in the output, that lies
        before equal steps of t; None where it is not finite.
    """

    start: list[float]
    end: list[float]
    settings: Settings
    control_points: list[list[float]]
    knots: list[float]
    length: float | None
    straight_length: float | None
    improvement: float | None
    predicted_improvement: float | None
    status: str
    rows: float
    seconds: float
    early: bool
    clocks: list[list[float] | None]

    def plain(self) -> dict[str, Any]:
        """Return it in the types of JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> PairResult:
        """Return the result that `plain` gave."""
        return cls(**{**given, "settings": Settings(**given["settings"])})

    @property
    def explanation(self) -> str:
        """The status in a sentence."""
        return Status[self.status].explanation

    def curves(self, like: Tensor) -> tuple[CubicBSpline, CubicBSpline]:
        """Return the straight line and the geodesic in the type and place of a tensor."""
        line = CubicBSpline.straight(like.new_tensor([self.start]), like.new_tensor([self.end]))
        knots = torch.tensor(self.knots, dtype=torch.float64, device=like.device)
        return line, CubicBSpline(like.new_tensor([self.control_points]), knots)

    def times(self, shares: Sequence[float]) -> tuple[list[float], list[float]]:
        """Return the parameters t of both curves at shares of their lengths in the output."""
        steps = np.linspace(0.0, 1.0, _CLOCK)
        found = [
            list(shares) if clock is None else np.interp(shares, clock, steps).tolist()
            for clock in self.clocks
        ]
        return found[0], found[1]


def parse_code(name: str, text: object, dim: int) -> list[float]:
    """Return the numbers of a code that was typed, separated by spaces, commas or semicolons.

    Examples
    --------
    >>> parse_code("first code", "0.5, -1", 2)
    [0.5, -1.0]
    """
    required = f"{dim} finite numbers with spaces between them"
    words = str(text or "").replace(",", " ").replace(";", " ").split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(requirement(name, required, text)) from None
    if len(numbers) != dim or not np.isfinite(numbers).all():
        raise ValueError(requirement(name, required, text))
    return numbers


def solve_pair(
    subject: Subject,
    start: Tensor | Sequence[float],
    end: Tensor | Sequence[float],
    settings: Settings,
    job: Job | None = None,
) -> PairResult:
    """Solve for the geodesic of two codes (d,).

    It is `solve_geodesic` with a `PreconditionedSolver` of the tolerance. A job is told how much is
    done, and shown a first answer by the solver `EARLY`.
    """
    first, last = (_code(subject, name, code) for name, code in (("start", start), ("end", end)))
    metric = subject.pulled_back(settings.metric)
    if job is not None and not torch.equal(first, last):
        job.show(_solved(subject, metric, first, last, settings, early=True))
    return _solved(subject, metric, first, last, settings)


def _code(subject: Subject, name: str, code: Tensor | Sequence[float]) -> Tensor:
    like = subject.codec.like
    values = code if isinstance(code, Tensor) else torch.tensor(code, dtype=torch.float64)
    return check_tensor(name, values, f"({subject.codec.dim},)", like=like)


def _solved(
    subject: Subject,
    metric: Metric,
    start: Tensor,
    end: Tensor,
    settings: Settings,
    *,
    early: bool = False,
) -> PairResult:
    began = time.perf_counter()
    use_graph = settings.start == "graph" and not early
    graph = subject.graph(settings.metric) if use_graph else None
    solver = EARLY if early else PreconditionedSolver(tolerance=settings.tolerance)
    with part(0.0, 0.1 if early else 1.0) as tell:
        solution = solve_geodesic(
            metric, start, end, solver, initial=graph, callback=lambda state: tell(state.fraction)
        )
    line = CubicBSpline.straight(start[None], end[None])
    return PairResult(
        start=start.tolist(),
        end=end.tolist(),
        settings=settings,
        control_points=solution.curve.control_points[0].tolist(),
        knots=solution.curve.knots.tolist(),
        length=_number(solution.length),
        straight_length=_number(solution.straight_length),
        improvement=_number(solution.relative_improvement),
        predicted_improvement=_number(solution.predicted_improvement),
        status=solution.statuses[0].name,
        rows=float(solution.evaluations.equivalents[0]),
        seconds=time.perf_counter() - began,
        early=early,
        clocks=[_clock(metric, curve) for curve in (line, solution.curve)],
    )


def _number(value: Tensor) -> float | None:
    """Return a number, None where it is not finite, which JSON does not hold."""
    number = float(value)
    return number if np.isfinite(number) else None


def _clock(metric: Metric, curve: CubicBSpline) -> list[float] | None:
    """Return the shares of a curve's length in the output before equal steps of t."""
    points = curve.control_points
    t = torch.linspace(0.0, 1.0, _CLOCK, dtype=points.dtype, device=points.device)
    codes, velocities = curve(t)[0], curve.derivative(t)[0]
    squares = Rows.of(metric, codes).quadratic(codes, velocities)
    speed = squares.double().clamp_min(0.0).sqrt().cpu()
    passed = torch.cat([speed.new_zeros(1), (0.5 * (speed[1:] + speed[:-1])).cumsum(0)])
    if not bool(passed.isfinite().all()) or float(passed[-1]) <= 0.0:
        return None
    return (passed / passed[-1]).tolist()


def warm(subject: Subject) -> None:
    """Make what the page shows at first, and let the first solve meet no cold start."""
    subject.background(subject.default_metric, subject.plane)
    solve_pair(subject, *subject.first_pair(), Settings(subject.default_metric))


def walk(
    subject: Subject, result: PairResult, shares: Sequence[float]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return codes (n, d) and outputs (n, ...) of both curves at shares of their lengths."""
    like = subject.codec.like
    found = []
    for curve, times in zip(result.curves(like), result.times(shares), strict=True):
        codes = curve(like.new_tensor(times))[0]
        found.append((codes.cpu().double(), subject.decode(codes)))
    return found[0], found[1]


@dataclass(frozen=True)
class GroupResult:
    """The mean or the clusters of a selection of codes, in the types of JSON.

    Attributes
    ----------
    kind
        "mean" or "clusters".
    settings
        How geodesics were solved.
    members
        Which of the subject's codes were selected.
    centers
        The mean alone, or the centres of the clusters, (K, d).
    clusters
        The cluster of each member; zeros for a mean.
    text
        What was found, in a sentence.
    seconds
        Time that it took.
    """

    kind: str
    settings: Settings
    members: list[int]
    centers: list[list[float]]
    clusters: list[int]
    text: str
    seconds: float

    def plain(self) -> dict[str, Any]:
        """Return it in the types of JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> GroupResult:
        """Return the result that `plain` gave."""
        return cls(**{**given, "settings": Settings(**given["settings"])})


def _selected(subject: Subject, members: Sequence[int], least: int) -> Tensor:
    n = len(members)
    if not least <= n <= MOST_SELECTED:
        required = f"{least} to {MOST_SELECTED} codes"
        raise ValueError(requirement("selection", required, f"{n} codes"))
    return subject.codes[torch.tensor(list(members), device=subject.codes.device)]


def mean_of(subject: Subject, members: Sequence[int], settings: Settings) -> GroupResult:
    """Return the Frechet mean of some of the subject's codes; see `frechet_mean`."""
    codes = _selected(subject, members, 2)
    began = time.perf_counter()
    metric = subject.pulled_back(settings.metric)
    graph = subject.graph(settings.metric) if settings.start == "graph" else None
    solver = PreconditionedSolver(tolerance=settings.tolerance)
    found = frechet_mean(metric, codes, solver=solver, initial=graph)
    ended = "converged" if bool(found.converged) else "ended before it converged"
    text = (
        f"Frechet mean of {len(codes)} codes: root mean squared distance "
        f"{float(found.variance.sqrt()):.4g}; {ended} after {int(found.iterations)} steps."
    )
    seconds = time.perf_counter() - began
    center = found.mean.tolist()
    return GroupResult("mean", settings, list(members), [center], [0] * len(codes), text, seconds)


def clusters_of(
    subject: Subject, members: Sequence[int], n_clusters: int, settings: Settings
) -> GroupResult:
    """Return k-means of some of the subject's codes; see `GeodesicKMeans`."""
    n_clusters = check_integer("n_clusters", n_clusters, minimum=2)
    codes = _selected(subject, members, n_clusters)
    began = time.perf_counter()
    model = GeodesicKMeans(
        subject.pulled_back(settings.metric), n_clusters=n_clusters, random_state=subject.seed
    ).fit(codes)
    sizes = np.bincount(model.labels_, minlength=n_clusters).tolist()
    text = (
        f"{n_clusters} clusters of {len(codes)} codes, of {', '.join(map(str, sizes))} codes; sum "
        f"of squared distances to their centres {model.inertia_:.4g}."
    )
    seconds = time.perf_counter() - began
    centers, clusters = model.cluster_centers_.tolist(), model.labels_.tolist()
    return GroupResult("clusters", settings, list(members), centers, clusters, text, seconds)
