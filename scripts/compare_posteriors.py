"""Plain posteriors of a VAE beside those of one with an inverse autoregressive flow.

    geolatent train --config configs/train_mnist_2d.yaml --out runs/plain
    geolatent train --config configs/train_mnist_iaf.yaml --out runs/flow
    python scripts/compare_posteriors.py --plain runs/plain --flow runs/flow

The two are trained on the same images, with the same networks and seed. For test images of the
first run's data: the evidence lower bound and the importance-weighted bound, in nats per image, and
the mean difference with its standard error over the images. Both are of the decoder with the one
standard deviation that it was trained with, so trainings want `--precision null`. The figure shows
codes of the prior, codes drawn from both models' posteriors of test images, and posteriors of a few
of them.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
import yaml
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from torch import Tensor

import geolatent as gl
from geolatent.lab.plotting_statistics import scatter_classes
from geolatent.models import VAE

# posteriors that are drawn one by one, and draws of each
_SHOWN, _DRAWS = 12, 300


@torch.no_grad()
def bounds(model: VAE, images: Tensor, n_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return both bounds of images, (n,) each, in nats."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.cat(
        [model.log_weights(part, n_samples, generator) for part in images.split(250)], dim=1
    ).double()
    return weights.mean(0), weights.logsumexp(0) - math.log(n_samples)


@torch.no_grad()
def draw(models: dict[str, VAE], images: Tensor, labels: Tensor, seed: int) -> Figure:
    """Draw codes of the prior and of both aggregated posteriors, and some posteriors."""
    generator = torch.Generator().manual_seed(seed)
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    panels = figure.subplots(1, 4, sharex=True, sharey=True)
    panels[0].scatter(*torch.randn(len(images), 2, generator=generator).T.numpy(), s=3, color="0.4")
    panels[0].set_title("prior")
    drawn = []
    for axes, (name, model) in zip(panels[1:3], models.items(), strict=True):
        codes, _ = model.draw_codes(images, 1, generator)
        drawn.append(codes[0])
        scatter_classes(axes, codes[0].numpy(), labels.numpy(), size=4, alpha=0.7)
        axes.set_title(f"{name} posteriors, aggregated")
    name, model = list(models.items())[-1]
    codes, _ = model.draw_codes(images[:_SHOWN], _DRAWS, generator)
    for each in codes.movedim(1, 0):
        panels[3].scatter(*each.T.numpy(), s=2, alpha=0.6, linewidths=0)
    panels[3].set_title(f"{name} posteriors of {_SHOWN} images")
    half = 1.05 * float(torch.cat(drawn).abs().max())
    for axes in panels:
        axes.set(xlim=(-half, half), ylim=(-half, half), xlabel="$z_1$", aspect="equal")
    panels[0].set_ylabel("$z_2$")
    handles, names = panels[2].get_legend_handles_labels()
    figure.legend(handles, names, title="class", markerscale=3, fontsize=9, loc="outside right")
    return figure


def compare(
    plain: Path,
    flow: Path,
    n_images: int = 2000,
    n_samples: int = 100,
    seed: int = 0,
    out: Path = Path("docs/posteriors.png"),
) -> None:
    """Compare the bounds of two trainings and draw their posteriors.

    Args:
        plain: Folder of the training without a flow.
        flow: Folder of that with one.
        n_images: Test images.
        n_samples: Codes for each image in the importance-weighted bound.
        seed: Seed of the codes.
        out: The figure.
    """
    config = yaml.safe_load((plain / "config.yaml").read_text(encoding="utf-8"))
    data = {**config["data"], "split": "test", "per_class": None}
    images, labels = gl.data.load(gl.data.DataOptions(**data))
    models = {
        name: gl.models.load_model(folder / "model.safetensors")
        for name, folder in (("plain", plain), ("flow", flow))
    }
    found = {
        name: bounds(model, images[:n_images], n_samples, seed) for name, model in models.items()
    }
    result = {}
    for index, bound in enumerate(("elbo", f"importance-weighted, {n_samples}")):
        difference = found["flow"][index] - found["plain"][index]
        result[bound] = {
            **{name: round(float(each[index].mean()), 2) for name, each in found.items()},
            "difference": round(float(difference.mean()), 2),
            "standard error": round(float(difference.std()) / len(difference) ** 0.5, 2),
        }
    print(json.dumps(result, indent=2))
    draw(models, images[:n_images], labels[:n_images], seed).savefig(out, dpi=110)


if __name__ == "__main__":
    sys.exit(auto_cli(compare, as_positional=False))
