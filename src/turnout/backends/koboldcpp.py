"""KoboldCpp over its OpenAI-compatible routes (facts/services.md, section 8).

It opens its port when the model is loaded, serves one request at a time, and cuts the start of a prompt that is too
long without a word. Much of what it answers belongs to others' protocols and is made up: digests, sizes, slots.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, dict_of, float_of, int_of, json_object, replied, rows, text_of
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.backends.shelf import Shelf
from turnout.errors import BackendError, EndpointBusyError, PhaseTimeoutError, RequestRefusedError, ServerFailedError
from turnout.types import ChatRequest, Endpoint, Health, Json, Model
from turnout.wire import openai_chat

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

POLL_SECONDS = 1.0  # how often a server that starts anew is asked whether it is up
CLOCK_SLACK = 0.2  # seconds by which its clock and ours may drift apart while it is awaited
_NAMESPACE = "koboldcpp/"
_NOBODY = ("inactive", "koboldcpp/inactive")
_HIDDEN = "koboldcpp/protected-model"
_TRY_AGAIN = re.compile(r"try again in (\d+) seconds")
_WEB_SEARCH = "its web search is on: it asks a search engine on the internet for whoever sends it a query"


class KoboldCpp(OpenAICompatible):
    """One model, and in router mode the configurations of a directory, each loaded in place of the one before."""

    kind = "koboldcpp"
    title = "KoboldCpp"
    shelf = Shelf(title)
    default_urls = ("http://127.0.0.1:5001",)
    default_slots = 1
    probes = ("/.well-known/serviceinfo",)
    cuts_silently = True
    answer_limit = 896  # --defaultgenamt; 1536 since a version of 2026

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its service information, else its Server header: others answer its own version route with its name."""
        software = dict_of(replied(replies, "/.well-known/serviceinfo").get("software"))
        if software.get("name") == "KoboldCpp":
            return Identity(self.kind, "GET /.well-known/serviceinfo names KoboldCpp", text_of(software.get("version")))
        for path, reply in replies.items():
            if reply.headers.get("server", "").startswith("KoboldCppServer"):
                return Identity(self.kind, f"GET {path} has the header Server: KoboldCppServer")
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """Three GETs; one more behind a password, in router mode, or of a version whose ``/props`` names no model."""
        root = base.at_root(endpoint)
        about_reply, props, perf = await asyncio.gather(
            base.get(client, self, root, "/api/extra/version", timeout),
            base.get_object(client, self, root, "/props", timeout),
            base.get_object(client, self, root, "/api/extra/perf", timeout),
        )
        about = json_object(about_reply.body)
        if about_reply.status != 200 or not about:
            text = base.error_text(about_reply.body)
            return Inspection(*base.health_of_status(about_reply.status, text))
        notes, version = (_WEB_SEARCH,) if about.get("websearch") is True else (), text_of(about.get("version"))
        if about.get("protected") is True and not await self._lets_in(client, root, timeout):
            return Inspection(Health.NEEDS_KEY, "needs its password as a key", notes=notes, version=version)
        ids = [] if about.get("llm") is False else await self._ids(client, root, props, timeout)
        window = int_of(props.get("n_ctx")) or await self._window(client, root, timeout)
        capabilities = frozenset({"chat", "tools", "vision"} if about.get("vision") is True else {"chat", "tools"})
        models = tuple(
            # The first is loaded; what the others' configurations allocate is known when they are.
            Model(name, window if first else 0, resident=first, capabilities=capabilities if first else frozenset())
            for name, first in ids
        )
        return Inspection(
            Health.ONLINE,
            "answers" if models else "has no text model",
            models,
            slots=1,
            busy=1 - min(1, int_of(perf.get("idle"))) if "idle" in perf else None,
            waiting=int_of(perf.get("queue")) if "queue" in perf else None,
            capacity=1,
            notes=notes,
            version=version,
            speed=float_of(perf.get("last_eval_speed")),
        )

    async def _lets_in(self, client: HttpClient, root: Endpoint, timeout: float) -> bool:
        """Whether the key is its password: only then it names its model here."""
        if not root.key:
            return False
        shown = await base.get_object(client, self, root, "/api/v1/model", timeout)
        return text_of(shown.get("result")) not in ("", _HIDDEN)

    async def _ids(
        self, client: HttpClient, root: Endpoint, props: dict[str, Json], timeout: float
    ) -> list[tuple[str, bool]]:
        """Ids, and whether each is loaded."""
        named = text_of(props.get("model_path"))
        found = [named]
        if not named.startswith(_NAMESPACE) or props.get("role") == "router":
            listing = await base.get_object(client, self, root, "/v1/models", timeout)
            found = [text_of(row.get("id")) for row in rows(listing.get("data"))]
        return [
            (name, place == 0)
            for place, name in enumerate(dict.fromkeys(found))
            if name and name not in _NOBODY and name == base.clean(name, 1000)
        ]

    async def _window(self, client: HttpClient, root: Endpoint, timeout: float) -> int:
        return int_of(
            (await base.get_object(client, self, root, "/api/extra/true_max_context_length", timeout)).get("value")
        )

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Its sentences are in ``detail.msg``; a request that it cannot read is a 500."""
        detail, text = dict_of(json_object(body).get("detail")), base.error_text(body)
        if detail.get("type") == "bad_input":
            return RequestRefusedError(f"{endpoint.name}: {text}", endpoint=endpoint.name, status=status)
        if status == 503 and (wait := _TRY_AGAIN.search(text)):
            what = f"{endpoint.name} is busy: {text}"
            return EndpointBusyError(what, endpoint=endpoint.name, status=status, retry_after=float(wait[1][:4]))
        return super().error(endpoint, status, headers, body)

    async def count_tokens(self, client: HttpClient, endpoint: Endpoint, request: ChatRequest, model: Model) -> int:
        """By the server's own template. Versions before 1.11x count a prompt alone and show none of what they counted.

        The model is not named: in router mode a name would load it.
        """
        if model.resident is not True:
            return 0
        asked = json_object(openai_chat.render_request(request, model.id, stream=False))
        del asked["model"]
        reply = await client.fetch(
            "POST",
            client.request_url(base.at_root(endpoint).url, "/api/extra/tokencount"),
            body=msgspec.json.encode(asked),
            headers=base.auth_headers(self, endpoint) | {"Content-Type": "application/json"},
            timeout=2.0,
            max_bytes=base.MAX_REPLY_BYTES,
        )
        answer = json_object(reply.body) if reply.status == 200 else {}
        return int_of(answer.get("value")) if text_of(answer.get("prompt")) else 0

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: base.Told) -> None:
        """Have it start anew with a configuration of its directory; it does so only with ``--admin``."""
        if model.resident is True:
            told(f"{model.id} is loaded already")
            return
        told(f"{endpoint.name} starts anew with {model.id}")
        about = await self._restart(client, endpoint, model.id)
        if about.get("llm") is not True:
            what = f"{endpoint.name} started anew without {model.id}"
            raise ServerFailedError(what, endpoint=endpoint.name, hint="its own log says why")
        told(f"loaded {model.id}")

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """Have it start anew without a model; it does so only with ``--admin``."""
        await self._restart(client, endpoint, "unload_model")

    async def _restart(self, client: HttpClient, endpoint: Endpoint, filename: str) -> dict[str, Json]:
        """Reload with a configuration; the new process is told from the old one by how long it has been up.

        Returns:
            What the new process says of itself.
        """
        root, clock = base.at_root(endpoint), asyncio.get_running_loop().time
        limit = endpoint.limits.connect
        perf = await base.get_object(client, self, root, "/api/extra/perf", limit)
        born_by = clock() - float_of(perf.get("uptime"))
        body = {"filename": filename}
        reply = await base.post(client, self, root, "/api/admin/reload_config", body, endpoint.limits.first_byte)
        if json_object(reply.body).get("success") is not True:
            needs = "that takes --admin, its password as the key, and such a file in --admindir"
            raise self.cannot(f"start anew with {filename}: {needs}", endpoint)
        deadline = clock() + endpoint.limits.total
        while clock() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            asked = clock()
            perf = await base.get_object(client, self, root, "/api/extra/perf", limit)
            if "uptime" in perf and asked - float_of(perf.get("uptime")) > born_by + CLOCK_SLACK:
                return await base.get_object(client, self, root, "/api/extra/version", limit)
        what = f"{endpoint.name} did not come back within {endpoint.limits.total:g} s"
        raise PhaseTimeoutError(what, phase="total", endpoint=endpoint.name)
