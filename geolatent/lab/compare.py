"""Comparison of models on the same pairs of images, each through its own encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from geolatent.checks import check_number, requirement
from geolatent.lab import plotting
from geolatent.lab.config import ModelEntry
from geolatent.lab.experiment import Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.pairs import Case, Pairs, encoded_pairs
from geolatent.lab.pairs_experiment import PairsExperiment
from geolatent.lab.printing import print_statuses, statistics_table
from geolatent.lab.run import Run
from geolatent.lab.setup import make_model
from geolatent.lab.solved import SolvedPairs
from geolatent.lab.summary import groups_of, summarise


def with_differences(shard: SolvedPairs, n_models: int, threshold: float) -> SolvedPairs:
    """Add ``difference``, each pair's largest less smallest improvement, and ``comparable``."""
    table = shard.column("relative_improvement").reshape(n_models, -1)
    difference = np.tile(table.max(0) - table.min(0), n_models)
    return shard.with_columns({"difference": difference, "comparable": difference <= threshold})


@dataclass(frozen=True, kw_only=True)
class Compare(PairsExperiment):
    """Compare models on the same pairs of images, each through its own encoder.

    Follows Michelis and Becker (2021), appendix D. Prints the relative improvements of the models
    side by side and the pairs that are comparable: those whose improvements in all models differ by
    at most a threshold. There straight lines in the models deviate equally from their geodesics, so
    that a comparison of straight interpolations is fair.

    Attributes
    ----------
    models
        Two or more models by names of your choice, each with the keys of `model` (checkpoint,
        class_path, init_args, encoder, decoder, latent_dim), such as
        --models.vae.checkpoint A --models.gan.checkpoint B; {} is the small digits model.
    model
        What the models have in common, unless they say otherwise.
    n_pairs
        Number of pairs of images, none of which is used twice.
    threshold
        Largest difference of the relative improvements of a comparable pair, a fraction.
    data
        The images; their training split serves logistic features and graphs.
    """

    out: Path = Path("runs/compare")
    models: dict[str, ModelEntry] = field(default_factory=dict)
    threshold: float = 0.02

    def check(self) -> None:
        """Raise where there is nothing to compare."""
        if len(self.models) < 2:
            required = "two models or more, such as --models.a.checkpoint A --models.b.checkpoint B"
            raise ValueError(requirement("models", required, list(self.models)))
        check_number("threshold", self.threshold, at_least=0.0)
        super().check()
        _ = self.image_rows

    def prepare(self) -> None:
        """Encode the pairs."""
        super().prepare()
        _ = self.pairs

    @cached_property
    def codecs(self) -> dict[str, LatentModel]:
        """The models by name."""
        return {
            name: make_model(replace(self.model, **entry), self.dtype, self.place, f"models.{name}")
            for name, entry in self.models.items()
        }

    @cached_property
    def pairs(self) -> dict[str, Pairs]:
        """The codes of the pairs in each model, with the column ``model``, its name."""
        return {
            name: encoded_pairs(model, *self.dataset.chosen, self.image_rows).named("model", name)
            for name, model in self.codecs.items()
        }

    def cases(self) -> list[Case]:
        """Return the pairs in each model."""
        cases = []
        for name, model in self.codecs.items():
            metric, pairs = self.metric_of(model, self.features_made[0]), self.pairs[name]
            cases.append(Case(metric, pairs, self.graph(model, metric, [pairs])))
        return cases

    @property
    def complete(self) -> Callable[[SolvedPairs], SolvedPairs]:
        """What compares the improvements in all models."""
        return partial(with_differences, n_models=len(self.models), threshold=self.threshold)

    def summarise(self, solved: SolvedPairs) -> Summary:
        """Return the statistics of each model, and which pairs are comparable."""
        groups = groups_of(solved, "model")
        first = next(iter(groups.values()))
        comparable = first.column("pair")[first.column("comparable")]
        correlations = np.full((len(groups), len(groups)), np.nan)
        if len(first) > 1:
            improvements = [part.column("relative_improvement") for part in groups.values()]
            correlations = np.corrcoef(improvements)
        return {
            "groups": {name: summarise(part, ("difference",)) for name, part in groups.items()},
            "threshold": self.threshold,
            "comparable": {"n_pairs": len(comparable), "pairs": comparable},
            "correlation_of_improvements": correlations,
        }

    def tell(self, console: Console, summary: Summary) -> None:
        """Print a table of the models, and how many pairs are comparable."""
        title = "Relative length improvement on the same pairs of images"
        console.print(statistics_table(title, summary["groups"], "model"))
        print_statuses(console, summary["groups"])
        console.print(
            f"{summary['comparable']['n_pairs']} of {self.n_pairs} pairs are comparable: their "
            f"improvements differ by at most {100 * self.threshold:g} percentage points."
        )

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        if run.pairs is None:
            return {}
        groups = groups_of(run.pairs, "model")
        values = {name: part.column("relative_improvement") for name, part in groups.items()}
        comparable = next(iter(groups.values())).column("comparable")
        threshold = float(run.config["threshold"])
        return {
            "improvements": plotting.improvements_compared(values, comparable, threshold),
            "histogram": plotting.improvement_histograms(values),
        }
