"""``report.html``: one page that shows what a run did, made from the files of its folder and nothing else.

Self-contained (pictures and charts are inside, no request leaves the page), readable without a server, printable.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .charts import Change, before_after
from .curves import COLOURS, curves
from .pages import embedded, environment, prepared
from .progress import duration
from .recorder import IMAGES, write_atomically
from .run_files import RolloutFile, RunFiles

_NUM_CASES, _NUM_ROLLOUTS = 10, 6


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path. Works for a run that was stopped, or is still going.

    Raises `RunFolderError` when ``folder`` holds no run.
    """
    folder = Path(folder)
    run = RunFiles(folder)
    page = environment(lambda name: embedded(run.picture(name))).get_template("report.html.j2").render(_context(run))
    target = folder / "report.html"
    write_atomically(target, page)
    return target


def write_first_batch(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``first_batch.html``: rows as in ``rollouts/``, shown with the pictures of both views."""
    page = (
        environment(lambda name: embedded(folder / IMAGES / name))  # rows that were made just now, not read from a file
        .get_template("first_batch.html.j2")
        .render(rollouts=[prepared(row) for row in rows], name=folder.name)
    )
    target = folder / "first_batch.html"
    write_atomically(target, page)
    return target


def _context(run: RunFiles) -> dict[str, Any]:
    changes, found, step = view_changes(run), curves([run]), run.step
    training = training_rollouts(run)  # before the problems: it may add to them
    return {
        "name": run.name,
        "folder": run.folder.name,
        "config": run.config,
        "config_yaml": run.config_yaml,
        "summary": run.summary,
        "summary_json": json.dumps(run.summary, indent=2),
        "starts": run.starts,
        "step": step,
        "complete": bool(run.summary),
        "steps": run.steps,
        "problems": run.problems,
        "stages": stage_table(run),
        "model": model_name(run),
        "method": method(run),
        "changes": changes,
        "before_after": Markup(before_after([one["change"] for one in changes])) if changes else "",
        "curves": [Markup(chart) for chart in found.main],
        "other_curves": [Markup(chart) for chart in found.others],
        "curves_note": found.note,
        "cases": cases(run),
        "training": training,
        "cost": cost(run),
        "num_cases_wanted": _NUM_CASES,
    }


def model_name(run: RunFiles) -> str:
    """The model that the run started from."""
    model = (run.stages[0].run if run.stages else run).config.get("model", {})
    return str(model.get("name", "")) if isinstance(model, dict) else str(model)


def method(run: RunFiles) -> str:
    """One line that says how the run learned: its stages, or signals, teacher, rollouts."""
    if run.stages:
        return f"{len(run.stages)} stages: " + ", then ".join(one.name.replace("_", " ") for one in run.stages)
    return _method(run.config)


def _method(config: Mapping[str, Any]) -> str:
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
        if before.get("ids") != after.get("ids"):
            continue  # stages with held-out items of their own: the two numbers are not of one thing
        change = Change(
            name,
            before["accuracy"],
            tuple(before["ci95"]),
            after["accuracy"],
            tuple(after["ci95"]),
            COLOURS[place % len(COLOURS)],
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
    """Rollouts of the first and of the last step that was written, of each stage: both views, token by token."""
    files: list[RolloutFile] = []
    for stage in dict.fromkeys(one.stage for one in run.rollout_files):
        mine = [one for one in run.rollout_files if one.stage == stage]
        files += mine if len(mine) < 2 else [mine[0], mine[-1]]
    found = []
    for file in files:
        rows = []
        for row in run.rollouts(file)[: max(1, _NUM_ROLLOUTS // len(files))]:
            try:
                rows.append(prepared(row))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                run.problems.append(f"{file.path.name}: a rollout cannot be shown ({error!r}); left out")
        found.append({"step": file.step, "stage": file.stage, "rows": rows})
    return found


def stage_table(run: RunFiles) -> list[dict[str, Any]]:
    """Per stage of a staged run: its steps, how it learned, and in words the accuracy of its own evaluations and of what was
    measured after it."""
    return [
        {
            "name": one.name.replace("_", " "),
            "first": one.after + 1,
            "last": one.last,
            "method": _method(one.run.config),
            "complete": bool(one.run.summary or run.summary or one is not run.stages[-1]),
            "accuracy": [*_before_and_after(one.run), *_after(run, place)],
        }
        for place, one in enumerate(run.stages)
    ]


def _before_and_after(run: RunFiles) -> list[str]:
    if len(run.whole) < 2:
        return []
    first, last = run.whole[0]["views"], run.whole[-1]["views"]
    return [
        f"{name} {100 * view['accuracy']:.1f} → {100 * last[name]['accuracy']:.1f} %"
        for name, view in first.items()
        if name in last
    ]


def _after(run: RunFiles, place: int) -> list[str]:
    if place + 1 >= len(run.reports):
        return []
    return [f"{name} {100 * view['accuracy']:.1f} % after it" for name, view in run.reports[place + 1]["views"].items()]


def cost(run: RunFiles) -> list[tuple[str, str]]:
    """What the run took, as (label, value)."""
    times = [row["time/step_s"] for row in run.metrics if row.get("time/step_s") is not None]
    seconds = run.summary.get("seconds", sum(times))
    found = [("training time", duration(seconds)), ("steps", f"{run.step:,}")]
    if times:
        found.append(("median step", f"{statistics.median(times):.2f} s"))
    for key, shown in (("rollouts", "rollouts"), ("action_tokens", "sampled tokens")):
        if key in run.summary:
            found.append((shown, f"{run.summary[key]:,}"))
    if run.summary.get("action_tokens") and seconds:
        found.append(("tokens per second", f"{run.summary['action_tokens'] / seconds:,.0f}"))
    return found
