"""``turnout prove`` tries to get out and signs what happened; ``turnout verify`` checks such a report anywhere."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

import turnout
from turnout.cli.output import cell, json_option, loaded_config, note, print_json, table, waiting
from turnout.errors import EXIT_FAILED, StorageError, UsageError

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.guard.allow import AllowList
    from turnout.guard.audit import AuditLog
    from turnout.guard.canaries import Canary, Target
    from turnout.guard.protection import Protection
    from turnout.types import Json


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where the report goes.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="HOST[:PORT]",
    help="What must not be reached, instead of the addresses kept for documentation. Repeatable.",
)
@click.option("--yes", is_flag=True, help="Do not ask: it really tries to connect.")
@json_option
@click.pass_context
def prove(context: click.Context, out: Path | None, targets: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Try to get out through every door, and write a signed report of what stopped it.

    Turnout's own doors must refuse before a packet is made, and children have no network where this system allows that.
    C code is handed to the kernel: only the network can stop it, and on a machine with a way out the report says so and
    fails. Takes up to 30 seconds. The report is written as JSON and as a page, to the folder `proofs` of the data
    directory by default. Exits with 1 when anything was not stopped.
    """
    from turnout.guard.allow import AllowList
    from turnout.guard.canaries import DEFAULT_TARGETS, read_target
    from turnout.guard.protection import protection

    loaded = loaded_config(context.obj)
    allow = AllowList.from_config(loaded.config.security)
    wanted = tuple(read_target(text, allow) for text in targets or DEFAULT_TARGETS)
    _agree(wanted, yes=yes)
    with waiting("trying to get out"):
        children = asyncio.run(protection())
        canaries, audit = _fly(loaded, allow, wanted, children)
    report, files = _write(loaded, canaries, audit, children, out)
    if as_json:
        print_json({**report, "files": [str(file) for file in files]})
    else:
        _show(canaries, report, files)
    if not report["ok"]:
        context.exit(EXIT_FAILED)


def _agree(targets: tuple[Target, ...], *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this tries to connect to what must not be reached, so it asks first", hint="--yes agrees")
    note(f"This tries to connect to {', '.join(target.shown for target in targets)}, also by DNS and raw packets.")
    click.confirm("Go on?", abort=True, err=True)


def _fly(
    loaded: LoadedConfig, allow: AllowList, targets: tuple[Target, ...], children: Protection
) -> tuple[tuple[Canary, ...], dict[str, Json] | None]:
    """The canaries, and how far the audit log had come then."""
    from turnout.build import audit_head_path, open_audit_log
    from turnout.guard.chain import read_head

    audit = open_audit_log(loaded)
    if audit is None:
        return asyncio.run(_all(allow, targets, children)), None
    try:
        audit.event("security:prove", service="begin")
        canaries = asyncio.run(_all(allow, targets, children))
        _tell(audit, canaries)
    finally:
        audit.close()
    head = read_head(audit_head_path(loaded))
    return canaries, {"records": head.sequence, "head": head.hash, "signature": head.signature} if head else {}


def _tell(audit: AuditLog, canaries: tuple[Canary, ...]) -> None:
    left = [canary for canary in canaries if canary.verdict != "stopped"]
    audit.event("security:prove", service="end", error=f"{len(left)} canaries were not stopped" if left else "")


async def _all(allow: AllowList, targets: tuple[Target, ...], children: Protection) -> tuple[Canary, ...]:
    from turnout.guard.canaries import fly_child, fly_others, fly_own
    from turnout.guard.canary_gateway import fly_through_gateway
    from turnout.guard.hook import second_line

    with second_line(allow, lambda _: None):
        own = (*await fly_own(allow, targets), *await fly_through_gateway(targets[0]))
        return (*own, *await fly_child(targets, children), *await fly_others(targets))


def _write(
    loaded: LoadedConfig,
    canaries: tuple[Canary, ...],
    audit: dict[str, Json] | None,
    children: Protection,
    out: Path | None,
) -> tuple[dict[str, Json], tuple[Path, ...]]:
    from turnout.config import signing_dir
    from turnout.files import replace_file
    from turnout.guard.prove import make_report, page
    from turnout.guard.report import signed_json, signed_page
    from turnout.guard.signing import PUBLIC, Signer

    signer, at = Signer(signing_dir()), datetime.now(UTC)
    report = make_report(
        canaries,
        at=at,
        version=turnout.__version__,
        configuration=_configuration(loaded),
        audit=audit,
        children=children,
    )
    folder = out or proofs_dir()
    contents = {
        f"proof-{at:%Y%m%dT%H%M%SZ}.json": signed_json(report, signer),
        f"proof-{at:%Y%m%dT%H%M%SZ}.md": signed_page(page(report), signer),
        PUBLIC: signer.public.pem,
    }
    try:
        for name, content in contents.items():
            replace_file(folder / name, content)
    except OSError as error:
        raise StorageError(
            f"the report cannot be written to {folder}: {error.strerror or error}", hint="--out DIR"
        ) from error
    return report, tuple(folder / name for name in contents)


def proofs_dir() -> Path:
    """Where reports go by default. Raises ConfigError as ``data_dir``."""
    from turnout.config import data_dir

    return data_dir() / "proofs"


def _configuration(loaded: LoadedConfig) -> dict[str, Json]:
    return {"file": str(loaded.file) if loaded.file else None, **in_force(loaded)}


def in_force(loaded: LoadedConfig) -> dict[str, Json]:
    """What of the configuration a proof is about; ``sha256`` is of all of it, keys masked."""
    from turnout.config_values import redacted

    security = loaded.config.security
    text = json.dumps(redacted(loaded.config), sort_keys=True)
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "environment": loaded.config.environment,
        "allow_external": security.allow_external,
        "allowed_hosts": [*security.allowed_hosts],
        "allowed_cidrs": [*security.allowed_cidrs],
    }


def _show(canaries: tuple[Canary, ...], report: dict[str, Json], files: tuple[Path, ...]) -> None:
    doors: dict[tuple[str, str, str], list[Canary]] = {}
    for canary in canaries:
        doors.setdefault((canary.door, canary.verdict, canary.by), []).append(canary)
    rows = [
        (door, str(len(found)), verdict, by, found[0].found, "Turnout" if found[0].own else "the network alone")
        for (door, verdict, by), found in doors.items()
    ]
    table(("door", "tried", "verdict", "stopped by", "seen", "who can close it"), rows)
    for fix in report["fixes"] if isinstance(report["fixes"], list) else ():
        note(f"To do: {fix}")
    note("Proven: nothing got out." if report["ok"] else "Not proven: not everything was stopped.")
    note(f"Report: {', '.join(str(file) for file in files[:-1])}; `turnout verify` checks it")


@click.command()
@click.argument("report", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--key", type=click.Path(path_type=Path), help="The public key: signing.pub.")
@json_option
@click.pass_context
def verify(context: click.Context, report: Path, key: Path | None, as_json: bool) -> None:
    """Check that a signed report is as it was written.

    Works offline and anywhere, with the public key alone: --key, else this installation's, else the one beside the
    report, which proves nothing when both came from the same hands. Exits with 1 when a byte was changed.
    """
    from turnout.guard.report import check
    from turnout.guard.signing import read_public

    path, whose = _key_for(report, key)
    public = read_public(path)
    state = check(report, public)
    if as_json:
        print_json({"report": str(report), "state": state, "key": str(path), "fingerprint": public.fingerprint})
    else:
        said = {
            "unchanged": "unchanged since it was signed",
            "changed": _why(report, public.fingerprint),
            "unsigned": "it has no signature",
        }[state]
        click.echo(cell(f"{report}: {said}"))
        click.echo(cell(f"checked with {whose} {path}, fingerprint {public.fingerprint}"))
    if state != "unchanged":
        context.exit(EXIT_FAILED)


def _why(report: Path, fingerprint: str) -> str:
    """What is to be said of a report that this key does not confirm."""
    from turnout.guard.report import named_key

    named = named_key(report)
    if named and named != fingerprint:
        return f"not signed with this key; it says that its key is {named}"
    return "changed since it was signed"


def _key_for(report: Path, key: Path | None) -> tuple[Path, str]:
    from turnout.config import signing_dir
    from turnout.guard.signing import PUBLIC

    if key is not None:
        return key, "the key"
    own = signing_dir() / PUBLIC
    if own.exists():
        return own, "this installation's key"
    if not (report.parent / PUBLIC).exists():
        hint = f"--key FILE: signing/{PUBLIC} of the data directory where it was signed, brought by another way"
        raise StorageError(f"there is no key to check {report} with", hint=hint)
    return report.parent / PUBLIC, "the key beside it"
