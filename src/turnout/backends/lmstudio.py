"""LM Studio (facts/services.md, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends.base import Identity, replied
from turnout.backends.openai_compatible import OpenAICompatible

if TYPE_CHECKING:
    from turnout.guard.network import Reply


class LmStudio(OpenAICompatible):
    """LM Studio."""

    kind = "lmstudio"
    title = "LM Studio"
    default_urls = ("http://127.0.0.1:1234",)
    probes = ("/lmstudio-greeting",)

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its greeting; it answers 200 to every path, so no status means anything."""
        if replied(replies, "/lmstudio-greeting").get("lmstudio") is not True:
            return None
        return Identity(self.kind, "GET /lmstudio-greeting")
