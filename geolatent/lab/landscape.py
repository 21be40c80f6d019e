"""The landscape of a metric on a 2-d latent space."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from geolatent.checks import check_integer, check_number, check_tensor, describe, requirement
from geolatent.lab import plotting
from geolatent.lab.config import (
    DataOptions,
    FeatureOptions,
    Formats,
    MetricOptions,
    ModelOptions,
    check_formats,
)
from geolatent.lab.memory import check_memory
from geolatent.lab.printing import (
    make_console,
    make_table,
    number,
    print_files,
    progress_bar,
)
from geolatent.lab.results import Run, RunFolder
from geolatent.lab.setup import Dataset, make_device, make_features, make_model
from geolatent.lab.summary import statistics
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows


@dataclass(frozen=True)
class Landscape:
    """A metric on a regular grid of the plane.

    Attributes
    ----------
    first, second
        Values of z_1 (columns) and z_2 (rows) of the grid, (R,) each.
    magnification
        Magnification factor sqrt(det G), in output units^2 per latent unit^2, (R, R).
    condition
        Condition number l_2 / l_1 of G, (R, R).
    direction
        Unit eigenvector of the largest eigenvalue, its first component not negative, (R, R, 2).
    stretch
        sqrt(l_2), in output units per latent unit in that direction, (R, R).
    """

    first: Tensor
    second: Tensor
    magnification: Tensor
    condition: Tensor
    direction: Tensor
    stretch: Tensor


def measure_landscape(
    metric: Metric,
    low: Tensor,
    high: Tensor,
    resolution: int = 101,
) -> Landscape:
    """Evaluate a metric on a regular grid of the plane.

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
    Landscape
        In float64. Where G is not finite, NaN.

    Raises
    ------
    ValueError
        If the corners are not in order or not of the plane.

    Examples
    --------
    >>> from geolatent import TensorMetric
    >>> metric = TensorMetric(lambda z: torch.diag(torch.tensor([1.0, 9.0])).expand(
    ...     len(z), 2, 2), dim=2)
    >>> found = measure_landscape(metric, torch.zeros(2), torch.ones(2), resolution=2)
    >>> found.magnification[0, 0].item(), found.condition[0, 0].item(), found.stretch[0, 0].item()
    (3.0, 9.0, 3.0)
    """
    check_integer("resolution", resolution, minimum=2)
    for name, corner in (("low", low), ("high", high)):
        check_tensor(name, corner, "of shape (2,)", (1,))
        if corner.numel() != 2:
            raise ValueError(requirement(name, "a tensor of shape (2,)", describe(corner)))
    if not bool((high > low).all()):
        raise ValueError(requirement("high", f"above `low`, {low.tolist()}", high.tolist()))
    first, second = (
        torch.linspace(float(a), float(b), resolution, dtype=torch.float64)
        for a, b in zip(low, high, strict=True)
    )
    rows, columns = torch.meshgrid(second, first, indexing="ij")
    grid = torch.stack([columns.flatten(), rows.flatten()], dim=1).to(low)
    metric.check("low", grid[:1])
    tensors = Rows.of(metric, grid).tensor(grid).double().cpu()
    finite = torch.isfinite(tensors).flatten(1).all(1)
    tensors = torch.where(finite[:, None, None], tensors, torch.eye(2, dtype=tensors.dtype))
    values, vectors = torch.linalg.eigh(tensors)
    # rounding must not make the smaller eigenvalue negative
    precision = torch.finfo(low.dtype).eps
    smallest = torch.maximum(values[:, 0], precision * values[:, 1])
    direction = vectors[:, :, 1]
    direction = torch.where(direction[:, :1] < 0, -direction, direction)

    def shaped(value: Tensor) -> Tensor:
        known = finite if value.ndim == 1 else finite[:, None]
        value = torch.where(known, value, torch.nan)
        return value.reshape(resolution, resolution, *value.shape[1:])

    return Landscape(
        first=first,
        second=second,
        magnification=shaped((smallest * values[:, 1]).clamp_min(0.0).sqrt()),
        condition=shaped(values[:, 1] / smallest),
        direction=shaped(direction),
        stretch=shaped(values[:, 1].clamp_min(0.0).sqrt()),
    )


def landscape(
    out: Path = Path("runs/landscape"),
    model: ModelOptions = ModelOptions(),
    data: DataOptions = DataOptions(split="test"),
    metric: MetricOptions = MetricOptions(),
    features: FeatureOptions = FeatureOptions(),
    resolution: int = 151,
    margin: float = 1.0,
    max_rows: int | None = None,
    seed: int = 0,
    dtype: Literal["float32", "float64"] = "float32",
    device: str = "auto",
    overwrite: bool = False,
    format: Formats = "png",
) -> None:
    """Draw the metric of a model with a 2-d latent space, with the data.

    Three maps: the magnification factor sqrt(det G), the condition number, and the direction in
    which the decoder stretches most.

    Parameters
    ----------
    out
        Folder for the results; it is made where it does not exist.
    model
        The model; its latent space is to have two dimensions.
    data
        The images whose codes are drawn.
    metric
        How the decoder becomes a metric.
    features
        A feature map in whose output lengths are measured.
    resolution
        Points of the grid along each axis.
    margin
        Latent units between the outermost codes and the edge of the grid.
    max_rows
        Largest number of rows sent through the decoder at once.
    seed
        Seed of the random signs of Hutchinson's estimate.
    dtype
        Floating-point type of model and codes.
    device
        "auto", "cpu", "cuda" or another device of torch.
    overwrite
        Replace the results of an earlier run in the folder.
    format
        Format of the figures, "png", "pdf" or "svg", or a list of them.
    """
    config = dict(locals())  # the options alone, as they are written to config.yaml
    check_integer("resolution", resolution, minimum=2)
    # tensors, eigenvalues, eigenvectors and the grid itself, in float64
    check_memory("resolution", resolution, 16 * 8 * resolution**2)
    began = time.perf_counter()
    check_formats(format)
    check_number("margin", margin, at_least=0.0)
    RunFolder.check(out, overwrite=overwrite)
    place = make_device(device)
    codec = make_model(model, dtype, place)
    if codec.dim != 2:
        required = "a model with two latent dimensions, which can be drawn"
        raise ValueError(requirement("model", required, f"one with {codec.dim}"))
    dataset = Dataset(data)
    images, labels = dataset.chosen
    codes = codec.encode(images)
    feature_map, accuracy = make_features(features, dataset, codec.like)
    pulled_back = codec.metric(metric, feature_map, seed).limited(max_rows)
    folder = RunFolder.create(
        out, "landscape", config, seed=seed, device=place, overwrite=overwrite
    )
    console = make_console()
    with progress_bar(console) as progress:
        task = progress.add_task(f"{resolution**2:,} metric tensors", total=1.0)
        found = measure_landscape(
            pulled_back, codes.amin(0) - margin, codes.amax(0) + margin, resolution
        )
        at_data = Rows.of(pulled_back, codes).tensor(codes)
        progress.update(task, completed=1.0)
    values = torch.linalg.eigvalsh(at_data.double())
    maps = {
        "magnification": (found.magnification, values.clamp_min(0.0).prod(1).sqrt()),
        "condition": (found.condition, values[:, 1] / values[:, 0].clamp_min(1e-12)),
        "stretch": (found.stretch, values[:, 1].clamp_min(0.0).sqrt()),
    }
    summary = {
        "maps": {
            name: {"on_the_grid": statistics(grid.flatten()), "at_the_data": statistics(data.cpu())}
            for name, (grid, data) in maps.items()
        },
        "classifier_accuracy": accuracy,
        "seconds": round(time.perf_counter() - began, 1),
    }
    arrays = {
        "first": found.first,
        "second": found.second,
        "magnification": found.magnification.float(),
        "condition": found.condition.float(),
        "direction": found.direction.float(),
        "stretch": found.stretch.float(),
        "codes": codes.float(),
        "labels": labels if labels is not None else torch.zeros(len(codes), dtype=torch.int64),
    }
    run = folder.finish(summary, arrays)
    table = make_table(
        "The metric on the grid and at the codes of the data",
        ["\nquantity", "grid\nmedian", "grid\nmax", "data\nmedian", "data\nmax"],
    )
    for name, entry in (run.summary or {})["maps"].items():
        grid, at = entry["on_the_grid"], entry["at_the_data"]
        numbers = (grid["median"], grid["max"], at["median"], at["max"])
        table.add_row(
            _NAMES[name].replace(" (", "\n("), *(number(value, ".3g") for value in numbers)
        )
    console.print(table)
    print_files(console, folder.path, plotting.save_figures(figures(run), folder.path, format))


_NAMES = {
    "magnification": plotting.MAGNIFICATION,
    "condition": "condition number",
    "stretch": "largest stretch (output units per latent unit)",
}


def figures(run: Run) -> dict[str, Figure]:
    """Draw the figures of a run from what it stored."""
    if not run.arrays:
        return {}
    arrays = {name: value.astype(float) for name, value in run.arrays.items() if name != "labels"}
    return {
        "landscape": plotting.landscape_maps(
            (arrays["first"], arrays["second"]),
            arrays["magnification"],
            arrays["condition"],
            arrays["direction"],
            arrays["stretch"],
            arrays["codes"],
            run.arrays["labels"],
        )
    }
