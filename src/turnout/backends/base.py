"""What every kind of server is to the rest of Turnout, and what all kinds share.

A Backend is stateless: one object per kind, given the endpoint with each call. The order of the visible list in
``backends/__init__.py`` is the order of identification (facts/services.md, section 11).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias
from urllib.parse import urlsplit

import msgspec

from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointBusyError,
    EndpointLoadingError,
    KeyRefusedError,
    PhaseTimeoutError,
    RequestRefusedError,
    ServerFailedError,
    UnknownModelError,
)
from turnout.guard.identity import Files, find_files
from turnout.hidden import without_secrets
from turnout.types import ChatRequest, Details, Endpoint, Event, Health, Json, Model, WireFormat
from turnout.wire.base import Completion

if TYPE_CHECKING:
    from turnout.backends.shelf import Shelf
    from turnout.guard.network import HttpClient, Reply

MAX_ERROR_CHARS = 300
MAX_REPLY_BYTES = 64_000_000
POLL_SECONDS = 0.3
FEED_GAP = 0.2  # seconds between two readings of a feed: a server that floods us fills its own buffers
# What a look reads: a list of 100,000 models fits, and is cut to its first rows before anybody works on it.
MAX_LOOK_BYTES = 12_000_000
MAX_ROWS = 2_000
MAX_DETAILS_BYTES = 4_000_000  # of one model; many are asked for at once
LARGE_JSON_BYTES, MAX_JSON_NODES = 100_000, 500_000

_OVERFLOW = re.compile(
    r"exceed(?:s|ed)?[\w\s]{0,40}context|context[\w\s]{0,20}(?:length|size|window)|context is \d|input length exceeds|"
    r"prompt is too long|prompt is longer|too many tokens|reduce the length",
    re.IGNORECASE,
)
_NOT_FOUND = re.compile(r"not found|does not exist|no such model|unknown model|try pulling|not loaded", re.IGNORECASE)
_UNSUPPORTED = re.compile(r"not supported|does not support|unsupported", re.IGNORECASE)
# Also what turns the direction of writing: with it a terminal shows another name than the one that is there.
_AMOUNT = re.compile(r"(\d{1,8}(?:\.\d{1,8})?)\s*([KMBT])(?![A-Z])", re.IGNORECASE)
_UNIT = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_COUNT_BEFORE_LIMIT = re.compile(
    r"(\d+)\s*(?:input\s+)?tokens?\)?[^.]{0,60}?(?:context|limit)[^.]{0,40}?(\d+)", re.IGNORECASE
)
_LIMIT_IS = re.compile(r"(?:context (?:length|size|window) (?:is|of)|maximum[a-z\s]{0,20}) ?(\d+)", re.IGNORECASE)
# "at least N" is where a server stopped counting, so it is no count.
_PROMPT_IS = re.compile(r"(?:contains|has|prompt is|prompt length) (\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server was found to be.

    Attributes:
        evidence: by which reply, for people.
        notes: as those of ``Inspection``, from the replies that identified it; they hold until it is identified anew.
    """

    kind: str
    evidence: str
    version: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a server can do now.

    Attributes:
        slots: requests it serves at once, 0 when it does not tell.
        busy, waiting: requests that run and that queue there now, None when it does not tell without being woken.
        capacity: models it keeps loaded at once, 0 when it does not tell.
        children: base URLs, as seen from here, of private servers that it started and speaks for.
        notes: what an air-gap audit wants to know of it (a way out that is open, a tool that runs commands).
        speed: tokens a second that it generates or last generated, 0.0 when it does not tell.
        chat_path: where this very server takes chat, when that is not its kind's usual path.
        child_of: the kind of server whose store its weights come from, or "": most likely that server started it for
            itself, and what it has is counted there already.
    """

    health: Health
    reason: str
    models: tuple[Model, ...] = ()
    slots: int = 0
    busy: int | None = None
    waiting: int | None = None
    capacity: int = 0
    children: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    version: str = ""
    speed: float = 0.0
    chat_path: str = ""
    child_of: str = ""


class StreamParser(Protocol):
    """Turns a backend's bytes into events (``wire/`` has one per format)."""

    @property
    def finished(self) -> bool:
        """A proper end was seen."""

    @property
    def ended(self) -> bool:
        """The format's end mark was seen: nothing that matters follows."""

    def feed(self, data: bytes) -> list[Event]:
        """Events that ``data`` completed."""

    def close(self) -> list[Event]:
        """Events left when the body ends."""


@dataclass(frozen=True, slots=True)
class TextCall:
    """What to POST where, and how to read the stream that answers; ``from_root``: not below an address's ``/v1``."""

    path: str
    body: bytes
    parser: Callable[[], StreamParser]
    from_root: bool = False


Told: TypeAlias = Callable[[str], None]
Vectors: TypeAlias = tuple[tuple[float, ...], ...]
Ranks: TypeAlias = tuple[tuple[int, float], ...]


class Backend:
    """A kind of server. Subclasses say what it is; what is optional here is refused in clear words.

    Attributes:
        kind: its name in the configuration.
        title: its name for people.
        default_urls: where it listens by default.
        wire: the chat format it speaks best.
        native: the formats in which it is handed a client's own bytes: those that it speaks well (docs/wire.md).
        probes: the GET paths whose replies ``identify`` reads.
        key_headers: the headers in which it takes a key; the first is the one we send.
        routed: used when it was only found; False for a front end to other servers, which is used when configured.
        streams: answers a stream request with a stream.
        from_root: its paths are not below the ``/v1`` that people write after an address.
        answer_limit: tokens that an answer gets where a request names no limit, at a server that also cuts the prompt
            to make room for the answer: such a server is told the room that is left. 0 for all others.
        silent_overflow: an answer without a word is how it says that the prompt exceeds the window.
        takes_window: it allocates the window that a request names.
        default_slots: requests that it serves at once where it does not tell; 0 for those that queue any number well.
        cuts_silently: it may drop the beginning of a prompt that is too long, and answers as if nothing were missing.
        structures: it holds an answer to the JSON schema that is asked for.
        shelf: where it reads models from; None where nothing can be imported.
    """

    kind: str
    title: str
    default_urls: tuple[str, ...] = ()
    wire: WireFormat
    native: frozenset[WireFormat] = frozenset()
    probes: tuple[str, ...]
    key_headers: tuple[str, ...] = ("Authorization",)
    routed: bool = True
    streams: bool = True
    from_root: bool = False
    answer_limit: int = 0
    silent_overflow: bool = False
    takes_window: bool = False
    default_slots: int = 0
    cuts_silently: bool = False
    structures: bool = True
    shelf: Shelf | None = None

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """The verdict from the replies that came (by path), or None. Never by port or status alone."""
        raise NotImplementedError

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """Health and models, by GETs that neither wake nor load a model. ``timeout`` in seconds."""
        raise NotImplementedError

    def lacks_details(self, model: Model) -> bool:
        """Whether ``inspect`` left open what ``details`` would tell of this model now.

        Never asked of a model of another machine: the server might ask that machine.
        """
        return False

    async def details(self, client: HttpClient, endpoint: Endpoint, model: Model, timeout: float) -> Details:
        """What this kind tells of one model at a time, neither waking nor loading it; ``timeout`` in seconds.

        Discovery asks once for a model and remembers the answer for as long as it has the same digest.

        Raises:
            BackendError: it did not tell.
        """
        raise self.cannot("tell more of a model", endpoint)

    async def window_when_loaded(self, client: HttpClient, endpoint: Endpoint, model: Model) -> int:
        """The window in tokens that a model which is not loaded will have; asked before a request loads it."""
        return model.window

    def chat_path(self, endpoint: Endpoint) -> str:
        """Where chat requests go."""
        raise NotImplementedError

    def native_path(self, endpoint: Endpoint, spoken: WireFormat) -> str:
        """Where a client's own bytes go, in one of the formats of ``native``."""
        return self.chat_path(endpoint)

    def takes(self, endpoint: Endpoint, spoken: WireFormat) -> bool:
        """Whether this server is handed a client's own bytes. Where chat has a path of its own, others have it too."""
        return spoken in self.native and (spoken is self.wire or not endpoint.chat_path)

    def files_of(self, model: Model, folders: Sequence[Path]) -> Files | None:
        """A model's files on this machine, None when they cannot be found. ``folders``: where they may be, too."""
        return find_files(model.weights.path, model.id, folders)

    def told_window(self, model: Model, window: int) -> int | None:
        """The window in tokens that a request names, for servers that allocate it; else None."""
        return None

    def render(self, request: ChatRequest, model: Model, window: int) -> bytes:
        """The body of a chat request, streaming if the kind streams. ``window``: tokens, for servers that are told."""
        raise NotImplementedError

    def parser(self) -> StreamParser:
        """A fresh parser for one streamed answer."""
        raise NotImplementedError

    def read_whole(self, body: bytes) -> list[Event]:
        """The events of an answer that is no stream, for a kind that does not stream.

        Raises:
            NonsenseError, ServerFailedError: it is no answer.
        """
        raise NotImplementedError

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """What a refusal means, in this server's own words."""
        return classify_error(endpoint, status, headers, body)

    async def count_tokens(self, client: HttpClient, endpoint: Endpoint, request: ChatRequest, model: Model) -> int:
        """Exact tokens of the prompt as this server counts them, or 0 when it cannot tell without being woken."""
        return 0

    @property
    def counts(self) -> bool:
        """This kind has a way to count."""
        return type(self).count_tokens is not Backend.count_tokens

    async def embed(self, client: HttpClient, endpoint: Endpoint, model: Model, texts: Sequence[str]) -> Vectors:
        """One vector per text.

        Raises:
            BackendError: it makes no embeddings, or this model does not.
        """
        raise self.cannot("make embeddings", endpoint)

    async def rerank(
        self, client: HttpClient, endpoint: Endpoint, model: Model, query: str, documents: Sequence[str]
    ) -> Ranks:
        """``(place of the document, relevance)`` of every document, the most relevant first.

        Raises:
            BackendError: it does not rank, or this model does not.
        """
        raise self.cannot("rank documents", endpoint)

    def completion(self, endpoint: Endpoint, asked: Completion, model: Model, window: int) -> TextCall:
        """How to have a text gone on with, in a stream. ``window``: tokens, for servers that are told.

        Raises:
            BackendError: it has no means to.
        """
        raise self.cannot("go on with a text", endpoint)

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: Told) -> None:
        """Have the server load a model and keep it; returns when it is loaded. ``told`` hears of the progress.

        Raises:
            BackendError: it has no means to, or it failed.
        """
        raise self.cannot("load a model on request", endpoint)

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """Have the server free a model's memory.

        Raises:
            BackendError: it has no means to, or it failed.
        """
        raise self.cannot("unload a model on request", endpoint)

    def changes(self, client: HttpClient, endpoint: Endpoint) -> AsyncGenerator[str, None] | None:
        """A feed that says one line for every change of what is loaded; None when the kind has none and is polled.

        A feed that ends by itself has no more to say: a server of the kind that has none, or that is shutting down. It
        raises a BackendError when it breaks, and when it was silent for so long that it may be dead.
        """
        return None

    def check(self, request: ChatRequest, endpoint: Endpoint) -> None:
        """Refuse what this kind would drop without a word.

        Raises:
            RequestRefusedError: the answer is to have a form, which this kind does not look at.
        """
        if not self.structures and request.response_format and request.response_format.get("type") != "text":
            raise self.cannot("hold an answer to a form (response_format)", endpoint)

    def cannot(self, what: str, endpoint: Endpoint) -> RequestRefusedError:
        """The refusal of what this kind has no means for."""
        return RequestRefusedError(f"{endpoint.name}: {self.title} has no means to {what}", endpoint=endpoint.name)


def auth_headers(backend: Backend, endpoint: Endpoint) -> dict[str, str]:
    """Headers that carry the endpoint's key and the Host it insists on."""
    headers: dict[str, str] = {}
    if endpoint.key:
        name = backend.key_headers[0]
        headers[name] = f"Bearer {endpoint.key}" if name == "Authorization" else endpoint.key
    if endpoint.host_header:
        headers["Host"] = endpoint.host_header
    return headers


async def get(
    client: HttpClient,
    backend: Backend,
    endpoint: Endpoint,
    path: str,
    timeout: float,
    max_bytes: int = MAX_LOOK_BYTES,
) -> Reply:
    """GET ``path`` at an endpoint with its key; ``timeout`` in seconds. Raises as ``HttpClient.fetch``.

    Of a list in a large answer the first ``MAX_ROWS + 1`` rows are kept: whoever has more than ``MAX_ROWS`` had more.
    """
    url = client.request_url(endpoint.url, path)
    headers = auth_headers(backend, endpoint)
    return _shortened(await client.get_json(url, headers=headers, timeout=timeout, max_bytes=max_bytes))


def _shortened(reply: Reply) -> Reply:
    if len(reply.body) <= LARGE_JSON_BYTES:
        return reply
    data = json_object(reply.body)
    if not any(isinstance(value, list) and len(value) > MAX_ROWS for value in data.values()):
        return reply
    kept = {key: value[: MAX_ROWS + 1] if isinstance(value, list) else value for key, value in data.items()}
    return replace(reply, body=msgspec.json.encode(kept))


async def get_object(
    client: HttpClient,
    backend: Backend,
    endpoint: Endpoint,
    path: str,
    timeout: float,
    max_bytes: int = MAX_LOOK_BYTES,
) -> dict[str, Json]:
    """The JSON object at ``path``; empty when there is none, or no answer: for what is good to know and not needed."""
    reply = await try_get(client, backend, endpoint, path, timeout, max_bytes)
    return json_object(reply.body) if reply is not None and reply.status == 200 else {}


async def try_get(
    client: HttpClient,
    backend: Backend,
    endpoint: Endpoint,
    path: str,
    timeout: float,
    max_bytes: int = MAX_LOOK_BYTES,
) -> Reply | None:
    """As ``get``; None when no answer came."""
    try:
        return await get(client, backend, endpoint, path, timeout, max_bytes)
    except BackendError:
        return None


def at_root(endpoint: Endpoint) -> Endpoint:
    """The endpoint without the ``/v1`` that people write after an address: for paths that are not below it."""
    return replace(endpoint, url=endpoint.url.removesuffix("/v1"))


async def post(
    client: HttpClient,
    backend: Backend,
    endpoint: Endpoint,
    path: str,
    body: object,
    timeout: float,
    max_bytes: int = MAX_REPLY_BYTES,
) -> Reply:
    """POST a JSON body; ``timeout`` in seconds for all of it.

    Raises:
        BackendError: it did not answer, or refused, in the class its words mean.
    """
    reply = await client.fetch(
        "POST",
        client.request_url(endpoint.url, path),
        body=msgspec.json.encode(body),
        headers=auth_headers(backend, endpoint) | {"Content-Type": "application/json"},
        timeout=timeout,
        max_bytes=max_bytes,
    )
    if reply.status >= 400:
        raise backend.error(endpoint, reply.status, reply.headers, reply.body)
    return reply


def clean(text: str, limit: int = MAX_ERROR_CHARS) -> str:
    """A server's words made safe for a terminal and a log: no control characters, no key, one line, shortened."""
    line = without_secrets(" ".join(_CONTROL.sub(" ", text).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


async def until(done: Callable[[], Awaitable[bool]], seconds: float, late: str, endpoint: Endpoint) -> None:
    """Ask again and again until a server is done with what it does not report by itself.

    Raises:
        PhaseTimeoutError: ``late``, after so many seconds.
    """
    try:
        async with asyncio.timeout(seconds):
            while not await done():  # noqa: ASYNC110 - the other side is another process
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise PhaseTimeoutError(f"{late} within {seconds:g} s", phase="total", endpoint=endpoint.name) from error


def json_object(body: bytes) -> dict[str, Json]:
    """The JSON object in ``body``; empty when it is something else. For probes, where nonsense is only no evidence."""
    if len(body) > LARGE_JSON_BYTES and body.count(b"[") + body.count(b"{") > MAX_JSON_NODES:
        return {}  # a few bytes each on the wire, a hundred in memory
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def json_rows(body: bytes) -> list[dict[str, Json]]:
    """The objects of the JSON list in ``body``, for servers that answer with a bare list; empty when it is none.

    As ``get`` does of other lists, it keeps the first ``MAX_ROWS + 1``.
    """
    return rows(json_object(b'{"rows":' + body + b"}").get("rows"))[: MAX_ROWS + 1]


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


def float_of(value: Json) -> float:
    """A non-negative number, or 0.0 when it is something else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return 0.0
    return float(value)


def parameters_of(text: str) -> int:
    """Of ``7.6B``, or ``26B-A4B`` (all of a mixture of experts, then the active ones); 0 when it is something else."""
    match = _AMOUNT.match(text.strip())
    return int(float(match[1]) * _UNIT[match[2].upper()]) if match else 0


def dict_of(value: Json) -> dict[str, Json]:
    """An object, or an empty one when it is something else."""
    return value if isinstance(value, dict) else {}


def child_url(endpoint: Endpoint, told: str) -> str:
    """The base URL, as seen from here, of a private server that ``endpoint`` says it started; "" when it is elsewhere.

    Its word counts for its own machine alone: else any server could have another machine's taken for its child.
    """
    try:
        child, parent = urlsplit(told), urlsplit(endpoint.url)
        port = child.port
    except ValueError:
        return ""
    here = child.hostname in ("127.0.0.1", "::1", "localhost", parent.hostname)
    if child.scheme not in ("http", "https") or not here or not port or port == parent.port:
        return ""
    host = parent.hostname or "127.0.0.1"
    return f"{child.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def replied(replies: Mapping[str, Reply], path: str) -> dict[str, Json]:
    """The JSON object that was answered at ``path`` under 200; empty when it was something else."""
    reply = replies.get(path)
    return json_object(reply.body) if reply is not None and reply.status == 200 else {}


def first_owner(replies: Mapping[str, Reply]) -> str:
    """``owned_by`` of the first row of the model list, or ""."""
    listing = rows(replied(replies, "/v1/models").get("data"))
    return text_of(listing[0].get("owned_by")) if listing else ""


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
    if status == 403 and "cloud is disabled" in text:
        # Ollama, at whichever of its paths: the model is another machine's.
        return UnknownModelError(f"{endpoint.name}: {text}", **where)  # type: ignore[arg-type]
    if status in (401, 403, 407):
        return KeyRefusedError(f"{endpoint.name} refused the key: {text}", **where)  # type: ignore[arg-type]
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
