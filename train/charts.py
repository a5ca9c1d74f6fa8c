"""Charts for reports as inline SVG: no script library, a few kilobytes each, colours from the page's style sheet."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 420, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 28
_SMOOTH_FROM = 60
"""Points from which a curve is drawn smoothed over its faint raw values."""


Scale = Callable[[float], float]
"""From a value to its place in the picture, in SVG units."""


@dataclass(frozen=True)
class Series:
    """One line: points in order of x, an optional band around y, a colour class (``c1`` to ``c6``)."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str = "c1"
    lows: Sequence[float] = field(default=())
    highs: Sequence[float] = field(default=())
    dashed: bool = False
    breaks: Sequence[float] = field(default=())
    """Places on the x axis that the line does not cross: a point there is the last before the gap."""


@dataclass(frozen=True)
class Band:
    """A stretch of steps with a name, drawn behind the lines: from after step ``after`` to step ``last``."""

    name: str
    after: float
    last: float


@dataclass(frozen=True)
class Change:
    """A share (0 to 1) before and after, each with its interval, for `before_after`."""

    name: str
    before: float
    before_ci: tuple[float, float]
    after: float
    after_ci: tuple[float, float]
    colour: str = "c1"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that cover ``low`` to ``high``, about ``count`` steps of them.

    >>> ticks(0.0, 0.93)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # the mean of equal numbers may differ from them in the last digit
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def smoothed(ys: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a twentieth of the curve, shorter at the ends: it does not lag behind."""
    half = max(2, len(ys) // 40)
    windows = [ys[max(0, place - half) : place + half + 1] for place in range(len(ys))]
    return [sum(window) / len(window) for window in windows]


def label(value: float, percent: bool = False) -> str:
    """A number for an axis or a tooltip."""
    if percent:
        return f"{100 * value:.4g} %"
    if value == 0:
        return "0"
    return f"{value:.0e}".replace("e-0", "e-") if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.4g}"


def line_chart(title: str, series: Sequence[Series], percent: bool = False, bands: Sequence[Band] = ()) -> str:
    """Lines over steps with a tooltip (the page's script reads ``data-series``). Series without points are left out."""
    shown = [one for one in series if len(one.xs)]
    if not shown:
        return ""
    x_low, x_high = min(min(one.xs) for one in shown), max(max(one.xs) for one in shown)
    if bands:  # all charts of a run of stages share one axis
        x_low, x_high = min(x_low, bands[0].after), max(x_high, bands[-1].last)
    values = [value for one in shown for value in (*_visible(one.ys), *one.lows, *one.highs)]
    y_ticks, y_low, y_high = _scale(values, percent)

    def x_of(x: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5)

    def y_of(y: float) -> float:
        share = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share

    parts = _bands(bands, x_of)
    parts += [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 7}" y="{y_of(tick) + 3.5:.1f}" text-anchor="end">{label(tick, percent)}</text>'
        for tick in y_ticks
    ]
    parts += [
        f'<text class="tick" x="{x_of(tick):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{label(tick)}</text>'
        for tick in ticks(x_low, x_high)
        if x_low <= tick <= x_high and tick == round(tick)
    ]
    for one in shown:
        parts.append(_line(one, x_of, y_of))
    data = {
        "percent": percent,
        "box": [_LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM],
        "x": [x_low, x_high],
        "bands": [[one.name, one.after, one.last] for one in bands],
        "series": [
            {"name": one.name, "colour": one.colour, "xs": list(one.xs), "ys": [float(f"{y:.5g}") for y in one.ys]}
            for one in shown
        ],
    }
    legend = "".join(
        f'<span class="{one.colour}{" dashed" if one.dashed else ""}">{escape(one.name)}</span>'
        for one in (shown if len(shown) > 1 else ())
    )
    return (
        f'<figure class="chart" data-series="{escape(json.dumps(data))}"><figcaption><b>{escape(title)}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}'
        f'<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" x1="0" x2="0" visibility="hidden"/></svg></figure>'
    )


def _bands(bands: Sequence[Band], x_of: Scale) -> list[str]:
    """Every second stage is shaded, and each has its name at the top, cut to what its stretch has room for."""
    parts = []
    for place, one in enumerate(bands):
        left, right = x_of(one.after), x_of(one.last)
        if place % 2:
            parts.append(
                f'<rect class="stage" x="{left:.1f}" width="{right - left:.1f}" y="{_TOP}" height="{HEIGHT - _TOP - _BOTTOM}"/>'
            )
        if place:
            parts.append(f'<line class="edge" x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        room = int((right - left - 6) / 5.6)
        name = one.name if len(one.name) <= room else one.name[: max(0, room - 1)] + "…"
        if room > 2:
            parts.append(f'<text class="stagename" x="{left + 4:.1f}" y="{_TOP - 3}">{escape(name)}</text>')
    return parts


def _scale(values: Sequence[float], percent: bool) -> tuple[list[float], float, float]:
    """Ticks, and the ends of the axis; shares stay between 0 and 1 however little they move."""
    low, high = min(values), max(values)
    if not percent:
        found = ticks(low, high)
        return found, found[0], found[-1]
    if high - low < 0.05:
        low, high = max(0.0, low - 0.05), min(1.0, high + 0.05)
    found = [tick for tick in ticks(low, high) if -1e-9 <= tick <= 1 + 1e-9]
    return found, min(found[0], low), max(found[-1], high)


def _visible(ys: Sequence[float]) -> Sequence[float]:
    """Values that set the scale: without the most extreme two per cent of a long curve, so that one spike does not flatten it."""
    if len(ys) < _SMOOTH_FROM:
        return ys
    ordered = sorted(ys)
    cut = len(ordered) // 100
    return [*ordered[cut : len(ordered) - cut], *smoothed(ys)]


def _line(one: Series, x_of: Scale, y_of: Scale) -> str:
    def path(ys: Sequence[float]) -> str:
        drawn, last = "", -math.inf
        for x, y in zip(one.xs, ys, strict=True):
            begins = not drawn or any(last <= gap < x for gap in one.breaks)
            drawn += f"{'M' if begins else 'L'}{x_of(x):.1f},{y_of(y):.1f}"
            last = x
        return drawn

    parts, kind = [], f"{one.colour} dashed" if one.dashed else one.colour
    if one.lows:
        back = "L".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in reversed(list(zip(one.xs, one.lows, strict=True))))
        parts.append(f'<path class="band {one.colour}" d="{path(one.highs)}L{back}Z"/>')
    if len(one.ys) >= _SMOOTH_FROM:
        parts.append(
            f'<path class="line raw {one.colour}" d="{path(one.ys)}"/><path class="line {kind}" d="{path(smoothed(one.ys))}"/>'
        )
    else:
        parts.append(f'<path class="line {kind}" d="{path(one.ys)}"/>')
    if len(one.ys) <= 16:
        parts += [
            f'<circle class="dot {one.colour}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3"/>'
            for x, y in zip(one.xs, one.ys, strict=True)
        ]
    return "".join(parts)


def before_after(changes: Sequence[Change]) -> str:
    """Shares before (hollow) and after (filled) on one scale from 0 to 100 %, with their intervals."""
    left, right, row_px, width = 118, 30, 58, 860
    height = row_px * len(changes) + 34
    values = [value for one in changes for value in (*one.before_ci, *one.after_ci)]
    low = max(0.0, math.floor(min(values) * 10 - 0.3) / 10)
    high = min(1.0, math.ceil(max(values) * 10 + 0.3) / 10)

    def x_of(share: float) -> float:
        return left + (width - left - right) * (share - low) / (high - low)

    parts = []
    for tick in ticks(low, high, 5):
        if low - 1e-9 <= tick <= high + 1e-9:
            parts.append(f'<line class="grid" x1="{x_of(tick):.1f}" x2="{x_of(tick):.1f}" y1="6" y2="{height - 28}"/>')
            parts.append(
                f'<text class="tick" x="{x_of(tick):.1f}" y="{height - 9}" text-anchor="middle">{label(tick, True)}</text>'
            )
    for place, one in enumerate(changes):
        y = row_px * place + row_px / 2 + 4
        x0, x1 = x_of(one.before), x_of(one.after)
        parts.append(f'<text class="name" x="{left - 18}" y="{y + 5}" text-anchor="end">{escape(one.name)}</text>')
        for (ci_low, ci_high), offset in ((one.before_ci, 9), (one.after_ci, -9)):
            ends = f'x1="{x_of(ci_low):.1f}" x2="{x_of(ci_high):.1f}" y1="{y + offset}" y2="{y + offset}"'
            parts.append(f'<line class="whisker {one.colour}" {ends}/>')
        if abs(x1 - x0) > 18:
            tip = x1 - math.copysign(11, x1 - x0)
            parts.append(f'<line class="move {one.colour}" x1="{x0:.1f}" y1="{y + 9}" x2="{tip:.1f}" y2="{y - 7}"/>')
        parts.append(f'<circle class="hollow {one.colour}" cx="{x0:.1f}" cy="{y + 9}" r="5.5"/>')
        parts.append(f'<circle class="dot {one.colour}" cx="{x1:.1f}" cy="{y - 9}" r="6.5"/>')
        parts.append(f'<text class="value old" x="{x0:.1f}" y="{y + 29}" text-anchor="middle">{100 * one.before:.1f}</text>')
        parts.append(f'<text class="value" x="{x1:.1f}" y="{y - 20}" text-anchor="middle">{100 * one.after:.1f}</text>')
    head = f'<svg class="changes" viewBox="0 0 {width} {height}" role="img" aria-label="accuracy before and after">'
    return head + "".join(parts) + "</svg>"
