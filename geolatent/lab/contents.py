"""What lies in a run folder: whose it is, what may be written there, and what may be removed.

Only files of a run's own names are ever removed, and only from the folder of a run, which
``environment.json`` or the first line of ``config.yaml`` tells; no link is followed.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from geolatent.checks import requirement
from geolatent.files import LOCK, one_line, read_json, read_yaml, remove_leftovers, write_file
from geolatent.lab.earlier import CURVES
from geolatent.lab.options import SWEEP, changed_inputs, differences, options_key
from geolatent.lab.parts import PARTS

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
PAIRS = "pairs.parquet"
ARRAYS = "arrays.safetensors"
SUMMARY = "summary.json"
RECORD = "geolatent-files.json"
FIGURES = "figures"
POINTS = "points"
IMAGES = "images"
# what the first line of config.yaml begins with
HEAD = "# geolatent "

_RESULTS = (SUMMARY, PAIRS, CURVES, ARRAYS)
_FILES = (*_RESULTS, CONFIG, ENVIRONMENT, RECORD)
# by their places in the folder, the files that a run names by number
_NUMBERED = {
    PARTS: re.compile(r"\d{5,}\.(parquet\.gz|parquet|safetensors|json)"),
    IMAGES: re.compile(r"\d{6,}\.png"),
    f"{IMAGES}.unfinished": re.compile(r"\d{6,}\.png"),
}
_FOLDERS = (*_NUMBERED, FIGURES, POINTS)
_POINT = re.compile(r"\d{4,}")
# the figures of runs that did not record them
_FIGURES = (
    *("alignment", "clusters", "compared", "correlations", "crossings", "curves", "data_distance"),
    *("distances", "histogram", "images", "improvements", "landscape", "latent", "losses", "norms"),
    *("outputs", "plane", "reconstructions", "samples", "scores", "steps", "strips"),
)


def run_command(folder: Path) -> str | None:
    """Return the name of the command whose run a folder is, or None where it is of none."""
    try:
        described = read_json(folder / ENVIRONMENT)
        if isinstance(described.get("command"), str) and "geolatent" in described:
            return str(described["command"])
    except (OSError, ValueError):
        pass  # it is damaged, or not there
    try:
        with (folder / CONFIG).open("rb") as file:
            head = file.readline(200).decode(errors="replace")
    except OSError:
        return None
    return head.removeprefix(HEAD).split()[0] if head.startswith(HEAD) else None


def read_options(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read ``config.yaml`` and ``environment.json``; a ValueError tells that one is damaged."""
    config, described = read_yaml(folder / CONFIG), read_json(folder / ENVIRONMENT)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} holds no options.")
    described.setdefault("outputs", {})  # earlier versions wrote none
    for key, kind in {"command": str, "inputs": dict, "outputs": dict}.items():
        if not isinstance(described.get(key), kind):
            raise ValueError(f"{folder / ENVIRONMENT} names no {key}.")
    return config, described


def check_owner(folder: Path, command: str) -> None:
    """Raise where files of a run's names are not of a run, or are of a training, or are links."""
    for name in _FOLDERS:
        if (folder / name).is_symlink():
            raise ValueError(requirement("out", f"a folder without a link `{name}`", folder))
    owner = run_command(folder)
    if owner == "train" != command:
        required = "another folder than that of a training"
        raise FileExistsError(requirement("out", required, folder))
    if owner is not None:
        return
    for name in (*_FILES, PARTS, POINTS):
        if (folder / name).exists():
            required = f"a folder without one called `{name}` that is not of a run"
            raise FileExistsError(requirement("out", required, folder))


def check_held(folder: Path, command: str, resume: Mapping[str, Any] | None) -> None:
    """Raise where a folder holds results other than an unfinished run of a command's options."""
    held = [name for name in (SUMMARY, CONFIG, PAIRS) if (folder / name).exists()]
    if not held:
        return
    # a training is not overwritten
    else_ = "or another folder" if command == "train" else "or --overwrite be given"
    required = f"a folder without results ({held[0]} is in it), {else_}"
    if resume is None or held[0] != CONFIG:
        raise FileExistsError(requirement("out", required, folder))
    try:
        found, before = read_options(folder)
    except (OSError, ValueError) as error:
        required = f"a readable run folder, {else_}"
        raise ValueError(f"{requirement('out', required, folder)} {error}") from error
    found, asked = {"command": before["command"], **found}, {"command": command, **resume}
    swept = SWEEP in found and SWEEP in asked
    different = differences(found, asked, swept=swept) or changed_inputs(
        before["inputs"], resume, swept=swept
    )
    if different:
        required = f"the folder of an unfinished run of the same options, {else_}"
        message = requirement("out", required, folder)
        raise FileExistsError(f"{message} The options differ: {'; '.join(different)}.")


def check_images(folder: Path) -> None:
    """Raise where ``images`` is not of the command sample, or holds anything but its images."""
    of_run = run_command(folder) == "sample"
    for name in (IMAGES, f"{IMAGES}.unfinished"):
        place, own = folder / name, _NUMBERED[name].fullmatch
        if place.is_dir() and not (of_run and all(own(path.name) for path in place.iterdir())):
            required = f"a folder whose `{name}` holds images of the command sample alone"
            raise FileExistsError(requirement("out", required, folder))


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers of a run left; the folder's lock is held."""
    remove_leftovers(folder, _FILES.__contains__)
    for name, is_own in _owned(folder).items():
        remove_leftovers(folder / name, is_own)


def remove_results(folder: Path) -> None:
    """Remove the results of a run, if there is one; what else lies in its folders stays there."""
    if run_command(folder) is None:
        return
    # the summary first: what is left of an interrupted removal is an unfinished run
    for name in _RESULTS:
        (folder / name).unlink(missing_ok=True)
    for name, is_own in _owned(folder).items():
        _remove_from(folder / name, is_own)
    for point in point_folders(folder):
        remove_unfinished(point)
        remove_results(point)
        # last what tells that it is one
        for name in (LOCK, ENVIRONMENT):
            (point / name).unlink(missing_ok=True)
        _remove_empty(point)
    _remove_empty(folder / POINTS)
    for name in (RECORD, CONFIG):
        (folder / name).unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove the parts of a run."""
    _remove_from(folder / PARTS, _NUMBERED[PARTS].fullmatch)


def _remove_from(folder: Path, is_own: Callable[[str], object]) -> None:
    """Remove a run's files from a folder, and the folder where nothing else is in it."""
    if folder.is_dir():
        for path in folder.iterdir():
            if is_own(path.name):
                path.unlink()
        _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _owned(folder: Path) -> dict[str, Callable[[str], object]]:
    """Return, by the folders in a run folder, whether a file there is named as one of a run's."""
    numbered = {name: pattern.fullmatch for name, pattern in _NUMBERED.items()}
    return {**numbered, FIGURES: _figure_names(folder).__contains__}


def point_folders(folder: Path) -> list[Path]:
    """Return the run folders of the points of a sweep, in the order of their numbers."""
    places = folder / POINTS
    if not places.is_dir() or places.is_symlink():
        return []
    return sorted(
        place
        for place in places.iterdir()
        if _POINT.fullmatch(place.name)
        and not place.is_symlink()
        and not any((place / name).is_symlink() for name in _FOLDERS)
        and run_command(place) is not None
    )


def find_points(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return a sweep's run folders by the `options_key` of their options; and what is damaged."""
    found, damaged = {}, []
    for place in point_folders(folder):
        try:
            config, described = read_options(place)
            found[options_key(described["command"], config)] = place
        except (OSError, ValueError) as error:
            damaged.append(one_line(error))
    return found, damaged


def check_inputs(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise where files that options name are not those that a run was made of."""
    _, described = read_options(folder)
    changed = changed_inputs(described["inputs"], config)
    if changed:
        required = "a folder of runs of the same files, or --overwrite be given"
        raise FileExistsError(f"{requirement('out', required, folder)} {'; '.join(changed)}.")


def record_files(folder: Path, names: Iterable[str]) -> None:
    """Add names, relative to a run's folder, to the list of what the run wrote; before it does.

    The list is the folder's ``geolatent-files.json``. A folder that is not of a run, which has an
    ``environment.json``, gets none.
    """
    if not (folder / ENVIRONMENT).is_file():
        return
    before = _recorded_files(folder)
    after = before | set(names)
    if after != before:
        text = json.dumps({"files": sorted(after)}, indent=2) + "\n"
        write_file(folder / RECORD, text.encode())


def _recorded_files(folder: Path) -> set[str]:
    """Return the names that `record_files` was given; the usual ones of a run that has no list."""
    usual = {f"{FIGURES}/{name}.png" for name in _FIGURES}
    try:
        names = read_json(folder / RECORD).get("files")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return set(names)
        reason = f"{folder / RECORD} holds no list of files."
    except FileNotFoundError:
        return set() if _records_figures(folder) else usual
    except (OSError, ValueError) as error:
        reason = str(error)
    warnings.warn(f"{reason} What was written is known by its usual names alone.", stacklevel=3)
    return usual


def _records_figures(folder: Path) -> bool:
    try:
        # runs have names since they record what they draw
        return isinstance(read_json(folder / ENVIRONMENT).get("run"), str)
    except (OSError, ValueError):
        return False


def _figure_names(folder: Path) -> set[str]:
    """Return the names of the figures in ``figures/`` that geolatent drew."""
    names = (name.partition(f"{FIGURES}/") for name in _recorded_files(folder))
    return {name for before, _, name in names if not before and Path(name).name == name}
