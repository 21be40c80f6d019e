"""Run the notebooks of docs/notebooks and write them back with what they print and draw.

    python scripts/run_notebooks.py
    python scripts/run_notebooks.py --names '[digits]'
    GEOLATENT_MODELS=FOLDER python scripts/run_notebooks.py

FOLDER holds other people's models, as the notebooks that need them describe. A notebook whose
models or libraries are missing is left as it is, and named. Each runs from top to bottom in a
process of its own, on this checkout and one thread; one that fails or says something on its error
output is not written. What tells of this machine or of this run (times of cells, versions) is left
out, so that running twice changes no more than rounding does.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jsonargparse import auto_cli
from nbclient import NotebookClient
from nbformat import NotebookNode
from rich.console import Console
from rich.table import Table

from geolatent.files import write_file

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
# what each needs beside this package: libraries, and folders of GEOLATENT_MODELS
LIBRARIES = {
    "single_cells": ("scvi", "scanpy", "leidenalg", "igraph"),
    "flux_latents": ("skimage",),
}
MODELS = {"beta_vae": ("disentangling-vae",), "flux_latents": ("taef2",)}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def missing(name: str, models: Path) -> str | None:
    """Return what a notebook needs and does not find, in words, or None."""
    absent = [each for each in LIBRARIES.get(name, ()) if importlib.util.find_spec(each) is None]
    if absent:
        return f"needs the libraries {', '.join(absent)} (extras `test` and `integrations`)"
    absent = [each for each in MODELS.get(name, ()) if not (models / each).is_dir()]
    if absent:
        return f"needs a folder with {', '.join(absent)}: set GEOLATENT_MODELS (looked in {models})"
    return None


def models_folder() -> Path:
    """Return the folder of GEOLATENT_MODELS, or shared/data/models beside the checkout."""
    return Path(os.environ.get("GEOLATENT_MODELS", ROOT.parent / "shared" / "data" / "models"))


def execute(path: Path, models: Path, timeout: int = 600) -> NotebookNode:
    """Run a notebook from top to bottom and return it with its outputs.

    Parameters
    ----------
    path
        The notebook, which is not changed.
    models
        What GEOLATENT_MODELS is to be.
    timeout
        Seconds that a cell may take.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        Where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "GEOLATENT_MODELS": str(models),
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    # what libraries leave behind goes with the folder
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment)
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def error_output(notebook: NotebookNode) -> str:
    """Return what the cells wrote to their error output."""
    return "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr"
    )


def run_notebooks(names: list[str] | None = None, folder: Path = FOLDER) -> int:
    """Run notebooks and write them back.

    Parameters
    ----------
    names
        Which, by their names without ``.ipynb``; by default all.
    folder
        Where they are.

    Returns
    -------
    int
        The exit status: 1 where one could not be written.
    """
    console = Console()
    table = Table("notebook", "seconds", "kilobytes", "")
    failed = False
    for path in (
        sorted(folder.glob("*.ipynb"))
        if names is None
        else map(folder.joinpath, [f"{name}.ipynb" for name in names])
    ):
        reason = missing(path.stem, models_folder())
        if reason is not None:
            table.add_row(path.stem, "", "", reason)
            continue
        began = time.perf_counter()
        notebook = execute(path, models_folder())
        seconds = f"{time.perf_counter() - began:.0f}"
        said = error_output(notebook)
        if said:
            failed = True
            table.add_row(path.stem, seconds, "", "not written: see below")
            console.print(f"{path.stem} wrote to its error output:\n{said}", markup=False)
            continue
        content = nbformat.writes(notebook).encode() + b"\n"
        write_file(path, content)
        table.add_row(path.stem, seconds, f"{len(content) / 1e3:,.0f}", "written")
    console.print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(auto_cli(run_notebooks))
