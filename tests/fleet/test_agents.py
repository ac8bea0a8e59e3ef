from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from turnout.config import AgentConfig
from turnout.fleet.agents import AgentInfo, detect_coding_agent, get_agent_specific_config


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"AI_AGENT": "claude-code_2-1-330_agent", "CLAUDECODE": "1"}, AgentInfo("claude-code", "cli", "2.1.330")),
        ({"AI_AGENT": "claude-code_2-1-330_harness"}, AgentInfo("claude-code", "cli", "2.1.330")),
        ({"AI_AGENT": "thing@1.2.3"}, AgentInfo("thing", "cli", "1.2.3")),
        ({"AI_AGENT": "crush", "CRUSH": "1", "AGENT": "crush"}, AgentInfo("crush", "cli")),
        ({"CODEX_SESSION_ID": "0199", "CODEX_THREAD_ID": "0199"}, AgentInfo("codex", "cli")),
        ({"OPENCODE": "1", "OPENCODE_PID": "7", "AGENT": "1"}, AgentInfo("opencode", "cli")),
        ({"QWEN_CODE": "1"}, AgentInfo("qwen-code", "cli")),
        ({"GEMINI_CLI": "1"}, AgentInfo("gemini-cli", "cli")),
        ({"CLINE_ACTIVE": "true"}, AgentInfo("cline", "ide")),
        ({"PI_CODING_AGENT": "true"}, AgentInfo("pi", "cli")),
        ({"GOOSE_TERMINAL": "1", "AGENT": "goose"}, AgentInfo("goose", "cli")),
        ({"ROO_ACTIVE": "true"}, AgentInfo("roo-code", "ide")),
        ({"CURSOR_AGENT": "1"}, AgentInfo("cursor", "ide")),
        ({"AGENT": "amp"}, AgentInfo("amp", "cli")),
        ({"AGENT": "1"}, AgentInfo()),
        ({"MCP_CLIENT": "thing"}, AgentInfo("thing", "mcp")),
        # The owner's markers.
        ({"QWEN_CLI_VERSION": "0.4.1"}, AgentInfo("qwen-cli", "cli", "0.4.1")),
        ({"AIDER_SESSION": "1"}, AgentInfo("aider", "cli")),
        ({"CONTINUE_SESSION": "1"}, AgentInfo("continue", "ide")),
        ({"OPENWEBUI_SESSION": "1"}, AgentInfo("openwebui", "gui")),
        ({"JAN_SESSION": "1"}, AgentInfo("jan", "gui")),
        ({"LLM_AGENT": "1"}, AgentInfo("generic", "unknown")),
        # People have these too.
        ({"CURSOR_TRACE_ID": "x", "GOOSE_PROVIDER": "x", "AIDER_API_KEY": "x", "OPENCODE_CLIENT": "x"}, AgentInfo()),
    ],
)
def test_markers(env: dict[str, str], expected: AgentInfo) -> None:
    assert detect_coding_agent(env, []) == expected


@pytest.mark.parametrize(
    ("processes", "name"),
    [
        (["bash", "/usr/local/bin/aider", "bash"], "aider"),
        (["zsh", "cn", "zsh"], "continue"),
        (["bash", "codex", "claude"], "codex"),
        (["bash", "/usr/lib/codex/bin/codex.js"], "codex"),
        (["bash", "systemd"], ""),
        (["clinepad", "continued"], ""),
    ],
)
def test_the_process_tree(processes: list[str], name: str) -> None:
    assert detect_coding_agent({}, processes) == (AgentInfo(name, "detected") if name else AgentInfo())


def test_of_nested_agents_the_nearest_is_the_caller() -> None:
    env = {"AI_AGENT": "claude-code_2-1-330_agent", "CLAUDECODE": "1", "CODEX_SESSION_ID": "x"}
    assert detect_coding_agent(env, ["bash", "codex", "bash", "claude"]).name == "codex"
    assert detect_coding_agent(env, ["bash", "claude", "bash", "codex"]).name == "claude-code"
    assert detect_coding_agent(env, ["bash"]).name == "claude-code"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the process tree is read from /proc")
def test_a_real_ancestor_is_found_by_its_script(tmp_path: Path) -> None:
    asked = "from turnout.fleet.agents import detect_coding_agent; print(detect_coding_agent({}))"
    script = tmp_path / "aider"
    script.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {asked!r}], check=True)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(AgentInfo("aider", "detected"))


def test_the_owners_overrides() -> None:
    assert get_agent_specific_config("qwen-cli") == AgentConfig(default_model_preference="qwen", context_format="qwen")
    assert get_agent_specific_config("qwen-code") == get_agent_specific_config("qwen-cli")
    assert get_agent_specific_config("aider") == AgentConfig(default_model_preference="gpt")
    assert get_agent_specific_config("cursor") == AgentConfig(
        default_model_preference="claude", context_format="anthropic"
    )
    assert get_agent_specific_config("continue") == AgentConfig()
    assert get_agent_specific_config("nobody") == AgentConfig()
