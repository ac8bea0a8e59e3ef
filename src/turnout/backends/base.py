"""What every kind of server is to the rest of Turnout, and what all kinds share.

A Backend is stateless: one object per kind, given the endpoint with each call. The order of the visible list in
``backends/__init__.py`` is the order of identification (facts/services.md, section 11).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointBusyError,
    EndpointLoadingError,
    KeyRefusedError,
    RequestRefusedError,
    ServerFailedError,
    UnknownModelError,
)
from turnout.types import ChatRequest, Endpoint, Event, Health, Json, Model, WireFormat

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

MAX_ERROR_CHARS = 300

_OVERFLOW = re.compile(
    r"exceed(?:s|ed)?[\w\s]{0,40}context|context[\w\s]{0,20}(?:length|size|window)|input length exceeds|"
    r"prompt is too long|prompt is longer|too many tokens|reduce the length",
    re.IGNORECASE,
)
_NOT_FOUND = re.compile(r"not found|does not exist|no such model|unknown model|try pulling|not loaded", re.IGNORECASE)
_UNSUPPORTED = re.compile(r"not supported|does not support|unsupported", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_COUNT_BEFORE_LIMIT = re.compile(
    r"(\d+)\s*(?:input\s+)?tokens?\)?[^.]{0,60}?(?:context|limit)[^.]{0,40}?(\d+)", re.IGNORECASE
)
_LIMIT_IS = re.compile(r"(?:context (?:length|size|window) (?:is|of)|maximum[\w\s]{0,20}) ?(\d+)", re.IGNORECASE)
_PROMPT_IS = re.compile(r"(?:contains|has|prompt is) (?:at least )?(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server was found to be. ``evidence`` says by which reply, for people."""

    kind: str
    evidence: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a server can do now."""

    health: Health
    reason: str
    models: tuple[Model, ...] = ()
    slots: int = 0


class StreamParser(Protocol):
    """Turns a backend's bytes into events (``wire/`` has one per format)."""

    @property
    def finished(self) -> bool:
        """A proper end was seen."""

    def feed(self, data: bytes) -> list[Event]:
        """Events that ``data`` completed."""

    def close(self) -> list[Event]:
        """Events left when the body ends."""


class Backend(Protocol):
    """A kind of server.

    Attributes:
        kind: its name in the configuration.
        default_url: where it listens by default.
        wire: the chat format it speaks best.
        probes: the GET paths whose replies ``identify`` reads.
    """

    kind: str
    default_url: str
    wire: WireFormat
    probes: tuple[str, ...]

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """The verdict from the replies that came (by path), or None. Never by port or status alone."""

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """Health and models, by GETs that neither wake nor load a model. ``timeout`` in seconds."""

    def chat_path(self, endpoint: Endpoint) -> str:
        """Where chat requests go."""

    def render(self, request: ChatRequest, model: Model, window: int) -> bytes:
        """The body of a streaming chat request. ``window`` in tokens, for servers that want to be told."""

    def parser(self) -> StreamParser:
        """A fresh parser for one answer."""

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """What a refusal means, in this server's own words."""

    async def count_tokens(self, client: HttpClient, endpoint: Endpoint, request: ChatRequest, model: Model) -> int:
        """Exact tokens of the prompt as this server counts them, or 0 when it cannot tell."""


def auth_headers(endpoint: Endpoint) -> dict[str, str]:
    """Headers that carry the endpoint's key and the Host it insists on."""
    headers: dict[str, str] = {}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    if endpoint.host_header:
        headers["Host"] = endpoint.host_header
    return headers


async def get(client: HttpClient, endpoint: Endpoint, path: str, timeout: float) -> Reply:
    """GET ``path`` at an endpoint with its key; ``timeout`` in seconds. Raises as ``HttpClient.fetch``."""
    url = client.request_url(endpoint.url, path)
    return await client.get_json(url, headers=auth_headers(endpoint), timeout=timeout)


def clean(text: str, limit: int = MAX_ERROR_CHARS) -> str:
    """A server's words made safe for a terminal and a log: no control characters, one line, shortened."""
    line = " ".join(_CONTROL.sub(" ", text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def json_object(body: bytes) -> dict[str, Json]:
    """The JSON object in ``body``; empty when it is something else. For probes, where nonsense is only no evidence."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def rows(value: Json) -> list[dict[str, Json]]:
    """The objects of a list; everything else in it is dropped."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def text_of(value: Json) -> str:
    """A string value, or "" when it is something else."""
    return value if isinstance(value, str) else ""


def int_of(value: Json) -> int:
    """A non-negative whole number, or 0 when it is something else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 1e18:
        return 0
    return max(0, int(value))


def dict_of(value: Json) -> dict[str, Json]:
    """An object, or an empty one when it is something else."""
    return value if isinstance(value, dict) else {}


def error_text(body: bytes) -> str:
    """The human sentence in an error body of any of the shapes servers use (facts/services.md, Errors rows)."""
    data = json_object(body)
    error = data.get("error", data.get("detail", data.get("message")))
    if isinstance(error, dict):
        error = error.get("message") or error.get("msg") or error.get("error")
    if isinstance(error, list):
        error = "; ".join(text_of(row.get("msg")) for row in rows(error))
    return clean(error if isinstance(error, str) and error else body.decode("utf-8", "replace"))


def is_overflow(body: bytes) -> bool:
    """Whether an error's words mean that the prompt exceeds the window."""
    return bool(_OVERFLOW.search(error_text(body)))


def overflow_counts(body: bytes, text: str) -> tuple[int, int]:
    """``(prompt tokens, window)`` named in an overflow error, 0 for what it does not name."""
    error = dict_of(json_object(body).get("error"))
    prompt, window = int_of(error.get("n_prompt_tokens")), int_of(error.get("n_ctx"))
    if prompt and window:
        return prompt, window
    if pair := _COUNT_BEFORE_LIMIT.search(text):
        return int(pair[1]), int(pair[2])
    limit, count = _LIMIT_IS.search(text), _PROMPT_IS.search(text)
    return (int(count[1]) if count else prompt), (int(limit[1]) if limit else window)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds from a Retry-After header, 0 when there is none or it is a date."""
    try:
        return min(300.0, max(0.0, float(headers.get("retry-after", "0"))))
    except ValueError:
        return 0.0


def classify_error(endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
    """The error class that decides what is tried next (SPEC FB-2), from status and words common to all servers."""
    text = error_text(body) or f"HTTP {status} without a word"
    where = {"endpoint": endpoint.name, "status": status}
    if status in (401, 403, 407):
        hint = f"set the key of {endpoint.name} in the configuration"
        return KeyRefusedError(f"{endpoint.name} refused the key: {text}", hint=hint, **where)  # type: ignore[arg-type]
    if status in (400, 413, 422, 500) and _OVERFLOW.search(text):
        prompt, window = overflow_counts(body, text)
        return ContextOverflowError(
            f"{endpoint.name}: {text}", endpoint=endpoint.name, status=status, prompt_tokens=prompt, window=window
        )
    if status == 503 and "loading" in text.lower():
        return EndpointLoadingError(f"{endpoint.name} is loading its model", retry_after=retry_after(headers), **where)  # type: ignore[arg-type]
    if status in (429, 503, 529):
        return EndpointBusyError(f"{endpoint.name} is busy: {text}", retry_after=retry_after(headers), **where)  # type: ignore[arg-type]
    if status in (400, 404) and "model" in text.lower() and _NOT_FOUND.search(text):
        return UnknownModelError(f"{endpoint.name}: {text}", **where)  # type: ignore[arg-type]
    if status < 500 or (status in (500, 501) and _UNSUPPORTED.search(text)):
        return RequestRefusedError(f"{endpoint.name}: {text}", **where)  # type: ignore[arg-type]
    return ServerFailedError(f"{endpoint.name} failed with HTTP {status}: {text}", **where)  # type: ignore[arg-type]


def health_of_status(status: int, text: str) -> tuple[Health, str]:
    """Health and reason of a listing that was not a 200 (SPEC SVC-4)."""
    if status in (401, 403):
        return Health.NEEDS_KEY, "needs a key"
    if status == 503 and "loading" in text.lower():
        return Health.LOADING, "loading its model"
    return Health.DEGRADED, f"HTTP {status}: {text}"
