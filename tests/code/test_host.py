"""The host of code intelligence and whoever asks it: in this process, and as processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.code.hosting import HERE, Held, end_all, ended, hosting
from tests.code.workspaces import server
from turnout.code import host as host_module
from turnout.code import protocol as say
from turnout.code.client import HostedCode, HostedIntelligence, Hosts
from turnout.code.connection import HostGoneError, LateError, open_connection
from turnout.code.installed import installed
from turnout.code.intelligence import Ability, IntelligenceError, NotSupportedError, Place
from turnout.code.places import place_of, sockets
from turnout.code.provider import CodeContext
from turnout.code.settings import HostSettings
from turnout.errors import UsageError
from turnout.guard.process import start_detached
from turnout.types import FileContext, Position, TaskCategory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="UNIX sockets, pidfds and /proc")

AT = Position(1, 4)
CODING = TaskCategory.CODING
# Each of many processes: asks about a symbol where there is a language server, and prints the host's process id.
ASKER = """
import asyncio, sys
from pathlib import Path
import msgspec
from turnout.code.client import HostedIntelligence, Hosts
from turnout.code.settings import HostSettings
from turnout.types import Position

async def main():
    settings = msgspec.json.decode(sys.argv[3], type=HostSettings)
    hosts = Hosts(Path(sys.argv[2]), settings)
    told = HostedIntelligence(hosts, Path(sys.argv[1]))
    if settings.language_servers:
        assert "total" in await told.hover("a.py", Position(1, 4))
    print((await told.status()).pid, flush=True)
    await hosts.aclose()

asyncio.run(main())
"""


async def ten_ask(workspace: Path, data: Path, settings: HostSettings) -> set[int]:
    """The process ids of the hosts that ten processes meet who ask at once."""
    arguments = (str(workspace), str(data), msgspec.json.encode(settings).decode())
    askers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", ASKER, *arguments, stdout=asyncio.subprocess.PIPE)
        for _ in range(10)
    ]
    return {int((await asker.communicate())[0]) for asker in askers}


@pytest.fixture
async def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """A data directory; the hosts that were started for it end with the test."""
    place = tmp_path / "data"
    place.mkdir()
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(place))
    yield place
    await end_all(place)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    place = tmp_path / "work"
    place.mkdir()
    (place / "a.py").write_text("# prices\ndef total(items):\n    return sum(items)\n")
    return place


def code_of(hosts: Hosts, seconds: float = 20.0) -> HostedCode:
    return HostedCode(hosts, warm=seconds, cold=seconds, wanted=lambda _: True)


async def gathered(code: HostedCode, workspace: Path) -> CodeContext:
    found = await code.gather("what does total() do?", CODING, None, workspace, 6000)
    assert found is not None
    return found


@pytest.mark.parametrize("name", [b"w\xff", b"new\nline", b"-v"])
async def test_a_workspace_of_any_name_has_a_host(tmp_path: Path, data: Path, name: bytes) -> None:
    place = tmp_path / os.fsdecode(name)
    place.mkdir()
    async with hosting(place, data, Held()):
        hosts = Hosts(data, HostSettings())
        assert await HostedIntelligence(hosts, place).hover("a.py", AT) == "total() -> int"
        (status,) = await hosts.running()
        assert status.workspace == f"{tmp_path}/{name.decode('utf-8', 'backslashreplace')}"
        await hosts.aclose()


async def test_every_ability_goes_there_and_back(workspace: Path, data: Path) -> None:
    held = Held()
    async with hosting(workspace, data, held):
        hosts = Hosts(data, HostSettings())
        told = HostedIntelligence(hosts, workspace)
        assert (await told.find_symbol("total", body=True))[0].body == "pass"
        assert await told.references("b.py", AT) == (Place("b.py", 1, 4),)
        assert await told.hover("a.py", AT) == "total() -> int"
        assert await told.definition("a.py", AT) == (HERE,)
        assert await told.implementations("a.py", AT) == ()
        assert [s.name_path for s in await told.outline("a.py")] == ["total"]
        assert [s.name_path for s in await told.workspace_symbols("tot")] == ["tot"]
        both = [(await told.calls("a.py", AT, incoming=way))[0].name_path for way in (True, False)]
        assert both == ["caller", "called"]
        assert (await told.diagnostics("a.py"))[0].message == "no such name"
        assert (await told.rename("a.py", AT, "sum_of"))[0].text == "sum_of"
        await told.write_symbol("a.py", "total", "def total(): ...")
        await told.write_rename("a.py", "total", "sum_of")
        assert held.written == [("a.py", "total", "def total(): ..."), ("a.py", "total", "sum_of")]
        with pytest.raises(NotSupportedError, match="no type definitions"):
            await told.type_definition("a.py", AT)
        status = await told.status()
        assert (status.pid, status.workspace) == (os.getpid(), str(workspace))
        assert (status.warm, status.served[0].name) == (True, "held")
        assert status.memory > 1_000_000
        await hosts.aclose()


async def test_an_error_of_the_intelligence_is_an_error_of_the_same_kind_here(workspace: Path, data: Path) -> None:
    held = Held()
    async with hosting(workspace, data, held) as running:
        connection = await running.connect()
        for raised, kind in (
            (UsageError("a.py has 3 lines", hint="give one of them"), UsageError),
            (IntelligenceError("it is hung"), IntelligenceError),
            (ZeroDivisionError("a bug"), IntelligenceError),
        ):
            held.raises = raised
            with pytest.raises(kind) as told:
                await connection.ask(say.At(Ability.HOVER, "a.py", AT), 5.0)
            assert "a bug" not in str(told.value)
        held.raises = None
        assert await connection.ask(say.At(Ability.HOVER, "a.py", AT), 5.0) == held.text
        await connection.aclose()


async def test_what_is_too_much_is_refused_in_words(workspace: Path, data: Path) -> None:
    held = Held(text="x" * say.MAX_ANSWER)
    async with hosting(workspace, data, held) as running:
        connection = await running.connect()
        with pytest.raises(IntelligenceError, match="the answer has"):
            await connection.ask(say.At(Ability.HOVER, "a.py", AT), 5.0)
        with pytest.raises(IntelligenceError, match="the question has"):
            await connection.ask(say.WriteSymbol("a.py", "total", "x" * say.MAX_REQUEST), 5.0)
        held.waits = True
        many = [
            asyncio.create_task(connection.ask(say.At(Ability.REFERENCES, "a.py", AT), 20.0))
            for _ in range(host_module.MAX_ASKED_EACH + 1)
        ]
        done, _ = await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
        assert "too much" in str(done.pop().exception())
        held.go.set()
        results = await asyncio.gather(*many, return_exceptions=True)
        assert sum(isinstance(r, tuple) for r in results) == host_module.MAX_ASKED_EACH
        await connection.aclose()


async def test_who_leaves_takes_his_question_along(workspace: Path, data: Path) -> None:
    held = Held(waits=True)
    async with hosting(workspace, data, held) as running:
        connection = await running.connect()
        asking = asyncio.create_task(connection.ask(say.At(Ability.HOVER, "a.py", AT), 60.0))
        await held.entered.wait()
        asking.cancel()  # the question alone
        await held.left.wait()
        held.entered.clear()
        held.left.clear()
        asking = asyncio.create_task(connection.ask(say.At(Ability.HOVER, "a.py", AT), 60.0))
        await held.entered.wait()
        await connection.aclose()  # and everything
        await held.left.wait()
        with pytest.raises(HostGoneError):
            await asking


async def test_a_question_ends_with_its_time_on_both_sides(workspace: Path, data: Path) -> None:
    held = Held(waits=True)
    async with hosting(workspace, data, held) as running:
        connection = await running.connect()
        with pytest.raises(LateError, match="did not answer within"):
            await connection.ask(say.At(Ability.HOVER, "a.py", AT), 0.05)
        await held.left.wait()
        held.go.set()
        assert await connection.ask(say.At(Ability.HOVER, "a.py", AT), 5.0) == held.text
        await connection.aclose()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\xff\n",
        b"{}\n",
        b'{"id": 1, "deadline_ms": 5, "asked": {"method": "run", "command": "id"}}\n',
        b'{"id": 1, "deadline_ms": 0, "asked": {"method": "status"}}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (say.MAX_REQUEST + 2),
    ],
)
async def test_garbage_ends_its_own_connection_alone(garbage: bytes, workspace: Path, data: Path) -> None:
    async with hosting(workspace, data, Held()) as running:
        good = await running.connect()
        reader, writer = await asyncio.open_unix_connection(str(running.place.socket), limit=say.MAX_ANSWER)
        assert msgspec.json.decode(await reader.readline(), type=say.Hello).pid == os.getpid()
        writer.write(garbage)
        answer = msgspec.json.decode(await reader.readline(), type=say.Answer)
        assert (answer.id, answer.problem and answer.problem.kind) == (0, "usage")
        assert await reader.read() == b""
        writer.close()
        assert (await good.ask(say.Status(), 5.0)).clients == 1
        await good.aclose()


async def test_a_hundred_clients_are_served(workspace: Path, data: Path) -> None:
    async with hosting(workspace, data, Held()) as running:
        clients = await asyncio.gather(*(running.connect() for _ in range(100)))
        asked = [clients[n].ask(say.At(Ability.REFERENCES, f"{n}.py", Position(n, 0)), 20.0) for n in range(100)]
        for n, found in enumerate(await asyncio.gather(*asked)):
            assert found == (Place(f"{n}.py", n, 0),)
        assert (await clients[0].ask(say.Status(), 5.0)).clients == 100
        await asyncio.gather(*(client.aclose() for client in clients))


async def test_more_clients_than_there_is_room_for_are_turned_away(
    workspace: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "MAX_CLIENTS", 2)
    async with hosting(workspace, data, Held()) as running:
        first = [await running.connect() for _ in range(2)]
        with pytest.raises(OSError, match="no host of code intelligence"):
            await running.connect()
        for connection in first:
            await connection.aclose()


async def test_it_ends_when_nobody_asks(workspace: Path, data: Path) -> None:
    held = Held()
    async with hosting(workspace, data, held, idle_seconds=0.2, look_seconds=0.02) as running:
        connection = await running.connect()  # being connected is not asking
        assert await running.task == "idle"
        assert held.closed.is_set()
        assert not running.place.socket.exists()
        await connection.ended()
        assert connection.gone
        await connection.aclose()


async def test_it_does_not_end_while_it_is_asked(workspace: Path, data: Path) -> None:
    held = Held(waits=True)
    async with hosting(workspace, data, held, idle_seconds=0.05, look_seconds=0.01) as running:
        connection = await running.connect()
        asking = asyncio.create_task(connection.ask(say.At(Ability.HOVER, "a.py", AT), 20.0))
        await held.entered.wait()
        for _ in range(20):  # looks
            await asyncio.sleep(0.01)
            assert running.host._reason_to_end() == ""
        held.go.set()
        assert await asking == held.text
        assert await running.task == "idle"
        await connection.aclose()


async def test_it_ends_with_its_workspace_and_with_its_socket(workspace: Path, data: Path) -> None:
    async with hosting(workspace, data, Held(), look_seconds=0.01) as running:
        running.place.socket.rename(running.place.socket.with_suffix(".old"))
        running.place.socket.write_text("somebody else's")
        assert await running.task == "the socket was removed or replaced"
        assert running.place.socket.read_text() == "somebody else's"
        running.place.socket.unlink()
    async with hosting(workspace, data, Held(), look_seconds=0.01) as running:
        workspace.rename(workspace.with_name("gone"))
        assert await running.task == "the workspace is gone"


async def test_of_four_the_one_that_was_idle_longest_ends(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.code.host.NEIGHBOUR_SECONDS", 60.0)  # one that answers late is not asked to stop
    folders = [tmp_path / f"w{n}" for n in range(4)]
    for folder in folders:
        folder.mkdir()
    async with (
        hosting(folders[0], data, Held()) as first,
        hosting(folders[1], data, Held()) as second,
        hosting(folders[2], data, Held()) as third,
    ):
        connection = await first.connect()
        await connection.ask(say.At(Ability.HOVER, "a.py", AT), 5.0)
        await connection.aclose()
        # A minute, since what answers take on their way counts as well.
        second.host._used -= 60.0
        async with hosting(folders[3], data, Held()) as fourth:
            assert await second.task == "it was told to stop"
            assert not any(each.task.done() for each in (first, third, fourth))


async def test_what_is_no_socket_of_ours_is_left_alone(workspace: Path, data: Path) -> None:
    place = place_of(workspace, data)
    place.socket.write_text("precious")
    hosts = Hosts(data, HostSettings())
    found = await gathered(code_of(hosts, 5.0), workspace)
    assert found.provider == "text search"
    assert "no host of the code intelligence" in found.note
    assert place.socket.read_text() == "precious"
    await hosts.aclose()


async def test_another_users_directory_and_socket_are_refused(
    workspace: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosting(workspace, data, Held()) as running:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(PermissionError, match="another user's"):
            await open_connection(running.place.socket, 5.0)
        with pytest.raises(PermissionError, match="not a directory of this user"):
            place_of(workspace, data)
        hosts = Hosts(data, HostSettings())
        found = await gathered(code_of(hosts, 5.0), workspace)
        assert "not a directory of this user" in found.note
        monkeypatch.undo()
        os.environ["TURNOUT_DATA_DIR"] = str(data)


async def test_a_host_turns_another_user_away(workspace: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosting(workspace, data, Held()) as running:
        monkeypatch.setattr(host_module, "peer_is_us", lambda _: False)
        with pytest.raises(OSError, match="no host of code intelligence"):
            await running.connect()


def test_a_directory_that_others_may_enter_is_closed_to_them(workspace: Path, data: Path) -> None:
    place = place_of(workspace, data)
    place.socket.parent.chmod(0o777)
    assert place_of(workspace, data) == place
    assert place.socket.parent.stat().st_mode & 0o777 == 0o700
    target = data / "elsewhere"
    target.mkdir()
    place.socket.parent.rmdir()
    place.socket.parent.symlink_to(target)
    with pytest.raises(PermissionError):
        place_of(workspace, data)
    place.socket.parent.unlink()


def test_the_name_of_a_socket_is_short_enough_however_long_the_data_directory(workspace: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    place = place_of(workspace, deep)
    assert len(os.fsencode(place.socket)) < 104
    assert place.log.is_relative_to(deep)
    assert place_of(workspace, tmp_path / ("d" * 90) / ("f" * 90)).socket != place.socket
    place.socket.parent.rmdir()


async def test_ten_processes_at_once_have_one_host(workspace: Path, data: Path) -> None:
    (pid,) = await ten_ask(workspace, data, HostSettings())
    assert len(list(sockets(data))) == 1
    hosts = Hosts(data, HostSettings())
    assert [status.pid for status in await hosts.running()] == [pid]
    log = place_of(workspace, data).log
    assert log.read_text().count(" serves ") == 1
    assert log.stat().st_mode & 0o777 == 0o600
    assert await hosts.stop(workspace)
    assert await hosts.running() == ()
    assert not await hosts.stop(workspace)


async def test_ten_processes_at_once_have_one_language_server(workspace: Path, data: Path) -> None:
    command = server("python", "ty").command
    (pid,) = await ten_ask(workspace, data, HostSettings(language_servers={"python": command}))
    children = [stat.parent for stat in Path("/proc").glob("[0-9]*/stat") if _parent(stat) == pid]
    commands = [(child / "cmdline").read_bytes().split(b"\0")[0] for child in children]
    assert [Path(os.fsdecode(command)).name for command in commands] == ["ty"]
    await end_all(data)
    assert not any(child.exists() for child in children)


async def test_a_host_that_is_killed_in_the_middle_of_a_question_is_replaced(workspace: Path, data: Path) -> None:
    hosts = Hosts(data, HostSettings())
    code = code_of(hosts)
    seen = set()
    for _ in range(3):
        assert "has ended" not in (await gathered(code, workspace)).note
        connection = await hosts.connection(workspace, 5.0)
        pid = connection.hello.pid
        assert pid not in seen
        seen.add(pid)
        os.kill(pid, signal.SIGSTOP)  # so that the question is in it, and it cannot answer
        asking = asyncio.create_task(gathered(code, workspace))
        while not connection._waiting:
            await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        found = await asking
        assert found.provider == "text search"
        assert found.note.endswith("the host of the code intelligence has ended")
        assert found.bodies[0].lines[0].startswith("def total")
    await hosts.aclose()


async def test_a_host_that_hangs_costs_no_more_than_the_budget_and_is_then_left_alone(
    workspace: Path, data: Path
) -> None:
    held = Held(waits=True)
    async with hosting(workspace, data, held):
        hosts = Hosts(data, HostSettings())
        code = HostedCode(hosts, warm=0.2, cold=0.2, wanted=lambda _: True)
        for _ in range(2):
            found = await gathered(code, workspace)
            assert found.provider == "text search"
            assert "within" in found.note
        held.entered.clear()
        assert "left alone for a minute" in (await gathered(code, workspace)).note
        assert not held.entered.is_set()
        await hosts.aclose()


async def test_a_stale_socket_is_replaced(workspace: Path, data: Path) -> None:
    async with hosting(workspace, data, Held()) as running:
        running.place.socket.rename(data / "kept")
    (data / "kept").rename(running.place.socket)  # nobody listens there any more
    hosts = Hosts(data, HostSettings())
    assert (await HostedIntelligence(hosts, workspace).status()).pid != os.getpid()
    await hosts.aclose()


async def test_a_host_of_another_version_is_replaced(workspace: Path, data: Path) -> None:
    async with hosting(workspace, data, Held()) as running:
        running.host._version = "0.0.9/0"
        hosts = Hosts(data, HostSettings())
        assert (await HostedIntelligence(hosts, workspace).status()).pid != os.getpid()
        assert await running.task == "it was told to stop"
        await hosts.aclose()


async def test_the_socket_of_something_else_is_no_host(workspace: Path, data: Path) -> None:
    place = place_of(workspace, data)

    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        writer.close()

    server = await asyncio.start_unix_server(chatter, str(place.socket))
    hosts = Hosts(data, HostSettings())
    found = await gathered(code_of(hosts, 20.0), workspace)  # a host takes its place
    assert "no host" not in found.note
    server.close()
    await hosts.aclose()


async def test_sigterm_ends_it(workspace: Path, data: Path) -> None:
    hosts = Hosts(data, HostSettings())
    pid = (await HostedIntelligence(hosts, workspace).status()).pid
    os.kill(pid, signal.SIGTERM)
    await ended(pid)
    assert not place_of(workspace, data).socket.exists()
    assert "ends: SIGTERM came" in place_of(workspace, data).log.read_text()
    await hosts.aclose()


DIALS = """
import asyncio, socket, sys
from pathlib import Path
from turnout.code import host, workshop
from turnout.code.settings import HostSettings

class Dials:
    intelligence = writer = None
    async def warm(self):
        socket.create_connection(("192.0.2.1", 9), timeout=1)
    async def aclose(self):
        pass

workshop.open_workshop = lambda *_: Dials()
asyncio.run(host.run(Path(sys.argv[1]), HostSettings(idle_seconds=0.1, look_seconds=0.05)))
"""


@pytest.mark.isolated
def test_what_a_library_dials_in_it_is_refused_and_logged(workspace: Path, data: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TURNOUT_DATA_DIR": str(data)}
    subprocess.run([sys.executable, "-c", DIALS, str(workspace)], env=env, check=True, timeout=60)
    told = place_of(workspace, data).log.read_text()
    assert "refused: 192.0.2.1 is outside the allowed networks" in told
    assert "it could not be warmed up: second line: 192.0.2.1" in told


async def test_a_host_that_cannot_start_is_told_of_and_does_not_cost_the_budget(
    workspace: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    hosts = Hosts(data, HostSettings())
    found = await gathered(code_of(hosts, 60.0), workspace)
    assert "no host of the code intelligence" in found.note
    await hosts.aclose()


async def test_a_position_beyond_the_end_is_the_only_error(workspace: Path, data: Path) -> None:
    hosts = Hosts(data, HostSettings())
    for seconds in (20.0, 0.001):  # told by the host, and by the text search
        with pytest.raises(UsageError, match=r"a\.py has 3 lines"):
            await code_of(hosts, seconds).gather("why?", CODING, FileContext("a.py", Position(99, 0)), workspace, 6000)
    await hosts.aclose()


async def test_where_nothing_is_installed_no_process_is_started(workspace: Path, data: Path) -> None:
    hosts = Hosts(data, HostSettings())
    found = await gathered(HostedCode(hosts, warm=5.0, cold=5.0, wanted=lambda _: False), workspace)
    assert found.provider == "text search"
    assert "turnout code install" in found.note
    assert list(sockets(data)) == []


def test_a_server_for_other_languages_is_none_for_this_workspace(workspace: Path, data: Path) -> None:
    true = ("/bin/true",)
    assert installed(HostSettings(language_servers={"python": true}), data).knows(workspace)
    assert not installed(HostSettings(language_servers={"python": (), "rust": true}), data).knows(workspace)
    assert not installed(HostSettings(language_servers={"python": true}), data).knows(workspace / "gone")


async def test_what_is_started_lives_on_in_a_session_of_its_own(tmp_path: Path) -> None:
    log, code = tmp_path / "log", "import os, time; print(os.getsid(0), os.getcwd(), flush=True); time.sleep(600)"
    pid = await start_detached([sys.executable, "-c", code], env={}, cwd=tmp_path, log=log)
    try:
        while not log.read_text().endswith("\n"):
            await asyncio.sleep(0.01)
        assert log.read_text().split() == [str(pid), str(tmp_path)]
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(stat[1]) != os.getpid()
    finally:
        os.kill(pid, signal.SIGKILL)
        await ended(pid)


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text("utf-8", "replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0  # it has ended meanwhile
