"""Interpolation: straight lines against geodesics, with and without a feature map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from geolatent.checks import check_integer
from geolatent.curves import CubicBSpline
from geolatent.interpolations import lerp, slerp, spherical_spiral
from geolatent.lab import plotting
from geolatent.lab.animation import Animation, animated_arrays, check_animation, stored_animations
from geolatent.lab.config import AnimationOptions
from geolatent.lab.costs import JVP, Cost
from geolatent.lab.experiment import Arrays, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import (
    ALIGNED,
    Quantity,
    alignment_with,
    class_counts,
    classes_along,
    correlation_matrices,
    data_distance,
    decode_along,
    measure_along,
    measure_slerp,
    prior_densities,
    straight_and_slerp,
)
from geolatent.lab.pairs import Case
from geolatent.lab.pairs_experiment import SourceExperiment, animated_pairs
from geolatent.lab.plotting_sequences import drawn_strips
from geolatent.lab.printing import make_table, number, print_accuracy, print_statuses
from geolatent.lab.run import Run
from geolatent.lab.solved import SolvedPairs
from geolatent.lab.summary import groups_of, summarise
from geolatent.metrics.base import Metric
from geolatent.priors import NormProfile, norm_profile

PLAIN = "geodesic"
# the curves beside the geodesics, and what the tables call them
BESIDE = {"straight": "straight line", "slerp": "slerp"}
DENSITIES = ("log_density", "lowest_log_density")
COMPARED = ("alignment", "correlation_variance", "data_distance", *DENSITIES)
COUNTS = ("crossings", "classes")
# images of a sequence whose correlations are taken
_CORRELATED = 32
# pairs whose correlation matrices are drawn
_MATRICES = 3
# points of a spiral
_SPIRAL = 129
# points of a norm profile
_PROFILE = 101


@dataclass(frozen=True, kw_only=True)
class Interpolate(SourceExperiment):
    """Interpolate between codes along straight lines, slerp and geodesics, and compare them.

    Slerp turns the direction of the code along a great circle and changes its norm linearly. With
    a feature map every pair is solved twice, without it and with it. For each pair and each of the
    curves: length, log density of the codes under the model's prior (mean and lowest, in nats;
    one on a sphere has none), the distance from the data's codes where the model has an encoder,
    the classes that a logistic regression sees on the way, how evenly the images change (variance
    of their correlation matrix), and how far the curve follows the metric's smallest eigenvectors.
    Draws strips of images, correlation matrices, and the norms of
    the codes beside the prior's.

    Attributes
    ----------
    data
        The images; their training split serves the logistic regression, the distances from the data
        and graphs.
    n_images
        Images in a strip.
    n_shown
        Pairs that are drawn.
    animate
        Animate what is decoded along the paths, side by side, at constant speed in the output.
    animation
        How.
    """

    out: Path = Path("runs/interpolate")
    pairs: Literal["encoded", "prior", "codes"] = "encoded"
    n_pairs: int = 20
    n_images: int = 11
    n_shown: int = 6
    animate: bool = False
    animation: AnimationOptions = AnimationOptions()

    def check(self) -> None:
        """Raise where curves could not be drawn, or the model's images are not the data's."""
        if self.animate:
            check_animation(self.animation)
        check_integer("n_images", self.n_images, minimum=2)
        check_integer("n_shown", self.n_shown)
        # images of another shape are told as such, before how many there are
        self.dataset.check_decoder(self.codec)
        super().check()

    def prepare(self) -> None:
        """Fit the classifier, and encode the training images."""
        super().prepare()
        _ = self.classifier, self.training_codes

    @property
    def training_codes(self) -> Tensor | None:
        """Codes of the training images; None without an encoder."""
        return self.dataset.codes(self.codec) if self.codec.has_encoder else None

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by the names of their curves, without the feature map and with it."""
        metrics = {PLAIN: self.metric_of(self.codec, None)}
        if self.features_made[0] is not None:
            metrics[f"{self.features.kind} {PLAIN}"] = self.pulled_back
        return metrics

    def cases(self) -> list[Case]:
        """Return the pairs under each metric, with the column ``metric``, its name."""
        # what workers are sent is less than the experiment
        model, codes, classifier = self.codec, self.training_codes, self.classifier[0]
        quantities: list[Quantity] = [
            lambda curve: {
                "correlation_variance": _matrices(model, curve).flatten(1).var(1, correction=0)
            },
        ]
        if codes is not None:
            quantities.append(lambda curve: {"data_distance": data_distance(curve, codes)})
        if (prior := model.prior) != "sphere":
            quantities.append(lambda curve: prior_densities(curve, prior=prior))
        if classifier is not None:
            quantities.append(lambda curve: class_counts(classes_along(model, classifier, curve)))
        return [
            Case(
                metric,
                self.groups[0].named("metric", name),
                self.graph(model, metric, self.groups),
                [
                    measure_slerp(metric, self.length_tolerance),
                    measure_along([*quantities, alignment_with(metric)]),
                ],
            )
            for name, metric in self.metrics.items()
        ]

    def summarise(self, solved: SolvedPairs) -> Summary:
        """Return the statistics of each metric's pairs, and of the curves beside them."""
        columns = ["slerp_length", "slerp_relative_improvement"]
        columns += [
            prefix + name
            for name in (*COMPARED, *COUNTS)
            if name in solved.table.column_names
            for prefix in ("", "straight_", "slerp_")
        ]
        groups = groups_of(solved, "metric").items()
        return {
            "pairs": self.pairs,
            "prior": self.codec.prior,
            "groups": {name: summarise(part, columns) for name, part in groups},
            "classifier_accuracy": self.classifier[1],
        }

    def arrays(self, solved: SolvedPairs) -> Arrays:
        """Decode the first pairs for the figures.

        Returns ``frames`` (shown, sequences, n_images, channels, height, width) and
        ``correlations`` (shown, sequences, T, T); the sequences are the straight line, slerp and
        the curve of each metric.
        """
        place = self.codec.like.device
        curves = [part.curve.to(place) for part in groups_of(solved, "metric").values()]
        every = [*straight_and_slerp(curves[0]), *curves]
        shown = [curve[: self.n_shown] for curve in every]
        frames = [decode_along(self.codec, curve, self.n_images).float() for curve in shown]
        matrices = [_matrices(self.codec, curve).float() for curve in shown]
        arrays = {"frames": torch.stack(frames, 1), "correlations": torch.stack(matrices, 1)}
        if self.animate:
            n, dim = self.animation.n_shown, self.codec.dim
            paths: list[CubicBSpline | Tensor] = [curve[:n] for curve in every]
            if dim > 1:
                start, end = (curves[0].control_points[:n, k] for k in (0, -1))
                paths.insert(2, spherical_spiral(start, end, torch.linspace(0.0, 1.0, _SPIRAL)))
            images, labels = self.dataset.training
            labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
            arrays |= animated_arrays(
                self.codec, paths, self.animation, self.training_codes, labels
            )
        return arrays

    def tell(self, console: Console, summary: Summary) -> None:
        """Print a table of lengths, and one of what is on the way."""
        groups = summary["groups"]
        first = next(iter(groups.values()))
        densities = [name for name in DENSITIES if name in first]
        columns = ["\ncurve", "\nlength in", "\nlength", "shorter\nby %", "converged\n%"]
        columns += ["log p(z)\nmean", "log p(z)\nlowest"][: len(densities)]
        density = f", and log density p of the {summary['prior']} prior" if densities else ""
        lengths = make_table(f"Lengths{density}: means over the pairs", columns, n_text=2)
        names = {
            "data_distance": "data\ndistance",
            "correlation_variance": "correlation\nvariance",
            "alignment": "align-\nment",
            "crossings": "class\ncrossings",
        }
        keys = [key for key in names if key in first]
        table = make_table(
            "What is on the way: means over the pairs",
            ["\ncurve", *(names[key] for key in keys)],
        )
        for name, group in groups.items():
            prefixes = {text: f"{beside}_" for beside, text in BESIDE.items()} | {name: ""}
            for curve, prefix in prefixes.items():
                shorter = group.get(f"{prefix}relative_improvement")
                lengths.add_row(
                    curve,
                    "output" if name == PLAIN else "features",
                    number(group[f"{prefix}length"]["mean"], ".3f"),
                    number(shorter["mean"], ".2f", 100) if shorter else "",
                    "" if prefix else number(group["converged"], ".0f", 100),
                    *(number(group[prefix + key]["mean"], ".2f") for key in densities),
                )
                if group is first or not prefix:
                    table.add_row(
                        curve, *(number(group[prefix + key]["mean"], ".3f") for key in keys)
                    )
            lengths.add_section()
        console.print(lengths)
        console.print(table)
        print_statuses(console, groups)
        print_accuracy(console, summary["classifier_accuracy"])

    def cost(self, model: LatentModel) -> Cost:
        """Return what the pairs cost under each metric, and the alignment of their curves."""
        cost, n_metrics = super().cost(model), 1 if self.features.kind == "none" else 2
        return replace(
            cost,
            n_geodesics=n_metrics * cost.n_geodesics,
            rows_each=cost.rows_each + 2 * ALIGNED * model.dim * JVP,
            rows=n_metrics * cost.rows,
        )

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        if run.pairs is None or "frames" not in run.arrays:
            return {}
        frames = run.arrays["frames"]
        groups = groups_of(run.pairs, "metric")
        first, sequences = next(iter(groups.values())), ["straight", "slerp", *groups]
        strips = {name: frames[:, place] for place, name in enumerate(sequences)}
        titles = [_title(pair, first, groups) for pair in range(len(frames))]
        drawn = {
            "strips": drawn_strips(run.config, strips, titles),
            "correlations": plotting.correlation_matrices(
                run.arrays["correlations"][:_MATRICES],
                sequences,
                [f"pair {pair}" for pair in range(len(frames))],
            ),
            "norms": _norms(norms_along(run)),
        }
        if "data_distance" in first.table.column_names:
            drawn["data_distance"] = plotting.before_and_after(
                first.column("straight_data_distance"),
                first.column("data_distance"),
                "mean distance from the nearest code (latent units)",
            )
        if "crossings" in first.table.column_names:
            counts = {name: first.column(f"{name}_crossings") for name in BESIDE}
            counts |= {name: group.column("crossings") for name, group in groups.items()}
            drawn["crossings"] = plotting.count_bars(counts, "changes of class along the curve")
        return drawn

    @staticmethod
    def animations(run: Run) -> dict[str, Animation]:
        """Return an animation of each of the first pairs, with a spiral on the sphere."""
        titles = animated_pairs(run)
        if run.pairs is None or not titles:
            return {}
        names = ["straight", "slerp", *groups_of(run.pairs, "metric")]
        if run.arrays["animation_images"].shape[1] > len(names):
            names.insert(2, "spiral")
        return stored_animations(run.arrays, names, titles, run.config["data"]["name"])


def _matrices(model: LatentModel, curve: CubicBSpline) -> Tensor:
    """Return the correlation matrices of the images along curves, (B, T, T)."""
    return correlation_matrices(decode_along(model, curve, _CORRELATED))


def _title(pair: int, first: SolvedPairs, groups: Mapping[str, SolvedPairs]) -> str:
    """Return a line about a pair: its classes, and how much shorter its curves are."""
    gains = {"slerp": first.column("slerp_relative_improvement")[pair]}
    gains |= {name: group.column("relative_improvement")[pair] for name, group in groups.items()}
    classes = ""
    if "start_label" in first.table.column_names:
        start, end = (int(first.column(f"{end}_label")[pair]) for end in ("start", "end"))
        classes = f", class {start} to {end}"
    shorter = ", ".join(f"{name} {number(gain, '.1f', 100)} %" for name, gain in gains.items())
    return f"pair {pair}{classes}; shorter than straight: {shorter}"


def norms_along(run: Run) -> dict[str, NormProfile]:
    """Return |z| along the curves of a run's pairs by name, at equal steps of t."""
    if run.pairs is None:
        return {}
    groups = groups_of(run.pairs, "metric")
    first = next(iter(groups.values()))
    times = torch.linspace(0.0, 1.0, _PROFILE, dtype=torch.float64)
    start, end = (torch.from_numpy(first.column(name)).double() for name in ("start", "end"))
    paths = {"straight": lerp(start, end, times), "slerp": slerp(start, end, times)}
    paths |= {name: group.curve.to(dtype=torch.float64)(times) for name, group in groups.items()}
    # earlier runs do not tell, and are of N(0, I)
    prior = run.summary.get("prior", "normal")
    return {name: norm_profile(points, prior) for name, points in paths.items()}


def _norms(profiles: Mapping[str, NormProfile]) -> Figure:
    """Draw |z| along the curves beside the norms of the prior."""
    prior = profiles["straight"]
    return plotting.norm_profiles(
        np.linspace(0.0, 1.0, _PROFILE),
        {name: profile.norms.numpy() for name, profile in profiles.items()},
        (prior.mean, prior.standard_deviation),
    )
