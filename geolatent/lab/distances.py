"""Geodesic distances between all pairs of some images, beside simpler distances."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from geolatent.checks import check_integer, check_number, requirement
from geolatent.curves import CubicBSpline
from geolatent.geometry.distances import graph_distance_matrix, pairwise_distances
from geolatent.graph import LatentGraph
from geolatent.lab import plotting, plotting_statistics
from geolatent.lab.config import (
    DataOptions,
    Formats,
    MetricOptions,
    ModelOptions,
    check_formats,
)
from geolatent.lab.printing import (
    make_console,
    make_table,
    number,
    print_files,
    progress_bar,
)
from geolatent.lab.run import Run, RunFolder
from geolatent.lab.setup import Dataset, make_device, make_model
from geolatent.lab.summary import statistics
from geolatent.lengths import path_length
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Progress, Solver

_UNITS = {"latent": "latent units"}


def separation(matrix: Tensor, labels: Tensor) -> dict[str, float | int]:
    """Return mean distances within and between classes, their ratio, and the accuracy of 1-NN.

    Distances that are not finite are left out; ``unknown`` is the number of such pairs. NaN where
    there are no two codes of a class, or no two classes.

    Parameters
    ----------
    matrix
        Distances between n codes, (n, n).
    labels
        Their classes, (n,).

    Examples
    --------
    >>> matrix = torch.tensor([[0.0, 1.0, 4.0], [1.0, 0.0, 4.0], [4.0, 4.0, 0.0]])
    >>> separation(matrix, torch.tensor([0, 0, 1]))["ratio"]
    4.0
    """
    n = len(matrix)
    apart = ~torch.eye(n, dtype=torch.bool, device=matrix.device)
    known = matrix.isfinite() & apart
    same = labels[:, None] == labels
    within = float(matrix[same & known].double().mean())
    between = float(matrix[~same & known].double().mean())
    nearest = torch.where(known, matrix, torch.inf).argmin(1)
    accuracy = float((labels[nearest] == labels)[known.any(1)].double().mean())
    return {
        "within": within,
        "between": between,
        "ratio": between / within,
        "nearest_neighbour_accuracy": accuracy,
        "unknown": int((apart & ~known).sum()) // 2,
    }


def distances(
    out: Path = Path("runs/distances"),
    model: ModelOptions = ModelOptions(),
    data: DataOptions = DataOptions(split="test", per_class=4),
    metric: MetricOptions = MetricOptions(),
    solver: Solver = PreconditionedSolver(),
    length_tolerance: float = 1e-4,
    max_rows: int | None = None,
    n_nodes: int = 6000,
    n_neighbors: int = 24,
    seed: int = 0,
    dtype: Literal["float32", "float64"] = "float32",
    device: str = "auto",
    overwrite: bool = False,
    format: Formats = "png",
) -> None:
    """Measure the geodesic distances between all pairs of some images.

    Beside them stand the distances of the codes in the latent space, the lengths of the straight
    lines between them, and the shortest paths on the graph that the geodesics start from. A table
    tells how well each separates the classes and how it agrees with the geodesic distances.

    Parameters
    ----------
    out
        Folder for the results; it is made where it does not exist.
    model
        The model.
    data
        The images; n of them make n (n - 1) / 2 geodesics.
    metric
        How the decoder becomes a metric.
    solver
        How geodesics are found, by PreconditionedSolver, FirstOrderSolver, GEORCESolver or
        FirstOrderSolver.michelis_becker, and its settings.
    length_tolerance
        Relative tolerance of the reported lengths.
    max_rows
        Largest number of rows sent through the decoder at once.
    n_nodes
        Nodes of the graph of training codes.
    n_neighbors
        Neighbours of each node.
    seed
        Seed of the graph.
    dtype
        Floating-point type of model and codes.
    device
        "auto", "cpu", "cuda" or another device of torch.
    overwrite
        Replace the results of an earlier run in the folder.
    format
        Format of the figures, "png", "pdf" or "svg", or a list of them.
    """
    config = dict(locals())  # the options alone, as they are written to config.yaml
    began = time.perf_counter()
    check_formats(format)
    check_integer("n_nodes", n_nodes, minimum=2)
    check_number("length_tolerance", length_tolerance, above=0.0)
    RunFolder.check(out, overwrite=overwrite)
    place = make_device(device)
    codec = make_model(model, dtype, place)
    dataset = Dataset(data)
    images, labels = dataset.chosen
    if labels is None:
        labels = torch.zeros(len(images), dtype=torch.int64)
    if len(images) < 3:
        raise ValueError(requirement("data", "three or more images", len(images)))
    order = labels.argsort(stable=True)
    codes, labels = codec.encode(images[order]), labels[order]
    pulled_back = codec.metric(metric, None, seed).limited(max_rows)
    folder = RunFolder.create(
        out, "distances", config, seed=seed, device=place, overwrite=overwrite
    )
    console = make_console()
    n = len(codes)
    with progress_bar(console) as progress:
        task = progress.add_task("building the graph", total=1.0)
        graph = LatentGraph.from_codes(
            pulled_back,
            dataset.codes(codec),
            n_nodes=n_nodes,
            n_neighbors=n_neighbors,
            seed=seed,
        )
        by_graph = graph_distance_matrix(graph, codes, codes)
        by_graph.fill_diagonal_(0.0)
        progress.update(task, completed=1.0)
        task = progress.add_task(f"{n * (n - 1) // 2:,} geodesics", total=1.0)

        def tell(state: Progress) -> None:
            progress.update(task, completed=state.fraction)

        geodesic = pairwise_distances(
            pulled_back,
            codes,
            solver=solver,
            initial=graph,
            length_tolerance=length_tolerance,
            callback=tell,
        )
        first, last = torch.triu_indices(n, n, offset=1)
        lines = CubicBSpline.straight(codes[first], codes[last])
        straight = torch.zeros_like(geodesic)
        straight[first, last] = path_length(pulled_back, lines, tolerance=length_tolerance)
        straight = straight + straight.mT
    matrices = {
        "geodesic": geodesic,
        "graph": by_graph,
        "straight": straight,
        "latent": torch.cdist(codes.double(), codes.double()).to(codes),
    }
    summary: dict[str, Any] = {"n_images": n, "distances": {}}
    reference = geodesic[first, last].double().cpu()
    for name, matrix in matrices.items():
        values = matrix[first, last].double().cpu()
        entry: dict[str, Any] = separation(matrix.cpu(), labels)
        known = reference.isfinite() & values.isfinite()
        entry["correlation"] = (
            float(np.corrcoef(reference[known], values[known])[0, 1])
            if int(known.sum()) > 1
            else math.nan
        )
        if name in ("graph", "straight"):
            entry["excess"] = statistics((values / reference - 1.0)[known])
        summary["distances"][name] = entry
    summary["seconds"] = round(time.perf_counter() - began, 1)
    arrays = {name: matrix.float() for name, matrix in matrices.items()}
    run = folder.finish(summary, {**arrays, "labels": labels, "codes": codes.float()})
    _print(console, run)
    print_files(console, folder.path, plotting.save_figures(figures(run), folder.path, format))


def _print(console: Console, run: Run) -> None:
    table = make_table(
        "Distances within and between classes, and against the geodesic ones",
        [
            "\ndistance",
            "\nwithin",
            "\nbetween",
            "\nratio",
            "nearest of\nsame class %",
            "corre-\nlation",
            "excess %\nmean ± std",
        ],
    )
    for name, entry in (run.summary or {})["distances"].items():
        excess = entry.get("excess")
        text = ""
        if excess:
            text = " ± ".join(number(excess[key], ".2f", 100) for key in ("mean", "std"))
        # nothing is between classes where there is one, nor within where none has two codes
        apart = (entry[key] for key in ("within", "between", "ratio"))
        table.add_row(
            _NAMES[name],
            *(number(value, ".3f") for value in apart),
            number(entry["nearest_neighbour_accuracy"], ".1f", 100),
            number(entry["correlation"], ".3f"),
            text,
        )
    console.print(table)
    n = (run.summary or {})["n_images"]
    for name, entry in (run.summary or {})["distances"].items():
        if entry["unknown"]:
            console.print(
                f"{_NAMES[name]}: {entry['unknown']} of {n * (n - 1) // 2} distances are not "
                "finite and are left out.",
                highlight=False,
            )


_NAMES = {
    "geodesic": "geodesic",
    "graph": "path on the graph",
    "straight": "straight line",
    "latent": "Euclidean",
}


def figures(run: Run) -> dict[str, Figure]:
    """Draw the figures of a run from what it stored."""
    if not run.arrays:
        return {}
    matrices = {
        name: (run.arrays[name].astype(float), _UNITS.get(name, "output units")) for name in _NAMES
    }
    first, last = np.triu_indices(len(run.arrays["labels"]), 1)
    return {
        "distances": plotting_statistics.distance_matrices(
            {_NAMES[name]: matrices[name] for name in ("geodesic", "latent")},
            run.arrays["labels"],
        ),
        "compared": plotting_statistics.distances_compared(
            matrices["geodesic"][0][first, last],
            {
                _NAMES[name]: (matrices[name][0][first, last], matrices[name][1])
                for name in ("graph", "straight", "latent")
            },
        ),
    }
