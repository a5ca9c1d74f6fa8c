"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["note", "green", "yellow", "red"]


@dataclass(frozen=True)
class Finding:
    """What was found about ``topic``, and where it is not green, what was expected and how to mend it.

    note: nothing to judge. yellow: a run works, but not as it should, or something could not be looked at. red: a run fails, or
    learns from wrong numbers.
    """

    topic: str
    text: str
    level: Level = "note"
    expected: str = ""
    mend: str = ""

    @property
    def ok(self) -> bool | None:
        """True for green, False for red."""
        return {"green": True, "red": False}.get(self.level)


def gib(num_bytes: float) -> str:
    """Bytes in words: 3.2 GiB."""
    size = num_bytes / 2**30
    return f"{size:.0f} GiB" if size >= 100 else f"{size:.1f} GiB" if size >= 1 else f"{num_bytes / 2**20:.0f} MiB"
