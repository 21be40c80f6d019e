"""Solves in several threads of one process, and beside other users of torch's forward mode."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import geolatent as gl
from geolatent.lab.demo import digit_pairs
from geolatent.metrics import forward_mode
from geolatent.metrics.information import DivergenceMetric
from geolatent.metrics.map import Map

pytestmark = pytest.mark.usefixtures("float64")

THREADS = 4
RANDOM_PAIRS, EMBEDDED_PAIRS = 20, 4
# the solver's own tolerance is 1e-4; rounding that depends on a buffer's place in memory may tip
# a decision, whose other outcome is as good to a part of that. Wrong tangents cost per cents
RTOL = 1e-6


def smooth(z):
    return torch.stack([z[:, 0].sin(), z[:, 1].cos(), z.prod(1)], dim=1)


def embedded():
    pairs = digit_pairs(EMBEDDED_PAIRS, seed=1)
    decode = pairs.metric.decoder.function
    return pairs.start, pairs.end, pairs.metric, lambda: gl.GaussianPullbackMetric(decode)


def random():
    decoder = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 16)).eval()
    nn.init.normal_(decoder[0].weight)
    start, end = torch.randn(2, RANDOM_PAIRS, 2)
    return start, end, gl.PullbackMetric(decoder), lambda: gl.PullbackMetric(decoder)


def lengths_in_threads(metric_of, start, end):
    def solve(k):
        return gl.solve_geodesic(metric_of(), start[k], end[k]).length.item()

    with ThreadPoolExecutor(THREADS) as pool:
        return torch.tensor(list(pool.map(solve, range(len(start)))))


@pytest.mark.parametrize("case", [random, embedded])
def test_solves_in_threads_are_those_alone(case):
    start, end, shared, make = case()
    alone = [gl.solve_geodesic(make(), a, b).length.item() for a, b in zip(start, end, strict=True)]
    for metric_of in (lambda: shared, make):
        lengths = lengths_in_threads(metric_of, start, end)
        torch.testing.assert_close(lengths, torch.tensor(alone), rtol=RTOL, atol=0)
    assert shared.immersion._forward_mode
    assert shared.immersion._batched_columns


def test_forward_rules_are_loaded_in_threads_without_a_trace_in_the_filters(monkeypatch):
    monkeypatch.setattr(forward_mode, "_rules_loaded", False)
    before = list(warnings.filters)
    z = torch.randn(2, 2)
    with ThreadPoolExecutor(THREADS) as pool:
        products = list(pool.map(lambda _: Map(smooth, "decoder").jvp(z, z)[1], range(16)))
    for product in products:
        torch.testing.assert_close(product, products[0])
    assert warnings.filters == before


class ForeignLevel:
    """Holds a level of forward mode open in another thread, as one that knows no lock would."""

    def __enter__(self):
        self.opened, self.done = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.hold)
        self.thread.start()
        assert self.opened.wait(10)

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def hold(self):
        def wait(z):
            self.opened.set()
            self.done.wait(10)
            return z

        torch.func.jvp(wait, (torch.ones(1),), (torch.ones(1),))


class ForeignDual(ForeignLevel):
    def hold(self):
        with forward_ad.dual_level():
            self.opened.set()
            self.done.wait(10)


@pytest.mark.parametrize("level", [ForeignLevel, ForeignDual])
def test_another_threads_level_is_gone_around_and_forgotten(level):
    """Right products by another way for as long, and no warning: it says nothing of the map."""
    map_ = Map(smooth, "decoder")
    metric = DivergenceMetric(smooth, lambda x, y: (x - y).square().sum(1))
    z, v = torch.randn(3, 2), torch.randn(3, 2)
    expected = map_.jvp(z, v)[1], map_.columns(z)[1], metric.quadratic(z, v)
    with level():
        during = map_.jvp(z, v)[1], map_.columns(z)[1], metric.quadratic(z, v)
        point = z.clone().requires_grad_()
        torch.autograd.gradcheck(metric.quadratic, (point, v.clone().requires_grad_()))
    torch.testing.assert_close(during, expected, rtol=1e-12, atol=1e-12)
    assert map_._forward_mode
    assert map_._batched_columns


def test_a_level_that_opens_within_is_noticed(monkeypatch):
    """Between the first look and the own level another thread's may open."""
    looks = iter([False, True])
    monkeypatch.setattr(forward_mode, "taken", lambda: next(looks))
    with pytest.raises(forward_mode.TakenError, match="another thread"):
        forward_mode.jvp(smooth, torch.ones(1, 2), torch.ones(1, 2))


def test_own_transforms_are_no_other_threads():
    assert not forward_mode.taken()
    map_ = Map(smooth, "decoder")
    z, v = torch.randn(3, 2), torch.randn(3, 2)

    def product(point):
        assert not forward_mode.taken()
        return map_.jvp(point, v)[1]

    second = torch.func.jvp(product, (z,), (v,))[1]
    expected = torch.autograd.functional.jvp(lambda p: map_.jvp(p, v)[1], z, v)[1]
    torch.testing.assert_close(second, expected)
    batched = torch.func.vmap(lambda w: map_.jvp(z, w)[1])(torch.stack([v, 2 * v]))
    torch.testing.assert_close(batched[1], 2 * map_.jvp(z, v)[1])
