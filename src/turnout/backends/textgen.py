"""text-generation-webui (facts/services.md, section 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends.base import Identity, replied
from turnout.backends.openai_compatible import OpenAICompatible

if TYPE_CHECKING:
    from turnout.guard.network import Reply


class TextGen(OpenAICompatible):
    """text-generation-webui."""

    kind = "textgen"
    title = "text-generation-webui"
    default_urls = ("http://127.0.0.1:5000",)
    probes = ("/v1/internal/model/info",)

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its internal model information."""
        about = replied(replies, "/v1/internal/model/info")
        if "model_name" not in about or "lora_names" not in about:
            return None
        return Identity(self.kind, "GET /v1/internal/model/info")
