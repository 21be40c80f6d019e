"""The demo: geodesics between handwritten digits in the embedded 2-d model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from geolatent import models
from geolatent.checks import check_integer, requirement
from geolatent.curves import CubicBSpline
from geolatent.geometry.volume import magnification_factor
from geolatent.graph import LatentGraph
from geolatent.lab import data, plotting
from geolatent.lab.config import Formats, check_formats
from geolatent.lab.measures import plane_grid
from geolatent.lab.printing import make_console, make_table, print_files, working
from geolatent.metrics.pullback import GaussianPullbackMetric
from geolatent.solution import GeodesicSolution
from geolatent.solve import solve_geodesic

LATTICE_RESOLUTION = 256
# latent units between the outermost codes and the edge of the lattice
MARGIN = 0.5


@dataclass(frozen=True)
class DigitPairs:
    """Pairs of encoded digits and the metric between them.

    Attributes
    ----------
    metric
        Pull-back metric of the embedded model's Gaussian decoder.
    start, end
        Codes, (B, 2), float64.
    labels
        Classes of the two digits of each pair, (B, 2).
    codes, classes
        Codes of the training digits, (n, 2), and their classes.
    """

    metric: GaussianPullbackMetric
    model: models.MLPVAE
    start: Tensor
    end: Tensor
    labels: Tensor
    codes: Tensor
    classes: Tensor

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Corners of a box around all codes."""
        everything = torch.cat([self.codes, self.start, self.end])
        return everything.amin(0) - MARGIN, everything.amax(0) + MARGIN


def digit_pairs(n_pairs: int, seed: int = 0) -> DigitPairs:
    """Encode random pairs of test digits of different classes with the embedded model.

    No image is used twice, so that there are at most half as many pairs as test images.
    """
    check_integer("n_pairs", n_pairs)
    check_integer("seed", seed, minimum=0)
    model = models.digits_vae(dtype=torch.float64)
    images, labels = data.digits("test")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen: list[tuple[int, int]] = []
    while len(chosen) < n_pairs and len(order) > 1:
        first = order.pop()
        partner = next((i for i in reversed(order) if labels[i] != labels[first]), None)
        if partner is None:
            break
        order.remove(partner)
        chosen.append((first, partner))
    if len(chosen) < n_pairs:
        required = f"at most {len(chosen)}, the pairs that the {len(images)} test images give"
        raise ValueError(requirement("n_pairs", required, n_pairs))
    index = torch.tensor(chosen)
    train_images, train_labels = data.digits("train")
    with torch.no_grad():
        codes = model.encode(images.double())[0]
        train_codes = model.encode(train_images.double())[0]
    return DigitPairs(
        metric=GaussianPullbackMetric(model.decode),
        model=model,
        start=codes[index[:, 0]],
        end=codes[index[:, 1]],
        labels=labels[index],
        codes=train_codes,
        classes=train_labels,
    )


def demo(
    out: Path = Path("geolatent-demo"),
    n_pairs: int = 8,
    seed: int = 0,
    format: Formats = "png",
) -> None:
    """Find geodesics between handwritten digits and draw them.

    Encodes pairs of scikit-learn's test digits with the model that comes with the package, solves
    for the geodesics under the expected pull-back metric of its Gaussian decoder, prints a table
    and writes two figures. Takes a few seconds on two CPU cores.

    Parameters
    ----------
    out
        Folder for the figures; it is made where it does not exist.
    n_pairs
        Number of pairs of digits, at most 225.
    seed
        Seed of the choice of digits.
    format
        Format of the figures, "png", "pdf" or "svg", or a list of them.
    """
    formats = check_formats(format)
    began = time.perf_counter()
    console = make_console()
    pairs = digit_pairs(n_pairs, seed)
    with working(console, "building the graph"):
        low, high = pairs.bounds
        graph = LatentGraph.lattice(pairs.metric, low, high, resolution=LATTICE_RESOLUTION)
    with working(console, f"solving {n_pairs} pairs") as tell:
        solution = solve_geodesic(
            pairs.metric,
            pairs.start,
            pairs.end,
            initial=graph,
            callback=lambda state: tell(state.fraction),
        )
    with working(console, "drawing"):
        files = []
        for name, draw in (("interpolations", _strips), ("latent_plane", _plane)):
            figure = draw(pairs, solution)
            files += [plotting.save_figure(figure, out / f"{name}.{each}") for each in formats]
    console.print(_table(pairs, solution))
    console.print(solution.summary())
    mean = 100.0 * float(solution.relative_improvement.mean())
    seconds = time.perf_counter() - began
    console.print(
        f"Geodesics are {mean:.1f} % shorter than straight lines on average. "
        f"The graph took {graph.forward_rows:,} decoder rows once; all took {seconds:.1f} s."
    )
    print_files(console, out, files)


def _table(pairs: DigitPairs, solution: GeodesicSolution) -> Table:
    title = "Geodesics between handwritten digits (lengths in units of the decoder's output)"
    columns = (
        "\ndigits",
        "straight\nlength",
        "geodesic\nlength",
        "improvement\n%",
        "predicted\nleft %",
        "control\npoints",
        "decoder\nevaluations",
    )
    table = make_table(title, columns, n_text=0)
    for i in range(len(pairs.start)):
        table.add_row(
            f"{pairs.labels[i, 0]} → {pairs.labels[i, 1]}",
            f"{solution.straight_length[i]:.3f}",
            f"{solution.length[i]:.3f}",
            f"{100 * solution.relative_improvement[i]:.2f}",
            f"{100 * solution.predicted_improvement[i]:.4f}",
            f"{solution.control_points[i]}",
            f"{solution.evaluations.equivalents[i]:.0f}",
        )
    return table


def _strips(pairs: DigitPairs, solution: GeodesicSolution) -> Figure:
    """Decode both curves of the first pairs at equal steps of t."""
    shown = min(6, len(pairs.start))
    t = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    lines = CubicBSpline.straight(pairs.start[:shown], pairs.end[:shown])
    images = []
    for curve in (lines, solution.curve[:shown]):
        with torch.no_grad():
            mean = pairs.model.decode_mean(curve(t).flatten(0, 1))
        images.append(mean.reshape(shown, len(t), 1, 8, 8).numpy())
    titles = [
        f"{pairs.labels[i, 0]} to {pairs.labels[i, 1]}: "
        f"{100 * solution.relative_improvement[i]:.1f} % shorter "
        f"({solution.straight_length[i]:.2f} → {solution.length[i]:.2f})"
        for i in range(shown)
    ]
    strips = {"straight": images[0], "geodesic": images[1]}
    return plotting.image_strips(strips, titles)


def _plane(pairs: DigitPairs, solution: GeodesicSolution) -> Figure:
    first, second, grid = plane_grid(*pairs.bounds, 201, torch.float64)
    factor = magnification_factor(pairs.metric, grid).reshape(201, 201)
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    return plotting.latent_plane(
        (first.numpy(), second.numpy()),
        factor.numpy(),
        pairs.codes.numpy(),
        pairs.classes.numpy().astype(np.int64),
        CubicBSpline.straight(pairs.start, pairs.end)(t).numpy(),
        solution.curve(t).numpy(),
    )
