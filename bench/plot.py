"""A small plot as an SVG: panels of dots on a logarithmic axis, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, ROW, HEAD, FOOT = 760, 205, 90, 21, 34, 34
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-weight: 600 } .tick { font-size: 11px; fill: #57606a }
  .grid { stroke: #d0d7de } .stem { stroke: #8c959f; stroke-width: 2 } .dot { fill: #6e7781 }
  .ours .stem { stroke: #0969da } .ours .dot { fill: #0969da } .ours text { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .tick { fill: #9198a1 } .grid { stroke: #3d444d }
    .stem { stroke: #6e7681 } .dot { fill: #9198a1 } .ours .stem { stroke: #4493f8 } .ours .dot { fill: #4493f8 }
  }
"""


@dataclass(frozen=True)
class Panel:
    """One axis: microseconds by name, all above 0."""

    title: str
    values: Mapping[str, float]


def dots(panels: Sequence[Panel], ours: str) -> str:
    """The picture; names that begin with ``ours`` stand out."""
    parts, top = [], 0
    for panel in panels:
        drawn, height = _panel(panel, ours)
        parts.append(f'<g transform="translate(0 {top})">{drawn}</g>')
        top += height
    label = escape("; ".join(panel.title for panel in panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" role="img"'
        f' aria-label="{label}">\n<style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(panel: Panel, ours: str) -> tuple[str, int]:
    """One panel and its height."""
    least = 10 ** math.floor(math.log10(min(panel.values.values()) * 0.9))
    most = max(panel.values.values()) * 1.1

    def at(value: float) -> float:
        share = math.log(value / least) / math.log(most / least)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    bottom = HEAD + ROW * len(panel.values)
    parts = [f'<text class="title" x="0" y="18">{escape(panel.title)}</text>']
    for tick in _ticks(least, most):
        parts.append(f'<line class="grid" x1="{at(tick)}" x2="{at(tick)}" y1="{HEAD - 6}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at(tick)}" y="{bottom + 14}" text-anchor="middle">{_time(tick)}</text>')
    rows = sorted(panel.values.items(), key=lambda item: item[1])
    for number, (name, value) in enumerate(rows):
        y = HEAD + ROW * number + ROW // 2
        kind = ' class="ours"' if name.startswith(ours) else ""
        parts.append(
            f'<g{kind}><text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
            f'<line class="stem" x1="{LEFT}" x2="{at(value)}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot" cx="{at(value)}" cy="{y}" r="5"/>'
            f'<text x="{at(value) + 10}" y="{y + 4}">{_time(value)}</text></g>'
        )
    return "\n".join(parts), bottom + FOOT


def _ticks(least: float, most: float) -> list[float]:
    steps = [least * 10**power for power in range(8)]
    return [tick for tick in steps if tick <= most]


def _time(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.0f} us"
    return f"{microseconds / 1000:.1f} ms".replace(".0 ", " ")
