"""Animations: frames, sizes, durations, loops, constant speed in the output, formats."""

import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, features
from test_paths import Uneven, run

import geolatent as gl
from geolatent.curves import CubicBSpline
from geolatent.lab import animation
from geolatent.lab.animation import Animation, animated_arrays, encode, render, stored_animations
from geolatent.lab.config import AnimationOptions
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.run import load_run
from geolatent.lab.walk import walk_codes

GENERATOR = np.random.default_rng(0)


def pictures(n=5, height=20, width=30):
    return list(GENERATOR.integers(0, 256, (n, height, width, 3), dtype=np.uint8))


def read(content):
    """Return the durations of an animation's frames, their size, and the loops it tells."""
    with Image.open(io.BytesIO(content)) as image:
        durations = []
        for frame in range(image.n_frames):
            image.seek(frame)
            image.load()
            durations.append(image.info["duration"])
        return durations, image.size, image.info.get("loop")


@pytest.mark.parametrize(("seconds", "duration"), [(1.0, 200), (0.63, 130), (0.01, 20)])
@pytest.mark.parametrize(("loops", "told"), [(0, 0), (1, None), (3, 2)])
def test_a_gif_has_its_frames_durations_and_loops(seconds, duration, loops, told):
    # hundredths of a second; and repetitions after the first time
    durations, size, loop = read(encode(pictures(), "gif", seconds, loops))
    assert durations == [duration] * 5
    assert size == (30, 20)
    assert loop == told


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow cannot write WebP")
@pytest.mark.parametrize("loops", [0, 3])
def test_a_webp_has_its_frames_durations_and_loops(loops):
    assert read(encode(pictures(), "webp", 1.015, loops)) == ([203] * 5, (30, 20), loops)


def test_an_mp4_has_its_frames_and_duration(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    content = encode(pictures(10, 64, 32), "mp4", 2.0)
    assert content[4:8] == b"ftyp"
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    n_frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert (n_frames, seconds) == (10, pytest.approx(2.0, abs=0.05))


def test_formats_are_told_by_name(monkeypatch):
    with pytest.raises(ValueError, match="`format` should be one of gif, webp, mp4"):
        encode(pictures(), "avi")
    with pytest.raises(ValueError, match="`format` should be one of gif, webp, mp4"):
        AnimationOptions(format="avi")
    with pytest.raises(ValueError, match="`format` should be gif, webp, mp4 or a list"):
        AnimationOptions(format=[])
    monkeypatch.setattr(animation.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[animate\]'"):
        encode(pictures(), "mp4")
    monkeypatch.setattr(animation.features, "check", lambda _: False)
    with pytest.raises(ModuleNotFoundError, match="this Pillow cannot write WebP"):
        encode(pictures(), "webp")


@pytest.mark.parametrize(
    ("options", "name"),
    [({"n_frames": 1}, "n_frames"), ({"seconds": 0}, "seconds"), ({"loops": -1}, "loops")],
)
def test_options_out_of_range_are_told(options, name):
    with pytest.raises(ValueError, match=f"`{name}` should be"):
        AnimationOptions(**options)


def test_frames_of_an_uneven_decoder_change_evenly():
    # the image is z^2: at equal steps of the output z is the root of the share
    line = CubicBSpline.straight(torch.zeros(1, 1), torch.ones(1, 1))
    options = AnimationOptions(n_frames=6)
    model, data = LatentModel(Uneven()), torch.zeros(1, 1)
    arrays = animated_arrays(model, [line], options, data, torch.zeros(1, dtype=torch.int64))
    assert list(arrays) == ["animation_images"]  # there is no plane
    steps = arrays["animation_images"][0, 0].flatten(1).double().diff(dim=0).norm(dim=1)
    np.testing.assert_allclose(steps, math.sqrt(2.0) / 5, rtol=5e-3)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 8)])
@pytest.mark.parametrize("n_paths", [1, 5, 8])
def test_every_frame_is_drawn(shape, n_paths):
    images = {f"path {k}": GENERATOR.uniform(-1, 1, (4, *shape)) for k in range(n_paths)}
    images["path 0"][2] = np.nan
    frames = list(render(Animation("title", images)))
    assert len(frames) == 4
    assert len({frame.shape for frame in frames}) == 1
    height, width, channels = frames[0].shape
    assert (height % 2, width % 2, channels) == (0, 0, 3)
    assert width > height or n_paths == 1 or n_paths == 8
    # the bar moves on
    assert all((a != b).any() for a, b in pairwise(frames))


def test_dots_move_in_the_plane():
    """The dot of a path lies where its frame is."""
    model = LatentModel(gl.models.digits_vae())
    images, labels = gl.data.digits("test")
    codes = model.encode(images[:50])
    line = CubicBSpline.straight(codes[:1], codes[1:2])
    arrays = animated_arrays(model, [line], AnimationOptions(n_frames=3), codes, labels[:50])
    read_back = {name: value.numpy() for name, value in arrays.items()}
    (one,) = stored_animations(read_back, ["straight"], {"animation_0": "pair"}, "digits").values()
    canvas, _, (dot,), _ = animation._stage(one)
    assert np.allclose(dot.get_data(), codes[:1].T)
    first, _, last = render(one)
    assert (first != last).any()
    np.testing.assert_allclose(one.codes["straight"][[0, -1]], codes[:2], atol=1e-6)
    assert canvas.get_width_height()[0] >= first.shape[1]


# walks


@pytest.mark.parametrize("legs", ["straight", "slerp", "spiral", "geodesic"])
def test_loops_pass_through_their_codes_and_end_where_they_began(legs):
    metric = gl.PullbackMetric(lambda z: 3.0 * z)
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    walks, share = walk_codes(
        "loop", metric, codes.repeat(2, 1), length=1.0, n_steps=8, legs=legs, n_stops=4
    )
    assert walks.shape == (2, 9, 2)
    torch.testing.assert_close(walks[0], walks[1])
    torch.testing.assert_close(walks[0, ::2], torch.cat([codes, codes[:1]]), atol=1e-6, rtol=0)
    middle = 0.5**0.5 if legs in ("slerp", "spiral") else 0.5
    torch.testing.assert_close(walks[0, 1], torch.full_like(codes[0], middle), atol=1e-6, rtol=0)
    assert share[-1] == 1.0


def test_dimensions_swing_one_after_the_other():
    start = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    metric = gl.PullbackMetric(lambda z: z)
    walks, place = walk_codes("dimensions", metric, start, length=0.5, n_steps=12)
    expected = start.repeat(13, 1)
    for k in range(3):
        expected[4 * k + 1, k] += 0.5
        expected[4 * k + 3, k] -= 0.5
    torch.testing.assert_close(walks[0], expected)
    torch.testing.assert_close(place, torch.linspace(0.0, 3.0, 13, dtype=torch.float64))


def test_spirals_go_around_once_more():
    start = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    metric = gl.PullbackMetric(lambda z: z)
    walks, _ = walk_codes("spiral", metric, start, length=1.0, n_steps=100)
    torch.testing.assert_close(walks[:, [0, -1]], torch.stack([start, start.flip(0)], dim=1))
    angles = torch.atan2(walks[0, :, 1], walks[0, :, 0])
    turned = np.unwrap(angles.numpy())
    assert turned[-1] - turned[0] == pytest.approx(2.5 * math.pi)
    torch.testing.assert_close(walks[0].norm(dim=1), torch.linspace(1, 2, 101).double())


# commands

FEW = ["--animate", "--animation.n_frames=4"]
SMALL = ["--n_pairs=1", "--solver.max_control_points=7", "--length_tolerance=0.01"]
SMALL += ["--initial.kind=straight"]


@pytest.mark.parametrize("kind", ["brownian", "circle", "loop"])
def test_walks_are_animated(kind, tmp_path):
    out = tmp_path / "run"
    words = [f"--kind={kind}", "--n_walks=2", "--n_steps=6", "--length=1", *FEW]
    words += ["--legs=straight"]
    assert run("walk", "--out", out, *words) == 0
    path = out / "figures" / "animation.gif"
    durations, _, loop = read(path.read_bytes())
    assert (len(durations), loop) == (4, 0)
    assert load_run(out).arrays["animation_images"].shape == (1, 2, 4, 1, 8, 8)
    content = path.read_bytes()
    path.unlink()
    assert run("plot", out) == 0
    assert path.read_bytes() == content
    # what is recorded goes with the run
    assert run("walk", "--out", out, *words[:4], "--overwrite") == 0
    assert not path.exists()


@pytest.mark.parametrize("command", ["interpolate", "compare_paths"])
def test_pairs_are_animated(command, tmp_path):
    out = tmp_path / "run"
    words = ["--animation.format=gif,webp", *FEW, *SMALL]
    if command == "compare_paths":
        words += ["--geodesics=mean", "--n_points=5", "--n_reference=30"]
    assert run(command, "--out", out, *words) == 0
    found = {path.name for path in (out / "figures").iterdir()}
    assert {"animation_0.gif", "animation_0.webp"} <= found
    assert len(read((out / "figures" / "animation_0.gif").read_bytes())[0]) == 4


def test_a_format_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(animation.importlib.util, "find_spec", lambda _: None)
    words = ["--animate", "--animation.format=mp4", "--out", tmp_path / "run"]
    assert run("walk", *words) == 1
    assert "imageio-ffmpeg is not installed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run("walk", "--animate", "--animation.format=avi", "--out", tmp_path / "run") == 2
    assert "animation.format" in capsys.readouterr().err


def test_an_animation_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    images = {"path": np.zeros((3, 1, 4, 4))}

    def broken(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("geolatent.files.os.replace", broken)
    with pytest.raises(OSError, match="the disk is full"):
        animation.save_animations({"one": Animation("title", images)}, tmp_path, {})
    assert list(tmp_path.rglob("*.*")) == []
