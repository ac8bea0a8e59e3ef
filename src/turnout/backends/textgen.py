"""text-generation-webui, now called textgen (facts/services.md, section 10).

One model at a time, whichever a request names; a prompt that is too long loses its start without a word, and no route
tells the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, int_of, json_object, replied, text_of
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.backends.shelf import Arrangement, Shelf, together
from turnout.errors import BackendError, RequestRefusedError
from turnout.guard.model_manifest import Manifest
from turnout.types import ChatRequest, Endpoint, Health, Image, Model, Reasoning
from turnout.wire import openai_chat

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

INFO = "/v1/internal/model/info"
# What it answers there, by status, when the key or the Host header is not to its liking.
_REFUSALS = {400: "Invalid host header", 401: "Unauthorized"}
_NOTHING = ("", "None")
# What its other loaders than llama.cpp's allocate by default (facts/services.md section 10): it cuts a longer prompt
# without a word, so nothing larger is guessed.
SMALLEST_WINDOW = 8192
_HOST = "refuses the Host header it is sent: it takes localhost alone unless it was started with --listen"


class _Shelf(Shelf):
    """``user_data/models`` below where it is installed, which nobody tells: its ``--model-dir`` (modules/shared.py)."""

    def arrange(self, manifest: Manifest, name: str) -> Arrangement:
        """A single GGUF lies beside others, more files have a folder."""
        return together(manifest, name, "press refresh in its Model tab, or start it with `--model`")


class TextGen(OpenAICompatible):
    """Only the loaded model is listed: asked for another one, it would answer with this one."""

    kind = "textgen"
    title = "text-generation-webui"
    shelf = _Shelf(title)
    default_urls = ("http://127.0.0.1:5000",)
    default_slots = 1
    probes = (INFO,)
    cuts_silently = True

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its internal model information, or by how it refuses to give it: others have nothing there."""
        reply = replies.get(INFO)
        if reply is None:
            return None
        about = replied(replies, INFO)
        if "model_name" in about and "lora_names" in about:
            return Identity(self.kind, f"GET {INFO}")
        if reply.status in _REFUSALS and json_object(reply.body).get("detail") == _REFUSALS[reply.status]:
            return Identity(self.kind, f"GET {INFO} answers {reply.status} in its words")
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """One GET. The window is its owner's secret: it is guessed unless the configuration tells it."""
        reply = await base.get(client, self, base.at_root(endpoint), INFO, timeout)
        text = base.error_text(reply.body)
        if reply.status == 400 and text == _REFUSALS[400]:
            return Inspection(Health.DEGRADED, _HOST)
        if reply.status != 200:
            return Inspection(*base.health_of_status(reply.status, text))
        about = json_object(reply.body)
        if "model_name" not in about:
            return Inspection(Health.DEGRADED, f"GET {INFO} is not its model information")
        name = text_of(about.get("model_name"))
        if name in _NOTHING or name != base.clean(name, 1000):
            return Inspection(Health.ONLINE, "has no model loaded", capacity=1)
        model = Model(name, window=SMALLEST_WINDOW, window_source="guessed", resident=True)
        return Inspection(Health.ONLINE, "answers", (model,), capacity=1)

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """A Host header that it does not take is its owner's to change."""
        if status == 400 and base.error_text(body) == _REFUSALS[400]:
            return RequestRefusedError(f"{endpoint.name} {_HOST}", endpoint=endpoint.name, status=status)
        return super().error(endpoint, status, headers, body)

    async def count_tokens(self, client: HttpClient, endpoint: Endpoint, request: ChatRequest, model: Model) -> int:
        """Its tokenizer counts the messages in a frame of ours: its own rendering leaves out what it would cut.

        Where the model's tokenizer does not know the frame's marks, a few tokens a message more than it will have.
        """
        if any(isinstance(part, Image) for m in request.messages for part in m.parts):
            return 0
        body = {"text": _framed(request)}
        timeout = endpoint.limits.connect
        reply = await base.post(client, self, base.at_root(endpoint), "/v1/internal/token-count", body, timeout)
        return int_of(json_object(reply.body).get("length"))

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: base.Told) -> None:
        """In place of the one that is loaded, with the window that the configuration says."""
        root = base.at_root(endpoint)
        if await self._loaded(client, root) == model.id:
            told(f"{model.id} is loaded already")
            return
        timeout = endpoint.limits.connect
        listed = (await base.get_object(client, self, root, "/v1/internal/model/list", timeout)).get("model_names")
        if not isinstance(listed, list) or model.id not in listed:
            raise self.cannot(f"load {model.id}, which it does not list for this key", endpoint)
        told(f"loading {model.id}")
        body: dict[str, object] = {"model_name": model.id}
        if endpoint.window:
            body["args"] = {"ctx_size": endpoint.window}
        await base.post(client, self, root, "/v1/internal/model/load", body, endpoint.limits.total)
        told(f"loaded {model.id}")

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """If it is the one that is loaded."""
        root = base.at_root(endpoint)
        if await self._loaded(client, root) == model.id:
            await base.post(client, self, root, "/v1/internal/model/unload", {}, endpoint.limits.total)

    async def _loaded(self, client: HttpClient, root: Endpoint) -> str:
        return text_of((await base.get_object(client, self, root, INFO, root.limits.connect)).get("model_name"))


def _framed(request: ChatRequest) -> str:
    sent = json_object(openai_chat.render_request(request, "", stream=False))
    pieces = [msgspec.json.encode(sent["tools"]).decode()] if "tools" in sent else []
    for m in request.messages:
        said = [m.text, *(f"{call.name} {call.arguments}" for call in m.tool_calls)]
        said += [result.content for result in m.tool_results]
        said += [part.text for part in m.parts if isinstance(part, Reasoning)]
        pieces.append(f"<|im_start|>{m.role}\n" + "\n".join(filter(None, said)) + "<|im_end|>\n")
    return "".join(pieces)
