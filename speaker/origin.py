"""Where a result comes from: commit, versions and device, as tags of a run."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "optuna", "mlflow", "numpy", "sqlalchemy")


def origin(device: torch.device) -> dict[str, str]:
    """Return what must be known to get a run's numbers again, besides its config and corpus."""
    tags = {f"version.{name}": version(name) for name in PACKAGES}
    tags["version.python"] = platform.python_version()
    tags["device"] = device_name(device)
    if commit := _git("rev-parse", "HEAD"):
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def device_name(device: torch.device) -> str:
    """Return a device in words, the number of CPU threads included: results are bit-equal only for the same number."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    name = f"{device.type}: {platform.machine()}"
    return f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else name


def _git(*arguments: str) -> str:
    """Return what git says, or nothing: the program may be missing, and the code may have come without its history."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
