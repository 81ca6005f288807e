"""Write docs/bench.schema.json from the types of `bench/results.py`, or check (`--check`) that it is up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from depthkit.bench.results import MAY_BE_NAN, BenchResult

GOAL = Path(__file__).with_name("bench.schema.json")


def schema() -> dict[str, Any]:
    """What `depthkit bench --json` writes, in JSON Schema's draft 2020-12."""
    found = TypeAdapter(BenchResult).json_schema(mode="serialization")
    for name, kind in (("BenchResult", found), *found["$defs"].items()):
        if kind.get("type") != "object":
            continue
        properties = kind["properties"]
        kind["required"] = list(properties)  # also what has a default is written, and demanded when it is read
        for figure in MAY_BE_NAN.get(name, ()):
            properties[figure] = {"anyOf": [properties[figure], {"type": "null"}]}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$id": "https://raw.githubusercontent.com/depthkit/depthkit/main/docs/bench.schema.json",
        **found,
        "title": "depthkit bench",
        "description": "What `depthkit bench --json FILE` writes. Written by `make docs` from depthkit.bench.results. "
        "Milliseconds, bytes and metres; null stands for what was not measured, and for a figure that is no number.",
    }


def main() -> int:
    """Write, or compare."""
    text = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv:
        GOAL.write_text(text, encoding="utf-8")
        return 0
    if GOAL.is_file() and GOAL.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{GOAL} is not what bench/results.py says; run `make docs`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
