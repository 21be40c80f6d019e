"""Figures of a training run, drawn from what it stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geolatent.lab.plotting import COLORS, Array, grey_or_colour, label_plane, panel, scale_beside
from geolatent.lab.plotting_sequences import map_reconstructions, window_reconstructions
from geolatent.lab.plotting_statistics import scatter_classes
from geolatent.lab.systems import SYSTEMS


def draw_training(
    summary: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], data: str = ""
) -> dict[str, Figure]:
    """Draw losses, test images above their reconstructions and, of a plane, their codes.

    Of a flow, whose reconstructions are exact, and of a model that has none, draw samples in place
    of the latter two. Data of some names are lines or maps.
    """
    figures = {"losses": loss_curves(summary)}
    if "samples" in arrays:
        rows = [("test images", arrays["images"]), ("samples", arrays["samples"])]
        if "cooler_samples" in arrays:
            rows.append(("samples, T = 0.7", arrays["cooler_samples"]))
        figures["samples"] = strips(rows)
        return figures
    images, found = arrays["images"], arrays["reconstructions"]
    if data in SYSTEMS:
        figures["reconstructions"] = window_reconstructions(SYSTEMS[data], images, found)
    elif data == "sst":
        figures["reconstructions"] = map_reconstructions(images, found)
    else:
        figures["reconstructions"] = strips([("test images", images), ("reconstructions", found)])
    if arrays["codes"].shape[1] == 2:
        figures["latent"] = latent_codes(
            arrays["codes"], arrays.get("labels"), arrays.get("std"), arrays.get("std_extent")
        )
    return figures


def loss_curves(summary: Mapping[str, Any]) -> Figure:
    """Draw the losses of every epoch; a GAN's two players and its reconstructions apart."""
    # JSON has no NaN: a loss of None becomes one
    names = ("train_loss", "discriminator_loss", "validation_loss")
    losses, of_discriminator, held_out = (np.array(summary[name], dtype=float) for name in names)
    adversarial = len(of_discriminator) > 0
    n_panels = 2 if adversarial and len(held_out) else 1
    figure = Figure(figsize=(6.2 * n_panels, 4.0), layout="constrained")
    panels = figure.subplots(1, n_panels, squeeze=False)[0]
    epochs = np.arange(1, len(losses) + 1)
    first: Axes = panels[0]
    if adversarial:
        # a generator alone is judged by its own images, the others by both kinds of pairs
        alone = "quality" in summary
        first.plot(epochs, losses, label="generator" if alone else "generator and encoder")
        first.plot(epochs, of_discriminator, label="discriminator")
        label = "undecided, 2 log 2"
        if alone:
            first.axhline(np.log(2.0), color="0.5", ls="--", label="generator undecided, log 2")
            label = "discriminator undecided, 2 log 2"
        first.axhline(2.0 * np.log(2.0), color="0.5", ls=":", label=label)
        first.set_ylabel("loss (nats)")
    else:
        first.plot(epochs, losses, label="training images")
        name = r"$\beta$ KL $-$ log-likelihood (nats per image)"
        if "test_bits" in summary:
            name = r"$-$ log-likelihood (bits per dimension)"
        if "lyapunov" in summary:
            name = "mean squared error (squared steps of the system)"
            first.set_yscale("log")
        first.set_ylabel(name)
    if len(held_out):
        last: Axes = panels[-1]
        label = "held-out images"
        last.plot(np.arange(1, len(held_out) + 1), held_out, label=label, color=COLORS[1])
        best = summary["best_epoch"]
        last.plot(best + 1, held_out[best], "o", color=COLORS[1], label="epoch that was kept")
        if adversarial:
            last.set_ylabel("mean squared reconstruction error")
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def strips(named: Sequence[tuple[str, Array]], columns: int = 10) -> Figure:
    """Draw named images in [-1, 1], (n, channels, height, width) each, in rows above another."""
    images = named[0][1]
    columns = min(columns, len(images))
    n_blocks = len(images) // columns
    aspect = images.shape[2] / images.shape[3]
    height = n_blocks * (0.9 * len(named) * aspect + 0.2)
    figure = Figure(figsize=(0.9 * columns + 1.2, height))
    outer = figure.add_gridspec(n_blocks, 1, hspace=0.12)
    for block in range(n_blocks):
        rows = slice(block * columns, (block + 1) * columns)
        inner = outer[block].subgridspec(len(named), 1, hspace=0.03)
        for row, (name, part) in enumerate(named):
            axes = figure.add_subplot(inner[row])
            strip = np.clip(
                (grey_or_colour(np.concatenate(part[rows], axis=2)) + 1.0) / 2.0, 0.0, 1.0
            )
            axes.imshow(strip, cmap="gray", vmin=0.0, vmax=1.0)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    return figure


def latent_codes(
    codes: Array,
    labels: NDArray[np.int64] | None = None,
    std: Array | None = None,
    std_extent: Array | None = None,
) -> Figure:
    """Draw codes (n, 2), coloured by class (n,), over the decoder's standard deviation.

    It is averaged over the outputs, on a grid (rows, columns); its extent is left, right, bottom
    and top of the grid.
    """
    figure, axes = panel(7.6, 5.6)
    if std is not None and std_extent is not None:
        left, right, bottom, top = (float(side) for side in std_extent)
        image = axes.imshow(
            np.log10(std),
            extent=(left, right, bottom, top),
            origin="lower",
            cmap="Greys",
            aspect="equal",
            interpolation="bilinear",
        )
        name = r"mean standard deviation of the decoder, $\log_{10}$ (pixel units)"
        scale_beside(image, name)
    if labels is None:
        axes.scatter(codes[:, 0], codes[:, 1], s=8, color=COLORS[0], alpha=0.7, linewidths=0)
    else:
        scatter_classes(axes, codes, labels, size=9, alpha=0.7)
        beside: dict[str, Any] = {"loc": "center right", "bbox_to_anchor": (-0.12, 0.5)}
        axes.legend(title="class", markerscale=2.0, fontsize=9, **beside)
    label_plane(axes)
    return figure
