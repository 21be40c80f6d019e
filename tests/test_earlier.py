"""Run folders of earlier versions, whose curves stand beside the tables, are still read."""

import hashlib
import json

import pytest
import torch
from problems import sphere
from pyarrow import parquet
from safetensors.torch import save_file

import geolatent as gl
from geolatent.lab.contents import ENVIRONMENT, PAIRS, SUMMARY
from geolatent.lab.run import RunFolder, load_run
from geolatent.lab.solved import SolvedPairs


def solve(n_pairs, seed=0):
    start, end = torch.randn(2, n_pairs, 2, generator=torch.Generator().manual_seed(seed))
    solver = gl.PreconditionedSolver(max_control_points=7)
    solution = gl.solve_geodesic(gl.PullbackMetric(sphere), start, end, solver)
    return SolvedPairs.from_solution(start, end, solution, {"pair": torch.arange(n_pairs)})


def write_pairs(table, curves, pairs):
    table.parent.mkdir(exist_ok=True)
    parquet.write_table(pairs.table, table)
    curve = pairs.curve
    save_file({"control_points": curve.control_points, "knots": curve.knots}, curves)


def write_part(folder, number, pairs):
    stem = folder / "parts" / f"{number:05d}"
    files = {ending: stem.with_suffix(ending) for ending in (".parquet", ".safetensors")}
    write_pairs(*files.values(), pairs)
    sums = {e: hashlib.sha256(file.read_bytes()).hexdigest() for e, file in files.items()}
    run = json.loads((folder / ENVIRONMENT).read_text())["run"]
    seal = {"run": run, "number": number, "rows": len(pairs), "sha256": sums}
    stem.with_suffix(".json").write_text(json.dumps(seal, indent=2) + "\n")


@pytest.fixture
def folder(tmp_path):
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu"):
        return tmp_path


def assert_equal(found, expected):
    assert found.table.equals(expected.table)
    torch.testing.assert_close(found.curve.knots, expected.curve.knots, atol=0, rtol=0)
    torch.testing.assert_close(
        found.curve.control_points, expected.curve.control_points, atol=0, rtol=0
    )


def test_a_finished_run_is_read(folder):
    pairs = solve(3)
    write_pairs(folder / PAIRS, folder / "curves.safetensors", pairs)
    (folder / SUMMARY).write_text(json.dumps({"command": "test", "mean": 1.5}))
    run = load_run(folder)
    assert run.finished
    assert run.summary == {"command": "test", "mean": 1.5}
    assert_equal(run.pairs, pairs)


@pytest.mark.parametrize("damage", ["cut", "remove", "other"])
@pytest.mark.parametrize("name", [PAIRS, "curves.safetensors"])
def test_a_damaged_finished_run_is_told(name, damage, folder):
    write_pairs(folder / PAIRS, folder / "curves.safetensors", solve(3))
    (folder / SUMMARY).write_text(json.dumps({"command": "test"}))
    file = folder / name
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "remove" and name != PAIRS:
        file.unlink()
    else:
        write_pairs(folder / PAIRS, folder / "curves.safetensors", solve(2))
        other = PAIRS if name != PAIRS else "curves.safetensors"
        write_pairs(folder / "x", folder / "y", solve(3))
        (folder / {"pairs.parquet": "x", "curves.safetensors": "y"}[other]).rename(folder / other)
    with pytest.raises(ValueError, match=f"a readable run folder.*{PAIRS} is damaged: ") as told:
        load_run(folder)
    assert "\n" not in str(told.value)


def test_parts_of_an_unfinished_run_are_read(folder):
    parts = [solve(2, seed=number) for number in range(3)]
    for number in (0, 2):
        write_part(folder, number, parts[number])
    with RunFolder.create(folder, "test", {}, seed=0, device="cpu", resume=True) as again:
        again.write_part(1, parts[1])
    run = load_run(folder)
    assert not run.finished
    assert_equal(run.pairs, SolvedPairs.join(parts))


def test_damaged_parts_are_left_out(folder):
    parts = [solve(2, seed=number) for number in range(5)]
    for number, part in enumerate(parts):
        write_part(folder, number, part)
    place = folder / "parts"
    content = bytearray((place / "00000.parquet").read_bytes())
    content[100] ^= 1
    (place / "00000.parquet").write_bytes(content)
    (place / "00001.safetensors").unlink()
    for ending in ("parquet", "safetensors", "json"):
        (place / f"00003.{ending}").write_bytes((place / f"00002.{ending}").read_bytes())
    (place / "00004.json").write_text("[")
    with pytest.warns(UserWarning, match="its pairs are left out") as caught:
        run = load_run(folder)
    for number, warning in zip((0, 1, 3, 4), caught, strict=True):
        assert f"part {number} is damaged: " in str(warning.message)
    assert_equal(run.pairs, parts[2])


def test_a_run_goes_on_from_its_parts(folder):
    parts = [solve(2, seed=number) for number in range(4)]
    for number in (0, 2, 5):
        write_part(folder, number, parts[number % 4])
    (folder / "parts" / "00002.safetensors").write_bytes(b"damaged")
    with RunFolder.create(folder, "test", {}, seed=0, device="cpu", resume=True) as again:
        whole, damaged = again.check_parts([2, 2, 2, 2])
        assert whole == {0}
        assert list(damaged) == [2, 5]
        assert damaged[2].startswith("part 2 is damaged: ")
        assert damaged[5] == "part 5 is none of the 4 parts of this run"
        for number in (1, 2, 3):
            again.write_part(number, parts[number])
        assert again.check_parts([2, 2, 2, 2])[0] == {0, 1, 2, 3}
        assert_equal(again.finish({}).pairs, SolvedPairs.join(parts))
    assert {path.name for path in folder.iterdir()} == {"config.yaml", ENVIRONMENT, PAIRS, SUMMARY}


def test_files_of_an_earlier_version_can_be_overwritten(folder):
    write_part(folder, 0, solve(2))
    (folder / "curves.safetensors").write_bytes(b"curves")
    with RunFolder.create(folder, "test", {}, seed=0, device="cpu", overwrite=True):
        pass
    assert {path.name for path in folder.iterdir()} == {"config.yaml", ENVIRONMENT}
