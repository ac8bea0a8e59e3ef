"""Fake servers: one module per dialect, listed here."""

from __future__ import annotations

from types import ModuleType

from tests.fakes import dockermodelrunner, gpt4all, lemonade, llamaswap, mlx, sglang, tabbyapi, vllm

FAKES: dict[str, ModuleType] = {
    "dockermodelrunner": dockermodelrunner,
    "gpt4all": gpt4all,
    "lemonade": lemonade,
    "llamaswap": llamaswap,
    "mlx": mlx,
    "sglang": sglang,
    "tabbyapi": tabbyapi,
    "vllm": vllm,
}
