"""Traversals at a code: dimensions, eigenvectors of the metric, attributes."""

import math

import numpy as np
import pytest
import torch
from test_paths import run

import geolatent as gl
from geolatent.lab.config import DataOptions
from geolatent.lab.run import load_run
from geolatent.lab.traverse import Traverse, geodesic_traversal, traversal

DOUBLE = {"dtype": torch.float64}


def test_traversals_are_straight():
    code, steps = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.0, 0.5])
    found = traversal(code, torch.tensor([[3.0, 0.0], [0.0, 4.0]]), steps)
    expected = [[[-2.0, 2], [1, 2], [2.5, 2]], [[1, -2], [1, 2], [1, 4]]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_geodesics_are_followed_to_both_sides():
    # polar coordinates: from (1, 0) in the direction of the angle, a straight line x = 1
    metric = gl.PullbackMetric(lambda z: z[:, :1] * torch.cat([z[:, 1:].cos(), z[:, 1:].sin()], 1))
    steps = torch.linspace(-1.0, 1.0, 5, **DOUBLE)
    code, velocity = torch.tensor([1.0, 0.0], **DOUBLE), torch.tensor([[0.0, 1.0]], **DOUBLE)
    found, statuses = geodesic_traversal(metric, code, velocity, steps)
    expected = torch.stack([(1.0 + steps**2).sqrt(), steps.atan()], dim=1)
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=0)
    assert statuses == ["FINISHED", "FINISHED"]


def test_geodesics_of_a_metric_without_an_immersion():
    # on the half-plane those that start upwards stay on a vertical, y = exp(t)
    metric = gl.TensorMetric(
        lambda z: torch.eye(2).to(z).expand(len(z), 2, 2) / z[:, 1, None, None] ** 2, dim=2
    )
    code, up = torch.tensor([0.0, 1.0], **DOUBLE), torch.tensor([[0.0, 1.0]], **DOUBLE)
    steps = torch.tensor([-1.0, 0.0, 1.0], **DOUBLE)
    found, _ = geodesic_traversal(metric, code, up, steps)
    torch.testing.assert_close(found[0, :, 1], steps.exp(), atol=1e-4, rtol=0)


def test_a_geodesic_that_breaks_off_leaves_the_code():
    # the square of a coordinate is flat at 0, where a chain cannot go on
    metric = gl.PullbackMetric(lambda z: z.square())
    steps = torch.tensor([-2.0, 0.0, 1.0], **DOUBLE)
    code = torch.ones(1, **DOUBLE)
    found, statuses = geodesic_traversal(metric, code, torch.ones(1, 1, **DOUBLE), steps)
    assert found[0].isnan().flatten().tolist() == [True, False, False]
    # z^2 grows by 2 a unit of time
    assert float(found[0, 2, 0]) == pytest.approx(3.0**0.5, abs=1e-4)
    assert statuses[0] != "FINISHED" == statuses[1]


def test_directions_of_attributes_lead_from_class_to_class(tmp_path):
    work = Traverse(out=tmp_path, attributes=((3, 8),), dtype="float64")
    images, labels = gl.data.digits("train")
    with torch.no_grad():
        codes = gl.models.digits_vae(torch.float64).encode(images.double())[0]
    expected = codes[labels == 8].mean(0) - codes[labels == 3].mean(0)
    torch.testing.assert_close(work.attribute_directions()[0], expected)


def test_traverse(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("geolatent.lab.traverse._CHAIN", 96)  # the default takes longer
    out = tmp_path / "run"
    words = ["--sample=3", "--attributes=[[7,0]]", "--n_steps=5", "--dtype=float64"]
    assert run("traverse", "--out", out, *words) == 0
    printed = capsys.readouterr().out
    assert "Varying eigenvector 1 changes the output by" in printed
    read = load_run(out)
    arrays, summary = read.arrays, read.summary
    # the code itself is in the middle of all rows
    images, _ = gl.data.digits("test")
    vae = gl.models.digits_vae(torch.float64)
    with torch.no_grad():
        code = vae.encode(images[3:4].double())[0]
        image = vae.decode(code)[0]
    for name in ("dimensions", "eigenvectors", "straight", "geodesic"):
        for row in range(len(arrays[f"{name}_codes"])):
            middle = torch.from_numpy(arrays[f"{name}_codes"][row, 2])
            torch.testing.assert_close(middle, code[0], atol=1e-5, rtol=0)
        shown = torch.from_numpy(arrays[f"{name}_images"][0, 2])
        torch.testing.assert_close(shown, image[0], atol=1e-4, rtol=0)
    # eigenvalues are those of the metric tensor, and tell how far a small step moves the output
    metric = gl.GaussianPullbackMetric(vae.decode)
    values = torch.linalg.eigvalsh(metric.tensor(code))[0].flip(0)
    np.testing.assert_allclose(summary["stretch"], values.sqrt(), rtol=1e-5)
    small = 1e-4 * torch.from_numpy(arrays["eigenvectors_of_metric"])
    with torch.no_grad():
        moved = torch.cat(vae.decode(code + small), dim=1) - torch.cat(vae.decode(code), dim=1)
    np.testing.assert_allclose(moved.flatten(1).norm(dim=1) / 1e-4, summary["stretch"], rtol=1e-2)
    # the largest stretch is no less than that of any dimension
    assert summary["stretch"] == sorted(summary["stretch"], reverse=True)
    assert max(summary["dimension_stretch"]) <= summary["stretch"][0] * (1 + 1e-6)
    # dimensions are ordered by what a step of the codes' deviation changes
    order = np.array(summary["dimensions"]) - 1
    changes = np.array(summary["dimension_stretch"]) * arrays["deviation"][order]
    assert (np.diff(changes) <= 0).all()
    np.testing.assert_allclose(
        np.array(summary["dimension_stretch"]) ** 2,
        metric.tensor(code)[0].diagonal()[order],
        rtol=1e-5,
    )
    # the geodesic is another path than the straight line
    straight, geodesic = (arrays[f"{name}_codes"][0] for name in ("straight", "geodesic"))
    assert np.isfinite(geodesic).all()
    assert 0 < np.abs(geodesic - straight).max() < np.abs(straight[0] - straight[-1]).max()
    probabilities = arrays["straight_probabilities"]
    np.testing.assert_allclose(probabilities.sum(2), 1.0, rtol=1e-5)
    assert probabilities.shape == (1, 5, 10)
    classifier = Traverse(out=tmp_path).dataset.classifier()[0]
    with torch.no_grad():
        expected = classifier(torch.from_numpy(arrays["straight_images"][0]).float()).softmax(1)
    np.testing.assert_allclose(probabilities[0], expected, atol=1e-4)
    assert summary["targets"]["straight"][0]["here"] == pytest.approx(probabilities[0, 2, 0])
    figures = sorted((out / "figures").iterdir())
    names = ["answers", "attributes", "dimensions", "eigenvectors"]
    assert [path.stem for path in figures] == names
    for path in figures:
        path.unlink()
    assert run("plot", out) == 0
    assert sorted((out / "figures").iterdir()) == figures
    assert run("report", tmp_path) == 0


def test_the_mean_of_the_data_is_the_default_and_there_may_be_no_attributes(tmp_path):
    out = tmp_path / "run"
    assert run("traverse", "--out", out, "--attributes=[]", "--n_steps=3", "--n_rows=1") == 0
    read = load_run(out)
    work = Traverse(out=out, data=DataOptions(split="test"))
    np.testing.assert_allclose(read.arrays["code"], work.encoded.mean(0), atol=1e-6)
    assert read.arrays["dimensions_images"].shape == (1, 3, 1, 8, 8)
    assert {path.stem for path in (out / "figures").iterdir()} == {"dimensions", "eigenvectors"}


def test_images_without_labels_have_no_attributes(tmp_path, capsys):
    images, _ = gl.data.digits("test")
    np.save(tmp_path / "images.npy", images[:40, 0].numpy())
    words = ["--data.name=file", "--data.path", tmp_path / "images.npy", "--data.split=all"]
    words += ["--data.low=-1", "--data.high=1", "--n_steps=3"]
    assert run("traverse", "--out", tmp_path / "run", *words) == 0
    assert load_run(tmp_path / "run").summary["attributes"] == []
    assert run("traverse", "--out", tmp_path / "other", *words, "--attributes=[[0,1]]") == 1
    assert "images have no labels" in capsys.readouterr().err


def test_steps_are_even_around_zero():
    steps = Traverse(n_steps=7).steps
    assert float(steps[3]) == 0.0
    assert math.isclose(float(steps[-1]), 1.0)
    torch.testing.assert_close(steps, torch.linspace(-1.0, 1.0, 7, **DOUBLE))
