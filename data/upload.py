"""A picture that somebody sent: bytes in memory, which are read with more care than a file of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import DataError

__all__ = ["MOST_PIXELS", "UPLOAD_FORMATS", "Upload"]

UPLOAD_FORMATS: Final = ("JPEG", "PNG", "WEBP")
"""Pillow's names of the formats that are decoded; each other one would be a decoder more that strangers can reach."""

MOST_PIXELS: Final = 50_000_000
"""Of an upload: cameras of 48 megapixels pass. A file of a few kilobytes can declare, and cost, far more."""


@dataclass(frozen=True, eq=False)
class Upload:
    """The bytes of a picture; `data.images` reads it like a path. In messages it is "the picture".

    Attributes:
        content: JPEG, PNG or WebP.
    """

    content: bytes

    def __str__(self) -> str:
        return "the picture"

    def require_fit(self, width: int, height: int) -> None:
        """Raise DataError, before anything is decoded, if the file declares too many pixels."""
        if width * height > MOST_PIXELS:
            raise DataError(
                f"the picture declares {width}x{height} pixels, more than {MOST_PIXELS / 1e6:.0f} million; make it "
                "smaller"
            )
