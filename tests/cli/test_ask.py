"""``turnout ask``: the answer on stdout, the route on stderr, and every failure as one clear message."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.cli.conftest import Fakes, as_terminal, configure, program, run, run_beside, usual_signals
from tests.fakes.base import running
from tests.fakes.llm import WORDS, openai_app
from tests.servers import LlamaServer

ANSWER = "".join(WORDS)


async def test_the_real_model_answers(llama: LlamaServer) -> None:
    configure(llama.url)
    result = await run_beside("ask", "Write a Python function that adds two numbers", "--max-tokens", "40", stdin=b"")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip()
    assert "route: smol @ fake0, level 0 (primary), category coding," in result.stderr
    assert "40 out" in result.stderr
    assert "note: the answer ends at its token limit" in result.stderr


@pytest.mark.parametrize("how", [(), ("--no-stream",)])
async def test_the_answer_is_on_stdout_and_the_route_on_stderr(fakes: Fakes, how: tuple[str, ...]) -> None:
    configure(await fakes.start())
    result = await run_beside("ask", "Write a function", *how, stdin=b"")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ANSWER + "\n"
    assert "route: qwen2.5-coder-7b-instruct @ fake0, level 0 (primary), category coding, 11 tokens in, 4 out," in (
        result.stderr
    )


async def test_json_holds_the_whole_answer(fakes: Fakes) -> None:
    configure(await fakes.start(fault="busy"), await fakes.start(), services={})
    result = await run_beside("ask", "Write a function", "--json", stdin=b"")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["text"] == ANSWER
    assert answer["finish"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 11, "completion_tokens": 4, "cached_tokens": 0}
    assert (answer["route"]["service"], answer["route"]["category"]) == ("fake1", "coding")
    assert [(a["service"], a["error"] and a["error"]["code"]) for a in answer["attempts"]] == [
        ("fake0", "busy"),
        ("fake1", None),
    ]
    assert [n["code"] for n in answer["notices"]] == ["fallback"]


async def test_a_failed_attempt_is_named_with_its_reason(fakes: Fakes) -> None:
    configure(await fakes.start(fault="error"), await fakes.start())
    result = await run_beside("ask", "Write a function", stdin=b"")
    assert result.exit_code == 0
    assert "tried: qwen2.5-coder-7b-instruct @ fake0: fake0 failed with HTTP 500: boom (" in result.stderr
    assert "route: qwen2.5-coder-7b-instruct @ fake1" in result.stderr
    assert "note:" not in result.stderr


async def test_the_options_reach_the_server(home: Path) -> None:
    seen: list[dict[str, object]] = []
    async with running(_speaking(["ok"], seen)) as url:
        configure(url)
        args = ("--model", "m", "--max-tokens", "7")
        result = await run_beside("ask", "Look at this:", *args, stdin="piped text\n")
    assert result.exit_code == 0, result.stderr
    assert seen[0]["max_tokens"] == 7
    assert seen[0]["messages"][-1]["content"] == "Look at this:\n\npiped text\n"  # type: ignore[index]
    assert "category -" in result.stderr


async def test_nothing_that_a_server_says_reaches_the_terminal_raw() -> None:
    evil = ["a\x1b]0;title\x07b", "\x9b31m", "\x1b", "[2Jc\r\n\td\u202e\u2067"]
    async with running(_speaking(evil, [])) as url:
        configure(url)
        result = await run_beside("ask", "hello", stdin=b"")
        data = await run_beside("ask", "hello", "--json", stdin=b"")
    assert result.stdout == "a]0;titleb31m[2Jc\n\td\n"
    assert json.loads(data.stdout)["text"] == "".join(evil)
    for output in (result.stderr, data.output):
        assert not any(c in output for c in "\x1b\x07\x9b\r\u202e\u2067")


def test_no_server_is_exit_3_and_says_what_was_probed() -> None:
    configure("http://127.0.0.1:9")
    result = run("ask", "hello", stdin=b"")
    assert result.exit_code == 3
    first, probed, hint = result.stderr.splitlines()
    assert first == "Error: no local LLM service available"
    assert probed == "probed fake0 http://127.0.0.1:9: offline: nothing answers at 127.0.0.1:9: connection refused"
    assert hint == (
        "Hint: see that a server runs at http://127.0.0.1:9, or correct custom_endpoints.0.endpoint;"
        " `embedded.fallback: true` uses the bundled demonstration model;"
        " `turnout ask --embedded` asks the bundled model alone (`turnout embedded install` first)"
    )
    failure = json.loads(run("ask", "hello", "--json", stdin=b"").stdout)
    assert failure["error"]["code"] == "no_service"
    assert failure["error"]["probed"][0]["where"] == "fake0 http://127.0.0.1:9"


async def test_an_unknown_model_names_what_there_is(fakes: Fakes) -> None:
    configure(await fakes.start())
    result = await run_beside("ask", "hello", "--model", "gpt-99-turbo", stdin=b"")
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error == "Error: no server has the model 'gpt-99-turbo'"
    assert "qwen2.5-coder-7b-instruct" in hint


@pytest.mark.parametrize("fault", ["malformed", "html"])
async def test_a_server_that_answers_nonsense_is_named(home: Path, fault: str) -> None:
    async with running(_nonsense(fault)) as url:
        configure(url, custom_endpoints=[{"name": "odd", "endpoint": url, "max_retries": 0}])
        result = await run_beside("ask", "hello", stdin=b"")
    assert result.exit_code == 1
    error, *_ = result.stderr.splitlines()
    assert error.startswith("Error: no model answered; tried 1: m @ odd: ")


async def test_the_same_failure_is_said_once_with_its_tries() -> None:
    app = openai_app()
    app.state.fake.fault = "error"
    async with running(app) as url:
        configure(custom_endpoints=[{"name": "odd", "endpoint": url, "max_retries": 2}])
        failed = await run_beside("ask", "hello", stdin=b"")
        app.state.fake.faults_left = 2
        answered = await run_beside("ask", "hello", stdin=b"")
    said = "qwen2.5-coder-7b-instruct @ odd: odd failed with HTTP 500: boom"
    assert failed.stderr.splitlines()[0] == f"Error: no model answered; tried 3: {said} (3 tries)"
    assert answered.exit_code == 0
    assert f"tried: {said} (2 tries, " in answered.stderr
    assert answered.stderr.count("HTTP 500") == 1


async def test_a_broken_stream_keeps_what_came(fakes: Fakes) -> None:
    url = await fakes.start(fault="drop")
    configure(url)
    for how in ((), ("--no-stream",)):
        result = await run_beside("ask", "hello", *how, stdin=b"")
        assert result.exit_code == 1
        assert result.stdout == "".join(WORDS[:2]) + "\n"
        assert result.stderr.startswith("Error: ")
        assert result.stderr.splitlines()[-1] == "Hint: ask again; the log of fake0 may say why"
    failure = json.loads((await run_beside("ask", "hello", "--json", stdin=b"")).stdout)
    assert failure["text"] == "".join(WORDS[:2])
    assert failure["error"]["code"] == "stream_broken"
    assert [a["error"]["code"] for a in failure["attempts"]] == ["stream_broken"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_a_signal_ends_the_stream_frees_the_server_and_is_audited(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    app = openai_app()
    app.state.fake.fault = "stall"
    async with running(app) as url:
        configure(url)
        child = await start("ask", "hello")
        assert child.stdout is not None
        came = await child.stdout.readexactly(len("".join(WORDS[:2])))
        child.send_signal(number)
        rest, err = await child.communicate()
        await asyncio.wait_for(app.state.fake.closed.wait(), 10)
    assert (came + rest).decode() == "".join(WORDS[:2]) + "\n"
    assert err.strip() == b""
    assert child.returncode == code
    lines = [json.loads(line) for line in (tmp_path / "data" / "audit.log").read_text().splitlines()]
    assert [(line["phase"], line["error"]) for line in lines] == [("start", None), ("end", "cancelled")]


async def test_sigterm_ends_a_command_that_a_script_runs_behind_itself(tmp_path: Path) -> None:
    app = openai_app()
    app.state.fake.fault = "stall"
    async with running(app) as url:
        configure(url)
        child = await start("ask", "hello", signals=behind_a_script)
        assert child.stdout is not None
        await child.stdout.readexactly(len("".join(WORDS[:2])))
        child.send_signal(signal.SIGINT)
        child.terminate()
        await asyncio.wait_for(child.communicate(), 30)
    assert child.returncode == 143
    lines = [json.loads(line) for line in (tmp_path / "data" / "audit.log").read_text().splitlines()]
    assert [(line["phase"], line["error"]) for line in lines] == [("start", None), ("end", "cancelled")]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_sigterm_ends_the_bundled_model_too(tmp_path: Path, with_weights: None) -> None:
    child = await start("ask", "--embedded", "--max-tokens", "2000", "Write a long story")
    assert child.stdout is not None
    await child.stdout.readexactly(1)
    (engine,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    child.terminate()
    await child.communicate()
    assert child.returncode == 143
    assert not Path(f"/proc/{engine}").exists()
    ends = [json.loads(line) for line in (tmp_path / "data" / "audit.log").read_text().splitlines()]
    assert [(end["phase"], end["error"]) for end in ends] == [("start", None), ("end", "cancelled")]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the file size")
async def test_a_disk_that_fills_up_meanwhile_is_said_after_the_answer(fakes: Fakes) -> None:
    import resource

    configure(await fakes.start())

    def little_room() -> None:  # enough for the start record, not for the end
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))

    limits = {"stdin": asyncio.subprocess.DEVNULL, "preexec_fn": little_room}
    for how in ((), ("--no-stream",)):
        done = await asyncio.to_thread(program, "ask", "hello", *how, **limits)
        assert done.returncode == 1
        assert done.stdout == ANSWER + "\n"
        said = [line for line in done.stderr.splitlines() if not line.startswith("Warning: decisions cannot be kept")]
        warning, route, error, hint = said
        assert warning.startswith("Warning: the audit log ")
        assert "cannot be written: File too large" in warning
        assert route.startswith("route: ")
        assert error == "Error: the answer was given, but how it ended could not be written to the audit log"
        assert hint.startswith("Hint: free space")
        shutil.rmtree(os.environ["TURNOUT_DATA_DIR"])
    document = json.loads((await asyncio.to_thread(program, "ask", "hello", "--json", **limits)).stdout)
    assert (document["text"], document["error"]["code"]) == (ANSWER, "audit_unavailable")


async def test_a_reader_that_leaves_ends_the_stream_quietly(tmp_path: Path) -> None:
    app = openai_app()
    app.state.fake.fault = "stall"
    async with running(app) as url:
        configure(url)
        child = await start("ask", "hello")
        assert child.stdout is not None
        assert child.stderr is not None
        await child.stdout.readexactly(1)
        child._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        app.state.fake.release.set()
        err = await child.stderr.read()
        assert (err, await child.wait()) == (b"", 141)
        await asyncio.wait_for(app.state.fake.closed.wait(), 10)
    lines = [json.loads(line) for line in (tmp_path / "data" / "audit.log").read_text().splitlines()]
    assert [(line["phase"], line["error"]) for line in lines] == [("start", None), ("end", "cancelled")]


@pytest.mark.parametrize("command", [("ask", "hello"), ("discover",), ("serve",), ("config", "check")])
def test_an_endpoint_outside_the_allow_list_is_exit_4_and_says_where_it_is(command: tuple[str, ...]) -> None:
    Path("turnout.yaml").write_text(
        "services:\n  vllm: {endpoint: 'http://127.0.0.1:9'}\n"
        "custom_endpoints:\n  - name: far\n    endpoint: http://8.8.8.8:11434\n"
    )
    result = run(*command, stdin=b"")
    assert result.exit_code == 4
    error, hint = result.stderr.splitlines()
    assert error.startswith("Error: ")
    assert error.endswith(
        "turnout.yaml:5: custom_endpoints.0.endpoint: endpoint far: 8.8.8.8 is outside the allowed networks"
    )
    assert "security.allowed" in hint
    Path("turnout.yaml").write_text("services:\n  vllm:\n    endpoint: http://8.8.8.8:1\n")
    assert "turnout.yaml:3: services.vllm.endpoint: endpoint vllm: 8.8.8.8 is" in run(*command, stdin=b"").stderr


def test_a_wrong_configuration_names_the_file_the_key_and_the_nearest() -> None:
    Path("turnout.yaml").write_text("securty:\n  allow_external: false\n")
    result = run("ask", "hello", stdin=b"")
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert error.startswith("Error: ")
    assert "turnout.yaml:" in error
    assert "securty" in error
    assert "did you mean security?" in hint


def test_a_configuration_that_is_not_there_is_named() -> None:
    result = run("--config", "gone.yaml", "ask", "hello", stdin=b"")
    assert result.exit_code == 2
    assert "gone.yaml" in result.stderr


def test_a_data_directory_that_cannot_be_written_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "file" / "data"))
    result = run("ask", "hello", stdin=b"")
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert str(tmp_path / "file") in error
    assert hint.startswith("Hint: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_a_full_disk_under_the_audit_log_runs_nothing(fakes: Fakes) -> None:
    configure(await fakes.start(), security={"audit_log_path": "/dev/full"})
    result = await run_beside("ask", "hello", stdin=b"")
    assert result.exit_code == 1
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert "/dev/full" in error
    assert "security.audit_log_path" in hint


def test_the_bundled_model_must_be_installed_first() -> None:
    result = run("ask", "hello", "--embedded", stdin=b"")
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error == "Error: the bundled model is not installed"
    assert "turnout embedded install" in hint


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 3), (b"y\n", 0)])
def test_on_a_terminal_the_bundled_model_is_offered(with_weights: None, answer: bytes, code: int) -> None:
    configure("http://127.0.0.1:9")
    exit_code, shown = as_terminal("ask", "Say hello", "--max-tokens", "5", answer=answer)
    assert "No local server answered. Use the bundled demonstration model (SmolLM2 135M" in shown
    assert exit_code == code, shown
    assert ("@ embedded, level 0" in shown) is (code == 0)


def test_in_a_pipe_the_bundled_model_is_used_only_when_asked_for_or_configured(with_weights: None) -> None:
    configure("http://127.0.0.1:9")
    refused = run("ask", "Say hello", stdin=b"")
    assert refused.exit_code == 3
    assert refused.stderr.endswith("; `turnout ask --embedded` asks the bundled model alone\n")
    assert "embedded install" not in refused.stderr
    asked = run("ask", "Say hello", "--embedded", "--max-tokens", "5", stdin=b"")
    assert asked.exit_code == 0, asked.stderr
    assert "@ embedded" in asked.stderr
    configure("http://127.0.0.1:9", embedded={"fallback": True})
    agreed = run("ask", "Say hello", "--max-tokens", "5", stdin=b"")
    assert agreed.exit_code == 0, agreed.stderr
    assert "@ embedded" in agreed.stderr


async def test_asked_for_the_bundled_model_looks_for_no_server(with_weights: None) -> None:
    app = openai_app()
    async with running(app) as url:
        configure(url, services={"ollama": {"endpoint": url + "/x"}})
        result = await run_beside("ask", "Say hello", "--embedded", "--max-tokens", "5", stdin=b"")
    assert result.exit_code == 0, result.stderr
    assert "@ embedded" in result.stderr
    assert app.state.fake.paths == []


async def start(*args: str, signals: Callable[[], None] = usual_signals) -> asyncio.subprocess.Process:
    """The program in a process of its own, with nothing on its standard input."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-c", "from turnout.cli import main; main()", *args]
    return await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, preexec_fn=signals
    )


def behind_a_script() -> None:
    usual_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _speaking(pieces: list[str], seen: list[dict[str, object]]) -> Starlette:
    """A server whose answer is exactly ``pieces``."""

    async def listing(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 8192}]})

    async def chat(request: Request) -> Response:
        seen.append(await request.json())

        async def stream() -> AsyncIterator[bytes]:
            for piece in pieces:
                choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
                yield (
                    b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
                )
            last = {"index": 0, "delta": {}, "finish_reason": "stop"}
            yield b"data: " + json.dumps({"choices": [last]}).encode() + b"\n\ndata: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/models", listing), Route("/v1/chat/completions", chat, methods=["POST"])])


def _nonsense(fault: str) -> Starlette:
    """A server that lists a model and then answers a chat with something else."""
    bodies = {"malformed": b"\x00\xffnot json", "html": b"<html>app</html>"}

    async def listing(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 8192}]})

    async def chat(request: Request) -> Response:
        return Response(bodies[fault], media_type="text/event-stream" if fault == "malformed" else "text/html")

    return Starlette(routes=[Route("/v1/models", listing), Route("/v1/chat/completions", chat, methods=["POST"])])
