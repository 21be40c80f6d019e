"""Files of options and descriptions: read within bounds, told in one line where they are bad."""

import time

import pytest
import yaml

from geolatent.files import parse_yaml, read_json, read_yaml, write_file

# nine aliases on each of nine lines: a billion values
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(9 * ['*' + before])}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join(9 * ['*' + before])}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [
        {"n": 3, "steps": [1.0, 1e-5], "model": {"checkpoint": None, "init_args": {}}},
        {"text": "ümläut", "flags": [True, False], "nested": [[1, [2]], {"a": [{"b": 1}]}]},
        [],
        None,
    ],
)
def test_plain_values_are_read(content, tmp_path):
    text = yaml.safe_dump(content, allow_unicode=True)
    assert parse_yaml(text, "it") == content
    (tmp_path / "options.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_yaml(tmp_path / "options.yaml") == content


def test_a_few_aliases_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", "it") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }
    assert parse_yaml("", "it") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "stands for more than 20,000 values"),
        (MERGES, "stands for more than 20,000 values"),
        ("a: &a [*a]", "an alias stands for a value that it is a part of"),
        ("[" * 400_000, "nested more than 50 deep"),
        ("[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("- " * 400_000, "nested more than 50 deep"),
        ("a" * 1_000_001, "longer than 1,000,000 bytes"),
        ("[" + "1," * 400_000 + "]", "stands for more than 20,000 values"),
        ("a: [", "expected the node content"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: 2020-99-99", "month must be in 1..12"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("? {a: 1}\n: 2", "found unhashable key"),
        ("a: \x00", "unacceptable character"),
    ],
)
def test_bad_yaml_is_told_in_one_line_and_in_no_time(text, told, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    began = time.monotonic()
    with pytest.raises(ValueError, match="is no readable YAML: ") as caught:
        read_yaml(file)
    assert told in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    # far less than a second, and never a minute
    assert time.monotonic() - began < 20.0


def test_no_text_at_all_is_told(tmp_path):
    (tmp_path / "options.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"options.yaml is no readable YAML: .*decode"):
        read_yaml(tmp_path / "options.yaml")
    (tmp_path / "options.yaml").write_bytes(999_999 * b"a" + "ü".encode())
    with pytest.raises(ValueError, match="longer than 1,000,000 bytes"):
        read_yaml(tmp_path / "options.yaml")


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "[" * 100_000, '{"a": ' * 100_000, "\xff"])
def test_bad_json_is_told_in_one_line(text, tmp_path):
    (tmp_path / "it.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"it.json is no readable JSON: ") as caught:
        read_json(tmp_path / "it.json")
    assert "\n" not in str(caught.value)


def test_a_file_is_as_readable_as_any_other(tmp_path):
    write_file(tmp_path / "whole", b"content")
    (tmp_path / "other").touch()
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert (tmp_path / "whole").read_bytes() == b"content"


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    target = tmp_path / (300 * "x")
    with pytest.raises(OSError, match="too long") as caught:
        write_file(target, b"content")
    assert caught.value.filename == str(target)
    assert list(tmp_path.iterdir()) == []
