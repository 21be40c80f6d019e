"""Every solver on problems whose distances are known, and what other pairs may not change."""

from functools import cache

import pytest
import torch
from problems import PROBLEMS, SOLVERS

from geolatent import Status, path_energy, path_length, solve_geodesic

pytestmark = pytest.mark.usefixtures("float64")

PAIRS = 4
HOLE = 10.0  # each coordinate of its centre, far from all codes of the problems
# optimisers take hundreds of steps whatever the problem: for them, one of a kind is enough
OF_A_KIND = ("sphere", "folded plane", "half-plane")
CASES = [(p, s) for p in PROBLEMS for s in SOLVERS if p in OF_A_KIND or not SOLVERS[s].takes_all]
# splines and polygons cut corners at a crease, also the polygons by which lengths are measured
CREASE = 1e-2


def holed(function):
    """Put a hole of NaN, of radius 1, into what a metric is made of."""

    def with_a_hole(z):
        hole = torch.where((z - HOLE).norm(dim=1) < 1.0, torch.nan, 1.0)
        values = function(z)
        if isinstance(values, tuple):
            return tuple(hole[:, None] * value for value in values)
        return hole.reshape(-1, *[1] * (values.ndim - 1)) * values

    return with_a_hole


@cache
def solve(problem, solver):
    """Solve pairs, and with them one of equal ends, one that is cut off, and all pairs backwards.

    Returns starts and ends of the pairs, the metric, the tolerance of its lengths, the solution.
    """
    problem, promise = PROBLEMS[problem], SOLVERS[solver]
    tolerance = 1e-4 if problem.kink else promise.length_tolerance
    start, end = problem.sample(PAIRS), problem.sample(PAIRS)
    hole = torch.full_like(start[:1], HOLE)
    metric = problem.make(holed(problem.function))
    starts = torch.cat([start, start[:1], hole - 2.0, end])
    ends = torch.cat([end, start[:1], hole + 2.0, start])
    solution = solve_geodesic(metric, starts, ends, promise.solver, length_tolerance=tolerance)
    return start, end, metric, tolerance, solution


@pytest.mark.parametrize(("problem", "solver"), CASES)
def test_lengths_are_the_distances(problem, solver):
    start, end, metric, tolerance, solution = solve(problem, solver)
    kink = PROBLEMS[problem].kink
    excess = CREASE if kink else SOLVERS[solver].excess
    found = solution[[*range(PAIRS), *range(PAIRS + 2, 2 * PAIRS + 2)]]
    exact = PROBLEMS[problem].distance(start, end).repeat(2)
    assert (found.length <= exact * (1 + excess)).all()
    assert (found.length >= exact * (1 - (CREASE if kink else tolerance))).all()
    assert (found.length <= found.straight_length).all()
    allowed = {Status.CONVERGED, Status.STRAIGHT_IS_SHORTEST}
    if kink:  # at a crease the energy is not smooth, which ends searches and refinement
        allowed |= {Status.MAX_CONTROL_POINTS, Status.MAX_ITERATIONS, Status.STALLED}
    assert set(found.statuses) <= allowed
    # the numbers are those of the curve, which runs from start to end
    numbers = {path_length: found.length, path_energy: found.energy}
    for measure, expected in numbers.items():
        measured = measure(metric, found.curve, tolerance=tolerance)
        torch.testing.assert_close(measured, expected, rtol=5 * tolerance, atol=0)
    # energy is least at constant speed, where it is half the squared length
    uneven = 2 * found.energy / found.length**2 - 1
    assert (uneven >= -3 * tolerance).all()
    assert (uneven <= 2 * excess).all()
    points = found.curve.control_points
    assert torch.equal(points[:, 0], torch.cat([start, end]))
    assert torch.equal(points[:, -1], torch.cat([end, start]))
    # so ended the pairs in their midst
    point, cut = solution[PAIRS], solution[PAIRS + 1]
    assert point.statuses + cut.statuses == [Status.EQUAL_END_POINTS, Status.NON_FINITE]
    assert point.length.item() == 0
    assert cut.length.isnan().all()


def test_the_papers_recipe():
    *_, solution = solve("sphere", "Michelis-Becker")
    taken = solution.status == Status.CONVERGED
    assert set(solution.control_points[taken].tolist()) == {10}
    assert set(solution.iterations[taken].tolist()) == {7 * 6 * 10}


@pytest.mark.parametrize(
    ("problem", "solver"),
    [*(("sphere", solver) for solver in SOLVERS), ("8-d sphere", "default")]
    + [("half-plane", solver) for solver in SOLVERS if not SOLVERS[solver].takes_all],
)
def test_other_pairs_and_isometries_change_nothing(problem, solver):
    start, end, _, tolerance, solution = solve(problem, solver)
    problem, promise = PROBLEMS[problem], SOLVERS[solver]
    function = problem.function
    if problem.isometric:
        turn, _ = torch.linalg.qr(torch.randn([start.shape[1] + 1] * 2))

        def function(z):
            return problem.function(z) @ turn + 2.0

    order = [2, 0]
    expected = solution[order]
    found = solve_geodesic(
        problem.make(function), start[order], end[order], promise.solver, length_tolerance=tolerance
    )
    torch.testing.assert_close(found.length, expected.length, rtol=1e-6, atol=0)
    assert found.statuses == expected.statuses
    t = torch.linspace(0, 1, 9)
    torch.testing.assert_close(found.curve(t), expected.curve(t), rtol=0, atol=1e-3)
