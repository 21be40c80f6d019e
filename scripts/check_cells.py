"""Cell types of single cells: geodesic neighbours and clusters against Euclidean ones.

    python scripts/check_cells.py

SCVI is trained on the counts of the 700 blood cells inside scanpy's package, once for each seed,
and 500 cells are drawn. Distances between their codes are Euclidean, of the Fisher-Rao metric of
the negative binomial counts, or of the pull-back metric of log(1 + mean counts); all at the median
library size. Compared with the annotation by bulk profiles (10 types):

- the accuracy of the votes of 15 neighbours, each cell left out in turn. Geodesic neighbours are
  those of `GeodesicKNeighborsTransformer(refine=False)`, by chords in the output;
- adjusted Rand indices of k-means with as many clusters as types (`GeodesicKMeans`, by shortest
  paths on a graph) and of Leiden clusters of the graphs of neighbours;
- Spearman's rank correlation of graph distances with Euclidean ones, all pairs.

Prints a Markdown table of means and ranges over the seeds, and draws the UMAPs of the first.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import anndata
import matplotlib
import numpy as np
import scanpy
import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import KNeighborsTransformer

import geolatent as gl
from geolatent.geometry.distances import graph_distance_matrix

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from foreign_models import scvi_model

N_NEIGHBORS = 15
NAMES = {"Euclidean": "Euclidean", "counts": "Fisher-Rao of the counts", "mean": "log(1 + mean)"}
ROWS = {
    "votes": "accuracy of 15 neighbours' votes",
    "k-means": "k-means, adjusted Rand index",
    "Leiden": "Leiden, adjusted Rand index",
    "kept": "neighbours that are Euclidean neighbours too",
    "rank": "rank correlation with Euclidean distances",
}


def votes(neighbors: NDArray[np.int64], types: NDArray[np.int64]) -> float:
    """Return the share of cells whose neighbours (n, k) have their type as the most frequent."""
    counts = np.stack([(types[neighbors] == each).sum(1) for each in range(types.max() + 1)], 1)
    return float((counts.argmax(1) == types).mean())


def clustered(cells: anndata.AnnData, transformer: Any, seed: int) -> anndata.AnnData:
    """Return the cells with Leiden clusters and a UMAP of a transformer's neighbours."""
    found = cells.copy()
    scanpy.pp.neighbors(found, N_NEIGHBORS, use_rep="X_scVI", transformer=transformer)
    options = {"flavor": "igraph", "n_iterations": 2, "directed": False}
    scanpy.tl.leiden(found, random_state=seed, **options)
    scanpy.tl.umap(found, random_state=seed)
    return found


def measured(
    seed: int, epochs: int, n_cells: int
) -> tuple[dict[str, dict[str, float]], dict[str, anndata.AnnData]]:
    """Return the numbers of one training, by row and kind of distance, and the clustered cells."""
    model = scvi_model("nb", epochs=epochs, n_genes=765, seed=seed)
    cells = model.adata
    size = float(np.median(np.asarray(cells.X.sum(1))))
    cells.obsm["X_scVI"] = model.get_latent_representation()
    chosen = np.random.default_rng(seed).permutation(cells.n_obs)[:n_cells]
    cells = cells[np.sort(chosen)].copy()
    codes = cells.obsm["X_scVI"]
    _, types = np.unique(cells.obs["bulk_labels"].astype(str), return_inverse=True)
    n_types = types.max() + 1
    mean = gl.adapters.scvi(model, "mean", library_size=size)
    metrics = {
        "Euclidean": None,
        "counts": gl.adapters.metric(gl.adapters.scvi(model, library_size=size), codes),
        "mean": gl.PullbackMetric(mean, torch.log1p),
    }
    numbers: dict[str, dict[str, float]] = {row: {} for row in ROWS}
    drawn, euclidean = {}, np.empty(0)
    for name, metric in metrics.items():
        options: dict[str, Any] = {"n_clusters": n_types, "random_state": seed}
        if metric is None:
            transformer = KNeighborsTransformer(n_neighbors=N_NEIGHBORS)
            clusters = KMeans(n_init=10, **options).fit_predict(codes)
        else:
            transformer = gl.GeodesicKNeighborsTransformer(
                metric, N_NEIGHBORS, n_candidates=100, refine=False
            )
            model_of_clusters = gl.GeodesicKMeans(metric, **options)
            clusters = model_of_clusters.fit_predict(codes)
            distances = graph_distance_matrix(model_of_clusters.graph_, codes, codes).numpy()
            upper = np.triu_indices(n_cells, 1)
            numbers["rank"][name] = float(spearmanr(distances[upper], pdist(codes)).statistic)
        # nearest first, which is the cell itself
        near = transformer.fit_transform(codes).indices.reshape(n_cells, -1)[:, 1:]
        euclidean = near if metric is None else euclidean
        same = [len(np.intersect1d(*pair)) for pair in zip(near, euclidean, strict=True)]
        numbers["kept"][name] = float(np.mean(same)) / N_NEIGHBORS
        numbers["votes"][name] = votes(near, types)
        numbers["k-means"][name] = adjusted_rand_score(types, clusters)
        drawn[name] = clustered(cells, transformer, seed)
        numbers["Leiden"][name] = adjusted_rand_score(types, drawn[name].obs["leiden"])
    return numbers, drawn


def draw(drawn: dict[str, anndata.AnnData], path: Path) -> None:
    """Draw UMAPs of Euclidean and of geodesic neighbours side by side, coloured by type."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    colors = matplotlib.colormaps["tab10"].colors
    for ax, name in zip(axes, ("Euclidean", "counts"), strict=True):
        points = drawn[name].obsm["X_umap"]
        types = drawn[name].obs["bulk_labels"].astype(str).to_numpy()
        for color, each in zip(colors, np.unique(types), strict=False):
            ax.scatter(*points[types == each].T, s=9, color=color, label=each, linewidths=0)
        title = "Euclidean" if name == "Euclidean" else "Geodesic (Fisher-Rao of the counts)"
        ax.set_title(f"{title} neighbours")
        ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, markerscale=2.5)
    figure.savefig(path, dpi=110)


def check_cells(
    n_seeds: int = 5, epochs: int = 100, n_cells: int = 500, figure: Path = Path("cells.png")
) -> None:
    """Compare geodesic with Euclidean neighbours and clusters of cells.

    Parameters
    ----------
    n_seeds
        Trainings, draws of cells, and starts of the clusterings.
    epochs
        Epochs of each training.
    n_cells
        Cells, of 700.
    figure
        Where to draw.
    """
    torch.set_num_threads(1)
    every = []
    for seed in track(range(n_seeds), "trainings", console=Console(stderr=True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, about themselves
            numbers, drawn = measured(seed, epochs, n_cells)
        every.append(numbers)
        if seed == 0:
            draw(drawn, figure)
    print("| measure | " + " | ".join(NAMES.values()) + " |\n|" + "---|" * (1 + len(NAMES)))
    for row, label in ROWS.items():
        cells = []
        for name in NAMES:
            values = [numbers[row][name] for numbers in every if name in numbers[row]]
            cells.append(
                f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else ""
            )
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    auto_cli(check_cells)
