"""What a proof says (SPEC PROOF-1): the canaries, the verdict, and what was installed and open meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime

from turnout.guard import evidence
from turnout.guard.canaries import Canary
from turnout.guard.protection import Protection
from turnout.guard.protection import fix as fix_of
from turnout.types import Json

KIND = "turnout proof"
_CLOSE = (
    "close the network: a firewall that drops what leaves, the unit deploy/turnout.service (IPAddressDeny=any), or a "
    "container whose network has no way out"
)
_LIFTED = "set security.allow_external: false"
_FAULT = "an own door of Turnout is open: do not use this version, and report it with this file"
_UNTRIED = "find out why these could not be tried, and run `turnout prove` again"


def make_report(
    canaries: Sequence[Canary],
    *,
    at: datetime,
    version: str,
    configuration: dict[str, Json],
    audit: dict[str, Json] | None,
    children: Protection,
) -> dict[str, Json]:
    """The report, unsigned.

    Args:
        at: when it was made, with its time zone.
        version: of Turnout.
        configuration: what is in force, without secrets.
        audit: how far the audit log had come; None when there is none.
        children: whether they have a network.
    """
    counts = Counter(canary.verdict for canary in canaries)
    return {
        "kind": KIND,
        "made": at.isoformat(timespec="seconds"),
        "turnout": version,
        "ok": is_proven(canaries),
        "counts": {verdict: counts[verdict] for verdict in ("stopped", "unclear", "out")},
        "fixes": [*fixes(canaries, lifted=bool(configuration.get("allow_external")))],
        "canaries": [asdict(canary) for canary in canaries],
        "configuration": configuration,
        "audit": audit,
        "installation": evidence.installation(),
        "network": evidence.network(),
        "children": {"cut": children.by, "found": children.told, "fix": fix_of(children)},
    }


def is_proven(canaries: Sequence[Canary]) -> bool:
    """Every canary was stopped, and there were some."""
    return bool(canaries) and all(canary.verdict == "stopped" for canary in canaries)


def fixes(canaries: Sequence[Canary], *, lifted: bool) -> Iterator[str]:
    """What to do about those that were not stopped. ``lifted``: any address may be dialled, by configuration."""
    left = [canary for canary in canaries if canary.verdict != "stopped"]
    if lifted:
        yield _LIFTED
    if any(canary.own and canary.verdict == "out" for canary in left) and not lifted:
        yield _FAULT
    if any(not canary.own for canary in left):
        yield _CLOSE
    if any(canary.own and canary.verdict == "unclear" for canary in left):
        yield _UNTRIED


def page(report: dict[str, Json]) -> str:
    """The report for people, in Markdown."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: dict[str, Json]) -> Iterator[str]:
    counts = _fields(report["counts"])
    yield "# Can anything leave?"
    yield ""
    yield "**No: every attempt was stopped.**" if report["ok"] else "**Not proven: see below what was not stopped.**"
    yield f"{counts['stopped']} stopped, {counts['unclear']} unclear, {counts['out']} out. "
    yield f"Made {report['made']} by Turnout {report['turnout']}."
    for fix in _rows(report["fixes"]):
        yield f"- to do: {fix}"
    yield from _canary_tables([_fields(row) for row in _rows(report["canaries"])])
    yield from _recorded(report)


def _canary_tables(canaries: list[dict[str, Json]]) -> Iterator[str]:
    parts = (
        ("Doors of Turnout, which it closes itself", True),
        ("Doors that only the network can close", False),
    )
    for title, own in parts:
        yield from ("", f"## {title}", "")
        yield from ("| door | to | verdict | stopped by | seen |", "| --- | --- | --- | --- | --- |")
        for row in (row for row in canaries if row["own"] is own):
            cells = (row["door"], row["target"], row["verdict"], row["by"] or "-", row["found"])
            yield f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _recorded(report: dict[str, Json]) -> Iterator[str]:
    for title in ("configuration", "audit", "network", "children"):
        yield from ("", f"## {title.capitalize()}", "")
        for name, value in _fields(report[title]).items():
            yield f"- {name}: {_cell(_said(value))}"
    installed = _fields(report["installation"])
    yield from ("", "## Installation", "", f"{_cell(installed['python'])} on {_cell(installed['platform'])}", "")
    for pth in map(_fields, _rows(installed["pth"])):
        yield f"- at start: `{_cell(pth['file'])}` sha256 {pth['sha256']}{', runs code' if pth['runs_code'] else ''}"
    for hook in map(_fields, _rows(installed["start_hooks"])):
        yield f"- at start: `{_cell(hook['file'])}` sha256 {hook['sha256']}, runs code"
    yield f"- variables that decide which code is loaded: {_cell(_said(installed['variables']))}"
    yield f"- SHA-256 of Turnout's own code: {installed['code_sha256']}"
    yield from (
        "",
        "| package | version | SHA-256 of its RECORD | files that differ from it |",
        "| --- | --- | --- | --- |",
    )
    for row in map(_fields, _rows(installed["packages"])):
        cells = _cell(row["name"]), _cell(row["version"]), row["record_sha256"] or "none", _cell(_said(row["changed"]))
        yield f"| {' | '.join(map(str, cells))} |"


def _said(value: Json) -> str:
    if isinstance(value, list):
        return ", ".join(str(each) for each in value) or "none"
    return "not known" if value is None else str(value)


def _cell(value: Json) -> str:
    """One line of text that Markdown reads as text."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _fields(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _rows(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []
