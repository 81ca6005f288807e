"""The error tree. Every error that depthkit raises on purpose is one of these.

    DepthkitError                  exit code 1: something depthkit itself got wrong
    ├── UserError                  exit code 2: the request cannot be met as it stands
    │   ├── DataError              images, depth maps, csv files, folders
    │   ├── SpecError              ModelSpec or other JSON: schema, unknown or missing keys, sizes
    │   │   └── SchemaVersionError a document that another depthkit wrote
    │   ├── BundleError            a run folder
    │   ├── EngineError            an engine file, its manifest, or the pair of them
    │   │   └── FrameError         an array whose shape, dtype or layout the engine does not take
    │   ├── BackendError           a vendor library that is missing or refuses
    │   ├── OutputError            a file or folder that cannot be written
    │   └── TrainingError          training cannot go on (a loss that is not finite, no data)
    └── GateError                  exit code 3: it ran, and what was asked for is not true

A message is one sentence (or one a fault) that says what, why and how to mend it; the command line prints it
without a traceback.
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
    "SchemaVersionError",
    "SpecError",
    "TrainingError",
    "UserError",
]


class DepthkitError(Exception):
    """Base of all errors that depthkit raises on purpose."""

    exit_code = 1


class UserError(DepthkitError):
    """The request cannot be met as it stands; the message says how to mend it."""

    exit_code = 2


class DataError(UserError):
    """A picture, depth map, csv file or data folder is missing, broken or does not fit."""


class SpecError(UserError):
    """A ModelSpec or another JSON document is malformed or of another schema version."""


class SchemaVersionError(SpecError):
    """A document of a schema version that this depthkit does not read."""


class BundleError(UserError):
    """A run folder is incomplete or cannot be read."""


class EngineError(UserError):
    """An engine file or its manifest is missing, altered or made for something else."""


class FrameError(EngineError):
    """An array does not have the shape, dtype or memory layout that the engine takes."""


class BackendError(UserError):
    """A vendor library is not installed, or refuses what was asked of it."""


class OutputError(UserError):
    """A file or folder cannot be written."""


class TrainingError(UserError):
    """Training cannot go on."""


class GateError(DepthkitError):
    """A check ran and failed: what was asked for is not true."""

    exit_code = 3
