"""Figures of distances, clusters and walks, from stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from geolatent.lab.plotting import COLORS, LINES, RASTERIZED, UNKNOWN, Array, label_plane, panel

# of classes and clusters: Paul Tol's "muted", told apart by all eyes with the help of the markers
_CLASS_COLORS = (
    *("#332288", "#e08214", "#117733", "#cc6677", "#88ccee"),
    *("#882255", "#ddcc77", "#44aa99", "#666666", "#aa4499"),
)
_MARKERS = "osD^vP<X>*"


def scatter_classes(
    axes: Axes, codes: Array, labels: NDArray[np.int64], size: float, alpha: float = 1.0
) -> None:
    """Draw codes (n, 2), one colour, marker and entry of the legend for each class or cluster."""
    for label in np.unique(labels):
        color = _CLASS_COLORS[int(label) % len(_CLASS_COLORS)]
        # after ten classes colours begin again, with other markers
        shift = int(label) // len(_CLASS_COLORS)
        x, y = codes[labels == label].T
        axes.scatter(
            x,
            y,
            s=size,
            color=color,
            marker=_MARKERS[(int(label) + 3 * shift) % len(_MARKERS)],
            alpha=alpha,
            linewidths=0,
            label=str(label),
            rasterized=len(codes) > RASTERIZED,
        )


def distance_matrices(
    matrices: Mapping[str, tuple[Array, str]], labels: NDArray[np.int64]
) -> Figure:
    """Draw matrices of distances (n, n) and their units, by name; codes are sorted by class."""
    figure = Figure(figsize=(4.9 * len(matrices), 4.3), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    edges = np.flatnonzero(np.diff(labels)) + 0.5
    starts = np.concatenate([[-0.5], edges, [len(labels) - 0.5]])
    names = [str(label) for label in labels[np.ceil(starts[:-1]).astype(int)]]
    for axes, (name, (matrix, unit)) in zip(panels, matrices.items(), strict=True):
        axes.set_facecolor(UNKNOWN)
        shown = np.where(np.isfinite(matrix), matrix, np.nan)
        image = axes.imshow(shown, cmap="viridis", interpolation="nearest")
        figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02).set_label(f"distance ({unit})")
        for edge in edges:
            axes.axhline(edge, color="white", lw=0.5)
            axes.axvline(edge, color="white", lw=0.5)
        middles = (starts[:-1] + starts[1:]) / 2
        axes.set_xticks(middles, names)
        axes.set_yticks(middles, names)
        axes.set_xlabel("class")
        axes.set_ylabel("class")
        lost = int((~np.isfinite(matrix)).sum()) // 2
        axes.set_title(name + (f" ({lost} not finite: grey)" if lost else ""), fontsize=11)
    return figure


def distances_compared(geodesic: Array, others: Mapping[str, tuple[Array, str]]) -> Figure:
    """Draw other distances (P,) of the same pairs, and their units, beside the geodesic ones.

    Those in the units of the geodesic distance by how much they exceed it, in per cent; others
    against it.
    """
    figure = Figure(figsize=(4.3 * len(others), 3.9), layout="constrained")
    panels = figure.subplots(1, len(others), squeeze=False)[0]
    for axes, (name, (values, unit)) in zip(panels, others.items(), strict=True):
        known = np.isfinite(geodesic) & np.isfinite(values)
        x, y = geodesic[known], values[known]
        comparable = unit == "output units"
        if comparable:
            x, y = x[x > 0], 100.0 * (y[x > 0] / x[x > 0] - 1.0)
        axes.scatter(x, y, s=10, alpha=0.5, linewidths=0, color=COLORS[0])
        if comparable:
            axes.axhline(0.0, color="black", lw=0.9, ls="--", label="equal to the geodesic")
            if y.size:
                label = f"mean {y.mean():.2f} %"
                axes.axhline(y.mean(), color=COLORS[1], lw=1.6, label=label)
            axes.set_ylabel("excess over the geodesic distance (%)")
            axes.margins(y=0.22)
            axes.legend(loc="upper right", fontsize=8)
        else:
            axes.set_ylim(bottom=0)
            axes.set_ylabel(f"{name} distance ({unit})")
        lost = int((~known).sum())
        axes.set_title(name + (f" ({lost} pairs not finite)" if lost else ""), fontsize=11)
        axes.set_xlim(left=0)
        axes.set_xlabel("geodesic distance (output units)")
        axes.grid(alpha=0.3)
    return figure


def match_clusters(clusters: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return clusters renamed to the classes that they share most codes with, one to one.

    The renaming of most codes that agree (the Hungarian method). Clusters without a class of their
    own get numbers after the classes'.

    Parameters
    ----------
    clusters, classes
        Of the same codes, (n,) each.

    References
    ----------
    Kuhn, "The Hungarian method for the assignment problem", 1955.

    Examples
    --------
    >>> match_clusters(np.array([1, 1, 0, 2, 2]), np.array([4, 4, 7, 7, 7])).tolist()
    [4, 4, 8, 7, 7]
    """
    names, cluster = np.unique(clusters, return_inverse=True)
    class_names, class_number = np.unique(classes, return_inverse=True)
    shared = np.zeros((len(names), len(class_names)))
    np.add.at(shared, (cluster, class_number), 1.0)
    rows, columns = linear_sum_assignment(shared, maximize=True)
    renamed = np.full(len(names), -1, dtype=np.int64)
    renamed[rows] = class_names[columns]
    alone = renamed < 0
    renamed[alone] = class_names.max() + 1 + np.arange(alone.sum())
    return renamed[cluster]


def cluster_maps(
    codes: Array, assignments: Mapping[str, NDArray[np.int64]], centers: Mapping[str, Array]
) -> Figure:
    """Draw codes (n, 2) coloured by classes (n,), the first assignment, and by clusters (n,).

    Clusters have the colour of the class that is matched with them; see `match_clusters`. Centres
    (K, 2) are drawn for the assignments that have any.
    """
    figure = Figure(figsize=(4.3 * len(assignments) + 1.2, 4.6), layout="constrained")
    panels = figure.subplots(1, len(assignments), squeeze=False, sharex=True, sharey=True)[0]
    classes = next(iter(assignments.values()))
    entries: dict[str, Artist] = {}
    for axes, (name, labels) in zip(panels, assignments.items(), strict=True):
        matched = labels if labels is classes else match_clusters(labels, classes)
        scatter_classes(axes, codes, matched, size=13)
        points, names = axes.get_legend_handles_labels()
        entries |= {
            (f"class {label}" if int(label) in classes else f"cluster {label}"): point
            for label, point in zip(names, points, strict=True)
        }
        if name in centers:
            axes.scatter(*centers[name].T, marker="X", s=90, color="black", edgecolors="white")
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("latent coordinate $z_1$")
        axes.set_aspect("equal")
    panels[0].set_ylabel("latent coordinate $z_2$")
    if centers:
        entries["centre"] = panels[-1].collections[-1]
    title = "classes, and\nclusters by the class\nthey match best"
    figure.legend(
        entries.values(),
        entries,
        title=title,
        loc="outside right center",
        fontsize=9,
        markerscale=1.6,
    )
    return figure


def scores_by_seed(scores: Mapping[str, Array], quantity: str) -> Figure:
    """Draw a score of several methods, a point for each seed and a line at the mean."""
    figure, axes = panel(2.2 * len(scores) + 1.4, 4.0)
    for place, values in enumerate(scores.values()):
        spread = np.linspace(-0.12, 0.12, len(values))
        color = COLORS[place % len(COLORS)]
        one, mean = ("one seed", "mean") if place == 0 else (None, "")
        axes.scatter(place + spread, values, s=26, color=color, label=one)
        axes.hlines(values.mean(), place - 0.25, place + 0.25, color=color, lw=2, label=mean)
        text = f"{values.mean():.3f}"
        axes.annotate(
            text, (place + 0.25, values.mean()), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_xticks(range(len(scores)), list(scores))
    axes.legend(loc="lower right", fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlim(-0.6, len(scores) - 0.4)
    low = min(0.0, *(float(values.min()) for values in scores.values()))
    high = max(float(values.max()) for values in scores.values())
    axes.set_ylim(1.1 * low, max(1.1 * high, 0.05))
    axes.set_ylabel(quantity)
    return figure


def _style(number: int) -> tuple[str, str]:
    """Return colour and line of a walk; lines differ where colours begin again."""
    return COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)]


def walks_in_the_plane(codes: Array, labels: NDArray[np.int64], walks: Array) -> Figure:
    """Draw walks (B, T, 2) through a 2-d latent space with the codes of the data, (n, 2).

    A dot is where a walk starts, a cross where one ends before its last step.
    """
    figure, axes = panel(7.6, 6.0)
    scatter_classes(axes, codes, labels, size=9, alpha=0.6)
    points, names = axes.get_legend_handles_labels()
    lines = []
    for number, walk in enumerate(walks):
        color, style = _style(number)
        axes.plot(*walk.T, color="white", lw=2.8)
        lines += axes.plot(*walk.T, style, color=color, lw=1.5, label=f"walk {number + 1}")
        form: dict[str, Any] = {"color": color, "edgecolors": "black", "zorder": 5}
        axes.scatter(walk[0, 0], walk[0, 1], s=45, **form)
        known = np.isfinite(walk).all(1)
        if known[0] and not known[-1]:
            last = walk[known.sum() - 1]
            axes.scatter(last[0], last[1], marker="X", s=70, **form)
    for marker, name in [("o", "start"), ("X", "ended")][: 1 + int(np.isnan(walks).any())]:
        form = {"ls": "", "marker": marker, "color": "0.6", "markeredgecolor": "black"}
        lines.append(Line2D([], [], label=name, **form))
    figure.legend(handles=lines, loc="outside right upper", fontsize=9)
    beside = {"title": "class", "fontsize": 9, "markerscale": 1.5}
    figure.legend(points, names, loc="outside right lower", **beside)
    label_plane(axes)
    return figure


def walk_curves(
    place: Array,
    place_name: str,
    curves: Mapping[str, Array],
    band: tuple[float, float] | None = None,
    names: Sequence[str] = (),
) -> Figure:
    """Draw quantities (B, T) along walks below one another, by name with unit.

    ``place`` is where the walk is, (T,). Behind the norm is a band, mean and standard deviation of
    the prior's norms.
    """
    figure = Figure(figsize=(7.4, 2.3 * len(curves) + 0.5), layout="constrained")
    panels = figure.subplots(len(curves), 1, squeeze=False, sharex=True)[:, 0]
    entries: dict[str, Artist] = {}
    for axes, (name, values) in zip(panels, curves.items(), strict=True):
        if band is not None and name.startswith("norm"):
            low, high = band[0] - band[1], band[0] + band[1]
            axes.axhspan(low, high, color="#dddddd", label="prior:\nmean ± std")
        for number, row in enumerate(values):
            label = names[number] if number < len(names) else None
            color, style = _style(number)
            axes.plot(place, row, style, color=color, lw=1.3, label=label)
        axes.set_ylabel(name.replace(" (", "\n("), fontsize=9)
        axes.set_xlim(place[0], place[-1])
        axes.grid(alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
        if (values[np.isfinite(values)] > 0).any() and name.startswith("magnification"):
            axes.set_yscale("log")
    panels[-1].set_xlabel(place_name)
    figure.align_ylabels()
    figure.legend(list(entries.values()), list(entries), loc="outside right upper", fontsize=9)
    return figure


def output_curves(place: Array, place_name: str, outputs: Array, quantity: str) -> Figure:
    """Draw outputs of the decoder (B, T, K) along walks, one panel for each walk.

    ``place`` is where the walk is, (T,). Colours tell the K outputs apart, of which the first
    varies most.
    """
    columns = min(3, len(outputs))
    rows = -(-len(outputs) // columns)
    figure = Figure(figsize=(2.9 * columns + 0.6, 2.2 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.95, outputs.shape[2]))
    for number, axes in enumerate(panels):
        if number >= len(outputs):
            axes.set_axis_off()
            continue
        for values, color in zip(outputs[number].T, colors, strict=True):
            axes.plot(place, values, color=color, lw=1.0)
        axes.grid(alpha=0.3)
        axes.set_title(f"walk {number + 1}", fontsize=10)
        if number % columns == 0:
            axes.set_ylabel(quantity)
        if number + columns >= len(outputs):
            axes.set_xlabel(place_name)
            axes.tick_params(labelbottom=True)
    return figure


def compared_paths(entries: Mapping[tuple[str, bool], Mapping[str, Any]], first: str) -> Figure:
    """Draw measures of several paths, one panel each, as `paired_comparison` gives them.

    Parameters
    ----------
    entries
        Comparisons by (title of the measure, whether less is better).
    first
        The path that the others are compared with.
    """
    columns = min(4, len(entries))
    rows = -(-len(entries) // columns)
    names = list(next(iter(entries.values()))["paths"])
    figure = Figure(
        figsize=(3.3 * columns, (0.3 * len(names) + 1.15) * rows + 0.5), layout="constrained"
    )
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    places = np.arange(len(names))
    for axes, ((title, lower), entry) in zip(panels, entries.items(), strict=False):
        paths, best = entry["paths"], entry["best"]
        means = np.array([paths[name]["mean"] for name in names], dtype=np.float64)
        bars = 1.96 * np.array([paths[name]["error"] for name in names], dtype=np.float64)
        axes.axvline(means[names.index(first)], color="0.5", lw=1.0, ls="--")
        for place, name in zip(places, names, strict=True):
            axes.errorbar(
                means[place],
                place,
                xerr=None if name == first or not np.isfinite(bars[place]) else bars[place],
                fmt="o",
                color=COLORS[place % len(COLORS)],
                markerfacecolor=None if name in best else "white",
                ms=7,
                capsize=3,
                lw=1.5,
            )
        axes.margins(x=0.12)
        arrow = "← less is better" if lower else "more is better →"
        text, _, unit = title.partition(" (")
        axes.set_title(f"{text}\n{arrow}", fontsize=9)
        axes.set_xlabel(unit.rstrip(")"), fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(places, names, fontsize=9)
    for axes in panels[len(entries) :]:
        axes.set_axis_off()
    n = min(entry["n"] for entry in entries.values())
    figure.supxlabel(
        f"Means of {n} pairs. Bars: 95 % interval of the pairs' differences from the {first} line "
        "(dashed). Filled: best, or within two standard errors of it.",
        fontsize=9,
    )
    return figure


def class_answers(
    place: Array,
    place_name: str,
    probabilities: Mapping[str, Array],
    names: Sequence[str],
    classes: Sequence[tuple[int, int]],
) -> Figure:
    """Draw the probabilities of two classes along attributes, one panel each.

    Parameters
    ----------
    place, place_name
        Where, (T,), and what that is called.
    probabilities
        By how attributes are followed, (K, T, classes).
    names
        Of the K attributes, "A to B".
    classes
        Positions of A and B among the classes.
    """
    figure = Figure(figsize=(3.4 * len(names) + 1.6, 3.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    entries: dict[str, Artist] = {}
    for axes, name, pair, number in zip(panels, names, classes, range(len(names)), strict=True):
        for follow, (how, values) in enumerate(probabilities.items()):
            for side, word in enumerate(("first class", "second class")):
                (line,) = axes.plot(
                    place,
                    values[number, :, pair[side]],
                    LINES[follow],
                    color=COLORS[side],
                    marker="o",
                    ms=3.5,
                )
                entries[f"{word}, {how}"] = line
        axes.axvline(0.0, color="0.6", lw=0.8)
        axes.set_title(f"class {name}", fontsize=10)
        axes.set_xlabel(place_name.replace(" (", "\n("), fontsize=9)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("probability by the classifier")
    figure.legend(list(entries.values()), list(entries), loc="outside right upper", fontsize=9)
    return figure
