"""Open WebUI, a front end to other servers (facts/services.md, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends.base import Identity, replied, text_of
from turnout.backends.openai_compatible import OpenAICompatible

if TYPE_CHECKING:
    from turnout.guard.network import Reply


class OpenWebUI(OpenAICompatible):
    """Open WebUI."""

    kind = "openwebui"
    title = "Open WebUI"
    default_urls = ("http://127.0.0.1:3000", "http://127.0.0.1:8080")
    probes = ("/api/config",)
    routed = False

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its public configuration; its name can be changed, the shape cannot."""
        about = replied(replies, "/api/config")
        if about.get("status") is not True or not about.get("version") or "features" not in about:
            return None
        return Identity(self.kind, "GET /api/config", text_of(about.get("version")))
