"""The reference that travels with a model: frames, and what torch answered for them in FP32.

`<stem>.reference.npz` lets any machine, without torch and without the data set, answer the question "is this engine
still the network that was trained?"
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import EngineError
from .files import atomic_write
from .precisions import PRECISIONS

__all__ = ["Reference", "find_reference", "onnx_stem", "read_reference", "reference_path", "write_reference"]


@dataclass(frozen=True, eq=False)
class Reference:
    """Frames of the engine's size with torch's answers.

    Attributes:
        images: N x H x W x 3, uint8.
        depths: N x H x W, float32 metres: torch, FP32.
        truths: N x H x W, float32 metres: measured; 0 where it was not.
        weights_sha256: of the run's weights that answered.
    """

    images: np.ndarray
    depths: np.ndarray
    truths: np.ndarray
    weights_sha256: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.depths.shape[1:]
        return height, width


def onnx_stem(onnx: Path) -> str:
    """What `<stem>.<precision>.onnx` shares with its reference and engines; of a renamed file all before `.onnx`.

    >>> onnx_stem(Path("runs/compact-96x128.fp16.onnx")), onnx_stem(Path("v1.2.onnx")), onnx_stem(Path("a.onnx"))
    ('compact-96x128', 'v1.2', 'a')
    """
    name = onnx.name.removesuffix(".onnx")
    stem, _, precision = name.rpartition(".")
    return stem if stem and precision in PRECISIONS else name


def reference_path(onnx: Path) -> Path:
    """`<stem>.reference.npz`, which all precisions of `<stem>.<precision>.onnx` share.

    >>> reference_path(Path("runs/compact/compact-96x128.fp16.onnx")).name
    'compact-96x128.reference.npz'
    """
    return onnx.with_name(f"{onnx_stem(onnx)}.reference.npz")


def find_reference(onnx: Path, weights_sha256: str, size: tuple[int, int]) -> Path:
    """The reference of an ONNX file that may have been renamed: beside it, of its weights and size.

    That of its own name comes first, and is what is missing where none fits.
    """
    named = reference_path(onnx)
    beside = (named, *sorted(onnx.parent.glob("*.reference.npz")))
    return next((path for path in beside if _answers(path, weights_sha256, size)), named)


def _answers(path: Path, weights_sha256: str, size: tuple[int, int]) -> bool:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return str(content["weights_sha256"]) == weights_sha256 and content["depths"].shape[1:] == size
    except Exception:  # noqa: BLE001 - see `read_reference`, which says what is wrong with it
        return False


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference, whole or not at all. Raises OutputError."""
    with atomic_write(path) as temporary:
        np.savez_compressed(
            temporary,
            images=reference.images,
            depths=reference.depths,
            truths=reference.truths,
            weights_sha256=np.array(reference.weights_sha256),
        )


def read_reference(path: Path) -> Reference:
    """Read a reference. Raises EngineError when it is missing, damaged or not one."""
    if not path.is_file():
        raise EngineError(
            f"there is no reference {path}; copy it beside the engine, or make both with `depthkit export`"
        )
    try:
        # Opened here, because NumPy leaves the file open where the archive is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            weights_sha256 = str(content["weights_sha256"])
            reference = Reference(content["images"], content["depths"], content["truths"], weights_sha256)
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds on damaged bytes
        raise EngineError(f"{path} is no reference ({error}); make it again with `depthkit export`") from error
    images, depths, truths = reference.images, reference.depths, reference.truths
    fits = depths.ndim == 3 and len(depths) > 0 and images.shape == (*depths.shape, 3) and truths.shape == depths.shape
    if not fits or [a.dtype.name for a in (images, depths, truths)] != ["uint8", "float32", "float32"]:
        raise EngineError(f"{path} holds arrays that do not fit each other; make it again with `depthkit export`")
    return reference
