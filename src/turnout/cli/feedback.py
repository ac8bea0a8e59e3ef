"""``turnout feedback``: whether an answer was any good."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from turnout.cli.output import json_option, loaded_config, note, print_json, table
from turnout.errors import StorageError, UsageError

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.fleet.decisions import Decision
    from turnout.fleet.feedback import Given
    from turnout.journal import Voted
    from turnout.types import Json

LISTED = 10


@click.command()
@click.argument("request_id", required=False)
@click.argument("verdict", type=click.Choice(["good", "bad"]), required=False)
@click.option("--note", "words", metavar="TEXT", default="", help="Why, in your own words; at most 500 characters.")
@json_option
@click.pass_obj
def feedback(config_file: str | None, request_id: str | None, verdict: str | None, words: str, as_json: bool) -> None:
    """Say whether an answer was any good; without a request, list the last ones.

    A vote moves the score of the model that answered, for that kind of work, by half a point; 20 move it by five, and
    no number by more than ten. Half of it is forgotten in 90 days. A second vote on the same request changes the first.
    `turnout explain` shows the change.

    You may judge what was asked on this machine; who uses the gateway with a key judges with POST /v1/feedback.
    """
    loaded = loaded_config(config_file)
    if request_id is None:
        _list(loaded, as_json)
        return
    if verdict is None:
        raise UsageError("the verdict is missing", hint=f"turnout feedback {request_id[:80]} good, or bad")
    voted = _vote(loaded, request_id, verdict == "good", words)
    if as_json:
        from turnout.journal import vote_fields

        print_json({"request_id": request_id, **vote_fields(voted)})
        return
    from turnout.fleet.feedback import feedback_words

    note(f"{voted.model}, {voted.category}: {feedback_words(voted.votes)}")


def _vote(loaded: LoadedConfig, request_id: str, good: bool, words: str) -> Voted:
    from turnout.build import open_audit_log, open_journal
    from turnout.types import Principal

    audit = open_audit_log(loaded)
    try:
        journal = open_journal(loaded, audit)
        return asyncio.run(journal.feedback(request_id, Principal(), good=good, note=words))
    finally:
        if audit is not None:
            audit.close()


def _list(loaded: LoadedConfig, as_json: bool) -> None:
    from turnout.config import data_dir
    from turnout.fleet.feedback import Feedback, feedback_path

    given = Feedback(feedback_path(data_dir())).given
    rows = [(decision, given.get(decision.id)) for decision in _last()]
    if as_json:
        print_json({"requests": [_fields(*row) for row in rows]})
        return
    if not rows and not loaded.config.routing.log_decisions:
        note("routing.log_decisions is false: decisions are not kept")
    columns = ("request", "when", "category", "model", "service", "seconds", "verdict", "note")
    table(columns, [_row(*row) for row in rows], spare=("note", "seconds", "service"))


def _last() -> list[Decision]:
    """Your last requests that can be judged, the newest first."""
    from turnout.config import data_dir
    from turnout.fleet.decisions import decisions_path, files_of, read
    from turnout.types import Principal

    mine = Principal().id
    try:
        newest = reversed(files_of(decisions_path(data_dir()))[:2])
        found = [d for d in read(newest) if d is not None and d.who == mine and d.category and d.chosen >= 0]
    except OSError as error:
        raise StorageError(f"the decision log cannot be read: {error.strerror or error}") from error
    return found[: -LISTED - 1 : -1]


def _row(decision: Decision, given: Given | None) -> tuple[str, ...]:
    option = decision.options[decision.chosen]
    when = datetime.fromtimestamp(decision.at, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    verdict = "" if given is None else "good" if given.good else "bad"
    seconds = f"{decision.outcome.total:.1f}"
    words = given.note if given is not None else ""
    return decision.id, when, decision.category, option.model, option.at, seconds, verdict, words


def _fields(decision: Decision, given: Given | None) -> dict[str, Json]:
    option = decision.options[decision.chosen]
    return {
        "request_id": decision.id,
        "at": datetime.fromtimestamp(decision.at, UTC).isoformat(timespec="seconds"),
        "category": decision.category,
        "model": option.model,
        "service": option.at,
        "seconds": decision.outcome.total,
        "verdict": None if given is None else "good" if given.good else "bad",
        "note": given.note if given is not None else "",
    }
