"""OpenAI embeddings and the reranking format that local servers share, as their server."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.errors import UsageError
from turnout.types import Json
from turnout.wire import base
from turnout.wire.base import as_dict, as_text, encode, text_field
from turnout.wire.openai_chat import render_error

__all__ = [
    "Embed",
    "Judgement",
    "Rerank",
    "parse_embed",
    "parse_feedback",
    "parse_rerank",
    "render_embed",
    "render_error",
    "render_rerank",
    "texts_of",
]


@dataclass(frozen=True, slots=True)
class Embed:
    """A request for vectors; ``packed``: as base64 of little-endian 32-bit floats."""

    model: str
    texts: tuple[str, ...]
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Rerank:
    """A request for the order of documents; ``top`` of them, with their texts if ``told``."""

    model: str
    query: str
    documents: tuple[str, ...]
    top: int
    told: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """What somebody says of an answer."""

    request_id: str
    good: bool
    note: str


def parse_feedback(body: bytes) -> Judgement:
    """Read a client's verdict: ``request_id``, ``verdict`` (good or bad), and ``note`` when there is one.

    Raises:
        UsageError: it is none.
    """
    data = base.decode_object(body)
    verdict = data.get("verdict")
    if verdict not in ("good", "bad"):
        raise UsageError("verdict is neither good nor bad")
    return Judgement(text_field(data.get("request_id"), "request_id"), verdict == "good", as_text(data.get("note")))


def parse_embed(body: bytes) -> Embed:
    """Read a client's request.

    Raises:
        UsageError: it is none, or wants what no server is asked for here.
    """
    data = base.decode_object(body)
    packed = data.get("encoding_format")
    if packed not in (None, "float", "base64"):
        raise UsageError("encoding_format is neither float nor base64")
    refuse_dimensions(data.get("dimensions"))
    texts = texts_of(data.get("input"))
    if not texts or not all(texts):
        raise UsageError("input is empty", hint="give a text, or a list of texts")
    return Embed(text_field(data.get("model") or "", "model"), texts, packed == "base64")


def refuse_dimensions(value: Json) -> None:
    """Raises UsageError when a client wants shorter vectors."""
    if value is not None:
        raise UsageError("dimensions cannot be chosen here", hint="leave it out: the model's own are given")


def texts_of(value: Json) -> tuple[str, ...]:
    """A text or a list of texts.

    Raises:
        UsageError: it is something else; token numbers, which only their own tokenizer can read, are told so.
    """
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise UsageError("input is neither a text nor a list of texts")
    texts = tuple(text for text in value if isinstance(text, str))
    if len(texts) != len(value):
        hint = "send texts (LangChain: check_embedding_ctx_length=False)"
        raise UsageError("input holds token numbers, which are only their own tokenizer's", hint=hint)
    return texts


def render_embed(asked: Embed, vectors: Sequence[Sequence[float]], model: str, tokens: int) -> bytes:
    """The whole answer; ``tokens``: what the texts were counted to."""
    rows = [
        {"object": "embedding", "index": place, "embedding": _packed(vector) if asked.packed else list(vector)}
        for place, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return encode({"object": "list", "data": rows, "model": model, "usage": usage})


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def parse_rerank(body: bytes) -> Rerank:
    """Read a client's request.

    Raises:
        UsageError: it is none.
    """
    data = base.decode_object(body)
    listed = data.get("documents")
    rows: list[Json] = listed if isinstance(listed, list) else []
    documents = tuple(row if isinstance(row, str) else as_text(as_dict(row).get("text")) for row in rows)
    query = text_field(data.get("query"), "query")
    if not query or not documents or not all(documents):
        raise UsageError("query or documents are empty", hint="give a query and a list of texts")
    top = base.whole_field(data, "top_n") or len(documents)
    told = base.flag_field(data, "return_documents")
    return Rerank(text_field(data.get("model") or "", "model"), query, documents, top, told)


def render_rerank(asked: Rerank, ranks: Sequence[tuple[int, float]], model: str, tokens: int) -> bytes:
    """The whole answer."""
    rows = [
        {"index": place, "relevance_score": score}
        | ({"document": {"text": asked.documents[place]}} if asked.told else {})
        for place, score in ranks[: asked.top]
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return encode({"object": "list", "results": rows, "model": model, "usage": usage})
