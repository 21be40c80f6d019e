"""Reproduce the digits model that comes with the package: python scripts/train_digits_vae.py.

The model is written to runs/digits_vae/model.safetensors. The seed fixes it but for rounding, which
depends on the processor and on the releases of torch and scikit-learn, and which training enlarges.
"""

import sys
from pathlib import Path

import torch

from geolatent.cli import main

CONFIG = Path(__file__).parents[1] / "configs" / "train_digits_vae.yaml"

if __name__ == "__main__":
    # One thread adds up in one order, whatever the machine's number of cores.
    torch.set_num_threads(1)
    sys.exit(main(["train", "--config", str(CONFIG), *sys.argv[1:]]))
