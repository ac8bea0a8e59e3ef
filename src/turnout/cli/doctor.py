"""``turnout doctor``: each thing that must be right, whether it is, and how to fix it."""

from __future__ import annotations

import asyncio
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from turnout.cli.output import json_option, loaded_config, print_json, said, table, waiting
from turnout.errors import EXIT_FAILED, TurnoutError, UsageError

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.types import Json

_OLDEST_PYTHON = (3, 11)
_LITTLE_SPACE = 200_000_000


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``fix`` is what to do, "" when there is nothing to do."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


@click.command()
@click.option("--air-gap", is_flag=True, help="Check the 17 lines of the air-gap checklist instead.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --air-gap: also write a signed page for people.",
)
@json_option
@click.pass_context
def doctor(context: click.Context, air_gap: bool, html: Path | None, as_json: bool) -> None:
    """Check this installation and say how to fix what is wrong.

    With --air-gap every line of the checklist passes, fails, or is not checkable from here, with evidence and fix; the
    servers behind the router are included. Exits with 1 when a check fails; warnings, and what is not checkable, do not
    count.
    """
    if air_gap:
        _air_gap(context, html, as_json=as_json)
        return
    if html is not None:
        raise UsageError("--html is the page of the air-gap checklist", hint="add --air-gap")
    with waiting("checking"):
        checks = list(_checks(context.obj))
    failed = [check for check in checks if check.state == "fail"]
    if as_json:
        print_json(_fields(checks, failed))
    else:
        table(("check", "state", "found", "fix"), [(c.name, c.state, c.found, c.fix) for c in checks])
    if failed:
        context.exit(EXIT_FAILED)


def _air_gap(context: click.Context, html: Path | None, *, as_json: bool) -> None:
    from turnout.cli.airgap import decide
    from turnout.cli.airgap_show import show, write_page
    from turnout.cli.airgap_site import look_around

    loaded = loaded_config(context.obj)
    with waiting("checking"):
        site = asyncio.run(look_around(loaded))
    lines = decide(site)
    if html is not None:
        write_page(lines, site, html)
    show(lines, site, as_json=as_json)
    if any(line.state == "fail" for line in lines):
        context.exit(EXIT_FAILED)


def _fields(checks: list[Check], failed: list[Check]) -> dict[str, Json]:
    fields: dict[str, Json] = {
        "ok": not failed,
        "checks": [{"name": c.name, "state": c.state, "found": c.found, "fix": c.fix} for c in checks],
    }
    if failed:
        message = "; ".join(f"{check.name}: {check.found}" for check in failed)
        fields["error"] = {"code": "check_failed", "message": message, "hint": failed[0].fix}
    return fields


def _checks(config_file: str | None) -> Iterator[Check]:
    yield _python()
    loaded, configuration = _configuration(config_file)
    yield configuration
    yield _data_dir()
    yield _keys()
    if loaded is not None:
        yield _audit(loaded)
        yield _allow_list(loaded)
        yield _services(loaded)
    yield _children()
    yield _embedded()


def _failed(name: str, error: TurnoutError) -> Check:
    return Check(name, "fail", said(error), error.hint)


def _python() -> Check:
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return Check("python", "fail", found, "install Python 3.11 or newer")
    return Check("python", "ok", found)


def _configuration(config_file: str | None) -> tuple[LoadedConfig | None, Check]:
    from turnout.backends import DEFAULT_URLS
    from turnout.config_load import load_config

    try:
        loaded = load_config(config_file, kinds=DEFAULT_URLS)
    except TurnoutError as error:
        return None, _failed("configuration", error)
    found = str(loaded.file) if loaded.file else "built-in defaults, no file found"
    if loaded.warnings:
        return loaded, Check("configuration", "warn", f"{found}: {'; '.join(loaded.warnings)}", "edit the file")
    return loaded, Check("configuration", "ok", found)


def _data_dir() -> Check:
    from turnout.config import data_dir

    name, directory = "data directory", data_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            free = shutil.disk_usage(directory).free
    except OSError as error:
        fix = "set TURNOUT_DATA_DIR to a directory you can write"
        return Check(name, "fail", f"{directory} cannot be written: {error.strerror}", fix)
    if free < _LITTLE_SPACE:
        return Check(name, "warn", f"{directory} has {free / 1e6:.0f} MB free", "free some space")
    return Check(name, "ok", str(directory))


def _keys() -> Check:
    from turnout.config import data_dir
    from turnout.guard.keys import keys_path, read_keys

    path = keys_path(data_dir())
    try:
        found = read_keys(path)
    except TurnoutError as error:
        return _failed("keys", error)
    if found is None:
        return Check("keys", "ok", "none: the gateway serves this machine alone")
    active = sum(key.state(time.time()) == "active" for key in found.keys)
    if not active:
        fix = f"`turnout key add NAME`; or delete {path}, and the gateway serves this machine without one"
        return Check("keys", "warn", "none is active: the gateway refuses everybody", fix)
    return Check("keys", "ok", f"{path}, {active} active")


def _audit(loaded: LoadedConfig) -> Check:
    from turnout.build import audit_head_path, open_audit_log
    from turnout.config import audit_path, signing_dir
    from turnout.guard.chain import LOG_REPLACED, read_head, verify
    from turnout.guard.signing import Signer

    path = audit_path(loaded)
    try:
        log = open_audit_log(loaded)
        if log is None:
            return Check("audit log", "warn", "off: queries leave no trace", "set security.audit_enabled: true")
        try:
            log.event("access")  # a record of its own is the only proof that one can be written
        finally:
            log.close()
        # What is no file (a device, a pipe) cannot be read back, and may have no end.
        regular = path.is_file()
        head = read_head(audit_head_path(loaded)) if regular else None
        chain = verify(path, Signer(signing_dir()).public, head) if regular else None
    except TurnoutError as error:
        return _failed("audit log", error)
    if chain is not None and not chain.ok:
        fix = "find out who changed it; move it and its head away as evidence, and a new log begins"
        where = f"{chain.bad_file}, line {chain.bad_line}: " if chain.bad_line else ""
        return Check("audit log", "fail", f"{path}: {where}{chain.reason}", fix)
    replaced = [alarm for alarm in chain.alarms if alarm.endswith(LOG_REPLACED)] if chain else []
    if replaced:
        fix = "find out who moved or cut it; `turnout audit verify` tells more"
        return Check("audit log", "warn", f"{path} tells that it was moved, deleted or cut: {replaced[0]}", fix)
    free = shutil.disk_usage(path.parent).free
    if free < _LITTLE_SPACE:
        return Check("audit log", "warn", f"{path}: {free / 1e6:.0f} MB free", "free some space")
    return Check("audit log", "ok", f"{path}, {chain.count} records, unbroken, signed" if chain else str(path))


def _allow_list(loaded: LoadedConfig) -> Check:
    from turnout.build import refuse_outside

    try:
        refuse_outside(loaded)
    except TurnoutError as error:
        return _failed("allow-list", error)
    security = loaded.config.security
    if security.allow_external:
        return Check("allow-list", "warn", "lifted: any address may be dialled", "set security.allow_external: false")
    return Check("allow-list", "ok", f"loopback, {', '.join((*security.allowed_hosts, *security.allowed_cidrs))}")


def _services(loaded: LoadedConfig) -> Check:
    from turnout.cli.embedded import can_run
    from turnout.cli.fleet import look
    from turnout.routing.advice import what_to_check
    from turnout.weights import UNCHECKED

    try:
        catalog = asyncio.run(look(loaded))
    except TurnoutError as error:
        return _failed("services", error)
    if not catalog.serving:
        waiting_for = [f"{s.endpoint.name}: {s.reason}" for s in catalog.endpoints if s.health != "offline"]
        found = "; ".join(("none can answer", *waiting_for))
        return Check("services", "warn" if can_run() else "fail", found, what_to_check(catalog, loaded.config))
    barred = [
        f"{model.id} @ {s.endpoint.name} is blocked: {verdict.barred}"
        for s in catalog.serving
        for model in s.models
        if (verdict := s.verdicts.get(model.id, UNCHECKED)).barred
    ]
    if barred:
        return Check("services", "fail", "; ".join(barred), "`turnout models verify` tells more, and what to do")
    return Check("services", "ok", ", ".join(f"{s.endpoint.name} ({len(s.models)})" for s in catalog.serving))


def _embedded() -> Check:
    from turnout.config import data_dir
    from turnout.embedded import how_to_add_engine, status

    name = "bundled model"
    found = status(data_dir())
    if not found.installed:
        return Check(name, "warn", "not installed (optional)", "run `turnout embedded install`")
    if not found.verified:
        fix = "delete it and run `turnout embedded install`"
        return Check(name, "fail", f"{found.path} is not the pinned file", fix)
    if not found.engine:
        return Check(name, "warn", "the weights are here, the engine is not", how_to_add_engine())
    return Check(name, "ok", f"{found.path}, {found.engine}; used only when asked for or when nothing else answers")


def _children() -> Check:
    from turnout.guard.protection import fix, protection

    found = asyncio.run(protection())
    return Check("children", "warn" if found.by == "none" else "ok", found.told, fix(found))
