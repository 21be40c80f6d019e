"""Chords between outputs, whose lengths add up to that of a curve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolatent.metrics.map import Map


@dataclass(frozen=True)
class Chords:
    """Squared lengths of chords between the outputs F(a) and F(b) of two codes near each other.

    Where F is an immersion, |F(b) - F(a)|^2. With weights, F(z) = (h, s, w) side by side and

        |h(b) - h(a)|^2 + sum_j (w_j(a) + w_j(b)) / 2 (s_j(b) - s_j(a))^2.

    Either is (b - a)^T G (b - a) up to terms of fourth order in b - a, with
    G = J_h^T J_h + J_s^T diag(w) J_s.

    Attributes
    ----------
    values
        The map F: (n, d) -> (n, D).
    n_weighted
        Number of entries of s, and of w.
    """

    values: Map
    n_weighted: int = 0

    def squares(self, first: Tensor, last: Tensor) -> Tensor:
        """Return the squared lengths between outputs (..., D), shape (...)."""
        change = last - first
        if not self.n_weighted:
            return change.square().sum(-1)
        plain, weighted, _ = self._split(change)
        weights = (self._split(first)[2] + self._split(last)[2]) / 2.0
        return plain.square().sum(-1) + (weights * weighted.square()).sum(-1)

    def gradients(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return the derivatives of a chain's energy by its inner outputs, (A, T - 2, D).

        The energy is 1/2 sum_i scale_i |chord_i|^2.

        Parameters
        ----------
        values
            Outputs along A chains, (A, T, D).
        scale
            Shape (T - 1,).
        """
        change = values.diff(dim=1)
        pull = change * scale[:, None]
        if not self.n_weighted:
            return pull[:, :-1] - pull[:, 1:]
        plain, weighted, _ = self._split(pull)
        weights = self._split(values)[2]
        # a weight counts by half in the two chords that meet in it
        by_weight = 0.25 * weighted * self._split(change)[1]
        weighted = weighted * (weights[:, 1:] + weights[:, :-1]) / 2.0
        return torch.cat(
            [
                plain[:, :-1] - plain[:, 1:],
                weighted[:, :-1] - weighted[:, 1:],
                by_weight[:, :-1] + by_weight[:, 1:],
            ],
            dim=2,
        )

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Take h, s and w apart."""
        w = self.n_weighted
        return values.split([values.shape[-1] - 2 * w, w, w], dim=-1)


def convergence_order(coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
    """Return the order at which sums of N, 2 N and 4 N chords converge, by their differences."""
    return torch.log2((middle - coarse) / (fine - middle))
