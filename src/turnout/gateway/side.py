"""What is asked over HTTP and is no chat: embeddings, the reranking that local servers share, the count of a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from turnout.context.tokens import get_token_counter
from turnout.errors import TurnoutError
from turnout.gateway.completions import WhilePresent, read_body, route_headers
from turnout.gateway.exchange import exchange_of
from turnout.gateway.formats import ANTHROPIC, OPENAI_CHAT, ChatFormat
from turnout.gateway.refusal import refusal
from turnout.journal import vote_fields
from turnout.router import Router
from turnout.types import Principal, Route
from turnout.wire import anthropic, openai_side
from turnout.wire.base import encode


class WholeEndpoint(ABC):
    """POST of a request that is answered in one piece, as a plain ASGI application; a client that leaves ends it."""

    spoken: ChatFormat = OPENAI_CHAT

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, answer."""
        state = scope["app"].state
        try:
            body = await read_body(scope, receive, state.max_body_bytes)
            with WhilePresent(receive):
                exchange = exchange_of(scope)
                answer, exchange.aside = await self.answer(state.router, body, exchange.principal)
                await _reply(send, answer, exchange.aside)
        except ClientDisconnect:
            return
        except TurnoutError as error:
            await refusal(error, self.spoken)(scope, receive, send)

    @abstractmethod
    async def answer(self, router: Router, body: bytes, who: Principal) -> tuple[bytes, Route | None]:
        """The answer's body, and which way it went."""


async def _reply(send: Send, body: bytes, route: Route | None) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, *route_headers(route)]})
    await send({"type": "http.response.body", "body": body})


def counted(*texts: str) -> int:
    """Tokens of texts by our own estimate: servers are asked for vectors in ways that tell no count."""
    counter = get_token_counter("")
    return sum(counter.count(text) for text in texts)


class _Embeddings(WholeEndpoint):
    async def answer(self, router: Router, body: bytes, who: Principal) -> tuple[bytes, Route | None]:
        asked = openai_side.parse_embed(body)
        vectors, route = await router.side.embed(asked.model, asked.texts, who)
        return openai_side.render_embed(asked, vectors, route.sent_model, counted(*asked.texts)), route


class _Rerank(WholeEndpoint):
    async def answer(self, router: Router, body: bytes, who: Principal) -> tuple[bytes, Route | None]:
        asked = openai_side.parse_rerank(body)
        ranks, route = await router.side.rerank(asked.model, asked.query, asked.documents, who)
        tokens = counted(asked.query, *asked.documents)
        return openai_side.render_rerank(asked, ranks, route.sent_model, tokens), route


class _CountTokens(WholeEndpoint):
    """What Anthropic's clients ask before they send a prompt."""

    spoken = ANTHROPIC

    async def answer(self, router: Router, body: bytes, who: Principal) -> tuple[bytes, Route | None]:
        tokens, route = await router.count(anthropic.parse_request(body), who)
        return encode({"input_tokens": tokens}), route


class _Feedback(WholeEndpoint):
    """Whether an answer was any good; of one's own requests alone."""

    async def answer(self, router: Router, body: bytes, who: Principal) -> tuple[bytes, Route | None]:
        asked = openai_side.parse_feedback(body)
        voted = await router.feedback(asked.request_id, who, good=asked.good, note=asked.note)
        return encode({"request_id": asked.request_id, **vote_fields(voted)}), None


embeddings = _Embeddings()
rerank = _Rerank()
count_tokens = _CountTokens()
feedback = _Feedback()
