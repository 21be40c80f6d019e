"""Figures from stored results, drawn without a display and without global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from geolatent.checks import check_choice, describe, requirement
from geolatent.files import write_file
from geolatent.lab.config import FORMATS, Formats, check_formats
from geolatent.lab.contents import record_files

Array = NDArray[np.float64]

STRAIGHT_COLOR = "#ffffff"
GEODESIC_COLOR = "#ff4d6d"

# sqrt(det G), the same everywhere
MAGNIFICATION = "magnification factor √det G (output unitsᵈ per latent unitᵈ)"
_MAGNIFICATION_LABEL = (
    "magnification factor $\\sqrt{\\det G}$\n(output units$^d$ per latent unit$^d$)"
)

# inches: what strips of images fit into
_PAGE = (7.4, 10.4)
_LARGEST_IMAGE, _SMALLEST_IMAGE = 0.62, 0.28
_IMAGES_IN_A_LINE = 13
# points beyond which a scatter is pixels in PDF and SVG files
RASTERIZED = 3000
# of what is not finite
UNKNOWN = "#c8c8c8"
# groups of pairs, curves, models: Okabe and Ito's colours, told apart by all eyes
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b0a500")
LINES = ("-", "--", "-.", ":")
# of classes on a dark ground
_LIGHT_COLORS = (
    *("#f4f1de", "#ffb703", "#fb8500", "#8ecae6", "#ff99c8"),
    *("#a3e635", "#c77dff", "#e63946", "#00f5d4", "#b08968"),
)


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Render a figure to a PNG, PDF or SVG file, which is written whole or not at all.

    The file's ending says which. In PDF and SVG text stays text and images are pixels.
    """
    kind = Path(path).suffix.lstrip(".").lower()
    check_choice("path", kind, FORMATS)
    # the same figure makes the same file
    metadata = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    buffer = io.BytesIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "geolatent"}
    ):
        figure.savefig(
            buffer,
            format=kind,
            dpi=dpi,
            bbox_inches="tight",
            pad_inches=0.08,
            facecolor="white",
            metadata=metadata,
        )
    return write_file(path, buffer.getvalue())


def save_figures(
    figures: Mapping[str, Figure], folder: str | Path, formats: Formats = "png"
) -> list[Path]:
    """Render figures to ``folder/figures/NAME.FORMAT``, recorded there; return their paths."""
    paths = {
        f"figures/{name}.{ending}": figure
        for name, figure in figures.items()
        for ending in check_formats(formats)
    }
    record_files(Path(folder), paths)
    return [save_figure(figure, Path(folder) / path) for path, figure in paths.items()]


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of so many inches with one panel."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def label_plane(axes: Axes) -> None:
    """Name the coordinates of a 2-d latent space, which has the same scale along both."""
    axes.set_xlabel("latent coordinate $z_1$")
    axes.set_ylabel("latent coordinate $z_2$")
    axes.set_aspect("equal")


def grey_or_colour(images: Array) -> Array:
    """Move the channels of images (..., channels, height, width) to where they are drawn.

    Grey images lose their channel, colour images have it last.
    """
    channels = images.shape[-3]
    if channels not in (1, 3):
        required = "images of one or three channels"
        raise ValueError(requirement("images", required, describe(images)))
    return images[..., 0, :, :] if channels == 1 else np.moveaxis(images, -3, -1)


def _show(axes: Axes, images: Array) -> None:
    """Draw images beside one another, as `grey_or_colour` gives them, centred at 0, 1, ...

    One that is not finite is a grey field with a cross.
    """
    height, width = images[0].shape[:2]
    for place, image in enumerate(images):
        extent = (place - 0.49, place + 0.49, -0.49 * height / width, 0.49 * height / width)
        if not np.isfinite(image).all():
            axes.imshow([[0.0]], cmap=ListedColormap([UNKNOWN]), extent=extent)
            axes.plot(place, 0.0, "x", color="#5a5a5a", ms=9, mew=1.6)
        else:
            # colour images have no colour map
            shown = np.clip((image + 1.0) / 2.0, 0.0, 1.0)
            axes.imshow(
                shown, cmap="gray", vmin=0.0, vmax=1.0, extent=extent, interpolation="nearest"
            )
    axes.set_xlim(-0.5, len(images) - 0.5)
    axes.set_ylim(-0.5 * height / width, 0.5 * height / width)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def image_strips(
    sequences: Mapping[str, Array],
    titles: Sequence[str],
    place: Array | None = None,
    place_name: str = "curve parameter t",
) -> Figure:
    """Draw sequences of images of each pair below one another, from start to end.

    Long sequences go on in another line. As many pairs as an experiment shows by default fit a
    page.

    Parameters
    ----------
    sequences
        Images in [-1, 1] by the name of the curve, (B, T, channels, height, width). Those that are
        not finite are grey fields with a cross.
    titles
        One line for each pair.
    place, place_name
        Where each image is on its curve, (T,), equal steps from 0 to 1 by default; and what that
        is called.
    """
    sequences = {name: grey_or_colour(images) for name, images in sequences.items()}
    first = next(iter(sequences.values()))
    n_pairs, n_images = first.shape[:2]
    place = np.linspace(0.0, 1.0, n_images) if place is None else place
    n_lines = -(-n_images // _IMAGES_IN_A_LINE)
    columns = -(-n_images // n_lines)
    blocks = [range(i, min(i + columns, n_images)) for i in range(0, n_images, columns)]
    n_rows, ratio = len(sequences), first.shape[2] / first.shape[3]
    # inches: names left of the images, a title above each pair, numbers below
    beside, above, below, at_end = 0.075 * max(map(len, sequences)) + 0.2, 0.27, 0.2, 0.25
    n_numbers = 1 if n_lines == 1 else n_pairs * n_lines
    rest = n_pairs * above + n_numbers * below + at_end
    size = min(
        _LARGEST_IMAGE,
        (_PAGE[0] - beside) / columns,
        (_PAGE[1] - rest) / (n_pairs * n_lines * n_rows * ratio),
    )
    size = max(size, _SMALLEST_IMAGE)
    width = beside + columns * size
    height = rest + n_pairs * n_lines * n_rows * size * ratio
    figure = Figure(figsize=(width, height))
    top = height
    for pair, title in enumerate(titles):
        figure.text(0.02 / width, (top - 0.17) / height, title, fontsize=9)
        top -= above
        for block in blocks:
            for row, (name, images) in enumerate(sequences.items()):
                top -= size * ratio
                box = (
                    beside / width,
                    top / height,
                    len(block) * size / width,
                    size * ratio / height,
                )
                axes = figure.add_axes(box)
                _show(axes, images[pair, block.start : block.stop])
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
                if row == n_rows - 1 and (n_lines > 1 or pair == n_pairs - 1):
                    numbers = [f"{place[number]:.3g}" for number in block]
                    axes.set_xticks(range(len(block)), numbers, fontsize=8)
                    axes.tick_params(length=0, pad=2)
                    top -= below
    center = (beside + 0.5 * columns * size) / width
    figure.text(center, 0.1 / height, place_name, ha="center", va="center", fontsize=9)
    return figure


def image_grid(images: Array, columns: int = 10) -> Figure:
    """Draw images in [-1, 1], (n, channels, height, width), in rows."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[-2:]
    figure = Figure(figsize=(0.9 * columns, 0.9 * rows * height / width))
    grid = figure.add_gridspec(rows, columns, wspace=0.05, hspace=0.05)
    for number, image in enumerate(grey_or_colour(images)):
        _show(figure.add_subplot(grid[number // columns, number % columns]), image[None])
    return figure


def _known(values: Array) -> Array:
    return values[np.isfinite(values)]


def _counted(values: Array) -> str:
    """Return how many pairs there are, and how many of them are not known."""
    lost = int((~np.isfinite(values)).sum())
    return f"{len(values)} pairs" + (f", {lost} of them not finite" if lost else "")


def improvement_histograms(groups: Mapping[str, Array]) -> Figure:
    """Draw the histograms of the relative improvements of groups of pairs below one another."""
    n_groups = len(groups)
    figure = Figure(figsize=(7.0, 0.7 + 1.8 * n_groups), layout="constrained")
    panels = figure.subplots(n_groups, 1, squeeze=False, sharex=True)[:, 0]
    highest = max(float(_known(values).max(initial=0.0)) for values in groups.values())
    bins = np.linspace(0.0, 100.0 * max(highest, 1e-3), 31)
    for number, (axes, (name, values)) in enumerate(zip(panels, groups.items(), strict=True)):
        percent = 100.0 * _known(values)
        text = f"{name}: {_counted(values)}"
        if percent.size:
            axes.hist(percent, bins=bins, color=COLORS[number % len(COLORS)], alpha=0.85)
            std = float(percent.std(ddof=1)) if percent.size > 1 else 0.0
            axes.axvline(percent.mean(), color="black", lw=1.4)
            text += f"; mean {percent.mean():.2f} % (line), std {std:.2f} %"
        axes.set_title(text, loc="left", fontsize=9)
        axes.set_ylabel("pairs")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    panels[-1].set_xlabel("relative length improvement over the straight line (%)")
    return figure


def improvement_by_step(groups: Mapping[float, Array]) -> Figure:
    """Draw the relative improvement against the step size: mean, quartiles, 5 and 95 %."""
    percent = {step: 100.0 * _known(groups[step]) for step in sorted(groups)}
    steps = [step for step, values in percent.items() if values.size]
    figure, axes = panel(6.2, 4.2)
    quantiles = (0.05, 0.25, 0.75, 0.95)
    levels = np.array([np.quantile(percent[s], quantiles) for s in steps]).reshape(-1, 4)
    means = [float(percent[s].mean()) for s in steps]
    for low, high, alpha, label in ((0, 3, 0.15, "5 to 95 %"), (1, 2, 0.3, "25 to 75 %")):
        band = levels[:, low], levels[:, high]
        axes.fill_between(steps, *band, color=COLORS[0], alpha=alpha, label=label)
    axes.plot(steps, means, "o-", color=COLORS[0], label="mean")
    for step, mean in zip(steps, means, strict=True):
        text = f"{mean:.1f} %"
        axes.annotate(text, (step, mean), (0, 8), textcoords="offset points", ha="center")
    axes.margins(x=0.1)
    axes.set_xticks(list(percent))
    axes.set_xlabel("step along the largest eigenvector of the metric (latent units)")
    axes.set_ylabel("relative length improvement (%)")
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return figure


def before_and_after(straight: Array, geodesic: Array, quantity: str) -> Figure:
    """Draw a quantity of each pair's geodesic against that of its straight line."""
    figure, axes = panel(5.2, 5.2)
    known = np.isfinite(straight) & np.isfinite(geodesic)
    first, second = straight[known], geodesic[known]
    axes.scatter(first, second, s=20, alpha=0.7, linewidths=0, color=COLORS[0], label="pairs")
    if first.size:
        both = np.concatenate([first, second])
        margin = 0.05 * max(float(np.ptp(both)), 1e-9)
        limits = (float(both.min()) - margin, float(both.max()) + margin)
        axes.plot(limits, limits, color="0.4", lw=1.0, ls="--", label="equal")
        axes.plot(first.mean(), second.mean(), "x", color=COLORS[1], ms=10, mew=2.5, label="mean")
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.legend(loc="best")
    axes.set_aspect("equal")
    lost = "" if known.all() else f"\n{int((~known).sum())} of {known.size} pairs not known"
    axes.set_title(quantity + lost, fontsize=10)
    axes.set_xlabel("straight line")
    axes.set_ylabel("geodesic")
    axes.grid(alpha=0.3)
    return figure


def correlation_matrices(matrices: Array, sequences: Sequence[str], pairs: Sequence[str]) -> Figure:
    """Draw how alike the images of sequences are, each with each: (B, sequences, T, T)."""
    n_pairs, n_sequences = matrices.shape[:2]
    figure = Figure(figsize=(2.7 * n_sequences + 1.1, 2.7 * n_pairs + 0.5), layout="constrained")
    panels = figure.subplots(n_pairs, n_sequences, squeeze=False, sharex=True, sharey=True)
    lowest = float(_known(matrices).min(initial=0.99))
    for pair in range(n_pairs):
        for number, name in enumerate(sequences):
            axes: Axes = panels[pair, number]
            matrix = matrices[pair, number]
            image = axes.imshow(
                matrix, extent=(0, 1, 0, 1), origin="lower", cmap="viridis", vmin=lowest, vmax=1.0
            )
            axes.set_facecolor(UNKNOWN)
            known = np.isfinite(matrix).all()
            text = f"variance {matrix.var():.3f}" if known else "images not finite (grey)"
            axes.set_title(f"{name}\n{text}" if pair == 0 else text, fontsize=9)
            if number == 0:
                axes.set_ylabel(f"{pairs[pair]}\ncurve parameter t")
            if pair == n_pairs - 1:
                axes.set_xlabel("curve parameter t")
    bar = figure.colorbar(image, ax=panels, shrink=0.8)
    bar.set_label("correlation of the images")
    return figure


def norm_profiles(times: Array, norms: Mapping[str, Array], prior: tuple[float, float]) -> Figure:
    """Draw the norms of the codes along curves beside mean and deviation of the prior's.

    Of the norms (B, T) by the name of the curve the mean is drawn, and faintly those of the first
    dozen pairs, over the curve parameters (T,).
    """
    figure, axes = panel(7.0, 4.4)
    mean, deviation = prior
    axes.axhspan(max(mean - 2 * deviation, 0.0), mean + 2 * deviation, color="0.5", alpha=0.12)
    axes.axhspan(mean - deviation, mean + deviation, color="0.5", alpha=0.22)
    label = f"prior: {mean:.2f} ± {deviation:.2f}\n(bands: 1 and 2 std)"
    if deviation == 0.0:
        label = f"prior: the sphere\nof radius {mean:.2f}"
    axes.axhline(mean, color="0.3", lw=1.0, ls="--", label=label)
    for number, (name, values) in enumerate(norms.items()):
        color = COLORS[number % len(COLORS)]
        axes.plot(times, values[:12].T, color=color, lw=0.6, alpha=0.35)
        style = LINES[number % len(LINES)]
        axes.plot(times, values.mean(0), style, color=color, lw=2.4, label=f"{name}: mean")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("curve parameter t")
    axes.set_ylabel("norm of the code, $|z|$ (latent units)")
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def count_bars(counts: Mapping[str, Array], quantity: str) -> Figure:
    """Draw how many pairs have each count, one bar for each group; counts may be NaN."""
    figure, axes = panel(7.0, 4.0)
    known = {name: _known(values).astype(np.int64) for name, values in counts.items()}
    most = max(int(values.max(initial=0)) for values in known.values())
    width = 0.8 / len(counts)
    for number, (name, values) in enumerate(known.items()):
        heights = np.bincount(values, minlength=most + 1)
        places = np.arange(most + 1) + (number - (len(counts) - 1) / 2) * width
        label = f"{name}: " + (f"mean {values.mean():.2f}" if values.size else "not known")
        color = COLORS[number % len(COLORS)]
        axes.bar(places, heights, width=0.95 * width, label=label, color=color)
    axes.set_xticks(np.arange(0, most + 1, max(1, most // 12)))
    axes.set_xlabel(quantity)
    axes.set_ylabel("pairs")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=len(counts), fontsize=9)
    return figure


def improvements_compared(
    values: Mapping[str, Array], comparable: NDArray[np.bool_], threshold: float
) -> Figure:
    """Draw the relative improvements (B,) of the same pairs in several models, by their names.

    ``comparable`` are pairs whose improvements differ by at most the threshold, a fraction.
    """
    first, *others = values
    figure = Figure(figsize=(4.9 * len(others) + 0.4, 5.4), layout="constrained")
    panels = figure.subplots(1, len(others), squeeze=False)[0]
    top = 105.0 * max(float(_known(value).max(initial=0.0)) for value in values.values())
    limits = np.array([-0.02 * top, max(top, 1e-3)])
    band = 100.0 * threshold
    for axes, name in zip(panels, others, strict=True):
        axes.fill_between(limits, limits - band, limits + band, color=COLORS[2], alpha=0.15, lw=0)
        axes.plot(limits, limits, color="0.4", lw=1.0, ls="--", label="equal")
        groups = (
            (comparable, COLORS[2], "o", "comparable"),
            (~comparable, COLORS[1], "^", "not comparable"),
        )
        for chosen, color, marker, label in groups:
            axes.scatter(
                100.0 * values[first][chosen],
                100.0 * values[name][chosen],
                s=26,
                color=color,
                marker=marker,
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
        axes.legend(loc="best")
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
    height = 3.1 * float(np.clip(ratio, 0.5, 1.6)) + 0.9
    figure = Figure(figsize=(13.6, height), layout="constrained")
    panels = figure.subplots(1, 3)
    maps = (
        ("magnification factor", magnification, _MAGNIFICATION_LABEL),
        ("condition number", condition, r"condition number $\lambda_2 / \lambda_1$"),
        (
            "largest stretch (lines: its direction)",
            stretch,
            "largest stretch $\\sqrt{\\lambda_2}$\n(output units per latent unit)",
        ),
    )
    for axes, (title, values, name) in zip(panels, maps, strict=True):
        axes.set_title(title, fontsize=11)
        _map(axes, axes_values, values, name)
        label_plane(axes)
    for axes in panels[:2]:
        _classes_on_map(axes, codes, labels)
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
    _legend_of_map(figure, panels[0], "class")
    return figure


def decoded_plane(places: tuple[Array, Array], images: Array) -> Figure:
    """Draw what is decoded across a plane.

    Parameters
    ----------
    places
        Values of z_1 and z_2 of the images' columns and rows, at equal steps.
    images
        In [-1, 1], (rows, columns, channels, height, width). Those that are not finite are grey.
    """
    first, second = places
    shown = grey_or_colour(images)
    rows, columns, height, width = shown.shape[:4]
    known = np.isfinite(shown).reshape(rows, columns, -1).all(2)
    grey = int(UNKNOWN[1:3], 16) / 255.0
    cells = np.clip((shown + 1.0) / 2.0, 0.0, 1.0)
    cells[~known] = grey
    # a line between images
    line = [(0, 0), (0, 0), (0, max(1, height // 14)), (0, max(1, width // 14))]
    cells = np.pad(cells, line + [(0, 0)] * (cells.ndim - 4), constant_values=0.4)
    height, width = cells.shape[2:4]
    # z_2 grows upwards
    mosaic = cells[::-1].swapaxes(1, 2).reshape(rows * height, columns * width, *cells.shape[4:])
    both = [values for values in (first, second) if len(values) > 1]
    half = float(both[0][1] - both[0][0]) / 2 if both else 0.5
    size = 7.0 / max(rows, columns)
    figure, axes = panel(size * columns + 0.9, size * rows + 0.7)
    axes.imshow(
        mosaic,
        cmap="gray",
        vmin=0.0,
        vmax=1.0,
        interpolation="nearest",
        extent=(first[0] - half, first[-1] + half, second[0] - half, second[-1] + half),
    )
    label_plane(axes)
    return figure


def _map(axes: Axes, axes_values: tuple[Array, Array], values: Array, name: str) -> None:
    """Draw positive values on a grid by a logarithmic scale; grey where they are not finite."""
    first, second = axes_values
    positive = values[np.isfinite(values) & (values > 0)]
    top = float(positive.max()) if positive.size else 1.0
    # a few nearly singular places must not take the scale
    low = max(float(positive.min(initial=top)), 1e-12 * top)
    colors = matplotlib.colormaps["viridis"].with_extremes(bad=UNKNOWN)
    axes.set_xlim(first[0], first[-1])
    axes.set_ylim(second[0], second[-1])
    image = axes.imshow(
        np.where(values > 0, np.maximum(values, low), np.where(values == 0, low, np.nan)),
        extent=(first[0], first[-1], second[0], second[-1]),
        origin="lower",
        aspect="equal",
        cmap=colors,
        norm=LogNorm(low, top if top > low else 1.01 * low),
        interpolation="bilinear" if np.isfinite(values).all() else "nearest",
    )
    scale_beside(image, name)


def scale_beside(image: AxesImage, name: str) -> None:
    """Draw the scale of a map, as high as the map."""
    place = image.axes.inset_axes((1.03, 0.0, 0.045, 1.0))
    image.figure.colorbar(image, cax=place).set_label(name)


def _classes_on_map(axes: Axes, codes: Array, labels: NDArray[np.int64]) -> None:
    """Draw codes (n, 2) on a dark map, one colour for each class, and its name amid them."""
    for label in np.unique(labels):
        x, y = codes[labels == label].T
        axes.scatter(
            x,
            y,
            s=7,
            color=_LIGHT_COLORS[int(label) % len(_LIGHT_COLORS)],
            alpha=0.75,
            linewidths=0,
            label=str(label),
            rasterized=len(codes) > RASTERIZED,
        )
        axes.text(
            float(np.median(x)),
            float(np.median(y)),
            str(label),
            color="white",
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold",
            path_effects=[withStroke(linewidth=2.5, foreground="black")],
            clip_on=True,
        )


def _legend_of_map(figure: Figure, axes: Axes, title: str) -> None:
    """Draw the legend of a map on a dark ground below it, as its colours are light."""
    handles, names = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(len(names), 10 if len(figure.axes) > 1 else 6),
        fontsize=9,
        facecolor="#3b4252",
        labelcolor="white",
        title=title,
        markerscale=3.0,
    )
    legend.get_title().set_color("white")


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
    figure, axes = panel(8.6, 6.4)
    _map(axes, axes_values, magnification, _MAGNIFICATION_LABEL)
    _classes_on_map(axes, codes, labels)
    for number, (line, curve) in enumerate(zip(straight, geodesic, strict=True)):
        names = ("straight line", "geodesic") if number == 0 else ("", "")
        axes.plot(*line.T, color=STRAIGHT_COLOR, lw=1.3, ls="--", label=names[0] or None)
        axes.plot(*curve.T, color=GEODESIC_COLOR, lw=2.0, label=names[1] or None)
        x, y = curve[[0, -1]].T
        axes.scatter(x, y, s=34, color="white", edgecolors="black", linewidths=0.8, zorder=5)
    label_plane(axes)
    _legend_of_map(figure, axes, "class, curve")
    return figure
