"""Metrics and geodesics of other libraries' models: whether they are right, and what they cost.

    python scripts/check_models.py
    python scripts/check_models.py --libraries "[diffusers, scvi]" --dtype float32

The models are small, with random weights, or trained for a few seconds (those of scvi-tools, on the
cells inside scanpy). The metric tensor is compared with whole Jacobians in reverse mode at four
codes, in float64 and in float32, and geodesics between two pairs of the prior are solved in the
given type. Models whose library is not installed are left out. Prints a Markdown table.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track

import geolatent as gl

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from foreign_models import MODELS, Model, reference

HEADER = (
    "library",
    "model",
    "d",
    "relative error, float64",
    "float32",
    "fall-back",
    "rows a pair",
    "status",
    "shorter",
    "seconds a pair",
)


def relative_error(model: Model) -> float:
    """Return the largest difference from the reference, relative to the largest entry."""
    z = torch.cat([model.start, model.end])
    expected = reference(model, z)
    found = model.metric.tensor(z).detach()
    scale = expected.abs().amax((1, 2), keepdim=True)
    return float(((found - expected).abs() / scale).max())


def measured(name: str, dtype: torch.dtype) -> list[str]:
    """Return the cells of one model."""
    library, d, build = MODELS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        models = {each: build(each) for each in (torch.float64, torch.float32)}
        errors = [relative_error(model) for model in models.values()]
        model = models[dtype]
        model.metric.tensor(model.start)  # what is checked once is not timed
        before = time.perf_counter()
        solution = gl.solve_geodesic(model.metric, model.start, model.end)
        seconds = (time.perf_counter() - before) / len(solution)
    told = " ".join(str(warning.message) for warning in caught)
    ways = {"using double backward": "double backward", "repeating rows": "rows"}
    return [
        library,
        name,
        str(d),
        *(f"{error:.0e}" for error in errors),
        ", ".join(way for said, way in ways.items() if said in told),
        f"{solution.evaluations.equivalents.mean():,.0f}",
        ", ".join(sorted({str(status) for status in solution.statuses})),
        f"{solution.relative_improvement.mean():.1%}",
        f"{seconds:.2g}",
    ]


def check_models(libraries: list[str] | None = None, dtype: str = "float64") -> None:
    """Compare metrics with references, solve pairs, and print a table.

    Parameters
    ----------
    libraries
        Those whose models are taken; by default all that are installed.
    dtype
        Type in which geodesics are solved: float64 or float32.
    """
    torch.set_num_threads(1)
    names = [
        name
        for name, (library, _, _) in MODELS.items()
        if importlib.util.find_spec(library) and (libraries is None or library in libraries)
    ]
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    console = Console(stderr=True)
    for name in track(names, "models", console=console):
        try:
            cells = measured(name, getattr(torch, dtype))
        except ValueError as error:  # one that cannot be differentiated leaves the others
            cells = [MODELS[name][0], name, str(MODELS[name][1]), f"refused: {error}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    auto_cli(check_models)
