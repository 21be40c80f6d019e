"""Decoders with kinks: the order of chords, lengths, when a solve ends, and what it costs."""

import math

import pytest
import torch
from problems import coupling_flow, sphere
from torch import nn

from geolatent import (
    LBFGS,
    CubicBSpline,
    PreconditionedSolver,
    PullbackMetric,
    Status,
    path_length,
    solve_geodesic,
)
from geolatent.lengths import _lacking, measure
from geolatent.metrics.rows import Rows
from geolatent.solvers.energy import DiscreteEnergy
from geolatent.solvers.lbfgs import DensePreconditioner

pytestmark = pytest.mark.usefixtures("float64")


def relu_network(d, seed=0):
    """A random ReLU network from R^d to R^200 with some hundred kinks on a line."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(d, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 200)
        )
    return network.requires_grad_(False).eval()


def curves(n, d, points=6):
    controls = torch.randn(n, points, d)
    return CubicBSpline(
        controls, CubicBSpline.straight(controls[:, 0], controls[:, -1], points).knots
    )


def order(decoder, d, spans):
    curve = curves(8, d)
    rows = Rows.of(PullbackMetric(decoder), curve.control_points[:, 0]).counting(8)
    ends = rows.outputs(curve.control_points[:, [0, -1]])
    pairs = torch.arange(8)
    energy = DiscreteEnergy(rows, curve.knots, spans, curve.control_points, pairs, ends)
    assert energy.order.isnan().all()
    energy(energy.start, pairs)
    return energy.order


def test_chords_tell_kinks_from_bends():
    smooth = nn.Sequential(nn.Linear(5, 50), nn.Tanh(), nn.Linear(50, 40)).requires_grad_(False)
    assert (order(smooth, 5, 64) - 2.0).abs().max() < 0.1
    assert (order(relu_network(5), 5, 64) < 1.35).all()


def test_what_chords_lack_over_kinks_is_known():
    # a path that turns by 0.1 at many random places, alternately, and is straight between
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(40, generator=generator).sort().values
    metric = PullbackMetric(lambda z: z)
    n = 512
    t = torch.linspace(0, 1, n + 1)
    angle = 0.1 * ((places < t[:, None]).sum(1) % 2)

    def along(t):
        # the integral of the direction
        breaks = torch.cat([torch.zeros(1), places, torch.ones(1)])
        pieces = t[:, None].clamp(breaks[:-1], breaks[1:]) - breaks[:-1]
        turns = 0.1 * (torch.arange(len(pieces[0])) % 2)
        return torch.stack([pieces @ turns.cos(), pieces @ turns.sin()], dim=1)

    assert angle.max() == 0.1
    values = along(t)[None, None]
    chords = metric.chords
    lengths = values.diff(dim=2).norm(dim=3)
    lacking, noise, kinked = _lacking(chords, values, lengths)
    missing = 1.0 - lengths.sum()
    assert kinked.all()
    assert missing > 1e-5
    assert (lacking[0, 0] - missing).abs() < 0.4 * missing
    assert 0 < noise[0, 0] < 0.4 * missing


def test_what_chords_lack_over_bends_is_known():
    t = torch.linspace(0, math.pi, 65)
    values = torch.stack([t.cos(), t.sin()], dim=1)[None, None]
    lengths = values.diff(dim=2).norm(dim=3)
    lacking, _, kinked = _lacking(PullbackMetric(lambda z: z).chords, values, lengths)
    assert not kinked.any()
    # longer chords that begin late leave shorter ones at the ends
    assert abs(lacking.item() / (math.pi - lengths.sum().item()) - 1.0) < 0.1


def test_lengths_across_kinks():
    decoder, curve = relu_network(5), curves(20, 5)
    metric = PullbackMetric(decoder)
    rows = Rows.of(metric, curve.control_points[:, 0]).counting(20)
    length = measure(rows, [curve], tolerance=1e-4).length[0]
    fine = decoder(curve(torch.linspace(0, 1, 2**14 + 1)).flatten(0, 1)).unflatten(0, (20, -1))
    expected = fine.diff(dim=1).norm(dim=2).sum(1)
    assert (length / expected - 1.0).abs().max() < 3e-4
    assert rows.spent.forward.double().mean() < 700  # 8,193 where kinks are not known of


def test_the_length_tolerance_follows_the_solver():
    metric = PullbackMetric(relu_network(4))
    start, end = torch.randn(2, 6, 4)
    rough = PreconditionedSolver(tolerance=1e-2, max_control_points=7)
    followed = solve_geodesic(metric, start, end, rough)
    given = solve_geodesic(metric, start, end, rough, length_tolerance=1e-4)
    assert followed.evaluations.forward.sum() < 0.75 * given.evaluations.forward.sum()
    # on a smooth decoder both lengths are better than they must be
    torch.testing.assert_close(followed.length, given.length, rtol=1e-2, atol=0)
    line = CubicBSpline.straight(start, end)
    assert (followed.straight_length / path_length(metric, line) - 1.0).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("d", "layers", "rows", "excess", "ends"),
    [(2, 4, 4500, 0.005, 0.6), (6, 6, 8500, 0.015, 0.9)],
)
def test_kinked_flows_end_near_the_chord(d, layers, rows, excess, ends):
    flow = coupling_flow(d, layers)
    start, end = torch.randn(2, 20, d)
    exact = (flow(start) - flow(end)).norm(dim=1)
    solution = solve_geodesic(PullbackMetric(flow), start, end)
    assert (solution.length >= exact * (1.0 - 1e-3)).all()
    over = solution.length / exact - 1.0
    assert over.median() < excess
    assert (solution.straight_length / exact - 1.0).median() > 5.0 * over.median()
    assert solution.evaluations.equivalents.mean() < rows
    ended = (solution.status == Status.ROUGH) | (solution.status == Status.CONVERGED)
    assert ended.double().mean() >= ends
    left = 1.0 - exact / solution.length
    assert (left <= 3.0 * solution.predicted_improvement + 1e-3)[ended].all()


def test_rough_pairs_go_on_where_that_is_asked_for():
    metric = PullbackMetric(relu_network(4, seed=1))
    start, end = torch.randn(2, 8, 4)
    solution = solve_geodesic(metric, start, end)
    further = solve_geodesic(metric, start, end, PreconditionedSolver(rough_tolerance=0.0))
    assert (solution.status == Status.ROUGH).any()
    assert not (further.status == Status.ROUGH).any()
    assert further.evaluations.equivalents.mean() > 1.5 * solution.evaluations.equivalents.mean()
    assert (further.length <= 1.002 * solution.length).all()
    assert (further.length >= 0.97 * solution.length).all()


def test_smooth_decoders_are_never_rough():
    start, end = torch.randn(2, 12, 2)
    assert not (solve_geodesic(PullbackMetric(sphere), start, end).status == Status.ROUGH).any()
    smooth = nn.Sequential(nn.Linear(8, 60), nn.Tanh(), nn.Linear(60, 50)).requires_grad_(False)
    start, end = torch.randn(2, 6, 8)
    assert set(solve_geodesic(PullbackMetric(smooth), start, end).statuses) == {Status.CONVERGED}


def test_a_renewed_hessian_leads_to_the_minimum():
    # quadratics x^T A x / 2, of which the minimiser is first told the identity
    root = torch.randn(3, 5, 5)
    matrices = root @ root.mT + 0.1 * torch.eye(5)

    def objective(x, index):
        gradient = (matrices[index] @ x[:, :, None])[:, :, 0]
        return 0.5 * (x * gradient).sum(1), gradient, None

    x, index = torch.randn(3, 5), torch.arange(3)
    value, gradient, _ = objective(x, index)
    minimizer = LBFGS()
    preconditioner = DensePreconditioner.of(torch.eye(5).repeat(3, 1, 1))
    state = minimizer.init(x, value, gradient, preconditioner)
    chosen = torch.tensor([0, 2])
    state = minimizer.renew(state, chosen, matrices[chosen])
    decrement = 2.0 * state.value  # of a quadratic, exactly
    torch.testing.assert_close(state.newton_decrement[chosen], decrement[chosen])
    state = minimizer.step(state, objective)
    assert (state.value[chosen] < 1e-12).all()
    assert state.value[1] > 1e-3
