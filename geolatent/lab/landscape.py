"""The landscape of a metric on a 2-d latent space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from geolatent.checks import check_box, check_integer, check_number, requirement
from geolatent.lab import plotting
from geolatent.lab.costs import JVP, Cost
from geolatent.lab.experiment import Arrays, MetricExperiment, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import eigen, plane_grid
from geolatent.lab.memory import check_memory
from geolatent.lab.panels import pictures_of
from geolatent.lab.printing import make_table, number, working
from geolatent.lab.run import Run, RunFolder
from geolatent.lab.summary import statistics
from geolatent.metrics.base import Metric

_NAMES = {
    "magnification": plotting.MAGNIFICATION,
    "condition": "condition number",
    "stretch": "largest stretch (output units per latent unit)",
}


def measure_plane(metric: Metric, codes: Tensor) -> dict[str, Tensor]:
    """Measure a metric of two dimensions at codes.

    Parameters
    ----------
    metric
        The metric G, with the eigenvalues l_1 <= l_2 as `eigen` gives them.
    codes
        Shape (n, 2).

    Returns
    -------
    dict
        In float64, on the CPU, NaN where G is not finite: ``magnification``, the magnification
        factor sqrt(det G), in output units^2 per latent unit^2, (n,); ``condition``, the condition
        number l_2 / l_1, (n,); ``stretch``, sqrt(l_2), in output units per latent unit, (n,); and
        ``direction``, the unit eigenvector of l_2, its first component not negative, (n, 2).

    Examples
    --------
    >>> from geolatent import TensorMetric
    >>> metric = TensorMetric(lambda z: torch.diag(torch.tensor([1.0, 9.0])).expand(
    ...     len(z), 2, 2), dim=2)
    >>> found = measure_plane(metric, torch.zeros(1, 2))
    >>> found["magnification"].item(), found["condition"].item(), found["stretch"].item()
    (3.0, 9.0, 3.0)
    """
    values, vectors = (found.cpu() for found in eigen(metric, codes))
    (smallest, largest), direction = values.clamp_min(0.0).T, vectors[:, :, 1]
    return {
        "magnification": (smallest * largest).sqrt(),
        "condition": largest / smallest,
        "stretch": largest.sqrt(),
        "direction": torch.where(direction[:, :1] < 0, -direction, direction),
    }


def measure_grid(
    metric: Metric, low: Tensor, high: Tensor, resolution: int = 101
) -> dict[str, Tensor]:
    """Measure a metric on a regular grid of the plane.

    Parameters
    ----------
    metric
        The metric, of two dimensions.
    low, high
        Corners of the grid, (2,) each.
    resolution
        Points R along each axis.

    Returns
    -------
    dict
        ``first`` and ``second``, the values of z_1 (columns) and z_2 (rows) of the grid, (R,) each,
        and what `measure_plane` gives, (R, R, ...); in float64.
    """
    check_integer("resolution", resolution, minimum=2)
    low, high = check_box(low, high, 2)
    first, second, grid = plane_grid(low, high, resolution, torch.float64)
    measured = measure_plane(metric, grid.to(low)).items()
    shaped = {name: value.unflatten(0, (resolution, resolution)) for name, value in measured}
    return {"first": first, "second": second, **shaped}


def decode_plane(model: LatentModel, low: Tensor, high: Tensor, n: int) -> dict[str, Tensor]:
    """Decode the middles of the squares that a box of the plane is cut into.

    Parameters
    ----------
    model
        The model, of two latent dimensions.
    low, high
        Corners of the box, (2,) each; the squares go beyond it by less than half of one.
    n
        Squares along its longer side.

    Returns
    -------
    dict
        ``decoded_first`` and ``decoded_second``, the values of z_1 (columns) and z_2 (rows), and
        ``decoded``, images, (rows, columns, channels, height, width).
    """
    low, high = check_box(low.double(), high.double(), 2)
    side = float((high - low).max()) / check_integer("n", n)
    places = []
    for middle, span in zip((low + high) / 2, high - low, strict=True):
        count = max(1, round(float(span) / side))
        places.append(middle + side * (torch.arange(count).to(middle) - (count - 1) / 2))
    first, second = places
    grid = torch.cartesian_prod(second, first).flip(1)
    images = model.images(grid).float().unflatten(0, (len(second), len(first)))
    return {"decoded_first": first, "decoded_second": second, "decoded": images}


@dataclass(frozen=True, kw_only=True)
class Landscape(MetricExperiment):
    """Draw the metric of a model with a 2-d latent space, with the data.

    Three maps: the magnification factor sqrt(det G), the condition number, and the direction in
    which the decoder stretches most. And a picture of what is decoded across the plane.

    Attributes
    ----------
    model
        The model; its latent space is to have two dimensions.
    data
        The images whose codes are drawn.
    resolution
        Points of the grid along each axis.
    margin
        Latent units between the outermost codes and the edge of the grid.
    n_decoded
        Images along the longer side of the decoded plane.
    seed
        Seed of the random signs of Hutchinson's estimate.
    """

    out: Path = Path("runs/landscape")
    resolution: int = 151
    margin: float = 1.0
    n_decoded: int = 20

    def check(self) -> None:
        """Raise where there is no plane to draw, or no room for its grid."""
        check_integer("resolution", self.resolution, minimum=2)
        # tensors, eigenvalues, eigenvectors and the grid itself, in float64
        check_memory("resolution", self.resolution, 16 * 8 * self.resolution**2)
        check_number("margin", self.margin, at_least=0.0)
        check_integer("n_decoded", self.n_decoded)
        super().check()
        if self.codec.dim != 2:
            required = "a model with two latent dimensions, which can be drawn"
            raise ValueError(requirement("model", required, f"one with {self.codec.dim}"))
        _ = self.dataset.chosen
        n_bytes = self.codec.images(torch.zeros(1, 2)).nbytes * self.n_decoded**2
        check_memory("n_decoded", self.n_decoded, 3 * n_bytes)

    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:  # noqa: ARG002
        """Measure the metric on the grid and at the codes."""
        codes = self.encoded
        low, high = codes.amin(0) - self.margin, codes.amax(0) + self.margin
        with working(console, f"{self.resolution**2:,} metric tensors"):
            grid = measure_grid(self.pulled_back, low, high, self.resolution)
            data = measure_plane(self.pulled_back, codes)
        maps = {
            name: {
                "on_the_grid": statistics(grid[name].flatten()),
                "at_the_data": statistics(data[name]),
            }
            for name in _NAMES
        }
        arrays = {
            **{name: value if value.ndim == 1 else value.float() for name, value in grid.items()},
            "codes": codes.float(),
            "labels": self.dataset.classes,
            **decode_plane(self.codec, low, high, self.n_decoded),
        }
        return {"maps": maps, "classifier_accuracy": self.features_made[1]}, arrays

    def tell(self, console: Console, summary: Summary) -> None:
        """Print a table of the maps."""
        table = make_table(
            "The metric on the grid and at the codes of the data",
            ["\nquantity", "grid\nmedian", "grid\nmax", "data\nmedian", "data\nmax"],
        )
        for name, entry in summary["maps"].items():
            numbers = (
                number(entry[place][key], ".3g")
                for place in ("on_the_grid", "at_the_data")
                for key in ("median", "max")
            )
            table.add_row(_NAMES[name].replace(" (", "\n("), *numbers)
        console.print(table)

    def cost(self, model: LatentModel) -> Cost:
        """Return what the grid costs."""
        return Cost(rows=self.resolution**2 * model.dim * JVP)

    @staticmethod
    def in_a_report(summary: Summary) -> str:
        """Return what a table of many runs tells of one."""
        at_data = summary["maps"]["condition"]["at_the_data"]["median"]
        return f"median condition number at the data {number(at_data, '.3g')}"

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        sides = run.arrays["first"], run.arrays["second"]
        names = ("magnification", "condition", "direction", "stretch", "codes", "labels")
        drawn = plotting.landscape_maps(sides, *(run.arrays[name] for name in names))
        result = {"landscape": drawn}
        # runs of before have no such images
        if "decoded" in run.arrays:
            places = run.arrays["decoded_first"], run.arrays["decoded_second"]
            pictures = pictures_of(run.config["data"]["name"], run.arrays["decoded"])
            result["decoded"] = plotting.decoded_plane(places, pictures)
        return result
