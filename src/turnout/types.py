"""The vocabulary: values that travel through the pipeline. Frozen, typed, no behaviour beyond small views.

Token counts are in tokens, durations in seconds unless a name ends in ``_ms``, sizes in bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from turnout.weights import NOT_TOLD, UNCHECKED, Verdict, Weights

if TYPE_CHECKING:
    from turnout.errors import BackendError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
NOTHING: Mapping[str, Json] = MappingProxyType({})


def _nothing() -> Mapping[str, Json]:
    return NOTHING


class TaskCategory(enum.StrEnum):
    """The kind of work a query is (SPEC TASK-1; definitions in the data folder's README)."""

    CODING = "coding"
    REASONING = "reasoning"
    ANALYSIS = "analysis"
    DOCUMENTATION = "documentation"


# Names that ask for a choice, not for a model (SPEC GW-4).
VIRTUAL_MODELS = frozenset({"auto", *TaskCategory})


class FallbackLevel(enum.IntEnum):
    """Which step of the fallback answered (SPEC FB-1)."""

    PRIMARY = 0
    FALLBACK = 1
    REDUCED_CONTEXT = 2
    SMALLEST = 3
    FAILED = 4


class WireFormat(enum.StrEnum):
    """A chat protocol on the wire."""

    OPENAI_CHAT = "openai_chat"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"
    OLLAMA_GENERATE = "ollama_generate"
    RESPONSES = "openai_responses"


Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text. ``extras`` holds what one format alone knows, for example a cache hint."""

    text: str
    extras: Mapping[str, Json] = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True)
class Image:
    """An image as base64 ``data`` with its media type, or as a ``url`` (never fetched by us)."""

    media_type: str = ""
    data: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A model's reasoning; ``signature`` is the opaque proof some formats want back."""

    text: str
    signature: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call. ``arguments`` is the JSON text as the model wrote it, valid or not.

    Two ids, because the Responses format has one for the item and one for the call.
    """

    call_id: str
    name: str
    arguments: str
    item_id: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back for ``call_id``. ``name`` is the tool's, "" when the format does not carry it."""

    call_id: str
    content: str
    name: str = ""
    is_error: bool = False


Part: TypeAlias = Text | Image | Reasoning | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    parts: tuple[Part, ...]
    extras: Mapping[str, Json] = field(default_factory=_nothing)

    @property
    def text(self) -> str:
        """The message's text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls in this message, in order."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))

    @property
    def tool_results(self) -> tuple[ToolResult, ...]:
        """The tool results in this message, in order."""
        return tuple(part for part in self.parts if isinstance(part, ToolResult))


def message(role: Role, text: str) -> Message:
    """A message of one text part."""
    return Message(role, (Text(text),))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. ``schema`` is the JSON schema of its arguments.

    ``name`` is the whole name that a model sees, here and in every call; ``namespace`` the group that the Responses
    format puts it in, which is then the beginning of the name. ``freeform``: its client wants a text, no arguments.
    """

    name: str
    description: str = ""
    schema: Mapping[str, Json] = field(default_factory=_nothing)
    extras: Mapping[str, Json] = field(default_factory=_nothing)
    namespace: str = ""
    freeform: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a file, 0-based as in LSP."""

    line: int
    character: int = 0


@dataclass(frozen=True, slots=True)
class FileContext:
    """The file the user is in: path relative to the workspace, and where the cursor is."""

    file: str
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class RawBody:
    """The client's own bytes, kept so that the raw lane can forward them with few named edits."""

    format: WireFormat
    body: bytes


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request as the pipeline sees it, whatever format it came in.

    Attributes:
        messages: the whole conversation, oldest first; system messages lead.
        model: the OriginalModel: a server's id, a canonical name, ``auto``, or a category's name.
        max_tokens: the most tokens the answer may have, or None.
        tool_choice: ``auto``, ``none``, ``required``, or the name of a tool as ``tool:NAME``; "" when not given.
        response_format: the OpenAI ``response_format`` object, or None.
        reasoning_effort: ``low``, ``medium``, ``high`` and the like; "" when not given.
        thinking: False when the client wants none of it, in a format that says so beside the effort.
        stream: whether the client reads a stream.
        raw: the client's bytes when they may be forwarded as they are.
        only: what of it no other format can carry, in words; "" when it may be translated.
        category: forced by the caller, else None.
        file_context: the user's file and cursor, or None.
        session_id: the session of ours that this belongs to, or "".
        agent: the calling coding agent's name, or "".
        conversation: what the client calls the conversation that this belongs to, or "".
        own_history: the client keeps and resends its history itself, so for an exact model it is never shortened.
        compact_at: after so many messages, system messages not counted, the conversation is compacted in any case.
        workspace: absolute path whose code may be read as context, or ""; set by us, never by a client.
        extras: fields of the client's format that the neutral form has no place for; a server may know them.
        client_fields: fields that mean something in the client's format alone: for its answer, sent to no server.
    """

    messages: tuple[Message, ...]
    model: str = "auto"
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    response_format: Mapping[str, Json] | None = None
    reasoning_effort: str = ""
    thinking: bool = True
    stream: bool = True
    raw: RawBody | None = None
    only: str = ""
    category: TaskCategory | None = None
    file_context: FileContext | None = None
    session_id: str = ""
    agent: str = ""
    conversation: str = ""
    workspace: str = ""
    own_history: bool = False
    compact_at: tuple[int, ...] = ()
    extras: Mapping[str, Json] = field(default_factory=_nothing)
    client_fields: Mapping[str, Json] = field(default_factory=_nothing)

    @property
    def compactable(self) -> bool:
        """The conversation may be shortened to fit; else the client is told the number instead (SPEC GW-6)."""
        return not self.own_history or not self.model or self.model in VIRTUAL_MODELS

    @property
    def last_user_text(self) -> str:
        """The text of the newest user message, or ""."""
        return next((m.text for m in reversed(self.messages) if m.role == "user" and m.text), "")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. Every request carries one; ``local`` is the person at this machine. ``models``: lists of patterns that
    each must fit a model, exact or virtual, that is asked for; empty for all."""

    id: str = "local"
    roles: frozenset[str] = frozenset({"user"})
    models: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server reported them; ``cached_tokens`` of the prompt came from its prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


# Events: what Router.route yields.


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer; of each token ``token``, ``logprob``, ``bytes``, ``top_logprobs`` where they are told."""

    text: str
    logprobs: tuple[Mapping[str, Json], ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the model's reasoning, or (with empty text) its signature."""

    text: str
    signature: str = ""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call. The first of an ``index`` carries id and name; ``arguments`` pieces are appended."""

    index: int
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    item_id: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The token counts of this answer."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is complete."""

    reason: FinishReason = "stop"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know: ``code`` for programs, ``text`` for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class RawHead:
    """Raw lane: the backend has begun; its content type. Comes before the first RawChunk."""

    status: int
    content_type: str


@dataclass(frozen=True, slots=True)
class RawChunk:
    """Raw lane: bytes to hand on as they are; with the last of them ``answer``, where whoever serves it may keep it."""

    data: bytes
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Started:
    """The attempt that serves this request has begun to answer; ``route`` says which and why."""

    route: Route


# Models and endpoints.


class Health(enum.StrEnum):
    """What an endpoint can do now (SPEC SVC-4)."""

    ONLINE = "online"
    LOADING = "loading"
    NEEDS_KEY = "needs_key"
    DEGRADED = "degraded"
    OFFLINE = "offline"
    UNKNOWN = "unknown"


WindowSource = Literal["known", "configured", "learned", "guessed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits of one endpoint in seconds, and how often a failure there is tried again (SPEC FB-3).

    Attributes:
        adaptive: ``first_byte`` gives way to what a request is expected to take, unless somebody chose it.
    """

    connect: float = 3.0
    first_byte: float = 300.0
    silence: float = 30.0
    total: float = 1800.0
    max_retries: int = 3
    adaptive: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server that runs, or should.

    Attributes:
        name: unique, shown to people: the configured name, or kind and port.
        kind: the Backend's kind that speaks to it.
        url: base URL (``http://127.0.0.1:11434``) or ``unix:/path``; no credentials, no trailing slash.
        priority: lower is preferred.
        key: the secret sent to it, or ""; never printed (``repr`` leaves it out).
        host_header: the Host header it insists on, or "".
        embedded: the bundled demonstration model: last resort.
        configured: named by the user (else found by discovery).
        chat_path, models_path: paths that the user set for a custom endpoint, or that the server was found to have;
            "" means the kind's own.
        window: tokens the user says it has allocated, or 0.
        slots: requests that the user says it serves at once, or 0.
    """

    name: str
    kind: str
    url: str
    priority: int = 10
    limits: Limits = Limits()
    key: str = field(default="", repr=False)
    host_header: str = ""
    embedded: bool = False
    configured: bool = False
    chat_path: str = ""
    models_path: str = ""
    window: int = 0
    slots: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """A model as one server lists it (SPEC SVC-5).

    Attributes:
        id: the server's own id, sent back to it verbatim, and ``sent_suffix`` after it.
        window: tokens that the server has allocated now per request (prompt and answer), or 0 when it hides it.
        max_window: tokens the model was trained for, or 0.
        window_source: how ``window`` is known.
        resident: loaded now; None when the server does not tell.
        capabilities: of ``chat, tools, vision, thinking, embeddings, fim``; empty when the server does not tell.
        parameters: total parameters, or 0.
        size: bytes of the weights, or 0.
        quantization: as the server names it, or "".
        digest: the server's digest of the weights, or ""; ``weights``: what else it tells of them.
        remote: the server only proxies it to somewhere else: never used.
        load_first: not loaded, and until the server is told to load it another model answers in its place.
        sent_suffix: what a kind of server takes after the id to keep a request on its machine, or "".
    """

    id: str
    window: int = 0
    max_window: int = 0
    window_source: WindowSource = "known"
    resident: bool | None = None
    capabilities: frozenset[str] = frozenset()
    family: str = ""
    parameters: int = 0
    size: int = 0
    quantization: str = ""
    digest: str = ""
    weights: Weights = NOT_TOLD
    remote: bool = False
    load_first: bool = False
    sent_suffix: str = ""


@dataclass(frozen=True, slots=True)
class Details:
    """What a server tells of a model only when it is asked for that one; as for the fields of ``Model``. ``window``:
    tokens that will be allocated when it is loaded, or 0 when that is left open. ``weights``: SHA-256 of their file."""

    capabilities: frozenset[str] = frozenset()
    max_window: int = 0
    window: int = 0
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model at an endpoint that could serve, with what is known of it.

    Attributes:
        canonical: the capability table's name, or "" when nobody knows the model.
        window: tokens usable now; ``window_source`` says how that is known.
        scores: 0 to 100 per category.
        score_source: where the scores come from, or ``estimate: ...``.
        evicts: the pinned model that loading this one may push out, or "".
        active: billions of parameters that a token passes, 0 when nobody knows.
        bytes, read_bytes: of its weights, and of those that are read for a token of an answer; 0 when nobody knows.
        feedback: what moved its score in a category, in words.
        verdict: whether it is the model that was recorded.
    """

    endpoint: Endpoint
    model: Model
    canonical: str
    window: int
    window_source: WindowSource
    scores: Mapping[TaskCategory, float]
    score_source: str = ""
    evicts: str = ""
    active: float = 0.0
    bytes: float = 0.0
    read_bytes: float = 0.0
    feedback: Mapping[TaskCategory, str] = field(default_factory=dict)
    verdict: Verdict = UNCHECKED

    @property
    def label(self) -> str:
        """``model @ endpoint`` for people."""
        return f"{self.model.id} @ {self.endpoint.name}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One step of the plan.

    Attributes:
        level: the fallback level it belongs to.
        candidate: the model and endpoint to ask.
        reduced: compact the conversation to fit ``target_window`` first (level 2).
        target_window: tokens to fit into; 0 means the candidate's window.
        tries: how often this very step has failed already.
        wait: seconds to wait before it starts (busy, backoff).
        waited: seconds waited before its earlier tries.
        retry: the same failed here before, and trying it again counts against the budget of retries.
        reason: why it is in the plan, for ``explain``.
        expected, reads: seconds that all of it should take, and its load and the reading of its prompt; 0.0 when
            that was not priced.
    """

    level: FallbackLevel
    candidate: Candidate
    reduced: bool = False
    target_window: int = 0
    tries: int = 0
    wait: float = 0.0
    waited: float = 0.0
    retry: bool = False
    reason: str = ""
    expected: float = 0.0
    reads: float = 0.0


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """An attempt that was made.

    Attributes:
        error: None when it answered.
        seconds: its duration.
        waited: seconds waited before it, because its server had asked for that or had failed before.
    """

    level: FallbackLevel
    model: str
    service: str
    error: BackendError | None
    seconds: float
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """Which way a request went.

    Attributes:
        request_id: ours, in every log line and header.
        requested_model: OriginalModel, what the client asked for.
        sent_model: RequestModel, the id sent to the server.
        canonical: the capability table's name of it, or "".
        service: the endpoint's name; ``url`` its address.
        level: the fallback level that answered.
        category: the kind of work, None when an exact model was asked for.
        window, window_source: the window that was fitted into.
        prompt_tokens: our estimate of the prompt that was sent.
        attempts: what was tried, the last one being this.
        reason: one sentence for people.
        compacted: less was sent than the client has.
        expected: seconds that all of it was expected to take; 0.0 when that was not priced.
    """

    request_id: str
    requested_model: str
    sent_model: str
    canonical: str
    service: str
    url: str
    level: FallbackLevel
    category: TaskCategory | None
    window: int
    window_source: WindowSource
    prompt_tokens: int = 0
    attempts: tuple[AttemptRecord, ...] = ()
    reason: str = ""
    compacted: bool = False
    expected: float = 0.0


_Said: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | UsageReport | Finish
Event: TypeAlias = _Said | Notice | RawHead | RawChunk | Started


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """A collected answer (SPEC FB-1): the text, and which way it went."""

    text: str
    level: FallbackLevel
    model: str
    service: str
    attempts: tuple[AttemptRecord, ...]
    usage: Usage = Usage()
    finish: FinishReason = "stop"
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    notices: tuple[Notice, ...] = ()
    route: Route | None = None
