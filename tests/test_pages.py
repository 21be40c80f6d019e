"""README and pages keep their word: code runs; commands, options, files and links are there."""

import inspect
import itertools
import re
import shlex
import subprocess
import tomllib
from dataclasses import dataclass
from functools import cached_property, wraps
from importlib import import_module
from pathlib import Path

import pytest

import geolatent as gl
from geolatent.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@dataclass(frozen=True)
class Page:
    """A Markdown file, its code and its prose apart."""

    path: Path

    @property
    def name(self):
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self):
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self):
        """(kind, line, text) of each block; directives of the site have their kind in braces."""
        return [
            (found[1], self.text[: found.start(2)].count("\n") + 1, found[2])
            for found in re.finditer(
                r"^```(\S*)[^\n]*\n(.*?)^```$", self.text, re.DOTALL | re.MULTILINE
            )
        ]

    @cached_property
    def prose(self):
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.DOTALL | re.MULTILINE)

    @cached_property
    def spans(self):
        """Code spans, but for those of roles of the site."""
        found = re.findall(r"(?<!\})`([^`]+)`", re.sub(r"\{\w+\}`[^`]+`", "", self.prose))
        return {" ".join(span.split()) for span in found}

    @cached_property
    def anchors(self):
        headings = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


README = Page(ROOT / "README.md")
CONTRIBUTING = Page(ROOT / "CONTRIBUTING.md")
PAGES = [README, CONTRIBUTING, *map(Page, sorted((ROOT / "docs").glob("*.md")))]
SPANS = sorted(set().union(*(page.spans for page in PAGES)))
# of these tests/test_my_model.py runs the blocks, with the libraries that they are about
WITH_LIBRARIES = {"my-model.md", "cells.md", "latents.md"}


def blocks(kind):
    return [
        pytest.param(page, text, line, id=f"{page.name} line {line}")
        for page in PAGES
        for found, line, text in page.blocks
        if found == kind
    ]


def shell_commands():
    """Yield the words of every command in the bash blocks and the code spans."""
    lines = list(SPANS)
    for page in PAGES:
        for kind, _, text in page.blocks:
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
    tested = {"python", "bash", "yaml", "text", "bibtex", "", "{include}", "{toctree}"}
    assert {kind for page in PAGES for kind, _, _ in page.blocks} <= tested
    (tree,) = [text for page in PAGES for kind, _, text in page.blocks if kind == ""]
    assert tree.startswith("geolatent/\n")


WITH_PYTHON = [
    pytest.param(page, id=page.name)
    for page in PAGES
    if page.path.name not in WITH_LIBRARIES and any(kind == "python" for kind, _, _ in page.blocks)
]


@pytest.mark.site
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs_as_written(page, tmp_path, monkeypatch, capsys):
    """The blocks of a page one after the other, as a reader would run them."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, (kind, line, text) in enumerate(page.blocks):
        if kind != "python":
            continue
        exec(compile("\n" * (line - 1) + text, page.name, "exec"), names)
        printed = capsys.readouterr().out
        following = page.blocks[number + 1 : number + 2]
        if not following or following[0][0] != "text":
            continue
        # what it prints stands in the next block; other processors round other numbers
        shown = following[0][2]
        heads = [[row.split()[:1] for row in rows.splitlines()[3:]] for rows in (printed, shown)]
        assert heads[0][:12] == heads[1][:12]
        assert printed.splitlines()[:1] == shown.splitlines()[:1]
        titles = [" ".join(rows.splitlines()[1:3]).split() for rows in (printed, shown)]
        assert titles[0] == titles[1]


def test_the_example_shows_what_it_prints():
    kinds = [kind for kind, _, _ in README.blocks]
    assert kinds[kinds.index("python") + 1] == "text"


@pytest.mark.parametrize(("page", "text", "line"), blocks("python"))
def test_python_compiles(page, text, line):
    compile("\n" * (line - 1) + text, page.name, "exec")


@pytest.mark.parametrize(("page", "text", "line"), blocks("bash"))
def test_bash_parses(page, text, line):
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(("page", "text", "line"), blocks("yaml"))
def test_configs_are_accepted(page, text, line, tmp_path, monkeypatch):
    """Each is read by its command, every point of a sweep too; nothing is run."""
    words = shlex.split(text.splitlines()[0].removeprefix("# "))
    monkeypatch.chdir(tmp_path)
    Path(words[words.index("--config") + 1]).write_text(text)
    for name in re.findall(r"[\w/]+\.safetensors", text):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    module, name = COMMANDS[words[1]][0].split(":")
    target = getattr(import_module(module), name)
    called = []

    def record_sweep(_experiment, sweep, experiments):
        assert len(experiments) == len(list(itertools.product(*sweep.values()))) > 1
        called.extend(experiments)

    if inspect.isclass(target):
        monkeypatch.setattr(target, "run", lambda experiment: called.append(experiment))
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
    table = Page(ROOT / "docs" / "commands.md").text
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
    everything = "".join(help_of(command, capsys) for command in COMMANDS)
    for name in (word for span in SPANS for word in re.findall(r"^--([\w-]+)", span)):
        # dashes stand for underscores
        assert re.search(rf"--{name.replace('-', '_')}\b", everything), name


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
    for page in PAGES:
        yield page.path, page.text
    yield ROOT / "pyproject.toml", (ROOT / "pyproject.toml").read_text(encoding="utf-8")
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
    found += re.findall(r"\(extra `(\w+)`\)", "".join(page.text for page in PAGES))
    assert {"test", "train", "ray", "bench", "integrations", "docs"} <= set(found) <= set(extras)


def test_nothing_is_installed_by_the_name_of_the_package():
    """On PyPI another project has it."""
    assert PROJECT["name"] != "geolatent"
    assert f"`{PROJECT['name']}`" in README.text
    assert list(PROJECT["scripts"]) == ["geolatent"]
    wrong = re.compile(r"pip install '?geolatent|geolatent\[")
    for path, text in texts_of_the_project():
        assert not wrong.search(text), path


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.prose):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file) if file else page.path
        assert target.exists(), link
        assert not anchor or anchor in Page(target.resolve()).anchors, link
    # pages of the site that are made from files of other names
    for name in re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", page.prose):
        folder, _, stem = name.rpartition("/")
        made = {"gallery/index": "examples/GALLERY_HEADER.rst", "api": "api.rst"}
        file = made.get(name) or (f"examples/{stem}.py" if folder == "gallery" else f"{name}.md")
        assert (ROOT / "docs" / file).is_file(), name


def test_the_readme_is_short_and_shows_a_figure():
    assert len(README.text.splitlines()) <= 200
    assert "](docs/latent_plane.png)" in README.text


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for page in PAGES:
        for kind, _, text in page.blocks:
            if kind == "{toctree}":
                listed |= {line for line in text.splitlines() if line and line[0] != ":"}
    pages = {page.path.stem for page in PAGES if page.path.parent.name == "docs"}
    assert pages <= listed | {"index"}
    assert {"api", "gallery/index", "notebooks/index"} <= listed


def test_files_that_are_named_exist():
    parents = ("configs/", "scripts/", "docs/", "tests/", "geolatent/")
    words = {word for span in SPANS for word in span.split()}
    words = {word for word in words.union(*shell_commands()) if word.startswith(parents)}
    # made when the site is
    words = {word for word in words if not word.startswith(("docs/_build", "docs/_generated"))}
    assert len(words) > 5
    for word in words:
        if "<" not in word:
            assert list(ROOT.glob(word.rstrip("/"))), word


def test_the_tree_of_files_is_there():
    (tree,) = [text for kind, _, text in CONTRIBUTING.blocks if kind == ""]
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
