import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="training needs the extra `train`")

from geolatent.data import digits
from geolatent.models import MLPVAE, load_model
from geolatent.training import (
    Batches,
    PrecisionOptions,
    TrainingOptions,
    train_digits_vae,
    train_vae,
)

ROOT = Path(__file__).parents[1]


def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLPVAE(hidden=(16,))


def options(**changes):
    defaults = {"epochs": 2, "batch_size": 32, "accelerator": "cpu", "progress": False}
    return TrainingOptions(**{**defaults, **changes})


@pytest.fixture(scope="module")
def images():
    return digits("train")[0][:120]


def test_batches_hold_every_row_once_in_a_new_order():
    rows = torch.arange(10)[:, None]
    batches = Batches(rows, batch_size=4, seed=0)
    first, second = (torch.cat(list(batches)).flatten() for _ in range(2))
    assert len(batches) == len(list(Batches(rows, 4))) == 3
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(list(Batches(rows, batch_size=4))), rows)


def test_training_lowers_the_loss(images):
    record = train_vae(model(), images, options(epochs=10, learning_rate=1e-2))
    assert len(record.train_loss) == len(record.validation_loss) == 10
    assert record.train_loss[-1] < record.train_loss[0] - 5
    assert record.validation_loss[record.best_epoch] == min(record.validation_loss)


def test_training_is_reproducible_and_leaves_random_numbers_alone(images):
    one, two, other = model(), model(), model()
    state = torch.random.get_rng_state()
    record = train_vae(one, images, options(seed=3))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(5)
    assert train_vae(two, images, options(seed=3)) == record
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert train_vae(other, images, options(seed=4)) != record


def test_without_validation_the_last_epoch_is_kept(images):
    trained = model()
    record = train_vae(trained, images, options(epochs=3, validation_fraction=0.0))
    assert record.validation_loss == ()
    assert record.best_epoch == 2
    assert not trained.training


def test_early_stopping_restores_and_saves_the_best_epoch(images, tmp_path):
    # So large a step that the loss soon rises.
    trained = model()
    path = tmp_path / "best.safetensors"
    settings = options(epochs=60, learning_rate=0.1, patience=2)
    record = train_vae(trained, images, settings, checkpoint=path)
    assert len(record.train_loss) < 60
    assert record.best_epoch == len(record.validation_loss) - 3
    saved = load_model(path)
    for ours, theirs in zip(trained.parameters(), saved.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_beta_weighs_the_divergence(images):
    divergence = []
    for beta in (0.1, 30.0):
        trained = model()
        train_vae(trained, images, options(epochs=10, learning_rate=1e-2, beta=beta))
        divergence.append(trained.elbo_terms(images)[1].mean())
    assert divergence[1] < divergence[0]


def test_the_digits_model_is_trained_fitted_and_saved(tmp_path):
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path in paths:
        train_digits_vae(
            str(path),
            [16],
            options(epochs=1, validation_fraction=0.0),
            PrecisionOptions(n_centers=5, iterations=3),
        )
    assert paths[0].read_bytes() == paths[1].read_bytes()
    loaded = load_model(paths[0])
    assert isinstance(loaded, MLPVAE)
    assert loaded.arguments == {
        "latent_dim": 2,
        "hidden": [16],
        "image_shape": [1, 8, 8],
        "n_centers": 5,
    }


def test_the_packaged_description_agrees_with_the_config():
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / "configs" / "train_digits_vae.yaml").read_text())
    packaged = load_model(ROOT / config["output"])
    assert packaged.arguments["hidden"] == config["hidden"]
    assert packaged.arguments["n_centers"] == config["precision"]["n_centers"]
    TrainingOptions(**config["training"])
    PrecisionOptions(**config["precision"])


def test_the_script_refuses_unknown_keys(tmp_path):
    # An abbreviation is an unknown key too: it must not start a run.
    output = tmp_path / "model.safetensors"
    command = [sys.executable, "scripts/train_digits_vae.py", "--training.epoch", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--output", str(output)],
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
        train_vae(model(), images[..., :4], options())
    with pytest.raises(ValueError, match="`validation_fraction` should be a share of 2 images"):
        train_vae(model(), images[:2], options())
