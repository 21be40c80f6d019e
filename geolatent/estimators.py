"""What the estimators with scikit-learn's interface share: their codes and their graph."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from geolatent.checks import check_codes, describe, requirement
from geolatent.initial import LatentGraph
from geolatent.metrics import Metric


def as_codes(name: str, values: ArrayLike | Tensor, like: Tensor | None = None) -> Tensor:
    """Return an array or tensor as codes (n, d), of another tensor's dtype and device if given."""
    codes = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if like is not None and codes.is_floating_point():
        codes = codes.to(like)
    return check_codes(name, codes, None if like is None else like.shape[1]).detach()


def check_graph(graph: object) -> LatentGraph | None:
    """Return the graph, or None for none."""
    if graph is not None and not isinstance(graph, LatentGraph):
        raise TypeError(requirement("graph", "a geolatent LatentGraph or None", describe(graph)))
    return graph


def default_graph(
    metric: Metric, codes: Tensor, n_nodes: int | None, random: np.random.RandomState
) -> LatentGraph:
    """Return a graph on the codes: by default of four times as many nodes, 2,000 at least.

    The further nodes lie around the codes with a fifth of the codes' standard deviation.
    """
    wanted = max(4 * codes.shape[0], 2000) if n_nodes is None else n_nodes
    return LatentGraph.from_codes(
        metric,
        codes,
        n_nodes=wanted,
        jitter=0.2 * float(codes.double().std(0).mean()),
        seed=int(random.randint(2**31 - 1)),
    )
