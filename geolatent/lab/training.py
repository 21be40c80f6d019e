"""Training of the package's models with Lightning (extra ``train``)."""

from __future__ import annotations

import logging
import os
import pickle
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from geolatent.checks import check_tensor, describe, requirement
from geolatent.files import write_file
from geolatent.lab.config import DataOptions, PrecisionOptions, TrainingOptions
from geolatent.lab.console import make_console, work_progress
from geolatent.lab.contents import SUMMARY, run_command
from geolatent.lab.data import load
from geolatent.lab.run import RunFolder
from geolatent.lab.training_figures import draw_training
from geolatent.models.bigan import BiGAN
from geolatent.models.checkpoint import save_model
from geolatent.models.vae import VAE

try:
    import lightning
    from lightning.pytorch.callbacks import (
        Callback,
        EarlyStopping,
        ModelCheckpoint,
    )
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
except ModuleNotFoundError as error:
    message = "Training needs Lightning. Install it from the checkout: pip install '.[train]'"
    raise ModuleNotFoundError(message) from error

STATE_FILE = "last.ckpt"


DEFAULT_TRAINING = TrainingOptions()


@dataclass(frozen=True)
class TrainingRecord:
    """What a training run did.

    Attributes
    ----------
    train_loss
        Mean loss of each epoch: a variational autoencoder's in nats per image, or that of a
        BiGAN's generator and encoder in nats.
    validation_loss
        The first over the held-out images, or a BiGAN's mean squared reconstruction error there;
        empty where there are none.
    best_epoch
        The epoch, from 0, whose weights the model has now.
    discriminator_loss
        That of a BiGAN's discriminator, in nats; empty for others.
    """

    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_epoch: int
    discriminator_loss: tuple[float, ...] = ()


class Batches:
    """Batches of a tensor, in a new seeded order on every pass if a seed is given.

    Images that fit in memory are sliced at once, which a ``DataLoader`` would do one by one.
    """

    def __init__(self, images: Tensor, batch_size: int, seed: int | None = None) -> None:
        self._images = images
        self._batch_size = batch_size
        self.order = None if seed is None else torch.Generator().manual_seed(seed)

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

    def __init__(self, model: VAE | BiGAN, options: TrainingOptions, n_images: int) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.n_images = n_images
        self._noise: torch.Generator | None = None
        self._noise_state: Tensor | None = None

    @property
    def noise(self) -> torch.Generator:
        """The random numbers of the training, there once the fit has started."""
        if self._noise is None:
            raise RuntimeError("The noise is there once the fit has started.")
        return self._noise

    @abstractmethod
    def validation_loss(self, images: Tensor, noise: torch.Generator) -> Tensor:
        """Return the number by which epochs are compared."""

    def on_fit_start(self) -> None:
        """Seed the noise on the device that the model has just been moved to."""
        self._noise = torch.Generator(self.device).manual_seed(self.options.seed)
        if self._noise_state is not None:
            self._noise.set_state(self._noise_state)

    def validation_step(self, batch: Tensor, index: int) -> None:
        """Log the loss of a held-out batch."""
        # The same noise in every epoch, so that epochs are compared on equal terms.
        noise = torch.Generator(self.device).manual_seed(self.options.seed + index)
        loss = self.validation_loss(batch, noise)
        self.log("validation_loss", loss, prog_bar=True, batch_size=len(batch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the next run needs to go on as if it had not been interrupted."""
        checkpoint["geolatent"] = {"run": self._run(), "noise": self.noise.get_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self._noise_state = checkpoint["geolatent"]["noise"]

    def check_state(self, state: Path) -> None:
        """Raise where a file is not the state of this very training.

        Raises
        ------
        ValueError
            If it cannot be read, would have to be unpickled, or is of a training with another
            model, other options or another number of images.
        """
        try:
            found = torch.load(state, map_location="cpu", weights_only=True)["geolatent"]["run"]
        except (
            pickle.UnpicklingError,
            EOFError,
            KeyError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            required = f"a folder with the readable state of a training, {state.name}"
            message = requirement("state_dir", required, state.parent)
            raise ValueError(f"{message} {type(error).__name__}.") from error
        wanted = self._run()
        for name in wanted:
            if found.get(name) != wanted[name]:
                required = f"{found.get(name)!r}, as in the training to resume"
                raise ValueError(requirement(name, required, repr(wanted[name])))

    def _run(self) -> dict[str, Any]:
        options = asdict(self.options)
        for name in ("accelerator", "progress"):
            del options[name]
        model = {"model": type(self.model).__name__, **self.model.arguments}
        return {**model, **options, "n_images": self.n_images}

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


class VAEModule(_ModelModule):
    """Lightning's view of a variational autoencoder: loss = beta KL - log-likelihood, in nats."""

    model: VAE

    def _loss(self, images: Tensor, noise: torch.Generator) -> Tensor:
        log_density, divergence = self.model.elbo_terms(images, noise)
        return (self.options.beta * divergence - log_density).mean()

    validation_loss = _loss

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


class BiGANModule(_ModelModule):
    """Lightning's view of a BiGAN: a step of the discriminator, then one of its opponents."""

    model: BiGAN

    def __init__(self, model: BiGAN, options: TrainingOptions, n_images: int) -> None:
        super().__init__(model, options, n_images)
        self.automatic_optimization = False

    def validation_loss(self, images: Tensor, noise: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return the mean squared error of the images' reconstructions."""
        return (self.model(images) - images).square().mean()

    def training_step(self, batch: Tensor, _: int) -> None:
        """Let both players make a step against each other."""
        model = self.model
        of_discriminator, of_opponents = cast(list[LightningOptimizer], self.optimizers())
        z = torch.randn(len(batch), model.latent_dim, generator=self.noise, device=batch.device).to(
            batch
        )
        generated, codes = model.decode(z), model.encode(batch)
        loss = model.game_loss((batch, codes.detach()), (generated.detach(), z))
        of_discriminator.zero_grad()
        self.manual_backward(loss)
        of_discriminator.step()
        # The discriminator is held fixed, which saves half of its backward pass.
        model.discriminator.requires_grad_(False)
        opponents_loss = model.game_loss((generated, z), (batch, codes))
        if self.options.reconstruction > 0:
            error = (model.decode(codes) - batch).square().mean()
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


class _History(Callback):
    """Keeps the losses of every epoch and the weights of the best one."""

    def __init__(self, model: nn.Module, batches: Batches, checkpoint: Path | None) -> None:
        self.model = model
        self.batches = batches
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
        # A loss of NaN is never the best.
        if loss < min(losses, default=float("inf")):
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
        assert self.batches.order is not None  # those of the training are always shuffled
        return {"losses": self.losses, "best": self.best, "order": self.batches.order.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.batches.order is not None
        self.losses, self.best = state["losses"], state["best"]
        self.batches.order.set_state(state["order"])


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


def train_vae(
    model: VAE,
    images: Tensor,
    options: TrainingOptions | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state_dir: str | os.PathLike[str] | None = None,
) -> TrainingRecord:
    """Train a variational autoencoder, in place, on images that fit in memory.

    Parameters
    ----------
    model
        The model; it is left in evaluation mode, on the CPU, with the weights of the best epoch.
    images
        Training images in [-1, 1], (n, channels, height, width).
    options
        How to train.
    checkpoint
        Where to save the best epoch's model so far with :func:`geolatent.models.save_model`,
        whenever the validation loss improves.
    state_dir
        A folder for the training's state, Lightning's checkpoint ``last.ckpt``, after each epoch.
        Where that file exists already the training goes on from it, to the same result as if it
        had not been interrupted.

    Returns
    -------
    TrainingRecord
        The losses.

    Raises
    ------
    ValueError
        If the images do not have the model's shape, or are too few to hold some out, or the
        state is that of another training.

    References
    ----------
    I. Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational
    Framework", ICLR 2017.
    O. Rybkin, K. Daniilidis, S. Levine, "Simple and Effective VAE Training with Calibrated
    Decoders", 2021, arXiv:2006.13202: the learnt global standard deviation.

    Examples
    --------
    >>> from geolatent.lab.data import digits
    >>> from geolatent.models import MLPVAE
    >>> images, _ = digits()
    >>> options = TrainingOptions(epochs=2, accelerator="cpu", progress=False)
    >>> record = train_vae(MLPVAE(hidden=(16,)), images[:100], options)
    >>> len(record.train_loss), len(record.validation_loss)
    (2, 2)
    """
    options = options if options is not None else TrainingOptions()
    if options.reconstruction != 0.0:
        required = "0 for a variational autoencoder, whose likelihood is its reconstruction term"
        raise ValueError(requirement("reconstruction", required, options.reconstruction))
    return _fit(VAEModule(model, options, len(images)), images, checkpoint, state_dir)


def train_bigan(
    model: BiGAN,
    images: Tensor,
    options: TrainingOptions | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state_dir: str | os.PathLike[str] | None = None,
) -> TrainingRecord:
    """Train a BiGAN, in place, on images that fit in memory.

    Generator and encoder make one step after each step of the discriminator, both with Adam
    (momentum 0.5). The game alone makes encoder and generator inverse to one another in the limit
    only; ``reconstruction`` adds the error of G(E(x)) to their loss, which gets them there in far
    fewer epochs. The epoch kept is that of the smallest such error on held-out images.

    Parameters
    ----------
    model
        The model; it is left in evaluation mode, on the CPU, with the weights of the best epoch.
    images
        Training images in [-1, 1], (n, channels, height, width).
    options
        How to train, with a ``beta`` of 1.
    checkpoint, state_dir
        As for :func:`train_vae`.

    Returns
    -------
    TrainingRecord
        The losses of both players and the reconstruction errors.

    Raises
    ------
    ValueError
        As :func:`train_vae`; also if ``beta`` is not 1.

    References
    ----------
    J. Donahue, P. Krähenbühl, T. Darrell, "Adversarial Feature Learning", ICLR 2017,
    arXiv:1605.09782.
    C. Li et al., "ALICE: Towards Understanding Adversarial Learning for Joint Distribution
    Matching", NeurIPS 2017, arXiv:1709.01215: the reconstruction term.

    Examples
    --------
    >>> from geolatent.lab.data import digits
    >>> images, _ = digits()
    >>> model = BiGAN(latent_dim=2, channels=(4, 8), hidden=16, image_shape=(1, 8, 8))
    >>> options = TrainingOptions(epochs=2, accelerator="cpu", progress=False)
    >>> record = train_bigan(model, images[:100], options)
    >>> len(record.discriminator_loss)
    2
    """
    options = options if options is not None else TrainingOptions()
    if options.beta != 1.0:
        required = "1 for a BiGAN, whose loss has no divergence to weigh"
        raise ValueError(requirement("beta", required, options.beta))
    return _fit(BiGANModule(model, options, len(images)), images, checkpoint, state_dir)


def _fit(
    module: VAEModule | BiGANModule,
    images: Tensor,
    checkpoint: str | os.PathLike[str] | None,
    state_dir: str | os.PathLike[str] | None,
) -> TrainingRecord:
    """Train a model; see :func:`train_vae`."""
    model, options = module.model, module.options
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

    history = _History(model, training, Path(checkpoint) if checkpoint is not None else None)
    callbacks: list[Callback] = [history]
    if options.patience is not None:
        callbacks.append(EarlyStopping("validation_loss", patience=options.patience))
    if options.progress:
        callbacks.append(_EpochProgress())
    resumed = None
    if state_dir is not None:
        state = Path(state_dir) / STATE_FILE
        if state.is_file():
            module.check_state(state)
            resumed = str(state)
        callbacks.append(
            ModelCheckpoint(
                state.parent,
                filename=state.stem,
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
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=state_dir is not None,
            logger=False,
            num_sanity_val_steps=0,
            limit_val_batches=None if held_out else 0,
        )
        try:
            # With weights_only nothing is unpickled.
            trainer.fit(module, training, validation, ckpt_path=resumed, weights_only=True)
        except OSError as error:
            # Lightning's message names no file where the disk is full.
            if state_dir is None or error.filename is not None:
                raise
            file = str(Path(state_dir) / STATE_FILE)
            raise OSError(error.errno, error.strerror or str(error), file) from error
    model.cpu()
    if history.best is not None:
        model.load_state_dict(history.best)
    model.eval()
    losses = history.losses
    held_out_losses = losses["validation_loss"]
    best_epoch = len(losses["train_loss"]) - 1
    if held_out_losses:
        best_epoch = held_out_losses.index(min(held_out_losses))
    return TrainingRecord(
        tuple(losses["train_loss"]),
        tuple(held_out_losses),
        best_epoch,
        tuple(losses["discriminator_loss"]),
    )


@dataclass(frozen=True)
class TrainingSummary:
    """What :func:`train` did, as it stands in ``summary.json``.

    Attributes
    ----------
    class_path
        The model's class.
    init_args
        Its constructor's arguments.
    n_train, n_test
        Numbers of images, those held out during training among the first.
    train_loss, validation_loss, discriminator_loss, best_epoch
        See :class:`TrainingRecord`.
    test_error
        Mean squared error of the test images' reconstructions, in pixel units squared.
    test_variance
        Mean squared error of the training images' mean in place of a reconstruction.
    seconds
        Wall-clock time of training and fitting, of this call alone where it resumed another.
    """

    class_path: str
    init_args: dict[str, Any]
    n_train: int
    n_test: int
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    discriminator_loss: tuple[float, ...]
    best_epoch: int
    test_error: float
    test_variance: float
    seconds: float


def train(
    model: Callable[[], VAE | BiGAN],
    data: DataOptions,
    out_dir: str | os.PathLike[str],
    training: TrainingOptions = DEFAULT_TRAINING,
    precision: PrecisionOptions | None = None,
    test_data: DataOptions | None = None,
    resume: bool = False,
) -> TrainingSummary:
    """Train one of the package's models on a data set and write it, with figures, to a folder.

    The folder is a run folder, see `geolatent.lab.run`: ``config.yaml`` and
    ``environment.json`` stand in it from the beginning. It receives ``model.safetensors``
    (for :func:`geolatent.models.load_model`), ``training.safetensors`` (some test
    images, their reconstructions and codes), ``summary.json`` and the figures ``losses.png``,
    ``reconstructions.png`` and, for a 2-d latent space, ``latent.png`` in ``figures``. Each file is
    written whole or not at all, ``summary.json`` after the model and its data, from which
    :func:`geolatent.lab.training_figures.draw_training` can draw the figures again. While the model
    trains, ``checkpoints/last.ckpt`` holds the state after the last whole epoch.

    Parameters
    ----------
    model
        Builds the model, a variational autoencoder or a BiGAN of ``geolatent.models``; called while
        torch's random numbers are seeded. A config gives a ``class_path`` and ``init_args``.
    data
        The training images.
    out_dir
        The folder; it must not hold an earlier training.
    training
        How to train.
    precision
        How to fit the RBF precision of a variational autoencoder after training; without it the
        standard deviation stays one learnt number. A BiGAN has none.
    test_data
        The images for the figures and the test error; by default the test split of ``data``.
    resume
        Go on with an interrupted training of the same options.

    Returns
    -------
    TrainingSummary
        What is in ``summary.json``.

    Raises
    ------
    FileExistsError
        If the folder holds a finished training, an interrupted one without ``resume`` or of other
        options, or files of the same names that are not of a training.
    BlockingIOError
        If another process is writing the folder.
    FileNotFoundError
        If the data are missing, or with ``resume`` the state of an interrupted training.
    ValueError
        If model, images and options do not fit together.

    Examples
    --------
    >>> import tempfile
    >>> from geolatent.models import MLPVAE
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     summary = train(
    ...         lambda: MLPVAE(hidden=(16,)),
    ...         DataOptions("digits", per_class=20),
    ...         folder,
    ...         TrainingOptions(epochs=1, accelerator="cpu", progress=False),
    ...     )
    ...     files = sorted(path.name for path in Path(folder).iterdir())
    >>> files[:4]
    ['config.yaml', 'environment.json', 'figures', 'geolatent-files.json']
    >>> files[4:]
    ['model.safetensors', 'summary.json', 'training.safetensors']
    """
    folder = Path(out_dir)
    state = folder / "checkpoints" / STATE_FILE
    started = time.monotonic()
    network, config, fresh = check_training(
        model, data, out_dir, training, precision, test_data, resume=resume
    )
    images, _ = load(data)
    test_images, test_labels = load(test_data or replace(data, split="test"))
    for name, found in (("data", images), ("test_data", test_images)):
        if found.shape[1:] != network.image_shape:
            required = f"images of the model's shape, {network.image_shape}"
            raise ValueError(requirement(name, required, describe(found)))
    device = "cuda" if training.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    with RunFolder.create(
        folder,
        "train",
        config,
        seed=training.seed,
        device=device,
        overwrite=fresh,
        resume=True,
    ) as run:
        try:
            return _train(
                run, network, images, test_images, test_labels, training, precision, started
            )
        except (OSError, KeyboardInterrupt) as error:
            if not (folder / SUMMARY).exists():
                again = "with `resume`" if state.exists() else "again"
                error.add_note(f"Train {again} to go on with the training in {folder}.")
            raise


def check_training(
    model: Callable[[], VAE | BiGAN],
    data: DataOptions,
    out_dir: str | os.PathLike[str],
    training: TrainingOptions,
    precision: PrecisionOptions | None = None,
    test_data: DataOptions | None = None,
    *,
    resume: bool = False,
) -> tuple[VAE | BiGAN, dict[str, Any], bool]:
    """Raise where :func:`train` would not take its folder or its model; nothing is written.

    Returns
    -------
    network : VAE or BiGAN
        The model, untrained.
    config : dict
        What ``config.yaml`` says.
    fresh : bool
        Whether a training that was interrupted in its first epoch begins again.
    """
    folder = Path(out_dir)
    state = folder / "checkpoints" / STATE_FILE
    if (folder / SUMMARY).exists():
        required = "a folder without a finished training"
        raise FileExistsError(requirement("out_dir", required, folder))
    if state.exists() and not resume:
        required = "a folder without an interrupted training; set `resume` to go on with it"
        raise FileExistsError(requirement("out_dir", required, folder))
    if resume and not state.exists():
        required = f"the folder of an interrupted training, with {state}; others begin without it"
        raise FileNotFoundError(requirement("out_dir", required, folder))
    network = _untrained(model, precision, training.seed)
    config = {
        "model": {"class_path": _class_path(network), "init_args": network.arguments},
        "out_dir": folder,
        "data": data,
        "training": training,
        "precision": precision,
    }
    if test_data is not None:
        config["test_data"] = test_data
    # one that was interrupted in its first epoch begins again
    fresh = not state.exists() and run_command(folder) == "train"
    RunFolder.check(folder, overwrite=fresh, command="train", resume=config)
    return network, config, fresh


def _train(
    run: RunFolder,
    network: VAE | BiGAN,
    images: Tensor,
    test_images: Tensor,
    test_labels: Tensor | None,
    training: TrainingOptions,
    precision: PrecisionOptions | None,
    started: float,
) -> TrainingSummary:
    """Train a model, and write it and what it gives to a folder; see :func:`train`."""
    folder = run.path
    state = folder / "checkpoints" / STATE_FILE
    if isinstance(network, BiGAN):
        record = train_bigan(network, images, training, state_dir=state.parent)
    else:
        record = train_vae(network, images, training, state_dir=state.parent)
        if precision is not None:
            network.fit_precision(images, seed=training.seed, **asdict(precision))
    seconds = time.monotonic() - started
    stored, test_error = _reconstruct(network, test_images, test_labels)
    summary = TrainingSummary(
        class_path=_class_path(network),
        init_args=network.arguments,
        n_train=len(images),
        n_test=len(test_images),
        **asdict(record),
        test_error=test_error,
        test_variance=float((test_images - images.mean(0)).square().mean()),
        seconds=seconds,
    )
    save_model(network, folder / "model.safetensors")
    write_file(folder / "training.safetensors", save(stored))
    run.finish(asdict(summary))
    draw_training(folder)
    state.unlink()
    state.parent.rmdir()
    return summary


def _class_path(network: nn.Module) -> str:
    return f"{type(network).__module__}.{type(network).__qualname__}"


def _untrained(
    model: Callable[[], VAE | BiGAN], precision: PrecisionOptions | None, seed: int
) -> VAE | BiGAN:
    """Build the model to train, with seeded initial weights."""
    required = "a callable that returns a variational autoencoder or a BiGAN of geolatent.models"
    if not callable(model) or isinstance(model, nn.Module):
        raise TypeError(requirement("model", required, describe(model)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = model()
    # Others could not be saved, which had better be known before the training.
    module = type(network).__module__
    if not isinstance(network, VAE | BiGAN) or not module.startswith("geolatent.models."):
        raise TypeError(requirement("model", required, f"one returning {describe(network)}"))
    if precision is not None and isinstance(network, BiGAN):
        required = "None for a BiGAN, whose decoder has no standard deviation"
        raise ValueError(requirement("precision", required, precision))
    if isinstance(network, VAE) and network.precision is not None:
        required = "a model without RBF centres, which are placed after training: `n_centers` 0"
        raise ValueError(requirement("model", required, describe(network)))
    return network


@torch.no_grad()
def _reconstruct(
    network: VAE | BiGAN, images: Tensor, labels: Tensor | None, n_shown: int = 20
) -> tuple[dict[str, Tensor], float]:
    """Return what the figures show, and the mean squared error over all images."""
    codes, squares = [], 0.0
    for part in images.split(1024):
        encoded = network.encode(part)
        code = encoded[0] if isinstance(encoded, tuple) else encoded
        squares += float((_mean_image(network, code) - part).double().square().sum())
        codes.append(code)
    if labels is None:
        rows = torch.arange(min(n_shown, len(images)))
    else:
        # The first of each class, the second of each class, and so on.
        ranks = torch.zeros_like(labels)
        for label in labels.unique():
            members = labels == label
            ranks[members] = torch.arange(int(members.sum()))
        rows = (ranks * (int(labels.max()) + 1) + labels).argsort()[:n_shown]
    all_codes = torch.cat(codes)
    stored = {
        "images": images[rows].contiguous(),
        "reconstructions": _mean_image(network, all_codes[rows]).contiguous(),
        "codes": all_codes,
    }
    if labels is not None:
        stored["labels"] = labels
    if network.latent_dim == 2 and isinstance(network, VAE) and network.precision is not None:
        low, high = all_codes.min(0).values, all_codes.max(0).values
        margin = 0.25 * (high - low)
        sides = [
            torch.linspace(float(a), float(b), 100)
            for a, b in zip(low - margin, high + margin, strict=True)
        ]
        second, first = torch.meshgrid(sides[1], sides[0], indexing="ij")
        grid = torch.stack([first.flatten(), second.flatten()], dim=1)
        std = [network.decode(part)[1].flatten(1).mean(1) for part in grid.split(1024)]
        stored["std"] = torch.cat(std).reshape(100, 100)
        stored["std_extent"] = torch.stack([side[index] for side in sides for index in (0, -1)])
    return stored, squares / images.numel()


def _mean_image(network: VAE | BiGAN, codes: Tensor) -> Tensor:
    return network.decode_mean(codes) if isinstance(network, VAE) else network.decode(codes)


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
