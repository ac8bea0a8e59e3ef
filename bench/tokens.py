"""How far the estimated tokens of conversations are from the exact ones of a real llama.cpp server.

python bench/tokens.py [NAME]        NAME decides the family whose start weights are taken; "" takes none's

TURNOUT_BENCH_GGUF names other weights than the test's, TURNOUT_BENCH_TEMPLATE a tokenizer_config.json whose chat
template is used in place of the model's own. The texts are the measuring half of `bench/texts.py`. Five times: they are
shared out anew, 20 conversations of all kinds from one part are observed, and 20 of each kind from the other counted
before and after. Counted is what the server's own counting route says; nothing is generated.

python bench/tokens.py --counts FILE writes the exact counts of the texts for fitting, for `bench/token_weights.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from zlib import crc32

import aiohttp
import xllamacpp
from texts import Sample, samples, translations

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.servers import WEIGHTS

from turnout.context import calibration
from turnout.context.tokens import get_token_counter, request_features
from turnout.types import ChatRequest, Message, Text, Tool, ToolCall, ToolResult, message
from turnout.wire import openai_chat

RUNS, OBSERVED, MEASURED = 5, 20, 20
PLAIN = ("code", "prose", "json", "chinese")
KINDS = ("one text", *PLAIN, "mixed", "agent")
PATH = {"type": "string", "description": "Relative to the workspace."}
TOOLS = (
    Tool(
        "read_file",
        "Read a file of the workspace.",
        {"type": "object", "properties": {"path": PATH}, "required": ["path"]},
    ),
    Tool(
        "write_file",
        "Write a file of the workspace; what it had is lost.",
        {
            "type": "object",
            "properties": {"path": PATH, "content": {"type": "string"}},
            "required": ["path", "content"],
        },
    ),
    Tool(
        "search",
        "Search the workspace for a regular expression and give back the lines that match, with their numbers.",
        {"type": "object", "properties": {"pattern": {"type": "string"}, "path": PATH, "limit": {"type": "integer"}}},
    ),
    Tool("run", "Run a command in the workspace.", {"type": "object", "properties": {"command": {"type": "string"}}}),
)


def serve() -> xllamacpp.Server:
    """The server, in this process, on loopback."""
    params = xllamacpp.CommonParams()
    params.model.path, params.offline = os.environ.get("TURNOUT_BENCH_GGUF") or str(WEIGHTS), True
    params.hostnames, params.port, params.n_ctx = ["127.0.0.1"], 0, 1024
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.ui, params.warmup, params.verbosity = False, False, 0
    template = os.environ.get("TURNOUT_BENCH_TEMPLATE")
    if template:
        params.chat_template, params.use_jinja = json.loads(Path(template).read_text())["chat_template"], True
    return xllamacpp.Server(params)


async def exact(session: aiohttp.ClientSession, messages: Sequence[Message], tools: tuple[Tool, ...]) -> int:
    """The server's own count of a request."""
    body = openai_chat.render_request(ChatRequest(tuple(messages), tools=tools), "bench", stream=False)
    async with session.post("/v1/chat/completions/input_tokens", data=body) as reply:
        assert reply.status == 200, await reply.text()
        return int((await reply.json())["input_tokens"])


def conversation(kind: str, texts: Sequence[Sample], random: Random) -> tuple[list[Message], tuple[Tool, ...]]:
    """A conversation of one kind."""
    if kind == "agent":
        return _agent(texts, random), TOOLS
    kinds = PLAIN if kind in ("mixed", "one text") else (kind,)
    pool = [s.text for s in texts if s.kind in kinds]
    turns = 1 if kind == "one text" else random.choice((6, 10, 16))
    told = [message("user" if n % 2 == 0 else "assistant", random.choice(pool)) for n in range(turns)]
    return ([message("system", "You are a helpful assistant.")] if random.random() < 0.7 else []) + told, ()


def _agent(texts: Sequence[Sample], random: Random) -> list[Message]:
    def one(*kinds: str) -> str:
        return random.choice([s.text for s in texts if s.kind in kinds])

    told = [message("system", one("prose")), message("user", one("prose")[:600])]
    for n in range(random.choice((4, 8, 14))):
        tool = random.choice(("read_file", "write_file", "search", "run"))
        arguments = {
            "read_file": {"path": f"src/module_{n}.py"},
            "write_file": {"path": f"src/module_{n}.py", "content": one("code")[:2500]},
            "search": {"pattern": "def [a-z_]+", "path": "src", "limit": 50},
            "run": {"command": "git log --stat | head -200"},
        }[tool]
        result = "written" if tool == "write_file" else one("code", "output", "json", "prose")
        said = (Text(one("prose")[: random.choice((80, 300))]),) if random.random() < 0.6 else ()
        told.append(Message("assistant", (*said, ToolCall(f"c{n}", tool, json.dumps(arguments)))))
        told.append(Message("tool", (ToolResult(f"c{n}", result),)))
        if random.random() < 0.2:
            told += [message("assistant", one("prose")[:900]), message("user", one("prose")[:400])]
    return told


async def measure(session: aiohttp.ClientSession, name: str) -> None:
    """Print the table."""
    texts = samples(1)
    errors: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in KINDS}
    sizes: dict[str, list[int]] = {kind: [] for kind in KINDS}
    margins, beyond, ignored = [], 0, 0
    for run in range(RUNS):
        random = Random(run)
        random.shuffle(texts)
        half = len(texts) // 2
        learned = calibration.prior(name)
        for n in range(OBSERVED):
            asked, tools = conversation(KINDS[1 + n % (len(KINDS) - 1)], texts[:half], random)
            learned = calibration.observe(learned, request_features(asked, tools), await exact(session, asked, tools))
        before, after = get_token_counter(name), get_token_counter(name, learned)
        margins.append(after.margin)
        ignored += learned.ignored
        for kind in KINDS:
            for _ in range(MEASURED):
                asked, tools = conversation(kind, texts[half:], random)
                count = await exact(session, asked, tools)
                sizes[kind].append(count)
                for counter, found in zip((before, after), errors[kind], strict=True):
                    found.append(counter.count_request(asked, tools) / count - 1)
                beyond += kind != "one text" and after.count_request(asked, tools) * (1 + after.margin) < count
    print(
        f"| kind | tokens, median | before: median, p95, worst | after {OBSERVED}: median, p95, worst |\n"
        "| --- | --- | --- | --- |"
    )
    for kind in KINDS:
        print(f"| {kind} | {median(sizes[kind]):,.0f} | {' | '.join(map(_shown, errors[kind]))} |")
    every = [[e for kind in KINDS[1:] for e in errors[kind][i]] for i in (0, 1)]
    print(f"| all conversations | | {' | '.join(map(_shown, every))} |")
    print(
        f"margins {', '.join(f'{m:.3f}' for m in margins)}; beyond them {beyond} of {len(every[0])}; ignored {ignored}"
    )


def _shown(errors: list[float]) -> str:
    sizes = sorted(map(abs, errors))
    return f"{median(sizes):.1%}, {sizes[int(0.95 * len(sizes))]:.1%}, {min(errors):+.0%} {max(errors):+.0%}"


async def write_counts(session: aiohttp.ClientSession, file: Path) -> None:
    """The exact counts of the texts for fitting, by checksum."""
    counts = {}
    for sample in samples(0) + translations():
        async with session.post("/tokenize", json={"content": sample.text}) as reply:
            counts[crc32(sample.text.encode())] = len((await reply.json())["tokens"])
    file.write_text(json.dumps(counts))


async def main() -> None:
    server = serve()
    async with aiohttp.ClientSession(server.listening_address) as session:
        if sys.argv[1:2] == ["--counts"]:
            await write_counts(session, Path(sys.argv[2]))
        else:
            await measure(session, sys.argv[1] if len(sys.argv) > 1 else "")


if __name__ == "__main__":
    asyncio.run(main())
