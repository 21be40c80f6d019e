"""Decoders of scvi-tools' models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geolatent.adapters.decoders import Adapted, decoder
from geolatent.checks import check_number, describe, requirement


def scvi(
    model: Any,
    output: str | None = None,
    *,
    library_size: float = 1e4,
    batch: object = None,
    covariates: Mapping[str, Any] | None = None,
) -> Adapted:
    """Return the decoder of a trained ``SCVI`` model of scvi-tools.

    From latent codes, as ``model.get_latent_representation()`` has them, to the distribution of a
    cell's counts, for `metric`: the Fisher-Rao metric of its likelihood (``"nb"``, ``"zinb"``,
    ``"poisson"``), in which each gene counts by what its counts tell; lengths do depend on the
    library size, for more counts tell more. Zero inflation is part of the metric and needs a
    dispersion that does not depend on the code. Or to one quantity of it, for `PullbackMetric`.

    Parameters
    ----------
    model
        The model, in evaluation mode as after training.
    output
        None for the distribution of scvi-tools; ``"mean"`` for its mean; ``"scale"`` for the
        normalised expression, of sum 1.
    library_size
        Counts of a cell.
    batch
        The name of its batch; needed where the model has several.
    covariates
        Its further covariates, by their keys: names of categories, or numbers.

    Raises
    ------
    TypeError, ValueError
        Where the model is of another kind, has a dispersion by labels or a batch or covariate that
        is not fixed.

    References
    ----------
    Lopez, Regier, Cole, Jordan, Yosef, "Deep generative modeling for single-cell transcriptomics",
    Nature Methods 2018. https://docs.scvi-tools.org.
    """
    module: Any = getattr(model, "module", None)
    if not hasattr(module, "generative") or not hasattr(module, "gene_likelihood"):
        required = "a model of scvi-tools such as SCVI, with a `gene_likelihood`"
        raise TypeError(requirement("model", required, describe(model)))
    if module.dispersion == "gene-label":
        required = "one whose dispersion does not depend on labels"
        raise ValueError(requirement("model", required, 'one with dispersion "gene-label"'))
    size = check_number("library_size", library_size, above=0.0)
    like = next(module.parameters())
    fixed: dict[str, Any] = {
        "library": torch.full((1, 1), size).log().to(like),
        "batch_index": torch.tensor([[_batch(model, batch)]], device=like.device),
        **_covariates(model, dict(covariates or {}), like),
    }
    return decoder(_generative(module), output, **fixed)


def _generative(module: Any) -> Any:
    """Return the function from codes to the distribution of counts."""

    def generate(z: Tensor, **fixed: Any) -> Any:
        return module.generative(z, **fixed)["px"]

    return generate


def _batch(model: Any, batch: object) -> int:
    """Return the number of a batch by its name; of the only one by none."""
    names = list(model.adata_manager.get_state_registry("batch").categorical_mapping)
    if batch is None and len(names) == 1:
        return 0
    return _number("batch", batch, names)


def _number(name: str, value: object, names: list[Any]) -> int:
    if value not in names:
        required = f"one of {', '.join(map(repr, names))}"
        raise ValueError(requirement(name, required, describe(value)))
    return names.index(value)


def _covariates(model: Any, given: dict[str, Any], like: Tensor) -> dict[str, Tensor]:
    """Return the covariates as the module takes them, all of them and no other."""
    registry = model.adata_manager.data_registry
    fixed, expected = {}, []
    if "extra_categorical_covs" in registry:
        state = model.adata_manager.get_state_registry("extra_categorical_covs")
        categories = {key: list(state.mappings[key]) for key in state.field_keys}
        expected += list(categories)
        if categories.keys() <= given.keys():
            numbers = [_number(key, given[key], names) for key, names in categories.items()]
            fixed["cat_covs"] = torch.tensor([numbers], device=like.device)
    if "extra_continuous_covs" in registry:
        keys = list(model.adata_manager.get_state_registry("extra_continuous_covs").columns)
        expected += keys
        if set(keys) <= given.keys():
            values = [check_number(key, given[key]) for key in keys]
            fixed["cont_covs"] = torch.tensor([values]).to(like)
    if set(expected) != given.keys():
        required = f"a value for each of {expected}" if expected else "empty, for there are none"
        raise ValueError(requirement("covariates", required, sorted(given)))
    return fixed
