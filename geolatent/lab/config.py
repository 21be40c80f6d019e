"""Options of the commands, as a YAML file or a command line gives them, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, get_args

from geolatent.requirements import (
    check_choice,
    check_integer,
    check_number,
    check_selection,
    describe,
    requirement,
)

PairSource = Literal["worst", "prior", "encoded", "codes"]
Executor = Literal["local", "ray"]
Format = Literal["png", "pdf", "svg"]
Formats = Format | list[Format]
FORMATS: tuple[str, ...] = get_args(Format)
AnimationFormat = Literal["gif", "webp", "mp4"]
AnimationFormats = AnimationFormat | list[AnimationFormat]
ANIMATION_FORMATS: tuple[str, ...] = get_args(AnimationFormat)
TorchvisionName = Literal[
    "MNIST",
    "FashionMNIST",
    "EMNIST-balanced",
    "EMNIST-byclass",
    "EMNIST-bymerge",
    "EMNIST-digits",
    "EMNIST-letters",
    "EMNIST-mnist",
]
SystemName = Literal["lorenz", "pendulum"]
DataName = Literal["digits", TorchvisionName, SystemName, "sst", "file"]
TORCHVISION_NAMES: tuple[str, ...] = get_args(TorchvisionName)
SYSTEM_NAMES: tuple[str, ...] = get_args(SystemName)
# of options that are objects of the core: the class of the default, and where those are that may
# take its place and whose names alone say which they are
CHOICES = {
    "PreconditionedSolver": (
        "geolatent.solvers.preconditioned:PreconditionedSolver",
        "geolatent.solvers.first_order:FirstOrderSolver",
        "geolatent.solvers.georce:GEORCESolver",
    ),
}


@dataclass(frozen=True)
class ModelOptions:
    """Where a model comes from; by default the small digits model that ships with the package.

    Attributes
    ----------
    checkpoint
        A model that `geolatent train` wrote (X.safetensors), or, with `class_path`,
        the weights of a model of your own (X.safetensors, X.pt or X.pth).
    class_path
        The class of a model of your own, "package.module.Name"; its module's code is run.
    init_args
        The arguments of that class's constructor, by name.
    encoder
        The method that maps images to codes, or to (mean, standard deviation) of the code.
    decoder
        The method that maps codes to images, or to (mean, standard deviation) of the image;
        "forward" for a model that is a decoder alone.
    latent_dim
        The latent dimension of a model without an attribute `latent_dim`.
    """

    checkpoint: str | None = None
    class_path: str | None = None
    init_args: dict[str, Any] = field(default_factory=dict)
    encoder: str = "encode"
    decoder: str = "decode"
    latent_dim: int | None = None

    def __post_init__(self) -> None:
        if self.class_path is None and self.init_args:
            required = "empty without `class_path`, for a checkpoint brings its own"
            raise ValueError(requirement("init_args", required, self.init_args))
        if self.latent_dim is not None:
            check_integer("latent_dim", self.latent_dim)


class ModelEntry(TypedDict, total=False):
    """The fields of `ModelOptions`, for commands that take several models by name."""

    checkpoint: str | None
    class_path: str | None
    init_args: dict[str, Any]
    encoder: str
    decoder: str
    latent_dim: int | None


@dataclass(frozen=True)
class FeatureOptions:
    """A feature map on the decoded images, in which lengths are measured.

    Attributes
    ----------
    kind
        "none" measures in pixels; "logistic" in log-probabilities of the classes, by a logistic
        regression that is fitted to the training images; "vgg" in activations of VGG-19; "module"
        in the output of a module of your own.
    inverse_penalty
        For "logistic": one over the strength of the penalty on the squared weights.
    layer
        For "vgg": torchvision's name of the layer.
    weights
        For "vgg": "published" (downloaded once), a file, or null for random weights.
    resize
        For "vgg": resize images to this height and width first.
    class_path
        For "module": the class, "package.module.Name".
    init_args
        For "module": the constructor's arguments.
    checkpoint
        For "module": the weights.
    """

    kind: Literal["none", "logistic", "vgg", "module"] = "none"
    inverse_penalty: float = 0.01
    layer: str = "features.8"
    weights: str | None = "published"
    resize: int | None = None
    class_path: str | None = None
    init_args: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        check_number("inverse_penalty", self.inverse_penalty, above=0.0)
        if (self.kind == "module") == (self.class_path is None):
            required = "given where `kind` is 'module', and only there"
            raise ValueError(requirement("class_path", required, self.class_path))


@dataclass(frozen=True)
class MetricOptions:
    """How the decoder becomes a metric.

    Attributes
    ----------
    uncertainty
        Measure the standard deviation of a Gaussian decoder too (the expected metric); false takes
        its mean alone.
    diagonal
        With features on a Gaussian decoder: "exact" squared norms of the features' Jacobian's
        columns, their "hutchinson" estimate, or "auto": exact up to 64 features.
    n_probes
        Random sign vectors of that estimate.
    """

    uncertainty: bool = True
    diagonal: Literal["auto", "exact", "hutchinson"] = "auto"
    n_probes: int = 16

    def __post_init__(self) -> None:
        check_integer("n_probes", self.n_probes)


@dataclass(frozen=True)
class InitialOptions:
    """Where curves start.

    Attributes
    ----------
    kind
        "straight" lines; shortest paths on a regular "lattice" (up to three latent dimensions) or
        on a graph of neighbouring "codes" of the training images, of which and the straight line
        the shorter result is kept; "auto": the lattice in two dimensions, straight lines above.
    resolution
        Points of the lattice along each axis.
    margin
        Latent units between the outermost codes and the edge of the lattice.
    n_nodes
        Nodes of the graph of codes: codes are drawn again, and jittered, up to this number.
    n_neighbors
        Neighbours of each node of that graph.
    jitter
        Standard deviation of the jitter, in latent units.
    """

    kind: Literal["auto", "straight", "lattice", "codes"] = "auto"
    resolution: int = 256
    margin: float = 0.5
    n_nodes: int | None = 12_000
    n_neighbors: int = 32
    jitter: float = 0.2

    def __post_init__(self) -> None:
        check_integer("resolution", self.resolution, minimum=2)
        check_number("margin", self.margin, above=0.0)
        if self.n_nodes is not None:
            check_integer("n_nodes", self.n_nodes, minimum=2)
        check_integer("n_neighbors", self.n_neighbors)
        check_number("jitter", self.jitter, at_least=0.0)


@dataclass(frozen=True)
class AnimationOptions:
    """How paths are animated, with `animate`.

    Attributes
    ----------
    format
        "gif", "webp" or "mp4" (which needs imageio-ffmpeg, extra `animate`), or a list of them.
    n_frames
        Frames, at equal steps of output length.
    seconds
        How long they take once; frames of a GIF last whole hundredths of a second.
    loops
        How often they are played, 0 for ever; an MP4 file is played once.
    n_shown
        Pairs, with an animation each.
    """

    format: AnimationFormats = "gif"
    n_frames: int = 48
    seconds: float = 4.0
    loops: int = 0
    n_shown: int = 2

    def __post_init__(self) -> None:
        check_integer("n_frames", self.n_frames, minimum=2)
        check_number("seconds", self.seconds, above=0.0)
        check_integer("loops", self.loops, minimum=0)
        check_integer("n_shown", self.n_shown)
        chosen = [self.format] if isinstance(self.format, str) else self.format
        for name in chosen:
            check_choice("format", name, ANIMATION_FORMATS)
        if not chosen:
            required = "gif, webp, mp4 or a list of them"
            raise ValueError(requirement("format", required, self.format))


@dataclass(frozen=True)
class RayOptions:
    """How shards are solved on Ray, with `executor` "ray"; results do not depend on it.

    Attributes
    ----------
    address
        The cluster: HOST:PORT, or "auto" for the one that this machine is part of; "local" starts
        one on this machine for the time of the command; null takes RAY_ADDRESS, or else "auto"
        where there is one, or else "local".
    workers
        Processes that solve shards; null: one for each GPU, or, where there are none, for each CPU
        of the cluster. One that finds no room waits for it.
    threads
        Threads of torch in each of them, and CPUs that it takes.
    restarts
        How often each of them is started again, and its shard with it, when it or its machine dies.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1
    restarts: int = 3

    def __post_init__(self) -> None:
        if self.address is not None and self.address.startswith("ray://"):
            required = "auto, local, or HOST:PORT of a cluster that this machine is part of"
            raise ValueError(requirement("address", required, self.address))
        if self.workers is not None:
            check_integer("workers", self.workers)
        check_integer("threads", self.threads)
        check_integer("restarts", self.restarts, minimum=0)


@dataclass(frozen=True)
class DataOptions:
    """Which images to load; see `geolatent.data.load`.

    Attributes
    ----------
    name
        "digits" (scikit-learn's, 8 x 8, always there); torchvision's 28 x 28 images "MNIST",
        "FashionMNIST", and "EMNIST-" with balanced, byclass, bymerge, digits, letters or mnist;
        windows (1, time, coordinates) of trajectories of "lorenz" or "pendulum"; winters' fields of
        sea surface temperature, "sst"; or "file" for an array of your own.
    root
        The folder of torchvision's data sets, or of MNIST's own files (train-images-idx3-ubyte.gz
        and so on); GEOLATENT_MNIST names that of MNIST where this is the default.
    split
        "train" or "test"; also "all" for all but torchvision's.
    classes
        The labels to keep; None keeps all.
    per_class
        How many images of each class to draw; None takes all.
    download
        Let torchvision download what is missing from ``root``.
    seed
        Seed of the draw within the classes, of the split of a file or of winters, and of the
        states that trajectories begin in.
    path
        The file, for "file": .npy, .npz, .safetensors, .pt or .pth; for "sst" a NetCDF 3 file, null
        for the one that comes with the library eofs.
    low, high
        The values in that file that mean black and white; they become -1 and 1.
    test_fraction
        Share of the images in that file, of winters or of trajectories that are the test split.
    n_trajectories
        Trajectories of a system, of both splits together; 200 by default.
    n_steps
        Steps of time in a window; 32 by default.

    Examples
    --------
    >>> from geolatent.lab.data import load
    >>> images, labels = load(DataOptions("digits", split="test", classes=(0, 1), per_class=5))
    >>> images.shape, labels.bincount()
    (torch.Size([10, 1, 8, 8]), tensor([5, 5]))
    """

    name: DataName = "digits"
    root: str = "data"
    split: Literal["train", "test", "all"] = "train"
    classes: tuple[int, ...] | None = None
    per_class: int | None = None
    download: bool = False
    seed: int = 0
    path: str | None = None
    low: float | None = None
    high: float | None = None
    test_fraction: float = 0.1
    n_trajectories: int | None = None
    n_steps: int | None = None

    def __post_init__(self) -> None:
        check_choice("name", self.name, get_args(DataName))
        splits = ("train", "test") if self.name in TORCHVISION_NAMES else ("train", "test", "all")
        check_choice("split", self.split, splits)
        check_selection(self.classes, self.per_class, self.seed)
        check_number("test_fraction", self.test_fraction, above=0.0, at_most=0.9)
        for option, least in (("n_trajectories", 2), ("n_steps", 2)):
            value = getattr(self, option)
            if value is not None:
                if self.name not in SYSTEM_NAMES:
                    required = f"given where `name` is one of {', '.join(SYSTEM_NAMES)}, only there"
                    raise ValueError(requirement(option, required, value))
                check_integer(option, value, minimum=least)
        for option in ("path", "low", "high"):
            value = getattr(self, option)
            if self.name == "sst" and option == "path":
                continue
            if (value is None) == (self.name == "file"):
                required = "given where `name` is 'file', and only there"
                raise ValueError(requirement(option, required, describe(value)))


@dataclass(frozen=True)
class TrainingOptions:
    """How to train a model.

    Attributes
    ----------
    epochs
        Passes over the training images; fewer where ``patience`` ends the training.
    batch_size
        Images per step.
    learning_rate
        Adam's step size at the start; it falls to a hundredth of it along a half cosine.
    beta
        Weight of the divergence in the loss; 1 is the evidence lower bound, 0 an autoencoder. A
        GAN and a flow have no such term and take 1 alone.
    reconstruction
        Weight of the mean squared reconstruction error in the loss of a BiGAN's generator and
        encoder, in nats per pixel unit squared; 0 is the game alone. Others take 0 alone.
    validation_fraction
        Share of the images held out to choose the best epoch, by the loss, or by a BiGAN's
        reconstruction error; 0 keeps the last epoch, which is all that a DCGAN takes.
    patience
        Stop after this many epochs without a better validation loss; None never stops early.
    seed
        Seed of the initial weights, the order of the images and the codes' noise.
    accelerator
        Lightning's name of the device: "auto", "cpu" or "gpu".
    progress
        Show a progress bar.
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    beta: float = 1.0
    reconstruction: float = 0.0
    validation_fraction: float = 0.1
    patience: int | None = None
    seed: int = 0
    accelerator: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        check_integer("epochs", self.epochs)
        check_integer("batch_size", self.batch_size)
        check_number("learning_rate", self.learning_rate, above=0.0)
        check_number("beta", self.beta, at_least=0.0)
        check_number("reconstruction", self.reconstruction, at_least=0.0)
        check_number("validation_fraction", self.validation_fraction, at_least=0.0, at_most=0.9)
        check_integer("seed", self.seed, minimum=0)
        if self.patience is not None:
            check_integer("patience", self.patience)
            if self.validation_fraction == 0:
                required = "above 0 where `patience` is given"
                raise ValueError(requirement("validation_fraction", required, 0))


@dataclass(frozen=True)
class PrecisionOptions:
    """How to fit the decoder's precision after training; see ``VAE.fit_precision``.

    Attributes
    ----------
    n_centers
        Number of centres; None takes four for every latent dimension.
    scale
        Width of the bumps in mean distances within a cluster.
    floor
        Precision far from the data.
    min_std
        About the smallest standard deviation that can be reached, in pixel units.
    iterations
        Updates of the weights.
    """

    n_centers: int | None = None
    scale: float = 1.5
    floor: float = 0.01
    min_std: float = 0.05
    iterations: int = 200


def check_formats(formats: Formats) -> list[Format]:
    """Return formats as a list without doubles."""
    chosen = [formats] if isinstance(formats, str) else list(formats)
    for name in chosen:
        check_choice("format", name, FORMATS)
    if not chosen:
        raise ValueError(requirement("format", "png, pdf, svg or a list of them", formats))
    return list(dict.fromkeys(chosen))
