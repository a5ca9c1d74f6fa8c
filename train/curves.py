"""The charts of a run, or of two on the same axes: which metrics belong together, and what they are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .charts import Band, Series, line_chart
from .run_files import RunFiles

COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6")
_MAX_POINTS = 600
"""A longer curve is drawn as means of as many steps as make it fit."""

_Names = Callable[[Sequence[str]], Mapping[str, str]]
"""From the metrics that a run has to those of one chart, with the names that the legend gives them."""


def _these(**names: str) -> _Names:
    wanted = {key.replace("__", "/"): shown for key, shown in names.items()}
    return lambda known: {key: shown for key, shown in wanted.items() if key in known}


def _below(prefix: str, *without: str) -> _Names:
    return lambda known: {
        name: name.removeprefix(prefix).replace("_", " ")
        for name in known
        if name.startswith(prefix) and name.removeprefix(prefix) not in without
    }


def _divergences(anchors: bool) -> _Names:
    """``loss/NAME/divergence`` of the signals or of the anchors, and the KL to a reference."""

    def names(known: Sequence[str]) -> dict[str, str]:
        found = {}
        for name in known:
            first, _, rest = name.partition("/")
            stream, _, what = rest.rpartition("/")
            if first == "loss" and what in ("divergence", "kl") and stream.startswith("anchor:") == anchors:
                found[name] = stream.removeprefix("anchor:") + (", KL to the reference" if what == "kl" else "")
        return found

    return names


@dataclass(frozen=True)
class _Plan:
    title: str
    names: _Names
    percent: bool = False
    least: int = 1


_PLANS = (
    _Plan("Loss", _these(loss__total="loss")),
    _Plan("Divergence to the teacher, nats per token", _divergences(False)),
    _Plan("Reward", _these(reward__total="reward")),
    _Plan("Terms of the reward", _below("reward/", "total", "groups_without_variance"), least=2),
    _Plan("Outcomes of rollouts", _below("outcome/"), percent=True),
    _Plan("Tokens per rollout", _these(rollout__tokens="tokens")),
    _Plan(
        "Tool use per rollout",
        _these(rollout__turns="turns", rollout__calls="calls", rollout__calls_failed="failed", rollout__pictures="pictures"),
    ),
    _Plan("How rollouts ended", _below("stop/"), percent=True),
    _Plan("Divergence of the anchors, nats per token", _divergences(True)),
    _Plan("Entropy of the policy, nats per token", _these(policy__entropy="entropy")),
    _Plan("Gradient norm", _these(optim__grad_norm="norm")),
    _Plan("Seconds per step", _these(time__step_s="whole step", time__sample_s="sampling")),
)


@dataclass
class Curves:
    """Charts as SVG in order; ``others`` are those of metrics that no chart of ``main`` shows."""

    main: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    note: str = ""
    """What a reader must know of all of them; "" for nothing."""


def curves(runs: Sequence[RunFiles], labels: Sequence[str] = ("",)) -> Curves:
    """The charts of a run, or of two: the second one's lines are dashed and every line has its run's label.

    A chart whose curves never move goes to the others, if it is not one of shares. Stages are shaded behind the lines: those of
    the first run that has some.
    """
    bands = next(([Band(one.name, one.after, one.last) for one in run.stages] for run in runs if run.stages), [])
    names = sorted({name for run in runs for row in run.metrics for name in row if _is_metric(name)})
    accuracy = [
        _accuracy_chart("Held-out accuracy", [run.evaluations for run in runs], labels, bands),
        _accuracy_chart("Accuracy before and after the stages", [run.reports for run in runs], labels, bands),
    ]
    found = Curves(accuracy, note=_note(runs))
    shown: set[str] = set()
    for plan in _PLANS:
        mine = plan.names(names)
        moves = plan.percent or any(_moves(run, name) for run in runs for name in mine)
        if moves and len(mine) >= plan.least:
            shown |= set(mine)
            found.main.append(_chart(runs, labels, plan.title, mine, plan.percent, bands))
    found.others = [_chart(runs, labels, name, {name: name}, False, bands) for name in names if name not in shown]
    found.main, found.others = [one for one in found.main if one], [one for one in found.others if one]
    return found


def _note(runs: Sequence[RunFiles]) -> str:
    sizes = {_bucket(len(run.metrics)) for run in runs} - {1}
    return f"A point is the mean of {' or '.join(map(str, sorted(sizes)))} steps." if sizes else ""


def _is_metric(name: str) -> bool:
    return name not in ("step", "stage", "stage_step")


def _points(run: RunFiles, name: str) -> list[tuple[int, float]]:
    """A metric that is absent from a row, or was not finite there, has no point."""
    return [(row["step"], row[name]) for row in run.metrics if isinstance(row.get(name), int | float)]


def _moves(run: RunFiles, name: str) -> bool:
    return len({y for _, y in _points(run, name)}) > 1


def _bucket(count: int) -> int:
    return -(-count // _MAX_POINTS) if count > _MAX_POINTS else 1


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    size = _bucket(len(points))
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _called(name: str, label: str) -> str:
    return f"{name} · {label}" if label else name


def _chart(
    runs: Sequence[RunFiles], labels: Sequence[str], title: str, names: Mapping[str, str], percent: bool, bands: Sequence[Band]
) -> str:
    series = []
    for second, (run, label) in enumerate(zip(runs, labels, strict=True)):
        for place, (name, shown) in enumerate(names.items()):
            points = _thinned(_points(run, name))
            colour = COLOURS[(place + (second if len(names) == 1 else 0)) % len(COLOURS)]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            edges = [one.after for one in run.stages[1:]]  # stages have losses of their own: no line crosses over
            series.append(Series(_called(shown, label), xs, ys, colour, dashed=bool(second), breaks=edges))
    return line_chart(title, series, percent, bands)


def _accuracy_chart(
    title: str, evaluations: Sequence[Sequence[Mapping[str, Any]]], labels: Sequence[str], bands: Sequence[Band]
) -> str:
    series = []
    views = list(dict.fromkeys(name for found in evaluations for one in found for name in one["views"]))
    for second, (found, label) in enumerate(zip(evaluations, labels, strict=True)):
        for place, name in enumerate(views):
            points = [(int(one["step"]), one["views"][name]) for one in found if name in one["views"]]
            steps, results = [step for step, _ in points], [view for _, view in points]
            series.append(
                Series(
                    _called(name, label),
                    steps,
                    [view["accuracy"] for view in results],
                    COLOURS[place % len(COLOURS)],
                    _ends(results, 0) if not second else (),
                    _ends(results, 1) if not second else (),
                    dashed=bool(second),
                )
            )
    return line_chart(title, series, percent=True, bands=bands)


def _ends(results: Sequence[Mapping[str, Any]], end: int) -> list[float]:
    return [found["ci95"][end] for found in results]
