"""An experiment: a dataclass whose fields are the options of a command, and what all of them do.

To add a command, write a module of this room with a subclass of `Experiment`, `MetricExperiment` or
`PairsExperiment`, as `improvement` and `cluster` are, and name it in `geolatent.cli.COMMANDS`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

import geolatent
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
    check_formats,
)
from geolatent.lab.costs import geodesic_rows, graph_rows
from geolatent.lab.execution import check_executor, run_shards
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.pairs import Case, Pairs, Shards
from geolatent.lab.printing import make_console, print_files
from geolatent.lab.results import Run, RunFolder, SolvedPairs
from geolatent.lab.setup import (
    Dataset,
    initial_kind,
    make_device,
    make_features,
    make_initial,
    make_model,
)
from geolatent.metrics.base import Metric
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Solver

Summary = dict[str, Any]
Arrays = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """Work on a model and data, of which a run folder keeps the results.

    `run` calls, in this order: `check`, `prepare`, `work`, `tell` and `figures`. The command is
    called as the class is, in small letters.

    Attributes
    ----------
    out
        Folder for the results; it is made where it does not exist.
    model
        The model.
    data
        The images.
    seed
        Seed of all that is random.
    dtype
        Floating-point type of model and codes.
    device
        "auto", "cpu", "cuda" or another device of torch.
    overwrite
        Replace the results of an earlier run in the folder.
    format
        Format of the figures, "png", "pdf" or "svg", or a list of them.
    """

    # whether the folder of an unfinished run is gone on with
    resumes: ClassVar[bool] = False

    out: Path
    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions(split="test")
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "auto"
    overwrite: bool = False
    format: Formats = "png"

    # what a command says of itself

    def check(self) -> None:
        """Raise where the options, the model or the data do not allow the work.

        That is all that a dry run does too; no metric is evaluated.
        """
        check_formats(self.format)
        _ = self.place, self.models

    def prepare(self) -> None:  # noqa: B027
        """Make what may fail, before the folder is taken."""

    @abstractmethod
    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:
        """Return the summary and the arrays of the run."""

    @abstractmethod
    def tell(self, console: Console, summary: Summary) -> None:
        """Print the results."""

    @staticmethod
    @abstractmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""

    @property
    def n_geodesics(self) -> int:
        """How many geodesics are solved for, in all models."""
        return 0

    def rows_each(self, model: LatentModel) -> float:  # noqa: ARG002
        """Return the decoder rows of a geodesic, and of what is measured along it, about."""
        return 0.0

    def rows_once(self, model: LatentModel) -> float:  # noqa: ARG002
        """Return the decoder rows of all else in a model, about."""
        return 0.0

    def seconds_beside(self) -> float:
        """Return the seconds of what no decoder rows tell of, about."""
        return 0.0

    @property
    def needs_images(self) -> bool:
        """Whether the work is on images of the data."""
        return True

    # what all commands share

    @property
    def command(self) -> str:
        """Name of the command."""
        return type(self).__name__.lower()

    @property
    def options(self) -> dict[str, Any]:
        """The fields by name, objects of the core as configs name them."""
        return {field.name: as_option(getattr(self, field.name)) for field in fields(self)}

    @cached_property
    def place(self) -> torch.device:
        """The device."""
        return make_device(self.device)

    @cached_property
    def models(self) -> Mapping[str, LatentModel]:
        """The models by name, of which there may be several."""
        return {"model": make_model(self.model, self.dtype, self.place)}

    @property
    def codec(self) -> LatentModel:
        """The first model, or the only one."""
        return next(iter(self.models.values()))

    @cached_property
    def dataset(self) -> Dataset:
        """The images, which are loaded when they are first asked for."""
        return Dataset(self.data)

    def at(self, out: Path) -> Self:
        """Return the same work with another folder, whose results are not replaced."""
        return replace(self, out=out, overwrite=False)

    def run(self) -> Run:
        """Do the work, store the results, and print and draw them."""
        began = time.perf_counter()
        check_folder(self.command, self.options, resumes=self.resumes)
        self.check()
        self.prepare()
        console = make_console()
        with RunFolder.create(
            self.out,
            self.command,
            self.options,
            seed=self.seed,
            device=self.place,
            overwrite=self.overwrite,
            resume=self.resumes,
        ) as folder:
            summary, arrays = self.work(folder, console)
            seconds = round(time.perf_counter() - began, 1)
            run = folder.finish({**summary, "seconds": seconds}, arrays)
        self.tell(console, run.summary or {})
        drawn = plotting.save_figures(self.figures(run), folder.path, self.format)
        print_files(console, folder.path, drawn)
        return run


@dataclass(frozen=True, kw_only=True)
class MetricExperiment(Experiment):
    """Work under a metric.

    Attributes
    ----------
    metric
        How the decoder becomes a metric.
    features
        A feature map in whose output lengths are measured.
    max_rows
        Largest number of rows sent through the decoder at once; null chooses from the memory.
    """

    metric: MetricOptions = MetricOptions()
    features: FeatureOptions = FeatureOptions()
    max_rows: int | None = None

    @cached_property
    def features_made(self) -> tuple[nn.Module | None, float | None]:
        """The feature map, or None, and its accuracy where it is a classifier."""
        return make_features(self.features, self.dataset, self.codec.like)

    def metric_of(self, model: LatentModel, features: nn.Module | None) -> Metric:
        """Return the metric of a model, with a feature map or without."""
        return model.metric(self.metric, features, self.seed).limited(self.max_rows)

    @cached_property
    def pulled_back(self) -> Metric:
        """The metric of the model, with the feature map if there is one."""
        return self.metric_of(self.codec, self.features_made[0])


@dataclass(frozen=True, kw_only=True)
class PairsExperiment(MetricExperiment):
    """Geodesics between many pairs of codes, solved shard by shard and gone on with.

    Attributes
    ----------
    n_pairs
        Number of pairs.
    solver
        How geodesics are found: PreconditionedSolver, FirstOrderSolver, GEORCESolver or
        geolatent.FirstOrderSolver.michelis_becker. Its settings are given by name, such as
        --solver.tolerance 1e-3; --solver.help NAME lists those of another than the first.
    length_tolerance
        Relative tolerance of the reported lengths.
    initial
        Where curves start.
    batch_size
        Pairs that are solved together and stored as one part.
    executor
        "local" solves shard after shard in this process, "ray" on all GPUs or CPUs of a machine or
        a cluster.
    ray
        Options of Ray.
    device
        "auto", "cpu", "cuda" or another device of torch; each of Ray's workers chooses its own.
    overwrite
        Replace the results of an earlier run in the folder. Without it, the same options on the
        folder of an unfinished run do what is missing there.
    """

    resumes = True

    n_pairs: int = 100
    solver: Solver = PreconditionedSolver()
    length_tolerance: float = 1e-4
    initial: InitialOptions = InitialOptions()
    batch_size: int = 64
    executor: Executor = "local"
    ray: RayOptions = RayOptions()

    @abstractmethod
    def cases(self) -> list[Case]:
        """Return what is solved; the folder is taken by now."""

    @abstractmethod
    def summarise(self, solved: SolvedPairs) -> Summary:
        """Return the statistics of all pairs; ``groups`` of them by name among these."""

    def arrays(self, solved: SolvedPairs) -> Arrays:  # noqa: ARG002
        """Return what the figures need besides the pairs."""
        return {}

    @property
    def complete(self) -> Callable[[SolvedPairs], SolvedPairs] | None:
        """What adds columns that need all cases of a shard."""
        return None

    def check(self) -> None:
        """Raise where pairs could not be solved."""
        super().check()
        check_executor(self.executor)

    def graph(self, model: LatentModel, metric: Metric, pairs: list[Pairs]) -> LatentGraph | None:
        """Return the graph that the curves between pairs start from, or None."""
        return make_initial(self.initial, metric, model, self.dataset, pairs, seed=self.seed)

    def shards(self) -> Shards:
        """Return the cases, cut into shards."""
        return Shards(
            self.cases(), self.solver, self.length_tolerance, self.batch_size, self.complete
        )

    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:
        """Solve the shards that the folder lacks."""
        shards = self.shards()
        run_shards(
            folder,
            shards,
            executor=self.executor,
            ray=self.ray,
            device=self.device,
            console=console,
        )
        solved = folder.join()
        graphs = {id(case.initial): case.initial for case in shards.cases}.values()
        summary = {
            **self.summarise(solved),
            "graph_rows": sum(graph.forward_rows for graph in graphs if graph is not None),
            "classifier_accuracy": self.features_made[1],
        }
        return summary, self.arrays(solved)

    def rows_each(self, model: LatentModel) -> float:
        """Return the decoder rows of a geodesic, about."""
        from_graph = initial_kind(self.initial, model.dim) != "straight"
        return geodesic_rows(self.solver, model.dim, from_graph=from_graph)

    def rows_once(self, model: LatentModel) -> float:
        """Return the decoder rows of the graph that curves start from."""
        return graph_rows(self.initial, model, self.dataset)


def check_folder(command: str, options: Mapping[str, Any], *, resumes: bool) -> None:
    """Raise where a command could not write its results to the folder that its options name."""
    RunFolder.check(
        options["out"],
        overwrite=options["overwrite"],
        command=command if resumes else "",
        resume=options if resumes else None,
    )


def as_option(value: Any) -> Any:
    """Return an option as configs give it: an object of the core by its class and settings.

    Examples
    --------
    >>> as_option(geolatent.GEORCESolver(segments=50))["class_path"], as_option(3)
    ('geolatent.GEORCESolver', 3)
    """
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if not isinstance(value, Solver):
        return value
    kind = type(value)
    public = getattr(geolatent, kind.__name__, None) is kind
    return {
        "class_path": f"geolatent.{kind.__name__}" if public else as_option(kind),
        "init_args": {name: as_option(setting) for name, setting in vars(value).items()},
    }
