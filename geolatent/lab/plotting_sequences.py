"""Figures of what is no picture: lines over time, and maps of a climate field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from geolatent.lab import plotting
from geolatent.lab.plotting import COLORS, Array
from geolatent.lab.sst import GRID, SCALE
from geolatent.lab.systems import SYSTEMS, System

# pairs that fit a page of lines, or windows beside their reconstructions
_PAIRS, _WINDOWS = 3, 6
# kelvin at the ends of the colours of maps
LARGEST, MAP_COLORS = 3.0, "RdBu_r"
_TIMES = colormaps["viridis"]


def drawn_strips(
    config: Mapping[str, Any],
    sequences: Mapping[str, Array],
    titles: Sequence[str],
    place: Array | None = None,
    place_name: str = "curve parameter t",
) -> Figure:
    """Draw what is decoded along curves, as the data of a run's config are drawn.

    Images by `geolatent.lab.plotting.image_strips`, whose parameters these are; windows of
    trajectories as lines over time, in colours from the start of a curve to its end, those of the
    first pairs; fields of temperature as maps.
    """
    name = config["data"]["name"]
    if name in SYSTEMS:
        return families(SYSTEMS[name], sequences, titles, place, place_name)
    if name == "sst":
        return maps(sequences, titles, place, place_name)
    return plotting.image_strips(sequences, titles, place, place_name)


def families(
    system: System,
    sequences: Mapping[str, Array],
    titles: Sequence[str],
    place: Array | None = None,
    place_name: str = "curve parameter t",
) -> Figure:
    """Draw windows (B, P, 1, T, k) by the names of curves: each pair's curves beside another.

    Rows are coordinates, lines the P windows of a curve.
    """
    first = next(iter(sequences.values()))
    n_pairs, n_places = min(len(first), _PAIRS), first.shape[1]
    place = np.linspace(0.0, 1.0, n_places) if place is None else place
    scale = Normalize(float(place[0]), float(place[-1]))
    n_rows = len(system.coordinates)
    figure = Figure(
        figsize=(2.5 * len(sequences) + 1.4, n_pairs * (1.35 * n_rows + 0.6)), layout="constrained"
    )
    parts = figure.subfigures(n_pairs, 1, squeeze=False)[:, 0]
    for pair, part in enumerate(parts):
        part.suptitle(titles[pair], fontsize=9, x=0.01, ha="left")
        panels = part.subplots(n_rows, len(sequences), squeeze=False, sharex=True, sharey="row")
        for column, (name, windows) in enumerate(sequences.items()):
            curves = lines_of(system, windows[pair])
            for row, coordinate in enumerate(system.coordinates):
                axes: Axes = panels[row, column]
                for value, line in zip(place, curves[:, :, row], strict=True):
                    axes.plot(_times(system, line), line, color=_TIMES(scale(value)), lw=1.0)
                axes.grid(alpha=0.3)
                axes.tick_params(labelsize=8)
                if column == 0:
                    axes.set_ylabel(coordinate, fontsize=8)
            panels[0, column].set_title(name, fontsize=9)
            panels[-1, column].set_xlabel(system.time_name, fontsize=8)
        bar = part.colorbar(ScalarMappable(scale, _TIMES), ax=panels, pad=0.01)
        bar.set_label(place_name, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return figure


def window_reconstructions(system: System, windows: Array, reconstructions: Array) -> Figure:
    """Draw windows (n, 1, T, k) and their reconstructions over time, some beside another."""
    n, n_rows = min(len(windows), _WINDOWS), len(system.coordinates)
    figure = Figure(figsize=(2.2 * n + 0.6, 1.5 * n_rows + 0.6), layout="constrained")
    panels = figure.subplots(n_rows, n, squeeze=False, sharex=True, sharey="row")
    named = (("input", windows, "-", "0.35"), ("reconstruction", reconstructions, "--", COLORS[1]))
    for name, images, style, color in named:
        curves = _coordinates(system, images[:n])
        if name == "reconstruction":
            # angles apart by whole turns are the same
            curves = _turned(system, curves, _coordinates(system, windows[:n]))
        for column in range(n):
            for row, coordinate in enumerate(system.coordinates):
                axes: Axes = panels[row, column]
                line = curves[column, :, row]
                axes.plot(_times(system, line), line, style, color=color, lw=1.6, label=name)
                axes.grid(alpha=0.3)
                if column == 0:
                    axes.set_ylabel(coordinate)
                if row == n_rows - 1:
                    axes.set_xlabel(system.time_name)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


def lines_of(system: System, windows: Array) -> Array:
    """Return what is drawn of windows (n, 1, T, k) along a path, (n, T, p).

    Angles, which whole turns do not change, go on from one window to the next.
    """
    return _turned(system, _coordinates(system, windows))


def _turned(system: System, curves: Array, others: Array | None = None) -> Array:
    """Move angles of lines (n, T, p) by whole turns next to others', or to the line before."""
    moved = curves.copy()
    for row, name in enumerate(system.coordinates):
        if "rad)" in name:
            own = np.nan_to_num(curves[:, 0, row])  # one that is not finite moves no other
            starts = np.unwrap(own) if others is None else others[:, 0, row]
            turns = np.round((starts - own) / (2 * np.pi))
            moved[..., row] += 2 * np.pi * turns[:, None]
    return moved


def _coordinates(system: System, windows: Array) -> Array:
    """Return what is drawn of windows, (n, 1, T, k) -> (n, T, p)."""
    seen = torch.from_numpy(np.array(windows[..., 0, :, :], dtype=np.float64))
    return np.asarray(system.drawn(seen).numpy())


def _times(system: System, line: Array) -> Array:
    return np.arange(len(line), dtype=np.float64) * system.time_step


def maps(
    sequences: Mapping[str, Array],
    titles: Sequence[str],
    place: Array | None = None,
    place_name: str = "curve parameter t",
    land: Array | None = None,
) -> Figure:
    """Draw fields of temperature (B, P, 1, latitudes, longitudes) by the names of curves as maps.

    At most six of the P of each curve, at equal steps, are drawn. Cells of ``land`` are grey.
    """
    first = next(iter(sequences.values()))
    n_pairs, n_places = min(len(first), _PAIRS), first.shape[1]
    place = np.linspace(0.0, 1.0, n_places) if place is None else place
    shown = np.unique(np.linspace(0, n_places - 1, min(n_places, 6)).round().astype(int))
    rows = n_pairs * len(sequences)
    figure = Figure(figsize=(1.75 * len(shown) + 1.5, 1.25 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, len(shown), squeeze=False, sharex=True, sharey=True)
    for pair in range(n_pairs):
        for number, (name, fields) in enumerate(sequences.items()):
            row = pair * len(sequences) + number
            for column, which in enumerate(shown):
                axes: Axes = panels[row, column]
                draw_map(axes, fields[pair, which, 0], land)
                if number == 0:
                    axes.set_title(f"{place_name.split()[-1]} = {place[which]:.2g}", fontsize=8)
                if row == rows - 1:
                    axes.set_xlabel("longitude (°E)", fontsize=8)
            # what stands in the title of strips after it is in the tables
            start = titles[pair].split(";")[0].replace(", ", "\n") if number == 0 else ""
            start += "\n" if start else ""
            panels[row, 0].set_ylabel(f"{start}{name}\nlatitude (°N)", fontsize=8)
    scale = ScalarMappable(Normalize(-LARGEST, LARGEST), MAP_COLORS)
    bar = figure.colorbar(scale, ax=panels, extend="both", aspect=40, pad=0.01)
    bar.set_label("sea surface temperature anomaly (K)", fontsize=9)
    return figure


def draw_map(axes: Axes, field: Array, land: Array | None = None) -> AxesImage:
    """Draw a field of temperature, (latitudes, longitudes), whose 1 is `SCALE` kelvin."""
    south, north, west, east = GRID
    kelvin = SCALE * np.asarray(field)
    if land is not None:
        kelvin = np.where(land, np.nan, kelvin)
    axes.set_facecolor("0.6")
    axes.tick_params(labelsize=7)
    return axes.imshow(
        kelvin,
        extent=(west, east, south, north),
        origin="lower",
        cmap=MAP_COLORS,
        vmin=-LARGEST,
        vmax=LARGEST,
        aspect="auto",
    )


def map_reconstructions(fields: Array, reconstructions: Array) -> Figure:
    """Draw fields (n, 1, latitudes, longitudes) above their reconstructions as maps."""
    n = min(len(fields), _WINDOWS)
    rows = {"test winter": fields[None, :n], "reconstruction": reconstructions[None, :n]}
    return maps(rows, [""], np.arange(n, dtype=float), "winter")
