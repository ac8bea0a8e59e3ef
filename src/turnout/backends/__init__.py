"""The kinds of server Turnout knows, in the order in which they are recognised (facts/services.md, section 11)."""

from __future__ import annotations

from turnout.backends.base import Backend
from turnout.backends.dockermodelrunner import DockerModelRunner
from turnout.backends.gpt4all import Gpt4All
from turnout.backends.jan import Jan
from turnout.backends.koboldcpp import KoboldCpp
from turnout.backends.lemonade import Lemonade
from turnout.backends.llamacpp import LlamaCpp
from turnout.backends.llamaswap import LlamaSwap
from turnout.backends.lmstudio import LmStudio
from turnout.backends.localai import LocalAI
from turnout.backends.mlx import Mlx
from turnout.backends.ollama import Ollama
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.backends.openwebui import OpenWebUI
from turnout.backends.sglang import SgLang
from turnout.backends.tabbyapi import TabbyApi
from turnout.backends.textgen import TextGen
from turnout.backends.vllm import Vllm

BACKENDS: tuple[Backend, ...] = (
    KoboldCpp(),
    TabbyApi(),
    LmStudio(),
    LocalAI(),
    OpenWebUI(),
    LlamaCpp(),
    Vllm(),
    SgLang(),
    Lemonade(),
    LlamaSwap(),
    DockerModelRunner(),
    Gpt4All(),
    Ollama(),
    TextGen(),
    Jan(),
    Mlx(),
    OpenAICompatible(),
)
BY_KIND: dict[str, Backend] = {backend.kind: backend for backend in BACKENDS}
# The address that stands in the documents for each kind.
DEFAULT_URLS: dict[str, str] = {backend.kind: backend.default_urls[0] for backend in BACKENDS if backend.default_urls}
