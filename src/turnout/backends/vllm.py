"""vLLM (facts/services.md, section 6; recorded: 0.32.0)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, first_owner, json_object, replied, text_of
from turnout.backends.openai_compatible import OpenAICompatible, tokenized
from turnout.backends.shelf import Shelf
from turnout.errors import BackendError
from turnout.types import ChatRequest, Endpoint, Health, Json, Model, WireFormat
from turnout.weights import Weights

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

# One sample a line; an engine that is spread over several processes has one for each.
_NAMES = "num_requests_running|num_requests_waiting|engine_sleep_state"
_SAMPLE = re.compile(rf"^vllm:({_NAMES})(\{{.*\}})? ([0-9.e+]{{1,30}})$", re.MULTILINE)
_NOTES = (
    "reports its use to its makers unless VLLM_NO_USAGE_STATS=1 or DO_NOT_TRACK=1 is set where it runs",
    "fetches the image addresses in a request, unless --allowed-media-domains forbids them",
)


class Vllm(OpenAICompatible):
    """The server behind ``vllm serve``: one model, loaded before its port opens."""

    kind = "vllm"
    title = "vLLM"
    shelf = Shelf(title)
    default_urls = ("http://127.0.0.1:8000",)
    native = frozenset({WireFormat.OPENAI_CHAT, WireFormat.ANTHROPIC, WireFormat.RESPONSES})
    probes = ("/v1/models", "/version")
    fills = True
    reranks = True
    template_switch = True

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By the owner named in its model list, else by how it refuses the list and tells its version all the same."""
        version = base.clean(text_of(replied(replies, "/version").get("version")), 60)
        if first_owner(replies) == "vllm":
            return Identity(self.kind, "GET /v1/models is owned by vllm", version)
        listed = replies.get("/v1/models")
        refused = listed is not None and listed.status == 401 and json_object(listed.body) == {"error": "Unauthorized"}
        if refused and version:
            return Identity(self.kind, "GET /v1/models is Unauthorized, GET /version is not", version)
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """The list is the front end's; ``/health`` and ``/metrics``, which want no key, are the engine's."""
        root = base.at_root(endpoint)
        found, health, metrics = await asyncio.gather(
            super().inspect(client, endpoint, timeout),
            base.try_get(client, self, root, "/health", timeout),
            base.try_get(client, self, root, "/metrics", timeout),
        )
        if found.health is not Health.ONLINE:
            return found
        samples = _samples(metrics)
        busy, waiting = _total(samples, "num_requests_running"), _total(samples, "num_requests_waiting")
        asleep = _total(samples, "engine_sleep_state", 'sleep_state="awake"') == 0
        models = tuple(replace(model, resident=not asleep) for model in found.models)
        found = replace(found, models=models, busy=busy, waiting=waiting, capacity=1, notes=_NOTES)
        if health is not None and health.status == 503:
            return replace(found, health=Health.DEGRADED, reason="its engine is dead: it must be restarted")
        if asleep:
            return replace(found, health=Health.DEGRADED, reason="asleep, and no request wakes it")
        return found

    def model(self, row: dict[str, Json]) -> Model | None:
        """``root`` is where its weights are, unless that is a name on a hub."""
        model, root = super().model(row), text_of(row.get("root"))
        return replace(model, weights=Weights(path=root)) if model and root.startswith("/") else model

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """A process has the paths of what its model is for: one that generates makes no embeddings, and back."""
        if status == 404 and json_object(body) == {"detail": "Not Found"}:
            return self.cannot("do this: it was started for another use of its model", endpoint)
        return super().error(endpoint, status, headers, body)

    async def count_tokens(self, client: HttpClient, endpoint: Endpoint, request: ChatRequest, model: Model) -> int:
        """By ``/tokenize``, which the engine takes no part in."""
        return await tokenized(client, self, endpoint, self.switched(request), model, ("tools", "chat_template_kwargs"))


_Samples: TypeAlias = list[tuple[str, str, str]]


def _samples(metrics: Reply | None) -> _Samples:
    """Name, labels and value of each sample."""
    if metrics is None or metrics.status != 200:
        return []
    return _SAMPLE.findall(metrics.body.decode("utf-8", "replace"))


def _total(samples: _Samples, name: str, label: str = "") -> int | None:
    """The sum over the samples of a name with a label, None when there is none."""
    values = [_number(value) for found, labels, value in samples if found == name and label in labels]
    return base.int_of(sum(values)) if values else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
