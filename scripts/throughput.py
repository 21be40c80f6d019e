"""Pairs per second and what bounds them, on CPU or CUDA: python scripts/throughput.py.

The solver's wall time is compared with that of its own decoder calls: the calls are recorded by
kind and batch size during one solve and then made again alone. The bound is what the decoder's
forward throughput would allow for the counted equivalents.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

import geolatent as gl
from geolatent.metrics.map import Map


@dataclass
class Record:
    """Decoder calls of a solve: (kind, rows) of each, and the seconds spent inside them."""

    device: torch.device
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
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


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


def throughput(
    model: Path | None = None,
    pairs: int = 64,
    device: str = "cpu",
    output: Path = Path("throughput.json"),
    tolerance: float = 1e-4,
    repeats: int = 3,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Measure pairs per second and the share of the decoder.

    Parameters
    ----------
    model
        Weights of a Gaussian decoder, X.safetensors; by default the embedded 2-d model.
    pairs
        Pairs from N(0, I), solved in one call.
    device
        Where to solve, such as cpu or cuda.
    output
        File for the results.
    tolerance
        Tolerance of the default solver.
    repeats
        Solves that are timed; the fastest counts.
    threads
        Threads of PyTorch on the CPU; its own choice by default.
    seed
        Seed of the pairs.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(device)
    loaded: Any = gl.models.digits_vae() if model is None else gl.models.load_model(model)
    decoder = loaded.to(place).requires_grad_(False)
    d = decoder.latent_dim
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, pairs, d, generator=generator).to(place)
    solver = gl.PreconditionedSolver(tolerance=tolerance)

    record = Record(place)
    metric = gl.GaussianPullbackMetric(decoder.decode)
    gl.solve_geodesic(metric, start, end, solver)  # warms up
    seconds = []
    for _ in range(repeats):
        began = record.now()
        solution = gl.solve_geodesic(metric, start, end, solver)
        seconds.append(record.now() - began)
    total = min(seconds)

    recorded = RecordedMap(decoder.decode, 2, record)
    began = record.now()
    gl.solve_geodesic(RecordedMetric(recorded), start, end, solver)
    recorded_total = record.now() - began

    plain = Map(decoder.decode, "decoder", 2)
    codes = torch.cat([start, end])
    replay(plain, record, codes)
    alone = min(replay(plain, record, codes) for _ in range(repeats))
    rows_per_second = forward_throughput(plain, record, codes)
    equivalents = solution.evaluations.equivalents.sum().item()
    rows: Counter[str] = Counter()
    for kind, n in record.calls:
        rows[kind] += n
    results = {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "geolatent": gl.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": "embedded 2-d model" if model is None else model.name,
        "latent_dimension": d,
        "pairs": pairs,
        "tolerance": tolerance,
        "seconds": total,
        "pairs_per_second": pairs / total,
        "decoder_share": record.seconds / recorded_total,
        "decoder_calls": len(record.calls),
        "decoder_rows": dict(rows),
        "decoder_seconds_alone": alone,
        "time_over_decoder_alone": total / alone,
        "equivalents_per_pair": equivalents / pairs,
        "forward_rows_per_second": rows_per_second,
        "bound_pairs_per_second": rows_per_second * pairs / equivalents,
    }
    if place.type == "cuda":
        results["peak_memory_bytes"] = torch.cuda.max_memory_allocated(place)
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(
        f"{pairs} pairs, d = {d}, {results['device']}: {total:.2f} s, "
        f"{results['pairs_per_second']:.1f} pairs per second\n"
        f"in the decoder: {results['decoder_share']:.0%} of the time\n"
        f"its calls alone, in the same batch sizes: {alone:.2f} s; the solve takes "
        f"{results['time_over_decoder_alone']:.2f} times that\n"
        f"bound by {rows_per_second:,.0f} forward rows per second and "
        f"{results['equivalents_per_pair']:,.0f} equivalents a pair: "
        f"{results['bound_pairs_per_second']:.1f} pairs per second\n"
        f"written: {output}"
    )


if __name__ == "__main__":
    auto_cli(throughput, as_positional=False, allow_abbrev=False)
