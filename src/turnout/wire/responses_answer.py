"""The answer to a client of the Responses format; what is lost stands in ``openai_responses``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from turnout.errors import ContextOverflowError, TurnoutError
from turnout.types import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    Json,
    RawHead,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from turnout.wire import freeform, openai_chat
from turnout.wire.base import as_dict, encode, joined, new_id
from turnout.wire.openai_chat import collect_calls, overflow_text, status_of

_ECHOED = ("previous_response_id", "prompt_cache_key", "truncation")
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(slots=True)
class _Item:
    """An item under way: a message, reasoning (``part``: its summary has begun), a call, or one of a custom tool."""

    kind: str
    id: str
    call: ToolCallDelta | None = None
    pieces: list[str] = field(default_factory=list)
    part: bool = False
    signature: str = ""
    logprobs: list[Mapping[str, Json]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class StreamRenderer:
    """Events as the SSE bytes of one answer: items one after the other, each one done before the next is added.

    What comes for another item while a call is open waits for the end, since the call may still grow.

    Args:
        chat: the request that is answered.
        model: ResponseModel.
        request_id: part of the answer's id.
    """

    def __init__(self, chat: ChatRequest, model: str, request_id: str) -> None:
        self.id = f"resp_{request_id}"
        self._frame = _frame(chat, model, self.id)
        self._freeform = {tool.name for tool in chat.tools if tool.freeform}
        self._groups = {tool.name: tool.namespace for tool in chat.tools if tool.namespace}
        self._number = 0
        self._done: list[dict[str, object]] = []
        self._item: _Item | None = None
        self._waiting: dict[int, _Item] = {}
        self._later: list[ReasoningDelta | TextDelta] = []
        self._usage = Usage()
        self._finish: FinishReason = "stop"

    def feed(self, event: Event) -> bytes:
        """The bytes of one event, b"" when it has none here."""
        match event:
            case ToolCallDelta():
                return self._call(event)
            case TextDelta() | ReasoningDelta():
                if self._item is not None and self._item.call is not None:
                    self._later.append(event)
                    return b""
                return self._show(event)
            case UsageReport(usage):
                self._usage = usage
                return b""
            case Finish(reason):
                self._finish = reason
                return b""
            case RawHead():  # the server's own, of the same id
                self._number = max(1, self._number)
                return b""
            case _:
                return b""

    def _show(self, event: TextDelta | ReasoningDelta) -> bytes:
        if isinstance(event, TextDelta):
            return self._text(event.text, event.logprobs) if event.text or event.logprobs else b""
        return self._reason(event) if event.text or event.signature else b""

    def _text(self, text: str, logprobs: Sequence[Mapping[str, Json]]) -> bytes:
        data = b""
        if self._item is None or self._item.kind != "message":
            data = self._begin(_Item("message", new_id("msg_"), part=True))
            data += self._part_event("response.content_part.added", "content_index", _text_part(""))
        self._open.pieces.append(text)
        self._open.logprobs += logprobs
        place = self._place("content_index")
        return data + self._event("response.output_text.delta", **place, delta=text, logprobs=logprobs)

    def _reason(self, event: ReasoningDelta) -> bytes:
        data = b""
        if self._item is None or self._item.kind != "reasoning":
            data = self._begin(_Item("reasoning", new_id("rs_")))
        item = self._open
        item.signature += event.signature
        if not event.text:
            return data
        if not item.part:
            item.part = True
            data += self._part_event("response.reasoning_summary_part.added", "summary_index", _summary(""))
        item.pieces.append(event.text)
        delta = self._event("response.reasoning_summary_text.delta", **self._place("summary_index"), delta=event.text)
        return data + delta

    def _call(self, event: ToolCallDelta) -> bytes:
        item = self._item
        if item is not None and item.call is not None:
            if item.call.index == event.index:
                return self._arguments(event.arguments)
            waiting = self._waiting.get(event.index)
            if waiting is None:
                waiting = self._waiting[event.index] = self._called(event)
            waiting.pieces.append(event.arguments)
            return b""
        return self._begin(self._called(event)) + self._arguments(event.arguments)

    def _called(self, event: ToolCallDelta) -> _Item:
        named = ToolCallDelta(event.index, event.call_id or new_id("call_"), event.name, namespace=event.namespace)
        if event.name in self._freeform:
            return _Item("custom", event.item_id or new_id("ctc_"), named)
        return _Item("call", event.item_id or new_id("fc_"), named)

    def _arguments(self, text: str) -> bytes:
        if not text:
            return b""
        item = self._open
        item.pieces.append(text)
        if item.kind == "custom":  # its text is known when the arguments are whole
            return b""
        return self._event("response.function_call_arguments.delta", **self._place(), delta=text)

    @property
    def _open(self) -> _Item:
        assert self._item is not None
        return self._item

    def _begin(self, item: _Item) -> bytes:
        data = self._head() + self._end_item()
        self._item = item
        shown = self._shown(item, "in_progress")
        return data + self._event("response.output_item.added", output_index=len(self._done), item=shown)

    def _end_item(self) -> bytes:
        item = self._item
        if item is None:
            return b""
        data, text = b"", item.text
        cut = self._finish in _INCOMPLETE and not self._waiting and not self._later
        match item.kind:
            case "message":
                place, told = self._place("content_index"), item.logprobs
                data = self._event("response.output_text.done", **place, text=text, logprobs=told)
                data += self._part_event("response.content_part.done", "content_index", _text_part(text, told))
            case "reasoning" if item.part:
                data = self._event("response.reasoning_summary_text.done", **self._place("summary_index"), text=text)
                data += self._part_event("response.reasoning_summary_part.done", "summary_index", _summary(text))
            case "call":
                # Nothing is no JSON, and an agent would refuse to run it.
                data = self._arguments("" if cut or text.strip() else "{}")
                name = self._name(item)["name"]
                done = "response.function_call_arguments.done"
                data += self._event(done, **self._place(), name=name, arguments=item.text)
            case "custom":
                said = freeform.text_of(text)
                data = (
                    self._event("response.custom_tool_call_input.delta", **self._place(), delta=said) if said else b""
                )
                data += self._event("response.custom_tool_call_input.done", **self._place(), input=said)
            case _:
                pass
        shown = self._shown(item, "incomplete" if cut else "completed")
        data += self._event("response.output_item.done", output_index=len(self._done), item=shown)
        self._done.append(shown)
        self._item = None
        return data

    def _shown(self, item: _Item, status: str) -> dict[str, object]:
        """The item as the client sees it: empty while in progress."""
        whole = status != "in_progress"
        match item.kind:
            case "message":
                content = [_text_part(item.text, item.logprobs)] if whole else []
                return {"id": item.id, "type": "message", "status": status, "role": "assistant", "content": content}
            case "reasoning":
                summary = [_summary(item.text)] if whole and item.part else []
                proof = {"encrypted_content": item.signature} if item.signature else {}
                return {"id": item.id, "type": "reasoning", "summary": summary, **proof}
            case _:
                assert item.call is not None
                head = {"id": item.id, "type": "function_call", "status": status, "call_id": item.call.call_id}
                if item.kind == "custom":
                    said = freeform.text_of(item.text) if whole else ""
                    return {**head, "type": "custom_tool_call", **self._name(item), "input": said}
                return {**head, **self._name(item), "arguments": item.text if whole else ""}

    def _name(self, item: _Item) -> dict[str, object]:
        """A call's bare name, and its namespace where it has one."""
        assert item.call is not None
        name = item.call.name
        namespace = item.call.namespace or self._groups.get(name, "")
        return {"name": name.removeprefix(f"{namespace}__"), "namespace": namespace} if namespace else {"name": name}

    def _flush(self) -> bytes:
        """The open item and all that waited for it."""
        data = b""
        while self._waiting:
            index = min(self._waiting)
            waiting = self._waiting[index]
            pieces, waiting.pieces = waiting.pieces, []
            data += self._begin(waiting)
            del self._waiting[index]
            data += self._arguments("".join(pieces))
        data += b"".join(self._show(event) for event in self._later)
        self._later = []
        return data + self._end_item()

    def _head(self) -> bytes:
        if self._number:
            return b""
        response = self._response("in_progress")
        started = self._event("response.created", response=response)
        return started + self._event("response.in_progress", response=response)

    def _response(self, status: str, **fields: object) -> dict[str, object]:
        return {**self._frame, "status": status, "output": self._done, **fields}

    def _place(self, index: str = "") -> dict[str, object]:
        place: dict[str, object] = {"item_id": self._open.id, "output_index": len(self._done)}
        return {**place, index: 0} if index else place

    def _part_event(self, kind: str, index: str, part: Mapping[str, object]) -> bytes:
        return self._event(kind, **self._place(index), part=part)

    def _event(self, kind: str, **fields: object) -> bytes:
        data = encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def keep_alive(self) -> bytes:
        """An event that says what is known: Codex counts the silence between events, and a comment is none."""
        return self._head() or self._event("response.in_progress", response=self._response("in_progress"))

    def error(self, error: TurnoutError) -> bytes:
        """A failure in the middle of the stream; ``output`` holds the items that were done."""
        return self._head() + self._event("response.failed", response=self._response("failed", error=_failure(error)))

    def close(self) -> bytes:
        """Every item done, then the end of the response."""
        data = self._head() + self._flush()
        response = self.response()
        return data + self._event(f"response.{response['status']}", response=response)

    def response(self) -> dict[str, object]:
        """The whole answer, once it is closed."""
        usage = _usage_value(self._usage)
        if reason := _INCOMPLETE.get(self._finish):
            return self._response("incomplete", usage=usage, incomplete_details={"reason": reason})
        return self._response("completed", usage=usage)


def _text_part(text: str, logprobs: Sequence[Mapping[str, Json]] = ()) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _summary(text: str) -> dict[str, object]:
    return {"type": "summary_text", "text": text}


def _frame(chat: ChatRequest, model: str, response_id: str) -> dict[str, object]:
    """What is the same in every copy of the response that an answer holds."""
    client, metadata = chat.client_fields, as_dict(chat.client_fields.get("metadata"))
    echoed = {key: client[key] for key in _ECHOED if isinstance(client.get(key), str)}
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {key: value for key, value in metadata.items() if isinstance(value, str)},
        "parallel_tool_calls": chat.extras.get("parallel_tool_calls") is not False,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "max_output_tokens": chat.max_tokens,
        "reasoning": {"effort": chat.reasoning_effort or None, "summary": None},
        "store": client.get("store") is not False,
        "tool_choice": _choice_value(chat),
        "tools": [],
        "usage": None,
        **echoed,
    }


def _choice_value(chat: ChatRequest) -> object:
    name = chat.tool_choice.removeprefix("tool:")
    if name == chat.tool_choice:
        return name or "auto"
    custom = any(tool.freeform and tool.name == name for tool in chat.tools)
    return {"type": "custom" if custom else "function", "name": name}


def _usage_value(usage: Usage) -> dict[str, object]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def render_response(events: Sequence[Event], chat: ChatRequest, model: str, request_id: str) -> bytes:
    """A whole answer."""
    renderer = StreamRenderer(chat, model, request_id)
    reasoning = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    signature = "".join(e.signature for e in events if isinstance(e, ReasoningDelta))
    renderer.feed(ReasoningDelta(reasoning, signature))
    text, logprobs = joined(events)
    renderer.feed(TextDelta(text, tuple(logprobs)))
    for index, call in enumerate(collect_calls(events)):
        renderer.feed(ToolCallDelta(index, call.call_id, call.name, call.arguments, call.item_id, call.namespace))
    for event in events:
        if isinstance(event, UsageReport | Finish):
            renderer.feed(event)
    renderer.close()
    return encode(renderer.response())


def render_error(error: TurnoutError, status: int = 0) -> tuple[int, bytes]:
    """Status and body of a failure in this format; ``status`` 0 takes the failure's own.

    Too many requests are 503 here: Codex tries that again, and ends at 429 (facts/agents.md, section 4).
    """
    status = status or status_of(error)
    return openai_chat.render_error(error, 503 if status == 429 else status)


def _failure(error: TurnoutError) -> dict[str, object]:
    """The error of a response, in the words that Codex sorts by: compact, give up, or ask again."""
    if isinstance(error, ContextOverflowError):
        return {"code": error.code, "message": overflow_text(error)}
    return {"code": "invalid_prompt" if status_of(error) < 500 else "server_error", "message": str(error)}
