"""Images as PNG files, for tools that compare two folders of them, such as FID."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from geolatent.checks import check_integer, check_tensor, describe, requirement
from geolatent.lab import plotting
from geolatent.lab.config import DataOptions, Formats, ModelOptions, check_formats
from geolatent.lab.memory import check_memory
from geolatent.lab.pairs import draw_normal
from geolatent.lab.printing import make_console, print_files, progress_bar
from geolatent.lab.results import IMAGES, Run, RunFolder
from geolatent.lab.setup import Dataset, make_device, make_model

# images that the figure shows
_SHOWN = 40


def png_bytes(image: Tensor) -> bytes:
    """Encode one image in [-1, 1] as a PNG file of 8 bits.

    Grey values v become round(255 (v + 1) / 2); those outside [-1, 1] are cut off.

    Parameters
    ----------
    image
        (1 or 3, height, width).

    Raises
    ------
    ValueError
        If the image has another shape or is not finite.

    Examples
    --------
    >>> png_bytes(torch.zeros(1, 8, 8))[1:4]
    b'PNG'
    """
    check_tensor("image", image, "of shape (1 or 3, height, width)", (3,))
    if image.shape[0] not in (1, 3):
        required = "a tensor of shape (1 or 3, height, width)"
        raise ValueError(requirement("image", required, describe(image)))
    pixels = (255.0 * (image.detach().cpu().double() + 1.0) / 2.0).round().clamp(0.0, 255.0)
    array = pixels.to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if image.shape[0] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def sample(
    out: Path = Path("runs/sample"),
    source: Literal["prior", "reconstructed", "data"] = "prior",
    n_samples: int = 1000,
    model: ModelOptions = ModelOptions(),
    data: DataOptions = DataOptions(split="test"),
    seed: int = 0,
    dtype: Literal["float32", "float64"] = "float32",
    device: str = "auto",
    overwrite: bool = False,
    format: Formats = "png",
) -> None:
    """Write decoded samples, reconstructions or images of the data as PNG files.

    The files lie in the folder's `images`, alone, as tools for the Frechet inception distance
    expect. Run it once for the samples and once with --source data for what they are compared with.

    Parameters
    ----------
    out
        Folder for the results; it is made where it does not exist.
    source
        "prior", decoded codes of N(0, I); "reconstructed", decoded codes of the data;
        "data", the images of the data themselves.
    n_samples
        Number of images; of the data, at most as many as there are.
    model
        The model.
    data
        The images, for "reconstructed" and "data".
    seed
        Seed of the codes, or of the choice of images.
    dtype
        Floating-point type of model and codes.
    device
        "auto", "cpu", "cuda" or another device of torch.
    overwrite
        Replace the results of an earlier run in the folder.
    format
        Format of the figures, "png", "pdf" or "svg", or a list of them.
    """
    config = dict(locals())  # the options alone, as they are written to config.yaml
    began = time.perf_counter()
    check_formats(format)
    check_integer("n_samples", n_samples)
    RunFolder.check(out, overwrite=overwrite)
    RunFolder.check_images(out)
    place = make_device(device)
    if source == "prior":
        codec = make_model(model, dtype, place)
        one = codec.images(draw_normal(1, codec.dim, seed, codec.like))
        check_memory("n_samples", n_samples, n_samples * one.numel() * one.element_size())
        images = codec.images(draw_normal(n_samples, codec.dim, seed, codec.like))
    else:
        every, _ = Dataset(data).chosen
        if n_samples > len(every):
            required = f"at most {len(every)}, the number of images of the data"
            raise ValueError(requirement("n_samples", required, n_samples))
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
        images = every[order[:n_samples]]
        if source == "reconstructed":
            codec = make_model(model, dtype, place)
            images = codec.images(codec.encode(images))
    folder = RunFolder.create(out, "sample", config, seed=seed, device=place, overwrite=overwrite)
    target, unfinished = folder.path / IMAGES, folder.path / f"{IMAGES}.unfinished"
    unfinished.mkdir()
    console = make_console()
    with progress_bar(console) as progress:
        task = progress.add_task(f"writing {n_samples} images", total=n_samples)
        for number, image in enumerate(images):
            (unfinished / f"{number:06d}.png").write_bytes(png_bytes(image))
            progress.advance(task)
    unfinished.rename(target)
    summary = {
        "source": source,
        "n_images": n_samples,
        "shape": list(images.shape[1:]),
        "pixels": {"mean": float(images.double().mean()), "std": float(images.double().std())},
        "seconds": round(time.perf_counter() - began, 1),
    }
    run = folder.finish(summary, {"samples": images[:_SHOWN].float()})
    console.print(f"{n_samples} images in {target}", soft_wrap=True)
    print_files(console, folder.path, plotting.save_figures(figures(run), folder.path, format))


def figures(run: Run) -> dict[str, Figure]:
    """Draw the figures of a run from what it stored."""
    if "samples" not in run.arrays:
        return {}
    images = plotting.grey_or_colour(run.arrays["samples"].astype(np.float64))
    return {"samples": plotting.image_grid(images, (-1.0, 1.0))}
