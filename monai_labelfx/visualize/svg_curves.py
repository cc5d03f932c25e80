# SPDX-License-Identifier: Apache-2.0
"""Curves as inline SVG: one panel of lines over epochs, without any plotting package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 460, 260, 62, 34, 26, 12


def svg_curves(series: Mapping[str, Sequence[Sequence[float | None]]], title: str = "") -> str:
    """Lines in one panel, as the text of an ``<svg>`` element.

    Args:
        series: name to points ``[[epoch, value], ...]``; points whose value is missing or not finite interrupt a line.
        title: words above the panel.

    Returns:
        Self-contained SVG; every text in it is escaped.

    Example:
        >>> svg_curves({"loss": [[1, 0.5], [2, 0.25]]}, "training").startswith("<svg")
        True
    """
    lines = {name: _pieces(points) for name, points in series.items()}
    points = [point for pieces in lines.values() for piece in pieces for point in piece]
    if not points:
        points = [(0.0, 0.0)]
    x_ticks, y_ticks = _ticks([p[0] for p in points], smallest=1.0), _ticks([p[1] for p in points])
    across = _scale(x_ticks, _LEFT, _WIDTH - _RIGHT)
    up = _scale(y_ticks, _HEIGHT - _BOTTOM, _TOP + 18 * math.ceil(len(lines) / 3))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" font-family="sans-serif" font-size="11"><title>{escape(title)}</title>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="16" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in y_ticks:
        y = up(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in x_ticks:
        x = across(tick)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 16}" text-anchor="middle">{tick:.6g}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 3}" text-anchor="middle">epoch</text>')
    for number, (name, pieces) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        for piece in pieces:
            path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in piece)
            if len(piece) > 1:
                parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            if len(piece) < 30:
                parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.2" fill="{colour}"/>' for x, y in piece]
        x, y = _LEFT + 130 * (number % 3), _TOP + 8 + 16 * (number // 3)
        parts.append(f'<line x1="{x}" x2="{x + 14}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 4}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _pieces(points: Sequence[Sequence[float | None]]) -> list[list[tuple[float, float]]]:
    """Runs of finite points."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for epoch, value in points:
        if epoch is None or value is None or not (math.isfinite(epoch) and math.isfinite(value)):
            pieces.append([])
        else:
            pieces[-1].append((float(epoch), float(value)))
    return [piece for piece in pieces if piece]


def _ticks(values: Sequence[float], smallest: float = 0.0) -> list[float]:
    """Up to seven round numbers that enclose the values, no closer than ``smallest`` (there is no epoch 1.5)."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        pad = abs(low) / 10 or 1.0
        low, high = low - pad, high + pad
    rough = max((high - low) / 5, smallest)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * k, 12) + 0.0 for k in range(first, last + 1)]


def _scale(ticks: Sequence[float], start: float, end: float):
    low, span = ticks[0], ticks[-1] - ticks[0]
    return lambda value: start + (value - low) / span * (end - start)
