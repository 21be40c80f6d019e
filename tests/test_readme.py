"""The README keeps its word: its code runs, its commands, options, files and extras are there."""

import inspect
import itertools
import re
import shlex
import subprocess
import tomllib
from functools import wraps
from importlib import import_module
from pathlib import Path

import pytest

import geolatent as gl
from geolatent.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BLOCKS = [
    (kind, README[: found.start(2)].count("\n") + 1, found[2])
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    for kind in [found[1]]
]
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
SPANS = sorted({" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PROSE)})


def blocks(kind):
    found = [pytest.param(text, line, id=f"line {line}") for k, line, text in BLOCKS if k == kind]
    assert found, f"the README has no {kind} block"
    return found


def shell_commands():
    """Yield the words of every command in the bash blocks and the code spans."""
    lines = list(SPANS)
    for kind, _, text in BLOCKS:
        if kind == "bash":
            lines += text.replace("\\\n", " ").splitlines()
        elif kind == "yaml":  # a comment says how it is used
            lines += re.findall(r"^# (geolatent .*)$", text, re.MULTILINE)
    for line in lines:
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            programs = r"\S*(geolatent|python|pip|ruff|mypy)|scripts/\S+"
            if len(words) > 1 and re.fullmatch(programs, words[0]):
                yield words


def test_every_block_is_of_a_kind_that_is_tested():
    assert {kind for kind, _, _ in BLOCKS} <= {"python", "bash", "yaml", "text", ""}
    (tree,) = [text for kind, _, text in BLOCKS if kind == ""]
    assert tree.startswith("geolatent/\n")


@pytest.mark.parametrize(("text", "line"), blocks("python"))
def test_python_runs_as_written(text, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * (line - 1) + text, "README.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    # what it prints stands in the next block; other processors round other numbers
    following = BLOCKS[BLOCKS.index(("python", line, text)) + 1]
    shown = following[2] if following[0] == "text" else ""
    heads = [[line.split()[:1] for line in lines.splitlines()[3:]] for lines in (printed, shown)]
    assert heads[0][:12] == heads[1][:12]
    assert printed.splitlines()[:1] == shown.splitlines()[:1]
    assert " ".join(printed.splitlines()[1:3]).split() == " ".join(shown.splitlines()[1:3]).split()


@pytest.mark.parametrize(("text", "line"), blocks("bash"))
def test_bash_parses(text, line):
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(("text", "line"), blocks("yaml"))
def test_configs_are_accepted(text, line, tmp_path, monkeypatch):
    """Each is read by its command, every point of a sweep too; nothing is run."""
    words = shlex.split(text.splitlines()[0].removeprefix("# "))
    monkeypatch.chdir(tmp_path)
    Path(words[words.index("--config") + 1]).write_text(text)
    module, name = COMMANDS[words[1]][0].split(":")
    target = getattr(import_module(module), name)
    called = []

    def record_sweep(_experiment, sweep, experiments):
        assert len(experiments) == len(list(itertools.product(*sweep.values()))) > 1
        called.extend(experiments)

    if inspect.isclass(target):
        monkeypatch.setattr(target, "run", called.append)
    else:

        @wraps(target)
        def record(**values):
            inspect.signature(target).bind(**values)
            called.append(values)

        monkeypatch.setattr(f"{module}.{name}", record)
    monkeypatch.setattr("geolatent.lab.sweep.run_sweep", record_sweep)
    assert main(words[1:]) == 0
    assert called


def test_the_table_of_commands_is_complete():
    table = README.split("\n## Commands\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(COMMANDS)


@pytest.fixture(scope="module")
def help_of():
    """Return a function that gives a command's help; each is made once."""
    texts = {}

    def get(command, capsys):
        if command not in texts:
            assert main([command, "--help"]) == 0
            texts[command] = capsys.readouterr().out
        return texts[command]

    return get


def test_commands_and_their_options_exist(help_of, capsys):
    seen = 0
    for words in shell_commands():
        if not words[0].endswith("geolatent"):
            continue
        command, options = words[1], [word for word in words if word.startswith("--")]
        for name in COMMANDS if command == "COMMAND" else [command]:
            assert name in COMMANDS, " ".join(words)
            found = help_of(name, capsys)
            for option in options:
                assert re.search(rf"(^|[\s\[]){option}\b", found), " ".join(words)
            seen += 1
    assert seen >= len(COMMANDS) + 4


def test_options_in_the_text_exist(help_of, capsys):
    """Such as `ray.threads`."""
    found = help_of("improvement", capsys)
    groups = set(re.findall(r"--(\w+)\.", found))
    options = [span for span in SPANS if re.fullmatch(rf"({'|'.join(groups)})\.\w+", span)]
    assert "ray.threads" in options
    for option in options:
        assert f"--{option} " in found, option
    for name in (word for span in SPANS for word in re.findall(r"^--([\w-]+)", span)):
        # dashes stand for underscores
        assert re.search(rf"--{name.replace('-', '_')}\b", found), name


def test_scripts_and_their_options_exist():
    seen = 0
    for words in shell_commands():
        path = next((word for word in words[:2] if word.startswith("scripts/")), None)
        if path is None:
            continue
        seen += 1
        source = (ROOT / path).read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            name = option.removeprefix("--")
            # an argument of the parser, or of the function that it is made from
            assert option in source or re.search(rf"^    {name}:", source, re.MULTILINE), option
    assert seen >= 5


def texts_of_the_project():
    """Yield (path, text) of what a user reads or runs."""
    for path in (ROOT / "README.md", ROOT / "pyproject.toml"):
        yield path, path.read_text(encoding="utf-8")
    for folder in ("geolatent", "scripts", "configs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".sh", ".yaml"):
                yield path, path.read_text(encoding="utf-8")


def test_extras_that_are_to_be_installed_exist():
    extras = PROJECT["optional-dependencies"]
    texts = [text for _, text in texts_of_the_project()]
    lists = [
        each for text in texts for each in re.findall(r"pip install (?:-e )?'?\.\[(.*?)\]", text)
    ]
    found = [name for each in lists for name in each.split(",")]
    found += re.findall(r"\(extra `(\w+)`\)", README)
    assert {"test", "train", "ray", "bench", "integrations"} <= set(found) <= set(extras)


def test_nothing_is_installed_by_the_name_of_the_package():
    """On PyPI another project has it."""
    assert PROJECT["name"] != "geolatent"
    assert f"`{PROJECT['name']}`" in README
    assert list(PROJECT["scripts"]) == ["geolatent"]
    wrong = re.compile(r"pip install '?geolatent|geolatent\[")
    for path, text in texts_of_the_project():
        assert not wrong.search(text), path


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PROSE) if "://" not in link]
    assert any(link.endswith(".png") for link in links)
    headings = re.findall(r"^#+ (.*)$", PROSE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for link in links:
        file, _, anchor = link.partition("#")
        assert (ROOT / file).exists() if file else anchor in anchors, link


def test_files_that_are_named_exist():
    parents = ("configs/", "scripts/", "docs/", "tests/", "geolatent/")
    words = {word for span in SPANS for word in span.split()}
    words = {word for word in words.union(*shell_commands()) if word.startswith(parents)}
    assert len(words) > 5
    for word in words:
        assert list(ROOT.glob(word.rstrip("/"))), word
    # sections are named in quotes
    headings = re.findall(r"^#+ (.*)$", PROSE, re.MULTILINE)
    for name in re.findall(r'"([A-Z][a-z]+ [a-z]+)"', PROSE):
        assert name in headings, name


def test_the_tree_of_files_is_there():
    (tree,) = [text for kind, _, text in BLOCKS if kind == ""]
    seen, room = 0, ROOT
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folder = [ROOT, ROOT / "geolatent", room][depth]
        if names[0].endswith("/"):
            room = folder / names[0]
        for name in names:
            path = folder / name
            assert path.is_dir() if name.endswith("/") else path.is_file(), name
            seen += 1
    assert seen > 30


def test_names_in_the_text_exist():
    """Identifiers in code spans stand somewhere in the code; `gl.` ones are public."""
    files = [
        path for name in ("geolatent", "scripts", "tests") for path in (ROOT / name).rglob("*.py")
    ]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files if path != Path(__file__))
    known = set(re.findall(r"\w+", source)) | set(PROJECT["optional-dependencies"])
    names = [re.fullmatch(r"([A-Za-z_]\w*)(\(.*\)|\.\w+\(\))?", span) for span in SPANS]
    found = [name[1] for name in names if name]
    assert {"GeodesicKMeans", "FirstOrderSolver", "log_map", "evaluations"} <= set(found)
    for name in found:
        assert name in known, name
    for name in (span for span in SPANS if span.startswith("gl.")):
        value = gl
        for part in re.match(r"gl((\.\w+)+)", name)[1].split(".")[1:]:
            value = getattr(value, part)
