"""Checkpoints that cannot run code: weights in safetensors, with the constructor's arguments."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from geolatent.checks import requirement
from geolatent.files import write_file

FORMAT_VERSION = 1
# under what a safetensors file's metadata hold the description; one entry, for their order is any
_METADATA = "geolatent_model"
_READABLE = "a readable .safetensors, .pt or .pth file"

# only the package's own models and feature maps are built from a file's words
_CLASS_PATH = re.compile(r"geolatent\.models(\.[A-Za-z]\w*)+")
# where modules were when older files named them, and where they are
_MOVED = {"geolatent.features": "geolatent.models.features"}


def build_model(
    class_path: str,
    init_args: Mapping[str, Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Build any model, the package's or your own, from its class, arguments and weights.

    Importing a class runs the code of its module, and building it the code of its constructor: name
    classes that you trust. The checkpoint runs nothing, for nothing in it is unpickled.

    Parameters
    ----------
    class_path
        "package.module.Name" of an ``nn.Module``, importable from where Python runs; a name
        without dots is one of ``geolatent.models``.
    init_args
        The constructor's arguments by name.
    checkpoint
        A state dict in ``X.safetensors``, ``X.pt`` or ``X.pth``, whose names and shapes have to be
        the model's; without one the constructor's weights are kept.

    Returns
    -------
    Module
        On the CPU, in evaluation mode.

    Raises
    ------
    FileNotFoundError
        Where the checkpoint is missing.
    ValueError
        Where there is no such class, it is no ``nn.Module``, the arguments are not the
        constructor's, or the checkpoint cannot be read or does not fit.

    Examples
    --------
    >>> build_model("torch.nn.Linear", {"in_features": 2, "out_features": 3})
    Linear(in_features=2, out_features=3, bias=True)
    >>> build_model("MLPVAE", {"latent_dim": 3}).latent_dim
    3
    """
    name = _today(str(class_path))
    required = "the importable path of an nn.Module, package.module.Name, or a model's bare name"
    try:
        cls = _imported(name if "." in name else f"geolatent.models.{name}")
    except ImportError as error:
        raise ValueError(f"{requirement('class_path', required, name)} {error}.") from error
    if cls is None:
        raise ValueError(requirement("class_path", required, name))
    arguments = dict(init_args or {})
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        required = f"arguments of {name}{inspect.signature(cls)}"
        raise ValueError(f"{requirement('init_args', required, arguments)} {error}.") from error
    model = cls(**arguments)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model.eval()


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Save one of the package's models as ``X.safetensors``.

    The file holds all parameters and buffers, and as JSON in its metadata the class and the
    constructor's arguments. It is written whole or not at all.

    Parameters
    ----------
    model
        A model of ``geolatent.models``, or one of its feature maps, that has ``arguments``, the
        constructor's arguments.
    path
        Where to write, with or without the ending ``.safetensors``, with no other. Missing folders
        are made.

    Returns
    -------
    Path
        The path of the file.

    Examples
    --------
    >>> import tempfile
    >>> from geolatent.models import MLPVAE
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     weights = save_model(MLPVAE(hidden=(16,)), Path(folder) / "small")
    ...     model = load_model(weights)
    >>> weights.name, model.latent_dim
    ('small.safetensors', 2)
    """
    class_path = f"{type(model).__module__}.{type(model).__qualname__}"
    arguments = getattr(model, "arguments", None)
    if not _CLASS_PATH.fullmatch(class_path) or not isinstance(arguments, dict):
        required = "a model of geolatent.models, which knows its constructor's `arguments`"
        raise TypeError(requirement("model", required, f"object of type {class_path}"))
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".json"):
        raise ValueError(requirement("path", "a path that ends in .safetensors", path))
    if path.suffix != ".safetensors":
        path = path.with_name(f"{path.name}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    # clones, for safetensors refuses tensors that share memory or are not contiguous
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    description = {
        "format": "geolatent model",
        "format_version": FORMAT_VERSION,
        "class_path": class_path,
        "init_args": arguments,
    }
    # as bytes, for safetensors would make its file readable by its owner alone
    return write_file(path, save(tensors, {_METADATA: json.dumps(description)}))


def load_model(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Load a model that `save_model` wrote, in evaluation mode.

    Parameters
    ----------
    path
        ``X.safetensors``. One without a description of its model, or a state dict in ``X.pt`` or
        ``X.pth``, has it beside it in ``X.json``, as earlier versions wrote it. Nothing is
        unpickled.
    device
        Where to put the model; the CPU by default.
    dtype
        Floating-point type to convert to; by default the one that was saved.

    Returns
    -------
    Module
        In evaluation mode.

    Raises
    ------
    FileNotFoundError
        Where there is no such file, or it lacks the description.
    ValueError
        Where a file cannot be read, would have to be unpickled, or does not fit the model.
    """
    path = Path(path)
    model = _build(path)
    load_weights(model, path)
    return model.to(device=device, dtype=dtype).eval()


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load parameters and buffers into a model, any ``nn.Module``, in place.

    The model takes over the file's dtype and stays on the CPU.

    Parameters
    ----------
    model
        A model whose parameters and buffers have the file's names and shapes.
    path
        ``X.safetensors``, or a state dict in ``X.pt`` or ``X.pth``.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        Where the file cannot be read, would have to be unpickled, or does not fit the model.
    """
    message = requirement("path", f"the weights of a {type(model).__name__}", path)
    assign_tensors(model, read_tensors(path), message)


def assign_tensors(model: nn.Module, state: Mapping[str, Tensor], message: str) -> None:
    """Put tensors in the place of a model's; where they do not fit, raise a ValueError.

    It says ``message``, and which names or shapes are not the model's.
    """
    expected = model.state_dict()
    problems = [
        f"{label}: {', '.join(sorted(names))}"
        for label, names in (
            ("missing", expected.keys() - state.keys()),
            ("unexpected", state.keys() - expected.keys()),
        )
        if names
    ] + [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        raise ValueError(f"{message} {'; '.join(problems)}.")
    # assigned, not copied: the dtype of the file wins over torch's current default
    model.load_state_dict(state, assign=True)


def _today(class_path: str) -> str:
    """Return where a class is now that a file may name by where it was."""
    module, _, name = class_path.rpartition(".")
    return f"{_MOVED.get(module, module)}.{name}" if module else name


def _imported(class_path: str) -> type[nn.Module] | None:
    """Import a class of modules; None where its module has none of that name."""
    module, _, name = class_path.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def _description(path: Path) -> tuple[str | bytes, Path]:
    """Return the JSON text that describes a checkpoint's model, and the file that has it."""
    required = "a saved model, X.safetensors as save_model writes it"
    if not path.is_file():
        raise FileNotFoundError(f"{requirement('path', required, path)} There is no file {path}.")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{requirement('path', _READABLE, path)} {error}.") from error
        if _METADATA in metadata:
            return metadata[_METADATA], path
    beside = path.with_suffix(".json")
    if not beside.is_file():
        message = f"It does not say what its model is. There is no file {beside}."
        raise FileNotFoundError(f"{requirement('path', required, path)} {message}")
    return beside.read_bytes(), beside


def _build(checkpoint: Path) -> nn.Module:
    """Build the untrained model that a checkpoint describes."""
    text, path = _description(checkpoint)
    try:
        description = json.loads(text)
        version = description["format_version"]
        class_path, arguments = description["class_path"], description["init_args"]
    except (ValueError, KeyError, TypeError) as error:
        required = "a file with the description that save_model writes"
        raise ValueError(f"{requirement('path', required, path)} {error!r}") from error
    if version != FORMAT_VERSION:
        raise ValueError(requirement("format_version", f"{FORMAT_VERSION} in {path}", version))
    name = _today(str(class_path))
    try:
        cls = _imported(name) if _CLASS_PATH.fullmatch(name) else None
    except ModuleNotFoundError:
        cls = None
    if cls is None:
        raise ValueError(requirement("class_path", f"a model of geolatent.models in {path}", name))
    try:
        # the random initial weights are replaced: leave the caller's random numbers alone
        with torch.random.fork_rng(devices=[]):
            return cls(**arguments)
    except (TypeError, ValueError) as error:
        required = f"arguments of {name} in {path}"
        raise ValueError(f"{requirement('init_args', required, arguments)} {error}") from error


def read_tensors(path: str | os.PathLike[str], lone: str | None = None) -> dict[str, Tensor]:
    """Read named tensors from ``X.safetensors`` or, without unpickling, from ``X.pt``, ``X.pth``.

    Parameters
    ----------
    path
        A safetensors file, or a dictionary of names and tensors saved by torch.
    lone
        What to call the only tensor of a file that holds no dictionary; by default such a file is
        refused.

    Returns
    -------
    dict
        The tensors by name, on the CPU.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        Where the file cannot be read, or would have to be unpickled.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(requirement("path", _READABLE, path))
    if not path.is_file():
        raise FileNotFoundError(requirement("path", "an existing file", path))
    if path.suffix == ".safetensors":
        try:
            # copies: products round by where their operands lie, and in a file they lie anyhow
            return {name: value.clone() for name, value in load_file(path).items()}
        except SafetensorError as error:
            raise ValueError(f"{requirement('path', _READABLE, path)} {error}.") from error
    try:
        with warnings.catch_warnings():
            # torch warns of other pickle protocols; what it cannot read is an error below
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        required = "a file of tensors alone; other objects are not unpickled, as that can run code"
        raise ValueError(requirement("path", required, path)) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{requirement('path', _READABLE, path)} {error}") from error
    if lone is not None and isinstance(state, Tensor):
        return {lone: state}
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        required = "a state dict: names and tensors alone"
        raise ValueError(requirement("path", required, path))
    return state
