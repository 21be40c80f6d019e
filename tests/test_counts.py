"""Decoder rows that a solve spends: the counts are deterministic, unlike its time.

Bounds lie a little above the present counts. A change that lowers a count should lower its bound.
"""

import warnings

import pytest
import torch
from torch import nn

import geolatent as gl
from geolatent.lab.demo import digit_pairs

pytestmark = pytest.mark.usefixtures("float64")

# equivalents for one pair, measuring lengths included, on average over the pairs of a test
EMBEDDED = 2850
EMBEDDED_LATTICE = 4400
RANDOM_DECODERS = {2: 340, 3: 570, 4: 790, 8: 940, 16: 1150, 32: 1510, 64: 3000}
# rows that checking the input may take in one call, whatever the number of pairs
CHECK_ROWS = 8
# and in the first call with a metric, which also compares derivatives with values, and, backwards
FIRST_CHECK_ROWS = 20
FIRST_CHECK_BACKWARD_ROWS = 2


def random_decoder(d, width=128, out=256, seed=0):
    """Return a smooth random decoder, whose straight lines are some per cent too long."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, second, last = nn.Linear(d, width), nn.Linear(width, width), nn.Linear(width, out)
        nn.init.normal_(first.weight, std=d**-0.5)
        nn.init.normal_(second.weight, std=1.5 * width**-0.5)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last).requires_grad_(False).eval()


def random_pairs(n, d, seed=0):
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed))


class Counting(nn.Module):
    """Counts the rows of plain forward calls and those whose output gets a gradient."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder
        self.forward_rows = self.backward_rows = 0

    def forward(self, z):
        output = self.decoder(z)
        self.forward_rows += len(z)
        if output.requires_grad:
            output.register_hook(self.count_backward)
        return output

    def count_backward(self, gradient):
        self.backward_rows += len(gradient)


def mean_equivalents(decoder, d, n=6, solver=None):
    start, end = random_pairs(n, d)
    solution = gl.solve_geodesic(gl.PullbackMetric(decoder), start, end, solver)
    assert (solution.length <= solution.straight_length).all()
    return solution.evaluations.equivalents.mean().item()


def test_embedded_model():
    pairs = digit_pairs(12, seed=0)
    solution = gl.solve_geodesic(pairs.metric, pairs.start, pairs.end)
    assert solution.evaluations.equivalents.mean() < EMBEDDED
    assert (solution.evaluations.backward == 0).all()  # Gauss-Newton: columns only


def test_embedded_model_with_a_lattice():
    pairs = digit_pairs(12, seed=0)
    low, high = pairs.bounds
    graph = gl.LatentGraph.lattice(pairs.metric, low, high, resolution=128)
    assert graph.forward_rows == 128**2
    solution = gl.solve_geodesic(pairs.metric, pairs.start, pairs.end, initial=graph)
    assert solution.evaluations.equivalents.mean() < EMBEDDED_LATTICE


@pytest.mark.parametrize(("d", "bound"), sorted(RANDOM_DECODERS.items()))
def test_random_decoders(d, bound):
    assert mean_equivalents(random_decoder(d), d) < bound


def test_counts_grow_at_most_linearly_with_the_latent_dimension():
    # above the few dimensions in which Gauss-Newton pays
    cost = {d: mean_equivalents(random_decoder(d), d) for d in (4, 8, 16, 32, 64)}
    for d in (4, 8, 16):
        assert cost[4 * d] <= 4.0 * cost[d]
    assert cost[64] <= 5.0 * cost[4]


@pytest.mark.parametrize("d", [2, 3, 8])
def test_counts_do_not_depend_on_the_size_of_the_output(d):
    decoder = random_decoder(d)
    start, end = random_pairs(4, d)

    def padded(z):
        return nn.functional.pad(decoder(z), (0, 500))

    def fourfold(z):  # four copies, each halved: the same metric, to the last bit
        return 0.5 * decoder(z).repeat(1, 4)

    expected = gl.solve_geodesic(gl.PullbackMetric(decoder), start, end)
    for same in (padded, fourfold):
        solution = gl.solve_geodesic(gl.PullbackMetric(same), start, end)
        assert torch.allclose(solution.length, expected.length, rtol=1e-9)
        # rounding may tip a decision of one pair
        change = solution.evaluations.equivalents / expected.evaluations.equivalents - 1
        assert change.abs().median() == 0
        assert change.abs().max() < 0.1


def test_counts_are_deterministic_and_those_of_the_pair():
    d = 8
    metric = gl.PullbackMetric(random_decoder(d))
    start, end = random_pairs(5, d)
    first = gl.solve_geodesic(metric, start, end).evaluations
    again = gl.solve_geodesic(metric, start, end).evaluations
    alone = [gl.solve_geodesic(metric, a, b).evaluations for a, b in zip(start, end, strict=True)]
    for name in ("forward", "backward", "jvp"):
        counts = getattr(first, name)
        assert torch.equal(counts, getattr(again, name))
        single = torch.cat([getattr(one, name) for one in alone])
        assert ((counts - single).abs() <= 0.1 * counts.clamp_min(1)).all()


@pytest.mark.parametrize("n", [1, 3])
def test_counts_are_what_the_decoder_sees(n):
    d = 6
    counting = Counting(random_decoder(d))
    start, end = random_pairs(n, d)
    solver = gl.FirstOrderSolver(steps=5, drops=1, max_control_points=6)
    metric = gl.PullbackMetric(counting)
    for rows, backward_rows in (
        (FIRST_CHECK_ROWS, FIRST_CHECK_BACKWARD_ROWS),
        (CHECK_ROWS, 0),
    ):
        counting.forward_rows = counting.backward_rows = 0
        evaluations = gl.solve_geodesic(metric, start, end, solver).evaluations
        uncounted = counting.backward_rows - int(evaluations.backward.sum())
        assert 0 <= uncounted <= backward_rows
        assert int(evaluations.jvp.sum()) == 0
        # the certificate's eight tensors a pair count as d rows each; the decoder sees one, batched
        unseen = 8 * (d - 1) * n
        uncounted = counting.forward_rows + unseen - int(evaluations.forward.sum())
        assert 0 <= uncounted <= rows


def test_a_converged_pair_costs_nothing_more():
    d = 4
    decoder = random_decoder(d)
    start, end = random_pairs(2, d)
    near = start[0] + 1e-3 * (end[0] - start[0])
    metric = gl.PullbackMetric(decoder)
    easy = gl.solve_geodesic(metric, start[0], near).evaluations.equivalents
    starts, ends = torch.stack([start[0], start[1]]), torch.stack([near, end[1]])
    both = gl.solve_geodesic(metric, starts, ends).evaluations.equivalents
    assert both[0] == easy
    assert both[0] < 0.5 * both[1]


def test_row_budget_does_not_change_the_counts():
    d = 5
    metric = gl.PullbackMetric(random_decoder(d))
    start, end = random_pairs(4, d)
    whole = gl.solve_geodesic(metric, start, end)
    chunked = gl.solve_geodesic(metric, start, end, max_rows=7)
    assert torch.allclose(whole.length, chunked.length, rtol=1e-8)
    change = chunked.evaluations.equivalents / whole.evaluations.equivalents - 1
    assert change.abs().median() == 0
    assert change.abs().max() < 0.1


@pytest.mark.slow
def test_ten_thousand_pairs_in_bounded_memory():
    resource = pytest.importorskip("resource")
    d = 2
    decoder = random_decoder(d, width=16, out=8)
    start, end = random_pairs(10_000, d)
    metric = gl.PullbackMetric(decoder)
    gl.solve_geodesic(metric, start[:500], end[:500])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution = gl.solve_geodesic(metric, start, end)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB on Linux
    assert (solution.length <= solution.straight_length).all()
    assert grown < 4 * 2**20
