"""Figures from stored results, drawn without a display and without global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geolatent.files import write_file

Array = NDArray[np.float64]

STRAIGHT_COLOR = "#ffffff"
GEODESIC_COLOR = "#ff4d6d"


def save_figure(figure: Figure, path: str | Path, dpi: int = 130) -> Path:
    """Render a figure to a PNG file, which is written whole or not at all."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return write_file(path, buffer.getvalue())


def image_strips(
    straight: Array, geodesic: Array, titles: Sequence[str], value_range: tuple[float, float]
) -> Figure:
    """Draw decoded images along straight lines, each row above that along the geodesic.

    Parameters
    ----------
    straight, geodesic
        Images, (B, T, height, width) or (B, T, height, width, 3), from start to end.
    titles
        One line for each pair.
    value_range
        Values drawn black and white.
    """
    n_pairs, n_images = straight.shape[:2]
    height = 1.95 * n_pairs + 0.8
    figure = Figure(figsize=(0.78 * n_images + 1.3, height))
    outer = figure.add_gridspec(
        n_pairs, 1, hspace=0.25, top=1.0 - 0.3 / height, bottom=0.5 / height
    )
    for pair, title in enumerate(titles):
        inner = outer[pair].subgridspec(2, n_images, wspace=0.04, hspace=0.04)
        for row, (name, images) in enumerate((("straight", straight), ("geodesic", geodesic))):
            for column in range(n_images):
                axes = figure.add_subplot(inner[row, column])
                low, high = value_range
                axes.imshow(images[pair, column], cmap="gray", vmin=low, vmax=high)
                axes.set_xticks([])
                axes.set_yticks([])
                if column == 0:
                    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
                    if row == 0:
                        axes.set_title(title, loc="left", fontsize=10)
                if row == 1 and pair == n_pairs - 1:
                    axes.set_xlabel(f"{column / (n_images - 1):.2f}", fontsize=8)
    figure.text(0.5, 0.12 / height, "curve parameter t", ha="center", va="center", fontsize=9)
    return figure


def latent_plane(
    axes_values: tuple[Array, Array],
    magnification: Array,
    codes: Array,
    labels: NDArray[np.int64],
    straight: Array,
    geodesic: Array,
) -> Figure:
    """Draw a 2-d latent space: magnification factor, data, straight lines and geodesics.

    Parameters
    ----------
    axes_values
        Values of z_1 and z_2 of the grid's columns and rows.
    magnification
        sqrt(det G) on the grid, (rows, columns).
    codes, labels
        Codes of the data, (n, 2), and their classes.
    straight, geodesic
        Points along the curves, (B, T, 2).
    """
    figure = Figure(figsize=(9.2, 7.4))
    axes = figure.add_subplot()
    first, second = axes_values
    image = axes.imshow(
        np.log10(np.maximum(magnification, np.finfo(np.float64).tiny)),
        extent=(first[0], first[-1], second[0], second[-1]),
        origin="lower",
        aspect="equal",
        cmap="viridis",
        interpolation="bilinear",
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label(r"magnification factor $\log_{10}\sqrt{\det G}$ (output units squared)")
    colors = _class_colors()
    for label in np.unique(labels):
        chosen = codes[labels == label]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=7,
            color=colors[int(label) % len(colors)],
            alpha=0.75,
            linewidths=0,
            label=str(label),
        )
    for number, (line, curve) in enumerate(zip(straight, geodesic, strict=True)):
        names = ("straight line", "geodesic") if number == 0 else ("", "")
        axes.plot(*line.T, color=STRAIGHT_COLOR, lw=1.3, ls="--", label=names[0] or None)
        axes.plot(*curve.T, color=GEODESIC_COLOR, lw=2.0, label=names[1] or None)
        ends = np.stack([curve[0], curve[-1]])
        axes.scatter(*ends.T, s=34, color="white", edgecolors="black", linewidths=0.8, zorder=5)
    axes.set_xlim(first[0], first[-1])
    axes.set_ylim(second[0], second[-1])
    axes.set_xlabel("latent coordinate $z_1$")
    axes.set_ylabel("latent coordinate $z_2$")
    legend = axes.legend(
        loc="center right",
        bbox_to_anchor=(-0.1, 0.5),
        fontsize=9,
        frameon=True,
        facecolor="#4a5568",
        labelcolor="white",
        title="class, curve",
        markerscale=2.0,
    )
    legend.get_title().set_color("white")
    return figure


def _class_colors() -> list[str]:
    """Return ten colours that can be told apart on the dark background."""
    return [
        "#f4f1de",
        "#ffb703",
        "#fb8500",
        "#8ecae6",
        "#ff99c8",
        "#a3e635",
        "#c77dff",
        "#e63946",
        "#00f5d4",
        "#b08968",
    ]
