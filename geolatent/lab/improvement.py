"""Monte Carlo: how much shorter than straight lines geodesics are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from geolatent.checks import requirement
from geolatent.curves import CubicBSpline
from geolatent.graph import LatentGraph
from geolatent.lab import plotting
from geolatent.lab.costs import JVP, Cost
from geolatent.lab.experiment import Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import ALIGNED, alignment
from geolatent.lab.pairs import (
    Case,
    Measure,
    Pairs,
    check_room,
    draw_images,
    encoded_pairs,
    prior_pairs,
    read_pairs,
    worst_case_pairs,
)
from geolatent.lab.pairs_experiment import PairsExperiment
from geolatent.lab.printing import print_statuses, statistics_table
from geolatent.lab.results import Run, SolvedPairs
from geolatent.lab.setup import Dataset
from geolatent.lab.summary import summarise
from geolatent.metrics.base import Metric

DEFAULT_STEPS = (1.0, 2.0, 4.0)
ALIGNMENTS = ("straight_alignment", "alignment")


def measure_alignment(metric: Metric) -> Measure:
    """Return the measure that adds the columns ``straight_alignment`` and ``alignment``."""

    def measure(line: CubicBSpline, curve: CubicBSpline) -> Mapping[str, Tensor]:
        both = (alignment(metric, one) for one in (line, curve))
        return dict(zip(ALIGNMENTS, both, strict=True))

    return measure


def improvement_cases(
    metric: Metric,
    groups: Sequence[Pairs],
    initial: LatentGraph | None = None,
    *,
    with_alignment: bool = True,
) -> list[Case]:
    """Return the cases of groups of pairs, such as those of several step sizes.

    Parameters
    ----------
    metric
        The metric.
    groups
        Groups of equally many pairs; see `geolatent.lab.pairs` for where they come from.
    initial
        Where curves start; None for straight lines.
    with_alignment
        Add the columns ``straight_alignment`` and ``alignment``; d forward rows at 16 points of
        every line and curve.

    Returns
    -------
    list of Case
        One for each group.

    References
    ----------
    Michelis, Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
    2021, https://arxiv.org/abs/2105.03663, algorithm 1.

    Examples
    --------
    >>> from geolatent import GaussianPullbackMetric, models
    >>> from geolatent.lab.pairs import Shards, worst_case_pairs
    >>> metric = GaussianPullbackMetric(models.digits_vae().decode)
    >>> groups = worst_case_pairs(metric, 2, 2, steps=(1.0, 2.0))
    >>> (solved,) = Shards(improvement_cases(metric, groups, with_alignment=False))
    >>> solved.column("step").tolist(), bool((solved.column("relative_improvement") >= 0).all())
    ([1.0, 1.0, 2.0, 2.0], True)
    """
    measures = [measure_alignment(metric)] if with_alignment else []
    return [Case(metric, pairs, initial, measures) for pairs in groups]


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


def by_step(solved: SolvedPairs) -> dict[str, SolvedPairs]:
    """Return the pairs of each step size by its label, or all of them."""
    if "step" not in solved.table.column_names:
        return {"all": solved}
    steps = np.unique(solved.column("step")).tolist()
    return {f"{step:g}": solved.where("step", step) for step in steps}


@dataclass(frozen=True, kw_only=True)
class Improvement(PairsExperiment):
    """Measure how much shorter than straight lines geodesics are, over many pairs of codes.

    By default the worst case of Michelis and Becker (2021), algorithm 1: steps of several sizes
    from random codes along the largest eigenvector of the metric, towards the origin. Prints mean,
    standard deviation and quantiles of the relative improvement and draws its histogram.

    Attributes
    ----------
    pairs
        "worst", algorithm 1; "prior", both ends from N(0, I); "encoded", pairs of images of the
        data; "codes", pairs of a file.
    n_pairs
        Number of pairs, for each step size; at most so many of a file.
    steps
        Step sizes in latent units, for "worst"; 1, 2 and 4 where none are given.
    codes
        File of pairs, for "codes": `start` and `end`, (B, d) each, in .npz, .safetensors, .pt or
        .pth, or an .npy file of shape (B, 2, d).
    data
        The images, for "encoded"; their training split serves logistic features and graphs.
    alignment
        Measure how far curves follow the metric's smallest eigenvectors.
    """

    out: Path = Path("runs/improvement")
    pairs: Literal["worst", "prior", "encoded", "codes"] = "worst"
    steps: tuple[float, ...] | None = None
    codes: Path | None = None
    alignment: bool = True

    def check(self) -> None:
        """Raise where the pairs cannot be had."""
        check_source(self.pairs, self.steps, self.codes)
        super().check()
        if self.pairs == "encoded":
            draw_images(self.n_pairs, len(self.dataset.chosen[0]), self.seed)
        elif self.pairs != "codes":
            check_room(self.n_pairs, self.codec.dim, len(self.step_sizes))

    def prepare(self) -> None:
        """Choose the pairs."""
        _ = self.groups

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
            source = (self.pairs, self.n_pairs, self.codec, self.dataset)
            return [choose_pairs(*source, codes=self.codes, seed=self.seed)]
        like, dim = self.codec.like, self.codec.dim
        return worst_case_pairs(
            self.pulled_back, self.n_pairs, dim, self.step_sizes, seed=self.seed, like=like
        )

    def cases(self) -> list[Case]:
        """Return a case for each step size."""
        graph = self.graph(self.codec, self.pulled_back, self.groups)
        return improvement_cases(
            self.pulled_back, self.groups, graph, with_alignment=self.alignment
        )

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
        groups = {
            label: part.column("relative_improvement") for label, part in by_step(run.pairs).items()
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
