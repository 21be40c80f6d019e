"""The experiments: where pairs come from, what is measured of curves, comparisons."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from problems import sphere
from rounding import assert_same_pairs
from torch import nn

import geolatent as gl
from geolatent.curves import CubicBSpline
from geolatent.explorer.subject import Subject
from geolatent.lab.compare import Compare
from geolatent.lab.config import (
    FeatureOptions,
    InitialOptions,
    MetricOptions,
    ModelOptions,
)
from geolatent.lab.data import DataOptions
from geolatent.lab.experiment import as_option
from geolatent.lab.improvement import Improvement
from geolatent.lab.interpolate import Interpolate
from geolatent.lab.landscape import decode_plane, measure_grid, measure_plane
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import (
    alignment,
    alignment_with,
    class_counts,
    classes_along,
    correlation_matrices,
    data_distance,
    measure_along,
    measure_slerp,
    prior_densities,
)
from geolatent.lab.pairs import (
    Case,
    Pairs,
    Shards,
    draw_images,
    draw_prior,
    encoded_pairs,
    prior_pairs,
    read_pairs,
    worst_case_pairs,
)
from geolatent.lab.sample import Sample, png_bytes
from geolatent.lab.setup import (
    Dataset,
    make_device,
    make_features,
    make_initial,
    make_model,
)
from geolatent.lab.solved import SolvedPairs
from geolatent.lab.summary import statistics, summarise
from geolatent.models import RBFPrecision, save_model

COARSE = gl.PreconditionedSolver(max_control_points=11)


@pytest.fixture(scope="module")
def digits():
    """Return the embedded model and some test images."""
    images, labels = gl.data.digits("test")
    return LatentModel(gl.models.digits_vae()), images, labels


def constant_metric(*diagonal):
    tensor = torch.diag(torch.tensor(diagonal))
    return gl.TensorMetric(lambda z: tensor.to(z).expand(len(z), -1, -1), dim=len(diagonal))


class Reversed(nn.Module):
    """The embedded model with its latent axes exchanged: the same images, other codes."""

    def __init__(self):
        super().__init__()
        self.inner = gl.models.digits_vae()
        self.latent_dim = 2

    def encode(self, images):
        return self.inner.encode(images)[0].flip(1)

    def decode(self, z):
        return self.inner.decode(z.flip(1))


# pairs


def test_prior_pairs_repeat_and_extend():
    pairs = prior_pairs(5, 3, seed=1)
    longer = prior_pairs(9, 3, seed=1, like=torch.empty(0, dtype=torch.float64))
    assert pairs.start.shape == pairs.end.shape == (5, 3)
    assert longer.end.dtype == torch.float64
    torch.testing.assert_close(longer.start[:5].float(), pairs.start)
    assert not torch.equal(prior_pairs(5, 3, seed=2).start, pairs.start)


def test_no_image_is_drawn_twice():
    rows = draw_images(10, 21, seed=0)
    assert rows.shape == (10, 2)
    assert rows.unique().numel() == 20
    with pytest.raises(ValueError, match="`n_pairs` should be at most 10"):
        draw_images(11, 21)


def test_encoded_pairs_are_the_model_s_codes(digits):
    model, images, labels = digits
    rows = draw_images(4, len(images), seed=2)
    pairs = encoded_pairs(model, images, labels, rows)
    with torch.no_grad():
        expected = model.module.encode(images)[0]
    torch.testing.assert_close(pairs.start, expected[rows[:, 0]])
    torch.testing.assert_close(pairs.end, expected[rows[:, 1]])
    assert torch.equal(pairs.columns["end_label"], labels[rows[:, 1]])


@pytest.mark.parametrize("dim", [2, 5])
def test_worst_case_steps_follow_algorithm_1(dim):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(7, dim, generator=generator, dtype=torch.float64)
    like = torch.empty(0, dtype=torch.float64)
    metric = gl.PullbackMetric(lambda z: torch.sin(z) @ matrix.T)
    groups = worst_case_pairs(metric, 6, dim, [0.5, 3.0], seed=4, like=like)
    assert [set(pairs.columns["step"]) for pairs in groups] == [{0.5}, {3.0}]
    for step, pairs in zip([0.5, 3.0], groups, strict=True):
        assert torch.equal(pairs.start, groups[0].start)
        direction = (pairs.end - pairs.start) / step
        torch.testing.assert_close(direction.norm(dim=1), torch.ones_like(direction[:, 0]))
        assert bool(((direction * pairs.start).sum(1) <= 0).all())
        values = torch.linalg.eigvalsh(metric.tensor(pairs.start))
        torch.testing.assert_close(metric.quadratic(pairs.start, direction), values[:, -1])


@pytest.mark.parametrize("steps", [[], [0.0], [1.0, -2.0], [math.nan]])
def test_worst_case_steps_have_to_be_positive(steps):
    with pytest.raises(ValueError, match="`steps` should be"):
        worst_case_pairs(constant_metric(1.0, 2.0), 2, 2, steps)


def test_pairs_of_a_file(tmp_path):
    start, end = torch.randn(2, 4, 3, dtype=torch.float64)
    np.savez(tmp_path / "pairs.npz", start=start.numpy(), end=end.numpy())
    np.save(tmp_path / "pairs.npy", torch.stack([start, end], dim=1).numpy())
    torch.save({"start": start, "end": end}, tmp_path / "pairs.pt")
    for ending in ("npz", "npy", "pt"):
        pairs = read_pairs(tmp_path / f"pairs.{ending}", 3)
        torch.testing.assert_close(pairs.start, start.float())
        torch.testing.assert_close(pairs.end, end.float())
    with pytest.raises(ValueError, match="`start` should be a tensor of shape"):
        read_pairs(tmp_path / "pairs.npy", 2)
    np.savez(tmp_path / "other.npz", first=start.numpy())
    with pytest.raises(ValueError, match="`codes` should be a file that holds `start` and `end`"):
        read_pairs(tmp_path / "other.npz", 3)
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="`codes` should be a readable file"):
        read_pairs(tmp_path / "broken.npz", 3)
    with pytest.raises(FileNotFoundError, match="`codes` should be an existing file"):
        read_pairs(tmp_path / "missing.npz", 3)


@pytest.mark.parametrize(
    "experiment",
    [
        Interpolate(pairs="prior", codes="pairs.npz"),
        Interpolate(codes="pairs.npz"),
        Interpolate(pairs="codes"),
        Improvement(codes="pairs.npz"),
    ],
)
def test_a_file_of_codes_is_for_codes_alone(experiment):
    with pytest.raises(ValueError, match="`codes` should be the path of a file"):
        experiment.check()


def test_named_pairs_are_the_same_pairs():
    pairs = worst_case_pairs(constant_metric(1.0, 2.0), 3, 2, [0.5])[0]
    named = pairs.named("metric", "plain")
    assert named.columns == {"metric": ["plain"] * 3, "step": [0.5] * 3}
    assert torch.equal(named.start, pairs.start)
    assert torch.equal(named.end, pairs.end)


def test_shards_hold_all_pairs_and_equal_one_shard(digits):
    model, _, _ = digits
    pairs = prior_pairs(5, 2, seed=3)
    metric = model.metric()
    shards = Shards([Case(metric, pairs)], COARSE, batch_size=2)
    assert len(shards) == 3
    assert [shards.n_rows(number) for number in range(3)] == [2, 2, 1]
    told = []
    last = shards.solve(2, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    parts = list(shards)
    # a shard does not depend on those before it
    assert_same_pairs(last, parts[2])
    joined = SolvedPairs.join(parts)
    (whole,) = Shards([Case(metric, pairs)], COARSE)
    assert joined.column("pair").tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(joined.column("length"), whole.column("length"), rtol=1e-4)


def test_cases_have_to_be_equally_long():
    metric = constant_metric(1.0, 2.0)
    cases = [Case(metric, prior_pairs(n, 2)) for n in (1, 2)]
    with pytest.raises(ValueError, match="`cases` should be one or more of equally many"):
        Shards(cases)


SOLVERS = [
    gl.PreconditionedSolver(max_control_points=35),
    gl.FirstOrderSolver.michelis_becker(),
    gl.GEORCESolver(segments=50),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_shards_are_solved_by_every_solver(solver):
    # polar coordinates: points of radius r, an angle of 1 apart, are 2 r sin(1/2) apart
    metric = gl.PullbackMetric(lambda z: z[:, :1] * torch.cat([z[:, 1:].cos(), z[:, 1:].sin()], 1))
    start = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    pairs = Pairs(start, start + torch.tensor([0.0, 1.0], dtype=torch.float64))
    (solved,) = Shards([Case(metric, pairs)], solver)
    expected = 2.0 * math.sin(0.5) * start[:, 0].numpy()
    np.testing.assert_allclose(solved.column("length"), expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["length_tolerance", "batch_size"])
def test_numbers_of_shards_are_checked(name):
    case = Case(constant_metric(1.0, 2.0), prior_pairs(1, 2))
    with pytest.raises(ValueError, match=f"`{name}` should be"):
        Shards([case], **{name: 0})


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_configs_name_solvers_by_their_class(solver):
    named = as_option(solver)
    kind = getattr(gl, named["class_path"].removeprefix("geolatent."))
    settings = named["init_args"]
    if "optimizer" in settings:
        assert settings["optimizer"] == "torch.optim.adam.Adam"
        settings = {**settings, "optimizer": torch.optim.Adam}
    assert kind(**settings) == solver


# measures


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2, math.pi / 2])
def test_alignment_is_the_squared_cosine_for_a_constant_metric(angle):
    metric = constant_metric(4.0, 1.0)
    end = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    line = gl.CubicBSpline.straight(torch.zeros_like(end), end)
    found = alignment(metric, line)
    assert found.item() == pytest.approx(math.sin(angle) ** 2, abs=1e-12)


def test_alignment_weighs_eigenvectors_by_their_condition_numbers():
    metric = constant_metric(100.0, 10.0, 1.0)
    ends = torch.eye(3, dtype=torch.float64)
    line = gl.CubicBSpline.straight(torch.zeros_like(ends), ends)
    expected = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(alignment(metric, line), expected)


def test_alignment_does_not_depend_on_speed_direction_or_units():
    metric = gl.TensorMetric(
        lambda z: torch.diag_embed(torch.stack([torch.exp(z[:, 0]), torch.exp(-z[:, 1])], dim=1)),
        dim=2,
    )
    scaled = gl.TensorMetric(lambda z: 7.0 * metric.fn(z), dim=2)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    curve = gl.CubicBSpline(points, gl.CubicBSpline.straight(points[:, 0], points[:, -1], 6).knots)
    found = alignment(metric, curve, n_points=400)
    torch.testing.assert_close(alignment(metric, curve.reverse(), n_points=400), found)
    torch.testing.assert_close(alignment(scaled, curve, n_points=400), found)
    # a straight line run through at a speed that is not constant
    line = gl.CubicBSpline.straight(points[:, 0], points[:, -1])
    t = torch.tensor([0.0, 0.1, 0.3, 1.0], dtype=torch.float64)[None, :, None]
    uneven = torch.lerp(points[:, :1], points[:, -1:], t)
    curve = gl.CubicBSpline(uneven, line.knots)
    torch.testing.assert_close(
        alignment(metric, curve, n_points=800),
        alignment(metric, line, n_points=800),
        atol=1e-4,
        rtol=1e-4,
    )


def test_alignment_is_unknown_where_the_metric_prefers_nothing():
    line = gl.CubicBSpline.straight(torch.zeros(2), torch.ones(2))
    assert math.isnan(alignment(constant_metric(3.0, 3.0), line).item())
    broken = gl.TensorMetric(
        lambda z: torch.where(z[:, :1, None] > 0.5, torch.nan, torch.eye(2)), dim=2
    )
    assert math.isnan(alignment(broken, line).item())
    nowhere = gl.CubicBSpline.straight(torch.ones(2), torch.ones(2))
    assert math.isnan(alignment(constant_metric(3.0, 1.0), nowhere).item())


def test_data_distance_of_a_line():
    codes = torch.tensor([[0.0, 3.0], [4.0, 3.0]])
    line = gl.CubicBSpline.straight(torch.zeros(2), torch.tensor([4.0, 0.0]))
    # from either side the nearest code is 3 away across and up to 2 along
    exact = 0.25 * (2 * math.sqrt(13.0) + 9.0 * math.asinh(2.0 / 3.0)) * 1.0
    assert data_distance(line, codes, n_points=512).item() == pytest.approx(exact, rel=1e-4)
    still = gl.CubicBSpline.straight(torch.zeros(2), torch.zeros(2))
    assert data_distance(still, codes).item() == pytest.approx(3.0)


def test_classes_along_a_curve(digits):
    model, _, _ = digits
    features, _ = Dataset(DataOptions()).classifier()
    pairs = prior_pairs(3, 2, seed=0)
    line = gl.CubicBSpline.straight(pairs.start, pairs.end)
    classes = classes_along(model, features, line, n_points=20)
    assert classes.shape == (3, 20)
    middle = line(torch.tensor([0.0, 1.0]))
    ends = features(model.images(middle.flatten(0, 1))).argmax(1).reshape(3, 2)
    assert torch.equal(classes[:, [0, -1]], ends)
    counts = class_counts(classes)
    assert bool((counts["crossings"] >= counts["classes"] - 1).all())


@pytest.mark.parametrize("with_slerp", [False, True])
def test_quantities_are_measured_along_every_curve(with_slerp):
    metric = constant_metric(4.0, 1.0)
    pairs = prior_pairs(3, 2, like=torch.empty(0, dtype=torch.float64))
    line = gl.CubicBSpline.straight(pairs.start, pairs.end)
    measure = measure_along([alignment_with(metric), prior_densities], with_slerp=with_slerp)
    found = measure(line, line.reverse())
    names = ["alignment", "log_density", "lowest_log_density"]
    prefixes = ["straight_", *(["slerp_"] if with_slerp else []), ""]
    assert list(found) == [prefix + name for prefix in prefixes for name in names]
    for name in names:
        torch.testing.assert_close(found[name], found[f"straight_{name}"])


def test_correlations_of_equal_and_opposite_images():
    image = torch.randn(1, 4, 4)
    images = torch.stack([image, 2.0 * image + 0.5, -image, torch.zeros_like(image)])[None]
    expected = torch.tensor(
        [[1.0, 1.0, -1.0, 0.0], [1.0, 1.0, -1.0, 0.0], [-1.0, -1.0, 1.0, 0.0], [0.0] * 4]
    )
    found = correlation_matrices(images)
    torch.testing.assert_close(found[0].float(), expected)


def test_images_without_labels_are_of_one_class(digits, tmp_path):
    _, images, labels = digits
    np.save(tmp_path / "images.npy", images[:7, 0].numpy())
    path = str(tmp_path / "images.npy")
    options = DataOptions(name="file", path=path, split="all", low=-1.0, high=1.0)
    assert Dataset(options).classes.tolist() == [0] * 7
    assert torch.equal(Dataset(DataOptions(split="test")).classes, labels)


def test_statistics_of_nothing_are_unknown():
    assert math.isnan(statistics([math.nan])["mean"])
    assert statistics([2.0])["std"] == 0.0


# experiments


def test_improvement_is_positive_and_grows_with_the_step(digits):
    model, _, _ = digits
    metric = model.metric()
    groups = worst_case_pairs(metric, 8, 2, [0.5, 2.0], like=model.like)
    measures = [measure_along([alignment_with(metric)], with_slerp=False)]
    cases = [Case(metric, pairs, measures=measures) for pairs in groups]
    solved = SolvedPairs.join(list(Shards(cases, COARSE)))
    means = []
    for step in (0.5, 2.0):
        part = solved.where("step", step)
        assert (part.column("relative_improvement") >= 0).all()
        means.append(summarise(part)["relative_improvement"]["mean"])
        # geodesics turn towards directions in which the metric is small
        assert np.nanmean(part.column("alignment")) > np.nanmean(part.column("straight_alignment"))
    assert 0 < means[0] < means[1]


def compared(models, n_pairs, **options):
    """Solve pairs in several models, and return those of each."""
    straight = InitialOptions("straight")
    experiment = Compare(models=models, n_pairs=n_pairs, solver=COARSE, initial=straight, **options)
    experiment.check()
    (batch,) = experiment.shards()
    return [batch.where("model", name) for name in models]


def test_a_model_compared_with_itself_is_equal():
    one, two = compared({"one": {}, "two": {}}, 3, threshold=1e-3)
    for name in ("relative_improvement", "length", "start", "end"):
        np.testing.assert_allclose(one.column(name), two.column(name), rtol=1e-4, atol=1e-4)
    assert one.column("comparable").all()


def test_every_model_encodes_the_pairs_itself(digits):
    model, images, _ = digits
    # `model` is what the models have in common
    common = ModelOptions(class_path=f"{Reversed.__module__}.Reversed")
    one, two = compared({"one": {"class_path": None}, "other": {}}, 3, model=common)
    np.testing.assert_array_equal(one.column("start_image"), two.column("start_image"))
    with torch.no_grad():
        expected = model.module.encode(images[one.column("start_image").tolist()])[0]
    np.testing.assert_allclose(one.column("start"), expected.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.column("start"), two.column("start")[:, ::-1], rtol=1e-6)
    # the same decoder in other coordinates: the same lengths
    np.testing.assert_allclose(one.column("length"), two.column("length"), rtol=1e-3)


def test_models_of_different_dimensions_are_comparable(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = save_model(gl.models.MLPVAE(latent_dim=3), tmp_path / "model")
    models = {"one": {}, "other": {"checkpoint": str(other)}}
    one, two = compared(models, 4, threshold=0.03)
    assert (one.curve.dim, two.curve.dim) == (2, 3)
    for part in (one, two):
        ends = part.curve.control_points[:, [0, -1]].numpy()
        np.testing.assert_allclose(ends[:, 0], part.column("start"), rtol=1e-6)
        np.testing.assert_allclose(ends[:, 1], part.column("end"), rtol=1e-6)
    gap = abs(one.column("relative_improvement") - two.column("relative_improvement"))
    np.testing.assert_allclose(one.column("difference"), gap)
    np.testing.assert_array_equal(one.column("comparable"), gap <= 0.03)


@pytest.mark.parametrize(("kind", "n_metrics"), [("none", 1), ("logistic", 2)])
def test_a_cost_counts_the_pairs_of_every_metric(kind, n_metrics):
    experiment = Interpolate(n_pairs=7, features=FeatureOptions(kind=kind))
    cost = experiment.cost(experiment.codec)
    assert cost.n_geodesics == 7 * n_metrics
    # each has a graph of its own
    assert cost.rows == 256**2 * n_metrics
    assert len(experiment.metrics) == n_metrics


def test_logistic_features_cross_no_more_classes(digits):
    model, images, labels = digits
    features, accuracy = make_features(
        FeatureOptions(kind="logistic"), Dataset(DataOptions()), model.like
    )
    assert accuracy > 0.85
    pairs = encoded_pairs(model, images, labels, draw_images(4, len(images)))
    measures = [measure_along([lambda c: class_counts(classes_along(model, features, c))])]
    metrics = (model.metric(), model.metric(None, features))
    solver = gl.PreconditionedSolver(tolerance=1e-2, max_control_points=11)
    plain, logistic = (
        SolvedPairs.join(list(Shards([Case(metric, pairs, None, measures)], solver, 1e-2)))
        for metric in metrics
    )
    assert logistic.column("crossings").mean() <= plain.column("crossings").mean()


def test_straight_slerp_and_geodesic_side_by_side():
    """In 100 dimensions straight lines leave the shell of the prior, slerp stays on it."""
    metric = gl.PullbackMetric(lambda z: 3.0 * z)
    pairs = prior_pairs(5, 100)
    measures = [measure_slerp(metric), measure_along([prior_densities])]
    (batch,) = Shards([Case(metric, pairs, None, measures)], COARSE)
    # a flat metric: the geodesic is the straight line, and slerp a longer way round
    arc = gl.slerp(pairs.start, pairs.end, torch.linspace(0, 1, 2001)).diff(dim=1).norm(dim=2)
    np.testing.assert_allclose(batch.column("slerp_length"), 3 * arc.sum(1), rtol=1e-3)
    gain = 1 - batch.column("slerp_length") / batch.column("straight_length")
    np.testing.assert_allclose(batch.column("slerp_relative_improvement"), gain, rtol=1e-3)
    assert (gain < -0.05).all()
    np.testing.assert_allclose(batch.column("straight_log_density"), batch.column("log_density"))
    # |z|^2 / 2 is near 50 on the shell, and half of it in the middle of the straight line
    assert (batch.column("slerp_lowest_log_density") < -130).all()
    assert (batch.column("straight_log_density") > batch.column("slerp_log_density") + 10).all()


def test_prior_density_along_curves():
    line = gl.CubicBSpline.straight(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0]))
    mean, lowest = prior_densities(line, n_points=2000).values()
    # the mean of (x^2 + 1) / 2 for x from 0 to 2
    assert float(mean) == pytest.approx(-math.log(2 * math.pi) - (4 / 3 + 1) / 2, abs=1e-6)
    assert float(lowest) == pytest.approx(-math.log(2 * math.pi) - 5 / 2, abs=2e-3)


def test_geodesics_of_the_gaussian_metric_stay_near_the_data():
    """Codes on a ring: the straight line runs through the hole, the geodesic around it."""
    angles = torch.linspace(0, 2 * math.pi, 201)[:-1]
    codes = 2.0 * torch.stack([angles.cos(), angles.sin()], dim=1)
    precision = RBFPrecision(codes[::5], torch.full((40,), 12.0), output_dim=4, floor=0.01)
    precision.requires_grad_(False)

    def decode(z):
        return torch.cat([z, z], dim=1), precision.std(z)

    metric = gl.GaussianPullbackMetric(decode)
    index = torch.randint(200, (40, 2), generator=torch.Generator().manual_seed(0))
    start, end = codes[index[:, 0]], codes[index[:, 1]]
    graph = gl.LatentGraph.from_codes(metric, codes, n_nodes=1000, jitter=0.2)
    solution = gl.solve_geodesic(metric, start, end, initial=graph)
    straight = data_distance(gl.CubicBSpline.straight(start, end), codes)
    assert data_distance(solution.curve, codes).mean() < 0.5 * straight.mean()


def test_landscape_of_the_sphere():
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0])
    found = measure_grid(gl.PullbackMetric(sphere), low.double(), high.double(), 5)
    square = found["first"][None] ** 2 + found["second"][:, None] ** 2
    torch.testing.assert_close(found["magnification"], 4.0 / (1.0 + square) ** 2)
    torch.testing.assert_close(found["condition"], torch.ones(5, 5, dtype=torch.float64))


def test_landscape_follows_the_axes():
    metric = gl.TensorMetric(
        lambda z: torch.diag_embed(torch.stack([1.0 + 0 * z[:, 0], z[:, 1] ** 2], dim=1)), dim=2
    )
    low, high = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 4.0])
    found = measure_grid(metric, low, high, 3)
    torch.testing.assert_close(found["stretch"][:, 0].float(), torch.tensor([2.0, 3.0, 4.0]))
    torch.testing.assert_close(found["condition"][:, 1].float(), torch.tensor([4.0, 9.0, 16.0]))
    torch.testing.assert_close(found["direction"][..., 1].abs().float(), torch.ones(3, 3))
    with pytest.raises(ValueError, match="`high` should be above `low`"):
        measure_grid(metric, high, low)
    with pytest.raises(ValueError, match=r"`low` should be a tensor of shape \(2,\)"):
        measure_grid(metric, torch.zeros(3), torch.ones(3))


def test_a_singular_or_unknown_metric_in_the_plane():
    metric = gl.TensorMetric(
        lambda z: torch.diag_embed(torch.stack([0 * z[:, 0], z[:, 1]], dim=1)), dim=2
    )
    codes = torch.tensor([[0.0, 4.0], [0.0, math.nan]])
    singular, unknown = (
        {name: value[row].tolist() for name, value in measure_plane(metric, codes).items()}
        for row in (0, 1)
    )
    precision = torch.finfo(torch.float32).eps
    assert singular["condition"] == pytest.approx(1 / precision)
    assert singular["magnification"] == pytest.approx(4.0 * precision**0.5)
    assert singular["stretch"] == 2.0
    assert all(np.isnan(value).all() for value in unknown.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_png_files_hold_the_pixels(channels):
    image = torch.linspace(-1.2, 1.2, channels * 20).reshape(channels, 4, 5)
    expected = ((image.double().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    found = np.asarray(Image.open(io.BytesIO(png_bytes(image))))
    np.testing.assert_array_equal(found.reshape(4, 5, channels), expected.permute(1, 2, 0))
    with pytest.raises(ValueError, match="`image` should be"):
        png_bytes(torch.zeros(2, 4, 5))


# objects from options


def test_a_user_s_own_decoder(tmp_path):
    from safetensors.torch import save_file

    layer = nn.Linear(3, 5)
    save_file(layer.state_dict(), tmp_path / "weights.safetensors")
    options = ModelOptions(
        checkpoint=str(tmp_path / "weights.safetensors"),
        class_path="torch.nn.Linear",
        init_args={"in_features": 3, "out_features": 5},
        decoder="forward",
        latent_dim=3,
    )
    model = make_model(options, "float64", torch.device("cpu"))
    z = torch.randn(4, 3, dtype=torch.float64)
    expected = z @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(model.images(z), expected)
    weight = layer.weight.double()
    torch.testing.assert_close(model.metric().tensor(z)[0], (weight.T @ weight).detach())
    with pytest.raises(ValueError, match="`encoder` should be the name of a method of Linear"):
        model.encode(torch.zeros(1, 1, 8, 8))


def test_what_a_model_needs():
    module = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="`latent_dim` should be given"):
        LatentModel(module, decoder="forward")
    with pytest.raises(ValueError, match="`decoder` should be the name of a method of Linear"):
        LatentModel(module, latent_dim=2)
    digits = LatentModel(gl.models.digits_vae())
    with pytest.raises(ValueError, match="`data` should be the model's images, of shape"):
        digits.encode(torch.zeros(1, 1, 28, 28))


def test_a_missing_checkpoint_tells_what_to_run(tmp_path):
    options = ModelOptions(checkpoint=str(tmp_path / "missing.safetensors"))
    with pytest.raises(FileNotFoundError, match="To train a model, run: geolatent train") as told:
        make_model(options, "float32", torch.device("cpu"))
    assert "`model.checkpoint` should be an existing file" in str(told.value)


def test_missing_data_tell_what_to_run(tmp_path):
    dataset = Dataset(DataOptions("MNIST", root=str(tmp_path / "missing")))
    with pytest.raises(FileNotFoundError, match=r"--data\.download true"):
        _ = dataset.chosen


def test_the_mean_alone_is_a_deterministic_metric(digits):
    model, _, _ = digits
    z = torch.randn(3, 2)
    plain = gl.PullbackMetric(model.module.decode_mean)
    found = model.metric(MetricOptions(uncertainty=False))
    torch.testing.assert_close(found.tensor(z), plain.tensor(z))
    gaussian = gl.GaussianPullbackMetric(model.module.decode)
    torch.testing.assert_close(model.metric().tensor(z), gaussian.tensor(z))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (FeatureOptions(kind="logistic"), (2, 10)),
        (FeatureOptions(kind="vgg", layer="features.2", weights=None), (2, 64, 8, 8)),
        (FeatureOptions(kind="module", class_path="torch.nn.Flatten"), (2, 64)),
    ],
)
def test_feature_maps(options, shape):
    like = torch.empty(0, dtype=torch.float64)
    features, _ = make_features(options, Dataset(DataOptions()), like)
    assert features(torch.zeros(2, 1, 8, 8, dtype=torch.float64)).shape == shape


@pytest.mark.parametrize("kind", ["straight", "lattice", "codes", "auto"])
def test_where_curves_start(digits, kind):
    model, _, _ = digits
    pairs = Pairs(torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, -6.0]]))
    options = InitialOptions(kind=kind, resolution=12, n_nodes=1500, n_neighbors=4)
    graph = make_initial(options, model.metric(), model, Dataset(DataOptions()), [pairs])
    if kind == "straight":
        assert graph is None
    elif kind == "codes":
        assert graph.n_nodes == 1500
    else:
        assert graph.n_nodes == 144
        assert bool((graph.codes.amax(0) >= torch.tensor([5.5, 0.5])).all())
        assert bool((graph.codes.amin(0) <= torch.tensor([-0.5, -6.5])).all())


def test_no_lattice_in_many_dimensions():
    model = LatentModel(gl.models.MLPVAE(latent_dim=4).eval().requires_grad_(False))
    pairs = prior_pairs(1, 4)
    with pytest.raises(ValueError, match=r"`initial\.kind` should be 'codes' or 'straight'"):
        make_initial(
            InitialOptions(kind="lattice"),
            model.metric(),
            model,
            Dataset(DataOptions()),
            [pairs],
        )


def test_devices():
    assert make_device("cpu") == torch.device("cpu")
    assert make_device("auto").type in ("cpu", "cuda")
    for name in ("nonsense", "cuda:99"):
        with pytest.raises(ValueError, match="`device` should be auto, cpu, or another"):
            make_device(name)


@pytest.mark.parametrize(
    ("options", "values", "name"),
    [
        (ModelOptions, {"init_args": {"a": 1}}, "init_args"),
        (ModelOptions, {"latent_dim": 0}, "latent_dim"),
        (FeatureOptions, {"kind": "module"}, "class_path"),
        (FeatureOptions, {"class_path": "torch.nn.Flatten"}, "class_path"),
        (FeatureOptions, {"inverse_penalty": 0.0}, "inverse_penalty"),
        (MetricOptions, {"n_probes": 0}, "n_probes"),
        (InitialOptions, {"resolution": 1}, "resolution"),
        (InitialOptions, {"margin": 0.0}, "margin"),
        (InitialOptions, {"n_nodes": 1}, "n_nodes"),
        (InitialOptions, {"jitter": -1.0}, "jitter"),
    ],
)
def test_options_out_of_range_are_told_by_name(options, values, name):
    with pytest.raises(ValueError, match=f"`{name}` should be"):
        options(**values)


def test_a_decoded_plane_is_decoded_square_by_square(digits):
    model = digits[0]
    found = decode_plane(model, torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.9]), 4)
    torch.testing.assert_close(found["decoded_first"].float(), torch.tensor([-1.5, -0.5, 0.5, 1.5]))
    # squares: the shorter side is rounded to two of them, about its middle
    torch.testing.assert_close(found["decoded_second"].float(), torch.tensor([0.45, 1.45]))
    expected = model.images(torch.tensor([[0.5, 1.45]]))[0]
    torch.testing.assert_close(found["decoded"][1, 2], expected)


@pytest.mark.usefixtures("float64")
def test_codes_of_commands_are_of_the_models_prior(tmp_path):
    """Of a generator's sphere or a flow's logistic prior, not of N(0, I)."""
    generator = gl.models.DCGAN(latent_dim=5, channels=(4, 8), prior="sphere").eval()
    path = tmp_path / "model.safetensors"
    gl.models.save_model(generator, path)
    options = ModelOptions(checkpoint=str(path))
    sample = Sample(model=options, out=tmp_path / "out", n_samples=4)
    codes = draw_prior(4, 5, prior="sphere", like=sample.codec.like)
    torch.testing.assert_close(sample.images, sample.codec.images(codes))
    for start in (
        Improvement(model=options, n_pairs=3, steps=(0.5,)).groups[0].start,
        Subject(model=options, source="prior", resolution=5).codes[:3],
    ):
        torch.testing.assert_close(start.norm(dim=1), start.new_full((3,), 5**0.5))


def test_the_density_along_curves_is_of_the_models_prior():
    assert LatentModel(gl.models.Glow((1, 8, 8), prior="logistic")).prior == "logistic"
    point = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    line = CubicBSpline.straight(point, point + 1e-6)
    found = prior_densities(line, prior="logistic")["log_density"]
    s = math.sqrt(3.0) / math.pi
    expected = -(2 * torch.log(2 * s**0.5 * torch.cosh(point / (2 * s)))).sum()
    torch.testing.assert_close(found, expected[None], rtol=1e-5, atol=0)
