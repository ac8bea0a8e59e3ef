"""``turnout eval replay``: what another policy would have chosen, from the decision log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from turnout.cli.output import json_option, loaded_config, note, print_json, table
from turnout.errors import UsageError

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.routing.replay import Expected, Policy, Replay
    from turnout.types import Json

METHOD = "direct: each choice is worth what was expected of it when the decision fell"


@click.command()
@click.argument("file", required=False)
@click.option(
    "--policy",
    type=click.Choice(["best", "balanced", "fast", "lists"]),
    help="What chooses. Default: routing.policy.",
)
@json_option
@click.pass_obj
def replay(config_file: str | None, file: str | None, policy: str | None, as_json: bool) -> None:
    """Show how often another policy would have chosen otherwise, and what was expected of its choices.

    FILE is a decision log; without it, the one of the data directory with the full files before it
    (`routing.log_decisions`). Nothing is asked of any server.

    The seconds and scores are those that were expected when each decision fell. What would really have come of a choice
    that was not made is not known, and cannot be weighed by its probability, since no policy here chooses by chance: so
    the last lines say how far expected and observed seconds are apart. Conversations that stayed where their prefix was
    cached count as choices that the policy would make otherwise, where it would.
    """
    loaded = loaded_config(config_file)
    used = cast("Policy", policy or loaded.config.routing.policy)
    found = _replay(loaded, file, used)
    if as_json:
        print_json({"file": file, "policy": used, "method": METHOD, **_fields(found)})
        return
    _show(used, found)


def _replay(loaded: LoadedConfig, file: str | None, policy: Policy) -> Replay:
    from turnout.config import data_dir
    from turnout.fleet.decisions import decisions_path, files_of, read
    from turnout.routing.capabilities import load_table
    from turnout.routing.replay import replay as run

    paths = [Path(file)] if file is not None else files_of(decisions_path(data_dir()))[::-1]
    if not paths:
        hint = "it is written with `routing.log_decisions: true`, some seconds after an answer"
        raise UsageError(f"there is no decision log in {data_dir()}", hint=hint)
    own = loaded.config.routing.models_file
    try:
        return run(read(paths), policy, loaded.config, load_table(Path(own) if own else None))
    except OSError as error:
        where = error.filename or paths[0]
        raise UsageError(f"{where}: {error.strerror}", hint="name a decision log, such as decisions.jsonl") from None


def _show(policy: str, found: Replay) -> None:
    rows = [
        ("decisions", str(found.decisions)),
        ("for an exact model", str(found.exact)),
        ("with one candidate", str(found.alone)),
        ("replayed", str(found.replayed)),
        (f"{policy} would choose otherwise", _share(found.differ, found.replayed)),
        (f"{policy} would choose another model", _share(found.other_model, found.replayed)),
    ]
    table(("measure", "value"), rows)
    if found.replayed:
        _show_means(policy, found)
    if found.damaged:
        note(f"lines that are no decisions, left out: {found.damaged}")


def _show_means(policy: str, found: Replay) -> None:
    click.echo()
    logged, other = _cells(found.logged), _cells(found.policy)
    names = ("expected seconds", "expected seconds until it begins", "expected score")
    table(("mean", "as it was decided", policy), list(zip(names, logged, other, strict=True)))
    click.echo()
    observed = [
        ("expected seconds where the first choice answered", _number(found.expected)),
        ("observed seconds there", _number(found.observed)),
        ("observed by expected, median", _number(found.ratio)),
    ]
    table(("measure", "value"), observed)


def _share(number: int, of: int) -> str:
    return f"{number} ({number / of:.1%})" if of else "0"


def _cells(expected: Expected | None) -> tuple[str, ...]:
    if expected is None:
        return ("", "", "")
    return f"{expected.seconds:.2f}", f"{expected.first:.2f}", f"{expected.score:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _fields(found: Replay) -> dict[str, Json]:
    return {
        "decisions": found.decisions,
        "damaged": found.damaged,
        "exact": found.exact,
        "alone": found.alone,
        "replayed": found.replayed,
        "priced": found.priced,
        "differ": found.differ,
        "other_model": found.other_model,
        "expected": {"logged": _means(found.logged), "policy": _means(found.policy)},
        "first_choices": {
            "expected_seconds": _rounded(found.expected),
            "observed_seconds": _rounded(found.observed),
            "observed_by_expected": _rounded(found.ratio),
        },
    }


def _means(expected: Expected | None) -> Json:
    """For ``--json``; null where nothing was priced."""
    if expected is None:
        return None
    return {
        "seconds": round(expected.seconds, 3),
        "first": round(expected.first, 3),
        "score": round(expected.score, 3),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
