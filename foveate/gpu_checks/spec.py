"""What a check of the GPU is: a function, a time limit, and the table that it fills.

The table is known before anything was run, so that a page can say of every line whether it was measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Cell = float | int | str


@dataclass(frozen=True)
class Check:
    """One check. ``run`` is ``module:function``, called in a process of its own as ``function(settings, notes)``.

    ``rows`` and ``columns`` map keys to what the page calls them.
    """

    name: str
    title: str
    about: str
    run: str
    limit_s: float
    rows: Mapping[str, str]
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """How a check is run: on which device, and ``quick``: with sizes that only show that it works."""

    device: str = "cuda"
    quick: bool = False


class Skip(RuntimeError):
    """The check cannot be run here; its message is the reason."""


@dataclass
class Notes:
    """What a check has found so far. Every addition is written to ``path`` at once: a check that is stopped keeps its numbers."""

    path: Path
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    values: dict[str, dict[str, Cell]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, row: str, **cells: Cell) -> None:
        """Cells of a row of the check's table. Raises `KeyError` for one that the table lacks."""
        unknown = [one for one in (row,) if one not in self.rows] + [one for one in cells if one not in self.columns]
        if unknown:
            raise KeyError(f"{', '.join(unknown)}: the table has no such line or column; see gpu_checks/table.py")
        self.values.setdefault(row, {}).update(cells)
        self.write()

    def expect(self, right: bool, problem: str) -> None:
        """Unless ``right``, the check has failed for this reason; it goes on."""
        if not right:
            self.problems.append(problem)
            self.write()

    def write(self) -> None:
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps({"values": self.values, "problems": self.problems}), encoding="utf-8")
        os.replace(unfinished, self.path)


def grid(*parts: Mapping[str, str], joint: str = ", ") -> dict[str, str]:
    """Rows for every combination: ``{"a": "A"}`` and ``{"x": "X", "y": "Y"}`` give ``a/x`` "A, X" and ``a/y`` "A, Y"."""
    rows = {"": ""}
    for part in parts:
        rows = {
            f"{key}/{other}".strip("/"): f"{text}{joint}{more}" if text else more
            for key, text in rows.items()
            for other, more in part.items()
        }
    return rows


def named(checks: Sequence[Check], names: Sequence[str]) -> tuple[Check, ...]:
    """Those checks. Raises `ValueError` for a name that there is not."""
    known = {check.name: check for check in checks}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no check is called {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(check for check in checks if check.name in names) if names else tuple(checks)
