"""Traversals at a code: latent dimensions, directions of the metric, attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from geolatent.checks import check_integer, check_number, requirement
from geolatent.geometry.exponential import shoot
from geolatent.geometry.integrators import DiscreteGeodesic
from geolatent.geometry.ode import TrajectoryStatus
from geolatent.geometry.volume import principal_directions
from geolatent.lab import plotting_statistics
from geolatent.lab.costs import JVP, Cost
from geolatent.lab.experiment import Arrays, MetricExperiment, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import class_scores
from geolatent.lab.memory import check_memory
from geolatent.lab.plotting_sequences import drawn_strips
from geolatent.lab.printing import make_table, number, print_warning, working
from geolatent.lab.run import Run, RunFolder
from geolatent.metrics.base import Metric

# steps of a chain; coarse ones break off where the metric changes fast
_CHAIN = 256
# evaluations of a step of it, about
_ITERATIONS = 6
_DIMENSIONS, _EIGENVECTORS = "dimensions", "eigenvectors"
_STRAIGHT, _GEODESIC = "straight", "geodesic"


def traversal(code: Tensor, directions: Tensor, steps: Tensor) -> Tensor:
    """Return codes in directions, z + s u, (K, T, d), for directions u (K, d) and steps s (T,).

    Examples
    --------
    >>> traversal(torch.zeros(2), torch.eye(2), torch.tensor([-1.0, 1.0]))[1]
    tensor([[ 0., -1.],
            [ 0.,  1.]])
    """
    return code + steps[:, None] * directions[:, None]


def geodesic_traversal(
    metric: Metric, code: Tensor, directions: Tensor, steps: Tensor
) -> tuple[Tensor, list[str]]:
    """Return codes on the geodesics that leave a code in directions, exp_z(s u).

    Parameters
    ----------
    metric
        The metric; where it has an immersion, geodesics are chains (`DiscreteGeodesic`), which
        decoders with kinks do not stop.
    code
        z, (d,).
    directions
        Velocities u, (K, d).
    steps
        s, (T,), ascending, some may be negative.

    Returns
    -------
    tuple
        Codes, (K, T, d), NaN where a geodesic could not be followed, on that side; and for each
        geodesic, backwards first, the name of its `TrajectoryStatus`.
    """
    n = len(directions)
    back, on = (-steps[steps < 0]).flip(0), steps[steps >= 0]
    parts, statuses = [], []
    for sign, times in ((-1.0, back), (1.0, on)):
        if not times.numel():
            continue
        integrator = DiscreteGeodesic(_CHAIN) if metric.immersion is not None else None
        way = shoot(metric, code.repeat(n, 1), sign * directions, times, integrator=integrator)
        parts.append(way.points.flip(1) if sign < 0 else way.points)
        statuses += [TrajectoryStatus(int(status)).name for status in way.status]
    # the code itself is there also where no geodesic is
    points = torch.where(steps[:, None] == 0, code, torch.cat(parts, dim=1))
    return points, statuses


@dataclass(frozen=True, kw_only=True)
class Traverse(MetricExperiment):
    """Decode around a code: along each dimension, the metric's eigenvectors, and attributes.

    Rows are directions, columns steps in both of them. Dimensions are ordered by how much a step of
    the codes' standard deviation in them changes the output at the code, from most to least.
    Eigenvectors of the metric at the code are
    ordered by how much a step in them changes the output, from most to least, and their eigenvalues
    are told. Attributes are directions from the mean code of one class to that of another, followed
    straight and on the geodesic that leaves in that direction, with what a logistic regression
    makes of the images on the way.

    Attributes
    ----------
    data
        The images, of which the code is one's or the mean; their training split serves the
        attributes and the logistic regression.
    sample
        The row of the image whose code it is; null is the mean of the codes.
    n_steps
        Columns, an odd number, so that the code itself is in the middle.
    reach
        How far rows go to both sides, in standard deviations of the codes: along a dimension its
        own, along eigenvectors the root of the mean variance.
    n_rows
        Most dimensions and eigenvectors that are drawn.
    attributes
        Pairs of labels, from and to; null takes the first two classes and their last two, and []
        none.
    attribute_reach
        How far attributes go to both sides: 1 is the difference of the classes' mean codes.
    """

    out: Path = Path("runs/traverse")
    sample: int | None = None
    n_steps: int = 11
    reach: float = 2.0
    n_rows: int = 16
    attributes: tuple[tuple[int, int], ...] | None = None
    attribute_reach: float = 1.5

    def check(self) -> None:
        """Raise where there is no such image or class, or the decoder's images are not the data's.

        An attribute is of two different classes of the training images.
        """
        check_integer("n_steps", self.n_steps, minimum=3)
        if self.n_steps % 2 == 0:
            raise ValueError(requirement("n_steps", "an odd number of at least 3", self.n_steps))
        check_integer("n_rows", self.n_rows)
        for name in ("reach", "attribute_reach"):
            check_number(name, getattr(self, name), above=0.0)
        check_memory("n_steps", self.n_steps, 64 * 8 * self.n_steps * self.n_rows)
        super().check()
        self.dataset.check_decoder(self.codec)
        n = len(self.dataset.chosen[0])
        if self.sample is not None:
            check_integer("sample", self.sample, minimum=0)
            if self.sample >= n:
                required = f"less than {n}, the number of images"
                raise ValueError(requirement("sample", required, self.sample))
        labels = self.dataset.training[1]
        known = set() if labels is None else set(labels.tolist())
        for pair in self.attributes or ():
            if not set(pair) <= known or len(set(pair)) != 2:
                there = ", ".join(map(str, sorted(known))) or "none, for images have no labels"
                required = f"pairs of two different labels of {there}"
                raise ValueError(requirement("attributes", required, pair))

    def prepare(self) -> None:
        """Make metric, codes and classifier."""
        super().prepare()
        _ = self.dataset.codes(self.codec), self.classifier

    @cached_property
    def classifier(self) -> tuple[nn.Module | None, float | None]:
        """What tells the classes, and its accuracy; None of images without labels."""
        labels = self.dataset.training[1]
        if labels is None or len(labels.unique()) < 2:
            return None, None
        fitted, accuracy = self.dataset.classifier()
        return fitted.to(self.codec.like), accuracy

    @property
    def code(self) -> Tensor:
        """Where, (d,)."""
        return self.encoded.mean(0) if self.sample is None else self.encoded[self.sample]

    @property
    def pairs_of_labels(self) -> list[tuple[int, int]]:
        """The attributes."""
        if self.attributes is not None:
            return [(first, last) for first, last in self.attributes]
        if self.classifier[0] is None:
            return []
        labels = sorted(set((self.dataset.training[1]).tolist()))  # type: ignore[union-attr]
        return list(dict.fromkeys([(labels[0], labels[1]), (labels[-2], labels[-1])]))

    @property
    def steps(self) -> Tensor:
        """Steps from -1 to 1, in which 0 is exact."""
        half = torch.linspace(0.0, 1.0, self.n_steps // 2 + 1, dtype=torch.float64)[1:]
        return torch.cat([-half.flip(0), torch.zeros(1, dtype=torch.float64), half])

    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:  # noqa: ARG002
        """Traverse, and measure."""
        code, metric, dim = self.code, self.pulled_back, self.codec.dim
        k = min(dim, self.n_rows)
        deviation = self.dataset.codes(self.codec).double().std(0, correction=0)
        with working(console, f"{2 * k + 2 * len(self.pairs_of_labels)} traversals"):
            found = principal_directions(metric, code[None], k)
            eigenvalues, eigenvectors = found.eigenvalues[0], found.directions[0]
            steps = (self.reach * self.steps).to(code)
            axes = torch.diag(deviation).to(code)
            order = self.stretch_of(axes).argsort(descending=True)[:k]
            axes = axes[order]
            spread = float(deviation.square().mean().sqrt())
            codes = {
                _DIMENSIONS: traversal(code, axes, steps),
                _EIGENVECTORS: traversal(code, spread * eigenvectors, steps),
            }
            statuses: list[str] = []
            attributes = self.attribute_directions().to(code)
            if len(attributes):
                steps = (self.attribute_reach * self.steps).to(code)
                codes[_STRAIGHT] = traversal(code, attributes, steps)
                codes[_GEODESIC], statuses = geodesic_traversal(metric, code, attributes, steps)
            arrays: Arrays = {"code": code, "eigenvalues": eigenvalues, "deviation": deviation}
            arrays |= {"eigenvectors_of_metric": eigenvectors, "steps": self.steps}
            arrays |= {"attribute_directions": attributes}
            for name, each in codes.items():
                images = self.codec.images(each.flatten(0, 1)).unflatten(0, each.shape[:2])
                arrays |= {f"{name}_codes": each, f"{name}_images": images}
                if name in (_STRAIGHT, _GEODESIC):
                    arrays[f"{name}_probabilities"] = self.probabilities(images)
        stretch = eigenvalues.double().clamp_min(0.0).sqrt()
        summary: Summary = {
            "sample": self.sample,
            "reach": self.reach,
            "attribute_reach": self.attribute_reach,
            "spread": spread,
            "stretch": stretch.tolist(),
            "dimensions": (order + 1).tolist(),
            "dimension_stretch": self.stretch_of(torch.eye(dim).to(code)[order]).tolist(),
            "attributes": [list(pair) for pair in self.pairs_of_labels],
            "classes": list(getattr(self.classifier[0], "classes", ())),
            "ended": [name for name in statuses if name != TrajectoryStatus.FINISHED.name],
            "classifier_accuracy": self.classifier[1],
        }
        if len(attributes):
            summary["attribute_stretch"] = self.stretch_of(attributes).tolist()
            summary["targets"] = {
                name: self.target_probabilities(arrays[f"{name}_probabilities"])
                for name in (_STRAIGHT, _GEODESIC)
            }
        floats = {n: v.float() if v.is_floating_point() else v for n, v in arrays.items()}
        # those of no rows cannot be stored
        return summary, {name: value.clone() for name, value in floats.items() if value.numel()}

    def attribute_directions(self) -> Tensor:
        """Return differences of the mean codes of two classes, (K, d), float64."""
        codes, labels = self.dataset.codes(self.codec).double(), self.dataset.training[1]
        found = [
            codes[labels == last].mean(0) - codes[labels == first].mean(0)
            for first, last in self.pairs_of_labels
        ]
        return torch.stack(found) if found else codes.new_empty((0, codes.shape[1]))

    def stretch_of(self, vectors: Tensor) -> Tensor:
        """Return how much the output changes by a unit of directions at the code, |u|_G, (K,)."""
        squares = self.pulled_back.quadratic(self.code.repeat(len(vectors), 1), vectors)
        return squares.double().clamp_min(0.0).sqrt()

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities of images (K, T, ...), (K, T, classes); NaN where unknown."""
        classifier = self.classifier[0]
        if classifier is None:
            raise ValueError(requirement("attributes", "none for images without labels", "some"))
        scores, _ = class_scores(classifier, images.flatten(0, 1))
        return scores.softmax(1).unflatten(0, images.shape[:2])

    def target_probabilities(self, probabilities: Tensor) -> list[dict[str, float]]:
        """Return, for each attribute, the probability of its second class at both ends and here."""
        classes = list(self.classifier[0].classes)  # type: ignore[union-attr, arg-type]
        middle = self.n_steps // 2
        return [
            {
                key: float(row[place, classes.index(last)])
                for key, place in (("back", 0), ("here", middle), ("on", -1))
            }
            for (_, last), row in zip(self.pairs_of_labels, probabilities, strict=True)
        ]

    def tell(self, console: Console, summary: Summary) -> None:
        """Print how much each direction changes the output, and what attributes do."""
        table = make_table(
            "Change of the output by a unit step at the code",
            ["\n", "eigenvector of\nthe metric", "latent\ndimension"],
        )
        columns = [summary[name] for name in ("stretch", "dimensions", "dimension_stretch")]
        for place, (first, name, second) in enumerate(zip(*columns, strict=True), start=1):
            table.add_row(str(place), number(first, ".4g"), f"z_{name}: {number(second, '.4g')}")
        console.print(table)
        largest, smallest = summary["stretch"][0], summary["stretch"][-1]
        console.print(
            f"Varying eigenvector 1 changes the output by {number(largest, '.4g')} per unit, "
            f"eigenvector {len(summary['stretch'])} by {number(smallest, '.4g')}."
        )
        if summary["attributes"]:
            self._tell_attributes(console, summary)
        for name in sorted(set(summary["ended"])):
            count = summary["ended"].count(name)
            told = TrajectoryStatus[name].explanation
            print_warning(console, f"{count} geodesics ended early, {name}: {told}")

    @staticmethod
    def _tell_attributes(console: Console, summary: Summary) -> None:
        """Print the probability of the second class along attributes."""
        reach = summary["attribute_reach"]
        table = make_table(
            "Probability of the attribute's second class along it",
            ["attribute", "followed", f"at {-reach:g}", "at the code", f"at {reach:g}"],
            n_text=2,
        )
        for place, (first, last) in enumerate(summary["attributes"]):
            for name, found in summary["targets"].items():
                cells = (number(found[place][key], ".3f") for key in ("back", "here", "on"))
                table.add_row(f"{first} to {last}", name, *cells)
        console.print(table)

    def cost(self, model: LatentModel) -> Cost:
        """Return what the directions and the chains cost."""
        n = 0 if self.attributes is not None and not self.attributes else 2
        n = len(self.attributes) if self.attributes else n
        chains = 2 * n * _CHAIN * (_ITERATIONS + model.dim * JVP)
        rows = 2 * min(model.dim, self.n_rows) * self.n_steps + chains
        return Cost(rows=rows + model.dim * JVP)

    @staticmethod
    def in_a_report(summary: Summary) -> str:
        """Return what a table of many runs tells of one."""
        ends = (number(summary["stretch"][place], ".3g") for place in (0, -1))
        return f"output per unit, by direction: {' to '.join(ends)}"

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        arrays, summary = run.arrays, run.summary
        steps = arrays["steps"] * summary["reach"]
        drawn = {}
        n = len(summary["stretch"])
        # earlier runs drew the first dimensions, in their order
        dimensions = [f"z_{place}" for place in summary.get("dimensions", range(1, n + 1))]
        for name, labels, stretches, what in (
            (_DIMENSIONS, dimensions, summary["dimension_stretch"], "latent dimensions"),
            (_EIGENVECTORS, range(1, n + 1), summary["stretch"], "eigenvectors of the metric"),
        ):
            rows = {
                f"{label}: {stretch:.3g} per unit": images[None]
                for label, stretch, images in zip(
                    labels, stretches, arrays[f"{name}_images"], strict=True
                )
            }
            title = f"{what}: change of the output by a unit step"
            place_name = "step (standard deviations of the codes)"
            drawn[name] = drawn_strips(run.config, rows, [title], steps, place_name)
        if summary["attributes"]:
            drawn |= _attribute_figures(run)
        return drawn


def _attribute_figures(run: Run) -> dict[str, Figure]:
    """Draw images along attributes, and the classes' probabilities."""
    arrays, summary = run.arrays, run.summary
    steps = arrays["steps"] * summary["attribute_reach"]
    pairs = [f"{first} to {last}" for first, last in summary["attributes"]]
    place_name = "step (differences of the classes' mean codes)"
    strips = {name: arrays[f"{name}_images"] for name in (_STRAIGHT, _GEODESIC)}
    titles = [f"attribute: class {pair}" for pair in pairs]
    probabilities = {name: arrays[f"{name}_probabilities"] for name in (_STRAIGHT, _GEODESIC)}
    return {
        "attributes": drawn_strips(run.config, strips, titles, steps, place_name),
        "answers": plotting_statistics.class_answers(
            steps, place_name, probabilities, pairs, _positions(summary)
        ),
    }


def _positions(summary: Summary) -> Sequence[tuple[int, int]]:
    """Return where the classes of the attributes are among all."""
    classes = summary["classes"]
    return [(classes.index(first), classes.index(last)) for first, last in summary["attributes"]]
