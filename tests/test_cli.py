"""The command line: help, configs, overrides, errors told by name, interrupted commands."""

import importlib
import inspect
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
import yaml
from rounding import assert_same_pairs

import geolatent as gl
from geolatent.cli import COMMANDS, main
from geolatent.lab.config import CHOICES
from geolatent.lab.contents import ENVIRONMENT, PAIRS
from geolatent.lab.outline import outline
from geolatent.lab.run import load_run
from geolatent.models import save_model
from geolatent.solvers.lbfgs import LBFGS

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = (
    "interpolate",
    "improvement",
    "compare",
    "compare_paths",
    "landscape",
    "distances",
    "cluster",
    "walk",
    "traverse",
    "sample",
)
# small enough for a test; the coarse tolerance of lengths matters most
SMALL = [
    "--solver.max_control_points=7",
    "--length_tolerance=0.01",
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
    told = capsys.readouterr().err
    assert "no command `improve`. Did you mean `improvement`?" in told
    assert told.count("\n") == 2
    assert main(["--verson"]) == 2
    assert "Did you mean `--version`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--help"],
        ["improve"],
        ["improvement", "--help"],
        ["train", "--help"],
        ["improvement", "--n_pair=3"],
        ["improvement", "--initial.resolution=many"],
        ["train", "--training.epoch=3"],
        ["--complete", "geolatent", "imp", "geolatent"],
    ],
    ids=" ".join,
)
def test_what_needs_no_torch_does_not_import_it(words):
    code = (
        "import sys; from geolatent.cli import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'matplotlib', 'pyarrow', 'lightning'} & set(sys.modules); "
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_outlines_are_what_the_commands_are(command):
    location = COMMANDS[command][0]
    module, name = location.split(":")
    light, function = outline(location), getattr(importlib.import_module(module), name)
    assert light.__doc__ == function.__doc__
    ours, theirs = (inspect.signature(each).parameters for each in (light, function))
    assert list(ours) == list(theirs)
    hints = get_type_hints(light), get_type_hints(function)
    for key, parameter in theirs.items():
        if key == "solver":
            assert ours[key].default == type(parameter.default).__name__ == next(iter(CHOICES))
        elif (command, key) not in (("train", "model"), ("forecast", "model")):
            assert ours[key].default == parameter.default
            assert hints[0][key] == hints[1][key]


def test_outlines_know_the_settings_of_objects():
    for locations in CHOICES.values():
        for location in locations:
            module, name = location.split(":")
            light, real = outline(location), getattr(importlib.import_module(module), name)
            assert getattr(gl, name) is real
            assert list(inspect.signature(light).parameters) == list(real.__dataclass_fields__)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--n_pair=3"], "`--n_pairs`"),
        (["--n-pair", "3"], "`--n_pairs`"),
        (["--solver.tolerence=1"], "`--solver.tolerance`"),
        (["--sovler.tolerance=1"], "`--solver.tolerance`"),
    ],
)
def test_a_wrong_option_is_told_in_two_lines(words, meant, capsys):
    assert run("improvement", *words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"geolatent improvement: no option `{words[0].partition('=')[0]}`.")
    assert f"Did you mean {meant}?" in told
    assert told.splitlines()[1:] == ["`geolatent improvement --help` lists the options."]


def test_a_wrong_option_of_a_config_is_told_with_what_it_may_mean(capsys, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("solver: {tolerence: 1e-3}")
    assert run("improvement", "--config", config) == 2
    told = capsys.readouterr().err
    assert "no option `solver.tolerence`. Did you mean `solver.tolerance`?" in told
    assert told.count("\n") == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, gl.PreconditionedSolver()),
        ({"tolerance": 1e-3}, gl.PreconditionedSolver(tolerance=1e-3)),
        ({"minimizer": {"history": 3}}, gl.PreconditionedSolver(minimizer=LBFGS(history=3))),
        ({"metric_points": [4]}, gl.PreconditionedSolver(metric_points=(4,))),
        ({"class_path": "GEORCESolver"}, gl.GEORCESolver()),
        (
            {"class_path": "geolatent.GEORCESolver", "init_args": {"segments": 50}},
            gl.GEORCESolver(segments=50),
        ),
        ({"class_path": "geolatent.FirstOrderSolver"}, gl.FirstOrderSolver()),
        (
            {
                "class_path": "FirstOrderSolver",
                "init_args": {"steps": 3, "optimizer": "torch.optim.SGD"},
            },
            gl.FirstOrderSolver(steps=3, optimizer=torch.optim.SGD),
        ),
        (
            {"class_path": "geolatent.FirstOrderSolver.michelis_becker"},
            gl.FirstOrderSolver.michelis_becker(),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["config", "words"])
def test_every_setting_of_every_solver_is_reached(form, given, expected, tmp_path, monkeypatch):
    solvers = []
    monkeypatch.setattr(
        "geolatent.lab.improvement.Improvement.run", lambda self: solvers.append(self.solver)
    )
    if form == "config":
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"solver": given}))
        words = ["--config", tmp_path / "config.yaml"]
    else:
        settings = given.get("init_args", {} if "class_path" in given else given)
        words = ["--solver", given["class_path"]] if "class_path" in given else []
        words += [f"--solver.{name}={json.dumps(value)}" for name, value in settings.items()]
        words = [word.replace('"', "") if "torch" in word else word for word in words]
    assert run("improvement", *words) == 0
    assert solvers == [expected]


@pytest.mark.parametrize(
    ("old", "sentence"),
    [
        ({"method": "georce"}, "solver: {class_path: geolatent.GEORCESolver}"),
        ({"method": "michelis_becker"}, "geolatent.FirstOrderSolver.michelis_becker"),
        ({"batch_size": 3}, "it is `batch_size`, an option of the command"),
        ({"length_tolerance": 0.1}, "it is `length_tolerance`"),
        ({"max_rows": 3}, "it is `max_rows`"),
    ],
    ids=str,
)
def test_options_of_before_are_refused_with_what_to_write(old, sentence, capsys, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"solver": old}))
    ((name, value),) = old.items()
    for words in (["--config", config], [f"--solver.{name}={value}"]):
        assert run("improvement", *words, "--out", tmp_path / "run") == 2
        told = capsys.readouterr().err
        assert f"solver.{name}`: " in told
        assert sentence in told
        assert told.count("\n") == 2


def test_a_solver_of_one_s_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "straight.py").write_text(
        "from dataclasses import dataclass\n"
        "from geolatent import Solver\n"
        "@dataclass(frozen=True)\n"
        "class Straight(Solver):\n"
        "    slack: float = 0.0\n"
        "    def stages(self, problem, outcome):\n"
        "        return iter(())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--solver=straight.Straight", "--solver.slack=2", "--pairs=prior", "--n_pairs=1"]
    out = tmp_path / "run"
    assert run("improvement", "--out", out, *words, "--initial.kind=straight") == 0
    read = load_run(out)
    assert read.config["solver"] == {"class_path": "straight.Straight", "init_args": {"slack": 2.0}}
    assert (read.pairs.column("relative_improvement") == 0).all()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--steps=1,x"], "`steps` should be a list of numbers or null. Found `steps = [1, 'x']`"),
        (["--pairs=best"], "`pairs` should be one of worst, prior, encoded, codes."),
        (["--n_pairs=many"], "`n_pairs` should be an integer. Found `n_pairs = many`."),
        (["--overwrite=perhaps"], "`overwrite` should be true or false."),
        (["--solver.tolerance=tight"], "`solver.tolerance` should be a number. Found"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_asked_for(words, sentence, capsys):
    assert run("improvement", *words) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--n-pairs", "3"], {"n_pairs": 3}),
        (["--n-pairs=3"], {"n_pairs": 3}),
        (["--steps", "1,2"], {"steps": [1.0, 2.0]}),
        (["--steps=1.5"], {"steps": [1.5]}),
        (["--steps=[1,2]"], {"steps": [1.0, 2.0]}),
        (["--steps=null"], {"steps": None}),
        (["--data.classes", "1,4", "--data.per-class=2"], {"classes": [1, 4], "per_class": 2}),
        (["--data.download"], {"download": True}),
    ],
)
def test_dashes_commas_and_flags_are_understood(words, expected, capsys):
    assert run("improvement", *words, "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    given = printed["data"] if words[0].startswith("--data") else printed
    assert {name: given[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("geolatent imp", ["improvement"]),
        ("geolatent improvement --solver.to", ["--solver.tolerance"]),
        ("geolatent train --out", ["--out"]),
        ("geolatent report ru", []),
    ],
)
def test_shells_complete_words(line, expected):
    # as bash calls it: the line in the environment, and the command, the word, the one before
    words = line.split()
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = [sys.executable, "-m", "geolatent", "--complete", words[0], words[-1], words[-2]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == expected


@pytest.mark.parametrize("words", ["", "improvement --help"])
def test_a_reader_that_leaves_is_no_error(words):
    command = f"{sys.executable} -m geolatent {words} | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: geolatent")
    assert done.stderr == ""


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "geolatent", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_waits_for_the_end_of_an_import(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.3)\n"
        "whole = True\n"
    )
    (tmp_path / "work.py").write_text(
        "import sys, time\n"
        "from geolatent.lab.terminal import interrupts_between_imports\n"
        "try:\n"
        "    with interrupts_between_imports():\n"
        "        import slow\n"
        "        time.sleep(10)\n"
        "        print('not interrupted')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', sys.modules['slow'].whole)\n"
    )
    done = subprocess.run(
        [sys.executable, "work.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(gl.__file__).parents[1])},
    )
    assert done.stdout == "interrupted True\n"


def test_an_interrupt_at_the_start_is_told_in_a_line(tmp_path):
    code = (
        "import os, signal, sys, threading\n"
        "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "from geolatent.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["improvement", "--n_pairs=100000", "--out", str(tmp_path / "run"), *SMALL]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr.startswith("geolatent improvement: interrupted.")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX"}], ids=str)
def test_a_terminal_of_few_letters_is_enough(settings, tmp_path):
    plain = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **settings}
    command = [sys.executable, "-m", "geolatent", "demo", "--n_pairs=1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=False, env=plain)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"->" in done.stdout


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
        (["improvement", "--length_tolerance=0"], "length_tolerance"),
        (["improvement", "--batch_size=0"], "batch_size"),
        (["improvement", "--batch_size=0", "--dry-run"], "batch_size"),
        (["improvement", "--max_rows=0"], "max_rows"),
        (["cluster", "--max_rows=0", "--dry-run"], "max_rows"),
        (["interpolate", "--batch_size=0"], "batch_size"),
        (["distances", "--length_tolerance=0"], "length_tolerance"),
        (["cluster", "--n_seeds=0"], "n_seeds"),
        (["cluster", "--n_neighbors=0"], "n_neighbors"),
        (["improvement", "--device=nonsense"], "device"),
        (["improvement", "--features.kind=module"], "class_path"),
        (["interpolate", "--n_images=1"], "n_images"),
        (["interpolate", "--n_pairs=100000"], "n_pairs"),
        (["compare"], "models"),
        (["compare", "--models.a.checkpoint=missing.safetensors"], "models"),
        (["landscape", "--margin=-1"], "margin"),
        (["landscape", "--n_decoded=0"], "n_decoded"),
        (["traverse", "--n_steps=4"], "n_steps"),
        (["traverse", "--sample=450"], "sample"),
        (["traverse", "--reach=0"], "reach"),
        (["traverse", "--attributes=[[1,11]]"], "attributes"),
        (["traverse", "--attributes=[[1,1]]"], "attributes"),
        (["compare_paths", "--n_points=1"], "n_points"),
        (["compare_paths", "--n_pairs=226"], "n_pairs"),
        (["walk", "--n_stops=1"], "n_stops"),
        (["walk", "--kind=loop", "--n_walks=1000"], "n_walks"),
        (["walk", "--length=0"], "length"),
        (["walk", "--animate", "--animation.n_frames=1000000000"], "n_frames"),
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


@pytest.mark.parametrize("command", EXPERIMENTS)
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
    words = ["--n_pairs=3", "--steps=[0.5,1.0]", "--batch_size=2", *SMALL]
    assert run("improvement", "--out", first, *words) == 0
    printed = capsys.readouterr().out
    assert "Relative length improvement" in printed
    assert "histogram.png" in printed
    read = load_run(first)
    assert read.finished
    assert read.config["steps"] == [0.5, 1.0]
    assert read.config["batch_size"] == 2
    assert len(read.pairs) == 6
    assert (read.pairs.column("relative_improvement") >= 0).all()
    figures = {path.name for path in (first / "figures").iterdir()}
    assert figures == {"histogram.png", "steps.png", "alignment.png"}
    # the stored config, with one option overridden
    assert run("improvement", "--config", first / "config.yaml", "--out", second) == 0
    assert_same_pairs(load_run(second).pairs, read.pairs)


def test_runs_of_before_solvers_had_classes_are_read(capsys, tmp_path):
    out = tmp_path / "runs" / "old"
    words = ["improvement", "--pairs=prior", "--n_pairs=1", "--out", out, *SMALL]
    assert run(*words) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    old = {
        "method": "preconditioned",
        "tolerance": None,
        "length_tolerance": 0.01,
        "max_rows": None,
    }
    del config["length_tolerance"], config["max_rows"]
    (out / "config.yaml").write_text(yaml.safe_dump({**config, "solver": old}))
    assert run("plot", out) == 0
    assert run("report", out.parent) == 0
    assert "prior" in capsys.readouterr().out


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
    assert read.arrays["decoded"].shape[2:] == (1, 8, 8)
    drawn = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert drawn == {"landscape.png", "decoded.png"}


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
    assert run("train", "--out", tmp_path / "model") == 2
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
    words += ["--model.init_args.latent_dim=3", "--out", tmp_path / "runs" / "model"]
    assert run("train", *words) == 0
    printed = capsys.readouterr().out
    assert "200 images, 1 epochs" in printed
    model = gl.models.load_model(tmp_path / "runs" / "model" / "model.safetensors")
    assert model.latent_dim == 3
    assert run("plot", tmp_path / "runs" / "model") == 0
    assert run("report", tmp_path / "runs") == 0
    assert "MLPVAE" in capsys.readouterr().out


def test_old_names_of_options_are_told(capsys, tmp_path):
    words = ["train", "--model=MLPVAE", "--data.name=digits"]
    old = tmp_path / "old.yaml"
    old.write_text("out_dir: runs/model\n")
    for more in (["--out_dir", tmp_path / "run"], ["--out-dir=run"], ["--config", old]):
        assert run(*words, *more) == 2
        assert "the folder is given by `out`, as of all commands" in capsys.readouterr().err
    assert run(*words, "--resume") == 2
    assert "by the same options on its folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [old]


def advised():
    """Yield every command that the comments of the configs tell to run."""
    for path in sorted(CONFIGS.glob("*.yaml")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("#   geolatent "):
                yield line.split()[2:]


def command_of(config):
    """Return the command that the name of a config begins with, the longest one; or None."""
    found = [name for name in COMMANDS if f"{config.stem}_".startswith(f"{name}_")]
    return max(found, key=len, default=None)


# what comments say that an option may be instead
ALTERNATIVES = {
    "improvement": [
        "--pairs=prior",
        "--pairs=encoded",
        "--steps=1,2",
        "--initial.kind=codes",
    ],
    "interpolate": ["--pairs=prior", "--features.kind=none", "--data.classes=1,4,7"],
    "compare": ["--features.kind=logistic", "--initial.kind=codes"],
    "compare_paths": ["--geodesics=mean,density", "--features.kind=none"],
    "cluster": ["--data.classes=0,1,2", "--n_clusters=5"],
    "distances": ["--data.classes=1,4,7"],
    "walk": ["--kind=circle", "--kind=loop", "--kind=dimensions", "--prior=uniform"],
    "traverse": ["--sample=3", "--attributes=[[1,7]]", "--attributes=[]"],
    "landscape": ["--features.kind=logistic"],
    "train": ["--training.accelerator=cpu"],
    "sample": ["--source=reconstructed"],
}
RUNS = [
    *advised(),
    *(
        [command, "--config", f"configs/{path.name}", word]
        for path in sorted(CONFIGS.glob("*.yaml"))
        if (command := command_of(path)) in ALTERNATIVES
        for word in ALTERNATIVES[command]
    ),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder where the configs find their data, and models that were not trained."""
    folder = tmp_path_factory.mktemp("work")
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        images = random.integers(0, 256, (2000, 28, 28), dtype=np.uint8)
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, 2000, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = (np.arange(2000) % 10).astype(np.uint8)
        head = struct.pack(">BBBBI", 0, 0, 8, 1, 2000)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    for name, model in (
        ("mnist_2d", gl.models.ConvVAE(latent_dim=2, channels=[4], hidden=8)),
        ("mnist_16d", gl.models.ConvVAE(latent_dim=16, channels=[4], hidden=8)),
        ("mnist_beta_vae", gl.models.ConvVAE(latent_dim=10, channels=[4], hidden=8)),
        ("mnist_bigan", gl.models.BiGAN(latent_dim=16, channels=[4], hidden=8)),
    ):
        save_model(model, folder / "runs" / name / "model.safetensors")
    (folder / "configs").symlink_to(CONFIGS)
    (folder / "my").symlink_to(folder)
    (folder / "folder").symlink_to(folder / "data")
    return folder


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_the_advice_of_the_configs_is_understood(words, trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    out = trained / "out"
    wanted = ["--print_config"] if words[0] == "sample" else ["--dry-run"]
    before = sorted(trained.rglob("*"))
    assert run(*words, "--out", out, *wanted) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    if words[0] != "sample":
        assert "Estimate: about" in printed
        assert printed.endswith("Nothing was written.\n")
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_are_understood(path, capsys, trained, monkeypatch):
    command = command_of(path)
    if command is None:
        pytest.skip("not a config of a command")
    monkeypatch.chdir(trained)
    assert run(command, "--config", path, "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(given) <= set(printed)
    # what a config says is commented, and is what the command would do
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--n_pairs=100"], "Geodesics: 300"),
        (["--pairs=prior", "--n_pairs=100"], "Shards: 2 of 64 pairs"),
        (["--pairs=encoded"], "Data: 450 images of digits"),
        (["--sweep.seed=[0,1,2]"], "for 3 combinations of seed"),
        ([], "to be made"),
        ([], "Model model: MLPVAE, 2 latent dimensions"),
    ],
)
def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(words, told, capsys, tmp_path):
    assert run("improvement", "--dry-run", "--out", tmp_path / "run", *words) == 0
    assert told in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_estimates_what_runs_then_cost(capsys, tmp_path):
    words = ["--pairs=prior", "--n_pairs=8", "--initial.kind=straight", "--alignment=false"]
    assert run("improvement", "--dry-run", "--quiet", "--out", tmp_path / "run", *words) == 0
    (line,) = capsys.readouterr().out.splitlines()
    rows = int(re.search(r"about ([\d,]+) decoder rows", line)[1].replace(",", ""))
    assert run("improvement", "--out", tmp_path / "run", *words) == 0
    measured = load_run(tmp_path / "run").pairs.column("equivalents").sum()
    assert measured / 3 < rows < 3 * measured


@pytest.mark.parametrize("words", [["--n_pairs=1000000000"], ["--steps=1", "--pairs=prior"]])
def test_a_dry_run_refuses_what_the_command_refuses(words, capsys, tmp_path):
    assert run("improvement", "--dry-run", "--out", tmp_path / "run", *words) == 1
    first = capsys.readouterr().err
    assert run("improvement", "--out", tmp_path / "run", *words) == 1
    assert capsys.readouterr().err == first


def test_a_dry_run_of_a_training_refuses_what_the_training_refuses(capsys, tmp_path):
    words = ["train", "--model=MLPVAE", "--data.name=digits", "--out", tmp_path]
    (tmp_path / "summary.json").write_text("{}")
    told = []
    for more in (["--dry-run"], []):
        assert run(*words, *more) == 1
        told.append(capsys.readouterr().err)
    assert "one called `summary.json` that is not of a run" in told[0]
    assert told[0] == told[1]
    (tmp_path / "summary.json").unlink()
    assert run(*words, "--dry-run", "--training.epochs=7") == 0
    printed = capsys.readouterr().out
    for text in ("Model model: MLPVAE, 2 latent", "Data: 1,347 images", "Epochs: at most 7"):
        assert text in printed
    assert not list(tmp_path.iterdir())


def test_a_dry_run_knows_a_sweep_that_it_would_go_on_with(capsys, tmp_path):
    words = ["--out", tmp_path / "run", "--pairs=prior", "--n_pairs=1", "--sweep", '{"seed": [1]}']
    assert run("improvement", *words, *SMALL, "--quiet") == 0
    (tmp_path / "run" / "summary.json").unlink()
    capsys.readouterr()
    assert run("improvement", *words, *SMALL, "--dry-run") == 0
    assert run("improvement", *words, *SMALL, "--dry-run", "--n_pairs=2") == 1
    assert "n_pairs: 1 there, 2 here" in capsys.readouterr().err


def test_models_by_the_name_of_their_class_and_formats_are_understood(capsys, tmp_path):
    words = ["--model=MLPVAE", "--model.hidden=[4]", "--data.name=digits", "--format"]
    for given, kept in (("svg", "format: svg"), ("png,pdf", "format:\n- png\n- pdf")):
        assert run("train", *words, given, "--dry-run", "--out", tmp_path / "run") == 0
        printed = capsys.readouterr().out
        assert "class_path: geolatent.models.vae.MLPVAE" in printed
        assert kept in printed
    assert run("train", *words, "[]", "--dry-run", "--out", tmp_path / "run") == 1
    assert "`format` should be png, pdf, svg or a list of them" in capsys.readouterr().err
    assert run("train", *words, "jpg", "--out", tmp_path / "run") == 2
    assert "`format` should be" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_quiet_command_prints_its_last_line_alone(capsys, tmp_path):
    words = ["--pairs=prior", "--n_pairs=1", "--quiet", *SMALL]
    assert run("improvement", "--out", tmp_path / "run", *words) == 0
    captured = capsys.readouterr()
    assert captured.out == f"Results: {tmp_path / 'run'}\n"
    assert captured.err == ""


def test_brackets_in_paths_are_printed_as_they_are(capsys, tmp_path):
    out = tmp_path / "[bold]run[" / "[red]x"
    assert run("sample", "--n_samples=2", "--out", out) == 0
    assert f"Results: {out}" in capsys.readouterr().out
    assert run("report", out.parent) == 0
    printed = capsys.readouterr().out
    assert "[red]x" in printed


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["improvement", "--n_pairs=1000000000"], "n_pairs"),
        (["interpolate", "--pairs=prior", "--n_pairs=1000000000"], "n_pairs"),
        (["landscape", "--resolution=1000000"], "resolution"),
        (["sample", "--n_samples=1000000000"], "n_samples"),
        (["walk", "--n_steps=1000000000"], "n_steps"),
        (["improvement", "--device=meta"], "device"),
    ],
)
def test_what_no_machine_holds_is_refused_in_a_line(words, name, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("geolatent.lab.memory.machine_memory", lambda: 64 * 10**9)
    assert run(*words, "--out", tmp_path / "run") == 1
    told = capsys.readouterr().err
    assert f"Parameter `{name}` should be" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{new}: &{new} [{','.join(9 * ['*' + old])}]\n"
                for old, new in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "stands for more than",
        ),
        ("steps: " + 20000 * "[" + 20000 * "]", "nested more than"),
        ("steps: [1, 2", "expected ',' or ']'"),
    ],
    ids=["bomb", "deep", "broken"],
)
@pytest.mark.parametrize("option", ["--config", "--solver"])
def test_hostile_configs_are_refused_in_two_lines(option, text, reason, capsys, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert run("improvement", option, config, "--out", tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert reason in told
    assert told.count("\n") == 2
    assert len(told) < 1000


def test_a_config_that_is_no_text_is_refused(capsys, tmp_path):
    (tmp_path / "config.yaml").write_bytes(bytes(range(256)))
    assert run("improvement", "--config", tmp_path / "config.yaml") == 2
    assert "no text in UTF-8" in capsys.readouterr().err


def test_places_are_checked_before_torch_is_imported(tmp_path):
    (tmp_path / "file").write_text("")
    code = (
        "import sys; from geolatent.cli import main; status = main(sys.argv[1:]); "
        "print(status, 'torch' in sys.modules)"
    )
    for words, name in (
        (["improvement", "--out", tmp_path / "file" / "run"], "`out` should be a folder"),
        (["improvement", "--model.checkpoint=missing"], "`model.checkpoint` should be"),
        (["landscape", "--data.name=MNIST", "--data.root", tmp_path], "`root` should be"),
        (["interpolate", "--pairs=codes", "--codes=missing.npy"], "`codes` should be"),
    ):
        command = [sys.executable, "-c", code, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "1 False\n"
        assert name in done.stderr


@pytest.mark.parametrize("columns", [80, 60])
def test_report_cuts_no_number(columns, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    group = {
        "n_pairs": 100_000,
        "straight_length": {"mean": 12345.678},
        "relative_improvement": {"mean": 0.12345, "std": 0.01, "min": -0.01},
        "converged": 1.0,
    }
    name = "a_run_" * 12 + "end"
    summary = {"command": "improvement", "pairs": "prior", "groups": {"all": group}}
    (tmp_path / name).mkdir()
    (tmp_path / name / "summary.json").write_text(json.dumps({**summary, "seconds": 123456.0}))
    assert run("report", tmp_path) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= columns
    assert "…" not in printed
    for number in ("100000", "12345.68", "12.35", "100", "123456"):
        assert f" {number} " in printed
    assert name in "".join(line[: columns - 44].strip() for line in printed.splitlines()[5:])


def test_a_killed_command_leaves_a_readable_folder(tmp_path):
    out = tmp_path / "run"
    words = ["--n_pairs=400", "--batch_size=2", "--steps=[0.5]", *SMALL]
    command = [sys.executable, "-m", "geolatent", "improvement", "--out", str(out), *words]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not list(out.glob("parts/*.parquet.gz")):
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
    from geolatent.lab.run import RunFolder

    RunFolder.create(tmp_path / "run", "improvement", {}, seed=0, device="cpu")
    assert run("plot", tmp_path / "run") == 1
    assert "interrupted after 0 solved rows" in capsys.readouterr().err
