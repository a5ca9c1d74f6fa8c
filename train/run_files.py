"""What a run folder holds, as one run: a plain run, or the stages of a staged one after another.

A staged run is ``RUN/config.yaml`` with a list ``stages``, a whole run folder for each in ``RUN/stages/01_name/`` and so on, and
what was measured before the first stage and after each in ``RUN/evaluations/stage_00.json`` and so on. Its steps count on: a
stage starts after the last step of the one before.

Nothing here trusts the files: a line or a file that cannot be read is left out and said in ``problems``, and nothing that leads
out of the folder is followed.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .recorder import IMAGES, RunFolderError

_PICTURE = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]*\.png")
_ROLLOUTS = re.compile(r"step_(\d+)\.jsonl")
STAGES = "stages"


@dataclass(frozen=True)
class RolloutFile:
    """The logged rollouts of a step; ``step`` counts over all stages, ``stage`` is "" in a plain run."""

    path: Path
    step: int
    stage: str = ""


@dataclass(frozen=True)
class Stage:
    """A stage of a staged run: its steps are those after ``after`` up to ``last``, counted over all stages."""

    name: str
    after: int
    last: int
    run: RunFiles


class RunFiles:
    """What a run folder holds, read once.

    ``metrics`` are the rows of steps, ``evaluations`` the held-out results in order; in a staged run each has its ``stage`` too.
    Raises `RunFolderError` when ``folder`` holds no run.
    """

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self.folder, self.root = Path(folder), Path(root or folder).resolve()
        self.problems: list[str] = []
        self.config_yaml = self._config_text()
        self.config = _config(self.config_yaml, self.folder)
        self.summary: dict[str, Any] = self._whole("summary.json") or {}
        self.stages = self._stages()
        self.starts: list[dict[str, Any]]
        self.metrics: list[dict[str, Any]]
        self.evaluations: list[dict[str, Any]]
        self.rollout_files: list[RolloutFile]
        self.reports = self._reports()
        """Evaluations before the first stage and after each, with the step of that moment; empty in a plain run."""
        if self.stages:
            self.starts = [{**row, "stage": one.name} for one in self.stages for row in one.run.starts]
            self.metrics = [_moved(row, one) for one in self.stages for row in one.run.metrics]
            self.evaluations = [_moved(row, one) for one in self.stages for row in one.run.evaluations]
            self.rollout_files = [
                RolloutFile(file.path, file.step + one.after, one.name) for one in self.stages for file in one.run.rollout_files
            ]
            self.problems += [f"{one.name}: {text}" for one in self.stages for text in one.run.problems]
            return
        self.starts = self._rows("starts.jsonl")
        self.metrics = [row for row in self._rows("metrics.jsonl", "step") if "evaluation" not in row and _is_step(row["step"])]
        self.evaluations = sorted(self._evaluations(), key=lambda one: int(one["step"]))
        self.rollout_files = [
            RolloutFile(path, int(match[1]))
            for path in sorted((self.folder / "rollouts").glob("step_*.jsonl"))
            if (match := _ROLLOUTS.fullmatch(path.name)) and self._ours(path)
        ]

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.folder.name))

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def steps(self) -> int | None:
        """How many steps the run will have; None when a stage that is still to come does not say."""
        if not self.stages:
            own = self.config.get("steps")
            return own if isinstance(own, int) else None
        planned = [one.get("steps") if isinstance(one, dict) else None for one in self.config[STAGES]]
        steps = [one for one in planned if isinstance(one, int)]
        if len(steps) < len(planned):
            return self.step if self.summary else None
        return sum(steps)

    @property
    def whole(self) -> list[dict[str, Any]]:
        """Evaluations of the whole held-out split, first to last; of a staged run those before and after its stages, if any."""
        return self.reports or [one for one in self.evaluations if one.get("whole", True)]

    def picture(self, name: str) -> Path | None:
        """The file of a picture that a row names; None when it is gone, or is no picture of this run."""
        if not _PICTURE.fullmatch(name):
            return None
        for folder in (self.folder, *(one.run.folder for one in self.stages)):
            path = folder / IMAGES / name
            if path.is_file() and self._inside(path):
                return path
        return None

    def rollouts(self, file: RolloutFile) -> list[dict[str, Any]]:
        """The rows of a step; what cannot be read is left out and said in ``problems``."""
        rows, problems = read_rows(file.path, "turns")
        self.problems += [text for text in problems if text not in self.problems]
        return rows

    def files(self) -> Iterator[Path]:
        """Every file that this reader reads, pictures apart."""
        names = ("config.yaml", "summary.json", "starts.jsonl", "metrics.jsonl")
        for folder in (self.folder, *self._stage_folders()):
            yield from (folder / name for name in names)
            for part in ("evaluations", "rollouts"):
                yield from sorted((folder / part).glob("st*.json*"))

    def _config_text(self) -> str:
        path = self.folder / "config.yaml"
        if not path.is_file() or not self._inside(path):
            raise RunFolderError(
                f"{self.folder}: not a run folder (no config.yaml in it); expected a folder that `foveate train` has written"
            )
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RunFolderError(f"{path}: not a text in UTF-8 ({error}); expected a recipe in YAML") from error

    def _stages(self) -> list[Stage]:
        found: list[Stage] = []
        after = 0
        for folder in self._stage_folders():
            try:
                run = RunFiles(folder, self.root)
            except RunFolderError as error:
                self.problems.append(f"left out: {error}")
                continue
            name = re.sub(r"^\d+_", "", folder.name)
            found.append(Stage(folder.name if name in [one.name for one in found] else name, after, after + run.step, run))
            after += run.step
        return found

    def _stage_folders(self) -> list[Path]:
        if not isinstance(self.config.get(STAGES), list):
            return []
        folders = sorted((self.folder / STAGES).glob("*"))
        return [folder for folder in folders if (folder / "config.yaml").is_file() and self._inside(folder)]

    def _reports(self) -> list[dict[str, Any]]:
        ends = [0, *(one.last for one in self.stages)]
        return [
            {**one, "step": ends[one["step"]]} for one in self._evaluations("stage") if self.stages and one["step"] < len(ends)
        ]

    def _evaluations(self, kind: str = "step") -> Iterator[dict[str, Any]]:
        for path in sorted((self.folder / "evaluations").glob(f"{kind}_*.json")):
            found = self._whole(f"evaluations/{path.name}")
            if _is_evaluation(found):
                yield found
            elif found is not None:
                self.problems.append(f"evaluations/{path.name}: no step, or a view without accuracy and interval; left out")

    def _rows(self, name: str, *needed: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.is_file() or not self._ours(path):
            return []
        rows, problems = read_rows(path, *needed)
        self.problems += problems
        return rows

    def _whole(self, name: str) -> Any:
        path = self.folder / name
        if not path.is_file() or not self._ours(path):
            return None
        stat = path.stat()
        found, problem = _json(str(path), stat.st_mtime_ns, stat.st_size)
        self.problems += [problem] if problem else []
        return found

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root)

    def _ours(self, path: Path) -> bool:
        if self._inside(path):
            return True
        self.problems.append(f"{path.name}: a link that leads out of the run folder; not read")
        return False


def _config(text: str, folder: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise RunFolderError(f"{folder / 'config.yaml'}: not readable as YAML ({error})") from error
    if not isinstance(found, dict):
        raise RunFolderError(f"{folder / 'config.yaml'}: holds a {type(found).__name__}; expected the keys of a recipe")
    return found


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_evaluation(found: Any) -> bool:
    if not isinstance(found, dict) or not _is_step(found.get("step")) or not isinstance(found.get("views"), dict):
        return False
    return all(
        isinstance(view, dict)
        and isinstance(view.get("accuracy"), int | float)
        and isinstance(view.get("ci95"), list)
        and len(view["ci95"]) == 2
        for view in found["views"].values()
    )


def _moved(row: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    return {**row, "step": int(row["step"]) + stage.after, "stage": stage.name, "stage_step": row["step"]}


def read_rows(path: Path, *needed: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a JSONL file, and what could not be read. A row must be an object with the keys ``needed``.

    A last line without its end is no mistake while a run writes it, and is said all the same: whoever looks at a run that was
    killed should know.
    """
    name, rows, problems = path.name, [], []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        return [], [f"{name}: cannot be read ({error.strerror}); left out"]
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:  # torn, or not UTF-8
            last = "the last line, torn by a kill or still being written" if number == len(lines) else f"not JSON: {error}"
            problems.append(f"{name}, line {number}: {last}; left out")
            continue
        if isinstance(row, dict) and all(key in row for key in needed):
            rows.append(row)
        else:
            problems.append(f"{name}, line {number}: expected an object with {', '.join(needed)}; left out")
    return rows, problems


@functools.lru_cache(64)
def _json(path: str, _mtime_ns: int, _size: int) -> tuple[Any, str]:
    try:
        return json.loads(Path(path).read_bytes()), ""
    except ValueError as error:
        return None, f"{Path(path).name}: not JSON ({error}); left out"
