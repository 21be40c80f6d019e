"""Metrics of decoders made of others' layers equal naive ones, whichever way they are had."""

import pytest
import torch
from derivatives import jacobian
from modules import CASES, DIM, decoder

import geolatent as gl
from geolatent.metrics.kernels import DIFFERENTIABLE_KERNELS
from geolatent.metrics.map import Map
from geolatent.metrics.ways import double_backward

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:.*second derivative"),
    pytest.mark.filterwarnings("ignore:.*has no forward-mode derivative"),
    pytest.mark.filterwarnings("ignore:Default grid_sample"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor"),
]

# operations without forward mode: LSTM in float32 alone, grid_sample unless something else has made
# torch load the rules of its decompositions
REVERSE_ONLY = {"cdist", "grid_sample", "LSTM"}


def codes(dtype):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 2, DIM, generator=generator, dtype=torch.float64).to(dtype)


def naive(function, z):
    """Return J of each row, (n, D, d), by reverse mode."""
    with DIFFERENTIABLE_KERNELS:
        return torch.stack([jacobian(function, row) for row in z])


def test_there_are_many_cases():
    assert len(CASES) == len(set(CASES)) >= 90


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_metric_equals_the_naive_one(case, dtype):
    function = decoder(case, dtype)
    z, v, _ = codes(dtype)
    full = naive(function, z).detach()
    expected = full.mT @ full
    tolerance = (1e-4 if dtype == torch.float32 else 1e-9) * float(expected.abs().max())
    metric = gl.PullbackMetric(function)
    torch.testing.assert_close(metric.tensor(z).detach(), expected, rtol=0, atol=tolerance)
    squares = torch.einsum("ni,nij,nj->n", v, expected, v)
    torch.testing.assert_close(
        metric.quadratic(z, v).detach(), squares, rtol=0, atol=10 * tolerance
    )
    assert metric.decoder.forward_mode or case in REVERSE_ONLY


@pytest.mark.parametrize("case", CASES)
def test_the_three_ways_agree(case):
    function = decoder(case, torch.float64).requires_grad_(False)
    z, v, _ = codes(torch.float64)
    full = naive(function, z)
    product = torch.einsum("nDi,ni->nD", full, v)
    size = float(full.abs().max())
    found = double_backward(Map(function, "decoder"), z, v)[1]
    torch.testing.assert_close(found, product, rtol=0, atol=1e-9 * size)
    differences = Map(gl.by_differences(function), "decoder")
    torch.testing.assert_close(differences.jvp(z, v)[1], product, rtol=0, atol=1e-6 * size)
    columns = differences.columns(z)[1].permute(1, 2, 0)
    torch.testing.assert_close(columns, full, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_quadratic_form(case):
    function = decoder(case, torch.float64).requires_grad_(False)
    z, v, direction = codes(torch.float64)
    step = 1e-5

    def squares(z, v):
        return torch.einsum("nDi,ni->nD", naive(function, z), v).square().sum(1)

    above, below = squares(z + step * direction, v), squares(z - step * direction, v)
    expected = (above - below) / (2.0 * step)
    metric = gl.PullbackMetric(function)
    size = max(float(expected.abs().max()), float(squares(z, v).max()))
    point, vector = z.clone().requires_grad_(), v.clone().requires_grad_()
    of_square = metric.quadratic(point, vector)
    of_tensor = torch.einsum("ni,nij,nj->n", v, metric.tensor(point), v)
    for value in (of_square, of_tensor):
        (gradient,) = torch.autograd.grad(
            value.sum(), point, retain_graph=True, materialize_grads=True
        )
        along = (gradient * direction).sum(1)
        torch.testing.assert_close(along, expected, rtol=0, atol=1e-6 * size)
