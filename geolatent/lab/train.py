"""Training a model: what is asked, what a run folder keeps of it, and what stands beside that.

Beside the files of every run (see `geolatent.lab.run`) a training writes the model,
``model.safetensors``, for `geolatent.models.load_model`. While it trains, ``checkpoints/last.ckpt``
holds its state after the last whole epoch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from geolatent.checks import describe, requirement
from geolatent.files import remove_leftovers
from geolatent.lab.config import DataOptions, PrecisionOptions, TrainingOptions
from geolatent.lab.contents import SUMMARY, run_command
from geolatent.lab.costs import Cost, seconds_a_row
from geolatent.lab.experiment import Arrays, Experiment, Summary
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.measures import class_scores, confidences, plane_grid
from geolatent.lab.printing import make_table, number
from geolatent.lab.realism import Neighbourhoods
from geolatent.lab.run import Run, RunFolder, stored_arrays
from geolatent.lab.setup import Dataset
from geolatent.lab.training_figures import draw_training
from geolatent.models import GAN, VAE, Flow, Forecaster
from geolatent.models.checkpoint import save_model
from geolatent.models.vae import normal_divergences

MODEL = "model.safetensors"
# where trainings stored their arrays before all runs did so in one place
OLD_ARRAYS = "training.safetensors"
# images whose reconstructions are shown
_SHOWN = 20
# samples of a flow that are shown, as they are and with codes drawn closer to the origin
_SAMPLES = 20
_COOLER = 0.7
# samples, and images, that are judged at most, and from where on a classifier is sure
_JUDGED, _SURE = 5000, 0.9
# nats, from where on a latent dimension is active
_ACTIVE = 0.1
# points of a grid of standard deviations along each axis
_GRID = 100
# a step costs three forward passes of the model, and its encoder as much again
_PASSES = 6


@dataclass(frozen=True, kw_only=True)
class TrainingExperiment(Experiment):
    """Work that begins with the training of a model.

    A subclass says in `evaluate` what comes after it, and in ``kinds`` which models it takes.

    Attributes
    ----------
    out
        Folder for the model; it must not hold a finished training. The same options on the folder
        of one that was interrupted go on with it.
    model
        The model: class_path and init_args.
    data
        The training images.
    training
        How to train.
    test_data
        The images for the figures and the test error; null takes the whole test split of `data`.
    """

    resumes = True
    # classes of models, and what they are called
    kinds: ClassVar[tuple[type[nn.Module], ...]]
    kinds_name: ClassVar[str]

    out: Path = Path("runs/model")
    model: Callable[[], VAE | GAN | Flow | Forecaster]
    data: DataOptions = DataOptions(name="MNIST")
    training: TrainingOptions = TrainingOptions()
    test_data: DataOptions | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The fields by name, the model with all arguments of its class."""
        network = self.untrained()
        described = {"class_path": _class_path(network), "init_args": network.arguments}
        return {**super().options, "model": described}

    @property
    def seed(self) -> int:
        """Seed of the initial weights and of the training."""
        return self.training.seed

    @property
    def state(self) -> Path:
        """The file of the training's state."""
        return self.out / "checkpoints" / "last.ckpt"

    @property
    def overwrite(self) -> bool:
        """Whether the folder is of a training that was interrupted in its first epoch."""
        begun = run_command(self.out) == self.command and not (self.out / SUMMARY).exists()
        return begun and not self.state.exists()

    @property
    def place(self) -> torch.device:
        """The device that Lightning chooses."""
        on_gpu = self.training.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if on_gpu else "cpu")

    @cached_property
    def test_dataset(self) -> Dataset:
        """The images that are not trained on."""
        return Dataset(self.test_data or replace(self.data, split="test", per_class=None))

    def untrained(self) -> Any:
        """Build the model to train, with seeded initial weights."""
        required = f"a callable that returns {self.kinds_name} of geolatent.models"
        if not callable(self.model) or isinstance(self.model, nn.Module):
            raise TypeError(requirement("model", required, describe(self.model)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.model()
        # others could not be saved, which had better be known before the training
        own = _class_path(network).startswith("geolatent.models.")
        if not isinstance(network, self.kinds) or not own:
            raise TypeError(requirement("model", required, f"one returning {describe(network)}"))
        return network

    def check(self) -> None:
        """Raise where model, images and options do not fit together, or the folder has a model."""
        # the module needs an extra
        from geolatent.lab.training import check_training

        super().check()
        network = self.untrained()
        for name, dataset in (("data", self.dataset), ("test_data", self.test_dataset)):
            images, _ = dataset.chosen
            if images.shape[1:] != network.image_shape:
                required = f"images of the model's shape, {network.image_shape}"
                raise ValueError(requirement(name, required, describe(images)))
        for file in _model_files(self.out):
            if file.exists() and run_command(self.out) is None:
                required = f"a folder without one called `{file.name}` that is not of a run"
                raise FileExistsError(requirement("out", required, self.out))
        images, _ = self.dataset.chosen
        check_training(network, images, self.training, self.state)

    def work(self, folder: RunFolder, console: Console) -> tuple[Summary, Arrays]:
        """Train the model and save it.

        The summary holds the class of the model and its constructor's arguments; the numbers of
        images, those held out during training among ``n_train``; what `TrainingRecord` says; and
        what `evaluate` finds. The arrays are what the figures show.
        """
        from geolatent.lab.training import fit_model

        for file in (*_model_files(folder.path), self.state):
            remove_leftovers(file.parent, file.name.__eq__)
        images, _ = self.dataset.chosen
        network = self.untrained()
        try:
            record = fit_model(network, images, self.training, state=self.state)
            found, arrays = self.evaluate(network, console)
            save_model(network, folder.path / MODEL)
        except (OSError, KeyboardInterrupt) as error:
            again = "Run the same command again to go on with the training in"
            error.add_note(f"{again} {folder.path}.")
            raise
        summary = {
            "class_path": _class_path(network),
            "init_args": network.arguments,
            "n_train": len(images),
            "n_test": len(self.test_dataset.chosen[0]),
            **asdict(record),
            **found,
        }
        return summary, arrays

    @abstractmethod
    def evaluate(self, network: Any, console: Console) -> tuple[Summary, Arrays]:
        """Return what is found of the trained model, which is saved afterwards, and arrays."""

    def run(self) -> Run:
        """Do the work; once all is stored the state of the training goes."""
        run = super().run()
        self.state.unlink(missing_ok=True)
        if self.state.parent.is_dir() and not any(self.state.parent.iterdir()):
            self.state.parent.rmdir()
        return run

    def plan(self) -> dict[str, str]:
        """Return how long the training may become."""
        return {"Epochs": f"at most {self.training.epochs}"}


@dataclass(frozen=True, kw_only=True)
class Train(TrainingExperiment):
    """Train a variational autoencoder, a GAN or a flow on images; figures and losses beside it.

    The folder receives model.safetensors, which other commands take as
    --model.checkpoint, and figures of losses, reconstructions or samples, and codes. Start from a
    config, such as: geolatent train --config configs/train_mnist_16d.yaml --data.root FOLDER

    Attributes
    ----------
    model
        The model: class_path (ConvVAE, MLPVAE, RecurrentVAE, IAFVAE, BiGAN, DCGAN, NICE or Glow of
        geolatent.models) and init_args.
    precision
        How to fit the decoder's standard deviation (an RBF network) after training;
        without it the standard deviation is one number.
    """

    kinds = (VAE, GAN, Flow)
    kinds_name = "a variational autoencoder, a GAN or a normalising flow"

    precision: PrecisionOptions | None = None

    @cached_property
    def codecs(self) -> Mapping[str, LatentModel]:
        """The model without its training."""
        return {"model": LatentModel(self.untrained().eval().requires_grad_(False))}

    def untrained(self) -> VAE | GAN | Flow:
        """Build the model to train, with seeded initial weights."""
        network: VAE | GAN | Flow = super().untrained()
        if self.precision is not None and not isinstance(network, VAE):
            name = type(network).__name__
            required = f"None for a {name}, whose decoder has no standard deviation"
            raise ValueError(requirement("precision", required, self.precision))
        if isinstance(network, VAE) and network.precision is not None:
            required = "a model without RBF centres, which are placed after training: `n_centers` 0"
            raise ValueError(requirement("model", required, describe(network)))
        return network

    def evaluate(
        self,
        network: VAE | GAN | Flow,
        console: Console,  # noqa: ARG002
    ) -> tuple[Summary, Arrays]:
        """Fit the precision, and reconstruct the test images.

        The summary holds the mean squared error of the test images' reconstructions, in pixel units
        squared, and of the training images' mean in their place; of a variational autoencoder each
        latent dimension's divergence; of a flow the mean bits per dimension of the test images and
        their standard error; and of a GAN without an encoder, in the place of errors, what
        `sample_quality` says.
        """
        images, _ = self.dataset.chosen
        test_images, test_labels = self.test_dataset.chosen
        if isinstance(network, VAE) and self.precision is not None:
            network.fit_precision(images, seed=self.seed, **asdict(self.precision))
        arrays, test_error = reconstruct(network, test_images, test_labels)
        summary: Summary = {}
        if test_error is None:
            labelled = test_labels is not None
            classifier = self.test_dataset.classifier()[0] if labelled else None
            gan = cast(GAN, network)
            summary["quality"] = sample_quality(gan, test_images, classifier, self.seed)
        else:
            summary["test_error"] = test_error
            summary["test_variance"] = float((test_images - images.mean(0)).square().mean())
        if isinstance(network, VAE):
            summary["divergences"] = divergences(network, test_images).tolist()
        if isinstance(network, Flow):
            bits = held_out_bits(network, test_images, self.seed)
            summary["test_bits"] = float(bits.mean())
            summary["test_bits_error"] = float(bits.std()) / len(bits) ** 0.5
        return summary, arrays

    def tell(self, console: Console, summary: Summary) -> None:
        """Print how long it took, and how far off reconstructions are, or how good samples."""
        if "test_bits" in summary:
            found = (
                f"Bits per dimension of {summary['n_test']} test images: "
                f"{summary['test_bits']:.3f} +- {summary['test_bits_error']:.3f}."
            )
        elif "quality" in summary:
            found = "Samples beside images of the test split:"
        else:
            found = (
                f"Mean squared error of {summary['n_test']} test images: "
                f"{summary['test_error']:.4f} "
                f"(their mean image instead: {summary['test_variance']:.4f})."
            )
        console.print(
            f"{summary['n_train']} images, {len(summary['train_loss'])} epochs, "
            f"{summary['seconds']:.0f} s. {found}"
        )
        if "quality" in summary:
            console.print(quality_table(summary["quality"]))
        if "divergences" in summary:
            each = sorted(summary["divergences"], reverse=True)
            active = sum(value > _ACTIVE for value in each)
            console.print(
                f"{active} of {len(each)} latent dimensions are active, of a divergence above "
                f"{_ACTIVE} nats: {', '.join(number(value, '.2f') for value in each)}."
            )
        console.print(f"Model: {self.out / MODEL}", soft_wrap=True)

    def cost(self, model: LatentModel) -> Cost:
        """Return what all epochs take."""
        passes = _PASSES * len(self.dataset.chosen[0]) * self.training.epochs
        return Cost(seconds=passes * seconds_a_row(model))

    @staticmethod
    def in_a_report(summary: Summary) -> str:
        """Return what a table of many runs tells of one."""
        if "quality" in summary:
            realism = {name: entry["realism"] for name, entry in summary["quality"].items()}
            both = (f"{name} {number(value, '.3f')}" for name, value in realism.items())
            return f"realism: {', '.join(both)}"
        error, variance = (number(summary[f"test_{name}"], ".4f") for name in ("error", "variance"))
        return f"test error {error}, of the mean image {variance}"

    @staticmethod
    def figures(run: Run) -> dict[str, Figure]:
        """Draw the figures of a run from what it stored."""
        arrays = run.arrays or stored_arrays(run.path / OLD_ARRAYS)
        # trainings of before they had a config were of images
        return draw_training(run.summary, arrays, run.config.get("data", {}).get("name", ""))


@torch.no_grad()
def reconstruct(
    network: VAE | GAN | Flow, images: Tensor, labels: Tensor | None = None
) -> tuple[Arrays, float | None]:
    """Return what the figures show, and the mean squared error of all reconstructions.

    Shown are some images, those of all classes in turn, and their reconstructions; all codes; of a
    decoder of two dimensions with a standard deviation its mean on a grid around the codes; and of
    a flow, whose codes have the size of images, samples in place of all codes. A model without an
    encoder has samples alone, and no error.
    """
    model = LatentModel(network)
    rows = torch.arange(min(_SHOWN, len(images)))
    if labels is not None:
        # the first of each class, the second of each class, and so on
        ranks = torch.zeros_like(labels)
        for label in labels.unique():
            members = labels == label
            ranks[members] = torch.arange(int(members.sum()))
        rows = (ranks * (int(labels.max()) + 1) + labels).argsort()[:_SHOWN]
    if not model.has_encoder:
        generator = torch.Generator().manual_seed(0)
        samples = cast(GAN, network).sample(_SAMPLES, generator)
        return {"images": images[rows], "samples": samples}, None
    codes = model.encode(images)
    error = float((model.images(codes) - images).square().mean(dtype=torch.float64))
    shown = {"images": images[rows], "reconstructions": model.images(codes[rows]), "codes": codes}
    if isinstance(network, Flow):
        shown["codes"] = codes[rows]
        for name, temperature in (("samples", 1.0), ("cooler_samples", _COOLER)):
            generator = torch.Generator().manual_seed(0)
            shown[name] = network.sample(_SAMPLES, generator, temperature)
    elif labels is not None:
        shown["labels"] = labels
    if isinstance(network, VAE) and network.precision is not None and model.dim == 2:
        low, high = codes.amin(0), codes.amax(0)
        margin = 0.25 * (high - low)
        *sides, grid = plane_grid(low - margin, high + margin, _GRID, codes.dtype)
        std = [network.decode(part)[1].flatten(1).mean(1) for part in grid.split(1024)]
        shown["std"] = torch.cat(std).reshape(_GRID, _GRID)
        shown["std_extent"] = torch.stack([side[index] for side in sides for index in (0, -1)])
    return shown, error


@torch.no_grad()
def held_out_bits(network: Flow, images: Tensor, seed: int = 0) -> Tensor:
    """Return the bits per dimension of images that were not trained on, (n,), in float64."""
    generator = torch.Generator().manual_seed(seed)
    parts = [network.bits_per_dimension(part, generator) for part in images.split(1024)]
    return torch.cat(parts).double()


@torch.no_grad()
def divergences(network: VAE, images: Tensor) -> Tensor:
    """Return the mean divergence of each latent dimension from N(0, 1), (d,), in nats.

    Posteriors are taken as normal, of the mean and standard deviation that `encode` returns.
    """
    parts = [normal_divergences(*network.encode(part)) for part in images.split(1024)]
    return torch.cat(parts).double().mean(0)


@torch.no_grad()
def sample_quality(
    network: GAN, images: Tensor, classifier: nn.Module | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Say how near a model's samples are to images that it was not trained on, and these to others.

    The images are halved: ``"samples"`` are as many as one half, which both they and the other
    half, ``"images"``, are compared with.

    Parameters
    ----------
    network
        The model.
    images
        The images, (n, *image_shape), of which 10,000 at most are taken.
    classifier
        From images to scores of classes.
    seed
        Of the halves and the samples.

    Returns
    -------
    dict
        For each of both ``realism``, the mean of `Neighbourhoods`; ``precision``, the share within
        the images' balls; ``recall``, the share of the first half's images within the balls of
        these; and with a classifier ``confidence``, its mean, and ``sure``, the share of those with
        a class of probability above 0.9.

    References
    ----------
    T. Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models",
    NeurIPS 2019, arXiv:1904.06991.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    half = min(_JUDGED, len(images) // 2)
    reference, others = images[order[:half]], images[order[half : 2 * half]]
    balls = Neighbourhoods(reference)
    found = {}
    for name, points in (("samples", network.sample(half, generator)), ("images", others)):
        near = balls.nearness(points)
        found[name] = {
            "realism": float(near.realism.mean()),
            "precision": float(near.inside.double().mean()),
            "recall": float(Neighbourhoods(points).nearness(reference).inside.double().mean()),
        }
        if classifier is not None:
            sure = confidences(class_scores(classifier, points)[0])
            found[name] |= {
                "confidence": float(sure.mean()),
                "sure": float((sure > _SURE).double().mean()),
            }
    return found


def quality_table(quality: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table of what `sample_quality` says."""
    names = list(next(iter(quality.values())))
    table = make_table("", ["", *names])
    for kind, values in quality.items():
        table.add_row(kind, *(number(values[name], ".3f") for name in names))
    return table


def _class_path(network: object) -> str:
    return f"{type(network).__module__}.{type(network).__qualname__}"


def _model_files(folder: Path) -> tuple[Path, Path]:
    return folder / MODEL, (folder / MODEL).with_suffix(".json")
