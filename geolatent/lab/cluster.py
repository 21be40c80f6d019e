"""Clusters of codes by geodesic distance, against Euclidean k-means."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from geolatent.checks import check_integer, requirement
from geolatent.geometry.distances import graph_distance_matrix
from geolatent.graph import LatentGraph
from geolatent.lab import plotting_statistics
from geolatent.lab.experiment import Arrays, GraphExperiment, Summary
from geolatent.lab.printing import make_table, working
from geolatent.lab.run import Run, RunFolder

METHODS = ("Euclidean k-means", "geodesic k-means")


def cluster_codes(
    graph: LatentGraph, codes: Tensor, n_clusters: int, seeds: list[int], n_init: int = 10
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Cluster codes by Euclidean k-means and by k-means on a graph's distances, for several seeds.

    Parameters
    ----------
    graph
        The graph; its nodes are the candidates for geodesic centres.
    codes
        Shape (n, d).
    n_clusters
        Number of clusters K.
    seeds
        One run of each method for each.
    n_init
        Beginnings of each run, of which the best is kept.

    Returns
    -------
    dict
        For each method, clusters (seeds, n) and centres (seeds, K, d).
    """
    from sklearn.cluster import KMeans

    from geolatent.learn.kmeans import lloyd

    # searched once; every seed uses the same distances
    squares = graph_distance_matrix(graph, codes).cpu().double().numpy() ** 2
    if not np.isfinite(squares).all():
        required = "enough for a connected graph, and the metric finite at its nodes"
        lost = f"{(~np.isfinite(squares)).sum()} of {squares.size} distances that are not finite"
        raise ValueError(requirement("n_neighbors", required, lost))
    points = codes.double().cpu().numpy()
    nodes = graph.codes.double().cpu().numpy()
    plain, geodesic = [], []
    for seed in seeds:
        model = KMeans(n_clusters, n_init=n_init, random_state=seed).fit(points)
        plain.append((model.labels_.astype(np.int64), model.cluster_centers_))
        random = np.random.RandomState(seed)
        runs = [lloyd(squares, n_clusters, random) for _ in range(n_init)]
        chosen, labels, _, _ = min(runs, key=lambda run: run[2])
        geodesic.append((labels, nodes[chosen]))
    return {
        name: (np.stack([part[0] for part in parts]), np.stack([part[1] for part in parts]))
        for name, parts in zip(METHODS, (plain, geodesic), strict=True)
    }


@dataclass(frozen=True, kw_only=True)
class Cluster(GraphExperiment):
    """Cluster the codes of images by geodesic distance, against Euclidean k-means.

    Clusters are compared with the classes by the adjusted Rand index (1 for the same partition, 0
    for chance) and by adjusted mutual information.

    Attributes
    ----------
    data
        The images, with labels.
    n_clusters
        Number of clusters; null takes the number of classes.
    n_seeds
        Seeds of k-means, from `seed` on.
    n_init
        Beginnings for each seed, of which the best is kept.
    n_nodes
        Nodes of the graph of training codes, the candidates for centres.
    seed
        Seed of the graph, and first seed of k-means.
    """

    out: Path = Path("runs/cluster")
    n_clusters: int | None = None
    n_seeds: int = 5
    n_init: int = 10

    def check(self) -> None:
        """Raise where there is nothing to cluster, or to compare clusters with."""
        check_integer("n_seeds", self.n_seeds)
        check_integer("n_init", self.n_init)
        super().check()
        check_integer("n_clusters", self.wanted, minimum=2)

    @cached_property
    def labels(self) -> Tensor:
        """Classes of the images."""
        labels = self.dataset.chosen[1]
        if labels is None:
            required = "images with labels, which clusters are compared with"
            raise ValueError(requirement("data", required, self.data.path))
        return labels

    @property
    def wanted(self) -> int:
        """Number of clusters."""
        return int(self.labels.unique().numel()) if self.n_clusters is None else self.n_clusters

    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:  # noqa: ARG002
        """Cluster the codes by both methods, and compare the clusters with the classes."""
        from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

        seeds = list(range(self.seed, self.seed + self.n_seeds))
        graph = self.graph(console)
        with working(console, f"clustering {len(self.encoded):,} codes"):
            found = cluster_codes(graph, self.encoded, self.wanted, seeds, self.n_init)
        truth = self.labels.numpy()
        methods = {}
        arrays = {"codes": self.encoded.float(), "labels": self.labels}
        for name, (clusters, centers) in found.items():
            rand = [float(adjusted_rand_score(truth, row)) for row in clusters]
            information = [float(adjusted_mutual_info_score(truth, row)) for row in clusters]
            methods[name] = {"adjusted_rand": rand, "adjusted_information": information}
            arrays[f"{_key(name)}_clusters"] = torch.from_numpy(clusters)
            arrays[f"{_key(name)}_centers"] = torch.from_numpy(centers).float()
        summary = {"n_codes": len(self.encoded), "n_clusters": self.wanted, "methods": methods}
        return summary, arrays

    def tell(self, console: Console, summary: Summary) -> None:
        """Print a table of the methods."""
        scores = (
            "adjusted Rand index\nmean",
            "\nmin",
            "\nmax",
            "adjusted mutual\ninformation, mean",
        )
        table = make_table(
            f"{summary['n_clusters']} clusters of {summary['n_codes']} codes against their classes",
            ("\nmethod", *scores),
        )
        for name, entry in summary["methods"].items():
            rand = np.array(entry["adjusted_rand"])
            numbers = (rand.mean(), rand.min(), rand.max(), np.mean(entry["adjusted_information"]))
            table.add_row(name, *(f"{number:.3f}" for number in numbers))
        console.print(table)

    @staticmethod
    def in_a_report(summary: Summary) -> str:
        """Return what a table of many runs tells of one."""
        scores = (
            f"{name} {np.mean(entry['adjusted_rand']):.3f}"
            for name, entry in summary["methods"].items()
        )
        return "adjusted Rand index: " + ", ".join(scores)

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        scores = {
            name: np.array(entry["adjusted_rand"]) for name, entry in run.summary["methods"].items()
        }
        drawn = {"scores": plotting_statistics.scores_by_seed(scores, "adjusted Rand index")}
        codes = run.arrays["codes"]
        if codes.shape[1] == 2:
            drawn["clusters"] = plotting_statistics.cluster_maps(
                codes,
                {"classes": run.arrays["labels"]}
                | {name: run.arrays[f"{_key(name)}_clusters"][0] for name in METHODS},
                {name: run.arrays[f"{_key(name)}_centers"][0] for name in METHODS},
            )
        return drawn


def _key(method: str) -> str:
    """Return the word that a method's arrays begin with."""
    return method.split()[0].lower()
