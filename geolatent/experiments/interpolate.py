"""Interpolation: straight lines against geodesics, with and without a feature map."""

# ruff: noqa: B008 - the defaults are frozen dataclasses

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from geolatent import plotting
from geolatent.checks import check_integer
from geolatent.config import (
    FeatureOptions,
    InitialOptions,
    MetricOptions,
    ModelOptions,
    SolverOptions,
)
from geolatent.curves import CubicBSpline
from geolatent.data import DataOptions
from geolatent.experiments.console import make_table, print_files, progress_bar
from geolatent.experiments.improvement import ALIGNMENTS, choose_pairs, measure_alignment
from geolatent.experiments.latent_model import LatentModel
from geolatent.experiments.measures import (
    class_crossings,
    classes_along,
    classes_visited,
    correlation_matrices,
    data_distance,
    decode_along,
)
from geolatent.experiments.pairs import Case, Measure, Pairs, solve_in_batches
from geolatent.experiments.setup import (
    Dataset,
    make_device,
    make_features,
    make_initial,
    make_model,
)
from geolatent.experiments.summary import summarise
from geolatent.initial import LatentGraph
from geolatent.metrics import Metric
from geolatent.results import Run, RunFolder, SolvedPairs

PLAIN = "geodesic"
# images of a sequence whose correlations are taken
_CORRELATED = 32
# pairs whose correlation matrices are drawn
_MATRICES = 3


def measure_correlation(
    model: LatentModel, n_images: int = _CORRELATED
) -> Callable[[CubicBSpline, CubicBSpline], Mapping[str, Tensor]]:
    """Return the measure of the variances of the sequences' correlation matrices.

    It adds the columns ``straight_correlation_variance`` and ``correlation_variance``.
    """

    def measure(line: CubicBSpline, curve: CubicBSpline) -> Mapping[str, Tensor]:
        names = ("straight_correlation_variance", "correlation_variance")
        return {
            name: correlation_matrices(decode_along(model, one, n_images))
            .flatten(1)
            .var(1, correction=0)
            for name, one in zip(names, (line, curve), strict=True)
        }

    return measure


def measure_distance(
    codes: Tensor,
) -> Callable[[CubicBSpline, CubicBSpline], Mapping[str, Tensor]]:
    """Return the measure of the distances to the data.

    It adds the columns ``straight_data_distance`` and ``data_distance``.
    """

    def measure(line: CubicBSpline, curve: CubicBSpline) -> Mapping[str, Tensor]:
        return {
            "straight_data_distance": data_distance(line, codes),
            "data_distance": data_distance(curve, codes),
        }

    return measure


def measure_classes(
    model: LatentModel, classifier: nn.Module, n_points: int = 128
) -> Callable[[CubicBSpline, CubicBSpline], Mapping[str, Tensor]]:
    """Return the measure of the classes that curves run through.

    It adds the columns ``straight_crossings`` and ``crossings`` (changes of class),
    ``straight_classes`` and ``classes`` (different ones).
    """

    def measure(line: CubicBSpline, curve: CubicBSpline) -> Mapping[str, Tensor]:
        straight = classes_along(model, classifier, line, n_points)
        along = classes_along(model, classifier, curve, n_points)
        return {
            "straight_crossings": class_crossings(straight),
            "crossings": class_crossings(along),
            "straight_classes": classes_visited(straight),
            "classes": classes_visited(along),
        }

    return measure


def interpolate_pairs(
    metrics: Mapping[str, Metric],
    pairs: Pairs,
    *,
    solver: SolverOptions | None = None,
    initial: Mapping[str, LatentGraph | None] | None = None,
    measures: Mapping[str, list[Measure]] | None = None,
    callback: Callable[[float], None] | None = None,
) -> Iterator[SolvedPairs]:
    """Solve the same pairs under several metrics and yield them in batches.

    Parameters
    ----------
    metrics
        The metrics by name, such as one without and one with a feature map.
    pairs
        The pairs.
    solver
        The solver's options.
    initial
        Where curves start, by the metric's name; straight lines where none is given.
    measures
        Further columns, by the metric's name.
    callback
        Told the share of the work that is done.

    Yields
    ------
    SolvedPairs
        Pairs b, b + 1, ... under every metric, with the column ``metric``, the name.
    """
    cases = []
    for name, metric in metrics.items():
        named = Pairs(pairs.start, pairs.end, {"metric": [name] * len(pairs), **pairs.columns})
        cases.append(Case(metric, named, (initial or {}).get(name), (measures or {}).get(name, ())))
    return solve_in_batches(cases, solver, callback)


def interpolate(
    out: Path = Path("runs/interpolate"),
    pairs: Literal["encoded", "prior", "codes"] = "encoded",
    n_pairs: int = 20,
    codes: Path | None = None,
    model: ModelOptions = ModelOptions(),
    data: DataOptions = DataOptions(split="test"),
    metric: MetricOptions = MetricOptions(),
    features: FeatureOptions = FeatureOptions(),
    solver: SolverOptions = SolverOptions(),
    initial: InitialOptions = InitialOptions(),
    n_images: int = 11,
    n_shown: int = 6,
    seed: int = 0,
    dtype: Literal["float32", "float64"] = "float32",
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Interpolate between codes along straight lines and geodesics, and compare the images.

    With a feature map every pair is solved twice, without it and with it. For each pair: lengths,
    the distance from the data, the classes that a logistic regression sees on the way, how evenly
    the images change (variance of their correlation matrix), and how far the curve follows the
    metric's smallest eigenvectors. Draws strips of images and correlation matrices.

    Args:
        out: Folder for the results; it is made where it does not exist.
        pairs: "encoded", pairs of images of the data; "prior", both ends from N(0, I); "codes",
            pairs of a file.
        n_pairs: Number of pairs; at most so many of a file.
        codes: File of pairs, for "codes": `start` and `end`, (B, d) each, in .npz, .safetensors,
            .pt or .pth, or an .npy file of shape (B, 2, d).
        model: The model.
        data: The images; their training split serves the logistic regression, the distances from
            the data and graphs.
        metric: How the decoder becomes a metric.
        features: A feature map in whose output lengths are measured.
        solver: How geodesics are found.
        initial: Where curves start.
        n_images: Images in a strip.
        n_shown: Pairs that are drawn.
        seed: Seed of the pairs.
        dtype: Floating-point type of model and codes.
        device: "auto", "cpu", "cuda" or another device of torch.
        overwrite: Replace the results of an earlier run in the folder.
    """
    config = dict(locals())  # the options alone, as they are written to config.yaml
    began = time.perf_counter()
    check_integer("n_images", n_images, minimum=2)
    check_integer("n_shown", n_shown)
    RunFolder.check(out, overwrite=overwrite)
    place = make_device(device)
    codec = make_model(model, dtype, place)
    dataset = Dataset(data)
    dataset.check_decoder(codec)
    chosen = choose_pairs(pairs, n_pairs, codec, dataset, codes=codes, seed=seed)
    feature_map, accuracy = make_features(features, dataset, codec.like)
    metrics = {PLAIN: codec.metric(metric, None, seed)}
    if feature_map is not None:
        metrics[f"{features.kind} {PLAIN}"] = codec.metric(metric, feature_map, seed)
    training_codes = dataset.codes(codec)
    classifier: nn.Module | None = feature_map if features.kind == "logistic" else None
    if classifier is None and dataset.training[1] is not None:
        fitted, accuracy = dataset.classifier()
        classifier = fitted.to(codec.like)
    common: list[Measure] = [measure_correlation(codec), measure_distance(training_codes)]
    if classifier is not None:
        common.append(measure_classes(codec, classifier))
    measures = {
        name: [*common, measure_alignment(each, solver.max_rows)] for name, each in metrics.items()
    }
    folder = RunFolder.create(
        out, "interpolate", config, seed=seed, device=place, overwrite=overwrite
    )
    console = Console()
    with progress_bar(console) as progress:
        task = progress.add_task(f"solving {len(metrics) * len(chosen)} pairs", total=1.0)
        graphs = {
            name: make_initial(
                initial, each, codec, dataset, [chosen], seed=seed, max_rows=solver.max_rows
            )
            for name, each in metrics.items()
        }
        batches = interpolate_pairs(
            metrics,
            chosen,
            solver=solver,
            initial=graphs,
            measures=measures,
            callback=lambda done: progress.update(task, completed=done),
        )
        for number, batch in enumerate(batches):
            folder.write_part(number, batch)
    solved = SolvedPairs.join(folder.parts())
    compared = ["correlation_variance", "data_distance"]
    compared += ["crossings", "classes"] if classifier is not None else []
    columns = [*ALIGNMENTS, *compared, *(f"straight_{name}" for name in compared)]
    summary = {
        "pairs": pairs,
        "groups": {name: summarise(solved.where("metric", name), columns) for name in metrics},
        "graph_rows": sum(graph.forward_rows for graph in graphs.values() if graph is not None),
        "classifier_accuracy": accuracy,
        "seconds": round(time.perf_counter() - began, 1),
    }
    run = folder.finish(summary, _frames(codec, solved, list(metrics), n_images, n_shown))
    _print(console, run)
    print_files(console, folder.path, plotting.save_figures(figures(run), folder.path))


def _frames(
    model: LatentModel, solved: SolvedPairs, names: list[str], n_images: int, n_shown: int
) -> dict[str, Tensor]:
    """Decode the first pairs for the figures.

    Returns ``frames`` (shown, sequences, n_images, channels, height, width) and ``correlations``
    (shown, sequences, T, T); the sequences are the straight line and the curve of each metric.
    """
    curves = [solved.where("metric", name).curve for name in names]
    shown = slice(0, min(n_shown, curves[0].batch_size))
    ends = curves[0].control_points[shown]
    sequences = [CubicBSpline.straight(ends[:, 0], ends[:, -1])]
    sequences += [curve[shown] for curve in curves]
    frames, correlations = [], []
    for curve in sequences:
        there = curve.to(model.like.device)
        frames.append(decode_along(model, there, n_images).float())
        correlations.append(correlation_matrices(decode_along(model, there, _CORRELATED)).float())
    return {
        "frames": torch.stack(frames, dim=1),
        "correlations": torch.stack(correlations, dim=1),
    }


def _print(console: Console, run: Run) -> None:
    groups = (run.summary or {})["groups"]
    first = next(iter(groups.values()))
    with_classes = "crossings" in first
    table = make_table(
        "Interpolations: means over the pairs",
        [
            "\ncurve",
            "shorter\nby %",
            "converged\n%",
            "data\ndistance",
            "correlation\nvariance",
            "align-\nment",
            *(["class\ncrossings"] if with_classes else []),
        ],
    )
    keys = ["data_distance", "correlation_variance", "alignment"]
    keys += ["crossings"] if with_classes else []
    straight = [f"{first[f'straight_{key}']['mean']:.3f}" for key in keys]
    table.add_row("straight line", "", "", *straight)
    for name, group in groups.items():
        table.add_row(
            name,
            f"{100 * group['relative_improvement']['mean']:.2f}",
            f"{100 * group['converged']:.0f}",
            *(f"{group[key]['mean']:.3f}" for key in keys),
        )
    console.print(table)
    accuracy = (run.summary or {})["classifier_accuracy"]
    if accuracy is not None:
        console.print(
            f"The logistic regression classifies {100 * accuracy:.1f} % of the training images "
            "that were held out from its fit."
        )


def figures(run: Run) -> dict[str, Figure]:
    """Draw the figures of a run from what it stored."""
    if run.pairs is None or "frames" not in run.arrays:
        return {}
    frames = run.arrays["frames"].astype(np.float64)
    names = list(dict.fromkeys(run.pairs.column("metric").tolist()))
    groups = {name: run.pairs.where("metric", name) for name in names}
    first = groups[names[0]]
    titles = []
    for pair in range(frames.shape[0]):
        gains = ", ".join(
            f"{100 * group.column('relative_improvement')[pair]:.1f} %" for group in groups.values()
        )
        text = f"pair {pair}: {gains} shorter"
        if "start_label" in first.table.column_names:
            ends = [int(first.column(f"{end}_label")[pair]) for end in ("start", "end")]
            text = f"pair {pair}, class {ends[0]} to {ends[1]}: {gains} shorter"
        titles.append(text)
    sequences = ["straight", *names]
    strips = {
        name: plotting.grey_or_colour(frames[:, number]) for number, name in enumerate(sequences)
    }
    result = {
        "strips": plotting.image_strips(strips, titles, (-1.0, 1.0)),
        "correlations": plotting.correlation_matrices(
            run.arrays["correlations"][:_MATRICES].astype(np.float64),
            sequences,
            [f"pair {pair}" for pair in range(len(frames))],
        ),
        "data_distance": plotting.before_and_after(
            first.column("straight_data_distance"),
            first.column("data_distance"),
            "mean distance from the nearest code (latent units)",
        ),
    }
    if "crossings" in first.table.column_names:
        counts = {"straight": first.column("straight_crossings")}
        counts |= {name: group.column("crossings") for name, group in groups.items()}
        result["crossings"] = plotting.count_bars(counts, "changes of class along the curve")
    return result
