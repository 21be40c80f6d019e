"""Monte Carlo: how much shorter than straight lines geodesics are."""

# ruff: noqa: B008 - the defaults are frozen dataclasses

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from geolatent.checks import requirement
from geolatent.curves import CubicBSpline
from geolatent.graph import LatentGraph
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
    SolverOptions,
    check_formats,
)
from geolatent.lab.execution import check_executor, run_shards
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import alignment
from geolatent.lab.pairs import (
    Case,
    Pairs,
    Shards,
    draw_images,
    encoded_pairs,
    prior_pairs,
    read_pairs,
    worst_case_pairs,
)
from geolatent.lab.printing import (
    make_console,
    print_files,
    print_statuses,
    statistics_table,
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
from geolatent.metrics.base import Metric

DEFAULT_STEPS = (1.0, 2.0, 4.0)
ALIGNMENTS = ("straight_alignment", "alignment")


def measure_alignment(
    metric: Metric, max_rows: int | None = None
) -> Callable[[CubicBSpline, CubicBSpline], Mapping[str, Tensor]]:
    """Return the measure that adds the columns ``straight_alignment`` and ``alignment``."""

    def measure(line: CubicBSpline, curve: CubicBSpline) -> Mapping[str, Tensor]:
        both = (alignment(metric, one, max_rows=max_rows) for one in (line, curve))
        return dict(zip(ALIGNMENTS, both, strict=True))

    return measure


def measure_improvement(
    metric: Metric,
    groups: Sequence[Pairs],
    *,
    solver: SolverOptions | None = None,
    initial: LatentGraph | None = None,
    with_alignment: bool = True,
) -> Shards:
    """Return the work of solving groups of pairs, such as those of several step sizes.

    Parameters
    ----------
    metric
        The metric.
    groups
        Groups of equally many pairs; see `geolatent.lab.pairs` for where they come from.
    solver
        The solver's options.
    initial
        Where curves start; None for straight lines.
    with_alignment
        Add the columns ``straight_alignment`` and ``alignment``; d forward rows at 16 points of
        every line and curve.

    Returns
    -------
    Shards
        Each of them holds pairs of all groups.

    References
    ----------
    Michelis, Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
    2021, https://arxiv.org/abs/2105.03663, algorithm 1.

    Examples
    --------
    >>> from geolatent import GaussianPullbackMetric, models
    >>> from geolatent.lab.pairs import worst_case_pairs
    >>> metric = GaussianPullbackMetric(models.digits_vae().decode)
    >>> groups = worst_case_pairs(metric, 2, 2, steps=(1.0, 2.0))
    >>> (solved,) = measure_improvement(metric, groups, with_alignment=False)
    >>> solved.column("step").tolist(), bool((solved.column("relative_improvement") >= 0).all())
    ([1.0, 1.0, 2.0, 2.0], True)
    """
    max_rows = solver.max_rows if solver is not None else None
    measures = [measure_alignment(metric, max_rows)] if with_alignment else []
    cases = [Case(metric, pairs, initial, measures) for pairs in groups]
    return Shards(cases, solver if solver is not None else SolverOptions())


def check_source(source: str, steps: Sequence[float] | None, codes: Path | None) -> None:
    """Raise where steps or a file are given for pairs that have none, or a file lacks.

    Raises
    ------
    ValueError
        If so.
    """
    if steps is not None and source != "worst":
        raise ValueError(requirement("steps", "None where `pairs` is not 'worst'", steps))
    if (source == "codes") == (codes is None):
        required = "the path of a file where `pairs` is 'codes', and only there"
        raise ValueError(requirement("codes", required, codes))


def choose_pairs(
    source: str,
    n_pairs: int,
    model: LatentModel,
    dataset: Dataset,
    *,
    codes: Path | None = None,
    seed: int = 0,
) -> Pairs:
    """Return pairs of the prior, of encoded images or of a file.

    Raises
    ------
    ValueError
        If ``codes`` is given without the source "codes", or lacks with it.
    """
    check_source(source, None, codes)
    if codes is not None:
        return read_pairs(codes, model.dim, model.like)[:n_pairs]
    if source == "prior":
        return prior_pairs(n_pairs, model.dim, seed=seed, like=model.like)
    images, labels = dataset.chosen
    return encoded_pairs(model, images, labels, draw_images(n_pairs, len(images), seed))


def improvement(
    out: Path = Path("runs/improvement"),
    pairs: Literal["worst", "prior", "encoded", "codes"] = "worst",
    n_pairs: int = 100,
    steps: tuple[float, ...] | None = None,
    codes: Path | None = None,
    model: ModelOptions = ModelOptions(),
    data: DataOptions = DataOptions(split="test"),
    metric: MetricOptions = MetricOptions(),
    features: FeatureOptions = FeatureOptions(),
    solver: SolverOptions = SolverOptions(),
    initial: InitialOptions = InitialOptions(),
    alignment: bool = True,
    seed: int = 0,
    dtype: Literal["float32", "float64"] = "float32",
    device: str = "auto",
    executor: Executor = "local",
    ray: RayOptions = RayOptions(),
    overwrite: bool = False,
    format: Formats = "png",
) -> None:
    """Measure how much shorter than straight lines geodesics are, over many pairs of codes.

    By default the worst case of Michelis and Becker (2021), algorithm 1: steps of several sizes
    from random codes along the largest eigenvector of the metric, towards the origin. Prints mean,
    standard deviation and quantiles of the relative improvement and draws its histogram.

    Args:
        out: Folder for the results; it is made where it does not exist.
        pairs: "worst", algorithm 1; "prior", both ends from N(0, I); "encoded", pairs of images of
            the data; "codes", pairs of a file.
        n_pairs: Number of pairs, for each step size; at most so many of a file.
        steps: Step sizes in latent units, for "worst"; 1, 2 and 4 where none are given.
        codes: File of pairs, for "codes": `start` and `end`, (B, d) each, in .npz, .safetensors,
            .pt or .pth, or an .npy file of shape (B, 2, d).
        model: The model.
        data: The images, for "encoded"; their training split serves logistic features and graphs.
        metric: How the decoder becomes a metric.
        features: A feature map in whose output lengths are measured.
        solver: How geodesics are found.
        initial: Where curves start.
        alignment: Measure how far curves follow the metric's smallest eigenvectors.
        seed: Seed of the pairs.
        dtype: Floating-point type of model and codes.
        device: "auto", "cpu", "cuda" or another device of torch; each of Ray's workers chooses its
            own.
        executor: "local" solves shard after shard in this process, "ray" on all GPUs or CPUs of a
            machine or a cluster.
        ray: Options of Ray.
        overwrite: Replace the results of an earlier run in the folder. Without it, the same options
            on the folder of an unfinished run do what is missing there.
        format: Format of the figures, "png", "pdf" or "svg", or a list of them.
    """
    config = dict(locals())  # the options alone, as they are written to config.yaml
    began = time.perf_counter()
    check_formats(format)
    check_source(pairs, steps, codes)
    RunFolder.check(out, overwrite=overwrite, command="improvement", resume=config)
    check_executor(executor)
    place = make_device(device)
    codec = make_model(model, dtype, place)
    dataset = Dataset(data)
    feature_map, accuracy = make_features(features, dataset, codec.like)
    pulled_back = codec.metric(metric, feature_map, seed)
    if pairs == "worst":
        groups = worst_case_pairs(
            pulled_back,
            n_pairs,
            codec.dim,
            DEFAULT_STEPS if steps is None else steps,
            seed=seed,
            like=codec.like,
            max_rows=solver.max_rows,
        )
    else:
        groups = [choose_pairs(pairs, n_pairs, codec, dataset, codes=codes, seed=seed)]
    console = make_console()
    with RunFolder.create(
        out, "improvement", config, seed=seed, device=place, overwrite=overwrite, resume=True
    ) as folder:
        graph = make_initial(
            initial, pulled_back, codec, dataset, groups, seed=seed, max_rows=solver.max_rows
        )
        shards = measure_improvement(
            pulled_back, groups, solver=solver, initial=graph, with_alignment=alignment
        )
        run_shards(folder, shards, executor=executor, ray=ray, device=device, console=console)
        measured = ALIGNMENTS if alignment else ()
        by = _groups(folder.join())
        summary = {
            "pairs": pairs,
            "groups": {label: summarise(part, measured) for label, part in by.items()},
            "graph_rows": 0 if graph is None else graph.forward_rows,
            "classifier_accuracy": accuracy,
            "seconds": round(time.perf_counter() - began, 1),
        }
        run = folder.finish(summary)
    name = "step" if pairs == "worst" else "pairs"
    title = f"Relative length improvement, pairs: {pairs}"
    console.print(statistics_table(title, run.summary["groups"], name))  # type: ignore[index]
    print_statuses(console, run.summary["groups"])  # type: ignore[index]
    print_files(console, folder.path, plotting.save_figures(figures(run), folder.path, format))


def _groups(solved: SolvedPairs) -> dict[str, SolvedPairs]:
    """Take the pairs of each step size apart."""
    if "step" not in solved.table.column_names:
        return {"all": solved}
    steps = np.unique(solved.column("step")).tolist()
    return {f"{step:g}": solved.where("step", step) for step in steps}


def figures(run: Run) -> dict[str, Figure]:
    """Draw the figures of a run from what it stored."""
    if run.pairs is None:
        return {}
    groups = {
        label: part.column("relative_improvement") for label, part in _groups(run.pairs).items()
    }
    stepped = "step" in run.pairs.table.column_names
    labels = {label: f"step {label}" if stepped else "pairs" for label in groups}
    result = {
        "histogram": plotting.improvement_histograms(
            {labels[label]: values for label, values in groups.items()}
        )
    }
    if stepped and len(groups) > 1:
        result["steps"] = plotting.improvement_by_step(
            {float(label): values for label, values in groups.items()}
        )
    if "alignment" in run.pairs.table.column_names:
        result["alignment"] = plotting.before_and_after(
            run.pairs.column("straight_alignment"),
            run.pairs.column("alignment"),
            "alignment with the metric's smallest eigenvectors",
        )
    return result
