"""Check InferenceServices against the classes that KServe and Kubernetes generate from their OpenAPI schema.

    python3 -m venv /somewhere && /somewhere/bin/pip install pyyaml six kubernetes
    /somewhere/bin/pip install --no-deps kserve
    /somewhere/bin/python tests/kserve_schema.py containers/inferenceservice.yaml

It prints each fault: an unknown field, a missing one, a value of another type or of another pattern. It runs in an
environment of its own, because kserve brings another web server.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

SCALARS: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def classes() -> dict[str, type]:
    """The models by their names. The package's own start, which imports its server, is left out."""
    package = types.ModuleType("kserve")
    found = importlib.util.find_spec("kserve")
    assert found is not None, "pip install --no-deps kserve"
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["kserve"] = package
    modules = [importlib.import_module(name) for name in ("kubernetes.client.models", "kserve.models")]
    # By `dir`, because Kubernetes' classes are imported when they are first asked for.
    found_classes = ((name, getattr(module, name)) for module in modules for name in dir(module))
    return {name: value for name, value in found_classes if isinstance(value, type)}


def faults(value: Any, kind: str, known: dict[str, type], place: str) -> Iterator[str]:
    """Where `value` is not of the OpenAPI type `kind`."""
    if found := re.fullmatch(r"[Ll]ist\[(.+)\]|[Dd]ict[(\[]\w+, (.+)[)\]]", kind):
        outer: type = list if found[1] else dict
        if not isinstance(value, outer):
            yield f"{place}: {value!r} is no {outer.__name__}"
            return
        entries: Any = value
        for key, each in enumerate(entries) if found[1] else entries.items():
            yield from faults(each, found[1] or found[2], known, f"{place}.{key}")
    elif kind in SCALARS:
        if not isinstance(value, SCALARS[kind]) or (kind != "bool" and isinstance(value, bool)):
            yield f"{place}: {value!r} is no {kind}"
    elif kind in known and hasattr(known[kind], "openapi_types"):
        yield from _fields(value, known[kind], known, place)
    elif kind != "object":
        yield f"{place}: the type {kind} is unknown"


def _fields(value: Any, model: Any, known: dict[str, type], place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place}: {value!r} is no mapping"
        return
    names = {there: here for here, there in model.attribute_map.items()}
    for key in value.keys() - names.keys():
        yield f"{place}: there is no field {key}"
    try:  # the constructor refuses what lacks a required field
        model(**{names[key]: each for key, each in value.items() if key in names})
    except ValueError as error:
        yield f"{place}: {error}"
    for key in value.keys() & names.keys():
        yield from faults(value[key], model.openapi_types[names[key]], known, f"{place}.{key}")


def main() -> int:
    """Print the faults of a file of InferenceServices."""
    known, found = classes(), []
    for document in yaml.safe_load_all(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if (document.get("apiVersion"), document.get("kind")) != ("serving.kserve.io/v1beta1", "InferenceService"):
            found.append(f"{document.get('kind')} is no InferenceService of serving.kserve.io/v1beta1")
        found += faults(document, "V1beta1InferenceService", known, document["metadata"]["name"])
    print("\n".join(found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
