"""Commands that are functions still, and what dry runs of them would do.

This module goes when the last of them is an `Experiment`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geolatent.files import LOCK
from geolatent.lab.config import InitialOptions, ModelOptions, check_formats
from geolatent.lab.costs import JVP, geodesic_rows, graph_rows, seconds_a_row
from geolatent.lab.dry_run import output, print_plan
from geolatent.lab.experiment import as_option
from geolatent.lab.improvement import check_source
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import ALIGNED
from geolatent.lab.pairs import check_room, draw_images
from geolatent.lab.run import RunFolder
from geolatent.lab.setup import Dataset, initial_kind, make_device, make_model

_OVERHEAD = 2e-5


@dataclass(frozen=True)
class Unported:
    """A command that is a function, and its options."""

    command: str
    function: Callable[..., None]
    values: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, as configs name them."""
        bound = inspect.signature(self.function).bind(**self.values)
        bound.apply_defaults()
        return {name: as_option(value) for name, value in bound.arguments.items()}

    def at(self, out: Path) -> Unported:
        """Return the same with another folder."""
        return replace(self, values={**self.values, "out": out, "overwrite": False})

    def run(self) -> None:
        """Call the function."""
        self.function(**self.values)


def dry_run(work: Unported, sweep: Mapping[str, Sequence[Any]]) -> None:
    """Print what a command would do and what it would cost; nothing is written."""
    command, values = work.command, work.values
    check_formats(values["format"])
    config = {**values, "sweep": sweep} if sweep else values
    print_plan(command, work.options, _plan(command, config), _cost(command, values), sweep)


def _models(command: str, values: Mapping[str, Any]) -> dict[str, LatentModel]:
    place = make_device(values["device"])
    if command != "compare":
        return {"model": make_model(values["model"], values["dtype"], place)}
    return {
        name: make_model(ModelOptions(**entry), values["dtype"], place, f"models.{name}")
        for name, entry in values["models"].items()
    }


def _plan(command: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return what would be used and made, by name."""
    plan = {
        "Output": _output(values["out"], command, values),
        "Device": str(make_device(values["device"])),
    }
    models = _models(command, values)
    for name, model in models.items():
        plan[f"Model {name}"] = f"{type(model.module).__name__}, {model.dim} latent dimensions"
    if values.get("pairs", "encoded") == "encoded":
        images, _ = Dataset(values["data"]).chosen
        plan["Data"] = f"{len(images):,} images of {values['data'].name}"
    if "pairs" in values:
        check_source(values["pairs"], None, values["codes"])
    if values.get("pairs") == "prior":
        check_room(values["n_pairs"], max(model.dim for model in models.values()))
    elif "n_pairs" in values and "Data" in plan:
        draw_images(values["n_pairs"], len(images), values["seed"])
    n_curves = _n_curves(command, values)
    if n_curves:
        plan["Geodesics"] = f"{n_curves:,}"
    if "executor" in values:
        n_shards = math.ceil(values["n_pairs"] / values["batch_size"])
        plan["Shards"] = f"{n_shards:,} of {values['batch_size']} pairs, "
        plan["Shards"] += f"executor {values['executor']}"
    return plan


def _output(folder: Path, command: str, values: Mapping[str, Any]) -> str:
    """Return the state of an output folder; raise where the command would not take it."""
    if (folder / LOCK).exists():
        return f"{folder}, which another process may be writing"
    options = {name: as_option(value) for name, value in values.items()}
    resumes = "executor" in values
    RunFolder.check(
        folder,
        overwrite=values["overwrite"],
        command=command if resumes else "",
        resume=options if resumes else None,
    )
    return output(folder, overwrite=values["overwrite"])


def _n_curves(command: str, values: Mapping[str, Any]) -> int:
    """Return how many geodesics a command solves for."""
    if "n_pairs" not in values:
        return 0
    groups = 1
    if command == "compare":
        groups = len(values["models"])
    elif command == "interpolate":
        groups = 1 if values["features"].kind == "none" else 2
    return int(values["n_pairs"]) * groups


def _cost(command: str, values: Mapping[str, Any]) -> tuple[float, float]:
    """Return the decoder rows and the seconds that a command would take, about."""
    models = _models(command, values)
    rows = seconds = 0.0
    for model in models.values():
        n_curves = _n_curves(command, values) / len(models)
        solved = n_curves * _rows_each(values, model) if n_curves else 0.0
        part = _rows_once(command, values, model) + solved
        rows += part
        seconds += part * seconds_a_row(model) + _OVERHEAD * solved
    return rows, seconds


def _rows_each(values: Mapping[str, Any], model: LatentModel) -> float:
    """Return the rows of one geodesic and of what is measured along it."""
    from_graph = _initial(values, model) != "straight"
    rows = geodesic_rows(values["solver"], model.dim, from_graph=from_graph)
    return rows + (2 * ALIGNED * model.dim * JVP if "n_images" in values else 0)


def _initial(values: Mapping[str, Any], model: LatentModel) -> str:
    return initial_kind(values.get("initial", InitialOptions("straight")), model.dim)


def _rows_once(command: str, values: Mapping[str, Any], model: LatentModel) -> float:
    """Return the rows of a graph, or of metric tensors."""
    if command == "landscape":
        return values["resolution"] ** 2 * model.dim * JVP
    return graph_rows(values["initial"], model, Dataset(values["data"]))
