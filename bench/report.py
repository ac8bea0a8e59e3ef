"""The tables and the plot that bench/gateways.py makes of its results.

    python bench/report.py FILE

writes those of an earlier run again.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from plot import Panel, dots

DIRECT, BARE, OURS = "direct", "bare proxy", "Turnout"
AUTO, TRANSLATED = "Turnout, auto", ", Anthropic client"
RUST = ("sglang-router", "vllm-router", "smg", "tensorzero")
COLUMNS: tuple[str, ...] = (
    "CPU per request, 16 in flight",
    "1 in flight",
    "p50 added, 1 in flight",
    "60 KB, 16 in flight",
)
COLUMNS += ("CPU per streamed piece", "first word, p50 added", "idle memory")
BEGIN, END = "<!-- gateways: bench/gateways.py writes this -->", "<!-- /gateways -->"


@dataclass(frozen=True)
class Line:
    """One demand: what was measured, and how far it is from the aim; ``most`` in the unit of ``value``."""

    what: str
    said: str
    value: float
    most: float
    aim: str

    @property
    def verdict(self) -> str:
        """Met, or by how much it is missed."""
        return "met" if self.value <= self.most else f"**missed**: {self.value / self.most:.2f} times the aim"


class Results:
    """One run's figures, by measure, subject and round."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self._figures: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]] = result["figures"]
        self.pieces: int = result["pieces"]
        self.idle_mb: Mapping[str, float] = result["idle_mb"]

    def has(self, measure: str, name: str) -> bool:
        return name in self._figures.get(measure, {})

    def rounds(self, measure: str, name: str, key: str) -> list[float]:
        return [each[key] for each in self._figures[measure][name]]

    def median(self, measure: str, name: str, key: str) -> float:
        """Over the rounds."""
        return median(self.rounds(measure, name, key))

    def compared(
        self, of: Callable[[float, float], float], measure: str, names: tuple[str, str], key: str
    ) -> list[float]:
        """Two subjects, round by round, so that what disturbed the machine disturbed both."""
        first, second = (self.rounds(measure, name, key) for name in names)
        return [of(a, b) for a, b in zip(first, second, strict=True)]

    def ratios(self, measure: str, name: str) -> list[float]:
        """CPU in units of the bare proxy's."""
        return self.compared(lambda a, b: a / b, measure, (name, BARE), "cpu_us")

    def added(self, measure: str, name: str, key: str, to: str = DIRECT) -> list[float]:
        return self.compared(lambda a, b: a - b, measure, (name, to), key)


def demands(results: Results) -> list[Line]:
    """What issue 5 asks of Turnout."""
    lines = [_ratio(results, "CPU per request, 2 KB, 16 in flight, everything on", "chat", OURS, 1.5)]
    rust = {name: results.median("chat", name, "cpu_us") for name in RUST if results.has("chat", name)}
    if rust:
        slowest, ours = max(rust, key=lambda name: rust[name]), results.median("chat", OURS, "cpu_us")
        said = f"{ours:.0f} us; {slowest} {rust[slowest]:.0f} us"
        lines.append(Line("... beside the slowest Rust gateway", said, ours, rust[slowest], "no more than it"))
    cpu = median(results.added("chat", AUTO, "cpu_us", OURS)) / 1000
    lines.append(
        Line("`auto` in a sticky session, a new question each time, CPU added", f"{cpu:.2f} ms", cpu, 0.3, "0.3 ms")
    )
    took = median(results.added("single", AUTO, "p50_ms", OURS))
    lines.append(Line("... p50 added, 1 in flight", f"{took:.2f} ms", took, 0.3, "0.3 ms"))
    loop = median(results.added("agent", AUTO, "cpu_us", OURS)) / 1000
    lines.append(Line("... in an agent's tool loop, 60 KB, CPU added", f"{loop:.2f} ms", loop, 0.3, "0.3 ms"))
    lines.append(_ratio(results, "CPU per streamed piece, passed through", "stream", OURS, 1.5))
    lines.append(_ratio(results, "... translated, Anthropic to OpenAI", "stream", OURS + TRANSLATED, 4))
    first = median(results.added("first", OURS, "first_p50_ms"))
    lines.append(Line("first word of a stream, p50 added", f"{first:.2f} ms", first, 1, "under 1 ms"))
    lines.append(_ratio(results, "CPU per request, 60 KB, an agent's", "agent", OURS, 2))
    idle = results.idle_mb[OURS]
    lines.append(Line("resident memory before the first load", f"{idle:.0f} MB", idle, 80, "under 80 MB"))
    return lines


def _ratio(results: Results, what: str, measure: str, name: str, most: float) -> Line:
    ratios = results.ratios(measure, name)
    value = median(ratios)
    per = results.pieces if measure == "stream" else 1
    ours, bare = (results.median(measure, each, "cpu_us") / per for each in (name, BARE))
    said = f"{ours:.0f} us; bare {bare:.0f} us: {value:.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"
    return Line(what, said, value, most, f"{most:g} times")


def tables(result: Mapping[str, Any]) -> str:
    """What docs/benchmarks.md says of a run."""
    results = Results(result)
    changed = ", with changes that are not in it" if result["changed_since"] else ""
    libraries = ", ".join(f"{name} {version}" for name, version in result["libraries"].items())
    about = (
        f"Run of {result['date']}, commit `{result['commit'][:12]}`{changed}, in {result['seconds'] / 60:.0f} minutes:"
        f" {result['cores']} cores of {result['processor']}, load {result['load_before']:.1f} before it, Linux"
        f" {result['kernel']}, Python {result['python']}, {libraries}. Median of {result['rounds']} rounds."
    )
    lines = [
        about,
        "",
        "| what | Turnout | aim | |",
        "| --- | --- | --- | --- |",
        *(f"| {line.what} | {line.said} | {line.aim} | {line.verdict} |" for line in demands(results)),
        "",
        f"| before the same stub | {' | '.join(COLUMNS)} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(results, result["versions"], name) for name in _names(result)),
        "",
        *(f"Left out: {name}: {_shortened(why)}" for name, why in result["left_out"].items()),
    ]
    return "\n".join(lines).strip()


def _names(result: Mapping[str, Any]) -> list[str]:
    """Every subject once, in the order in which they were started."""
    names = dict.fromkeys(name for table in result["figures"].values() for name in table)
    return [name for name in names if name != DIRECT]


def _row(results: Results, versions: Mapping[str, str], name: str) -> str:
    def cell(measure: str, how: Callable[[], str]) -> str:
        return how() if results.has(measure, name) else "-"

    def cpu(measure: str, per: int = 1) -> str:
        return cell(measure, lambda: f"{results.median(measure, name, 'cpu_us') / per:,.0f} us")

    def added(measure: str, key: str) -> str:
        return cell(measure, lambda: f"{median(results.added(measure, name, key)):.2f} ms")

    shown = f"{name} {versions[name]}" if name in versions else name
    cells = [
        cpu("chat"),
        cpu("single"),
        added("single", "p50_ms"),
        cpu("agent"),
        cpu("stream", results.pieces),
        added("first", "first_p50_ms"),
        f"{results.idle_mb[name]:.0f} MB" if name in results.idle_mb else "-",
    ]
    return f"| {shown} | {' | '.join(cells)} |"


def _shortened(why: str) -> str:
    return " ".join(why.split())[:200]


def picture(result: Mapping[str, Any]) -> str:
    """The plot, an SVG."""
    results = Results(result)

    def panel(title: str, measure: str, per: int) -> Panel:
        names = [name for name in _names(result) if results.has(measure, name)]
        return Panel(title, {name: results.median(measure, name, "cpu_us") / per for name in names})

    return dots(
        [
            panel("CPU per request, 2 KB, 16 in flight", "chat", 1),
            panel("CPU per request, 60 KB, 16 in flight", "agent", 1),
            panel(f"CPU per streamed piece, {result['gap_ms']} ms apart, 16 in flight", "stream", results.pieces),
        ],
        OURS,
    )


def write(result: Mapping[str, Any], root: Path) -> None:
    """The raw results, the tables and the plot, where they belong."""
    raw = root / "bench" / "results" / f"gateways-{result['date']}.json"
    raw.parent.mkdir(exist_ok=True)
    raw.write_text(json.dumps(result, indent=1) + "\n")
    show(result, raw.name, root)


def show(result: Mapping[str, Any], name: str, root: Path) -> None:
    """The tables and the plot of the raw results of that name."""
    page = root / "docs" / "benchmarks.md"
    said = f"{BEGIN}\n{tables(result)}\n\n![CPU of each](gateways.svg)\n\nRaw: `bench/results/{name}`\n{END}"
    text, found = re.subn(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: said, page.read_text(), flags=re.DOTALL)
    if found != 1:
        raise SystemExit(f"{page} has no place for the tables: {BEGIN} ... {END}")
    page.write_text(text)
    (root / "docs" / "gateways.svg").write_text(picture(result))


if __name__ == "__main__":
    file = Path(sys.argv[1])
    show(json.loads(file.read_text()), file.name, Path(__file__).parent.parent)
