"""KoboldCpp over its OpenAI-compatible routes (facts/services.md, section 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends.base import Identity, dict_of, replied, text_of
from turnout.backends.openai_compatible import OpenAICompatible

if TYPE_CHECKING:
    from turnout.guard.network import Reply


class KoboldCpp(OpenAICompatible):
    """KoboldCpp."""

    kind = "koboldcpp"
    title = "KoboldCpp"
    default_urls = ("http://127.0.0.1:5001",)
    probes = ("/.well-known/serviceinfo",)

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its service information: others answer its own version route with its name."""
        software = dict_of(replied(replies, "/.well-known/serviceinfo").get("software"))
        if software.get("name") != "KoboldCpp":
            return None
        return Identity(self.kind, "GET /.well-known/serviceinfo names KoboldCpp", text_of(software.get("version")))
