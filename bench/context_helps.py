"""Whether code context helps: a real small model answers questions about a workspace that nobody can have seen.

python bench/context_helps.py [-v]        -v prints every answer

The workspace below has invented names, the questions have one right answer that a string in the answer tells. Each is
asked twice through the router, of the weights of the tests (TURNOUT_BENCH_GGUF names others) on a llama.cpp server with
one thread at temperature 0: with code context, as it is by default, and without. ty stands beside the text search, when
it is installed with this Python.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import xllamacpp

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.code.hosting import end_all
from tests.servers import WEIGHTS

from turnout.api import build_messages, collect, load_any
from turnout.build import open_router
from turnout.router import LOCAL
from turnout.types import ChatRequest

FILES = {
    "kelvar/limits.py": '''\
"""Limits of the mill."""

MAX_QUILPS = 417
DRAB_TIMEOUT = 93
VORP_DENSITY = 2.75
GRINDLE_PORT = 8642
SNARFIT_PREFIX = "zub-"
''',
    "kelvar/errors.py": '''\
"""What can go wrong in the mill."""


class MillError(Exception):
    """Base of all."""


class QuilpOverflow(MillError):
    """Too many quilps."""


class DrabStalled(MillError):
    """A drab does not move."""


class VorpMissing(MillError):
    """There is no vorp."""
''',
    "kelvar/thrumble.py": '''\
"""Thrumbles: what grinds."""

from kelvar.errors import DrabStalled, QuilpOverflow
from kelvar.limits import MAX_QUILPS


class Thrumble:
    """Grinds quilps."""

    def grind_quilps(self, quilps: int, speed: int = 84) -> int:
        """Grind them."""
        if quilps > MAX_QUILPS:
            raise QuilpOverflow(quilps)
        return quilps * speed

    def thrumble_label(self) -> str:
        return "amber-seven"


class Yandrel(Thrumble):
    """A thrumble with a drab."""

    def poke_drab(self, force: int = 61) -> None:
        """Move it."""
        if force < 10:
            raise DrabStalled(force)

    def yandrel_label(self) -> str:
        return "violet-nine"
''',
    "kelvar/vorps.py": '''\
"""Vorps: what is blended."""

from kelvar.errors import VorpMissing


class Grommelar:
    """Holds vorps."""

    def __init__(self) -> None:
        self.vorps: list[str] = []

    def take_vorp(self, index: int = 5) -> str:
        """The vorp at an index."""
        if index >= len(self.vorps):
            raise VorpMissing(index)
        return self.vorps[index]


class Plinther(Grommelar):
    """A grommelar with a lid."""

    def lid_colour(self) -> str:
        return "turquoise"


def blend_vorps(first: str, second: str, rounds: int = 37) -> str:
    """Blend two."""
    return (first + second) * rounds
''',
    "kelvar/depot.py": '''\
"""The depot: where things are kept."""

from kelvar.vorps import Grommelar, blend_vorps


class Shelvane:
    """A shelf of the depot."""

    def shelvane_code(self) -> str:
        return "K-58"


class Ostrick(Shelvane):
    """A shelf that turns."""

    def turn_ostrick(self, degrees: int = 72) -> int:
        return degrees


def empty_depot(held: Grommelar) -> str:
    """What is left."""
    return blend_vorps(held.take_vorp(), "rest")


def depot_motto() -> str:
    return "keep it dry"
''',
    "tools/frobsheet.py": '''\
"""Prints sheets."""


def frobsheet_title() -> str:
    return "Sheet of Larks"


def print_frobsheet(copies: int = 26) -> None:
    """Print it."""
    for _ in range(copies):
        print(frobsheet_title())
''',
}


@dataclass(frozen=True, slots=True)
class Question:
    """``answer`` stands in a right answer, as whole words of whatever case, and not in the question."""

    kind: str
    text: str
    answer: str

    def answered(self, said: str) -> bool:
        return re.search(rf"(?i)(?<!\w){re.escape(self.answer)}(?!\w)", said) is not None


def _all(kind: str, text: str, answers: dict[str, str]) -> list[Question]:
    return [Question(kind, text.format(name), answer) for name, answer in answers.items()]


QUESTIONS = [
    *_all(
        "value of a constant",
        "What is the value of the constant `{}`?",
        {
            "MAX_QUILPS": "417",
            "DRAB_TIMEOUT": "93",
            "VORP_DENSITY": "2.75",
            "GRINDLE_PORT": "8642",
            "SNARFIT_PREFIX": "zub-",
        },
    ),
    *_all(
        "default of a parameter",
        "What is the default value of {}?",
        {
            "the parameter `speed` of `grind_quilps`": "84",
            "the parameter `force` of `poke_drab`": "61",
            "the parameter `rounds` of `blend_vorps`": "37",
            "the parameter `degrees` of `turn_ostrick`": "72",
            "the parameter `copies` of `print_frobsheet`": "26",
        },
    ),
    *_all(
        "what a function returns",
        "Which string does `{}` return?",
        {
            "thrumble_label": "amber-seven",
            "yandrel_label": "violet-nine",
            "lid_colour": "turquoise",
            "shelvane_code": "K-58",
            "frobsheet_title": "Sheet of Larks",
        },
    ),
    *_all(
        "base class",
        "Which class is the base class of `{}`?",
        {
            "Yandrel": "Thrumble",
            "Plinther": "Grommelar",
            "Ostrick": "Shelvane",
            "QuilpOverflow": "MillError",
        },
    ),
    *_all(
        "exception that is raised",
        "Which exception does `{}` raise?",
        {"grind_quilps": "QuilpOverflow", "poke_drab": "DrabStalled", "take_vorp": "VorpMissing"},
    ),
    *_all(
        "file of a definition",
        "In which file is `{}` defined?",
        {
            "Yandrel": "thrumble.py",
            "Plinther": "vorps.py",
            "Ostrick": "depot.py",
            "DRAB_TIMEOUT": "limits.py",
            "DrabStalled": "errors.py",
        },
    ),
    *_all(
        "who calls a function",
        "Which function calls `{}`?",
        {"blend_vorps": "empty_depot", "frobsheet_title": "print_frobsheet", "take_vorp": "empty_depot"},
    ),
]


def serve() -> xllamacpp.Server:
    """The server, in this process, on loopback."""
    params = xllamacpp.CommonParams()
    params.model.path, params.offline = os.environ.get("TURNOUT_BENCH_GGUF") or str(WEIGHTS), True
    params.hostnames, params.port, params.n_ctx, params.n_parallel = ["127.0.0.1"], 0, 8192, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.ui, params.warmup, params.verbosity = False, False, 0
    return xllamacpp.Server(params)


@dataclass(frozen=True, slots=True)
class Answers:
    """What was said to each question, the code that went along with it, the tokens of all, and the seconds."""

    said: list[str]
    code: list[str]
    tokens: int
    seconds: float

    def right(self) -> Counter[str]:
        """Right answers of each kind."""
        return Counter(q.kind for q, said in zip(QUESTIONS, self.said, strict=True) if q.answered(said))

    def told(self) -> Counter[str]:
        """Questions of each kind whose answer stood in the code."""
        return Counter(q.kind for q, code in zip(QUESTIONS, self.code, strict=True) if q.answered(code))


async def answers(url: str, root: Path, priority: str) -> Answers:
    """Ask every question."""
    config = {
        "custom_endpoints": [{"name": "small", "endpoint": url}],
        "discovery": {"enabled": False},
        "serena": {"priority": priority},
    }
    said, code, tokens, began = [], [], 0, time.perf_counter()
    async with open_router(load_any(config)) as router:
        for question in QUESTIONS:
            request = ChatRequest(
                build_messages(question.text, workspace=str(root), agent=""),
                workspace=str(root),
                max_tokens=48,
                temperature=0.0,
            )
            run = router.begin(request, LOCAL)
            async with aclosing(router.route(request, run=run)) as events:
                result = await collect(events)
            code.append("".join(run.inserted.values()))
            said.append(result.text.strip())
            tokens += result.usage.prompt_tokens
    return Answers(said, code, tokens, time.perf_counter() - began)


def main() -> None:
    assert not any(q.answered(q.text) for q in QUESTIONS)
    os.environ["PATH"] = str(Path(sys.executable).parent)
    with tempfile.TemporaryDirectory() as data, tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TURNOUT_DATA_DIR": data, "TURNOUT_LOOPBACK_ONLY": "1"}
        root = Path(folder).resolve()
        for name, text in FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        server = serve()
        url = server.listening_address
        runs = {p: asyncio.run(answers(url, root, p)) for p in ("always_first", "off")}
        asyncio.run(end_all(Path(data)))
    with_it, without = runs["always_first"], runs["off"]
    if "-v" in sys.argv:
        for question, one, other in zip(QUESTIONS, with_it.said, without.said, strict=True):
            print(f"{question.text} [{question.answer}]\n  with: {one!r}\n  without: {other!r}")
    print("| question | asked | answer in the context | right with it | right without |\n" + "| --- " * 5 + "|")
    told, right, blind = with_it.told(), with_it.right(), without.right()
    for kind, count in Counter(q.kind for q in QUESTIONS).items():
        print(f"| {kind} | {count} | {told[kind]} | {right[kind]} | {blind[kind]} |")
    print(f"| all | {len(QUESTIONS)} | {told.total()} | {right.total()} | {blind.total()} |")
    for what, run in (("with", with_it), ("without", without)):
        print(f"{what}: {run.tokens / len(QUESTIONS):.0f} tokens a question, {run.seconds:.0f} s for all")


if __name__ == "__main__":
    main()
