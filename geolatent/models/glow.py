"""A small Glow: a flow of images by invertible convolutions and affine couplings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolatent.checks import check_choice, check_integer, requirement
from geolatent.models.conv import ACTIVATIONS
from geolatent.models.flows import LEAST_STD, Flow

# logarithms of scales lie between these, so that no step can undo the precision of the others
_LARGEST_LOG_SCALE = 2.0
# images by which actnorms are set
_STARTED_BY = 1024


class Glow(Flow):
    r"""Multi-scale flow of steps of activation normalisation, 1 x 1 convolution and coupling.

    At each level 2 x 2 pixels become channels; ``steps`` steps follow; then half of the channels
    leave as codes, shifted and scaled by what the other half predicts of them, and the other half
    goes on to the next level, where the image is half as high and wide. A step is

        y = s (x + b)                  actnorm, s and b a number each for each channel,
        y = W x                        W = P L (U + diag s) of the channels at each pixel,
        y_b = exp(a(x_a)) x_b + t(x_a) affine coupling, a and t by a small convolutional network,

    with the log-determinants h w sum log |s|, h w sum log |s| and sum a. Actnorm starts from data:
    see `Flow.initialise`. Unlike in the paper log-scales a are bounded by 2 tanh(a / 2), which
    keeps the inverse accurate in single precision, and networks have no actnorms of their own.

    Parameters
    ----------
    image_shape
        (channels, height, width); height and width divisible by 2 ** depth.
    depth
        Number of levels: 28 = 4 x 7 can be halved twice.
    steps
        Steps at each level.
    hidden
        Channels of the couplings' networks: 3 x 3, 1 x 1 and 3 x 3 convolutions.
    activation
        As in `ConvVAE`; "relu" in the paper, while the default keeps the metric continuous.
    levels, prior
        As in `Flow`.

    References
    ----------
    D. P. Kingma, P. Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", NeurIPS
    2018, arXiv:1807.03039.
    L. Dinh, J. Sohl-Dickstein, S. Bengio, "Density estimation using Real NVP", ICLR 2017,
    arXiv:1605.08803: levels, and bounded log-scales.

    Examples
    --------
    >>> model = Glow(image_shape=(1, 8, 8), depth=2, steps=2, hidden=8, levels=17)
    >>> images = torch.rand(5, 1, 8, 8)
    >>> model.encode(images).shape, torch.allclose(model(images), images, atol=1e-5)
    (torch.Size([5, 64]), True)
    """

    steps: Any  # of each level a ModuleList of _Step

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        depth: int = 2,
        steps: int = 6,
        hidden: int = 64,
        activation: str = "elu",
        levels: int | None = 256,
        prior: str = "normal",
    ) -> None:
        check_integer("depth", depth)
        check_integer("steps", steps)
        check_integer("hidden", hidden)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        super().__init__(
            image_shape,
            levels,
            prior,
            {"depth": depth, "steps": steps, "hidden": hidden, "activation": activation},
        )
        factor = 2**depth
        if len(image_shape) != 3 or any(size % factor for size in image_shape[1:]):
            required = (
                f"(channels, height, width), height and width divisible by {factor}, "
                f"two for each of the {depth} levels of `depth`"
            )
            raise ValueError(requirement("image_shape", required, tuple(image_shape)))
        channels = image_shape[0]
        self.steps, self.splits = nn.ModuleList(), nn.ModuleList()
        for level in range(depth):
            channels *= 4
            self.steps.append(
                nn.ModuleList(_Step(channels, hidden, activation) for _ in range(steps))
            )
            if level < depth - 1:
                channels //= 2
                self.splits.append(_zero_convolution(channels, 2 * channels))

    def _start(self, images: Tensor) -> None:
        self._to_codes(images[:_STARTED_BY], start=True)

    def _to_codes(self, images: Tensor, start: bool = False) -> tuple[Tensor, Tensor]:
        x, log_det = images, images.new_zeros(len(images))
        codes = []
        for level, steps in enumerate(self.steps):
            x = functional.pixel_unshuffle(x, 2)
            for step in steps:
                x, change = step(x, start)
                log_det = log_det + change
            if level < len(self.splits):
                x, leaving = x.chunk(2, dim=1)
                shift, log_scale = _shift_and_log_scale(self.splits[level](x))
                codes.append((leaving - shift) * torch.exp(-log_scale))
                log_det = log_det - log_scale.flatten(1).sum(1)
        return torch.cat([part.flatten(1) for part in (*codes, x)], dim=1), log_det

    def _to_images(self, z: Tensor) -> Tensor:
        channels, height, width = self.image_shape
        parts: list[Tensor] = []
        shapes: list[tuple[int, int, int]] = []
        for _ in self.steps:
            channels, height, width = 4 * channels, height // 2, width // 2
            if len(shapes) < len(self.splits):
                channels //= 2
            shapes.append((channels, height, width))
        sizes = [shape[0] * shape[1] * shape[2] for shape in shapes]
        for part, shape in zip(z.split(sizes, dim=1), shapes, strict=True):
            parts.append(part.reshape(len(z), *shape))
        x = parts.pop()
        for level in reversed(range(len(self.steps))):
            if level < len(self.splits):
                shift, log_scale = _shift_and_log_scale(self.splits[level](x))
                x = torch.cat([x, parts.pop() * log_scale.exp() + shift], dim=1)
            for step in reversed(self.steps[level]):
                x = step.inverse(x)
            x = functional.pixel_shuffle(x, 2)
        return x


class _Step(nn.Module):
    """Activation normalisation, invertible 1 x 1 convolution and affine coupling."""

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        # a rotation by chance, whose P stays while L, U and the diagonal are learnt
        rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        kept, changed = channels // 2, channels - channels // 2
        self.network = nn.Sequential(
            nn.Conv2d(kept, hidden, 3, padding=1),
            ACTIVATIONS[activation](),
            nn.Conv2d(hidden, hidden, 1),
            ACTIVATIONS[activation](),
            _zero_convolution(hidden, 2 * changed),
        )
        self.kept = kept

    def forward(self, x: Tensor, start: bool) -> tuple[Tensor, Tensor]:
        """Return the step's output and the logarithm of its determinant, (n,)."""
        if start:
            self.shift.copy_(-x.mean((0, 2, 3))[:, None, None])
            self.log_scale.copy_(-torch.log(x.std((0, 2, 3)) + LEAST_STD)[:, None, None])
        pixels = x.shape[2] * x.shape[3]
        x = (x + self.shift) * self.log_scale.exp()
        x = functional.conv2d(x, self._matrix()[:, :, None, None])
        first, second = x[:, : self.kept], x[:, self.kept :]
        shift, log_scale = _shift_and_log_scale(self.network(first))
        log_det = pixels * (self.log_scale.sum() + self.log_diagonal.sum())
        x = torch.cat([first, second * log_scale.exp() + shift], dim=1)
        return x, log_det + log_scale.flatten(1).sum(1)

    def inverse(self, x: Tensor) -> Tensor:
        """Undo the step."""
        first, second = x[:, : self.kept], x[:, self.kept :]
        shift, log_scale = _shift_and_log_scale(self.network(first))
        x = torch.cat([first, (second - shift) * torch.exp(-log_scale)], dim=1)
        x = functional.conv2d(x, torch.linalg.inv(self._matrix())[:, :, None, None])
        return x * torch.exp(-self.log_scale) - self.shift

    def _matrix(self) -> Tensor:
        """Return W = P L (U + diag s), (channels, channels)."""
        diagonal = torch.diag(self.sign * self.log_diagonal.exp())
        identity = torch.eye(len(self.sign), dtype=self.sign.dtype, device=self.sign.device)
        return self.permutation @ (self.lower.tril(-1) + identity) @ (self.upper.triu(1) + diagonal)


def _shift_and_log_scale(output: Tensor) -> tuple[Tensor, Tensor]:
    """Return a network's two outputs, (n, 2 c, h, w) -> twice (n, c, h, w), the second bounded."""
    shift, raw = output.chunk(2, dim=1)
    return shift, _LARGEST_LOG_SCALE * torch.tanh(raw / _LARGEST_LOG_SCALE)


def _zero_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution of zeros, with which couplings begin as the identity."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
