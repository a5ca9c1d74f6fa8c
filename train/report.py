"""``report.html``: one page that shows what a run did, made from the files of its folder and nothing else.

Self-contained (pictures and charts are inside, no request leaves the page), readable without a server, printable.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from PIL import Image

from .charts import Change, Series, before_after, line_chart
from .progress import duration
from .recorder import IMAGES, RunFolderError, parse_rows, write_atomically

_MAX_SIDE_PX = 640
"""Larger pictures are embedded smaller; the originals stay in images/."""
_SMALL_PX = 224
"""Pictures up to this width are drawn enlarged with hard pixel edges."""
_NUM_CASES, _NUM_ROLLOUTS = 10, 6
_COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6")
_CURVES = (
    ("Loss", {"loss/total": "loss"}),
    ("Divergence to the teacher, per token", {"loss/distill/divergence": "divergence"}),
    ("Reward", {"reward/total": "reward"}),
    ("Entropy of the policy, nats per token", {"policy/entropy": "entropy"}),
    ("Gradient norm", {"optim/grad_norm": "norm"}),
    ("Tokens per rollout", {"rollout/tokens": "tokens"}),
    ("Turns per rollout", {"rollout/turns": "turns"}),
    ("Seconds per step", {"time/step_s": "whole step", "time/sample_s": "sampling"}),
)


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path. Works for a run that was stopped, or is still going.

    Raises `RunFolderError` when ``folder`` holds no run.
    """
    folder = Path(folder)
    run = RunFiles(folder)
    pictures = functools.partial(data_uri, folder / IMAGES)
    page = _environment(pictures).get_template("report.html.j2").render(_context(run))
    target = folder / "report.html"
    write_atomically(target, page)
    return target


def write_first_batch(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``first_batch.html``: rows as in ``rollouts/``, shown with the pictures of both views."""
    page = (
        _environment(functools.partial(data_uri, folder / IMAGES))
        .get_template("first_batch.html.j2")
        .render(rollouts=rows, name=folder.name)
    )
    target = folder / "first_batch.html"
    write_atomically(target, page)
    return target


class RunFiles:
    """What a run folder holds, read once."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.yaml").is_file():
            raise RunFolderError(
                f"{folder}: not a run folder (no config.yaml in it); expected a folder that `foveate train` has written"
            )
        self.folder = folder
        self.config_yaml = (folder / "config.yaml").read_text(encoding="utf-8")
        self.config: dict[str, Any] = yaml.safe_load(self.config_yaml) or {}
        self.starts = self._rows("starts.jsonl")
        rows = self._rows("metrics.jsonl")
        self.metrics = [row for row in rows if "evaluation" not in row]
        self.summary: dict[str, Any] = self._json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
        self.evaluations = [self._json(path) for path in sorted((folder / "evaluations").glob("step_*.json"))]
        self.rollout_files = sorted((folder / "rollouts").glob("step_*.jsonl"))

    def _rows(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return parse_rows(path.read_text(encoding="utf-8")) if path.is_file() else []

    def _json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{path}: not JSON ({error}); remove the file to make the report without it") from error

    @property
    def whole(self) -> list[dict[str, Any]]:
        """Evaluations of the whole held-out split, first to last."""
        return sorted((one for one in self.evaluations if one.get("whole", True)), key=lambda one: int(one["step"]))


def _context(run: RunFiles) -> dict[str, Any]:
    changes = view_changes(run)
    step = int(run.metrics[-1]["step"]) if run.metrics else 0
    return {
        "name": run.config.get("name", run.folder.name),
        "folder": run.folder.name,
        "config": run.config,
        "config_yaml": run.config_yaml,
        "summary": run.summary,
        "summary_json": json.dumps(run.summary, indent=2),
        "starts": run.starts,
        "step": step,
        "complete": bool(run.summary),
        "model": _model_name(run),
        "method": method(run.config),
        "changes": changes,
        "before_after": Markup(before_after([one["change"] for one in changes])) if changes else "",
        "curves": [Markup(chart) for chart in _curves(run)],
        "other_curves": [Markup(chart) for chart in _other_curves(run)],
        "cases": cases(run),
        "training": training_rollouts(run),
        "cost": _cost(run, step),
        "num_cases_wanted": _NUM_CASES,
    }


def _model_name(run: RunFiles) -> str:
    model = run.config.get("model", {})
    return str(model.get("name", "")) if isinstance(model, dict) else str(model)


def method(config: Mapping[str, Any]) -> str:
    """One line that says how the run learned: signals, teacher, rollouts."""
    parts = []
    teacher = config.get("teacher", {}).get("weights", "frozen")
    for signal in config.get("signals", ()):
        if signal["kind"] == "distill":
            names = {"full": "full vocabulary", "top": f"top {signal.get('top_c')}", "sampled": "sampled token"}
            divergence = (
                str(signal.get("divergence", "jsd"))
                .replace("_", " ")
                .replace("jsd", "Jensen-Shannon divergence")
                .replace("kl", "KL")
            )
            parts.append(f"{divergence} to a {teacher} teacher, {names[signal.get('support', 'full')]}")
        else:
            parts.append(str(signal["kind"]))
    parts.append(f"{config.get('prompts', '?')} prompts × {config.get('rollouts', 1)} rollouts a step")
    if config.get("anchors"):
        parts.append("anchors: " + ", ".join(str(anchor["name"]) for anchor in config["anchors"]))
    return "; ".join(parts)


def view_changes(run: RunFiles) -> list[dict[str, Any]]:
    """Per view: accuracy before and after, the gain in points with its interval, and what became of the single items."""
    if len(run.whole) < 2:
        return []
    first, last, found = run.whole[0]["views"], run.whole[-1]["views"], []
    for place, name in enumerate(name for name in first if name in last):
        before, after = first[name], last[name]
        change = Change(
            name,
            before["accuracy"],
            tuple(before["ci95"]),
            after["accuracy"],
            tuple(after["ci95"]),
            _COLOURS[place % len(_COLOURS)],
        )
        pairs = list(zip(before.get("right", ()), after.get("right", ()), strict=True))
        gain_ci95 = [100 * value for value in run.summary.get("gain_ci95", {}).get(f"{name}_gain", ())]
        found.append(
            {
                "name": name,
                "change": change,
                "n": before.get("n", len(pairs)),
                "points": 100 * (after["accuracy"] - before["accuracy"]),
                "gain_ci95": gain_ci95,
                "verdict": "up" if gain_ci95 and gain_ci95[0] > 0 else "down" if gain_ci95 and gain_ci95[1] < 0 else "level",
                "fixed": sum(not was and now for was, now in pairs),
                "broken": sum(bool(was) and not now for was, now in pairs),
                "kept": sum(bool(was and now) for was, now in pairs),
                "missed": sum(not was and not now for was, now in pairs),
                "unparsed": [100 * before.get("unparsed_frac", 0.0), 100 * after.get("unparsed_frac", 0.0)],
            }
        )
    return found


def cases(run: RunFiles) -> list[dict[str, Any]]:
    """Ten held-out items with the answers before and after in the first view: changed ones first, then the others in order."""
    if len(run.whole) < 2:
        return []
    names = list(run.whole[0]["views"])
    main = names[0]
    before = {case["id"]: case for case in run.whole[0]["views"][main].get("cases", ())}
    others = {name: {case["id"]: case for case in run.whole[-1]["views"].get(name, {}).get("cases", ())} for name in names[1:]}
    found = []
    for case in run.whole[-1]["views"].get(main, {}).get("cases", ()):
        was = before.get(case["id"])
        if was is None:
            continue
        views = [{"name": main, "messages": case.get("messages", [])}]
        views += [
            {"name": name, "messages": cases_of[case["id"]].get("messages", [])}
            for name, cases_of in others.items()
            if case["id"] in cases_of
        ]
        kind = {(False, True): "fixed", (True, False): "broken", (True, True): "kept", (False, False): "missed"}[
            _right(was), _right(case)
        ]
        pictured = [view for view in views if _pictures(view["messages"])][:2]
        found.append(
            {
                "id": case["id"],
                "kind": kind,
                "question": case["question"],
                "answer": case["answer"],
                "before": was,
                "after": case,
                "views": pictured,
            }
        )
    chosen = [one for one in found if one["kind"] == "fixed"][:4] + [one for one in found if one["kind"] == "broken"][:3]
    chosen += [one for one in found if one not in chosen]
    return chosen[:_NUM_CASES]


def _right(case: Mapping[str, Any]) -> bool:
    return case.get("outcome") == "right"


def _pictures(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


def training_rollouts(run: RunFiles) -> list[dict[str, Any]]:
    """Rollouts of the first and of the last step that was written, for a look at both views and at single tokens."""
    files = run.rollout_files if len(run.rollout_files) < 2 else [run.rollout_files[0], run.rollout_files[-1]]
    found = []
    for path in files:
        rows = parse_rows(path.read_text(encoding="utf-8"))
        found.append({"step": int(path.stem.removeprefix("step_")), "rows": rows[: _NUM_ROLLOUTS // len(files)]})
    return found


def _curves(run: RunFiles) -> list[str]:
    """The charts that are always wanted; a curve that never moves goes to the others."""
    charts = [_accuracy_chart(run)]
    for title, names in _CURVES:
        if any(_moves(run, name) for name in names):
            charts.append(_chart(run, title, names))
    charts.append(
        _chart(
            run,
            "Divergence of the anchors",
            {
                name: name.split("/")[1].removeprefix("anchor:")
                for name in _names(run, "loss/anchor:")
                if name.endswith("/divergence")
            },
        )
    )
    for title, prefix in (("How rollouts ended", "stop/"), ("Outcomes", "outcome/")):
        charts.append(
            _chart(run, title, {name: name.removeprefix(prefix).replace("_", " ") for name in _names(run, prefix)}, percent=True)
        )
    return [chart for chart in charts if chart]


def _other_curves(run: RunFiles) -> list[str]:
    shown = {name for _, names in _CURVES for name in names if any(_moves(run, other) for other in names)}
    rest = [name for name in _names(run) if name not in shown and not name.startswith(("stop/", "outcome/", "loss/anchor:"))]
    return [chart for name in rest if (chart := _chart(run, name, {name: name}))]


def _moves(run: RunFiles, name: str) -> bool:
    return len({row[name] for row in run.metrics if row.get(name) is not None}) > 1


def _chart(run: RunFiles, title: str, names: Mapping[str, str], percent: bool = False) -> str:
    """``names`` maps metrics to what the legend calls them. A metric that is absent from a row has no point there."""
    series = []
    for place, (name, shown) in enumerate(names.items()):
        points = [(row["step"], row[name]) for row in run.metrics if row.get(name) is not None]
        series.append(Series(shown, [x for x, _ in points], [y for _, y in points], _COLOURS[place % len(_COLOURS)]))
    return line_chart(title, series, percent)


def _accuracy_chart(run: RunFiles) -> str:
    series = []
    ordered = sorted(run.evaluations, key=lambda one: int(one["step"]))
    for place, name in enumerate(ordered[0]["views"] if ordered else ()):
        points = [(int(one["step"]), one["views"][name]) for one in ordered if name in one["views"]]
        steps, results = [step for step, _ in points], [found for _, found in points]
        lows, highs = [found["ci95"][0] for found in results], [found["ci95"][1] for found in results]
        series.append(Series(name, steps, [found["accuracy"] for found in results], _COLOURS[place % len(_COLOURS)], lows, highs))
    return line_chart("Held-out accuracy", series, percent=True)


def _names(run: RunFiles, prefix: str = "") -> list[str]:
    return sorted({name for row in run.metrics for name in row if name != "step" and name.startswith(prefix)})


def _cost(run: RunFiles, step: int) -> list[tuple[str, str]]:
    """What the run took, as (label, value)."""
    times = [row["time/step_s"] for row in run.metrics if row.get("time/step_s") is not None]
    seconds = run.summary.get("seconds", sum(times))
    cost = [("training time", duration(seconds)), ("steps", f"{step:,}")]
    if times:
        cost.append(("median step", f"{statistics.median(times):.2f} s"))
    for key, shown in (("rollouts", "rollouts"), ("action_tokens", "sampled tokens")):
        if key in run.summary:
            cost.append((shown, f"{run.summary[key]:,}"))
    if run.summary.get("action_tokens") and seconds:
        cost.append(("tokens per second", f"{run.summary['action_tokens'] / seconds:,.0f}"))
    return cost


@functools.lru_cache(1024)
def _embedded(path: str, _mtime_ns: int) -> tuple[str, int]:
    """``(data URI, width of the original in px)``."""
    with Image.open(path) as image:
        image.load()
        width_px = image.width
        if max(image.size) <= _MAX_SIDE_PX:
            return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode(), width_px
        image.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=86)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), width_px


def data_uri(images: Path, name: str) -> dict[str, Any]:
    """A picture of the run folder for ``<img>``: ``{"uri", "small"}``; ``uri`` is empty when the file is gone."""
    path = images / name
    if not path.is_file():
        return {"uri": "", "small": False}
    uri, width_px = _embedded(str(path), path.stat().st_mtime_ns)
    return {"uri": uri, "small": width_px <= _SMALL_PX}


def _environment(picture: Any) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).resolve().parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals["picture"] = picture
    environment.filters |= {"heat": heat, "signed": signed}
    return environment


def signed(points: float) -> str:
    """A change in points with its sign; nothing has no sign."""
    text = f"{points:+.1f}".replace("-", "\u2212")
    return "0.0" if text[1:] == "0.0" else text


def heat(values: Sequence[float]) -> list[float]:
    """Shades 0 to 1 of divergences in nats; a square root keeps small ones visible, and 0.5 nats is full colour on every page."""
    return [round(min(1.0, max(0.0, value) / 0.5) ** 0.5, 3) for value in values]
