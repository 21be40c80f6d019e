"""Options of runs: as plain values, compared with those of a run, and the files that they name."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from geolatent.checks import describe, requirement
from geolatent.files import checksum

SWEEP = "sweep"

# options that say where and how fast results are made, and change them by rounding at most
NEUTRAL_OPTIONS = (
    *("out", "out_dir", "overwrite", "resume", "executor", "ray", "max_rows"),
    *("training.accelerator", "training.progress", "format"),
)


def plain(value: Any) -> Any:
    """Return a value in the types of YAML and JSON; NaN and infinities become null.

    Examples
    --------
    >>> plain({"steps": (1, 2.5), "out": Path("runs"), "left": float("nan")})
    {'steps': [1, 2.5], 'out': 'runs', 'left': None}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Tensor | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(requirement("value", "a value that YAML can hold", describe(value)))


def is_neutral(key: str) -> bool:
    """Return whether an option, by its dotted name, changes results by rounding at most."""
    return any(key == name or key.startswith(f"{name}.") for name in NEUTRAL_OPTIONS)


def options_key(command: str, config: Mapping[str, Any]) -> str:
    """Return a text that is the same for runs whose options give the same results."""
    options = _flat({"command": command, **plain(config)})
    options = {key: value for key, value in options.items() if not is_neutral(key)}
    return json.dumps(options, sort_keys=True)


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return options by their dotted names."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def differences(
    found: Mapping[str, Any], config: Mapping[str, Any], *, swept: bool = False
) -> list[str]:
    """Tell how options differ from those of a run, other than by neutral ones.

    The points of a sweep are not compared: each has a run of its own.
    """
    old, new = _flat(found), _flat(plain(config))
    return [
        f"{key}: {old.get(key, 'none')} there, {new.get(key, 'none')} here"
        for key in _unequal(old, new, swept=swept)
        if not is_neutral(key)
    ]


def changed_inputs(
    before: Mapping[str, str], config: Mapping[str, Any], *, swept: bool = False
) -> list[str]:
    """Tell which files that options name are not those whose checksums a run has."""
    now, paths = input_checksums(config), _named_files(plain(config))
    return [
        f"{key}: the file {paths.get(key, 'that it names')} is another than it was"
        for key in _unequal(before, now, swept=swept)
    ]


def _unequal(old: Mapping[str, Any], new: Mapping[str, Any], *, swept: bool) -> list[str]:
    return [
        key
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and not (swept and key.startswith(f"{SWEEP}."))
    ]


def input_checksums(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksums of the files that options name, such as checkpoints."""
    return {key: checksum(path) for key, path in _named_files(plain(config)).items()}


def _named_files(value: Any, key: str = "") -> dict[str, Path]:
    """Return the files that options name, by the options' dotted names; and what is beside them.

    A checkpoint X.safetensors has its model's class and arguments in X.json.
    """
    if is_neutral(key):
        return {}
    if isinstance(value, Mapping):
        inner = {f"{key}.{name}" if key else str(name): item for name, item in value.items()}
    elif isinstance(value, list):
        inner = {f"{key}[{place}]": item for place, item in enumerate(value)}
    else:
        if not isinstance(value, str) or not os.path.isfile(value):
            return {}
        path = Path(value)
        beside = path.with_suffix(".json")
        if path.suffix != ".safetensors" or not beside.is_file():
            return {key: path}
        return {key: path, f"{key} (.json)": beside}
    found: dict[str, Path] = {}
    for name, item in inner.items():
        found |= _named_files(item, name)
    return found
