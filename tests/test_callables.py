"""Modules behind callables are found wherever code can name them; changing buffers are refused."""

import functools
import types

import pytest
import torch
from torch import nn

from geolatent import PullbackMetric
from geolatent.callables import modules_behind
from geolatent.checks import Buffers

CODES = torch.ones(3, 2)
NETWORK = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
LISTED = [NETWORK]
LIBRARY = types.ModuleType("library")
LIBRARY.network = NETWORK
TRAINED = nn.Dropout(0.5)  # named by no decoder


def by_global(z):
    return NETWORK(z)


def by_nested_function(z):
    return (lambda codes: by_global(codes))(z)


def by_default(z, network=NETWORK):
    return network(z)


def by_keyword_default(z, *, network=NETWORK):
    return network(z)


def by_container(z):
    return LISTED[0](z)


def by_library(z):
    return LIBRARY.network(z)


class Holder:
    """Decodes with one network of two."""

    def __init__(self, network, encoder=None):
        self.parts = {"networks": (network,)}
        self.encoder = encoder

    def decode(self, z):
        return self.run(z)

    def run(self, z):
        return self.parts["networks"][0](z)

    def encode(self, images):
        return self.encoder(images)


class Called(Holder):
    def __call__(self, z):
        return self.run(z)

    @property
    def network(self):
        return self.parts["networks"][0]


class Hidden(nn.Module):
    """Keeps its network where `named_modules` does not look."""

    def __init__(self, network):
        super().__init__()
        self.networks = [network]

    def forward(self, z):
        return self.networks[0](z)


def wrapped():
    @functools.wraps(by_global)
    def outer(z):
        return outer.__wrapped__(z)

    return outer


HOLDER = Holder(NETWORK)
CALLED = Called(NETWORK)
WAYS = {
    "global": lambda: by_global,
    "function that a function calls": lambda: by_nested_function,
    "default": lambda: by_default,
    "keyword default": lambda: by_keyword_default,
    "container": lambda: by_container,
    "module of Python": lambda: by_library,
    "object's method": lambda: HOLDER.decode,
    "method of a global object": lambda: lambda z: HOLDER.decode(z),
    "object that is called": lambda: CALLED,
    "property": lambda: lambda z: CALLED.network(z),
    "list in a module": lambda: Hidden(NETWORK),
    "partial of a holder": lambda: functools.partial(Holder.decode, HOLDER),
    "list in a partial": lambda: functools.partial(lambda parts, z: parts[0](z), [NETWORK]),
    "wrapped function": wrapped,
    "no_grad": lambda: torch.no_grad()(by_global),
}


@pytest.mark.parametrize("way", WAYS)
def test_training_mode_is_found(way):
    function = WAYS[way]()
    NETWORK.eval()
    assert NETWORK in list(modules_behind(function))
    PullbackMetric(function)
    NETWORK.train()
    before = NETWORK[1].num_batches_tracked.clone()
    with pytest.raises(ValueError, match=r"call `decoder.eval\(\)` first.*BatchNorm1d"):
        PullbackMetric(function)
    assert torch.equal(NETWORK[1].num_batches_tracked, before)


def test_what_is_not_named_does_not_count():
    encoder = nn.Dropout(0.5).train()
    network = nn.Linear(2, 3)
    holder = Holder(network, encoder)
    for function in (holder.decode, lambda z: holder.decode(z)):
        assert list(modules_behind(function)) == [network]


def shadow(z):
    return z.TRAINED  # an attribute, not the global of that name


def test_attributes_are_no_globals():
    assert list(modules_behind(shadow)) == []


def test_cycles_end():
    a, b = [], {}
    a.append(b)
    b["a"] = a
    holder = Holder(NETWORK)
    holder.run = functools.partial(holder.decode)
    holder.parts["again"] = holder.parts
    for function in (lambda _: a, holder.decode, functools.partial(lambda *_: 0, a, b)):
        list(modules_behind(function))


def test_many_objects_are_looked_at_once():
    chain = [NETWORK]
    for _ in range(200):
        chain = [chain, chain]
    assert NETWORK in list(modules_behind(lambda _: chain))


class Average(nn.Module):
    """Counts its calls in a buffer, whatever its mode."""

    def __init__(self, replace):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.replace = replace
        self.register_buffer("mean", torch.tensor([torch.nan, 1.0]))
        self.register_buffer("constant", torch.full((2,), torch.nan))

    def forward(self, z):
        if self.replace:
            self.mean = 0.9 * self.mean + 0.1 * z.detach().mean(0)
        else:
            self.mean.lerp_(z.detach().mean(0), 0.1)
        return self.linear(z)


@pytest.mark.parametrize("replace", [False, True])
def test_buffers_that_change_are_refused_and_restored(replace):
    model = nn.Sequential(Average(replace)).eval()
    kept = model[0].mean
    with pytest.raises(ValueError, match=r"buffers stay as they are.*Average `0.mean`"):
        PullbackMetric(lambda z: model(z)).tensor(3 * CODES)
    assert model[0].mean is kept
    assert torch.equal(kept[1], torch.tensor(1.0))


def test_buffers_that_stay_are_left_alone():
    buffers = Buffers.behind(Average(False))
    assert len(buffers.kept) == 2
    assert buffers.restore() == []
