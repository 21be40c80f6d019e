import pytest
import torch

from geolatent.data import digits, scale_pixels


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
