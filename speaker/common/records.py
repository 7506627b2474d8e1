"""JSON to a dataclass, every field of the type that it declares."""

from pathlib import Path
from typing import Any, TypeVar

from speaker.common.errors import UserError
from speaker.common.files import canonical_json, parse_json

T = TypeVar("T")
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
