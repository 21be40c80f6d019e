"""Decoders in half precision, under codes of their own type or of another, and under autocast."""

import copy

import pytest
import torch
from torch import nn

import geolatent as gl
from geolatent.solution import Status

ENDS = (Status.CONVERGED, Status.STRAIGHT_IS_SHORTEST, Status.STALLED, Status.ROUGH)
# of lengths, in units of the type's rounding: sums of rounded squares
ROUNDINGS = 4.0


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Linear(4, 40)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, z):
        x = self.tokens(z).unflatten(1, (5, 8))
        return self.attention(x, x, x, need_weights=False)[0].flatten(1)


def steep():
    network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    return nn.Sequential(network, nn.Linear(32, 50))


def own_type(network, dtype):
    low = network.to(dtype)
    return low, dtype


def rounded_output(network, dtype):
    low = network.to(dtype)
    return lambda z: low(z.to(dtype)), torch.float32


def hidden(network, dtype):
    low = network.to(dtype)
    return lambda z: low(z.to(dtype)).float(), torch.float32


def autocast(network, dtype):
    def decode(z):
        with torch.autocast("cpu", dtype=dtype):
            return network(z)

    return decode, torch.float32


def autocast_hidden(network, dtype):
    decode, codes = autocast(network, dtype)
    return lambda z: decode(z).float(), codes


def seeded(linear):
    nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(0))
    return linear


WAYS = [own_type, rounded_output, hidden, autocast, autocast_hidden]


@pytest.fixture(scope="module", params=[steep, Attending])
def known(request):
    """Return a decoder in float32, codes, and lengths in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = request.param().eval().requires_grad_(False)
    codes = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    metric = gl.PullbackMetric(copy.deepcopy(network).double())
    return network, codes, metric.tensor(codes[0]), gl.solve_geodesic(metric, *codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS)
def test_solves_within_the_types_rounding(known, way, dtype):
    network, codes, tensors, expected = known
    decoder, codes_dtype = way(copy.deepcopy(network), dtype)
    metric = gl.PullbackMetric(decoder)
    eps = torch.finfo(dtype).eps
    found = metric.tensor(codes[0].to(codes_dtype))
    assert found.dtype == codes_dtype
    size = float(tensors.abs().max())
    torch.testing.assert_close(found.double(), tensors, rtol=0, atol=ROUNDINGS * eps * size)
    solver = gl.PreconditionedSolver(tolerance=2.0 * eps)
    solution = gl.solve_geodesic(metric, *codes.to(codes_dtype), solver)
    assert set(solution.statuses) <= set(ENDS)
    ratio = solution.length.double() / expected.length
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=ROUNDINGS * eps)
    assert metric.decoder.rounding(codes) == eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_mean_is_told_from_rounding(dtype):
    network = seeded(nn.Linear(4, 5, bias=False)).to(dtype)
    mixing = gl.PullbackMetric(lambda z: network((z - z.mean(0)).to(dtype)).float())
    with pytest.raises(ValueError, match="each row by itself"):
        mixing.tensor(torch.ones(1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_missing_derivative_is_told_from_rounding(dtype):
    network = seeded(nn.Linear(4, 5, bias=False)).to(dtype)
    detached = gl.PullbackMetric(lambda z: network(z.to(dtype)) + network(z.to(dtype)).detach())
    with pytest.raises(ValueError, match="difference quotients"):
        detached.tensor(torch.ones(1, 4))
