"""Metrics with negative directions are refused at the door, or have a status of their own."""

import pytest
import torch

from geolatent import (
    CubicBSpline,
    EnsembleMetric,
    FirstOrderSolver,
    GEORCESolver,
    LatentGraph,
    PreconditionedSolver,
    PullbackMetric,
    Status,
    TensorMetric,
    path_energy,
    path_length,
    solve_geodesic,
)
from geolatent.metrics.base import indefinite, negative
from geolatent.metrics.composite import ConformalMetric
from geolatent.solvers.problem import Outcome

pytestmark = pytest.mark.usefixtures("float64")

START, END = torch.tensor([[-1.0, 0.1], [1.0, 0.0]], dtype=torch.float64)
SOLVERS = [PreconditionedSolver(), FirstOrderSolver(steps=5, drops=1), GEORCESolver()]


def diagonal(first, second):
    return torch.diag_embed(torch.stack([first, second], dim=1))


def constant(first, second):
    return TensorMetric(lambda z: torch.diag(torch.tensor([first, second])).repeat(len(z), 1, 1), 2)


def well(z):
    """Negative in the middle, one far away."""
    return 1.0 - 2.0 * torch.exp(-4.0 * z[:, 0] ** 2)


PLANE = PullbackMetric(lambda z: 1.0 * z)
MET_ON_THE_WAY = {
    "along": TensorMetric(lambda z: diagonal(well(z), torch.ones(len(z))), 2),
    "across": TensorMetric(lambda z: diagonal(torch.ones(len(z)), well(z)), 2),
    "everywhere": TensorMetric(lambda z: diagonal(well(z), well(z)), 2),
    "factor": ConformalMetric(PLANE, well),
    "factor of a tensor field": ConformalMetric(constant(1.0, 2.0), well),
}


@pytest.mark.parametrize("values", [(-1.0, -1.0), (1.0, -0.5), (1.0, -1e-3)])
def test_refused_at_the_door(values):
    metric = constant(*values)
    calls = (
        lambda: solve_geodesic(metric, START, END),
        lambda: metric.tensor(START[None]),
        lambda: path_length(metric, CubicBSpline.straight(START, END)),
        lambda: solve_geodesic(EnsembleMetric([metric, metric]), START, END),
        lambda: solve_geodesic(ConformalMetric(metric, lambda z: z.square().sum(1)), START, END),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"Parameter `fn`.*positive definite.*eigenvalues -"):
            call()


def test_refused_at_every_start_and_end():
    metric = TensorMetric(lambda z: diagonal(torch.ones(len(z)), z[:, 0]), 2)
    good, bad = torch.rand(5, 2) + 1.0, torch.rand(5, 2) + 1.0
    bad[3, 0] = -1.0
    for start, end, name in ((bad, good, "start"), (good, bad, "end")):
        with pytest.raises(ValueError, match=f"positive definite.*at a code of `{name}`"):
            solve_geodesic(metric, start, end)
    conformal = ConformalMetric(PLANE, lambda z: z[:, 0])
    with pytest.raises(ValueError, match=r"`factor`.*positive numbers"):
        solve_geodesic(conformal, good, bad)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("case", MET_ON_THE_WAY)
def test_met_on_the_way(case, solver):
    solution = solve_geodesic(MET_ON_THE_WAY[case], START, END, solver)
    assert solution.statuses == [Status.INDEFINITE_METRIC]
    assert "negative direction" in solution.summary()


def test_other_pairs_are_not_touched():
    metric = MET_ON_THE_WAY["along"]
    start = torch.tensor([[-1.0, 0.1], [2.0, 0.0]])
    end = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    both = solve_geodesic(metric, start, end)
    alone = solve_geodesic(metric, start[1], end[1])
    assert both.statuses == [Status.INDEFINITE_METRIC, alone.statuses[0]]
    assert alone.statuses[0] is not Status.INDEFINITE_METRIC
    torch.testing.assert_close(both.length[1:], alone.length)


@pytest.mark.parametrize("case", ["along", "everywhere", "factor"])
def test_lengths_along_negative_directions_are_not_finite(case):
    line = CubicBSpline.straight(START, END)
    assert path_length(MET_ON_THE_WAY[case], line).isnan().all()
    assert path_energy(MET_ON_THE_WAY[case], line).isnan().all()


def test_graphs_have_no_edge_where_the_metric_is_negative():
    codes = torch.stack([torch.linspace(-2, 2, 9), torch.zeros(9)], dim=1)
    graph = LatentGraph.from_codes(MET_ON_THE_WAY["along"], codes, n_neighbors=2)
    with pytest.warns(UserWarning, match="no path for 1 of 1 pairs"):
        solution = solve_geodesic(MET_ON_THE_WAY["along"], START, END, initial=graph)
    assert solution.statuses == [Status.INDEFINITE_METRIC]


def test_a_rejected_step_beyond_the_domain_does_not_count(monkeypatch):
    """The half-plane's tensors are negative below the axis, where steps end."""
    met = []
    judged = Outcome.judged

    def noted(outcome):
        met.append(bool(outcome.inadmissible.any()))
        return judged(outcome)

    monkeypatch.setattr(Outcome, "judged", noted)
    metric = TensorMetric(lambda z: torch.eye(2) / (z[:, 1].abs() * z[:, 1])[:, None, None], dim=2)
    # down first: the geodesic's arc lies above
    points = torch.tensor([[-1.0, 0.2], [-0.5, 0.02], [0.0, 0.4], [0.5, 0.02], [1.0, 0.2]])
    solver = PreconditionedSolver(tolerance=1e-2, max_iterations=2000)
    solution = solve_geodesic(metric, points[0], points[-1], solver, initial=points)
    assert met == [True]
    assert solution.statuses == [Status.CONVERGED]


@pytest.mark.filterwarnings("ignore:the lengths")  # of nothing but rounding
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_metrics_are_not_indefinite(dtype):
    """Rounding of a zero eigenvalue is no negative direction, also for curves along it."""
    root = torch.randn(20, 1, 3, dtype=dtype)
    tensors = root.mT @ root
    assert not indefinite(tensors).any()
    assert not indefinite(torch.zeros(2, 3, 3, dtype=dtype)).any()
    assert not indefinite(torch.full((2, 3, 3), torch.nan, dtype=dtype)).any()
    assert indefinite(tensors - 1e-2 * torch.eye(3, dtype=dtype)).all()
    vector = torch.tensor([[1.0, 0.3, -0.7]], dtype=dtype)
    metric = TensorMetric(lambda z: (vector.T @ vector).expand(len(z), 3, 3), dim=3)
    blind = torch.linalg.svd(vector)[2][1:]
    squares = metric.quadratic(torch.zeros(2, 3, dtype=dtype), blind)
    assert (squares >= 0).all()
    solution = solve_geodesic(metric, torch.zeros(3, dtype=dtype), blind[0])
    assert solution.statuses[0] is not Status.INDEFINITE_METRIC
    assert solution.length.item() < 1e-3


def test_negative_squares():
    squares = torch.tensor([[1.0, -1e-12], [1.0, -1e-3], [torch.nan, 1.0], [0.0, 0.0]])
    assert negative(squares).tolist() == [False, True, False, False]


def test_gradient_of_a_square_that_rounds_to_zero():
    metric = constant(1.0, 0.0)
    z, v = torch.zeros(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    assert torch.autograd.gradcheck(metric._quadratic, (z, v))


def test_the_stored_numbers_stay():
    assert [int(status) for status in Status] == list(range(9))
    assert Status.INDEFINITE_METRIC == 7
