"""Overlapping requests share writes of the audit log and lose nothing."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from turnout.errors import AuditError
from turnout.guard.audit import AuditLog, open_audit
from turnout.guard.chain import verify
from turnout.guard.records import QueryEnd, QueryStart
from turnout.guard.trail import Trail


def started(name: str) -> QueryStart:
    return QueryStart(name, "s", "local", f"query {name}")


def ended(name: str) -> QueryEnd:
    return QueryEnd(name, "s", "local", f"query {name}", model="m", service="x")


def records(path: Path) -> list[tuple[str, str]]:
    return [(row["request_id"], row["phase"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.fixture
def audit(tmp_path: Path) -> AuditLog:
    return open_audit(tmp_path / "audit.log", tmp_path / "key")


async def test_starts_that_overlap_are_in_the_file_before_any_goes_on(
    audit: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail, writes = Trail(audit), []
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: writes.append(len(data)) or real_write(file, data))
    seen: list[int] = []

    async def begin(name: str) -> None:
        await trail.start(started(name))
        seen.append(len(records(tmp_path / "audit.log")))

    await asyncio.gather(*(begin(str(n)) for n in range(20)))
    assert min(seen[1:]) == 20
    assert len(writes) == 2, "the first alone, the nineteen that overlap it together"
    assert verify(tmp_path / "audit.log").ok


async def test_an_end_is_written_at_once_when_nothing_else_runs(audit: AuditLog, tmp_path: Path) -> None:
    trail = Trail(audit)
    await trail.start(started("a"))
    trail.end(ended("a"))
    assert records(tmp_path / "audit.log") == [("a", "start"), ("a", "end")]


async def test_a_held_end_goes_out_with_the_next_start_or_at_close(audit: AuditLog, tmp_path: Path) -> None:
    trail = Trail(audit)
    await trail.start(started("a"))
    await trail.start(started("b"))
    trail.end(ended("a"))
    await trail.start(started("c"))
    assert records(tmp_path / "audit.log") == [("a", "start"), ("b", "start"), ("a", "end"), ("c", "start")]
    trail.end(ended("b"))
    audit.close()
    assert records(tmp_path / "audit.log")[-1] == ("b", "end")
    assert verify(tmp_path / "audit.log").ok


async def test_a_held_end_does_not_wait_for_ever(audit: AuditLog, tmp_path: Path) -> None:
    trail = Trail(audit)
    await trail.start(started("a"))
    await trail.start(started("b"))
    trail.end(ended("a"))
    async with asyncio.timeout(5):
        while ("a", "end") not in records(tmp_path / "audit.log"):
            await asyncio.sleep(0)
    assert ("b", "end") not in records(tmp_path / "audit.log"), "b still runs"


async def test_a_request_cancelled_before_its_start_is_written_has_both_records(
    audit: AuditLog, tmp_path: Path
) -> None:
    trail = Trail(audit)
    await trail.start(started("a"))
    waiting = asyncio.create_task(trail.start(started("b")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    trail.end(ended("a"))
    assert sorted(records(tmp_path / "audit.log")) == [("a", "end"), ("a", "start"), ("b", "end"), ("b", "start")]


async def test_on_a_full_disk_every_overlapping_query_is_refused_and_ends_are_kept(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this platform: a full disk cannot be had")
    target = tmp_path / "audit.log"
    audit = open_audit(target, tmp_path / "key")
    trail = Trail(audit)
    await trail.start(started("a"))
    await trail.start(started("b"))
    target.rename(tmp_path / "kept.log")
    target.symlink_to(full)
    results = await asyncio.gather(*(trail.start(started(str(n))) for n in range(3)), return_exceptions=True)
    assert [type(r) for r in results] == [AuditError] * 3
    trail.end(ended("a"))
    target.unlink()
    trail.end(ended("b"))
    audit.close()
    ids = [row["request_id"] for row in map(json.loads, target.read_text().splitlines()) if row.get("request_id")]
    assert ids == ["a", "b"]
