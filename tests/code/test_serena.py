"""Serena as we ask it, against a scripted one: every fault ends as an error in time, and no error becomes context."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.serena import CRASHES, LONG_LINE, SLOW, FakeSerena, install, prints, refuses, says
from turnout.code.intelligence import IntelligenceError, NotSupportedError
from turnout.code.serena import SerenaIntelligence, serena_for
from turnout.code.serena_keeper import SerenaLimits
from turnout.types import Position

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the scripted Serena is a script with a first line")

LONG = "The answer is too long (79484 characters). You can adjust your query or raise the max_answer_chars parameter."
SHOP = "def price(n):\n    return n\n\n\nprice(1), price(2)\n"
PRICE = {
    "name_path": "price",
    "kind": "Function",
    "relative_path": "shop.py",
    "body_location": {"start_line": 0, "end_line": 1},
}
DECLARED, FOUND = says(json.dumps({**PRICE, "info": "def price(n)"})), says(json.dumps([PRICE]))
USED = Position(4, 1)

Make = Callable[..., SerenaIntelligence]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "shop.py").write_text(SHOP)
    return folder


@pytest.fixture
def fake(tmp_path: Path) -> FakeSerena:
    serena = install(tmp_path / "fake")
    serena.on("find_declaration", DECLARED)
    serena.on("find_symbol", FOUND)
    return serena


@pytest.fixture
async def make(workspace: Path, fake: FakeSerena, tmp_path: Path) -> AsyncIterator[Make]:
    made: list[SerenaIntelligence] = []

    def one(**limits: Any) -> SerenaIntelligence:
        serena = SerenaIntelligence(fake.program, workspace, tmp_path / "data", SerenaLimits(**limits))
        made.append(serena)
        return serena

    yield one
    for serena in made:
        await serena.aclose()


async def warm(make: Make, **limits: Any) -> SerenaIntelligence:
    """One that has answered a question between files."""
    serena = make(**limits)
    assert await serena.hover("shop.py", USED) == "def price(n)"
    return serena


async def fails(question: Awaitable[object], why: str | None = None) -> str:
    with pytest.raises(IntelligenceError, match=why) as caught:
        await question
    return str(caught.value)


async def mended(serena: SerenaIntelligence) -> None:
    """Wait until it has been restarted, started anew or left alone."""
    keeper = serena._serena
    tasks = [t for t in keeper._background if "_mend" in str(t.get_coro()) or "stop" in str(t.get_coro())]
    if tasks:
        await asyncio.wait(tasks)


def tools(fake: FakeSerena) -> list[str]:
    return [tool for tool, _ in fake.asked]


async def test_it_is_started_with_everything_off_that_dials_listens_or_runs_commands(
    make: Make, fake: FakeSerena, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    await make().find_symbol("price", "shop.py")
    (start,) = fake.starts
    line = " ".join(start["argv"])
    assert line.startswith(f"start-mcp-server --project {workspace} --context ")
    for switch in (
        "--transport stdio",
        "--enable-web-dashboard false",
        "--open-web-dashboard false",
        "--enable-gui-log-window false",
        "--agent-interface tools",
        "--log-level ERROR",
    ):
        assert switch in line
    assert start["env"]["SERENA_USAGE_REPORTING"] == "false"
    assert "HTTPS_PROXY" not in start["env"]
    config, project = start["written"]["serena_config.yml"], start["written"]["project.yml"]
    assert (config["web_dashboard"], config["agent_interface"], config["trusted_project_path_patterns"]) == (
        False,
        "tools",
        [],
    )
    assert config["ls_specific_settings"] == {"python_ty": {"ls_path": str(fake.program.path.parent / "ty")}}
    assert project["language_servers"] == ["python_ty"]
    offered = start["written"]["context.yml"]["fixed_tools"]
    assert not {"execute_shell_command", "serena_repl", "activate_project"} & set(offered)
    assert sorted(p.name for p in workspace.iterdir()) == ["shop.py"]


async def test_version_1_has_no_choice_of_interface(workspace: Path, tmp_path: Path) -> None:
    fake = install(tmp_path / "fake", "1.7.0")
    fake.on("find_symbol", FOUND)
    serena = SerenaIntelligence(fake.program, workspace, tmp_path / "data")
    await serena.find_symbol("price", "shop.py")
    await serena.aclose()
    (start,) = fake.starts
    assert "--agent-interface" not in start["argv"]
    assert "agent_interface" not in start["written"]["serena_config.yml"]


async def test_what_somebody_switched_on_in_its_directory_is_off_at_the_next_start(
    make: Make, fake: FakeSerena, tmp_path: Path
) -> None:
    first = make()
    await first.find_symbol("price", "shop.py")
    await first.aclose()
    (config,) = (tmp_path / "data").rglob("serena_config.yml")
    config.write_text('{"web_dashboard": true}')
    await make().find_symbol("price", "shop.py")
    assert fake.starts[1]["written"] == fake.starts[0]["written"]


async def test_places_come_from_the_files(make: Make, fake: FakeSerena) -> None:
    around = "   0:def x\n  >   4:price(1), price(2)\n"
    user = {"name_path": "shop", "body_location": {"start_line": 0, "end_line": 5}, "content_around_reference": around}
    fake.on("find_referencing_symbols", says(json.dumps({"shop.py": {"File": [user, user]}})))
    serena = make()
    found = await serena.references("shop.py", USED)
    assert [(p.path, p.line, p.character, p.end_character) for p in found] == [
        ("shop.py", 4, 0, 5),
        ("shop.py", 4, 10, 15),
    ]
    (place,) = await serena.definition("shop.py", USED)
    assert (place.path, place.line, place.character, place.end_character) == ("shop.py", 0, 4, 9)


async def test_too_long_an_answer_is_an_error_and_never_context(make: Make, fake: FakeSerena) -> None:
    fake.on("find_symbol", says(LONG))
    fake.on("get_diagnostics_for_file", says(LONG))
    fake.on(
        "find_referencing_symbols",
        says(f'{LONG}\nReference counts per file:\n{{"shop.py": 600}}'),
        says(f"{LONG}\nFound 600 references."),
    )
    serena = make()
    for question in (
        serena.find_symbol("price", "shop.py"),
        serena.outline("shop.py"),
        serena.diagnostics("shop.py"),
        serena.references("shop.py", USED),
        serena.references("shop.py", USED),
    ):
        await fails(question, "too much to list|too many references")


async def test_the_shortened_form_of_references_is_used(make: Make, fake: FakeSerena) -> None:
    short = {"shop.py": {"File": [{"name_path": "shop", "reference_line": 4}]}}
    fake.on("find_referencing_symbols", says(f"{LONG}\nReferences without surrounding lines:\n{json.dumps(short)}"))
    assert [(p.line, p.character) for p in await make().references("shop.py", USED)] == [(4, 0)]


@pytest.mark.parametrize(
    "answer",
    [
        refuses(
            "Error executing tool find_symbol: ValueError: Found multiple 2 symbols matching 'price'. They are: \n[]"
        ),
        refuses("Error executing tool find_symbol: Exception: The manager is not initialized (/home/me/x.py)"),
        refuses("Error executing tool find_symbol: FileNotFoundError: File or directory not found: /home/me/shop.py"),
        refuses("1 validation error for applyArguments"),
        refuses("Unknown tool: find_symbol"),
        refuses(""),
        says("No active project. Ask the user to provide the path."),
        says("Tool execution timed out after 12.0 seconds."),
        says("{}"),
        says(""),
        says('[{"name_path": 1}]'),
    ],
)
async def test_an_error_text_is_an_error_without_absolute_paths(
    make: Make, fake: FakeSerena, answer: dict[str, Any]
) -> None:
    fake.on("find_symbol", answer)
    said = await fails(make().find_symbol("price", "shop.py"))
    assert "/home" not in said


async def test_a_question_that_hangs_ends_in_time_and_makes_it_busy_until_it_answers(
    make: Make, fake: FakeSerena
) -> None:
    serena = await warm(make, scoped=0.2)
    pipe = fake.waits("find_symbol", FOUND)
    await fails(serena.find_symbol("price", "shop.py"), r"did not answer in 0\.2 s")
    await fails(serena.hover("shop.py", USED), "busy")
    assert tools(fake).count("find_declaration") == 1
    (late,) = serena._serena._late
    await asyncio.to_thread(pipe.write_text, "go")
    await asyncio.wait([late])
    fake.on("find_symbol", FOUND)
    assert await serena.find_symbol("price", "shop.py")
    assert len(fake.starts) == 1


async def test_who_stops_waiting_leaves_it_busy(make: Make, fake: FakeSerena) -> None:
    serena = await warm(make)
    pipe = fake.waits("find_symbol", FOUND)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await serena.find_symbol("price", "shop.py")
    await fails(serena.outline("shop.py"), "busy")
    await asyncio.to_thread(pipe.write_text, "go")


async def test_two_slow_answers_restart_the_language_server_then_serena_then_leave_it_alone(
    make: Make, fake: FakeSerena
) -> None:
    fake.on("find_symbol", SLOW)
    fake.on("restart_language_server", says("OK"))
    serena = make(rest=3600)

    async def twice() -> None:
        for _ in range(2):
            await fails(serena.find_symbol("price", "shop.py"), "did not answer")
        await mended(serena)

    await twice()
    assert (tools(fake).count("restart_language_server"), len(fake.starts)) == (1, 1)
    await twice()
    assert (tools(fake).count("restart_language_server"), len(fake.starts)) == (1, 1)
    await twice()
    assert len(fake.starts) == 2
    asked = len(fake.asked)
    await fails(serena.find_symbol("price", "shop.py"), "left alone")
    assert (len(fake.asked), len(fake.starts)) == (asked, 2)
    assert "did not answer" in (await serena.status()).trouble


async def test_a_language_server_that_does_not_restart_has_serena_started_anew(make: Make, fake: FakeSerena) -> None:
    pipe = fake.waits("restart_language_server", says("OK"))
    fake.on("find_symbol", SLOW, SLOW, FOUND)
    serena = make(restart=0.1)
    for _ in range(2):
        await fails(serena.find_symbol("price", "shop.py"))
    await mended(serena)
    assert await serena.find_symbol("price", "shop.py")
    assert len(fake.starts) == 2
    assert pipe.exists()


async def test_a_good_answer_between_slow_ones_forgives(make: Make, fake: FakeSerena) -> None:
    fake.on("find_symbol", SLOW, FOUND)
    serena = make()
    for _ in range(3):
        fake.on("find_symbol", SLOW, FOUND)
        await fails(serena.find_symbol("price", "shop.py"))
        assert await serena.find_symbol("price", "shop.py")
    assert "restart_language_server" not in tools(fake)


@pytest.mark.parametrize(
    "what", [CRASHES, LONG_LINE, prints("nonsense\n" * 200, FOUND)], ids=["crash", "line", "garbage"]
)
async def test_what_breaks_it_is_an_error_and_the_next_question_starts_a_new_one(
    make: Make, fake: FakeSerena, what: dict[str, Any]
) -> None:
    fake.on("find_symbol", what, FOUND)
    serena = make()
    said = await fails(serena.find_symbol("price", "shop.py"), "ended")
    assert "somebody" not in said
    assert [s.name_path for s in await serena.find_symbol("price", "shop.py")] == ["price"]
    assert len({start["pid"] for start in fake.starts}) == 2


async def test_a_few_lines_that_are_no_message_are_passed_over(make: Make, fake: FakeSerena) -> None:
    fake.on("start", prints("loading...\n{}\n[1]", {}))
    fake.on("find_symbol", prints('{"half": ', FOUND))
    serena = make()
    assert await serena.find_symbol("price", "shop.py")
    assert len(fake.starts) == 1


async def test_a_start_that_fails_twice_leaves_it_alone_for_a_while(make: Make, fake: FakeSerena) -> None:
    fake.on("start", CRASHES)
    serena = make(rest=3600)
    said = await fails(serena.find_symbol("price", "shop.py"), "did not start")
    assert "place.py" in said
    assert "/home" not in said
    await fails(serena.find_symbol("price", "shop.py"), "did not start")
    await fails(serena.find_symbol("price", "shop.py"), "left alone")
    assert len(fake.starts) == 2


async def test_it_is_asked_again_after_the_rest(make: Make, fake: FakeSerena) -> None:
    fake.on("start", CRASHES, CRASHES, {})
    serena = make(rest=0)
    for _ in range(2):
        await fails(serena.find_symbol("price", "shop.py"))
    assert await serena.find_symbol("price", "shop.py")


async def test_a_slow_start_ends_in_time_and_leaves_no_process(make: Make, fake: FakeSerena) -> None:
    fake.waits("start", {})
    serena = make(start=1.5)
    await fails(serena.find_symbol("price", "shop.py"), "start")
    starting = serena._serena._starting
    assert starting is not None
    await asyncio.wait([starting])
    (start,) = fake.starts
    with pytest.raises(ProcessLookupError):
        os.kill(start["pid"], 0)


async def test_who_asks_while_it_starts_is_answered_by_one_serena(make: Make, fake: FakeSerena) -> None:
    serena = make()
    found = await asyncio.gather(*(serena.find_symbol("price", "shop.py") for _ in range(10)))
    assert all(found)
    assert len(fake.starts) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
async def test_one_that_takes_too_much_memory_is_ended_and_started_anew(make: Make, fake: FakeSerena) -> None:
    serena = make(memory=1, look=0.01)
    await serena.find_symbol("price", "shop.py")
    (watch,) = (t for t in serena._serena._background if "_watch" in str(t.get_coro()))
    await asyncio.wait([watch])
    status = await serena.status()
    assert (status.pid, status.memory) == (0, 0)
    assert " MB" in status.trouble
    await serena.find_symbol("price", "shop.py")
    assert len(fake.starts) == 2


async def test_what_it_has_not_is_told_without_starting_it(make: Make, fake: FakeSerena) -> None:
    serena = make()
    for question in (
        serena.type_definition("shop.py", USED),
        serena.rename("shop.py", USED, "cost"),
        serena.calls("shop.py", USED, incoming=False),
    ):
        with pytest.raises(NotSupportedError):
            await question
    assert fake.starts == []


async def test_files_without_a_language_server_are_not_asked_about(
    make: Make, fake: FakeSerena, workspace: Path
) -> None:
    (workspace / "README.md").write_text("# shop")
    serena = make()
    for question in (serena.diagnostics("README.md"), serena.outline("README.md"), serena.find_symbol("x", "a.rs")):
        with pytest.raises(NotSupportedError):
            await question
    assert fake.asked == []


async def test_a_folder_has_no_outline(make: Make, fake: FakeSerena, workspace: Path) -> None:
    (workspace / "sub.py").mkdir()
    serena = make()
    for path in ("", "sub.py"):
        await fails(serena.outline(path), "is a folder")
    assert fake.asked == []


async def test_a_workspace_without_a_known_language_starts_nothing(fake: FakeSerena, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    serena = SerenaIntelligence(fake.program, tmp_path / "notes", tmp_path / "data")
    with pytest.raises(NotSupportedError, match="no language server"):
        await serena.find_symbol("price")
    await fails(serena.find_symbol("price"), "left alone")
    await serena.aclose()
    assert fake.starts == []


async def test_a_workspace_that_is_gone_is_an_error(make: Make, workspace: Path) -> None:
    serena = make()
    (workspace / "shop.py").unlink()
    workspace.rmdir()
    await fails(serena.hover("shop.py", USED), "gone")


@pytest.mark.parametrize("path", ["../shop.py", "/etc/passwd", "link/shop.py"])
async def test_a_file_outside_is_refused_before_anybody_is_asked(
    make: Make, fake: FakeSerena, workspace: Path, path: str
) -> None:
    (workspace / "link").symlink_to("/")
    serena = make()
    for question in (serena.outline(path), serena.hover(path, USED), serena.write_symbol(path, "x", "y")):
        assert "/" not in await fails(question, "outside")
    assert fake.asked == []


@pytest.mark.parametrize("position", [Position(5, 1), Position(99, 0), Position(0, 14), Position(-1, 0)])
async def test_a_position_past_the_end_is_an_error(make: Make, fake: FakeSerena, position: Position) -> None:
    await fails(make().definition("shop.py", position), "shop.py")
    assert fake.asked == []


async def test_nothing_is_asked_where_there_is_no_name(make: Make, fake: FakeSerena) -> None:
    serena = make()
    assert await serena.hover("shop.py", Position(2, 0)) == ""
    assert await serena.references("shop.py", Position(4, 9)) == ()
    assert await serena.find_symbol("") == ()
    assert fake.asked == []


async def test_a_local_variable_is_not_taken_for_the_function_around_it(make: Make) -> None:
    with pytest.raises(NotSupportedError, match="no symbol n"):
        await make().hover("shop.py", Position(1, 11))


async def test_all_of_a_large_workspace_is_not_searched(make: Make, fake: FakeSerena, workspace: Path) -> None:
    (workspace / "large.py").write_text("x = 1\n" * 600_000)
    serena = make()
    await fails(serena.find_symbol("price"), "too large")
    await fails(serena.workspace_symbols("price"), "too large")
    assert await serena.find_symbol("price", "shop.py")


async def test_changes_name_the_symbol_exactly_and_say_when_they_were_refused(make: Make, fake: FakeSerena) -> None:
    fake.on("replace_symbol_body", says("OK"))
    fake.on("rename_symbol", says("Successfully renamed 'price' to 'cost' (1 changes applied)"), says("Nothing to do"))
    serena = make()
    await serena.write_symbol("shop.py", "price", "def price(n):\n    return 2")
    await serena.write_rename("shop.py", "price", "cost")
    assert [arguments["name_path"] for _, arguments in fake.asked] == ["/price", "/price"]
    await fails(serena.write_rename("shop.py", "price", "cost"), "did not change it")


@pytest.mark.parametrize("other", [b"price = 1\r\n", 'price = "caf\xe9"\n'.encode("latin-1")], ids=["CRLF", "Latin-1"])
async def test_what_it_would_write_with_other_line_ends_or_in_another_encoding_is_left_alone(
    make: Make, fake: FakeSerena, workspace: Path, other: bytes
) -> None:
    fake.on("replace_symbol_body", says("OK"))
    fake.on("rename_symbol", says("Successfully renamed"))
    (workspace / "other.py").write_bytes(other)
    serena = make()
    for change in (
        serena.write_symbol("other.py", "price", "price = 2"),
        serena.write_rename("shop.py", "price", "cost"),
    ):
        with pytest.raises(NotSupportedError, match=r"write other\.py"):
            await change
    assert fake.asked == []
    (workspace / "other.py").write_bytes(other.replace(b"price", b"cost"))
    await serena.write_rename("shop.py", "price", "money")
    await serena.write_symbol("shop.py", "price", "def price(n):\n    return 2")


async def test_warming_up_asks_between_files_and_raises_nothing(make: Make, fake: FakeSerena) -> None:
    serena = make()
    await serena.warm()
    assert tools(fake) == ["find_symbol", "find_declaration"]
    fake.on("start", CRASHES)
    await make().warm()


async def test_once_ended_it_stays_ended(make: Make, fake: FakeSerena) -> None:
    serena = make()
    await serena.find_symbol("price", "shop.py")
    await serena.aclose()
    await serena.aclose()
    await fails(serena.find_symbol("price", "shop.py"), "ended")
    assert len(fake.starts) == 1


async def test_ending_it_while_it_starts_leaves_no_process(make: Make, fake: FakeSerena) -> None:
    fake.waits("start", {})
    serena = make()
    question = asyncio.create_task(serena.find_symbol("price", "shop.py"))
    while not fake.starts:
        await asyncio.sleep(0.01)
    await serena.aclose()
    await fails(question)
    with pytest.raises(ProcessLookupError):
        os.kill(fake.starts[0]["pid"], 0)


def test_there_is_none_where_none_is_installed(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert serena_for(workspace, tmp_path) is None


def test_the_sdk_is_imported_only_where_a_serena_starts() -> None:
    heavy = ("mcp", "mcp_types", "httpx2", "pydantic")
    code = "import sys, turnout, turnout.cli, turnout.build, turnout.gateway.app, turnout.code.serena\n"
    code += f"print([m for m in sys.modules if m.split('.')[0] in {heavy}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
