"""llama.cpp's ``llama-server``, and everything that is one inside (facts/services.md section 7, backends.md 3.1, 3.2).

It runs in three ways: with one model, with one that sleeps when idle, and as a router of models that it loads into
children of its own. What would wake a sleeping one, or only keep it from falling asleep (``/slots``), is never asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, Told, dict_of, int_of, json_object, rows, text_of
from turnout.backends.openai_compatible import OpenAICompatible, meta_of
from turnout.backends.shelf import Arrangement, Shelf, given_dirs, only_gguf, together
from turnout.errors import ServerFailedError, UnknownModelError
from turnout.guard.model_manifest import Manifest
from turnout.types import ChatRequest, Details, Endpoint, Health, Json, Limits, Model, WireFormat
from turnout.weights import Weights
from turnout.wire import openai_chat, openai_text
from turnout.wire.base import Completion, Lines

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

# The feed is silent while nothing changes; after so long it is opened anew, for its other end may be gone.
FEED = Limits(first_byte=3600.0, silence=3600.0, total=86_400.0)
RUNS_COMMANDS = "GET /tools answers: whoever reaches it can read and write files there and run commands"
PROXIES = "its /cors-proxy is on: it fetches any address for whoever asks"
# Where other servers keep the weights that they start a llama-server of their own for.
_STORES = (
    ("ollama", re.compile(r"[/\\]blobs[/\\]sha256-[0-9a-f]{64}\Z")),
    ("dockermodelrunner", re.compile(r"[/\\]bundles[/\\]sha256[/\\][0-9a-f]{64}[/\\]")),
    ("lmstudio", re.compile(r"[/\\]\.lmstudio[/\\]")),
)
_METRIC = re.compile(
    rb"^llamacpp:(requests_processing|requests_deferred|predicted_tokens_seconds|tokens_predicted(?:_seconds)?_total)"
    rb"(?:\{[^}\n]*\})? (\d{1,15}(?:\.\d{1,9})?(?:e[+-]?\d\d?)?)$",
    re.MULTILINE,
)


class _Shelf(Shelf):
    """What ``--models-dir`` names for a router of models; one that was started with a file reads that
    (``load_from_models_dir`` in its common/preset.cpp)."""

    def folders(self, env: Mapping[str, str]) -> tuple[Path, ...]:
        """``LLAMA_ARG_MODELS_DIR``, which is that option."""
        return given_dirs(env, "LLAMA_ARG_MODELS_DIR")

    def arrange(self, manifest: Manifest, name: str) -> Arrangement:
        """A single GGUF is a model; parts, and a projector, are one with their folder's name."""
        only_gguf(manifest, self.title)
        return together(manifest, name, "start `llama-server -m` with the file, or anew with `--models-dir`")


class LlamaCpp(OpenAICompatible):
    """The server names itself in every reply's Server header, also while it loads."""

    kind = "llamacpp"
    title = "llama.cpp"
    shelf = _Shelf(title)
    default_urls = ("http://127.0.0.1:8080",)
    native = frozenset({WireFormat.OPENAI_CHAT, WireFormat.ANTHROPIC})
    key_headers = ("Authorization", "X-Api-Key")
    probes = ("/v1/models", "/tools")
    reranks = True
    template_switch = True

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By the Server header, else by the owner named in the model list with what only its rows have."""
        for path, reply in replies.items():
            if reply.headers.get("server", "") == "llama.cpp":
                return Identity(self.kind, f"GET {path} has the header Server: llama.cpp", notes=_tools(replies))
        listed = replies.get("/v1/models")
        listing = rows(json_object(listed.body).get("data")) if listed is not None else []
        if listing and listing[0].get("owned_by") == "llamacpp" and (meta_of(listing[0]) or _status(listing[0])):
            return Identity(self.kind, "GET /v1/models is owned by llamacpp and has meta", notes=_tools(replies))
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """List, ``/props``, and ``/metrics`` where they are on: none of them wakes a sleeper or keeps one awake."""
        reply, props = await asyncio.gather(
            base.get(client, self, endpoint, self.models_path(endpoint), timeout),
            base.get_object(client, self, base.at_root(endpoint), "/props", timeout),
        )
        if reply.status != 200:
            return Inspection(*base.health_of_status(reply.status, base.error_text(reply.body)))
        listing = json_object(reply.body).get("data")
        if not isinstance(listing, list):
            return Inspection(Health.DEGRADED, "the model list is not an OpenAI model list")
        listed = rows(listing)
        found = _router(self, listed, props) if props.get("role") == "router" else _single(self, listed, props)
        if props.get("endpoint_metrics") is not True:
            return found
        metrics = await base.try_get(client, self, base.at_root(endpoint), "/metrics", timeout)
        return _with_metrics(found, metrics.body) if metrics is not None and metrics.status == 200 else found

    def model(self, row: dict[str, Json]) -> Model | None:
        """``meta.n_ctx`` is the window of one slot; a router's rows have a status, and meta only while loaded."""
        model_id = text_of(row.get("id"))
        if not model_id or model_id != base.clean(model_id, 1000):
            return None
        meta = meta_of(row)
        status = _status(row)
        return Model(
            id=model_id,
            window=int_of(meta.get("n_ctx")) or _window_to_come(dict_of(row.get("status")).get("args")),
            max_window=int_of(meta.get("n_ctx_train")) or int_of(row.get("context_length")),
            resident=status == "loaded" if status else True,
            parameters=int_of(meta.get("n_params")),
            size=int_of(meta.get("size")),
            quantization=text_of(meta.get("ftype")),
            weights=Weights(path=_file(dict_of(row.get("status")).get("args")), vocabulary=int_of(meta.get("n_vocab"))),
        )

    def lacks_details(self, model: Model) -> bool:
        """A router tells what a model can do only of one that is loaded, and asked for by name."""
        return model.resident is True and not model.capabilities

    async def details(self, client: HttpClient, endpoint: Endpoint, model: Model, timeout: float) -> Details:
        """The properties of a router's child; a child that is gone by now is not loaded for it."""
        path = f"/props?{urlencode({'model': model.id})}&autoload=false"
        props = await base.get_object(client, self, base.at_root(endpoint), path, timeout, base.MAX_DETAILS_BYTES)
        if not props:
            raise self.cannot("tell what a model can do", endpoint)
        return Details(capabilities=_capabilities(props))

    async def count_tokens(self, client: HttpClient, endpoint: Endpoint, request: ChatRequest, model: Model) -> int:
        """The server applies its own template and counts (facts/backends.md 3.1); a sleeping server is left asleep."""
        if model.resident is not True:
            return 0
        reply = await client.fetch(
            "POST",
            client.request_url(base.at_root(endpoint).url, "/v1/chat/completions/input_tokens?autoload=false"),
            body=openai_chat.render_request(self.switched(request), model.id, stream=False),
            headers=base.auth_headers(self, endpoint) | {"Content-Type": "application/json"},
            timeout=2.0,
            max_bytes=100_000,
        )
        return int_of(json_object(reply.body).get("input_tokens")) if reply.status == 200 else 0

    def completion(self, endpoint: Endpoint, asked: Completion, model: Model, window: int) -> base.TextCall:
        """What is filled in goes to ``/infill``: its ``/v1/completions`` drops a suffix without a word."""
        if not asked.suffix:
            return super().completion(endpoint, asked, model, window)
        body = openai_text.native_body(asked, model.id)
        return base.TextCall("/infill", body, openai_text.StreamParser, from_root=True)

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: Told) -> None:
        """A router starts a child; whatever sleeps is woken. A server with one model falls asleep again by itself."""
        at = base.at_root(endpoint)
        status = await self._status_of(client, at, model)
        if status.get("value") == "unloaded":
            await base.post(client, self, at, "/models/load", {"model": model.id}, endpoint.limits.first_byte)
        elif status.get("value") in (None, "sleeping"):
            body = {"model": model.id, "content": ""}
            await base.post(client, self, at, "/tokenize", body, endpoint.limits.first_byte)
            told(f"{endpoint.name}: {model.id} is awake")
            return
        said = [""]

        async def up() -> bool:
            status = await self._status_of(client, at, model)
            value = text_of(status.get("value"))
            if value == "unloaded":
                why = f"exit code {int_of(status.get('exit_code'))}" if status.get("failed") is True else "it is gone"
                raise ServerFailedError(f"{endpoint.name} could not load {model.id}: {why}", endpoint=endpoint.name)
            now = _progress(model.id, value, dict_of(status.get("progress")))
            if now != said[-1]:
                said.append(now)
                told(f"{endpoint.name}: {now}")
            return value in ("loaded", "sleeping")

        await base.until(up, endpoint.limits.total, f"{endpoint.name} did not load {model.id}", endpoint)

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """Only a router can; it ends the child."""
        at = base.at_root(endpoint)
        status = await self._status_of(client, at, model)
        if not status:
            raise self.cannot("unload the one model that it was started with", endpoint)
        if status.get("value") == "unloaded":
            return
        await base.post(client, self, at, "/models/unload", {"model": model.id}, endpoint.limits.first_byte)

        async def gone() -> bool:
            return (await self._status_of(client, at, model)).get("value") == "unloaded"

        await base.until(gone, endpoint.limits.first_byte, f"{endpoint.name} did not unload {model.id}", endpoint)

    async def _status_of(self, client: HttpClient, endpoint: Endpoint, model: Model) -> dict[str, Json]:
        """The status of a router's model; empty for the only model of a server that is none."""
        reply = await base.get(client, self, endpoint, "/v1/models", endpoint.limits.first_byte)
        if reply.status != 200:
            raise self.error(endpoint, reply.status, reply.headers, reply.body)
        listed = rows(json_object(reply.body).get("data"))
        row = next((row for row in listed if row.get("id") == model.id), None)
        if row is None:
            raise UnknownModelError(f"{endpoint.name} has no model {model.id}", endpoint=endpoint.name)
        return dict_of(row.get("status"))

    def changes(self, client: HttpClient, endpoint: Endpoint) -> AsyncGenerator[str, None]:
        """A router's ``/models/sse``; the feed of a server with one model ends at once."""
        return self._changes(client, base.at_root(endpoint))

    async def _changes(self, client: HttpClient, endpoint: Endpoint) -> AsyncGenerator[str, None]:
        headers = base.auth_headers(self, endpoint)
        url = client.request_url(endpoint.url, "/models/sse")
        limits = replace(FEED, connect=endpoint.limits.connect)
        async with client.stream("GET", url, body=None, headers=headers, limits=limits, endpoint=endpoint.name) as feed:
            if feed.status != 200:
                return
            lines, last = Lines(), ""
            async for data in feed.chunks():
                for line in lines.feed(data):
                    event = json_object(line.removeprefix(b"data:"))
                    status = dict_of(event.get("data"))
                    name, value = base.clean(text_of(event.get("model"))), base.clean(text_of(status.get("status")))
                    change = _progress(name, value, dict_of(status.get("progress")))
                    if name and value and change != last:
                        last = change
                        yield change
                await asyncio.sleep(base.FEED_GAP)


def _tools(replies: Mapping[str, Reply]) -> tuple[str, ...]:
    """Its tools are off by default; then the route refuses (facts/services.md section 7, Security)."""
    reply = replies.get("/tools")
    return (RUNS_COMMANDS,) if reply is not None and reply.status == 200 and reply.body.startswith(b"[") else ()


def _status(row: dict[str, Json]) -> str:
    """What a router says of a model; "" of the only model of a server that is none."""
    return text_of(dict_of(row.get("status")).get("value"))


def _progress(name: str, value: str, progress: dict[str, Json]) -> str:
    """One line of what a router says of a model. ``progress.value`` is a part of one."""
    part = progress.get("value")
    done = f" {part:.0%}" if isinstance(part, int | float) and 0 <= part <= 1 else ""
    return f"{name} is {value}{done}"


def _version(props: dict[str, Json]) -> str:
    """The build, "" where it does not know its own (facts/backends.md section 0)."""
    build = base.clean(text_of(props.get("build_info")), 60)
    return "" if build == "b0-unknown" else build


def _proxy(props: dict[str, Json]) -> tuple[str, ...]:
    return (PROXIES,) if props.get("cors_proxy_enabled") is True else ()


def _single(backend: LlamaCpp, listed: list[dict[str, Json]], props: dict[str, Json]) -> Inspection:
    """A server with one model, awake or asleep."""
    sleeping = props.get("is_sleeping") is True
    models = tuple(_with_props(model, props, sleeping) for row in listed if (model := backend.model(row)))
    path = text_of(props.get("model_path"))
    answers = "asleep, wakes on a request" if sleeping else "answers"
    return Inspection(
        Health.ONLINE,
        answers if models else "has no model",
        models,
        slots=int_of(props.get("total_slots")),
        notes=_proxy(props),
        version=_version(props),
        child_of=next((kind for kind, store in _STORES if store.search(path)), ""),
    )


def _router(backend: LlamaCpp, listed: list[dict[str, Json]], props: dict[str, Json]) -> Inspection:
    """A router: what it is loading and what failed is its reason, what it fetches from elsewhere a note."""
    said: list[str] = []
    notes = list(_proxy(props))
    models: list[Model] = []
    for row in listed:
        model, status = backend.model(row), dict_of(row.get("status"))
        if model is None:
            continue
        if _status(row) == "downloading":
            notes.append(f"it is downloading {model.id}")
            continue
        models.append(model)
        if _status(row) == "loading":
            said.append(f"loading {model.id}")
        if status.get("failed") is True:
            said.append(f"{model.id} failed to load (exit code {int_of(status.get('exit_code'))})")
        if _from_a_hub(status.get("args")):
            notes.append(f"{model.id} is named by its place on a hub: loading it may ask there")
    reason = "; ".join(["answers", *said[:5]]) if models else "has no model"
    return Inspection(
        Health.ONLINE,
        reason,
        tuple(models),
        capacity=int_of(props.get("max_instances")),
        notes=tuple(notes),
        version=_version(props),
    )


def _with_metrics(found: Inspection, metrics: bytes) -> Inspection:
    """Requests that run and that wait, and how fast it generates.

    Its gauge of that is of the answers that ended since anybody read it, and 0 for whoever reads it next (seen at the
    package's server, 2026-11): then the mean since its start is taken.
    """
    told = {name: float(number) for name, number in _METRIC.findall(metrics)}
    busy, waiting = told.get(b"requests_processing"), told.get(b"requests_deferred")
    tokens, seconds = told.get(b"tokens_predicted_total", 0.0), told.get(b"tokens_predicted_seconds_total", 0.0)
    return replace(
        found,
        busy=None if busy is None else int(busy),
        waiting=None if waiting is None else int(waiting),
        speed=told.get(b"predicted_tokens_seconds") or (tokens / seconds if seconds else 0.0),
    )


def _words(args: Json) -> list[str]:
    return [text_of(word) for word in args] if isinstance(args, list) else []


def _from_a_hub(args: Json) -> bool:
    words = _words(args)
    return "--offline" not in words and bool({"--hf-repo", "--docker-repo", "--model-url"} & set(words))


def _file(args: Json) -> str:
    """What the command line of a router's child names."""
    return dict(pairwise(_words(args))).get("--model", "")


def _window_to_come(args: Json) -> int:
    """The window of one slot that a router's child will have at least, or 0 when its command line leaves it open.

    The window is shared out unless it is unified, which it is when the number of slots is left to the server.
    """
    words = _words(args)
    given = dict(pairwise(words))
    slots = 1 if "--kv-unified" in words else _whole(given.get("--parallel")) or 1
    return _whole(given.get("--ctx-size")) // slots


def _whole(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0


def _capabilities(props: dict[str, Json]) -> frozenset[str]:
    caps = dict_of(props.get("chat_template_caps"))
    found = {"chat"} if props else set()
    if caps.get("supports_tools") is True:
        found.add("tools")
    if dict_of(props.get("modalities")).get("vision") is True:
        found.add("vision")
    return frozenset(found)


def _with_props(model: Model, props: dict[str, Json], sleeping: bool) -> Model:
    if not props:
        return model
    return replace(
        model,
        window=model.window or int_of(dict_of(props.get("default_generation_settings")).get("n_ctx")),
        resident=not sleeping,
        capabilities=_capabilities(props),
        quantization=model.quantization or text_of(props.get("model_ftype")),
        weights=replace(model.weights, path=text_of(props.get("model_path")), template=_template(props)),
    )


def _template(props: dict[str, Json]) -> str:
    text = text_of(props.get("chat_template"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() if text else ""
