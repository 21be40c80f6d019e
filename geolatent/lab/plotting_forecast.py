"""Figures of forecasts: attractors, distributions of coordinates, growth of errors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geolatent.lab.plotting import COLORS, Array, panel
from geolatent.lab.systems import System

_BINS = 80


def attractors(system: System, true: Array, model: Array) -> Figure:
    """Draw points (m, p) of the true trajectories beside those of the model's free run.

    The first and the last coordinate are drawn against each other.
    """
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (name, points), color in zip(
        panels, (("equations", true), ("model", model)), COLORS, strict=False
    ):
        shown: Axes = axes
        shown.scatter(
            points[:, 0], points[:, -1], s=1.0, alpha=0.35, lw=0, color=color, rasterized=True
        )
        shown.set_title(name, fontsize=10)
        shown.set_xlabel(system.coordinates[0])
        shown.grid(alpha=0.3)
    panels[0].set_ylabel(system.coordinates[-1])
    return figure


def marginals(system: System, true: Array, model: Array, distances: Mapping[str, float]) -> Figure:
    """Draw the densities of coordinates, points (m, p) each, with distances in deviations."""
    n = len(system.coordinates)
    figure = Figure(figsize=(3.6 * n, 3.4), layout="constrained")
    for place, (axes, name) in enumerate(
        zip(figure.subplots(1, n, squeeze=False)[0], system.coordinates, strict=True)
    ):
        both = np.concatenate([true[:, place], model[:, place]])
        bins = np.linspace(float(np.nanmin(both)), float(np.nanmax(both)), _BINS)
        for label, points, color, style in (
            ("equations", true, COLORS[0], "-"),
            ("model", model, COLORS[1], "--"),
        ):
            axes.hist(
                points[:, place],
                bins=bins,
                density=True,
                histtype="step",
                color=color,
                ls=style,
                lw=1.5,
                label=label,
            )
        axes.set_xlabel(name)
        axes.set_title(f"Wasserstein distance {distances[name]:.3f} std", fontsize=9)
        axes.grid(alpha=0.3)
        if place == 0:
            axes.set_ylabel("density")
            axes.legend(fontsize=8)
    return figure


def error_growth(system: System, errors: Array, exponent: float, useful: float) -> Figure:
    """Draw errors of forecasts (T,), in deviations of the climate, against lead time."""
    figure, axes = panel(7.0, 4.2)
    time = system.time_step * np.arange(1, len(errors) + 1)
    axes.semilogy(time * exponent, errors, color=COLORS[1], lw=2.0, label="forecasts")
    grown = errors[0] * np.exp(exponent * time)
    shown = grown < 1.5
    axes.semilogy(
        time[shown] * exponent, grown[shown], ":", color="0.3", label="growth of the equations"
    )
    axes.axhline(np.sqrt(2.0), color="0.5", lw=1.0, label="two states drawn at random")
    axes.axhline(useful, color=COLORS[2], lw=1.0, ls="--", label=f"of use below {useful:g}")
    axes.set_xlabel(f"lead time in Lyapunov times, 1 / λ = {1 / exponent:.2f}, {system.time_name}")
    axes.set_ylabel("root mean squared error (std of the climate)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9)
    return figure
