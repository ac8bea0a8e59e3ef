"""Fixtures for every test."""

from __future__ import annotations

from tests.servers import llama, llama_factory

__all__ = ["llama", "llama_factory"]
