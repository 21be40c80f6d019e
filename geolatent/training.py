"""Training of the package's models with Lightning (extra ``train``)."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from geolatent.checks import check_integer, check_number, check_tensor, describe, requirement
from geolatent.data import digits
from geolatent.models.checkpoint import save_model
from geolatent.models.vae import MLPVAE, VAE

try:
    import lightning
    from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
except ModuleNotFoundError as error:
    message = "Training needs Lightning. Install it with: pip install 'geolatent[train]'"
    raise ModuleNotFoundError(message) from error


@dataclass(frozen=True)
class TrainingOptions:
    """How to train a model.

    Attributes
    ----------
    epochs : int
        Passes over the training images; fewer where ``patience`` ends the training.
    batch_size : int
        Images per step.
    learning_rate : float
        Adam's step size at the start; it falls to a hundredth of it along a half cosine.
    beta : float
        Weight of the divergence in the loss; 1 is the evidence lower bound, 0 an autoencoder.
    validation_fraction : float
        Share of the images held out to choose the best epoch; 0 keeps the last epoch.
    patience : int or None
        Stop after this many epochs without a better validation loss; None never stops early.
    seed : int
        Seed of the initial weights, the order of the images and the codes' noise.
    accelerator : str
        Lightning's name of the device: "auto", "cpu" or "gpu".
    progress : bool
        Show a progress bar.
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    beta: float = 1.0
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
    n_centers : int
        Number of centres.
    scale : float
        Width of the bumps in mean distances within a cluster.
    floor : float
        Precision far from the data.
    min_std : float
        About the smallest standard deviation that can be reached, in pixel units.
    iterations : int
        Updates of the weights.
    """

    n_centers: int = 64
    scale: float = 1.5
    floor: float = 0.01
    min_std: float = 0.05
    iterations: int = 200


@dataclass(frozen=True)
class TrainingRecord:
    """What a training run did.

    Attributes
    ----------
    train_loss : tuple of float
        Mean loss of each epoch, in nats per image.
    validation_loss : tuple of float
        The same over the held-out images; empty where there are none.
    best_epoch : int
        The epoch, from 0, whose weights the model has now.
    """

    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_epoch: int


class Batches:
    """Batches of a tensor, in a new seeded order on every pass if a seed is given.

    Images that fit in memory are sliced at once, which a ``DataLoader`` would do one by one.
    """

    def __init__(self, images: Tensor, batch_size: int, seed: int | None = None) -> None:
        self._images = images
        self._batch_size = batch_size
        self._order = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self._order is None:
            yield from self._images.split(self._batch_size)
        else:
            order = torch.randperm(len(self._images), generator=self._order)
            for rows in order.split(self._batch_size):
                yield self._images[rows]


class VAEModule(lightning.LightningModule):
    """Lightning's view of a variational autoencoder: loss = beta KL - log-likelihood, in nats."""

    def __init__(self, model: VAE, options: TrainingOptions) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self._noise: torch.Generator | None = None

    def _loss(self, images: Tensor, noise: torch.Generator) -> Tensor:
        log_density, divergence = self.model.elbo_terms(images, noise)
        return (self.options.beta * divergence - log_density).mean()

    def on_fit_start(self) -> None:
        """Seed the codes' noise on the device that the model has just been moved to."""
        self._noise = torch.Generator(self.device).manual_seed(self.options.seed)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        """Return the loss of a batch."""
        assert self._noise is not None  # set when the fit starts
        loss = self._loss(batch, self._noise)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        """Log the loss of a held-out batch."""
        # The same noise in every epoch, so that epochs are compared on equal terms.
        noise = torch.Generator(self.device).manual_seed(self.options.seed + index)
        loss = self._loss(batch, noise)
        self.log("validation_loss", loss, prog_bar=True, batch_size=len(batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam with a step size that falls along a half cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.options.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer,
            T_max=int(self.trainer.estimated_stepping_batches),
            eta_min=self.options.learning_rate / 100,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class _History(Callback):
    """Keeps the losses of every epoch and the weights of the best one."""

    def __init__(self, model: VAE, checkpoint: Path | None) -> None:
        self.model = model
        self.train_loss: list[float] = []
        self.validation_loss: list[float] = []
        self.best: dict[str, Tensor] | None = None
        self.checkpoint = checkpoint

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        loss = float(trainer.callback_metrics["validation_loss"])
        # A loss of NaN is never the best.
        if loss < min(self.validation_loss, default=float("inf")):
            state = self.model.state_dict()
            self.best = {name: value.detach().cpu().clone() for name, value in state.items()}
            if self.checkpoint is not None:
                save_model(self.model, self.checkpoint)
        self.validation_loss.append(loss)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self.train_loss.append(float(trainer.callback_metrics["train_loss"]))


def train_vae(
    model: VAE,
    images: Tensor,
    options: TrainingOptions | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> TrainingRecord:
    """Train a variational autoencoder, in place, on images that fit in memory.

    Parameters
    ----------
    model : VAE
        The model; it is left in evaluation mode, on the CPU, with the weights of the best epoch.
    images : Tensor (n, *image_shape)
        Training images in [-1, 1].
    options : TrainingOptions, optional
        How to train.
    checkpoint : path, optional
        Where to save the best epoch's model so far with :func:`geolatent.models.save_model`,
        whenever the validation loss improves.

    Returns
    -------
    TrainingRecord
        The losses.

    Raises
    ------
    ValueError
        If the images do not have the model's shape, or are too few to hold some out.

    References
    ----------
    I. Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational
    Framework", ICLR 2017.
    O. Rybkin, K. Daniilidis, S. Levine, "Simple and Effective VAE Training with Calibrated
    Decoders", 2021, arXiv:2006.13202: the learnt global standard deviation.

    Examples
    --------
    >>> images, _ = digits()
    >>> options = TrainingOptions(epochs=2, accelerator="cpu", progress=False)
    >>> record = train_vae(MLPVAE(hidden=(16,)), images[:100], options)
    >>> len(record.train_loss), len(record.validation_loss)
    (2, 2)
    """
    options = options if options is not None else TrainingOptions()
    check_tensor("images", images, f"of shape (n, *{model.image_shape})", (4,))
    if images.shape[1:] != model.image_shape:
        required = f"a tensor of shape (n, *{model.image_shape})"
        raise ValueError(requirement("images", required, describe(images)))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))
    held_out = round(options.validation_fraction * len(images))
    if held_out == len(images) or (options.validation_fraction > 0 and held_out == 0):
        required = f"a share of {len(images)} images that leaves some on either side"
        raise ValueError(requirement("validation_fraction", required, options.validation_fraction))
    training = Batches(images[order[held_out:]], options.batch_size, options.seed)
    validation = Batches(images[order[:held_out]], options.batch_size)

    history = _History(model, Path(checkpoint) if checkpoint is not None else None)
    callbacks: list[Callback] = [history]
    if options.patience is not None:
        callbacks.append(EarlyStopping("validation_loss", patience=options.patience))
    if options.progress:
        callbacks.append(RichProgressBar())
    module = VAEModule(model, options)
    with _quiet_lightning():
        trainer = lightning.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=1,
            callbacks=callbacks,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            num_sanity_val_steps=0,
            limit_val_batches=None if held_out else 0,
        )
        trainer.fit(module, training, validation)
    model.cpu()
    if history.best is not None:
        model.load_state_dict(history.best)
    model.eval()
    losses = history.validation_loss
    return TrainingRecord(
        tuple(history.train_loss),
        tuple(losses),
        losses.index(min(losses)) if losses else len(history.train_loss) - 1,
    )


def train_digits_vae(
    output: str,
    hidden: list[int],
    training: TrainingOptions,
    precision: PrecisionOptions,
) -> None:
    """Train the 2-d digits model that comes with the package, fit its precision, and save it.

    Parameters
    ----------
    output : str
        Where to write: ``X.safetensors``, with ``X.json`` beside it.
    hidden : list of int
        Widths of the encoder's hidden layers.
    training : TrainingOptions
        How to train.
    precision : PrecisionOptions
        How to fit the decoder's precision.

    Raises
    ------
    TypeError, ValueError
        If a parameter is out of its range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = MLPVAE(latent_dim=2, hidden=hidden)
    images, _ = digits("train")
    train_vae(model, images, training)
    model.fit_precision(images, seed=training.seed, **asdict(precision))
    save_model(model, output)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning from logging the devices it did not find and from its own deprecations."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning's use of torch's trees, which newer versions of torch deprecate.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
