"""Geodesic distances between all pairs of some images, beside simpler distances."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from geolatent.checks import check_number, requirement
from geolatent.curves import CubicBSpline
from geolatent.geometry.distances import graph_distance_matrix, pairwise_distances
from geolatent.lab import plotting_statistics
from geolatent.lab.config import DataOptions
from geolatent.lab.costs import Cost, geodesic_rows
from geolatent.lab.experiment import Arrays, GraphExperiment, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.printing import make_table, number, working
from geolatent.lab.run import Run, RunFolder
from geolatent.lab.summary import statistics
from geolatent.lengths import path_length
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Solver

_NAMES = {
    "geodesic": "geodesic",
    "graph": "path on the graph",
    "straight": "straight line",
    "latent": "Euclidean",
}
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


@dataclass(frozen=True, kw_only=True)
class Distances(GraphExperiment):
    """Measure the geodesic distances between all pairs of some images.

    Beside them stand the distances of the codes in the latent space, the lengths of the straight
    lines between them, and the shortest paths on the graph that the geodesics start from. A table
    tells how well each separates the classes and how it agrees with the geodesic distances.

    Attributes
    ----------
    data
        The images; n of them make n (n - 1) / 2 geodesics.
    solver
        How geodesics are found, by PreconditionedSolver, FirstOrderSolver, GEORCESolver or
        FirstOrderSolver.michelis_becker, and its settings.
    length_tolerance
        Relative tolerance of the reported lengths.
    seed
        Seed of the graph.
    """

    out: Path = Path("runs/distances")
    data: DataOptions = DataOptions(split="test", per_class=4)
    solver: Solver = PreconditionedSolver()
    length_tolerance: float = 1e-4

    def check(self) -> None:
        """Raise where there are too few images, or no graph between them."""
        check_number("length_tolerance", self.length_tolerance, above=0.0)
        super().check()
        n = len(self.dataset.chosen[0])
        if n < 3:
            raise ValueError(requirement("data", "three or more images", n))

    @cached_property
    def order(self) -> Tensor:
        """Row numbers of the images, those of each class beside one another, (n,)."""
        return self.dataset.classes.argsort(stable=True)

    @cached_property
    def encoded(self) -> Tensor:
        """Codes of the images in that order, (n, d)."""
        return self.codec.encode(self.dataset.chosen[0][self.order])

    def matrices(self, console: Console) -> dict[str, Tensor]:
        """Return the distances between all codes, (n, n), by name."""
        metric, codes, tolerance = self.pulled_back, self.encoded, self.length_tolerance
        first, last = torch.triu_indices(len(codes), len(codes), offset=1)
        graph = self.graph(console)
        by_graph = graph_distance_matrix(graph, codes, codes).fill_diagonal_(0.0)
        with working(console, f"{len(first):,} geodesics") as tell:
            geodesic = pairwise_distances(
                metric,
                codes,
                solver=self.solver,
                initial=graph,
                length_tolerance=tolerance,
                callback=lambda state: tell(state.fraction),
            )
            lines = CubicBSpline.straight(codes[first], codes[last])
            straight = torch.zeros_like(geodesic)
            straight[first, last] = path_length(metric, lines, tolerance=tolerance)
        return {
            "geodesic": geodesic,
            "graph": by_graph,
            "straight": straight + straight.mT,
            "latent": torch.cdist(codes.double(), codes.double()).to(codes),
        }

    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:  # noqa: ARG002
        """Measure all distances, and compare them with the classes and with each other."""
        matrices = self.matrices(console)
        codes, labels = self.encoded, self.dataset.classes[self.order]
        first, last = torch.triu_indices(len(codes), len(codes), offset=1)
        reference = matrices["geodesic"][first, last].double().cpu()
        entries: dict[str, Any] = {}
        for name, matrix in matrices.items():
            values = matrix[first, last].double().cpu()
            known = reference.isfinite() & values.isfinite()
            entries[name] = separation(matrix.cpu(), labels)
            entries[name]["correlation"] = (
                float(np.corrcoef(reference[known], values[known])[0, 1])
                if int(known.sum()) > 1
                else math.nan
            )
            if name in ("graph", "straight"):
                entries[name]["excess"] = statistics((values / reference - 1.0)[known])
        arrays = {name: matrix.float() for name, matrix in matrices.items()}
        summary = {"n_images": len(codes), "distances": entries}
        return summary, {**arrays, "labels": labels, "codes": codes.float()}

    def tell(self, console: Console, summary: Summary) -> None:
        """Print a table of the distances, and how many are not known."""
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
        for name, entry in summary["distances"].items():
            excess = entry.get("excess", {})
            # nothing is between classes where there is one, nor within where none has two codes
            apart = (entry[key] for key in ("within", "between", "ratio"))
            table.add_row(
                _NAMES[name],
                *(number(value, ".3f") for value in apart),
                number(entry["nearest_neighbour_accuracy"], ".1f", 100),
                number(entry["correlation"], ".3f"),
                " ± ".join(number(excess[key], ".2f", 100) for key in ("mean", "std") if excess),
            )
        console.print(table)
        n = summary["n_images"]
        for name, entry in summary["distances"].items():
            if entry["unknown"]:
                console.print(
                    f"{_NAMES[name]}: {entry['unknown']} of {n * (n - 1) // 2} distances are not "
                    "finite and are left out."
                )

    def cost(self, model: LatentModel) -> Cost:
        """Return what the graph and the geodesics of all pairs cost."""
        n = len(self.dataset.chosen[0])
        each = geodesic_rows(self.solver, model.dim, from_graph=True)
        return replace(super().cost(model), n_geodesics=n * (n - 1) // 2, rows_each=each)

    @staticmethod
    def in_a_report(summary: Summary) -> str:
        """Return what a table of many runs tells of one."""
        told = f"{summary['n_images']} images"
        ratios = {name: summary["distances"][name]["ratio"] for name in ("geodesic", "latent")}
        if all(ratio is None for ratio in ratios.values()):  # images without classes
            return told
        text = ", ".join(f"{name} {number(ratio, '.2f')}" for name, ratio in ratios.items())
        return f"{told}; between over within classes: {text}"

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        matrices, labels = run.arrays, run.arrays["labels"]
        units = {name: _UNITS.get(name, "output units") for name in _NAMES}
        first, last = np.triu_indices(len(labels), 1)
        return {
            "distances": plotting_statistics.distance_matrices(
                {_NAMES[name]: (matrices[name], units[name]) for name in ("geodesic", "latent")},
                labels,
            ),
            "compared": plotting_statistics.distances_compared(
                matrices["geodesic"][first, last],
                {
                    _NAMES[name]: (matrices[name][first, last], units[name])
                    for name in ("graph", "straight", "latent")
                },
            ),
        }
