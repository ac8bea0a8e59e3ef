"""Children: they talk, they end, they end with us, and nothing of them is left."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from turnout.guard.process import Child, spawn

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="groups and signals of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ECHO = "import sys\nfor line in sys.stdin:\n    print(line.strip().upper(), flush=True)\n"
STUBBORN = (
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('ready', flush=True)\n"
    "while True:\n    time.sleep(60)\n"
)
# Starts a child of its own that ignores SIGTERM and holds the pipes, tells its number, and does what argv[1] says.
PARENT = f"""
import os, subprocess, sys, time
more = dict(start_new_session=True) if sys.argv[1] == "leaves its group" else dict()
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], **more)
print(child.pid, flush=True)
if sys.argv[1] == "ends":
    os._exit(3)
time.sleep(600)
"""


async def python(code: str, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Child:
    return await spawn([sys.executable, "-c", code, *arguments], env=env, cwd=cwd)


def exists(pid: int) -> bool:
    """Whether a process is there; one that ended and waits for its parent (here: init) does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pid: int) -> None:
    """Wait until it has ended; the test's own time limit is the bound."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)


def reaped(child: Child) -> bool:
    """Whether it is no child of ours any more, not even a zombie."""
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def open_files() -> set[Path]:
    return set(Path("/dev/fd").iterdir())


async def talk_and_stop() -> Child:
    child = await python(ECHO)
    await child.write(b"hello\n")
    assert await child.read_line(20) == b"HELLO\n"
    assert child.returncode is None
    await child.stop()
    await child.stop()
    return child


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_child_talks_and_stops_on_both_event_loops(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    new_loop().close()  # libuv keeps two files of its own from its first loop on
    before = open_files()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        child = runner.run(talk_and_stop())
    assert child.returncode in (0, -signal.SIGTERM)
    assert reaped(child)
    assert open_files() == before


async def test_standard_output_is_read_to_its_end_with_the_exit_code() -> None:
    child = await python("import sys; sys.stdout.write('x' * 300_000); sys.exit(7)")
    assert await child.read_all() == b"x" * 300_000
    assert child.returncode == 7
    await child.stop()
    assert await child.read_line(1) == b""


async def test_a_silent_child_is_a_timeout_and_an_endless_line_an_error() -> None:
    child = await python("import sys\nsys.stdin.readline()\nsys.stdout.write('x' * 200_000)\n")
    with pytest.raises(TimeoutError):
        await child.read_line(0.01)
    await child.write(b"go\n")
    with pytest.raises(OSError, match="line of more than 65536 bytes"):
        await child.read_line(20)
    await child.stop()


async def test_a_line_may_be_as_long_as_the_starter_says() -> None:
    code = "print('x' * 200_000)\nprint('y' * 400_000)\nimport sys; sys.stdin.read()"
    child = await spawn([sys.executable, "-c", code], line_bytes=300_000)
    assert len(await child.read_line(None)) == 200_001
    with pytest.raises(OSError, match="line of more than 300000 bytes"):
        await child.read_line(20)
    await child.stop()


async def test_a_number_of_bytes_is_read_whole_or_not_at_all() -> None:
    child = await python("import sys; sys.stdout.write('ab' + 'x' * 300_000 + 'end'); sys.stdout.flush(); input()")
    assert await child.read_exactly(2, 10.0) == b"ab"
    assert len(await child.read_exactly(300_000, 10.0)) == 300_000
    with pytest.raises(TimeoutError):
        await child.read_exactly(10, 0.05)
    await child.write(b"\n")
    with pytest.raises(EOFError):
        await child.read_exactly(10, None)
    await child.stop()


async def test_writing_to_a_child_that_ended_is_a_connection_error() -> None:
    child = await python("")
    await child.read_all()
    with pytest.raises(ConnectionError):
        while True:
            await child.write(b"x" * 65536)
    await child.stop()


async def test_the_last_64_kb_of_standard_error_are_kept() -> None:
    child = await python(
        "import sys\nsys.stderr.write('a' * 200_000 + 'the\\nreason \\xff')\n", env={"PYTHONUTF8": "1"}
    )
    await child.read_all()
    await child.stop()
    assert len(child.errors.encode()) == 65_536
    assert child.errors.endswith("aaathe\nreason \xff")


async def test_only_a_short_environment_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HOME", "/home/someone")
    child = await python("import os; print(sorted(os.environ), os.environ['HOME'])", env={"ADDED": "1", "LC_ALL": "C"})
    names, _, home = (await child.read_all()).decode().strip().rpartition(" ")
    await child.stop()
    assert "PROXY" not in names
    assert "SECRET" not in names
    assert {"'ADDED'", "'HOME'", "'PATH'"} <= set(names.strip("[]").split(", "))
    assert home == "/home/someone"


async def test_no_open_file_of_ours_is_passed_on(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        child = await python(f"import os; os.fstat({file.fileno()})")
        await child.read_all()
        await child.stop()
    assert "Bad file descriptor" in child.errors


async def test_it_starts_in_the_folder_it_is_given(tmp_path: Path) -> None:
    child = await python("import os; print(os.getcwd())", cwd=tmp_path)
    assert (await child.read_all()).decode().strip() == str(tmp_path.resolve())
    await child.stop()


async def test_a_program_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "not-executable").touch(mode=0o644)
    for program in ("no-such-program-anywhere", str(tmp_path / "none"), str(tmp_path / "not-executable")):
        with pytest.raises(OSError, match="there is no program"):
            await spawn([program])
    with pytest.raises(OSError, match="none"):
        await spawn([sys.executable], cwd=tmp_path / "none")


async def test_a_child_that_ignores_the_request_is_made_to_end() -> None:
    child = await python(STUBBORN)
    assert await child.read_line(20) == b"ready\n"
    await child.stop(grace=0.05)
    assert child.returncode == -signal.SIGKILL
    assert reaped(child)


async def test_a_stop_that_is_cancelled_ends_the_child_all_the_same() -> None:
    child = await python(STUBBORN)
    assert await child.read_line(20) == b"ready\n"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await child.stop(grace=600)
    await child.stop(grace=600)
    assert child.returncode == -signal.SIGKILL
    assert reaped(child)


@linux
@pytest.mark.parametrize("what", ["stays", "leaves its group"])
async def test_grandchildren_that_hold_the_pipes_do_not_hold_us(what: str) -> None:
    child = await python(PARENT, what)
    grandchild = int(await child.read_line(20))
    assert await child.read_line(20) == b"ready\n"
    try:
        await child.stop(grace=20)
        assert child.returncode is not None
        if what != "leaves its group":
            await gone(grandchild)
            assert not exists(grandchild)
    finally:
        if exists(grandchild):
            os.kill(grandchild, signal.SIGKILL)


@linux
async def test_the_group_ends_when_the_child_crashes_before_anyone_stops_it() -> None:
    child = await python(PARENT, "ends")
    grandchild = int(await child.read_line(20))
    await gone(grandchild)
    assert not exists(grandchild)
    await child.stop()
    assert child.returncode == 3


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_child_nobody_stopped_ends_with_the_event_loop(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def leave() -> Child:
        child = await python(STUBBORN)
        assert await child.read_line(20) == b"ready\n"
        return child

    new_loop().close()
    before = open_files()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        child = runner.run(leave())
    assert child.returncode == -signal.SIGKILL
    assert reaped(child)
    assert open_files() == before


# Spawns a child that neither reads its standard input nor heeds SIGTERM, tells its number, and waits.
OWNER = f"""
import asyncio, sys
from turnout.guard.process import spawn
async def main():
    child = await spawn([sys.executable, "-c", {STUBBORN!r}])
    await child.read_line(20)
    print(child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@linux
async def test_a_child_dies_with_an_owner_that_is_killed() -> None:
    owner = await python(OWNER)
    orphan = int(await owner.read_line(20))
    assert exists(orphan)
    os.kill(owner.pid, signal.SIGKILL)
    await gone(orphan)
    assert not exists(orphan)
    await owner.stop()


@linux
async def test_a_child_asks_the_kernel_to_be_killed_with_us() -> None:
    code = "import ctypes\nn = ctypes.c_int()\nctypes.CDLL(None).prctl(2, ctypes.byref(n))\nprint(n.value)\n"
    child = await python(code)
    assert int(await child.read_all()) == signal.SIGKILL
    await child.stop()
    ours = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(ours))
    assert ours.value == 0
