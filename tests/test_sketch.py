"""Many dimensions: nothing of the size d x d is formed."""

import pytest
import torch
from problems import sphere, sphere_distance
from torch import nn

from geolatent import (
    FirstOrderSolver,
    PreconditionedSolver,
    PullbackMetric,
    Status,
    TensorMetric,
    solve_geodesic,
)
from geolatent.metrics.rows import Rows
from geolatent.solvers.certificate import SKETCH_RANK, TENSOR_DIM, MetricSketch

pytestmark = pytest.mark.usefixtures("float64")


def in_ball(n, d, seed=0):
    """Codes between the poles of the sphere, at half its width on average."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) / d**0.5


def smooth_decoder(d, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(d, width), nn.Linear(width, width), nn.Linear(width, 2 * width)]
    for layer in layers:
        with torch.no_grad():
            scale = layer.in_features**-0.5
            layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.zero_()
    return nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])


def test_a_sketch_of_low_rank_is_exact_beside_its_ridge():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 40, 5, generator=generator)
    matrix = root @ root.mT
    vectors = torch.linalg.qr(torch.randn(40, SKETCH_RANK, generator=generator))[0]
    vectors = vectors.expand(2, -1, -1)
    sketch = MetricSketch.of(vectors, matrix @ vectors)
    ridge = sketch.ridge[:, None, None] * torch.eye(40)
    whole = ridge + (sketch.basis * sketch.weights[:, None]) @ sketch.basis.mT
    large = torch.linalg.eigh(matrix)
    # eigenvalues above the ridge are kept, with their vectors; those below become it
    values = torch.maximum(large.eigenvalues, sketch.ridge[:, None])
    expected = large.eigenvectors @ (values[:, :, None] * large.eigenvectors.mT)
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=1e-6)
    assert (sketch.ridge > 0).all()


def test_a_sketch_of_what_is_not_finite_or_nothing_can_be_used():
    vectors = torch.linalg.qr(torch.randn(40, SKETCH_RANK))[0].expand(2, -1, -1)
    products = torch.zeros(2, 40, SKETCH_RANK)
    products[1] = torch.nan
    sketch = MetricSketch.of(vectors, products)
    assert sketch.ridge.isfinite().all()
    assert (sketch.ridge > 0).all()


@pytest.mark.parametrize("d", [80, 1024])
def test_great_circles_in_many_dimensions(d, monkeypatch):
    def refuse(*_):
        raise AssertionError("a metric tensor was formed")

    monkeypatch.setattr(Rows, "tensor", refuse)
    start, end = in_ball(6, d), in_ball(6, d, seed=1)
    solution = solve_geodesic(PullbackMetric(sphere), start, end)
    exact = sphere_distance(start, end)
    assert (solution.status == Status.CONVERGED).all()
    assert (solution.length / exact - 1.0).abs().max() < 2e-4
    assert (solution.straight_length > 1.01 * exact).all()
    assert solution.evaluations.equivalents.mean() < 1000


def test_rows_do_not_grow_with_the_dimension():
    rows, excess = [], []
    for d in (96, 768):
        decoder = smooth_decoder(d)
        start, end = 2.0 * torch.randn(2, 6, d)
        metric = PullbackMetric(decoder)
        solver = PreconditionedSolver(tolerance=1e-3)
        solution = solve_geodesic(metric, start, end, solver, length_tolerance=1e-5)
        further = solve_geodesic(metric, start, end, length_tolerance=1e-5)
        rows.append(solution.evaluations.equivalents.mean())
        excess.append(solution.length / further.length - 1.0)
        # an honest prediction: within a factor of what a longer solve gains
        left = 1.0 - further.length / solution.length
        assert (left < 3.0 * solution.predicted_improvement + 1e-4).all()
    assert rows[1] < 1.5 * rows[0]
    assert torch.cat(excess).max() < 5e-3


def test_dimensions_on_both_sides_of_the_threshold_give_the_same():
    decoder = smooth_decoder(TENSOR_DIM)
    pairs = 0.7 * torch.randn(2, 5, TENSOR_DIM, generator=torch.Generator().manual_seed(4))
    few = solve_geodesic(PullbackMetric(decoder), *pairs)
    # one dimension more, which the decoder does not see
    seen = PullbackMetric(lambda z: decoder(z[:, :TENSOR_DIM]))
    more = solve_geodesic(seen, *nn.functional.pad(pairs, (0, 1), value=1.0))
    assert (few.status == Status.CONVERGED).all()
    assert (more.status == Status.CONVERGED).all()
    torch.testing.assert_close(more.length, few.length, rtol=3e-4, atol=0)


def test_other_metrics_and_solvers_in_many_dimensions():
    d = 80
    scale = torch.linspace(1.0, 4.0, d)
    metric = TensorMetric(lambda z: torch.diag(scale).expand(len(z), d, d), dim=d)
    start, end = torch.randn(2, 3, d)
    solution = solve_geodesic(metric, start, end)  # flat: lines are shortest
    exact = ((end - start).square() * scale).sum(1).sqrt()
    torch.testing.assert_close(solution.length, exact, rtol=1e-4, atol=0)
    metric, start, end = PullbackMetric(sphere), in_ball(3, d), in_ball(3, d, seed=1)
    recipe = FirstOrderSolver(learning_rate=0.03, steps=60, drops=2)
    solution = solve_geodesic(metric, start, end, recipe)
    exact = sphere_distance(start, end)
    assert (solution.length / exact - 1.0).max() < 2e-3
    assert solution.predicted_improvement.isfinite().all()
