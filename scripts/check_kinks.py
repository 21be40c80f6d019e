"""Geodesics of decoders with kinks: what they cost, and how far they are from the shortest known.

    python scripts/check_kinks.py --n_pairs 100
    python scripts/check_kinks.py --n_pairs 16 --models FOLDER

Coupling flows with ReLU networks, the problem of the tests, have known distances: those of their
images. For decoders of the repository disentangling-vae (those of the state dictionaries
VAE_mnist.pt, factor_chairs.pt, btcvae_celeba.pt and betaH_dsprites.pt that are in FOLDER) the
shortest known is the shorter of what the solver finds by default and without an end for roughness.
Lengths are compared by 2,048 chords.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from check_certificate import PretrainedDecoder
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

import geolatent as gl

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from problems import coupling_flow

MODELS = ("VAE_mnist", "factor_chairs", "btcvae_celeba", "betaH_dsprites")
FLOWS = ((2, 4), (6, 6))
CHORDS = 2048
ROWS_AT_ONCE = 512
# statuses that are an end, not an exhaustion
ENDS = (gl.Status.CONVERGED, gl.Status.ROUGH, gl.Status.STRAIGHT_IS_SHORTEST)


@dataclass(frozen=True)
class Case:
    """A metric with kinks, pairs, and their distances where they are known."""

    name: str
    metric: gl.PullbackMetric
    start: Tensor
    end: Tensor
    exact: Tensor | None = None


def cases(n: int, models: Path | None) -> Iterator[Case]:
    """Give the flows and the decoders, each with pairs."""
    generator = torch.Generator().manual_seed(7)
    for d, layers in FLOWS:
        flow = coupling_flow(d, layers).double()
        start, end = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
        exact = (flow(start) - flow(end)).norm(dim=1)
        yield Case(f"coupling flow, d = {d}", gl.PullbackMetric(flow), start, end, exact)
    for name in MODELS if models is not None else ():
        if not (models / f"{name}.pt").is_file():
            continue
        decoder = PretrainedDecoder(models / f"{name}.pt").float()
        start, end = torch.randn(2, n, 10, generator=generator)
        yield Case(name, gl.PullbackMetric(decoder), start, end)


def chord_length(case: Case, curve: gl.CubicBSpline) -> Tensor:
    """Return the sums of many chords, (B,), which no rule can make shorter."""
    t = torch.linspace(0, 1, CHORDS + 1, dtype=torch.float64)
    sums = []
    with torch.no_grad():
        for points in curve(t):
            parts = [case.metric.decoder(part) for part in points.split(ROWS_AT_ONCE)]
            sums.append(torch.cat(parts).double().diff(dim=0).norm(dim=1).sum())
    return torch.stack(sums)


def check_kinks(n_pairs: int = 100, models: Path | None = None) -> None:
    """Solve pairs under decoders with kinks, and print a table.

    Parameters
    ----------
    n_pairs
        Pairs of each decoder.
    models
        Folder of the state dictionaries; without it the flows alone.
    """
    torch.set_num_threads(1)
    columns = (
        "decoder",
        "pairs",
        "rows a pair",
        "ends",
        "excess, median",
        "excess, most",
        "left / predicted",
    )
    table = Table(*columns)
    for case in cases(n_pairs, models):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = gl.solve_geodesic(case.metric, case.start, case.end)
            length = chord_length(case, solution.curve)
            best = case.exact
            if best is None:
                further = gl.PreconditionedSolver(rough_tolerance=0.0, max_iterations=400)
                long = gl.solve_geodesic(case.metric, case.start, case.end, further)
                best = torch.minimum(length, chord_length(case, long.curve))
        excess = length / best - 1.0
        ended = torch.stack([solution.status == status for status in ENDS]).any(0)
        share = (1.0 - best / length) / solution.predicted_improvement
        table.add_row(
            case.name,
            f"{n_pairs}",
            f"{solution.evaluations.equivalents.mean():,.0f}",
            f"{int(ended.sum())}",
            f"{excess.median():.2%}",
            f"{excess.max():.1%}",
            f"{share[ended].max():.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    auto_cli(check_kinks)
