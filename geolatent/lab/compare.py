"""Comparison of models on the same pairs of images, each through its own encoder."""

# ruff: noqa: B006 - the defaults are frozen dataclasses, and a dictionary that stays empty

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from geolatent.checks import check_integer, check_number, requirement
from geolatent.graph import LatentGraph
from geolatent.lab import plotting
from geolatent.lab.config import (
    DataOptions,
    Executor,
    FeatureOptions,
    Formats,
    InitialOptions,
    MetricOptions,
    ModelEntry,
    ModelOptions,
    RayOptions,
    check_formats,
)
from geolatent.lab.execution import check_executor, run_shards
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.pairs import (
    Case,
    Pairs,
    Shards,
    draw_images,
    encoded_pairs,
)
from geolatent.lab.printing import (
    make_console,
    print_files,
    print_statuses,
    statistics_table,
)
from geolatent.lab.results import Run, RunFolder, SolvedPairs
from geolatent.lab.setup import (
    Dataset,
    make_device,
    make_features,
    make_initial,
    make_model,
)
from geolatent.lab.summary import summarise
from geolatent.metrics.base import Metric
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Solver


def compare_models(
    models: Mapping[str, LatentModel],
    metrics: Mapping[str, Metric],
    images: Tensor,
    labels: Tensor | None,
    rows: Tensor,
    *,
    threshold: float = 0.02,
    solver: Solver | None = None,
    length_tolerance: float = 1e-4,
    batch_size: int = 64,
    initial: Mapping[str, LatentGraph | None] | None = None,
) -> Shards:
    """Return the work of solving the same pairs of images in several models.

    Every model encodes the images itself. A pair is comparable where its relative improvements in
    all models differ by at most a threshold: there straight lines in the models deviate equally
    from their geodesics, so that a comparison of straight interpolations is fair.

    Parameters
    ----------
    models, metrics
        The models by name, and the metric of each.
    images, labels
        The images, (n, channels, height, width), and their classes, (n,), where known.
    rows
        Row numbers of the pairs, (B, 2).
    threshold
        Largest difference of the relative improvements of a comparable pair, a fraction.
    solver
        How curves are shortened.
    length_tolerance, batch_size
        As `Shards` takes them.
    initial
        Where curves start, by the model's name; straight lines where none is given.

    Returns
    -------
    Shards
        Each of them holds pairs in every model, with the columns ``model``, ``difference`` (largest
        less smallest improvement of the pair) and ``comparable``.

    References
    ----------
    Michelis, Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
    2021, https://arxiv.org/abs/2105.03663, appendix D.
    """
    check_number("threshold", threshold, at_least=0.0)
    cases = []
    for name, model in models.items():
        pairs = encoded_pairs(model, images, labels, rows)
        named = Pairs(pairs.start, pairs.end, {"model": [name] * len(pairs), **pairs.columns})
        cases.append(Case(metrics[name], named, (initial or {}).get(name)))
    complete = partial(_with_differences, n_models=len(models), threshold=threshold)
    return Shards(
        cases,
        solver if solver is not None else PreconditionedSolver(),
        length_tolerance,
        batch_size,
        complete,
    )


def _with_differences(shard: SolvedPairs, n_models: int, threshold: float) -> SolvedPairs:
    table = shard.column("relative_improvement").reshape(n_models, -1)
    difference = np.tile(table.max(0) - table.min(0), n_models)
    return shard.with_columns({"difference": difference, "comparable": difference <= threshold})


def compare(
    out: Path = Path("runs/compare"),
    models: dict[str, ModelEntry] = {},
    n_pairs: int = 100,
    threshold: float = 0.02,
    data: DataOptions = DataOptions(split="test"),
    metric: MetricOptions = MetricOptions(),
    features: FeatureOptions = FeatureOptions(),
    solver: Solver = PreconditionedSolver(),
    length_tolerance: float = 1e-4,
    batch_size: int = 64,
    max_rows: int | None = None,
    initial: InitialOptions = InitialOptions(),
    seed: int = 0,
    dtype: Literal["float32", "float64"] = "float32",
    device: str = "auto",
    executor: Executor = "local",
    ray: RayOptions = RayOptions(),
    overwrite: bool = False,
    format: Formats = "png",
) -> None:
    """Compare models on the same pairs of images, each through its own encoder.

    Follows Michelis and Becker (2021), appendix D. Prints the relative improvements of the models
    side by side and the pairs that are comparable: those whose improvements in all models differ by
    at most a threshold.

    Parameters
    ----------
    out
        Folder for the results; it is made where it does not exist.
    models
        Two or more models by names of your choice, each with the keys of `model` in other
        commands (checkpoint, class_path, init_args, encoder, decoder, latent_dim), such as
        --models.vae.checkpoint A --models.gan.checkpoint B; {} is the small digits model.
    n_pairs
        Number of pairs of images, none of which is used twice.
    threshold
        Largest difference of the relative improvements of a comparable pair, a fraction.
    data
        The images; their training split serves logistic features and graphs.
    metric
        How the decoders become metrics.
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
    seed
        Seed of the pairs.
    dtype
        Floating-point type of models and codes.
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
    if len(models) < 2:
        required = "two models or more, such as --models.a.checkpoint A --models.b.checkpoint B"
        raise ValueError(requirement("models", required, list(models)))
    check_number("threshold", threshold, at_least=0.0)
    check_number("length_tolerance", length_tolerance, above=0.0)
    check_integer("batch_size", batch_size)
    RunFolder.check(out, overwrite=overwrite, command="compare", resume=config)
    check_executor(executor)
    place = make_device(device)
    codecs = {
        name: make_model(ModelOptions(**entry), dtype, place, f"models.{name}")
        for name, entry in models.items()
    }
    dataset = Dataset(data)
    images, labels = dataset.chosen
    rows = draw_images(n_pairs, len(images), seed)
    like = next(iter(codecs.values())).like
    feature_map, accuracy = make_features(features, dataset, like)
    metrics = {
        name: codec.metric(metric, feature_map, seed).limited(max_rows)
        for name, codec in codecs.items()
    }
    ends = {name: encoded_pairs(codec, images, None, rows) for name, codec in codecs.items()}
    console = make_console()
    with RunFolder.create(
        out, "compare", config, seed=seed, device=place, overwrite=overwrite, resume=True
    ) as folder:
        graphs = {
            name: make_initial(initial, metrics[name], codec, dataset, [ends[name]], seed=seed)
            for name, codec in codecs.items()
        }
        shards = compare_models(
            codecs,
            metrics,
            images,
            labels,
            rows,
            threshold=threshold,
            solver=solver,
            length_tolerance=length_tolerance,
            batch_size=batch_size,
            initial=graphs,
        )
        run_shards(folder, shards, executor=executor, ray=ray, device=device, console=console)
        solved = folder.join()
        by = {name: solved.where("model", name) for name in models}
        first = next(iter(by.values()))
        comparable = first.column("pair")[first.column("comparable")]
        correlations = (
            np.corrcoef([part.column("relative_improvement") for part in by.values()])
            if n_pairs > 1
            else np.full((len(by), len(by)), np.nan)
        )
        summary: dict[str, Any] = {
            "groups": {name: summarise(part, ("difference",)) for name, part in by.items()},
            "threshold": threshold,
            "comparable": {"n_pairs": len(comparable), "pairs": comparable},
            "correlation_of_improvements": correlations,
            "graph_rows": sum(graph.forward_rows for graph in graphs.values() if graph is not None),
            "classifier_accuracy": accuracy,
            "seconds": round(time.perf_counter() - began, 1),
        }
        run = folder.finish(summary)
    title = "Relative length improvement on the same pairs of images"
    console.print(statistics_table(title, run.summary["groups"], "model"))  # type: ignore[index]
    print_statuses(console, run.summary["groups"])  # type: ignore[index]
    console.print(
        f"{len(comparable)} of {n_pairs} pairs are comparable: their improvements differ by at "
        f"most {100 * threshold:g} percentage points."
    )
    print_files(console, folder.path, plotting.save_figures(figures(run), folder.path, format))


def figures(run: Run) -> dict[str, Figure]:
    """Draw the figures of a run from what it stored."""
    if run.pairs is None:
        return {}
    names = list(dict.fromkeys(run.pairs.column("model").tolist()))
    values: dict[str, NDArray[np.float64]] = {
        name: run.pairs.where("model", name).column("relative_improvement") for name in names
    }
    comparable = run.pairs.where("model", names[0]).column("comparable")
    return {
        "improvements": plotting.improvements_compared(
            values, comparable, float(run.config["threshold"])
        ),
        "histogram": plotting.improvement_histograms(values),
    }
