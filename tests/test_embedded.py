"""The main job on the embedded model: pairs of real test digits, and the demo command."""

import re
import subprocess
import sys

import pytest
import torch

import geolatent as gl
from geolatent.cli import main
from geolatent.graph import graph_curve
from geolatent.lab.demo import LATTICE_RESOLUTION, digit_pairs


def test_a_hundred_pairs_of_digits():
    pairs = digit_pairs(100, seed=3)
    solution = gl.solve_geodesic(pairs.metric, pairs.start, pairs.end)
    assert (solution.length <= solution.straight_length).all()
    explained = {gl.Status.CONVERGED, gl.Status.MAX_CONTROL_POINTS, gl.Status.STRAIGHT_IS_SHORTEST}
    assert set(solution.statuses) <= explained
    left = solution.predicted_improvement
    assert (left >= 0).all()
    assert (left < 1e-3).double().mean() >= 0.95
    # the reported lengths are those of the returned curves
    assert torch.allclose(gl.path_length(pairs.metric, solution.curve), solution.length, rtol=2e-4)
    # counts depend on the machine's arithmetic only where a pair is at the edge of a decision
    assert solution.evaluations.equivalents.mean() < 2600


def test_the_demo_finds_the_best_known_curves():
    pairs = digit_pairs(12, seed=0)  # the first eight are the demo's
    low, high = pairs.bounds
    graph = gl.LatentGraph.lattice(pairs.metric, low, high, resolution=LATTICE_RESOLUTION)
    solution = gl.solve_geodesic(pairs.metric, pairs.start, pairs.end, initial=graph)

    fine = gl.LatentGraph.lattice(pairs.metric, low, high, resolution=200)
    path = graph_curve(fine, pairs.start, pairs.end, 48)
    polish = gl.PreconditionedSolver(tolerance=3e-5, max_control_points=96)
    polished = gl.solve_geodesic(pairs.metric, pairs.start, pairs.end, polish, initial=path)
    best = torch.minimum(polished.length, solution.length)
    assert (solution.length <= 1.01 * best).double().mean() >= 0.9
    assert (solution.length[:8] <= 1.01 * best[:8]).double().mean() >= 0.9


def test_graph_of_training_codes_is_never_worse_than_straight():
    pairs = digit_pairs(20, seed=1)
    graph = gl.LatentGraph.from_codes(pairs.metric, pairs.codes, n_nodes=6000, jitter=0.2)
    assert graph.forward_rows <= 6000
    straight = gl.solve_geodesic(pairs.metric, pairs.start, pairs.end)
    solution = gl.solve_geodesic(pairs.metric, pairs.start, pairs.end, initial=graph)
    assert (solution.length <= straight.length * (1 + 1e-4)).all()


def test_digit_pairs_differ_in_class_and_use_no_image_twice():
    pairs = digit_pairs(30, seed=5)
    assert (pairs.labels[:, 0] != pairs.labels[:, 1]).all()
    codes = torch.cat([pairs.start, pairs.end])
    assert len(codes.unique(dim=0)) == 60
    with pytest.raises(ValueError, match=r"`n_pairs` should be at most"):
        digit_pairs(5000)


def test_demo_command_writes_its_figures(tmp_path, capsys):
    out = tmp_path / "figures"
    assert main(["demo", "--out", str(out), "--n_pairs", "3", "--seed", "1"]) == 0
    text = capsys.readouterr().out
    for heading in ("straight", "geodesic", "improvement", "predicted", "control", "evaluations"):
        assert heading in text
    assert len(re.findall(r"\d → \d", text)) == 3
    for name in ("interpolations.png", "latent_plane.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert name in text
    assert not list(out.glob("*.tmp"))


def test_demo_runs_as_a_program_without_options(tmp_path):
    command = [sys.executable, "-m", "geolatent", "demo"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "latent_plane.png" in done.stdout
    assert (tmp_path / "geolatent-demo" / "latent_plane.png").is_file()


def test_demo_says_in_one_line_what_is_wrong(tmp_path, capsys):
    assert main(["demo", "--n_pairs", "0", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.strip() == (
        "geolatent demo: Parameter `n_pairs` should be an integer of at least 1. "
        "Found `n_pairs = 0`."
    )
    target = tmp_path / "file"
    target.write_text("")
    assert main(["demo", "--n_pairs", "1", "--out", str(target)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
