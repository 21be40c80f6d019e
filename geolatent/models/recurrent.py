"""Recurrent networks for sequences: a variational autoencoder of windows, and a forecaster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geolatent.checks import check_batch, check_integer, check_sizes, requirement
from geolatent.models.vae import VAE

# share of sequences that begin with the hidden state of another
_OTHERS = 0.9


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


class Forecaster(nn.Module):
    r"""Predicts the next of a sequence of states with a gated recurrent unit, and so on from there.

        h_{t+1} = GRU(x_t, h_t),    x_{t+1} = c(x_t + s * (W h_{t+1} + b))

    with the standard deviation s of each column's change from step to step in the training
    sequences; c brings columns that are cosine and sine of an angle back to the unit circle. The
    pair (x, h) is the state of an autonomous map, `step`, whose orbits are the forecasts.

    Parameters
    ----------
    hidden
        Size of h.
    image_shape
        (1, T, k), the sequences that it is trained on.
    forced
        Steps of those that are read before the network goes on by itself, at least 1 and below T;
        `loss` has both parts.
    circles
        Pairs of columns, cosine and sine of an angle each.

    References
    ----------
    P. R. Vlachas et al., "Data-driven forecasting of high-dimensional chaotic systems with long
    short-term memory networks", 2018, doi:10.1098/rspa.2017.0844. J. Pathak et al., "Using machine
    learning to replicate chaotic attractors and calculate Lyapunov exponents from data", 2017,
    arXiv:1710.07313.

    Examples
    --------
    >>> model = Forecaster(hidden=8, image_shape=(1, 16, 3), forced=4)
    >>> model.forecast(torch.zeros(5, 10, 3), n_steps=20).shape
    torch.Size([5, 20, 3])
    """

    scale: Tensor

    def __init__(
        self,
        hidden: int = 64,
        image_shape: Sequence[int] = (1, 32, 3),
        forced: int = 8,
        circles: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        check_integer("hidden", hidden)
        _, n_steps, columns = _sequence_shape(image_shape)
        check_integer("forced", forced)
        if forced >= n_steps:
            required = f"below {n_steps}, the steps of a sequence"
            raise ValueError(requirement("forced", required, forced))
        pairs = [tuple(pair) for pair in circles]
        every = [column for pair in pairs for column in pair]
        if any(len(pair) != 2 for pair in pairs) or len(set(every)) != len(every):
            raise ValueError(requirement("circles", "pairs of columns, each of one pair", circles))
        if not set(every) <= set(range(columns)):
            raise ValueError(requirement("circles", f"columns below {columns}", circles))
        self.hidden = hidden
        self.image_shape = tuple(image_shape)
        self.forced = forced
        self.cell = GatedCell(columns, hidden)
        self.head = nn.Linear(hidden, columns)
        self.register_buffer("scale", torch.ones(columns))
        # of other columns the sum of squares has no meaning
        self._circles = pairs

    @property
    def columns(self) -> int:
        """Numbers at each step of time, k."""
        return self.image_shape[2]

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that build a model with this one's parameters."""
        return {
            "hidden": self.hidden,
            "image_shape": list(self.image_shape),
            "forced": self.forced,
            "circles": [list(pair) for pair in self._circles],
        }

    @torch.no_grad()
    def initialise(self, images: Tensor, generator: torch.Generator | None = None) -> None:  # noqa: ARG002
        """Take the columns' changes from step to step in sequences as their scale."""
        check_batch("images", images, self.image_shape)
        change = images.diff(dim=2).square().mean((0, 1, 2), dtype=torch.float64).sqrt()
        # a column that never changes stays as it is
        self.scale.copy_(change)

    def step(self, state: Tensor) -> Tensor:
        """Return the next of states (x, h), (n, k + hidden) -> (n, k + hidden)."""
        x, h = state.split((self.columns, self.hidden), -1)
        h = self.cell(x, h)
        return torch.cat([self._on_circles(x + self.scale * self.head(h)), h], -1)

    def _on_circles(self, x: Tensor) -> Tensor:
        if not self._circles:
            return x
        columns = list(x.unbind(-1))
        for first, second in self._circles:
            a, b = columns[first], columns[second]
            norm = (a * a + b * b).rsqrt()
            columns[first], columns[second] = a * norm, b * norm
        return torch.stack(columns, -1)

    def read(self, rows: Tensor) -> Tensor:
        """Return the state (x, h) at the last of rows (n, T, k), (n, k + hidden)."""
        return torch.cat([rows[:, -1], _read(self.cell, rows[:, :-1])], -1)

    def forecast(self, rows: Tensor, n_steps: int) -> Tensor:
        """Go on from rows (n, T, k) by itself, (n, n_steps, k)."""
        state = self.read(rows)
        found = []
        for _ in range(check_integer("n_steps", n_steps)):
            state = self.step(state)
            found.append(state[:, : self.columns])
        return torch.stack(found, 1)

    def errors(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        r"""Return the errors of the next rows of sequences, (n, 1, T, k) -> (n, T - 1, k), in s.

        Those of the first ``forced`` rows come after true ones, those of the rest after the
        network's own. It begins with hidden states (n, hidden), by default zeros.
        """
        return self._unrolled(images, hidden)[0]

    def _unrolled(self, images: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the errors and the last hidden states."""
        check_batch("images", images, self.image_shape)
        rows = images[:, 0]
        hidden = rows.new_zeros(len(rows), self.hidden) if hidden is None else hidden
        state = torch.cat([rows[:, 0], hidden], -1)
        predicted = []
        for number in range(rows.shape[1] - 1):
            if 0 < number < self.forced:
                state = torch.cat([rows[:, number], state[:, self.columns :]], -1)
            state = self.step(state)
            predicted.append(state[:, : self.columns])
        scale = torch.where(self.scale > 0, self.scale, torch.ones_like(self.scale))
        return (torch.stack(predicted, 1) - rows[:, 1:]) / scale, state[:, self.columns :]

    def loss(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean squared `errors` of sequences, (n, 1, T, k) -> (n,).

        Nine of ten begin with the hidden state in which another sequence of the batch ended: the
        network learns to forget it. One that has always begun with zeros knows its hidden states
        for T steps alone, and wanders off the attractor when it goes on for longer.
        """
        with torch.no_grad():
            hidden = self._unrolled(images)[1].roll(1, 0)
            others = torch.rand(len(images), 1, generator=generator, device=images.device) < _OTHERS
        return self.errors(images, hidden * others).square().mean((1, 2))
