"""Graphs of latent codes in safetensors files, which cannot run code."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from geolatent.checks import requirement
from geolatent.files import write_file
from geolatent.graph import LatentGraph
from geolatent.metrics.base import Metric


def save_graph(graph: LatentGraph, path: str | os.PathLike[str]) -> Path:
    """Save a graph: its codes and edge lengths, not its metric. Written whole or not at all.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from geolatent import PullbackMetric
    >>> metric = PullbackMetric(lambda z: 2.0 * z)
    >>> codes = torch.rand(20, 3)
    >>> graph = LatentGraph.from_codes(metric, codes)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = save_graph(graph, Path(folder) / "graph.safetensors")
    ...     print(load_graph(file, metric).n_nodes)
    20
    """
    tensors = {name: value.cpu().contiguous() for name, value in graph.state().items()}
    return write_file(path, save(tensors))


def load_graph(path: str | os.PathLike[str], metric: Metric) -> LatentGraph:
    """Load a graph that `save_graph` wrote, for the metric that it was built for.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        Where the file is damaged or holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(requirement("path", "a file that save_graph wrote", file))
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        required = "a graph file that can be read"
        raise ValueError(requirement("path", required, f"{file} ({error})")) from None
    return LatentGraph.from_state(metric, tensors)
