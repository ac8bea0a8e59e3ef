"""SGLang (facts/services.md, section 14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends.base import Identity, first_owner
from turnout.backends.openai_compatible import OpenAICompatible

if TYPE_CHECKING:
    from turnout.guard.network import Reply


class SgLang(OpenAICompatible):
    """SGLang."""

    kind = "sglang"
    title = "SGLang"
    default_urls = ("http://127.0.0.1:30000",)
    probes = ("/v1/models", "/")

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By the owner named in its model list."""
        if first_owner(replies) != "sglang":
            return None
        return Identity(self.kind, "GET /v1/models is owned by sglang")
