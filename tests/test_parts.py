"""Files of solved pairs: parts whose every damage is told, and tables that are joined of them."""

import gc
import json
import weakref

import numpy as np
import pyarrow as pa
import pytest
import torch
from problems import sphere
from pyarrow import parquet

import geolatent as gl
from geolatent.files import LOCK
from geolatent.lab import solved
from geolatent.lab.contents import CONFIG, ENVIRONMENT, PAIRS
from geolatent.lab.parts import part_numbers, read_part, write_part
from geolatent.lab.run import RunFolder, load_run
from geolatent.lab.solved import SolvedPairs, write_joined


def solve(n_pairs, seed=0, max_control_points=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, n_pairs, 2, generator=generator).to(dtype)
    solver = gl.PreconditionedSolver(max_control_points=max_control_points)
    solution = gl.solve_geodesic(gl.PullbackMetric(sphere), start, end, solver)
    columns = {"pair": torch.arange(n_pairs), "name": ["a"] * n_pairs}
    return SolvedPairs.from_solution(start, end, solution, columns)


def flipped(content, place, mask):
    return content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]


def assert_equal(found, expected):
    assert found.table.equals(expected.table)
    torch.testing.assert_close(found.curve.knots, expected.curve.knots, atol=0, rtol=0)
    torch.testing.assert_close(
        found.curve.control_points, expected.curve.control_points, atol=0, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_part_is_read_back_to_the_bit(dtype, tmp_path):
    part = solve(3, dtype=dtype)
    write_part(tmp_path, "run", 7, part)
    assert part_numbers(tmp_path) == [7]
    found = read_part(tmp_path, "run", 7)
    assert_equal(found, part)
    assert found.curve.control_points.dtype == dtype
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["00007.parquet.gz"]
    with pytest.raises(ValueError, match="part 7 is of another run: "):
        read_part(tmp_path, "other", 7)


def test_no_flip_or_cut_of_a_part_changes_a_number(tmp_path):
    part = solve(2)
    write_part(tmp_path, "run", 0, part)
    file = tmp_path / "parts" / "00000.parquet.gz"
    content = file.read_bytes()
    unnoticed, told, lines = set(), set(), False
    # all bytes of the beginning and the end, where gzip's own are, and some of those between
    ends = [*range(32), *range(len(content) - 16, len(content))]
    for place in ends + list(range(32, len(content) - 16, 5)):
        file.write_bytes(flipped(content, place, 1 << place % 8))
        try:
            found = read_part(tmp_path, "run", 0)
        except ValueError as error:
            told.add(str(error).partition(": ")[0])
            lines |= "\n" in str(error)
        else:
            unnoticed.add(place)
            assert_equal(found, part)
    assert told == {"part 0 is damaged"}
    assert not lines
    # of a gzip file, hints, time and system that wrote it, and bits that fill a byte
    assert unnoticed <= set(range(3, 11))
    for length in range(0, len(content), 29):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="part 0 is damaged: "):
            read_part(tmp_path, "run", 0)


def test_no_flip_or_cut_of_a_finished_table_is_unnoticed(tmp_path):
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu") as folder:
        folder.write_part(0, solve(2))
        folder.finish({})
    file = tmp_path / PAIRS
    content = file.read_bytes()
    for place in range(0, len(content), 29):
        for damaged in (flipped(content, place, 0x10), content[:place]):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"pairs\.parquet is damaged: its checksum"):
                load_run(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"a readable run folder.*No such file"):
        load_run(tmp_path)


def test_a_table_is_one_that_others_read(tmp_path):
    parts = [solve(2), solve(3, seed=1, max_control_points=11)]
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu") as folder:
        for number, part in enumerate(parts):
            folder.write_part(number, part)
        run = folder.finish({})
    table = parquet.read_table(tmp_path / PAIRS)
    n, dim = run.pairs.curve.n_control_points, run.pairs.curve.dim
    points = np.array(table["curve"].combine_chunks().storage.to_pylist()).reshape(5, n, dim)
    np.testing.assert_array_equal(points, run.pairs.curve.control_points.numpy())
    knots = json.loads(table.schema.metadata[b"knots"])
    np.testing.assert_array_equal(knots, run.pairs.curve.knots.numpy())
    assert table.drop_columns(["curve"]).equals(run.pairs.table)


def test_parts_are_joined_one_at_a_time(tmp_path, monkeypatch):
    alive = []

    def source(number):
        part = solve(2, seed=number)
        alive.append(weakref.ref(part))
        # the one before it may still be in use
        assert sum(each() is not None for each in alive) <= 2
        return part

    sources = [lambda number=number: source(number) for number in range(6)]
    # two parts to a row group
    monkeypatch.setattr(solved, "_ROW_GROUP", int(1.5 * solve(2).to_arrow().nbytes))
    with (tmp_path / "joined").open("wb") as file:
        write_joined(file, sources)
    with parquet.ParquetFile(tmp_path / "joined") as file:
        assert file.num_row_groups == 3
        found = SolvedPairs.read(file)
    assert len(alive) == 12
    assert_equal(found, SolvedPairs.join([solve(2, seed=number) for number in range(6)]))


def test_no_pairs_are_written_and_read(tmp_path):
    none = solve(2).where("name", "b")
    assert len(none) == 0
    write_part(tmp_path, "run", 0, none)
    found = read_part(tmp_path, "run", 0)
    assert len(found) == 0
    assert found.curve.control_points.shape == none.curve.control_points.shape


def test_columns_that_parts_lack_are_null():
    first, second = solve(2), solve(1, seed=1)
    joined = SolvedPairs.join([first, second.with_columns({"more": [1.5]})])
    assert joined.table["more"].to_pylist() == [None, None, 1.5]
    assert joined.table.schema.field("more").type == pa.float64()


def test_nothing_cannot_be_joined(tmp_path):
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu") as folder:
        for sources in (None, []):
            with pytest.raises(ValueError, match="a folder with solved pairs"):
                folder.join(sources)
    assert not (tmp_path / PAIRS).exists()


def test_a_join_that_fails_leaves_no_file(tmp_path, monkeypatch):
    calls = []

    def fail():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no luck")
        return solve(1)

    monkeypatch.setattr(solved, "_ROW_GROUP", 1)
    with RunFolder.create(tmp_path, "test", {}, seed=0, device="cpu") as folder:
        with pytest.raises(RuntimeError, match="no luck"):
            folder.join([lambda: solve(1), fail])
        gc.collect()
        assert {path.name for path in tmp_path.iterdir()} == {CONFIG, ENVIRONMENT, LOCK}


def test_curves_of_unrelated_knots_stay_what_they_are():
    first, second = solve(1), solve(1, seed=1)
    knots = second.curve.knots.clone()
    knots[4] = 0.125
    other = SolvedPairs(second.table, gl.CubicBSpline(second.curve.control_points, knots))
    joined = SolvedPairs.join([first, other]).curve
    t = torch.linspace(0, 1, 50)
    torch.testing.assert_close(joined[0](t), first.curve(t), rtol=0, atol=1e-6)
    torch.testing.assert_close(joined[1](t), other.curve(t), rtol=0, atol=1e-6)
