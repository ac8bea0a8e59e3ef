"""``turnout eval``: how good the classifier and the choice of a model are on labelled queries of your own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnout.cli.output import json_option, loaded_config, print_json, table
from turnout.cli.plot import EDGE, SIDE, square_plot
from turnout.cli.replay import replay
from turnout.errors import UsageError
from turnout.types import TaskCategory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.routing.evaluate import Bin, Evaluation, Label, Score
    from turnout.types import Json


@click.group()
def eval() -> None:  # noqa: A001 - the command's name
    """Measure what Turnout decides on examples of your own.

    No model is asked anything.
    """


eval.add_command(replay)


@eval.command()
@click.argument("file")
@click.option(
    "--policy", type=click.Choice(["learned", "rules"]), help="What classifies. Default: routing.classification."
)
@click.option("--plot", metavar="FILE.svg", help="Also draw how often it is right against how sure it is.")
@json_option
@click.pass_obj
def classify(config_file: str | None, file: str, policy: str | None, plot: str | None, as_json: bool) -> None:
    """Show how good the classifier is on labelled queries.

    FILE has a JSON object on each line: `text` (or `query`), the question, and `label` (or `category`), one of coding,
    reasoning, analysis and documentation. `also`, a second label that can be defended, and `needs_code_context`, true
    or false, may be left out or null. Every other field is passed over.

    The columns of the confusion matrix are what was said, its lines what is labelled. Queries that the classifier was
    trained with flatter it: their files are named in docs/classifier.md.
    """
    from turnout.routing.classify import classify_task
    from turnout.routing.evaluate import evaluate

    _require_svg(plot)
    rows = [labelled(row, where) for where, row in read_queries(Path(file))]
    used = policy or loaded_config(config_file).config.routing.classification
    found = evaluate([(label, classify_task(text, used)) for text, label in rows])
    if plot is not None:
        write_plot(Path(plot), reliability_plot(found.bins))
    if as_json:
        print_json({"file": file, "policy": used, **_fields(found)})
        return
    _show(used, found)


@eval.command()
@click.argument("file")
@click.option("--live", is_flag=True, help="Over the servers that run now, not simulated ones; asks what they have.")
@click.option("--fleets", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Simulated ones.")
@click.option("--plot", metavar="FILE.svg", help="Also draw how much is lost in which share of the choices.")
@json_option
@click.pass_obj
def route(config_file: str | None, file: str, live: bool, fleets: int, plot: str | None, as_json: bool) -> None:
    """Show how often the best model that can serve is chosen for labelled queries.

    FILE is as for `turnout eval classify`. A line may also have `tokens`, how long the prompt is with all that goes
    with it, and `needs`, a list of tools and vision; where they are left out, simulated requests have them at random.

    The classifier says what kind of work a query is, and the real selection chooses. What is true of a model is what
    the capability table says for the label: this shows what wrong labels and hard limits cost, not how true the table
    is, which docs/routing.md measures with results that the table has not seen.
    """
    from turnout.cli.evaluate_route import evaluate_route

    _require_svg(plot)
    evaluate_route(loaded_config(config_file), Path(file), fleets=0 if live else fleets, plot=plot, as_json=as_json)


def _require_svg(plot: str | None) -> None:
    if plot is not None and Path(plot).suffix.lower() != ".svg":
        raise UsageError(f"{plot}: a plot is an SVG image", hint="give it a name that ends in .svg")


def read_queries(path: Path) -> list[tuple[str, dict[str, Json]]]:
    """The lines of a file, each with where it is.

    Raises:
        UsageError: it cannot be read, is too large, holds none, or a line is no JSON object.
    """
    from turnout.files import MAX_FILE_BYTES, read_file

    try:
        body = read_file(path)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", hint="name a file of labelled queries, one JSON object a line"
        ) from None
    if len(body) > MAX_FILE_BYTES:
        raise UsageError(f"{path}: it is larger than {MAX_FILE_BYTES:,} bytes", hint="split it by lines")
    lines = body.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    rows = [
        (f"{path}:{number}", _row(line, f"{path}:{number}")) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not rows:
        raise UsageError(f"{path}: it holds no query", hint='a line is {"text": "...", "label": "coding"}')
    return rows


def _row(line: bytes, where: str) -> dict[str, Json]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UsageError(f"{where}: it is no JSON object in UTF-8", hint="put one query on each line, or take it out")
    return row


def labelled(row: dict[str, Json], where: str) -> tuple[str, Label]:
    """A line's query with its label.

    Raises:
        UsageError: the line is not as ``classify`` says.
    """
    from turnout.routing.evaluate import Label

    text = row.get("text") or row.get("query")
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{where}: it has no query", hint="put what is asked into `text`")
    needs = row.get("needs_code_context")
    if needs is not None and not isinstance(needs, bool):
        raise UsageError(f"{where}: needs_code_context is not true or false", hint="correct it or leave it out")
    also = row.get("also")
    category = _category(row.get("label") or row.get("category"), "label", where)
    return text, Label(category, _category(also, "also", where) if also else None, needs)


def _category(value: Json, key: str, where: str) -> TaskCategory:
    for category in TaskCategory:
        if value == category.value:
            return category
    names = ", ".join(category.value for category in TaskCategory)
    raise UsageError(f"{where}: `{key}` is no kind of work", hint=f"make it one of {names}")


def write_plot(path: Path, text: str) -> None:
    """A plot where the user wants it.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="name a file that can be written with --plot") from None


def _show(policy: str, found: Evaluation) -> None:
    rows = [
        ("policy", policy),
        ("queries", str(found.queries)),
        ("accuracy", _share(found.accuracy)),
        ("accuracy or the second label", _share(found.accuracy_either)),
        ("macro-F1", _share(found.macro_f1)),
        ("calibration error", _share(found.calibration_error)),
    ]
    if found.code_context:
        rows += [
            ("needs code context: queries labelled yes", str(found.code_context.labelled)),
            ("needs code context: precision", _share(found.code_context.precision)),
            ("needs code context: recall", _share(found.code_context.recall)),
        ]
    table(("measure", "value"), rows)
    click.echo()
    scores = found.categories.items()
    columns = ("category", "queries", "precision", "recall", "F1")
    table(columns, [(c, str(s.labelled), _share(s.precision), _share(s.recall), _share(s.f1)) for c, s in scores])
    click.echo()
    said_columns = ("labelled as", *(category.value for category in TaskCategory))
    table(said_columns, [(label, *map(str, said.values())) for label, said in found.confusion.items()])


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _fields(found: Evaluation) -> dict[str, Json]:
    return {
        "queries": found.queries,
        "accuracy": round(found.accuracy, 4),
        "accuracy_either": round(found.accuracy_either, 4),
        "macro_f1": round(found.macro_f1, 4),
        "calibration_error": round(found.calibration_error, 4),
        "categories": {category.value: _score_fields(score) for category, score in found.categories.items()},
        "confusion": {
            label.value: {category.value: count for category, count in said.items()}
            for label, said in found.confusion.items()
        },
        "bins": [
            {"queries": b.queries, "confidence": round(b.confidence, 4), "accuracy": round(b.accuracy, 4)}
            for b in found.bins
        ],
        "needs_code_context": _score_fields(found.code_context) if found.code_context else None,
    }


def _score_fields(score: Score) -> dict[str, Json]:
    """For ``--json``; null where nothing can be said."""
    shares = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
    rounded = {name: None if value is None else round(value, 4) for name, value in shares.items()}
    return {"queries": score.labelled, "said": score.said, **rounded}


def reliability_plot(bins: Sequence[Bin]) -> str:
    """An SVG image: how often what is so sure is right. On the line it is as sure as it may be; a dot's area tells of
    how many queries it is made."""
    most = max(b.queries for b in bins)
    low = EDGE + SIDE
    dots = "".join(
        f'<circle cx="{EDGE + SIDE * b.confidence:.1f}" cy="{low - SIDE * b.accuracy:.1f}" '
        f'r="{3 + 9 * (b.queries / most) ** 0.5:.1f}" fill="#27c" fill-opacity="0.7">'
        f"<title>{b.queries} queries, confidence {b.confidence:.2f}, right {b.accuracy:.2f}</title></circle>\n"
        for b in bins
    )
    line = f'<line x1="{EDGE}" y1="{low}" x2="{EDGE + SIDE}" y2="{EDGE}" stroke="#888" stroke-dasharray="4"/>\n'
    return square_plot(line + dots, 1.0, "confidence", "share that is right")
