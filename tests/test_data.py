import gzip
import struct
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from geolatent.lab.data import (
    TORCHVISION_NAMES,
    DataOptions,
    digits,
    load,
    load_images,
    scale_pixels,
    select,
    torchvision_images,
)


def test_shapes_types_and_range():
    images, labels = digits("train")
    assert images.shape == (1347, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.shape == (1347,)
    assert labels.dtype == torch.int64
    assert images.min() == -1
    assert images.max() == 1
    assert labels.unique().tolist() == list(range(10))


def test_split_is_a_partition_in_the_order_of_the_data_set():
    def rows(split):
        return [tuple(image.flatten().tolist()) for image in digits(split)[0]]

    train, test, whole = rows("train"), rows("test"), rows("all")
    assert len(whole) == len(train) + len(test) == 1797
    in_train, in_test = set(train), set(test)
    assert not in_train & in_test
    assert [row for row in whole if row in in_train] == train
    assert [row for row in whole if row in in_test] == test


def test_split_does_not_change():
    # Fixed figures: a model trained on one release must not meet its training images in another's
    # test split.
    _, train = digits("train")
    images, test = digits("test")
    assert train.bincount().tolist() == [133, 136, 133, 137, 136, 136, 136, 134, 131, 135]
    assert test[:12].tolist() == [1, 4, 8, 6, 5, 9, 9, 1, 3, 5, 2, 2]
    assert images.double().mean().item() == pytest.approx(-0.38926649305555555, abs=1e-12)
    again, _ = digits("test")
    assert torch.equal(images, again)


def test_classes_are_in_proportion():
    _, train = digits("train")
    _, test = digits("test")
    share = test.bincount() / (train.bincount() + test.bincount())
    assert ((share - 0.25).abs() < 0.01).all()


def test_each_call_returns_its_own_tensor():
    images, _ = digits("test")
    images.zero_()
    assert digits("test")[0].abs().sum() > 0


@pytest.mark.parametrize("split", ["validation", "", None, 3])
def test_unknown_split(split):
    with pytest.raises(ValueError, match="Parameter `split` should be one of train, test, all"):
        digits(split)


def test_scale_pixels():
    scaled = scale_pixels(torch.tensor([0, 255], dtype=torch.uint8), largest=255)
    assert scaled.tolist() == [-1.0, 1.0]
    assert scaled.dtype == torch.float32


# torchvision's data sets


def write_idx(path, array):
    """Write bytes in the IDX format of MNIST's files."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def fake_split(raw, prefix, n, first_label=0, n_classes=10, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    labels = first_label + np.arange(n) % n_classes
    write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
    write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
    return images, labels


@pytest.fixture
def fashion_root(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    fake_split(raw, "train", 40)
    fake_split(raw, "t10k", 20, seed=1)
    return tmp_path


def test_mnist_equals_torchvision(mnist_root):
    from torchvision.datasets import MNIST

    images, labels = torchvision_images("MNIST", mnist_root, "test")
    assert images.shape == (10000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (images.min(), images.max()) == (-1, 1)
    # Known counts of the digits in MNIST's test split.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert labels.bincount().tolist() == counts
    reference = MNIST(mnist_root, train=False)
    for index in (0, 1, 9999):
        image, label = reference[index]
        expected = torch.from_numpy(np.array(image)) / 127.5 - 1
        torch.testing.assert_close(images[index, 0], expected)
        assert labels[index] == label


def test_chosen_classes_and_images_per_class(mnist_root):
    everything, all_labels = torchvision_images("MNIST", mnist_root)
    images, labels = torchvision_images("MNIST", mnist_root, classes=(7, 3), per_class=50)
    assert labels.bincount().tolist() == [0, 0, 0, 50, 0, 0, 0, 50]
    rows = select(all_labels, (3, 7), 50)
    assert torch.equal(images, everything[rows])
    assert (rows.diff() > 0).all()
    again, _ = torchvision_images("MNIST", mnist_root, classes=(7, 3), per_class=50)
    other, _ = torchvision_images("MNIST", mnist_root, classes=(7, 3), per_class=50, seed=1)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_fashion_mnist_splits(fashion_root):
    images, labels = torchvision_images("FashionMNIST", fashion_root, "train")
    assert images.shape == (40, 1, 28, 28)
    assert labels.bincount().tolist() == [4] * 10
    assert len(torchvision_images("FashionMNIST", fashion_root, "test")[0]) == 20


def test_emnist_is_upright_and_keeps_its_labels(tmp_path):
    raw = tmp_path / "EMNIST" / "raw"
    pixels, _ = fake_split(raw, "emnist-letters-test", 26, first_label=1, n_classes=26)
    images, labels = torchvision_images("EMNIST-letters", tmp_path, "test")
    # The files hold transposed images.
    expected = scale_pixels(torch.from_numpy(pixels), 255).transpose(1, 2)
    assert torch.equal(images[:, 0], expected)
    assert labels.tolist() == list(range(1, 27))


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_missing_data_say_what_to_do(tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        torchvision_images(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "set `download` to true" in message
    assert str(tmp_path / name.split("-")[0] / "raw") in message


@pytest.mark.parametrize("content", [b"", b"\x00\x00", b"\x00\x00\x08\x03", b"no data at all" * 9])
def test_damaged_files(fashion_root, content):
    path = fashion_root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    for damaged in (content, path.read_bytes()[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"undamaged files of FashionMNIST; remove .*raw"):
            torchvision_images("FashionMNIST", fashion_root)


def test_images_without_their_labels(fashion_root):
    write_idx(fashion_root / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(39))
    with pytest.raises(ValueError, match="undamaged files of FashionMNIST"):
        torchvision_images("FashionMNIST", fashion_root)


def test_a_failed_download_is_told(tmp_path, monkeypatch):
    from torchvision import datasets

    def fail(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", fail)
    for name in ("MNIST", "EMNIST-digits"):
        with pytest.raises(ConnectionError, match=r"could not be downloaded to .*no route to host"):
            torchvision_images(name, tmp_path, download=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "CIFAR10"}, "`name` should be one of MNIST, FashionMNIST, EMNIST-balanced"),
        ({"split": "all"}, "`split` should be one of train, test"),
        ({"classes": ()}, "`classes` should be a sequence of labels"),
        ({"classes": (3, 3)}, "`classes` should be different labels"),
        ({"classes": (3, 12)}, r"`classes` should be among the labels \[0, 1, .*Found .* \[12\]"),
        ({"per_class": 0}, "`per_class` should be an integer of at least 1"),
        ({"per_class": 5}, "`per_class` should be at most 4, the number of images of class 0"),
        ({"seed": -1}, "`seed` should be"),
    ],
)
def test_torchvision_images_refuse_bad_values(fashion_root, changes, message):
    with pytest.raises(ValueError, match=message):
        torchvision_images(**{"name": "FashionMNIST", "root": fashion_root, **changes})


# A file of one's own


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (12, 6, 4), dtype=np.uint8), np.arange(12) % 3


def save_arrays(path, images, labels=None):
    named = {"images": images} if labels is None else {"images": images, "labels": labels}
    tensors = {name: torch.from_numpy(array) for name, array in named.items()}
    if path.suffix == ".npy":
        np.save(path, images)
    elif path.suffix == ".npz":
        np.savez(path, **named)
    elif path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors if path.stem == "named" else tensors["images"], path)


@pytest.mark.parametrize(
    ("name", "labelled"),
    [
        ("a.npy", False),
        ("a.npz", True),
        ("a.safetensors", True),
        ("named.pt", True),
        ("lone.pth", False),
    ],
)
def test_files_of_ones_own(tmp_path, arrays, name, labelled):
    pixels, classes = arrays
    save_arrays(tmp_path / name, pixels, classes)
    images, labels = load_images(tmp_path / name, low=0, high=255)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[:, 0].numpy(), (pixels / 127.5 - 1).astype(np.float32))
    if labelled:
        assert labels.tolist() == classes.tolist()
        assert labels.dtype == torch.int64
    else:
        assert labels is None


def test_value_range_and_channels(tmp_path):
    pixels = np.linspace(-3, 5, 3 * 2 * 4 * 4).reshape(2, 3, 4, 4)
    np.save(tmp_path / "a.npy", pixels)
    images, _ = load_images(tmp_path / "a.npy", low=-3, high=5)
    assert images.shape == (2, 3, 4, 4)
    torch.testing.assert_close(images.double().numpy(), pixels / 4 - 0.25, rtol=0, atol=1e-6)
    wider, _ = load_images(tmp_path / "a.npy", low=-11, high=5)
    torch.testing.assert_close(wider.min(), torch.tensor(0.0))


def test_no_file_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("A pickle was run.",))

    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object))
    np.savez(tmp_path / "a.npz", images=np.array([Bomb()], dtype=object))
    torch.save(Bomb(), tmp_path / "a.pt")
    for name in ("a.npy", "a.npz", "a.pt"):
        with pytest.raises(ValueError, match="`path` should be"):
            load_images(tmp_path / name, low=0, high=1)


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "pt"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x93NUMPY\x01\x00"])
def test_unreadable_and_missing_files(tmp_path, ending, content):
    path = tmp_path / f"a.{ending}"
    with pytest.raises(FileNotFoundError, match="`path` should be an existing file"):
        load_images(path, low=0, high=1)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"`path` should be a (readable|file of tensors)"):
        load_images(path, low=0, high=1)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"pixels": np.zeros((2, 4, 4))}, "a file that holds `images`. Found .*which holds pixels"),
        ({"images": np.zeros((2, 16))}, r"`images` should be of shape \(n, height, width\) or"),
        ({"images": np.zeros((0, 4, 4))}, "`images` should be of shape"),
        ({"images": np.full((2, 4, 4), 1.5)}, "between `low`, 0, and `high`, 1,.*from 1.5 to 1.5"),
        ({"images": np.full((2, 4, 4), np.nan)}, "between `low`, 0, and `high`, 1"),
        (
            {"images": np.zeros((2, 4, 4)), "labels": np.zeros(2)},
            r"`labels` should be integers of shape \(2,\)",
        ),
        (
            {"images": np.zeros((2, 4, 4)), "labels": np.zeros(3, int)},
            r"`labels` should be integers of shape \(2,\)",
        ),
    ],
)
def test_wrong_arrays(tmp_path, named, message):
    np.savez(tmp_path / "a.npz", **named)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "a.npz", low=0, high=1)


def test_value_range_is_checked(tmp_path):
    with pytest.raises(ValueError, match="`high` should be a finite number above 1"):
        load_images(tmp_path / "a.npy", low=1, high=1)


# Options


def test_options_load_every_kind(tmp_path, arrays, fashion_root):
    images, labels = load(DataOptions(split="test", classes=(2, 4), per_class=3))
    assert images.shape == (6, 1, 8, 8)
    assert labels.bincount().tolist() == [0, 0, 3, 0, 3]
    images, _ = load(DataOptions("FashionMNIST", root=str(fashion_root), classes=(1,)))
    assert images.shape == (4, 1, 28, 28)
    save_arrays(tmp_path / "a.npz", *arrays)
    own = DataOptions("file", split="all", path=str(tmp_path / "a.npz"), low=0, high=255)
    whole, labels = load(own)
    assert torch.equal(whole, load_images(own.path, low=0, high=255)[0])
    some, some_labels = load(replace(own, classes=(2,)))
    assert torch.equal(some, whole[labels == 2])
    assert some_labels.unique().tolist() == [2]


def test_splits_of_a_file_are_a_partition(tmp_path, arrays):
    save_arrays(tmp_path / "a.npz", *arrays)
    own = DataOptions("file", path=str(tmp_path / "a.npz"), low=0, high=255, test_fraction=0.25)
    train, test, whole = (load(replace(own, split=name))[0] for name in ("train", "test", "all"))
    assert (len(train), len(test)) == (9, 3)
    found = sorted(image.flatten().tolist() for image in torch.cat([train, test]))
    assert found == sorted(image.flatten().tolist() for image in whole)
    with pytest.raises(ValueError, match="`test_fraction` should be a share of 12 images"):
        load(replace(own, test_fraction=0.01))


def test_a_file_without_labels_has_no_classes(tmp_path, arrays):
    save_arrays(tmp_path / "a.npy", arrays[0])
    own = DataOptions("file", path=str(tmp_path / "a.npy"), low=0, high=255)
    assert load(own)[1] is None
    for change in ({"classes": (1,)}, {"per_class": 2}):
        with pytest.raises(ValueError, match=r"should be None, for .* holds no labels"):
            load(replace(own, **change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mnist"}, "`name` should be one of digits, MNIST"),
        ({"name": "MNIST", "split": "all"}, "`split` should be one of train, test"),
        (
            {"name": "file", "low": 0.0, "high": 1.0},
            "`path` should be given where `name` is 'file'",
        ),
        ({"name": "file", "path": "a.npy"}, "`low` should be given"),
        ({"name": "MNIST", "path": "a.npy"}, "`path` should be given where `name` is 'file', and"),
        ({"test_fraction": 0.0}, "`test_fraction` should be"),
        ({"per_class": -1}, "`per_class` should be"),
    ],
)
def test_options_refuse_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        DataOptions(**options)


@pytest.fixture
def flat_mnist(tmp_path):
    """Return a folder with MNIST's own files as they are published, flat and packed by gzip."""
    folder = tmp_path / "published"
    folder.mkdir()
    for prefix, n in (("train", 40), ("t10k", 20)):
        fake_split(folder, prefix, n)
        for path in sorted(folder.glob(f"{prefix}-*-ubyte")):
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return folder


def test_mnist_is_read_from_its_own_files(flat_mnist):
    images, labels = load(DataOptions("MNIST", root=str(flat_mnist)))
    assert images.shape == (40, 1, 28, 28)
    assert labels.bincount().tolist() == [4] * 10
    assert images.dtype == torch.float32
    # the same numbers as unpacked, and as torchvision reads them from its own layout
    from torchvision.datasets import MNIST

    raw = flat_mnist / "layout" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in flat_mnist.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    unpacked, _ = load(DataOptions("MNIST", root=str(flat_mnist / "layout")))
    assert torch.equal(images, unpacked)
    reference = MNIST(flat_mnist / "layout", train=True)
    assert torch.equal(images[:, 0], scale_pixels(reference.data, largest=255.0))
    assert torch.equal(labels, reference.targets)
    chosen, _ = load(DataOptions("MNIST", root=str(flat_mnist), split="test", classes=(3,)))
    assert len(chosen) == 2


def test_the_variable_stands_in_for_the_default_root_alone(flat_mnist, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEOLATENT_MNIST", str(flat_mnist))
    assert len(load(DataOptions("MNIST"))[0]) == 40
    with pytest.raises(FileNotFoundError, match="or in the folder of GEOLATENT_MNIST"):
        load(DataOptions("MNIST", root=str(tmp_path / "other")))
    monkeypatch.delenv("GEOLATENT_MNIST")
    with pytest.raises(FileNotFoundError, match="or in the folder of GEOLATENT_MNIST"):
        load(DataOptions("MNIST"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:100],
        lambda content: content[:-3],
        lambda _: b"",
        lambda _: b"no gzip at all",
        lambda content: content[:40] + bytes([content[40] ^ 255]) + content[41:],
        lambda _: gzip.compress(b"\0\0"),
        lambda content: gzip.compress(gzip.decompress(content)[:-5]),
        lambda content: gzip.compress(gzip.decompress(content) + b"x"),
        lambda _: gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12),
        lambda content: gzip.compress(b"\0\0\x0d" + gzip.decompress(content)[3:]),
    ],
    ids=["cut", "tail", "empty", "text", "flipped", "head", "short", "long", "huge", "floats"],
)
def test_damaged_files_of_mnist_are_told_in_a_sentence(damage, flat_mnist):
    path = flat_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"`root` should be an undamaged file of MNIST") as told:
        load(DataOptions("MNIST", root=str(flat_mnist)))
    assert "\n" not in str(told.value)
    assert path.name in str(told.value)


def test_images_and_labels_of_mnist_must_be_of_one_split(flat_mnist):
    (flat_mnist / "train-labels-idx1-ubyte.gz").write_bytes(
        (flat_mnist / "t10k-labels-idx1-ubyte.gz").read_bytes()
    )
    with pytest.raises(ValueError, match="images and labels of one split"):
        load(DataOptions("MNIST", root=str(flat_mnist)))
