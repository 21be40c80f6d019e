"""The command that trains a model."""

# ruff: noqa: B008 - the defaults are frozen dataclasses

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from geolatent.lab.config import (
    DataOptions,
    Format,
    Formats,
    PrecisionOptions,
    TrainingOptions,
    check_formats,
)
from geolatent.lab.printing import make_console, print_last
from geolatent.lab.training import train as train_model
from geolatent.lab.training_figures import draw_training
from geolatent.models import VAE, BiGAN


def train(
    model: Callable[[], VAE | BiGAN],
    out_dir: Path = Path("runs/model"),
    data: DataOptions = DataOptions(name="MNIST"),
    training: TrainingOptions = TrainingOptions(),
    precision: PrecisionOptions | None = None,
    resume: bool = False,
    format: Formats = "png",
) -> None:
    """Train a variational autoencoder or a BiGAN on images; figures and losses beside it.

    The folder receives model.safetensors, which other commands take as
    --model.checkpoint, and figures of losses, reconstructions and codes. Start from a config, such
    as: geolatent train --config configs/train_mnist_16d.yaml --data.root FOLDER

    Parameters
    ----------
    model
        The model: class_path (ConvVAE, MLPVAE or BiGAN of geolatent.models) and init_args.
    out_dir
        Folder for the model; it must not hold an earlier training.
    data
        The training images; their test split serves the figures.
    training
        How to train.
    precision
        How to fit the decoder's standard deviation (an RBF network) after training;
        without it the standard deviation is one number.
    resume
        Go on with an interrupted training of the same options.
    format
        Format of the figures, "png", "pdf" or "svg", or a list of them; PNG files are
        always written.
    """
    others: list[Format] = [each for each in check_formats(format) if each != "png"]
    summary = train_model(model, data, out_dir, training, precision, resume=resume)
    console = make_console()
    console.print(
        f"{summary.n_train} images, {len(summary.train_loss)} epochs, {summary.seconds:.0f} s. "
        f"Mean squared error of {summary.n_test} test images: {summary.test_error:.4f} "
        f"(their mean image instead: {summary.test_variance:.4f})."
    )
    if others:
        draw_training(out_dir, others)
    for file in sorted((out_dir / "figures").iterdir()):
        console.print(f"Figure: {file}", soft_wrap=True)
    print_last(console, f"Model: {out_dir / 'model.safetensors'}")
