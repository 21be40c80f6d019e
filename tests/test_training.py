import hashlib
import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentError
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rounding import assert_same_to_rounding
from safetensors.torch import load_file

pytest.importorskip("lightning", reason="training needs the extra `train`")

from geolatent.cli import main
from geolatent.lab.config import DataOptions, PrecisionOptions, TrainingOptions
from geolatent.lab.data import digits, load
from geolatent.lab.run import RunFolder, load_run
from geolatent.lab.train import Train, divergences, held_out_bits
from geolatent.lab.training import Batches, VAEModule, fit_model
from geolatent.models import DCGAN, IAFVAE, MLPVAE, NICE, BiGAN, ConvVAE, Glow, load_model

ROOT = Path(__file__).parents[1]


def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLPVAE(hidden=(16,))


def assert_same_tensors(found, expected, ulps=1000):
    """Check that two trainings made the same to rounding, which steps enlarge."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_to_rounding(found[name], value, ulps)


def assert_same_training(found, expected, model, expected_model):
    """Check records and weights in float64.

    Adam's steps have the same length whatever the gradient's, unless that is below Adam's epsilon:
    a bias before a batch norm, whose gradient is rounding alone, goes anywhere in float32, and even
    here rounding has grown to 1e-7 after a few steps.
    """
    for name in ("train_loss", "validation_loss", "discriminator_loss"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5)
    assert found.best_epoch == expected.best_epoch
    assert_same_tensors(model.state_dict(), expected_model.state_dict(), ulps=1e11)  # 2e-5


def options(**changes):
    defaults = {"epochs": 2, "batch_size": 32, "accelerator": "cpu", "progress": False}
    return TrainingOptions(**{**defaults, **changes})


@pytest.fixture(scope="module")
def images():
    return digits("train")[0][:120]


def test_batches_hold_every_row_once_in_a_new_order():
    rows = torch.arange(10)[:, None]
    batches = Batches(rows, batch_size=4, order=torch.Generator().manual_seed(0))
    first, second = (torch.cat(list(batches)).flatten() for _ in range(2))
    assert len(batches) == len(list(Batches(rows, 4))) == 3
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(list(Batches(rows, batch_size=4))), rows)


def test_training_lowers_the_loss(images):
    record = fit_model(model(), images, options(epochs=10, learning_rate=1e-2))
    assert len(record.train_loss) == len(record.validation_loss) == 10
    assert record.train_loss[-1] < record.train_loss[0] - 5
    assert record.validation_loss[record.best_epoch] == min(record.validation_loss)


def test_training_is_reproducible_and_leaves_random_numbers_alone(images):
    images = images.double()
    one, two, other = model().double(), model().double(), model().double()
    state = torch.random.get_rng_state()
    record = fit_model(one, images, options(seed=3))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(5)
    assert_same_training(fit_model(two, images, options(seed=3)), record, two, one)
    different = fit_model(other, images, options(seed=4))
    with pytest.raises(AssertionError):
        assert_same_training(different, record, other, one)


def test_without_validation_the_last_epoch_is_kept(images):
    trained = model()
    record = fit_model(trained, images, options(epochs=3, validation_fraction=0.0))
    assert record.validation_loss == ()
    assert record.best_epoch == 2
    assert not trained.training


def test_an_epoch_without_a_finite_loss_is_not_the_best(images, tmp_path, monkeypatch):
    losses = iter((torch.nan, 3.0, 2.0, torch.inf))
    monkeypatch.setattr(VAEModule, "validation_loss", lambda *_: torch.tensor(next(losses)))
    trained, path = model(), tmp_path / "best.safetensors"
    record = fit_model(trained, images, options(epochs=4), checkpoint=path)
    assert record.best_epoch == 2
    assert_same_tensors(trained.state_dict(), load_model(path).state_dict(), ulps=0)


def test_early_stopping_restores_and_saves_the_best_epoch(images, tmp_path):
    # So large a step that the loss soon rises.
    trained = model()
    path = tmp_path / "best.safetensors"
    settings = options(epochs=60, learning_rate=0.1, patience=2)
    record = fit_model(trained, images, settings, checkpoint=path)
    assert len(record.train_loss) < 60
    assert record.best_epoch == len(record.validation_loss) - 3
    saved = load_model(path)
    for ours, theirs in zip(trained.parameters(), saved.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_beta_weighs_the_divergence(images):
    divergence = []
    for beta in (0.1, 30.0):
        trained = model()
        fit_model(trained, images, options(epochs=10, learning_rate=1e-2, beta=beta))
        divergence.append(trained.elbo_terms(images)[1].mean())
    assert divergence[1] < divergence[0]


def test_the_digits_model_is_trained_fitted_and_saved(tmp_path):
    paths = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    for path in paths:
        Train(
            model=lambda: MLPVAE(latent_dim=2, hidden=[16]),
            data=DataOptions("digits"),
            out=path.parent,
            training=options(epochs=1, validation_fraction=0.0),
            precision=PrecisionOptions(n_centers=5, iterations=3),
        ).run()
    loaded = load_model(paths[0])
    assert_same_tensors(load_model(paths[1]).state_dict(), loaded.state_dict())
    assert isinstance(loaded, MLPVAE)
    assert loaded.arguments == {
        "latent_dim": 2,
        "hidden": [16],
        "image_shape": [1, 8, 8],
        "n_centers": 5,
    }


def test_the_packaged_description_agrees_with_the_config():
    config = yaml.safe_load((ROOT / "configs" / "train_digits_vae.yaml").read_text())
    packaged = load_model(ROOT / "geolatent" / "models" / "digits_vae.safetensors")
    given = config["model"]["init_args"]
    assert {name: packaged.arguments[name] for name in given} == given
    assert packaged.arguments["n_centers"] == config["precision"]["n_centers"]
    TrainingOptions(**config["training"])
    PrecisionOptions(**config["precision"])


def test_the_script_refuses_unknown_keys(tmp_path):
    # An abbreviation is an unknown key too: it must not start a run.
    output = tmp_path / "model"
    command = [sys.executable, "scripts/train_digits_vae.py", "--training.epoch", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--out", str(output)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "training.epoch" in done.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "`epochs` should be an integer of at least 1. Found `epochs = 0`"),
        ({"batch_size": 0}, "`batch_size` should be"),
        ({"learning_rate": 0.0}, "`learning_rate` should be a finite number above 0"),
        ({"beta": -1.0}, "`beta` should be a finite number at least 0"),
        ({"validation_fraction": 1.0}, "`validation_fraction` should be"),
        ({"patience": 0}, "`patience` should be"),
        ({"patience": 3, "validation_fraction": 0.0}, "above 0 where `patience` is given"),
        ({"seed": -1}, "`seed` should be"),
    ],
)
def test_options_refuse_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_images_must_fit(images):
    with pytest.raises(ValueError, match="`images` should be a tensor of shape"):
        fit_model(model(), images[..., :4], options())
    with pytest.raises(ValueError, match="`validation_fraction` should be a share of 2 images"):
        fit_model(model(), images[:2], options())


# Convolutional models and BiGANs


def conv(**changes):
    arguments = {"latent_dim": 2, "channels": (4, 8), "hidden": 32, "image_shape": (1, 8, 8)}
    return ConvVAE(**{**arguments, **changes})


def bigan(**changes):
    arguments = {"latent_dim": 2, "channels": (4, 8), "hidden": 32, "image_shape": (1, 8, 8)}
    return BiGAN(**{**arguments, **changes})


def seeded(build, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(**changes)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_a_conv_vae_learns(images, spectral_norm):
    trained = seeded(conv, spectral_norm=spectral_norm)
    record = fit_model(trained, images, options(epochs=8, learning_rate=1e-2))
    assert record.train_loss[-1] < record.train_loss[0] - 5
    assert record.discriminator_loss == ()
    assert not trained.training


def test_std_is_larger_far_from_the_data_than_near_any_code():
    images, _ = digits("train")
    trained = seeded(conv, channels=(8, 16), spectral_norm=True)
    fit_model(trained, images, options(epochs=4, batch_size=64, learning_rate=5e-3))
    trained.fit_precision(images, n_centers=8)
    with torch.no_grad():
        codes, _ = trained.encode(images)
        # Each code's neighbourhood: jittered by a tenth of the codes' spread.
        noise = torch.randn(5, *codes.shape, generator=torch.Generator().manual_seed(0))
        near_codes = (codes + 0.1 * codes.std(0) * noise).flatten(0, 1)
        near = trained.decode(torch.cat([codes, near_codes]))[1].flatten(1)
        angles = torch.linspace(0, 6.28, 33)
        circle = torch.stack([angles.cos(), angles.sin()], 1)
        for factor in (5.0, 10.0, 1e4):
            far = trained.decode(factor * codes.norm(dim=1).max() * circle)[1].flatten(1)
            assert (far.amin(0) > near.amax(0)).all()


def test_a_bigan_learns_to_reconstruct():
    images, _ = digits("train")
    trained = seeded(bigan, latent_dim=8, channels=(4, 8))
    settings = options(epochs=6, learning_rate=3e-3, reconstruction=10.0)
    record = fit_model(trained, images[:600], settings)
    assert len(record.train_loss) == len(record.discriminator_loss) == 6
    assert len(record.validation_loss) == 6
    assert record.best_epoch == record.validation_loss.index(min(record.validation_loss))
    assert min(record.validation_loss) < 0.9 * images.var(0).mean()
    # Images of the generator have the data's mean and spread, which a collapse would not have.
    generated = trained.decode(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)))
    assert (generated.mean(0) - images.mean(0)).abs().mean() < 0.2
    assert generated.std(0).mean() > 0.4 * images.std(0).mean()
    assert not trained.training
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_bigan_training_is_reproducible(images):
    images = images.double()
    one, two = seeded(bigan).double(), seeded(bigan).double()
    state = torch.random.get_rng_state()
    record = fit_model(one, images, options(seed=3))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(5)
    assert_same_training(fit_model(two, images, options(seed=3)), record, two, one)


def dcgan(**changes):
    arguments = {"latent_dim": 8, "channels": (8, 16), "image_shape": (1, 8, 8)}
    return DCGAN(**{**arguments, **changes})


def test_a_dcgan_learns_the_mean_and_spread_of_digits():
    images = digits("train")[0][:640]
    trained = seeded(dcgan)
    settings = options(epochs=4, batch_size=16, learning_rate=5e-3, validation_fraction=0.0)
    record = fit_model(trained, images, settings)
    assert len(record.train_loss) == len(record.discriminator_loss) == 4
    assert record.validation_loss == ()
    assert record.best_epoch == 3
    generated = trained.sample(500, torch.Generator().manual_seed(0))
    # an untrained one returns grey images, all alike
    mean = images.mean(0)
    assert (generated.mean(0) - mean).abs().mean() < 0.75 * mean.abs().mean()
    assert generated.std(0).mean() > 0.25 * images.std(0).mean()
    assert not trained.training
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_a_trained_dcgan_is_stored_with_samples_in_place_of_reconstructions(tmp_path, capsys):
    few = DataOptions("digits", per_class=20)
    settings = options(validation_fraction=0.0)
    Train(model=lambda: dcgan(prior="sphere"), data=few, training=settings, out=tmp_path).run()
    assert "Samples beside images of the test split" in capsys.readouterr().out
    found = load_run(tmp_path)
    assert {"losses", "samples"} == {path.stem for path in (tmp_path / "figures").iterdir()}
    assert found.arrays["samples"].shape == (20, 1, 8, 8)
    assert "test_error" not in found.summary
    quality = found.summary["quality"]
    assert quality.keys() == {"samples", "images"}
    names = {"realism", "precision", "recall", "confidence", "sure"}
    assert quality["images"].keys() == quality["samples"].keys() == names
    # digits are nearer to digits than what a generator draws that has hardly been trained
    for name in ("realism", "precision"):
        assert quality["images"][name] > quality["samples"][name]
    assert isinstance(load_model(tmp_path / "model.safetensors"), DCGAN)
    assert main(["report", str(tmp_path)]) == 0
    assert "realism: samples 0." in " ".join(capsys.readouterr().out.split())


def test_the_test_split_is_taken_whole():
    # of which there are fewer of each class
    wanted = Train(model=model, data=DataOptions("digits", per_class=100))
    assert len(wanted.dataset.chosen[0]) == 1000
    assert len(wanted.test_dataset.chosen[0]) == len(digits("test")[0])


def test_active_dimensions_are_those_of_some_divergence(images):
    trained = model()
    mean, std = trained.encode(images)
    found = divergences(trained, images)
    torch.testing.assert_close(found.sum(), trained.elbo_terms(images)[1].double().mean())
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(found.float(), expected)


def nice(**changes):
    pytest.importorskip("zuko", reason="needs the extra `flows`")
    arguments = {"hidden": (32,), "image_shape": (1, 8, 8), "levels": 17}
    return NICE(**{**arguments, **changes})


def glow(**changes):
    arguments = {"steps": 2, "hidden": 8, "image_shape": (1, 8, 8), "levels": 17}
    return Glow(**{**arguments, **changes})


def iaf(**changes):
    pytest.importorskip("zuko", reason="needs the extra `flows`")
    arguments = {"latent_dim": 2, "channels": (4, 8), "hidden": 32, "image_shape": (1, 8, 8)}
    return IAFVAE(**{**arguments, "steps": 2, "flow_hidden": (8,), **changes})


@pytest.mark.parametrize("build", [nice, glow])
def test_a_flow_learns(images, build):
    trained = seeded(build)
    record = fit_model(trained, images, options(epochs=12, learning_rate=3e-3))
    assert bool(trained.initialised)
    assert record.train_loss[-1] < record.train_loss[0] - 0.1
    assert record.validation_loss[record.best_epoch] == min(record.validation_loss)
    assert not trained.training


def test_a_vae_with_a_flow_as_posterior_learns(images):
    trained = seeded(iaf)
    record = fit_model(trained, images, options(epochs=8, learning_rate=1e-2))
    assert record.train_loss[-1] < record.train_loss[0] - 5
    # the flow is used
    assert all(step.hyper[-1].weight.abs().max() > 0 for step in trained.flow)


@pytest.mark.parametrize("build", [nice, glow, iaf])
def test_training_of_flows_is_reproducible(images, build):
    images = images.double()
    one, two = seeded(build).double(), seeded(build).double()
    state = torch.random.get_rng_state()
    record = fit_model(one, images, options(seed=3))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(5)
    assert_same_training(fit_model(two, images, options(seed=3)), record, two, one)


def test_options_of_the_other_kind_are_refused(images):
    with pytest.raises(ValueError, match="`beta` should be 1 for a BiGAN"):
        fit_model(seeded(bigan), images, options(beta=2.0))
    with pytest.raises(ValueError, match="`beta` should be 1 for a DCGAN"):
        fit_model(dcgan(), images, options(beta=2.0))
    with pytest.raises(ValueError, match="`reconstruction` should be 0 for a DCGAN, which has no"):
        fit_model(dcgan(), images, options(reconstruction=2.0))
    with pytest.raises(ValueError, match="`validation_fraction` should be 0 for a DCGAN, which"):
        fit_model(dcgan(), images, options())
    with pytest.raises(ValueError, match="`reconstruction` should be 0 for a variational autoenc"):
        fit_model(model(), images, options(reconstruction=1.0))
    with pytest.raises(ValueError, match="`beta` should be 1 for a Glow, whose loss has no diverg"):
        fit_model(seeded(glow), images, options(beta=2.0))
    with pytest.raises(ValueError, match="`reconstruction` should be 0 for a normalising flow"):
        fit_model(seeded(glow), images, options(reconstruction=1.0))


# Interrupted training


class InterruptionError(Exception):
    pass


def interrupt_after(monkeypatch, epochs, error=InterruptionError):
    """Let the training fail in the middle of the epoch after so many whole ones."""
    original = Batches.__iter__
    begun = []

    def failing(self):
        if self.order is not None:
            begun.append(1)
        for index, batch in enumerate(original(self)):
            if self.order is not None and len(begun) > epochs and index == 1:
                raise error
            yield batch

    monkeypatch.setattr(Batches, "__iter__", failing)


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("kind", ["mlp", "spectral_norm", "bigan", "glow"])
def test_a_resumed_training_ends_as_if_it_had_not_been_interrupted(
    images, tmp_path, monkeypatch, kind, patience
):
    images = images.double()
    build = {
        "mlp": lambda: model().double(),
        "spectral_norm": lambda: seeded(conv, spectral_norm=True).double(),
        "bigan": lambda: seeded(bigan).double(),
        "glow": lambda: seeded(glow).double(),
    }[kind]
    # the game of a BiGAN's networks makes a thousandfold of rounding each epoch at 1e-2
    rate = 1e-3 if kind == "bigan" else 1e-2
    settings = options(epochs=5, learning_rate=rate, patience=patience)
    whole, resumed = build(), build()
    record = fit_model(whole, images, settings, state=tmp_path / "whole" / "last.ckpt")
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=2)
        with pytest.raises(InterruptionError):
            fit_model(build(), images, settings, state=tmp_path / "part" / "last.ckpt")
    assert [file.name for file in (tmp_path / "part").iterdir()] == ["last.ckpt"]
    found = fit_model(resumed, images, settings, state=tmp_path / "part" / "last.ckpt")
    assert_same_training(found, record, resumed, whole)


def test_the_state_of_another_training_is_refused(images, tmp_path):
    fit_model(model(), images, options(), state=tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"`beta` should be 1.0, as in the training to resume"):
        fit_model(model(), images, options(beta=2.0), state=tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"`model` should be 'MLPVAE', as in the training"):
        fit_model(seeded(conv), images, options(), state=tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"`n_images` should be 120, as in the training"):
        fit_model(model(), images[:100], options(), state=tmp_path / "last.ckpt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 nor this"])
def test_an_unreadable_state_is_refused(images, tmp_path, content):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match="`state` should be the readable state of a training"):
        fit_model(model(), images, options(), state=tmp_path / "last.ckpt")


def test_a_state_is_not_unpickled(images, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("A pickle was run.",))

    torch.save({"state_dict": Bomb()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="`state` should be the readable state of a training"):
        fit_model(model(), images, options(), state=tmp_path / "last.ckpt")


# The whole of a training, into a folder


def run(folder, build=model, precision=None, **changes):
    arguments = {
        "model": build,
        "data": DataOptions("digits", per_class=12),
        "out": folder,
        "training": options(),
        "precision": precision,
    }
    return Train(**{**arguments, **changes}).run()


def files(folder):
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found)


BEGUN = ["config.yaml", "environment.json"]
WRITTEN = [
    "arrays.safetensors",
    *BEGUN,
    "figures/losses.png",
    "figures/reconstructions.png",
    "geolatent-files.json",
    "model.safetensors",
    "summary.json",
]


def test_train_writes_model_figures_and_summary(tmp_path):
    summary = run(tmp_path / "run", precision=PrecisionOptions(n_centers=5, iterations=3)).summary
    assert files(tmp_path / "run") == sorted([*WRITTEN, "figures/latent.png"])
    loaded = load_model(tmp_path / "run" / "model.safetensors")
    assert isinstance(loaded, MLPVAE)
    assert len(loaded.precision.centers) == 5
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert stored == summary
    assert summary["command"] == "train"
    assert summary["class_path"] == "geolatent.models.vae.MLPVAE"
    assert summary["init_args"] == loaded.arguments
    assert len(summary["train_loss"]) == len(summary["validation_loss"]) == 2
    assert (summary["n_train"], summary["n_test"]) == (120, 450)
    images, _ = load(DataOptions("digits", split="test"))
    expected = (loaded(images)[0] - images).square().mean().item()
    assert summary["test_error"] == pytest.approx(expected, rel=1e-5)
    for name in ("losses", "reconstructions", "latent"):
        pixels = read_png(tmp_path / "run" / "figures" / f"{name}.png")
        assert min(pixels.shape[:2]) > 150
        assert pixels.std() > 0.02


def read_png(path):
    from matplotlib.image import imread

    return imread(path)


def test_figures_are_drawn_again_from_what_is_stored(tmp_path, capsys):
    run(tmp_path, precision=PrecisionOptions(n_centers=5, iterations=3))
    before = {name: read_png(tmp_path / name) for name in files(tmp_path) if "figures/" in name}
    assert len(before) == 3

    def draw_again():
        for name in before:
            (tmp_path / name).unlink()
        assert main(["plot", str(tmp_path)]) == 0
        for name, pixels in before.items():
            assert (read_png(tmp_path / name) == pixels).all()

    draw_again()
    # trainings of before had another name for their arrays, and the first of them no config
    (tmp_path / "arrays.safetensors").rename(tmp_path / "training.safetensors")
    described = json.loads((tmp_path / "environment.json").read_text())
    del described["outputs"]  # nor did they have checksums of it
    (tmp_path / "environment.json").write_text(json.dumps(described))
    draw_again()
    for name in BEGUN:
        (tmp_path / name).unlink()
    draw_again()
    assert main(["plot", str(tmp_path / "figures")]) == 1
    assert "a folder that a geolatent command wrote" in capsys.readouterr().err


def test_train_is_reproducible(tmp_path):
    for name in ("one", "two"):
        run(tmp_path / name, lambda: conv(latent_dim=3), PrecisionOptions(iterations=3))
        torch.rand(3)
    for name in ("model.safetensors", "arrays.safetensors"):
        assert_same_tensors(*(load_file(tmp_path / folder / name) for folder in ("two", "one")))
    # Three latent dimensions: no picture of the plane, and twelve centres.
    assert files(tmp_path / "one") == WRITTEN
    assert len(load_model(tmp_path / "one" / "model.safetensors").precision.centers) == 12


@pytest.mark.parametrize("latent_dim", [2, 4])
def test_train_a_bigan(tmp_path, latent_dim):
    summary = run(tmp_path, lambda: bigan(latent_dim=latent_dim)).summary
    assert isinstance(load_model(tmp_path / "model.safetensors"), BiGAN)
    assert len(summary["discriminator_loss"]) == 2
    assert ("figures/latent.png" in files(tmp_path)) == (latent_dim == 2)


@pytest.mark.parametrize("build", [nice, glow])
def test_train_a_flow(tmp_path, build, capsys):
    summary = run(tmp_path, build).summary
    assert [name for name in files(tmp_path) if "figures" in name] == [
        "figures/losses.png",
        "figures/samples.png",
    ]
    loaded = load_model(tmp_path / "model.safetensors")
    assert bool(loaded.initialised)
    assert summary["test_error"] < 1e-8
    test_images, _ = load(DataOptions("digits", split="test"))
    bits = held_out_bits(loaded, test_images)
    assert summary["test_bits"] == pytest.approx(float(bits.mean()), rel=1e-5)
    assert summary["test_bits_error"] == pytest.approx(float(bits.std()) / 450**0.5, rel=1e-4)
    assert main(["plot", str(tmp_path)]) == 0
    # other commands take the model: its codes are flat
    words = ["interpolate", "--model.checkpoint", tmp_path / "model.safetensors", "--n_pairs=2"]
    assert main([str(word) for word in (*words, "--out", tmp_path / "lines")]) == 0
    with pytest.raises(ValueError, match="`precision` should be None for a"):
        run(tmp_path / "other", build, PrecisionOptions())


def test_train_a_vae_with_a_flow_as_posterior(tmp_path):
    run(tmp_path, iaf, PrecisionOptions(n_centers=5, iterations=3))
    assert isinstance(load_model(tmp_path / "model.safetensors"), IAFVAE)
    assert "figures/latent.png" in files(tmp_path)


def test_train_on_a_file_without_labels(tmp_path):
    images, _ = digits("train")
    np.save(tmp_path / "own.npy", images[:80].numpy())
    data = DataOptions("file", path=str(tmp_path / "own.npy"), low=-1.0, high=1.0)
    summary = run(tmp_path / "run", data=data).summary
    assert (summary["n_train"], summary["n_test"]) == (72, 8)
    assert files(tmp_path / "run") == sorted([*WRITTEN, "figures/latent.png"])


def test_an_interrupted_train_is_resumed(tmp_path, monkeypatch):
    run(tmp_path / "whole", training=options(epochs=3))
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=1)
        with pytest.raises(InterruptionError):
            run(tmp_path / "part", training=options(epochs=3))
    assert files(tmp_path / "part") == ["checkpoints/last.ckpt", *BEGUN]
    with pytest.raises(FileExistsError, match=r"training\.epochs: 3 there, 4 here"):
        run(tmp_path / "part", training=options(epochs=4))
    run(tmp_path / "part", training=options(epochs=3))
    part, whole = (load_file(tmp_path / n / "model.safetensors") for n in ("part", "whole"))
    assert_same_tensors(part, whole)
    assert files(tmp_path / "part") == files(tmp_path / "whole")
    with pytest.raises(FileExistsError, match=r"summary.json is in it\), or another folder"):
        run(tmp_path / "part", training=options(epochs=3))


def test_an_interrupt_is_told_and_the_next_one_too(tmp_path, monkeypatch, capsys):
    run(tmp_path / "one")
    words = ["train", "--config", str(tmp_path / "one" / "config.yaml")]
    words += ["--out", str(tmp_path / "two"), "--training.epochs=3"]
    before = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        with monkeypatch.context() as patch:
            interrupt_after(patch, epochs=1, error=KeyboardInterrupt)
            assert main(words) == 130
        assert "same command again to go on with the training" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is before
    assert main(words) == 0


def test_a_folder_of_before_is_gone_on_with(tmp_path, monkeypatch):
    # its config has other names, and lacks options that came later
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=1)
        with pytest.raises(InterruptionError):
            run(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    old = {name: config[name] for name in ("model", "data", "training", "precision")}
    text = "# geolatent train --config config.yaml\n" + yaml.safe_dump({**old, "out_dir": "runs/a"})
    (tmp_path / "config.yaml").write_text(text)
    state = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(FileExistsError, match=r"model\.init_args\.latent_dim: 2 there, 3 here"):
        run(tmp_path, lambda: MLPVAE(latent_dim=3, hidden=(16,)))
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == state
    assert (tmp_path / "config.yaml").read_text() == text
    assert run(tmp_path).finished


def test_what_is_not_of_a_training_stays(tmp_path):
    places = {
        "model.safetensors": "`out` should be a folder without one called `model.safetensors`",
        "model.json": "`out` should be a folder without one called `model.json`",
        "checkpoints/last.ckpt": "`state` should be the readable state of a training",
    }
    for number, (place, told) in enumerate(places.items()):
        file = tmp_path / str(number) / place
        file.parent.mkdir(parents=True)
        file.write_bytes(b"mine")
        with pytest.raises((ValueError, FileExistsError), match=told):
            run(tmp_path / str(number))
        assert files(tmp_path / str(number)) == [place]
        assert file.read_bytes() == b"mine"


def test_leftovers_of_a_killed_train_are_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=1)
        with pytest.raises(InterruptionError):
            run(tmp_path)
    for left in (".model.safetensors.abc.tmp", "checkpoints/.last.ckpt.abc.tmp"):
        (tmp_path / left).write_bytes(b"a part of it")
    run(tmp_path)
    assert files(tmp_path) == sorted([*WRITTEN, "figures/latent.png"])


def test_the_test_images_may_be_others(tmp_path):
    chosen = DataOptions("digits", split="train", per_class=3)
    summary = run(tmp_path / "one", test_data=chosen).summary
    assert summary["n_test"] == 30
    images, _ = load(chosen)
    loaded = load_model(tmp_path / "one" / "model.safetensors")
    expected = (loaded(images)[0] - images).square().mean().item()
    assert summary["test_error"] == pytest.approx(expected, rel=1e-5)
    config = ["--config", str(tmp_path / "one" / "config.yaml")]
    assert main(["train", *config, "--out", str(tmp_path / "two")]) == 0
    assert load_run(tmp_path / "two").summary["n_test"] == 30


def test_a_train_that_fails_at_the_end_can_be_finished(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "geolatent.lab.train.save_model",
            lambda *_: (_ for _ in ()).throw(OSError("disk full")),
        )
        with pytest.raises(OSError, match="disk full"):
            run(tmp_path)
    assert files(tmp_path) == ["checkpoints/last.ckpt", *BEGUN]
    run(tmp_path)
    assert files(tmp_path) == sorted([*WRITTEN, "figures/latent.png"])


def test_train_says_what_was_asked_and_where_it_ran(tmp_path, capsys):
    np.save(tmp_path / "own.npy", digits("train")[0][:60].numpy())
    data = DataOptions("file", path=str(tmp_path / "own.npy"), low=-1.0, high=1.0)
    precision = PrecisionOptions(n_centers=3, iterations=2)
    run(tmp_path / "one", data=data, precision=precision)
    read = load_run(tmp_path / "one")
    assert read.finished
    assert read.command == "train"
    assert read.config["model"]["class_path"] == "geolatent.models.vae.MLPVAE"
    assert read.config["model"]["init_args"]["n_centers"] == 0
    assert read.config["training"]["epochs"] == 2
    assert read.environment["seed"] == 0
    assert {"lightning", "torch"} <= read.environment["packages"].keys()
    assert {"git_commit", "geolatent", "device", "started"} <= read.environment.keys()
    content = (tmp_path / "own.npy").read_bytes()
    assert read.environment["inputs"]["data.path"] == hashlib.sha256(content).hexdigest()
    # the same again
    config = ["--config", str(tmp_path / "one" / "config.yaml")]
    assert main(["train", *config, "--out", str(tmp_path / "two")]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        # of a few steps in float32, each of which enlarges rounding
        torch.testing.assert_close(
            two[name], weights, rtol=1e-3, atol=1e-3 * float(weights.abs().max())
        )
    assert main(["plot", str(tmp_path / "one")]) == 0
    assert "latent.png" in capsys.readouterr().out


def test_an_interrupted_train_is_seen_as_such(tmp_path, monkeypatch, capsys):
    for epochs in (0, 1):
        folder = tmp_path / str(epochs)
        with monkeypatch.context() as patch:
            interrupt_after(patch, epochs=epochs)
            with pytest.raises(InterruptionError):
                run(folder)
        assert not load_run(folder).finished
        assert main(["plot", str(folder)]) == 1
        assert "interrupted" in capsys.readouterr().err
        assert main(["train", "--config", str(folder / "config.yaml"), "--dry-run"]) == 0
        goes_on = "an unfinished run, which it would go on with" in capsys.readouterr().out
        assert goes_on == (epochs > 0)
    run(tmp_path / "whole")
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "0: not finished" in printed
    assert "1: not finished" in printed
    # with nothing to go on from it begins again; of other options it does not go on
    run(tmp_path / "0", training=options(seed=3))
    assert load_run(tmp_path / "0").config["training"]["seed"] == 3
    with pytest.raises(FileExistsError, match=r"training\.seed: 0 there, 3 here"):
        run(tmp_path / "1", training=options(seed=3))


def test_train_leaves_other_folders_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(FileExistsError, match="that is not of a run"):
        run(tmp_path)
    with RunFolder.create(tmp_path / "other", "improvement", {}, seed=0, device="cpu") as folder:
        with pytest.raises(BlockingIOError, match="another process"):
            run(tmp_path / "other")
        folder.__exit__()
        with pytest.raises(FileExistsError, match="command: improvement there, train here"):
            run(tmp_path / "other")
    assert (tmp_path / "config.yaml").read_text() == "mine"


@pytest.mark.parametrize("room", [100, 3000])
def test_a_full_disk_is_told_and_the_training_goes_on(tmp_path, capsys, room):
    # no room for the config, or for the state of the training
    resource = pytest.importorskip("resource")
    words = ["train", "--model=MLPVAE", "--model.hidden=[4]", "--data.name=digits"]
    words += ["--data.per_class=12", "--training.epochs=1", "--training.accelerator=cpu"]
    words += ["--training.progress=false", "--out", str(tmp_path / "run")]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        status = main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = capsys.readouterr().err
    assert status == 1
    assert told.count("\n") == 1
    assert f"{tmp_path / 'run'}" in told
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]
    assert main(words) == 0


def test_a_full_disk_leaves_the_last_state(images, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    state, settings = tmp_path / "last.ckpt", options(epochs=3)
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=1)
        with pytest.raises(InterruptionError):
            fit_model(model(), images, settings, state=state)
    content = state.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, before[1]))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt"):
            fit_model(model(), images, settings, state=state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert state.read_bytes() == content
    assert len(fit_model(model(), images, settings, state=state).train_loss) == 3


@pytest.mark.parametrize(
    ("content", "told"), [("{}", "KeyError('train_loss')"), ("[", "summary.json is no readable")]
)
def test_a_damaged_training_is_told(tmp_path, capsys, content, told):
    run(tmp_path)
    (tmp_path / "summary.json").write_text(content)
    assert main(["plot", str(tmp_path)]) == 1
    assert told in capsys.readouterr().err


# Progress


def test_progress_counts_epochs_that_are_done(images, tmp_path, monkeypatch):
    told = []

    @contextmanager
    def spy(console, what, total, found):
        told.append((what, total, found))
        yield told.append

    monkeypatch.setattr("geolatent.lab.training.work_progress", spy)
    settings = options(epochs=4, progress=True, batch_size=27)  # four batches of 108 images
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs=2)
        with pytest.raises(InterruptionError):
            fit_model(model(), images, settings, state=tmp_path / "last.ckpt")
    epoch = [0.0, 0.25, 0.5, 0.75, 1.0]
    expected = [*epoch, *(1 + done for done in epoch)]
    assert told == [("epochs", 4, 0), *expected, 2.0]
    told.clear()
    fit_model(model(), images, settings, state=tmp_path / "last.ckpt")
    assert told == [("epochs", 4, 2), *(2 + done for done in epoch), *(3 + done for done in epoch)]


def test_progress_is_printed_as_whole_epochs(images, capsys):
    fit_model(model(), images, options(epochs=2, progress=True))
    assert "2 of 2 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": lambda: torch.nn.Linear(2, 2)}, TypeError, "`model` should be a callable that"),
        ({"model": MLPVAE()}, TypeError, "`model` should be a callable that returns a variational"),
        ({"model": lambda: MLPVAE(n_centers=3)}, ValueError, "`n_centers` 0"),
        ({"model": ConvVAE}, ValueError, r"`data` should be images of the model's shape, \(1, 28"),
        (
            {"model": bigan, "precision": PrecisionOptions()},
            ValueError,
            "`precision` should be None for a BiGAN",
        ),
        ({"data": DataOptions("MNIST", root="none")}, FileNotFoundError, "`root` should be"),
    ],
)
def test_train_refuses_what_does_not_fit(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


# The configs


CONFIGS = {
    "mnist_2d": 2,
    "mnist_16d": 16,
    "mnist_bigan": 16,
    "mnist_dcgan": 100,
    "mnist_beta_vae": 10,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_read_and_train(tmp_path, name):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Train)
    parser.add_argument("--config", action="config")
    path = str(ROOT / "configs" / f"train_{name}.yaml")
    parsed = parser.instantiate(parser.parse_args(["--config", path]))
    built = parsed.model()
    assert built.image_shape == (1, 28, 28)
    assert built.latent_dim == CONFIGS[name]
    assert parsed.data.name == "MNIST"
    assert isinstance(parsed.training, TrainingOptions)
    assert (parsed.precision is None) == (name not in ("mnist_2d", "mnist_16d"))
    arguments = ["--config", path, "--data.name", "digits", "--data.per_class", "9"]
    for override in ("epochs=1", "progress=false", "accelerator=cpu"):
        arguments.append(f"--training.{override}")
    overrides = ["image_shape=[1,8,8]", "channels=[2,3]"]
    overrides += ["hidden=8"] if name != "mnist_dcgan" else []
    for override in overrides:
        arguments.append(f"--model.{override}")
    parsed = parser.instantiate(parser.parse_args([*arguments, f"--out={tmp_path}"]))
    del parsed.config
    Train(**vars(parsed)).run()
    assert (tmp_path / "summary.json").is_file()
    for wrong, named in (
        ("--training.epoch=1", r"training\.epoch"),
        ("--model.latent=2", "'latent' is not accepted"),
        ("--data.name=mnist", r"data\.name"),
    ):
        with pytest.raises(ArgumentError, match=named):
            parser.parse_args([*arguments, wrong])


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("mnist_nice", ("hidden=[8]", "levels=17")),
        ("mnist_glow", ("hidden=4", "steps=1", "levels=17")),
        ("mnist_iaf", ("channels=[2,3]", "hidden=8", "flow_hidden=[4]")),
    ],
)
def test_configs_of_flows_train(tmp_path, name, overrides):
    pytest.importorskip("zuko", reason="needs the extra `flows`")
    words = ["train", "--config", str(ROOT / "configs" / f"train_{name}.yaml")]
    words += ["--data.name=digits", "--data.per_class=9", "--out", str(tmp_path)]
    words += [f"--training.{word}" for word in ("epochs=1", "progress=false", "accelerator=cpu")]
    words += [f"--model.{word}" for word in ("image_shape=[1,8,8]", *overrides)]
    assert main(words) == 0
    assert load_model(tmp_path / "model.safetensors").image_shape == (1, 8, 8)


# The same on MNIST


@pytest.mark.parametrize("latent_dim", [2, 16])
def test_a_conv_vae_learns_mnist(mnist_root, latent_dim):
    images, _ = load(DataOptions("MNIST", root=str(mnist_root), per_class=40))
    trained = seeded(ConvVAE, latent_dim=latent_dim, channels=(4, 8), hidden=64)
    settings = options(epochs=8, batch_size=8, learning_rate=5e-3, beta=0.1)
    fit_model(trained, images, settings)
    trained.fit_precision(images, iterations=5)
    assert len(trained.precision.centers) == 4 * latent_dim
    error = (trained.decode_mean(trained.encode(images)[0]) - images).square().mean()
    variance = (images - images.mean(0)).square().mean()
    assert error < 0.85 * variance


@pytest.mark.parametrize("build", [nice, glow])
def test_a_flow_learns_mnist(mnist_root, build):
    images, _ = load(DataOptions("MNIST", root=str(mnist_root), per_class=40))
    trained = seeded(build, image_shape=(1, 28, 28), levels=256)
    trained.initialise(images, torch.Generator().manual_seed(0))
    before = float(held_out_bits(trained, images).mean())
    record = fit_model(trained, images, options(epochs=3, batch_size=16))
    # NICE starts from independent normal pixels; 8 bits are those of an even choice of the 256
    assert before < (6.5 if build is nice else 8.5)
    assert float(held_out_bits(trained, images).mean()) < before - 0.05
    assert record.train_loss[2] < record.train_loss[1] < record.train_loss[0]
    torch.testing.assert_close(trained(images), images, rtol=0, atol=1e-4)
