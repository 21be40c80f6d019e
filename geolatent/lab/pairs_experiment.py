"""Experiments that find geodesics between pairs of codes, in shards that can be gone on with."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from geolatent.checks import check_integer, check_number, requirement
from geolatent.graph import LatentGraph
from geolatent.lab.config import Executor, InitialOptions, PairSource, RayOptions
from geolatent.lab.costs import Cost, geodesic_rows, graph_rows
from geolatent.lab.execution import check_executor, run_shards
from geolatent.lab.experiment import Arrays, MetricExperiment, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.pairs import (
    Case,
    Pairs,
    Shards,
    check_room,
    draw_images,
    encoded_pairs,
    prior_pairs,
    read_pairs,
)
from geolatent.lab.run import Run, RunFolder
from geolatent.lab.setup import initial_kind, make_initial
from geolatent.lab.solved import SolvedPairs
from geolatent.metrics.base import Metric
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Solver


@dataclass(frozen=True, kw_only=True)
class PairsExperiment(MetricExperiment):
    """Geodesics between many pairs of codes.

    A subclass says in `cases` what is solved, and in `summarise` what is made of it; `work` solves
    the shards that the folder lacks, here or on Ray.

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
        check_number("length_tolerance", self.length_tolerance, above=0.0)
        check_integer("batch_size", self.batch_size)
        super().check()
        check_executor(self.executor)

    def prepare(self) -> None:
        """Make the metric; of the images at most those of pairs are encoded."""
        _ = self.pulled_back

    @cached_property
    def image_rows(self) -> Tensor:
        """Row numbers of pairs of images, (n_pairs, 2)."""
        return draw_images(self.n_pairs, len(self.dataset.chosen[0]), self.seed)

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
            "graph_rows": sum(graph.forward_rows for graph in graphs if graph is not None),
            "classifier_accuracy": self.features_made[1],
            **self.summarise(solved),
        }
        return summary, self.arrays(solved)

    def plan(self) -> dict[str, str]:
        """Return how the pairs are cut into shards."""
        n_shards = math.ceil(self.n_pairs / self.batch_size)
        return {"Shards": f"{n_shards:,} of {self.batch_size} pairs, executor {self.executor}"}

    def cost(self, model: LatentModel) -> Cost:
        """Return what the pairs cost in a model, and the graph that their curves start from."""
        from_graph = initial_kind(self.initial, model.dim) != "straight"
        return Cost(
            n_geodesics=self.n_pairs,
            rows_each=geodesic_rows(self.solver, model.dim, from_graph=from_graph),
            rows=graph_rows(self.initial, model, self.dataset),
        )


@dataclass(frozen=True, kw_only=True)
class SourceExperiment(PairsExperiment):
    """Geodesics between pairs of the prior, of encoded images or of a file.

    Attributes
    ----------
    pairs
        "encoded", pairs of images of the data; "prior", both ends from the model's prior, N(0, I)
        unless it has another; "codes", pairs of a file.
    n_pairs
        Number of pairs; at most so many of a file.
    codes
        File of pairs, for "codes": `start` and `end`, (B, d) each, in .npz, .safetensors, .pt or
        .pth, or an .npy file of shape (B, 2, d).
    """

    pairs: PairSource = "encoded"
    codes: Path | None = None

    def check(self) -> None:
        """Raise where the pairs cannot be had."""
        if (self.pairs == "codes") == (self.codes is None):
            required = "the path of a file where `pairs` is 'codes', and only there"
            raise ValueError(requirement("codes", required, self.codes))
        super().check()
        if self.pairs == "encoded" and not self.codec.has_encoder:
            name = type(self.codec.module).__name__
            required = f"prior or codes for a {name}, which has no encoder"
            raise ValueError(requirement("pairs", required, self.pairs))
        if self.pairs == "encoded":
            _ = self.image_rows
        elif self.pairs != "codes":
            check_room(self.n_pairs, self.codec.dim)

    def prepare(self) -> None:
        """Choose the pairs."""
        super().prepare()
        _ = self.groups

    @cached_property
    def groups(self) -> list[Pairs]:
        """The pairs, in one group or several of equally many."""
        like, dim = self.codec.like, self.codec.dim
        if self.codes is not None:
            return [read_pairs(self.codes, dim, like)[: self.n_pairs]]
        if self.pairs == "prior":
            how: dict[str, Any] = {"seed": self.seed, "like": like, "prior": self.codec.prior}
            return [prior_pairs(self.n_pairs, dim, **how)]
        return [encoded_pairs(self.codec, *self.dataset.chosen, self.image_rows)]

    @cached_property
    def classifier(self) -> tuple[nn.Module | None, float | None]:
        """What tells the classes on the way and its accuracy; None of images without labels."""
        if self.features.kind == "logistic":
            return self.features_made
        if self.dataset.training[1] is None:
            return None, None
        fitted, accuracy = self.dataset.classifier()
        return fitted.to(self.codec.like), accuracy


def pair_titles(pairs: SolvedPairs, n: int) -> list[str]:
    """Return a line about each of the first pairs: its number, and classes where there are any."""
    titles = [f"pair {pair}" for pair in range(n)]
    if "start_label" not in pairs.table.column_names:
        return titles
    start, end = (pairs.column(f"{name}_label") for name in ("start", "end"))
    return [f"{title}, class {start[k]} to {end[k]}" for k, title in enumerate(titles)]


def animated_pairs(run: Run) -> dict[str, str]:
    """Return the titles of a run's animations, one for each pair, by the names of their files."""
    if run.pairs is None or "animation_images" not in run.arrays:
        return {}
    titles = pair_titles(run.pairs, len(run.arrays["animation_images"]))
    return {f"animation_{pair}": title for pair, title in enumerate(titles)}
