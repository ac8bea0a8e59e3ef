"""What a query is asked in: its request apart from what is pasted under it, and the features of that. Pure.

Intent is not topic (facts/routing.md): function words, the form of the question and how sentences begin carry the
label, while code, logs and file dumps only swamp it. So those are replaced by a word for what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise

import msgspec

MOST = 12_000  # characters that are looked at: two thirds from the beginning, the rest from the end
HEAD, TAIL = 800, 400  # of the request, once what is pasted is gone
MOST_SENTENCES = 10

_FENCE = re.compile(r"(?:```|~~~).*?(?:```|~~~|\Z)", re.DOTALL)
_WRAPPER = re.compile(
    r"<(environment_details|environment_context|system-reminder|system_reminder|file_content|file|files|attachment|context"
    r"|additional_data|attached_files|current_file|open_and_recently_viewed_files|local-command-stdout|document|documents"
    r"|selection|logs|instructions|user_info|rules)(?: [^<>\n]{0,200})?>"
)
_TAG = re.compile(r"</?[a-zA-Z][\w-]{0,40}(?: [^<>\n]{0,200})?>")
_URL = re.compile(r"https?://\S+")
_FILE = re.compile(
    r"(?<![\w.~$%{}@-])@?(?:[\w.~$%{}-]*[/\\][\w.~$%{}/\\-]+|[\w-]+\.(?:py|pyi|jsx?|tsx?|mjs|mdx?|json|ya?ml|toml|go|rs|java|kt|cc?"
    r"|cpp|hpp?|cs|html?|s?css|sh|txt|rb|php|swift|jl|erl|clj|exs?|vue|svelte|sql|log|csv|xml|ini|cfg|lock|env|ipynb|tex"
    r"|rst)\b)",
    re.IGNORECASE,
)
_LOG = re.compile(
    r"\s*(?:\d{4}-\d\d-\d\d|\[?\d\d:\d\d:\d\d|at [\w.$<]+\(|File \"|Traceback|\d+ ?\| |[+-]{3} |@@ |>>> |\$ |error\[E"
    r"|\w*(?:Error|Exception)\b.{0,80}:)"
)
# What needs neither braces nor semicolons: Python, YAML, shell. Sentences look so too, but not several in a row.
_PLAIN_CODE = re.compile(
    r"\s*(?:async def |def \w+\(|class \w+[(:]|from [\w.]+ import |import [\w.]+(?: as \w+)?$|@\w[\w.]*(?:\(.*\))?$"
    r"|#!?[ /]|(?:el)?if .+:$|else:$|try:$|finally:$|except\b.{0,60}:$|(?:async )?(?:for .+ in|while|with) .+:$|elif "
    r"|return\b|raise \w+|yield |pass$|break$|continue$|[\w.\[\]\"']+(?:: [\w\[\], .|]+)? ?[-+*/|&:]?= ?\S"
    r"|[\w.]+\(.*\)$|[)\]},]+$|(?:- )?[\w.-]+:$|(?:- )?[\w.-]+: \S+$|\s+(?:- )?[\w.-]+: |\s+- \S+$"
    r"|(?:sudo|cd|ls|git|pip3?|npm|npx|yarn|docker|kubectl|export|echo|curl|wget|mkdir|rm|cp|mv|chmod|chown|apt(?:-get)?|brew"
    r"|grep|sed|awk|cat|tar|source|set|make|python3?|node|systemctl|ssh|scp) [\w\"'./~$-]|(?:do|fi|done|then|esac)$"
    r"|for \w+ in |(?:if|while) \[|while read )"
)
_PLAIN_LINES, _PLAIN_LENGTH = 3, 200  # in a row, blank ones not counted; characters of one
_BEYOND_LATIN = "\u0400"
_WEAK = frozenset({"deixis", "polite", "go"})  # groups that do not say what is to be done
_SYMBOLS = "{}();=<>[]|$\\"
_WORD = re.compile(r"[a-zà-öø-ÿāčďěğıłńňőřśšťůűźžß]+(?:'[a-z]+)?|[а-яёіїє]+|[぀-ヿ一-鿿]+|[가-힣]+|\d+|[?？!！:`@#]")
_SENTENCE = re.compile(r"[.!?。！？\n;；]+")
_CJK = re.compile(r"[぀-ヿ一-鿿]")
_FIRST_CJK = "\u3040"
_LIST = re.compile(r"^\s*(?:[-*]|\d+[.)]) ", re.MULTILINE)
# Marks of what was taken out; no word of a query is one, since they are no words of any of its alphabets.
ENOUGH_WORDS = 5
CODE, CODE_LINE, LOG_LINE, FILE, URL, CUT = "zcode", "zcodeline", "zlogline", "zfile", "zurl", "zcut"

_SHOWN = {CODE: "[code]", CODE_LINE: "[code]", LOG_LINE: "[log]", FILE: "[file]", URL: "[address]", CUT: "[...]"}
_ALL_MARKS = re.compile(rf"\b(?:{'|'.join(_SHOWN)})\b")
_MARKS = re.compile(rf"\b(?:{CODE}|{CODE_LINE}|{LOG_LINE})\b")


@dataclass(frozen=True, slots=True)
class Features:
    """What is measured of a query.

    Attributes:
        words: its words, and two and three in a row.
        alphabet: its different words, whose letters are looked at in groups.
        places: how sentences begin, and the words of the first and the last one.
        shape: what it looks like, and the groups of words that it has, in any of a dozen languages (``cues.json``).
    """

    words: frozenset[str]
    alphabet: frozenset[str]
    places: frozenset[str]
    shape: frozenset[str]


def features(query: str) -> Features:
    """The features of a query."""
    request, code, log = _request(query)
    if not _says_little(request):
        # Where it is said what is to be done, what is pasted decides nothing.
        request, code, log = _MARKS.sub(" ", request), 0, 0
    short = request if len(request) <= HEAD + TAIL else f"{request[:HEAD]}\n{CUT}\n{request[-TAIL:]}"
    short = _FILE.sub(f" {FILE} ", short)
    words = tokens(short)
    grams = {f"w{a}" for a in words}
    grams |= {f"b{a} {b}" for a, b in pairwise(words)}
    grams |= {f"t{a} {b} {c}" for a, b, c in zip(words, words[1:], words[2:], strict=False)}
    sentences = [s for s in _SENTENCE.split(short) if s.strip()]
    first, last = (tokens(sentences[0]), tokens(sentences[-1])) if sentences else ([], [])
    shape = _shape(request, short, words, code, log) | _cues_in(words, first, last)
    return Features(frozenset(grams), frozenset(words), frozenset(_places(sentences, first, last)), frozenset(shape))


def request_of(query: str) -> tuple[str, int, int]:
    """What is asked, without what is pasted under it; and how many lines of code and of logs there were."""
    request, code, log = _request(query)
    return _FILE.sub(f" {FILE} ", request), code, log


def _request(query: str) -> tuple[str, int, int]:
    text = query if len(query) <= MOST else f"{query[: MOST * 2 // 3]}\n{CUT}\n{query[-MOST // 3 :]}"
    text = _FENCE.sub(f"\n {CODE} \n", text)
    if "<" in text:
        without = _unwrapped(text)
        text = _TAG.sub(" ", without if without.strip() else text)
    if "://" in text:
        text = _URL.sub(f" {URL} ", text)
    kept: list[str] = []
    code = log = 0
    lines = text.split("\n")
    plain = _plain_code(lines)
    for place, line in enumerate(lines):
        bare = line.strip()
        marked = len(bare) > 12 and (bare[-1] in ";{}" or sum(map(bare.count, _SYMBOLS)) > 0.12 * len(bare))
        if marked or place in plain:
            code += 1
            if code == 1:
                kept.append(CODE_LINE)
        elif _LOG.match(line):
            log += 1
            if log == 1:
                kept.append(LOG_LINE)
        else:
            kept.append(line)
    return "\n".join(kept), code, log


def _plain_code(lines: list[str]) -> set[int]:
    """Places of lines that are code by standing together."""
    found, run = set[int](), list[int]()
    for place, line in enumerate([*lines, "."]):
        if len(line) <= _PLAIN_LENGTH and _PLAIN_CODE.match(line):
            run.append(place)
        elif line.strip():
            found |= set(run) if len(run) >= _PLAIN_LINES else set()
            run = []
    return found


def shown(text: str) -> str:
    """A text out of which something was taken, for people."""
    return _ALL_MARKS.sub(lambda mark: _SHOWN[mark[0]], text)


def _unwrapped(text: str) -> str:
    """The text without what stands between such tags. Each is looked for from its beginning to its end once: a regular
    expression would look through all of the text for each beginning that has no end."""
    lowered, kept, at, open_ended = text.lower(), list[str](), 0, set[str]()
    if len(lowered) != len(text):  # of some letters two become one
        lowered = text
    for tag in _WRAPPER.finditer(lowered):
        if tag.start() < at or tag[1] in open_ended:
            continue
        end = lowered.find(f"</{tag[1]}>", tag.end())
        if end < 0:
            open_ended.add(tag[1])
            continue
        kept.append(text[at : tag.start()])
        at = end + len(tag[1]) + 3
    return "\n".join((*kept, text[at:]))


def tokens(text: str) -> list[str]:
    """Words in small letters, numbers as ``0``; where a script has no spaces, two and three characters in a row."""
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        if word[0] >= _FIRST_CJK and _CJK.match(word):
            found += [word[i : i + 2] for i in range(len(word) - 1)] or [word]
            found += [word[i : i + 3] for i in range(len(word) - 2)]
        else:
            found.append("0" if word.isdigit() else word)
    return found


def letters(word: str) -> list[str]:
    """Groups of three to five letters of a word, its ends marked; none for a short one."""
    marked = f"<{word}>"
    if len(marked) <= 3:
        return []
    return [f"c{marked[i : i + n]}" for n in (3, 4, 5) for i in range(len(marked) - n + 1)]


def _places(sentences: list[str], first: list[str], last: list[str]) -> set[str]:
    found = {f"1{' '.join(first[:n])}" for n in (1, 2, 3) if first} | {f"f{word}" for word in first[:12]}
    if len(sentences) > 1:
        found |= {f"l{word}" for word in last[:12]} | {f"2{' '.join(last[:2])}"}
    for sentence in sentences[:MOST_SENTENCES]:
        head = tokens(sentence[:80])[:2]
        found |= {f"h{' '.join(head[:n])}" for n in (1, 2) if head}
    return found


@lru_cache(maxsize=1)
def _cues() -> dict[str, str]:
    groups = msgspec.json.decode((files("turnout.routing") / "cues.json").read_bytes(), type=dict[str, str])
    return {word: group for group, words in groups.items() for word in words.split()}


def _cue(word: str) -> str:
    """The group of a word, "" for none. Of Russian the beginning is enough, and of Korean two syllables."""
    known = _cues()
    if word < _BEYOND_LATIN or word in known:
        return known.get(word, "")
    letter = ord(word[0])
    if 0x400 <= letter < 0x500:
        return known.get(word[:5]) or known.get(word[:4]) or ""
    return known.get(word[:2], "") if 0xAC00 <= letter < 0xD7B0 else ""


def _cues_in(words: Iterable[str], first: list[str], last: list[str]) -> set[str]:
    there = sorted({group for word in {*words} if (group := _cue(word))})
    found = {f"k{group}" for group in there}
    found |= {f"kk{one} {other}" for n, one in enumerate(there) for other in there[n + 1 :]}
    for mark, sentence in (("1", first[:14]), ("l", last[:14])):
        groups = [group for word in sentence if (group := _cue(word))]
        found |= {f"k{mark}{group}" for group in groups}
        leading = next((group for group in groups if group not in _WEAK), "")
        found |= {f"q{mark}{leading}"} if leading else set()
    return found


def _says_little(request: str) -> bool:
    return len(_WORD.findall(_MARKS.sub(" ", request).lower())) < ENOUGH_WORDS


def _shape(query: str, request: str, words: list[str], code: int, log: int) -> set[str]:
    query = query.strip()
    length = len(query)
    marks = {
        "code": code > 0,
        "log": log > 0,
        "asks": "?" in request or "？" in request,
        "ends asking": request.rstrip().endswith(("?", "？")),
        "lines": query.count("\n") > 0,
        "many lines": query.count("\n") > 8,
        "small": query[:1].islower(),
        "heading": query.lstrip().startswith("#"),
        "list": bool(_LIST.search(query[:4000])),
        "front matter": query.startswith("---"),
        "at": "@" in query,
        "argument": "$ARG" in query or "${" in query,
        "tick": "`" in query,
        "file": FILE in request,
        "url": URL in request,
        "few words": len(words) < 6,
        "one sentence": "\n" not in request.strip() and request.count(".") < 2,
    }
    return {f"S{name}" for name, there in marks.items() if there} | {f"Slength {min(9, length.bit_length())}"}
