"""Rows that metrics see at once stay within what the memory holds, with chords or without."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import geolatent as gl
from geolatent import (
    CubicBSpline,
    EnsembleMetric,
    GaussianPullbackMetric,
    PullbackMetric,
    TensorMetric,
    path_length,
    solve_geodesic,
)
from geolatent.metrics.composite import ConformalMetric, LocalVarianceMetric
from geolatent.metrics.information import (
    BernoulliPullbackMetric,
    DivergenceMetric,
    GaussianFisherRaoMetric,
)
from geolatent.metrics.map import Map
from geolatent.metrics.pullback import gram
from geolatent.metrics.rows import RowBudget, Rows

pytestmark = pytest.mark.usefixtures("float64")

WIDE = 784
MEMORY = 2**25


class Gaussian(nn.Module):
    """Mean and standard deviation, (n, 2) -> two times (n, 784); notes the rows of each call."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, WIDE)
        self.rows = []

    def forward(self, z):
        self.rows.append(len(z))
        mean = self.linear(z).sin()
        return mean, 1.0 + 0.1 * mean.square()


def flat(gaussian):
    return lambda z: gaussian(z)[0]


FEATURES = nn.Linear(WIDE, 100).double()
SUMMED = nn.Linear(WIDE, 3).double()
# each metric of a Gaussian decoder, and the numbers that one row makes of it at least
METRICS = {
    "pull-back": (lambda g: PullbackMetric(flat(g)), WIDE),
    "few features of many outputs": (lambda g: PullbackMetric(flat(g), SUMMED), WIDE),
    "Gaussian": (GaussianPullbackMetric, 2 * WIDE),
    "Gaussian, exact": (lambda g: GaussianPullbackMetric(g, SUMMED), 2 * WIDE),
    "Gaussian, Hutchinson": (lambda g: GaussianPullbackMetric(g, FEATURES, n_probes=2), 2 * WIDE),
    "Fisher-Rao": (GaussianFisherRaoMetric, 2 * WIDE),
    "Bernoulli": (lambda g: BernoulliPullbackMetric(flat(g), output="logits"), WIDE),
    "ensemble": (lambda g: EnsembleMetric([GaussianFisherRaoMetric(g)] * 2), 4 * WIDE),
    "conformal": (
        lambda g: ConformalMetric(GaussianFisherRaoMetric(g), lambda z: 1.0 + z.square().sum(1)),
        2 * WIDE,
    ),
    "divergence": (
        lambda g: DivergenceMetric(flat(g), lambda x, y: (x - y).square().sum(1)),
        2 * WIDE,
    ),
}


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(RowBudget, "memory", staticmethod(lambda _: MEMORY))


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("case", METRICS)
def test_width_is_what_a_row_makes(case, checked):
    make, least = METRICS[case]
    metric, z = make(Gaussian()), torch.randn(1, 2)
    if checked:
        metric.check("z", z)
    assert least <= metric.row_width(z) <= 1.2 * least


@pytest.mark.parametrize("case", METRICS)
def test_rows_at_once_fit_into_memory(case, little_memory):
    make, least = METRICS[case]
    gaussian = Gaussian()
    metric = make(gaussian)
    ends = torch.randn(2, 40, 2)
    metric.check("z", ends[0, :1])
    gaussian.rows.clear()
    path_length(metric, CubicBSpline.straight(*ends), tolerance=1e-1)
    limit = MEMORY // (60 * least * 8)
    # columns and repeated rows are those of as many codes
    assert sum(gaussian.rows) > 4 * limit
    assert max(gaussian.rows) <= limit


def test_local_variance_counts_its_points(little_memory, monkeypatch):
    seen = []
    diagonal = LocalVarianceMetric._diagonal

    def noted(self, z):
        seen.append(len(z))
        return diagonal(self, z)

    monkeypatch.setattr(LocalVarianceMetric, "_diagonal", noted)
    metric = LocalVarianceMetric(torch.randn(2000, 2), bandwidth=0.5)
    start, end = torch.randn(2, 5, 2)
    solve_geodesic(metric, start, end)
    limit = max(16, MEMORY // (60 * 4000 * 8))
    assert sum(seen) > 20 * limit
    assert max(seen) <= limit


def test_local_variance_of_many_codes_and_points(monkeypatch):
    data, codes = torch.randn(50, 2), torch.randn(30, 2)
    expected = LocalVarianceMetric(data, bandwidth=0.5).tensor(codes)
    seen = []
    inverse_variances = LocalVarianceMetric._inverse_variances

    def noted(self, z):
        seen.append(len(z))
        return inverse_variances(self, z)

    monkeypatch.setattr(LocalVarianceMetric, "_inverse_variances", noted)
    monkeypatch.setattr("geolatent.metrics.composite._DIFFERENCES", 700)
    metric = LocalVarianceMetric(data, bandwidth=0.5)
    torch.testing.assert_close(metric.tensor(codes), expected)
    assert seen == [7, 7, 7, 7, 2]


def test_tensor_fields_count_their_entries():
    metric = TensorMetric(lambda z: torch.eye(5).expand(len(z), 5, 5), dim=5)
    assert metric.row_width(torch.zeros(1, 5)) == 25


HIDDEN, LATENT = 500, 64


class Layers(TorchDispatchMode):
    """Note the most rows that the hidden layer has at once, tangents among them."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::mm" and found.shape[-1] == HIDDEN:
            self.rows = max(self.rows, found.numel() // HIDDEN)
        return found


def many_dimensions():
    network = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 3))
    return network.requires_grad_(False)


@pytest.mark.parametrize("batched", [True, False])
def test_directions_are_taken_in_parts(batched):
    metric = PullbackMetric(many_dimensions())
    z = torch.randn(2, LATENT)
    expected = metric.tensor(z)
    metric.decoder._batched_columns = batched
    for limit, at_once in ((8, 8), (64, 64), (1000, 128)):
        rows = Rows.of(metric.limited(limit), z)
        for evaluate in (rows.tensor, rows.columns):
            with Layers() as seen:
                found = evaluate(z)
            assert seen.rows == at_once
        torch.testing.assert_close(gram(found[1].transpose(0, 1)), expected)
    with Layers() as seen:
        torch.testing.assert_close(metric.limited(16).tensor(z), expected)
    assert seen.rows == 16


def test_parts_of_directions_count_as_before():
    metric = PullbackMetric(many_dimensions())
    z = torch.randn(3, 1, LATENT)
    metric.check("z", z[0])
    for limit in (1, 8, 10_000):
        rows = Rows.of(metric.limited(limit), z[0]).counting(3)
        rows.columns(z)
        assert (rows.spent.forward == LATENT).all()


ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory"),
    "CPU": RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
}


@pytest.fixture(params=ERRORS)
def short_memory(request, monkeypatch):
    """Let memory be short for more than so many rows; return where the number stands."""
    limit, columns = [20], Map._columns_by_vmap

    def limited(self, z, directions):
        if len(z) * len(directions) > limit[0]:
            raise ERRORS[request.param]
        return columns(self, z, directions)

    monkeypatch.setattr(Map, "_columns_by_vmap", limited)
    return limit


@pytest.mark.filterwarnings("ignore:out of memory")
def test_directions_are_halved_where_memory_is_short(short_memory):
    metric, z = PullbackMetric(many_dimensions()), torch.randn(2, LATENT)
    rows = Rows.of(metric, z)
    with pytest.warns(UserWarning, match="out of memory; going on with at most 16 decoder rows"):
        found = rows.tensor(z)
    torch.testing.assert_close(found, metric.limited(16).tensor(z))
    short_memory[0] = 0
    with (
        pytest.warns(UserWarning, match="at most 1 decoder rows"),
        pytest.raises(RuntimeError, match="memory"),
    ):
        rows.tensor(z)
    assert metric.decoder.batched_columns
    assert metric.decoder.forward_mode


def test_short_memory_is_not_taken_for_a_missing_rule(short_memory):
    metric, z = PullbackMetric(many_dimensions()), torch.randn(2, LATENT)
    with pytest.raises(RuntimeError, match="memory"):
        metric.tensor(z)
    assert metric.decoder.batched_columns
    assert metric.decoder.forward_mode


class Heavy(torch.nn.Module):
    """A decoder of two outputs that makes a thousand times as many numbers on the way."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(2, 1000), torch.nn.Linear(1000, 2)

    def forward(self, z):
        return self.last(torch.tanh(self.first(z)).square())


def test_what_decoders_make_on_the_way_is_seen():
    metric = gl.PullbackMetric(Heavy().requires_grad_(False))
    z = torch.zeros(3, 2)
    metric.check("z", z)
    # of the linear map, tanh and the square 1000 each
    assert 24_000 <= metric.row_bytes() <= 24_100
    plain = gl.PullbackMetric(lambda z: torch.cat([z, z], dim=1))
    plain.check("z", z)
    assert plain.row_bytes() < 100


@pytest.mark.parametrize(
    "make",
    [
        gl.PullbackMetric,
        lambda f: gl.EnsembleMetric([gl.PullbackMetric(f)]),
        lambda f: gl.ConformalMetric(gl.PullbackMetric(f), lambda z: 1.0 + z.square().sum(1)),
        lambda f: gl.GaussianPullbackMetric(lambda z: (f(z), f(z).exp())),
        lambda f: gl.GaussianFisherRaoMetric(lambda z: (f(z), f(z).exp())),
        lambda f: gl.PullbackMetric(f, lambda x: x.sin()),
        lambda f: gl.DivergenceMetric(f, lambda x, y: (x - y).square().sum(1)),
    ],
)
def test_heavy_decoders_get_fewer_rows(make, monkeypatch):
    monkeypatch.setattr(RowBudget, "memory", staticmethod(lambda _: 2**20))
    metric = make(Heavy().requires_grad_(False))
    z = torch.zeros(1, 2)
    metric.check("z", z)
    rows = RowBudget.of(metric, z).rows
    assert 1 <= rows <= 2**20 // (4 * 24_000)


def test_nodes_of_a_pair_that_do_not_fit_are_taken_in_parts(monkeypatch):
    seen = []
    heavy = Heavy().double().requires_grad_(False)

    def watched(z):
        if torch.is_grad_enabled():
            seen.append(len(z))
        return heavy(z)

    metric = gl.PullbackMetric(watched)
    start, end = torch.zeros(2, 2).double(), torch.ones(2, 2).double()
    expected = gl.solve_geodesic(metric, start, end)
    monkeypatch.setattr(RowBudget, "memory", staticmethod(lambda _: 5 * 4 * 24_100))
    seen.clear()
    found = gl.solve_geodesic(metric, start, end)
    torch.testing.assert_close(found.length, expected.length, rtol=1e-6, atol=0.0)
    assert max(seen) <= 8
    rows = Rows.of(metric, start).counting(2)
    z = torch.randn(2, 20, 2, dtype=torch.float64)

    def pull(outputs):
        return outputs.square().sum((1, 2)), 2.0 * outputs

    value, slope = rows.pulled(z, pull)
    assert rows.spent.forward.tolist() == [40, 40]
    whole = Rows.of(metric.limited(10_000), start).counting(2)
    for part, other in zip((value, slope), whole.pulled(z, pull), strict=True):
        torch.testing.assert_close(part, other)
    assert whole.spent.forward.tolist() == [20, 20]


class Short(nn.Module):
    """A decoder for whose rows the memory is too short above a number; notes the rows of calls."""

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error = most, error
        self.rows = []

    def forward(self, z):
        self.rows.append(len(z))
        if len(z) > self.most:
            raise self.error
        return torch.cat([z.sin(), 0.5 * (z * z)], dim=1)


@pytest.mark.parametrize("d", [2, 5])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_rows_are_halved_until_memory_holds_them_and_that_is_remembered(d, error):
    start, end = torch.randn(2, 12, d)
    expected = solve_geodesic(PullbackMetric(Short(10**9, error)), start, end)
    short = Short(40, error)
    metric = PullbackMetric(short)
    with pytest.warns(UserWarning, match="out of memory; going on with at most"):
        solution = solve_geodesic(metric, start, end)
    torch.testing.assert_close(solution.length, expected.length, rtol=1e-8, atol=0)
    assert torch.equal(solution.status, expected.status)
    failed = [rows for rows in short.rows if rows > short.most]
    assert 1 < len(failed) <= 4
    # the next call begins where this one came to
    short.rows.clear()
    again = solve_geodesic(metric, start, end)
    assert max(short.rows) <= short.most
    torch.testing.assert_close(again.length, expected.length, rtol=1e-8, atol=0)
    assert metric.rows_in_memory <= short.most
    assert copy.deepcopy(metric).rows_in_memory is None  # another process may have more


def test_memory_too_short_for_one_row_is_an_error():
    short, codes = Short(40, torch.OutOfMemoryError("CUDA out of memory")), torch.randn(32, 2)
    metric = PullbackMetric(short)
    metric.check("z", codes[:1])
    rows = Rows.of(metric, codes)
    short.most = 0
    short.rows.clear()
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(torch.OutOfMemoryError),
    ):
        rows.outputs(codes)
    assert short.rows == [32, 16, 8, 4, 2, 1]


def test_what_torch_holds_without_use_is_free(monkeypatch):
    class There:
        is_cuda, device = True, "cuda:0"

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**34))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**30)
    assert RowBudget.memory(There()) == (2**30 + 2 * 2**30) // 4
