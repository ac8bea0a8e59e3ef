"""``turnout env`` and ``turnout launch``: what agents are told, and that they are run so.

That real agents work with it was tried by hand; here a small program stands for each and tells what it was given.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.applications import Starlette

from tests.cli.conftest import Fakes, as_terminal, configure, program, run, run_beside, usual_signals
from tests.fakes import ollama
from tests.fakes.base import Fake, FakeModel
from tests.fakes.base import running as serving
from tests.fakes.llm import openai_app
from turnout.build import open_router
from turnout.cli.env import set_up
from turnout.cli.launch import environment
from turnout.cli.output import loaded_config
from turnout.cli.recipes import AGENTS, Agent, agent_called
from turnout.cli.target import Offer
from turnout.config import data_dir
from turnout.gateway.app import create_app, running

MODEL = "qwen2.5-coder-7b-instruct"
PROGRAMS = [agent for agent in AGENTS if agent.install]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home directory of its own, and nothing that names a key, an agent or a proxy."""
    for name in os.environ:
        if name.startswith(("TURNOUT_KEY", "ANTHROPIC_", "OPENAI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return tmp_path / "user"


@asynccontextmanager
async def gateway() -> AsyncIterator[str]:
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(open_router(loaded_config(None)))
        _, url = await stack.enter_async_context(running(create_app(router)))
        yield url


def key() -> str:
    return run("key", "add", "me").stdout.strip()


def described(agent: Agent, **more: Any) -> dict[str, Any]:
    made = set_up(agent, "http://127.0.0.1:4747", more.get("key", "local"), MODEL, Offer({MODEL: 40_000}, "x"))
    files = {file.name: file.text for file in made.recipe.files if not file.seed}
    return {"env": dict(made.recipe.env), "files": files}


def test_every_agent_is_told_address_key_model_and_window() -> None:
    for agent in AGENTS:
        told = str(described(agent, key="k-3y"))
        assert "http://127.0.0.1:4747" in told
        assert "k-3y" in told
        if agent.window:
            assert MODEL in told
            assert "40000" in told, agent.name


def test_what_is_written_is_what_each_agent_reads() -> None:
    codex = tomllib.loads(described(agent_called("codex"), key="k")["files"]["config.toml"])
    provider = codex["model_providers"][codex["model_provider"]]
    assert provider["base_url"] == "http://127.0.0.1:4747/v1"
    assert (provider["wire_api"], provider["env_key"]) == ("responses", "TURNOUT_KEY")
    assert (codex["model_context_window"], codex["model_auto_compact_token_limit"]) == (40_000, 32_000)
    assert codex["analytics"] == {"enabled": False}
    assert codex["features"] == {"plugins": False, "apps": False}

    opencode = json.loads(described(agent_called("opencode"))["files"]["opencode.json"])
    assert opencode["provider"]["turnout"]["models"][MODEL]["limit"] == {"context": 40_000, "output": 8192}
    assert opencode["model"] == opencode["small_model"] == f"turnout/{MODEL}"
    assert (opencode["autoupdate"], opencode["share"]) == (False, "disabled")

    qwen = json.loads(described(agent_called("qwen"))["files"]["settings.json"])
    generation = qwen["modelProviders"]["openai"][0]["generationConfig"]
    assert generation == {"contextWindowSize": 40_000, "samplingParams": {"max_tokens": 8192}}
    assert qwen["privacy"] == {"usageStatisticsEnabled": False}

    model = yaml.safe_load(described(agent_called("continue"))["files"]["config.yaml"])["models"][0]
    assert model["defaultCompletionOptions"] == {"contextLength": 40_000, "maxTokens": 8192}

    claude = described(agent_called("claude"))["env"]
    assert claude["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "40000"
    assert claude["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"


def test_a_gateway_without_keys_needs_no_variable_beside_the_file() -> None:
    assert "env_key" not in described(agent_called("codex"))["files"]["config.toml"]
    assert "TURNOUT_KEY" not in str(described(agent_called("opencode")))
    assert "k-3y" not in str(described(agent_called("codex"), key="k-3y")["files"]), "a key belongs into no file"


def test_an_unknown_window_is_left_out_and_said() -> None:
    for agent in AGENTS:
        made = set_up(agent, "http://127.0.0.1:4747", "local", "m", Offer({}, ""))
        assert "not known" in "".join(made.warnings)
        assert "None" not in str(made.recipe)
        files = "".join(file.text for file in made.recipe.files)
        assert not any(word in files for word in ("contextWindow", "max_input_tokens", "contextLength", '"limit"'))
    claude = set_up(agent_called("claude"), "http://x", "local", "m", Offer({}, ""))
    assert claude.recipe.env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "32768"
    assert any("1,000,000" in line for line in claude.recipe.notes)


def test_a_window_that_is_too_small_is_told() -> None:
    made = set_up(agent_called("claude"), "http://x", "local", "m", Offer({"m": 8192}, "x"))
    assert "needs a window of 32768 tokens or more" in made.warnings[0]
    made = set_up(agent_called("codex"), "http://x", "local", "m", Offer({"m": 40_960}, "x", frozenset({"m"})))
    assert made.warnings == ("the window of 'm' is a guess, 40960 tokens: its server does not tell",)
    made = set_up(agent_called("claude"), "http://x", "local", "n", Offer({"m": 8192}, "the gateway"))
    assert made.warnings == ("the gateway lists no model 'n'; there are: m",)


async def test_without_a_gateway_the_window_is_the_one_that_it_would_tell() -> None:
    """An Ollama's model that is not loaded has its largest window only where nobody asks for another one."""
    loaded = FakeModel("a-7b", window=8192, max_window=131_072)
    other = FakeModel("b-7b", window=16_384, max_window=131_072, resident=False)
    silent = openai_app(("c-7b",), window=0)
    fake = Fake([loaded, other])
    async with serving(ollama.app(fake)) as one, serving(silent) as two:
        configure(one, two)
        async with gateway() as url:
            for model in ("a-7b", "b-7b", "c-7b", "a-7b@fake0", "auto", "claude-local-auto"):
                told, found = [
                    json.loads((await run_beside("env", "codex", "--model", model, "--json", *where)).stdout)
                    for where in (("--url", url), ())
                ]
                assert found["window"] == told["window"] > 0, (model, found["warnings"])
                assert [w for w in found["warnings"] if "no gateway" not in w] == told["warnings"]
                assert any("is a guess" in warning for warning in found["warnings"]) is (model == "c-7b")


def test_with_tls_the_agent_must_trust_the_authority_by_its_own_means() -> None:
    configure("http://127.0.0.1:9")
    assert (
        "claude-code must trust the authority of https://127.0.0.1:9 too"
        in run("env", "claude", "--url", "https://127.0.0.1:9").stderr
    )
    assert "must trust" not in run("env", "claude", "--url", "http://127.0.0.1:9").stderr


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_a_shell_takes_what_is_printed(agent: Agent, home: Path) -> None:
    configure("http://127.0.0.1:9")
    model = 'it\'s "a" $(touch pwned) `touch pwned` TURNOUT'
    printed = run("env", agent.name, "--model", model, "--url", "http://127.0.0.1:9").stdout
    fields = json.loads(run("env", agent.name, "--model", model, "--url", "http://127.0.0.1:9", "--json").stdout)
    script = 'eval "$1" && exec "$2" -c "import json, os; print(json.dumps(dict(os.environ)))"'
    unset = dict.fromkeys(fields["unset"], "of the user")
    done = subprocess.run(
        ["sh", "-c", script, "sh", printed, sys.executable],
        env={**os.environ, **unset},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    env = json.loads(done.stdout)
    assert {name: env.get(name) for name in fields["env"]} == fields["env"]
    assert not set(fields["unset"]) & set(env)
    assert not Path("pwned").exists()
    for file in fields["files"]:
        assert file["text"] in printed


def test_the_list_and_the_names() -> None:
    rows = [line.split("\t") for line in run("env").stdout.splitlines()]
    assert [row[0] for row in rows[1:]] == [agent.name for agent in AGENTS]
    assert len(json.loads(run("env", "--json").stdout)["agents"]) == len(AGENTS)
    assert agent_called("Claude") == agent_called("claude-code")
    for name, said in (("gemini", "Google's own API"), ("nope", "there are: aider")):
        refused = run("env", name)
        assert refused.exit_code == 2
        assert said in refused.stderr
    assert run("env", "codex", "--url", "http://x/$(id)").exit_code == 2
    assert run("env", "codex", "--model", "a\nb").exit_code == 2


async def test_the_window_is_the_gateways_else_the_servers(fakes: Fakes) -> None:
    configure(await fakes.start(MODEL, window=40_960))
    stopped = await run_beside("env", "codex", "--json")
    assert json.loads(stopped.stdout)["window"] == 40_960
    assert json.loads(stopped.stdout)["window_from"] == "`turnout models`"
    assert "no gateway answers at http://127.0.0.1:4747" in stopped.stderr
    async with gateway() as url:
        for model in ("auto", MODEL):
            asked = await run_beside("env", "codex", "--json", "--url", f"{url}/v1/", "--model", model)
            fields = json.loads(asked.stdout)
            assert (fields["window"], fields["window_from"]) == (40_960, f"the gateway at {url}")
            assert (fields["url"], fields["warnings"]) == (url, [])


async def test_the_key_is_the_environments(installed: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(await fakes.start())
    token = key()
    async with gateway() as url:
        without = await run_beside("env", "claude", "--url", url)
        assert "PUT-THE-KEY-HERE" in without.stdout
        assert without.stderr.count("turnout key add") == 1
        assert "another key" not in without.stderr
        assert f"the gateway at {url} wants a key" in (await run_beside("launch", "codex", "--url", url)).stderr
        monkeypatch.setenv("TURNOUT_KEY", "wrong")
        wrong = await run_beside("env", "claude", "--url", url)
        assert wrong.stderr.count("turnout key add") == 1
        assert f"the gateway at {url} wants another key" in wrong.stderr
        monkeypatch.setenv("TURNOUT_KEY", token)
        given = json.loads((await run_beside("env", "claude", "--url", url, "--json")).stdout)
        assert given["env"]["ANTHROPIC_AUTH_TOKEN"] == token
        assert given["window"] == 8192


async def test_another_server_there_is_not_taken_for_the_gateway() -> None:
    configure("http://127.0.0.1:9")
    async with serving(Starlette()) as url:
        asked = await run_beside("env", "claude", "--url", url)
        assert f"what answers at {url} is not Turnout" in asked.stderr
        assert asked.exit_code == 0


def test_an_address_that_the_guard_refuses_is_refused_once(installed: Path) -> None:
    configure("http://127.0.0.1:9")
    for command in ("env", "launch"):
        refused = program(command, "codex", "--url", "http://203.0.113.9:4747")
        assert (refused.returncode, refused.stdout) == (4, ""), command
        assert refused.stderr.count("203.0.113.9 is outside") == 1, command
    assert not installed.exists()


def test_files_are_written_and_never_replaced_unasked(nobody: Path) -> None:
    configure("http://127.0.0.1:9")
    path = nobody / ".codex" / "config.toml"
    assert run("env", "codex", "--write").exit_code == 0
    assert tomllib.loads(path.read_text())["model"] == "auto"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert run("env", "codex", "--write").exit_code == 0
    path.write_text("of the user")
    refused = run("env", "codex", "--write", stdin=b"y\n")
    assert refused.exit_code == 2
    assert f"{path} is there and is not the same" in refused.stderr
    assert path.read_text() == "of the user"
    assert run("env", "claude", "--write").exit_code == 2, "it has no file"
    for answer, text in ((b"n\n", "of the user"), (b"y\n", "auto")):
        code, shown = as_terminal("env", "codex", "--write", answer=answer)
        assert code == 0
        assert "Replace it?" in shown
        assert text in path.read_text()


# What is run in an agent's place: it tells what it was given, and ends with 7.
_TELLS = """\
import json, os, sys
from pathlib import Path
told = {"args": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()}
Path(os.environ["TELL"]).write_text(json.dumps(told))
sys.exit(7)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program for every agent on PATH; returns where it tells."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for agent in PROGRAMS:
        name = set_up(agent, "http://x", "local", "m", Offer({}, "")).recipe.command[0]
        (folder / name).write_text(f"#!{sys.executable}\n{_TELLS}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("TELL", str(tmp_path / "told.json"))
    return tmp_path / "told.json"


@pytest.mark.parametrize("agent", PROGRAMS, ids=lambda agent: agent.name)
async def test_an_agent_is_run_beside_the_users_own_files(
    agent: Agent, installed: Path, nobody: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(await fakes.start(window=40_960))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "the user's own")
    async with gateway() as url:
        done = await asyncio.to_thread(program, "launch", agent.name, "--url", url, "--", "-x", "--json", "a b")
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    told = json.loads(installed.read_text())
    assert told["args"][-3:] == ["-x", "--json", "a b"]
    assert told["cwd"] == told["env"]["PWD"] == str(Path.cwd())
    if agent.name == "claude-code":
        assert "ANTHROPIC_API_KEY" not in told["env"]
    made = set_up(agent, url, "local", "auto", Offer({"auto": 40_960}, "x"))
    own = data_dir() / "agents" / agent.name
    for name, place in made.recipe.own.items():
        assert Path(told["env"][name]) == own / place
    for file in made.recipe.files:
        assert (own / made.recipe.own_folder / file.name).read_text() == file.text
    assert not nobody.exists()


async def test_what_an_agent_keeps_itself_stays(installed: Path, fakes: Fakes) -> None:
    configure(await fakes.start(window=40_960))
    config = data_dir() / "agents" / "codex" / "config.toml"
    state = data_dir() / "agents" / "claude-code" / ".claude.json"
    async with gateway() as url:
        for text in ('{"theme": "dark"}', '{"theme": "light"}'):
            state.parent.mkdir(parents=True, exist_ok=True)
            state.write_text(text)
            await asyncio.to_thread(program, "launch", "claude", "--url", url)
            assert state.read_text() == text
        await asyncio.to_thread(program, "launch", "codex", "--url", url)
        with config.open("a") as file:
            file.write('[projects."/x"]\ntrust_level = "trusted"\n')
        for model, kept in (("auto", True), ("coding", False)):
            await asyncio.to_thread(program, "launch", "codex", "--url", url, "--model", model)
            found = tomllib.loads(config.read_text())
            assert (found["model"], "projects" in found) == (model, kept)


def test_a_proxy_is_not_asked_for_the_gateway() -> None:
    made = set_up(agent_called("claude"), "http://127.0.0.1:4747", "local", "m", Offer({}, ""))
    env = environment(made, Path("/own"), {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.b"})
    assert (env["NO_PROXY"], env["no_proxy"]) == ("a.b,127.0.0.1", "127.0.0.1")
    assert "NO_PROXY" not in environment(made, Path("/own"), {})


async def test_signals_reach_the_agent(installed: Path, fakes: Fakes) -> None:
    configure(await fakes.start(window=40_960))
    script = Path(os.environ["PATH"].partition(":")[0]) / "codex"
    script.write_text("#!/bin/sh\ntrap 'echo ended; exit 5' TERM\ngrep SigIgn /proc/self/status\necho ready\n"
                      "while :; do sleep 0.05; done\n")  # fmt: skip
    async with gateway() as url:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from turnout.cli import main; main()", "launch", "codex", "--url", url),
            stdout=subprocess.PIPE,
            preexec_fn=usual_signals,
        )
        assert child.stdout is not None
        ignored = int((await child.stdout.readline()).split()[1], 16)
        assert not ignored & 1 << (signal.SIGPIPE - 1), "an agent's own pipes would never break"
        assert await child.stdout.readline() == b"ready\n"
        child.terminate()
        assert await child.stdout.readline() == b"ended\n"
        assert await child.wait() == 5


async def test_a_model_that_is_not_there_is_not_launched(installed: Path, fakes: Fakes) -> None:
    configure(await fakes.start(*(f"m{n}-7b" for n in range(12)), window=40_960))
    async with gateway() as url:
        told = await run_beside("env", "codex", "--url", url, "--model", "nope")
        refused = await run_beside("launch", "codex", "--url", url, "--model", "nope")
        assert (told.exit_code, refused.exit_code) == (0, 1)
        for said in (told.stderr, refused.stderr):
            assert f"the gateway at {url} " in said
            assert "no model 'nope'" in said
            listed = re.search(r"there are: (.*) and (\d+) more$", said, re.MULTILINE)
            assert listed is not None
            assert len(listed[1].split(", ")) == 8
            assert int(listed[2]) >= 4
        assert not installed.exists()
        unlisted = await asyncio.to_thread(program, "launch", "codex", "--url", url, "--model", "m1-7b@fake0")
        assert (unlisted.returncode, unlisted.stderr) == (7, "")


async def test_what_is_missing_is_said(installed: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(await fakes.start())
    stopped = await run_beside("launch", "codex", "--url", "http://127.0.0.1:9")
    assert stopped.exit_code == 3
    assert "no gateway answers at http://127.0.0.1:9" in stopped.stderr
    assert "turnout serve" in stopped.stderr
    assert "is a library" in (await run_beside("launch", "openai")).stderr
    key()
    async with gateway() as url:
        refused = await run_beside("launch", "codex", "--url", url)
        assert refused.exit_code == 1
        assert "set TURNOUT_KEY" in refused.stderr
    monkeypatch.setenv("PATH", "/nowhere")
    absent = await run_beside("launch", "codex")
    assert absent.exit_code == 2
    assert "there is no program codex on PATH" in absent.stderr
    assert "@openai/codex" in absent.stderr
    assert not installed.exists()
