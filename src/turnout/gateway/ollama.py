"""Ollama's API over HTTP: what its clients use, honest about what stands behind it (docs/wire.md).

What manages models (pull, push, create, copy, delete, blobs) is refused: models are the business of the servers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from turnout import __version__
from turnout.errors import TurnoutError, UsageError
from turnout.gateway.completions import ChatAnswer, WhilePresent, principal_of, read_body
from turnout.gateway.formats import OLLAMA_CHAT, OLLAMA_GENERATE, OLLAMA_TEXT, A, ChatFormat, Format
from turnout.gateway.listing import Listed, find, listed, nobody_has
from turnout.gateway.refusal import HttpError, refusal
from turnout.gateway.side import WholeEndpoint, counted
from turnout.router import Router
from turnout.types import VIRTUAL_MODELS, Candidate, Event, Json, Model, Principal, Route
from turnout.wire import base, ollama_server
from turnout.wire.base import encode
from turnout.wire.openai_side import refuse_dimensions, texts_of

# The API as it is spoken here (facts/services.md, section 1), and whose it is: clients compare the numbers alone.
VERSION = f"0.33.0+turnout.{__version__}"
MANAGED_AT_SERVERS = "/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs"
_NAMES = {"chat": "completion", "fim": "insert", "embeddings": "embedding"}
_ORDER = ("completion", "tools", "insert", "vision", "embedding", "thinking")
# What clients read out of a model's template is whether it takes these.
_TAKES = {"tools": "{{ .Tools }}", "insert": "{{ .Suffix }}", "thinking": "{{ .Thinking }}"}
# Of a model of which nobody knows anything: nothing of this is kept from it.
_UNKNOWN = frozenset({"chat", "tools"})
_NO_TIME = "1970-01-01T00:00:00Z"
_Render: TypeAlias = Callable[[Sequence[Event], str, float], bytes]


@dataclass(frozen=True, slots=True)
class _Shown:
    """A model as this API shows it; ``resident`` on any server."""

    model: Model
    can: frozenset[str]
    resident: bool

    def row(self) -> dict[str, object]:
        model = self.model
        return {
            "name": model.id,
            "model": model.id,
            "modified_at": _NO_TIME,
            "size": model.size,
            "digest": model.digest,
            "details": self.details(),
            "capabilities": self.capabilities(),
        }

    def details(self) -> dict[str, object]:
        model = self.model
        details: dict[str, object] = {
            "parent_model": "",
            "format": "",
            "family": model.family,
            "families": [model.family] if model.family else [],
            "parameter_size": _amount(model.parameters),
            "quantization_level": model.quantization,
        }
        return details | ({"context_length": model.window} if model.window else {})

    def capabilities(self) -> list[str]:
        return sorted({_NAMES.get(name, name) for name in self.can} & set(_ORDER), key=_ORDER.index)

    def show(self) -> dict[str, object]:
        model, can = self.model, self.capabilities()
        kind = model.family or "turnout"
        info: dict[str, object] = {"general.architecture": kind}
        if model.parameters:
            info["general.parameter_count"] = model.parameters
        if model.window:
            info[f"{kind}.context_length"] = model.window
        return {
            "license": "",
            "modelfile": f"# {model.id} by way of Turnout {__version__}\n",
            "parameters": f"num_ctx                        {model.window}" if model.window else "",
            "template": "{{ .System }}{{ .Prompt }}" + "".join(text for name, text in _TAKES.items() if name in can),
            "details": self.details(),
            "model_info": info,
            "capabilities": can,
            "modified_at": _NO_TIME,
        }


def _amount(parameters: int) -> str:
    """As this API writes it; "" when it is not known."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f}B"
    return f"{parameters / 1e6:.2f}M" if parameters else ""


async def _shown(router: Router, who: Principal) -> dict[str, _Shown]:
    """Every name that may be asked for; a virtual model can what any of those can that may answer for it."""
    return {one.name: _as_shown(router, one) for one in await listed(router, who)}


def _as_shown(router: Router, one: Listed) -> _Shown:
    own = [c for c in one.candidates if c.model.id == one.name] or list(one.candidates)
    window, resident = one.window, one.kind == "id" and any(c.model.resident is True for c in own)
    if one.kind == "virtual" or not own:
        can = frozenset[str]().union(*(_abilities(router, c) for c in own)) - {"embeddings", "fim"}
        return _Shown(Model(one.name, window=window), can or _UNKNOWN, resident=False)
    return _Shown(replace(own[0].model, id=one.name, window=window), _abilities(router, own[0]), resident)


def _abilities(router: Router, candidate: Candidate) -> frozenset[str]:
    return candidate.model.capabilities or router.capabilities_of(candidate.model) or _UNKNOWN


async def _shown_to(request: Request) -> dict[str, _Shown]:
    return await _shown(request.app.state.router, principal_of(request.scope))


def _known_as(ids: Iterable[str], asked: str) -> str:
    """The id that is meant by a name with or without ``:latest``, or the name itself."""
    if asked in VIRTUAL_MODELS:
        return asked
    known = set(ids)
    meant = (asked, f"{asked}:latest", asked.removesuffix(":latest"))
    return next((name for name in meant if name in known), asked)


def _ids(router: Router) -> list[str]:
    return [model.id for status in router.catalog.serving for model in status.models]


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def tags(request: Request) -> Response:
    """What there is, by the ids that servers have for it: names that this API adds no ``:latest`` to."""
    return _json({"models": [shown.row() for shown in (await _shown_to(request)).values()]})


async def running(request: Request) -> Response:
    """What is loaded, as far as its server tells. How long it stays, and in which memory, is not known and left out."""
    found = (await _shown_to(request)).values()
    rows = [shown.row() | {"context_length": shown.model.window} for shown in found if shown.resident]
    return _json({"models": [{k: v for k, v in row.items() if k != "modified_at"} for row in rows]})


async def version(request: Request) -> Response:
    """A number that clients can compare, with Turnout's own behind it."""
    return _json({"version": VERSION})


def managed_at(path: str) -> str:
    """The path of the API that manages models, when this is one of it or below it, else ""."""
    return next((known for known in MANAGED_AT_SERVERS if path == known or path.startswith(f"{known}/")), "")


def managed(path: str) -> HttpError | None:
    """The refusal of what manages models, or None for any other path."""
    if not managed_at(path):
        return None
    said = f"{path} is not for this gateway: models are added and removed at the servers that have them"
    return HttpError(403, said, hint="`turnout models` loads and unloads what is there")


class _Show(WholeEndpoint):
    spoken = OLLAMA_CHAT

    async def answer(self, router: Router, body: bytes, who: Principal) -> tuple[bytes, Route | None]:
        data = base.decode_object(body)
        asked = ollama_server.model_name(data.get("model") or data.get("name"))
        one = await find(router, who, _known_as(_ids(router), asked))
        if one is None:
            raise await nobody_has(router, who, f"model {asked[:200]!r} not found")
        return encode(_as_shown(router, one).show()), None


class _Embed(WholeEndpoint):
    """``/api/embed``; a text that is too long is an error and never cut, whatever ``truncate`` says."""

    spoken = OLLAMA_CHAT

    async def answer(self, router: Router, body: bytes, who: Principal) -> tuple[bytes, Route | None]:
        data = base.decode_object(body)
        refuse_dimensions(data.get("dimensions"))
        texts, began = texts_of(data.get("input")), time.monotonic()
        if not texts or not all(texts):
            raise UsageError("input is empty", hint="give a text, or a list of texts")
        model = _embedder(router, data)
        vectors, route = await router.side.embed(model, texts, who)
        took = int((time.monotonic() - began) * 1e9)
        made = {"model": model, "embeddings": vectors, "total_duration": took, "load_duration": 0}
        return encode(made | {"prompt_eval_count": counted(*texts)}), route


class _Embeddings(WholeEndpoint):
    """The old ``/api/embeddings``, of one text."""

    spoken = OLLAMA_CHAT

    async def answer(self, router: Router, body: bytes, who: Principal) -> tuple[bytes, Route | None]:
        data = base.decode_object(body)
        text = base.text_field(data.get("prompt"), "prompt")
        if not text:
            raise UsageError("prompt is empty", hint="give a text")
        vectors, route = await router.side.embed(_embedder(router, data), [text], who)
        return encode({"embedding": vectors[0]}), route


def _embedder(router: Router, data: dict[str, Json]) -> str:
    return _known_as(_ids(router), ollama_server.model_name(data.get("model")))


class _Chat:
    """``/api/chat`` and ``/api/generate``, as plain ASGI applications."""

    def __init__(self, spoken: ChatFormat, render: _Render) -> None:
        self.spoken, self.render = spoken, render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, tell apart what shares the path, answer."""
        state = scope["app"].state
        router: Router = state.router
        try:
            body = await read_body(scope, receive, state.max_body_bytes)
            peek = ollama_server.peek(body)
            model = _known_as(_ids(router), ollama_server.model_name(peek.model))
            with WhilePresent(receive):
                if peek.loads:
                    base.decode_object(body)  # ``peek`` passes over what it does not need
                    await self._load(router, peek, model, principal_of(scope))
                    loaded = ollama_server.render_loaded(model, chat=self.spoken is OLLAMA_CHAT)
                    await Response(loaded, media_type="application/json")(scope, receive, send)
                    return
                if peek.text and self.spoken is OLLAMA_GENERATE:
                    text = replace(OLLAMA_TEXT.parse(body), model=model)
                    await ChatAnswer(router, text, _timed(OLLAMA_TEXT, ollama_server.render_generate)).send(
                        scope, receive, send
                    )
                    return
                chat = self.spoken.parse(body)
                chat = replace(chat, model=model or chat.model)
                await ChatAnswer(router, chat, _timed(self.spoken, self.render)).send(scope, receive, send)
        except ClientDisconnect:
            return
        except TurnoutError as error:
            await refusal(error, self.spoken)(scope, receive, send)

    async def _load(self, router: Router, peek: ollama_server.Peek, model: str, who: Principal) -> None:
        """Load a model as a question to it would. Unloading takes it from others' hands, which no client may."""
        if peek.unloads:
            raise HttpError(
                403, "models are not unloaded for a client: others may use them", hint="`turnout models unload`"
            )
        if not model:
            raise UsageError("model is required")
        meant = router.meant(model, who)
        if router.name_behind(model) in VIRTUAL_MODELS or any(c.model.resident for c in meant):
            return
        await router.load_model(model, lambda _: None, who)


def _timed(spoken: Format[A], render: _Render) -> Format[A]:
    """The format, for one answer, which tells how long it took."""
    began = time.monotonic()
    return replace(spoken, whole=lambda events, _, model, __: render(events, model, time.monotonic() - began))


show, embed, embeddings = _Show(), _Embed(), _Embeddings()
chat = _Chat(OLLAMA_CHAT, ollama_server.render_response)
generate = _Chat(OLLAMA_GENERATE, ollama_server.render_generate)
