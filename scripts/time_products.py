"""What products with Jacobians take beside the values, by the library's rules and by torch's.

    python scripts/time_products.py --batch 8 --repetitions 10

Decoders of common kinds with random weights, float32. For each: milliseconds for the values of a
batch; and how many times that long a Jacobian-vector product in forward mode takes, and the
gradient of its squared length (exponential maps, and metrics that have speeds alone). By torch's
rules the same passes are made with those of `geolatent.metrics.forward_rules` left out. The
smallest of several repetitions counts, the ways take turns. A table is printed, in Markdown.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from unittest import mock

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

import geolatent as gl
from geolatent.metrics import forward_rules


def residual(channels: int) -> nn.Sequential:
    """Return a block as decoders of diffusion models have them."""
    return nn.Sequential(
        nn.GroupNorm(8, channels),
        nn.SiLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.GroupNorm(8, channels),
        nn.SiLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


def decoders() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Return decoders by name, with the shape of a code."""
    torch.manual_seed(0)
    images = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1),
        residual(32),
        nn.Upsample(scale_factor=2),
        residual(32),
        nn.Conv2d(32, 3, 3, padding=1),
    )
    rows = nn.Sequential(
        nn.Linear(32, 256),
        nn.LayerNorm(256),
        nn.SiLU(),
        nn.Linear(256, 256),
        nn.LayerNorm(256),
        nn.SiLU(),
        nn.Linear(256, 784),
    )
    tokens = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True),
        2,
        enable_nested_tensor=False,
    )
    return {
        "perceptron, d = 2, ELU": (gl.models.digits_vae().decoder, (2,)),
        "perceptron, d = 32, LayerNorm, SiLU": (rows, (32,)),
        "DCGAN, d = 100, BatchNorm, ReLU": (gl.models.DCGAN().generator, (100,)),
        "convolutions, d = 1,024, GroupNorm, SiLU": (images, (4, 16, 16)),
        "transformer, d = 1,024": (tokens, (16, 64)),
    }


@contextmanager
def torchs_rules() -> Iterator[None]:
    """Leave the library's rules out."""
    with mock.patch.object(forward_rules, "RULES", {}):
        yield


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of work."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def times_of(decoder: nn.Module, shape: tuple[int, ...], batch: int, n: int) -> dict[str, float]:
    """Return the least seconds of values, and of products and gradients by both kinds of rules."""
    decoder.eval().requires_grad_(False)
    z, v = (0.5 * torch.randn(batch, *shape).flatten(1) for _ in range(2))
    point = z.clone().requires_grad_()
    best: dict[str, float] = {}

    def note(what: str, work: Callable[[], object]) -> None:
        best[what] = min(best.get(what, torch.inf), seconds(work))

    for name, rules in (("ours", nullcontext()), ("torch", torchs_rules())):
        metric = gl.PullbackMetric(decoder).shaped(shape)
        with rules, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's gradients may be wrong, and are replaced
            metric.check("z", z)
            # without the checks of what comes from outside
            product = partial(metric._quadratic, z, v)
            with_graph = partial(metric._quadratic, point, v)

            def gradient(with_graph: Callable[[], Tensor] = with_graph) -> Tensor:
                return torch.autograd.grad(with_graph().sum(), point)[0]

            gradient()  # finds out how
            for _ in range(n):
                with torch.no_grad():
                    note("value", lambda: decoder(z.reshape(-1, *shape)))
                    note(f"product, {name}", product)
                note(f"gradient, {name}", gradient)
    return best


def measure(batch: int = 8, repetitions: int = 10) -> None:
    """Print the table.

    Args:
        batch: Codes at once.
        repetitions: Of which the quickest counts.
    """
    torch.set_num_threads(1)
    print("| decoder | value (ms) | product | by torch's rules | gradient | by torch's rules |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, (decoder, shape) in decoders().items():
        took = times_of(decoder, shape, batch, repetitions)
        columns = ("product, ours", "product, torch", "gradient, ours", "gradient, torch")
        ratios = " | ".join(f"{took[each] / took['value']:.1f}" for each in columns)
        print(f"| {name} | {1e3 * took['value']:.2f} | {ratios} |", flush=True)


if __name__ == "__main__":
    sys.exit(auto_cli(measure, as_positional=False))
