"""Feature maps of images, whose Jacobians turn a decoder's metric into a metric of meaning."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn

from geolatent.checks import (
    check_batch,
    check_integer,
    check_number,
    check_sizes,
    check_tensor,
    describe,
    requirement,
)
from geolatent.models.checkpoint import assign_tensors, read_tensors

# mean and standard deviation of ImageNet's pixels in [0, 1], which torchvision's weights expect
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class LogisticRegression(nn.Module):
    r"""Logarithms of the class probabilities of a multinomial logistic regression.

        h(x) = log softmax(W x + b),    x flattened, W of shape (K, D).

    As the feature map of a metric it measures how far a curve changes the class, whatever else
    changes in the image. `fit_logistic_regression` sets the weights.

    Parameters
    ----------
    classes
        The labels of the K classes, in the order of the outputs.
    image_shape
        (channels, height, width); D is their product.

    Examples
    --------
    >>> features = LogisticRegression(classes=(3, 5), image_shape=(1, 8, 8))
    >>> features(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([4, 2])
    """

    def __init__(self, classes: Sequence[int], image_shape: Sequence[int]) -> None:
        super().__init__()
        if len(classes) < 2 or len(set(classes)) != len(classes):
            raise ValueError(requirement("classes", "two or more different labels", classes))
        self.classes = tuple(check_integer("classes", label, minimum=0) for label in classes)
        self.image_shape = check_sizes("image_shape", image_shape)
        self.linear = nn.Linear(math.prod(self.image_shape), len(self.classes))

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that build a map with this one's parameters."""
        return {"classes": list(self.classes), "image_shape": list(self.image_shape)}

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities, (n, *image_shape) -> (n, K)."""
        check_batch("images", images, self.image_shape)
        return torch.log_softmax(self.linear(images.flatten(1)), dim=1)

    def predict(self, images: Tensor) -> Tensor:
        """Return the labels of the most probable classes, (n, *image_shape) -> (n,), int64."""
        return torch.tensor(self.classes, device=images.device)[self(images).argmax(1)]

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images whose most probable class is their label."""
        return float((self.predict(images) == labels).double().mean())


def fit_logistic_regression(
    images: Tensor,
    labels: Tensor,
    inverse_penalty: float = 0.01,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> LogisticRegression:
    """Fit a logistic regression with scikit-learn and return it as a torch module.

    The optimiser sees the images with their mean subtracted, which is put back into the
    unpenalised intercept: the same optimum in a fraction of the iterations.

    Parameters
    ----------
    images
        Images in [-1, 1], (n, channels, height, width).
    labels
        Integers, (n,), of two classes or more.
    inverse_penalty
        scikit-learn's C, one over the strength of the penalty on the squared weights. The default
        suits thousands of images of hundreds of pixels.
    tolerance
        Largest entry of the gradient at which the optimiser stops.
    max_iterations
        Limit of the optimiser's iterations; scikit-learn warns where it is reached.

    Returns
    -------
    LogisticRegression
        In evaluation mode, with the dtype and device of the images, and parameters that do not
        require gradients. In float64 it equals scikit-learn's ``predict_log_proba`` to rounding.

    Examples
    --------
    >>> from geolatent.lab.data import digits
    >>> features = fit_logistic_regression(*digits("train"))
    >>> features.accuracy(*digits("test")) > 0.9
    True
    """
    # scikit-learn takes over a second to import: only those who fit pay for it
    from sklearn import linear_model
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    check_tensor("images", images, "(n, channels, height, width)")
    check_number("inverse_penalty", inverse_penalty, above=0.0)
    check_number("tolerance", tolerance, above=0.0)
    check_integer("max_iterations", max_iterations)
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        raise TypeError(requirement("labels", "a tensor of integers", describe(labels)))
    if labels.shape != images.shape[:1]:
        required = f"a tensor of shape ({len(images)},)"
        raise ValueError(requirement("labels", required, describe(labels)))
    present = labels.unique().tolist()
    if len(present) < 2:
        raise ValueError(requirement("labels", "labels of two classes or more", present))
    pixels = images.detach().flatten(1).cpu().double().numpy()
    center = pixels.mean(0)
    regression = linear_model.LogisticRegression(
        C=inverse_penalty, tol=tolerance, max_iter=max_iterations
    )
    # threads on a shared machine wait for one another in every one of the small products
    with threadpool_limits(limits=1):
        fitted = regression.fit(pixels - center, labels.cpu().numpy())
    coefficients = fitted.coef_
    intercepts = fitted.intercept_ - coefficients @ center
    if len(present) == 2:
        # one row for two classes, the log-odds of the second: those of the first are 0
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
    with torch.random.fork_rng(devices=[]):
        features = LogisticRegression(present, images.shape[1:]).double()
    with torch.no_grad():
        features.linear.weight.copy_(torch.from_numpy(coefficients))
        features.linear.bias.copy_(torch.from_numpy(intercepts))
    return features.to(images).requires_grad_(False).eval()


class VGGFeatures(nn.Module):
    r"""Activations of one layer of torchvision's VGG-19, for grey or colour images in [-1, 1].

        h(x) = VGG_layer(((x + 1) / 2 - m) / s),

    with ImageNet's mean m and standard deviation s per colour; grey images become three equal
    channels. Every ReLU writes to memory of its own, so that the activations of a convolution are
    what they say. A layer of many outputs makes the metric dear: its cost grows with nothing but
    the network's own, except for the exact diagonal of a Gaussian decoder's metric.

    Parameters
    ----------
    layer
        The layer, by torchvision's name: "features.0" (the first convolution) to "features.36" (the
        last pooling), "avgpool", "classifier.0" to "classifier.6" (the logits). Each of the five
        poolings halves the image, so that the last needs 32 pixels a side; see ``resize``.
    weights
        "published" downloads torchvision's weights trained on ImageNet (550 MB, once); a path is
        a state dict of VGG-19 in .safetensors, .pt or .pth; None draws random weights.
    resize
        Resize images to this height and width first, bilinearly; None keeps their size.
    seed
        Seed of the random weights.

    Raises
    ------
    ConnectionError
        Where the published weights are not there and cannot be downloaded.
    FileNotFoundError
        Where there is no file of weights.

    References
    ----------
    K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", ICLR 2015, arXiv:1409.1556.

    Examples
    --------
    >>> features = VGGFeatures("features.4", weights=None)
    >>> features(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 64, 14, 14])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        layer: str = "features.8",
        weights: str | os.PathLike[str] | None = "published",
        resize: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # torchvision takes seconds to import: only those who use it pay for it
        from torchvision.models import vgg19
        from torchvision.models.feature_extraction import (
            create_feature_extractor,
            get_graph_node_names,
        )

        check_integer("seed", seed, minimum=0)
        if resize is not None:
            check_integer("resize", resize)
        self.layer, self.resize = layer, resize
        # without memory behind its parameters, for most of VGG-19 lies above the layer
        with torch.device("meta"):
            network = vgg19(weights=None, init_weights=False).eval()
        for part in network.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = False
        names = [name for name in get_graph_node_names(network)[1] if "." in name]
        names.append("avgpool")
        if layer not in names:
            raise ValueError(requirement("layer", f"one of {', '.join(names)}", describe(layer)))
        self.network = create_feature_extractor(network, {layer: "features"})
        self._set_weights(weights, seed)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])
        self.requires_grad_(False).eval()

    def _set_weights(self, weights: str | os.PathLike[str] | None, seed: int) -> None:
        if weights is None:
            self.network.to_empty(device="cpu")
            generator = torch.Generator().manual_seed(seed)
            for part in self.network.modules():
                if isinstance(part, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
                    if part.bias is not None:
                        nn.init.zeros_(part.bias)
            return
        state = _published_weights() if weights == "published" else read_tensors(weights)
        wanted = self.network.state_dict()
        own = {name: value for name, value in state.items() if name in wanted}
        message = requirement("weights", "a state dict of torchvision's vgg19", weights)
        assign_tensors(self.network, own, message)

    def forward(self, images: Tensor) -> Tensor:
        """Return the activations, (n, 1 or 3, height, width) -> (n, ...).

        Raises
        ------
        ValueError
            Where the images are too small for the layer.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            required = "a tensor of shape (n, 1, height, width) or (n, 3, height, width)"
            raise ValueError(requirement("images", required, describe(images)))
        size = self.resize
        if size is not None:
            images = nn.functional.interpolate(
                images, size=(size, size), mode="bilinear", align_corners=False
            )
        smallest = self.smallest_size
        if min(images.shape[2:]) < smallest:
            required = f"at least {smallest} pixels high and wide for {self.layer}; see `resize`"
            raise ValueError(requirement("images", required, describe(images)))
        colours = images.expand(-1, 3, -1, -1)
        return self.network(((colours + 1.0) / 2.0 - self.mean) / self.std)["features"]

    @property
    def smallest_size(self) -> int:
        """The height and width below which a pooling would leave nothing."""
        return 2 ** sum(isinstance(part, nn.MaxPool2d) for part in self.network.modules())


def _published_weights() -> dict[str, Tensor]:
    """Return torchvision's VGG-19 weights, downloaded on the first call."""
    from torchvision.models import VGG19_Weights

    published = VGG19_Weights.IMAGENET1K_V1
    try:
        return dict(published.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (URLError, OSError, RuntimeError) as error:
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        raise ConnectionError(
            f"The published weights of VGG-19 could not be downloaded ({error}). Put "
            f"{published.url} into {folder}, or set `weights` to its path, or to None for random "
            "weights."
        ) from error
