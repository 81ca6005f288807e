"""Write frozen dataclasses as JSON, and read them back strictly.

Unknown keys, missing keys, wrong types and other schema versions are errors; the message lists all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import SchemaVersionError, SpecError

__all__ = ["STRICT", "from_json", "is_version", "to_json"]

STRICT: Final = ConfigDict(extra="forbid", strict=True)
"""Configuration of pydantic dataclasses: unknown keys are errors, and types are not converted."""

_Document = TypeVar("_Document")


def to_json(document: object) -> str:
    """A frozen dataclass as indented JSON with a final newline."""
    return TypeAdapter(type(document)).dump_json(document, indent=2).decode() + "\n"


def from_json(kind: type[_Document], text: str | bytes, *, source: str) -> _Document:
    """Read a document of class `kind`. Keys with a default are required too; `source` names the document in errors.

    A class that still reads older versions has a static method `upgrade(raw)`, which changes them in place, and calls
    the `upgrade` of the documents in it.

    Raises:
        SpecError: it is not JSON, has another schema version, or has invalid keys or values (all are listed).
    """
    try:
        raw: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{source} is not JSON ({error}); make it again") from error
    if isinstance(raw, dict) and (upgrade := getattr(kind, "upgrade", None)) is not None:
        upgrade(raw)
        text = json.dumps(raw)
    known: int = kind.schema_version  # type: ignore[attr-defined]
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(found) is not int or found != known:
        raise SchemaVersionError(
            f"{source} has schema version {found}, and this depthkit reads version {known}; "
            "make it again with this depthkit, or install the one that wrote it"
        )
    try:
        document = TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors())
        raise SpecError(f"{source} does not fit its schema: {faults}") from error
    except SpecError as error:  # from a check of the size, which has its own message
        raise SpecError(f"{source} does not fit its schema: {error}") from error
    whole = TypeAdapter(kind).dump_json(document, exclude_computed_fields=True)
    missing = ", ".join(_missing(json.loads(whole), raw))
    if missing:
        raise SpecError(f"{source} does not fit its schema: it lacks {missing}")
    return document


def is_version(raw: Any, version: int) -> bool:
    """Whether `raw` is a JSON object of this schema version. For `upgrade`; JSON's `true` and `1.0` are no versions."""
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    return type(found) is int and found == version


def _missing(whole: Any, found: Any, path: str = "") -> Iterator[str]:
    """Keys of `whole` that `found` lacks, because pydantic filled in their defaults."""
    if isinstance(whole, dict):
        for key, value in whole.items():
            if key in found:
                yield from _missing(value, found[key], f"{path}{key}.")
            else:
                yield path + key
    elif isinstance(whole, list):
        for index, (value, other) in enumerate(zip(whole, found, strict=True)):
            yield from _missing(value, other, f"{path}{index}.")
