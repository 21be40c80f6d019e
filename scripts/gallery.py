"""Photographs in the latent space of a diffusion model's autoencoder: straight lines and geodesics.

    python scripts/gallery.py FOLDER --out docs/gallery.png

FOLDER holds taef2_encoder.pth and taef2_decoder.pth of the repository madebyollin/taesd, the tiny
autoencoder of FLUX.2's latents: 32 numbers for each 8 x 8 pixels, d = 2,048 at 64 x 64. The images
are those of scikit-learn and, where it is installed, of scikit-image. Geodesics are solved in
pixels and under the features of a torchvision network, with random weights unless a file is given.
Every strip has equal steps of its own length. A table says what each costs and how long it is.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models as networks

import geolatent as gl

IMAGES_EACH = 9
LENGTH_CHORDS = 256


class TinyAutoencoderHalf(nn.Module):
    """Encoder or decoder of taef2, from its state dictionary: the keys name layers by number."""

    def __init__(self, path: Path, *, decoder: bool) -> None:
        super().__init__()
        self.decoder = decoder
        for name, value in torch.load(path, weights_only=True).items():
            self.register_buffer(name.replace(".", "_"), value.float())

    def _weight(self, name: str) -> Tensor | None:
        return getattr(self, name, None)

    def _convolve(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = getattr(self, f"{name}_weight")
        padding = weight.shape[2] // 2
        return functional.conv2d(x, weight, self._weight(f"{name}_bias"), stride, padding)

    def _block(self, x: Tensor, name: str) -> Tensor:
        if self._weight(f"{name}_pool_0_weight") is not None:
            y = self._convolve(x, f"{name}_pool_0")
            scale, shift = (getattr(self, f"{name}_pool_1_{part}") for part in ("weight", "bias"))
            y = functional.group_norm(y, 4, scale, shift).relu()
            x = x + self._convolve(y, f"{name}_pool_3")
        y = self._convolve(x, f"{name}_conv_0").relu()
        y = self._convolve(y, f"{name}_conv_2").relu()
        return (self._convolve(y, f"{name}_conv_4") + x).relu()

    def forward(self, x: Tensor) -> Tensor:
        """Return images of codes (n, 32, h, w), or codes of images (n, 3, 8 h, 8 w)."""
        if not self.decoder:
            x = self._block(self._convolve(x, "0"), "1")
            for first in (2, 6, 10):
                x = self._convolve(x, str(first), stride=2)
                for number in range(first + 1, first + 4):
                    x = self._block(x, str(number))
            return self._convolve(x, "14")
        x = self._convolve(3.0 * (x / 3.0).tanh(), "1").relu()
        for first, last in ((3, 6), (8, 11), (13, 16)):
            for number in range(first, last):
                x = self._block(x, str(number))
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = self._convolve(x, str(last + 1))
        return self._convolve(self._block(x, "18"), "19")


def photographs(side: int) -> dict[str, Tensor]:
    """Return square images (3, side, side) in [0, 1] by name."""
    found = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    if importlib.util.find_spec("skimage") is not None:
        from skimage import data

        found |= {"astronaut": data.astronaut(), "cat": data.chelsea()}
        found |= {"coffee": data.coffee(), "rocket": data.rocket()}
    squares = {}
    for name, image in found.items():
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0
        height, width = pixels.shape[1:]
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        square = pixels[:, top : top + edge, left : left + edge]
        squares[name] = functional.interpolate(square[None], (side, side), mode="area")[0]
    return squares


def feature_map(weights: Path | None) -> Callable[[Tensor], Tensor]:
    """Return the activations of ResNet-18 before its last pooling."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.resnet18()
    if weights is not None:
        network.load_state_dict(torch.load(weights, weights_only=True))
    return nn.Sequential(*list(network.children())[:-2]).eval().requires_grad_(False)


def length_of(function: Callable[[Tensor], Tensor], codes: Tensor) -> float:
    """Return the length of the chain of outputs at codes (n, d)."""
    with torch.no_grad():
        outputs = torch.cat([function(part).flatten(1) for part in codes.split(32)])
    return float(outputs.double().diff(dim=0).norm(dim=1).sum())


def gallery(
    models: Path,
    out: Path = Path("gallery.png"),
    side: int = 64,
    weights: Path | None = None,
    tolerance: float = 1e-2,
) -> None:
    """Solve pairs of photographs and draw them as strips.

    Parameters
    ----------
    models
        Folder of taef2_encoder.pth and taef2_decoder.pth.
    out
        Where the figure goes.
    side
        Height and width of the images, a multiple of 8.
    weights
        State dictionary of torchvision's ResNet-18; random weights without it.
    tolerance
        The solver's.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    console = Console()
    encoder = TinyAutoencoderHalf(models / "taef2_encoder.pth", decoder=False)
    whole = TinyAutoencoderHalf(models / "taef2_decoder.pth", decoder=True)
    images = photographs(side)
    names = list(images)
    pairs = [(names[0], names[1])]
    if len(names) > 2:
        pairs.append(("astronaut", "cat"))
    with torch.no_grad():
        codes = dict(zip(names, encoder(torch.stack(list(images.values()))), strict=True))
    shape = codes[names[0]].shape

    def decode(z: Tensor) -> Tensor:
        return whole(z.unflatten(1, shape))

    features = feature_map(weights)
    kinds = {
        "straight line": None,
        "geodesic, pixels": gl.PullbackMetric(decode),
        "geodesic, features": gl.PullbackMetric(decode, features),
    }
    table = Table("pair", "curve", "length in pixels", "in features", "rows", "status", "seconds")
    figure, axes = plt.subplots(
        len(pairs) * len(kinds), 1, figsize=(1.05 * IMAGES_EACH, 1.16 * len(pairs) * len(kinds))
    )
    rows = iter(axes)
    for first, last in pairs:
        start, end = codes[first].flatten(), codes[last].flatten()
        for kind, metric in kinds.items():
            began, cost, status = time.perf_counter(), "", ""
            curve = gl.CubicBSpline.straight(start, end)
            if metric is not None:
                solver = gl.PreconditionedSolver(tolerance=tolerance)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    solution = gl.solve_geodesic(metric, start, end, solver)
                curve = solution.curve
                cost = f"{float(solution.evaluations.equivalents):,.0f}"
                status = solution.statuses[0].name
            seconds = time.perf_counter() - began
            dense = curve(torch.linspace(0, 1, LENGTH_CHORDS + 1))[0]
            pixels = length_of(decode, dense)
            seen = length_of(lambda z: features(decode(z)), dense)
            table.add_row(
                f"{first}, {last}",
                kind,
                f"{pixels:.2f}",
                f"{seen:.1f}",
                cost,
                status,
                "" if metric is None else f"{seconds:.0f}",
            )
            # equal steps of the length in pixels
            with torch.no_grad():
                decoded = torch.cat([decode(part) for part in dense.split(32)])
            along = decoded.flatten(1).diff(dim=0).norm(dim=1).cumsum(0)
            along = torch.cat([along.new_zeros(1), along]) / along[-1]
            places = torch.searchsorted(along, torch.linspace(0, 1, IMAGES_EACH)).clamp(
                max=LENGTH_CHORDS
            )
            strip = torch.cat(list(decoded[places]), dim=2).permute(1, 2, 0).clamp(0, 1)
            axis = next(rows)
            axis.imshow(strip.numpy())
            axis.set_xticks([])
            axis.set_yticks([])
            label = f"{kind}: {pixels:.1f} in pixels, {seen:.0f} in features"
            axis.set_title(label, fontsize=8, loc="left", pad=2)
    figure.tight_layout(h_pad=0.3)
    figure.savefig(out, dpi=150)
    console.print(table)
    console.print(f"Figure: {out}")


if __name__ == "__main__":
    auto_cli(gallery)
