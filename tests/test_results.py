"""Run folders: written whole, read back as written, readable when interrupted."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from problems import sphere

import geolatent as gl
from geolatent.cli import main
from geolatent.files import LOCK
from geolatent.lab.contents import ARRAYS, CONFIG, ENVIRONMENT, PAIRS, SUMMARY
from geolatent.lab.environment import environment
from geolatent.lab.options import plain
from geolatent.lab.parts import PARTS
from geolatent.lab.plotting import save_figures
from geolatent.lab.run import RunFolder, load_run
from geolatent.lab.solved import SolvedPairs


def solve(n_pairs, seed=0, max_control_points=11):
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, n_pairs, 2, generator=generator)
    solver = gl.PreconditionedSolver(max_control_points=max_control_points)
    solution = gl.solve_geodesic(gl.PullbackMetric(sphere), start, end, solver)
    columns = {"pair": torch.arange(n_pairs), "name": ["a"] * n_pairs}
    return solution, SolvedPairs.from_solution(start, end, solution, columns), (start, end)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", "test", {"seed": 3}, seed=3, device="cpu")


def test_table_holds_the_solution():
    solution, pairs, (start, end) = solve(3)
    assert pairs.table.column_names[:4] == ["pair", "name", "start", "end"]
    np.testing.assert_array_equal(pairs.column("start"), start.numpy())
    np.testing.assert_array_equal(pairs.column("end"), end.numpy())
    for name in ("length", "straight_length", "relative_improvement", "predicted_improvement"):
        np.testing.assert_array_equal(pairs.column(name), getattr(solution, name).double().numpy())
    assert pairs.column("status").tolist() == [s.name for s in solution.statuses]
    equivalents = solution.evaluations.equivalents.numpy()
    np.testing.assert_array_equal(pairs.column("equivalents"), equivalents)


def test_join_keeps_rows_and_curves():
    parts = [solve(2, seed=0, max_control_points=7)[1], solve(3, seed=1, max_control_points=19)[1]]
    joined = SolvedPairs.join(parts)
    assert len(joined) == 5
    t = torch.linspace(0, 1, 17)
    expected = torch.cat([part.curve(t) for part in parts])
    torch.testing.assert_close(joined.curve(t), expected, atol=1e-6, rtol=1e-6)
    lengths = np.concatenate([part.column("length") for part in parts])
    np.testing.assert_array_equal(joined.column("length"), lengths)


def test_where_takes_rows_and_their_curves():
    _, pairs, _ = solve(4)
    some = pairs.with_columns({"step": [1.0, 2.0, 1.0, 2.0]}).where("step", 2.0)
    assert some.column("pair").tolist() == [1, 3]
    torch.testing.assert_close(some.curve.control_points, pairs.curve.control_points[[1, 3]])


def test_a_run_is_read_back_as_written(folder):
    _, first, _ = solve(2, seed=0)
    _, second, _ = solve(3, seed=1)
    folder.write_part(1, second)
    folder.write_part(0, first)
    arrays = {"frames": torch.arange(6.0).reshape(2, 3)}
    run = folder.finish({"mean": 1.5, "left": float("nan")}, arrays)
    assert run.finished
    assert run.command == "test"
    assert run.config == {"seed": 3}
    assert run.summary == {"command": "test", "mean": 1.5, "left": None}
    assert run.pairs.table.equals(SolvedPairs.join([first, second]).table)
    np.testing.assert_array_equal(run.arrays["frames"], arrays["frames"].numpy())
    names = {path.name for path in folder.path.iterdir()}
    assert names == {CONFIG, ENVIRONMENT, PAIRS, ARRAYS, SUMMARY}


def test_an_interrupted_run_can_be_read(folder):
    run = load_run(folder.path)
    assert not run.finished
    assert run.pairs is None
    folder.write_part(0, solve(2)[1])
    # what a killed writer left does not count
    (folder.path / PARTS / ".00001.parquet.gz.abcdefgh.tmp").write_bytes(b"unfinished")
    run = load_run(folder.path)
    assert not run.finished
    assert len(run.pairs) == 2


@pytest.mark.parametrize("finished", [True, False])
def test_results_are_not_overwritten_unless_asked(folder, finished):
    folder.write_part(0, solve(2)[1])
    if finished:
        folder.finish({"mean": 1.0}, {"a": torch.zeros(1)})
    folder.__exit__()
    mine = folder.path / "notes.txt"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="`out` should be a folder without results"):
        RunFolder.create(folder.path, "test", {}, seed=0, device="cpu")
    with RunFolder.create(folder.path, "test", {}, seed=0, device="cpu", overwrite=True):
        pass
    assert {path.name for path in folder.path.iterdir()} == {CONFIG, ENVIRONMENT, "notes.txt"}


def test_a_folder_of_other_files_is_no_obstacle(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_nothing_half_written_stays_when_writing_fails(folder, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        folder.write_part(0, solve(2)[1])
    assert list((folder.path / PARTS).iterdir()) == []


def test_no_run_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder that a geolatent command wrote"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [(CONFIG, "a: ["), (ENVIRONMENT, "{"), (SUMMARY, "{"), (PAIRS, "no table")],
)
def test_damaged_files_are_told(folder, name, content):
    folder.write_part(0, solve(2)[1])
    folder.finish({})
    (folder.path / name).write_text(content)
    with pytest.raises(ValueError, match="a readable run folder"):
        load_run(folder.path)


def test_environment_names_no_folder_or_user():
    found = environment("test", 7, torch.device("cpu"))
    assert found["seed"] == 7
    assert found["device"] == "cpu"
    assert found["geolatent"] == gl.__version__
    assert torch.__version__.startswith(found["packages"]["torch"].split("+")[0])
    text = json.dumps(found)
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text


def test_describing_a_run_takes_no_lock_in_the_checkout(monkeypatch):
    calls = []
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda words, **o: calls.append(words) or run(words, **o)
    )
    environment("test", 0, torch.device("cpu"))
    assert calls
    assert all(words[:2] == ["git", "--no-optional-locks"] for words in calls)


@dataclass(frozen=True)
class Options:
    steps: tuple[float, ...] = (1.0, 2.0)
    path: Path = Path("a/b")


def test_plain_values():
    assert plain({"o": Options(), "t": torch.tensor([1, 2]), "n": np.float64(0.5)}) == {
        "o": {"steps": [1.0, 2.0], "path": "a/b"},
        "t": [1, 2],
        "n": 0.5,
    }
    with pytest.raises(TypeError, match="a value that YAML can hold"):
        plain(object())


def flip(content, generator):
    place = int(generator.integers(len(content)))
    return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


@pytest.mark.parametrize("name", [CONFIG, ENVIRONMENT, SUMMARY, PAIRS, ARRAYS])
def test_damage_of_every_kind_is_told_in_one_line(folder, name):
    folder.write_part(0, solve(2)[1])
    folder.finish({}, {"a": torch.zeros(3)})
    file = folder.path / name
    content, generator = file.read_bytes(), np.random.default_rng(0)
    damaged = [b"", b"[", b"[1]", b"3", b"{}", b"\xff\xfe", b"[" * 100_000]
    damaged += [content[: len(content) // 2], content[:-3], content[3:], content + b"{"]
    damaged += [flip(content, generator) for _ in range(30)]
    told = []
    for other in damaged:
        file.write_bytes(other)
        try:
            load_run(folder.path)
        except ValueError as error:
            told.append(str(error))
    for text in told:
        assert "\n" not in text
        assert str(folder.path) in text
        assert "--overwrite" in text
    # a changed number in a text is no damage that can be seen
    expected = {CONFIG: 6, ENVIRONMENT: 6, SUMMARY: 3}
    assert len(told) >= expected.get(name, len(damaged))


def test_yaml_that_grows_is_told(folder):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join(9 * ['*' + before])}]")
    (folder.path / CONFIG).write_text("\n".join(lines))
    with pytest.raises(ValueError, match="stands for more than"):
        load_run(folder.path)
    folder.__exit__()
    with pytest.raises(ValueError, match="stands for more than"):
        RunFolder.create(folder.path, "test", {}, seed=0, device="cpu", resume=True)


# what a run may remove


def mine(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")


def overwrite(path, command="test"):
    with RunFolder.create(path, command, {}, seed=0, device="cpu", overwrite=True):
        pass


@pytest.mark.parametrize("name", [CONFIG, ENVIRONMENT, SUMMARY, ARRAYS, "geolatent-files.json"])
def test_a_folder_that_is_not_of_a_run_is_refused(name, tmp_path):
    # such as that of another program, which has a config of its own
    mine(tmp_path / name, tmp_path / "figures" / "a.png", tmp_path / "parts.txt")
    for given in (True, False):
        with pytest.raises(FileExistsError, match=f"without one called `{name}` that is not of a"):
            RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu", overwrite=given)
        with pytest.raises(FileExistsError, match="that is not of a run"):
            RunFolder.check(tmp_path, overwrite=given)
    assert (tmp_path / name).read_text() == "mine"
    assert (tmp_path / "figures" / "a.png").exists()


def test_only_the_files_of_a_run_are_removed(folder):
    path = folder.path
    folder.write_part(0, solve(2)[1])
    folder.finish({})
    save_figures({"histogram": Figure(), "own": Figure()}, path)
    folders = ("figures", "parts", "points", "points/0000/figures", "points/0001", "points/x")
    others = [path / name / "mine.txt" for name in folders]
    others += [path / "figures" / "steps.png", path / "parts" / "1.json", path / "notes.txt"]
    with RunFolder.create(path / "points" / "0000", "test", {}, seed=0, device="cpu") as point:
        point.write_part(0, solve(2)[1])
    mine(*others)
    overwrite(path)
    left = {file for file in path.rglob("*") if file.is_file()}
    assert left == {path / CONFIG, path / ENVIRONMENT, *others}


def test_of_a_run_without_a_record_only_usual_names_are_removed(folder):
    path = folder.path
    folder.finish({})
    described = json.loads((path / ENVIRONMENT).read_text())
    del described["run"]
    (path / ENVIRONMENT).write_text(json.dumps(described))
    mine(path / "figures" / "histogram.png", path / "figures" / "own.png")
    overwrite(path)
    assert [file.name for file in (path / "figures").iterdir()] == ["own.png"]
    # a run of today that drew no figures
    mine(path / "figures" / "histogram.png")
    overwrite(path)
    assert len(list((path / "figures").iterdir())) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 3}', '{"files": ["../../mine", "/mine"]}'])
def test_a_damaged_or_evil_record_removes_nothing_else(folder, text):
    path = folder.path
    folder.finish({})
    mine(path.parent / "mine", path / "figures" / "own.png", path / "figures" / "steps.png")
    (path / "geolatent-files.json").write_text(text)
    if "mine" in text:
        overwrite(path)
        assert (path / "figures" / "steps.png").exists()
    else:
        with pytest.warns(UserWarning, match=r"geolatent-files.json .*known by its usual names"):
            overwrite(path)
        assert not (path / "figures" / "steps.png").exists()
    assert (path.parent / "mine").exists()
    assert (path / "figures" / "own.png").exists()


def test_a_damaged_run_can_be_overwritten(folder):
    for name in (CONFIG, ENVIRONMENT):
        folder.__exit__()
        (folder.path / name).write_text("{")
        overwrite(folder.path)
        assert load_run(folder.path).command == "test"


def test_no_link_is_followed_when_results_are_removed(folder):
    path, other = folder.path, folder.path.parent / "other"
    folder.finish({})
    with RunFolder.create(other, "test", {}, seed=0, device="cpu") as elsewhere:
        elsewhere.write_part(0, solve(2)[1])
    before = {file for file in other.rglob("*") if file.is_file()}
    (path / "points").mkdir()
    (path / "points" / "0000").symlink_to(other)
    with RunFolder.create(path / "points" / "0001", "test", {}, seed=0, device="cpu"):
        (path / "points" / "0001" / "parts").symlink_to(other / "parts")
    overwrite(path)
    assert {file for file in other.rglob("*") if file.is_file()} == before
    assert (path / "points" / "0000").is_symlink()


def test_a_removal_that_is_killed_can_be_done_again(folder, monkeypatch):
    path = folder.path
    folder.write_part(0, solve(2)[1])
    folder.finish({})
    save_figures({"histogram": Figure()}, path)
    with RunFolder.create(path / "points" / "0000", "test", {}, seed=0, device="cpu") as point:
        point.write_part(0, solve(2)[1])
    unlink, n_left = Path.unlink, 0

    class KilledError(Exception):
        pass

    def stop(self, **options):
        nonlocal n_left
        if self.name != LOCK:
            n_left -= 1
            if n_left < 0:
                raise KilledError
        unlink(self, **options)

    for n_files in range(30):
        n_left = n_files
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", stop)
            try:
                overwrite(path)
            except KilledError:
                continue
        break
    assert 5 < n_files < 29
    assert {file.name for file in path.rglob("*")} == {CONFIG, ENVIRONMENT}


def test_a_training_is_not_overwritten_by_another_command(tmp_path):
    with RunFolder.create(tmp_path, "train", {}, seed=0, device="cpu"):
        pass
    with pytest.raises(FileExistsError, match="another folder than that of a training"):
        overwrite(tmp_path)


def test_temporary_files_of_others_stay(folder):
    others = [folder.path / ".mine.tmp", folder.path / ".x.yaml.abcdefgh.tmp"]
    left = folder.path / ".config.yaml.abcdefgh.tmp"
    mine(*others, left)
    folder.__exit__()
    overwrite(folder.path)
    assert not left.exists()
    assert all(path.exists() for path in others)


# the files that options name


def test_files_are_known_wherever_options_name_them(tmp_path):
    paths = [tmp_path / f"{n}.safetensors" for n in range(4)]
    mine(*paths, tmp_path / "0.json", tmp_path / "2.json")
    first, second, third, last = map(str, paths)
    config = {
        "model": {"checkpoint": first, "init_args": {"weights": [second, {"deep": third}]}},
        "sweep": {"model.checkpoint": [first, last]},
        "text": "x" * 10_000,
        "null": "a\0b",
    }
    with RunFolder.create(tmp_path / "run", "test", config, seed=0, device="cpu") as folder:
        inputs = load_run(folder.path).environment["inputs"]
    assert set(inputs) == {
        "model.checkpoint",
        "model.checkpoint (.json)",
        "model.init_args.weights[0]",
        "model.init_args.weights[1].deep",
        "model.init_args.weights[1].deep (.json)",
        "sweep.model.checkpoint[0]",
        "sweep.model.checkpoint[0] (.json)",
        "sweep.model.checkpoint[1]",
    }
    check = {"overwrite": False, "command": "test", "resume": config}
    RunFolder.check(tmp_path / "run", **check)
    # those of a sweep alone are compared point by point
    for path in (*paths[:3], tmp_path / "2.json"):
        path.write_text("retrained")
        with pytest.raises(FileExistsError, match=f"the file {path} is another than it was"):
            RunFolder.check(tmp_path / "run", **check)
        mine(path)
    paths[1].unlink()
    with pytest.raises(FileExistsError, match=r"weights\[0\]: the file that it names is another"):
        RunFolder.check(tmp_path / "run", **check)


# reports


def test_a_report_goes_on_past_damaged_runs(tmp_path, capsys):
    summary = {"n_images": 3, "seconds": 1.0}
    for name in ("a", "b", "c", "d", "e"):
        with RunFolder.create(tmp_path / name, "sample", {}, seed=0, device="cpu") as folder:
            if name != "e":
                folder.finish(summary)
    (tmp_path / "b" / SUMMARY).write_text("[" * 100_000)
    (tmp_path / "c" / SUMMARY).write_text("{}")
    mine(tmp_path / "other" / CONFIG)
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("3 images") == 2
    assert "b: summary.json is damaged: " in printed
    assert "c: summary.json is damaged: KeyError('seconds')" in printed
    assert "e: not finished" in printed
    assert "other" not in printed
    assert main(["plot", str(tmp_path / "c")]) == 0


def test_images_of_others_are_left_alone(tmp_path):
    words = ["sample", "--out", str(tmp_path), "--n_samples=2"]
    mine(tmp_path / "images" / "000000.png")
    for more in ([], ["--overwrite"]):
        assert main([*words, *more]) == 1
    assert (tmp_path / "images" / "000000.png").read_text() == "mine"
    (tmp_path / "images" / "000000.png").unlink()
    (tmp_path / "images").rmdir()
    assert main(words) == 0
    mine(tmp_path / "images" / "holiday.png")
    assert main([*words, "--overwrite"]) == 1
    assert len(list((tmp_path / "images").iterdir())) == 3
    (tmp_path / "images" / "holiday.png").unlink()
    assert main([*words, "--overwrite", "--seed=1"]) == 0
    assert len(list((tmp_path / "images").iterdir())) == 2
