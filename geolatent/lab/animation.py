"""Animations of decoded paths, side by side, at constant speed in the output."""

from __future__ import annotations

import importlib.util
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor

from geolatent.checks import check_choice, check_integer, check_number, requirement
from geolatent.curves import CubicBSpline
from geolatent.files import write_file
from geolatent.lab.config import ANIMATION_FORMATS, AnimationOptions
from geolatent.lab.contents import record_files
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.memory import check_memory
from geolatent.lab.panels import Show, panels_for
from geolatent.lab.paths import DENSE, dense_points, frames_along, polyline_at
from geolatent.lab.plotting import COLORS, Array, label_plane
from geolatent.lab.plotting_statistics import scatter_classes

Pixels = NDArray[np.uint8]

# inches: the name of a panel, the plane, the bar below; and pixels of an inch
_NAME, _PLANE, _BAR, _DPI = 0.28, 3.9, 0.55, 90
# images in a row, with a plane beside them and without
_BESIDE, _ALONE = 3, 6
# codes of the data that are drawn, and paths side by side
_CODES, MOST = 2000, 12
# a GIF counts hundredths of a second; players slow down what is faster than two
_TICK, _FASTEST = 10, 20
# shades of grey of its 256 colours
_GREYS = 64


@dataclass(frozen=True)
class Animation:
    """Paths that are played together.

    Attributes
    ----------
    title
        A line above them.
    images
        Decoded images in [-1, 1] by the name of the path, (T, channels, height, width).
    codes
        Codes of the frames by the name of the path, (T, 2), where there is a plane to be drawn.
    lines
        The paths as lines, (N, 2).
    data, labels
        Codes of the data in the plane, (n, 2), and their classes.
    data_name
        Name of the data, as of `DataOptions`, by which images are drawn as such or as windows of
        trajectories or maps.
    """

    title: str
    images: Mapping[str, Array]
    codes: Mapping[str, Array] | None = None
    lines: Mapping[str, Array] | None = None
    data: Array | None = None
    labels: NDArray[np.int64] | None = None
    data_name: str = "images"


def formats_of(formats: str | Sequence[str]) -> list[str]:
    """Return formats as a list without doubles."""
    chosen = [formats] if isinstance(formats, str) else list(formats)
    return [check_choice("format", name, ANIMATION_FORMATS) for name in dict.fromkeys(chosen)]


def check_animation(options: AnimationOptions) -> None:
    """Raise where an animation could not be written, or its frames do not fit in memory."""
    check_memory("n_frames", options.n_frames, options.n_frames * 3 * 2**20)
    for name in formats_of(options.format):
        check_writer(name)


def check_writer(name: str) -> None:
    """Raise where a format cannot be written here."""
    if name == "webp" and not features.check("webp"):
        raise ModuleNotFoundError(
            requirement("animation.format", "gif or mp4, for this Pillow cannot write WebP", name)
        )
    if name == "mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        required = "gif or webp, for imageio-ffmpeg is not installed (from the checkout: "
        required += "pip install '.[animate]')"
        raise ModuleNotFoundError(requirement("animation.format", required, name))


def animated_arrays(
    model: LatentModel,
    paths: Sequence[CubicBSpline | Tensor],
    options: AnimationOptions,
    data: Tensor | None,
    labels: Tensor,
) -> dict[str, Tensor]:
    """Return what `stored_animations` reads, for a run to store.

    Parameters
    ----------
    model
        The model.
    paths
        Of each kind the curves, or the points of polylines, (A, N, d), of A animations.
    options
        How many frames.
    data, labels
        Codes of the data, (n, d), and classes: the background of a plane, which is not drawn
        without them.
    """
    found = [frames_along(model, path, options.n_frames) for path in paths]
    arrays = {"animation_images": torch.stack([each.images.float() for each in found], dim=1)}
    if model.dim == 2 and data is not None:
        even = torch.linspace(0.0, 1.0, DENSE, dtype=torch.float64)
        lines = [dense_points(path) for path in paths]
        lines = [polyline_at(line, even.expand(len(line), -1)) for line in lines]
        arrays |= {
            "animation_codes": torch.stack([each.codes.float() for each in found], dim=1),
            "animation_lines": torch.stack([line.float() for line in lines], dim=1),
            # safetensors stores no tensor twice
            "animation_data": data[:_CODES].float().clone(),
            "animation_labels": labels[:_CODES].clone(),
        }
    return arrays


def stored_animations(
    arrays: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    titles: Mapping[str, str],
    data_name: str,
) -> dict[str, Animation]:
    """Return the animations of a run from the arrays that `animated_arrays` made.

    Parameters
    ----------
    arrays
        The arrays of the run; there may be none of them.
    names
        Names of the paths, as they were given.
    titles
        Titles by the names of the animations' files, in their order.
    data_name
        Name of the data.
    """
    if "animation_images" not in arrays:
        return {}
    planar = "animation_codes" in arrays
    return {
        name: Animation(
            title,
            dict(zip(names, arrays["animation_images"][place], strict=True)),
            dict(zip(names, arrays["animation_codes"][place], strict=True)) if planar else None,
            dict(zip(names, arrays["animation_lines"][place], strict=True)) if planar else None,
            arrays.get("animation_data"),
            arrays.get("animation_labels"),
            data_name,
        )
        for place, (name, title) in enumerate(titles.items())
    }


def save_animations(
    animations: Mapping[str, Animation], folder: str | Path, options: Mapping[str, Any]
) -> list[Path]:
    """Write animations to ``folder/figures/NAME.FORMAT``, recorded there; return their paths.

    The options are those of `AnimationOptions`, as configs have them. A file is written whole or
    not at all.
    """
    if not animations:
        return []
    how = AnimationOptions(**options)
    paths = []
    for name, animation in animations.items():
        frames = list(render(animation))
        for ending in formats_of(how.format):
            path = f"figures/{name}.{ending}"
            content = encode(frames, ending, how.seconds, how.loops)
            record_files(Path(folder), [path])
            paths.append(write_file(Path(folder) / path, content))
    return paths


def render(animation: Animation) -> Iterator[Pixels]:
    """Yield the frames as pictures, (height, width, 3), of one even size.

    Each shows every path's image below its name, where the paths are in a plane, and the share of
    the output length that they have gone.
    """
    canvas, shows, dots, bar = _stage(animation)
    n_frames = len(next(iter(animation.images.values())))
    for frame in range(n_frames):
        for show in shows:
            show(frame)
        for dot, codes in zip(dots, (animation.codes or {}).values(), strict=True):
            dot.set_data(codes[frame : frame + 1, 0], codes[frame : frame + 1, 1])
        bar.set_xdata([0.0, frame / (n_frames - 1)])
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        height, width = (size - size % 2 for size in pixels.shape[:2])  # for video
        yield pixels[:height, :width].copy()


def _stage(animation: Animation) -> tuple[FigureCanvasAgg, list[Show], list[Line2D], Line2D]:
    """Draw what stays, and return what moves: the images, dots in the plane, a bar."""
    images = animation.images
    panels = panels_for(animation.data_name, list(images.values()))
    planar = animation.codes is not None and animation.data is not None
    columns = min(len(images), _BESIDE if planar else _ALONE)
    columns = 2 if planar and len(images) == 4 else columns
    rows = -(-len(images) // columns)
    across, down = panels.size
    cell = down + _NAME
    # the title needs some room whatever is below it
    left = max(columns * (across + 0.1) + 0.1, 3.0)
    width = left + (_PLANE + 0.2 if planar else 0.0)
    height = max(rows * cell, _PLANE if planar else 0.0) + 0.35 + _BAR
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(0.1 / width, 1 - 0.22 / height, animation.title, fontsize=10, va="center")
    shows = []
    for place, (name, each) in enumerate(images.items()):
        row, column = divmod(place, columns)
        x, y = 0.1 + column * (across + 0.1), height - 0.35 - (row + 1) * cell
        color = COLORS[place % len(COLORS)]
        box = (x / width, y / height, across / width, down / height)
        shows.append(panels.add(figure, box, each, color))
        middle, above = (x + across / 2) / width, (y + down + 0.04) / height
        style: dict[str, Any] = {"fontsize": 9, "fontweight": "bold", "ha": "center"}
        figure.text(middle, above, name, color=color, **style)
    dots = []
    if planar:
        dots = _plane(figure, animation, (left + 0.55, _BAR + 0.45, _PLANE - 0.6, height - 1.45))
    axes = figure.add_axes((0.1 / width, 0.3 / height, 1 - 0.2 / width, 0.12 / height))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(-1, 1))
    axes.plot([0, 1], [0, 0], color="0.88", lw=5, solid_capstyle="butt")
    (bar,) = axes.plot([0, 0], [0, 0], color="0.35", lw=5, solid_capstyle="butt")
    figure.text(0.1 / width, 0.14 / height, "share of the output length", fontsize=8, va="center")
    return canvas, shows, dots, bar


def _plane(
    figure: Figure, animation: Animation, box: tuple[float, float, float, float]
) -> list[Line2D]:
    """Draw data and paths in a plane, in a box of inches, and return the dots on the paths."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    codes, labels = animation.data, animation.labels
    if codes is not None and labels is not None:
        scatter_classes(axes, codes, labels, size=5, alpha=0.25)
    label_plane(axes)
    dots = []
    lines = animation.lines or {}
    for place, (name, path) in enumerate((animation.codes or {}).items()):
        color = COLORS[place % len(COLORS)]
        axes.plot(*lines.get(name, path).T, color=color, lw=1.4)
        form: dict[str, Any] = {"marker": "o", "ms": 8, "mec": "white", "mew": 1.2, "zorder": 9}
        dots += axes.plot(path[:1, 0], path[:1, 1], color=color, **form)
    axes.tick_params(labelsize=8)
    return dots


def encode(frames: Sequence[Pixels], form: str, seconds: float = 4.0, loops: int = 0) -> bytes:
    """Encode pictures, each shown equally long, as an animation.

    Parameters
    ----------
    frames
        (height, width, 3) each, of even size.
    form
        ``"gif"``, ``"webp"`` or ``"mp4"``.
    seconds
        Of all frames once. A GIF's frames last whole hundredths of a second, two at least.
    loops
        How often they are played, 0 for ever; an MP4 file is played once.

    Raises
    ------
    ValueError
        For another format.
    ModuleNotFoundError
        Where what writes the format is not installed.
    """
    check_choice("format", form, ANIMATION_FORMATS)
    check_number("seconds", seconds, above=0.0)
    check_integer("loops", loops, minimum=0)
    check_writer(form)
    if form == "mp4":
        return _video(frames, len(frames) / seconds)
    milliseconds = 1000.0 * seconds / len(frames)
    pictures = [Image.fromarray(frame) for frame in frames]
    # GIF counts repetitions after the first time; without any it has no such entry
    settings: dict[str, Any] = {"save_all": True}
    buffer = io.BytesIO()
    if form == "gif":
        duration = max(_FASTEST, _TICK * round(milliseconds / _TICK))
        settings |= {} if loops == 1 else {"loop": max(loops - 1, 0)}
        palette = _palette(frames)
        pictures = [each.quantize(palette=palette, dither=Image.Dither.NONE) for each in pictures]
    else:
        duration = max(1, round(milliseconds))
        settings |= {"loop": loops, "quality": 90}
    pictures[0].save(
        buffer, form.upper(), append_images=pictures[1:], duration=duration, **settings
    )
    return buffer.getvalue()


def _palette(frames: Sequence[Pixels]) -> Image.Image:
    """Return one palette for all frames, so that what stays does not flicker.

    A quarter of it is shades of grey, which most images and all of the ground are, and some are the
    colours of paths, which cover too little to be found.
    """
    some = np.concatenate([frames[k] for k in (0, len(frames) // 2, -1)])
    fixed = np.linspace(0, 255, _GREYS).round().astype(np.uint8).repeat(3).tolist()
    fixed += (255 * to_rgba_array(COLORS)[:, :3]).round().astype(np.uint8).flatten().tolist()
    n_left = 256 - len(fixed) // 3
    found = Image.fromarray(some).quantize(n_left).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*fixed, *found[: 3 * n_left]])
    return palette


def _video(frames: Sequence[Pixels], rate: float) -> bytes:
    """Return an MP4 file of frames, so many a second."""
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "animation.mp4"
        writer = imageio_ffmpeg.write_frames(
            str(path), (width, height), fps=rate, macro_block_size=2, ffmpeg_log_level="error"
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        return path.read_bytes()
