"""Recurrent networks for sequences: a variational autoencoder of windows, and a forecaster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geolatent.checks import check_batch, check_integer, check_sizes, requirement
from geolatent.models.vae import VAE


class GatedCell(nn.Module):
    r"""Gated recurrent unit, of linear layers.

        r = s(W_r x + U_r h),   u = s(W_u x + U_u h),   n = tanh(W_n x + r * (U_n h)),
        h' = n + u * (h - n)

    with the logistic function s and biases in W and U. These are the numbers of
    ``torch.nn.GRUCell``, whose fused kernels lack forward-mode rules and second derivatives on some
    devices; this one has them everywhere, in every dtype.

    Parameters
    ----------
    inputs
        Size of x.
    hidden
        Size of h.

    References
    ----------
    K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
    Machine Translation", 2014, arXiv:1406.1078.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.of_input = nn.Linear(inputs, 3 * hidden)
        self.of_state = nn.Linear(hidden, 3 * hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the next hidden state, (n, inputs), (n, hidden) -> (n, hidden)."""
        return self.gated(self.of_input(x), h)

    def gated(self, driven: Tensor, h: Tensor) -> Tensor:
        """Return the next hidden state from what ``of_input`` makes of the input."""
        reset, update, new = driven.chunk(3, -1)
        of_reset, of_update, of_new = self.of_state(h).chunk(3, -1)
        candidate = torch.tanh(new + torch.sigmoid(reset + of_reset) * of_new)
        return candidate + torch.sigmoid(update + of_update) * (h - candidate)


class SequenceEncoder(nn.Module):
    """Windows to the parameters of their codes: a gated unit that reads from the end to the start.

    Its last state is thus that of the start, from which a decoder unrolls.

    Parameters
    ----------
    columns
        Numbers at each step of time.
    hidden
        Size of the state.
    outputs
        Numbers returned.
    both_ways
        Read from the start to the end too, by a unit of its own.
    """

    def __init__(self, columns: int, hidden: int, outputs: int, both_ways: bool) -> None:
        super().__init__()
        self.backwards = GatedCell(columns, hidden)
        self.forwards = GatedCell(columns, hidden) if both_ways else None
        self.head = nn.Linear(hidden * (2 if both_ways else 1), outputs)

    def forward(self, windows: Tensor) -> Tensor:
        """Return (n, 1, T, columns) -> (n, outputs)."""
        rows = windows[:, 0]
        last = [_read(self.backwards, rows.flip(1))]
        if self.forwards is not None:
            last.append(_read(self.forwards, rows))
        return self.head(torch.cat(last, -1))


def _read(cell: GatedCell, rows: Tensor) -> Tensor:
    """Return the state after rows (n, T, k), from a state of zeros."""
    h = rows.new_zeros(len(rows), cell.hidden)
    for driven in cell.of_input(rows).unbind(1):
        h = cell.gated(driven, h)
    return h


class SequenceDecoder(nn.Module):
    """Codes to windows: a gated unit, whose first state and every input the code makes.

    Parameters
    ----------
    latent_dim
        Size of a code.
    hidden
        Size of the state.
    n_steps, columns
        Rows and columns of a window.
    """

    def __init__(self, latent_dim: int, hidden: int, n_steps: int, columns: int) -> None:
        super().__init__()
        self.n_steps = n_steps
        self.start = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
        )
        self.cell = GatedCell(latent_dim, hidden)
        self.head = nn.Linear(hidden, columns)

    def forward(self, z: Tensor) -> Tensor:
        """Return (n, d) -> (n, T, columns)."""
        h, driven = self.start(z), self.cell.of_input(z)
        states = []
        for _ in range(self.n_steps):
            h = self.cell.gated(driven, h)
            states.append(h)
        return self.head(torch.stack(states, 1))


class RecurrentVAE(VAE):
    """Variational autoencoder of sequences: a gated recurrent unit encodes, another decodes.

    A sequence is an image of one channel, (1, T, k): T steps of time of k numbers. All operations
    are smooth, so that the pull-back metric of the decoder is.

    Parameters
    ----------
    latent_dim
        Latent dimension d.
    hidden
        Size of the recurrent states.
    image_shape
        (1, T, k).
    both_ways
        Whether the encoder reads sequences from both ends.
    n_centers
        Centres of the RBF precision network; 0 for a constant standard deviation. Leave it 0 and
        call `VAE.fit_precision`, unless the parameters come from a checkpoint.

    References
    ----------
    O. Fabius, J. R. van Amersfoort, "Variational Recurrent Auto-Encoders", 2015, arXiv:1412.6581.

    Examples
    --------
    >>> model = RecurrentVAE(latent_dim=2, hidden=8, image_shape=(1, 16, 3))
    >>> mean, std = model.decode(torch.zeros(5, 2))
    >>> mean.shape, std.shape
    (torch.Size([5, 1, 16, 3]), torch.Size([5, 1, 16, 3]))
    """

    def __init__(
        self,
        latent_dim: int = 3,
        hidden: int = 64,
        image_shape: Sequence[int] = (1, 32, 3),
        both_ways: bool = False,
        n_centers: int = 0,
    ) -> None:
        check_integer("latent_dim", latent_dim)
        check_integer("hidden", hidden)
        _, n_steps, columns = _sequence_shape(image_shape)
        super().__init__(
            SequenceEncoder(columns, hidden, 2 * latent_dim, both_ways),
            SequenceDecoder(latent_dim, hidden, n_steps, columns),
            latent_dim,
            image_shape,
            {
                "latent_dim": latent_dim,
                "hidden": hidden,
                "image_shape": list(image_shape),
                "both_ways": both_ways,
            },
            n_centers,
        )


def _sequence_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape of a sequence, (1, T, k)."""
    sizes = check_sizes("image_shape", shape)
    if len(sizes) != 3 or sizes[0] != 1:
        required = "(1, T, k), a sequence of T steps of k numbers"
        raise ValueError(requirement("image_shape", required, shape))
    return sizes[0], sizes[1], sizes[2]
