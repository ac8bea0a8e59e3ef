"""Who sent a request, from what real agents sent (facts/agents.md): their headers and how their prompts begin."""

from __future__ import annotations

import pytest

from turnout.config_agents import AGENTS
from turnout.fleet import agents, callers
from turnout.fleet.agents import AgentInfo
from turnout.fleet.callers import _BEGINNINGS, _HEAD, NOBODY, calling_agent, mcp_client

Headers = list[tuple[bytes, bytes]]

# As recorded: what tells of each first request, and how its system prompt begins.
OPENAI_PYTHON = {"user-agent": "OpenAI/Python 2.20.0", "x-stainless-lang": "python", "x-stainless-raw-response": "true"}
CLAUDE = {
    "user-agent": "claude-cli/2.1.330 (external, sdk-cli)",
    "x-claude-code-session-id": "019d63bf-7254-4b6d-9199-ebfc07d607b8",
    "x-stainless-lang": "js",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,effort-2025-11-24",
    "x-app": "cli",
}
CODEX = {
    "x-codex-window-id": "01a20553-dd69-7922-87da-6c6848fa34a7:0",
    "originator": "codex_exec",
    "user-agent": "codex_exec/0.169.0 (Debian 12.0.0; x86_64) xterm (codex_exec; 0.169.0)",
}
OPENCODE = {"user-agent": "opencode/1.18.33 ai-sdk/provider-utils/4.0.23 runtime/bun/1.3.14", "x-session-id": "ses_d"}
CLINE = {"user-agent": "ai-sdk/openai-compatible/3.0.37 ai-sdk/provider-utils/5.0.30 runtime/bun/1.3.13"}


def headers(given: dict[str, str]) -> Headers:
    return [(b"host", b"127.0.0.1:4747"), *((k.encode(), v.encode("latin-1")) for k, v in given.items())]


RECORDED = [
    (OPENAI_PYTHON, "Act as an expert software developer.\nTake requests for changes", AgentInfo("aider", "cli")),
    (CLAUDE, "You are a Claude agent, built on Anthropic's", AgentInfo("claude-code", "cli", "2.1.330")),
    (CODEX, "You are a coding agent running in the Codex CLI", AgentInfo("codex", "cli", "0.169.0")),
    (OPENCODE, "You are opencode, an interactive CLI tool", AgentInfo("opencode", "cli", "1.18.33")),
    (
        {"user-agent": "QwenCode/0.24.4 (linux; x64)", "x-stainless-lang": "js"},
        "You are Qwen Code, a non-interactive CLI agent",
        AgentInfo("qwen-code", "cli", "0.24.4"),
    ),
    (
        {"user-agent": "GeminiCLI-tui/0.61.0/stub-model (linux; x64; terminal)"},
        "",
        AgentInfo("gemini-cli", "cli", "0.61.0"),
    ),
    (CLINE, "You are Cline, an AI coding agent. Your primary goal", AgentInfo("cline", "cli")),
    ({"user-agent": "ls/JS 5.23.2"}, "You are an agent in the Continue CLI. Given", AgentInfo("continue", "cli")),
    (
        {"user-agent": "OpenAI/JS 6.26.0"},
        "You are an expert coding assistant operating inside pi, a coding agent harness.",
        AgentInfo("pi", "cli"),
    ),
]

# From packages and sources, not recorded.
SOURCES = [
    ({"user-agent": "claude-code/2.1.330"}, AgentInfo("claude-code", "cli", "2.1.330")),
    ({"user-agent": "codex-tui/0.169.0", "originator": "codex-tui"}, AgentInfo("codex", "cli", "0.169.0")),
    ({"originator": "codex_vscode"}, AgentInfo("codex", "ide")),
    ({"originator": "roo-code", "user-agent": "roo-code/3.1.0"}, AgentInfo("roo-code", "ide", "3.1.0")),
    ({"user-agent": "Charm-Crush/0.96.1 (https://charm.land/crush)"}, AgentInfo("crush", "cli", "0.96.1")),
    ({"user-agent": "RooCode/3.1.0", "x-title": "Roo Code"}, AgentInfo("roo-code", "ide", "3.1.0")),
    ({"user-agent": "Mozilla/5.0 (X11) Cursor/0.45.1 Chrome/128"}, AgentInfo("cursor", "ide", "0.45.1")),
    ({"user-agent": "Zed/0.190.1 (linux; x86_64)"}, AgentInfo("zed", "ide", "0.190.1")),
    ({"user-agent": "goose/1.2"}, AgentInfo("goose", "cli", "1.2")),
    ({"user-agent": "pi/0.80.0 (linux)"}, AgentInfo("pi", "cli", "0.80.0")),
    ({"user-agent": "factory-cli/1.0"}, AgentInfo("droid", "cli", "1.0")),
    ({"user-agent": "OpenAI/JS 5.0.0", "x-title": "Cline"}, AgentInfo("cline", "cli")),
    ({"user-agent": "python/3 aiohttp", "x-openwebui-user-id": "7"}, AgentInfo("openwebui", "gui")),
    ({"x-interaction-type": "conversation"}, AgentInfo("copilot", "cli")),
    ({"user-agent": "Anthropic/JS 0.60", "anthropic-beta": "claude-code-20250219"}, AgentInfo("claude-code", "cli")),
    ({"user-agent": "Anthropic/JS 0.60", "x-app": "cli"}, AgentInfo("claude-code", "cli")),
]

LIBRARIES = [
    ("OpenAI/Python 3.54.0", AgentInfo("openai-python", "unknown", "3.54.0")),
    ("AsyncOpenAI/Python 3.54.0", AgentInfo("openai-python", "unknown", "3.54.0")),
    ("Anthropic/Python 2.12.0", AgentInfo("anthropic-python", "unknown", "2.12.0")),
    ("ollama-python/0.6.3 (x86_64 linux) Python/3.11.7", AgentInfo("ollama-python", "unknown", "0.6.3")),
    ("litellm/1.81.10", AgentInfo("litellm", "unknown", "1.81.10")),
    ("langchain-anthropic/1.0", AgentInfo("langchain", "unknown", "1.0")),
    ("curl/8.5.0", NOBODY),
    ("cursory/1.0", NOBODY),
    ("", NOBODY),
]


@pytest.mark.parametrize(("sent", "prompt", "expected"), RECORDED, ids=lambda v: getattr(v, "name", None))
def test_a_recorded_agent_is_known(sent: dict[str, str], prompt: str, expected: AgentInfo) -> None:
    assert calling_agent(headers(sent), prompt) == expected


@pytest.mark.parametrize(("sent", "expected"), SOURCES, ids=lambda v: getattr(v, "name", None))
def test_an_agent_is_known_by_its_headers(sent: dict[str, str], expected: AgentInfo) -> None:
    assert calling_agent(headers(sent), "a prompt of somebody's own") == expected


@pytest.mark.parametrize(("user_agent", "expected"), LIBRARIES)
def test_a_library_is_told_only_when_nothing_else_is(user_agent: str, expected: AgentInfo) -> None:
    sent = headers({"user-agent": user_agent})
    assert calling_agent(sent, "You are a helpful assistant") == expected
    assert calling_agent(sent, "You are Cline, an AI").name == "cline"


@pytest.mark.parametrize(
    "prompt",
    [
        "Act as an expert code analyst.\nAnswer questions",
        "Act as an expert architect engineer and provide",
        "You are an expert software engineer that generates concise, one-line Git commit messages based on",
        "\n  Act as an expert software developer who edits source code.",
    ],
)
def test_aiders_other_prompts(prompt: str) -> None:
    assert calling_agent(headers(OPENAI_PYTHON), prompt).name == "aider"


def test_the_order_of_what_is_said() -> None:
    both = CODEX | {"user-agent": "opencode/1.0", "x-title": "Cline", "x-app": "cli"}
    assert calling_agent(headers(both)) == AgentInfo("codex", "cli")
    del both["originator"]
    assert calling_agent(headers(both)).name == "opencode"
    both["user-agent"] = "OpenAI/JS 5"
    assert calling_agent(headers(both)).name == "cline"
    del both["x-title"]
    assert calling_agent(headers(both), "You are Qwen Code").name == "claude-code"


def test_only_a_beginning_names_an_agent() -> None:
    assert calling_agent([], "Please explain this prompt: You are Cline, an AI") == NOBODY
    assert calling_agent([], " " * 200 + "You are Cline") == NOBODY
    assert max(map(len, _BEGINNINGS)) < _HEAD


def test_nothing_that_a_client_writes_is_told_as_it_is() -> None:
    forged = {"user-agent": "opencode/1.0\x1b[31m\u00e9", "originator": "evil\r\nx", "x-title": "<b>"}
    assert calling_agent(headers(forged)) == AgentInfo("opencode", "cli")
    assert calling_agent(headers({"user-agent": "opencode/" + "9" * 500})) == AgentInfo("opencode", "cli")
    assert calling_agent([(b"user-agent", b"\xff\xfe/1")]) == NOBODY


def test_no_more_than_the_head_of_a_prompt_is_read() -> None:
    read: list[slice] = []

    class Long(str):
        __slots__ = ()

        def __getitem__(self, index: slice) -> str:  # type: ignore[override]
            read.append(index)
            return str.__getitem__(self, index)

        def startswith(self, *_: object) -> bool:
            raise AssertionError("the whole prompt was looked at")

        lstrip = strip = lower = startswith  # type: ignore[assignment]

    calling_agent([], Long("x" * 60_000))
    assert [s.stop for s in read] == [_HEAD]


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("claude-code", "2.1.330", AgentInfo("claude-code", "mcp", "2.1.330")),
        ("codex-mcp-client", "0.169.0", AgentInfo("codex", "mcp", "0.169.0")),
        ("opencode", "", AgentInfo("opencode", "mcp")),
        ("qwen-cli-mcp-client-turnout", "0.0.1", AgentInfo("qwen-code", "mcp", "0.0.1")),
        ("gemini-cli-mcp-client", "", AgentInfo("gemini-cli", "mcp")),
        ("@cline/core", "", AgentInfo("cline", "mcp")),
        ("continue-cli-client", "", AgentInfo("continue", "mcp")),
        ("my-client", "0.1", AgentInfo("my-client", "mcp", "0.1")),
        ("a\nb", "1\n2", NOBODY),
        ("", "", NOBODY),
        ("x" * 500, "", NOBODY),
    ],
)
def test_mcp_clients(name: str, version: str, expected: AgentInfo) -> None:
    assert mcp_client(name, version) == expected


def test_the_gateways_own_environment_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAUDECODE", "1")
    monkeypatch.setenv("AI_AGENT", "claude-code_2-1-330_agent")
    assert calling_agent(headers({"user-agent": "curl/8"}), "hello") == NOBODY


def test_every_agent_that_is_known_can_be_configured() -> None:
    tables = (callers._PRODUCTS, callers._TITLES, callers._OWN, callers._PROMPTS)
    told = {name for table in tables for name, _ in table.values()} | set(callers._MCP_CLIENTS.values())
    told |= {name for _, name, _ in agents._MARKERS} | set(agents._PROCESSES.values())
    assert told - {"agno", "generic"} == set(AGENTS)
