"""Statistics of solved pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from geolatent.lab.solved import SolvedPairs

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# statuses that mean that the solver is sure of its result
SURE = ("CONVERGED", "EQUAL_END_POINTS")


def statistics(values: ArrayLike) -> dict[str, Any]:
    """Return mean, standard deviation, extremes and quantiles of the values that are not NaN.

    The standard deviation is that of a sample (n - 1); of one value it is 0.

    Examples
    --------
    >>> result = statistics([1.0, 2.0, 3.0, float("nan")])
    >>> result["mean"], result["std"], result["median"]
    (2.0, 1.0, 2.0)
    """
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    if not array.size:
        names = ("mean", "std", "min", "median", "max")
        return {name: float("nan") for name in names} | {"quantiles": {}}
    quantiles = np.quantile(array, QUANTILES)
    return {
        "mean": float(array.mean()),
        "std": float(array.std(ddof=1)) if array.size > 1 else 0.0,
        "min": float(array.min()),
        "median": float(np.median(array)),
        "max": float(array.max()),
        "quantiles": {f"{q:g}": float(x) for q, x in zip(QUANTILES, quantiles, strict=True)},
    }


def groups_of(pairs: SolvedPairs, column: str) -> dict[str, SolvedPairs]:
    """Return the pairs of each name in a column, the names in the order of the rows."""
    names = dict.fromkeys(pairs.column(column).tolist())
    return {name: pairs.where(column, name) for name in names}


def summarise(pairs: SolvedPairs, columns: Sequence[str] = ()) -> dict[str, Any]:
    """Return the statistics of solved pairs, some further columns among them.

    Returns
    -------
    dict
        ``n_pairs``; ``statuses``, the number of pairs of each; ``converged``, their share; and the
        `statistics` of straight length, length, relative improvement, predicted improvement,
        evaluations and the columns.
    """
    statuses = pairs.column("status")
    names, counts = np.unique(statuses, return_counts=True)
    measured = (
        "straight_length",
        "length",
        "relative_improvement",
        "predicted_improvement",
        "equivalents",
        *columns,
    )
    return {
        "n_pairs": len(pairs),
        "statuses": {str(name): int(count) for name, count in zip(names, counts, strict=True)},
        "converged": float(np.isin(statuses, SURE).mean()),
        **{name: statistics(pairs.column(name)) for name in measured},
    }
