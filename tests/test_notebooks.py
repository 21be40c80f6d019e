"""The notebooks of docs/notebooks: what is stored is whole and clean, and what they do still works.

Those that need other people's models look for them in the folder GEOLATENT_MODELS, or in
shared/data/models beside the repository, and are skipped without them.
"""

import ast
import base64
import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
BYTES = 1_500_000
# folders of machines, as they stand in outputs; a site of the web has a name before such a word
PLACES = re.compile(r"(?<![\w.])/(root|home|work|tmp|usr|opt|var|mnt|Users)/")


@pytest.fixture(scope="module")
def script():
    """Return scripts/run_notebooks.py as a module."""
    path = ROOT / "scripts" / "run_notebooks.py"
    spec = importlib.util.spec_from_file_location("run_notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(notebook):
    return [each for cell in notebook.cells for each in cell.get("outputs", [])]


def pictures(notebook):
    return [
        base64.b64decode(each["data"]["image/png"])
        for each in outputs(notebook)
        if "image/png" in each.get("data", {})
    ]


def test_there_are_notebooks(script):
    names = {path.stem for path in NOTEBOOKS}
    assert "digits" in names
    assert names >= script.MODELS.keys() | script.LIBRARIES.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook_is_whole_and_clean(path, script):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < BYTES
    assert not PLACES.search(re.sub(r'"image/png": ".*"', "", text))  # whose letters mean nothing
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == script.METADATA

    # run from top to bottom, every cell, without an error or a warning
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not script.error_output(notebook)
    assert all(each.output_type != "error" for each in outputs(notebook))
    printed = "".join(each.get("text", "") for each in outputs(notebook))
    assert "Warning" not in printed
    silent = [cell.source for cell in code if not cell.outputs]
    assert all(only_prepares(source) for source in silent), silent

    assert len(pictures(notebook)) >= 2
    assert all(each.startswith(b"\x89PNG") for each in pictures(notebook))
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    headings = [line for each in words for line in each.splitlines() if re.match(r"# \S", line)]
    assert len(headings) == 1
    assert notebook.cells[0].source.startswith(headings[0])
    assert notebook.cells[-1].source.startswith("## What to take along\n\n")
    assert len(notebook.cells[-1].source) > 200


def only_prepares(source):
    """Return whether a cell shows nothing: definitions, imports, assignments, calls of set-up."""
    calls = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
    }
    defined = any(isinstance(node, ast.FunctionDef) for node in ast.parse(source).body)
    return "print" not in calls and ("plt.show" not in calls or defined)


def test_machine_paths_are_found():
    """The pattern of the test above finds what it is to find, and leaves addresses alone."""
    assert PLACES.search('"File \\"/home/someone/x.py\\""')
    assert not PLACES.search("https://site.org/home/page and a/tmp/b")


@pytest.mark.site
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, script):
    models = script.models_folder()
    reason = script.missing(path.stem, models)
    if reason is not None:
        pytest.skip(reason)
    stored = nbformat.read(path, as_version=4)
    notebook = script.execute(path, models)  # raises where a cell fails
    assert not script.error_output(notebook)
    kinds = [[each.output_type for each in cell.get("outputs", [])] for cell in notebook.cells]
    assert kinds == [[each.output_type for each in c.get("outputs", [])] for c in stored.cells]
    assert len(pictures(notebook)) == len(pictures(stored))


@pytest.mark.parametrize(
    ("source", "said"),
    [("print(1 + 1)", ""), ("import warnings; warnings.warn('a word')", "a word")],
)
def test_script_runs_and_writes_notebooks(tmp_path, script, source, said):
    """One that warns is left as it was."""
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["kept"]})
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    before = path.read_bytes()
    assert script.run_notebooks(["small"], tmp_path) == bool(said)
    if said:
        assert path.read_bytes() == before
        return
    found = nbformat.read(path, as_version=4)
    assert found.metadata == script.METADATA
    assert found.cells[0].outputs[0].text == "2\n"
    assert found.cells[0].execution_count == 1
    assert found.cells[0].metadata == {"tags": ["kept"]}


def test_script_leaves_alone_what_lacks_its_models(tmp_path, script, monkeypatch, capsys):
    monkeypatch.setenv("GEOLATENT_MODELS", str(tmp_path))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, tmp_path / "beta_vae.ipynb")
    assert script.run_notebooks(["beta_vae"], tmp_path) == 0
    assert "disentangling-vae" in capsys.readouterr().out
