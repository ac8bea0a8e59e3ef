"""Fake servers: one module per dialect, listed here."""

from __future__ import annotations

from types import ModuleType

from tests.fakes import (
    dockermodelrunner,
    gpt4all,
    jan,
    koboldcpp,
    lemonade,
    llamacpp,
    llamacpp_router,
    llamaswap,
    lmstudio,
    localai,
    mlx,
    ollama,
    openai,
    openwebui,
    sglang,
    tabbyapi,
    textgen,
    vllm,
)

FAKES: dict[str, ModuleType] = {
    "dockermodelrunner": dockermodelrunner,
    "gpt4all": gpt4all,
    "jan": jan,
    "koboldcpp": koboldcpp,
    "lemonade": lemonade,
    "llamacpp": llamacpp,
    "llamacpp-router": llamacpp_router,
    "llamaswap": llamaswap,
    "lmstudio": lmstudio,
    "localai": localai,
    "mlx": mlx,
    "ollama": ollama,
    "openai": openai,
    "openwebui": openwebui,
    "sglang": sglang,
    "tabbyapi": tabbyapi,
    "textgen": textgen,
    "vllm": vllm,
}
