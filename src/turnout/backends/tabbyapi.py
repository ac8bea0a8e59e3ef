"""TabbyAPI (facts/services.md, section 14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends.base import Identity, dict_of, first_owner, replied, text_of
from turnout.backends.openai_compatible import OpenAICompatible

if TYPE_CHECKING:
    from turnout.guard.network import Reply


class TabbyApi(OpenAICompatible):
    """TabbyAPI."""

    kind = "tabbyapi"
    title = "TabbyAPI"
    default_urls = ("http://127.0.0.1:5000",)
    probes = ("/.well-known/serviceinfo", "/v1/models")

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its service information, else by the owner named in its model list."""
        software = dict_of(replied(replies, "/.well-known/serviceinfo").get("software"))
        if software.get("name") == "TabbyAPI":
            return Identity(self.kind, "GET /.well-known/serviceinfo names TabbyAPI", text_of(software.get("version")))
        if first_owner(replies) != "tabbyAPI":
            return None
        return Identity(self.kind, "GET /v1/models is owned by tabbyAPI")
