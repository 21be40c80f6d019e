"""Gauss-Legendre quadrature on the intervals of a curve's parameter."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache
def _gauss_legendre(n_nodes: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    return torch.from_numpy((nodes + 1.0) / 2.0), torch.from_numpy(weights / 2.0)


def composite_rule(breaks: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the composite Gauss-Legendre rule on [0, 1].

    Parameters
    ----------
    breaks
        End points of the intervals, in any order, with repetitions; a knot vector will do.
    n_nodes
        Nodes on each interval.

    Returns
    -------
    tuple[Tensor, Tensor]
        float64, shape (intervals * n_nodes,) each.
    """
    edges = breaks.double().unique()
    nodes, weights = (part.to(edges.device) for part in _gauss_legendre(n_nodes))
    lengths = edges.diff()[:, None]
    return (edges[:-1, None] + lengths * nodes).flatten(), (lengths * weights).flatten()
