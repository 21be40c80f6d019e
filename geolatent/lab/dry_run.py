"""What a command would do, and about how long it would take, without doing it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

from geolatent.files import LOCK
from geolatent.lab.config import InitialOptions, ModelOptions, check_formats
from geolatent.lab.contents import SUMMARY
from geolatent.lab.earlier import stored_parts
from geolatent.lab.improvement import DEFAULT_STEPS, check_source
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.options import plain
from geolatent.lab.pairs import check_room, draw_images
from geolatent.lab.printing import make_console, print_last
from geolatent.lab.run import RunFolder
from geolatent.lab.setup import Dataset, initial_kind, make_device, make_model
from geolatent.lab.sweep import sweep_points
from geolatent.lab.walk import walk_codes

# decoder rows of a geodesic, measured at a tolerance of 1e-4: 2,400 in two dimensions, 1,300 in
# sixteen; started from a graph half as many again
_ROWS = {2: 2400, 16: 1300}
_ROWS_OF_METHODS = {"michelis_becker": 24_000, "georce": 50_000}
_GRAPH = 1.5
# cost of a Jacobian-vector product in forward rows, and points of a curve whose alignment is taken
_JVP, _ALIGNED = 2.5, 16
# a step of a training costs three forward passes of the model, and its encoder as much again
_TRAINING = 6
# seconds that a solve takes for each decoder row beside the decoder, measured on small decoders
_OVERHEAD = 2e-5
# rows of a timed call, and calls
_TIMED, _CALLS = 256, 5
# steps of a timed walk
_STEPS = 2


def dry_run(command: str, values: Mapping[str, Any], sweep: Mapping[str, Sequence[Any]]) -> None:
    """Print what a command would do and what it would cost; nothing is written.

    Parameters
    ----------
    command
        Its name.
    values
        Its options.
    sweep
        Options of which every combination would be run.

    Raises
    ------
    FileNotFoundError, FileExistsError, ValueError
        Where the command itself would not begin.
    """
    check_formats(values["format"])
    console = make_console()
    options = {**values, "model": _described(values["model"])} if command == "train" else values
    text = yaml.safe_dump(plain(options), sort_keys=False, allow_unicode=True)
    console.print(f"Options of geolatent {command}:\n\n{text}", soft_wrap=True)
    n_points = len(sweep_points(sweep)) if sweep else 1
    config = {**values, "sweep": sweep} if sweep else values
    for name, found in _plan(command, config).items():
        console.print(f"{name}: {found}", soft_wrap=True)
    rows, seconds = _cost(command, values)
    each = ""
    if sweep:
        names = ", ".join(sweep)
        each = f" for {n_points} combinations of {names}, with the options above"
    amount = f"about {n_points * rows:,.0f} decoder rows, " if rows else ""
    length = timedelta(seconds=max(1, round(n_points * seconds)))
    print_last(
        console,
        f"Estimate{each}: {amount}about {length} on this device (from a few timed calls and the "
        "costs of other models; it may be three times less or more). Nothing was written.",
    )


def _described(model: Callable[[], Any]) -> str:
    return type(model()).__name__


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
    if command == "train":
        images, _ = Dataset(values["data"]).chosen
        return {
            "Output": _output(values["out_dir"], command, values),
            "Device": f"Lightning's {values['training'].accelerator}",
            "Data": f"{len(images):,} images of {values['data'].name}",
            "Epochs": f"at most {values['training'].epochs}",
        }
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
        check_source(values["pairs"], values.get("steps"), values["codes"])
    if "pairs" in values and values["pairs"] in ("worst", "prior"):
        dim = max(model.dim for model in models.values())
        check_room(values["n_pairs"], dim, _n_steps(values))
    elif "n_pairs" in values and "Data" in plan:
        draw_images(values["n_pairs"], len(images), values["seed"])
    n_curves = _n_curves(command, values)
    if n_curves:
        plan["Geodesics"] = f"{n_curves:,}"
    if "executor" in values:
        n_shards = math.ceil(values["n_pairs"] / values["solver"].batch_size)
        plan["Shards"] = f"{n_shards:,} of {values['solver'].batch_size} pairs, "
        plan["Shards"] += f"executor {values['executor']}"
    return plan


def _output(folder: Path, command: str, values: Mapping[str, Any]) -> str:
    """Return the state of an output folder; raise where the command would not take it."""
    # whoever asks for a lock writes it
    if (folder / LOCK).exists():
        return f"{folder}, which another process may be writing"
    if command == "train":
        names = ("model", "data", "out_dir", "training", "precision", "resume")
        # the module needs an extra
        from geolatent.lab.training import check_training

        check_training(**{name: values[name] for name in names})
        if values["resume"]:
            return f"{folder}, an unfinished training, which it would go on with"
        return f"{folder}, {'there already' if folder.exists() else 'to be made'}"
    resumed = dict(values) if "executor" in values else None
    RunFolder.check(folder, overwrite=values["overwrite"], command=command, resume=resumed)
    n_parts = len(stored_parts(folder, ""))
    if n_parts and not values["overwrite"]:
        return f"{folder}, an unfinished run with {n_parts} shards, which it would go on with"
    if (folder / SUMMARY).exists():
        return f"{folder}, whose results would be replaced"
    return f"{folder}, {'there already' if folder.exists() else 'to be made'}"


def _n_curves(command: str, values: Mapping[str, Any]) -> int:
    """Return how many geodesics a command solves for."""
    if command == "distances":
        n = len(Dataset(values["data"]).chosen[0])
        return n * (n - 1) // 2
    if "n_pairs" not in values:
        return 0
    groups = 1
    if command == "compare":
        groups = len(values["models"])
    elif command == "interpolate":
        groups = 1 if values["features"].kind == "none" else 2
    elif values["pairs"] == "worst":
        groups = _n_steps(values)
    return int(values["n_pairs"]) * groups


def _n_steps(values: Mapping[str, Any]) -> int:
    if values["pairs"] != "worst":
        return 0
    return len(DEFAULT_STEPS if values["steps"] is None else values["steps"])


def _cost(command: str, values: Mapping[str, Any]) -> tuple[float, float]:
    """Return the decoder rows and the seconds that a command would take, about."""
    if command == "train":
        return _training_cost(values)
    models = _models(command, values)
    rows = seconds = 0.0
    for model in models.values():
        n_curves = _n_curves(command, values) / len(models)
        solved = n_curves * _rows_each(values, model) if n_curves else 0.0
        part = _rows_once(command, values, model) + solved
        rows += part
        seconds += part * _seconds_a_row(model) + _OVERHEAD * solved
    if command == "walk" and values["kind"] == "brownian":
        seconds += _walk_seconds(values, *models.values())
    return rows, seconds


def _rows_each(values: Mapping[str, Any], model: LatentModel) -> float:
    """Return the rows of one geodesic and of what is measured along it."""
    if values["solver"].method in _ROWS_OF_METHODS:
        return _ROWS_OF_METHODS[values["solver"].method]
    rows: float = _ROWS[min(_ROWS, key=lambda dim: abs(dim - model.dim))]
    if "n_nodes" in values or _initial(values, model) != "straight":
        rows *= _GRAPH
    if values.get("alignment") or "n_images" in values:
        rows += 2 * _ALIGNED * model.dim * _JVP
    return rows


def _initial(values: Mapping[str, Any], model: LatentModel) -> str:
    return initial_kind(values.get("initial", InitialOptions("straight")), model.dim)


def _rows_once(command: str, values: Mapping[str, Any], model: LatentModel) -> float:
    """Return the rows of a graph, or of metric tensors."""
    if command == "landscape":
        return values["resolution"] ** 2 * model.dim * _JVP
    if command == "walk":
        return values["n_walks"] * (values["n_steps"] + 1) * (model.dim * _JVP + 1)
    if "n_nodes" in values:
        return values["n_nodes"]
    kind, initial = _initial(values, model), values["initial"]
    if kind == "lattice":
        return initial.resolution**model.dim
    return (initial.n_nodes or len(Dataset(values["data"]).training[0])) if kind == "codes" else 0


def _best(call: Callable[[], object]) -> float:
    """Return the least seconds that a call takes, once it has been made."""
    call()
    taken = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _seconds_a_row(model: LatentModel) -> float:
    codes = torch.zeros(_TIMED, model.dim).to(model.like)
    return _best(lambda: model.images(codes)) / _TIMED


def _walk_seconds(values: Mapping[str, Any], model: LatentModel) -> float:
    metric = model.metric(values["metric"], None, values["seed"])
    start = torch.zeros(values["n_walks"], model.dim).to(model.like)

    def walk() -> object:
        length = values["length"] * math.sqrt(_STEPS / values["n_steps"])
        return walk_codes("brownian", metric, start, length=length, n_steps=_STEPS)

    return _best(walk) / _STEPS * values["n_steps"]


def _training_cost(values: Mapping[str, Any]) -> tuple[float, float]:
    images, _ = Dataset(values["data"]).chosen
    model = LatentModel(values["model"]().eval().requires_grad_(False))
    passes = _TRAINING * len(images) * values["training"].epochs
    return 0.0, passes * _seconds_a_row(model)
