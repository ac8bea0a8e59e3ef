"""Configuration: typed sections, YAML and environment in, unknown keys refused with the nearest valid one.

The owner's keys (SPEC CFG-1) keep their names and units: times are in milliseconds, windows in tokens.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from turnout.types import Json, TaskCategory


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: immutable, and a key nobody knows is an error."""


class ServiceConfig(Section, frozen=True, kw_only=True):
    """A known kind of server. ``enabled: false`` means that it is never probed."""

    enabled: bool = True
    endpoint: str | None = None
    priority: int = 1
    timeout: int = 30_000
    max_retries: int = 3
    key: str | None = None
    first_byte_timeout: int = 300_000
    total_timeout: int = 1_800_000


class CustomEndpoint(Section, frozen=True, kw_only=True):
    """Any other server: name, address, how it speaks, and where."""

    name: str
    endpoint: str
    priority: int = 1
    timeout: int = 30_000
    max_retries: int = 3
    api_style: Literal["native", "openai", "custom"] = "openai"
    key: str | None = None
    chat_path: str | None = None
    models_path: str | None = None
    window: int | None = None
    first_byte_timeout: int = 300_000
    total_timeout: int = 1_800_000


class TaskRouting(Section, frozen=True, kw_only=True):
    """The owner's lists for one category (SPEC SEL-2)."""

    primary_models: tuple[str, ...] = ()
    fallback_models: tuple[str, ...] = ()
    min_context: int = 8192
    require_serena: bool = False


class RoutingConfig(Section, frozen=True, kw_only=True):
    """How a model is chosen when no ``task_routing`` is given."""

    policy: Literal["lists", "best"] = "best"
    models_file: str | None = None
    memory_limit_gb: float | None = None


class SerenaConfig(Section, frozen=True, kw_only=True):
    """Code context first. ``always_first`` asks before any model, ``on_demand`` only for code-related queries that
    name a symbol or file, ``off`` never."""

    enabled: bool = True
    priority: Literal["always_first", "on_demand", "off"] = "always_first"
    workspace: str | None = None


class ContextConfig(Section, frozen=True, kw_only=True):
    """When and how a conversation is compacted (SPEC CTX-3)."""

    compaction_threshold: float = 0.8
    compaction_target: float = 0.5
    preserve_recent_messages: int = 10
    preserve_recent_tool_calls: int = 5
    max_tool_output_tokens: int = 500


class SecurityConfig(Section, frozen=True, kw_only=True):
    """What may be dialled, and what is written down (SPEC SEC-1 to SEC-4)."""

    allow_external: bool = False
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "host.docker.internal")
    allowed_cidrs: tuple[str, ...] = ("192.168.0.0/16", "10.0.0.0/8", "172.16.0.0/12")
    audit_enabled: bool = True
    audit_log_path: str | None = None
    log_queries: bool = True
    log_responses: bool = False
    verify_checksums: bool = True


class DiscoveryConfig(Section, frozen=True, kw_only=True):
    """How servers are found. Nothing beyond loopback is dialled unless it is configured."""

    enabled: bool = True
    timeout: int = 800
    interval: int = 15_000


class EmbeddedConfig(Section, frozen=True, kw_only=True):
    """The bundled demonstration model. ``fallback: true`` is the agreement to use it when nothing else answers."""

    fallback: bool = False
    context: int = 4096
    threads: int = 1


class GatewayConfig(Section, frozen=True, kw_only=True):
    """``turnout serve``: loopback only until keys exist."""

    host: str = "127.0.0.1"
    port: int = 4747
    max_body_mb: int = 32


class RouterConfig(Section, frozen=True, kw_only=True):
    """The whole configuration. Build it with ``load_config`` or ``load_config_from_dict``."""

    version: str = "1.0"
    environment: Literal["air-gapped", "internal", "development"] = "air-gapped"
    services: dict[str, ServiceConfig] = {}
    custom_endpoints: tuple[CustomEndpoint, ...] = ()
    task_routing: dict[TaskCategory, TaskRouting] = {}
    routing: RoutingConfig = RoutingConfig()
    serena: SerenaConfig = SerenaConfig()
    context: ContextConfig = ContextConfig()
    security: SecurityConfig = SecurityConfig()
    discovery: DiscoveryConfig = DiscoveryConfig()
    embedded: EmbeddedConfig = EmbeddedConfig()
    gateway: GatewayConfig = GatewayConfig()


class LoadedConfig(msgspec.Struct, frozen=True):
    """A configuration and where it came from.

    Attributes:
        config: the values.
        file: the file it was read from, or None for defaults or a dict.
        warnings: things that are allowed and probably not meant, one line each.
    """

    config: RouterConfig
    file: Path | None = None
    warnings: tuple[str, ...] = ()


# The owner's defaults that depend on the category (data/spec-config.yaml, last lines).
TASK_DEFAULTS: dict[TaskCategory, dict[str, object]] = {
    TaskCategory.REASONING: {"min_context": 16_384},
    TaskCategory.ANALYSIS: {
        "min_context": 16_384,
        "require_serena": True,
        "fallback_models": ("codellama-34b-instruct", "qwen2.5-72b-instruct"),
    },
    TaskCategory.DOCUMENTATION: {"fallback_models": ("qwen2.5-32b-instruct", "mistral-nemo-12b")},
}


def data_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Where our own files are kept: ``TURNOUT_DATA_DIR``, else the platform's place for them."""
    if given := env.get("TURNOUT_DATA_DIR"):
        return Path(given)
    return _user_dir(env, "XDG_DATA_HOME", ".local/share", "LOCALAPPDATA")


def _user_dir(env: Mapping[str, str], xdg: str, fallback: str, windows: str) -> Path:
    home = Path(env.get("HOME") or Path.home())
    if sys.platform == "win32":
        return Path(env.get(windows) or home) / "turnout"
    if sys.platform == "darwin" and not env.get(xdg):
        return home / "Library/Application Support/turnout"
    return Path(env.get(xdg) or home / fallback) / "turnout"


def user_config_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The user's configuration directory."""
    return _user_dir(env, "XDG_CONFIG_HOME", ".config", "APPDATA")


def audit_path(loaded: LoadedConfig, env: Mapping[str, str] = os.environ) -> Path:
    """The audit log: relative to the configuration file, or in the data directory when no path is configured."""
    given = loaded.config.security.audit_log_path
    if not given:
        return data_dir(env) / "audit.log"
    return (loaded.file.parent if loaded.file else Path.cwd()) / Path(given).expanduser()


def redacted(config: RouterConfig) -> dict[str, Json]:
    """The configuration as plain values, keys replaced by asterisks."""
    data: dict[str, Json] = msgspec.to_builtins(config)
    for section in (*dict(data["services"]).values(), *list(data["custom_endpoints"])):  # type: ignore[arg-type]
        if isinstance(section, dict) and section.get("key"):
            section["key"] = "********"
    return data
