"""Figures from stored results, drawn without a display and without global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from geolatent.checks import describe, requirement
from geolatent.files import record_files, write_file

Array = NDArray[np.float64]

STRAIGHT_COLOR = "#ffffff"
GEODESIC_COLOR = "#ff4d6d"


def save_figure(figure: Figure, path: str | Path, dpi: int = 130) -> Path:
    """Render a figure to a PNG file, which is written whole or not at all."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return write_file(path, buffer.getvalue())


def save_figures(figures: Mapping[str, Figure], folder: str | Path) -> list[Path]:
    """Render figures to ``folder/figures/NAME.png``, recorded there, and return their paths."""
    paths = {f"figures/{name}.png": figure for name, figure in figures.items()}
    record_files(Path(folder), paths)
    return [save_figure(figure, Path(folder) / path) for path, figure in paths.items()]


def grey_or_colour(images: Array) -> Array:
    """Move the channels of images (..., channels, height, width) to where they are drawn.

    Grey images lose their channel, colour images have it last.

    Raises
    ------
    ValueError
        If there are neither one nor three channels.
    """
    channels = images.shape[-3]
    if channels not in (1, 3):
        required = "images of one or three channels"
        raise ValueError(requirement("images", required, describe(images)))
    return images[..., 0, :, :] if channels == 1 else np.moveaxis(images, -3, -1)


def _show(axes: Axes, image: Array, value_range: tuple[float, float]) -> None:
    """Draw an image, (height, width) or (height, width, 3), without ticks."""
    low, high = value_range
    if image.ndim == 3:
        axes.imshow(np.clip((image - low) / (high - low), 0.0, 1.0))
    else:
        axes.imshow(image, cmap="gray", vmin=low, vmax=high)
    axes.set_xticks([])
    axes.set_yticks([])


def image_strips(
    sequences: Mapping[str, Array], titles: Sequence[str], value_range: tuple[float, float]
) -> Figure:
    """Draw sequences of images of each pair below one another, from start to end.

    Parameters
    ----------
    sequences
        Images by the name of the curve, (B, T, height, width) or (B, T, height, width, 3).
    titles
        One line for each pair.
    value_range
        Values drawn black and white.
    """
    n_pairs, n_images = next(iter(sequences.values())).shape[:2]
    n_rows = len(sequences)
    height = (0.78 * n_rows + 0.4) * n_pairs + 0.8
    label_width = 0.085 * max(map(len, sequences)) + 0.5
    width = 0.78 * n_images + label_width
    figure = Figure(figsize=(width, height))
    outer = figure.add_gridspec(
        n_pairs,
        1,
        hspace=0.38 / (0.78 * n_rows),
        top=1.0 - 0.35 / height,
        bottom=0.55 / height,
        left=label_width / width,
        right=0.99,
    )
    for pair, title in enumerate(titles):
        inner = outer[pair].subgridspec(n_rows, n_images, wspace=0.04, hspace=0.04)
        for row, (name, images) in enumerate(sequences.items()):
            for column in range(n_images):
                axes = figure.add_subplot(inner[row, column])
                _show(axes, images[pair, column], value_range)
                if column == 0:
                    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
                    if row == 0:
                        axes.set_title(title, loc="left", fontsize=10)
                if row == n_rows - 1 and pair == n_pairs - 1:
                    axes.set_xlabel(f"{column / (n_images - 1):.2f}", fontsize=8)
    center = (label_width + 0.39 * n_images) / width
    figure.text(center, 0.14 / height, "curve parameter t", ha="center", va="center", fontsize=9)
    return figure


def image_grid(images: Array, value_range: tuple[float, float], columns: int = 10) -> Figure:
    """Draw images, (n, height, width) or (n, height, width, 3), in rows."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(0.9 * columns, 0.9 * rows))
    grid = figure.add_gridspec(rows, columns, wspace=0.05, hspace=0.05)
    for number, image in enumerate(images):
        _show(figure.add_subplot(grid[number // columns, number % columns]), image, value_range)
    return figure


def improvement_histograms(groups: Mapping[str, Array]) -> Figure:
    """Draw the histograms of the relative improvements of groups of pairs below one another."""
    n_groups = len(groups)
    figure = Figure(figsize=(7.0, 1.2 + 1.7 * n_groups), layout="constrained")
    panels = figure.subplots(n_groups, 1, squeeze=False, sharex=True)[:, 0]
    highest = max(float(np.nanmax(values)) for values in groups.values())
    bins = np.linspace(0.0, 100.0 * max(highest, 1e-3), 31)
    for number, (axes, (name, values)) in enumerate(zip(panels, groups.items(), strict=True)):
        percent = 100.0 * values
        axes.hist(percent, bins=bins, color=f"C{number % 10}", alpha=0.85)
        mean = float(np.nanmean(percent))
        std = float(np.nanstd(percent, ddof=1)) if len(values) > 1 else 0.0
        axes.axvline(mean, color="black", lw=1.4)
        text = f"{name}\nmean {mean:.2f} %, std {std:.2f} %\n{len(values)} pairs"
        axes.text(0.98, 0.92, text, ha="right", va="top", transform=axes.transAxes, fontsize=9)
        axes.set_ylabel("pairs")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("relative length improvement over the straight line (%)")
    return figure


def improvement_by_step(groups: Mapping[float, Array]) -> Figure:
    """Draw the relative improvement against the step size: mean, quartiles, 5 and 95 %."""
    steps = sorted(groups)
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    levels = np.array([np.quantile(100.0 * groups[s], (0.05, 0.25, 0.75, 0.95)) for s in steps])
    means = [100.0 * float(np.mean(groups[s])) for s in steps]
    axes.fill_between(steps, levels[:, 0], levels[:, 3], color="C0", alpha=0.15, label="5 to 95 %")
    axes.fill_between(steps, levels[:, 1], levels[:, 2], color="C0", alpha=0.3, label="25 to 75 %")
    axes.plot(steps, means, "o-", color="C0", label="mean")
    for step, mean in zip(steps, means, strict=True):
        text = f"{mean:.1f} %"
        axes.annotate(text, (step, mean), (0, 8), textcoords="offset points", ha="center")
    axes.margins(x=0.1)
    axes.set_xticks(steps)
    axes.set_xlabel("step along the largest eigenvector of the metric (latent units)")
    axes.set_ylabel("relative length improvement (%)")
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return figure


def before_and_after(straight: Array, geodesic: Array, quantity: str) -> Figure:
    """Draw a quantity of each pair's geodesic against that of its straight line."""
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    known = np.isfinite(straight) & np.isfinite(geodesic)
    first, second = straight[known], geodesic[known]
    axes.scatter(first, second, s=18, alpha=0.7, linewidths=0)
    if first.size:
        both = np.concatenate([first, second])
        margin = 0.05 * max(float(np.ptp(both)), 1e-9)
        limits = (float(both.min()) - margin, float(both.max()) + margin)
        axes.plot(limits, limits, color="0.4", lw=1.0, ls="--", label="equal")
        axes.plot(first.mean(), second.mean(), "x", color="C3", ms=10, mew=2.5, label="mean")
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.legend(loc="best")
    axes.set_aspect("equal")
    axes.set_title(quantity, fontsize=10)
    axes.set_xlabel("straight line")
    axes.set_ylabel("geodesic")
    axes.grid(alpha=0.3)
    return figure


def correlation_matrices(matrices: Array, sequences: Sequence[str], pairs: Sequence[str]) -> Figure:
    """Draw how alike the images of sequences are, each with each.

    Parameters
    ----------
    matrices
        Correlation matrices, (B, sequences, T, T).
    sequences, pairs
        Names of the sequences and of the pairs.
    """
    n_pairs, n_sequences = matrices.shape[:2]
    figure = Figure(figsize=(2.7 * n_sequences + 1.1, 2.7 * n_pairs + 0.5), layout="constrained")
    panels = figure.subplots(n_pairs, n_sequences, squeeze=False, sharex=True, sharey=True)
    lowest = float(matrices.min())
    for pair in range(n_pairs):
        for number, name in enumerate(sequences):
            axes: Axes = panels[pair, number]
            matrix = matrices[pair, number]
            image = axes.imshow(
                matrix, extent=(0, 1, 0, 1), origin="lower", cmap="viridis", vmin=lowest, vmax=1.0
            )
            text = f"variance {matrix.var():.3f}"
            axes.set_title(f"{name}\n{text}" if pair == 0 else text, fontsize=9)
            if number == 0:
                axes.set_ylabel(f"{pairs[pair]}\ncurve parameter t")
            if pair == n_pairs - 1:
                axes.set_xlabel("curve parameter t")
    bar = figure.colorbar(image, ax=panels, shrink=0.8)
    bar.set_label("correlation of the images")
    return figure


def norm_profiles(times: Array, norms: Mapping[str, Array], prior: tuple[float, float]) -> Figure:
    """Draw the norms of the codes along curves beside those of codes from the prior N(0, I).

    Parameters
    ----------
    times
        Curve parameters, (T,).
    norms
        Norms by the name of the curve, (B, T) each: their mean is drawn, and faintly those of the
        first dozen pairs.
    prior
        Mean and standard deviation of the prior's norm.
    """
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    mean, deviation = prior
    axes.axhspan(max(mean - 2 * deviation, 0.0), mean + 2 * deviation, color="0.5", alpha=0.12)
    axes.axhspan(mean - deviation, mean + deviation, color="0.5", alpha=0.22)
    label = f"prior: {mean:.2f} ± {deviation:.2f}\n(bands: 1 and 2 std)"
    axes.axhline(mean, color="0.3", lw=1.0, ls="--", label=label)
    for number, (name, values) in enumerate(norms.items()):
        axes.plot(times, values[:12].T, color=f"C{number}", lw=0.6, alpha=0.35)
        axes.plot(times, values.mean(0), color=f"C{number}", lw=2.4, label=f"{name}: mean")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("curve parameter t")
    axes.set_ylabel("norm of the code, $|z|$ (latent units)")
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def count_bars(counts: Mapping[str, NDArray[np.int64]], quantity: str) -> Figure:
    """Draw how many pairs have each count, one bar for each group."""
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    most = max(int(values.max()) for values in counts.values())
    width = 0.8 / len(counts)
    for number, (name, values) in enumerate(counts.items()):
        heights = np.bincount(values, minlength=most + 1)
        places = np.arange(most + 1) + (number - (len(counts) - 1) / 2) * width
        label = f"{name}: mean {values.mean():.2f}"
        axes.bar(places, heights, width=0.95 * width, label=label)
    axes.set_xticks(np.arange(0, most + 1, max(1, most // 12)))
    axes.set_xlabel(quantity)
    axes.set_ylabel("pairs")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=len(counts), fontsize=9)
    return figure


def improvements_compared(
    values: Mapping[str, Array], comparable: NDArray[np.bool_], threshold: float
) -> Figure:
    """Draw the relative improvements of the same pairs in several models.

    Parameters
    ----------
    values
        Relative improvements by the model's name, (B,) each.
    comparable
        Whether each pair's improvements differ by at most the threshold, (B,).
    threshold
        That threshold, a fraction.
    """
    first, *others = values
    panels_wide = len(others)
    figure = Figure(figsize=(4.9 * panels_wide + 0.4, 5.4), layout="constrained")
    panels = figure.subplots(1, panels_wide, squeeze=False)[0]
    top = 105.0 * max(float(np.nanmax(value)) for value in values.values())
    limits = np.array([-0.02 * top, max(top, 1e-3)])
    band = 100.0 * threshold
    for axes, name in zip(panels, others, strict=True):
        axes.fill_between(limits, limits - band, limits + band, color="C2", alpha=0.15, linewidth=0)
        axes.plot(limits, limits, color="0.4", lw=1.0, ls="--", label="equal")
        for chosen, color, label in ((comparable, "C2", "comparable"), (~comparable, "C0", "not")):
            axes.scatter(
                100.0 * values[first][chosen],
                100.0 * values[name][chosen],
                s=20,
                color=color,
                alpha=0.8,
                linewidths=0,
                label=f"{label}: {int(chosen.sum())} pairs",
            )
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.set_aspect("equal")
        axes.set_xlabel(f"relative improvement in {first} (%)")
        axes.set_ylabel(f"relative improvement in {name} (%)")
        axes.set_title(f"comparable: within {band:g} percentage points", fontsize=10)
        axes.legend(loc="upper left")
    return figure


def landscape_maps(
    axes_values: tuple[Array, Array],
    magnification: Array,
    condition: Array,
    direction: Array,
    stretch: Array,
    codes: Array,
    labels: NDArray[np.int64],
) -> Figure:
    """Draw a metric on a plane: magnification factor, condition number, direction of most stretch.

    Parameters
    ----------
    axes_values
        Values of z_1 and z_2 of the grid's columns and rows.
    magnification, condition, stretch
        sqrt(det G), the condition number and the root of the largest eigenvalue, (rows, columns).
    direction
        Unit eigenvectors of the largest eigenvalue, (rows, columns, 2).
    codes, labels
        Codes of the data, (n, 2), and their classes.
    """
    first, second = axes_values
    ratio = (second[-1] - second[0]) / (first[-1] - first[0])
    figure = Figure(figsize=(16.5, 4.6 * float(np.clip(ratio, 0.5, 1.6)) + 1.6))
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.38})
    maps = (
        ("magnification factor", magnification, r"$\log_{10}\sqrt{\det G}$ (output / latent area)"),
        ("condition number", condition, r"$\log_{10}(\lambda_2 / \lambda_1)$"),
        (
            "largest stretch and its direction (lines)",
            stretch,
            r"$\log_{10}\sqrt{\lambda_2}$ (output / latent units)",
        ),
    )
    for axes, (title, values, name) in zip(panels, maps, strict=True):
        axes.set_title(title)
        image = axes.imshow(
            np.log10(np.maximum(values, np.finfo(np.float64).tiny)),
            extent=(first[0], first[-1], second[0], second[-1]),
            origin="lower",
            aspect="equal",
            cmap="viridis",
            interpolation="bilinear",
        )
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
        bar.set_label(name)
        axes.set_xlabel("latent coordinate $z_1$")
        axes.set_ylabel("latent coordinate $z_2$")
        axes.set_xlim(first[0], first[-1])
        axes.set_ylim(second[0], second[-1])
    colors = _class_colors()
    for label in np.unique(labels):
        chosen = codes[labels == label]
        color = colors[int(label) % len(colors)]
        for axes in panels[:2]:
            axes.scatter(*chosen.T, s=6, color=color, alpha=0.7, linewidths=0, label=str(label))
    spacing = max(1, len(first) // 26)
    some = (slice(spacing // 2, None, spacing),) * 2
    columns, rows = np.meshgrid(first, second)
    panels[2].quiver(
        columns[some],
        rows[some],
        direction[..., 0][some],
        direction[..., 1][some],
        color="white",
        pivot="middle",
        headwidth=0,
        headlength=0,
        headaxislength=0,
        scale=34,
        width=0.0025,
    )
    panels[0].legend(
        loc="center right",
        bbox_to_anchor=(-0.18, 0.5),
        fontsize=9,
        facecolor="#4a5568",
        labelcolor="white",
        markerscale=4.0,
    )
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
        axes.scatter(
            ends[:, 0],
            ends[:, 1],
            s=34,
            color="white",
            edgecolors="black",
            linewidths=0.8,
            zorder=5,
        )
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
