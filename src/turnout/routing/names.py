"""What a model's name says, as a value (SPEC SEL-4): series, size, variants, quantisation.

``qwen2.5-coder:32b-instruct-q4_K_M`` and ``Qwen/Qwen2.5-Coder-32B-Instruct-GGUF`` name one model. A name is cut into
words, numbers and sizes, and every word must have a known part in it: a word that has none makes it another model than
its base (``llama3-chatqa`` is no Llama 3), so a finetune is never silently taken for what it was made from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from turnout.routing.lexicon import (
    GENERIC,
    GRAMMAR,
    JOINED,
    LATEST,
    MIXTURES,
    NOISE,
    ORDER,
    PUBLISHERS,
    PURPOSES,
    SIZE_WORDS,
    SPLIT_WORDS,
    THINKERS,
    UNHYPHENED,
    USUAL,
    VARIANTS,
)

MAX_NAME = 400


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed name. What the name does not say is empty, 0 or False.

    Attributes:
        series: line and version, for example ``qwen2.5-coder``; "" when nobody knows it.
        family: for example ``qwen``.
        version: for example ``2.5``.
        size: total parameters in billions, as names state it; the series' usual one when it is not stated.
        size_stated: the name itself says the size.
        active: active parameters in billions of a mixture of experts.
        variants: of ``instruct, base, python, thinking, altered``; ``altered`` is a build with refusals removed.
        quantization: lower-case, for example ``q4_k_m``.
        publisher: who uploaded it, lower-case.
        base: for a distilled model or a named finetune the series it was made from.
        releases: dates and revisions, for example ``2507`` or ``v0.3``.
        window: tokens that a marker such as ``128k`` states.
        purpose: of ``chat, embedding, rerank, moderation, speech, image``; ``projector`` is half a vision model.
        derived: words that have no known part: a model of its own, made from ``series``.
    """

    series: str
    family: str
    version: str = ""
    size: float = 0.0
    size_stated: bool = False
    active: float = 0.0
    variants: frozenset[str] = frozenset()
    quantization: str = ""
    publisher: str = ""
    base: str = ""
    releases: frozenset[str] = frozenset()
    window: int = 0
    purpose: str = "chat"
    derived: tuple[str, ...] = ()


class _Head(NamedTuple):
    """A word that names a line of models, and the words that may go with it.

    ``lines`` make another series (``coder``), ``plain`` change nothing (``small`` in Devstral), ``own`` marks a named
    finetune, which counts before the model it was made from.
    """

    family: str
    lines: frozenset[str]
    plain: frozenset[str]
    own: bool
    words: frozenset[str]


def _read_grammar() -> dict[str, _Head]:
    heads = {}
    for line in GRAMMAR.split("\n"):
        name, colon, rest = line.partition(":")
        if colon:
            family, lines, plain = (part.split() for part in rest.split("|"))
            own = "*" in plain or "*" in lines
            words = frozenset((*lines, *plain)) - {"*"}
            heads[name] = _Head(family[0], words & frozenset(lines), words & frozenset(plain), own, words)
    return heads


_HEADS = _read_grammar()
_HASH = re.compile(r"(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{12,64}\Z")

_REVISION = re.compile(r"/snapshots/[^/]+/?")
_ENDING = re.compile(r"(?:[-_.]\d{5}-of-\d{5})?\.(?:gguf|safetensors|bin|ggml|pt|pth|onnx|mlx|dlim)\Z")
_SPLIT_FILE = re.compile(r"[-_.]\d{5}-of-\d{5}")
_QUANT = re.compile(
    r"(?<![a-z0-9])(?:ud[-_])?("
    r"[dt]?i?q[1-8](?:_(?:xxs|[0-9a-z]{1,2})){0,3}(?:-(?:x{0,2}s|nl|[k01ml])(?![a-z0-9])){0,2}|mxfp[468](?:_moe)?|nvfp4|"
    r"nf4|apex(?:-mtp)?(?:-(?:i|tq))?(?:-(?:nano|mini|compact|balanced|quality))?|"
    r"b?f(?:p)?16|f(?:p)?32|fp8|int[248]|u?int[48]|w[48]a(?:16|8|4)|[2-8](?:\.\d+)?[-_]?bits?|"
    r"\d(?:[._]\d+)?[-_]?bpw|gptq|awq|(?<=exl2[-_])\d[._]\d+|(?<=exl3[-_])\d[._]\d+)(?![a-z0-9])"
)
_UNDERSCORE_VERSION = re.compile(r"(?<![\d.])(\d)_(\d)(?![\d.bm])")
# Versions written without their dot: meta-llama-3-1-405b, Qwen25-VL-32B.
_HYPHEN_VERSION = re.compile(r"(?<=[a-z])(-?\d)-(\d)(?=-\d+(?:\.\d+)?b(?![a-z0-9]))")
_GLUED_VERSION = re.compile(r"(?<![a-z])([a-z]{2,})([1-9])(\d)(?![a-z0-9.])")
_UNDERSCORE_SIZE = re.compile(r"(?<![a-z0-9.])(0_[56]|1_[1-8]|6_7|7_8)(?=b(?![a-z0-9]))")
# A publisher in front of a name, as text-generation-webui writes its folders: TheBloke_CodeLlama-34B-Instruct-GPTQ.
# Only one that is known: Evil_Llama-3.1-8B is a model of its own.
_PREFIX = re.compile(r"([a-z0-9][a-z0-9-]*)[_.](?=([a-z]+))")
# Numbers first by what follows them, then what begins with a letter; a bare word comes last.
_LEXEME = re.compile(
    r"(?=\d)(?:(?<![a-z0-9])(?P<digits>\d+g)(?![a-z0-9])|(?P<moe>\d+x\d+(?:\.\d+)?b)(?![a-z0-9])"
    r"|(?P<size>\d+(?:\.\d+)?[bmt])(?![a-z0-9])|(?P<window>\d+k)(?![a-z0-9])|(?P<experts>\d+e)(?![a-z0-9])"
    r"|(?P<number>\d+(?:\.\d+)*))"
    r"|v(?P<revision>\d+(?:\.\d+)*)"
    r"|(?<![a-z0-9])(?:(?P<noise>c4ai|gs?\d+|h[68]|ct2|gguf2|exl[23]|i1)|a(?P<active>\d+(?:\.\d+)?)b"
    r"|e(?P<effective>\d+(?:\.\d+)?)b|(?P<code>[rkmzhieo]\d+(?:\.\d+)*))(?![a-z0-9])"
    r"|(?<=deepseek)(?P<glued>r1)(?![a-z0-9])"
    r"|(?P<word>[a-z]+?(?=v\d)|deepseek(?=r1)|[a-z]+|\+)",
    re.ASCII,
)


def parse_model_name(server_id: str) -> ModelName:
    """Read any server's id, display name, file path or canonical name.

    Never raises; a name nobody knows has no series. Only the last 400 characters are read.

    Example::

        parse_model_name("hf.co/bartowski/Qwen2.5-Coder-32B-Instruct-GGUF:Q4_K_M").series  # "qwen2.5-coder"
    """
    return _parse(server_id[-MAX_NAME:])


@lru_cache(maxsize=4096)
def _parse(server_id: str) -> ModelName:
    text, publisher, latest = _normalised(server_id)
    quants = _QUANT.findall(text)
    if quants:
        text = _QUANT.sub(" ", text)
    text = _GLUED_VERSION.sub(_dotted, _HYPHEN_VERSION.sub(r"\1.\2", text))
    if "_" in text:
        text = _UNDERSCORE_VERSION.sub(r"\1.\2", _UNDERSCORE_SIZE.sub(lambda m: m[0].replace("_", "."), text))
    parts = _Parts()
    for match in _LEXEME.finditer(text):
        parts.take(match.lastgroup or "word", match[match.lastgroup or 0])
    return parts.name(_quantization(quants), publisher, latest)


def _normalised(server_id: str) -> tuple[str, str, bool]:
    """The part of an id that names the model, the publisher, and whether its tag is ``latest``."""
    text = server_id.lower().strip().replace("\\", "/").replace("@", ":")
    if (cached := text.find("models--")) >= 0:
        text = _REVISION.sub("/", text[cached + 8 :].replace("--", "/"))
    parts = [part for part in text.split("/") if part]
    name = parts.pop() if parts else ""
    name, _, tag = name.partition(":")
    if "." in name or "-of-" in name:
        name = _SPLIT_FILE.sub("", _ENDING.sub("", name))
    while parts and _says_nothing(name):
        above = parts.pop()
        name = f"{above} {name}" if not _HASH.match(name) else above
    latest = tag == "latest"
    publisher = parts[-1] if parts else ""
    if (prefix := _PREFIX.match(name)) and prefix[1] in PUBLISHERS:
        if prefix[1] not in _HEADS or prefix[2] in _HEADS:  # qwen_qwq, but not deepseek_coder
            publisher, name = prefix[1], name[prefix.end() :]
    return (name if latest or not tag else f"{name} {tag}"), publisher, latest


def _says_nothing(name: str) -> bool:
    """A file or folder called ``model``, ``main``, after its quantisation alone, or after a hash."""
    words = re.split(r"[^a-z0-9]+", _QUANT.sub(" ", name))
    return all(not word or word in GENERIC or word.isdigit() for word in words) or bool(_HASH.match(name))


def _dotted(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}.{match[3]}" if match[1] in _HEADS else match[0]


def _quantization(found: list[str]) -> str:
    """The most telling of several: ``int8`` of ``gptq-int8``."""
    if not found:
        return ""
    return next((quant for quant in found if quant not in ("gptq", "awq")), found[0]).replace("-", "_")


class _Parts:
    """What has been read of one name so far."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.versions: dict[str, str] = {}
        self.words: list[str] = []
        self.numbers: list[str] = []  # dates and revisions
        self.sizes: list[float] = []
        self.active = self.window = 0.0
        self.mixture = ""
        self.fresh = ""  # the head whose version may come next

    def take(self, kind: str, text: str) -> None:
        """One lexeme."""
        if kind == "word":
            for word in SPLIT_WORDS.get(text, (text,)):
                self._word(word)
        elif kind in ("code", "glued"):
            self._code(text)
        elif kind == "number":
            self._number(text)
        elif kind == "revision":
            self._revision(text)
        else:
            self._measure(kind, text)

    def _measure(self, kind: str, text: str) -> None:
        """Sizes in billions, windows in tokens, layouts of experts; group sizes of a quantisation are passed over."""
        if kind == "size":
            if text[-1] == "m" and float(text[:-1]) < 10:
                self.window = float(text[:-1]) * 1_048_576
            else:
                self.sizes.append(float(text[:-1]) * {"b": 1.0, "m": 0.001, "t": 1000.0}[text[-1]])
            self.fresh = ""
        elif kind == "effective":
            self.sizes.append(float(text))
        elif kind == "active":
            self.active = float(text) if len(text) < 6 else 0.0
        elif kind == "window":
            self.window = 131_072 if text == "131k" else min(float(text[:-1]), 1e6) * 1024
        elif kind == "moe":
            self.mixture = text
        elif kind == "experts":
            self.mixture = {"16e": "16x17b", "128e": "128x17b"}.get(text, "")

    def _word(self, word: str) -> None:
        before = self.words[-1] if self.words else ""
        if joined := JOINED.get((before, word)):
            self.words.pop()
            word = joined
        if word in _HEADS and not (word == "step" and self.heads):
            if word not in self.heads:
                self.heads.append(word)
            self.fresh = word
            return
        self.words.append(word)
        if self.fresh and word not in _HEADS[self.fresh].words:
            self.fresh = ""

    def _code(self, text: str) -> None:
        """A letter and a number: a line such as R1, K2, M2.5, or one of the words that happen to look like that."""
        if text in PURPOSES or text in NOISE:
            self.words.append(text)
        elif self.heads and text[0] in "km" and self.heads[-1] in ("kimi", "minimax"):
            self.versions[self.heads[-1]] = text
        else:
            self.words.append(text)

    def _number(self, text: str) -> None:
        if self.fresh and self.fresh not in self.versions and _is_version(text):
            self.versions[self.fresh] = text
        else:
            self.numbers.append(text)
        self.fresh = ""

    def _revision(self, text: str) -> None:
        if "deepseek" in self.heads and "deepseek" not in self.versions:
            self.versions["deepseek"] = f"v{text}"
        elif self.fresh == "llama" and _is_version(text):
            self.versions["llama"] = text
        else:
            self.numbers.append(f"v{text}")
        self.fresh = ""

    def name(self, quantization: str, publisher: str, latest: bool) -> ModelName:
        """The value, once everything is read."""
        purposes = [PURPOSES[word] for word in self.words if word in PURPOSES]
        purpose = "rerank" if "rerank" in purposes else purposes[0] if purposes else "chat"
        head = self._head()
        if not head:
            return self._nameless(quantization, publisher, purpose)
        grammar = _HEADS[head]
        others = [other for other in self.heads if other != head]
        distilled = head == "deepseek" and "r1" in self.words
        variants, lines, derived = self._sorted(head, grammar)
        base = _series(others[0], self.versions.get(others[0], ""), []) if others else ""
        if others and not grammar.own and not distilled:
            derived += others
        version = _version(head, self.versions.get(head, ""), lines)
        series = _series(head, version, lines)
        if grammar.own and base:
            series = f"{series}-{others[0]}" if others[0] in ("mixtral", "mistral") else f"{series}-{base}"
        size, active = self._size()
        series, size, usual = _settled(series, size, self, bool(base), latest)
        return ModelName(
            series, grammar.family, version, size or usual, size > 0, active, frozenset(variants), quantization,
            publisher, base, frozenset(self.numbers), int(self.window), purpose, tuple(derived),
        )  # fmt: skip

    def _head(self) -> str:
        if "deepseek" in self.heads and "r1" in self.words:
            return "deepseek"
        own = next((head for head in self.heads if _HEADS[head].own), "")
        return own or (self.heads[0] if self.heads else "")

    def _nameless(self, quantization: str, publisher: str, purpose: str) -> ModelName:
        size, active = self._size()
        variants = frozenset(VARIANTS[word] for word in self.words if word in VARIANTS)
        return ModelName(
            "", "", size=size, size_stated=size > 0, active=active, variants=variants, quantization=quantization,
            publisher=publisher, window=int(self.window), purpose=purpose, derived=tuple(self.words),
        )  # fmt: skip

    def _sorted(self, head: str, grammar: _Head) -> tuple[set[str], list[str], list[str]]:
        """Every word by its part: variants, words of the series, words without a part."""
        variants: set[str] = set()
        lines: list[str] = []
        derived: list[str] = []
        for word in self.words:
            spelled = "plus" if word == "+" else word
            if spelled in grammar.lines:
                lines.append(spelled)
            elif spelled in grammar.plain or spelled in NOISE or spelled in PURPOSES:
                continue
            elif spelled in VARIANTS and (VARIANTS[spelled] != "thinking" or self._thinks(head)):
                variants.add(VARIANTS[spelled])
            elif spelled == "code" and head in ("codellama", "codegemma"):
                variants.add("base")
            elif spelled == "dpo" or spelled == "sft":
                if not grammar.own:
                    derived.append(spelled)
            else:
                derived.append(spelled)
        return variants, lines, derived

    def _thinks(self, head: str) -> bool:
        """Whether thinking builds of this line come from its maker; others are somebody's finetunes."""
        return head in THINKERS and (head != "qwen" or self.versions.get(head, "") >= "3")

    def _size(self) -> tuple[float, float]:
        if self.mixture:
            if known := MIXTURES.get(self.mixture):
                return known
            experts, _, each = self.mixture[:-1].partition("x")
            return min(int(experts[:4]) * float(each) * 0.85, 1e5), 0.0
        size = max(self.sizes, default=0.0)
        return (size if size < 1e5 else 0.0), self.active


def _is_version(text: str) -> bool:
    return len(text) <= 5 and float(".".join(text.split(".")[:2])) <= 30 and not text.startswith("0")


def _version(head: str, version: str, lines: list[str]) -> str:
    """The part of a version that makes another model; updates of one model share theirs."""
    version = ".".join(version.split(".")[:2]).removesuffix(".0")
    major = version.split(".")[0]
    if head == "granite":
        return "" if "code" in lines else major if major == "3" else version
    if head == "mistral":
        return major if ("small" in lines and major == "4") or ("large" in lines and major == "3") else ""
    if head in ("yi", "magistral", "dolphin", "codeqwen", "codestral", "wizardcoder"):
        return ""
    if head in ("devstral", "gemma", "codegemma", "llama") and major == "1":
        return ""
    return "3" if head == "phi" and version == "3.1" else version


def _series(head: str, version: str, lines: list[str]) -> str:
    order = sorted(set(lines), key=lambda word: (ORDER.get(word, 5), word))
    if head == "deepseek" and version and "coder" in order:
        order.insert(1, version)
        version = ""
    stem = head + version if head in UNHYPHENED or not version else f"{head}-{version}"
    return "-".join((stem, *order))


def _settled(series: str, size: float, parts: _Parts, has_base: bool, latest: bool) -> tuple[str, float, float]:
    """Series and size where one decides the other: the series, the stated size, the usual one."""
    if latest and series in LATEST and not size:
        series, usual = LATEST[series]
        return series, 0.0, usual
    if series == "deepseek-r1" and (has_base or 0 < size < 600):
        series = "deepseek-r1-distill"
    elif series in ("deepseek-v2", "deepseek-coder-v2") and 0 < size < 30:
        series += "-lite"
    elif series == "llama-4":
        series = "llama-4-maverick" if parts.mixture == "128x17b" or size == 400 else "llama-4-scout"
    elif series == "llama-3.2" and size in (11, 90):
        series = "llama-3.2-vision"
    elif series in ("phi-3", "phi-3.5"):
        series += {14: "-medium", 7: "-small", 42: "-moe"}.get(int(size), "-mini")
    if series.startswith("llama-4-"):
        return series, 0.0, USUAL[series]  # its names state the active size: 17B of 109 or 400
    words = next((words for stem, words in SIZE_WORDS.items() if series.startswith(f"{stem}-")), {})
    stated = next((value for word, value in words.items() if word in parts.words), 0.0)
    if stated and series.startswith("granite-4"):
        return "granite-4", size or stated, 0.0
    if series == "mistral-small" and "2409" in parts.numbers:
        return series, 22.0, 0.0
    return series, size, float(USUAL.get(series, 0))


def same_quantization(listed: str, served: str) -> bool:
    """Whether a stated quantisation agrees: ``q4`` with ``q4_k_m``, and each with itself."""
    return not listed or listed == served or served.startswith(f"{listed}_")


def agrees(listed: ModelName, served: ModelName) -> bool:
    """Whether every facet that ``listed`` states, but its size, is so in ``served``."""
    if not listed.series or (listed.series, listed.derived) != (served.series, served.derived):
        return False
    if listed.purpose != served.purpose or not same_quantization(listed.quantization, served.quantization):
        return False
    if listed.base and served.base and listed.base != served.base:
        return False
    if listed.window and served.window and listed.window != served.window:
        return False
    if listed.active and served.active and listed.active != served.active:
        return False
    stated, has = listed.variants, served.variants
    if ("altered" in stated) != ("altered" in has):
        return False
    if "instruct" in stated and "instruct" not in has and has & {"base", "python"}:
        return False
    return listed.releases <= served.releases and stated - {"instruct"} <= has
