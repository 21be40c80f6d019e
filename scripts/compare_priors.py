r"""Paths between codes of two priors, decoded side by side, with the norms along each.

    for prior in normal sphere; do
      geolatent interpolate --pairs prior --data.name MNIST --out runs/paths_$prior \
        --model.checkpoint runs/dcgan_$prior/model.safetensors
    done
    python scripts/compare_priors.py --runs '[runs/paths_normal, runs/paths_sphere]'

For the first pairs of each run: images along the straight line, slerp and the geodesic, and below
them |z| along these paths, beside the norms of codes of the prior (bands: one and two standard
deviations; a sphere has one norm).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from matplotlib.figure import Figure

from geolatent.lab.interpolate import norms_along
from geolatent.lab.plotting import COLORS, LINES, grey_or_colour
from geolatent.lab.run import Run, load_run

_TITLES = {"normal": "prior N(0, I)", "sphere": "prior on the sphere of radius $\\sqrt{d}$"}


def draw(runs: list[Run], n_pairs: int) -> Figure:
    """Draw the first pairs of runs, a column for each."""
    figure = Figure(figsize=(6.4 * len(runs), 3.3 * n_pairs + 0.6), layout="constrained")
    columns = figure.subfigures(1, len(runs), squeeze=False)[0]
    for column, run in zip(columns, runs, strict=True):
        profiles = norms_along(run)
        column.suptitle(_TITLES[run.summary["prior"]], fontsize=12)
        ratios = [1.0] * len(profiles) + [1.9]
        panels = column.subplots(n_pairs * len(ratios), 1, height_ratios=ratios * n_pairs)
        for pair in range(n_pairs):
            *strips, below = panels[pair * len(ratios) : (pair + 1) * len(ratios)]
            images = run.arrays["frames"][pair]
            for axes, name, frames in zip(strips, profiles, images, strict=True):
                strip = np.concatenate(grey_or_colour(frames), axis=1)
                axes.imshow((strip + 1.0) / 2.0, cmap="gray", vmin=0.0, vmax=1.0)
                axes.set(xticks=[], yticks=[])
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
            prior = profiles["straight"]
            for width in (2.0, 1.0):
                half = width * prior.standard_deviation
                below.axhspan(prior.mean - half, prior.mean + half, color="0.5", alpha=0.15)
            below.axhline(prior.mean, color="0.3", lw=0.8, ls="--", label="mean norm of the prior")
            for number, (name, profile) in enumerate(profiles.items()):
                norms = profile.norms[pair].numpy()
                style, color = LINES[number % len(LINES)], COLORS[number % len(COLORS)]
                t = np.linspace(0.0, 1.0, len(norms))
                below.plot(t, norms, style, color=color, lw=1.8, label=name)
            below.set(xlim=(0.0, 1.0), ylabel="norm $|z|$")
            if pair == n_pairs - 1:
                below.set_xlabel("curve parameter t, of the images too")
    handles, names = below.get_legend_handles_labels()
    figure.legend(handles, names, ncols=len(names), loc="outside lower center")
    return figure


def compare(runs: list[Path], n_pairs: int = 2, out: Path = Path("docs/gans.png")) -> None:
    """Draw paths of several runs side by side.

    Args:
        runs: Folders of runs of `geolatent interpolate`.
        n_pairs: Pairs of each.
        out: The figure.
    """
    draw([load_run(folder) for folder in runs], n_pairs).savefig(out, dpi=100)


if __name__ == "__main__":
    sys.exit(auto_cli(compare, as_positional=False))
