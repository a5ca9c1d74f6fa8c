"""A line in the terminal that says how far a run is and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SHOWN = {"loss/total": "loss", "loss/distill/divergence": "divergence", "reward/total": "reward", "optim/grad_norm": "grad"}
_SECONDS_BETWEEN_LINES = 15.0


class ProgressBar:
    """A live bar on a terminal; elsewhere (a log file, CI) a plain line now and then.

    >>> with ProgressBar("vision_opd", 0, 360) as bar:                      # doctest: +SKIP
    ...     bar.show(1, {"loss/total": 0.3})
    """

    def __init__(self, name: str, step: int, total: int, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._name, self._first, self._total = name, step, total
        self._start = self._last_line = time.monotonic()
        self._bar = (
            Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                TextColumn("[dim]{task.fields[numbers]}"),
                console=self.console,
            )
            if self.console.is_terminal and not quiet
            else None
        )

    def __enter__(self) -> ProgressBar:
        self._start = self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, completed=self._first, numbers="")
        elif self._first:
            self.console.print(f"{self._name}: going on after step {self._first} of {self._total}")
        return self

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Called after each step with its metrics."""
        numbers = "  ".join(f"{short} {values[name]:.3g}" for name, short in _SHOWN.items() if name in values)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
            return
        now = time.monotonic()
        if step < self._total and step > self._first + 1 and now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        per_step_s = (now - self._start) / max(1, step - self._first)
        left = duration(per_step_s * (self._total - step))
        self.console.print(f"{self._name}: step {step} of {self._total}  {numbers}  {per_step_s:.2f} s/step  {left} left")

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """Seconds the way people say them: ``48 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
