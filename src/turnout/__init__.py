"""Turnout: a local LLM router for air-gapped networks.

    import asyncio, turnout
    print(asyncio.run(turnout.quick_route("Write a Python function that adds two numbers")))

Names are loaded when they are first used, so that ``import turnout`` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the module of that name takes half of the time until the command can handle a Ctrl-C
if TYPE_CHECKING:
    from turnout.api import LocalLLMRouter, build_system_prompt, discover_services, load_config_from_dict, quick_route
    from turnout.code.enrich import build_enriched_query
    from turnout.config import RouterConfig
    from turnout.context.tokens import get_token_counter
    from turnout.errors import (
        AuditError,
        ConfigError,
        EditError,
        GuardError,
        NoServiceError,
        NoSuitableModelError,
        QueryFailedError,
        TurnoutError,
        UsageError,
    )
    from turnout.fleet.agents import detect_coding_agent, get_agent_specific_config
    from turnout.fleet.host import detect_os
    from turnout.routing.classifier import ClassificationResult
    from turnout.routing.classify import classify_task
    from turnout.routing.select import select_model
    from turnout.types import ExecutionResult, FallbackLevel, TaskCategory

__version__ = "0.1.0"

_HOME = {
    "AuditError": "errors",
    "ClassificationResult": "routing.classifier",
    "ConfigError": "errors",
    "EditError": "errors",
    "ExecutionResult": "types",
    "FallbackLevel": "types",
    "GuardError": "errors",
    "LocalLLMRouter": "api",
    "NoServiceError": "errors",
    "NoSuitableModelError": "errors",
    "QueryFailedError": "errors",
    "RouterConfig": "config",
    "TaskCategory": "types",
    "TurnoutError": "errors",
    "UsageError": "errors",
    "build_enriched_query": "code.enrich",
    "build_system_prompt": "api",
    "classify_task": "routing.classify",
    "detect_coding_agent": "fleet.agents",
    "detect_os": "fleet.host",
    "discover_services": "api",
    "get_agent_specific_config": "fleet.agents",
    "get_token_counter": "context.tokens",
    "load_config_from_dict": "api",
    "quick_route": "api",
    "select_model": "routing.select",
}

__all__ = [
    "AuditError",
    "ClassificationResult",
    "ConfigError",
    "EditError",
    "ExecutionResult",
    "FallbackLevel",
    "GuardError",
    "LocalLLMRouter",
    "NoServiceError",
    "NoSuitableModelError",
    "QueryFailedError",
    "RouterConfig",
    "TaskCategory",
    "TurnoutError",
    "UsageError",
    "build_enriched_query",
    "build_system_prompt",
    "classify_task",
    "detect_coding_agent",
    "detect_os",
    "discover_services",
    "get_agent_specific_config",
    "get_token_counter",
    "load_config_from_dict",
    "quick_route",
    "select_model",
]


def __getattr__(name: str) -> object:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'turnout' has no attribute {name!r}")
    return getattr(importlib.import_module(f"turnout.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
