"""What is explored: a model, the codes of its data, metrics, graphs. Shared by all pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geolatent.checks import check_choice, check_integer, requirement
from geolatent.explorer.jobs import look
from geolatent.explorer.pictures import pictures
from geolatent.explorer.plane import Plane, plane_of_dimensions
from geolatent.graph import LatentGraph
from geolatent.lab.config import DataOptions, FeatureOptions, MetricOptions, ModelOptions
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import plane_grid
from geolatent.lab.pairs import draw_prior
from geolatent.lab.panels import DRAWN, pictures_of
from geolatent.lab.setup import Dataset, make_device, make_features, make_model
from geolatent.metrics.base import Metric
from geolatent.metrics.rows import Rows

MEAN, GAUSSIAN, FEATURES = "mean", "gaussian", "features"
METRICS: dict[str, str] = {
    MEAN: "decoder's mean",
    GAUSSIAN: "Gaussian: mean and standard deviation",
    FEATURES: "features of the output",
}
# codes that are drawn at most; more would be a blot
_MOST_CODES = 2000
# codes drawn from the prior where there are no data
_PRIOR_CODES = 500
# points of a lattice along each axis, its margin in latent units, and nodes of a graph of codes
LATTICE, LATTICE_MARGIN, NODES = 128, 0.5, 4000
_KEPT_BACKGROUNDS = 8
_SECONDS_BETWEEN_LOOKS = 0.2

Made = TypeVar("Made")


class Watched(nn.Module):
    """A decoder that looks, at each call, whether the job that calls it is to end."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self._decode = module if method == "forward" else getattr(module, method)
        self.train(module.training)

    def forward(self, z: Tensor) -> Any:
        """Decode codes."""
        look()
        return self._decode(z)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A model and what is known of it; all is made when it is first asked for, once.

    Attributes
    ----------
    model, data, metric, features
        As the commands take them.
    source
        "data": the codes are those of the data; "prior": drawn from the model's prior, N(0, I)
        unless it has another.
    dtype, device, seed
        Type and place of model and codes; seed of the drawn codes and of Hutchinson's signs.
    resolution
        Points of the background along each axis.
    """

    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions(split="test")
    metric: MetricOptions = MetricOptions()
    features: FeatureOptions = FeatureOptions()
    source: str = "data"
    dtype: str = "float32"
    device: str = "auto"
    seed: int = 0
    resolution: int = 101
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _locks: dict[Any, threading.RLock] = field(default_factory=dict)
    _made: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("source", self.source, ("data", "prior"))
        check_integer("resolution", self.resolution, minimum=2)
        check_integer("seed", self.seed, minimum=0)

    def check(self) -> None:
        """Raise where there is nothing to explore; makes what the page shows at first.

        Raises
        ------
        OSError, TypeError, ValueError
            Where a file is missing, or the model cannot be used: it has one latent dimension, its
            decoder raises, or its outputs are not finite at any code.
        """
        dim = self.codec.dim
        if dim < 2:
            required = "a model with two latent dimensions at least, for codes lie in a plane"
            raise ValueError(requirement("model", required, f"one with {dim}"))
        with _told("encodes the data"):
            codes = self.codes
        if len(codes) < 2:
            raise ValueError(requirement("data", "two images at least", f"{len(codes)} of them"))
        with _told("decodes codes"):
            outputs = self.decode(codes[:64])
        if not bool(outputs.flatten(1).isfinite().all(1).any()):
            required = "one whose outputs are finite at some code of the data"
            found = "one that gives NaN or infinite values at all of them"
            raise ValueError(requirement("model", required, found))

    def _once(self, key: Any, make: Callable[[], Made]) -> Made:
        """Return what was made under a key, or make it; others that ask wait, and may be stopped.

        Where making it fails or is stopped, the next that asks tries again.
        """
        if key in self._made:
            return self._made[key]
        with self._lock:
            lock = self._locks.setdefault(key, threading.RLock())
        while not lock.acquire(timeout=_SECONDS_BETWEEN_LOOKS):
            look()
        try:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]
        finally:
            lock.release()

    @property
    def codec(self) -> LatentModel:
        """The model."""
        make = lambda: make_model(self.model, self.dtype, make_device(self.device))  # noqa: E731
        return self._once("codec", make)

    @property
    def watched(self) -> LatentModel:
        """The model, whose decoder ends the jobs that are stopped."""
        codec = self.codec
        return self._once(
            "watched",
            lambda: LatentModel(
                Watched(codec.module, codec.decoder), "forward", "forward", codec.dim
            ),
        )

    @cached_property
    def dataset(self) -> Dataset:
        """The data."""
        return Dataset(self.data)

    @property
    def codes(self) -> Tensor:
        """The codes that are drawn, (n, d)."""
        return self._once("codes", self._encode)[0]

    @property
    def labels(self) -> Tensor | None:
        """Their labels, (n,), or None."""
        return self._once("codes", self._encode)[1]

    def _encode(self) -> tuple[Tensor, Tensor | None]:
        if self.source == "prior":
            drawn = draw_prior(
                _PRIOR_CODES,
                self.codec.dim,
                seed=self.seed,
                like=self.codec.like,
                prior=self.codec.prior,
            )
            return drawn, None
        images, labels = self.dataset.chosen
        if len(images) > _MOST_CODES:
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(len(images), generator=generator)[:_MOST_CODES]
            images, labels = images[chosen], None if labels is None else labels[chosen]
        codes = self.codec.encode(images)
        known = codes.isfinite().all(1)
        if not bool(known.any()):
            required = "one whose encoder gives finite codes"
            raise ValueError(requirement("model", required, "one that gives none"))
        return codes[known], None if labels is None else labels[known.cpu()]

    def decode(self, codes: Tensor) -> Tensor:
        """Return the (mean) outputs of codes (n, d), (n, ...)."""
        return self.watched.images(codes).cpu()

    def pictures(self, outputs: Tensor, *, axes: bool = False) -> Tensor:
        """Return outputs (n, ...) as images (n, 1 or 3, height, width) in [-1, 1], to be shown.

        Windows of trajectories and fields of temperature are drawn, with axes or without.
        """
        if not self.draws:
            return pictures(outputs)
        return torch.from_numpy(pictures_of(self.data.name, outputs.double().numpy(), axes=axes))

    @property
    def draws(self) -> bool:
        """Whether outputs are drawn, for the data are no pictures."""
        return self.data.name in DRAWN

    @property
    def metrics(self) -> dict[str, str]:
        """The metrics that the model has, and what the page calls them."""
        known = [MEAN]
        if self._once("is gaussian", lambda: self.codec.gaussian):
            known.append(GAUSSIAN)
        if self.feature_options is not None:
            known.append(FEATURES)
        return {name: METRICS[name] for name in known}

    @property
    def default_metric(self) -> str:
        """The metric that the options ask for."""
        if self.features.kind != "none":
            return FEATURES
        return GAUSSIAN if self.metric.uncertainty and GAUSSIAN in self.metrics else MEAN

    @property
    def feature_options(self) -> FeatureOptions | None:
        """The feature map: that of the options, or of labelled images a logistic regression."""
        if self.features.kind != "none":
            return self.features
        if self.source == "data" and self.labels is not None:
            return FeatureOptions(kind="logistic")
        return None

    def metric_options(self, name: str) -> MetricOptions:
        """Return the options of a metric by its name."""
        if name == FEATURES:
            return self.metric
        return replace(self.metric, uncertainty=name == GAUSSIAN)

    def pulled_back(self, name: str) -> Metric:
        """Return a metric by its name."""
        check_choice("metric", name, tuple(self.metrics))
        features: nn.Module | None = None
        if name == FEATURES and self.feature_options is not None:
            options = self.feature_options
            features = self._once(
                "features", lambda: make_features(options, self.dataset, self.codec.like)[0]
            )
        return self._once(
            ("metric", name),
            lambda: self.watched.metric(self.metric_options(name), features, self.seed),
        )

    def graph_arguments(self) -> Mapping[str, Any]:
        """Return what the graph is made with: a lattice in two dimensions, else one of the codes.

        The corners ``low`` and ``high`` of a lattice are lists.
        """
        if self.codec.dim > 2:
            return {"n_nodes": NODES, "seed": self.seed}
        low = self.codes.amin(0) - LATTICE_MARGIN
        high = self.codes.amax(0) + LATTICE_MARGIN
        return {"low": low.tolist(), "high": high.tolist(), "resolution": LATTICE}

    def graph(self, name: str) -> LatentGraph:
        """Return the graph that curves may start from, under a metric."""
        metric, arguments = self.pulled_back(name), dict(self.graph_arguments())

        def make() -> LatentGraph:
            if "low" not in arguments:
                return LatentGraph.from_codes(metric, self.codes, **arguments)
            corners = [self.codes.new_tensor(arguments.pop(key)) for key in ("low", "high")]
            return LatentGraph.lattice(metric, *corners, **arguments)

        return self._once(("graph", name), make)

    @property
    def plane(self) -> Plane:
        """The plane that is shown at first."""
        return self._once("plane", lambda: plane_of_dimensions(self.codes))

    def first_pair(self) -> tuple[Tensor, Tensor]:
        """Return the codes that are shown at first: of different labels, and neither near nor far.

        The second is the one of median distance from the first.
        """
        codes, labels = self.codes, self.labels
        others = torch.arange(1, len(codes))
        if labels is not None and bool((labels != labels[0]).any()):
            others = (labels.cpu() != labels[0].cpu()).nonzero().flatten()
        distances = (codes[others.to(codes.device)] - codes[0]).norm(dim=1)
        return codes[0], codes[int(others[distances.argsort()[len(others) // 2].cpu()])]

    def has_background(self, name: str, plane: Plane) -> bool:
        """Whether the background was measured before."""
        return ("background", name, _key(plane)) in self._made

    def background(self, name: str, plane: Plane) -> tuple[Tensor, Tensor, Tensor]:
        """Return the magnification factor sqrt(det E^T G E) on a grid of a plane with axes E.

        In the whole latent space, of two dimensions, it is sqrt(det G): output units squared per
        latent unit squared.

        Returns
        -------
        tuple of Tensor
            Values of both axes, (R,) each, and its base-10 logarithm, rows along the second axis,
            (R, R); NaN where it is not finite or zero.
        """

        def make() -> tuple[Tensor, Tensor, Tensor]:
            # only so many are kept
            old = [key for key in list(self._made) if key[0] == "background"]
            for key in old[: max(0, len(old) - _KEPT_BACKGROUNDS + 1)]:
                del self._made[key]
            return self._measure(name, plane)

        return self._once(("background", name, _key(plane)), make)

    def _measure(self, name: str, plane: Plane) -> tuple[Tensor, Tensor, Tensor]:
        metric = self.pulled_back(name)
        first, second, points = plane_grid(plane.low, plane.high, self.resolution, torch.float64)
        codes = plane.codes(points).to(self.codec.like)
        metric.check("plane", codes[:1])
        one, two = (axis.to(codes).expand_as(codes) for axis in plane.axes)
        rows = Rows.of(metric, codes)
        squares = [rows.quadratic(codes, v).double().cpu() for v in (one, two, one + two)]
        mixed = 0.5 * (squares[2] - squares[0] - squares[1])
        determinant = squares[0] * squares[1] - mixed.square()
        logarithm = 0.5 * determinant.log10()
        logarithm = torch.where(logarithm.isfinite(), logarithm, torch.nan)
        return first, second, logarithm.reshape(self.resolution, self.resolution)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what a model raises into a sentence; errors of the package are sentences already."""
    try:
        yield
    except Exception as error:  # a model may raise anything
        text = " ".join(str(error).split())
        if isinstance(error, OSError) or text.startswith("Parameter `"):
            raise
        found = f"one that raises {type(error).__name__}: {text}"
        raise ValueError(requirement("model", f"one that {what}", found)) from error


def _key(plane: Plane) -> tuple[float, ...]:
    return tuple(torch.cat([plane.origin, plane.axes.flatten(), plane.low, plane.high]).tolist())
