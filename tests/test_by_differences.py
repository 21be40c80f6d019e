"""Functions that torch cannot differentiate, by central differences of their values."""

import math

import numpy as np
import pytest
import torch
from derivatives import LegacySine
from torch import nn
from torch.autograd.function import once_differentiable

import geolatent as gl
from geolatent.metrics.information import DivergenceMetric

pytestmark = pytest.mark.usefixtures("float64")


def sphere(z):
    """Return the inverse stereographic projection."""
    square = z.square().sum(1, keepdim=True)
    return torch.cat([2 * z, square - 1], dim=1) / (square + 1)


def numpy_sphere(z):
    x = z.numpy()
    square = np.square(x).sum(1, keepdims=True)
    return torch.from_numpy(np.concatenate([2 * x, square - 1], axis=1) / (square + 1))


def wide(x):
    return torch.cat([x, x.sin()], dim=1)


METRICS = {
    "pull-back": lambda f: gl.PullbackMetric(f),
    "with features": lambda f: gl.PullbackMetric(f, wide),
    "as features": lambda f: gl.PullbackMetric(lambda z: 2.0 * z, f),
    "Gaussian": lambda f: gl.GaussianPullbackMetric(lambda z: (f(z), f(z) + 2.0)),
    "divergence": lambda f: DivergenceMetric(f, lambda x, y: (x - y).square().sum(1)),
}


@pytest.mark.parametrize("case", METRICS)
def test_metrics_and_their_gradients(case):
    metric, exact = (METRICS[case](f) for f in (gl.by_differences(numpy_sphere), sphere))
    z, v = torch.randn(2, 4, 2)
    torch.testing.assert_close(metric.tensor(z), exact.tensor(z), rtol=0, atol=1e-8)
    torch.testing.assert_close(metric.quadratic(z, v), exact.quadratic(z, v), rtol=0, atol=1e-8)
    gradients = []
    for each in (metric, exact):
        point, vector = z.clone().requires_grad_(), v.clone().requires_grad_()
        square = each.quadratic(point, vector).sum()
        gradients.append(torch.autograd.grad(square, (point, vector)))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-3)


def test_geodesic_of_a_numpy_decoder():
    metric = gl.PullbackMetric(gl.by_differences(numpy_sphere))
    start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    solver = gl.PreconditionedSolver(tolerance=1e-6)
    solution = gl.solve_geodesic(metric, start, end, solver, length_tolerance=1e-7)
    assert solution.statuses == [gl.Status.CONVERGED]
    assert abs(float(solution.length) - math.pi / 2) < 1e-5
    assert metric.decoder.forward_mode
    assert metric.decoder.batched_columns


def test_geodesic_equation_of_a_numpy_decoder():
    z, v = torch.tensor([[0.5, 0.2]]), torch.tensor([[0.3, -0.4]])
    found = gl.exp_map(gl.PullbackMetric(gl.by_differences(numpy_sphere)), z, v)
    torch.testing.assert_close(
        found, gl.exp_map(gl.PullbackMetric(sphere), z, v), rtol=0, atol=1e-5
    )


class Once(LegacySine):
    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].cos()


def test_what_is_refused_works_when_wrapped():
    weight = torch.randn(2, 5)
    refused = lambda z: Once.apply(z @ weight)  # noqa: E731
    z = torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"geolatent\.by_differences"):
        gl.PullbackMetric(refused).tensor(z)
    expected = gl.PullbackMetric(lambda z: torch.sin(z @ weight)).tensor(z)
    found = gl.PullbackMetric(gl.by_differences(refused)).tensor(z)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_tuples_and_images():
    def heads(z):
        return sphere(z).reshape(-1, 1, 3), 2.0 + sphere(z).reshape(-1, 1, 3)

    z = torch.randn(3, 2)
    found = gl.GaussianPullbackMetric(gl.by_differences(heads)).tensor(z)
    expected = gl.GaussianPullbackMetric(heads).tensor(z)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_step_and_single_precision():
    z = torch.randn(3, 2, dtype=torch.float32)
    exact = gl.PullbackMetric(sphere).tensor(z)
    found = gl.PullbackMetric(gl.by_differences(sphere)).tensor(z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=3e-3)
    # the mean slope over the step of a square is exact
    square = gl.by_differences(lambda z: z.square(), step=0.5)
    ones = torch.ones(1, 1)
    torch.testing.assert_close(gl.PullbackMetric(square).tensor(ones), 4.0 * ones[None])


def test_what_cannot_be_differentiated_by_differences():
    z = torch.randn(2, 2)
    with pytest.raises(ValueError, match="evaluation mode"):
        gl.by_differences(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    norm = nn.BatchNorm1d(2).eval()
    metric = gl.PullbackMetric(gl.by_differences(norm))
    norm.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        metric.tensor(z)
    with pytest.raises(TypeError, match=r"function.*from_numpy"):
        gl.by_differences(lambda z: z.numpy())(z)
    with pytest.raises(ValueError, match="levels on a line"):
        gl.PullbackMetric(gl.by_differences(lambda z: (255 * z).round())).tensor(z)
    with pytest.raises(ValueError, match="by differences already"):
        gl.by_differences(gl.by_differences(sphere))
    for step in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`step`"):
            gl.by_differences(sphere, step=step)
    with pytest.raises(TypeError, match="callable"):
        gl.by_differences(3)
