"""JSON to a dataclass, every field of the type that it declares; and a seal on one, by which a
changed file is told.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from speaker.common.errors import UserError
from speaker.common.files import canonical_json, parse_json

T = TypeVar("T")
S = TypeVar("S", bound="Sealed")
_ADAPTERS: dict[Any, Any] = {}  # by dataclass: each is built once


def parse_record(kind: type[T], data: bytes, path: Path, advice: str) -> T:
    """Return the dataclass `kind` that a JSON object holds, dataclasses within it too.

    Values are not converted: "3" is no int. Fields that `kind` does not have are ignored. Raises
    UserError, which names the file and the field and ends with `advice`.
    """
    from pydantic import TypeAdapter, ValidationError  # a tenth of a second; --help does without

    value = parse_json(data, path)
    adapter = _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    try:
        return adapter.validate_json(canonical_json(value), strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "it"
        raise UserError(
            f"{path}: every field must be of its type, but {where} is wrong "
            f"({fault['msg'][:200]}); {advice}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A record that carries the sha256 of its other fields, and of what belongs to it."""

    sha256: str = ""  # hex; nothing in records of older programs, which cannot be told

    def sealed(self: S, *belonging: bytes) -> S:
        """Return this record with its seal."""
        digest = hashlib.sha256(canonical_json({**asdict(self), "sha256": ""}).encode())
        for data in belonging:
            digest.update(hashlib.sha256(data).digest())
        return replace(self, sha256=digest.hexdigest())

    def is_whole(self, *belonging: bytes) -> bool:
        """Tell whether nothing has changed since the record was sealed, if it was."""
        return not self.sha256 or self == self.sealed(*belonging)
