"""Work and precision of geodesic solvers on the same problems: python scripts/benchmark.py.

Every method gets the same decoder, pairs and starting point, the straight line (a graph's paths
besides, where it has one). Its curves are turned into splines and measured by one rule,
`geolatent.path_length`. Peers are called by their public interface only, with the settings they
come with; one that is not installed, or cannot run a problem, gets a row that says why.

Cost is counted in decoder rows and summed in forward equivalents: forward 1, backward 2, a row
differentiated in forward mode 2.5, a metric tensor d. The library counts its own rows, those for
measuring lengths included. For peers a wrapped decoder counts rows of forward calls, and a hook on
its output the rows of every backward pass through it; the second pass of a double backward is not
seen by the hook and not counted, which favours them. Forward-mode Jacobians are counted from
the sizes asked for.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from check_certificate import PretrainedDecoder
from check_dimensions import photograph_codes, smooth_decoder
from jsonargparse import auto_cli
from torch import Tensor, nn

import geolatent as gl
from geolatent.curves import basis_matrix
from geolatent.lab.demo import digit_pairs
from geolatent.metrics.rows import Rows
from geolatent.solvers.energy import DiscreteEnergy
from geolatent.solvers.georce import polyline

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from problems import coupling_flow

CONFIG = Path(__file__).parents[1] / "configs" / "benchmark.yaml"

# what tells an installed peer from the wrapped decoder's own failures
NOT_INSTALLED = "not installed"
# the reverse-mode metric is timed on that many outputs at most, and scaled to all of them
TIMED_OUTPUTS = 32
TIMED_EVALUATIONS = 2
# nodes of stochman's spline: its default, named because its curve is rebuilt from them
STOCHMAN_NODES = 5
# segments of a polyline through a curve that is no spline
SEGMENTS = 128
# relative tolerance of the lengths that methods are compared by; of those across kinks, and of
# outputs so wide that they are dear
LENGTH_TOLERANCE = 1e-5
COARSE_LENGTH_TOLERANCE = 1e-4
WIDE = 10_000
# decoders of the repository disentangling-vae, by the names of their files
DECODERS = ("VAE_mnist", "factor_chairs", "btcvae_celeba", "betaH_dsprites")


@dataclass(frozen=True)
class Problem:
    """Pairs of codes under one metric.

    Attributes
    ----------
    immersion
        F: (n, d) -> (n, D) with G = J_F^T J_F; for a Gaussian decoder mean and standard deviation
        side by side. None for a metric given by its tensor field alone.
    tensor
        z -> G(z), for such a metric.
    codes
        Codes for a nearest-neighbour graph.
    known
        Distances in closed form, where they are known.
    kinks
        Whether F is a ReLU network: other settings of the library matter there.
    dear
        Whether a row of F costs so much that long runs and graphs are left out.
    """

    name: str
    title: str
    metric: gl.Metric
    start: Tensor
    end: Tensor
    immersion: Callable[[Tensor], Tensor] | None
    tensor: Callable[[Tensor], Tensor] | None = None
    codes: Tensor | None = None
    known: Tensor | None = None
    kinks: bool = False
    dear: bool = False

    @property
    def dim(self) -> int:
        """Latent dimension d."""
        return self.start.shape[1]

    @property
    def width(self) -> int | None:
        """Size of the decoder's output, D."""
        if self.immersion is None:
            return None
        with torch.no_grad():
            return self.immersion(self.start[:1]).shape[1]

    def first(self, n: int) -> Problem:
        """Return the problem of the first n pairs alone."""
        known = None if self.known is None else self.known[:n]
        return replace(self, start=self.start[:n], end=self.end[:n], known=known)


@dataclass
class Run:
    """What a method made of a problem. Rows are means over the attempted pairs.

    ``curves`` holds splines of the solved pairs, ``solved`` which they are.
    """

    curves: list[gl.CubicBSpline] = field(default_factory=list)
    solved: list[int] = field(default_factory=list)
    attempted: int = 0
    seconds: float = 0.0
    setup_seconds: float = 0.0
    setup_rows: int = 0
    forward: float = 0.0
    backward: float = 0.0
    jvp: float = 0.0
    note: str = ""
    extrapolated: bool = False

    @property
    def equivalents(self) -> float:
        """Forward equivalents for one pair."""
        return self.forward + 2.0 * self.backward + 2.5 * self.jvp


class CannotRunError(Exception):
    """A method that cannot run a problem; the message says why."""


class OutOfTimeError(Exception):
    """The time limit of a method was reached."""


def now(place: Tensor) -> float:
    """Return the seconds on a clock, once the device of a tensor has nothing left to do."""
    if place.is_cuda:
        torch.cuda.synchronize(place.device)
    return time.perf_counter()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in the block after so many seconds."""

    def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise OutOfTimeError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


class CountingDecoder(nn.Module):
    """F, counting the rows of forward calls and, by a hook, of backward passes."""

    def __init__(self, problem: Problem, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if problem.immersion is None:
            raise CannotRunError("needs an immersion; the metric is given by its tensor field")
        self.immersion = problem.immersion
        self.inner = problem.start.dtype
        self.dtype = dtype or self.inner
        self.forward_rows = 0
        self.backward_rows = 0

    def forward(self, z: Tensor) -> Tensor:
        """Return F of codes (..., d), shape (..., D)."""
        flat = z.reshape(-1, z.shape[-1])
        output = self.immersion(flat.to(self.inner)).to(self.dtype)
        self.forward_rows += flat.shape[0]
        if output.requires_grad:
            output.register_hook(self._count_backward)
        return output.reshape(*z.shape[:-1], -1)

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_rows += gradient.reshape(-1, gradient.shape[-1]).shape[0]


# Problems


def digits(pairs: int, seed: int) -> Problem:
    """Test digits in the embedded 2-d model, whose uncertainty walls the data in."""
    chosen = digit_pairs(pairs, seed)
    return Problem(
        "digits",
        "embedded 2-d model of digits, pairs of test images",
        chosen.metric,
        chosen.start,
        chosen.end,
        joined(chosen.model.decode),
        codes=chosen.codes,
    )


def mnist(pairs: int, seed: int, model: Path | None) -> Problem:
    """Random codes in a 16-d convolutional Gaussian decoder."""
    if model is None:
        raise CannotRunError("no model given (--model)")
    if not model.is_file():
        raise CannotRunError(f"there is no file {model}")
    decoder: Any = gl.models.load_model(model)
    decoder.requires_grad_(False)
    d = decoder.latent_dim
    start, end, codes = normal_codes(pairs, d, seed)
    metric = gl.GaussianPullbackMetric(decoder.decode)
    title = f"{d}-d convolutional VAE of MNIST, pairs from N(0, I)"
    return Problem("mnist", title, metric, start, end, joined(decoder.decode), codes=codes)


def deep(pairs: int, seed: int) -> Problem:
    """Random codes in a random deep decoder with d = 64."""
    d, width, out = 64, 256, 1024
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in in (d, width, width):
            linear = nn.Linear(fan_in, width)
            nn.init.normal_(linear.weight, std=1.6 / math.sqrt(fan_in))
            layers += [linear, nn.Tanh()]
        decoder = nn.Sequential(*layers, nn.Linear(width, out)).requires_grad_(False).eval()
    start, end, codes = normal_codes(pairs, d, seed)
    metric = gl.PullbackMetric(decoder)
    title = "random deep decoder, d = 64, D = 1,024"
    return Problem("deep", title, metric, start, end, decoder, codes=codes)


def image(pairs: int, seed: int) -> Problem:
    """Random codes in a random convolutional generator of 3 x 256 x 256 images."""
    d = 8
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        channels = (32, 24, 16, 12, 8)
        layers: list[nn.Module] = [nn.Linear(d, 32 * 64), nn.Unflatten(1, (32, 8, 8)), nn.Tanh()]
        nn.init.normal_(layers[0].weight, std=1.5 / math.sqrt(d))  # type: ignore[arg-type]
        for n_in, n_out in itertools.pairwise(channels):
            convolution = nn.Conv2d(n_in, n_out, 3, padding=1)
            nn.init.normal_(convolution.weight, std=1.5 / math.sqrt(9 * n_in))
            layers += [nn.Upsample(scale_factor=2), convolution, nn.Tanh()]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels[-1], 3, 3, padding=1)]
        decoder = nn.Sequential(*layers, nn.Flatten()).requires_grad_(False).eval()
    start, end, codes = normal_codes(pairs, d, seed)
    metric = gl.PullbackMetric(decoder)
    title = "random convolutional generator, d = 8, D = 3 x 256 x 256"
    return Problem("image", title, metric, start, end, decoder, codes=codes)


def sphere(pairs: int, seed: int) -> Problem:
    """Pairs in the lower half of the unit sphere, by inverse stereographic projection."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(2, 2, pairs, generator=generator, dtype=torch.float64)
    radius, angle = u[:, 0].sqrt(), 2 * math.pi * u[:, 1]
    start, end = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)

    def decoder(z: Tensor) -> Tensor:
        square = z.square().sum(-1, keepdim=True)
        return torch.cat([2 * z, square - 1], dim=-1) / (square + 1)

    known = 2 * ((decoder(start) - decoder(end)).norm(dim=1) / 2).asin()
    metric = gl.PullbackMetric(decoder)
    return Problem("sphere", "unit sphere", metric, start, end, decoder, known=known)


def half_plane(pairs: int, seed: int) -> Problem:
    """Pairs in the hyperbolic half-plane, whose metric is given by its tensor field."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(2, pairs, 2, generator=generator, dtype=torch.float64)
    start, end = torch.stack([2 * u[..., 0] - 1, 0.5 + 1.5 * u[..., 1]], dim=2)

    def tensor(z: Tensor) -> Tensor:
        eye = torch.eye(2, dtype=z.dtype, device=z.device)
        return eye / z[:, 1, None, None].square()

    ratio = (start - end).square().sum(1) / (2 * start[:, 1] * end[:, 1])
    metric = gl.TensorMetric(tensor, dim=2)
    title = "hyperbolic half-plane"
    known = (1 + ratio).acosh()
    return Problem("half_plane", title, metric, start, end, None, tensor, known=known)


def pretrained(name: str, pairs: int, seed: int, folder: Path | None) -> Problem:
    """Random codes in a ReLU decoder of the repository disentangling-vae."""
    if folder is None:
        raise CannotRunError("no decoders given (--decoders)")
    path = folder / f"{name}.pt"
    if not path.is_file():
        raise CannotRunError(f"there is no file {path}")
    decoder = PretrainedDecoder(path).float()
    start, end, codes = normal_codes(pairs, 10, seed)
    channels, height, width = decoder(start[:1]).shape[1:]
    title = f"{name}, d = 10, D = {channels} x {height} x {width}, kinks, pairs from N(0, I)"

    def immersion(z: Tensor) -> Tensor:
        return decoder(z).flatten(1)

    metric = gl.PullbackMetric(immersion)
    dear = width >= 64
    return Problem(name, title, metric, start, end, immersion, codes=codes, kinks=True, dear=dear)


def flow(d: int, layers: int, pairs: int, seed: int) -> Problem:
    """Random codes in a bijection with kinks: the distance is that of the images."""
    decoder = coupling_flow(d, layers).double()
    start, end, codes = (z.double() for z in normal_codes(pairs, d, seed))
    known = (decoder(start) - decoder(end)).norm(dim=1)
    metric = gl.PullbackMetric(decoder)
    title = f"coupling flow, d = {d}, kinks, pairs from N(0, I)"
    return Problem(
        f"flow_{d}", title, metric, start, end, decoder, codes=codes, known=known, kinks=True
    )


def smooth(d: int, pairs: int, seed: int) -> Problem:
    """Random codes in a random convolutional decoder of many dimensions."""
    decoder = nn.Sequential(smooth_decoder(d), nn.Flatten())
    start, end, codes = normal_codes(pairs, d, seed)
    metric = gl.PullbackMetric(decoder)
    title = f"random decoder of SiLU and GroupNorm, d = {d:,}, pairs from N(0, I)"
    return Problem(f"smooth_{d}", title, metric, start, end, decoder, codes=codes)


def photographed(pairs: int, folder: Path | None) -> Problem:
    """Photographs in the latent space of a tiny autoencoder with kinks."""
    if folder is None:
        raise CannotRunError("no autoencoder given (--autoencoder)")
    path = folder / "taef2_decoder.pth"
    if not path.is_file():
        raise CannotRunError(f"there is no file {path}")
    decode, start, end = photograph_codes(folder, side=32)

    def immersion(z: Tensor) -> Tensor:
        return decode(z).flatten(1)

    metric = gl.PullbackMetric(immersion)
    title = f"taef2, d = {start.shape[1]}, kinks, pairs of photographs of 32 x 32"
    problem = Problem("taef2", title, metric, start, end, immersion, kinks=True, dear=True)
    return problem.first(pairs)


def joined(decode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    """Return the mean and standard deviation of a Gaussian decoder side by side."""

    def immersion(z: Tensor) -> Tensor:
        return torch.cat([part.reshape(z.shape[0], -1) for part in decode(z)], dim=1)

    return immersion


def normal_codes(pairs: int, dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes from N(0, I): starts, ends, and 10,000 nodes for a graph."""
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, pairs, dim, generator=generator)
    return start, end, torch.randn(10_000, dim, generator=generator)


# Methods of the library


def library(
    problem: Problem, solver: gl.Solver | None, initial: gl.LatentGraph | None = None
) -> Run:
    """Solve all pairs in one call."""
    gl.solve_geodesic(problem.metric, problem.start[:1], problem.end[:1], WARM_UP)
    began = now(problem.start)
    solution = gl.solve_geodesic(
        problem.metric, problem.start, problem.end, solver, initial=initial
    )
    seconds = now(problem.start) - began
    finite = solution.length.isfinite().nonzero().flatten().tolist()
    ends = (gl.Status.CONVERGED, gl.Status.STRAIGHT_IS_SHORTEST, gl.Status.ROUGH)
    rough = sum(status == gl.Status.ROUGH for status in solution.statuses)
    stopped = sum(status not in ends for status in solution.statuses)
    notes = [f"{rough} ended rough"] if rough else []
    notes += [f"{stopped} stopped before their tolerance"] if stopped else []
    evaluations = solution.evaluations
    return Run(
        curves=[select(solution.curve, i) for i in finite],
        solved=finite,
        attempted=len(problem.start),
        seconds=seconds,
        forward=evaluations.forward.double().mean().item(),
        backward=evaluations.backward.double().mean().item(),
        jvp=evaluations.jvp.double().mean().item(),
        note="; ".join(notes),
    )


WARM_UP = gl.PreconditionedSolver(max_iterations=1)
# points of the comparison, from coarse to fine, that of the defaults among them
SETTINGS: dict[str, dict[str, Any]] = {
    "tolerance 0.01": {"tolerance": 1e-2},
    "tolerance 0.001": {"tolerance": 1e-3},
    "tolerance 0.0001": {},
    "tolerance 1e-05": {"tolerance": 1e-5},
}
# across kinks small tolerances are out of reach; the first is a curve as coarse as stochman's
KINKED_SETTINGS: dict[str, dict[str, Any]] = {
    "7 control points, tolerance 0.01": {"max_control_points": 7, "tolerance": 1e-2},
    "tolerance 0.03": {"tolerance": 3e-2},
    "tolerance 0.01": {"tolerance": 1e-2},
    "tolerance 0.0001": {},
    "rough_tolerance 0.00625": {"rough_tolerance": 0.00625},
}


def run_graph(problem: Problem, kind: str) -> Run:
    """Solve with a graph's paths as second starts."""
    began = time.perf_counter()
    if kind == "lattice":
        everything = [problem.start, problem.end]
        everything += [] if problem.codes is None else [problem.codes]
        box = torch.cat(everything)
        low, high = box.amin(0) - 0.5, box.amax(0) + 0.5
        if problem.tensor is not None:  # the half-plane ends at y = 0
            low = torch.maximum(low, torch.tensor([-torch.inf, 0.05], dtype=low.dtype))
        graph = gl.LatentGraph.lattice(problem.metric, low, high, resolution=256)
    else:
        if problem.codes is None:
            raise CannotRunError("no codes to build a graph on")
        few = len(problem.codes) < 10_000
        graph = gl.LatentGraph.from_codes(
            problem.metric, problem.codes, n_nodes=30_000 if few else None
        )
    setup = time.perf_counter() - began
    run = library(problem, None, graph)
    run.setup_seconds, run.setup_rows = setup, graph.forward_rows
    return run


class ReverseModeMetric(gl.Metric):
    """G = J_F^T J_F with J_F built row by row: one backward pass for each output.

    Parameters
    ----------
    immersion
        F.
    n_outputs
        Rows of J_F to build, the first ones.
    """

    quadratic_cost = "forward"

    def __init__(self, immersion: Callable[[Tensor], Tensor], n_outputs: int) -> None:
        self.function = immersion
        self.n_outputs = n_outputs

    def _tensor(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            point = z if z.requires_grad else z.detach().requires_grad_()
            output = self.function(point)
            rows = [
                torch.autograd.grad(output[:, k].sum(), point, create_graph=True)[0]
                for k in range(self.n_outputs)
            ]
        jacobian = torch.stack(rows, dim=1)
        return jacobian.mT @ jacobian

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("ni,nij,nj->n", v, self._tensor(z), v)


def run_reverse_mode(problem: Problem, recipe_runs: dict[str, Run]) -> Run:
    """Time a few steps of the recipe with reverse-mode metrics; take the curves of the recipe.

    The objective is the same, so are its minimisers. Time is proportional to the number of steps,
    and to that of outputs.
    """
    if problem.immersion is None or problem.width is None:
        raise CannotRunError("no decoder to differentiate")
    recipe = gl.FirstOrderSolver.michelis_becker()
    run = replace(recipe_runs.get(problem.name) or library(problem, recipe))
    timed = min(problem.width, TIMED_OUTPUTS)
    metric = ReverseModeMetric(problem.immersion, timed)
    line = gl.CubicBSpline.straight(problem.start[:1], problem.end[:1])
    points = line.control_points.double()
    nodes, pairs = recipe.nodes, torch.zeros(1, dtype=torch.int64)
    at_work = Rows.of(metric, problem.start).counting(1)
    energy = DiscreteEnergy(at_work, line.knots, nodes, points, pairs, None)
    began = time.perf_counter()
    for _ in range(TIMED_EVALUATIONS):
        energy(energy.start, pairs)
    seconds_per_row = (time.perf_counter() - began) / (TIMED_EVALUATIONS * nodes)
    rows, evaluations = 0, 1 + recipe.drops + (recipe.drops + 1) * recipe.steps
    sizes = range(recipe.first_control_points, recipe.max_control_points + 1)
    for n in sizes:
        spans = n - 3
        rows += evaluations * spans * max(2, -(-nodes // spans))
    outputs = problem.width
    run.seconds = seconds_per_row * rows * outputs / timed * run.attempted
    # each of the D backward passes is gone through again by the energy's gradient
    run.forward, run.backward, run.jvp = float(rows), 2.0 * rows * outputs, 0.0
    run.extrapolated = True
    run.note = (
        f"time extrapolated from 1 pair, {TIMED_EVALUATIONS} of {evaluations * len(sizes)} "
        f"evaluations and {timed} of {outputs} outputs; curves are those of the recipe"
    )
    return run


# Peers


def peer(module: str) -> Any:
    """Import a peer, or say that it cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return __import__(module, fromlist=["*"])
    except ImportError as error:
        name = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        raise CannotRunError(NOT_INSTALLED if missing else f"does not import: {error}") from None


def run_stochman(problem: Problem, iterations: int) -> Run:
    """Solve by stochman's cubic spline and its Adam, all pairs at once."""
    stochman = peer("stochman")
    geodesic = peer("stochman.geodesic")
    manifolds = peer("stochman.manifold")
    counter = None if problem.immersion is None else CountingDecoder(problem)
    tensors = 0
    if counter is not None:

        class Embedded(manifolds.EmbeddedManifold):  # type: ignore[misc, name-defined]
            def embed(self, points: Tensor, jacobian: bool = False) -> Tensor:  # noqa: ARG002
                return counter(points)

        manifold = Embedded()
    else:

        class Field(manifolds.Manifold):  # type: ignore[misc, name-defined]
            def metric(self, points: Tensor) -> Tensor:
                nonlocal tensors
                tensors += points.shape[0]
                return problem.tensor(points)  # type: ignore[misc]

        manifold = Field()
    # its parameters begin in the processor's memory
    spline = stochman.CubicSpline(problem.start.cpu(), problem.end.cpu(), STOCHMAN_NODES)
    spline = spline.to(problem.start.device)
    began = now(problem.start)
    flag = geodesic.geodesic_minimizing_energy(spline, manifold, max_iter=iterations)
    seconds = now(problem.start) - began
    n_pairs = len(problem.start)
    edges = STOCHMAN_NODES - 1
    t = torch.linspace(0.0, 1.0, 12 * edges + 1, dtype=torch.float64)
    with torch.no_grad():
        points = spline(t.to(problem.start)).reshape(n_pairs, len(t), -1).double().cpu()
    # uniform breaks, twice continuously differentiable: a B-spline on the same breaks is it
    breaks = torch.linspace(0.0, 1.0, edges + 1, dtype=torch.float64)
    knots = torch.cat([torch.zeros(3).double(), breaks, torch.ones(3).double()])
    control = torch.linalg.lstsq(basis_matrix(knots, t).expand(n_pairs, -1, -1), points).solution
    run = Run(attempted=n_pairs, seconds=seconds, note="" if flag else "its flag: not converged")
    for i in range(n_pairs):
        if control[i].isfinite().all():
            run.curves.append(gl.CubicBSpline(control[i : i + 1].to(problem.start), knots))
            run.solved.append(i)
    if counter is None:
        run.forward = run.backward = tensors / n_pairs
    else:
        run.forward = counter.forward_rows / n_pairs
        run.backward = counter.backward_rows / n_pairs
    return run


def run_latent_geometry(problem: Problem, limit: float) -> Run:
    """Solve pair by pair by latent-geometry's boundary-value problem."""
    manifolds = peer("latent_geometry.manifold")
    mappings = peer("latent_geometry.mapping.torch")
    metrics = peer("latent_geometry.metric")
    d, width = problem.dim, problem.width
    if problem.immersion is None or width is None:
        raise CannotRunError("its manifolds need a mapping; the metric is given by a tensor field")
    needed = width * d * d * 4
    if needed > 2**30:
        raise CannotRunError(
            f"second derivatives of all D outputs: {needed / 2**30:.1f} GiB for each point"
        )
    rows = {"forward": 0, "jvp": 0}

    class Mapping(mappings.TorchModelMapping):  # type: ignore[misc, name-defined]
        def __call__(self, zs: np.ndarray) -> np.ndarray:
            rows["forward"] += len(zs)
            return super().__call__(zs)

        def jacobian(self, zs: np.ndarray) -> np.ndarray:
            rows["forward"] += d * len(zs)  # a metric tensor
            return super().jacobian(zs)

        def euclidean_metric_matrix_derivative(self, zs: np.ndarray) -> np.ndarray:
            rows["jvp"] += d * d * len(zs)  # d columns, differentiated in d directions
            return super().euclidean_metric_matrix_derivative(zs)

    module = CountingDecoder(problem, torch.float32)  # it turns all codes to float32
    mapping = Mapping(module, (d,), (width,), batch_size=max(1, 2**28 // needed))
    manifold = manifolds.LatentManifold(mapping, metrics.EuclideanMetric())

    def solve(a: Tensor, b: Tensor) -> np.ndarray:
        path = manifold.shortest_path(a.double().numpy(), b.double().numpy())
        points = np.stack([path(s) for s in np.linspace(0.0, 1.0, SEGMENTS + 1)])
        rows["forward"] -= 1001  # that it decodes for a path in the output, after solving
        return points

    run = pair_by_pair(problem, solve, limit)
    n = max(run.attempted, 1)
    run.forward, run.jvp = rows["forward"] / n, rows["jvp"] / n
    return run


def run_geomstats(problem: Problem, limit: float) -> Run:
    """Solve pair by pair by the logarithm of geomstats' pull-back metric, which shoots."""
    counter = CountingDecoder(problem, torch.float64)
    width = problem.width or 0
    if width > 20_000:
        raise CannotRunError(f"one backward pass for each of the {width:,} outputs, at every point")
    os.environ["GEOMSTATS_BACKEND"] = "pytorch"
    before = torch.get_default_dtype()
    renamed = not hasattr(np, "trapz")
    if renamed:  # its back ends import a name that NumPy 2.4 no longer has
        vars(np)["trapz"] = np.trapezoid
    try:
        base = peer("geomstats.geometry.base")
        euclidean = peer("geomstats.geometry.euclidean")

        class Latent(base.ImmersedSet):  # type: ignore[misc, name-defined]
            def immersion(self, point: Tensor) -> Tensor:
                return counter(point)

            def _define_embedding_space(self) -> Any:
                return euclidean.Euclidean(dim=width)

        space = Latent(dim=problem.dim)
        t = torch.linspace(0.0, 1.0, 33, dtype=torch.float64)[:, None]

        def solve(a: Tensor, b: Tensor) -> np.ndarray:
            a, b = a.double(), b.double()
            velocity = space.metric.log(b, a)
            counts = counter.forward_rows, counter.backward_rows
            points = space.metric.exp(t * velocity, a.expand(len(t), -1)).detach()
            counter.forward_rows, counter.backward_rows = counts
            gap = (points[-1] - b).norm() / (b - a).norm()
            if not gap < 0.02:
                raise RuntimeError(f"its geodesic ends {gap:.0%} of the distance off its end point")
            points[-1] = b
            return points.numpy()

        run = pair_by_pair(problem, solve, limit)
    finally:
        torch.set_default_dtype(before)
        if renamed:
            del vars(np)["trapz"]
    n = max(run.attempted, 1)
    run.forward, run.backward = counter.forward_rows / n, counter.backward_rows / n
    if renamed:
        run.note = "; ".join(filter(None, [run.note, "needs NumPy below 2.4; trapz put back"]))
    return run


def pair_by_pair(
    problem: Problem, solve: Callable[[Tensor, Tensor], np.ndarray], limit: float
) -> Run:
    """Solve one pair after the other until the time is up; curves come as points (T, d)."""
    run = Run()
    failures: list[str] = []
    began = time.perf_counter()
    for i, (a, b) in enumerate(zip(problem.start, problem.end, strict=True)):
        left = limit - (time.perf_counter() - began)
        if left <= 0.0:
            break
        run.attempted += 1
        try:
            with time_limit(left), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                points = torch.from_numpy(np.asarray(solve(a, b)))[None].double()
        except Exception as error:
            failures.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
            continue
        if not points.isfinite().all():
            failures.append("not finite")
            continue
        t = torch.linspace(0.0, 1.0, points.shape[1], dtype=torch.float64)
        knots, control = polyline(t, points)
        run.curves.append(gl.CubicBSpline(control.to(problem.start), knots))
        run.solved.append(i)
    run.seconds = time.perf_counter() - began
    if failures:
        run.note = f"{len(failures)} failed: {max(set(failures), key=failures.count)}"
    return run


# The comparison


@dataclass(frozen=True)
class Method:
    """One point of the comparison; ``default`` marks the setting that the table shows."""

    name: str
    label: str
    setting: str
    run: Callable[[Problem], Run]
    default: bool = True


def all_methods(
    quick: bool, limit: float, *, kinks: bool = False, dear: bool = False
) -> list[Method]:
    """Return the methods in the order in which they run, with settings for such a problem."""

    def solver(make: Callable[..., gl.Solver], **settings: Any) -> Callable[[Problem], Run]:
        return lambda problem: library(problem, make(**settings))

    methods = []
    for setting, values in (KINKED_SETTINGS if kinks else SETTINGS).items():
        if (values and quick) or (dear and "rough_tolerance" in values):
            continue
        run = solver(gl.PreconditionedSolver, **values)
        methods.append(Method("geolatent", "geolatent", setting, run, not values))
    methods.append(
        Method(
            "lattice",
            "geolatent, lattice",
            "256 x 256",
            lambda problem: run_graph(only_planes(problem), "lattice"),
        )
    )
    methods.append(
        Method(
            "codes",
            "geolatent, graph of codes",
            "32 neighbours",
            lambda problem: run_graph(cheap(problem), "codes"),
        )
    )
    recipe = gl.FirstOrderSolver.michelis_becker()
    label = "Adam, one knot at a time"
    recipe_runs: dict[str, Run] = {}

    def adam(problem: Problem) -> Run:
        recipe_runs[problem.name] = library(problem, recipe)
        return recipe_runs[problem.name]

    methods.append(Method("adam", label, "recipe", adam))
    label = "the same, reverse-mode metrics"
    methods.append(
        Method("reverse", label, "recipe", lambda problem: run_reverse_mode(problem, recipe_runs))
    )
    for iterations in [150] if quick else [50, 150] if dear else [50, 150, 600]:

        def stochman(problem: Problem, iterations: int = iterations) -> Run:
            return run_stochman(problem, iterations)

        setting = f"{iterations} iterations"
        methods.append(Method("stochman", "stochman", setting, stochman, iterations == 150))
    methods.append(
        Method(
            "latent_geometry",
            "latent-geometry",
            "defaults",
            lambda problem: run_latent_geometry(problem, limit),
        )
    )
    methods.append(
        Method("geomstats", "geomstats", "shooting", lambda problem: run_geomstats(problem, limit))
    )
    # across kinks all of its settings end alike
    for tolerance in [3e-4] if quick or kinks else [1e-2, 3e-4]:
        run = solver(gl.GEORCESolver, segments=100, tolerance=tolerance)
        setting = f"T = 100, tolerance {tolerance:g}"
        methods.append(Method("georce", "GEORCE", setting, run, tolerance == 3e-4))
    return methods


def cheap(problem: Problem) -> Problem:
    """Return the problem, where many rows are affordable."""
    if problem.dear:
        raise CannotRunError("left out: 10,000 codes of a dear decoder")
    return problem


def only_planes(problem: Problem) -> Problem:
    """Return the problem, where a lattice can cover it."""
    if problem.dim > 2:
        raise CannotRunError(f"a lattice in {problem.dim} dimensions is too large")
    return problem


def reference_lengths(problem: Problem) -> Tensor:
    """Return lengths of curves solved to the end, from the straight line and from graphs."""
    if problem.known is not None:
        return problem.known.double()
    tight = gl.PreconditionedSolver(tolerance=1e-6, max_iterations=1000)
    if problem.kinks:
        tight = gl.PreconditionedSolver(rough_tolerance=0.0, max_iterations=400)
    candidates = [gl.solve_geodesic(problem.metric, problem.start, problem.end, tight)]
    if problem.dim <= 2 and problem.codes is not None:
        box = torch.cat([problem.start, problem.end, problem.codes])
        low, high = box.amin(0) - 0.5, box.amax(0) + 0.5
        graph = gl.LatentGraph.lattice(problem.metric, low, high, resolution=300)
        polish = replace(tight, first_control_points=48, max_control_points=93)
        candidates.append(
            gl.solve_geodesic(problem.metric, problem.start, problem.end, polish, initial=graph)
        )
    lengths = [lengths_of(problem, solution.curve, range_of(problem)) for solution in candidates]
    return torch.stack(lengths).amin(0)


def range_of(problem: Problem) -> list[int]:
    """Return the indices of all pairs."""
    return list(range(len(problem.start)))


def lengths_of(problem: Problem, curve: gl.CubicBSpline, which: list[int]) -> Tensor:
    """Measure curves, those of the given pairs, by the common rule; NaN for the other pairs."""
    lengths = torch.full((len(problem.start),), torch.nan, dtype=torch.float64)
    coarse = problem.kinks or (problem.width or 0) >= WIDE
    tolerance = COARSE_LENGTH_TOLERANCE if coarse else LENGTH_TOLERANCE
    # in double precision where that is free: a decoder's parameters fix its type
    lengths[which] = gl.path_length(problem.metric, curve, tolerance=tolerance).double()
    return lengths


def select(curve: gl.CubicBSpline, pair: int) -> gl.CubicBSpline:
    """Return the curve of one pair."""
    return gl.CubicBSpline(curve.control_points[pair : pair + 1], curve.knots)


def attempt(method: Method, problem: Problem, limit: float) -> tuple[Run, Tensor, str]:
    """Run a method; return its curves' lengths (B,), NaN where it has none, and how it went."""
    nothing = torch.full((len(problem.start),), torch.nan, dtype=torch.float64)
    try:
        # peers that solve pair by pair mind the limit themselves
        with time_limit(10.0 * limit), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = method.run(problem)
    except CannotRunError as error:
        state = NOT_INSTALLED if str(error) == NOT_INSTALLED else "cannot run"
        return Run(note=str(error)), nothing, state
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Run(note=reason[:200]), nothing, "failed"
    lengths = nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for curve, pair in zip(run.curves, run.solved, strict=True):
            lengths[pair] = lengths_of(problem.first(1), curve, [0])[0]
    return run, lengths, "ran"


def compare(problem: Problem, methods: list[Method], limit: float) -> dict[str, Any]:
    """Run the methods on a problem; return its entry of the results."""
    print(f"{problem.name}: {problem.title}, {len(problem.start)} pairs", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = reference_lengths(problem)
        line = gl.CubicBSpline.straight(problem.start, problem.end)
        straight = lengths_of(problem, line, range_of(problem))
    reference = best.clone()
    done = []
    for method in methods:
        run, lengths, state = attempt(method, problem, limit)
        done.append((method, run, lengths, state))
        shown = f"{run.seconds:.1f} s" if state == "ran" else f"{state}: {run.note}"
        print(f"  {method.label}, {method.setting}: {shown}", flush=True)
        if problem.known is None:
            best = torch.minimum(best, lengths.nan_to_num(torch.inf))
    rows = [summary(*entry, best=best, straight=straight) for entry in done]
    return {
        "name": problem.name,
        "title": problem.title,
        "kinks": problem.kinks,
        "latent_dimension": problem.dim,
        "outputs": problem.width,
        "pairs": len(problem.start),
        "best_is": "closed form" if problem.known is not None else "shortest of all curves",
        "best_lengths": best.tolist(),
        "reference_lengths": reference.tolist(),
        "straight_lengths": straight.tolist(),
        "straight_excess_median": statistics.median((straight / best - 1.0).tolist()),
        "methods": rows,
    }


def summary(
    method: Method, run: Run, lengths: Tensor, state: str, *, best: Tensor, straight: Tensor
) -> dict[str, Any]:
    """Return a method's entry of the results."""
    entry: dict[str, Any] = {
        "method": method.name,
        "label": method.label,
        "setting": method.setting,
        "default": method.default,
        "state": state,
        "note": run.note,
    }
    if state != "ran":
        return entry
    measured = lengths.isfinite()
    excess = (lengths / best - 1.0)[measured]
    several = excess.numel() > 0
    entry |= {
        "attempted": run.attempted,
        "failures": run.attempted - int(measured.sum()),
        "longer_than_straight": int((lengths > straight * (1 + 1e-4))[measured].sum()),
        "excess_median": excess.median().item() if several else None,
        "excess_mean": excess.mean().item() if several else None,
        "excess_max": excess.max().item() if several else None,
        "within_1_percent": (excess <= 0.01).double().mean().item() if several else None,
        "forward_rows": run.forward,
        "backward_rows": run.backward,
        "jvp_rows": run.jvp,
        "equivalents": run.equivalents,
        "seconds_per_pair": run.seconds / max(run.attempted, 1),
        "setup_seconds": run.setup_seconds,
        "setup_rows": run.setup_rows,
        "time_extrapolated": run.extrapolated,
        "lengths": lengths.tolist(),
    }
    return entry


def markdown(results: dict[str, Any]) -> str:
    """Return the table of the default settings, in Markdown."""
    lines = [
        "| problem | method | excess, median | largest | within 1 % | equivalents a pair "
        "| seconds a pair | failures |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for problem in results["problems"]:
        for row in problem["methods"]:
            if not row["default"] or row["note"].startswith(("a lattice", "left out")):
                continue
            head = f"| {problem['name']} | {row['label']} |"
            if row["state"] != "ran":
                lines.append(f"{head} {row['state']}: {row['note']} | | | | | |")
                continue
            once = f" + {row['setup_rows']:,} once" if row["setup_rows"] else ""
            tried = f"{row['failures']} of {row['attempted']}"
            star = "*" if row["time_extrapolated"] else ""
            if row["excess_median"] is None:
                shape = "- | - | -"
            else:
                shape = (
                    f"{percent(row['excess_median'])} | {percent(row['excess_max'])} "
                    f"| {row['within_1_percent']:.0%}"
                )
            lines.append(
                f"{head} {shape} | {row['equivalents']:,.0f}{once} "
                f"| {row['seconds_per_pair']:.3g}{star} | {tried} |"
            )
    if any(row.get("time_extrapolated") for p in results["problems"] for row in p["methods"]):
        lines += ["", "\\* extrapolated from a few evaluations"]
    return "\n".join(lines)


def percent(value: float) -> str:
    """Return a share as a percentage of two significant digits."""
    return "< 0.001 %" if value < 1e-5 else f"{100 * value:.2g} %"


def environment(threads: int) -> dict[str, Any]:
    """Return what the results depend on besides the settings."""
    versions = {}
    for name in ("torch", "numpy", "scipy", "stochman", "latent-geometry", "geomstats"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "geolatent": gl.__version__,
        "versions": versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def benchmark(
    output: Path = Path("benchmark.json"),
    model: Path | None = None,
    decoders: Path | None = None,
    autoencoder: Path | None = None,
    problems: list[str] | None = None,
    methods: list[str] | None = None,
    pairs: int | None = None,
    quick: bool = False,
    limit: float = 300.0,
    threads: int = 2,
    seed: int = 0,
) -> None:
    """Compare geodesic solvers; write JSON and print a Markdown table.

    Parameters
    ----------
    output
        File for the results, written again after every problem.
    model
        Weights of the 16-d model, X.safetensors.
    decoders
        Folder of the state dictionaries VAE_mnist.pt, factor_chairs.pt, btcvae_celeba.pt and
        betaH_dsprites.pt of the repository disentangling-vae.
    autoencoder
        Folder of taef2_encoder.pth and taef2_decoder.pth.
    problems
        Some of sphere, half_plane, digits, mnist, deep, image, smooth_256, smooth_1024, taef2,
        flow_2, flow_6, VAE_mnist, factor_chairs, btcvae_celeba, betaH_dsprites; all by default.
    methods
        Some of geolatent, lattice, codes, adam, reverse, stochman, latent_geometry,
        geomstats, georce; all by default.
    pairs
        Pairs for each problem; by default chosen for each.
    quick
        One setting for each method, fewer pairs, a limit of 6 seconds at most, no image.
    limit
        Seconds for a method on a problem; one that solves pair by pair leaves out the pairs
        that it does not get to, one that solves all at once is stopped after ten times that.
    threads
        Threads of PyTorch.
    seed
        Seed of pairs and random decoders.
    """
    torch.set_num_threads(threads)
    makers: dict[str, tuple[Callable[[int], Problem], int, int]] = {
        "sphere": (lambda n: sphere(n, seed), 20, 4),
        "half_plane": (lambda n: half_plane(n, seed), 20, 4),
        "digits": (lambda n: digits(n, seed), 50, 4),
        "mnist": (lambda n: mnist(n, seed, model), 10, 4),
        "deep": (lambda n: deep(n, seed), 8, 2),
        "image": (lambda n: image(n, seed), 1, 1),
        "smooth_256": (lambda n: smooth(256, n, seed), 4, 2),
        "smooth_1024": (lambda n: smooth(1024, n, seed), 4, 1),
        "taef2": (lambda n: photographed(n, autoencoder), 5, 1),
        "flow_2": (lambda n: flow(2, 4, n, seed), 100, 4),
        "flow_6": (lambda n: flow(6, 6, n, seed), 100, 4),
    }
    for name in DECODERS:
        many = {"VAE_mnist": 10, "betaH_dsprites": 4}.get(name, 5)
        makers[name] = (lambda n, name=name: pretrained(name, n, seed, decoders), many, 2)
    chosen = check_names("problems", problems, list(makers))
    if quick and problems is None:
        chosen.remove("image")
    limit = min(limit, 6.0) if quick else limit
    offered = [method.name for method in all_methods(quick, limit)]
    names = check_names("methods", methods, list(dict.fromkeys(offered)))
    results: dict[str, Any] = {
        "environment": environment(threads),
        "settings": {"quick": quick, "limit_seconds": limit, "seed": seed},
        "problems": [],
        "skipped": {},
    }
    for name in chosen:
        make, many, few = makers[name]
        try:
            problem = make(pairs or (few if quick else many))
        except CannotRunError as error:
            print(f"{name}: skipped, {error}", flush=True)
            results["skipped"][name] = str(error)
        else:
            offered_here = all_methods(quick, limit, kinks=problem.kinks, dear=problem.dear)
            picked = [method for method in offered_here if method.name in names]
            results["problems"].append(compare(problem, picked, limit))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{markdown(results)}\n\nwritten: {output}")


def check_names(argument: str, given: list[str] | None, offered: list[str]) -> list[str]:
    """Return the chosen names, in the order offered."""
    unknown = set(given or []) - set(offered)
    if unknown:
        sys.exit(f"--{argument}: {', '.join(sorted(unknown))} unknown; take {', '.join(offered)}")
    return [name for name in offered if given is None or name in given]


if __name__ == "__main__":
    auto_cli(
        benchmark,
        as_positional=False,
        default_config_files=[str(CONFIG)],
        allow_abbrev=False,
    )
