"""Figures of distances, clusters and walks, from stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geolatent.plotting import Array

# of walks and methods
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def _scatter_classes(
    axes: Axes, codes: Array, labels: NDArray[np.int64], size: float, alpha: float = 1.0
) -> None:
    """Draw codes (n, 2), one colour and one entry of the legend for each class or cluster."""
    present = np.unique(labels)
    colors = matplotlib.colormaps["tab10" if len(present) <= 10 else "tab20"]
    for place, label in enumerate(present):
        color = colors(place % colors.N)
        one = codes[labels == label]
        axes.scatter(
            one[:, 0],
            one[:, 1],
            s=size,
            color=color,
            alpha=alpha,
            linewidths=0,
            label=str(label),
        )


def distance_matrices(
    matrices: Mapping[str, tuple[Array, str]], labels: NDArray[np.int64]
) -> Figure:
    """Draw matrices of distances between codes that are sorted by class.

    Parameters
    ----------
    matrices
        A matrix (n, n) and its unit, by name.
    labels
        Classes of the codes, sorted, (n,).
    """
    figure = Figure(figsize=(5.4 * len(matrices), 4.9))
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    edges = np.flatnonzero(np.diff(labels)) + 0.5
    starts = np.concatenate([[-0.5], edges, [len(labels) - 0.5]])
    names = [str(label) for label in labels[np.ceil(starts[:-1]).astype(int)]]
    for axes, (name, (matrix, unit)) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(matrix, cmap="viridis", interpolation="nearest")
        figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).set_label(unit)
        for edge in edges:
            axes.axhline(edge, color="white", lw=0.5)
            axes.axvline(edge, color="white", lw=0.5)
        middles = (starts[:-1] + starts[1:]) / 2
        axes.set_xticks(middles, names)
        axes.set_yticks(middles, names)
        axes.set_xlabel("class")
        axes.set_ylabel("class")
        axes.set_title(name)
    figure.tight_layout()
    return figure


def distances_compared(geodesic: Array, others: Mapping[str, tuple[Array, str]]) -> Figure:
    """Draw other distances of the same pairs against the geodesic ones.

    Parameters
    ----------
    geodesic
        Geodesic distances, (P,).
    others
        Distances (P,) and their unit, by name.
    """
    figure = Figure(figsize=(4.9 * len(others), 4.4))
    panels = figure.subplots(1, len(others), squeeze=False)[0]
    for axes, (name, (values, unit)) in zip(panels, others.items(), strict=True):
        axes.scatter(geodesic, values, s=6, alpha=0.5, linewidths=0, color=_COLORS[0])
        if unit == "output units":
            top = float(np.nanmax(geodesic)) * 1.05
            axes.plot([0, top], [0, top], color="black", lw=0.8, ls="--", label="equal")
            axes.legend(loc="upper left")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("geodesic distance (output units)")
        axes.set_ylabel(f"{name} ({unit})")
    figure.tight_layout()
    return figure


def cluster_maps(
    codes: Array, assignments: Mapping[str, NDArray[np.int64]], centers: Mapping[str, Array]
) -> Figure:
    """Draw codes of a 2-d latent space coloured by class or cluster.

    Parameters
    ----------
    codes
        Shape (n, 2).
    assignments
        Classes or clusters, (n,), by name; the legend tells the first ones.
    centers
        Cluster centres, (K, 2), by the same names, where there are any.
    """
    figure = Figure(figsize=(5.2 * len(assignments) + 0.8, 5.0), layout="constrained")
    panels = figure.subplots(1, len(assignments), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (name, labels) in zip(panels, assignments.items(), strict=True):
        _scatter_classes(axes, codes, labels, size=11)
        if name in centers:
            axes.scatter(*centers[name].T, marker="X", s=90, color="black", edgecolors="white")
        axes.set_title(name)
        axes.set_xlabel("latent coordinate $z_1$")
        axes.set_aspect("equal")
    panels[0].set_ylabel("latent coordinate $z_2$")
    points, names = panels[0].get_legend_handles_labels()
    panels[-1].legend(
        points,
        names,
        title=next(iter(assignments)),
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0.0,
        markerscale=1.8,
    )
    return figure


def scores_by_seed(scores: Mapping[str, Array], quantity: str) -> Figure:
    """Draw a score of several methods, a point for each seed and a line at the mean."""
    figure = Figure(figsize=(1.9 * len(scores) + 1.6, 4.0))
    axes = figure.add_subplot()
    for place, (name, values) in enumerate(scores.items()):
        spread = np.linspace(-0.12, 0.12, len(values))
        color = _COLORS[place % len(_COLORS)]
        axes.scatter(place + spread, values, s=26, color=color)
        axes.hlines(values.mean(), place - 0.25, place + 0.25, color=color, lw=2, label=name)
    axes.set_xticks(range(len(scores)), list(scores))
    axes.set_xlim(-0.6, len(scores) - 0.4)
    axes.set_ylim(0.0, 1.1 * max(float(values.max()) for values in scores.values()))
    axes.set_ylabel(quantity)
    figure.tight_layout()
    return figure


def walks_in_the_plane(codes: Array, labels: NDArray[np.int64], walks: Array) -> Figure:
    """Draw walks (B, T, 2) through a 2-d latent space with the codes of the data, (n, 2)."""
    figure = Figure(figsize=(7.0, 6.6))
    axes = figure.add_subplot()
    _scatter_classes(axes, codes, labels, size=9, alpha=0.5)
    points, names = axes.get_legend_handles_labels()
    lines = []
    for number, walk in enumerate(walks):
        color = _COLORS[number % len(_COLORS)]
        axes.plot(*walk.T, color="white", lw=2.6)
        lines += axes.plot(*walk.T, color=color, lw=1.4, label=f"walk {number + 1}")
        axes.scatter(walk[0, 0], walk[0, 1], color=color, edgecolors="black", s=45, zorder=5)
    beside = {"fontsize": 8, "borderaxespad": 0.0}
    first = axes.legend(handles=lines, loc="upper left", bbox_to_anchor=(1.02, 1.0), **beside)
    axes.add_artist(first)
    axes.legend(points, names, title="class", loc="lower left", bbox_to_anchor=(1.02, 0), **beside)
    axes.set_xlabel("latent coordinate $z_1$")
    axes.set_ylabel("latent coordinate $z_2$")
    axes.set_aspect("equal")
    return figure


def walk_curves(
    place: Array,
    place_name: str,
    curves: Mapping[str, Array],
    band: tuple[float, float] | None = None,
    names: Sequence[str] = (),
) -> Figure:
    """Draw quantities (B, T) along walks, one panel each.

    Parameters
    ----------
    place, place_name
        Where the walk is, (T,), and what that is called.
    curves
        The quantities, by name with unit.
    band
        Mean and standard deviation of the prior's norms, drawn where the quantity is the norm.
    names
        Of the walks.
    """
    figure = Figure(figsize=(4.6 * len(curves), 3.8))
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, values) in zip(panels, curves.items(), strict=True):
        if band is not None and name.startswith("norm"):
            low, high = band[0] - band[1], band[0] + band[1]
            axes.axhspan(low, high, color="#dddddd", label="prior, mean ± std")
        for number, row in enumerate(values):
            label = names[number] if number < len(names) else None
            axes.plot(place, row, color=_COLORS[number % len(_COLORS)], lw=1.3, label=label)
        axes.set_xlabel(place_name)
        axes.set_ylabel(name)
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    return figure


def output_curves(place: Array, place_name: str, outputs: Array, quantity: str) -> Figure:
    """Draw outputs of the decoder (B, T, K) along walks, one panel for each walk.

    Parameters
    ----------
    place, place_name
        Where the walk is, (T,), and what that is called.
    outputs
        K outputs at each place.
    quantity
        What the outputs are called.
    """
    columns = min(3, len(outputs))
    rows = -(-len(outputs) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.4, 2.7 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.95, outputs.shape[2]))
    for number, axes in enumerate(panels):
        if number >= len(outputs):
            axes.set_axis_off()
            continue
        for values, color in zip(outputs[number].T, colors, strict=True):
            axes.plot(place, values, color=color, lw=1.0)
        axes.set_title(f"walk {number + 1}", fontsize=10)
        if number % columns == 0:
            axes.set_ylabel(quantity)
        if number + columns >= len(outputs):
            axes.set_xlabel(place_name)
            axes.tick_params(labelbottom=True)
    return figure
