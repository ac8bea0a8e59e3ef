"""The kinds of server Turnout knows, in the order in which they are recognised."""

from __future__ import annotations

from turnout.backends.base import Backend
from turnout.backends.llamacpp import LlamaCpp
from turnout.backends.ollama import Ollama
from turnout.backends.openai_compatible import OpenAICompatible

BACKENDS: tuple[Backend, ...] = (
    LlamaCpp(),
    Ollama(),
    OpenAICompatible(),
)
BY_KIND: dict[str, Backend] = {backend.kind: backend for backend in BACKENDS}

# Kinds that have no file of their own yet are looked for at their default address and spoken to as what they are
# recognised to be, at least any OpenAI-compatible server (facts/services.md, section 12).
DEFAULT_URLS: dict[str, str] = {backend.kind: backend.default_url for backend in BACKENDS if backend.default_url} | {
    "lmstudio": "http://127.0.0.1:1234",
    "jan": "http://127.0.0.1:1337",
    "openwebui": "http://127.0.0.1:3000",
    "localai": "http://127.0.0.1:8080",
    "vllm": "http://127.0.0.1:8000",
    "koboldcpp": "http://127.0.0.1:5001",
    "gpt4all": "http://127.0.0.1:4891",
    "textgen": "http://127.0.0.1:5000",
}
