"""Run folders: written whole, read back as written, readable when interrupted."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import geolatent as gl
from geolatent.results import (
    ARRAYS,
    CONFIG,
    CURVES,
    ENVIRONMENT,
    PAIRS,
    PARTS,
    SUMMARY,
    RunFolder,
    SolvedPairs,
    environment,
    load_run,
    plain,
)


def sphere(z):
    square = z.square().sum(1, keepdim=True)
    return torch.cat([2 * z, square - 1], dim=1) / (square + 1)


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
    assert names == {CONFIG, ENVIRONMENT, PAIRS, CURVES, ARRAYS, SUMMARY}


def test_an_interrupted_run_can_be_read(folder):
    run = load_run(folder.path)
    assert not run.finished
    assert run.pairs is None
    folder.write_part(0, solve(2)[1])
    # a part whose checksums were not written yet does not count
    (folder.path / PARTS / "00001.safetensors").write_bytes(b"unfinished")
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


@pytest.mark.parametrize("name", [CONFIG, ENVIRONMENT, SUMMARY, PAIRS, CURVES, ARRAYS])
def test_damage_of_every_kind_is_told_in_one_line(folder, name):
    folder.write_part(0, solve(2)[1])
    folder.finish({}, {"a": torch.zeros(3)})
    file = folder.path / name
    content, generator = file.read_bytes(), np.random.default_rng(0)
    damaged = [b"", b"[", b"[1]", b"3", b"{}", b"\xff\xfe", b"[" * 100_000]
    damaged += [content[: len(content) // 2], content[:-3], content[3:], content + b"{"]
    damaged += [flip(content, generator) for _ in range(30)]
    n_told = 0
    for other in damaged:
        file.write_bytes(other)
        try:
            load_run(folder.path)
        except ValueError as error:
            n_told += 1
            assert "\n" not in str(error)
            assert str(folder.path / "") in str(error)
            assert "--overwrite" in str(error)
    # a changed number is no damage that can be seen
    assert n_told >= (3 if name == SUMMARY else 6)


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
