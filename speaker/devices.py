"""Where tensors live: a device by the name a user gave."""

import re

import torch

from speaker.errors import UserError


def find_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the fastest there is. Raises UserError when it cannot be used here."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    found = re.fullmatch(r"(cpu|cuda|mps)(?::([0-9]{1,3}))?", name)
    kind, number = found.groups() if found else ("", None)
    usable = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if not found or int(number or 0) >= usable[kind]:
        here = ", ".join(kind for kind, count in usable.items() if count)
        raise UserError(f"--device must be one that this machine has ({here}), but got {name!r}; try --device auto")
    return torch.device(name)
