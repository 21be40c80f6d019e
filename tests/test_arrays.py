"""NumPy arrays are as good as tensors wherever codes go in, and results come out as arrays."""

import functools
import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Gamma

import geolatent as gl
from geolatent.curves import CubicBSpline

N = 6


@functools.cache
def single():
    """A metric whose decoder works in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5))
    return gl.PullbackMetric(decoder)


@functools.cache
def linear():
    """A linear map in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(2, 2)


@functools.cache
def graph():
    codes = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    return gl.LatentGraph.from_codes(single(), codes, n_neighbors=6)


def codes_of_calls():
    return torch.randn(N, 2, generator=torch.Generator().manual_seed(2)).double()


def around(like, *numbers):
    """Further arguments, of the kind of the codes."""
    values = torch.tensor(numbers, dtype=torch.float64)
    return values.to(like) if isinstance(like, torch.Tensor) else values.numpy().astype(like.dtype)


def line(z):
    return CubicBSpline.straight(z[:3], z[3:])


# what a public function makes of codes (6, 2) of any kind
CALLS = {
    "CubicBSpline": lambda z: line(z)(around(z, 0.0, 0.3, 1.0)),
    "CubicBSpline itself": lambda z: CubicBSpline(
        z[None, :4], around(z, 0, 0, 0, 0, 1, 1, 1, 1)
    ).derivative(around(z, 0.5)),
    "Metric.tensor": lambda z: single().tensor(z),
    "Metric.quadratic": lambda z: single().quadratic(z[:3], z[3:]),
    "LocalVarianceMetric": lambda z: gl.LocalVarianceMetric(z, 1.0).tensor(z),
    "LatentGraph": lambda z: torch.from_numpy(
        gl.LatentGraph.from_codes(single(), z, n_neighbors=2).adjacency.toarray()
    ),
    "LatentGraph.lattice": lambda z: (
        gl.LatentGraph.lattice(
            single(), around(z, 0.0, 0.0), around(z, 1.0, 1.0), resolution=3
        ).codes
    ),
    "solve_geodesic": lambda z: gl.solve_geodesic(single(), z[:3], z[3:]).length,
    "solve_geodesic from points": lambda z: (
        gl.solve_geodesic(single(), z[0], z[2], initial=z[:3]).length
    ),
    "solve_geodesic from a graph": lambda z: (
        gl.solve_geodesic(single(), z[:3], z[3:], initial=graph()).length
    ),
    "solve_geodesic from curves": lambda z: (
        gl.solve_geodesic(single(), z[:3], z[3:], initial=line(z)).length
    ),
    "distance": lambda z: gl.distance(single(), z[:3], z[3:]),
    "pairwise_distances": lambda z: gl.pairwise_distances(single(), z[:2], z[2:4]),
    "graph_distances": lambda z: gl.graph_distances(graph(), z[:3], z[3:]),
    "exp_map": lambda z: gl.exp_map(single(), z[:3], z[3:]),
    "shoot": lambda z: gl.shoot(single(), z[:3], z[3:], around(z, 0.5, 1.0)).points,
    "log_map": lambda z: gl.log_map(single(), z[:3], z[3:]),
    "shoot_to": lambda z: gl.shoot_to(single(), z[:3], z[3:]).length,
    "extrapolate": lambda z: gl.extrapolate(single(), line(z), around(z, -0.1, 0.5, 1.1)),
    "geodesic_residual": lambda z: gl.geodesic_residual(single(), line(z), around(z, 0.2, 0.7)),
    "path_length": lambda z: gl.path_length(single(), line(z)),
    "path_energy": lambda z: gl.path_energy(single(), line(z)),
    "parallel_transport": lambda z: gl.parallel_transport(
        single(), line(z), z[:3], around(z, 0.5, 1.0)
    ),
    "lyapunov_exponents": lambda z: gl.lyapunov_exponents(linear(), z, 10).state,
    "frechet_mean": lambda z: (
        gl.frechet_mean(single(), z, around(z, 1, 2, 1, 2, 1, 2), start=z[0]).mean
    ),
    "brownian_motion": lambda z: gl.brownian_motion(single(), z, 0.1, n_steps=2),
    "magnification_factor": lambda z: gl.magnification_factor(single(), z),
    "condition_number": lambda z: gl.condition_number(single(), z),
    "log_magnification_factor": lambda z: gl.log_magnification_factor(single(), z).value,
    "principal_directions": lambda z: gl.principal_directions(single(), z).eigenvalues,
    "gaussian_curvature": lambda z: gl.gaussian_curvature(single(), z),
    "sectional_curvature": lambda z: gl.sectional_curvature(single(), z[:3], z[3:], z[:3]),
    "sample_volume": lambda z: (
        gl.sample_volume(single(), around(z, 0.0, 0.0), around(z, 1.0, 1.0), 5).codes
    ),
    "lerp": lambda z: gl.lerp(z[:3], z[3:], around(z, 0.5)),
    "slerp": lambda z: gl.slerp(z[:3], z[3:], around(z, 0.5)),
    "great_circle": lambda z: gl.great_circle(z[:3], z[3:], around(z, 0.3)),
    "spherical_spiral": lambda z: gl.spherical_spiral(z[:3], z[3:], around(z, 0.5)),
    "radial_walk": lambda z: gl.radial_walk(z, around(z, 0.5, 1.0)),
    "through_points": lambda z: gl.through_points(
        z[:3], around(z, 0.2, 0.9), lengths=around(z, 1.0, 3.0)
    ),
    "adapters.metric": lambda z: gl.adapters.metric(single().decoder.function, z).tensor(z),
    "log_prior": lambda z: gl.log_prior(z),
    "norm_profile": lambda z: gl.norm_profile(z).norms,
}
# functions that have no decoder's parameters to go by
WITHOUT_DECODER = {
    *("CubicBSpline", "CubicBSpline itself", "LocalVarianceMetric", "lerp", "slerp"),
    *("great_circle", "spherical_spiral", "radial_walk", "through_points", "log_prior"),
    "norm_profile",
}


KINDS = {"array": lambda z: z.numpy(), "tensor": lambda z: z}


def test_every_public_function_is_in_the_table():
    functions = {name for name in gl.__all__ if inspect.isfunction(getattr(gl, name))}
    assert functions - {"by_differences", "load_graph", "save_graph"} <= set(CALLS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_double_precision_gives_the_numbers_of_the_decoders_own(name, kind):
    z = codes_of_calls()
    found, expected = CALLS[name](KINDS[kind](z)), CALLS[name](z.float())
    assert isinstance(found, torch.Tensor)
    if name not in WITHOUT_DECODER:
        assert found.dtype == expected.dtype
    torch.testing.assert_close(found.to(expected), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(WITHOUT_DECODER))
def test_without_a_decoder_codes_keep_their_dtype(name):
    z = codes_of_calls()
    assert CALLS[name](z.numpy()).dtype == torch.float64
    assert CALLS[name](z.float().numpy()).dtype == torch.float32


def test_metrics_tell_what_codes_are_brought_to():
    def plain(z):
        return z.exp()

    layer = nn.Linear(2, 2).double()
    plane = gl.PullbackMetric(plain)
    inside = gl.PullbackMetric(lambda z: layer(z))
    metrics = {
        torch.float64: [
            inside,
            gl.PullbackMetric(plain, features=layer),
            gl.PullbackMetric(layer, features=nn.Linear(2, 2)),
            gl.GaussianPullbackMetric(lambda z: (layer(z), z.exp())),
            gl.GaussianPullbackMetric(lambda z: (z, z.exp()), features=layer),
            gl.BernoulliPullbackMetric(layer, output="logits"),
            gl.GaussianFisherRaoMetric(lambda z: (layer(z), z.exp())),
            gl.CategoricalPullbackMetric(layer, output="logits"),
            gl.PoissonPullbackMetric(lambda z: layer(z).exp()),
            gl.NegativeBinomialPullbackMetric(lambda z: layer(z).exp(), torch.ones(2)),
            gl.NegativeBinomialFisherRaoMetric(lambda z: (layer(z).exp(), z.exp())),
            gl.ZeroInflatedNegativeBinomialMetric(
                lambda z: (layer(z).exp(), z), torch.ones(2).double()
            ),
            gl.GammaFisherRaoMetric(lambda z: (layer(z).exp(), z.exp())),
            gl.BetaFisherRaoMetric(lambda z: (layer(z).exp(), z.exp())),
            gl.PullbackMetric(gl.by_differences(layer)),
            gl.PullbackMetric(gl.adapters.decoder(layer, shape=(2,))),
            gl.adapters.metric(lambda z: Gamma(layer(z).exp(), z.exp()), np.ones((1, 2))),
            gl.DivergenceMetric(layer, lambda x, y: (x - y).square().sum(1)),
            gl.TensorMetric(lambda z: torch.diag_embed(layer(z).exp()), dim=2),
            gl.EnsembleMetric([plane, inside]),
            gl.ConformalMetric(inside, lambda z: z[:, 0].exp()),
            gl.ConformalMetric(plane, lambda z: layer(z)[:, 0].exp()),
            gl.LocalVarianceMetric(torch.zeros(1, 2).double(), 1.0),
        ],
        None: [
            plane,
            gl.EnsembleMetric([plane, plane]),
            gl.PullbackMetric(nn.Linear(2, 2).half()),
            gl.PullbackMetric(nn.Linear(2, 2).to("meta")),
        ],
    }
    for dtype, some in metrics.items():
        for metric in some:
            assert (None if metric.like is None else metric.like.dtype) == dtype, metric


def test_precision_that_the_decoder_does_not_have_is_refused_by_value():
    with pytest.raises(ValueError, match=r"`z` should be finite.*1 values that are NaN or inf"):
        single().tensor(np.array([[1e300, 0.0]]))


def test_gradients_go_through_the_change_of_dtype():
    z = codes_of_calls().requires_grad_()
    single().quadratic(z, torch.ones_like(z)).sum().backward()
    assert z.grad.dtype == torch.float64
    assert (z.grad != 0).any()


def test_arrays_of_other_libraries():
    """All that is known of them is ``__array__``."""

    class Frame:
        def __array__(self, dtype=None, copy=None):
            return np.array(codes_of_calls().numpy(), dtype=dtype, copy=copy)

    z = codes_of_calls()
    torch.testing.assert_close(gl.lerp(Frame(), Frame(), 0.5), z)
    expected = single().tensor(z)
    torch.testing.assert_close(single().tensor(Frame()), expected, rtol=1e-4, atol=1e-5)


def test_arrays_are_copied_whatever_their_order_and_bytes():
    z = codes_of_calls().numpy()
    expected = single().tensor(z)
    read_only = z.copy()
    read_only.flags.writeable = False
    for other in (z[::-1][::-1], np.asfortranarray(z), z.astype(">f8"), read_only):
        torch.testing.assert_close(single().tensor(other), expected, rtol=1e-4, atol=1e-5)
    kept = CubicBSpline(z[None, :4], np.r_[np.zeros(4), np.ones(4)])
    before = kept.control_points.clone()
    z += 1.0
    assert torch.equal(kept.control_points, before)


def test_results_as_arrays():
    z = codes_of_calls()
    solution = gl.solve_geodesic(single(), z[:3], z[3:])
    arrays = solution.numpy()
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    np.testing.assert_array_equal(arrays["length"], solution.length.numpy())
    np.testing.assert_array_equal(arrays["curve.control_points"], solution.curve.control_points)
    np.testing.assert_array_equal(arrays["relative_improvement"], solution.relative_improvement)
    assert arrays["evaluations.forward"].shape == arrays["status"].shape == (3,)
    shot = gl.shoot_to(single(), z[:3], z[3:]).numpy()
    assert {"velocity", "solution.length", "solution.curve.knots"} <= set(shot)
    for result, name in (
        (gl.shoot(single(), z[:3], z[3:]), "points"),
        (gl.frechet_mean(single(), z), "mean"),
        (gl.sample_volume(single(), torch.zeros(2), torch.ones(2), 3), "codes"),
        (gl.norm_profile(z), "norms"),
        (line(z), "control_points"),
        (solution.evaluations, "jvp"),
    ):
        np.testing.assert_array_equal(result.numpy()[name], getattr(result, name).numpy())
    volume = gl.sample_volume(single(), torch.zeros(2), torch.ones(2), 3)
    assert float(volume.numpy()["volume"]) == volume.volume


def test_results_as_arrays_have_no_gradients():
    curve = CubicBSpline.straight(torch.zeros(2), torch.ones(2))
    points = curve.control_points.clone().requires_grad_()
    assert CubicBSpline(points, curve.knots).numpy()["control_points"].shape == (1, 4, 2)
