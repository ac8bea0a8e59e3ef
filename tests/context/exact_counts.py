"""Conversations of this repository's own texts, and the exact counts that a real tokenizer gave for them.

python -m tests.context.exact_counts records both anew from the real llama.cpp server (SmolLM2, its own chat template,
`/v1/chat/completions/input_tokens`): pieces of our sources, documents and recordings as they are then, and the Chinese
sentences that the recording has. Half of the pieces are to be observed, half to be measured.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random

import aiohttp

from turnout.types import ChatRequest, Message, message
from turnout.wire import openai_chat

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "recordings" / "tokens_smollm2.json"
FROM = {"code": "src/turnout/**/*.py", "prose": "docs/*.md", "json": "tests/recordings/*/**/*.json"}
OBSERVED, MEASURED, PIECES, SIZE = 20, 60, 16, 1200


def conversations(texts: dict[str, list[str]], half: int) -> list[list[Message]]:
    """The conversations of one half: 0 to be observed, 1 to be measured."""
    random, made, kinds = Random(half), [], list(texts)
    for n in range(MEASURED if half else OBSERVED):
        chosen = kinds if n % 5 == 4 else [kinds[n % 5]]
        pool = [text for kind in chosen for text in texts[kind][half::2]]
        turns = random.choices(pool, k=random.randrange(4, 16))
        told = [message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns)]
        made.append([message("system", "Answer briefly."), *told])
    return made


def pieces() -> dict[str, list[str]]:
    """Texts of the repository, and the Chinese ones as they were."""
    random, found = Random(1), {}
    for kind, pattern in FROM.items():
        whole = [
            text for path in sorted(ROOT.glob(pattern)) if path != RECORDED and len(text := path.read_text()) > SIZE
        ]
        starts = [random.randrange(len(text) - SIZE + 1) for text in whole]
        every = [text[start : start + SIZE] for text, start in zip(whole, starts, strict=True)]
        found[kind] = random.sample(every, min(PIECES, len(every)))
    return {**found, "chinese": json.loads(RECORDED.read_text())["texts"]["chinese"]}


async def record() -> None:
    """Write the recording."""
    from tests.servers import start_llama

    server, texts = await asyncio.to_thread(start_llama), pieces()
    counts: list[list[int]] = [[], []]
    try:
        async with aiohttp.ClientSession(server.url) as session:
            for half in (0, 1):
                for told in conversations(texts, half):
                    body = openai_chat.render_request(ChatRequest(tuple(told)), "smol", stream=False)
                    async with session.post("/v1/chat/completions/input_tokens", data=body) as reply:
                        counts[half].append((await reply.json())["input_tokens"])
    finally:
        server.stop()
    RECORDED.write_text(json.dumps({"texts": texts, "counts": counts}, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    asyncio.run(record())
