"""``turnout classify`` and ``turnout explain``: the router's decisions, without running anything."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Unpack

import click

from turnout.cli.output import cell, json_option, loaded_config, print_json, table, waiting
from turnout.cli.request import Given, build_request, read_query, request_options

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.routing.classifier import ClassificationResult
    from turnout.routing.price import Price
    from turnout.run import Explanation
    from turnout.types import Attempt, Candidate, ChatRequest, Json


@click.command()
@click.argument("query", required=False)
@click.option("--explain", is_flag=True, help="Show what was read as the request, too.")
@json_option
@click.pass_obj
def classify(config_file: str | None, query: str | None, explain: bool, as_json: bool) -> None:
    """Show what kind of work a question is, and what spoke for it.

    QUERY is the question; `-`, or no QUERY, reads it from standard input. Code, logs and files that are pasted under it
    are not what decides: --explain shows what is left without them.
    """
    from turnout.routing.classify import classify_task
    from turnout.routing.features import request_of, shown

    asked, policy = read_query(query), loaded_config(config_file).config.routing.classification
    task = classify_task(asked, policy)
    request, code, log = request_of(asked)
    request = shown(request)
    if as_json:
        read: dict[str, Json] = {"request": request, "lines_of_code": code, "lines_of_log": log} if explain else {}
        print_json({"policy": policy, **_task_fields(task), **read})
        return
    if explain:
        rows = [("request", request), ("lines of code", str(code)), ("lines of log", str(log)), ("policy", policy)]
        table(("property", "value"), [*_task_rows(task), *rows])
        return
    table(("property", "value"), _task_rows(task))


@click.command()
@request_options
@json_option
@click.pass_obj
def explain(config_file: str | None, as_json: bool, **given: Unpack[Given]) -> None:
    """Show which model a question would go to, with every candidate and why; runs nothing.

    QUERY is the question; `-`, or no QUERY, reads it from standard input. The options are those of `turnout ask`.
    """
    query = read_query(given["query"])
    loaded = loaded_config(config_file)
    request = build_request(loaded, given, query)
    with waiting("looking for servers"):
        explanation = asyncio.run(_explain(loaded, request))
    decisions = _decisions(explanation)
    if as_json:
        print_json(_explanation_fields(explanation, decisions))
        return
    click.echo(f"task: {_task_line(explanation.classification)}")
    click.echo(f"code context: {cell(explanation.context_note)}")
    click.echo(f"prompt: about {explanation.prompt_tokens} tokens")
    click.echo(f"policy: {cell(explanation.selection.policy)}")
    columns = (
        "decision",
        "model",
        "service",
        "level",
        "window",
        "seconds",
        "queue",
        "load",
        "read",
        "write",
        "harm",
        "reason",
    )
    prices = {id(ranked.candidate): ranked.price for ranked in explanation.selection.ranked}
    rows = [(*_row(*d), *_price_cells(prices.get(id(d[1]))), d[3]) for d in decisions]
    brief = [(*_row(*d, brief=True), *_price_cells(prices.get(id(d[1]))), d[3]) for d in decisions]
    table(columns, rows, brief=brief, spare=("harm", "queue", "load", "read", "write"))


async def _explain(loaded: LoadedConfig, request: ChatRequest) -> Explanation:
    from turnout.build import open_router

    async with open_router(loaded, whole=True) as router:
        return await router.explain(request)


def _decisions(explanation: Explanation) -> list[tuple[str, Candidate, Attempt | None, str]]:
    """Every candidate as (decision, candidate, its attempt, reason): the plan in its order, then what is not in it."""
    found: list[tuple[str, Candidate, Attempt | None, str]] = []
    for place, attempt in enumerate(explanation.attempts):
        decision = "chosen" if place == 0 else f"then {place + 1}"
        shortened = "; the conversation is shortened first" if attempt.reduced else ""
        found.append((decision, attempt.candidate, attempt, attempt.reason + shortened))
    planned = [attempt.candidate for attempt in explanation.attempts]
    for ranked in explanation.selection.too_small:
        if ranked.candidate not in planned:
            window, target = ranked.candidate.window, explanation.selection.target
            why = f"below min_context {target}" if window < target else "too small for this request"
            found.append(("not taken", ranked.candidate, None, f"its window of {window} tokens is {why}"))
    found += [("not taken", candidate, None, reason) for candidate, reason in explanation.selection.rejected]
    return found


def _row(
    decision: str, candidate: Candidate, attempt: Attempt | None, reason: str, *, brief: bool = False
) -> tuple[str, ...]:
    name = "" if brief or attempt is None else f" {attempt.level.name.lower().replace('_', ' ')}"
    level = f"{int(attempt.level)}{name}" if attempt else ""
    window = f"{candidate.window} ({candidate.window_source})"
    return decision, candidate.model.id, candidate.endpoint.name, level, window


def _price_cells(price: Price | None) -> tuple[str, ...]:
    """All of it, then its parts: what is waited for before, for a load, while the prompt is read and the answer
    written, and what others wait for longer."""
    if price is None:
        return ("",) * 6
    parts = (price.seconds, price.queue, price.load, price.prefill, price.decode, price.harm)
    return tuple(f"{value:.1f}" for value in parts)


def _task_line(task: ClassificationResult | None) -> str:
    if task is None:
        return "not classified, an exact model was asked for"
    evidence = f" ({', '.join(task.evidence)})" if task.evidence else ""
    return cell(f"{task.category}, confidence {task.confidence:.2f}{evidence}")


def _task_rows(task: ClassificationResult) -> list[tuple[str, str]]:
    return [
        ("category", task.category.value),
        ("confidence", f"{task.confidence:.2f}"),
        ("needs code context", "yes" if task.needs_code_context else "no"),
        ("difficulty", f"{task.difficulty:.2f}"),
        ("evidence", ", ".join(task.evidence)),
        *((f"score {category}", f"{score:.2f}") for category, score in task.scores.items()),
    ]


def _task_fields(task: ClassificationResult) -> dict[str, Json]:
    return {
        "category": task.category.value,
        "confidence": round(task.confidence, 4),
        "needs_code_context": task.needs_code_context,
        "difficulty": round(task.difficulty, 4),
        "evidence": [*task.evidence],
        "scores": {category.value: round(score, 4) for category, score in task.scores.items()},
    }


def _explanation_fields(
    explanation: Explanation, decisions: list[tuple[str, Candidate, Attempt | None, str]]
) -> dict[str, Json]:
    task = explanation.classification
    prices = {id(ranked.candidate): ranked.price for ranked in explanation.selection.ranked}
    return {
        "task": _task_fields(task) if task else None,
        "code_context": explanation.context_note,
        "prompt_tokens_estimate": explanation.prompt_tokens,
        "policy": explanation.selection.policy,
        "candidates": [
            {
                "decision": decision,
                "model": candidate.model.id,
                "canonical": candidate.canonical,
                "service": candidate.endpoint.name,
                "level": int(attempt.level) if attempt else None,
                "reduced_context": attempt.reduced if attempt else False,
                "window": candidate.window,
                "window_source": candidate.window_source,
                "seconds": _price_fields(prices.get(id(candidate))),
                "reason": reason,
            }
            for decision, candidate, attempt, reason in decisions
        ],
    }


def _price_fields(price: Price | None) -> Json:
    """For ``--json``, in seconds; null where nothing was priced."""
    if price is None:
        return None
    return {
        "total": round(price.seconds, 3),
        "queue": round(price.queue, 3),
        "load": round(price.load, 3),
        "prefill": round(price.prefill, 3),
        "decode": round(price.decode, 3),
        "harm": round(price.harm, 3),
        "observed": price.observed,
    }
