"""Pairs per second, and what bounds them, by one command for one device.

    python scripts/throughput.py --quick true
    python scripts/throughput.py --model VAE.safetensors --decoders FOLDER --autoencoder FOLDER

The models: a 16-d convolutional VAE of MNIST (--model), the embedded 2-d model of digits, a ReLU
VAE of the repository disentangling-vae (--decoders) and the tiny autoencoder taef2 at d = 512 and
2,048 (--autoencoder); what is not given is left out, with a line. Each is solved at three
tolerances. Of each solve: pairs per second; the share of time in the decoder's calls, which are
recorded by kind and batch size during one more solve; the time of the same calls made again alone;
the floating-point operations per second that they reach, beside what the device can; how often the
processor waited for the device. Then, for the first model: decoders of less precision and what they
do to lengths and certificates, the decoder as torch compiles it, and stochman and the recipe of the
paper beside.

What matters most comes first. Results are written after each figure, as JSON; when --minutes are
over what is left is told and left out. At the end tables are printed, in Markdown.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmark import CannotRunError, Problem, joined, library, normal_codes, now, run_stochman
from check_certificate import PretrainedDecoder
from check_dimensions import photograph_codes
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import geolatent as gl
from geolatent.metrics.map import Map

TOLERANCES = (1e-3, 1e-2, 1e-4)
# pairs of a model whose rows are dear; those of other methods and less precise decoders, at most,
# which take many times the rows
DEAR_PAIRS, PEER_PAIRS = 64, 1000
# Tera-operations per second of dense products, by a part of the device's name and the precision
PEAKS = {
    "H200": {"float32": 67, "TF32": 494, "bfloat16": 989},
    "H100": {"float32": 67, "TF32": 494, "bfloat16": 989},
    "A100": {"float32": 19.5, "TF32": 156, "bfloat16": 312},
    "L4": {"float32": 30, "TF32": 60, "bfloat16": 121},
    "T4": {"float32": 8.1, "TF32": 8.1, "bfloat16": 8.1},
}


@dataclass
class Record:
    """Decoder calls of a solve: (kind, rows) of each, and the seconds spent inside them.

    ``codes`` are some on the device whose clock it is.
    """

    codes: Tensor
    calls: list[tuple[str, int]] = field(default_factory=list)
    seconds: float = 0.0

    def timed(self, kind: str, rows: int, call: Callable[[], Any]) -> Any:
        """Make a call and note it."""
        self.calls.append((kind, rows))
        began = self.now()
        result = call()
        self.seconds += self.now() - began
        return result

    def now(self) -> float:
        """Return the time once the device has nothing left to do."""
        return now(self.codes)


class RecordedMap(Map):
    """A map whose calls, Jacobians and backward passes are recorded from outside."""

    def __init__(self, function: Callable[..., Any], n_outputs: int, record: Record) -> None:
        super().__init__(function, "decoder", n_outputs)
        self.record = record
        self.inside = False

    def __call__(self, z: Tensor) -> Tensor:
        """Return F(z), (n, D)."""
        if self.inside:
            return super().__call__(z)
        if not (torch.is_grad_enabled() and z.requires_grad):
            return self.record.timed("forward", len(z), lambda: Map.__call__(self, z))
        point = z.view_as(z)
        began = 0.0

        def enter(gradient: Tensor) -> None:  # noqa: ARG001
            nonlocal began
            began = self.record.now()

        def leave(gradient: Tensor) -> None:  # noqa: ARG001
            self.record.seconds += self.record.now() - began

        point.register_hook(leave)
        kind = "forward and backward"
        output = self.record.timed(kind, len(z), lambda: Map.__call__(self, point))
        output.register_hook(enter)
        return output

    def columns(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(z) and the columns of its Jacobian."""
        return self._whole("columns", z, lambda: Map.columns(self, z))

    def jvp(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(z) and J_F(z) v."""
        return self._whole("jvp", z, lambda: Map.jvp(self, z, v))

    def _whole(self, kind: str, z: Tensor, call: Callable[[], Any]) -> Any:
        """Record a call of several calls as one."""
        if self.inside:
            return call()
        self.inside = True
        try:
            return self.record.timed(kind, len(z), call)
        finally:
            self.inside = False


class RecordedMetric(gl.Metric):
    """G = J_F^T J_F of a recorded map."""

    def __init__(self, immersion: RecordedMap) -> None:
        self.immersion: RecordedMap = immersion

    def _tensor(self, z: Tensor) -> Tensor:
        columns = self.immersion.columns(z)[1]
        return torch.einsum("inD,jnD->nij", columns, columns)

    def _quadratic(self, z: Tensor, v: Tensor) -> Tensor:
        return self.immersion.jvp(z, v)[1].square().sum(1)


def replay(map_: Map, record: Record, codes: Tensor) -> float:
    """Make the recorded calls again on codes, and nothing else; return the seconds."""
    total = 0.0
    for kind, rows in record.calls:
        z = codes[torch.arange(rows, device=codes.device) % len(codes)]
        began = record.now()
        if kind == "forward":
            with torch.no_grad():
                map_(z)
        elif kind == "columns":
            with torch.no_grad():
                map_.columns(z)
        elif kind == "jvp":
            with torch.no_grad():
                map_.jvp(z, z)
        else:
            z.requires_grad_()
            output = map_(z)
            torch.autograd.grad(output, z, torch.ones_like(output))
        total += record.now() - began
    return total


def forward_throughput(map_: Map, record: Record, codes: Tensor) -> float:
    """Return the rows per second of forward calls at the recorded size that does best."""
    best = 0.0
    sizes = sorted({rows for _, rows in record.calls})
    for rows in sizes[-1:] + sizes[len(sizes) // 2 : len(sizes) // 2 + 1]:
        z = codes[torch.arange(rows, device=codes.device) % len(codes)]
        with torch.no_grad():
            map_(z)
            repeats = 0
            began = record.now()
            while repeats < 3 or record.now() - began < 0.3:
                map_(z)
                repeats += 1
            best = max(best, repeats * rows / (record.now() - began))
    return best


@dataclass(frozen=True)
class Model:
    """A decoder on a device, and pairs of its codes.

    ``n_outputs`` is 2 where it returns mean and standard deviation.
    """

    name: str
    title: str
    decode: Callable[[Tensor], Any]
    n_outputs: int
    start: Tensor
    end: Tensor

    @property
    def metric(self) -> gl.Metric:
        """The pull-back metric."""
        make = gl.PullbackMetric if self.n_outputs == 1 else gl.GaussianPullbackMetric
        return make(self.decode)

    def problem(self, pairs: int) -> Problem:
        """Return the first pairs as the benchmark's methods take them."""
        immersion = joined(self.decode) if self.n_outputs == 2 else flat(self.decode)
        start, end = self.start[:pairs], self.end[:pairs]
        return Problem(self.name, self.title, self.metric, start, end, immersion)


def flat(decode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a decoder with flat outputs."""
    return lambda z: decode(z).flatten(1)


def prior_pairs(pairs: int, dim: int, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Return pairs from N(0, I)."""
    start, end, _ = normal_codes(pairs, dim, seed)
    return start.to(device), end.to(device)


def mnist(path: Path | None, pairs: int, device: torch.device, seed: int) -> Model:
    """Return a Gaussian decoder from a file, and pairs from its prior."""
    if path is None:
        raise CannotRunError("no model given (--model)")
    decoder: Any = gl.models.load_model(path).to(device).requires_grad_(False)
    d = decoder.latent_dim
    title = f"{d}-d VAE, {path.stem}"
    return Model("mnist", title, decoder.decode, 2, *prior_pairs(pairs, d, device, seed))


def digits(pairs: int, device: torch.device, seed: int) -> Model:
    """Return the embedded model, and pairs from its prior."""
    decoder = gl.models.digits_vae().to(device).requires_grad_(False)
    ends = prior_pairs(pairs, 2, device, seed)
    return Model("digits", "embedded 2-d VAE of digits", decoder.decode, 2, *ends)


def kinked(folder: Path | None, pairs: int, device: torch.device, seed: int) -> Model:
    """Return a ReLU decoder of disentangling-vae, and pairs from its prior."""
    if folder is None:
        raise CannotRunError("no decoders given (--decoders)")
    decoder = PretrainedDecoder(folder / "VAE_mnist.pt").float().to(device)
    ends = prior_pairs(pairs, 10, device, seed)
    return Model("relu", "ReLU VAE of MNIST, d = 10", decoder, 1, *ends)


def photographed(
    folder: Path | None, side: int, pairs: int, device: torch.device, seed: int
) -> Model:
    """Return taef2, and pairs of codes near those of two photographs each."""
    if folder is None:
        raise CannotRunError("no autoencoder given (--autoencoder)")
    decode, start, end = photograph_codes(folder, side, device)
    codes = torch.cat([start, end]).unique(dim=0)
    n, generator = len(codes), torch.Generator().manual_seed(seed)
    first = torch.randint(n, (pairs,), generator=generator)
    last = (first + torch.randint(1, n, (pairs,), generator=generator)) % n
    # so that no two pairs are the same, a little of another one is in each
    others = torch.randint(n, (2, pairs), generator=generator)
    share = 0.1 * torch.rand(2, pairs, 1, generator=generator).to(device)
    ends = torch.lerp(codes[torch.stack([first, last])], codes[others], share)
    d = start.shape[1]
    return Model(f"taef2_{d}", f"taef2, d = {d:,}", decode, 1, ends[0], ends[1])


class Lowered(nn.Module):
    """A decoder in the lower precision of autocast, with outputs in that of its codes."""

    def __init__(self, decode: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.decode, self.dtype = decode, dtype

    def forward(self, z: Tensor) -> Any:
        """Return what the decoder does."""
        with torch.autocast(z.device.type, dtype=self.dtype):
            found = self.decode(z)
        parts = found if isinstance(found, tuple) else (found,)
        parts = tuple(part.to(z.dtype) for part in parts)
        return parts if isinstance(found, tuple) else parts[0]


@contextlib.contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Let products of float32 be rounded to TF32, or not, for a block."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def counted_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count what makes the processor wait for CUDA in a block, by torch's own warnings."""
    waits: Counter[str] = Counter()
    if device.type != "cuda":
        yield waits
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits.update(
                f"{Path(each.filename).name}:{each.lineno}"
                for each in told
                if "synchronizing" in str(each.message)
            )


def operations(model: Model) -> dict[str, float]:
    """Return the floating-point operations of one row of each kind of call."""
    z = model.start[:8].clone()
    map_ = Map(model.decode, "decoder", model.n_outputs)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        map_(z)
    forward = counter.get_total_flops() / len(z)
    with FlopCounterMode(display=False) as counter:
        output = map_(z.requires_grad_())
        torch.autograd.grad(output, z, torch.ones_like(output))
    both = counter.get_total_flops() / len(z)
    # a tangent is carried along by as many operations as a value
    d = z.shape[1]
    return {
        "forward": forward,
        "forward and backward": both,
        "jvp": 2.0 * forward,
        "columns": (d + 1.0) * forward,
    }


def solve(model: Model, tolerance: float, repeats: int) -> tuple[float, gl.GeodesicSolution]:
    """Solve all pairs; return the seconds of the fastest run, and what was found."""
    solver, metric = gl.PreconditionedSolver(tolerance=tolerance), model.metric
    gl.solve_geodesic(metric, model.start[:4], model.end[:4], solver)  # warms up
    seconds = []
    for _ in range(repeats):
        began = now(model.start)
        solution = gl.solve_geodesic(metric, model.start, model.end, solver)
        seconds.append(now(model.start) - began)
    return min(seconds), solution


def speed(model: Model, tolerance: float, repeats: int) -> dict[str, Any]:
    """Return pairs per second, and what the pairs came to."""
    if model.start.is_cuda:
        torch.cuda.reset_peak_memory_stats(model.start.device)
    seconds, solution = solve(model, tolerance, repeats)
    pairs = len(model.start)
    found: dict[str, Any] = {
        "model": model.name,
        "title": model.title,
        "latent_dimension": model.start.shape[1],
        "pairs": pairs,
        "tolerance": tolerance,
        "seconds": seconds,
        "pairs_per_second": pairs / seconds,
        "equivalents_per_pair": solution.evaluations.equivalents.mean().item(),
        "mean_improvement": solution.relative_improvement.double().mean().item(),
        "statuses": dict(Counter(str(status) for status in solution.statuses)),
    }
    if model.start.is_cuda:
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(model.start.device)
    return found


def inside(model: Model, tolerance: float, seconds: float, peak: float | None) -> dict[str, Any]:
    """Return what the decoder's calls take of a solve of so many seconds, and what they reach."""
    record = Record(model.start)
    solver = gl.PreconditionedSolver(tolerance=tolerance)
    recorded = RecordedMetric(RecordedMap(model.decode, model.n_outputs, record))
    gl.solve_geodesic(recorded, model.start[:4], model.end[:4], solver)
    record.calls.clear()
    record.seconds = 0.0
    steps = 0

    def step(progress: gl.Progress) -> None:
        nonlocal steps
        steps += progress.iteration > 0

    began = record.now()
    gl.solve_geodesic(recorded, model.start, model.end, solver, callback=step)
    total, within = record.now() - began, record.seconds
    metric = model.metric
    gl.solve_geodesic(metric, model.start[:4], model.end[:4], solver)
    with counted_waits(model.start.device) as waits:
        gl.solve_geodesic(metric, model.start, model.end, solver)

    plain, codes = (
        Map(model.decode, "decoder", model.n_outputs),
        torch.cat([model.start, model.end]),
    )
    replay(plain, record, codes)
    alone = replay(plain, record, codes)
    rows: Counter[str] = Counter()
    for kind, n in record.calls:
        rows[kind] += n
    each = operations(model)
    reached = sum(each[kind] * n for kind, n in rows.items()) / alone
    found = {
        "decoder_share": within / total,
        "decoder_calls": len(record.calls),
        "decoder_rows": dict(rows),
        "decoder_seconds_alone": alone,
        "time_over_decoder_alone": seconds / alone,
        "forward_rows_per_second": forward_throughput(plain, record, codes),
        "decoder_flops_per_second": reached,
        "steps": steps,
    }
    if model.start.is_cuda:
        found |= {"waits": sum(waits.values()), "waits_by_place": dict(waits.most_common(20))}
    if peak is not None:
        found |= {"peak_flops_per_second": peak, "share_of_peak": reached / peak}
    return found


def peak_of(device: torch.device, precision: str, given: float | None) -> float | None:
    """Return what the device can at a precision, in operations per second, where it is known."""
    if given is not None:
        return 1e12 * given
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for part, by_precision in PEAKS.items():
        if part in name.split() or part in name:
            return 1e12 * by_precision[precision]
    return None


def precisions(model: Model, tolerance: float, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield what less precision of the decoder brings in time, and takes from the results.

    Curves are measured again by the decoder in float32, by one rule: their excess over those that
    were found in float32.
    """
    model = replace(model, start=model.start[:PEER_PAIRS], end=model.end[:PEER_PAIRS])
    exact = model.metric
    reference: Tensor | None = None
    straight: Tensor | None = None
    for name in ("float32", "TF32", "bfloat16"):
        if name == "TF32" and not model.start.is_cuda:
            continue
        lowered = model
        if name == "bfloat16":
            lowered = replace(model, decode=Lowered(model.decode, torch.bfloat16))
        with tensor_cores(name != "float32"), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            seconds, solution = solve(lowered, tolerance, repeats)
        with tensor_cores(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            length = gl.path_length(exact, solution.curve, tolerance=1e-4).double()
        if reference is None or straight is None:
            reference, straight = length, solution.straight_length.double()
        excess = (length / reference - 1.0).nan_to_num(0.0)
        off = (solution.length.double() / length - 1.0).abs().nan_to_num(0.0)
        lines = (solution.straight_length.double() / straight - 1.0).abs().nan_to_num(0.0)
        statuses = Counter(str(status) for status in solution.statuses)
        yield {
            "precision": name,
            "pairs_per_second": len(length) / seconds,
            "equivalents_per_pair": solution.evaluations.equivalents.mean().item(),
            "median_excess": excess.median().item(),
            "largest_excess": excess.max().item(),
            "median_error_of_lengths": off.median().item(),
            "largest_error_of_lengths": off.max().item(),
            "largest_error_of_straight_lengths": lines.max().item(),
            "median_predicted": solution.predicted_improvement.nanmedian().item(),
            "converged": statuses["CONVERGED"] / len(length),
            "statuses": dict(statuses),
            "warnings": sorted({str(each.message)[:200] for each in told}),
        }


def compiled(model: Model, tolerance: float, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield the time of solves with the decoder as it is and as torch compiles it.

    Values and gradients run compiled; columns and products, which are forward mode's, do not. What
    the first solve takes longer is taken for the time of compilation, and tells from how many pairs
    on it pays.
    """
    fast = replace(model, decode=torch.compile(model.decode, dynamic=True))
    for pairs in sorted({max(1, len(model.start) // 10), len(model.start)}):
        found = {}
        for name, chosen in (("eager", model), ("compiled", fast)):
            part = replace(chosen, start=chosen.start[:pairs], end=chosen.end[:pairs])
            began = now(part.start)
            solve(part, tolerance, 1)
            first = now(part.start) - began
            seconds, _ = solve(part, tolerance, repeats)
            found[name] = {
                "decoder": name,
                "pairs": pairs,
                "pairs_per_second": pairs / seconds,
                "first_seconds": first,
                "compilation_seconds": max(0.0, first - seconds) if name == "compiled" else None,
            }
            gained = 0.0
            if name == "compiled":
                gained = pairs / found["eager"]["pairs_per_second"] - seconds
            if gained > 0.0:
                cost = found[name]["compilation_seconds"] or 0.0
                found[name]["pays_from_pairs"] = int(pairs * cost / gained)
            yield found[name]


def beside(model: Model, tolerance: float, iterations: int) -> Iterator[dict[str, Any]]:
    """Yield the time of stochman and of the paper's recipe, for some of the pairs."""
    problem = model.problem(PEER_PAIRS)
    methods: dict[str, Callable[[], Any]] = {
        f"geolatent, tolerance {tolerance:g}": lambda: library(
            problem, gl.PreconditionedSolver(tolerance=tolerance)
        ),
        f"stochman, {iterations} steps": lambda: run_stochman(problem, iterations),
        "recipe of Michelis and Becker": lambda: library(
            problem, gl.FirstOrderSolver.michelis_becker()
        ),
    }
    for name, method in methods.items():
        try:
            run = method()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            yield {"method": name, "note": reason}
            continue
        lengths = lengths_of(problem, run.curves)
        yield {
            "method": name,
            "pairs": run.attempted,
            "seconds": run.seconds,
            "pairs_per_second": run.attempted / run.seconds,
            "equivalents_per_pair": run.equivalents,
            "mean_length": lengths.mean().item() if lengths.numel() else None,
            "note": run.note,
        }


def lengths_of(problem: Problem, curves: Sequence[gl.CubicBSpline]) -> Tensor:
    """Return the lengths of curves on one knot vector, by one rule."""
    if not curves:
        return torch.empty(0)
    points = torch.cat([curve.control_points for curve in curves]).to(problem.start)
    together = gl.CubicBSpline(points, curves[0].knots)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gl.path_length(problem.metric, together, tolerance=1e-3).double()


class Results:
    """Everything found so far, in a file that is written again after each figure."""

    def __init__(self, path: Path, device: torch.device, minutes: float) -> None:
        self.path = path
        self.until = time.monotonic() + 60.0 * minutes
        self.found: dict[str, Any] = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "geolatent": gl.__version__,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "left_out": [],
        }

    def late(self, what: str) -> bool:
        """Return whether the time is over, and tell what is left out for it."""
        if time.monotonic() < self.until:
            return False
        self.leave_out(what, "the time is over")
        return True

    def leave_out(self, what: str, reason: str) -> None:
        """Tell what is left out, and why."""
        print(f"left out: {what}: {reason}", flush=True)
        self.found["left_out"].append(f"{what}: {reason}")

    def add(self, part: str, figure: dict[str, Any], told: str) -> None:
        """Keep a figure, which may get more entries later, and write all of them."""
        self.found.setdefault(part, []).append(figure)
        self.write()
        print(told, flush=True)

    def write(self) -> None:
        """Write all figures."""
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")

    def collect(
        self,
        part: str,
        what: str,
        figures: Callable[[], Iterator[dict[str, Any]]],
        told: Callable[[dict[str, Any]], str],
    ) -> None:
        """Keep figures one by one; what cannot be had, or comes too late, is told and left out."""
        if self.late(what):
            return
        try:
            for figure in figures():
                self.add(part, figure, told(figure))
        except Exception as error:  # the other figures are worth having
            self.leave_out(what, f"{type(error).__name__}: {error}".splitlines()[0])


def table(rows: Sequence[dict[str, Any]], columns: dict[str, tuple[str, str]]) -> str:
    """Return figures as a table in Markdown: by key, a heading and a format."""
    lines = ["| " + " | ".join(heading for heading, _ in columns.values()) + " |"]
    lines.append("|---" * len(columns) + "|")
    for row in rows:
        cells = [
            "" if row.get(key) is None else format(row[key], form)
            for key, (_, form) in columns.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {
    "solves": {
        "title": ("model", ""),
        "tolerance": ("tolerance", "g"),
        "pairs": ("pairs", ",d"),
        "pairs_per_second": ("pairs per second", ",.1f"),
        "equivalents_per_pair": ("rows a pair", ",.0f"),
        "decoder_share": ("in the decoder", ".0%"),
        "time_over_decoder_alone": ("time over its calls alone", ".2f"),
        "decoder_flops_per_second": ("FLOP/s in it", ".2e"),
        "share_of_peak": ("of the peak", ".1%"),
        "waits": ("waits", ",d"),
        "steps": ("steps", ",d"),
    },
    "precisions": {
        "precision": ("precision", ""),
        "pairs_per_second": ("pairs per second", ",.1f"),
        "equivalents_per_pair": ("rows a pair", ",.0f"),
        "median_excess": ("excess, median", ".1e"),
        "largest_excess": ("largest", ".1e"),
        "largest_error_of_lengths": ("lengths off by", ".1e"),
        "median_predicted": ("predicted, median", ".1e"),
        "converged": ("CONVERGED", ".0%"),
    },
    "compiled": {
        "decoder": ("decoder", ""),
        "pairs": ("pairs", ",d"),
        "pairs_per_second": ("pairs per second", ",.1f"),
        "compilation_seconds": ("compilation, s", ",.1f"),
        "pays_from_pairs": ("pays from pairs", ",d"),
    },
    "beside": {
        "method": ("method", ""),
        "pairs": ("pairs", ",d"),
        "pairs_per_second": ("pairs per second", ",.2f"),
        "equivalents_per_pair": ("rows a pair", ",.0f"),
        "mean_length": ("mean length", ".4f"),
        "note": ("note", ""),
    },
}


def throughput(
    model: Path | None = None,
    decoders: Path | None = None,
    autoencoder: Path | None = None,
    pairs: int | None = None,
    device: str = "auto",
    output: Path = Path("throughput.json"),
    tolerances: tuple[float, ...] = TOLERANCES,
    repeats: int = 1,
    peak: float | None = None,
    minutes: float = 9.0,
    threads: int | None = None,
    seed: int = 0,
    quick: bool = False,
) -> None:
    """Measure pairs per second, and what bounds them.

    Parameters
    ----------
    model
        Weights of a Gaussian decoder, X.safetensors: the model that all is measured for. Without
        it, the embedded 2-d model.
    decoders
        Folder with VAE_mnist.pt of disentangling-vae.
    autoencoder
        Folder with the taef2_*.pth files.
    pairs
        Pairs from N(0, I), solved in one call; by default 10,000 on a GPU and 64 elsewhere. Other
        models than the first get fewer.
    device
        Where to solve: "auto" is a GPU where there is one.
    output
        File for the results.
    tolerances
        Of the default solver; the first one is that of the further figures.
    repeats
        Solves that are timed; the fastest counts.
    peak
        What the device can, in 1e12 floating-point operations per second; known for some GPUs.
    minutes
        Nothing new is begun after so many.
    threads
        Threads of PyTorch on the CPU; its own choice by default.
    seed
        Seed of the pairs.
    quick
        Few pairs, steps and tolerances: seconds, to see that all of it works.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(found if device == "auto" else device)
    pairs = pairs or (8 if quick else 10_000 if place.type == "cuda" else 64)
    dear = min(pairs, 2 if quick else DEAR_PAIRS)
    tolerances = tolerances[:1] if quick else tolerances
    results = Results(output, place, minutes)
    makers: dict[str, Callable[[], Model]] = {
        "16-d VAE": lambda: mnist(model, pairs, place, seed),
        "ReLU VAE": lambda: kinked(decoders, max(dear, pairs // 10), place, seed),
        "digits": lambda: digits(max(dear, pairs // 2), place, seed),
        "taef2, d = 512": lambda: photographed(autoencoder, 32, dear, place, seed),
        "taef2, d = 2,048": lambda: photographed(autoencoder, 64, dear, place, seed),
    }
    first: Model | None = None
    for what, make in makers.items():
        if results.late(what):
            continue
        try:
            chosen = make()
        except (CannotRunError, OSError) as reason:
            results.leave_out(what, str(reason))
            continue
        further = first is None and (model is not None or what == "digits")
        first = chosen if further else first
        for tolerance in tolerances:
            results.collect(
                "solves",
                f"{chosen.title}, tolerance {tolerance:g}",
                partial(solves, chosen, tolerance, repeats, peak, results),
                lambda found: (
                    f"{found['title']}, tolerance {found['tolerance']:g}, {found['pairs']:,} "
                    f"pairs: {told_speed(found)}"
                ),
            )
        if further:
            at = tolerances[0]
            results.collect(
                "precisions",
                "less precision",
                partial(precisions, chosen, at, repeats),
                lambda found: f"{found['precision']}: {told_speed(found)}",
            )
            results.collect(
                "compiled",
                "the compiled decoder",
                partial(compiled, chosen, at, repeats),
                lambda found: f"{found['decoder']}, {found['pairs']:,} pairs: {told_speed(found)}",
            )
            results.collect(
                "beside",
                "other methods",
                partial(beside, chosen, at, 5 if quick else 150),
                lambda found: f"{found['method']}: {told_speed(found)}",
            )
    for part, columns in TABLES.items():
        if results.found.get(part):
            print(f"\n{table(results.found[part], columns)}")
    print(f"\nwritten: {output}")


def solves(
    model: Model, tolerance: float, repeats: int, peak: float | None, results: Results
) -> Iterator[dict[str, Any]]:
    """Yield the figure of a model at a tolerance, before and after a look inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = speed(model, tolerance, repeats)
        yield figure
        precision = "TF32" if torch.backends.cudnn.allow_tf32 else "float32"
        best = peak_of(model.start.device, precision, peak)
        figure |= {"precision": precision}
        figure |= inside(model, tolerance, figure["seconds"], best)
    results.write()
    share, over = figure["decoder_share"], figure["time_over_decoder_alone"]
    print(f"  {share:.0%} of the time in the decoder, {over:.2f} times its calls alone", flush=True)


def told_speed(figure: dict[str, Any]) -> str:
    """Return pairs per second in words, or why there are none."""
    note = figure.get("note", "")
    if "pairs_per_second" not in figure:
        return note
    return f"{figure['pairs_per_second']:,.2f} pairs per second {note}".rstrip()


if __name__ == "__main__":
    auto_cli(throughput, as_positional=False, allow_abbrev=False)
