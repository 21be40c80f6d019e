"""Statistics of solved pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def paired_comparison(
    values: Mapping[str, ArrayLike], *, lower: bool, errors: float = 2.0
) -> dict[str, Any]:
    """Compare several ways of doing the same things, thing by thing.

    Only things that are known of all ways count. A difference of two ways is the mean of the
    things' differences d, its standard error std(d) / sqrt(n), that of a sample. The best ways are
    the one of the best mean, and those whose difference from it is at most so many standard errors,
    or zero: more than one is a tie. Ways are not corrected for being many.

    Parameters
    ----------
    values
        By the names of the ways, (n,) each; the first is what the others are compared with. NaN is
        not known.
    lower
        Whether less is better.
    errors
        Standard errors that make a difference.

    Returns
    -------
    dict
        ``n``, the things that count; ``best``, names, the best mean first; ``paths``, for each way
        its ``mean``, ``difference`` from the first, and ``error``, the standard error of that. The
        error of one thing is not known, NaN.

    Examples
    --------
    >>> found = paired_comparison({"a": [1.0, 2.0, 3.0], "b": [2.1, 3.0, 3.9]}, lower=True)
    >>> found["best"], round(found["paths"]["b"]["difference"], 3)
    (['a'], 1.0)
    """
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
    known = np.logical_and.reduce([np.isfinite(value) for value in arrays.values()])
    arrays = {name: value[known] for name, value in arrays.items()}
    first, n = next(iter(arrays.values())), int(known.sum())
    paths = {}
    for name, value in arrays.items():
        difference, error = _mean_and_error(value - first)
        mean = float(value.mean()) if n else float("nan")
        paths[name] = {"mean": mean, "difference": difference, "error": error}
    best: list[str] = []
    if n:
        order = sorted(arrays, key=lambda name: paths[name]["mean"], reverse=not lower)
        for name in order:
            difference, error = _mean_and_error(arrays[name] - arrays[order[0]])
            # an error that is not known tells nothing apart
            if difference == 0.0 or not abs(difference) > errors * error:
                best.append(name)
    return {"n": n, "best": best, "paths": paths}


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean, and its standard error; NaN where there are too few values."""
    mean = float(values.mean()) if values.size else float("nan")
    error = float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else float("nan")
    return mean, error
