"""What the audit log costs, and how fast it is verified.

python bench/audit.py [RECORDS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from turnout.guard.audit import AuditLog, Keeping, Seal, open_audit
from turnout.guard.chain import head_path, read_head, verify
from turnout.guard.records import QueryEnd, QueryStart
from turnout.guard.signing import Signer
from turnout.types import AttemptRecord, FallbackLevel

ROUNDS, REQUESTS = 5, 4000
QUERY = "why does the second test of the parser fail on an empty file? " * 30  # 1.9 KB


def opened(folder: Path, fsync: Literal["never", "second", "always"]) -> AuditLog:
    log = folder / "audit.log"
    seal = Seal(Signer(folder), head_path(folder, log))
    return open_audit(log, folder / "audit.key", keeping=Keeping(fsync=fsync), seal=seal)


def request(log: AuditLog, n: int, *, held: bool) -> None:
    """The two records of a request; those of overlapping requests are written together (guard/trail.py)."""
    who = f"{n:032x}", "session", "local", QUERY
    log.start(QueryStart(*who), hold=held)
    tried = (AttemptRecord(FallbackLevel.PRIMARY, "qwen2.5-coder:32b", "box", None, 0.5),)
    ended = QueryEnd(*who, model="qwen2.5-coder:32b", service="box", category="coding", attempts=tried, tokens_in=400)
    log.end(ended, hold=held)


def cost(fsync: Literal["never", "second", "always"], together: int, requests: int) -> tuple[float, float]:
    """Microseconds of processor and of waiting for each request."""
    with tempfile.TemporaryDirectory() as folder:
        log = opened(Path(folder), fsync)
        request(log, 0, held=False)
        cpu, wall = time.process_time(), time.perf_counter()
        for n in range(requests):
            request(log, n, held=together > 1)
            if together > 1 and not n % together:
                log.flush()
        log.flush()
        log.seal()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        log.close()
    return cpu / requests * 1e6, wall / requests * 1e6


def main() -> None:
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print("| lines are forced to the disk | requests that share a write | CPU a request | all of it, a request |")
    print("| --- | --- | --- | --- |")
    for fsync, together, requests in (
        ("never", 1, REQUESTS),
        ("never", 16, REQUESTS),
        ("second", 16, REQUESTS),
        ("always", 1, 400),
        ("always", 16, REQUESTS),
    ):
        found = [cost(fsync, together, requests) for _ in range(ROUNDS)]  # type: ignore[arg-type]
        cpu, wall = (statistics.median(each) for each in zip(*found, strict=True))
        print(f"| {fsync} | {together} | {cpu:.0f} us | {wall:.0f} us |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = opened(folder, "never")
        for n in range(records // 2):
            request(log, n, held=True)
            if not n % 500:
                log.flush()
        log.close()
        path, signer = folder / "audit.log", Signer(folder)
        began = time.perf_counter()
        report = verify(path, signer.public, read_head(head_path(folder, path)))
        seconds = time.perf_counter() - began
        assert report.ok, report
        print(f"\n{report.count:,} records, {path.stat().st_size / 1e6:.0f} MB: verified in {seconds:.1f} s")


if __name__ == "__main__":
    main()
