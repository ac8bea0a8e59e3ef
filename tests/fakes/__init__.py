"""Fake servers: one module per dialect, listed here."""

from __future__ import annotations

from types import ModuleType

from tests.fakes import vllm

FAKES: dict[str, ModuleType] = {
    "vllm": vllm,
}
