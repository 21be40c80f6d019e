"""Objects from options: models, data, feature maps, starting graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from geolatent.checks import describe, requirement
from geolatent.graph import LatentGraph
from geolatent.lab.config import DataOptions, FeatureOptions, InitialOptions, ModelOptions
from geolatent.lab.data import load
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.pairs import Pairs
from geolatent.lab.places import check_checkpoint, check_data
from geolatent.metrics.base import Metric
from geolatent.models import build_model, digits_vae, load_model
from geolatent.models.features import LogisticRegression, VGGFeatures, fit_logistic_regression

# share of the training images that the logistic regression is tested on
_HELD_OUT = 0.2
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def make_device(name: str) -> torch.device:
    """Return a device by its name; "auto" is a CUDA device where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # a device without memory, such as meta, has nothing to read back
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        required = "auto, cpu, or another device that torch has here"
        raise ValueError(requirement("device", required, name)) from error
    return device


def make_model(
    source: ModelOptions, dtype: str, device: torch.device, name: str = "model"
) -> LatentModel:
    """Return a model in evaluation mode, its parameters without gradients.

    Errors call it ``name``; that of a checkpoint that is missing says what to run.
    """
    checkpoint = source.checkpoint
    check_checkpoint(name, checkpoint)
    module: nn.Module
    if source.class_path is not None:
        module = build_model(source.class_path, source.init_args, checkpoint)
    elif checkpoint is not None:
        module = load_model(checkpoint)
    else:
        module = digits_vae()
    module = module.to(dtype=_DTYPES[dtype], device=device).eval().requires_grad_(False)
    return LatentModel(module, source.encoder, source.decoder, source.latent_dim)


class Dataset:
    """Images of a data set, loaded when they are first asked for.

    The training images are those of the same classes as the chosen ones in the split "train".
    """

    def __init__(self, options: DataOptions) -> None:
        self.options = options
        self._codes: dict[LatentModel, Tensor] = {}

    @cached_property
    def chosen(self) -> tuple[Tensor, Tensor | None]:
        """The chosen images and their labels."""
        return _load(self.options)

    @property
    def classes(self) -> Tensor:
        """The labels of the chosen images, (n,); those without any are all of class 0."""
        images, labels = self.chosen
        return labels if labels is not None else torch.zeros(len(images), dtype=torch.int64)

    @property
    def loaded(self) -> bool:
        """Whether the chosen images have been asked for."""
        return "chosen" in vars(self)

    @cached_property
    def training(self) -> tuple[Tensor, Tensor | None]:
        """The training images and their labels."""
        split: Literal["train", "all"] = "all" if self.options.split == "all" else "train"
        return _load(replace(self.options, split=split, per_class=None))

    def classifier(self, inverse_penalty: float = 0.01) -> tuple[LogisticRegression, float]:
        """Fit a logistic regression to four fifths of the training images.

        Returned are the classifier and its accuracy on the last fifth.
        """
        images, labels = self.training
        if labels is None:
            required = "images with labels, which a logistic regression needs"
            raise ValueError(requirement("data", required, self.options.path))
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        held_out = round(_HELD_OUT * len(images))
        fitted = fit_logistic_regression(
            images[order[held_out:]], labels[order[held_out:]], inverse_penalty=inverse_penalty
        )
        rest = order[:held_out]
        return fitted, fitted.accuracy(images[rest], labels[rest])

    def codes(self, model: LatentModel) -> Tensor:
        """Return the codes of the training images, (n, d), encoded once for each model."""
        if model not in self._codes:
            self._codes[model] = model.encode(self.training[0])
        return self._codes[model]

    def check_decoder(self, model: LatentModel) -> None:
        """Raise where a model decodes to images of another shape than the data's."""
        shape = tuple(self.training[0].shape[1:])
        probe = model.images(torch.zeros(1, model.dim))
        if tuple(probe.shape[1:]) != shape:
            required = f"images of the shape that the model decodes to, {tuple(probe.shape[1:])}"
            found = f"{self.options.name} of shape {shape}"
            raise ValueError(requirement("data.name", required, found))


def _load(options: DataOptions) -> tuple[Tensor, Tensor | None]:
    check_data(options)  # which says what to do
    return load(options)


def make_features(
    options: FeatureOptions, dataset: Dataset, like: Tensor
) -> tuple[nn.Module | None, float | None]:
    """Return a feature map in the dtype and on the device of ``like``, and how accurate it is.

    None for no map, and for the accuracy of one that is no logistic regression; see
    `Dataset.classifier`.
    """
    accuracy = None
    features: nn.Module
    if options.kind == "none":
        return None, None
    if options.kind == "logistic":
        features, accuracy = dataset.classifier(options.inverse_penalty)
    elif options.kind == "vgg":
        features = VGGFeatures(options.layer, options.weights, options.resize)
    else:
        features = build_model(options.class_path or "", options.init_args, options.checkpoint)
    return features.to(like).eval().requires_grad_(False), accuracy


def initial_kind(options: InitialOptions, dim: int) -> str:
    """Return where curves start in a latent space: "straight", "lattice" or "codes"."""
    if options.kind == "auto":
        return "lattice" if dim == 2 else "straight"
    if options.kind == "lattice" and dim > 3:
        required = f"'codes' or 'straight' for {dim} latent dimensions"
        raise ValueError(requirement("initial.kind", required, describe(options.kind)))
    return options.kind


def make_initial(
    options: InitialOptions,
    metric: Metric,
    model: LatentModel,
    dataset: Dataset,
    pairs: Sequence[Pairs],
    *,
    seed: int = 0,
) -> LatentGraph | None:
    """Return the graph that curves start from, or None for straight lines.

    Its edges are measured by the metric. A lattice holds all pairs and, where the model has an
    encoder, the codes of the training images; a graph of these codes draws them again, jittered,
    with a seed.
    """
    kind = initial_kind(options, model.dim)
    if kind == "straight":
        return None
    if kind == "codes":
        return LatentGraph.from_codes(
            metric,
            dataset.codes(model),
            n_neighbors=options.n_neighbors,
            n_nodes=options.n_nodes,
            jitter=options.jitter,
            seed=seed,
        )
    ends = [end for part in pairs for end in (part.start, part.end)]
    every = torch.cat([*([dataset.codes(model)] if model.has_encoder else []), *ends])
    return LatentGraph.lattice(
        metric,
        every.amin(0) - options.margin,
        every.amax(0) + options.margin,
        resolution=options.resolution,
    )
