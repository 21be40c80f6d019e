"""The promises of `solve_geodesic`: pair by pair, of its limits, its reports and its counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PROBLEMS, TIGHT, Counted, ball, half_plane, hill, sphere, sphere_distance
from torch import nn

from geolatent import (
    CubicBSpline,
    FirstOrderSolver,
    GaussianFisherRaoMetric,
    GaussianPullbackMetric,
    GEORCESolver,
    LatentGraph,
    PreconditionedSolver,
    PullbackMetric,
    Status,
    TensorMetric,
    path_length,
    solve_geodesic,
)

pytestmark = pytest.mark.usefixtures("float64")

disk = ball(2)


def test_geodesic_is_the_great_circle():
    # every point of the arc lies in the plane of its end points and the centre
    start, end = disk(20), disk(20)
    metric = PullbackMetric(sphere)
    # lengths are second order in the distance to the geodesic: 1e-10 in length is 1e-5 in place
    solver = PreconditionedSolver(tolerance=1e-10, max_control_points=67)
    curve = solve_geodesic(metric, start, end, solver).curve
    points = sphere(curve(torch.linspace(0, 1, 33)).flatten(0, 1)).reshape(20, 33, 3)
    normal = nn.functional.normalize(torch.linalg.cross(points[:, 0], points[:, -1]), dim=1)
    assert (points @ normal.unsqueeze(2)).abs().max() < 1e-4


def test_flat_metric_keeps_the_straight_line():
    matrix = torch.randn(3, 7)
    start, end = torch.randn(10, 3), torch.randn(10, 3)
    solution = solve_geodesic(PullbackMetric(lambda z: z @ matrix), start, end)
    assert solution.relative_improvement.abs().max() < 1e-12
    torch.testing.assert_close(solution.length, ((end - start) @ matrix).norm(dim=1))
    assert solution.predicted_improvement.max() < 1e-12
    assert (solution.iterations == 0).all()
    assert set(solution.statuses) <= {Status.STRAIGHT_IS_SHORTEST, Status.CONVERGED}


def test_more_dimensions_than_the_output():
    # G is singular where the decoder forgets a dimension: one of many geodesics is found
    start, end = torch.randn(6, 4), torch.randn(6, 4)
    start, end = (x / x[:, :2].norm(dim=1, keepdim=True).clamp_min(1) for x in (start, end))
    solution = solve_geodesic(PullbackMetric(lambda z: sphere(z[:, :2])), start, end)
    expected = sphere_distance(start[:, :2], end[:, :2])
    assert ((solution.length - expected) / expected).abs().max() <= 1e-3


# Pairs do not touch each other


class Bumpy(nn.Module):
    """A decoder from which curved geodesics come: two Gaussian heads on a random perceptron."""

    def __init__(self, dim=2, width=24, n_outputs=10, gaussian=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, n_outputs))
        with torch.no_grad():
            self.body[0].weight.mul_(3.0)
        self.gaussian = gaussian

    def forward(self, z):
        output = self.body(z)
        return (output, (0.5 * output).exp()) if self.gaussian else output


def relative_difference(one, other):
    return ((one - other).abs() / other).max()


def assert_same_status(found, expected, improvement):
    """Check statuses but where rounding alone says which of curve and line is the shorter."""
    clear = improvement > 1e-9
    assert torch.equal(found[clear], expected[clear])


@pytest.mark.parametrize("kind", ["chords", "chords in 5-d", "quadrature"])
def test_a_batch_gives_each_pair_what_it_gets_alone(kind):
    dim = 5 if kind == "chords in 5-d" else 2
    metric = PullbackMetric(Bumpy(dim))
    if kind == "quadrature":
        metric = GaussianPullbackMetric(
            Bumpy(gaussian=True), nn.Sequential(nn.Linear(10, 4), nn.Softplus())
        )
    n = 64 if kind == "chords" else 24
    start, end = torch.randn(n, dim), torch.randn(n, dim)
    together = solve_geodesic(metric, start, end)
    assert (together.relative_improvement > 0.01).sum() > n // 4  # it is not straight lines alone
    for k in range(0, n, n // 8):
        alone = solve_geodesic(metric, start[k], end[k])
        assert relative_difference(alone.length[0], together.length[k]) <= 1e-6
        assert alone.status[0] == together.status[k]
        assert alone.iterations[0] == together.iterations[k]
        assert alone.control_points[0] == together.control_points[k]


def test_pairs_that_start_end_or_pass_in_a_region_of_nan():
    hole = torch.tensor([5.0, 5.0])

    def holed(z):
        inside = (z - hole).norm(dim=1, keepdim=True) < 1.0
        return torch.where(inside, torch.nan, sphere(z))

    start, end = disk(4), disk(4)
    start[1], end[2] = hole, hole + 0.5
    start[3], end[3] = hole - 2.0, hole + 2.0
    solution = solve_geodesic(PullbackMetric(holed), start, end)
    assert [s is Status.NON_FINITE for s in solution.statuses] == [False, True, True, True]
    assert solution.length.isnan().tolist() == [False, True, True, True]
    # what comes back for them is the straight line
    line = CubicBSpline.straight(start[1:], end[1:])
    t = torch.linspace(0, 1, 9)
    torch.testing.assert_close(solution.curve[[1, 2, 3]](t), line(t), rtol=1e-12, atol=1e-12)
    assert "3 NON_FINITE" in solution.summary()


def test_a_wall_of_nan_beside_the_way_is_kept_clear_of():
    # the geodesic of the sphere bends outwards, where this decoder ends: |z| > 1.02
    def bounded(z):
        return torch.where(z.norm(dim=1, keepdim=True) > 1.02, torch.nan, sphere(z))

    angle = torch.linspace(0.5, 3.0, 8)
    start = torch.tensor([1.0, 0.0]).repeat(8, 1)
    end = torch.stack([angle.cos(), angle.sin()], dim=1)
    solution = solve_geodesic(PullbackMetric(bounded), start, end)
    assert solution.length.isfinite().all()
    assert (solution.length <= solution.straight_length).all()
    expected = sphere_distance(start, end)
    assert ((solution.length - expected) / expected).abs().max() <= 1e-3


def test_equal_end_points():
    start, end = disk(5), disk(5)
    end[[1, 4]] = start[[1, 4]]
    metric = PullbackMetric(sphere)
    solution = solve_geodesic(metric, start, end)
    assert [s is Status.EQUAL_END_POINTS for s in solution.statuses] == [
        False,
        True,
        False,
        False,
        True,
    ]
    for name in ("length", "straight_length", "energy", "predicted_improvement", "iterations"):
        assert (getattr(solution, name)[[1, 4]] == 0).all()
    assert (solution.relative_improvement[[1, 4]] == 0).all()
    assert (solution.evaluations.equivalents[[1, 4]] == 0).all()
    points = solution.curve(torch.linspace(0, 1, 7))[[1, 4]]
    torch.testing.assert_close(points, start[[1, 4], None].expand(-1, 7, -1), rtol=0, atol=1e-15)


def test_all_end_points_equal():
    start = disk(3)
    solution = solve_geodesic(PullbackMetric(sphere), start, start)
    assert set(solution.statuses) == {Status.EQUAL_END_POINTS}
    assert solution.curve.batch_size == 3


def test_codes_broadcast():
    one, many = disk(1)[0], disk(4)
    metric = PullbackMetric(sphere)
    out = solve_geodesic(metric, one, many)
    back = solve_geodesic(metric, many, one[None])
    assert out.length.shape == back.length.shape == (4,)
    assert relative_difference(out.length, back.length) <= 1e-3
    assert solve_geodesic(metric, one, many[0]).length.shape == (1,)


# Never longer than the straight line


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10**6),
    dim=st.integers(1, 5),
    gaussian=st.booleans(),
    scale=st.floats(0.1, 8.0),
)
def test_never_longer_than_the_straight_line(seed, dim, gaussian, scale):
    torch.manual_seed(seed)
    decoder = Bumpy(dim, n_outputs=6, gaussian=gaussian)
    kind = GaussianPullbackMetric if gaussian else PullbackMetric
    metric = kind(decoder)
    start, end = scale * torch.randn(6, dim), scale * torch.randn(6, dim)
    rough = PreconditionedSolver(max_iterations=6, max_control_points=13)
    for solver in (rough, FirstOrderSolver(steps=3, drops=0, max_control_points=5)):
        solution = solve_geodesic(metric, start, end, solver)
        assert (solution.length <= solution.straight_length).all()
        assert (solution.relative_improvement >= 0).all()
        assert (solution.energy * 2 >= solution.length**2 * (1 - 1e-3)).all()
        straight = solution.status == Status.STRAIGHT_IS_SHORTEST
        assert torch.equal(solution.length[straight], solution.straight_length[straight])
        measured = path_length(metric, solution.curve, tolerance=1e-6)
        line = path_length(metric, CubicBSpline.straight(start, end), tolerance=1e-6)
        assert (measured <= line * (1 + 2e-4)).all()


def test_a_solver_that_makes_curves_longer_is_overruled():
    class Worse(PreconditionedSolver):
        def shorten(self, problem):
            outcome = super().shorten(problem)
            outcome.control_points[:, 1:-1] += 5.0
            return outcome

    start, end = disk(5), disk(5)
    metric = PullbackMetric(lambda z: 2.0 * z)
    solution = solve_geodesic(metric, start, end, Worse())
    assert set(solution.statuses) == {Status.STRAIGHT_IS_SHORTEST}
    assert torch.equal(solution.length, solution.straight_length)
    t = torch.linspace(0, 1, 9)
    line = CubicBSpline.straight(start, end)
    torch.testing.assert_close(solution.curve(t), line(t), rtol=0, atol=1e-14)


# Limits and reports


def test_limits_have_their_statuses():
    start, end = torch.tensor([1.0, 0.0]), torch.tensor([-0.8, 0.6])
    metric = PullbackMetric(sphere)

    def solve(**settings):
        solution = solve_geodesic(metric, start, end, PreconditionedSolver(1e-9, **settings))
        assert solution.length < solution.straight_length
        assert solution.predicted_improvement > 1e-9
        return solution

    few = solve(first_control_points=5, max_control_points=5)
    assert few.statuses == [Status.MAX_CONTROL_POINTS]
    assert few.curve.n_control_points == 5
    assert few.control_points.tolist() == [5]
    short = solve(max_iterations=1)
    assert short.statuses == [Status.MAX_ITERATIONS]
    assert short.iterations.tolist() == [1]
    assert short.length > few.length > sphere_distance(start[None], end[None])


def test_predicted_improvement_is_about_what_is_left():
    start, end = disk(60), disk(60)
    expected = sphere_distance(start, end)
    solver = PreconditionedSolver(tolerance=1e-9, first_control_points=5, max_control_points=5)
    solution = solve_geodesic(PullbackMetric(sphere), start, end, solver, length_tolerance=1e-10)
    left = (solution.length - expected) / expected
    bent = left > 1e-6
    assert bent.sum() > 10
    ratio = (solution.predicted_improvement / left)[bent]
    # it counts what an uneven speed costs in energy too, and so errs upwards
    assert ratio.min() > 0.5
    assert 0.8 < ratio.median() < 2.0


@pytest.mark.parametrize(
    "solver", [PreconditionedSolver(tolerance=1e-6), FirstOrderSolver(steps=4)]
)
@pytest.mark.parametrize("with_graph", [False, True])
def test_callback_sees_the_work_grow_to_its_end(solver, with_graph):
    metric = PullbackMetric(sphere)
    graph = None
    if with_graph:
        graph = LatentGraph.lattice(
            metric, torch.tensor([-2.0, -2.0]), torch.tensor([2.0, 2.0]), resolution=21
        )
    seen = []
    solution = solve_geodesic(
        metric, disk(12), disk(12), solver, initial=graph, callback=seen.append
    )
    fractions = [progress.fraction for progress in seen]
    assert len(seen) > 3
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0
    assert fractions[-1] == 1
    assert {progress.n_pairs for progress in seen} == {12}
    assert max(progress.n_control_points for progress in seen) <= solution.curve.n_control_points


def test_callback_is_called_for_equal_end_points():
    seen = []
    solve_geodesic(PullbackMetric(sphere), torch.zeros(2), torch.zeros(2), callback=seen.append)
    assert [progress.fraction for progress in seen] == [1.0]


def test_an_error_of_the_callback_is_passed_on():
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_geodesic(PullbackMetric(sphere), disk(3), disk(3), callback=stop)


# Evaluation counts


def counting(metric_class):
    """Make a metric that counts decoder rows by itself, as `Evaluations` defines them."""

    class Counting(metric_class):
        def __init__(self, decoder, *features, **options):
            self.rows = {"forward": 0, "backward": 0, "jvp": 0}
            self.inside = False

            def counted(z):
                if not self.inside:
                    self.rows["forward"] += len(z)
                    self.rows["backward"] += len(z) if z.requires_grad else 0
                return decoder(z)

            super().__init__(counted, *features, **options)
            if self.immersion is not None:
                self.count_columns()

        def count_columns(self):
            columns = self.immersion.columns

            def counted(z):
                self.rows["forward"] += 0 if self.inside else z.numel()
                return self.quietly(columns, z)

            self.immersion.columns = counted

        def quietly(self, function, *args):
            before, self.inside = self.inside, True
            try:
                return function(*args)
            finally:
                self.inside = before

        def check(self, name, z):  # the checks at the door are not counted
            self.quietly(super().check, name, z)

        def _tensor(self, z):
            self.rows["forward"] += z.numel()
            return self.quietly(super()._tensor, z)

        def _quadratic(self, z, v):
            self.rows["jvp"] += len(z) * (3 if z.requires_grad else 1)
            return self.quietly(super()._quadratic, z, v)

    return Counting


COUNTED = {
    "columns": lambda: counting(PullbackMetric)(Bumpy()),
    "backward": lambda: counting(PullbackMetric)(Bumpy(5)),
    "features": lambda: counting(PullbackMetric)(Bumpy(5), nn.Linear(10, 3)),
    "gaussian": lambda: counting(GaussianPullbackMetric)(Bumpy(5, gaussian=True)),
    "weighted": lambda: counting(GaussianPullbackMetric)(
        Bumpy(gaussian=True), nn.Sequential(nn.Linear(10, 3), nn.Softplus())
    ),
    "estimated": lambda: counting(GaussianPullbackMetric)(
        Bumpy(gaussian=True),
        nn.Sequential(nn.Linear(10, 3), nn.Softplus()),
        diagonal="hutchinson",
    ),
    "quadrature": lambda: counting(GaussianFisherRaoMetric)(Bumpy(gaussian=True)),
}


@pytest.mark.parametrize(
    "solver", [PreconditionedSolver(max_iterations=20), FirstOrderSolver(steps=2, drops=0)]
)
@pytest.mark.parametrize("name", COUNTED)
def test_evaluations_are_what_was_evaluated(name, solver):
    metric = COUNTED[name]()
    dim = 2 if name in ("columns", "weighted", "estimated", "quadrature") else 5
    start, end = torch.randn(7, dim), torch.randn(7, dim)
    end[2] = start[2]
    solution = solve_geodesic(metric, start, end, solver)
    counted = {name: int(getattr(solution.evaluations, name).sum()) for name in metric.rows}
    assert counted == metric.rows
    first = solution.evaluations
    again = solve_geodesic(metric, start, end, solver).evaluations
    for kind in ("forward", "backward", "jvp"):
        assert torch.equal(getattr(again, kind), getattr(first, kind))
    expected = first.forward + 2 * first.backward + 2.5 * first.jvp
    torch.testing.assert_close(first.equivalents, expected.double())


def test_evaluations_of_a_tensor_metric():
    field = Counted(half_plane)
    metric = TensorMetric(field, dim=2)
    start, end = (PROBLEMS["half-plane"].sample(5) for _ in range(2))
    metric.check("start", start[:1])
    field.rows = 0
    metric.check("start", start[:1])
    at_the_door = field.rows + len(start) + len(end)  # whose tensors must be positive
    field.rows = 0
    solution = solve_geodesic(metric, start, end)
    assert int(solution.evaluations.forward.sum()) == field.rows - at_the_door
    assert at_the_door <= 16
    assert solution.evaluations.jvp.sum() == 0


# Other ways of solving


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW])
def test_first_order_solver_takes_any_optimizer(optimizer):
    start, end = disk(8), disk(8)
    solver = FirstOrderSolver(optimizer, learning_rate=0.02, max_control_points=6)
    solution = solve_geodesic(PullbackMetric(sphere), start, end, solver)
    expected = sphere_distance(start, end)
    left = (solution.length / expected - 1).sum()
    assert left < 0.3 * (solution.straight_length / expected - 1).sum()


@pytest.mark.parametrize("solver", [PreconditionedSolver(), FirstOrderSolver(steps=5)])
def test_initial_curves_and_points(solver):
    start, end = disk(6), disk(6)
    metric = PullbackMetric(sphere)
    expected = sphere_distance(start, end)
    bowed = CubicBSpline.straight(start, end, 7)
    bowed.control_points[:, 1:-1] += 0.3 * torch.randn(6, 5, 2)
    t = torch.linspace(0, 1, 12)
    for initial in (bowed, bowed(t)):
        solution = solve_geodesic(metric, start, end, solver, initial=initial)
        assert torch.equal(solution.curve.control_points[:, 0], start)
        assert torch.equal(solution.curve.control_points[:, -1], end)
        assert (solution.length <= solution.straight_length).all()
        if isinstance(solver, PreconditionedSolver):
            assert ((solution.length - expected) / expected).abs().max() <= 1e-3
    one = bowed[:1]
    for initial in (one, one(t), one(t)[0]):
        solve_geodesic(metric, start[0].repeat(3, 1), end[0], solver, initial=initial)


def test_initial_curve_chooses_the_side():
    # round the hill: started above, the curve stays above; below, below
    start, end = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])
    lengths = []
    for side in (1.0, -1.0):
        points = torch.tensor([[-1.0, 0.0], [0.0, side], [1.0, 0.0]])
        solution = solve_geodesic(PullbackMetric(hill), start, end, initial=points)
        middle = solution.curve(torch.tensor([0.5]))[0, 0]
        assert middle[1] * side > 0.3
        lengths.append(solution.length)
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-6, atol=0)
    assert lengths[0] < 0.8 * solution.straight_length


def test_initial_geodesic_needs_no_step():
    start, end = disk(6), disk(6)
    metric = PullbackMetric(sphere)
    first = solve_geodesic(metric, start, end, TIGHT)
    again = solve_geodesic(metric, start, end, initial=first.curve)
    assert (again.iterations == 0).all()
    assert relative_difference(again.length, first.length) <= 1e-4


@pytest.mark.parametrize("rows", [1, 50, 1000])
def test_few_rows_at_once_change_nothing(rows):
    for metric, dim in (
        (PullbackMetric(Bumpy()), 2),
        (PullbackMetric(Bumpy(4)), 4),
        (GaussianPullbackMetric(Bumpy(gaussian=True), nn.Linear(10, 3)), 2),
    ):
        start, end = torch.randn(6, dim), torch.randn(6, dim)
        whole = solve_geodesic(metric, start, end)
        parts = solve_geodesic(metric, start, end, max_rows=rows)
        assert relative_difference(parts.length, whole.length) <= 1e-6
        assert_same_status(parts.status, whole.status, whole.relative_improvement)
        assert torch.equal(parts.evaluations.equivalents, whole.evaluations.equivalents)


@pytest.mark.parametrize(
    "solver", [PreconditionedSolver(), FirstOrderSolver(steps=3), GEORCESolver()]
)
def test_float32_stays_float32(solver):
    start, end = disk(20), disk(20)
    seen = set()

    def watched(z):
        seen.add(z.dtype)
        return sphere(z)

    solution = solve_geodesic(PullbackMetric(watched), start.float(), end.float(), solver)
    assert seen == {torch.float32}
    for name in ("length", "straight_length", "relative_improvement", "energy"):
        assert getattr(solution, name).dtype == torch.float32
    assert solution.predicted_improvement.dtype == torch.float32
    assert solution.curve(torch.linspace(0, 1, 5)).dtype == torch.float32
    assert torch.equal(solution.curve.control_points[:, -1], end.float())
    double = solve_geodesic(PullbackMetric(sphere), start, end, solver)
    assert relative_difference(solution.length.double(), double.length) <= 1e-3


@pytest.mark.parametrize("solver", [PreconditionedSolver(), FirstOrderSolver(steps=3)])
@pytest.mark.parametrize("dim", [2, 5])
def test_the_decoder_comes_back_as_it_was(solver, dim):
    decoder = Bumpy(dim)
    decoder.body[2].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    start = torch.randn(4, dim, requires_grad=True)
    solution = solve_geodesic(PullbackMetric(decoder), start, torch.randn(4, dim), solver)
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert [p.requires_grad for p in decoder.parameters()] == [True, True, True, False]
    assert all(torch.equal(before[name], v) for name, v in decoder.state_dict().items())
    assert start.grad is None
    assert not solution.length.requires_grad
    assert not solution.curve.control_points.requires_grad


@pytest.mark.parametrize(
    "solver", [PreconditionedSolver(max_iterations=10), FirstOrderSolver(steps=2, drops=0)]
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_enabled(mode, solver):
    for metric, dim in (
        (PullbackMetric(Bumpy()), 2),
        (PullbackMetric(Bumpy(5)), 5),
        (GaussianPullbackMetric(Bumpy(gaussian=True), nn.Linear(10, 3)), 2),
        (TensorMetric(half_plane, dim=2), 2),
    ):
        start, end = torch.rand(4, dim) + 0.5, torch.rand(4, dim) + 0.5
        expected = solve_geodesic(metric, start, end, solver)
        with mode():
            solution = solve_geodesic(metric, start, end, solver)
            made_inside = solve_geodesic(metric, 1 * start, 1 * end, solver)
        for other in (solution, made_inside):
            assert relative_difference(other.length, expected.length) <= 1e-9
            assert_same_status(other.status, expected.status, expected.relative_improvement)
        # what comes back can be used with gradients
        points = solution.curve.control_points.requires_grad_()
        CubicBSpline(points, solution.curve.knots)(torch.tensor([0.5])).sum().backward()


def test_a_fixed_seed_is_not_needed():
    start, end = torch.randn(8, 2), torch.randn(8, 2)
    metric = GaussianPullbackMetric(Bumpy(gaussian=True), nn.Linear(10, 80), n_probes=4)
    solver = PreconditionedSolver(max_iterations=3)
    first = solve_geodesic(metric, start, end, solver)
    torch.rand(5)
    before = torch.get_rng_state()
    again = solve_geodesic(metric, start, end, solver)
    assert torch.equal(torch.get_rng_state(), before)
    assert relative_difference(again.length, first.length) <= 1e-9


@pytest.mark.cuda
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_distances_on_cuda(problem):
    start, end = problem.sample(20), problem.sample(20)
    expected = problem.distance(start, end)
    solution = solve_geodesic(problem.metric, start.cuda(), end.cuda())
    assert solution.length.is_cuda
    assert solution.curve.control_points.is_cuda
    error = ((solution.length.cpu() - expected) / expected).abs().max()
    assert error <= (1e-2 if problem.kink else 1e-3)


@pytest.mark.cuda
def test_default_device_of_the_caller_does_not_matter():
    torch.set_default_device("cuda")
    try:
        solution = solve_geodesic(PullbackMetric(sphere), disk(4), disk(4))
        assert solution.length.is_cuda
    finally:
        torch.set_default_device(None)
