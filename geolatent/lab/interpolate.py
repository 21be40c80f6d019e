"""Interpolation: straight lines against geodesics, with and without a feature map."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from geolatent.checks import check_integer, check_number
from geolatent.curves import CubicBSpline
from geolatent.graph import LatentGraph
from geolatent.interpolations import lerp, slerp, slerp_curve
from geolatent.lab import plotting
from geolatent.lab.config import (
    DataOptions,
    Executor,
    FeatureOptions,
    Formats,
    InitialOptions,
    MetricOptions,
    ModelOptions,
    RayOptions,
    check_formats,
)
from geolatent.lab.execution import check_executor, run_shards
from geolatent.lab.improvement import choose_pairs
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import (
    alignment,
    class_crossings,
    classes_along,
    classes_visited,
    correlation_matrices,
    data_distance,
    decode_along,
    prior_density,
)
from geolatent.lab.pairs import Case, Measure, Pairs, Shards
from geolatent.lab.printing import (
    make_console,
    make_table,
    number,
    print_files,
    print_statuses,
)
from geolatent.lab.run import Run, RunFolder
from geolatent.lab.setup import (
    Dataset,
    make_device,
    make_features,
    make_initial,
    make_model,
)
from geolatent.lab.solved import SolvedPairs
from geolatent.lab.summary import summarise
from geolatent.lengths import measure as measure_lengths
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows
from geolatent.priors import norm_profile
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Solver

PLAIN = "geodesic"
DENSITIES = ("log_density", "lowest_log_density")
# images of a sequence whose correlations are taken
_CORRELATED = 32
# pairs whose correlation matrices are drawn
_MATRICES = 3
# points of a norm profile
_PROFILE = 101

# curves -> columns of the table, B values each
Quantity = Callable[[CubicBSpline], Mapping[str, Tensor]]


def measure_along(quantities: Sequence[Quantity]) -> Measure:
    """Return the measure of quantities along the straight lines, `slerp` and the geodesics.

    The columns of a quantity ``name`` are ``straight_name``, ``slerp_name`` and ``name``.
    """

    def measure(line: CubicBSpline, curve: CubicBSpline) -> Mapping[str, Tensor]:
        curves = {"straight_": line, "slerp_": _slerp_beside(line), "": curve}
        return {
            prefix + name: value
            for prefix, one in curves.items()
            for quantity in quantities
            for name, value in quantity(one).items()
        }

    return measure


def measure_slerp(metric: Metric, length_tolerance: float = 1e-4) -> Measure:
    """Return the measure that adds the columns ``slerp_length`` and ``slerp_relative_improvement``.

    The improvement is over the straight line, negative where `slerp` is longer.
    """

    def measure(line: CubicBSpline, _curve: CubicBSpline) -> Mapping[str, Tensor]:
        both = [line, _slerp_beside(line)]
        rows = Rows.of(metric, line.control_points[:, 0]).counting(line.batch_size)
        measured = measure_lengths(rows, both, tolerance=length_tolerance)
        straight, length = measured.length
        improvement = torch.where(straight == 0, 0.0, (straight - length) / straight)
        return {"slerp_length": length, "slerp_relative_improvement": improvement}

    return measure


def _slerp_beside(line: CubicBSpline) -> CubicBSpline:
    return slerp_curve(line.control_points[:, 0], line.control_points[:, -1])


def prior_densities(curve: CubicBSpline) -> Mapping[str, Tensor]:
    """Return ``log_density`` and ``lowest_log_density`` of the codes of curves under N(0, I)."""
    return dict(zip(DENSITIES, prior_density(curve), strict=True))


def correlations(model: LatentModel, n_images: int = _CORRELATED) -> Quantity:
    """Return what gives ``correlation_variance``, of the correlation matrices of the sequences."""
    return lambda curve: {
        "correlation_variance": correlation_matrices(decode_along(model, curve, n_images))
        .flatten(1)
        .var(1, correction=0)
    }


def classes(model: LatentModel, classifier: nn.Module, n_points: int = 128) -> Quantity:
    """Return what gives the ``crossings`` (changes of class) and ``classes`` (different ones).

    NaN where an image on the way is not finite.
    """

    def quantity(curve: CubicBSpline) -> Mapping[str, Tensor]:
        along = classes_along(model, classifier, curve, n_points)
        counts = {"crossings": class_crossings(along), "classes": classes_visited(along)}
        known = (along >= 0).all(1)
        return {name: torch.where(known, count, torch.nan) for name, count in counts.items()}

    return quantity


def interpolate_pairs(
    metrics: Mapping[str, Metric],
    pairs: Pairs,
    *,
    initial: Mapping[str, LatentGraph | None] | None = None,
    measures: Mapping[str, list[Measure]] | None = None,
) -> list[Case]:
    """Return the cases of the same pairs under several metrics.

    Parameters
    ----------
    metrics
        The metrics by name, such as one without and one with a feature map.
    pairs
        The pairs.
    initial
        Where curves start, by the metric's name; straight lines where none is given.
    measures
        Further columns, by the metric's name.

    Returns
    -------
    list of Case
        One for every metric, with the column ``metric``, the name.
    """
    cases = []
    for name, metric in metrics.items():
        named = Pairs(pairs.start, pairs.end, {"metric": [name] * len(pairs), **pairs.columns})
        cases.append(Case(metric, named, (initial or {}).get(name), (measures or {}).get(name, ())))
    return cases


def interpolate(
    out: Path = Path("runs/interpolate"),
    pairs: Literal["encoded", "prior", "codes"] = "encoded",
    n_pairs: int = 20,
    codes: Path | None = None,
    model: ModelOptions = ModelOptions(),
    data: DataOptions = DataOptions(split="test"),
    metric: MetricOptions = MetricOptions(),
    features: FeatureOptions = FeatureOptions(),
    solver: Solver = PreconditionedSolver(),
    length_tolerance: float = 1e-4,
    batch_size: int = 64,
    max_rows: int | None = None,
    initial: InitialOptions = InitialOptions(),
    n_images: int = 11,
    n_shown: int = 6,
    seed: int = 0,
    dtype: Literal["float32", "float64"] = "float32",
    device: str = "auto",
    executor: Executor = "local",
    ray: RayOptions = RayOptions(),
    overwrite: bool = False,
    format: Formats = "png",
) -> None:
    """Interpolate between codes along straight lines, slerp and geodesics, and compare them.

    Slerp turns the direction of the code along a great circle and changes its norm linearly. With
    a feature map every pair is solved twice, without it and with it. For each pair and each of the
    curves: length, log density of the codes under the prior N(0, I) (mean and lowest, in nats),
    the distance from the data, the classes that a logistic regression sees on the way, how evenly
    the images change (variance of their correlation matrix), and how far the curve follows the
    metric's smallest eigenvectors. Draws strips of images, correlation matrices, and the norms of
    the codes beside the prior's.

    Parameters
    ----------
    out
        Folder for the results; it is made where it does not exist.
    pairs
        "encoded", pairs of images of the data; "prior", both ends from N(0, I); "codes",
        pairs of a file.
    n_pairs
        Number of pairs; at most so many of a file.
    codes
        File of pairs, for "codes": `start` and `end`, (B, d) each, in .npz, .safetensors,
        .pt or .pth, or an .npy file of shape (B, 2, d).
    model
        The model.
    data
        The images; their training split serves the logistic regression, the distances from
        the data and graphs.
    metric
        How the decoder becomes a metric.
    features
        A feature map in whose output lengths are measured.
    solver
        How geodesics are found, by PreconditionedSolver, FirstOrderSolver, GEORCESolver or
        FirstOrderSolver.michelis_becker, and its settings.
    length_tolerance
        Relative tolerance of the reported lengths.
    batch_size
        Pairs that are solved together and stored as one part.
    max_rows
        Largest number of rows sent through the decoder at once.
    initial
        Where curves start.
    n_images
        Images in a strip.
    n_shown
        Pairs that are drawn.
    seed
        Seed of the pairs.
    dtype
        Floating-point type of model and codes.
    device
        "auto", "cpu", "cuda" or another device of torch; each of Ray's workers chooses its
        own.
    executor
        "local" solves shard after shard in this process, "ray" on all GPUs or CPUs of a
        machine or a cluster.
    ray
        Options of Ray.
    overwrite
        Replace the results of an earlier run in the folder. Without it, the same options
        on the folder of an unfinished run do what is missing there.
    format
        Format of the figures, "png", "pdf" or "svg", or a list of them.
    """
    config = dict(locals())  # the options alone, as they are written to config.yaml
    began = time.perf_counter()
    check_formats(format)
    check_integer("n_images", n_images, minimum=2)
    check_integer("n_shown", n_shown)
    check_number("length_tolerance", length_tolerance, above=0.0)
    check_integer("batch_size", batch_size)
    RunFolder.check(out, overwrite=overwrite, command="interpolate", resume=config)
    check_executor(executor)
    place = make_device(device)
    codec = make_model(model, dtype, place)
    dataset = Dataset(data)
    dataset.check_decoder(codec)
    chosen = choose_pairs(pairs, n_pairs, codec, dataset, codes=codes, seed=seed)
    feature_map, accuracy = make_features(features, dataset, codec.like)
    metrics = {PLAIN: codec.metric(metric, None, seed).limited(max_rows)}
    if feature_map is not None:
        measured = codec.metric(metric, feature_map, seed).limited(max_rows)
        metrics[f"{features.kind} {PLAIN}"] = measured
    training_codes = dataset.codes(codec)
    classifier: nn.Module | None = feature_map if features.kind == "logistic" else None
    if classifier is None and dataset.training[1] is not None:
        fitted, accuracy = dataset.classifier()
        classifier = fitted.to(codec.like)
    quantities: list[Quantity] = [
        correlations(codec),
        lambda curve: {"data_distance": data_distance(curve, training_codes)},
        prior_densities,
    ]
    if classifier is not None:
        quantities.append(classes(codec, classifier))

    def aligned(each: Metric) -> Quantity:
        return lambda curve: {"alignment": alignment(each, curve)}

    measures = {
        name: [measure_slerp(each, length_tolerance), measure_along([*quantities, aligned(each)])]
        for name, each in metrics.items()
    }
    console = make_console()
    with RunFolder.create(
        out, "interpolate", config, seed=seed, device=place, overwrite=overwrite, resume=True
    ) as folder:
        graphs = {
            name: make_initial(initial, each, codec, dataset, [chosen], seed=seed)
            for name, each in metrics.items()
        }
        cases = interpolate_pairs(metrics, chosen, initial=graphs, measures=measures)
        shards = Shards(cases, solver, length_tolerance, batch_size)
        run_shards(folder, shards, executor=executor, ray=ray, device=device, console=console)
        solved = folder.join()
        compared = ["alignment", "correlation_variance", "data_distance", *DENSITIES]
        compared += ["crossings", "classes"] if classifier is not None else []
        columns = ["slerp_length", "slerp_relative_improvement"]
        columns += [prefix + name for name in compared for prefix in ("", "straight_", "slerp_")]
        summary = {
            "pairs": pairs,
            "groups": {name: summarise(solved.where("metric", name), columns) for name in metrics},
            "graph_rows": sum(graph.forward_rows for graph in graphs.values() if graph is not None),
            "classifier_accuracy": accuracy,
            "seconds": round(time.perf_counter() - began, 1),
        }
        run = folder.finish(summary, _frames(codec, solved, list(metrics), n_images, n_shown))
    _print(console, run)
    print_files(console, folder.path, plotting.save_figures(figures(run), folder.path, format))


def _frames(
    model: LatentModel, solved: SolvedPairs, names: list[str], n_images: int, n_shown: int
) -> dict[str, Tensor]:
    """Decode the first pairs for the figures.

    Returns ``frames`` (shown, sequences, n_images, channels, height, width) and ``correlations``
    (shown, sequences, T, T); the sequences are the straight line, slerp and the curve of each
    metric.
    """
    curves = [solved.where("metric", name).curve for name in names]
    shown = slice(0, min(n_shown, curves[0].batch_size))
    ends = curves[0].control_points[shown]
    line = CubicBSpline.straight(ends[:, 0], ends[:, -1])
    sequences = [line, _slerp_beside(line)]
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
    lengths = make_table(
        "Lengths, and log density p of the prior N(0, I): means over the pairs",
        [
            "\ncurve",
            "\nlength in",
            "\nlength",
            "shorter\nby %",
            "converged\n%",
            "log p(z)\nmean",
            "log p(z)\nlowest",
        ],
        n_text=2,
    )
    for name, group in groups.items():
        space = "output" if name == PLAIN else "features"
        rows = {"straight line": ("straight_", "", ""), "slerp": ("slerp_", None, "")}
        rows[name] = ("", None, number(group["converged"], ".0f", 100))
        for curve, (prefix, gain, converged) in rows.items():
            if gain is None:
                gain = number(group[f"{prefix}relative_improvement"]["mean"], ".2f", 100)
            lengths.add_row(
                curve,
                space,
                number(group[f"{prefix}length"]["mean"], ".3f"),
                gain,
                converged,
                *(number(group[prefix + key]["mean"], ".2f") for key in DENSITIES),
            )
        lengths.add_section()
    console.print(lengths)
    with_classes = "crossings" in first
    table = make_table(
        "What is on the way: means over the pairs",
        [
            "\ncurve",
            "data\ndistance",
            "correlation\nvariance",
            "align-\nment",
            *(["class\ncrossings"] if with_classes else []),
        ],
    )
    keys = ["data_distance", "correlation_variance", "alignment"]
    keys += ["crossings"] if with_classes else []
    for curve, prefix in (("straight line", "straight_"), ("slerp", "slerp_")):
        table.add_row(curve, *(number(first[prefix + key]["mean"], ".3f") for key in keys))
    for name, group in groups.items():
        table.add_row(name, *(number(group[key]["mean"], ".3f") for key in keys))
    console.print(table)
    print_statuses(console, groups)
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
        gains = {"slerp": first.column("slerp_relative_improvement")[pair]}
        gains |= {n: group.column("relative_improvement")[pair] for n, group in groups.items()}
        text = f"pair {pair}"
        if "start_label" in first.table.column_names:
            ends = [int(first.column(f"{end}_label")[pair]) for end in ("start", "end")]
            text += f", class {ends[0]} to {ends[1]}"
        shorter = ", ".join(f"{name} {number(g, '.1f', 100)} %" for name, g in gains.items())
        titles.append(f"{text}; shorter than straight: {shorter}")
    sequences = ["straight", "slerp", *names]
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
    result["norms"] = _norm_figure(first, groups)
    if "crossings" in first.table.column_names:
        counts = {name: first.column(f"{name}_crossings") for name in ("straight", "slerp")}
        counts |= {name: group.column("crossings") for name, group in groups.items()}
        result["crossings"] = plotting.count_bars(counts, "changes of class along the curve")
    return result


def _norm_figure(first: SolvedPairs, groups: Mapping[str, SolvedPairs]) -> Figure:
    """Draw |z| along the curves beside the norms of the prior."""
    times = torch.linspace(0.0, 1.0, _PROFILE, dtype=torch.float64)
    start, end = (torch.from_numpy(first.column(name)).double() for name in ("start", "end"))
    paths = {"straight": lerp(start, end, times), "slerp": slerp(start, end, times)}
    paths |= {name: group.curve.to(dtype=torch.float64)(times) for name, group in groups.items()}
    profiles = {name: norm_profile(points) for name, points in paths.items()}
    prior = profiles["straight"]
    return plotting.norm_profiles(
        times.numpy(),
        {name: profile.norms.numpy() for name, profile in profiles.items()},
        (prior.mean, prior.standard_deviation),
    )
