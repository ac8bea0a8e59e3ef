"""The official Python clients as callers, each asked the same questions and heard in the same words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import anthropic
import ollama
import openai

from tests.fakes.base import TOOL

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}


@dataclass(frozen=True)
class Call:
    """A tool call as the client has it; ``id`` is "" in a format without ids."""

    id: str
    name: str
    arguments: dict[str, object]


@dataclass
class Heard:
    """An answer: ``pieces`` of text that came one by one, 1 when it came whole."""

    text: str = ""
    pieces: int = 0
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    finish: str = ""


class Refused(Exception):
    """An error that a client has raised: its status, words, code (or type) and ``Retry-After``."""

    def __init__(self, status: int, message: str, code: str = "", wait: str = "") -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.message, self.code, self.wait = status, message, code, wait


@dataclass(frozen=True)
class Question:
    """What is asked. ``after`` are calls that were made before, each answered with ``RESULT``."""

    model: str
    text: str = "Add two numbers"
    stream: bool = False
    tools: bool = False
    image: bool = False
    think: bool = False
    schema: bool = False
    after: tuple[Call, ...] = ()
    most: int = 0


RESULT = "sunny in "


class Caller(Protocol):
    """One client library in front of a gateway."""

    name: str

    async def ask(self, question: Question) -> Heard:
        """The whole answer. Raises Refused."""

    async def leave(self, question: Question) -> None:
        """Go away after the first piece of a stream."""


def _result(call: Call) -> str:
    return RESULT + str(call.arguments.get("city"))


class OpenAIChat:
    """``openai``, chat completions."""

    name = "OpenAI chat"

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    def _asked(self, q: Question) -> dict[str, Any]:
        content: object = q.text
        if q.image:
            picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
            content = [{"type": "text", "text": q.text}, picture]
        messages: list[dict[str, object]] = [{"role": "user", "content": content}]
        if q.after:
            functions = [{"name": c.name, "arguments": json.dumps(c.arguments)} for c in q.after]
            calls = [{"id": c.id, "type": "function", "function": f} for c, f in zip(q.after, functions, strict=True)]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            messages += [{"role": "tool", "tool_call_id": c.id, "content": _result(c)} for c in q.after]
        asked: dict[str, Any] = {"model": q.model, "messages": messages, "stream": q.stream}
        if q.tools:
            asked["tools"] = [{"type": "function", "function": {"name": TOOL, "parameters": WEATHER}}]
        if q.think:
            asked["reasoning_effort"] = "high"
        if q.schema:
            wanted = {"name": "answer", "schema": SCHEMA, "strict": True}
            asked["response_format"] = {"type": "json_schema", "json_schema": wanted}
        if q.stream:
            asked["stream_options"] = {"include_usage": True}
        return asked | ({"max_tokens": q.most} if q.most else {})

    async def ask(self, question: Question) -> Heard:
        with _refusals():
            answer = await self._client.chat.completions.create(**self._asked(question))
            return await self._streamed(answer) if question.stream else self._whole(answer)

    def _whole(self, answer: Any) -> Heard:
        message, usage = answer.choices[0].message, answer.usage
        calls = [Call(c.id, c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or ()]
        return Heard(
            message.content or "", 1, _reasoning(message), calls, usage.prompt_tokens, usage.completion_tokens,
            answer.choices[0].finish_reason,
        )  # fmt: skip

    async def _streamed(self, answer: Any) -> Heard:
        heard, calls = Heard(), {}
        async for chunk in answer:
            if chunk.usage:
                heard.prompt_tokens, heard.answer_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
            for choice in chunk.choices:
                delta = choice.delta
                heard.text += delta.content or ""
                heard.pieces += bool(delta.content)
                heard.reasoning += _reasoning(delta)
                heard.finish = choice.finish_reason or heard.finish
                for row in delta.tool_calls or ():
                    call = calls.setdefault(row.index, {"id": "", "name": "", "arguments": ""})
                    call["id"] += row.id or ""
                    call["name"] += row.function.name or ""
                    call["arguments"] += row.function.arguments or ""
        heard.calls = [Call(c["id"], c["name"], json.loads(c["arguments"])) for c in calls.values()]
        return heard

    async def leave(self, question: Question) -> None:
        answer = await self._client.chat.completions.create(**self._asked(replace(question, stream=True)))
        async for chunk in answer:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        await answer.close()


def _reasoning(message: Any) -> str:
    """Under either name that servers of this format have; a client knows one of them."""
    extra = message.model_extra or {}
    return str(extra.get("reasoning_content") or extra.get("reasoning") or "")


class Responses:
    """``openai``, the Responses API."""

    name = "OpenAI Responses"

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    def _asked(self, q: Question) -> dict[str, Any]:
        content: list[dict[str, object]] = [{"type": "input_text", "text": q.text}]
        if q.image:
            content.append({"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PNG}"})
        items: list[dict[str, object]] = [{"role": "user", "content": content}]
        for c in q.after:
            arguments = json.dumps(c.arguments)
            items.append({"type": "function_call", "call_id": c.id, "name": c.name, "arguments": arguments})
        items += [{"type": "function_call_output", "call_id": c.id, "output": _result(c)} for c in q.after]
        asked: dict[str, Any] = {"model": q.model, "input": items, "stream": q.stream, "store": False}
        if q.tools:
            asked["tools"] = [{"type": "function", "name": TOOL, "parameters": WEATHER, "strict": False}]
        if q.think:
            asked["reasoning"] = {"effort": "high", "summary": "auto"}
        if q.schema:
            asked["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
        return asked | ({"max_output_tokens": q.most} if q.most else {})

    async def ask(self, question: Question) -> Heard:
        with _refusals():
            answer = await self._client.responses.create(**self._asked(question))
            if not question.stream:
                return self._whole(answer, 1)
            pieces, last = 0, None
            async for event in answer:
                pieces += event.type == "response.output_text.delta"
                if event.type in ("response.completed", "response.incomplete"):
                    last = event.response
            assert last is not None, "the stream has no last event"
            return self._whole(last, pieces)

    def _whole(self, answer: Any, pieces: int) -> Heard:
        heard = Heard(answer.output_text, pieces, finish=answer.status)
        heard.prompt_tokens, heard.answer_tokens = answer.usage.input_tokens, answer.usage.output_tokens
        for item in answer.output:
            if item.type == "function_call":
                heard.calls.append(Call(item.call_id, item.name, json.loads(item.arguments)))
            elif item.type == "reasoning":
                heard.reasoning += "".join(part.text for part in item.summary)
        return heard

    async def leave(self, question: Question) -> None:
        answer = await self._client.responses.create(**self._asked(replace(question, stream=True)))
        async for event in answer:
            if event.type == "response.output_text.delta":
                break
        await answer.close()


class Anthropic:
    """``anthropic``, messages."""

    name = "Anthropic"

    def __init__(self, client: anthropic.AsyncAnthropic) -> None:
        self._client = client

    def _asked(self, q: Question) -> dict[str, Any]:
        content: list[dict[str, object]] = [{"type": "text", "text": q.text}]
        if q.image:
            source = {"type": "base64", "media_type": "image/png", "data": PNG}
            content.insert(0, {"type": "image", "source": source})
        messages: list[dict[str, object]] = [{"role": "user", "content": content}]
        if q.after:
            calls = [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments} for c in q.after]
            results = [{"type": "tool_result", "tool_use_id": c.id, "content": _result(c)} for c in q.after]
            messages += [{"role": "assistant", "content": calls}, {"role": "user", "content": results}]
        asked: dict[str, Any] = {"model": q.model, "messages": messages, "max_tokens": q.most or 2000}
        if q.tools:
            asked["tools"] = [{"name": TOOL, "input_schema": WEATHER}]
        if q.think:
            asked["thinking"] = {"type": "adaptive"}
            asked["output_config"] = {"effort": "high"}
        if q.schema:
            asked["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
        return asked

    async def ask(self, question: Question) -> Heard:
        with _refusals():
            if not question.stream:
                return self._whole(await self._client.messages.create(**self._asked(question)), 1)
            async with self._client.messages.stream(**self._asked(question)) as stream:
                pieces = len([piece async for piece in stream.text_stream])
                return self._whole(await stream.get_final_message(), pieces)

    def _whole(self, answer: Any, pieces: int) -> Heard:
        heard = Heard(pieces=pieces, finish=answer.stop_reason)
        heard.prompt_tokens = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
        heard.answer_tokens = answer.usage.output_tokens
        for block in answer.content:
            if block.type == "text":
                heard.text += block.text
            elif block.type == "thinking":
                heard.reasoning += block.thinking
            elif block.type == "tool_use":
                heard.calls.append(Call(block.id, block.name, dict(block.input)))
        return heard

    async def leave(self, question: Question) -> None:
        async with self._client.messages.stream(**self._asked(question)) as stream:
            async for _ in stream.text_stream:
                break


class OllamaChat:
    """``ollama``, chat. Its calls have no ids."""

    name = "Ollama chat"

    def __init__(self, client: ollama.AsyncClient) -> None:
        self._client = client

    def _asked(self, q: Question) -> dict[str, Any]:
        message = {"role": "user", "content": q.text} | ({"images": [PNG]} if q.image else {})
        messages: list[dict[str, object]] = [message]
        if q.after:
            calls = [{"function": {"name": c.name, "arguments": c.arguments}} for c in q.after]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            messages += [{"role": "tool", "tool_name": c.name, "content": _result(c)} for c in q.after]
        asked: dict[str, Any] = {"model": q.model, "messages": messages, "stream": q.stream}
        if q.tools:
            asked["tools"] = [{"type": "function", "function": {"name": TOOL, "parameters": WEATHER}}]
        if q.think:
            asked["think"] = "high"
        if q.schema:
            asked["format"] = SCHEMA
        return asked | ({"options": {"num_predict": q.most}} if q.most else {})

    async def ask(self, question: Question) -> Heard:
        with _refusals():
            answer = await self._client.chat(**self._asked(question))
            parts = [part async for part in answer] if question.stream else [answer]
        heard = Heard(finish=parts[-1].done_reason or "")
        heard.prompt_tokens, heard.answer_tokens = parts[-1].prompt_eval_count or 0, parts[-1].eval_count or 0
        for part in parts:
            heard.text += part.message.content or ""
            heard.pieces += bool(part.message.content)
            heard.reasoning += part.message.thinking or ""
            heard.calls += [
                Call("", c.function.name, dict(c.function.arguments)) for c in part.message.tool_calls or ()
            ]
        return heard

    async def leave(self, question: Question) -> None:
        answer = await self._client.chat(**self._asked(replace(question, stream=True)))
        async for part in answer:
            if part.message.content:
                break
        await answer.aclose()


class _refusals:  # noqa: N801 - reads as a statement
    """What a client raises, in one form."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, openai.APIStatusError | anthropic.APIStatusError):
            told = error.body if isinstance(error.body, dict) else {}
            told = told.get("error", told) if isinstance(told.get("error", told), dict) else told
            code = str(told.get("code") or told.get("type") or "")
            wait = error.response.headers.get("retry-after", "")
            raise Refused(error.status_code, str(told.get("message") or error.message), code, wait) from error
        if isinstance(error, ollama.ResponseError):
            raise Refused(error.status_code, error.error) from error
        return False


NAMES = (OpenAIChat.name, Responses.name, Anthropic.name, OllamaChat.name)


@asynccontextmanager
async def callers(url: str) -> AsyncIterator[dict[str, Caller]]:
    """Every client before a gateway; none of them asks again by itself."""
    async with AsyncExitStack() as stack:
        # There is no TLS: reading the certificates of the system takes longer than all the questions.
        plain = await stack.enter_async_context(openai.DefaultAsyncHttpxClient(verify=False))
        other = await stack.enter_async_context(anthropic.DefaultAsyncHttpxClient(verify=False))
        one = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, http_client=plain)
        two = anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0, http_client=other)
        three = ollama.AsyncClient(host=url, verify=False)
        stack.push_async_callback(three._client.aclose)
        made: tuple[Caller, ...] = (OpenAIChat(one), Responses(one), Anthropic(two), OllamaChat(three))
        yield {caller.name: caller for caller in made}
