"""Draw what scripts/benchmark.py stored, decoders with and without kinks in a figure each.

python scripts/plot_benchmark.py --results docs/benchmark.json --output docs/benchmark.png
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from jsonargparse import auto_cli
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

# smaller excesses are drawn here: lengths are measured to about this, without and with kinks
FLOOR, KINKED_FLOOR = 1e-5, 1e-4
# one colour and marker for each method, told apart without colours too
STYLES = {
    "geolatent": ("#0072B2", "o"),
    "lattice": ("#56B4E9", "s"),
    "codes": ("#009E73", "D"),
    "adam": ("#E69F00", "^"),
    "reverse": ("#D55E00", "v"),
    "stochman": ("#CC79A7", "P"),
    "latent_geometry": ("#7F7F7F", "X"),
    "geomstats": ("#000000", "*"),
    "georce": ("#8C564B", "<"),
}
COSTS = {
    "equivalents": "decoder rows a pair, in forward equivalents",
    "seconds_per_pair": "seconds a pair",
}


def draw(axes: Axes, problem: dict[str, Any], cost: str) -> None:
    """Draw one problem's mean excess against one cost; large markers are the default settings."""
    floor = KINKED_FLOOR if problem["kinks"] else FLOOR
    for method, (color, marker) in STYLES.items():
        rows = [
            row
            for row in problem["methods"]
            if row["method"] == method and row.get("excess_mean") is not None
        ]
        rows.sort(key=lambda row: row[cost])
        x = [row[cost] for row in rows]
        y = [max(row["excess_mean"], floor) for row in rows]
        axes.plot(x, y, color=color, linewidth=1.2, alpha=0.7)
        for row, a, b in zip(rows, x, y, strict=True):
            filled = color if not row["time_extrapolated"] else "white"
            size = 9 if row["default"] else 5
            axes.plot(a, b, marker, color=color, markerfacecolor=filled, markersize=size)
    axes.set(xscale="log", yscale="log", xlabel=COSTS[cost])
    costs = [row[cost] for row in problem["methods"] if row.get("excess_mean") is not None]
    excess = [row["excess_mean"] for row in problem["methods"] if row.get("excess_mean")]
    if costs:
        # whole decades, so that few labels say enough
        axes.set_xlim(decade(min(costs), 0.8, math.floor), decade(max(costs), 1.25, math.ceil))
        axes.set_ylim(floor / 2, decade(max([*excess, 10 * floor]), 1.25, math.ceil))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.axhline(floor, color="0.8", linewidth=0.8, zorder=0)
    axes.grid(True, which="major", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def decade(value: float, margin: float, rounded: Callable[[float], int]) -> float:
    """Return the power of ten below or above a value that is moved by a margin."""
    return 10.0 ** rounded(math.log10(value * margin))


def plot_benchmark(
    results: Path = Path("benchmark.json"), output: Path = Path("benchmark.png")
) -> None:
    """Draw excess length against cost, one row of panels for each problem.

    Parameters
    ----------
    results
        File written by scripts/benchmark.py.
    output
        Figure to write; its ending is the format. Decoders with kinks are drawn in a second one,
        whose name has ``_kinks`` before the ending.
    """
    stored = json.loads(results.read_text())
    problems = stored["problems"]
    kinked = output.with_stem(f"{output.stem}_kinks")
    for path, kinks in ((output, False), (kinked, True)):
        chosen = [problem for problem in problems if problem["kinks"] == kinks]
        if chosen:
            draw_all(chosen, stored["environment"], path)
            print(f"written: {path}")


def draw_all(problems: list[dict[str, Any]], environment: dict[str, Any], output: Path) -> None:
    """Draw problems below one another into one file."""
    figure, grid = plt.subplots(
        len(problems), 2, figsize=(11, 3.3 * len(problems) + 1), squeeze=False, sharey="row"
    )
    for row, problem in zip(grid, problems, strict=True):
        for axes, cost in zip(row, COSTS, strict=True):
            draw(axes, problem, cost)
        row[0].set_ylabel("mean excess length, relative")
        row[0].set_title(f"{problem['title']} ({problem['pairs']} pairs)", loc="left", fontsize=10)
    labels = {
        row["method"]: row["label"]
        for p in problems
        for row in p["methods"]
        if row.get("excess_mean") is not None
    }
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=8, label=labels[method])
        for method, (color, marker) in STYLES.items()
        if method in labels
    ]
    handles.append(
        Line2D([], [], color="0.4", marker="o", ls="", mfc="white", label="time extrapolated")
    )
    figure.legend(handles=handles, loc="upper center", ncols=4, frameon=False, fontsize=9)
    figure.text(
        0.5,
        0.002,
        f"{environment['processor']}, {environment['threads']} threads, "
        f"PyTorch {environment['versions']['torch']}, {environment['date'][:10]}; "
        "large markers: default settings; excess below the grey line drawn at it",
        ha="center",
        fontsize=8,
        color="0.4",
    )
    height = figure.get_figheight()
    figure.tight_layout(rect=(0, 0.2 / height, 1, 1 - 0.75 / height))
    figure.savefig(output, dpi=140)
    plt.close(figure)


if __name__ == "__main__":
    auto_cli(plot_benchmark, as_positional=False, allow_abbrev=False)
