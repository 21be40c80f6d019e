"""Batch experiments: shards, resumed runs, damaged parts, locks, full disks, sweeps, Ray."""

import ast
import errno
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from rounding import assert_same_pairs
from torch import nn

import geolatent
import geolatent as gl
from geolatent.cli import main
from geolatent.files import LOCK, FolderLock, write_file
from geolatent.lab import execution
from geolatent.lab.config import RayOptions
from geolatent.lab.contents import CONFIG, ENVIRONMENT, PAIRS, SUMMARY
from geolatent.lab.experiment import as_option
from geolatent.lab.pairs import Case, Shards, prior_pairs
from geolatent.lab.parts import PARTS
from geolatent.lab.printing import work_progress
from geolatent.lab.run import RunFolder, load_run
from geolatent.lab.solved import SolvedPairs
from geolatent.lab.sweep import sweep_points

# five shards of two pairs
SMALL = [
    "--pairs=prior",
    "--n_pairs=10",
    "--batch_size=2",
    "--solver.max_control_points=7",
    "--length_tolerance=0.01",
    "--initial.kind=straight",
]


def run(*words):
    return main([str(word) for word in words])


def improvement(out, *words):
    return run("improvement", "--out", out, *SMALL, *words)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Return the folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("expected") / "run"
    assert improvement(out) == 0
    return out


def assert_same(out, expected):
    found = load_run(out)
    assert found.finished
    assert_same_pairs(found.pairs, load_run(expected).pairs)


def flat_pairs(n_pairs, dim=2, max_control_points=7, seed=0):
    metric = gl.TensorMetric(
        lambda z: torch.diag_embed(torch.exp(z.square())) + torch.eye(z.shape[1]), dim=dim
    )
    solver = gl.PreconditionedSolver(max_control_points=max_control_points)
    case = Case(metric, prior_pairs(n_pairs, dim, seed=seed))
    return Shards([case], solver, length_tolerance=0.01).solve(0)


# stored while the next shard is solved


class Parts:
    """A folder whose parts are stored when they may be; some cannot be."""

    def __init__(self, broken=()):
        self.free, self.broken = threading.Event(), broken
        self.stored = []

    def write_part(self, number, part):
        assert self.free.wait(30)
        if number in self.broken:
            raise OSError(f"no room for part {number}")
        self.stored.append((number, part))


def test_a_part_is_stored_while_the_next_shard_is_solved():
    folder, whole = Parts(), set()
    with execution._Writer(folder, whole) as writer:
        writer.store(0, "first")  # returns: this thread may solve on
        assert not folder.stored
        waiting = threading.Thread(target=writer.store, args=(1, "second"))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()  # no more than one part waits in memory
        folder.free.set()
        waiting.join(30)
        assert 0 in whole
    assert folder.stored == [(0, "first"), (1, "second")]
    assert whole == {0, 1}


def store(folder, whole, n_parts, ended_by=None):
    if ended_by is None:
        folder.free.set()
    with execution._Writer(folder, whole) as writer:
        for number in range(n_parts):
            writer.store(number, "part")
        folder.free.set()
        if ended_by is not None:
            raise ended_by


def test_errors_of_storing_end_a_run_and_what_is_stored_counts():
    whole = set()
    with pytest.raises(OSError, match="part 1"):
        store(Parts(broken={1, 2}), whole, n_parts=5)
    assert whole == {0}
    # the last part has no other after it
    with pytest.raises(OSError, match="part 0"):
        store(Parts(broken={0}), set(), n_parts=1)


@pytest.mark.parametrize("broken", [(), (0,)])
def test_an_interrupt_waits_for_the_part_that_is_being_stored(broken):
    whole = set()
    with pytest.raises(KeyboardInterrupt):
        store(Parts(broken), whole, n_parts=1, ended_by=KeyboardInterrupt())
    assert whole == {0} - set(broken)


# interrupted and resumed


@pytest.fixture
def interrupted(monkeypatch, tmp_path, capsys):
    """Return the folder of a run that was interrupted when it had stored two shards."""
    out = tmp_path / "run"
    solve = Shards.solve

    def stop(self, number, callback=None):
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        return solve(self, number, callback)

    # a test runner may ignore the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "solve", stop)
        assert improvement(out) == 130
    signal.signal(signal.SIGINT, before)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "interrupted. 2 of 5 shards are stored in" in told
    assert "run the same command again to go on" in told
    return out


def test_an_interrupted_run_goes_on(interrupted, expected, capsys, monkeypatch):
    solved = []
    solve = Shards.solve
    monkeypatch.setattr(
        Shards, "solve", lambda self, n, *args: solved.append(n) or solve(self, n, *args)
    )
    stored = load_run(interrupted).pairs
    assert len(stored) == 4
    left = interrupted / PARTS / ".00002.parquet.gz.abc.tmp"
    left.write_bytes(b"half of a table")
    assert improvement(interrupted) == 0
    assert "2 of 5 shards are in" in capsys.readouterr().out
    assert solved == [2, 3, 4]
    assert_same(interrupted, expected)
    # what was stored is there to the bit
    assert load_run(interrupted).pairs.table[:4].equals(stored.table)
    names = {path.name for path in interrupted.iterdir()}
    assert not {LOCK, PARTS} & names


def test_other_options_are_refused_by_name(interrupted, expected, capsys):
    assert improvement(interrupted, "--seed=1", "--solver.tolerance=0.5") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "solver.init_args.tolerance: 0.0001 there, 0.5 here" in told
    assert "seed: 0 there, 1 here" in told
    assert run("interpolate", "--out", interrupted) == 1
    assert "command: improvement there, interpolate here" in capsys.readouterr().err
    # where and how fast does not matter
    assert improvement(interrupted, "--ray.workers=7") == 0
    assert_same(interrupted, expected)


def test_other_inputs_are_refused_by_name(tmp_path):
    codes = tmp_path / "codes.npy"
    np.save(codes, np.zeros((2, 2, 2)))
    options = {"pairs": "codes", "codes": codes, "seed": 0}
    with RunFolder.create(tmp_path / "run", "improvement", options, seed=0, device="cpu"):
        pass
    check = {"overwrite": False, "command": "improvement", "resume": options}
    RunFolder.check(tmp_path / "run", **check)
    np.save(codes, np.ones((2, 2, 2)))
    with pytest.raises(FileExistsError, match=r"differ: codes: the file .*codes.npy is another"):
        RunFolder.check(tmp_path / "run", **check)


def test_a_finished_run_is_refused(expected, capsys):
    assert improvement(expected) == 1
    assert "or --overwrite be given" in capsys.readouterr().err


def test_overwriting_starts_again(interrupted, capsys):
    assert improvement(interrupted, "--seed=1", "--overwrite") == 0
    assert "going on" not in capsys.readouterr().out
    assert load_run(interrupted).config["seed"] == 1


def test_a_killed_run_goes_on(tmp_path, expected):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "geolatent", "improvement", "--out", str(out), *SMALL]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("parts/*.parquet.gz")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert (out / LOCK).exists()
    assert improvement(out) == 0
    assert_same(out, expected)


def test_models_are_compared_shard_by_shard(monkeypatch, tmp_path):
    words = [*SMALL[1:], "--n_pairs=4", "--models.a={}", "--models.b={}"]
    assert run("compare", "--out", tmp_path / "whole", *words) == 0
    solve = Shards.solve

    def stop(self, number, callback=None):
        if number == 1:
            raise KeyboardInterrupt
        return solve(self, number, callback)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "solve", stop)
        assert run("compare", "--out", tmp_path / "run", *words) == 130
    assert run("compare", "--out", tmp_path / "run", *words) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_failed_shard_does_not_stop_the_others(monkeypatch, tmp_path, expected, capsys):
    out = tmp_path / "run"
    solve = Shards.solve

    def fail(self, number, callback=None):
        if number == 1:
            raise RuntimeError("no luck")
        return solve(self, number, callback)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "solve", fail)
        assert improvement(out) == 1
    captured = capsys.readouterr()
    assert "shard 1 failed: Traceback" in captured.out
    assert "RuntimeError: no luck" in captured.out
    assert "1 of 5 shards failed. 4 of 5 shards are stored in" in captured.err
    assert len(load_run(out).pairs) == 8
    assert improvement(out) == 0
    assert_same(out, expected)


# parts


def damage(path, generator):
    """Flip some bits of a file, or cut it."""
    content = bytearray(path.read_bytes())
    if generator.random() < 0.3:
        path.write_bytes(content[: generator.randrange(len(content))])
    else:
        content[generator.randrange(len(content))] ^= generator.randrange(1, 256)
        path.write_bytes(content)


def test_damaged_parts_are_found_and_solved_again(interrupted, expected, capsys):
    generator = random.Random(0)
    damage(interrupted / PARTS / "00001.parquet.gz", generator)
    with pytest.warns(UserWarning, match="part 1 is damaged"):
        assert len(load_run(interrupted).pairs) == 2
    assert improvement(interrupted) == 0
    printed = capsys.readouterr().out
    assert "part 1 is damaged" in printed
    assert "it is solved again" in printed
    assert_same(interrupted, expected)


def test_every_damaged_file_is_found(tmp_path):
    pairs = flat_pairs(2)
    generator = random.Random(1)
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu") as folder:
        for number in range(60):
            folder.write_part(number, pairs)
        assert folder.check_parts() == (set(range(60)), {})
        chosen = generator.sample(range(60), 50)
        for number in chosen:
            damage(tmp_path / PARTS / f"{number:05d}.parquet.gz", generator)
        whole, damaged = folder.check_parts()
        assert damaged.keys() == set(chosen)
        assert whole == set(range(60)) - set(chosen)
        with pytest.raises(ValueError, match="is damaged"):
            folder.join()


def copy_part(source, number, target, other):
    content = (source / PARTS / f"{number:05d}.parquet.gz").read_bytes()
    write_file(target / PARTS / f"{other:05d}.parquet.gz", content)


def test_parts_of_another_run_or_number_are_told_and_solved_again(
    interrupted, expected, tmp_path, capsys, monkeypatch
):
    other = tmp_path / "other"
    pairs = flat_pairs(2)
    with RunFolder.create(other, "improvement", {"seed": 1}, seed=1, device="cpu") as folder:
        for number in range(16):
            folder.write_part(number, pairs)
    copy_part(other, 0, interrupted, 0)
    copy_part(interrupted, 1, interrupted, 2)
    copy_part(other, 15, interrupted, 15)
    with pytest.warns(UserWarning, match="its pairs are left out") as caught:
        assert len(load_run(interrupted).pairs) == 2
    assert len(caught) == 3
    solved = []
    solve = Shards.solve
    monkeypatch.setattr(
        Shards, "solve", lambda self, n, *args: solved.append(n) or solve(self, n, *args)
    )
    assert improvement(interrupted) == 0
    printed = capsys.readouterr().out
    assert "part 0 is of another run: " in printed
    assert "part 2 is part 1 by another name: " in printed
    assert "part 15 is none of the 5 parts of this run; it is left out" in printed
    assert "1 of 5 shards are in" in printed
    assert solved == [0, 2, 3, 4]
    assert_same(interrupted, expected)
    assert not (interrupted / PARTS).exists()


def test_parts_of_other_numbers_of_rows_are_not_taken(tmp_path):
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu") as folder:
        for number in range(3):
            folder.write_part(number, flat_pairs(2))
        assert folder.check_parts([2, 1]) == (
            {0},
            {
                1: "part 1 has 2 rows and should have 1",
                2: "part 2 is none of the 2 parts of this run",
            },
        )


def test_parts_of_a_run_without_a_name_are_solved_again(interrupted, expected, capsys):
    described = json.loads((interrupted / ENVIRONMENT).read_text())
    del described["run"]
    (interrupted / ENVIRONMENT).write_text(json.dumps(described))
    assert improvement(interrupted) == 0
    assert capsys.readouterr().out.count("is of another run") == 2
    assert_same(interrupted, expected)


def test_joining_files_equals_joining_in_memory(tmp_path):
    parts = [flat_pairs(2), flat_pairs(3, dim=3, seed=1), flat_pairs(1, max_control_points=19)]
    expected = SolvedPairs.join(parts)
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu") as folder:
        for number, part in enumerate(parts):
            folder.write_part(number, part)
        joined = folder.join()
    assert joined.table.equals(expected.table)
    torch.testing.assert_close(joined.curve.knots, expected.curve.knots, atol=0, rtol=0)
    torch.testing.assert_close(
        joined.curve.control_points, expected.curve.control_points, atol=0, rtol=0
    )


def test_no_link_leads_out_of_the_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / PARTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="a folder without a link `parts`"):
        RunFolder.create(tmp_path / "run", "test", {}, seed=0, device="cpu")
    (tmp_path / "run" / PARTS).unlink()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="lock"):
        RunFolder.create(tmp_path / "run", "test", {}, seed=0, device="cpu")
    assert (tmp_path / "mine").read_text() == "mine"


def test_folders_of_others_are_left_alone(tmp_path):
    for name in ("figures", "parts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="without one called `parts` that is not of a run"):
        RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu", overwrite=True)
    assert (tmp_path / "parts" / "mine").exists()
    (tmp_path / "parts").rename(tmp_path / "others")
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu", overwrite=True):
        assert (tmp_path / "figures" / "mine").exists()


# locks and full disks


def test_one_process_writes_a_folder(tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    lock = FolderLock(out)
    assert improvement(out) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"being written by another process: process {os.getpid()} on " in told
    assert improvement(out, "--overwrite") == 1
    lock.release()
    lock.release()
    # the file of an owner that was killed is no lock
    (out / LOCK).write_text("{}")
    FolderLock(out).release()
    assert list(out.iterdir()) == []


def test_a_lock_file_of_others_stays(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu"):
        pass
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu", overwrite=True):
        pass
    assert (tmp_path / ".lock").read_text() == "mine"


def test_a_lock_is_freed_with_its_owner(tmp_path):
    code = "from geolatent.files import FolderLock; from pathlib import Path; import os\n"
    code += f"lock = FolderLock(Path({str(tmp_path)!r})); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        for _ in range(2):
            with pytest.raises(BlockingIOError, match=f"process {process.pid} on "):
                FolderLock(tmp_path)
        process.kill()
    FolderLock(tmp_path).release()


def test_a_full_disk_is_told_and_the_run_goes_on(interrupted, expected, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # no file above 1 kB: the next table does not fit
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert improvement(interrupted) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"{interrupted / PARTS / '00002.parquet.gz'}'. 2 of 5 shards are stored in" in told
    parts = {path.name for path in (interrupted / PARTS).iterdir()}
    assert parts == {"00000.parquet.gz", "00001.parquet.gz"}
    assert improvement(interrupted) == 0
    assert_same(interrupted, expected)


def test_an_error_of_the_system_names_the_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="File exists"):
        write_file(tmp_path / "file" / "inside", b"content")


# progress


def test_progress_in_a_file_is_plain_lines():
    file = io.StringIO()
    console = Console(file=file)
    with work_progress(console, "pairs", 40, 10, interval=0.0) as progress:
        time.sleep(0.01)
        progress(20)
        progress(40)
    lines = file.getvalue().splitlines()
    assert len(lines) == 2
    assert "20 of 40 pairs, " in lines[0]
    assert " a second, 0:00:00 left" in lines[1]
    assert "\x1b" not in file.getvalue()


def test_progress_on_a_terminal_is_a_bar():
    file = io.StringIO()
    with work_progress(Console(file=file, force_terminal=True), "pairs", 4) as progress:
        progress(4)
    assert "4 of 4 pairs" in file.getvalue()


# sweeps


def test_a_sweep_is_the_product_of_its_options(tmp_path, capsys, monkeypatch):
    config = tmp_path / "sweep.yaml"
    sweep = {"solver.max_control_points": [7, 11], "seed": [0, 3]}
    config.write_text(yaml.safe_dump({"n_pairs": 3, "sweep": sweep}, sort_keys=False))
    out = tmp_path / "runs" / "sweep"
    words = ["--config", config, "--out", out, *(w for w in SMALL if "n_pairs" not in w)]
    calls = []
    shards = execution.run_shards

    def stop(folder, *args, **options):
        calls.append(folder.path.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return shards(folder, *args, **options)

    monkeypatch.setattr("geolatent.lab.pairs_experiment.run_shards", stop)
    assert run("improvement", *words) == 130
    assert run("improvement", *words) == 0
    # finished points are not run again
    assert calls == ["0000", "0001", "0002", "0002", "0003"]
    printed = capsys.readouterr().out
    assert "point 4 of 4: solver.max_control_points=11, seed=3" in printed
    assert "All points of the sweep" in printed
    read = load_run(out)
    assert read.finished
    assert read.config["sweep"] == sweep
    assert read.pairs.table.column_names[:3] == ["solver.max_control_points", "seed", "pair"]
    assert read.pairs.column("seed").tolist() == 2 * (3 * [0] + 3 * [3])
    part = read.pairs.where("solver.max_control_points", 11).where("seed", 3)
    alone = load_run(out / "points" / "0003")
    assert alone.config["seed"] == 3
    np.testing.assert_array_equal(part.column("length"), alone.pairs.column("length"))
    t = torch.linspace(0, 1, 5)
    torch.testing.assert_close(part.curve(t), alone.pairs.curve(t), atol=1e-6, rtol=1e-6)
    capsys.readouterr()
    assert run("report", tmp_path / "runs") == 0
    printed = capsys.readouterr().out
    assert printed.count("seed=3") == 2
    assert "0003" not in printed
    assert run("plot", out) == 0
    # other options than the swept ones
    (out / SUMMARY).unlink()
    assert run("improvement", *words, "--n_pairs=4") == 1
    assert "n_pairs: 3 there, 4 here" in capsys.readouterr().err


def point_calls(monkeypatch):
    """Return the list of the points' folders in which shards are solved from now on."""
    calls = []
    shards = execution.run_shards

    def tell(folder, *args, **options):
        calls.append(folder.path.name)
        return shards(folder, *args, **options)

    monkeypatch.setattr("geolatent.lab.pairs_experiment.run_shards", tell)
    return calls


def test_a_bad_point_does_not_end_a_sweep_which_goes_on_when_mended(tmp_path, capsys, monkeypatch):
    codes = [str(tmp_path / f"{number}.npy") for number in range(4)]
    for number, path in enumerate(codes):
        np.save(path, np.random.default_rng(number).standard_normal((2, 2, 2)))
    bad = str(tmp_path / "bad.npy")
    np.save(bad, np.zeros((2, 2, 3)))
    out = tmp_path / "run"
    words = ["--out", out, "--pairs=codes", *SMALL[1:], "--alignment=false"]

    def sweep(*paths):
        return run("improvement", *words, "--sweep", json.dumps({"codes": paths}))

    calls = point_calls(monkeypatch)
    assert sweep(codes[0], bad, codes[1], str(tmp_path / "missing.npy")) == 1
    captured = capsys.readouterr()
    assert calls == ["0000", "0002"]
    assert "point 2 of 4: codes=" in captured.out
    assert "bad.npy: Parameter `start` should be" in captured.out
    assert "missing.npy: Parameter `codes` should be an existing file" in captured.out
    assert captured.err.count("\n") == 1
    assert "2 of 4 points are not finished (codes=" in captured.err
    assert "Traceback" not in captured.out
    # in another order, mended, with one more and one less
    calls.clear()
    kept = (out / "points" / "0002" / PAIRS).read_bytes()
    assert sweep(codes[3], codes[1], codes[2]) == 0
    assert calls == ["0001", "0003"]
    assert (out / "points" / "0002" / PAIRS).read_bytes() == kept
    read = load_run(out)
    assert read.config["sweep"] == {"codes": [codes[3], codes[1], codes[2]]}
    assert read.summary["points"] == ["0001", "0002", "0003"]
    assert read.pairs.column("codes").tolist() == 2 * [codes[3]] + 2 * [codes[1]] + 2 * [codes[2]]
    for number in (1, 2, 3):
        start = read.pairs.where("codes", codes[number]).column("start")
        np.testing.assert_allclose(start, np.load(codes[number])[:, 0], rtol=1e-6)
    # the finished point that is no longer asked for stays
    assert load_run(out / "points" / "0000").finished
    capsys.readouterr()
    assert run("plot", out) == 0
    assert "0000" not in capsys.readouterr().out
    # a finished point of a file that is another by now
    (out / SUMMARY).unlink()
    np.save(codes[1], np.ones((2, 2, 2)))
    calls.clear()
    assert sweep(codes[3], codes[1]) == 1
    assert calls == []
    assert f"codes: the file {codes[1]} is another than it was" in capsys.readouterr().err
    assert sweep(codes[3], codes[2]) == 0
    assert calls == []


def test_points_without_their_files_are_told_before_the_work(tmp_path, capsys, monkeypatch):
    out, missing = tmp_path / "run", str(tmp_path / "missing.safetensors")
    calls = point_calls(monkeypatch)
    words = ["--out", out, *SMALL, "--n_pairs=2"]
    sweep = json.dumps({"model.checkpoint": [None, missing]})
    assert run("improvement", *words, "--sweep", sweep) == 1
    captured = capsys.readouterr()
    told = captured.out.index("point 2 of 2: model.checkpoint=")
    assert told < captured.out.index("point 1 of 2")
    assert "Parameter `model.checkpoint` should be an existing file" in captured.out
    assert "1 of 2 points are not finished" in captured.err
    assert calls == ["0000"]
    # what is swept need not be there for the options that every point replaces
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).uniform(size=(60, 8, 8)))
    words = ["--out", tmp_path / "other", *SMALL[1:], "--n_pairs=2", "--pairs=encoded"]
    words += ["--data.name=file", "--data.path=none.npy", "--data.low=0", "--data.high=1"]
    assert run("improvement", *words, "--sweep", json.dumps({"data.path": [str(images)]})) == 0


def test_a_quiet_sweep_prints_its_last_line_alone(tmp_path, capsys):
    words = ["--out", tmp_path / "run", *SMALL, "--n_pairs=2", "--quiet"]
    assert run("improvement", *words, "--sweep", '{"seed": [0, 1]}') == 0
    captured = capsys.readouterr()
    assert captured.out == f"Results: {tmp_path / 'run'}\n"
    assert captured.err == ""
    assert run("plot", tmp_path / "run", "--quiet") == 0
    assert capsys.readouterr().out == captured.out


def test_a_point_that_breaks_or_is_damaged_is_told(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    words = ["--out", out, *SMALL, "--n_pairs=2", "--sweep", '{"seed": [0, 1]}']
    with monkeypatch.context() as patch:
        patch.setattr(
            "geolatent.lab.pairs_experiment.make_initial",
            lambda *_, seed, **__: None if seed else 1 / 0,
        )
        assert run("improvement", *words) == 1
    captured = capsys.readouterr()
    assert "ZeroDivisionError" in captured.out
    assert "1 of 2 points are not finished (seed=0)" in captured.err
    point = out / "points" / "0001"
    content = (point / PAIRS).read_bytes()
    (point / PAIRS).write_bytes(content[:100])
    assert run("improvement", *words) == 1
    captured = capsys.readouterr()
    assert f"{point / PAIRS} is damaged: " in captured.out
    assert f"Remove {point} to run it again" in captured.out
    (point / PAIRS).write_bytes(content)
    (point / CONFIG).write_text("a: [")
    assert run("improvement", *words) == 0
    assert "config.yaml is no readable YAML" in capsys.readouterr().out
    assert load_run(out).summary["points"] == ["0000", "0002"]


def test_a_full_disk_ends_a_sweep(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    words = ["--out", out, *SMALL, "--n_pairs=2", "--sweep", '{"seed": [0, 1]}']
    calls = point_calls(monkeypatch)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "table")

    with monkeypatch.context() as patch:
        patch.setattr("geolatent.lab.run.RunFolder.write_part", full)
        assert run("improvement", *words) == 1
    assert calls == ["0000"]
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "No space left on device: 'table'. 0 of 1 shards are stored in" in told
    assert run("improvement", *words) == 0
    assert calls == ["0000", "0000", "0001"]


@pytest.mark.parametrize(
    ("sweep", "status", "told"),
    [
        ('{"sed": [1]}', 2, "--sed"),
        ('{"seed": [one]}', 2, "seed"),
        ('{"seed": 1}', 2, "sweep"),
        ('{"seed": []}', 1, "`sweep` should be lists of one value or more"),
        ('{"seed": [1, 1]}', 1, "none of them twice"),
        ('{"out": [a, b]}', 1, "of options that can change results"),
        ('{"ray.workers": [1, 2]}', 1, "of options that can change results"),
        ('{"solver": [{"tolerance": 1}]}', 1, "of single options, such as solver.NAME"),
    ],
)
def test_wrong_sweeps_are_refused(sweep, status, told, capsys, tmp_path):
    assert improvement(tmp_path / "run", "--sweep", sweep) == status
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_solvers_may_be_swept(tmp_path, capsys):
    sweep = {"solver": ["GEORCESolver", "PreconditionedSolver"], "initial.kind": ["straight"]}
    words = ["--pairs=prior", "--n_pairs=1", "--alignment=false", "--length_tolerance=0.01"]
    out = tmp_path / "run"
    assert run("improvement", "--out", out, *words, "--sweep", json.dumps(sweep)) == 0
    points = [load_run(out / "points" / f"000{n}").config["solver"] for n in range(2)]
    # the settings of each are its own
    assert points[0] == as_option(gl.GEORCESolver())
    assert points[1]["init_args"]["tolerance"] == gl.PreconditionedSolver().tolerance
    assert load_run(out).pairs.column("solver").tolist() == sweep["solver"]


def test_swept_options_may_be_lists():
    assert sweep_points({"steps": [[1.0], [2.0, 4.0]]}) == [{"steps": [1.0]}, {"steps": [2.0, 4.0]}]


# Ray


def test_a_missing_ray_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert improvement(tmp_path / "run", "--executor=ray") == 1
    assert "pip install '.[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [{"workers": 0}, {"threads": 0}, {"restarts": -1}])
def test_options_of_ray_are_checked(words):
    with pytest.raises(ValueError, match=f"`{next(iter(words))}` should be an integer of at least"):
        RayOptions(**words)


def test_the_driver_is_part_of_the_cluster():
    with pytest.raises(ValueError, match="`address` should be auto, local, or HOST:PORT"):
        RayOptions(address="ray://head:10001")


def test_tensors_reach_a_worker_as_they_were():
    for tensor in (nn.Parameter(torch.randn(2, 3)), torch.tensor(4), torch.ones(2, 1)):
        sent = execution._to_array(tensor)
        found = execution._from_array(sent, kind=type(tensor), device="auto")
        assert type(found) is type(tensor)
        assert found.requires_grad == tensor.requires_grad
        torch.testing.assert_close(found.cpu(), tensor)


WORKER = """
import os, signal
from pathlib import Path

from torch import nn

from geolatent.models import digits_vae


class Deadly(nn.Module):
    '''The digits model, which kills the first of Ray's workers that uses it.'''

    def __init__(self, driver, marker):
        super().__init__()
        self.inner, self.driver, self.marker = digits_vae(), driver, marker
        self.latent_dim = 2

    def encode(self, images):
        return self.inner.encode(images)

    def decode(self, z):
        if os.getpid() != self.driver:
            try:
                Path(self.marker).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.decode(z)
"""


@pytest.mark.slow
def test_ray_gives_the_same_results_when_a_worker_dies(tmp_path, expected, monkeypatch, capsys):
    pytest.importorskip("ray")
    (tmp_path / "deadly.py").write_text(WORKER)
    # for this process, and for Ray's, which inherit its environment
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # workers that give way to all other processes are slow on a busy machine
    monkeypatch.setenv("RAY_worker_niceness", "0")
    out, marker = tmp_path / "run", tmp_path / "killed"
    arguments = f'{{"driver": {os.getpid()}, "marker": "{marker}"}}'
    words = ["--executor=ray", "--ray.address=local", "--ray.workers=1"]
    words.append("--model.class_path=deadly.Deadly")
    assert improvement(out, *words, "--model.init_args", arguments) == 0
    assert marker.exists()
    assert_same(out, expected)
    assert "10 of 10 pairs" in capsys.readouterr().out


# security


def test_nothing_is_unpickled_or_evaluated():
    found = []
    for path in Path(geolatent.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if name in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load", "yaml.load"):
                found.append(f"{path.name}: {name}")
            if name == "torch.load" and options.get("weights_only") != "True":
                found.append(f"{path.name}: {name}")
            if name == "np.load" and options.get("allow_pickle", "False") != "False":
                found.append(f"{path.name}: {name}")
    # signatures of commands, from the source of the package itself
    assert found == ["outline.py: exec"]


def test_a_config_runs_no_code(tmp_path, capsys):
    config = tmp_path / CONFIG
    config.write_text("n_pairs: !!python/object/apply:os.system ['touch hacked']\n")
    assert run("improvement", "--config", config, "--out", tmp_path / "run") == 2
    with RunFolder.create(tmp_path / "old", "improvement", {}, seed=0, device="cpu"):
        pass
    (tmp_path / "old" / CONFIG).write_text(config.read_text())
    with pytest.raises(ValueError, match="a readable run folder"):
        load_run(tmp_path / "old")
    assert not Path("hacked").exists()
