"""Read runs that trtexec timed as a row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, TypeAlias

from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..errors import DataError
from .results import Row, Throughput

__all__ = ["read_trtexec"]

_SHORTEST_MS: Final = 1e-6
_LONGEST_MS: Final = 1e10
"""Four months. With both bounds, no derived figure overflows or divides by zero."""
_Time: TypeAlias = Annotated[float, Field(ge=0, le=_LONGEST_MS, allow_inf_nan=False)]
_MANY_FAULTS: Final = 3


@dataclass(frozen=True, config=ConfigDict(extra="ignore", strict=True))
class _Query:
    """A run as trtexec writes it (TensorRT 8.5 and newer; the second names are older ones'); milliseconds.

    Enqueue times are by the host's clock, all others by the device's; the two have no common zero.
    """

    enqueue_start: Annotated[_Time, Field(validation_alias="startEnqMs")]
    enqueue_end: Annotated[_Time, Field(validation_alias="endEnqMs")]
    start: Annotated[_Time, Field(validation_alias=AliasChoices("startH2dMs", "startInMs"))]
    end: Annotated[_Time, Field(validation_alias=AliasChoices("endD2hMs", "endOutMs"))]
    h2d: Annotated[_Time, Field(validation_alias=AliasChoices("h2dMs", "inMs"))]
    compute: Annotated[_Time, Field(validation_alias="computeMs")]
    d2h: Annotated[_Time, Field(validation_alias=AliasChoices("d2hMs", "outMs"))]
    latency: Annotated[_Time, Field(validation_alias="latencyMs", ge=_SHORTEST_MS)]

    def __post_init__(self) -> None:
        if self.enqueue_end < self.enqueue_start or self.end - self.start < _SHORTEST_MS:
            raise ValueError("it ends before it begins")


def read_trtexec(path: Path) -> Row:
    """Read a file of `trtexec --exportTimes=FILE.json` with one stream.

    Latency is trtexec's: host to device, computing, and device to host. Its runs overlap, so throughput is queries over
    the time from the start of the first to the end of the last, by the device's clock. The file has no network, size,
    batch or precision: they stay empty, and a query counts as one frame.

    Raises:
        DataError: missing, or not such a file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; write it with `trtexec --exportTimes={path.name}`"
        ) from error
    try:
        queries = TypeAdapter(Annotated[list[_Query], Field(min_length=1)]).validate_json(content)
    except ValidationError as error:
        raise DataError(
            f"{path} is not a complete file of trtexec --exportTimes: {_faults(error)}; "
            f"run `trtexec --exportTimes={path.name}` again"
        ) from error
    return _row(path, queries)


def _row(path: Path, queries: list[_Query]) -> Row:
    seconds = (max(query.end for query in queries) - min(query.start for query in queries)) / 1000
    return Row(
        network="",
        backend="trtexec",
        target=path.name,
        kind="trtexec",
        provider="",
        precision_asked="",
        precision="",
        size=None,
        batch=1,
        parameters=None,
        macs=None,
        file_bytes=None,
        wall_ms=tuple(query.latency for query in queries),
        turns=(len(queries),),
        phases={
            "h2d": tuple(query.h2d for query in queries),
            "device": tuple(query.compute for query in queries),
            "d2h": tuple(query.d2h for query in queries),
            "enqueue": tuple(query.enqueue_end - query.enqueue_start for query in queries),
        },
        throughput=Throughput(streams=1, batch=1, frames=len(queries), seconds=seconds),
        memory=None,
        energy_j=None,
        macs_share=None,
        roofline=None,
        layers=(),
        parity=None,
        diverges="",
        accuracy=None,
        faults=(),
        notes=(),
        error="",
    )


def _faults(error: ValidationError) -> str:
    """The first faults only: a file of thousands of queries may have thousands."""
    found = [f"{'.'.join(map(str, each['loc'])) or 'document'}: {each['msg']}" for each in error.errors()]
    more = [f"and {len(found) - _MANY_FAULTS} more"] if len(found) > _MANY_FAULTS else []
    return ", ".join(found[:_MANY_FAULTS] + more)
