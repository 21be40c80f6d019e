"""What commands say of a model whose decoder is not finite, everywhere or in a region."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from geolatent import PullbackMetric
from geolatent.cli import main
from geolatent.lab import walk
from geolatent.lab.measures import correlation_matrices
from geolatent.lab.results import load_run

COARSE = ["--solver.max_control_points=7", "--length_tolerance=0.01"]
COMMANDS = {
    "improvement": ["--pairs=encoded", "--n_pairs=4", "--initial.kind=straight", *COARSE],
    "interpolate": ["--n_pairs=4", "--n_shown=2", "--initial.kind=straight", *COARSE],
    "landscape": ["--resolution=7"],
    "distances": ["--data.per_class=1", "--n_nodes=1300", *COARSE],
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:the graph has no path"),
    pytest.mark.filterwarnings("ignore:.* walks ran into"),
]


@pytest.fixture(autouse=True)
def models_to_import(monkeypatch):
    """Let `broken_models` beside this file be a class path."""
    monkeypatch.syspath_prepend(Path(__file__).parent)


def run(command, out, where, *words, latent_dim=2):
    options = json.dumps({"where": where, "latent_dim": latent_dim})
    model = ["--model.class_path=broken_models.Broken", f"--model.init_args={options}"]
    return main([command, f"--out={out}", *model, *words])


@pytest.mark.parametrize("where", ["everywhere", "half"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_with_a_result(command, where, tmp_path, capsys):
    assert run(command, tmp_path, where, *COMMANDS[command]) == 0
    summary = load_run(tmp_path).summary
    printed = capsys.readouterr()
    assert not printed.err
    if where == "everywhere":
        assert " - " in printed.out
    if command in ("improvement", "interpolate"):
        for group in summary["groups"].values():
            lost = group["statuses"]["NON_FINITE"]
            assert lost == 4 if where == "everywhere" else lost > 0
        assert "NON_FINITE: The metric is NaN or infinite on the way" in printed.out
    if command == "distances":
        assert "distances are not finite and are left out" in printed.out
        unknown = summary["distances"]["geodesic"]["unknown"]
        assert unknown == 45 if where == "everywhere" else 0 < unknown < 45
    assert main(["report", str(tmp_path)]) == 0
    assert main(["plot", str(tmp_path)]) == 0


@pytest.mark.parametrize("kind", ["brownian", "radial", "circle"])
@pytest.mark.parametrize("where", ["everywhere", "half"])
def test_walks_end_with_a_result(kind, where, tmp_path, capsys):
    few = ["--n_walks=2", "--n_steps=4", f"--kind={kind}"]
    assert run("walk", tmp_path, where, *few) == 0
    found = load_run(tmp_path)
    printed = capsys.readouterr().out
    images = found.arrays["images"]
    ended = np.isnan(found.arrays["walks"]).any(2)
    lost = np.isnan(images).all((2, 3, 4))
    # no image where there is no walk, instead of that of the origin
    assert (lost >= ended).all()
    if where == "everywhere":
        assert lost.all()
    if kind == "brownian":
        assert sum(found.summary["ended"].values()) == ended[:, -1].sum()
        if where == "everywhere":
            assert found.summary["ended"] == {"metric not finite": 2}
            assert "2 of 2 walks ended early: metric not finite." in printed
    else:
        assert found.summary["ended"] == {}
        assert "The decoded image is not finite at" in printed
    assert main(["report", str(tmp_path)]) == 0


@pytest.mark.parametrize("where", ["everywhere", "half"])
@pytest.mark.parametrize("command", ["interpolate", "distances"])
def test_one_latent_dimension(command, where, tmp_path):
    assert run(command, tmp_path, where, *COMMANDS[command], latent_dim=1) == 0


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("improvement", ["--pairs=worst", "--n_pairs=2"], "`metric` should be finite"),
        ("cluster", ["--n_nodes=1300", "--n_seeds=1"], "metric finite at its nodes"),
        ("sample", ["--n_samples=2"], "`image` should be finite"),
    ],
)
def test_commands_that_cannot_go_on_say_why(command, words, message, tmp_path, capsys):
    assert run(command, tmp_path, "everywhere", *words) == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_why_walks_ended():
    def decode(z):  # NaN right of 1, no area left of -1
        flat = torch.where(z[:, :1] < -1.0, 0.0, z[:, 1:])
        return torch.cat([z[:, :1], flat * torch.where(z[:, :1] > 1.0, torch.nan, 1.0)], dim=1)

    ends = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0]])
    walks = ends[:, None].repeat(1, 4, 1)
    walks[:, 2:] = torch.nan
    whole = torch.zeros(2, 4, 2)
    assert walk.endings(PullbackMetric(decode), torch.cat([walks, whole])) == {
        "metric not finite": 1,
        "metric singular": 1,
        "the next step's geodesic could not be followed": 1,
    }
    assert walk.endings(PullbackMetric(decode), whole) == {}


def test_images_that_are_not_finite_have_no_correlation():
    images = torch.randn(1, 3, 4, 4)
    images[0, 1, 0, 0] = torch.nan
    found = correlation_matrices(images)[0]
    assert found[1].isnan().all()
    assert found[:, 1].isnan().all()
    assert found[0, 2].isfinite()
