"""Jan (facts/services.md, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends.base import Identity, dict_of, replied, rows, text_of
from turnout.backends.openai_compatible import OpenAICompatible

if TYPE_CHECKING:
    from turnout.guard.network import Reply


class Jan(OpenAICompatible):
    """Jan."""

    kind = "jan"
    title = "Jan"
    default_urls = ("http://127.0.0.1:1337",)
    probes = ("/openapi.json", "/v1/models")

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its API description and rows that were all created at second 1."""
        title = text_of(dict_of(replied(replies, "/openapi.json").get("info")).get("title"))
        listing = rows(replied(replies, "/v1/models").get("data"))
        if "Jan" not in title or any(row.get("created") != 1 for row in listing):
            return None
        return Identity(self.kind, "GET /openapi.json names Jan")
