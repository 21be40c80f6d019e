"""Every public function on a GPU: results lie there, and are those of the CPU but for rounding.

And on a device that only pretends to be one (`pretended.py`), which refuses what CUDA refuses.
"""

import contextlib
import dataclasses
import re
import warnings
from pathlib import Path

import pytest
import torch
from pretended import Pretended
from torch import nn

import geolatent as gl

pytestmark = pytest.mark.usefixtures("float64")

N, D = 3, 2
GENERATOR = torch.Generator().manual_seed(3)
CODES, OTHERS, VECTORS, MORE = torch.randn(4, N, D, generator=GENERATOR, dtype=torch.float64)
NEAR = CODES + 0.1 * VECTORS
POINTS = torch.randn(24, D, generator=GENERATOR, dtype=torch.float64)
WEIGHTS = torch.randn(2, 4, D, generator=GENERATOR, dtype=torch.float64)
TIMES = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
LOW, HIGH = torch.full((D,), -1.5).double(), torch.full((D,), 1.5).double()
QUICK = gl.PreconditionedSolver(tolerance=1e-2)
BRISK = {"solver": QUICK, "integrator": gl.RungeKutta(1e-3), "tolerance": 1e-2}


class Decoder(nn.Module):
    """A smooth map with parameters; positive heads by `two`."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(WEIGHTS.clone(), requires_grad=False)

    def forward(self, z):
        return torch.tanh(z @ self.weights[0].T) + 0.5 * z @ self.weights[1].T

    def two(self, z):
        return torch.exp(torch.tanh(self(z))), torch.exp(torch.tanh(z @ self.weights[1].T))

    def one(self, z):
        return self.two(z)[0]

    def metric(self, z):
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        return eye * self.one(z).sum(1)[:, None, None]


def metric_of(place):
    return gl.PullbackMetric(place.put(Decoder()))


def curve_of(place):
    return gl.CubicBSpline.straight(place.put(CODES), place.put(NEAR)).insert_knot()


def graph_of(place):
    return gl.LatentGraph.from_codes(metric_of(place), place.put(POINTS), n_neighbors=4)


def seen(metric, place):
    """Return what a metric says of codes."""
    z, v = place.put(CODES), place.put(VECTORS)
    line = gl.CubicBSpline.straight(z, place.put(OTHERS))
    return metric.tensor(z), metric.quadratic(z, v), gl.path_length(metric, line, tolerance=1e-3)


def solved(place, solver, metric=None, **options):
    metric = metric_of(place) if metric is None else metric
    return gl.solve_geodesic(metric, place.put(CODES), place.put(OTHERS), solver, **options)


def ladder(place):
    """Return codes (n, d) and neighbouring ones, for estimators, with labels."""
    return place.put(POINTS), [int(z[0] > 0) for z in POINTS]


def k_means(place):
    codes, _ = ladder(place)
    model = gl.GeodesicKMeans(metric_of(place), 2, graph=graph_of(place), random_state=0)
    return torch.as_tensor(model.fit(codes).predict(codes))


def classified(place):
    codes, labels = ladder(place)
    model = gl.GeodesicKNeighborsClassifier(metric_of(place), 3, graph=graph_of(place))
    return torch.as_tensor(model.fit(codes, labels).predict(codes))


def transformed(place):
    codes, _ = ladder(place)
    model = gl.GeodesicKNeighborsTransformer(metric_of(place), 3, refine=False)
    return torch.as_tensor(model.fit_transform(codes).toarray())


def land(place):
    model = gl.LandMixture(
        metric_of(place),
        1,
        n_samples=10,
        max_iter=1,
        graph=graph_of(place),
        integrator=gl.RungeKutta(1e-3),
        verbose=False,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(place.put(NEAR))
    return torch.as_tensor(model.score_samples(place.put(CODES)))


def stored(place, folder):
    graph = graph_of(place)
    path = gl.save_graph(graph, folder / "graph.safetensors")
    again = gl.load_graph(path, metric_of(place))
    return gl.graph_distances(again, place.put(CODES), place.put(OTHERS))


def on_codes(function, *tensors, **options):
    """Return a case that calls a function with a metric and codes."""
    return lambda place: function(metric_of(place), *(place.put(x) for x in tensors), **options)


def metric_case(make):
    return lambda place: seen(make(place.put(Decoder()), place), place)


SPHERE_CODES = nn.functional.normalize(torch.cat([CODES, OTHERS[:, :1]], dim=1), dim=1)
SPHERE_OTHERS = nn.functional.normalize(torch.cat([OTHERS, CODES[:, :1]], dim=1), dim=1)

CASES = {
    "CubicBSpline": lambda place: (
        curve_of(place)(place.put(TIMES)),
        curve_of(place).derivative(place.put(TIMES)),
    ),
    "geodesic_residual": lambda place: gl.geodesic_residual(metric_of(place), curve_of(place)),
    "brownian_motion": on_codes(
        gl.brownian_motion, CODES, time=0.1, n_steps=1, integrator=gl.RungeKutta(1e-3)
    ),
    "lyapunov_exponents": lambda place: (
        gl.lyapunov_exponents(
            lambda x: torch.sin(2.0 * x + 0.5 * x.roll(1, 1)), place.put(CODES), 20
        ).exponents
    ),
    "gaussian_curvature": on_codes(gl.gaussian_curvature, CODES),
    "sectional_curvature": on_codes(gl.sectional_curvature, CODES, VECTORS, MORE),
    "distance": on_codes(gl.distance, CODES, OTHERS),
    "pairwise_distances": on_codes(gl.pairwise_distances, CODES[:3], solver=QUICK),
    "graph_distances": lambda place: gl.graph_distances(
        graph_of(place), place.put(CODES), place.put(OTHERS)
    ),
    "LatentGraph": lambda place: solved(place, QUICK, initial=graph_of(place)),
    "exp_map": on_codes(gl.exp_map, CODES, 0.1 * VECTORS, integrator=gl.RungeKutta(1e-3)),
    "shoot": on_codes(gl.shoot, CODES, 0.1 * VECTORS),
    "RungeKutta": on_codes(gl.exp_map, CODES, 0.1 * VECTORS, integrator=gl.RungeKutta(1e-4)),
    "DiscreteGeodesic": on_codes(
        gl.exp_map, CODES, 0.1 * VECTORS, integrator=gl.DiscreteGeodesic(16)
    ),
    "extrapolate": lambda place: gl.extrapolate(
        metric_of(place),
        curve_of(place),
        place.put(torch.tensor([1.0, 1.02]).double()),
        integrator=gl.RungeKutta(1e-3),
    ),
    "frechet_mean": on_codes(gl.frechet_mean, CODES, solver=QUICK, max_iterations=2),
    "log_map": on_codes(gl.log_map, CODES[:1], NEAR[:1], **BRISK),
    "shoot_to": on_codes(gl.shoot_to, CODES[:1], NEAR[:1], **BRISK),
    "parallel_transport": lambda place: gl.parallel_transport(
        metric_of(place), curve_of(place), place.put(VECTORS)
    ),
    "condition_number": on_codes(gl.condition_number, CODES),
    "magnification_factor": on_codes(gl.magnification_factor, CODES),
    "log_magnification_factor": on_codes(gl.log_magnification_factor, CODES),
    "principal_directions": on_codes(gl.principal_directions, CODES),
    "sample_volume": on_codes(gl.sample_volume, LOW, HIGH, n=20),
    "path_length": lambda place: gl.path_length(metric_of(place), curve_of(place)),
    "path_energy": lambda place: gl.path_energy(metric_of(place), curve_of(place)),
    "solve_geodesic": lambda place: solved(place, None),
    "PreconditionedSolver": lambda place: solved(place, QUICK),
    "FirstOrderSolver": lambda place: solved(
        place, gl.FirstOrderSolver(steps=2, max_control_points=5)
    ),
    "GEORCESolver": lambda place: solved(place, gl.GEORCESolver(20)),
    "LBFGS": lambda place: solved(place, gl.PreconditionedSolver(minimizer=gl.LBFGS(5))),
    "GeodesicKMeans": k_means,
    "GeodesicKNeighborsClassifier": classified,
    "GeodesicKNeighborsTransformer": transformed,
    "LandMixture": land,
    "great_circle": lambda place: gl.great_circle(
        place.put(SPHERE_CODES), place.put(SPHERE_OTHERS), place.put(TIMES)
    ),
    "lerp": lambda place: gl.lerp(place.put(CODES), place.put(OTHERS), place.put(TIMES)),
    "slerp": lambda place: gl.slerp(place.put(CODES), place.put(OTHERS), place.put(TIMES)),
    "radial_walk": lambda place: gl.radial_walk(place.put(CODES), place.put(TIMES)),
    "spherical_spiral": lambda place: gl.spherical_spiral(
        place.put(SPHERE_CODES), place.put(SPHERE_OTHERS), place.put(TIMES), turns=1
    ),
    "through_points": lambda place: gl.through_points(place.put(POINTS), place.put(TIMES)),
    "log_prior": lambda place: gl.log_prior(place.put(CODES)),
    "norm_profile": lambda place: gl.norm_profile(place.put(POINTS)),
    # metrics
    "PullbackMetric": metric_case(lambda f, _: gl.PullbackMetric(f)),
    "GaussianPullbackMetric": metric_case(lambda f, _: gl.GaussianPullbackMetric(f.two)),
    "BernoulliPullbackMetric": metric_case(
        lambda f, _: gl.BernoulliPullbackMetric(f, output="logits")
    ),
    "CategoricalPullbackMetric": metric_case(
        lambda f, _: gl.CategoricalPullbackMetric(f, output="logits")
    ),
    "BetaFisherRaoMetric": metric_case(lambda f, _: gl.BetaFisherRaoMetric(f.two)),
    "GammaFisherRaoMetric": metric_case(lambda f, _: gl.GammaFisherRaoMetric(f.two)),
    "GaussianFisherRaoMetric": metric_case(lambda f, _: gl.GaussianFisherRaoMetric(f.two)),
    "PoissonPullbackMetric": metric_case(lambda f, _: gl.PoissonPullbackMetric(f.one)),
    "NegativeBinomialPullbackMetric": metric_case(
        lambda f, place: gl.NegativeBinomialPullbackMetric(
            f.one, place.put(torch.tensor([0.5, 1.0, 2.0, 4.0]).double())
        )
    ),
    "NegativeBinomialFisherRaoMetric": metric_case(
        lambda f, _: gl.NegativeBinomialFisherRaoMetric(f.two)
    ),
    "ZeroInflatedNegativeBinomialMetric": metric_case(
        lambda f, place: gl.ZeroInflatedNegativeBinomialMetric(
            f.two, place.put(torch.tensor([0.5, 1.0, 2.0, 4.0]).double())
        )
    ),
    "DivergenceMetric": metric_case(
        lambda f, _: gl.DivergenceMetric(f, lambda x, y: (x - y).square().sum(1))
    ),
    "EnsembleMetric": metric_case(
        lambda f, _: gl.EnsembleMetric([gl.PullbackMetric(f), gl.PullbackMetric(f.one)])
    ),
    "ConformalMetric": metric_case(
        lambda f, _: gl.ConformalMetric(gl.PullbackMetric(f), lambda z: 1.0 + z.square().sum(1))
    ),
    "SphereMetric": metric_case(lambda f, _: gl.SphereMetric(gl.PullbackMetric(f))),
    "LocalVarianceMetric": metric_case(
        lambda _, place: gl.LocalVarianceMetric(place.put(POINTS), bandwidth=0.5)
    ),
    "TensorMetric": metric_case(lambda f, _: gl.TensorMetric(f.metric, dim=D)),
    "by_differences": metric_case(lambda f, _: gl.PullbackMetric(gl.by_differences(f))),
}
# graphs in files, which need a folder
STORED = {"save_graph", "load_graph"}
# what takes no codes: modules, base classes, results and their statuses
EXEMPT = {
    "adapters", "data", "models", "__version__",
    "Metric", "Solver", "Integrator",
    "Evaluations", "FrechetMean", "GeodesicSolution", "LyapunovExponents", "Progress", "Shooting",
    "Trajectory",
    "Status", "TrajectoryStatus",
}  # fmt: skip
# follows many geodesics
SLOW = {"LandMixture"}
# results that are NumPy's by design
ARRAYS = {
    "GeodesicKMeans", "GeodesicKNeighborsClassifier", "GeodesicKNeighborsTransformer",
    "LandMixture",
}  # fmt: skip


class Memory:
    """The processor's own memory, as a device."""

    def put(self, value):
        return value


class Cuda:
    """A GPU."""

    def put(self, value):
        return value.to("cuda")

    def holds(self, tensor):
        return tensor.is_cuda


PLACES = [
    pytest.param(Pretended, id="pretended"),
    pytest.param(lambda: contextlib.nullcontext(Cuda()), id="cuda", marks=pytest.mark.cuda),
]


def tensors_of(value, name="result"):
    """Yield (name, tensor) of everything in a result that has an entry for each of a batch."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, tuple):
        for number, part in enumerate(value):
            yield from tensors_of(part, f"{name}[{number}]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name), f"{name}.{field.name}")


def assert_same(found, expected, place, name, *, elsewhere=False):
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    n = 0
    for (label, there), (_, here) in pairs:
        assert elsewhere or place.holds(there), f"{name}: {label} is on {there.device}"
        assert there.dtype == here.dtype, f"{name}: {label}"
        near = {"rtol": 1e-4, "atol": 1e-6} if here.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(
            there.detach().cpu(),
            here.detach(),
            equal_nan=True,
            msg=f"{name}: {label} is not that of the CPU",
            **near,
        )
        n += 1
    assert n


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]
)
@pytest.mark.parametrize("make", PLACES)
def test_results_are_those_of_the_cpu(name, make):
    expected = CASES[name](Memory())
    with make() as place:
        found = CASES[name](place)
        assert_same(found, expected, place, name, elsewhere=name in ARRAYS)


@pytest.mark.parametrize("make", PLACES)
def test_graphs_in_files(make, tmp_path):
    expected = stored(Memory(), tmp_path)
    with make() as place:
        assert_same(stored(place, tmp_path), expected, place, "load_graph")


# by what makes tensors of its own: quadratures, graphs, random numbers, integrators
MAKING = ["solve_geodesic", "TensorMetric", "LatentGraph", "parallel_transport", "sample_volume"]
MAKING += ["brownian_motion", "log_magnification_factor", "GEORCESolver", "RungeKutta"]


@pytest.mark.parametrize("name", MAKING)
@pytest.mark.parametrize("make", PLACES)
def test_the_default_device_of_the_caller_does_not_matter(name, make):
    expected = CASES[name](Memory())
    with make() as place:
        torch.set_default_device(place.put(torch.zeros(1)).device)
        try:
            found = CASES[name](place)
        finally:
            torch.set_default_device(None)
        assert_same(found, expected, place, name)


def test_every_public_name_is_here_or_exempt():
    stub = Path(gl.__file__).with_name("__init__.pyi").read_text(encoding="utf-8")
    public = set(re.findall(r" as (\w+)", stub))
    assert set(CASES) | STORED | EXEMPT == public
    assert not set(CASES) & EXEMPT
