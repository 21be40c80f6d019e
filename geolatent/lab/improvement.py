"""Monte Carlo: how much shorter than straight lines geodesics are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from geolatent.checks import requirement
from geolatent.lab import plotting
from geolatent.lab.config import PairSource
from geolatent.lab.costs import JVP, Cost
from geolatent.lab.experiment import Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import ALIGNED, alignment_with, measure_along
from geolatent.lab.pairs import Case, Pairs, check_room, worst_case_pairs
from geolatent.lab.pairs_experiment import SourceExperiment
from geolatent.lab.printing import print_statuses, statistics_table
from geolatent.lab.run import Run
from geolatent.lab.solved import SolvedPairs
from geolatent.lab.summary import summarise

DEFAULT_STEPS = (1.0, 2.0, 4.0)
ALIGNMENTS = ("straight_alignment", "alignment")


def by_step(solved: SolvedPairs) -> dict[str, SolvedPairs]:
    """Return the pairs of each step size by its label, or all of them."""
    if "step" not in solved.table.column_names:
        return {"all": solved}
    steps = np.unique(solved.column("step")).tolist()
    return {f"{step:g}": solved.where("step", step) for step in steps}


@dataclass(frozen=True, kw_only=True)
class Improvement(SourceExperiment):
    """Measure how much shorter than straight lines geodesics are, over many pairs of codes.

    By default the worst case of Michelis and Becker (2021), algorithm 1: steps of several sizes
    from random codes along the largest eigenvector of the metric, towards the origin. Prints mean,
    standard deviation and quantiles of the relative improvement and draws its histogram.

    Attributes
    ----------
    pairs
        "worst", algorithm 1; "prior", both ends from the model's prior; "encoded", pairs of images
        of the data; "codes", pairs of a file.
    n_pairs
        Number of pairs, for each step size; at most so many of a file.
    steps
        Step sizes in latent units, for "worst"; 1, 2 and 4 where none are given.
    data
        The images, for "encoded"; their training split serves logistic features and graphs.
    alignment
        Measure how far curves follow the metric's smallest eigenvectors.
    """

    out: Path = Path("runs/improvement")
    pairs: PairSource = "worst"
    steps: tuple[float, ...] | None = None
    alignment: bool = True

    def check(self) -> None:
        """Raise where the pairs cannot be had."""
        if self.steps is not None and self.pairs != "worst":
            required = "None where `pairs` is not 'worst'"
            raise ValueError(requirement("steps", required, self.steps))
        super().check()
        if self.pairs == "worst":
            check_room(self.n_pairs, self.codec.dim, len(self.step_sizes))

    @property
    def step_sizes(self) -> tuple[float, ...]:
        """The step sizes, in latent units; none for pairs without steps."""
        if self.pairs != "worst":
            return ()
        return DEFAULT_STEPS if self.steps is None else self.steps

    @cached_property
    def groups(self) -> list[Pairs]:
        """The pairs, one group for each step size."""
        if self.pairs != "worst":
            return super().groups
        like, dim = self.codec.like, self.codec.dim
        how: dict[str, Any] = {"seed": self.seed, "like": like, "prior": self.codec.prior}
        return worst_case_pairs(self.pulled_back, self.n_pairs, dim, self.step_sizes, **how)

    def cases(self) -> list[Case]:
        """Return a case for each step size."""
        metric = self.pulled_back
        graph = self.graph(self.codec, metric, self.groups)
        measures = [measure_along([alignment_with(metric)], with_slerp=False)]
        measures = measures if self.alignment else []
        return [Case(metric, pairs, graph, measures) for pairs in self.groups]

    def summarise(self, solved: SolvedPairs) -> Summary:
        """Return the statistics of each step size."""
        measured = ALIGNMENTS if self.alignment else ()
        groups = {label: summarise(part, measured) for label, part in by_step(solved).items()}
        return {"pairs": self.pairs, "groups": groups}

    def tell(self, console: Console, summary: Summary) -> None:
        """Print a table of the step sizes."""
        groups = summary["groups"]
        title = f"Relative length improvement, pairs: {self.pairs}"
        name = "step" if self.pairs == "worst" else "pairs"
        console.print(statistics_table(title, groups, name))
        print_statuses(console, groups)

    def cost(self, model: LatentModel) -> Cost:
        """Return what the pairs of all steps cost, and the alignment of their curves."""
        cost = super().cost(model)
        aligned = 2 * ALIGNED * model.dim * JVP if self.alignment else 0
        n_geodesics = max(1, len(self.step_sizes)) * self.n_pairs
        return replace(cost, n_geodesics=n_geodesics, rows_each=cost.rows_each + aligned)

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        if run.pairs is None:
            return {}
        parts = by_step(run.pairs).items()
        groups = {label: part.column("relative_improvement") for label, part in parts}
        stepped = "step" in run.pairs.table.column_names
        named = {f"step {label}" if stepped else "pairs": groups[label] for label in groups}
        result = {"histogram": plotting.improvement_histograms(named)}
        if stepped and len(groups) > 1:
            steps = {float(label): values for label, values in groups.items()}
            result["steps"] = plotting.improvement_by_step(steps)
        if "alignment" in run.pairs.table.column_names:
            result["alignment"] = plotting.before_and_after(
                run.pairs.column("straight_alignment"),
                run.pairs.column("alignment"),
                "alignment with the metric's smallest eigenvectors",
            )
        return result
