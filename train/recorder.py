"""The run folder: what a run was, what it measured, and what the model saw and said, in files that a person can read.

    config.yaml            the resolved recipe
    starts.jsonl           one line per start: command, versions, git commit, the step it went on from
    metrics.jsonl          one line per step, and one per evaluation
    evaluations/           held-out results, step_000000.json (``_part`` when only some items were scored)
    rollouts/              step_000001.jsonl: both views, all turns; token by token divergences, advantages, and what else
                           student and teacher would have said
    images/                every picture once, named by its content
    first_batch.html       what the first step learns from, written before its update
    tensorboard/  summary.json  report.html  checkpoints/

A killed run loses nothing that a checkpoint knows of: `Recorder.rewind` drops what was logged after it.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..vlm import messages
from ..vlm.images import Picture
from ..vlm.messages import Message
from ..vlm.records import Signal
from .loggers import finite, open_loggers

if TYPE_CHECKING:
    from .showing import Candidates, Look

IMAGES = "images"
_STEP_FILE = re.compile(r"step_(\d+)(_part)?\.jsonl?")
_FIRST_BATCH_SHOWN = 12
# What may differ when a run goes on: it changes where and how the same numbers are computed or shown, not which numbers.
_FREE_TO_CHANGE = (
    "threads", "loggers", "log_rollouts", "log_rollouts_every", "checkpoint", "micro_tokens", "model.device", "gate.least",
    "gate.on_miss", "distributed", "teacher.offload",
)  # fmt: skip


class RunFolderError(ValueError):
    """A run folder that belongs to something else or cannot be read."""


class Recorder:
    """Writes a run folder. ``token_text`` turns one token id into text, for pages that show tokens; ``seen_px`` is
    the width and height at which the model sees a picture.

    >>> recorder = Recorder(Path("runs/a"), "name: a", loggers=())          # doctest: +SKIP
    >>> recorder.metrics(1, {"loss/total": 0.5})                            # doctest: +SKIP
    """

    def __init__(
        self,
        folder: Path,
        config_yaml: str,
        loggers: Sequence[str] = ("tensorboard",),
        token_text: Callable[[int], str] | None = None,
        seen_px: Callable[[Picture], tuple[int, int]] | None = None,
    ) -> None:
        """Raises `RunFolderError` when the folder holds a run of another recipe, `ValueError` for a logger that is not there."""
        check_same_recipe(folder, config_yaml)
        self.folder, self.token_text, self.seen_px = Path(folder), token_text, seen_px
        self.last: dict[str, float] = {}
        """The metrics of the latest step."""
        self._loggers = open_loggers(loggers, self.folder, config_yaml)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "config.yaml", config_yaml)
        self._rows = self.folder / "metrics.jsonl"
        self._started = False

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, kept in full precision; a value that is not finite is written as null."""
        self.last = dict(values)
        self._log(step, {"step": step}, values)

    def evaluation(self, step: int, result: Mapping[str, Any]) -> None:
        """A held-out result as `eval` made it. The same evaluation of the same step replaces the one before."""
        suffix = "" if result.get("whole", True) else "_part"
        name = f"step_{step:06d}{suffix}.json"
        write_atomically(self.folder / "evaluations" / name, json.dumps(result, indent=1))
        values = {
            f"eval/{view}/{key}": value
            for view, found in result["views"].items()
            for key, value in found.items()
            if isinstance(value, float)
        }
        head = {"step": step, "evaluation": name}
        self._keep_rows(lambda row: row.get("evaluation") != name)
        self._log(step, head, values)

    def rollouts(self, step: int, signals: Sequence[Signal], looks: Sequence[Look] | None = None) -> None:
        """Rollouts with the pictures of both views; ``looks`` say, signal by signal, how both models see each token."""
        known: Sequence[Look | None] = [None] * len(signals) if looks is None else looks
        rows = [self._signal(signal, look) for signal, look in zip(signals, known, strict=True)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self.folder / "rollouts" / f"step_{step:06d}.jsonl", text)

    def first_batch(self, signals: Sequence[Signal]) -> None:
        """A page with the first groups of the first step, before anything is learned from them."""
        from .report import write_first_batch

        chosen = signals[:_FIRST_BATCH_SHOWN]
        streams = {signal.stream for signal in chosen}
        chosen = [*chosen, *(signal for signal in signals[_FIRST_BATCH_SHOWN:] if signal.stream not in streams)][
            : 2 * _FIRST_BATCH_SHOWN
        ]
        write_first_batch(self.folder, [self._signal(signal, None) for signal in chosen])

    def rewind(self, step: int) -> None:
        """Drop everything that was logged after ``step``: the run goes on from there. A torn last line goes too."""
        for path in (self.folder / "summary.json", self.folder / "report.html"):
            path.unlink(missing_ok=True)
        self._keep_rows(lambda row: int(row["step"]) <= step)
        for folder in ("rollouts", "evaluations"):
            for path in (self.folder / folder).glob("step_*"):
                match = _STEP_FILE.fullmatch(path.name)
                if match and int(match[1]) > step:
                    path.unlink()
        for logger in self._loggers:
            logger.resume(step)
        self._start(step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """``summary.json``, written whole or not at all: its presence says that the run is complete."""
        write_atomically(self.folder / "summary.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()

    def store(self, picture: Picture) -> str:
        """Keep a picture; its name below ``images/``."""
        return picture.save_png(self.folder / IMAGES)

    def _chat(self, chat: Sequence[Message]) -> list[dict[str, Any]]:
        return messages.to_json(chat, self.store, self.seen_px)

    def _signal(self, signal: Signal, look: Look | None) -> dict[str, Any]:
        rollout = signal.rollout
        turns = []
        for place, turn in enumerate(rollout.turns):
            row: dict[str, Any] = {
                "text": turn.text,
                "stop": turn.stop.value,
                "ids": turn.action_ids_K,
                "logprobs": turn.action_logprobs_K,
            }
            if self.token_text is not None:
                row["tokens"] = [self.token_text(token) for token in turn.action_ids_K]
            if look is not None:
                row |= self._look(look, place)
            if signal.advantages_NK is not None:
                row["advantages"] = signal.advantages_NK[place]
            if turn.calls:
                row["calls"] = [dict(call.__dict__) for call in turn.calls]
            if turn.observation is not None:
                row["observation"] = self._chat([turn.observation])[0]
            turns.append(row)
        reward = rollout.reward
        return {
            "sample": rollout.sample_id,
            "group": rollout.group_id,
            "index": rollout.index,
            "seed": rollout.seed,
            "stream": signal.stream,
            "measure": None if look is None or look.measure is None else dict(look.measure),
            "stop": rollout.stop.value,
            "student": self._chat(rollout.view.messages),
            "teacher": None if signal.teacher_view is None else self._chat(signal.teacher_view.messages),
            "turns": turns,
            "reward": None
            if reward is None
            else {"total": reward.total, "terms": dict(reward.terms), "outcome": reward.outcome, "parsed": reward.parsed},
        }

    def _look(self, look: Look, turn: int) -> dict[str, Any]:
        def texts(rows_K: Sequence[Candidates]) -> list[list[list[Any]]]:
            name = str if self.token_text is None else self.token_text
            return [[[name(token), round(prob, 5)] for token, prob in row] for row in rows_K]

        found: dict[str, Any] = {"top_student": texts(look.student_NK[turn])}
        if look.teacher_NK is not None:
            found["top_teacher"] = texts(look.teacher_NK[turn])
        if look.divergence_NK is not None:
            found["divergence"] = [float(f"{value:.5g}") for value in look.divergence_NK[turn]]
        return found

    def _log(self, step: int, head: Mapping[str, Any], values: Mapping[str, float]) -> None:
        if not self._started:
            self._start(0)
        row = {**head, **{name: float(value) if math.isfinite(value) else None for name, value in values.items()}}
        with self._rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")  # one write: a kill leaves a whole line or a torn last one
        for logger in self._loggers:
            logger.log(step, finite(values))

    def _keep_rows(self, keep: Callable[[Mapping[str, Any]], bool]) -> None:
        if not self._rows.exists():
            return
        text = self._rows.read_text(encoding="utf-8")
        kept = "".join(json.dumps(row) + "\n" for row in parse_rows(text) if keep(row))
        if kept != text:
            write_atomically(self._rows, kept)

    def _start(self, step: int) -> None:
        self._started = True
        with (self.folder / "starts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"after_step": step, **environment()}) + "\n")


class QuietRecorder(Recorder):
    """That of a rank that writes nothing."""

    def __init__(self, folder: Path, *given: Any) -> None:
        self.folder, self.last = Path(folder), {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.last = dict(values)

    def evaluation(self, step: int, result: Mapping[str, Any]) -> None: ...

    def rollouts(self, step: int, signals: Sequence[Signal], looks: Sequence[Look] | None = None) -> None: ...

    def first_batch(self, signals: Sequence[Signal]) -> None: ...

    def rewind(self, step: int) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def check_same_recipe(folder: Path, config_yaml: str) -> None:
    """Raise `RunFolderError` when ``folder`` holds a run of another recipe: its numbers would mix two experiments."""
    path = Path(folder) / "config.yaml"
    if not path.exists():
        return
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RunFolderError(
            f"{path}: not readable as YAML ({error}); use another folder, or start afresh with --fresh"
        ) from error
    old, new = leaves(before), leaves(yaml.safe_load(config_yaml))
    changed = [
        key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and not key.startswith(_FREE_TO_CHANGE)
    ]
    if changed:
        shown = "; ".join(f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now" for key in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise RunFolderError(
            f"{folder} holds a run of another recipe ({shown}{more}); give another folder with --run, or --fresh to set it aside"
        )


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """A recipe with a dotted name for each of its values."""
    if isinstance(node, dict):
        return {key: value for name, child in node.items() for key, value in leaves(child, f"{prefix}{name}.").items()}
    if isinstance(node, list):
        return leaves({str(place): child for place, child in enumerate(node)}, prefix)
    return {prefix.removesuffix("."): node}


def parse_rows(text: str, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Rows of a JSONL text; a torn last line, which a killed writer leaves, is left out. ``name`` is used in the error."""
    lines = [line for line in text.split("\n") if line]  # not splitlines: a model may write U+2028, which JSON leaves as it is
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise RunFolderError(f"{name}, line {number}: not JSON ({error}); mend or remove the line") from error
    return rows


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a killed writer, sees the old text or the new one and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def environment() -> dict[str, Any]:
    """What a start was made with."""
    import torch

    versions = {name: _version(name) for name in ("torch", "transformers", "numpy", "pillow")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "versions": versions,
        "git": git_state(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def git_state() -> str:
    """The commit that the code is at, with ``+changes`` when the work tree differs; "unknown" outside a repository."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie inside somebody else's repository
        commit, changes = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+changes" if changes else "")
