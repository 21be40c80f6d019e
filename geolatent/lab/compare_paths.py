"""Which paths make better interpolations: straight lines, slerp, geodesics of several metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from geolatent.checks import check_integer, check_number, requirement
from geolatent.curves import CubicBSpline
from geolatent.lab import plotting_statistics
from geolatent.lab.animation import Animation, animated_arrays, check_animation, stored_animations
from geolatent.lab.config import AnimationOptions, FeatureOptions, MetricOptions
from geolatent.lab.costs import JVP, Cost
from geolatent.lab.experiment import Arrays, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import (
    Measure,
    class_counts,
    class_scores,
    confidences,
    measure_along,
    straight_and_slerp,
)
from geolatent.lab.pairs import Case, draw_different
from geolatent.lab.pairs_experiment import SourceExperiment, animated_pairs, pair_titles
from geolatent.lab.paths import frames_along
from geolatent.lab.plotting_sequences import drawn_strips
from geolatent.lab.printing import make_table, number, print_accuracy, print_statuses
from geolatent.lab.realism import KernelDensity, Neighbourhoods
from geolatent.lab.run import Run
from geolatent.lab.solved import SolvedPairs
from geolatent.lab.summary import groups_of, paired_comparison, summarise
from geolatent.lengths import measure as measure_lengths
from geolatent.metrics.base import Metric
from geolatent.metrics.composite import ConformalMetric
from geolatent.metrics.rows import Rows
from geolatent.metrics.sphere import SphereMetric
from geolatent.priors import log_prior, mean_log_prior, prior_norm

STRAIGHT, SLERP = "straight", "slerp"


class Quality(NamedTuple):
    """A measure of paths: what tables and figures call it, and whether less of it is better."""

    name: str
    title: str
    lower: bool


QUALITIES = {
    "output_length": Quality("length", "output length (output units)", True),
    "output_energy": Quality("energy", "energy in the path's parameter (output units²)", True),
    "log_density": Quality("log p(z), mean", "log prior density, mean (nats)", False),
    "lowest_log_density": Quality("log p(z), least", "log prior density, lowest (nats)", False),
    "norm_deviation": Quality("off norms", "distance from typical norms (std)", True),
    "sphere_distance": Quality(
        "off sphere", "distance from the prior's sphere (latent units)", True
    ),
    "code_distance": Quality("nearest code", "from the nearest code (latent units)", True),
    "image_distance": Quality("nearest image", "from the nearest image (output units)", True),
    "confidence": Quality("confidence", "classifier's confidence, mean (share)", False),
    "lowest_confidence": Quality("least conf.", "classifier's confidence, lowest (share)", False),
    "crossings": Quality("class changes", "changes of class (number)", True),
    "realism": Quality("realism", "realism, mean (ratio)", False),
    "precision": Quality("manifold", "within the images' manifold (share)", False),
    "feature_realism": Quality("feat. realism", "realism in features, mean (ratio)", False),
    "feature_precision": Quality(
        "feat. manifold", "within the manifold of features (share)", False
    ),
}


@dataclass(frozen=True)
class PathMeasure:
    """What is measured of paths, at equal steps of output length, the ends included.

    Attributes
    ----------
    model
        The model, whose mean images are the output.
    mean_metric
        Their metric, which measures length and energy.
    codes
        Codes of the data; None of a model without an encoder.
    images
        Balls around images of the data, flattened.
    classifier
        From images to scores or log-probabilities of classes, (n, K); or None.
    features, feature_balls
        A feature map and balls around the features of images; or None.
    n_points
        Places along a path.
    length_tolerance
        Of lengths.
    """

    model: LatentModel
    mean_metric: Metric
    codes: Tensor | None
    images: Neighbourhoods
    classifier: nn.Module | None = None
    features: nn.Module | None = None
    feature_balls: Neighbourhoods | None = None
    n_points: int = 64
    length_tolerance: float = 1e-4

    def __call__(self, curve: CubicBSpline) -> Mapping[str, Tensor]:
        """Return the `QUALITIES` of curves, (B,) each."""
        points = curve.control_points
        rows = Rows.of(self.mean_metric, points[:, 0]).counting(curve.batch_size)
        measured = measure_lengths(rows, [curve], tolerance=self.length_tolerance)
        each = [self._along(curve[k : k + 1]) for k in range(curve.batch_size)]
        found = {name: torch.stack([one[name] for one in each]) for name in each[0]}
        lengths = {"output_length": measured.length[0], "output_energy": measured.energy[0]}
        return {**lengths, **found}

    @torch.no_grad()
    def _along(self, curve: CubicBSpline) -> dict[str, Tensor]:
        """Return what is measured of one curve at its places."""
        frames = frames_along(self.model, curve, self.n_points)
        codes, images = frames.codes[0], frames.images[0]
        mean, deviation = prior_norm(codes.shape[1], self.model.prior)
        off = (codes.double().norm(dim=1) - mean).abs().mean()
        if self.model.prior == "sphere":
            found = {"sphere_distance": off}
        else:
            density = log_prior(codes.double(), self.model.prior)
            found = {
                "log_density": density.mean(),
                "lowest_log_density": density.min(),
                "norm_deviation": off / deviation,
            }
        if self.codes is not None:
            found["code_distance"] = torch.cdist(codes, self.codes).amin(1).mean()
        near = self.images.nearness(images)
        found |= {
            "image_distance": near.distance.mean(),
            "realism": near.realism.mean(),
            "precision": near.inside.double().mean(),
        }
        if self.classifier is not None:
            scores, known = class_scores(self.classifier, images)
            sure = confidences(scores)
            classes = torch.where(known, scores.argmax(1), -1)
            found |= {
                "confidence": sure.mean(),
                "lowest_confidence": sure.amin(),
                "crossings": class_counts(classes[None])["crossings"][0],
            }
        if self.features is not None and self.feature_balls is not None:
            near = self.feature_balls.nearness(self.features(images))
            found |= {
                "feature_realism": near.realism.mean(),
                "feature_precision": near.inside.double().mean(),
            }
        return {name: value.double().cpu() for name, value in found.items()}


@dataclass(frozen=True, kw_only=True)
class ComparePaths(SourceExperiment):
    """Compare the paths between codes by what is decoded on the way.

    Straight lines, slerp, and geodesics of each metric that the model has: "mean", the pull-back of
    mean images; "gaussian", of mean and standard deviation; "features", of a feature map, as the
    metric options have it; "density", the mean's divided by the density of the data's codes;
    "sphere", the mean's on the sphere of radius sqrt(d), while norms change linearly, as slerp's
    do. Of each path are measured, at places in equal steps of output length (of mean images):
    output length and energy; the prior's log density, mean and lowest, and how far norms are from
    the prior's, or, of a prior on a sphere, how far codes are from that; the distance to the
    nearest code, where the model has an encoder, and the nearest image of the training split; a
    logistic regression's confidence, mean and lowest, and how often the class changes; realism and
    the share within the manifold of the images' nearest neighbours (Kynkaanniemi et al. 2019), in
    pixels and in features. Only energy is of the path's own parameter. All are compared pair by
    pair with the straight line; what is within two standard errors of the best is a tie.

    Attributes
    ----------
    pairs
        "encoded", pairs of images of the data, of different classes where there are labels;
        "prior", both ends from the model's prior, N(0, I) unless it has another; "codes", pairs of
        a file.
    data
        The images; their training split is what paths are compared with.
    features
        A feature map, whose geodesics are compared too.
    geodesics
        Metrics whose geodesics are compared: of "mean", "gaussian", "features", "density" and
        "sphere" those that the model has; without an encoder there are no codes, and no density of
        them. The sphere is for many dimensions, where codes of the prior lie near it.
    n_points
        Places along a path.
    n_reference
        Training images, drawn, that paths are compared with; the density is of the codes of as many
        others. Null, or more than half of them, is half of them each.
    n_neighbors
        The neighbour that the ball around an image reaches to.
    density_strength
        Exponent of the density, relative to that of a typical code, that the density's metric is
        divided by.
    density_scale
        Bandwidth of the density in units of Scott's rule.
    n_images
        Images in a strip.
    n_shown
        Pairs that are drawn.
    animate
        Animate what is decoded along the paths, side by side, at constant speed in the output.
    animation
        How.
    """

    out: Path = Path("runs/compare_paths")
    pairs: Literal["encoded", "prior", "codes"] = "encoded"
    n_pairs: int = 200
    features: FeatureOptions = FeatureOptions(kind="logistic")
    geodesics: tuple[Literal["mean", "gaussian", "features", "density", "sphere"], ...] = (
        "mean",
        "gaussian",
        "features",
        "density",
    )
    n_points: int = 64
    n_reference: int | None = 5000
    n_neighbors: int = 3
    density_strength: float = 1.0
    density_scale: float = 1.0
    n_images: int = 11
    n_shown: int = 4
    animate: bool = False
    animation: AnimationOptions = AnimationOptions()

    def check(self) -> None:
        """Raise where paths could not be measured, or the model's images are not the data's."""
        if self.animate:
            check_animation(self.animation)
        for name in ("n_points", "n_images"):
            check_integer(name, getattr(self, name), minimum=2)
        check_integer("n_neighbors", self.n_neighbors)
        check_integer("n_shown", self.n_shown)
        if self.n_reference is not None:
            check_integer("n_reference", self.n_reference, minimum=self.n_neighbors + 2)
        check_number("density_strength", self.density_strength, at_least=0.0)
        check_number("density_scale", self.density_scale, above=0.0)
        if not self.geodesics or len(set(self.geodesics)) != len(self.geodesics):
            required = "one or more different names of metrics"
            raise ValueError(requirement("geodesics", required, self.geodesics))
        self.dataset.check_decoder(self.codec)
        super().check()

    def prepare(self) -> None:
        """Make metrics, classifier and reference."""
        super().prepare()
        _ = self.path_measure, self.metrics

    @cached_property
    def image_rows(self) -> Tensor:
        """Row numbers of pairs of images, (n_pairs, 2), of different classes if there are any."""
        _, labels = self.dataset.chosen
        if labels is None:
            return super().image_rows
        return draw_different(self.n_pairs, labels, self.seed)

    @cached_property
    def halves(self) -> tuple[Tensor, Tensor]:
        """Row numbers of the training images that paths are compared with, and of the density's.

        None is among both: a path that is drawn to codes is not judged by them.
        """
        n = len(self.dataset.training[0])
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        most = n // 2 if self.n_reference is None else min(self.n_reference, n // 2)
        return order[:most], order[most : 2 * most]

    @property
    def reference(self) -> Tensor:
        """Row numbers of the training images that paths are compared with."""
        return self.halves[0]

    @property
    def reference_codes(self) -> Tensor | None:
        """Their codes; None without an encoder."""
        return self.dataset.codes(self.codec)[self.reference] if self.codec.has_encoder else None

    @property
    def reference_labels(self) -> Tensor:
        """Their classes; images without labels are all of class 0."""
        labels = self.dataset.training[1]
        return torch.zeros_like(self.reference) if labels is None else labels[self.reference]

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name, those of ``geodesics`` that the model has."""
        mean = self.codec.metric(MetricOptions(uncertainty=False)).limited(self.max_rows)
        found: dict[str, Metric] = {}
        for name in self.geodesics:
            if name == "mean":
                found[name] = mean
            elif name == "gaussian" and self.codec.gaussian:
                found[name] = self.codec.metric().limited(self.max_rows)
            elif name == "features" and self.features_made[0] is not None:
                found[name] = self.pulled_back
            elif name == "sphere" and self.codec.dim > 1:
                found[name] = SphereMetric(mean).limited(self.max_rows)
            elif name == "density" and self.codec.has_encoder:
                codes = self.dataset.codes(self.codec)[self.halves[1]]
                density = KernelDensity(codes, self.density_scale)
                found[name] = ConformalMetric.from_log_density(
                    mean,
                    density,
                    strength=self.density_strength,
                    reference=float(density(codes).median()),
                ).limited(self.max_rows)
        if not found:
            required = "names of metrics that the model has"
            raise ValueError(requirement("geodesics", required, self.geodesics))
        return found

    @cached_property
    def path_measure(self) -> PathMeasure:
        """What is measured of paths."""
        images = self.dataset.training[0][self.reference].to(self.codec.like)
        features = self.features_made[0]
        balls = None
        if features is not None:
            with torch.no_grad():
                parts = [features(part) for part in images.split(256)]
            balls = Neighbourhoods(torch.cat(parts), self.n_neighbors)
        return PathMeasure(
            self.codec,
            self.codec.metric(MetricOptions(uncertainty=False)).limited(self.max_rows),
            self.reference_codes,
            Neighbourhoods(images, self.n_neighbors),
            self.classifier[0],
            features,
            balls,
            self.n_points,
            self.length_tolerance,
        )

    def cases(self) -> list[Case]:
        """Return the pairs under each metric, with the column ``metric``, its name.

        The first also have the measures of straight lines and slerp, as ``straight_`` and
        ``slerp_`` columns.
        """
        quantity = self.path_measure

        def alone(_line: CubicBSpline, curve: CubicBSpline) -> Mapping[str, Any]:
            return quantity(curve)

        measures: list[Measure] = [measure_along([quantity])]
        measures += [alone] * (len(self.metrics) - 1)
        return [
            Case(
                metric,
                self.groups[0].named("metric", name),
                self.graph(self.codec, metric, self.groups),
                [measure],
            )
            for (name, metric), measure in zip(self.metrics.items(), measures, strict=True)
        ]

    def summarise(self, solved: SolvedPairs) -> Summary:
        """Return the statistics of each metric's geodesics, and the comparison of all paths."""
        values = path_values(solved)
        dim, prior = self.codec.dim, self.codec.prior
        mean, deviation = prior_norm(dim, prior)
        return {
            "pairs": self.pairs,
            "groups": {name: summarise(part) for name, part in groups_of(solved, "metric").items()},
            "comparison": {
                name: paired_comparison(paths, lower=QUALITIES[name].lower)
                for name, paths in values.items()
            },
            "prior": {
                "norm_mean": mean,
                "norm_std": deviation,
                "log_density": None if prior == "sphere" else mean_log_prior(dim, prior),
            },
            "n_reference": len(self.reference),
            "classifier_accuracy": self.classifier[1],
        }

    def arrays(self, solved: SolvedPairs) -> Arrays:
        """Decode the first pairs for the figures: ``frames``, (shown, paths, n_images, C, H, W)."""
        place = self.codec.like.device
        curves = [part.curve.to(place) for part in groups_of(solved, "metric").values()]
        every = [*straight_and_slerp(curves[0]), *curves]
        shown = [curve[: self.n_shown] for curve in every]
        found = [frames_along(self.codec, curve, self.n_images) for curve in shown]
        arrays = {"frames": torch.stack([frames.images.float() for frames in found], dim=1)}
        if self.animate:
            how, data, labels = self.animation, self.reference_codes, self.reference_labels
            paths = [curve[: how.n_shown] for curve in every]
            arrays |= animated_arrays(self.codec, paths, how, data, labels)
        return arrays

    def tell(self, console: Console, summary: Summary) -> None:
        """Print a table of all measures, with the best paths."""
        compared = summary["comparison"]
        names = list(next(iter(compared.values()))["paths"])
        table = make_table(
            "Means over the pairs; beside the straight line differences from it ± standard errors",
            ["measure", *names],
        )
        winners = make_table("Best by each measure", ["measure", "best"], n_text=2)
        winners.columns[1].no_wrap = False
        for key, entry in compared.items():
            arrow = "↓" if QUALITIES[key].lower else "↑"
            name, best = f"{arrow} {QUALITIES[key].name}", entry["best"]
            cells = [
                number(path["mean"], ".4g") if path_name == STRAIGHT else _difference(path)
                for path_name, path in entry["paths"].items()
            ]
            table.add_row(name, *cells)
            winners.add_row(
                name, "-" if not best else best[0] if len(best) == 1 else f"tie: {', '.join(best)}"
            )
        console.print(table)
        console.print(winners)
        prior = summary["prior"]
        said = f"Codes of the prior have norms of {prior['norm_mean']:.2f}"
        if prior["log_density"] is not None:
            said += (
                f" ± {prior['norm_std']:.2f} and a mean log density of {prior['log_density']:.2f}"
            )
        console.print(
            "↓: less is better, ↑: more. A tie: within two standard errors of the pairs' "
            "differences from the best. Places are at equal steps of output length. "
            f"{said}."
        )
        print_statuses(console, summary["groups"])
        print_accuracy(console, summary["classifier_accuracy"])

    def cost(self, model: LatentModel) -> Cost:
        """Return what the pairs cost under each metric, and what is measured of their paths."""
        cost = super().cost(model)
        lacking = {
            "gaussian": model.gaussian,
            "features": self.features.kind != "none",
            "density": model.has_encoder,
        }
        n_metrics = sum(lacking.get(name, True) for name in self.geodesics)
        measured = (2 + n_metrics) / n_metrics * (300 + self.n_points) * JVP
        return replace(
            cost,
            n_geodesics=n_metrics * cost.n_geodesics,
            rows_each=cost.rows_each + measured,
            rows=n_metrics * cost.rows,
        )

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        if run.pairs is None:
            return {}
        compared = run.summary["comparison"].items()
        entries = {(QUALITIES[key].title, QUALITIES[key].lower): entry for key, entry in compared}
        drawn = {"comparison": plotting_statistics.compared_paths(entries, STRAIGHT)}
        if "frames" in run.arrays:
            frames = run.arrays["frames"]
            names = [STRAIGHT, SLERP, *groups_of(run.pairs, "metric")]
            strips = {name: frames[:, place] for place, name in enumerate(names)}
            titles = pair_titles(run.pairs, len(frames))
            name = "share of the output length"
            drawn["strips"] = drawn_strips(run.config, strips, titles, place_name=name)
        return drawn

    @staticmethod
    def animations(run: Run) -> dict[str, Animation]:
        """Return an animation of each of the first pairs."""
        if run.pairs is None:
            return {}
        names = [STRAIGHT, SLERP, *groups_of(run.pairs, "metric")]
        return stored_animations(run.arrays, names, animated_pairs(run), run.config["data"]["name"])


def path_values(solved: SolvedPairs) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return the values of each measure, by the names of measures and of paths, (n_pairs,) each."""
    groups = groups_of(solved, "metric")
    first = next(iter(groups.values()))
    found = {}
    for key in QUALITIES:
        if key not in solved.table.column_names:
            continue
        beside = {name: first.column(f"{name}_{key}") for name in (STRAIGHT, SLERP)}
        paths = beside | {name: part.column(key) for name, part in groups.items()}
        found[key] = {name: np.asarray(value, np.float64) for name, value in paths.items()}
    return found


def _difference(path: Mapping[str, float]) -> str:
    """Return the difference from the first path and its standard error, in two short lines."""
    difference, error = number(path["difference"], "+.3g"), number(path["error"], ".2g")
    # eight letters each, with fewer digits where it takes that
    if len(difference) > 8:
        difference = number(path["difference"], "+.1e")
    if len(error) > 7:
        error = number(path["error"], ".1e")
    return difference if difference == "-" else f"{difference}\n±{error}"
