"""Exponential and logarithm maps against closed forms, and each against the other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import HALF_PLANE, PROBLEMS, SPHERE, sphere
from scipy.interpolate import BSpline

from geolatent import CubicBSpline, GaussianPullbackMetric, PullbackMetric, models
from geolatent.curves import clamped_knots
from geolatent.geometry.acceleration import (
    geodesic_acceleration,
    geodesic_residual,
    second_derivative,
)
from geolatent.geometry.exponential import exp_map, shoot
from geolatent.geometry.extrapolation import extrapolate
from geolatent.geometry.integrators import DiscreteGeodesic, RungeKutta
from geolatent.geometry.ode import TrajectoryStatus, integrate
from geolatent.geometry.shooting import log_map, shoot_to
from geolatent.interpolations import spline_through_points
from geolatent.lab import data as digits_data
from geolatent.solve import PreconditionedSolver, solve_geodesic

pytestmark = pytest.mark.usefixtures("float64")


def sphere_exp(z, v):
    """Great circles: cos(|w|) x + sin(|w|) w / |w| for the velocity w = J v at x."""
    x, w = SPHERE.immersion.jvp(z, v)
    angle = w.norm(dim=1, keepdim=True)
    return angle.cos() * x + angle.sin() * w / angle


def half_plane_exp(z, v):
    """Moebius transforms of i exp(s t), which is the geodesic upwards from i with speed s."""
    vc = torch.complex(v[:, 0], v[:, 1])
    speed = vc.abs() / z[:, 1]
    # rotation about i by the angle that turns i's upward direction into v's, then w -> y w + x
    half = (torch.angle(vc) - math.pi / 2) / 2
    point = torch.complex(torch.zeros_like(speed), speed.exp())
    # the rotation z -> (cos z + sin) / (-sin z + cos) turns directions at i by twice the angle
    turned = (half.cos() * point + half.sin()) / (-half.sin() * point + half.cos())
    moved = z[:, 1] * turned + z[:, 0]
    return torch.stack([moved.real, moved.imag], dim=1)


def test_sphere_exponential_to_1e_8():
    z, v = torch.rand(10, 2) - 0.5, 0.3 * torch.randn(10, 2)
    way = shoot(SPHERE, z, v, torch.linspace(0, 1, 5))
    assert set(way.statuses) == {TrajectoryStatus.FINISHED}
    assert (sphere(way.points[:, -1]) - sphere_exp(z, v)).abs().max() < 1e-8
    for k, t in enumerate(way.t[1:], start=1):
        assert (sphere(way.points[:, k]) - sphere_exp(z, t * v)).abs().max() < 1e-7
    assert (way.energy / way.energy[:, :1] - 1).abs().max() < 1e-6
    speed = SPHERE.quadratic(z, v)
    torch.testing.assert_close(way.energy[:, 0], speed / 2)
    assert (way.evaluations.equivalents > 0).all()


def test_half_plane_exponential_to_1e_8():
    z = torch.rand(30, 2) + torch.tensor([0.0, 0.5])
    v = torch.randn(30, 2)
    way = shoot(HALF_PLANE, z, v)
    expected = half_plane_exp(z, v)
    assert (way.points[:, 0] - expected).abs().max() < 1e-8 * expected.abs().max().clamp_min(1)


def test_discrete_geodesics_are_of_second_order():
    z, v = torch.rand(10, 2) - 0.5, 0.6 * torch.randn(10, 2)
    errors = []
    for n in (32, 64, 128):
        way = shoot(SPHERE, z, v, torch.linspace(0, 1, 6), integrator=DiscreteGeodesic(n))
        errors.append((sphere(way.points[:, -1]) - sphere_exp(z, v)).norm(dim=1).max())
        assert (way.energy / way.energy[:, :1] - 1).abs().max() < 10 / n**2
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.1)
    # between its points a chain is interpolated to the same order
    fine = shoot(SPHERE, z, v, way.t, integrator=RungeKutta(1e-8))
    assert (way.points - fine.points).abs().max() < 5e-4


@pytest.mark.parametrize("name", ["sphere", "half-plane"])
def test_exponential_after_logarithm_returns(name):
    problem = PROBLEMS[name]
    metric, start, end = problem.metric, problem.sample(8), problem.sample(8)
    integrator = RungeKutta(1e-8)
    v = log_map(metric, start, end, integrator=integrator)
    back = exp_map(metric, start, v, integrator=integrator)
    assert (back - end).norm(dim=1).max() < 1e-6
    length = metric.quadratic(start, v).sqrt()
    torch.testing.assert_close(length, problem.distance(start, end), rtol=1e-6, atol=0)


def test_logarithm_after_exponential_returns():
    z, v = torch.rand(6, 2) - 0.5, 0.3 * torch.randn(6, 2)
    integrator = RungeKutta(1e-8)
    end = exp_map(SPHERE, z, v, integrator=integrator)
    torch.testing.assert_close(
        log_map(SPHERE, z, end, integrator=integrator), v, rtol=1e-5, atol=1e-6
    )


def test_exponential_after_logarithm_on_the_embedded_model():
    vae = models.digits_vae(dtype=torch.float64)
    metric = GaussianPullbackMetric(vae.decode)
    images, _ = digits_data.digits("test")
    with torch.no_grad():
        codes = vae.encode(images[:60].double())[0]
    # each code and its tenth neighbour: the decoder has kinks on the way
    near = torch.cdist(codes, codes).argsort(1)[:, 10]
    start, end = codes[:3], codes[near[:3]]
    integrator = DiscreteGeodesic(64)
    found = shoot_to(metric, start, end, integrator=integrator, solver=PreconditionedSolver())
    assert found.converged.all()
    back = exp_map(metric, start, found.velocity, integrator=integrator)
    assert (back - end).norm(dim=1).max() < 1e-5
    torch.testing.assert_close(found.miss, (back - end).norm(dim=1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.length, found.solution.length, rtol=5e-3, atol=0)
    assert (found.evaluations.equivalents > found.solution.evaluations.equivalents).all()


def test_a_pair_alone_equals_the_same_pair_in_a_batch():
    z, v = torch.rand(5, 2) - 0.5, 0.5 * torch.randn(5, 2)
    for integrator in (RungeKutta(1e-7), DiscreteGeodesic(20)):
        together = shoot(SPHERE, z, v, integrator=integrator)
        alone = shoot(SPHERE, z[3], v[3], integrator=integrator)
        torch.testing.assert_close(together.points[3:4], alone.points, rtol=1e-10, atol=1e-12)
        assert together.steps[3] == alone.steps[0]
        assert together.evaluations.equivalents[3] == alone.evaluations.equivalents[0]


def test_reversal():
    z, v = torch.rand(5, 2) - 0.5, 0.3 * torch.randn(5, 2)
    there = shoot(HALF_PLANE, z + 1.0, v)
    back = shoot(HALF_PLANE, there.points[:, 0], -there.velocities[:, 0])
    torch.testing.assert_close(back.points[:, 0], z + 1.0, rtol=0, atol=1e-7)
    torch.testing.assert_close(back.velocities[:, 0], -v, rtol=0, atol=1e-7)


@settings(max_examples=10)
@given(st.floats(0.1, 3.0), st.integers(0, 100))
def test_time_and_velocity_scale_each_other(factor, seed):
    generator = torch.Generator().manual_seed(seed)
    z, v = torch.rand(2, 1, 2, generator=generator, dtype=torch.float64)
    z = z + 0.5
    one = exp_map(HALF_PLANE, z, factor * v, integrator=RungeKutta(1e-8))
    other = shoot(
        HALF_PLANE, z, v, torch.tensor([factor], dtype=torch.float64), integrator=RungeKutta(1e-8)
    )
    torch.testing.assert_close(one, other.points[:, 0], rtol=1e-6, atol=1e-7)


def test_float32():
    z, v = torch.rand(4, 2, dtype=torch.float32) - 0.5, 0.5 * torch.randn(4, 2, dtype=torch.float32)
    end = exp_map(SPHERE, z, v)
    assert end.dtype == torch.float32
    expected = sphere_exp(z.double(), v.double())
    assert (sphere(end.double()) - expected).abs().max() < 1e-4
    back = log_map(SPHERE, z, end)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, v, rtol=2e-3, atol=2e-3)


def test_a_failing_trajectory_touches_no_other():
    def fenced(z):
        wall = torch.where(z[:, :1] > 1.0, torch.nan, 1.0)
        return torch.cat([z, z.square()], dim=1) * wall

    metric = PullbackMetric(fenced)
    z, v = torch.zeros(2, 2), torch.tensor([[0.5, 0.5], [2.0, 0.1]])
    t = torch.linspace(0, 1, 5)
    for integrator in (RungeKutta(1e-4), DiscreteGeodesic(16)):
        way = shoot(metric, z, v, t, integrator=integrator)
        assert way.statuses == [TrajectoryStatus.FINISHED, TrajectoryStatus.NON_FINITE]
        assert way.points[1, -1].isnan().all()
        alone = shoot(metric, z[0], v[0], t, integrator=integrator)
        torch.testing.assert_close(way.points[:1], alone.points)
        with pytest.warns(UserWarning, match="1 of 2 geodesics.*NON_FINITE"):
            end = exp_map(metric, z, v, integrator=integrator)
        assert end[0].isfinite().all()
        assert end[1].isnan().all()


def test_steps_run_out():
    way = shoot(HALF_PLANE, torch.ones(2), torch.ones(2), integrator=RungeKutta(1e-10, max_steps=5))
    assert way.statuses == [TrajectoryStatus.MAX_STEPS]
    assert "used up" in way.statuses[0].explanation


def test_log_of_equal_points_is_zero():
    z = torch.rand(3, 2)
    found = shoot_to(SPHERE, z, z, integrator=RungeKutta(1e-6))
    assert torch.equal(found.velocity, torch.zeros(3, 2))
    assert found.converged.all()


def test_log_warns_of_a_miss():
    start, end = torch.tensor([-0.6, 0.0]), torch.tensor([0.5, 0.6])
    coarse = PreconditionedSolver(tolerance=0.5)
    with pytest.warns(UserWarning, match="1 of 1 geodesics miss"):
        log_map(
            SPHERE, start, end, solver=coarse, max_corrections=0, integrator=DiscreteGeodesic(32)
        )


def test_extrapolation_goes_on_along_the_great_circle():
    start, end = torch.tensor([[-0.4, 0.1]]), torch.tensor([[0.3, 0.2]])
    curve = solve_geodesic(SPHERE, start, end, PreconditionedSolver(tolerance=1e-8)).curve
    t = torch.tensor([1.5, -0.5, 0.25, 1.0, 2.0])
    points = extrapolate(SPHERE, curve, t, integrator=RungeKutta(1e-8))
    assert points.shape == (1, 5, 2)
    torch.testing.assert_close(points[:, 2:4], curve(t[2:4]))
    v = log_map(SPHERE, start, end, integrator=RungeKutta(1e-8))
    for k, s in enumerate(t):
        expected = sphere_exp(start, s * v) if s else sphere(start)
        assert (sphere(points[:, k]) - expected).abs().max() < 2e-3


def test_acceleration_of_the_half_plane():
    # Gamma^x_xy = -1/y, Gamma^y_xx = 1/y, Gamma^y_yy = -1/y
    z, v = torch.rand(10, 2) + 0.5, torch.randn(10, 2)
    y = z[:, 1]
    expected = torch.stack([2 * v[:, 0] * v[:, 1] / y, (v[:, 1] ** 2 - v[:, 0] ** 2) / y], dim=1)
    torch.testing.assert_close(geodesic_acceleration(HALF_PLANE, z, v), expected)


def test_acceleration_is_the_second_derivative_of_a_shot():
    metric = PullbackMetric(lambda z: torch.cat([z.sin(), z.square(), z[:, :1] * z[:, 1:]], dim=1))
    z, v = torch.randn(4, 3), torch.randn(4, 3)
    h = 1e-3
    end = exp_map(metric, torch.cat([z, z]), torch.cat([h * v, -h * v]))
    numeric = (end[:4] + end[4:] - 2 * z) / h**2
    torch.testing.assert_close(geodesic_acceleration(metric, z, v), numeric, rtol=1e-3, atol=1e-3)


def test_residual_tells_geodesics_from_other_curves():
    start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    line = geodesic_residual(SPHERE, CubicBSpline.straight(start, end))
    solver = PreconditionedSolver(tolerance=1e-9)
    geodesic = geodesic_residual(SPHERE, solve_geodesic(SPHERE, start, end, solver).curve)
    assert line.shape == (1, 33)
    assert line.max() > 0.5
    assert geodesic.max() < 0.02
    # a circle of latitude of colatitude a turns by 2 pi cos(a) on its way around; half of it here
    angle, colatitude = torch.linspace(0, math.pi, 400), math.pi / 3
    radius = math.sin(colatitude) / (1 - math.cos(colatitude))
    circle = spline_through_points(radius * torch.stack([angle.cos(), angle.sin()], dim=1))
    inner = torch.linspace(0.1, 0.9, 9)
    residual = geodesic_residual(SPHERE, circle, inner)
    expected = torch.full((1, 9), math.pi * math.cos(colatitude))
    torch.testing.assert_close(residual, expected, rtol=1e-3, atol=0)


def test_second_derivative_of_splines():
    curve = CubicBSpline(torch.randn(3, 9, 2), clamped_knots(9))
    t = torch.cat([torch.linspace(0, 1, 50), torch.tensor([0.125, 0.5])])
    for k in range(3):
        reference = BSpline(curve.knots.numpy(), curve.control_points[k].numpy(), 3).derivative(2)
        torch.testing.assert_close(
            second_derivative(curve, t)[k], torch.from_numpy(reference(t.numpy()))
        )


def allowed(errors, states, index):
    return errors.norm(dim=1) / 1e-9


def test_integrator_on_the_harmonic_oscillator():
    """Each trajectory has its own steps; those at other tolerances do not change it."""

    def slopes(y, index):
        return torch.stack([y[:, 1], -y[:, 0] * speed[index] ** 2], dim=1)

    speed = torch.tensor([1.0, 12.0])
    times = torch.linspace(0, 2, 9)
    result = integrate(slopes, torch.tensor([[1.0, 0.0]] * 2), times, allowed)
    expected = (speed[:, None] * times).cos()
    assert (result.states[:, :, 0] - expected).abs().max() < 1e-5
    assert (result.states[0, :, 0] - expected[0]).abs().max() < 1e-8
    assert result.steps[1] > 6 * result.steps[0]


@pytest.mark.parametrize(("tolerance", "steps"), [(1e-3, 2), (1e-2, 2), (1e-9, 4)])
def test_first_steps_are_what_the_tolerance_allows(tolerance, steps):
    """Steps grow fivefold at most, so that a timid first one costs several."""
    plane = PullbackMetric(lambda z: 2.0 * z)
    way = shoot(plane, torch.zeros(2), torch.ones(2), integrator=RungeKutta(tolerance))
    assert way.steps.tolist() == [steps]
    torch.testing.assert_close(way.points[0, 0], torch.ones(2))


def test_integrator_meets_jumps():
    # y' = 1 before t = 1/3 and 3 after it
    def slopes(y, index):
        return torch.stack(
            [torch.where(y[:, 1] < 1 / 3, 1.0, 3.0), torch.ones_like(y[:, 1])], dim=1
        )

    result = integrate(slopes, torch.zeros(1, 2), torch.ones(1), allowed)
    assert result.states[0, 0, 0] == pytest.approx(1 / 3 + 2, abs=1e-7)
    assert result.steps[0] < 60


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: exp_map(SPHERE, z, z.float()), TypeError, "`v`.*dtype"),
        (lambda z: exp_map(SPHERE, z, torch.ones(2, 3)), ValueError, "`v`.*broadcasts"),
        (lambda z: exp_map(SPHERE, z, z * torch.nan), ValueError, "`v`.*finite"),
        (lambda z: exp_map(HALF_PLANE, z.repeat(1, 2), z), ValueError, "`z`"),
        (lambda z: shoot(SPHERE, z, z, torch.tensor([1.0, 0.5])), ValueError, "`t`.*ascending"),
        (lambda z: shoot(SPHERE, z, z, torch.tensor([-1.0])), ValueError, "`t`"),
        (lambda z: shoot(SPHERE, z, z, integrator="euler"), TypeError, "`integrator`"),
        (lambda z: shoot(HALF_PLANE, z, z, integrator=DiscreteGeodesic()), ValueError, "immersion"),
        (lambda _: RungeKutta(-1.0), ValueError, "`tolerance`"),
        (lambda _: DiscreteGeodesic(0), ValueError, "`n_steps`"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.full((4, 2), 0.5))


@pytest.mark.cuda
def test_cuda_equals_cpu():
    z, v = torch.rand(5, 2) - 0.5, 0.5 * torch.randn(5, 2)
    for integrator in (RungeKutta(1e-8), DiscreteGeodesic(32)):
        here = shoot(SPHERE, z, v, integrator=integrator)
        there = shoot(SPHERE, z.cuda(), v.cuda(), integrator=integrator)
        torch.testing.assert_close(there.points.cpu(), here.points, rtol=1e-7, atol=1e-8)
