"""An experiment: a dataclass whose fields are the options of a command, and what all of them do.

To add a command, write a module of this room with a subclass of `ModelExperiment`,
`MetricExperiment`, `GraphExperiment` or `PairsExperiment` (of `pairs_experiment`), and name it in
`geolatent.cli.COMMANDS` and among the experiments of `geolatent.lab.plot`; `cluster` and
`improvement` are examples. What a subclass documents among its attributes is the help of its
options, also of those that it inherits.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

import geolatent
from geolatent.checks import check_integer
from geolatent.graph import LatentGraph
from geolatent.lab import plotting
from geolatent.lab.animation import Animation, save_animations
from geolatent.lab.config import (
    DataOptions,
    FeatureOptions,
    Formats,
    MetricOptions,
    ModelOptions,
    check_formats,
)
from geolatent.lab.costs import Cost
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.printing import make_console, print_files, working
from geolatent.lab.run import Run, RunFolder
from geolatent.lab.setup import Dataset, make_device, make_features, make_model
from geolatent.metrics.base import Metric
from geolatent.solvers.problem import Solver

Summary = dict[str, Any]
Arrays = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """Work on data, of which a run folder keeps the results.

    A subclass says what is special about it in a few methods, which `run` calls in this order:

    1. `check` raises where the options, the model or the data do not allow the work;
    2. `prepare` makes what may fail, such as metrics and pairs of codes;
    3. `work`, once the folder is taken, returns a summary and arrays, which `run` stores;
    4. `tell` prints the summary;
    5. `figures` draws a run from its folder alone, then and for ``geolatent plot``, and so does
       `animations` for experiments that draw paths.

    A dry run calls `check`, `plan` and `cost`. What is made of the options (the device, the models,
    the data) is made when it is first asked for, and kept. The command is called as the class is;
    see `command_name`.

    Attributes
    ----------
    out
        Folder for the results; it is made where it does not exist.
    data
        The images.
    format
        Format of the figures, "png", "pdf" or "svg", or a list of them.
    """

    # whether the folder of an unfinished run is gone on with
    resumes: ClassVar[bool] = False

    out: Path
    data: DataOptions = DataOptions(split="test")
    format: Formats = "png"

    # what a command says of itself

    def check(self) -> None:
        """Raise where the options, the model or the data do not allow the work."""
        check_formats(self.format)
        _ = self.place, self.codecs

    @property
    @abstractmethod
    def seed(self) -> int:
        """Seed of all that is random."""

    @property
    @abstractmethod
    def overwrite(self) -> bool:
        """Whether the results of an earlier run in the folder are replaced."""

    @property
    @abstractmethod
    def place(self) -> torch.device:
        """The device."""

    @property
    @abstractmethod
    def codecs(self) -> Mapping[str, LatentModel]:
        """The models by name, of which there may be several, or none."""

    def prepare(self) -> None:  # noqa: B027
        """Make what may fail, before anything is written."""

    @abstractmethod
    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:
        """Return the summary, in the types of JSON or arrays, and the arrays of the run."""

    @abstractmethod
    def tell(self, console: Console, summary: Summary) -> None:
        """Print the results."""

    @staticmethod
    @abstractmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""

    @staticmethod
    def animations(run: Run) -> dict[str, Animation]:  # noqa: ARG004
        """Return the animations of a run, by name, from what it stored."""
        return {}

    @staticmethod
    def in_a_report(summary: Summary) -> str:  # noqa: ARG004
        """Return what a table of many runs tells of one without groups of pairs."""
        return ""

    def cost(self, model: LatentModel) -> Cost:  # noqa: ARG002
        """Return what the work in a model costs, about, for a dry run."""
        return Cost()

    def seconds(self) -> float:
        """Return about how long work takes that is none in a model's decoder, for a dry run."""
        return 0.0

    def plan(self) -> dict[str, str]:
        """Return what else a dry run tells of the work, by name."""
        return {}

    # what all commands share

    @property
    def command(self) -> str:
        """Name of the command."""
        return command_name(type(self))

    @property
    def options(self) -> dict[str, Any]:
        """The fields by name, objects of the core as configs name them."""
        return {field.name: as_option(getattr(self, field.name)) for field in fields(self)}

    @cached_property
    def dataset(self) -> Dataset:
        """The images, which are loaded when they are first asked for."""
        return Dataset(self.data)

    def check_folder(self, options: Mapping[str, Any]) -> None:
        """Raise where the results of options, or a sweep of them, could not be written."""
        RunFolder.check(
            self.out,
            overwrite=self.overwrite,
            command=self.command if self.resumes else "",
            resume=options if self.resumes else None,
        )

    def take_folder(self, options: Mapping[str, Any]) -> RunFolder:
        """Take the folder for the results of options, or a sweep of them."""
        return RunFolder.create(
            self.out,
            self.command,
            options,
            seed=self.seed,
            device=self.place,
            overwrite=self.overwrite,
            resume=self.resumes,
        )

    def run(self) -> Run:
        """Do the work, store the results, and print and draw them."""
        began = time.perf_counter()
        self.check_folder(self.options)
        self.check()
        self.prepare()
        console = make_console()
        with self.take_folder(self.options) as folder:
            summary, arrays = self.work(folder, console)
            seconds = round(time.perf_counter() - began, 1)
            run = folder.finish({**summary, "seconds": seconds}, arrays)
        self.tell(console, run.summary)
        drawn = plotting.save_figures(self.figures(run), folder.path, self.format)
        drawn += save_animations(self.animations(run), folder.path, run.config.get("animation", {}))
        print_files(console, folder.path, drawn)
        return run


@dataclass(frozen=True, kw_only=True)
class ModelExperiment(Experiment):
    """Work on a trained model.

    Attributes
    ----------
    model
        The model.
    seed
        Seed of all that is random.
    dtype
        Floating-point type of model and codes.
    device
        "auto", "cpu", "cuda" or another device of torch.
    overwrite
        Replace the results of an earlier run in the folder.
    """

    model: ModelOptions = ModelOptions()
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "auto"
    overwrite: bool = False

    @cached_property
    def place(self) -> torch.device:
        """The device."""
        return make_device(self.device)

    @cached_property
    def codecs(self) -> Mapping[str, LatentModel]:
        """The models by name, of which there may be several, or none."""
        return {"model": make_model(self.model, self.dtype, self.place)}

    @property
    def codec(self) -> LatentModel:
        """The first model, or the only one."""
        return next(iter(self.codecs.values()))

    @cached_property
    def encoded(self) -> Tensor:
        """Codes of the images, (n, d)."""
        return self.codec.encode(self.dataset.chosen[0])


@dataclass(frozen=True, kw_only=True)
class MetricExperiment(ModelExperiment):
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

    def check(self) -> None:
        """Raise where there could be no metric."""
        if self.max_rows is not None:
            check_integer("max_rows", self.max_rows)
        super().check()

    def prepare(self) -> None:
        """Make the metric, and with it the feature map, and encode the images."""
        _ = self.pulled_back, self.encoded

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
class GraphExperiment(MetricExperiment):
    """Work on a graph of the codes of training images.

    Attributes
    ----------
    n_nodes
        Nodes of the graph of training codes.
    n_neighbors
        Neighbours of each node.
    """

    n_nodes: int = 6000
    n_neighbors: int = 24

    def check(self) -> None:
        """Raise where there could be no graph."""
        check_integer("n_nodes", self.n_nodes, minimum=2)
        check_integer("n_neighbors", self.n_neighbors)
        super().check()

    def graph(self, console: Console) -> LatentGraph:
        """Make the graph."""
        codes = self.dataset.codes(self.codec)
        with working(console, "building the graph"):
            return LatentGraph.from_codes(
                self.pulled_back,
                codes,
                n_nodes=self.n_nodes,
                n_neighbors=self.n_neighbors,
                seed=self.seed,
            )

    def cost(self, model: LatentModel) -> Cost:  # noqa: ARG002
        """Return what the graph costs."""
        return Cost(rows=self.n_nodes)


def command_name(kind: type[Experiment]) -> str:
    """Return the name of an experiment's command: the class's, in small letters.

    Examples
    --------
    >>> class ComparePaths:
    ...     pass
    >>> command_name(ComparePaths)
    'compare_paths'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


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
