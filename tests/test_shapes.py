"""Codes of any shape: what is computed of images is what is computed of them flattened."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import geolatent as gl
from geolatent.geometry.acceleration import geodesic_acceleration
from geolatent.geometry.distances import graph_distance_matrix
from geolatent.interpolations import slerp_curve
from geolatent.lengths import path_energy

SHAPE = (2, 2, 1)
D = 4


class Upsampling(nn.Module):
    """A convolutional decoder of codes (n, 2, 2, 1), which takes no flat ones."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, z):
        return self.last(torch.tanh(nn.functional.interpolate(self.first(z), scale_factor=2)))


def decoder():
    torch.manual_seed(0)
    return Upsampling().double().requires_grad_(False)


def codes(n=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)


def flat(decode):
    return gl.adapters.decoder(decode, shape=SHAPE)


def both():
    """Return metrics that are alike, of images and of flat codes."""
    decode = decoder()
    return gl.PullbackMetric(decode), gl.PullbackMetric(flat(decode))


def close(found, expected, shape=SHAPE):
    """Compare what was found of images with what was of flat codes."""
    wanted = expected.unflatten(-1, shape) if shape else expected
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_geodesics_between_images_are_curves_of_images():
    images, plain = both()
    start, end = codes(seed=1), codes(seed=2)
    solution = gl.solve_geodesic(images, start, end)
    expected = gl.solve_geodesic(plain, start.flatten(1), end.flatten(1))
    t = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
    close(solution.curve(t), expected.curve(t))
    close(solution.length, expected.length, None)
    assert decoder()(solution.curve(t).flatten(0, 1)).shape == (20, 3, 4, 2)
    torch.testing.assert_close(solution.curve(t)[:, 0], start)
    torch.testing.assert_close(solution.curve(t)[:, -1], end)
    # nothing is kept: flat codes afterwards are flat codes
    with pytest.raises(ValueError, match="what `decoder` takes"):
        gl.solve_geodesic(images, start.flatten(1), end.flatten(1))


def test_curves_keep_the_shape_of_their_codes():
    images, _ = both()
    start, end = codes(2, seed=1), codes(2, seed=2)
    curve = gl.solve_geodesic(images, start, end)[1].curve
    assert curve.control_points.shape[2] == D
    t = torch.linspace(0.0, 1.0, 3)
    close(curve.reverse()(t), curve.flat()(t).flip(1))
    for kept in (curve.insert_knot(), curve.to(dtype=torch.float32), curve[:1]):
        assert kept(t).shape == (1, 3, *SHAPE)
        assert kept.derivative(t).shape == (1, 3, *SHAPE)
    assert pickle.loads(pickle.dumps(curve)).code_shape == SHAPE
    assert tuple(curve.numpy()["code_shape"]) == SHAPE
    assert "code_shape" not in curve.flat().numpy()
    with pytest.raises(ValueError, match="code_shape"):
        gl.CubicBSpline(curve.control_points, curve.knots, (3, 3))


def test_a_geodesic_may_start_from_curves_points_and_graphs_of_images():
    images, plain = both()
    start, end = codes(3, seed=1), codes(3, seed=2)
    line = gl.CubicBSpline.straight(start, end)
    points = line(torch.linspace(0.0, 1.0, 4, dtype=torch.float64))
    graph = gl.LatentGraph.from_codes(images, codes(12, seed=3), n_neighbors=4)
    plain_graph = gl.LatentGraph.from_codes(plain, codes(12, seed=3).flatten(1), n_neighbors=4)
    for initial, other in (
        (line, line.flat()),
        (points, points.flatten(2)),
        (graph, plain_graph),
    ):
        found = gl.solve_geodesic(images, start, end, initial=initial)
        expected = gl.solve_geodesic(plain, start.flatten(1), end.flatten(1), initial=other)
        close(found.length, expected.length, None)
        assert found.curve.code_shape == SHAPE
    with pytest.raises(ValueError, match="`initial` should be of codes of shape"):
        gl.solve_geodesic(images, start, end, initial=plain_graph)


LIKE_CODES = {
    "lerp": lambda _, a, b: gl.lerp(a, b, 0.3),
    "slerp": lambda _, a, b: gl.slerp(a, b, torch.tensor([0.1, 0.5])),
    "great circle": lambda _, a, b: gl.great_circle(a, b, 0.3),
    "spiral": lambda _, a, b: gl.spherical_spiral(a, b, 0.3),
    "radial walk": lambda _, a, b: gl.radial_walk(a, torch.tensor([0.5, 1.0]).double()),  # noqa: ARG005
    "through points": lambda _, a, b: gl.through_points(a, torch.tensor([0.1, 0.8]), gl.slerp),  # noqa: ARG005
    "frechet mean": lambda metric, a, b: gl.frechet_mean(metric, a, start=b[0]).mean,
    "exponential": lambda metric, a, b: gl.exp_map(metric, a, 0.3 * b),
    "velocities": lambda metric, a, b: gl.shoot(metric, a, 0.3 * b).velocities,
    "logarithm": lambda metric, a, b: gl.log_map(metric, a, a + 0.3 * b),
    "shooting": lambda metric, a, b: gl.shoot_to(metric, a, a + 0.3 * b).velocity,
    "brownian motion": lambda metric, a, b: gl.brownian_motion(metric, a, 0.1, 2),  # noqa: ARG005
    "acceleration": geodesic_acceleration,
    "directions": lambda metric, a, b: gl.principal_directions(metric, a, 2).directions,  # noqa: ARG005
}
NUMBERS = {
    "distance": gl.distance,
    "pairwise": lambda metric, a, b: gl.pairwise_distances(metric, a, b[:2]),
    "among themselves": lambda metric, a, b: gl.pairwise_distances(metric, a[:3]),  # noqa: ARG005
    "magnification": lambda metric, a, b: gl.magnification_factor(metric, a),  # noqa: ARG005
    "condition": lambda metric, a, b: gl.condition_number(metric, a),  # noqa: ARG005
    "curvature": lambda metric, a, b: gl.sectional_curvature(metric, a, b, b.flip(0)),
    "tensor": lambda metric, a, b: metric.tensor(a),  # noqa: ARG005
    "quadratic": lambda metric, a, b: metric.limited(2).quadratic(a, b),
    "graph": lambda metric, a, b: gl.graph_distances(
        gl.LatentGraph.from_codes(metric, torch.cat([a, b]), n_neighbors=2), a, b
    ),
    "graph matrix": lambda metric, a, b: graph_distance_matrix(
        gl.LatentGraph.from_codes(metric, torch.cat([a, b]), n_neighbors=2), a, b
    ),
    "energy": lambda metric, a, b: path_energy(metric, gl.CubicBSpline.straight(a, b)),
    "length": lambda metric, a, b: gl.path_length(metric, gl.CubicBSpline.straight(a, b)),
    "residual": lambda metric, a, b: gl.geodesic_residual(metric, gl.CubicBSpline.straight(a, b)),
}


@pytest.mark.parametrize("name", LIKE_CODES)
def test_codes_come_back_in_their_shape(name):
    images, plain = both()
    a, b = codes(seed=1), codes(seed=2)
    call = LIKE_CODES[name]
    close(call(images, a, b), call(plain, a.flatten(1), b.flatten(1)))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_those_of_flat_codes(name):
    images, plain = both()
    a, b = codes(seed=1), codes(seed=2)
    call = NUMBERS[name]
    close(call(images, a, b), call(plain, a.flatten(1), b.flatten(1)), None)


def test_tangents_and_parts_beyond_the_ends_have_the_shape():
    images, plain = both()
    curve = gl.CubicBSpline.straight(codes(2, seed=1), codes(2, seed=2))
    vectors = codes(2, seed=3)
    moved = gl.parallel_transport(images, curve, vectors)
    close(moved, gl.parallel_transport(plain, curve.flat(), vectors.flatten(1)))
    t = torch.tensor([0.5, 1.1])
    close(gl.extrapolate(images, curve, t), gl.extrapolate(plain, curve.flat(), t))


def test_interpolations_as_curves_have_the_shape():
    a, b = codes(2, seed=1), codes(2, seed=2)
    t = torch.linspace(0.0, 1.0, 3)
    close(slerp_curve(a, b)(t), slerp_curve(a.flatten(1), b.flatten(1))(t))


def test_arrays_of_images_are_taken():
    images, _ = both()
    start, end = codes(2, seed=1), codes(2, seed=2)
    found = gl.solve_geodesic(images, start.numpy(), end.numpy())
    close(found.length, gl.solve_geodesic(images, start, end).length, None)
    assert gl.lerp(start.numpy(), np.zeros(SHAPE), 0.5).shape == (2, *SHAPE)


def log_density(z):
    return -z.square().flatten(1).sum(1)


METRICS = {
    "features": lambda f: gl.PullbackMetric(f, lambda x: x.flatten(1).sin()),
    "bernoulli": lambda f: gl.BernoulliPullbackMetric(f, output="logits"),
    "gaussian": lambda f: gl.GaussianPullbackMetric(lambda z: (f(z), f(z).exp()), diagonal="exact"),
    "gaussian with features": lambda f: gl.GaussianPullbackMetric(
        lambda z: (f(z), f(z).exp()), lambda x: x.flatten(1).sin(), diagonal="hutchinson"
    ),
    "fisher-rao": lambda f: gl.GaussianFisherRaoMetric(lambda z: (f(z), f(z).exp())),
    "ensemble": lambda f: gl.EnsembleMetric([gl.PullbackMetric(f), gl.PullbackMetric(f)], [1, 2]),
    "conformal": lambda f: gl.ConformalMetric.from_log_density(gl.PullbackMetric(f), log_density),
    "sphere": lambda f: gl.SphereMetric(gl.PullbackMetric(f)),
    "divergence": lambda f: gl.DivergenceMetric(f, lambda x, y: (x - y).square().flatten(1).sum(1)),
    "negative binomial": lambda f: gl.NegativeBinomialPullbackMetric(
        lambda z: f(z).exp(), torch.tensor(2.0, dtype=torch.float64)
    ),
    "tensor": lambda f: gl.TensorMetric(
        lambda z: torch.diag_embed(1.0 + f(z).flatten(1)[:, :D].square()), dim=D
    ),
    "differences": lambda f: gl.PullbackMetric(gl.by_differences(f)),
}


@pytest.mark.parametrize("name", METRICS)
def test_all_metrics_take_images(name):
    images, plain = METRICS[name](decoder()), METRICS[name](flat(decoder()))
    a, b = codes(2, seed=1), codes(2, seed=2)
    close(images.quadratic(a, b), plain.quadratic(a.flatten(1), b.flatten(1)), None)
    close(images.tensor(a), plain.tensor(a.flatten(1)), None)
    # an end point among codes: both are broadcast
    found = gl.distance(images, a, b[0], length_tolerance=1e-3)
    assert found.shape == (2,)


def test_a_metric_of_data_takes_images_of_the_data():
    data = codes(6)
    a, b = codes(2, seed=1), codes(2, seed=2)
    found = gl.LocalVarianceMetric(data, 1.0).quadratic(a, b)
    plain = gl.LocalVarianceMetric(data.flatten(1), 1.0)
    close(found, plain.quadratic(a.flatten(1), b.flatten(1)), None)


def test_the_limit_of_rows_holds_for_images():
    seen = []
    decode = decoder()

    def watched(z):
        seen.append(len(z))
        return decode(z)

    metric = gl.PullbackMetric(watched)
    metric.quadratic(codes(2), codes(2))  # so that the metric of this shape is made
    seen.clear()
    gl.distance(metric.limited(40), codes(2, seed=1), codes(2, seed=2))
    assert max(seen) <= 40
    seen.clear()
    gl.distance(metric, codes(2, seed=1), codes(2, seed=2))
    assert max(seen) > 40


class OfItself(gl.Metric):
    """A metric of a user's own, whose functions of codes nobody knows."""

    def _tensor(self, z):
        return torch.eye(z.shape[1]).to(z).expand(len(z), -1, -1)

    def _quadratic(self, z, v):
        return v.square().sum(1) + 0.0 * z.sum(1)


REFUSED = {
    "shapes that differ": lambda metric, z: gl.distance(metric, z, z.flatten(2)),
    "flat start": lambda metric, z: gl.distance(metric, z.flatten(1), z),
    "flat vector": lambda metric, z: gl.exp_map(metric, z, z.flatten(1)),
    "a user's metric": lambda _, z: gl.distance(OfItself(), z, z + 1),
    "splines through": lambda _, z: gl.interpolations.spline_through_points(z),
    "another dimension": lambda _, z: gl.distance(
        gl.TensorMetric(lambda z: torch.eye(2).expand(len(z), 2, 2), dim=2), z, z
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_take_them_says_so(name):
    with pytest.raises(ValueError, match=r"^Parameter `\w+` should be .*\. Found `\w+ = .*"):
        REFUSED[name](both()[0], codes())


@pytest.mark.parametrize("name", ["splines through", "flat start", "a user's metric"])
def test_refusals_name_the_way_out(name):
    with pytest.raises(ValueError, match=r"codes\.flatten\(1\)"):
        REFUSED[name](both()[0], codes())
