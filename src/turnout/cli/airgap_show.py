"""The air-gap checklist for people and programs: table, JSON, and a signed page that needs nothing but a browser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from turnout.cli.airgap import Line, Server, Site
from turnout.cli.output import note, print_json, table
from turnout.config import signing_dir
from turnout.errors import StorageError
from turnout.files import replace_file
from turnout.guard.report import signed_page
from turnout.guard.signing import Signer
from turnout.types import Json

_STYLE = (
    "body{font:15px sans-serif;margin:2em;max-width:75em}table{border-collapse:collapse;width:100%}"
    "td,th{border:1px solid #bbb;padding:.4em;text-align:left;vertical-align:top}"
    ".pass{background:#dff3df}.fail{background:#f9dcdc}.not{background:#f6efcf}"
)


def show(lines: Sequence[Line], site: Site, *, as_json: bool) -> None:
    """On standard output."""
    if as_json:
        print_json(_fields(lines, site))
        return
    table(("line", "state", "evidence", "fix"), [(each.line, each.state, each.evidence, each.fix) for each in lines])
    note(_summary(lines))
    for server in site.servers:
        for text in server.notes:
            note(f"{server.name}: {text}")


def write_page(lines: Sequence[Line], site: Site, file: Path) -> None:
    """The signed HTML page; `turnout verify` checks it.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        replace_file(file, signed_page(_page(lines, site), Signer(signing_dir())))
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror or error}", hint="--html FILE") from error


def _summary(lines: Sequence[Line]) -> str:
    counts = Counter[str](each.state for each in lines)
    return ", ".join(f"{counts[state]} {said}" for state, said in _SAID.items())


_SAID = {"pass": "pass", "fail": "fail", "not checkable": "not checkable from here"}


def _fields(lines: Sequence[Line], site: Site) -> dict[str, Json]:
    failed = [each for each in lines if each.state == "fail"]
    fields: dict[str, Json] = {
        "ok": not failed,
        "lines": [
            {"section": e.section, "line": e.line, "state": e.state, "evidence": e.evidence, "fix": e.fix}
            for e in lines
        ],
        "servers": [_server_fields(server) for server in site.servers],
    }
    if failed:
        message = "; ".join(f"{each.line}: {each.evidence}" for each in failed)
        fields["error"] = {"code": "check_failed", "message": message, "hint": failed[0].fix}
    return fields


def _server_fields(server: Server) -> Json:
    return {
        "name": server.name,
        "url": server.url,
        "answers_without_key": server.open,
        "reached_by": server.reach,
        "cloud_models": [*server.cloud],
        "models": server.models,
        "models_without_digest": [*server.undigested],
        "notes": [*server.notes],
    }


def _page(lines: Sequence[Line], site: Site) -> str:
    made = datetime.now(UTC).isoformat(timespec="seconds")
    rows = "".join(
        f'<tr class="{each.state.split()[0]}"><td>{_text(each.section.replace("_", " "))}</td>'
        f"<td>{_text(each.line)}</td>"
        f"<td>{_text(each.state)}</td><td>{_text(each.evidence)}</td><td>{_text(each.fix)}</td></tr>\n"
        for each in lines
    )
    servers = "".join(
        f"<tr><td>{_text(s.name)}</td><td>{_text(s.url)}</td><td>{_key_said(s)}</td><td>{_text(s.reach)}</td>"
        f"<td>{_text(', '.join(s.cloud))}</td><td>{s.models - len(s.undigested)} of {s.models}</td>"
        f"<td>{_text('; '.join(s.notes))}</td></tr>\n"
        for s in site.servers
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Air-gap checklist</title>'
        f"<style>{_STYLE}</style>\n<h1>Air-gap checklist</h1><p>Made {made}: {_summary(lines)}.</p>\n"
        "<table><tr><th>section<th>line<th>state<th>evidence<th>fix</tr>\n"
        f"{rows}</table>\n<h2>Servers behind the router</h2>\n"
        "<table><tr><th>name<th>address<th>key<th>reached by<th>cloud models<th>digests<th>notes</tr>\n"
        f"{servers}</table>\n</html>\n"
    )


def _key_said(server: Server) -> str:
    return {True: "none needed", False: "needed", None: "not known"}[server.open]


def _text(text: str) -> str:
    return escape(" ".join(text.split()))
