"""Images as PNG files, for tools that compare two folders of them, such as FID."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from torch import Tensor

from geolatent.checks import check_integer, check_tensor, requirement
from geolatent.lab import plotting
from geolatent.lab.contents import IMAGES, check_images
from geolatent.lab.experiment import Arrays, ModelExperiment, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.memory import check_memory
from geolatent.lab.pairs import draw_prior
from geolatent.lab.panels import pictures_of
from geolatent.lab.printing import working
from geolatent.lab.run import Run, RunFolder

# images that the figure shows
_SHOWN = 40


def png_bytes(image: Tensor) -> bytes:
    """Encode one image in [-1, 1] as a PNG file of 8 bits.

    Grey values v become round(255 (v + 1) / 2); those outside [-1, 1] are cut off.

    Parameters
    ----------
    image
        (1 or 3, height, width).

    Examples
    --------
    >>> png_bytes(torch.zeros(1, 8, 8))[1:4]
    b'PNG'
    """
    check_tensor("image", image, "(1, height, width) or (3, height, width)")
    pixels = (255.0 * (image.detach().cpu().double() + 1.0) / 2.0).round().clamp(0.0, 255.0)
    array = pixels.to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if image.shape[0] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Sample(ModelExperiment):
    """Write decoded samples, reconstructions or images of the data as PNG files.

    The files lie in the folder's `images`, alone, as tools for the Frechet inception distance
    expect. Run it once for the samples and once with --source data for what they are compared with.

    Attributes
    ----------
    source
        "prior", decoded codes of the model's prior, N(0, I) unless it has another; "reconstructed",
        decoded codes of the data; "data", the images of the data themselves.
    n_samples
        Number of images; of the data, at most as many as there are.
    data
        The images, for "reconstructed" and "data".
    seed
        Seed of the codes, or of the choice of images.
    """

    out: Path = Path("runs/sample")
    source: Literal["prior", "reconstructed", "data"] = "prior"
    n_samples: int = 1000

    def check(self) -> None:
        """Raise where there are not so many images, or no room for them."""
        check_integer("n_samples", self.n_samples)
        check_images(self.out)
        super().check()
        if self.source == "prior":
            check_memory("n_samples", self.n_samples, self.n_samples * self.decoded(1).nbytes)
        elif self.n_samples > (n_images := len(self.dataset.chosen[0])):
            required = f"at most {n_images}, the number of images of the data"
            raise ValueError(requirement("n_samples", required, self.n_samples))

    def prepare(self) -> None:
        """Make the images."""
        _ = self.images

    @cached_property
    def codecs(self) -> Mapping[str, LatentModel]:
        """The model, where one is needed."""
        return {} if self.source == "data" else super().codecs

    def decoded(self, n: int) -> Tensor:
        """Return the first decoded samples of the prior."""
        model = self.codec
        how: dict[str, Any] = {"seed": self.seed, "like": model.like, "prior": model.prior}
        return model.images(draw_prior(n, model.dim, **how))

    @cached_property
    def images(self) -> Tensor:
        """The images, (n, channels, height, width)."""
        if self.source == "prior":
            return self.decoded(self.n_samples)
        every, _ = self.dataset.chosen
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(self.seed))
        images = every[order[: self.n_samples]]
        return images if self.source == "data" else self.codec.images(self.codec.encode(images))

    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:
        """Write the files; their folder has its name when it has all of them."""
        images, unfinished = self.images, folder.path / f"{IMAGES}.unfinished"
        unfinished.mkdir()
        with working(console, f"writing {self.n_samples} images") as tell:
            for number, image in enumerate(images):
                (unfinished / f"{number:06d}.png").write_bytes(png_bytes(image))
                tell((number + 1) / self.n_samples)
        unfinished.rename(folder.path / IMAGES)
        summary = {
            "source": self.source,
            "n_images": self.n_samples,
            "shape": list(images.shape[1:]),
            "pixels": {"mean": float(images.double().mean()), "std": float(images.double().std())},
        }
        return summary, {"samples": images[:_SHOWN].float()}

    def tell(self, console: Console, summary: Summary) -> None:
        """Say where the files are."""
        console.print(f"{summary['n_images']} images in {self.out / IMAGES}", soft_wrap=True)

    @staticmethod
    def in_a_report(summary: Summary) -> str:
        """Return what a table of many runs tells of one."""
        return f"{summary['n_images']} images"

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        if "samples" not in run.arrays:
            return {}
        pictures = pictures_of(run.config["data"]["name"], run.arrays["samples"])
        return {"samples": plotting.image_grid(pictures)}
