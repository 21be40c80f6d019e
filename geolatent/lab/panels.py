"""How outputs of each kind of data are drawn: images, windows of trajectories, maps of a field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from geolatent.lab.plotting import COLORS, UNKNOWN, Array, grey_or_colour
from geolatent.lab.plotting_sequences import LARGEST, MAP_COLORS, draw_map, lines_of
from geolatent.lab.sst import SCALE
from geolatent.lab.systems import SYSTEMS, System

# names of data that are no pictures
DRAWN = (*SYSTEMS, "sst")
# left, bottom, width, height, in shares of a figure
Box = tuple[float, float, float, float]
# draws the output of a number
Show = Callable[[int], None]

# grey where a map has no value
_NO_VALUE = 0.6
# inches of a picture without axes, and dots an inch of both kinds
_BARE, _BARE_DPI, _DPI = (0.8, 0.8), 90, 180


class Panels(Protocol):
    """Panels of one size that show one output of a path at a time."""

    @property
    def size(self) -> tuple[float, float]:
        """Inches, what stands beside the axes included."""
        ...

    def add(self, figure: Figure, box: Box, outputs: Array, color: str = COLORS[0]) -> Show:
        """Add a panel that shows the first of the outputs (n, ...); lines have the colour."""
        ...


def panels_for(name: str, paths: Sequence[Array]) -> Panels:
    """Return the panels of data of a name.

    Parameters
    ----------
    name
        As of `DataOptions`.
    paths
        Outputs of the paths that are to be compared, (n, channels, height, width) each.
    """
    if name in SYSTEMS:
        return _Windows.over(SYSTEMS[name], paths)
    height, width = paths[0].shape[-2:]
    return _Maps() if name == "sst" else _Images((1.5, 1.5 * height / width))


@dataclass(frozen=True)
class _Images:
    size: tuple[float, float]

    def add(self, figure: Figure, box: Box, outputs: Array, color: str = "") -> Show:  # noqa: ARG002
        images = grey_or_colour(outputs)
        axes = figure.add_axes(box)
        axes.set_axis_off()
        picture = axes.imshow(
            _shown(images[0]), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest"
        )
        return lambda number: picture.set_data(_shown(images[number]))


@dataclass(frozen=True)
class _Windows:
    """Lines over time, one coordinate below another; the first of a path stays, in grey.

    Bare panels have no ticks, no names and no first window.
    """

    system: System
    limits: Sequence[tuple[float, float]]
    bare: bool = False

    @classmethod
    def over(cls, system: System, paths: Sequence[Array], *, bare: bool = False) -> _Windows:
        """Return panels whose axes reach over all windows of all paths."""
        n_rows = len(system.coordinates)
        lines = np.concatenate([lines_of(system, path).reshape(-1, n_rows) for path in paths])
        known = lines[np.isfinite(lines).all(1)]
        known = known if len(known) else np.zeros((1, n_rows))
        margin = 0.06 * np.maximum(np.ptp(known, axis=0), 1e-6)
        low, high = known.min(0) - margin, known.max(0) + margin
        return cls(system, list(zip(low.tolist(), high.tolist(), strict=True)), bare)

    @property
    def size(self) -> tuple[float, float]:
        return _BARE if self.bare else (2.4, 0.8 * len(self.system.coordinates) + 0.4)

    def add(self, figure: Figure, box: Box, outputs: Array, color: str = COLORS[0]) -> Show:
        system, bare, n_rows = self.system, self.bare, len(self.system.coordinates)
        curves = lines_of(system, outputs)
        times = np.arange(curves.shape[1]) * system.time_step
        x, y, width, height = box
        left, below = (0.0, 0.0) if bare else (0.56 / self.size[0], 0.38 / self.size[1])
        each = height * (1 - below) / n_rows
        lines = []
        for row, (coordinate, limits) in enumerate(
            zip(system.coordinates, self.limits, strict=True)
        ):
            bottom = y + height - (row + 1) * each
            part = (x + left * width, bottom, (0.97 - left) * width, 0.9 * each)
            axes = figure.add_axes(part)
            axes.set(xlim=(times[0], times[-1]), ylim=limits)
            if not bare:
                axes.plot(times, curves[0, :, row], color="0.8", lw=1.0)
            lines += axes.plot(times, curves[0, :, row], color=color, lw=1.3)
            if bare:
                axes.set(xticks=[], yticks=[])
                continue
            axes.tick_params(labelsize=6, length=2, pad=1, labelbottom=row == n_rows - 1)
            axes.grid(alpha=0.3)
            axes.set_ylabel(coordinate.replace(" (", "\n("), fontsize=6, labelpad=1)
            axes.yaxis.set_label_coords(-0.17, 0.5)
            if row == n_rows - 1:
                axes.set_xlabel(system.time_name, fontsize=6, labelpad=1)

        def show(number: int) -> None:
            for row, line in enumerate(lines):
                line.set_ydata(curves[number, :, row])

        return show


@dataclass(frozen=True)
class _Maps:
    size: tuple[float, float] = (2.9, 1.75)

    def add(self, figure: Figure, box: Box, outputs: Array, color: str = "") -> Show:  # noqa: ARG002
        x, y, width, height = box
        axes = figure.add_axes((x + 0.16 * width, y + 0.22 * height, 0.62 * width, 0.75 * height))
        picture = draw_map(axes, outputs[0, 0])
        axes.tick_params(labelsize=6, length=2, pad=1)
        axes.set_xlabel("longitude (°E)", fontsize=6, labelpad=1)
        axes.set_ylabel("latitude (°N)", fontsize=6, labelpad=1)
        beside = figure.add_axes((x + 0.8 * width, y + 0.22 * height, 0.025 * width, 0.75 * height))
        scale = ScalarMappable(picture.norm, picture.get_cmap())
        bar = figure.colorbar(scale, cax=beside, extend="both")
        bar.ax.tick_params(labelsize=6, length=2, pad=1)
        bar.set_label("anomaly (K)", fontsize=6, labelpad=1)
        return lambda number: picture.set_data(SCALE * outputs[number, 0])


def _shown(image: Array) -> Array:
    """Return an image in [0, 1]; grey where it is not finite."""
    if np.isfinite(image).all():
        return np.clip((image + 1.0) / 2.0, 0.0, 1.0)
    return np.full_like(image, int(UNKNOWN[1:3], 16) / 255.0)


def pictures_of(name: str, outputs: Array, *, axes: bool = False) -> Array:
    """Return outputs of data of a name as pictures.

    Images stay what they are. Windows of trajectories become lines over time, one coordinate below
    another, and fields of temperature maps in colours, their north above.

    Parameters
    ----------
    outputs
        (..., channels, height, width).
    axes
        Whether windows and maps have axes, with names and units, beside them.

    Returns
    -------
    Array
        (..., 1 or 3, H, W), in [-1, 1]. Where maps are not finite they are grey.
    """
    if name not in DRAWN:
        return outputs
    flat = outputs.reshape(-1, *outputs.shape[-3:])
    if axes:
        # each alone: these are of no path, whose first would stay
        panels = panels_for(name, [flat])
        pictures = np.concatenate([_rendered(panels, each[None], _DPI) for each in flat])
    elif name == "sst":
        fields = flat[:, 0, ::-1]
        colours = colormaps[MAP_COLORS]((SCALE * fields + LARGEST) / (2 * LARGEST))[..., :3]
        colours = np.where(np.isfinite(fields)[..., None], colours, _NO_VALUE)
        pictures = np.moveaxis(2.0 * colours - 1.0, -1, 1)
    else:
        panels = _Windows.over(SYSTEMS[name], [flat], bare=True)
        pictures = _rendered(panels, flat, _BARE_DPI)
    return pictures.reshape(*outputs.shape[:-3], *pictures.shape[1:])


def _rendered(panels: Panels, outputs: Array, dpi: int) -> Array:
    """Return what a panel shows of outputs (n, channels, height, width), (n, 3, H, W)."""
    figure = Figure(figsize=panels.size, dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    show = panels.add(figure, (0.0, 0.0, 1.0, 1.0), outputs)
    pictures = []
    for number in range(len(outputs)):
        show(number)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        pictures.append(np.moveaxis(pixels / 127.5 - 1.0, -1, 0))
    return np.stack(pictures)
