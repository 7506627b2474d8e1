"""A search as it is sent to other processes and machines: without the pack, which is large, and
which they may have.
"""

import io
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.study.search import WorkerSpec
from experiments.urls import sqlite_path
from speaker.common.devices import CPU
from speaker.data.pack import Pack, find_pack

TENSORS = ("frames", "offsets", "lengths", "labels")
SENT = ("AWS_", "AZURE_", "GOOGLE_", "MLFLOW_", "PG")  # variables of the stores begin so
Arrays = Mapping[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Parcel:
    """All that a worker elsewhere needs."""

    search: bytes
    about: Mapping[str, Any]  # the pack's fields besides its arrays
    environment: Mapping[str, str]


def seal(spec: WorkerSpec) -> Parcel:
    """Return a search as it can be opened by workers that are started in another folder."""
    context = spec.context
    spec = replace(
        spec,
        context=replace(context, checkpoints=context.checkpoints.resolve()),
        storage_url=_absolute(spec.storage_url),
        tracking_uri=_absolute(spec.tracking_uri),
    )
    stream = io.BytesIO()
    _Pickler(stream).dump(spec)
    about = {
        name: value for name, value in vars(spec.context.pack).items() if name not in TENSORS
    } | {"folder": spec.context.pack.folder.resolve()}
    environment = {key: value for key, value in os.environ.items() if key.startswith(SENT)}
    return Parcel(stream.getvalue(), about, environment)


def unseal(parcel: Parcel, arrays: Callable[[], Arrays]) -> WorkerSpec:
    """Return the search of a parcel, its pack on the CPU: the pack is this machine's own where it
    has the same, or else made of the `arrays`.
    """
    os.environ.update(parcel.environment)
    folder: Path = parcel.about["folder"]
    pack = find_pack(folder.parent, parcel.about["digest"]) or _pack_of(parcel.about, arrays())
    spec: WorkerSpec = _Unpickler(parcel.search, pack).load()
    return spec


def arrays_of(pack: Pack) -> Arrays:
    """Return the arrays of a pack, those of its file where it lies on a GPU."""
    if pack.frames.device.type != "cpu":
        pack = find_pack(pack.folder.parent, pack.digest) or pack.to(CPU)
    return {name: getattr(pack, name).numpy() for name in TENSORS}


def _pack_of(about: Mapping[str, Any], arrays: Arrays) -> Pack:
    with warnings.catch_warnings():
        # Shared memory can only be read, and nobody writes to a pack.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Pack(**{**about, **tensors})


class _Pickler(pickle.Pickler):
    def persistent_id(self, item: object) -> str | None:
        """Leave the pack out."""
        return "pack" if isinstance(item, Pack) else None


class _Unpickler(pickle.Unpickler):  # of what our own driver has sent
    def __init__(self, data: bytes, pack: Pack) -> None:
        super().__init__(io.BytesIO(data))
        self._pack = pack

    def persistent_load(self, _: object) -> Pack:
        """Put the pack in."""
        return self._pack


def _absolute(url: str) -> str:
    path = sqlite_path(url)
    return f"sqlite:///{path}" if path else url
