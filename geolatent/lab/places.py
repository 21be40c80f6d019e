"""Where a command reads and writes, checked before it begins to work and before torch is there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from geolatent.lab.config import (
    SYSTEM_NAMES,
    DataOptions,
    FeatureOptions,
    InitialOptions,
    ModelOptions,
)
from geolatent.lab.idx import find_mnist, mnist_folder
from geolatent.requirements import requirement


def check_places(values: Mapping[str, Any]) -> None:
    """Raise where a command's options, by their names, name a place that it cannot use.

    Raises
    ------
    FileNotFoundError
        If a checkpoint, a file of codes or the data are not there; the message says what to do.
    NotADirectoryError, PermissionError
        If the results cannot be written where they are to go.
    """
    if "out" in values:
        check_output("out", Path(values["out"]))
    for name, checkpoint in _checkpoints(values):
        check_checkpoint(name, checkpoint)
    codes = values.get("codes")
    if codes is not None and not Path(codes).is_file():
        raise FileNotFoundError(requirement("codes", "an existing file", codes))
    data = values.get("data")
    if isinstance(data, DataOptions) and _needs_data(values):
        check_data(data)


def check_output(name: str, folder: Path) -> None:
    """Raise where a folder is none, or could not be made or written to."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        required = f"a folder, or one that can be made: {place} is a file"
        raise NotADirectoryError(requirement(name, required, folder))
    if not os.access(place, os.W_OK | os.X_OK):
        required = f"a folder that can be written to: {place} cannot"
        raise PermissionError(requirement(name, required, folder))


def check_checkpoint(name: str, checkpoint: str | None) -> None:
    """Raise where a model's file is missing."""
    if checkpoint is not None and not Path(checkpoint).is_file():
        message = requirement(f"{name}.checkpoint", "an existing file", checkpoint)
        command = "geolatent train --config configs/train_mnist_16d.yaml"
        raise FileNotFoundError(f"{message} To train a model, run: {command}")


def check_data(data: DataOptions) -> None:
    """Raise where images are to come from a file or a folder that is not there."""
    if data.name == "file" and not Path(data.path or "").is_file():
        raise FileNotFoundError(requirement("path", "an existing file", data.path))
    if data.name in ("digits", "sst", "file", *SYSTEM_NAMES) or data.download:
        return
    folder = mnist_folder(data.root) if data.name == "MNIST" else Path(data.root)
    kind = data.name.partition("-")[0]
    there = (folder / kind / "raw").is_dir()
    if not there and (data.name != "MNIST" or find_mnist(folder, data.split) is None):
        required = f"a folder with {data.name}: torchvision's files in {folder / kind / 'raw'}"
        if data.name == "MNIST":
            required += f", or MNIST's own *-ubyte.gz in {folder}"
        raise FileNotFoundError(
            f"{requirement('root', required, data.root)} Run the command again with "
            "--data.download true, or with --data.root FOLDER."
        )


def _checkpoints(values: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    model = values.get("model")
    if isinstance(model, ModelOptions):
        yield "model", model.checkpoint
    models = values.get("models") or {}
    # that one is too few is told first
    if len(models) > 1:
        for name, entry in models.items():
            yield f"models.{name}", entry.get("checkpoint")


def _needs_data(values: Mapping[str, Any]) -> bool:
    """Return whether a command reads its data; some do for some of their options alone."""
    features, initial = values.get("features"), values.get("initial")
    return (
        (values.get("pairs", "encoded") == "encoded" and values.get("source", "data") != "prior")
        or (isinstance(features, FeatureOptions) and features.kind == "logistic")
        or (isinstance(initial, InitialOptions) and initial.kind in ("lattice", "codes"))
        or "n_images" in values  # interpolate measures distances from the data
    )
