"""Charts of the evaluation report as inline SVG: no script, colours from the page's style sheet (classes ``c1`` to ``c6``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 20, 16, 44
_LOG_FROM = 12
"""Costs that lie further apart than this factor are drawn on a logarithmic axis."""
_LABEL_PX, _LETTER_PX = 15, 8
_NUM_COLOURS = 6


@dataclass(frozen=True)
class Point:
    """A mode in the plane of cost and accuracy (0 to 1), with the interval of its accuracy."""

    name: str
    cost: float
    accuracy: float
    ci95: tuple[float, float]
    colour: str = "c1"


@dataclass(frozen=True)
class Curve:
    """Accuracy (0 to 1) over a limit on cost: it holds from a point to the next."""

    name: str
    points: Sequence[Sequence[float]]
    colour: str = "c1"


def colour(place: int) -> str:
    """The colour class of the n-th mode."""
    return f"c{place % _NUM_COLOURS + 1}"


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` + 1 round numbers from ``low`` to ``high``, both covered.

    >>> round_ticks(0.0, 0.93)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    span = high - low if high > low else abs(low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= 0.999 * span / count)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


@dataclass(frozen=True)
class _Axes:
    x_of: Callable[[float], float]
    y_of: Callable[[float], float]
    svg: str


def _axes(costs: Sequence[float], shares: Sequence[float], x_label: str) -> _Axes:
    y_ticks = [tick for tick in round_ticks(min(shares), max(shares)) if -1e-9 <= tick <= 1 + 1e-9]
    y_low, y_high = min(y_ticks[0], min(shares)), max(y_ticks[-1], max(shares))
    positive = [cost for cost in costs if cost > 0]
    log = len(positive) == len(costs) > 0 and max(costs) > _LOG_FROM * min(costs)
    if log:
        x_ticks = [factor * 10.0**power for power in range(-4, 10) for factor in (1, 2, 5)]
        x_low, x_high = min(costs) / 1.3, max(costs) * 1.3
    else:
        x_ticks = round_ticks(0.0, max(positive, default=1.0))
        x_low, x_high = 0.0, x_ticks[-1]

    def x_of(cost: float) -> float:
        share = math.log(cost / x_low) / math.log(x_high / x_low) if log else (cost - x_low) / (x_high - x_low)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share

    def y_of(share: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * ((share - y_low) / (y_high - y_low) if y_high > y_low else 0.5)

    parts = []
    for tick in y_ticks:
        y = f"{y_of(tick):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y}" dy="4" text-anchor="end">{100 * tick:g} %</text>')
    shown = [tick for tick in x_ticks if x_low <= tick <= x_high]
    for tick in shown[:: max(1, math.ceil(len(shown) / 7))]:
        parts.append(f'<text x="{x_of(tick):.1f}" y="{_HEIGHT - 26}" text-anchor="middle">{tick:,g}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    return _Axes(x_of, y_of, "".join(parts))


def scatter(title: str, points: Sequence[Point], x_label: str) -> str:
    """Accuracy with its interval against a cost, a dot and a name for each mode."""
    if not points:
        return ""
    axes = _axes([one.cost for one in points], [end for one in points for end in (one.accuracy, *one.ci95)], x_label)
    parts, taken = [axes.svg], list[tuple[float, float, float]]()
    for one in points:
        x, y, (low, high) = axes.x_of(one.cost), axes.y_of(one.accuracy), map(axes.y_of, one.ci95)
        told = f"{one.name}: {100 * one.accuracy:.1f} % ({100 * one.ci95[0]:.1f} to {100 * one.ci95[1]:.1f}), {one.cost:,.4g}"
        parts.append(
            f'<g class="{one.colour}"><title>{escape(told)}</title>'
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/></g>'
        )
    for one in points:
        parts.append(_name(one, axes.x_of(one.cost), axes.y_of(one.accuracy), taken))
    return _figure(title, "".join(parts))


def _name(one: Point, x: float, y: float, taken: list[tuple[float, float, float]]) -> str:
    """A point's name beside it, on the side that has room, moved up or down from names that are there."""
    wide = _LETTER_PX * len(one.name)
    left = x + 10 if x + 10 + wide <= _WIDTH else x - 10 - wide
    moves = sorted((step * _LABEL_PX for step in range(-6, 7)), key=abs)

    def free(at: float) -> bool:
        apart = all(abs(at - other) >= _LABEL_PX - 1 or left + wide < start or left > end for start, end, other in taken)
        return apart and _TOP - 4 <= at <= _HEIGHT - _BOTTOM

    at = next((y + move for move in moves if free(y + move)), y)
    taken.append((left, left + wide, at))
    return f'<text class="name" x="{left:.1f}" y="{at:.1f}" dy="4">{escape(one.name)}</text>'


def curves(title: str, lines: Sequence[Curve], x_label: str) -> str:
    """Steps: what accuracy is reached within a cost."""
    drawn = [one for one in lines if one.points]
    if not drawn:
        return ""
    costs = [max(point[0], 1.0) for one in drawn for point in one.points]
    axes = _axes(costs, [0.0, *(point[1] for one in drawn for point in one.points)], x_label)
    last, floor = max(costs), axes.y_of(0.0)
    parts, legend = [axes.svg], []
    for one in drawn:
        path, y = f"M{axes.x_of(max(one.points[0][0], 1.0)):.1f},{floor:.1f}", floor
        for cost, share in one.points:
            x = axes.x_of(max(cost, 1.0))
            y = axes.y_of(share)
            path += f"H{x:.1f}V{y:.1f}"
        path += f"H{axes.x_of(last):.1f}"
        parts.append(f'<path class="line {one.colour}" d="{path}"><title>{escape(one.name)}</title></path>')
        legend.append(f'<span class="key {one.colour}">{escape(one.name)}</span>')
    return _figure(title, "".join(parts), "".join(legend))


def _figure(title: str, inner: str, legend: str = "") -> str:
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{inner}</svg></figure>'
    )
