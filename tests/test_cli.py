"""The command line: help, configs, overrides, errors told by name, interrupted commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from rounding import assert_same_pairs

import geolatent as gl
from geolatent.cli import COMMANDS, main
from geolatent.models import save_model
from geolatent.results import ENVIRONMENT, PAIRS, load_run

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = (
    "interpolate",
    "improvement",
    "compare",
    "landscape",
    "distances",
    "cluster",
    "walk",
    "sample",
)
# small enough for a test; the coarse tolerance of lengths matters most
SMALL = [
    "--solver.max_control_points=7",
    "--solver.length_tolerance=0.01",
    "--initial.kind=straight",
]


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture
def checkpoint(tmp_path):
    """Return the path of a model of 8 x 8 images with another latent space."""
    model = gl.models.digits_vae()
    return save_model(model, tmp_path / "model.safetensors")


def test_overview_names_every_command(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in printed
    assert main(["--version"]) == 0
    assert gl.__version__ in capsys.readouterr().out


def test_an_unknown_command_is_told(capsys):
    assert main(["improve"]) == 2
    assert "no command `improve`" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capsys):
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"usage: geolatent {command}" in printed
    for name in ("--out ", "--seed ", "--overwrite "):
        if command in EXPERIMENTS:
            assert name in printed


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--n_pair=3"], "--n_pair"),
        (["--n_pairs=many"], "n_pairs"),
        (["--n_pairs=2.5"], "n_pairs"),
        (["--steps=[1,x]"], "steps"),
        (["--pairs=best"], "pairs"),
        (["--model.chekpoint=a"], "--model.chekpoint"),
        (["--solver.tolerance=tight"], "solver.tolerance"),
        (["--solver.toleranc=1e-3"], "--solver.toleranc"),
        (["--features.kind=wavelet"], "features.kind"),
        (["--data.name=CIFAR"], "data.name"),
        (["--dtype=float16"], "dtype"),
        (["--overwrite=perhaps"], "overwrite"),
        (["--model=[1]"], "model"),
    ],
)
def test_wrong_words_are_refused_by_name(words, key, capsys, tmp_path):
    assert run("improvement", "--out", tmp_path / "run", *words) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("n_pair: 3", "n_pair"),
        ("solver: {tolerance: tight}", "solver.tolerance"),
        ("solver: {toleranc: 1e-3}", "toleranc"),
        ("model: [a]", "model"),
    ],
)
def test_wrong_configs_are_refused_by_name(text, key, capsys, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert run("improvement", "--config", config, "--out", tmp_path / "run") == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["improvement", "--n_pairs=0"], "n_pairs"),
        (["improvement", "--steps=[0.0]"], "steps"),
        (["improvement", "--pairs=prior", "--steps=[1.0]"], "steps"),
        (["improvement", "--pairs=codes"], "codes"),
        (["improvement", "--solver.tolerance=0"], "tolerance"),
        (["improvement", "--device=nonsense"], "device"),
        (["improvement", "--features.kind=module"], "class_path"),
        (["interpolate", "--n_images=1"], "n_images"),
        (["interpolate", "--n_pairs=100000"], "n_pairs"),
        (["compare"], "models"),
        (["compare", "--models.a.checkpoint=missing.safetensors"], "models"),
        (["landscape", "--margin=-1"], "margin"),
        (["sample", "--n_samples=0"], "n_samples"),
        (["sample", "--source=data", "--n_samples=100000"], "n_samples"),
    ],
)
def test_values_out_of_range_are_told_in_a_line(words, name, capsys, tmp_path):
    assert run(*words, "--out", tmp_path / "run") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(f"geolatent {words[0]}: Parameter `{name}` should be")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [name for name in EXPERIMENTS if name != "compare"])
def test_a_missing_checkpoint_is_told_in_a_line(command, capsys, tmp_path):
    missing = tmp_path / "missing.safetensors"
    assert run(command, "--model.checkpoint", missing, "--out", tmp_path / "run") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "To train a model, run: geolatent train --config" in told
    assert not (tmp_path / "run").exists()


def test_a_missing_checkpoint_among_several_is_told_by_name(capsys, tmp_path):
    words = ["--models.a", "{}", "--models.b.checkpoint", tmp_path / "missing.safetensors"]
    assert run("compare", *words, "--out", tmp_path / "run") == 1
    assert "`models.b.checkpoint` should be an existing file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["interpolate", "compare", "landscape"])
def test_a_missing_data_folder_is_told_in_a_line(command, capsys, tmp_path):
    words = ["--data.name=MNIST", "--data.root", tmp_path / "missing", "--out", tmp_path / "run"]
    if command == "compare":
        words += ["--models.a", "{}", "--models.b", "{}"]
    assert run(command, *words) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "--data.download true" in told
    assert not (tmp_path / "run").exists()


def test_images_of_another_shape_are_told(capsys, tmp_path):
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((30, 9, 9), dtype=np.uint8))
    words = ["--data.name=file", "--data.path", images, "--data.low=0", "--data.high=255"]
    assert run("interpolate", *words, "--out", tmp_path / "run") == 1
    assert "`data.name` should be images of the shape" in capsys.readouterr().err


def test_improvement_writes_a_run_that_its_config_repeats(capsys, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--n_pairs=3", "--steps=[0.5,1.0]", "--solver.batch_size=2", *SMALL]
    assert run("improvement", "--out", first, *words) == 0
    printed = capsys.readouterr().out
    assert "Relative length improvement" in printed
    assert "histogram.png" in printed
    read = load_run(first)
    assert read.finished
    assert read.config["steps"] == [0.5, 1.0]
    assert read.config["solver"]["batch_size"] == 2
    assert len(read.pairs) == 6
    assert (read.pairs.column("relative_improvement") >= 0).all()
    figures = {path.name for path in (first / "figures").iterdir()}
    assert figures == {"histogram.png", "steps.png", "alignment.png"}
    # the stored config, with one option overridden
    assert run("improvement", "--config", first / "config.yaml", "--out", second) == 0
    assert_same_pairs(load_run(second).pairs, read.pairs)


def test_results_are_overwritten_when_asked_alone(capsys, tmp_path):
    words = ["improvement", "--pairs=prior", "--n_pairs=1", "--out", tmp_path / "run", *SMALL]
    assert run(*words) == 0
    assert run(*words) == 1
    assert "or --overwrite be given" in capsys.readouterr().err
    assert run(*words, "--overwrite") == 0
    assert run("--overwrite") == 2


def test_interpolate_compares_feature_maps(capsys, tmp_path):
    out = tmp_path / "run"
    words = ["--n_pairs=2", "--features.kind=logistic", "--n_images=4", *SMALL]
    words += ["--metric.uncertainty=false"]
    assert run("interpolate", "--out", out, *words) == 0
    printed = capsys.readouterr().out
    assert "logistic geodesic" in printed
    read = load_run(out)
    assert read.pairs.column("metric").tolist() == ["geodesic"] * 2 + ["logistic geodesic"] * 2
    assert read.arrays["frames"].shape == (2, 4, 4, 1, 8, 8)
    assert read.summary["classifier_accuracy"] > 0.85
    for group in read.summary["groups"].values():
        for name in ("crossings", "data_distance", "correlation_variance", "alignment"):
            for prefix in ("", "straight_", "slerp_"):
                assert group[prefix + name]["mean"] >= 0
    figures = sorted((out / "figures").iterdir())
    names = ["correlations", "crossings", "data_distance", "norms", "strips"]
    assert [path.stem for path in figures] == names
    # the figures again, from the stored results alone
    for path in figures:
        path.unlink()
    assert run("plot", out) == 0
    assert sorted((out / "figures").iterdir()) == figures


def test_interpolate_takes_images_without_labels(tmp_path):
    images, _ = gl.data.digits("test")
    np.save(tmp_path / "images.npy", images[:40, 0].numpy())
    words = ["--data.name=file", "--data.path", tmp_path / "images.npy", "--data.split=all"]
    words += ["--data.low=-1", "--data.high=1", "--n_pairs=2", *SMALL]
    assert run("interpolate", "--out", tmp_path / "run", *words) == 0
    read = load_run(tmp_path / "run")
    assert "crossings" not in read.pairs.table.column_names
    assert read.summary["classifier_accuracy"] is None


def test_interpolate_takes_a_file_of_codes(tmp_path):
    codes = np.random.default_rng(0).standard_normal((5, 2, 2))
    np.save(tmp_path / "codes.npy", codes)
    words = ["--pairs=codes", "--codes", tmp_path / "codes.npy", "--n_pairs=3", *SMALL]
    assert run("interpolate", "--out", tmp_path / "run", *words) == 0
    pairs = load_run(tmp_path / "run").pairs
    np.testing.assert_allclose(pairs.column("start"), codes[:3, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--models.a.chekpoint=x", "--models.b={}"], "chekpoint"),
        (["--models=[a, b]"], "models"),
    ],
)
def test_wrong_models_are_refused_by_name(words, key, capsys, tmp_path):
    assert run("compare", *words, "--out", tmp_path / "run") == 2
    assert key in capsys.readouterr().err


def test_compare_a_model_with_itself(capsys, checkpoint, tmp_path):
    words = ["--models.small", "{}", "--models.same.checkpoint", checkpoint, "--n_pairs=3"]
    assert run("compare", "--out", tmp_path / "run", *words, *SMALL) == 0
    assert "3 of 3 pairs are comparable" in capsys.readouterr().out
    read = load_run(tmp_path / "run")
    small, same = (read.pairs.where("model", name) for name in ("small", "same"))
    np.testing.assert_allclose(
        small.column("relative_improvement"), same.column("relative_improvement"), atol=1e-4
    )
    assert (small.column("difference") <= 1e-4).all()
    assert run("plot", tmp_path / "run") == 0


def test_landscape(capsys, tmp_path):
    words = ["--resolution=9", "--out", tmp_path / "run"]
    assert run("landscape", *words) == 0
    assert "condition number" in capsys.readouterr().out
    read = load_run(tmp_path / "run")
    assert read.arrays["magnification"].shape == (9, 9)
    assert (read.arrays["condition"] >= 1).all()
    assert (tmp_path / "run" / "figures" / "landscape.png").is_file()


def test_a_landscape_has_two_dimensions(capsys, tmp_path):
    model = save_model(gl.models.MLPVAE(latent_dim=3), tmp_path / "model")
    assert run("landscape", "--model.checkpoint", model, "--out", tmp_path / "run") == 1
    assert "a model with two latent dimensions" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["prior", "reconstructed", "data"])
def test_sample_writes_png_files_alone(source, tmp_path):
    out = tmp_path / "run"
    assert run("sample", "--source", source, "--n_samples=3", "--out", out) == 0
    names = sorted(path.name for path in (out / "images").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    assert all(path.read_bytes()[1:4] == b"PNG" for path in (out / "images").iterdir())
    assert load_run(out).summary["shape"] == [1, 8, 8]


def test_report_tabulates_the_runs_of_a_folder(capsys, tmp_path):
    assert run("sample", "--n_samples=2", "--out", tmp_path / "runs" / "sample") == 0
    words = ["--pairs=prior", "--n_pairs=2", "--out", tmp_path / "runs" / "prior", *SMALL]
    assert run("improvement", *words) == 0
    capsys.readouterr()
    assert run("report", tmp_path / "runs") == 0
    printed = capsys.readouterr().out
    assert "2 images" in printed
    assert "prior" in printed


@pytest.mark.parametrize("command", ["plot", "report"])
def test_no_results_are_told(command, capsys, tmp_path):
    assert run(command, tmp_path / "missing") == 1
    assert run(command, tmp_path) == 1
    assert capsys.readouterr().err.count("Parameter") == 2


def test_train_needs_a_model(capsys, tmp_path):
    assert run("train", "--out_dir", tmp_path / "model") == 2
    assert "model" in capsys.readouterr().err


def test_train_reads_its_config(capsys, tmp_path):
    config = {
        "model": {"class_path": "geolatent.models.MLPVAE", "init_args": {"hidden": [16]}},
        "data": {"name": "digits", "per_class": 20},
        "training": {"epochs": 5, "accelerator": "cpu", "progress": False},
        "precision": {"n_centers": 8},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", tmp_path / "config.yaml", "--training.epochs=1"]
    words += ["--model.init_args.latent_dim=3", "--out_dir", tmp_path / "runs" / "model"]
    assert run("train", *words) == 0
    printed = capsys.readouterr().out
    assert "200 images, 1 epochs" in printed
    model = gl.models.load_model(tmp_path / "runs" / "model" / "model.safetensors")
    assert model.latent_dim == 3
    assert run("plot", tmp_path / "runs" / "model") == 0
    assert run("report", tmp_path / "runs") == 0
    assert "MLPVAE" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_are_understood(path, capsys):
    command = path.stem.split("_")[0]
    if command not in COMMANDS or path.stem == "train_digits_vae":
        pytest.skip("not a config of a command")
    assert run(command, "--config", path, "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(given) <= set(printed)
    # what a config says is commented, and is what the command would do
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_a_killed_command_leaves_a_readable_folder(tmp_path):
    out = tmp_path / "run"
    words = ["--n_pairs=400", "--solver.batch_size=2", "--steps=[0.5]", *SMALL]
    command = [sys.executable, "-m", "geolatent", "improvement", "--out", str(out), *words]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not list(out.glob("parts/*.parquet")):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
    read = load_run(out)
    assert not read.finished
    assert 0 < len(read.pairs) < 400
    assert (read.pairs.column("relative_improvement") >= 0).all()
    assert read.pairs.curve.batch_size == len(read.pairs)
    assert json.loads((out / ENVIRONMENT).read_text())["command"] == "improvement"
    assert not (out / PAIRS).exists()


def test_plot_tells_of_an_interrupted_run(capsys, tmp_path):
    from geolatent.results import RunFolder

    RunFolder.create(tmp_path / "run", "improvement", {}, seed=0, device="cpu")
    assert run("plot", tmp_path / "run") == 1
    assert "interrupted after 0 solved rows" in capsys.readouterr().err
