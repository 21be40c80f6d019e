"""Training of the package's models with Lightning (extra ``train``)."""

from __future__ import annotations

import io
import logging
import math
import os
import pickle
import signal
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from geolatent.checks import check_tensor, requirement
from geolatent.files import write_file
from geolatent.lab.config import TrainingOptions
from geolatent.lab.printing import make_console, work_progress
from geolatent.models.checkpoint import save_model
from geolatent.models.flows import Flow
from geolatent.models.gan import GAN
from geolatent.models.recurrent import Forecaster
from geolatent.models.vae import VAE

try:
    import lightning
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
except ModuleNotFoundError as error:
    message = "Training needs Lightning. Install it from the checkout: pip install '.[train]'"
    raise ModuleNotFoundError(message) from error


# what can be trained
Model = VAE | GAN | Flow | Forecaster


@dataclass(frozen=True)
class TrainingRecord:
    """What a training run did.

    Attributes
    ----------
    train_loss
        Mean loss of each epoch: a variational autoencoder's in nats per image, a flow's in bits per
        dimension, that of a GAN's generator, and encoder where it has one, in nats, or a
        forecaster's mean squared error in squared steps of the sequences.
    validation_loss
        The first over the held-out images, or a BiGAN's mean squared reconstruction error there;
        empty where there are none.
    best_epoch
        The epoch, from 0, whose weights the model has now.
    discriminator_loss
        That of a GAN's discriminator, in nats; empty for others.
    """

    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_epoch: int
    discriminator_loss: tuple[float, ...] = ()


class Batches:
    """Batches of a tensor, in a new order on every pass if there are random numbers for it.

    Images that fit in memory are sliced at once, which a ``DataLoader`` would do one by one.
    """

    def __init__(
        self, images: Tensor, batch_size: int, order: torch.Generator | None = None
    ) -> None:
        self._images = images
        self._batch_size = batch_size
        self.order = order

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.order is None:
            yield from self._images.split(self._batch_size)
        else:
            order = torch.randperm(len(self._images), generator=self.order)
            for rows in order.split(self._batch_size):
                yield self._images[rows]


class _ModelModule(lightning.LightningModule):
    """What Lightning's views of all models share: options, seeded noise, states to go on from."""

    def __init__(self, model: Model, options: TrainingOptions, n_images: int) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.n_images = n_images
        self.noise = torch.Generator()
        self._noise_state: Tensor | None = None

    @abstractmethod
    def validation_loss(self, images: Tensor, noise: torch.Generator) -> Tensor:
        """Return the number by which epochs are compared."""

    def on_fit_start(self) -> None:
        """Seed the noise on the device that the model has just been moved to."""
        self.noise = torch.Generator(self.device).manual_seed(self.options.seed)
        if self._noise_state is not None:
            self.noise.set_state(self._noise_state)

    def validation_step(self, batch: Tensor, index: int) -> None:
        """Log the loss of a held-out batch."""
        # The same noise in every epoch, so that epochs are compared on equal terms.
        noise = torch.Generator(self.device).manual_seed(self.options.seed + index)
        loss = self.validation_loss(batch, noise)
        self.log("validation_loss", loss, prog_bar=True, batch_size=len(batch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the next run needs to go on as if it had not been interrupted."""
        asked = _asked(self.model, self.options, self.n_images)
        checkpoint["geolatent"] = {"run": asked, "noise": self.noise.get_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self._noise_state = checkpoint["geolatent"]["noise"]

    def _adam(
        self, parameters: list[nn.Parameter], betas: tuple[float, float]
    ) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.CosineAnnealingLR]:
        """Return Adam with a step size that falls along a half cosine."""
        optimizer = torch.optim.Adam(parameters, lr=self.options.learning_rate, betas=betas)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer,
            T_max=int(self.trainer.estimated_stepping_batches),
            eta_min=self.options.learning_rate / 100,
        )
        return optimizer, schedule


class _DescentModule(_ModelModule):
    """Lightning's view of a model with one loss, which is lowered and compares epochs too."""

    @abstractmethod
    def _loss(self, images: Tensor, noise: torch.Generator) -> Tensor:
        """Return the mean loss of a batch."""

    def validation_loss(self, images: Tensor, noise: torch.Generator) -> Tensor:
        """Return the loss."""
        return self._loss(images, noise)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self._loss(batch, self.noise)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam with a step size that falls along a half cosine."""
        optimizer, schedule = self._adam(list(self.parameters()), (0.9, 0.999))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class VAEModule(_DescentModule):
    """Lightning's view of a variational autoencoder: loss = beta KL - log-likelihood, in nats."""

    model: VAE

    def _loss(self, images: Tensor, noise: torch.Generator) -> Tensor:
        log_density, divergence = self.model.elbo_terms(images, noise)
        return (self.options.beta * divergence - log_density).mean()


class FlowModule(_DescentModule):
    """Lightning's view of a normalising flow: loss = -log-likelihood, in bits per dimension."""

    model: Flow

    def _loss(self, images: Tensor, noise: torch.Generator) -> Tensor:
        return self.model.bits_per_dimension(images, noise).mean()


class ForecasterModule(_DescentModule):
    """Lightning's view of a forecaster: loss = mean squared error, in squared steps."""

    model: Forecaster

    def _loss(self, images: Tensor, noise: torch.Generator) -> Tensor:
        return self.model.loss(images, noise).mean()


class GANModule(_ModelModule):
    """Lightning's view of a GAN: a step of the discriminator, then one of its opponents."""

    model: GAN

    def __init__(self, model: GAN, options: TrainingOptions, n_images: int) -> None:
        super().__init__(model, options, n_images)
        self.automatic_optimization = False

    def validation_loss(self, images: Tensor, noise: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return the mean squared error of the images' reconstructions, where it has an encoder."""
        return (self.model(images) - images).square().mean()

    def training_step(self, batch: Tensor, _: int) -> None:
        """Let both players make a step against each other."""
        model = self.model
        of_discriminator, of_opponents = cast(list[LightningOptimizer], self.optimizers())
        real, generated = model.examples(batch, model.draw_prior(len(batch), self.noise))
        loss = model.game_loss(_detached(real), _detached(generated))
        of_discriminator.zero_grad()
        self.manual_backward(loss)
        of_discriminator.step()
        # The discriminator is held fixed, which saves half of its backward pass.
        model.discriminator.requires_grad_(False)
        opponents_loss = model.opponents_loss(real, generated)
        if self.options.reconstruction > 0:
            error = (model.decode(real[1]) - batch).square().mean()
            opponents_loss = opponents_loss + self.options.reconstruction * error
        of_opponents.zero_grad()
        self.manual_backward(opponents_loss)
        of_opponents.step()
        model.discriminator.requires_grad_(True)
        for schedule in cast(list[torch.optim.lr_scheduler.LRScheduler], self.lr_schedulers()):
            schedule.step()
        losses = {"train_loss": opponents_loss, "discriminator_loss": loss}
        self.log_dict(losses, on_step=False, on_epoch=True, batch_size=len(batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return one Adam for each player, with little momentum, as is usual for GANs."""
        players = (list(self.model.discriminator.parameters()), list(self.model.opponents()))
        optimizers, schedules = zip(
            *(self._adam(parameters, (0.5, 0.999)) for parameters in players), strict=True
        )
        return list(optimizers), list(schedules)


def _detached(examples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(part.detach() for part in examples)


class _History(Callback):
    """Keeps the losses of every epoch and the weights of the best one."""

    def __init__(self, model: nn.Module, order: torch.Generator, checkpoint: Path | None) -> None:
        self.model = model
        self.order = order
        self.losses: dict[str, list[float]] = {
            "train_loss": [],
            "validation_loss": [],
            "discriminator_loss": [],
        }
        self.best: dict[str, Tensor] | None = None
        self.checkpoint = checkpoint

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        losses = self.losses["validation_loss"]
        loss = float(trainer.callback_metrics["validation_loss"])
        if loss < _least(losses):
            state = self.model.state_dict()
            self.best = {name: value.detach().cpu().clone() for name, value in state.items()}
            if self.checkpoint is not None:
                save_model(self.model, self.checkpoint)
        losses.append(loss)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        for name in ("train_loss", "discriminator_loss"):
            if name in trainer.callback_metrics:
                self.losses[name].append(float(trainer.callback_metrics[name]))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "best": self.best, "order": self.order.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.best = state["losses"], state["best"]
        self.order.set_state(state["order"])


class _WholeFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all; Lightning does so on some file systems alone."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: Any,
        storage_options: Any = None,  # noqa: ARG002
    ) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_file(path, content.getvalue())


class _EpochProgress(Callback):
    """Shows how many epochs are done, those before an interruption among them."""

    def __init__(self) -> None:
        self._shown = ExitStack()

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        total, found = int(trainer.max_epochs or 0), trainer.current_epoch
        progress = work_progress(make_console(), "epochs", total, found)
        self._tell = self._shown.enter_context(progress)

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        index = arguments[-1]
        # the whole epoch is told when it has been validated
        self._tell(trainer.current_epoch + index / int(trainer.num_training_batches))

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self._tell(trainer.current_epoch + 1)

    def on_train_end(self, *_: object) -> None:
        self._shown.close()

    def on_exception(self, *_: object) -> None:
        self._shown.close()


def _asked(model: Model, options: TrainingOptions, n_images: int) -> dict[str, Any]:
    """Return what makes a training what it is, as its state says."""
    asked = asdict(options)
    for name in ("accelerator", "progress"):
        del asked[name]
    return {"model": type(model).__name__, **model.arguments, **asked, "n_images": n_images}


def check_training(
    model: Model,
    images: Tensor,
    options: TrainingOptions,
    state: str | os.PathLike[str] | None = None,
) -> None:
    """Raise where `fit_model` would not begin.

    Raises
    ------
    ValueError
        If the images do not have the model's shape, or are too few to hold some out, or an option
        is of no use to the model; if there is a state that cannot be read, would have to be
        unpickled, or is of a training with another model, other options or another number of
        images.
    """
    if not isinstance(model, VAE) and options.beta != 1.0:
        required = f"1 for a {type(model).__name__}, whose loss has no divergence to weigh"
        raise ValueError(requirement("beta", required, options.beta))
    if isinstance(model, VAE) and options.reconstruction != 0.0:
        required = "0 for a variational autoencoder, whose likelihood is its reconstruction term"
        raise ValueError(requirement("reconstruction", required, options.reconstruction))
    if isinstance(model, Flow | Forecaster) and options.reconstruction != 0.0:
        required = "0 for a normalising flow, whose reconstructions are exact, and a forecaster"
        raise ValueError(requirement("reconstruction", required, options.reconstruction))
    if isinstance(model, GAN) and not hasattr(model, "encode"):
        name = type(model).__name__
        for option, what in (
            ("reconstruction", "has no encoder and reconstructs no images"),
            ("validation_fraction", "has no loss by which epochs could be compared"),
        ):
            value = getattr(options, option)
            if value:
                raise ValueError(requirement(option, f"0 for a {name}, which {what}", value))
    check_tensor("images", images, f"(n, {', '.join(map(str, model.image_shape))})")
    held_out = _n_held_out(options, len(images))
    if held_out == len(images) or (options.validation_fraction > 0 and held_out == 0):
        required = f"a share of {len(images)} images that leaves some on either side"
        raise ValueError(requirement("validation_fraction", required, options.validation_fraction))
    if state is None or not Path(state).is_file():
        return
    try:
        found = torch.load(state, map_location="cpu", weights_only=True)["geolatent"]["run"]
    except (
        *(EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError),
        pickle.UnpicklingError,
    ) as error:
        message = requirement("state", "the readable state of a training", state)
        raise ValueError(f"{message} {type(error).__name__}.") from error
    for name, wanted in _asked(model, options, len(images)).items():
        if found.get(name) != wanted:
            required = f"{found.get(name)!r}, as in the training to resume"
            raise ValueError(requirement(name, required, repr(wanted)))


def _least(losses: list[float]) -> float:
    """Return the least of losses; one that is NaN is never the best."""
    return min((loss for loss in losses if not math.isnan(loss)), default=math.inf)


def _n_held_out(options: TrainingOptions, n_images: int) -> int:
    return round(options.validation_fraction * n_images)


def fit_model(
    model: Model,
    images: Tensor,
    options: TrainingOptions | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state: str | os.PathLike[str] | None = None,
) -> TrainingRecord:
    """Train a model, in place, on images that fit in memory.

    Of a GAN, the generator, with the encoder where there is one, makes one step after each step of
    the discriminator, both with Adam (momentum 0.5). The game alone makes a BiGAN's encoder and
    generator inverse to one another in the limit only; ``reconstruction`` adds the error of G(E(x))
    to their loss, which gets them there in far fewer epochs. The epoch kept is that of the smallest
    such error on held-out images; of a GAN without an encoder, the last.

    A normalising flow starts from the training images (`Flow.initialise`), with noise between their
    grey levels that is drawn anew for every batch.

    Parameters
    ----------
    model
        The model; it is left in evaluation mode, on the CPU, with the weights of the best epoch.
    images
        Training images in [-1, 1], (n, channels, height, width).
    options
        How to train.
    checkpoint
        Where to save the best epoch's model so far with `geolatent.models.save_model`,
        whenever the validation loss improves.
    state
        A file X.ckpt for the training's state after each epoch, Lightning's checkpoint. Where it
        exists already the training goes on from it, to the same result as if it had not been
        interrupted.

    Returns
    -------
    TrainingRecord
        The losses.

    References
    ----------
    I. Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational
    Framework", ICLR 2017.
    O. Rybkin, K. Daniilidis, S. Levine, "Simple and Effective VAE Training with Calibrated
    Decoders", 2021, arXiv:2006.13202: the learnt global standard deviation.
    J. Donahue, P. Krähenbühl, T. Darrell, "Adversarial Feature Learning", ICLR 2017,
    arXiv:1605.09782.
    C. Li et al., "ALICE: Towards Understanding Adversarial Learning for Joint Distribution
    Matching", NeurIPS 2017, arXiv:1709.01215: the reconstruction term.

    Examples
    --------
    >>> from geolatent.lab.data import digits
    >>> from geolatent.models import MLPVAE
    >>> images, _ = digits()
    >>> options = TrainingOptions(epochs=2, accelerator="cpu", progress=False)
    >>> record = fit_model(MLPVAE(hidden=(16,)), images[:100], options)
    >>> len(record.train_loss), len(record.validation_loss)
    (2, 2)
    """
    options = options if options is not None else TrainingOptions()
    check_training(model, images, options, state)
    if isinstance(model, GAN):
        module: _ModelModule = GANModule(model, options, len(images))
    elif isinstance(model, Flow):
        module = FlowModule(model, options, len(images))
    elif isinstance(model, Forecaster):
        module = ForecasterModule(model, options, len(images))
    else:
        module = VAEModule(model, options, len(images))
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))
    held_out = _n_held_out(options, len(images))
    order = torch.Generator().manual_seed(options.seed)
    training = Batches(images[rows[held_out:]], options.batch_size, order)
    validation = Batches(images[rows[:held_out]], options.batch_size)

    if isinstance(model, Flow | Forecaster):
        generator = torch.Generator().manual_seed(options.seed)
        model.initialise(images[rows[held_out:]], generator)

    history = _History(model, order, Path(checkpoint) if checkpoint is not None else None)
    callbacks: list[Callback] = [history]
    if options.patience is not None:
        callbacks.append(EarlyStopping("validation_loss", patience=options.patience))
    if options.progress:
        callbacks.append(_EpochProgress())
    if state is not None:
        callbacks.append(
            ModelCheckpoint(
                Path(state).parent,
                filename=Path(state).stem,
                enable_version_counter=False,
                save_on_train_epoch_end=True,
            )
        )
    model.train()
    with _quiet_lightning():
        trainer = lightning.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=1,
            callbacks=callbacks,
            plugins=[_WholeFiles()],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=state is not None,
            logger=False,
            num_sanity_val_steps=0,
            limit_val_batches=None if held_out else 0,
        )
        resumed = str(state) if state is not None and Path(state).is_file() else None
        hears = signal.getsignal(signal.SIGINT)
        try:
            # with weights_only nothing is unpickled
            trainer.fit(module, training, validation, ckpt_path=resumed, weights_only=True)
        except SystemExit as stop:
            # Lightning makes of an interrupt the process's end, and makes it deaf to the next
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, hears)
            raise KeyboardInterrupt from stop
    model.cpu()
    if history.best is not None:
        model.load_state_dict(history.best)
    model.eval()
    losses = history.losses
    best_epoch = len(losses["train_loss"]) - 1
    if history.best is not None:
        best_epoch = losses["validation_loss"].index(_least(losses["validation_loss"]))
    return TrainingRecord(
        best_epoch=best_epoch, **{name: tuple(values) for name, values in losses.items()}
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning from telling of missing devices, its own deprecations, and resumed runs."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning's use of torch's trees, which newer versions of torch deprecate.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            # It is the folder to resume from.
            warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")
            yield
    finally:
        logger.setLevel(level)
