"""The small trained model that comes with the package."""

from __future__ import annotations

from pathlib import Path

import torch

from geolatent.models.checkpoint import load_model
from geolatent.models.vae import MLPVAE


def digits_vae(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> MLPVAE:
    """Load a trained 2-d variational autoencoder of scikit-learn's 8 x 8 digits.

    Fully connected, with ELU and a tanh mean in [-1, 1]; the decoder's standard deviation is an
    RBF precision network of 64 centres. It was trained on the training split of
    `geolatent.data.digits` by ``scripts/train_digits_vae.py``.

    Parameters
    ----------
    dtype
        Floating-point type of the parameters.
    device
        Where to put the model.

    Returns
    -------
    MLPVAE
        In evaluation mode, with parameters that do not require gradients.

    References
    ----------
    G. Arvanitidis, L. K. Hansen, S. Hauberg, "Latent Space Oddity: on the Curvature of Deep
    Generative Models", 2018, arXiv:1710.11379.

    Examples
    --------
    >>> vae = digits_vae()
    >>> mean, std = vae.decode(torch.tensor([[0.0, 0.0], [30.0, 0.0]]))
    >>> bool(std[1].min() > std[0].max())
    True
    """
    model = load_model(Path(__file__).with_name("digits_vae.safetensors"), device, dtype)
    if not isinstance(model, MLPVAE):
        raise TypeError(f"The packaged digits model is a {type(model).__name__}, not an MLPVAE.")
    return model.requires_grad_(False)
