"""Clusters of codes by geodesic distance, against Euclidean k-means."""

# ruff: noqa: B008 - the defaults are frozen dataclasses

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from geolatent.checks import check_integer, requirement
from geolatent.geometry.distances import graph_distance_matrix
from geolatent.graph import LatentGraph
from geolatent.lab import plotting, plotting_statistics
from geolatent.lab.config import DataOptions, Formats, MetricOptions, ModelOptions, check_formats
from geolatent.lab.printing import make_console, make_table, print_files, progress_bar
from geolatent.lab.run import Run, RunFolder
from geolatent.lab.setup import Dataset, make_device, make_model

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


def cluster(
    out: Path = Path("runs/cluster"),
    model: ModelOptions = ModelOptions(),
    data: DataOptions = DataOptions(split="test"),
    metric: MetricOptions = MetricOptions(),
    n_clusters: int | None = None,
    n_seeds: int = 5,
    n_init: int = 10,
    n_nodes: int = 6000,
    n_neighbors: int = 24,
    max_rows: int | None = None,
    seed: int = 0,
    dtype: Literal["float32", "float64"] = "float32",
    device: str = "auto",
    overwrite: bool = False,
    format: Formats = "png",
) -> None:
    """Cluster the codes of images by geodesic distance, against Euclidean k-means.

    Clusters are compared with the classes by the adjusted Rand index (1 for the same partition, 0
    for chance) and by adjusted mutual information.

    Args:
        out: Folder for the results; it is made where it does not exist.
        model: The model.
        data: The images, with labels.
        metric: How the decoder becomes a metric.
        n_clusters: Number of clusters; null takes the number of classes.
        n_seeds: Seeds of k-means, from `seed` on.
        n_init: Beginnings for each seed, of which the best is kept.
        n_nodes: Nodes of the graph of training codes, the candidates for centres.
        n_neighbors: Neighbours of each node.
        max_rows: Largest number of rows sent through the decoder at once.
        seed: Seed of the graph, and first seed of k-means.
        dtype: Floating-point type of model and codes.
        device: "auto", "cpu", "cuda" or another device of torch.
        overwrite: Replace the results of an earlier run in the folder.
        format: Format of the figures, "png", "pdf" or "svg", or a list of them.
    """
    config = dict(locals())  # the options alone, as they are written to config.yaml
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    began = time.perf_counter()
    check_formats(format)
    check_integer("n_seeds", n_seeds)
    check_integer("n_init", n_init)
    check_integer("n_nodes", n_nodes, minimum=2)
    RunFolder.check(out, overwrite=overwrite)
    place = make_device(device)
    codec = make_model(model, dtype, place)
    dataset = Dataset(data)
    images, labels = dataset.chosen
    if labels is None:
        required = "images with labels, which clusters are compared with"
        raise ValueError(requirement("data", required, data.path))
    wanted = int(labels.unique().numel()) if n_clusters is None else n_clusters
    check_integer("n_clusters", wanted, minimum=2)
    codes = codec.encode(images)
    pulled_back = codec.metric(metric, None, seed)
    folder = RunFolder.create(out, "cluster", config, seed=seed, device=place, overwrite=overwrite)
    console = make_console()
    with progress_bar(console) as progress:
        task = progress.add_task("building the graph", total=1.0)
        graph = LatentGraph.from_codes(
            pulled_back,
            dataset.codes(codec),
            n_nodes=n_nodes,
            n_neighbors=n_neighbors,
            seed=seed,
            max_rows=max_rows,
        )
        progress.update(task, completed=1.0)
        task = progress.add_task(f"clustering {len(codes):,} codes", total=1.0)
        found = cluster_codes(graph, codes, wanted, list(range(seed, seed + n_seeds)), n_init)
        progress.update(task, completed=1.0)
    truth = labels.numpy()
    summary: dict[str, Any] = {"n_codes": len(codes), "n_clusters": wanted, "methods": {}}
    arrays: dict[str, Tensor] = {"codes": codes.float(), "labels": labels}
    for name, (clusters, centers) in found.items():
        rand = [float(adjusted_rand_score(truth, row)) for row in clusters]
        information = [float(adjusted_mutual_info_score(truth, row)) for row in clusters]
        summary["methods"][name] = {"adjusted_rand": rand, "adjusted_information": information}
        key = name.split()[0].lower()
        arrays[f"{key}_clusters"] = torch.from_numpy(clusters)
        arrays[f"{key}_centers"] = torch.from_numpy(centers).float()
    summary["seconds"] = round(time.perf_counter() - began, 1)
    run = folder.finish(summary, arrays)
    _print(console, run)
    print_files(console, folder.path, plotting.save_figures(figures(run), folder.path, format))


def _print(console: Console, run: Run) -> None:
    summary = run.summary or {}
    table = make_table(
        f"{summary['n_clusters']} clusters of {summary['n_codes']} codes against their classes",
        [
            "\nmethod",
            "adjusted Rand index\nmean",
            "\nmin",
            "\nmax",
            "adjusted mutual\ninformation, mean",
        ],
    )
    for name, entry in summary["methods"].items():
        rand = np.array(entry["adjusted_rand"])
        numbers = (rand.mean(), rand.min(), rand.max(), np.mean(entry["adjusted_information"]))
        table.add_row(name, *(f"{number:.3f}" for number in numbers))
    console.print(table)


def figures(run: Run) -> dict[str, Figure]:
    """Draw the figures of a run from what it stored."""
    if not run.arrays or run.summary is None:
        return {}
    scores = {
        name: np.array(entry["adjusted_rand"]) for name, entry in run.summary["methods"].items()
    }
    drawn = {"scores": plotting_statistics.scores_by_seed(scores, "adjusted Rand index")}
    codes = run.arrays["codes"].astype(float)
    if codes.shape[1] == 2:
        keys = {name: name.split()[0].lower() for name in METHODS}
        drawn["clusters"] = plotting_statistics.cluster_maps(
            codes,
            {"classes": run.arrays["labels"]}
            | {name: run.arrays[f"{key}_clusters"][0] for name, key in keys.items()},
            {name: run.arrays[f"{key}_centers"][0].astype(float) for name, key in keys.items()},
        )
    return drawn
