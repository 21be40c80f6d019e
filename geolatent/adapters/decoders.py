"""Decoders from what models of other libraries take and return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from geolatent.checks import check_function, check_sizes, describe, requirement
from geolatent.shapes import Reshaped

# an attribute, a key or a place of what a function returns; several for a tuple of outputs
Output = str | int | tuple[str | int, ...] | None


@dataclass(frozen=True)
class Adapted:
    """A function as a decoder, as `decoder` makes it."""

    function: Callable[..., Any]
    output: Output = None
    shape: tuple[int, ...] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, z: Tensor) -> Any:
        """Return the output for codes (n, d)."""
        n = z.shape[0]
        fixed = {name: _repeated(value, n) for name, value in self.fixed.items()}
        function = self.function
        if self.shape is not None:
            function = Reshaped(function, self.shape)
        found = function(z, **fixed)
        if isinstance(self.output, tuple):
            return tuple(_part(found, name) for name in self.output)
        if self.output is not None:
            return _part(found, self.output)
        if isinstance(found, Tensor | Distribution):
            return found
        raise TypeError(_unnamed(found))


def decoder(
    function: Callable[..., Any],
    output: Output = None,
    shape: tuple[int, ...] | None = None,
    **fixed: Any,
) -> Adapted:
    """Return a decoder (n, d) -> Tensor made of a module, a method or a function.

    Parameters
    ----------
    function
        Takes codes as its first argument, (n, d), or (n, *shape). Modules stay as they are: call
        ``eval()`` on them first.
    output
        What of that which it returns is the output: the name of an attribute or a key, as
        ``"sample"``, or a place in a tuple; several of them in a tuple, such as ``("mean",
        "stddev")``, for metrics of two outputs. None where it returns a tensor, or a distribution
        for `metric`: what else it returns is not guessed at.
    shape
        Shape of one code in the model, such as (channels, height, width), of d numbers.
    fixed
        Further arguments by name, the same in every call. Tensors of one row, (1, ...), are
        repeated for the n rows: the label of a conditional decoder is ``torch.tensor([3])``.

    Raises
    ------
    TypeError
        When it is called, where the function returns neither a tensor nor a distribution and
        ``output`` does not say what; the message lists the tensors that are there.
    ValueError
        Where there is no such output, or the shape does not fit the codes.

    Examples
    --------
    >>> import torch
    >>> pair = lambda z, scale: {"sample": scale * z, "noise": 0.0 * z}
    >>> doubled = decoder(pair, "sample", shape=(1, 2), scale=torch.tensor([[[2.0]]]))
    >>> doubled(torch.ones(3, 2)).shape
    torch.Size([3, 1, 2])
    >>> decoder(pair, scale=1.0)(torch.ones(3, 2))
    Traceback (most recent call last):
    ...
    TypeError: Parameter `output` should be one of 'sample', 'noise', the tensors in the dict ...
    """
    check_function("function", function)
    for name in output if isinstance(output, tuple) else (output,):
        if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
            required = "the name or the place of an output, or a tuple of them"
            raise TypeError(requirement("output", required, describe(output)))
    sizes = None if shape is None else check_sizes("shape", shape)
    return Adapted(function, output, sizes, fixed)


def _repeated(value: Any, n: int) -> Any:
    """Repeat a tensor of one row for n rows; leave all else as it is."""
    if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == 1:
        return value.expand(n, *value.shape[1:])
    return value


def _part(found: Any, name: str | int) -> Any:
    """Return one part of what a function returned, by key, attribute or place."""
    if isinstance(name, int):
        if isinstance(found, tuple | list) and -len(found) <= name < len(found):
            return found[name]
    elif isinstance(found, Mapping) and name in found:
        return found[name]
    elif hasattr(found, name):
        return getattr(found, name)
    raise ValueError(_unnamed(found, repr(name)))


def _unnamed(found: Any, output: str = "None") -> str:
    """Return the message for an output that is not there, with the tensors that are."""
    if isinstance(found, Mapping):
        parts = dict(found)
    elif isinstance(found, tuple | list):
        parts = dict(enumerate(found))
    else:
        parts = dict(getattr(found, "__dict__", {}))
    names = [repr(name) for name, value in parts.items() if isinstance(value, Tensor)]
    kind = f"the {type(found).__name__} that the function returns"
    listed = f"one of {', '.join(names)}, the tensors in {kind}"
    required = listed if names else f"the name of an output of {kind}, in which no tensor is seen"
    return requirement("output", required, output)


def autoencoder(
    model: Any,
    shape: tuple[int, ...] | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
) -> Adapted:
    """Return the decoder of an autoencoder of diffusers, from codes as diffusion models have them.

        f(z) = decode(z / scaling_factor + shift_factor),    z reshaped to (channels, h, w),

    with the factors of the model's configuration (1 and 0 where it has none). For
    ``AutoencoderKL``, ``AutoencoderTiny`` and ``VQModel``, and others with ``decode`` and
    ``config.latent_channels``. A ``VQModel`` is decoded without its quantisation, whose derivative
    is zero: the metric is that of the decoder around and between the codebook's entries.

    Parameters
    ----------
    model
        The model, in evaluation mode; without slicing and tiling.
    shape
        Latent shape (channels, h, w).
    image_size
        Instead of it, the height and width of the decoded images, from which the latent shape
        follows by the model's scale.

    Raises
    ------
    ValueError
        Where neither or both are given, or the size is no multiple of the scale; for a ``VQModel``
        that looks its codes up by number.

    References
    ----------
    Rombach, Blattmann, Lorenz, Esser, Ommer, "High-Resolution Image Synthesis with Latent Diffusion
    Models", 2022, https://arxiv.org/abs/2112.10752.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, Mapping) or "latent_channels" not in config:
        required = "an autoencoder of diffusers, with `config.latent_channels`"
        raise TypeError(requirement("model", required, describe(model)))
    if (shape is None) == (image_size is None):
        required = "given, or `image_size`, one of the two"
        raise ValueError(requirement("shape", required, shape))
    if image_size is not None:
        shape = _latent_shape(config, image_size)
    fixed: dict[str, Any] = {}
    if "num_vq_embeddings" in config:
        if config["lookup_from_codebook"]:
            required = "one whose codes are not numbers of a codebook, which have no gradient"
            raise ValueError(requirement("model", required, "one with lookup_from_codebook"))
        fixed["force_not_quantize"] = True
    scale = config.get("scaling_factor") or 1.0
    shift = config.get("shift_factor") or 0.0

    def decode(z: Tensor, **fixed: Any) -> Any:
        return model.decode(z / scale + shift, **fixed)

    return decoder(decode, "sample", shape, **fixed)


def _latent_shape(config: Mapping[str, Any], image_size: object) -> tuple[int, ...]:
    """Return (channels, h, w) for images of a size, by the model's halvings."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    height, width = check_sizes("image_size", size)
    if "num_decoder_blocks" in config:  # AutoencoderTiny
        scale = config["upsampling_scaling_factor"] ** (len(config["num_decoder_blocks"]) - 1)
    else:
        scale = 2 ** (len(config["up_block_types"]) - 1)
    if height % scale or width % scale:
        raise ValueError(requirement("image_size", f"a multiple of {scale}", image_size))
    channels = config.get("vq_embed_dim") or config["latent_channels"]
    return (channels, height // scale, width // scale)


def gplvm(model: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the decoder (mean, standard deviation) of a Gaussian process latent variable model.

    For GPyTorch's ``BayesianGPLVM``, or any model that gives for codes (n, d) a multivariate normal
    distribution over the n codes for each of D outputs: its marginals' predictive mean and the
    square root of their variance, (n, D) each, without the likelihood's noise. For
    `GaussianPullbackMetric`, the expected metric of Tosi et al.

    Parameters
    ----------
    model
        The model, in evaluation mode.

    References
    ----------
    Titsias, Lawrence, "Bayesian Gaussian Process Latent Variable Model", AISTATS 2010. Tosi,
    Hauberg, Vellido, Lawrence, "Metrics for Probabilistic Geometries", UAI 2014,
    https://arxiv.org/abs/1411.7432.
    """
    check_function("model", model)

    def predict(z: Tensor) -> tuple[Tensor, Tensor]:
        found = model(z)
        return found.mean.mT, found.variance.mT.sqrt()

    return predict
