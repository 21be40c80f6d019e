"""Measure latent geometry against closed forms and peers: python scripts/check_latent_geometry.py.

Prints one table: what was measured, what is required of it, and whether it is met. The exit status
is 1 where something is not. Everything runs in float64 with fixed seeds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import geolatent as gl
from geolatent.geometry.acceleration import geodesic_residual
from geolatent.geometry.distances import graph_distances
from geolatent.geometry.integrators import DiscreteGeodesic, RungeKutta
from geolatent.geometry.means import frechet_mean
from geolatent.geometry.shooting import shoot_to
from geolatent.lab.printing import make_table
from geolatent.learn.kmeans import GeodesicKMeans
from geolatent.learn.land import LandMixture

TIGHT = gl.PreconditionedSolver(tolerance=1e-8, max_control_points=67)


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    what: str
    measured: str
    required: str
    met: bool


def below(what: str, value: float, bound: float) -> Line:
    """Return the line of an error and its bound."""
    return Line(what, f"{value:.1e}", f"< {bound:.0e}", value < bound)


def sphere(z: Tensor) -> Tensor:
    """Inverse stereographic projection of the plane to the unit sphere."""
    square = z.square().sum(1, keepdim=True)
    return torch.cat([2 * z, square - 1], dim=1) / (square + 1)


SPHERE = gl.PullbackMetric(sphere)
HALF_PLANE = gl.TensorMetric(lambda z: torch.eye(2).to(z) / z[:, 1, None, None] ** 2, dim=2)


def digits() -> tuple[gl.GaussianPullbackMetric, Tensor, Tensor, np.ndarray]:
    """Return the embedded model's metric, training codes, test codes and their classes."""
    vae = gl.models.digits_vae(dtype=torch.float64)
    metric = gl.GaussianPullbackMetric(vae.decode)
    (train, _), (test, labels) = gl.data.digits("train"), gl.data.digits("test")
    with torch.no_grad():
        codes = [vae.encode(images.double())[0] for images in (train, test)]
    return metric, codes[0], codes[1], labels.numpy()


def exponential_and_logarithm() -> Iterator[Line]:
    """Check exp after log, closed forms of exp, and the energy along geodesics."""
    integrator = RungeKutta(1e-9)
    samples = {
        "sphere": (SPHERE, 1.2 * torch.rand(2, 20, 2) - 0.6),
        "half-plane": (HALF_PLANE, 2 * torch.rand(2, 20, 2) + torch.tensor([0.0, 0.5])),
    }
    for name, (metric, (start, end)) in samples.items():
        v = gl.log_map(metric, start, end, integrator=integrator)
        back = gl.exp_map(metric, start, v, integrator=integrator)
        miss = (back - end).norm(dim=1).max().item()
        yield below(f"exp after log, {name}: largest miss of 20 pairs", miss, 1e-5)
    metric, _, codes, _ = digits()
    # a code and its fortieth neighbour; a quarter of the geodesics across the whole plane are too
    # sensitive to be shot, which `shoot_to` tells of each
    near = torch.cdist(codes, codes).argsort(1)[:12, 40]
    found = shoot_to(metric, codes[:12], codes[near], integrator=DiscreteGeodesic(64))
    ends = gl.exp_map(metric, codes[:12], found.velocity, integrator=DiscreteGeodesic(64))
    miss = (ends - codes[near]).norm(dim=1)
    yield below("exp after log, embedded digits: largest miss of 12 pairs", miss.max().item(), 1e-5)

    z, v = torch.rand(20, 2) - 0.5, 0.4 * torch.randn(20, 2)
    way = gl.shoot(SPHERE, z, v, torch.linspace(0, 1, 11))
    at, w = torch.func.jvp(sphere, (z,), (v,))
    angle = w.norm(dim=1, keepdim=True)
    error = sphere(way.points[:, -1]) - (angle.cos() * at + angle.sin() * w / angle)
    yield below("exp on the sphere against great circles", error.norm(dim=1).max().item(), 1e-8)
    change = (way.energy / way.energy[:, :1] - 1).abs().max().item()
    z = 2 * torch.rand(20, 2) + torch.tensor([0.0, 0.5])
    way = gl.shoot(HALF_PLANE, z, torch.randn(20, 2), torch.linspace(0, 1, 11))
    change = max(change, (way.energy / way.energy[:, :1] - 1).abs().max().item())
    yield below("energy along geodesics, sphere and half-plane: change", change, 1e-6)
    curve = gl.solve_geodesic(SPHERE, *samples["sphere"][1], TIGHT).curve
    turn = geodesic_residual(SPHERE, curve).max().item()
    yield Line(
        "geodesic residual of solved splines, sphere", f"{turn:.3f}", "< 0.05 rad", turn < 0.05
    )


def norms() -> Iterator[Line]:
    """Norms of the priors in 100 dimensions."""
    start, end = torch.randn(2, 20_000, 100)
    cube = 2 * torch.rand(20_000, 100) - 1
    for what, points, mean, deviation in (
        ("norms of N(0, I), d = 100", start, 10.0, 0.7),
        ("norms of straight midpoints", gl.lerp(start, end, 0.5), 7.0, 0.5),
        ("norms of slerp's midpoints", gl.slerp(start, end, 0.5), 10.0, 0.5),
        ("norms of the uniform cube, d = 100", cube, 5.77, 0.26),
    ):
        found = points.norm(dim=1)
        close = abs(found.mean() - mean) < 0.06 and abs(found.std() - deviation) < 0.02
        measured = f"{found.mean():.2f} ± {found.std():.2f}"
        yield Line(what, measured, f"{mean:g} ± {deviation:g}", bool(close))


def means() -> Iterator[Line]:
    """Frechet mean on the sphere against Karcher iterations with closed-form logarithms."""
    points = 0.8 * torch.rand(6, 2) - 0.2
    x = sphere(points)
    mean = nn.functional.normalize(x.mean(0), dim=0)
    for _ in range(200):
        cosine = x @ mean
        across = x - cosine[:, None] * mean
        angle = torch.atan2(across.norm(dim=1), cosine)
        step = (angle[:, None] * nn.functional.normalize(across, dim=1)).mean(0)
        size = step.norm().clamp_min(1e-300)
        mean = size.cos() * mean + size.sin() * step / size
    for name, integrator, tolerance, bound in (
        ("splines", None, 1e-3, 1e-3),
        ("shooting", RungeKutta(1e-8), 1e-6, 1e-6),
    ):
        found = frechet_mean(SPHERE, points, integrator=integrator, tolerance=tolerance)
        error = (sphere(found.mean[None])[0] - mean).norm().item()
        yield below(f"Frechet mean on the sphere, {name}: distance", error, bound)


def clusters() -> Iterator[Line]:
    """K-means on the embedded digits model, five seeds, and distances on its graph."""
    metric, train, codes, labels = digits()
    deterministic = gl.PullbackMetric(lambda z: gl.models.digits_vae(dtype=z.dtype).decode(z)[0])
    euclid = [KMeans(10, n_init=10, random_state=seed).fit_predict(codes) for seed in range(5)]
    scores = {"Euclidean": [adjusted_rand_score(labels, found) for found in euclid]}
    for name, each in (("geodesic, mean alone", deterministic), ("geodesic", metric)):
        graph = gl.LatentGraph.from_codes(each, train, n_nodes=6000, n_neighbors=24)
        scores[name] = []
        for seed in range(5):
            model = GeodesicKMeans(each, 10, graph=graph, random_state=seed).fit(codes)
            scores[name].append(adjusted_rand_score(labels, model.labels_))
    plain = np.mean(scores["Euclidean"])
    for name, values in scores.items():
        required = f"> {plain:.3f}" if name == "geodesic" else ""
        measured = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        met = name != "geodesic" or bool(np.mean(values) > plain)
        yield Line(f"k-means of digits, {name}: adjusted Rand index", measured, required, met)
    start, end = codes[:60], codes[60:120]
    polished = gl.distance(metric, start, end, initial=graph)
    excess = graph_distances(graph, start, end) / polished - 1
    measured = f"{100 * excess.mean():.1f} ± {100 * excess.std():.1f} %"
    yield Line("graph distance over polished, 60 pairs of digits", measured, "", True)


def walks() -> Iterator[Line]:
    """Brownian motion on the sphere: E d^2 = 2 t - t^2 / 3 + ..., E cos d = exp(-t)."""
    n, t = 4000, 0.4
    path = gl.brownian_motion(SPHERE, torch.zeros(n, 2), t, n_steps=20, seed=1)
    cosine = -sphere(path.flatten(0, 1))[:, 2].reshape(n, -1)
    square, short = cosine[:, 1].clamp(-1, 1).acos().square(), t / 20
    for what, values, expected in (
        (
            "Brownian motion on the sphere: E d^2 / 2 t, t = 0.02",
            square / (2 * short),
            1 - short / 6,
        ),
        ("Brownian motion on the sphere: E cos d, t = 0.4", cosine[:, -1], math.exp(-t)),
    ):
        mean, error = values.mean().item(), values.std().item() / n**0.5
        met = abs(mean - expected) < 3 * error
        yield Line(what, f"{mean:.4f} ± {error:.4f}", f"{expected:.4f}", met)


def arcs(n: int, n_arcs: int, seed: int) -> Tensor:
    """Half circles with a little noise across, the second one upside down and moved."""
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(n_arcs, n, generator=generator)
    radius = 1 + 0.1 * torch.randn(n_arcs, n, generator=generator)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)
    flip = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])[:n_arcs, None]
    move = torch.tensor([[0.0, 0.0], [1.0, 0.4]])[:n_arcs, None]
    return (points * flip + move).flatten(0, 1)


def densities() -> Iterator[Line]:
    """Held-out log-likelihood of LAND and of Gaussian mixtures of as many components."""
    from geolatent.metrics.composite import LocalVarianceMetric

    for k, name in ((1, "half circle"), (2, "two half circles")):
        train, test = arcs(100, k, 0), arcs(100, k, 1)
        metric = LocalVarianceMetric(train, bandwidth=0.15, floor=0.1)
        land = LandMixture(metric, k, n_samples=300, max_iter=10, random_state=0).fit(train)
        normal = GaussianMixture(k, n_init=10, random_state=0).fit(train)
        found, plain = land.score(test), normal.score(test)
        what = f"LAND, {name}, K = {k}: held-out nats per code"
        yield Line(what, f"{found:.3f}", f"> {plain:.3f}, normal", found > plain)


def families() -> Iterator[Line]:
    """Fisher-Rao distances against closed forms; an ensemble of one."""

    def length(metric: gl.Metric, start: Tensor, end: Tensor) -> Tensor:
        return gl.solve_geodesic(metric, start, end, TIGHT, length_tolerance=1e-9).length

    def softmax(z: Tensor) -> Tensor:
        return torch.cat([z, torch.zeros_like(z[:, :1])], dim=1).softmax(1)

    start, end = torch.randn(2, 20, 2)
    arc = [2 * torch.sigmoid(z).sqrt().asin() for z in (start, end)]
    expected = (arc[0] - arc[1]).norm(dim=1)
    error = length(gl.BernoulliPullbackMetric(torch.sigmoid), start, end) / expected - 1
    yield below("Fisher-Rao, Bernoulli: relative error", error.abs().max().item(), 1e-6)
    expected = 2 * (softmax(start) * softmax(end)).sqrt().sum(1).acos()
    error = length(gl.CategoricalPullbackMetric(softmax), start, end) / expected - 1
    yield below("Fisher-Rao, categorical: relative error", error.abs().max().item(), 1e-6)
    metric, _, codes, _ = digits()
    one, other = (
        gl.solve_geodesic(each, codes[:10], codes[10:20]).length
        for each in (metric, gl.EnsembleMetric([metric]))
    )
    difference = (one / other - 1).abs().max().item()
    yield below("ensemble of one against the plain metric", difference, 1e-12)


PARTS: dict[str, Callable[[], Iterator[Line]]] = {
    "exponential": exponential_and_logarithm,
    "norms": norms,
    "means": means,
    "clusters": clusters,
    "walks": walks,
    "densities": densities,
    "families": families,
}


def check(parts: list[str] | None = None) -> int:
    """Measure and print the table.

    Parameters
    ----------
    parts
        Some of exponential, norms, means, clusters, walks, densities, families; all by
        default.
    """
    torch.set_default_dtype(torch.float64)
    table = make_table("Latent geometry", ["what", "measured", "required", "met"], n_text=1)
    met = True
    for name in parts or PARTS:
        torch.manual_seed(0)
        began = time.perf_counter()
        for line in PARTS[name]():
            table.add_row(line.what, line.measured, line.required, "yes" if line.met else "NO")
            met &= line.met
        table.add_row(f"  ({name}: {time.perf_counter() - began:.0f} s)", "", "", "")
        table.add_section()
    console = Console()
    Console(width=max(console.width, 130)).print(table)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(auto_cli(check))
