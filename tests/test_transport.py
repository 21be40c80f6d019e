"""Parallel transport against closed forms, and what it must keep."""

import itertools
import math
import warnings

import pytest
import torch
from problems import HALF_PLANE, SPHERE, Counted, half_plane, sphere
from torch import nn

from geolatent import (
    ConformalMetric,
    CubicBSpline,
    DivergenceMetric,
    GaussianPullbackMetric,
    GEORCESolver,
    PreconditionedSolver,
    PullbackMetric,
    TensorMetric,
    parallel_transport,
    solve_geodesic,
)
from geolatent.curves import clamped_knots, greville_abscissae
from geolatent.geometry.transport import _ImmersedField, _rotations, _TensorField, _Turned
from geolatent.interpolations import spline_through_points
from geolatent.metrics.rows import Rows

pytestmark = pytest.mark.usefixtures("float64")


SPHERE_TENSOR = TensorMetric(SPHERE._tensor, dim=2)  # the same without an immersion
BOTH = pytest.mark.parametrize(
    "metric", [SPHERE, SPHERE_TENSOR], ids=["immersion", "metric tensor"]
)
ALL = pytest.mark.parametrize(
    "metric", [SPHERE, SPHERE_TENSOR, HALF_PLANE], ids=["immersion", "metric tensor", "half-plane"]
)


def rotation(angle):
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]])


def curves(n, d=2, seed=0):
    """Return curved splines; in the upper half-plane from above 0.4."""
    points = torch.randn(n, 9, d, generator=torch.Generator().manual_seed(seed))
    points[..., -1] = 0.4 + points[..., -1].abs()
    return CubicBSpline(points, clamped_knots(9))


def inner(metric, z, v):
    """Return the inner products of vectors (B, k, d) at codes (B, d)."""
    return v @ metric.tensor(z) @ v.mT


def relu_decoder(d=2, width=64, out=100):
    layers = nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(width, out)).requires_grad_(False).eval()


@BOTH
def test_a_meridian_turns_nothing(metric):
    start, end = torch.tensor([[-0.8, 0.0], [0.3, 0.4]]), torch.tensor([[0.5, 0.0], [1.5, 2.0]])
    line = CubicBSpline.straight(start, end)
    v = torch.randn(2, 5, 2)
    scale = (1 + end.square().sum(1)) / (1 + start.square().sum(1))
    moved = parallel_transport(metric, line, v)
    torch.testing.assert_close(moved, scale[:, None, None] * v, rtol=1e-5, atol=1e-6)


@BOTH
def test_around_a_circle_of_latitude_vectors_turn_by_the_area_inside(metric):
    angle = torch.linspace(0, 2 * math.pi, 200)
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    for colatitude in (0.3, 1.2, 2.0):
        circle = spline_through_points(math.tan(colatitude / 2) * ring)
        moved = parallel_transport(metric, circle, torch.eye(2)[None])[0]
        expected = rotation(2 * math.pi * (1 - math.cos(colatitude))).mT  # rows are vectors
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


@BOTH
def test_around_a_triangle_vectors_turn_by_its_area(metric):
    a, b = (torch.tensor([x, y, -1.0]) for x, y in ((1.5, 0.2), (-0.3, 0.9)))
    corners = [torch.tensor([0.0, 0.0, -1.0]), a / a.norm(), b / b.norm()]
    volume = torch.linalg.det(torch.stack(corners))
    sides = sum(corners[i] @ corners[i - 1] for i in range(3))
    # counterclockwise as the chart shows it, which is from inside the sphere
    area = 2 * float(torch.atan2(volume.abs(), 1 + sides))
    v = torch.eye(2)[None]
    for i in range(3):
        x, y = corners[i], corners[(i + 1) % 3]
        arc = torch.lerp(x, y, torch.linspace(0, 1, 60)[:, None])
        arc = arc / arc.norm(dim=1, keepdim=True)
        v = parallel_transport(
            metric, spline_through_points(arc[:, :2] / (1 - arc[:, 2:])), v, tolerance=1e-6
        )
    torch.testing.assert_close(v[0], rotation(area).mT, rtol=0, atol=1e-4)


def test_half_plane():
    start, end = torch.tensor([[0.0, 0.5], [0.2, 0.5]]), torch.tensor([[1.0, 0.5], [0.2, 2.0]])
    v = torch.randn(2, 3, 2)
    moved = parallel_transport(HALF_PLANE, CubicBSpline.straight(start, end), v)
    # along a horocycle by the length, along a vertical line not at all
    torch.testing.assert_close(moved[0], v[0] @ rotation(-2.0).mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved[1], 4.0 * v[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["decoder", "tensor", "crease", "sharp crease", "cylinder"])
def test_flat_metrics_move_nothing(kind):
    matrix = torch.randn(5, 3)
    fold = {"crease": 0.4, "sharp crease": 2.8}.get(kind, 0.0)

    def folded(z):
        side = z[:, 2:]
        up = torch.where(side > 0.1, side - 0.1, 0.0)
        return torch.cat(
            [z[:, :2], side - up + math.cos(fold) * up, math.sin(fold) * up], dim=1
        ) @ torch.block_diag(torch.eye(2) * 2.0, torch.eye(2))

    def rolled(z):
        return torch.cat([z[:, :1], z[:, 1:].cos(), z[:, 1:].sin()], dim=1)

    metric = {
        "decoder": PullbackMetric(lambda z: z @ matrix.mT),
        "tensor": TensorMetric(lambda z: (matrix.mT @ matrix).expand(len(z), 3, 3), dim=3),
        "cylinder": PullbackMetric(rolled),
    }.get(kind, PullbackMetric(folded))
    curve, v = curves(4, 3), torch.randn(4, 2, 3)
    torch.testing.assert_close(parallel_transport(metric, curve, v), v, rtol=1e-4, atol=1e-4)


@BOTH
def test_error_follows_the_tolerance(metric):
    curve, v = curves(4), torch.eye(2).expand(4, 2, 2)
    exact = parallel_transport(metric, curve, v, tolerance=1e-7)
    exact = exact / inner(metric, curve.control_points[:, -1], exact).amax((1, 2), True).sqrt()
    for tolerance in (1e-2, 1e-4, 1e-6):
        moved = parallel_transport(metric, curve, v, tolerance=tolerance)
        moved = moved / inner(metric, curve.control_points[:, -1], moved).amax((1, 2), True).sqrt()
        assert (moved - exact).abs().max() < 3 * tolerance * exact.abs().max()


@BOTH
def test_extrapolated_steps_are_of_fourth_order(metric):
    curve = curves(1, seed=3)
    kind = _TensorField if metric.immersion is None else _ImmersedField
    field = kind(Rows.of(metric, curve.control_points[:, 0]), curve)

    def rotated(n, plain):
        t = torch.linspace(0, 1, n + 1)
        steps = field.steps(torch.zeros(n, dtype=torch.int64), t[:-1], t[1:])
        turned = _Turned.over(steps, torch.float64)
        start, _, end = turned.roots.inverse.unbind(1)
        each = _rotations(end @ steps.whole @ start, turned.roots.rank[:, 0])
        return torch.linalg.multi_dot(list((each if plain else turned.rotation).flip(0)))

    exact = rotated(1024, plain=False)
    for plain, order in ((True, 2), (False, 4)):
        errors = [(rotated(n, plain) - exact).norm() for n in (64, 128, 256)]
        for coarse, fine in itertools.pairwise(errors):
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.5)


@ALL
def test_inner_products_are_kept_and_maps_are_linear(metric):
    curve, v = curves(5), torch.randn(5, 3, 2)
    moved = parallel_transport(metric, curve, v)
    start, end = curve.control_points[:, 0], curve.control_points[:, -1]
    torch.testing.assert_close(
        inner(metric, end, moved), inner(metric, start, v), rtol=1e-9, atol=0
    )
    weights = torch.randn(5, 1, 3)
    torch.testing.assert_close(
        parallel_transport(metric, curve, weights @ v), weights @ moved, rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(parallel_transport(metric, curve, v[:, 0]), moved[:, 0])


@ALL
def test_the_way_back_undoes_the_way_there(metric):
    curve, v = curves(5), torch.randn(5, 3, 2)
    there = parallel_transport(metric, curve, v)
    back = parallel_transport(metric, curve.reverse(), there)
    torch.testing.assert_close(back, v, rtol=1e-6, atol=1e-6)


@ALL
def test_times_on_the_way(metric):
    curve, v = curves(3), torch.randn(3, 2, 2)
    t = torch.tensor([1.0, 0.0, 0.3, 0.3, 0.77])
    moved = parallel_transport(metric, curve, v, t)
    assert moved.shape == (3, 5, 2, 2)
    torch.testing.assert_close(moved[:, 1], v)
    torch.testing.assert_close(
        moved[:, 0], parallel_transport(metric, curve, v), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(moved[:, 2], moved[:, 3], rtol=0, atol=0)
    for k in range(5):
        z = curve(t[k : k + 1])[:, 0]
        expected = inner(metric, curve.control_points[:, 0], v)
        torch.testing.assert_close(inner(metric, z, moved[:, k]), expected, rtol=1e-9, atol=0)
    assert parallel_transport(metric, curve, v[:, 0], t).shape == (3, 5, 2)


@pytest.mark.parametrize("name", ["sphere", "half-plane"])
def test_a_geodesic_carries_its_velocity_along(name):
    metric = {"sphere": SPHERE, "half-plane": HALF_PLANE}[name]
    start, end = torch.tensor([[-0.4, 0.5], [0.6, 0.9]]), torch.tensor([[0.5, 0.6], [-0.2, 1.4]])
    curve = solve_geodesic(metric, start, end, PreconditionedSolver(tolerance=1e-9)).curve
    first, last = curve.derivative(torch.tensor([0.0, 1.0])).unbind(1)
    moved = parallel_transport(metric, curve, first)
    torch.testing.assert_close(moved, last, rtol=2e-2, atol=2e-2)


def test_isometries_of_the_output_change_nothing():
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    other = PullbackMetric(lambda z: 3.0 * sphere(z) @ turn + 1.0)
    curve, v = curves(4), torch.randn(4, 2)
    torch.testing.assert_close(
        parallel_transport(other, curve, v),
        parallel_transport(SPHERE, curve, v),
        rtol=1e-9,
        atol=1e-9,
    )


@ALL
def test_parametrisation_does_not_matter(metric):
    # the line from (0, 1) to (1, 1.5) at other speeds
    knots = clamped_knots(4)
    ends = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.5]])
    share = torch.tensor([0.0, 0.05, 0.2, 1.0])[:, None]
    slow = CubicBSpline(torch.lerp(*ends, share)[None], knots)
    v = torch.randn(1, 2, 2)
    steady = CubicBSpline.straight(*ends)
    assert not torch.allclose(share[:, 0], greville_abscissae(knots))
    torch.testing.assert_close(
        parallel_transport(metric, slow, v, tolerance=1e-6),
        parallel_transport(metric, steady, v, tolerance=1e-6),
        rtol=1e-5,
        atol=1e-5,
    )


@ALL
def test_polylines_with_corners(metric):
    start, end = torch.tensor([[-0.4, 0.5]]), torch.tensor([[0.5, 0.9]])
    curve = solve_geodesic(metric, start, end, GEORCESolver(segments=12)).curve
    v = torch.randn(1, 2, 2)
    moved = parallel_transport(metric, curve, v)
    # segment by segment, each a straight line
    corners = curve.control_points[:, ::3]
    expected = v
    for a, b in itertools.pairwise(corners[0]):
        expected = parallel_transport(metric, CubicBSpline.straight(a, b), expected)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("d", [2, 4])
def test_creases_of_relu_are_crossed_one_by_one(d):
    decoder = relu_decoder(d)
    metric = PullbackMetric(decoder)
    line = CubicBSpline.straight(torch.randn(3, d), torch.randn(3, d))
    v = torch.randn(3, d)
    moved = parallel_transport(metric, line, v)  # a warning would be an error
    # the linear pieces along the lines, from the signs at very many points
    t = torch.linspace(0, 1, 200_001)
    for k in range(3):
        z = line[k](t)[0]
        hidden = decoder[:2](z)
        signs = torch.cat([hidden > 0, decoder[2](hidden) > 0], dim=1)
        changes = (signs[1:] != signs[:-1]).any(1).nonzero()[:, 0]
        pieces = torch.cat([z[:1], (z[changes[:-1] + 1] + z[changes[1:]]) / 2, z[-1:]])
        columns = metric.immersion.columns(pieces)[1].unbind(1)
        frames = [torch.linalg.qr(jacobian.mT) for jacobian in columns]
        w = frames[0].Q @ frames[0].R @ v[k]
        for before, after in itertools.pairwise(frames):
            left, _, right = torch.linalg.svd(after.Q.mT @ before.Q)
            w = after.Q @ left @ right @ before.Q.mT @ w
        expected = torch.linalg.lstsq(frames[-1].Q @ frames[-1].R, w[:, None]).solution[:, 0]
        torch.testing.assert_close(moved[k], expected, rtol=1e-3, atol=1e-3 * float(v[k].norm()))


@pytest.mark.parametrize("name", ["sphere", "half-plane", "relu"])
def test_a_curve_alone_equals_the_same_curve_in_a_batch(name):
    metric = {"sphere": SPHERE, "half-plane": HALF_PLANE, "relu": PullbackMetric(relu_decoder())}
    curve, v = curves(4), torch.randn(4, 2)
    together = parallel_transport(metric[name], curve, v)
    for k in range(4):
        alone = parallel_transport(metric[name].limited(50), curve[k], v[k : k + 1])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-9, atol=1e-9)


def test_metrics_without_an_immersion():
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5)).requires_grad_(False)
    pull_back = PullbackMetric(net)
    curve, v = curves(3), torch.randn(3, 2)
    expected = parallel_transport(pull_back, curve, v)
    divergence = DivergenceMetric(net, lambda a, b: (a - b).square().sum(1))
    for metric in (
        ConformalMetric(pull_back, lambda z: torch.full_like(z[:, 0], 2.0)),
        GaussianPullbackMetric(lambda z: (net(z), 0.0 * net(z) + 1.0), lambda x: 2.0 * x),
        TensorMetric(pull_back._tensor, dim=2),
        divergence,
    ):
        assert metric.immersion is None
        torch.testing.assert_close(
            parallel_transport(metric, curve, v), expected, rtol=2e-4, atol=2e-4
        )


def test_a_tensor_that_jumps_is_told():
    metric = ConformalMetric(PullbackMetric(relu_decoder()), lambda z: 1.0 + 0.0 * z[:, 0])
    line = CubicBSpline.straight(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.warns(UserWarning, match=r"1 of 1 curves did not reach.*tensor jump\?"):
        parallel_transport(metric, line, torch.ones(1, 2))


def test_single_precision_stays_single():
    curve, v = curves(4), torch.randn(4, 2)
    for metric in (SPHERE, HALF_PLANE, PullbackMetric(sphere)):
        moved = parallel_transport(metric, curve.to(dtype=torch.float32), v.float())
        assert moved.dtype == torch.float32
        expected = parallel_transport(metric, curve, v)
        assert (moved.double() - expected).norm() < 1e-3 * expected.norm()


def test_directions_that_a_decoder_ignores_are_dropped():
    metric = PullbackMetric(lambda z: sphere(z[:, :2]))
    curve, v = curves(2, 3), torch.randn(2, 3)
    with pytest.warns(UserWarning, match="singular along 2 of 2 curves"):
        moved = parallel_transport(metric, curve, v)
    flat = CubicBSpline(curve.control_points[:, :, :2].contiguous(), curve.knots)
    torch.testing.assert_close(moved[:, :2], parallel_transport(SPHERE, flat, v[:, :2].clone()))
    assert moved[:, 2].abs().max() < 1e-12


def test_a_curve_without_transport_touches_no_other():
    def decoder(z):
        hole = (z[:, :1] > 2.5) & (z[:, :1] < 3.5)
        return torch.where(hole, torch.nan, sphere(z))

    def ramp(z):  # of rank one where z_1 < 3
        return torch.cat([z[:, 1:], (z[:, :1] - 3.0).relu()], dim=1)

    start, end = torch.tensor([[4.0, 0.5], [2.0, 0.0]]), torch.tensor([[5.0, 1.0], [6.0, 1.0]])
    line, v = CubicBSpline.straight(start, end), torch.randn(2, 2)
    for metric in (PullbackMetric(decoder), PullbackMetric(ramp)):
        with pytest.warns(UserWarning, match=r"1 of 2 curves: their vectors are NaN"):
            moved = parallel_transport(metric, line, v)
        assert moved[1].isnan().all()
        alone = parallel_transport(metric, line[0], v[:1])
        torch.testing.assert_close(moved[:1], alone, rtol=1e-9, atol=1e-9)


def test_decoder_rows_on_a_smooth_decoder():
    counted = Counted(sphere)
    line = CubicBSpline.straight(torch.tensor([[-0.5, 0.3]]), torch.tensor([[0.5, 0.3]]))
    parallel_transport(PullbackMetric(counted), line, torch.ones(1, 2))
    # three rows, batched over the columns, for each step; and those of the checks of the input
    assert counted.rows < 3 * 60 + 20


CURVE = CubicBSpline.straight(torch.zeros(3, 2), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v: parallel_transport(SPHERE, CURVE, v.tolist()), TypeError, "`vectors` should be"),
        (lambda v: parallel_transport(SPHERE, CURVE, v[:2]), ValueError, r"`vectors`.*\(3, 2\)"),
        (lambda v: parallel_transport(SPHERE, CURVE, v[:, :1]), ValueError, "`vectors`.*shape"),
        (lambda v: parallel_transport(SPHERE, CURVE, v[0]), ValueError, "`vectors`.*shape"),
        (
            lambda v: parallel_transport(SPHERE, CURVE, v * torch.nan),
            ValueError,
            "`vectors`.*finite",
        ),
        (lambda v: parallel_transport(SPHERE, CURVE, v.double()), TypeError, "`vectors`.*dtype"),
        (lambda v: parallel_transport(SPHERE, CURVE, v, 0.5), TypeError, "`t` should be"),
        (
            lambda v: parallel_transport(SPHERE, CURVE, v, torch.tensor([1.5])),
            ValueError,
            r"`t` should be in \[0, 1\]",
        ),
        (lambda v: parallel_transport(SPHERE, CURVE, v, tolerance=0.0), ValueError, "`tolerance`"),
        (
            lambda v: parallel_transport(TensorMetric(half_plane, dim=3), CURVE, v),
            ValueError,
            "`curve` should be",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(3, 2, dtype=torch.float32))


@pytest.mark.cuda
def test_cuda_equals_cpu():
    curve, v = curves(5), torch.randn(5, 3, 2)
    there = curve.to("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric in (SPHERE, HALF_PLANE):
            moved = parallel_transport(metric, there, v.cuda(), torch.tensor([0.5, 1.0]))
            assert moved.is_cuda
            expected = parallel_transport(metric, curve, v, torch.tensor([0.5, 1.0]))
            torch.testing.assert_close(moved.cpu(), expected, rtol=1e-6, atol=1e-7)
