"""The error tree. Every error that depthkit raises on purpose is one of these.

    DepthkitError                  exit code 1: a fault in depthkit itself
    ├── UserError                  exit code 2: the request cannot be carried out
    │   ├── DataError              images, depth maps, csv files, folders
    │   ├── SpecError              ModelSpec or other JSON: schema, unknown or missing keys, sizes
    │   │   └── SchemaVersionError a document that another version of depthkit wrote
    │   ├── BundleError            a run folder
    │   ├── EngineError            an engine file or its manifest
    │   │   └── FrameError         an array of the wrong shape, dtype or memory layout
    │   ├── BackendError           a vendor library that is missing or reports an error
    │   ├── OutputError            a file or folder that cannot be written
    │   ├── ProtocolError          a request to a server, or its answer, does not follow the protocol
    │   └── TrainingError          training cannot continue (a loss that is not finite, no data)
    └── GateError                  exit code 3: a check ran and failed

A message says in one sentence per fault what is wrong, why, and how to fix it. The command line prints it without
a traceback.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BundleError",
    "DataError",
    "DepthkitError",
    "EngineError",
    "FrameError",
    "GateError",
    "OutputError",
    "ProtocolError",
    "SchemaVersionError",
    "SpecError",
    "TrainingError",
    "UserError",
    "first_line",
]


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message, whose others explain its source; its type if it has none."""
    return str(error).strip().partition("\n")[0].rstrip() or type(error).__name__


class DepthkitError(Exception):
    """Base of all errors that depthkit raises on purpose."""

    exit_code = 1


class UserError(DepthkitError):
    """The request cannot be carried out; the message says how to change it."""

    exit_code = 2


class DataError(UserError):
    """A picture, depth map, csv file or data folder is missing, damaged or unsuitable."""


class SpecError(UserError):
    """A ModelSpec or another JSON document is malformed or has another schema version."""


class SchemaVersionError(SpecError):
    """A document has a schema version that this version of depthkit does not read."""


class BundleError(UserError):
    """A run folder is incomplete or cannot be read."""


class EngineError(UserError):
    """An engine file or its manifest is missing, was changed, or was built for something else."""


class FrameError(EngineError):
    """An array does not have the shape, dtype or memory layout that the engine requires."""


class BackendError(UserError):
    """A vendor library is not installed, or reports an error."""


class OutputError(UserError):
    """A file or folder cannot be written."""


class ProtocolError(UserError):
    """A request to a server, or its answer, does not follow the protocol."""


class TrainingError(UserError):
    """Training cannot continue."""


class GateError(DepthkitError):
    """A check ran and failed."""

    exit_code = 3
