"""Problems with known answers that several test files share."""

import torch


def sphere(z):
    """Inverse stereographic projection from the north pole; |z| <= 1 is the lower half."""
    square = z.square().sum(1, keepdim=True)
    return torch.cat([2 * z, square - 1], dim=1) / (square + 1)


def sphere_distance(a, b):
    """Great-circle distance; an arc of angle w has the chord 2 sin(w / 2)."""
    return 2 * ((sphere(a) - sphere(b)).norm(dim=-1) / 2).asin()


def half_plane(z):
    """Poincare's metric (dx^2 + dy^2) / y^2."""
    return torch.eye(2, dtype=z.dtype, device=z.device) / z[:, 1, None, None] ** 2


def half_plane_distance(a, b):
    """By cosh d = 1 + |a - b|^2 / (2 y y'), that is sinh(d / 2) = |a - b| / (2 sqrt(y y'))."""
    return 2 * ((a - b).norm(dim=1) / (2 * (a[:, 1] * b[:, 1]).sqrt())).asinh()
