"""docs/gpu.md from the JSON of a run, or without one: then every line says that it was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .spec import Cell, Check

NOT_RUN = "not yet run"
HEAD = """# On a GPU

`make gpu` (which is `python -m foveate.gpu_checks`, or `foveate gpu`) runs everything below from a bare checkout, in at most 8
minutes, and writes `gpu.json`; `foveate gpu --render gpu.json` makes this page of it. Nothing is typed in by hand: a line that
was not measured says "not yet run". What is not installed (xFormers, peft, pydantic ...) is skipped, with the reason. Each check
has a process and a time limit of its own; `foveate gpu attention speed` runs these two.

## Which attention runs

Packed rows and vision towers make one attention call per layer (`vlm/attention.py`). On CUDA it runs on torch's own
variable-length FlashAttention in half precision, on xFormers in float32 and where the former is missing, and else on SDPA over
batches of blocks of like shape; flash-attn is not needed. A kernel is used once it has given the right values and gradients on
this device; the choice is logged in one line, with the reason where it is not the first one.

xFormers: `pip install xformers==0.0.35 nvidia-cuda-runtime-cu12`. Its wheel is built for CUDA 12: beside a torch for CUDA 13 its
extension needs that runtime, and without its extension it refuses all of its operators on CUDA.
"""


def page(found: Mapping[str, Any] | None, checks: Sequence[Check]) -> str:
    """The page in Markdown. ``found`` is what `harness.run_all` returned; a check that it lacks was not run."""
    results = {one["name"]: one for one in found["checks"]} if found else {}
    parts = [HEAD, "## The run\n", _about(found)]
    parts += [_section(check, results.get(check.name)) for check in checks]
    return "\n".join(parts).rstrip() + "\n"


def _about(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return f"{NOT_RUN}.\n"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    missing = ", ".join(name for name, version in found["versions"].items() if not version)
    how = "with small sizes that only show that it works, " if found["quick"] else ""
    lines = [
        f"{found['date']}, on {found['device']}, {how}{found['seconds']:.0f} s: `{found['command']}`",
        f"foveate {found['foveate']}" + (f", commit {found['commit'][:12]}" if found["commit"] else ""),
        found["machine"],
        versions,
        *([f"not installed: {missing}"] if missing else []),
    ]
    counts = {status: sum(one["status"] == status for one in found["checks"]) for status in ("pass", "fail", "skip")}
    lines.append(", ".join(f"{number} {status}" for status, number in counts.items()))
    return "".join(f"- {line}\n" for line in lines)


def _section(check: Check, result: Mapping[str, Any] | None) -> str:
    verdict = f"**{NOT_RUN}**"
    if result is not None:
        words = {"pass": "passed", "fail": "FAILED", "skip": "skipped"}[result["status"]]
        verdict = f"**{words}**, {result['seconds']:.0f} s" + (f": {_plain(result['reason'])}" if result["reason"] else "")
    values = {} if result is None else result["values"]
    columns = {key: text for key, text in check.columns.items() if key != "note" or any("note" in row for row in values.values())}
    # a reason stands where the numbers would be
    lines = [
        f"| | {' | '.join(columns.values())} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {text} | {' | '.join(_cells(values.get(key), columns))} |" for key, text in check.rows.items()),
    ]
    return f"## {check.title}\n\n{check.about}\n\n{verdict}\n\n" + "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Cell] | None, columns: Mapping[str, str]) -> list[str]:
    if not row:
        return [NOT_RUN, *[""] * (len(columns) - 1)]
    return [_shown(row[key]) if key in row else "" for key in columns]


def _shown(value: Cell) -> str:
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _plain(text: str) -> str:
    """Text that cannot break a table."""
    return " ".join(text.split()).replace("|", "/")
