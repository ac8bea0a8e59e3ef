"""``turnout audit``: read, count, check and hand over the audit log."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from turnout.cli.output import cell, json_option, loaded_config, note, print_json, table
from turnout.errors import EXIT_FAILED, AuditError, StorageError, UsageError

if TYPE_CHECKING:
    from turnout.guard.chain import ChainReport
    from turnout.types import Json

FOLLOW_SECONDS = 0.25


class Line(msgspec.Struct):
    """What is shown of a record."""

    timestamp: str = ""
    event_type: str = ""
    phase: str | None = None
    sequence: int = 0
    principal: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    agent: str | None = None
    model: str | None = None
    service: str | None = None
    category: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    success: bool | None = None
    error: str | None = None
    query_hash: str | None = None


@click.group()
def audit() -> None:
    """Read, search, count, check and hand over the audit log."""


@audit.command()
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), default=20, show_default=True, help="How many.")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come; Ctrl-C ends it.")
@json_option
@click.pass_context
def tail(context: click.Context, lines: int, follow: bool, as_json: bool) -> None:
    """Show the last records. The times are this machine's; --json has the log's own lines, one a record, in UTC."""
    path = _path(context.obj)
    found: list[bytes] = []
    for line in _lines(path):
        found.append(line)
        del found[: max(0, len(found) - lines)]
    _show(found if lines else [], as_json=as_json)
    if follow:
        _follow(path, as_json=as_json)


def _follow(path: Path, *, as_json: bool) -> None:
    seen = _last(path)
    while True:
        time.sleep(FOLLOW_SECONDS)
        newest = _last(path)
        if newest in (0, seen):  # 0: a full file was renamed, and the next one has no record yet
            continue
        seen = seen if newest > seen else 0  # it is another log
        fresh = [line for line in _lines(path) if seen < _read(line).sequence <= newest]
        _show(fresh, as_json=as_json, heading=False)
        seen = newest


def _last(path: Path) -> int:
    """The sequence of the newest record."""
    from turnout.guard.chain import last_of

    try:
        found = last_of(path)
    except OSError:
        return 0
    return found[0].sequence if found else 0


@audit.command()
@click.option("--event", help="Its event_type, or the beginning of it: `security:`.")
@click.option("--principal", help="Who asked.")
@click.option("--session", help="The session.")
@click.option("--model", help="The model, or a part of its id.")
@click.option("--service", help="The server.")
@click.option("--request", help="The request's id.")
@click.option("--query", help="The text of a query: its records are found by the keyed hash of it.")
@click.option("--failed", is_flag=True, help="Only what did not succeed.")
@click.option("--since", help="A time of this machine (2026-11-25, 2026-11-25T10:00) or an age (90m, 24h, 7d).")
@click.option("--until", help="As --since.")
@json_option
@click.pass_obj
def search(config_file: str | None, /, as_json: bool, **wanted: str | bool | None) -> None:
    """Show the records for which everything given holds, as `audit tail` does."""
    sought = _wanted(config_file, wanted)
    _show([line for line in _lines(_path(config_file)) if sought(_read(line))], as_json=as_json)


class _Sought:
    """What a record must be."""

    def __init__(self, given: dict[str, str | bool | None], query_hash: str | None) -> None:
        self._given, self._hash = given, query_hash
        self._since, self._until = _moment(given["since"]), _moment(given["until"])

    def __call__(self, line: Line) -> bool:
        given = self._given
        exact = (
            (given["principal"], line.principal),
            (given["session"], line.session_id),
            (given["service"], line.service),
            (given["request"], line.request_id),
            (self._hash, line.query_hash),
        )
        return (
            all(wanted is None or wanted == is_ for wanted, is_ in exact)
            and line.event_type.startswith(str(given["event"] or ""))
            and str(given["model"] or "") in (line.model or "")
            and (not given["failed"] or line.success is False)
            and (not self._since or line.timestamp >= self._since)
            # To the second, as the times are shown.
            and (not self._until or line.timestamp[:19] <= self._until[:19])
        )


def _wanted(config_file: str | None, given: dict[str, str | bool | None]) -> _Sought:
    query = given["query"]
    return _Sought(given, _hash_of(config_file, query) if isinstance(query, str) else None)


def _hash_of(config_file: str | None, query: str) -> str:
    from turnout.build import open_audit_log

    log = open_audit_log(loaded_config(config_file))
    digest = log.query_hash(query) if log is not None else None
    if digest is None:
        raise UsageError("queries are not in this log", hint="security.log_queries and security.audit_enabled")
    return digest


def _moment(given: str | bool | None) -> str:
    """A time as the log writes it, "" for none."""
    if not isinstance(given, str):
        return ""
    units = {"m": 60, "h": 3600, "d": 86_400}
    try:
        if given[-1:] in units and given[:-1].isdigit():
            at = datetime.now(UTC) - timedelta(seconds=int(given[:-1]) * units[given[-1]])
        else:
            at = datetime.fromisoformat(given)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{given[:80]!r} is no time", hint="2026-11-25, 2026-11-25T10:00, 90m, 24h or 7d") from error
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


@audit.command()
@click.option("--since", help="A time or an age, as in `audit search`.")
@json_option
@click.pass_context
def stats(context: click.Context, since: str | None, as_json: bool) -> None:
    """Count the records by event, and the queries by who asked, model, category and error."""
    after = _moment(since)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("event", "principal", "model", "category", "error")}
    tokens = Counter[str]()
    for raw in _lines(_path(context.obj)):
        line = _read(raw)
        if line.timestamp < after:
            continue
        counts["event"][line.event_type + (f" {line.phase}" if line.phase else "")] += 1
        if line.phase != "end":
            continue
        counts["principal"][line.principal or "-"] += 1
        counts["model"][line.model or "-"] += 1
        counts["category"][line.category or "-"] += 1
        if line.error:
            counts["error"][line.error] += 1
        tokens["in"] += line.tokens_in or 0
        tokens["out"] += line.tokens_out or 0
    if as_json:
        fields: dict[str, Json] = {name: dict(found.most_common()) for name, found in counts.items()}
        print_json({**fields, "tokens_in": tokens["in"], "tokens_out": tokens["out"]})
        return
    rows = [(name, what, str(n)) for name, found in counts.items() for what, n in found.most_common(20)]
    rows += [("tokens", "in", str(tokens["in"])), ("tokens", "out", str(tokens["out"]))]
    table(("by", "what", "count"), rows)


@audit.command()
@click.argument("log", type=click.Path(path_type=Path), required=False)
@click.option("--key", type=click.Path(path_type=Path), help="The public key: signing.pub.")
@click.option("--head", type=click.Path(path_type=Path), help="The signed head.")
@json_option
@click.pass_context
def verify(context: click.Context, log: Path | None, key: Path | None, head: Path | None, as_json: bool) -> None:
    """Check every line, signature and the end of the log; the first that is wrong is named.

    Without LOG, this installation's log with its key and head. With LOG, offline and anywhere: the public key and the
    head are taken from beside it when not given, which prove nothing when all came from the same hands. Exits with 1
    when something is wrong, when no signature covers any record, since anybody can write such a log, and when this
    installation's own key or head is gone: whoever changed its log may have taken them away.
    """
    from turnout.guard.chain import read_head
    from turnout.guard.chain import verify as verified
    from turnout.guard.signing import PUBLIC, read_public

    own, given = log is None, key is not None
    if log is None:
        log, key, head = _own(context.obj, key, head)
    key = key or _beside(log, PUBLIC)
    head = head or _beside(log, HEAD)
    public = read_public(key) if key is not None else None
    told = read_head(head) if head is not None else None
    if head is not None and told is None:
        raise StorageError(f"there is no head {head}", hint="give the file that was kept apart")
    report = verified(log, public, told)
    missing = [name for name, is_ in (("signatures: no public key", public), ("its end: no head", told)) if is_ is None]
    if report.ok and report.count and not report.sealed:
        missing.append("who wrote it: no signature covers any of it")
    checked = None if key is None or public is None else Checked(key, public.fingerprint, own=own, given=given)
    _tell(report, log, missing, checked, as_json=as_json)
    if not report.ok or report.alarms or (missing and (own or not report.sealed)):
        context.exit(EXIT_FAILED)


HEAD = "audit.head"


def _beside(log: Path, name: str) -> Path | None:
    found = log.parent / name
    return found if found.exists() else None


def _own(config_file: str | None, key: Path | None, head: Path | None) -> tuple[Path, Path | None, Path | None]:
    from turnout.build import audit_head_path
    from turnout.config import signing_dir
    from turnout.guard.signing import Signer

    loaded = loaded_config(config_file)
    public, own = Signer(signing_dir()).public_file, audit_head_path(loaded)
    return (
        _path(config_file),
        key or (public if public.exists() else None),
        head or (own if own.exists() else None),
    )


class Checked(NamedTuple):
    """The key that a log was checked with: ``own`` is this installation's, ``given`` that of --key."""

    path: Path
    fingerprint: str
    own: bool
    given: bool

    @property
    def told(self) -> str:
        """For people."""
        if self.given:
            whose = "the key"
        else:
            whose = "this installation's key" if self.own else "the key beside it, not one that you were given:"
        return f"checked with {whose} {self.path}, fingerprint {self.fingerprint}"


def _tell(report: ChainReport, log: Path, missing: list[str], checked: Checked | None, *, as_json: bool) -> None:
    unsealed = report.count - report.sealed if report.sealed else report.count
    if as_json:
        fields: dict[str, Json] = msgspec.to_builtins(report)
        key, fingerprint = (str(checked.path), checked.fingerprint) if checked else (None, None)
        named: dict[str, Json] = {"log": str(log), "key": key, "fingerprint": fingerprint}
        print_json({**fields, **named, "not_checked": [*missing]})
        return
    if report.ok:
        click.echo(f"{log}: {report.count} records, unbroken")
    else:
        file = log.with_name(report.bad_file) if report.bad_file else log
        click.echo(f"{file}{f', line {report.bad_line}' if report.bad_line else ''}: {report.reason}")
    if report.sealed:
        click.echo(f"signed up to record {report.sealed}; {unsealed} after it" if unsealed else "signed to its end")
    for alarm in report.alarms:
        click.echo(f"alarm in the log itself: {alarm}")
    for what in missing:
        click.echo(f"not checked: {what}")
    if checked is not None:
        click.echo(checked.told)


@audit.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@json_option
@click.pass_context
def export(context: click.Context, folder: Path, as_json: bool) -> None:
    """Copy the log, its head and the public key into FOLDER, for an auditor.

    There, `turnout audit verify FOLDER/audit.log` needs nothing else; with the public key that came by another way
    (--key), it also shows that nobody has put a log and a key of his own in their place.
    """
    from turnout.guard.chain import log_files
    from turnout.guard.signing import PUBLIC

    log, key, head = _own(context.obj, None, None)
    if key is None or head is None:
        raise AuditError(
            "this log was never signed", hint="run any command that writes to it, such as `turnout doctor`"
        )
    copies = [(head, HEAD), (key, PUBLIC)]  # the head first: the log goes on being written
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty", hint="give a new folder")
        copies += [(each, "audit.log" + each.name.removeprefix(log.name)) for each in log_files(log)]
        for each, name in copies:
            (folder / name).touch(mode=0o600)  # for the same people as the log itself
            shutil.copyfile(each, folder / name)
    except OSError as error:
        raise StorageError(f"the log cannot be copied to {folder}: {error.strerror or error}") from error
    if as_json:
        print_json({"folder": str(folder), "files": [name for _, name in copies]})
    else:
        note(f"{folder}: {', '.join(name for _, name in copies)}")


def _path(config_file: str | None) -> Path:
    from turnout.config import audit_path

    return audit_path(loaded_config(config_file))


def _lines(path: Path) -> Iterator[bytes]:
    """The whole lines of all files, the oldest first."""
    from turnout.files import open_regular
    from turnout.guard.chain import lines_of, log_files

    try:
        files = log_files(path) if path.parent.is_dir() else []
        if not files:
            raise AuditError(f"there is no audit log {path}", hint="it begins with the first query")
        for file in files:
            with open_regular(file) as opened:
                yield from (line for line in lines_of(opened) if line.endswith(b"\n"))
    except OSError as error:
        raise AuditError(f"the audit log {path} cannot be read: {error.strerror or error}") from error


_LINE = msgspec.json.Decoder(Line)


def _read(line: bytes) -> Line:
    try:
        return _LINE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Line(event_type="(no record)")


def _show(lines: list[bytes], *, as_json: bool, heading: bool = True) -> None:
    if as_json:
        for line in lines:
            click.echo(_ascii(line))
        return
    rows = [_row(_read(line)) for line in lines]
    if not heading:
        for row in rows:
            click.echo(("  " if sys.stdout.isatty() else "\t").join(map(cell, row)))
    elif rows:
        table(("#", "time", "event", "who", "model", "service", "result"), rows)
    else:
        note("there is no such record")


def _ascii(line: bytes) -> str:
    """A line as it is when we wrote it: in ASCII. What somebody else wrote must not reach a terminal either."""
    text = line.decode("utf-8", "replace").rstrip("\n")
    return "".join(c if " " <= c <= "~" else f"\\u{ord(c):04x}" for c in text)


def _row(line: Line) -> tuple[str, ...]:
    event = f"{line.event_type} {line.phase}" if line.phase else line.event_type
    result = "" if line.success is None else "ok" if line.success else line.error or "failed"
    if line.success is None and line.error:
        result = line.error
    return (
        str(line.sequence),
        _local(line.timestamp),
        event,
        line.principal or "",
        line.model or "",
        line.service or "",
        result,
    )


def _local(timestamp: str) -> str:
    """The log's UTC as this machine's own time, which ``--since`` takes; what is no time as it is."""
    try:
        return f"{datetime.fromisoformat(timestamp).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError):
        return timestamp[:19]
