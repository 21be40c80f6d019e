"""Comparing paths: places at equal output length, nearness to samples, paired differences."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import geolatent as gl
from geolatent.cli import main
from geolatent.curves import CubicBSpline
from geolatent.lab.compare_paths import (
    QUALITIES,
    ComparePaths,
    PathMeasure,
    _difference,
)
from geolatent.lab.config import FeatureOptions
from geolatent.lab.data import DataOptions
from geolatent.lab.interpolate import norms_along
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import confidences
from geolatent.lab.pairs import draw_different
from geolatent.lab.paths import equal_output_times, frames_along, polyline_at
from geolatent.lab.realism import KernelDensity, Neighbourhoods
from geolatent.lab.run import load_run
from geolatent.lab.summary import paired_comparison

DOUBLE = {"dtype": torch.float64}


def run(*words):
    return main([str(word) for word in words])


class Uneven(nn.Module):
    """A decoder from one dimension to images of two pixels, (z^2, z^2): of uneven speed."""

    latent_dim = 1

    def decode(self, z):
        return z.square()[:, None, None, :].expand(-1, 1, 2, 1)


class Flat(nn.Module):
    """A decoder that leaves codes of two dimensions as they are: its metric is flat."""

    latent_dim = 2

    def __init__(self):
        super().__init__()
        # whose dtype codes take
        self.one = nn.Parameter(torch.ones((), **DOUBLE))

    def decode(self, z):
        return z[:, None, None, :]


# places at equal steps of output length


def test_equal_steps_of_output_length_have_a_closed_form():
    # |F(t)| grows as t^p along a ray: a k-th part of the length is at t = k^(1/p)
    t = torch.linspace(0.0, 1.0, 4001, **DOUBLE)
    ray = torch.tensor([3.0, -4.0], **DOUBLE)
    outputs = torch.stack([t[:, None] ** p * ray for p in (1.0, 2.0, 3.0)])
    found = equal_output_times(outputs, 5)
    parts = torch.linspace(0.0, 1.0, 5, **DOUBLE)
    for times, p in zip(found, (1.0, 2.0, 3.0), strict=True):
        torch.testing.assert_close(times, parts ** (1.0 / p), atol=3e-4, rtol=0)


def test_steps_of_an_uneven_decoder_are_even():
    model = LatentModel(Uneven())
    line = CubicBSpline.straight(torch.zeros(1, 1, **DOUBLE), torch.ones(1, 1, **DOUBLE))
    for path in (line, line(torch.linspace(0.0, 1.0, 5, **DOUBLE))):
        frames = frames_along(model, path, 9, n_dense=1025)
        steps = frames.images.flatten(2).double().diff(dim=1).norm(dim=2)
        np.testing.assert_allclose(steps, math.sqrt(2.0) / 8, rtol=1e-3)
        expected = torch.linspace(0.0, 1.0, 9, **DOUBLE).sqrt()
        torch.testing.assert_close(frames.codes[0, :, 0].double(), expected, atol=1e-3, rtol=0)


def test_paths_without_a_length_go_in_equal_steps():
    outputs = torch.zeros(2, 7, 3, **DOUBLE)
    outputs[1, 3] = torch.nan
    even = torch.linspace(0.0, 1.0, 4, **DOUBLE).expand(2, -1)
    torch.testing.assert_close(equal_output_times(outputs, 4), even)


def test_a_path_that_rests_passes_over_the_rest():
    outputs = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0], **DOUBLE)[None, :, None]
    times = equal_output_times(outputs, 5)
    torch.testing.assert_close(
        polyline_at(outputs, times)[0, :, 0], torch.linspace(0.0, 2.0, 5, **DOUBLE)
    )


@pytest.mark.parametrize(("shape", "n", "name"), [((2, 3), 4, "outputs"), ((1, 5, 2), 1, "n")])
def test_wrong_places_are_told(shape, n, name):
    with pytest.raises(ValueError, match=f"`{name}` should be"):
        equal_output_times(torch.zeros(shape), n)


# nearness to samples


def test_nearness_is_that_of_a_double_loop():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(41, 2, 3, generator=generator, **DOUBLE)
    points = 1.5 * torch.randn(17, 2, 3, generator=generator, **DOUBLE)
    k = 3
    radii = []
    for i, sample in enumerate(samples):
        others = sorted(float((sample - o).norm()) for j, o in enumerate(samples) if j != i)
        radii.append(others[k - 1])
    median = float(np.median(radii))
    found = Neighbourhoods(samples, k).nearness(points)
    for number, point in enumerate(points):
        distances = [float((point - sample).norm()) for sample in samples]
        realism = max(r / d for r, d in zip(radii, distances, strict=True) if r <= median)
        inside = any(d <= r for r, d in zip(radii, distances, strict=True))
        assert float(found.distance[number]) == pytest.approx(min(distances))
        assert float(found.realism[number]) == pytest.approx(realism)
        assert bool(found.inside[number]) == inside
    assert 0 < int(found.inside.sum()) < len(points)


def test_nearness_of_what_is_not_finite_is_not_known():
    found = Neighbourhoods(torch.arange(5.0)[:, None], 1).nearness(torch.tensor([[torch.nan], [2]]))
    assert found.distance.isnan().tolist() == [True, False]
    assert found.realism.isnan().tolist() == [True, False]
    assert found.inside.tolist() == [False, True]
    # a sample is as real as can be
    assert float(found.realism[1]) == math.inf


def test_neighbourhoods_need_more_samples_than_neighbours():
    with pytest.raises(ValueError, match="`samples` should be more than k = 3"):
        Neighbourhoods(torch.zeros(3, 2))


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_kernel_density_is_scipys_with_independent_components(dim):
    generator = np.random.default_rng(0)
    # far from the origin, where squares of differences could lose digits
    codes = 100.0 + generator.standard_normal((60, dim)) * np.arange(1, dim + 1)
    points = 100.0 + 2.0 * generator.standard_normal((9, dim))
    bandwidth = 60 ** (-1 / (dim + 4)) * codes.std(0, ddof=1)
    expected = [
        stats.norm.pdf(point, loc=codes, scale=bandwidth).prod(1).mean() for point in points
    ]
    density = KernelDensity(torch.from_numpy(codes))
    np.testing.assert_allclose(density(torch.from_numpy(points)), np.log(expected), rtol=1e-9)
    if dim == 1:  # scipy scales the covariance, which is the same in one dimension
        other = stats.gaussian_kde(codes[:, 0], "scott").logpdf(points[:, 0])
        np.testing.assert_allclose(density(torch.from_numpy(points)), other, rtol=1e-9)


def test_a_density_needs_codes_that_differ():
    with pytest.raises(ValueError, match="`codes` should be two codes or more"):
        KernelDensity(torch.ones(4, 2))


def test_confidence_is_the_largest_softmax():
    scores = np.random.default_rng(0).standard_normal((7, 4))
    expected = (np.exp(scores) / np.exp(scores).sum(1, keepdims=True)).max(1)
    for given in (scores, np.log(np.exp(scores) / np.exp(scores).sum(1, keepdims=True))):
        np.testing.assert_allclose(confidences(torch.from_numpy(given)), expected)


# what is measured of paths


def test_measures_of_a_flat_decoder_have_closed_forms():
    start, end = torch.tensor([[-1.0, 0.0]], **DOUBLE), torch.tensor([[1.0, 0.0]], **DOUBLE)
    samples = torch.tensor([[0.0, 3.0], [0.0, -3.0], [40.0, 0.0]], **DOUBLE)
    scores = nn.Linear(2, 2, bias=False, **DOUBLE)
    with torch.no_grad():
        scores.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    measure = PathMeasure(
        LatentModel(Flat()),
        gl.PullbackMetric(lambda z: z),
        samples,
        Neighbourhoods(samples, 1),
        nn.Sequential(nn.Flatten(), scores),
        n_points=101,
    )

    curve = CubicBSpline.straight(start, end)
    found = {name: float(value) for name, value in measure(curve).items()}
    x = np.linspace(-1.0, 1.0, 101)
    density = stats.norm.logpdf(x) + stats.norm.logpdf(0.0)
    chi = stats.chi(2)
    away = np.sqrt(x**2 + 9.0)
    sure = 1.0 / (1.0 + np.exp(-2.0 * np.abs(x)))
    expected = {
        "output_length": 2.0,
        "output_energy": 2.0,
        "log_density": density.mean(),
        "lowest_log_density": density.min(),
        "norm_deviation": (np.abs(np.abs(x) - chi.mean()) / chi.std()).mean(),
        "code_distance": away.mean(),
        "image_distance": away.mean(),
        # radii 6, 6 and the distance of the third, which is above the median
        "realism": (6.0 / away).mean(),
        "precision": 1.0,
        "confidence": sure.mean(),
        "lowest_confidence": 0.5,
        "crossings": 1.0,
    }
    assert found == pytest.approx(expected, rel=1e-6)


def test_paired_differences_are_those_of_a_paired_t_test():
    generator = np.random.default_rng(0)
    common = 10.0 * generator.standard_normal(50)
    values = {
        "a": common + 0.1 * generator.standard_normal(50),
        "b": common - 0.5 + 0.1 * generator.standard_normal(50),
        "c": common - 0.5 + 0.1 * generator.standard_normal(50),
    }
    values["b"][3] = np.nan
    known = np.arange(50) != 3
    found = paired_comparison(values, lower=True)
    assert found["n"] == 49
    test = stats.ttest_rel(values["b"][known], values["a"][known])
    path = found["paths"]["b"]
    assert path["difference"] / path["error"] == pytest.approx(test.statistic)
    # the means' own errors, 1.4, hide what the differences show
    assert set(found["best"]) == {"b", "c"}
    assert paired_comparison(values, lower=False)["best"] == ["a"]


def test_ties_are_told():
    same = np.arange(4.0)
    assert paired_comparison({"a": same, "b": same}, lower=True)["best"] == ["a", "b"]
    one = paired_comparison({"a": [1.0], "b": [2.0]}, lower=True)
    assert one["best"] == ["a", "b"]
    assert math.isnan(one["paths"]["b"]["error"])
    none = paired_comparison({"a": [np.nan], "b": [2.0]}, lower=True)
    assert (none["n"], none["best"]) == (0, [])


@pytest.mark.parametrize(
    ("difference", "error", "text"),
    [
        (-0.000741, 0.00052, "-7.4e-04\n±0.00052"),
        (2190.0, 640.0, "+2.2e+03\n±6.4e+02"),
        (-0.409, 0.114, "-0.409\n±0.11"),
        (0.5, math.nan, "+0.5\n±-"),
        (math.nan, math.nan, "-"),
    ],
)
def test_differences_are_short(difference, error, text):
    assert _difference({"difference": difference, "error": error}) == text


# pairs of different classes


@pytest.mark.parametrize("sizes", [(5, 5), (10, 6, 4), (2, 2, 2, 2), (10, 4, 6)])
def test_pairs_are_of_different_classes(sizes):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    n = int(labels.numel()) // 2
    for seed in range(5):
        rows = draw_different(n, labels, seed)
        assert rows.unique().numel() == 2 * n
        assert bool((labels[rows[:, 0]] != labels[rows[:, 1]]).all())


def test_too_many_of_a_class_are_told():
    with pytest.raises(ValueError, match="at most half of those drawn are of one class"):
        draw_different(3, torch.tensor([0, 0, 0, 0, 1, 2]))


# the command

FEW = ["--n_pairs=3", "--batch_size=2", "--n_points=9", "--n_reference=60", "--n_images=3"]
FEW += ["--solver.max_control_points=7", "--length_tolerance=0.01", "--initial.kind=straight"]


def test_compare_paths(capsys, tmp_path):
    out = tmp_path / "run"
    assert run("compare_paths", "--out", out, *FEW) == 0
    printed = capsys.readouterr().out
    assert "Means over the pairs" in printed
    read = load_run(out)
    names = ["mean", "gaussian", "features", "density"]
    assert list(dict.fromkeys(read.pairs.column("metric"))) == names
    assert (read.pairs.column("start_label") != read.pairs.column("end_label")).all()
    compared = read.summary["comparison"]
    assert set(QUALITIES) - set(compared) == {"sphere_distance"}
    for key, entry in compared.items():
        assert list(entry["paths"]) == ["straight", "slerp", *names]
        assert entry["n"] == 3
        assert entry["paths"]["straight"]["difference"] == 0.0
        assert set(entry["best"]) <= set(entry["paths"]), key
    # a geodesic of the mean is no longer than the straight line, by the same measure
    mean = read.pairs.where("metric", "mean")
    assert (mean.column("output_length") <= 1.01 * mean.column("straight_output_length")).all()
    assert read.arrays["frames"].shape == (3, 6, 3, 1, 8, 8)
    figures = sorted((out / "figures").iterdir())
    assert [path.stem for path in figures] == ["comparison", "strips"]
    for path in figures:
        path.unlink()
    assert run("plot", out) == 0
    assert sorted((out / "figures").iterdir()) == figures
    assert run("report", tmp_path) == 0


def test_compare_paths_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, capsys):
    from geolatent.lab.pairs import Shards

    words = ["compare_paths", "--out", tmp_path / "run", "--geodesics=mean", *FEW]
    solve = Shards.solve

    def interrupted(self, number, callback=None):
        if number == 1:
            raise KeyboardInterrupt
        return solve(self, number, callback)

    monkeypatch.setattr(Shards, "solve", interrupted)
    assert run(*words) == 130
    monkeypatch.undo()
    assert run(*words) == 0
    assert "going on: 1 of 2 shards" in capsys.readouterr().out
    assert load_run(tmp_path / "run").pairs.column("pair").tolist() == [0, 1, 2]


def test_metrics_that_a_model_lacks_are_left_out(tmp_path):
    words = ["--geodesics=features,mean", "--features.kind=none", "--pairs=prior", *FEW]
    assert run("compare_paths", "--out", tmp_path / "run", *words) == 0
    read = load_run(tmp_path / "run")
    assert set(read.pairs.column("metric")) == {"mean"}
    compared = read.summary["comparison"]
    of_features = {"feature_realism", "feature_precision"}
    assert set(QUALITIES) - set(compared) == {*of_features, "sphere_distance"}


@pytest.mark.parametrize(("n_reference", "each"), [(None, 673), (50, 50), (10_000, 673)])
def test_paths_are_not_judged_by_the_images_of_the_density(n_reference, each, tmp_path):
    yardstick, density = ComparePaths(out=tmp_path, n_reference=n_reference).halves
    assert len(yardstick) == len(density) == each
    assert not set(yardstick.tolist()) & set(density.tolist())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"geodesics": ()}, "geodesics"),
        ({"geodesics": ("mean", "mean")}, "geodesics"),
        ({"n_points": 1}, "n_points"),
        ({"n_reference": 4}, "n_reference"),
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"density_scale": 0.0}, "density_scale"),
        ({"density_strength": -1.0}, "density_strength"),
    ],
)
def test_options_out_of_range_are_told(options, name, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}` should be"):
        ComparePaths(out=tmp_path / "run", **options).check()


def test_geodesics_that_the_model_cannot_have_are_told(tmp_path):
    work = ComparePaths(
        out=tmp_path / "run",
        geodesics=("features",),
        features=FeatureOptions(),
        data=DataOptions(split="test"),
    )
    with pytest.raises(ValueError, match="`geodesics` should be names of metrics that the model"):
        _ = work.metrics


# models without an encoder, and priors on spheres


@pytest.fixture(scope="module", params=["normal", "sphere"])
def dcgan(request, tmp_path_factory):
    """Return the options of a DCGAN of small images, as it is before its training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = gl.models.DCGAN(5, (2, 4), (1, 8, 8), activation="elu", prior=request.param)
        with torch.no_grad():
            # images of codes that differ
            for parameter in model.generator.parameters():
                parameter.mul_(10.0)
    path = gl.models.save_model(model, tmp_path_factory.mktemp("dcgan") / "model")
    return request.param, [f"--model.checkpoint={path}", "--pairs=prior"]


def test_paths_of_a_model_without_an_encoder(dcgan, tmp_path, capsys):
    prior, words = dcgan
    few = ["--n_pairs=2", *FEW[1:], "--geodesics=mean,gaussian,features,sphere"]
    assert run("compare_paths", "--out", tmp_path / "run", *words, *few) == 0
    read = load_run(tmp_path / "run")
    assert set(read.pairs.column("metric")) == {"mean", "features", "sphere"}
    lacking = {"code_distance"}
    of_densities = {"log_density", "lowest_log_density", "norm_deviation"}
    lacking |= {"sphere_distance"} if prior == "normal" else of_densities
    assert set(QUALITIES) - set(read.summary["comparison"]) == lacking
    start = read.pairs.column("start")
    if prior == "sphere":
        np.testing.assert_allclose(np.linalg.norm(start, axis=1), 5**0.5, rtol=1e-6)
        off = read.summary["comparison"]["sphere_distance"]["paths"]
        # the great circle's spline leaves the sphere by little, the chord by much
        assert off["slerp"]["mean"] < 0.05 * off["straight"]["mean"]
        assert off["sphere"]["mean"] < 0.2 * off["straight"]["mean"]
    assert ("log density" in capsys.readouterr().out) == (prior == "normal")


def test_interpolation_without_an_encoder(dcgan, tmp_path, capsys):
    prior, words = dcgan
    out = tmp_path / "run"
    few = ["--n_pairs=2", *FEW[4:], "--n_shown=1", "--animate=true", "--animation.n_frames=3"]
    assert run("interpolate", "--out", out, *words, *few) == 0
    read = load_run(out)
    group = read.summary["groups"]["geodesic"]
    assert read.summary["prior"] == prior
    assert "data_distance" not in group
    assert ("log_density" in group) == (prior == "normal")
    assert ("log density" in capsys.readouterr().out) == (prior == "normal")
    assert {"strips.png", "norms.png"} <= {path.name for path in (out / "figures").iterdir()}
    norms = norms_along(read)
    assert list(norms) == ["straight", "slerp", "geodesic"]
    if prior == "sphere":
        torch.testing.assert_close(norms["slerp"].norms, torch.full((2, 101), 5**0.5).double())
        assert norms["straight"].standard_deviation == 0.0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("interpolate", ["--pairs=encoded"]),
        ("compare_paths", ["--pairs=encoded"]),
        ("improvement", ["--pairs=encoded"]),
        ("walk", []),
        ("traverse", []),
        ("distances", []),
        ("cluster", []),
        ("interpolate", ["--pairs=prior", "--initial.kind=codes"]),
    ],
)
def test_what_needs_an_encoder_says_so(dcgan, command, words, tmp_path, capsys):
    checkpoint = dcgan[1][0]
    assert run(command, checkpoint, "--out", tmp_path / "run", *words) != 0
    said = capsys.readouterr().err
    assert "DCGAN" in said
    assert "encode" in said
    assert "Traceback" not in said
