"""``turnout models --capabilities`` and ``--why``: what each known model is good for, and how that was computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from turnout.cli.fleet import capability_table
from turnout.cli.output import cell, loaded_config, note, print_json, table
from turnout.errors import UsageError
from turnout.routing.capabilities import load_table, memory_need
from turnout.routing.evidence import shipped_evidence
from turnout.routing.why import why
from turnout.types import Model, TaskCategory

if TYPE_CHECKING:
    from turnout.routing.capabilities import ModelCapability, Rating
    from turnout.routing.evidence import Weighed
    from turnout.routing.why import Reasons, Scored
    from turnout.types import Json

COLUMNS = ("model", "parameters", "window", "needs", "capabilities", *TaskCategory, "from")
QUANTIZATION, WINDOW = "Q4_K_M", 16_384  # of the memory that is shown


def list_capabilities(config_file: str | None, part: str, as_json: bool) -> None:
    """Every row whose name has ``part`` in it, the best at coding first."""
    known = capability_table(loaded_config(config_file))
    rows = [row for row in map(known.get, known.ids) if row and part.lower() in row.id.lower()]
    if not rows:
        hint = "`turnout models --why NAME` shows what is expected of it"
        raise UsageError(f"no model of the capability table has {part!r} in its name", hint=hint)
    found = [(row, known.rate(Model(row.id))) for row in rows]
    found.sort(key=lambda each: (-each[1].scores[TaskCategory.CODING], each[0].id))
    if as_json:
        print_json({"models": [_row_fields(row, rating) for row, rating in found]})
        return
    table(COLUMNS, [_row_cells(row, rating) for row, rating in found], spare=("from", "capabilities", "needs"))


def _need(row: ModelCapability) -> int:
    return memory_need(row.params, QUANTIZATION, min(WINDOW, row.window), row.active)


def _row_cells(row: ModelCapability, rating: Rating) -> tuple[str, ...]:
    size = f"{row.params:g}B" + (f" ({row.active:g}B active)" if row.active else "")
    scores = [f"{rating.scores[category]:.0f}" for category in TaskCategory]
    return (
        row.id,
        size,
        str(row.window),
        f"{_need(row) / 1e9:.1f} GB",
        ", ".join(sorted(row.capabilities)),
        *scores,
        rating.source,
    )


def _row_fields(row: ModelCapability, rating: Rating) -> dict[str, Json]:
    return {
        "model": row.id,
        "family": row.family,
        "parameters": row.params * 1e9,
        "active_parameters": row.active * 1e9,
        "window": row.window,
        "released": row.released,
        "tier": row.tier,
        "capabilities": [*sorted(row.capabilities)],
        "needs": {"bytes": _need(row), "quantization": QUANTIZATION, "window": min(WINDOW, row.window)},
        "scores": {category.value: score for category, score in rating.scores.items()},
        "source": rating.source,
    }


def explain_model(config_file: str | None, name: str, as_json: bool) -> None:
    """Every term of each score of a name, as a server or the table has it."""
    known = capability_table(loaded_config(config_file))
    found = why(Model(name), known, load_table(), shipped_evidence())
    if as_json:
        print_json(_reasons_fields(name, found))
        return
    is_row = found.row.id if found.row else "no row of the capability table"
    made_of = f", rated as made from {found.like.id}" if found.like else ""
    click.echo(cell(f"{name}: {is_row}{made_of}; {found.source}"))
    columns = ("category", "term", "value", "date", "points", "weight")
    table(columns, [row for category in found.scores for row in _reason_rows(category, found.scores[category])])
    if found.scores:
        note("a score is the mean of its terms by their weights, then what is added; docs/routing.md has the method")


def _reason_rows(category: TaskCategory, one: Scored) -> list[tuple[str, ...]]:
    name = category.value
    total = sum(term.weight for term in one.weighed)
    rows: list[tuple[str, ...]] = [(name, f"  {term.what}", "", "", f"{term.points:+.1f}", "") for term in one.expected]
    rows += [_weighed_row(name, term, total) for term in one.weighed]
    if one.written is not None:
        rows.append((name, "the user's file", "", "", f"{one.written:.1f}", "100 %"))
    if one.least:
        rows.append((name, "at least that of a smaller one of its series", "", "", f"{one.least:.1f}", ""))
    rows += [(name, what, "", "", f"{points:+.1f}", "added") for what, points in one.build.items()]
    return [*rows, (name, "score", "", "", f"{one.score:.1f}", "")]


def _weighed_row(category: str, term: Weighed, total: float) -> tuple[str, ...]:
    share = f"{100 * term.weight / total:.0f} %"
    if term.result is None:
        return category, term.what, "", "", f"{term.points:.1f}", share
    result = term.result
    what = f"{term.what} (as {result.listed})"
    return category, what, f"{result.value:g}", result.date, f"{term.points:.1f}", share


def _reasons_fields(name: str, found: Reasons) -> dict[str, Json]:
    return {
        "model": name,
        "canonical": found.row.id if found.row else "",
        "made_from": found.like.id if found.like else "",
        "source": found.source,
        "scores": {category.value: _scored_fields(one) for category, one in found.scores.items()},
    }


def _scored_fields(one: Scored) -> dict[str, Json]:
    return {
        "score": one.score,
        "expected": [{"what": term.what, "points": round(term.points, 2)} for term in one.expected],
        "terms": [_term_fields(term) for term in one.weighed],
        "written": one.written,
        "least": one.least or None,
        "build": {what: round(points, 2) for what, points in one.build.items()},
    }


def _term_fields(term: Weighed) -> dict[str, Json]:
    fields: dict[str, Json] = {"what": term.what, "points": round(term.points, 2), "weight": round(term.weight, 6)}
    if term.result is None:
        return fields
    source = shipped_evidence().benchmarks[term.result.benchmark].source
    result = term.result
    return fields | {"value": result.value, "date": result.date, "listed": result.listed, "source": source}
