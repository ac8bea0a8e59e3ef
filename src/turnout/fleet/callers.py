"""Which agent sent a request: read from the request alone (SPEC AGENT-1; facts/agents.md section 6). Pure.

A gateway must not read its own environment for this: its clients did not start it. Names and types come from the tables
here, versions are checked, so nothing that a client wrote gets into a log as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from turnout.fleet.agents import AgentInfo, AgentType

_HEAD = 96  # characters of a prompt that are looked at; the longest beginning below has fewer
_MOST = 300  # bytes of a header that are looked at
_CACHED = 512  # different clients

# The product of a User-Agent, in small letters.
_PRODUCTS: dict[str, tuple[str, AgentType]] = {
    "claude-cli": ("claude-code", "cli"),
    "claude-code": ("claude-code", "cli"),
    "codex_exec": ("codex", "cli"),
    "codex_cli_rs": ("codex", "cli"),
    "codex-tui": ("codex", "cli"),
    "opencode": ("opencode", "cli"),
    "qwencode": ("qwen-code", "cli"),
    "geminicli": ("gemini-cli", "cli"),
    "geminicli-tui": ("gemini-cli", "cli"),
    "pi": ("pi", "cli"),
    "goose": ("goose", "cli"),
    "charm-crush": ("crush", "cli"),
    "factory-cli": ("droid", "cli"),
    "mistral-vibe": ("mistral-vibe", "cli"),
    "kimi-code-cli": ("kimi-code", "cli"),
    "roocode": ("roo-code", "ide"),
    "roo-code": ("roo-code", "ide"),
    "kilo-code": ("kilo-code", "ide"),
    "cursor": ("cursor", "ide"),
    "zed": ("zed", "ide"),
}
# What many agents are made with says less than any of their own words.
_LIBRARIES = {
    "openai/python": "openai-python",
    "asyncopenai/python": "openai-python",
    "openai/js": "openai-js",
    "anthropic/python": "anthropic-python",
    "asyncanthropic/python": "anthropic-python",
    "anthropic/js": "anthropic-js",
    "ollama-python": "ollama-python",
    "ollama-js": "ollama-js",
    "langchain-anthropic": "langchain",
    "litellm": "litellm",
}
_TITLES: dict[str, tuple[str, AgentType]] = {"cline": ("cline", "cli"), "roo code": ("roo-code", "ide")}
# Headers that one agent alone sends.
_OWN: dict[bytes, tuple[str, AgentType]] = {
    b"x-claude-code-session-id": ("claude-code", "cli"),
    b"x-codex-window-id": ("codex", "cli"),
    b"x-openwebui-user-id": ("openwebui", "gui"),
    b"x-openwebui-chat-id": ("openwebui", "gui"),
    b"x-interaction-type": ("copilot", "cli"),
}
# How system prompts begin; of aider, Cline and Continue nothing else tells.
_PROMPTS: dict[str, tuple[str, AgentType]] = {
    "Act as an expert software developer": ("aider", "cli"),
    "Act as an expert code analyst": ("aider", "cli"),
    "Act as an expert architect engineer": ("aider", "cli"),
    "You are an expert software engineer that generates concise, one-line Git commit": ("aider", "cli"),
    "You are an expert on the AI coding tool called Aider": ("aider", "cli"),
    "*Briefly* summarize this partial conversation about programming": ("aider", "cli"),
    "You are Cline": ("cline", "cli"),
    "You are an agent in the Continue CLI": ("continue", "cli"),
    "You are an expert coding assistant operating inside pi": ("pi", "cli"),
    "You are a coding agent running in the Codex CLI": ("codex", "cli"),
    "You are opencode": ("opencode", "cli"),
    "You are Qwen Code": ("qwen-code", "cli"),
    "You are Claude Code": ("claude-code", "cli"),
    "You are a Claude agent": ("claude-code", "cli"),
    "You are Gemini CLI": ("gemini-cli", "cli"),
}
_BEGINNINGS = tuple(_PROMPTS)
# The name in an MCP client's ``initialize``; Qwen Code and Gemini CLI may add the server's.
_MCP_CLIENTS = {
    "claude-code": "claude-code",
    "codex-mcp-client": "codex",
    "opencode": "opencode",
    "qwen-cli-mcp-client": "qwen-code",
    "gemini-cli-mcp-client": "gemini-cli",
    "@cline/core": "cline",
    "continue-cli-client": "continue",
    "goose": "goose",
    "cursor-vscode": "cursor",
    "zed": "zed",
}
_READ = {b"originator": 0, b"user-agent": 1, b"x-title": 2, b"x-app": 3, b"anthropic-beta": 4}
_VERSION = re.compile(r"\d[0-9A-Za-z.+-]{0,31}")
_NAME = re.compile(r"[A-Za-z0-9@][\w@./ -]{0,63}")
NOBODY = AgentInfo()


def calling_agent(headers: Iterable[tuple[bytes, bytes]], prompt: str = "") -> AgentInfo:
    """Who sent a request; a library's name and ``unknown`` when only that is told.

    Order: originator, User-Agent, X-Title, x-app and headers of one agent alone, beta header, system prompt, and last
    the library that the client is made with.

    Args:
        headers: of the request, names in small letters, as ASGI has them.
        prompt: its first message; only the beginning is looked at.
    """
    said = [b"", b"", b"", b"", b""]
    own = b""
    for name, value in headers:
        place = _READ.get(name)
        if place is not None:
            said[place] = said[place] or value
        elif name in _OWN:
            own = name
    told = _by_headers(said[0][:_MOST], said[1][:_MOST], said[2][:_MOST], said[3][:_MOST], said[4][:_MOST], own)
    if told.type != "unknown" or not prompt:
        return told
    return _by_prompt(prompt) or told


def mcp_client(name: str, version: str = "") -> AgentInfo:
    """Who an MCP client is, by ``initialize.clientInfo``: an agent's usual name where it is known, else its own."""
    lowered = name[:_MOST].lower()
    known = _MCP_CLIENTS.get(lowered) or next(
        (agent for prefix, agent in _MCP_CLIENTS.items() if lowered.startswith(f"{prefix}-")), ""
    )
    if not known and not _NAME.fullmatch(name):
        return NOBODY
    return AgentInfo(known or name, "mcp", _version(version))


@lru_cache(maxsize=_CACHED)
def _by_headers(originator: bytes, user_agent: bytes, title: bytes, app: bytes, beta: bytes, own: bytes) -> AgentInfo:
    products = [p.partition("/") for p in user_agent.decode("latin-1").lower().split()]
    found = _by_originator(originator.decode("latin-1").lower())
    found = found or next((_PRODUCTS[name] for name, slash, _ in products if slash and name in _PRODUCTS), None)
    found = found or _TITLES.get(title.decode("latin-1").strip().lower())
    if app == b"cli":
        found = found or ("claude-code", "cli")
    found = found or _OWN.get(own)
    if b"claude-code-" in beta:
        found = found or ("claude-code", "cli")
    if found is None:
        return _by_library(user_agent)
    version = next((v for name, _, v in products if _PRODUCTS.get(name) == found), "")
    return AgentInfo(*found, _version(version.partition("/")[0]))  # Gemini CLI has its model after it


def _by_originator(originator: str) -> tuple[str, AgentType] | None:
    if originator.startswith("codex"):
        return "codex", "ide" if "vscode" in originator else "cli"
    return _PRODUCTS.get(originator)


def _by_library(user_agent: bytes) -> AgentInfo:
    """OpenAI's and Anthropic's are written ``OpenAI/Python 2.20.0``, others ``ollama-python/0.6.3 (...)``."""
    first, _, rest = user_agent.decode("latin-1").partition(" ")
    if name := _LIBRARIES.get(first.lower()):
        return AgentInfo(name, "unknown", _version(rest.partition(" ")[0]))
    product, _, version = first.partition("/")
    name = _LIBRARIES.get(product.lower(), "")
    return AgentInfo(name, "unknown", _version(version)) if name else NOBODY


def _by_prompt(prompt: str) -> AgentInfo | None:
    head = prompt[:_HEAD].lstrip()
    if not head.startswith(_BEGINNINGS):
        return None
    return AgentInfo(*next(agent for beginning, agent in _PROMPTS.items() if head.startswith(beginning)))


def _version(text: str) -> str:
    return text if _VERSION.fullmatch(text) else ""
