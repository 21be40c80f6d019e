import json
import pickle
import re
import stat
import sys
import warnings

import pytest
import torch
from derivatives import jacobian
from rounding import assert_same_to_rounding
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn

from geolatent.lab.data import digits
from geolatent.metrics.pullback import GaussianPullbackMetric, PullbackMetric
from geolatent.models import (
    DCGAN,
    MLPVAE,
    VAE,
    BiGAN,
    ConvVAE,
    RBFPrecision,
    build_model,
    digits_vae,
    load_model,
    load_weights,
    save_model,
)
from geolatent.models.conv import ACTIVATIONS


@pytest.fixture(scope="module", autouse=True)
def _forward_mode_rules():
    # torch warns of its own use of torch.jit when it loads its forward-mode rules.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.func.jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))


@pytest.fixture(scope="module")
def vae():
    return digits_vae(torch.float64)


@pytest.fixture(scope="module")
def codes(vae):
    return vae.encode(digits("train")[0].double())[0]


def small_model(seed=0, n_centers=3):
    generator = torch.Generator().manual_seed(seed)
    model = MLPVAE(latent_dim=2, hidden=(8,), image_shape=(1, 4, 4), n_centers=n_centers)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def save_pair(model, path):
    """Save a model as earlier versions did: X.safetensors, and beside it X.json."""
    file = save_model(model, path)
    with safe_open(file, framework="pt") as opened:
        description = opened.metadata()["geolatent_model"]
    file.write_bytes(save(load_file(file)))
    file.with_suffix(".json").write_text(description)
    return file


def assert_same_state(found, expected):
    """Check that parameters and buffers are the same to the bit."""
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    for name, value in found.state_dict().items():
        assert torch.equal(value, state[name]), name


def small_network(seed=0, dtype=torch.float64, n_centers=5, output_dim=4, floor=0.01):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(60, 2, generator=generator, dtype=dtype)
    network = RBFPrecision.from_codes(codes, n_centers, output_dim, floor=floor)
    with torch.no_grad():
        network.log_weights.normal_(generator=generator)
    return network, codes


# The RBF precision network


def test_precision_equals_its_formula():
    network, codes = small_network()
    weights = network.log_weights.exp()
    expected = network.floor.expand(60, 4).clone()
    for n, z in enumerate(codes):
        for k, center in enumerate(network.centers):
            bump = torch.exp(-network.bandwidths[k] * (z - center).norm() ** 2)
            expected[n] += weights[k] * bump
    torch.testing.assert_close(network(codes), expected)
    torch.testing.assert_close(network.std(codes), expected**-0.5)


def test_bandwidths_follow_the_clusters():
    network, codes = small_network()
    members = torch.cdist(codes, network.centers).argmin(1)
    distances = (codes - network.centers[members]).norm(dim=1)
    for k, bandwidth in enumerate(network.bandwidths):
        spread = max(distances[members == k].mean(), 0.25 * distances.mean())
        torch.testing.assert_close(bandwidth, 0.5 / (1.5 * spread) ** 2)


def test_a_cluster_of_equal_codes_has_a_finite_bandwidth():
    codes = torch.cat([torch.randn(40, 2, dtype=torch.float64), torch.full((5, 2), 50.0).double()])
    network = RBFPrecision.from_codes(codes, n_centers=4, output_dim=1)
    assert torch.isfinite(network.bandwidths).all()
    assert network.bandwidths.max() < 100


def test_from_codes_is_repeatable_and_leaves_torch_random_numbers_alone():
    codes = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    state = torch.random.get_rng_state()
    one, two = (RBFPrecision.from_codes(codes, 8, 2, seed=5) for _ in range(2))
    # scikit-learn's k-means is of sums too
    assert_same_to_rounding(one.centers, two.centers)
    assert_same_to_rounding(one.bandwidths, two.bandwidths)
    assert torch.equal(state, torch.random.get_rng_state())


def test_fit_never_increases_the_loss_and_reaches_a_stationary_point():
    network, codes = small_network(seed=3)
    residuals = torch.rand(60, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    squared = residuals**2 + 0.01
    history = network.fit(codes, squared, iterations=3000)
    assert (history.diff() <= 1e-12).all()
    # The gradient of F with respect to log W, by autograd.
    beta = network(codes)
    loss = 0.5 * (beta * squared - beta.log()).sum() / len(codes)
    (gradient,) = torch.autograd.grad(loss, network.log_weights)
    assert gradient.abs().max() < 1e-3
    assert (network.log_weights.exp() > 0).all()


def test_fit_recovers_a_constant_noise():
    # Wide bumps can represent a constant precision 1/0.09 over a small cloud of codes.
    codes = 0.01 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    network = RBFPrecision(torch.zeros(1, 2).double(), torch.ones(1).double(), 2, 1e-4)
    network.fit(codes, torch.full((50, 2), 0.09).double())
    expected = torch.full((50, 2), 0.3).double()
    torch.testing.assert_close(network.std(codes), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_std_is_safe_far_from_the_data(dtype):
    network, _ = small_network(dtype=dtype)
    for distance in (0.0, 10.0, 1e3, 1e8, 1e18, 1e30):
        z = torch.tensor([[distance, -distance]], dtype=dtype, requires_grad=True)
        std = network.std(z)
        (gradient,) = torch.autograd.grad(std.sum(), z)
        _, tangent = torch.func.jvp(network.std, (z.detach(),), (torch.ones_like(z),))
        for value in (std, gradient, tangent):
            assert torch.isfinite(value).all()
        assert (std <= 10.0 * (1 + 1e-6)).all()
        if distance >= 1e3:
            torch.testing.assert_close(std, torch.full_like(std, 10.0))
            assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidths": torch.zeros(3)}, "`bandwidths` should be positive. Found `bandwidths = 0"),
        ({"bandwidths": torch.ones(2)}, r"`bandwidths` should be a tensor of shape \(3,\)"),
        ({"floor": 0.0}, "`floor` should be a finite number above 0"),
        ({"floor": torch.ones(2)}, r"`floor` should be a number or a tensor of shape \(4,\)"),
        ({"output_dim": 0}, "`output_dim` should be an integer of at least 1"),
        ({"centers": torch.zeros(3)}, "`centers` should be a tensor of shape"),
    ],
)
def test_network_refuses_bad_input(change, message):
    arguments = {
        "centers": torch.zeros(3, 2),
        "bandwidths": torch.ones(3),
        "output_dim": 4,
        "floor": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        RBFPrecision(**{**arguments, **change})


def test_from_codes_refuses_as_many_centres_as_codes():
    codes = torch.tensor([[0.0], [0.0], [1.0]])
    with pytest.raises(ValueError, match="`n_centers` should be below the number of distinct"):
        RBFPrecision.from_codes(codes, n_centers=2, output_dim=1)


def test_fit_refuses_bad_residuals():
    network, codes = small_network()
    with pytest.raises(ValueError, match="`squared_residuals` should be positive"):
        network.fit(codes, torch.zeros(60, 4).double())
    with pytest.raises(ValueError, match=r"`squared_residuals` should be a tensor of shape"):
        network.fit(codes, torch.ones(60, 3).double())


# The variational autoencoder


def test_shapes_and_ranges():
    model = MLPVAE(latent_dim=3, hidden=(16, 8), image_shape=(2, 5, 4))
    images = torch.randn(7, 2, 5, 4)
    mean, std = model.encode(images)
    assert mean.shape == std.shape == (7, 3)
    assert (std > 0).all()
    mean, std = model.decode(mean)
    assert mean.shape == std.shape == (7, 2, 5, 4)
    assert mean.abs().max() <= 1
    torch.testing.assert_close(std, torch.ones_like(std))
    assert_same_to_rounding(model.decode_mean(model.encode(images)[0]), mean)
    assert_same_to_rounding(model(images)[0], mean)


def test_elbo_terms_equal_torch_distributions():
    model = small_model(n_centers=0).double()
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    log_density, divergence = model.elbo_terms(images, torch.Generator().manual_seed(7))
    posterior = torch.distributions.Normal(*model.encode(images))
    prior = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    expected = torch.distributions.kl_divergence(posterior, prior).sum(1)
    torch.testing.assert_close(divergence, expected)
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    output = torch.distributions.Normal(*model.decode(posterior.mean + posterior.stddev * noise))
    torch.testing.assert_close(log_density, output.log_prob(images).flatten(1).sum(1))


def test_fit_precision_replaces_the_constant_std():
    model = small_model(n_centers=0)
    images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    before = model.decode_mean(torch.zeros(1, 2))
    assert model.arguments["n_centers"] == 0
    model.fit_precision(images, n_centers=5, floor=0.04)
    assert model.arguments["n_centers"] == 5
    assert_same_to_rounding(model.decode_mean(torch.zeros(1, 2)), before)
    std = model.decode(torch.full((1, 2), 1e4))[1]
    assert std.dtype == torch.float32
    torch.testing.assert_close(std, torch.full_like(std, 5.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"latent_dim": 0}, ValueError, "`latent_dim` should be an integer of at least 1. Found"),
        ({"latent_dim": 2.0}, TypeError, "`latent_dim` should be an integer"),
        ({"hidden": ()}, ValueError, "`hidden` should be a sequence of positive integers"),
        ({"hidden": (4, -1)}, ValueError, "`hidden` should be an integer of at least 1"),
        ({"image_shape": (1, 0, 8)}, ValueError, "`image_shape` should be"),
        ({"n_centers": -1}, ValueError, "`n_centers` should be an integer of at least 0"),
    ],
)
def test_model_refuses_bad_sizes(arguments, error, message):
    with pytest.raises(error, match=message):
        MLPVAE(**arguments)


def test_model_refuses_wrong_shapes(vae):
    with pytest.raises(ValueError, match=r"`images` should be a tensor of shape \(n, 1, 8, 8\)"):
        vae.encode(torch.zeros(3, 64).double())
    with pytest.raises(ValueError, match=r"`z` should be a tensor of shape \(n, 2\)"):
        vae.decode(torch.zeros(3, 4).double())


# The packaged model


def test_std_is_larger_far_from_the_data_than_at_every_training_code(vae, codes):
    near = vae.decode(codes)[1].flatten(1)
    angles = torch.linspace(0, 6.28, 33, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    for radius in (12.0, 30.0, 1e6):
        far = vae.decode(radius * circle)[1].flatten(1)
        assert (far.amin(0) > near.amax(0)).all()
        assert far.max() <= 10.0 * (1 + 1e-6)  # the floor was rounded to float32


def test_std_grows_along_every_ray_that_leaves_the_data(vae, codes):
    angles = torch.linspace(0, 6.28, 33, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    radii = torch.linspace(codes.norm(dim=1).max().item() + 1, 30, 40, dtype=torch.float64)
    rays = (radii[:, None, None] * circle).reshape(-1, 2)
    std = vae.decode(rays)[1].flatten(1).mean(1).reshape(40, 33)
    assert (std.diff(dim=0) >= -1e-9).all()


def test_packaged_weights_are_positive_and_finite(vae):
    weights = vae.precision.log_weights.exp()
    assert weights.shape == (64, 64)
    assert (weights > 0).all()
    assert all(torch.isfinite(value).all() for value in vae.state_dict().values())


def test_packaged_model_fits_the_digits(vae, codes):
    images, _ = digits("test")
    mean, std = vae(images.double())
    assert ((images - mean) ** 2).mean() < 0.12
    # Errors in units of the predicted standard deviation are near 1 on unseen images.
    assert 0.7 < ((images - mean) / std).pow(2).mean().sqrt() < 1.5
    # The codes fill the prior N(0, I).
    assert codes.mean(0).abs().max() < 0.2
    assert ((codes.std(0) - 1).abs() < 0.3).all()


def test_codes_of_a_digit_lie_together(vae, codes):
    from sklearn.neighbors import KNeighborsClassifier

    _, labels = digits("train")
    images, test_labels = digits("test")
    classifier = KNeighborsClassifier(10).fit(codes.numpy(), labels.numpy())
    test_codes = vae.encode(images.double())[0].numpy()
    assert classifier.score(test_codes, test_labels.numpy()) > 0.75


def test_packaged_model_is_frozen_and_in_evaluation_mode():
    vae = digits_vae()
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert {value.dtype for value in vae.state_dict().values()} == {torch.float32}
    assert vae.latent_dim == 2
    assert len(vae.precision.centers) == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jvp_under_vmap_equals_the_jacobian(dtype):
    vae = digits_vae(dtype)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    tangents = torch.eye(2, dtype=dtype)

    def columns(direction):
        return torch.func.jvp(vae.decode, (z,), (direction.expand_as(z),))[1]

    for index, product in enumerate(torch.func.vmap(columns)(tangents)):
        assert product.shape == (2, 4, 1, 8, 8)
        full = torch.stack([jacobian(lambda z, k=index: vae.decode(z)[k], code) for code in z])
        torch.testing.assert_close(product.flatten(2), full.movedim(-1, 0))


def test_second_derivatives_agree_with_finite_differences(vae):
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z.requires_grad_(True)
    assert torch.autograd.gradgradcheck(lambda c: vae.decode(c)[1].mean(), (z,), nondet_tol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoder_is_safe_far_from_the_data(dtype):
    vae = digits_vae(dtype)
    for distance in (1e2, 1e6, 1e18):
        z = torch.full((1, 2), distance, dtype=dtype, requires_grad=True)
        mean, std = vae.decode(z)
        (gradient,) = torch.autograd.grad(mean.sum() + std.sum(), z)
        for value in (mean, std, gradient):
            assert torch.isfinite(value).all()


# Checkpoints


@pytest.mark.parametrize("name", ["model", "model.safetensors", "beta0.5"])
@pytest.mark.parametrize("n_centers", [0, 3])
def test_save_and_load(tmp_path, name, n_centers):
    model = small_model(n_centers=n_centers).double()
    path = save_model(model, tmp_path / "new" / name)
    loaded = load_model(path)
    assert isinstance(loaded, MLPVAE)
    assert not loaded.training
    assert loaded.arguments == model.arguments
    assert_same_state(loaded, model)
    z = torch.randn(5, 2, dtype=torch.float64)
    for ours, theirs in zip(model.decode(z), loaded.decode(z), strict=True):
        assert_same_to_rounding(theirs, ours)
    (file,) = path.parent.iterdir()
    assert file.name == name.removesuffix(".safetensors") + ".safetensors"


def test_a_description_beside_the_weights_is_read(tmp_path):
    # as earlier versions wrote it; what the weights' own file says goes before it
    model = small_model()
    pair = save_pair(model, tmp_path / "old")
    assert_same_state(load_model(pair), model)
    save_model(model, pair)
    pair.with_suffix(".json").write_text("{}")
    assert_same_state(load_model(pair), model)


def test_what_is_loaded_lies_as_torch_lays_it(tmp_path):
    # products round by how their operands lie in memory, and a file's tensors lie anyhow
    model = small_model()
    torch.save(model.state_dict(), tmp_path / "own.pt")
    path = save_model(model, tmp_path / "model")
    loaded, own = load_model(path), small_model(seed=1)
    load_weights(own, tmp_path / "own.pt")
    for each in (loaded, own, digits_vae(), digits_vae(torch.float64)):
        assert [name for name, v in each.state_dict().items() if v.data_ptr() % 64] == []


def test_a_saved_file_has_the_usual_permissions(tmp_path):
    path = save_model(small_model(), tmp_path / "model")
    (tmp_path / "other").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_saving_twice_gives_equal_files(tmp_path):
    one = save_model(small_model(), tmp_path / "one")
    two = save_model(small_model(), tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()


def test_dtype_is_kept_or_converted(tmp_path):
    path = save_model(small_model().double(), tmp_path / "model")
    assert load_model(path).log_std.dtype == torch.float64
    assert load_model(path, dtype=torch.float32).precision.centers.dtype == torch.float32
    assert digits_vae(torch.float64).precision.centers.dtype == torch.float64


def test_loading_leaves_random_numbers_alone(tmp_path):
    path = save_model(small_model(), tmp_path / "model")
    state = torch.random.get_rng_state()
    load_model(path)
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_interrupted_save_leaves_the_old_files(tmp_path, monkeypatch):
    path = save_model(small_model(seed=0), tmp_path / "model")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("geolatent.models.checkpoint.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(small_model(seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pt_files_hold_tensors_alone(tmp_path):
    model = small_model()
    save_pair(model, tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert torch.equal(load_model(tmp_path / "model.pt").log_std, model.log_std)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="should be a state dict: names and tensors alone"):
        load_model(tmp_path / "model.pt")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("A pickle was run.",))


@pytest.mark.parametrize("ending", ["pt", "pth"])
def test_pickles_are_refused(tmp_path, ending):
    path = tmp_path / f"model.{ending}"
    save_pair(small_model(), tmp_path / "model")
    refused = "other objects are not unpickled"
    torch.save({"weights": Bomb()}, path)
    with pytest.raises(ValueError, match=refused):
        load_model(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=refused):
        load_model(path)
    torch.save(small_model(), path)
    with pytest.raises(ValueError, match=refused):
        load_model(path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none.safetensors"):
        load_model(tmp_path / "none.safetensors")
    path = save_pair(small_model(), tmp_path / "model")
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file .*model.json"):
        load_model(path)
    with pytest.raises(FileNotFoundError, match="`path` should be an existing file"):
        load_weights(small_model(), tmp_path / "none.pt")


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a checkpoint", b"\x00" * 100])
def test_corrupt_weights(tmp_path, ending, content):
    save_pair(small_model(), tmp_path / "model")
    path = tmp_path / f"model.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"Found `path = {path}`")):
        load_model(path)


def test_truncated_weights(tmp_path):
    path = save_model(small_model(), tmp_path / "model")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"should be a readable .safetensors, .pt or .pth file"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_path": "os.system"}, "`class_path` should be a model of geolatent.models"),
        ({"class_path": "geolatent.models.vae.math"}, "`class_path` should be a model"),
        ({"class_path": "geolatent.models.vae.Missing"}, "`class_path` should be a model"),
        ({"class_path": "geolatent.models.absent.MLPVAE"}, "`class_path` should be a model"),
        ({"class_path": "geolatent.models.save_model"}, "`class_path` should be a model"),
        ({"class_path": 3}, "`class_path` should be a model of geolatent.models"),
        ({"init_args": {"depth": 3}}, "`init_args` should be arguments of"),
        ({"init_args": {"latent_dim": 0}}, "`latent_dim` should be an integer of at least 1"),
        ({"init_args": [2]}, "`init_args` should be arguments of"),
        ({"format_version": 99}, "`format_version` should be 1"),
    ],
)
def test_wrong_descriptions(tmp_path, change, message):
    path = save_pair(small_model(), tmp_path / "model")
    text = json.dumps({**json.loads(path.with_suffix(".json").read_text()), **change})
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_model(path)
    path.write_bytes(save(load_file(path), {"geolatent_model": text}))
    with pytest.raises(ValueError, match=message):
        load_model(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"{}", b'{"format_version": 1}', b"\xe4"])
def test_corrupt_descriptions(tmp_path, text):
    path = save_pair(small_model(), tmp_path / "model")
    path.with_suffix(".json").write_bytes(text)
    with pytest.raises(ValueError, match="with the description that save_model writes"):
        load_model(path)


def test_weights_that_do_not_fit(tmp_path):
    path = save_model(small_model(n_centers=3), tmp_path / "model")
    with pytest.raises(ValueError, match=r"unexpected: precision\.bandwidths, precision\.centers"):
        load_weights(small_model(n_centers=0), path)
    bare = save_model(small_model(n_centers=0), tmp_path / "bare")
    with pytest.raises(ValueError, match=r"missing: precision\.bandwidths"):
        load_weights(small_model(n_centers=3), bare)
    with pytest.raises(ValueError, match=r"precision\.bandwidths has shape \(3,\), not \(4,\)"):
        load_weights(small_model(n_centers=4), path)


def test_only_the_packages_models_are_saved(tmp_path):
    with pytest.raises(TypeError, match=r"`model` should be a model of geolatent.models"):
        save_model(nn.Linear(2, 2), tmp_path / "model")

    class Mine(MLPVAE):
        pass

    with pytest.raises(TypeError, match=r"`model` should be a model of geolatent.models"):
        save_model(Mine(), tmp_path / "model")
    with pytest.raises(ValueError, match=r"should be a path that ends in .safetensors"):
        save_model(small_model(), tmp_path / "model.pt")
    assert issubclass(MLPVAE, VAE)


def test_users_own_module_loads_weights(tmp_path):
    model = nn.Linear(2, 3)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    other = nn.Linear(2, 3)
    load_weights(other, tmp_path / "own.pth")
    assert torch.equal(model.weight, other.weight)
    assert other.weight.requires_grad


# Convolutional models


SIZES = {"latent_dim": 3, "channels": (3, 4), "hidden": 8, "image_shape": (1, 8, 12)}


def conv_model(seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvVAE(**{**SIZES, **changes}).eval()


def bigan(seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BiGAN(**{**SIZES, **changes})
        # Running statistics of their own, as after some training.
        for _ in range(3):
            model(torch.randn(16, *model.image_shape))
    return model.eval()


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize(
    ("image_shape", "channels"),
    [((1, 28, 28), (4, 8)), ((3, 8, 12), (5, 2)), ((1, 6, 10), (4,)), ((2, 16, 8), (2, 3, 4))],
)
def test_conv_shapes_and_ranges(image_shape, channels, spectral_norm):
    model = conv_model(image_shape=image_shape, channels=channels, spectral_norm=spectral_norm)
    mean, std = model.encode(torch.randn(5, *image_shape))
    assert mean.shape == std.shape == (5, 3)
    assert (std > 0).all()
    mean, std = model.decode(100 * mean)
    assert mean.shape == std.shape == (5, *image_shape)
    assert mean.abs().max() <= 1


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_is_used(activation):
    model = conv_model(activation=activation)
    parts = [type(part) for part in model.modules()]
    assert parts.count(ACTIVATIONS[activation]) == 6
    assert torch.isfinite(model(torch.randn(2, 1, 8, 12))[0]).all()


def test_spectral_norm_bounds_every_layer_but_the_last():
    model = conv_model(spectral_norm=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.train()
    for _ in range(50):  # one step of the power iteration each
        model(torch.randn(2, 1, 8, 12))
    model.eval()
    for network in (model.encoder, model.decoder):
        *inner, last = [layer for layer in network if hasattr(layer, "weight")]
        assert not torch.nn.utils.parametrize.is_parametrized(last)
        for layer in inner:
            # The output channels of a transposed convolution are the second dimension.
            dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            matrix = layer.weight.movedim(dim, 0).flatten(1)
            largest = torch.linalg.matrix_norm(matrix, 2)
            torch.testing.assert_close(largest, torch.tensor(1.0), rtol=1e-3, atol=0)


def test_evaluation_does_not_change_the_state():
    for model in (conv_model(spectral_norm=True), bigan()):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model(torch.randn(4, 1, 8, 12))
        for name, value in model.state_dict().items():
            assert torch.equal(before[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["plain", "spectral_norm", "rbf", "bigan", "bigan_plain"])
def test_metric_tensor_of_conv_models_equals_the_jacobian(kind, dtype):
    if kind.startswith("bigan"):
        model = bigan(batch_norm=kind == "bigan").to(dtype)
    else:
        model = conv_model(spectral_norm=kind == "spectral_norm").to(dtype)
    if kind == "rbf":
        images = torch.rand(40, 1, 8, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
        with torch.no_grad():
            model.encoder[-1].weight.mul_(30)
        model.fit_precision(images, n_centers=5)
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    # Warnings are errors here, so that no fall-back of the metric goes unnoticed.
    if isinstance(model, BiGAN):
        found = PullbackMetric(model.decode).tensor(z)
    else:
        found = GaussianPullbackMetric(model.decode).tensor(z)
    for code, tensor in zip(z, found, strict=True):
        full = jacobian(model.decode, code)
        torch.testing.assert_close(tensor, full.mT @ full, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", [conv_model, bigan])
def test_conv_models_are_saved_and_loaded(tmp_path, build):
    changes = {"spectral_norm": True, "n_centers": 4} if build is conv_model else {}
    model = build(**changes).double()
    loaded = load_model(save_model(model, tmp_path / "model"))
    assert type(loaded) is type(model)
    assert loaded.arguments == model.arguments
    assert not loaded.training
    assert_same_state(loaded, model)
    images = torch.randn(4, 1, 8, 12, dtype=torch.float64)
    for ours, theirs in zip(model(images), loaded(images), strict=True):
        assert_same_to_rounding(theirs, ours)
    # A loaded model goes on training: its spectral norms follow the weights.
    loaded.train()(images)


def test_four_centres_for_every_latent_dimension():
    model = conv_model(latent_dim=5)
    with torch.no_grad():
        model.encoder[-1].weight.mul_(30)
    model.fit_precision(torch.randn(60, 1, 8, 12, generator=torch.Generator().manual_seed(0)))
    assert model.arguments["n_centers"] == 20


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image_shape": (1, 30, 28)}, ValueError, "height and width divisible by 4, two for each"),
        ({"image_shape": (28, 28)}, ValueError, r"`image_shape` should be \(channels, height, wi"),
        ({"channels": ()}, ValueError, "`channels` should be a sequence of positive integers"),
        ({"channels": 32}, ValueError, "`channels` should be a sequence"),
        ({"channels": (0, 4)}, ValueError, "`channels` should be an integer of at least 1"),
        ({"hidden": 0}, ValueError, "`hidden` should be"),
        ({"latent_dim": "2"}, TypeError, "`latent_dim` should be"),
        ({"activation": "ELU"}, ValueError, "`activation` should be one of elu, gelu"),
    ],
)
def test_conv_models_refuse_bad_sizes(changes, error, message):
    for model in (ConvVAE, BiGAN):
        with pytest.raises(error, match=message):
            model(**changes)
    with pytest.raises(TypeError, match="`spectral_norm` should be true or false"):
        ConvVAE(spectral_norm="no")
    with pytest.raises(TypeError, match="`batch_norm` should be true or false"):
        BiGAN(batch_norm=1)


# The BiGAN


def test_the_two_players_losses_are_the_papers():
    model = bigan().double()
    images = torch.randn(5, 1, 8, 12, dtype=torch.float64)
    z = torch.randn(5, 3, dtype=torch.float64)
    encoded, generated = (images, model.encode(images)), (model.decode(z), z)
    real, fake = (torch.sigmoid(model.logits(*pairs)) for pairs in (encoded, generated))
    expected = -(real.log().mean() + (1 - fake).log().mean())
    torch.testing.assert_close(model.game_loss(encoded, generated), expected)
    expected = -(fake.log().mean() + (1 - real).log().mean())
    torch.testing.assert_close(model.game_loss(generated, encoded), expected)


def test_the_players_share_no_parameters():
    model = bigan()
    ours = {id(parameter) for parameter in model.opponents()}
    theirs = {id(parameter) for parameter in model.discriminator.parameters()}
    assert not ours & theirs
    assert len(ours) + len(theirs) == len(list(model.parameters()))


def test_a_bigan_in_training_mode_makes_no_metric():
    model = bigan().train()
    with pytest.raises(ValueError, match="evaluation mode"):
        PullbackMetric(model.decode)


def test_bigan_refuses_wrong_shapes():
    model = bigan()
    with pytest.raises(ValueError, match=r"`images` should be a tensor of shape \(n, 1, 8, 12\)"):
        model.encode(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"`z` should be a tensor of shape \(n, 3\)"):
        model.decode(torch.zeros(3))


# The DCGAN


def dcgan(seed=0, **changes):
    sizes = {name: value for name, value in SIZES.items() if name != "hidden"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DCGAN(**{**sizes, **changes})
        for _ in range(3):
            model(model.draw_prior(16))
    return model.eval()


def test_a_dcgan_is_built_as_the_paper_says():
    model = dcgan(channels=(32, 64), latent_dim=100)
    codes = model.draw_prior(5)
    assert codes.shape == (5, 100)
    images = model.decode(codes)
    assert images.shape == model.sample(5).shape == (5, 1, 8, 12)
    assert images.abs().max() <= 1
    assert model.logits(images).shape == (5,)
    convolution = ["ConvTranspose2d", "BatchNorm2d", "ReLU", "ConvTranspose2d"]
    found = [type(layer).__name__ for layer in model.generator]
    assert found == ["Linear", "Unflatten", "BatchNorm2d", "ReLU", *convolution]
    convolution = ["Conv2d", "LeakyReLU", "Conv2d", "BatchNorm2d", "LeakyReLU"]
    found = [type(layer).__name__ for layer in model.discriminator]
    assert found == [*convolution, "Flatten", "Linear", "Flatten"]
    for layer in model.modules():
        if isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.2
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert abs(float(layer.weight.detach().std()) / 0.02 - 1) < 0.2


def test_codes_on_the_sphere_have_one_norm_and_no_preferred_side():
    model = dcgan(latent_dim=30, prior="sphere").double()
    codes = model.draw_prior(4000, torch.Generator().manual_seed(0))
    assert codes.dtype == torch.float64
    torch.testing.assert_close(codes.norm(dim=1), torch.full((4000,), 30.0**0.5).double())
    # the standard error is 1 / sqrt(4000), and of squares, whose mean is 1, sqrt(2 / 4000)
    assert codes.mean(0).abs().max() < 5 / 4000**0.5
    assert (codes.square().mean(0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5
    again = model.draw_prior(4000, torch.Generator().manual_seed(0))
    assert torch.equal(again, codes)


def test_the_generator_is_judged_by_its_own_images():
    model = dcgan().double()
    images = torch.randn(5, 1, 8, 12, dtype=torch.float64)
    real, generated = model.examples(images, model.draw_prior(5))
    wins, loses = (torch.sigmoid(model.logits(*part)) for part in (real, generated))
    expected = -(wins.log().mean() + (1 - loses).log().mean())
    torch.testing.assert_close(model.game_loss(real, generated), expected)
    torch.testing.assert_close(model.opponents_loss(real, generated), -loses.log().mean())
    ours = {id(parameter) for parameter in model.opponents()}
    theirs = {id(parameter) for parameter in model.discriminator.parameters()}
    assert not ours & theirs
    assert len(ours) + len(theirs) == len(list(model.parameters()))


@pytest.mark.parametrize("changes", [{}, {"prior": "sphere", "activation": "elu"}])
def test_a_dcgan_is_saved_and_loaded(tmp_path, changes):
    model = dcgan(**changes).double()
    loaded = load_model(save_model(model, tmp_path / "model"))
    assert type(loaded) is DCGAN
    assert loaded.arguments == model.arguments
    assert_same_state(loaded, model)
    z = model.draw_prior(4)
    assert_same_to_rounding(loaded.decode(z), model.decode(z))
    found = PullbackMetric(loaded.decode).tensor(z)
    for code, tensor in zip(z, found, strict=True):
        full = jacobian(model.decode, code)
        torch.testing.assert_close(tensor, full.mT @ full, rtol=1e-4, atol=1e-6)


def test_a_dcgan_refuses_what_is_not_of_it():
    with pytest.raises(ValueError, match="`prior` should be one of normal, sphere"):
        DCGAN(prior="uniform")
    with pytest.raises(ValueError, match="height and width divisible by 4, two for each"):
        DCGAN(image_shape=(1, 30, 28))
    with pytest.raises(TypeError, match="`latent_dim` should be"):
        DCGAN(latent_dim="2")
    with pytest.raises(ValueError, match=r"`z` should be a tensor of shape \(n, 3\)"):
        dcgan().decode(torch.zeros(3))
    with pytest.raises(ValueError, match="`n` should be"):
        dcgan().draw_prior(0)
    with pytest.raises(ValueError, match="evaluation mode"):
        PullbackMetric(dcgan().train().decode)


# A model of one's own


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "import torch\n"
        "class Mine(torch.nn.Linear):\n"
        "    def __init__(self, dim, outputs=4):\n"
        "        super().__init__(dim, outputs)\n"
        "class NoModule:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_networks"
    sys.modules.pop("my_networks", None)


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
def test_own_model_is_built_from_its_class_and_weights(tmp_path, own_module, ending):
    weights = {"weight": torch.randn(4, 3), "bias": torch.randn(4)}
    path = tmp_path / f"own.{ending}"
    if ending == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    model = build_model(f"{own_module}.Mine", {"dim": 3}, path)
    assert type(model).__name__ == "Mine"
    assert not model.training
    assert torch.equal(model.weight, weights["weight"])


def test_package_models_are_built_by_their_bare_names(tmp_path):
    path = save_model(conv_model(), tmp_path / "model")
    model = build_model("ConvVAE", conv_model().arguments, path)
    assert torch.equal(model.log_std, conv_model().log_std)


def test_own_models_checkpoint_is_not_unpickled(tmp_path, own_module):
    torch.save({"weight": Bomb()}, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="other objects are not unpickled"):
        build_model(f"{own_module}.Mine", {"dim": 3}, tmp_path / "own.pt")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("my_networks.Mine", {}, r"`init_args` should be arguments of my_networks.Mine\(dim, out"),
        ("my_networks.Mine", {"dim": 2, "width": 3}, "unexpected keyword argument 'width'"),
        ("my_networks.Absent", {}, "`class_path` should be the importable path of an nn.Module"),
        ("my_networks.NoModule", {}, "`class_path` should be the importable path"),
        ("my_other_networks.Mine", {}, "No module named 'my_other_networks'"),
        ("Absent", {}, "`class_path` should be the importable path"),
    ],
)
def test_wrong_classes_and_arguments(own_module, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, arguments)


def test_own_models_missing_checkpoint(tmp_path, own_module):
    with pytest.raises(FileNotFoundError, match="`path` should be an existing file"):
        build_model(f"{own_module}.Mine", {"dim": 3}, tmp_path / "none.pt")
