"""Geodesics in many dimensions: what they cost, and how far they are from those of longer solves.

    python scripts/check_dimensions.py
    python scripts/check_dimensions.py --models FOLDER --sides '[32, 64, 128]'

Random smooth decoders (SiLU and GroupNorm, as in the autoencoders of diffusion models) of 64 to
4,096 dimensions, pairs from N(0, I), at two tolerances: beside a solve at a tenth of the finer one.
With FOLDER, that of `scripts/gallery.py`, pairs of photographs in the latent space of taef2, a
decoder with kinks: beside a solve on one level more that roughness does not end. Lengths are
compared by 256 chords. With --memory true the largest memory of a process that solves the
photographs, beside that of one that does no more than the largest of its decoder calls.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from gallery import TinyAutoencoderHalf, length_of, photographs
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import geolatent as gl

CHORDS = 256
# pairs of photographs, by name
PHOTOGRAPHS = (
    ("astronaut", "cat"),
    ("coffee", "rocket"),
    ("temple", "flower"),
    ("astronaut", "temple"),
    ("cat", "flower"),
)


def smooth_decoder(d: int) -> nn.Module:
    """Return a decoder of codes (n, d), taken as images of 4 channels, with random weights."""
    side = round((d / 4) ** 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Unflatten(1, (4, side, side))]
        for inner, outer in ((4, 32), (32, 32), (32, 32), (32, 16)):
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.GroupNorm(4, outer), nn.SiLU()]
            if (inner, outer) in ((4, 32), (32, 32)) and len(layers) < 10:
                layers.append(nn.Upsample(scale_factor=2))
        layers.append(nn.Conv2d(16, 3, 3, padding=1))
    return nn.Sequential(*layers).requires_grad_(False).eval()


def photograph_codes(
    models: Path, side: int, device: torch.device | str = "cpu"
) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """Return taef2's decoder of flat codes, and start and end codes (5, d)."""
    images = photographs(side)
    encoder = TinyAutoencoderHalf(models / "taef2_encoder.pth", decoder=False)
    decoder = TinyAutoencoderHalf(models / "taef2_decoder.pth", decoder=True)
    with torch.no_grad():
        codes = dict(zip(images, encoder(torch.stack(list(images.values()))), strict=True))
    start, end = (torch.stack([codes[pair[k]] for pair in PHOTOGRAPHS]).flatten(1) for k in (0, 1))
    shape = codes["cat"].shape
    decoder = decoder.to(device)
    return (lambda z: decoder(z.unflatten(1, shape))), start.to(device), end.to(device)


def largest_memory(models: Path, side: int, rows: int | None) -> tuple[int, int]:
    """Solve the pairs of photographs, or with rows call the decoder with so many at once.

    Returns the bytes this process ever held, and the rows of the largest call with a graph.
    """
    torch.set_num_threads(1)
    decode, start, end = photograph_codes(models, side)
    largest = 0

    def recorded(z: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(z)) if torch.is_grad_enabled() else largest
        return decode(z)

    if rows is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gl.solve_geodesic(gl.PullbackMetric(recorded), start, end)
    else:
        outputs = recorded(start[:1].repeat(rows, 1).requires_grad_())
        outputs.sum().backward()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, largest


def print_memory(models: Path, sides: list[int]) -> None:
    """Print by how much a solve's memory exceeds that of its decoder's calls, each of its own."""
    context = multiprocessing.get_context("spawn")
    for side in sides:
        found = []
        for alone in (False, True):
            rows = found[0][1] if alone else None
            with context.Pool(1) as pool:
                found.append(pool.apply(largest_memory, (models, side, rows)))
        (solve, rows), (calls, _) = found
        print(
            f"{side} x {side}: a solve {solve / 2**30:.2f} GiB, a call of {rows} rows "
            f"{calls / 2**30:.2f} GiB",
            flush=True,
        )


def check_dimensions(
    dimensions: list[int] | None = None,
    n_pairs: int = 4,
    models: Path | None = None,
    sides: list[int] | None = None,
    memory: bool = False,
) -> None:
    """Solve pairs and print a table.

    Parameters
    ----------
    dimensions
        Of the random decoders, 4 times square numbers; 64, 256, 1,024 and 4,096 by default.
    n_pairs
        Pairs of each random decoder.
    models
        Folder of taef2_encoder.pth and taef2_decoder.pth.
    sides
        Heights and widths of the photographs, multiples of 8; 32 by default.
    memory
        Measure the memory of the photographs' solves instead.
    """
    torch.set_num_threads(1)
    if memory and models is not None:
        print_memory(models, sides or [32])
        return
    table = Table("decoder", "d", "pairs", "rows a pair", "statuses", "excess", "most")
    for column in ("predicted", "left / predicted", "most", "seconds"):
        table.add_column(column)

    def solve(
        name: str,
        decode: Callable[[Tensor], Tensor],
        start: Tensor,
        end: Tensor,
        solvers: list[gl.PreconditionedSolver],
    ) -> None:
        lengths, solutions, times = [], [], []
        for solver in solvers:
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                solution = gl.solve_geodesic(gl.PullbackMetric(decode), start, end, solver)
            times.append(time.perf_counter() - began)
            points = solution.curve(torch.linspace(0, 1, CHORDS + 1))
            lengths.append(torch.tensor([length_of(decode, chain) for chain in points]))
            solutions.append(solution)
        best = torch.stack(lengths).amin(0)
        for solver, solution, length, seconds in zip(
            solvers, solutions, lengths, times, strict=True
        ):
            excess = length / best - 1.0
            # what the longest solve gains over what was predicted to be left
            ratio = (1.0 - best / length) / solution.predicted_improvement
            counts = {status: solution.statuses.count(status) for status in solution.statuses}
            table.add_row(
                f"{name}, tolerance {solver.tolerance:g}",
                f"{start.shape[1]:,}",
                f"{len(start)}",
                f"{solution.evaluations.equivalents.mean():,.0f}",
                ", ".join(f"{count} {status.name}" for status, count in counts.items()),
                f"{excess.median():.2%}",
                f"{excess.max():.2%}",
                f"{solution.predicted_improvement.median():.2%}",
                f"{ratio.median():.2f}",
                f"{ratio.max():.2f}",
                f"{seconds / len(start):.1f}",
            )

    for d in dimensions or (64, 256, 1024, 4096):
        start, end = torch.randn(2, n_pairs, d, generator=torch.Generator().manual_seed(3))
        tolerances = (1e-3, 1e-4, 1e-5)
        solvers = [gl.PreconditionedSolver(tolerance=tolerance) for tolerance in tolerances]
        solve("smooth", smooth_decoder(d), start, end, solvers)
    for side in sides or (32,) if models is not None else ():
        longer = gl.PreconditionedSolver(rough_tolerance=0.0, max_control_points=19)
        photographed = photograph_codes(models, side)
        solve("taef2", *photographed, [gl.PreconditionedSolver(), longer])
    Console(width=170).print(table)


if __name__ == "__main__":
    auto_cli(check_dimensions)
