"""MLX-LM (facts/services.md, section 14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends.base import Identity, first_owner, replied
from turnout.backends.openai_compatible import OpenAICompatible

if TYPE_CHECKING:
    from turnout.guard.network import Reply


class Mlx(OpenAICompatible):
    """MLX-LM."""

    kind = "mlx"
    title = "MLX-LM"
    default_urls = ("http://127.0.0.1:8080",)
    probes = ("/v1/models", "/health")

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By Python's own HTTP server, a health check of one word, and rows that name no owner."""
        health, listed = replies.get("/health"), replies.get("/v1/models")
        if health is None or listed is None or not health.headers.get("server", "").startswith("BaseHTTP/"):
            return None
        if replied(replies, "/health") != {"status": "ok"} or first_owner(replies):
            return None
        return Identity(self.kind, "GET /health, and Python's own HTTP server")
