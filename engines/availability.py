"""What a backend says of itself on this machine."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Availability"]


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be used here.

    Attributes:
        version: the vendor library's; None: it cannot be used.
        reason: what is there, or why not.
        remedy: the command that adds it; empty where nothing is missing.
    """

    version: str | None
    reason: str
    remedy: str

    @property
    def usable(self) -> bool:
        """Whether engines can be built and run."""
        return self.version is not None
