"""Panels and pictures: what is drawn of images, windows of trajectories and maps."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from test_paths import run

from geolatent.explorer.subject import Subject
from geolatent.lab.animation import Animation, render
from geolatent.lab.config import DataOptions, ModelOptions
from geolatent.lab.panels import panels_for, pictures_of
from geolatent.lab.sst import SCALE
from geolatent.lab.systems import SYSTEMS, windows
from geolatent.models import RecurrentVAE, save_model

BOX = (0.0, 0.0, 1.0, 1.0)


def some_windows(name, n=4):
    options = DataOptions(name, split="test", n_trajectories=10)
    return windows(options)[0][:n].double().numpy()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_panel_shows_the_coordinates_of_its_window(name):
    system, path = SYSTEMS[name], some_windows(name)
    panels, figure = panels_for(name, [path, path[::-1]]), Figure()
    show = panels.add(figure, BOX, path)
    assert [axes.get_ylabel().replace("\n", " ") for axes in figure.axes] == [*system.coordinates]
    for number in (2, 0):
        show(number)
        expected = system.drawn(torch.from_numpy(path[number, 0])).numpy()
        for row, axes in enumerate(figure.axes):
            first, shown = (line.get_ydata() for line in axes.lines)
            turns = (shown - expected[:, row]) / (2 * np.pi)  # an angle may be moved by them
            whole = "rad)" in system.coordinates[row]
            np.testing.assert_allclose(turns, np.round(turns[0]) if whole else 0.0, atol=1e-12)
            low, high = axes.get_ylim()
            assert low < shown.min() <= shown.max() < high
            assert np.array_equal(first, shown) == (number == 0)


def test_a_map_is_in_kelvin_and_its_north_is_above():
    fields = np.zeros((2, 1, 18, 30))
    fields[1, 0, 17, 3] = 2.0 / SCALE  # the northernmost row
    figure = Figure()
    show = panels_for("sst", [fields]).add(figure, BOX, fields)
    picture = figure.axes[0].images[0]
    show(1)
    assert picture.get_array()[17, 3] == pytest.approx(2.0)
    assert picture.origin == "lower"
    fields[1, 0, 4, 5] = np.nan
    cold, warm = pictures_of("sst", fields)
    assert warm.shape == (3, 18, 30)
    red, green, blue = warm[:, 0, 3]
    assert red > blue > -1.0
    assert green < red
    np.testing.assert_allclose(warm[:, 13, 5], 0.2)  # grey
    # no anomaly is nearly white
    assert cold.min() > 0.9


def test_images_are_pictures_already():
    images = np.zeros((2, 5, 1, 8, 8))
    assert pictures_of("MNIST", images) is images


@pytest.mark.parametrize("axes", [False, True])
@pytest.mark.parametrize("name", SYSTEMS)
def test_windows_become_pictures_of_one_size(name, axes):
    outputs = some_windows(name).reshape(2, 2, 1, 32, -1)
    outputs[0, 0] = np.nan
    pictures = pictures_of(name, outputs, axes=axes)
    nothing = pictures_of(name, np.full_like(outputs[:1, :1], np.nan), axes=axes)
    assert nothing.shape == (1, 1, *pictures.shape[2:])
    assert pictures.shape[:3] == (2, 2, 3)
    assert -1.0 <= pictures.min() < pictures.max() <= 1.0
    # lines are drawn of all but the first
    for picture in (pictures[0, 1], pictures[1, 0], pictures[1, 1]):
        assert (pictures[0, 0] != picture).sum() > 100


@pytest.mark.parametrize("name", [*SYSTEMS, "sst"])
def test_every_frame_of_sequences_is_drawn(name):
    path = np.random.default_rng(0).normal(0, 0.3, (3, 1, 18, 30)) if name == "sst" else None
    path = some_windows(name, 3) if path is None else path
    frames = list(render(Animation("title", {"a": path, "b": path[::-1]}, data_name=name)))
    assert len({frame.shape for frame in frames}) == 1
    assert all((frames[k] != frames[0]).any() for k in (1, 2))


def test_runs_of_a_system_draw_lines(tmp_path):
    torch.manual_seed(0)
    model = RecurrentVAE(3, hidden=8).eval()
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    words = ["--model.checkpoint", path, "--data.name", "lorenz", "--data.n_trajectories", "10"]
    walk = ["--kind", "radial", "--n_walks", "2", "--n_steps", "4"]
    animate = ["--animate", "--animation.n_frames", "3"]
    assert run("walk", *words, *walk, *animate, "--out", tmp_path / "walk") == 0
    assert (tmp_path / "walk" / "figures" / "animation.gif").exists()
    assert run("sample", *words, "--n_samples", "3", "--out", tmp_path / "sample") == 0
    assert (tmp_path / "sample" / "figures" / "samples.png").exists()
    pytest.importorskip("dash", reason="needs Dash: the extra `explore`")
    from geolatent.explorer.layout import page

    options = DataOptions("lorenz", split="test", n_trajectories=10)
    subject = Subject(model=ModelOptions(checkpoint=str(path)), data=options, resolution=5)
    outputs = subject.decode(subject.codes[:2])
    assert subject.pictures(outputs).shape == (2, 3, 72, 72)
    assert subject.pictures(outputs, axes=True).shape[1] == 3
    assert page(subject).className == "drawn"
    assert not Subject(model=ModelOptions(checkpoint=str(path)), source="prior").draws
