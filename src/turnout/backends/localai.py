"""LocalAI (facts/services.md, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends.base import Identity, replied, text_of
from turnout.backends.openai_compatible import OpenAICompatible

if TYPE_CHECKING:
    from turnout.guard.network import Reply


class LocalAI(OpenAICompatible):
    """LocalAI."""

    kind = "localai"
    title = "LocalAI"
    default_urls = ("http://127.0.0.1:8080",)
    probes = ("/.well-known/localai.json",)

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its description for agents."""
        about = replied(replies, "/.well-known/localai.json")
        if "version" not in about or "endpoints" not in about:
            return None
        return Identity(self.kind, "GET /.well-known/localai.json", text_of(about.get("version")))
