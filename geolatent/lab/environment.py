"""Where a run takes place: versions, device, seed, git commit, platform."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from geolatent._version import __version__

_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pyarrow", "safetensors")


def environment(command: str, seed: int, device: torch.device) -> dict[str, Any]:
    """Describe where a run takes place: versions, device, seed, git commit, platform.

    The names of machine, user and folders are left out.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "command": command,
        "geolatent": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": f"{platform.system()} {platform.release()}",
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    versions = {package: metadata.version(package) for package in _PACKAGES}
    try:
        return {**versions, "lightning": metadata.version("lightning")}
    except metadata.PackageNotFoundError:  # it comes with an extra
        return versions


def _git_commit() -> str | None:
    """Return the commit of the package's checkout, marked where files differ from it, or None."""
    here = Path(__file__)

    def git(*words: str) -> str | None:
        try:
            result = subprocess.run(
                # reading takes no lock: a process that dies here leaves none in the checkout
                ["git", "--no-optional-locks", "-C", str(here.parent), *words],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    # an installed copy inside someone else's repository has no commit of its own
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if commit and changed else commit
