"""Train the digits model that comes with the package: python scripts/train_digits_vae.py.

The seed fixes it but for rounding, which depends on the processor and on the releases of torch and
scikit-learn, and which training enlarges.
"""

from pathlib import Path

import torch
from jsonargparse import auto_cli

from geolatent.training import train_digits_vae

CONFIG = Path(__file__).parents[1] / "configs" / "train_digits_vae.yaml"

if __name__ == "__main__":
    # One thread adds up in one order, whatever the machine's number of cores.
    torch.set_num_threads(1)
    auto_cli(
        train_digits_vae,
        as_positional=False,
        default_config_files=[str(CONFIG)],
        allow_abbrev=False,
    )
