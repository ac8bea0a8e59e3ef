"""What each model is good for: the capability table, and an honest estimate for models that are not in it."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import msgspec

from turnout.errors import ConfigError
from turnout.routing.names import ModelName, agrees, parse_model_name
from turnout.types import Model, TaskCategory

SMALLEST_GUESS = 8192
# The owner's last resort where the name has no marker (SPEC SVC-5).
_FAMILY_WINDOWS = {"qwen": 131_072, "deepseek": 128_000}
_BITS = (
    (r"[dt]?i?q1", 2.0),
    (r"[dt]?i?q2|int2|2(?:\.\d+)?_?b", 2.8),
    (r"[dt]?i?q3|3(?:\.\d+|_\d+)?_?b", 3.7),
    (r"[dt]?i?q4|u?int4|4(?:\.\d+|_\d+)?_?b|awq|gptq|mxfp4|nvfp4|nf4|w4", 4.7),
    (r"[dt]?i?q5|5(?:\.\d+|_\d+)?_?b", 5.6),
    (r"[dt]?i?q6|6(?:\.\d+|_\d+)?_?b|mxfp6", 6.6),
    (r"[dt]?i?q8|u?int8|8(?:\.\d+|_\d+)?_?b|fp8|w8|mxfp8", 8.5),
    (r"b?fp?16", 16.0),
    (r"fp?32", 32.0),
)
_COMMON_BITS = 4.7  # what local servers serve when they do not say
_CODE_LINES = frozenset({"codellama", "codegemma", "codeqwen", "codestral", "devstral", "starcoder", "starcoder2"})
# Least squares over the owner's scored models: score = constant + slope * log2(1 + billions), then what being made for
# code changes. Experts count as the geometric mean of total and active parameters.
_LINES_OF_SCORE = {
    TaskCategory.CODING: (48.0, 6.0, 9.0),
    TaskCategory.REASONING: (46.0, 7.4, -18.0),
    TaskCategory.ANALYSIS: (44.0, 7.1, 1.0),
    TaskCategory.DOCUMENTATION: (52.0, 6.0, -13.0),
}
# The owner's models of these families lie above or below that line by this much, on average.
_FAMILY_OFFSETS = {"qwen": 3.0, "phi": 3.0, "deepseek": 2.0, "gemma": 2.0, "llama": 1.0, "mistral": -1.0, "yi": -4.0,
                   "cohere": -6.0}  # fmt: skip
_UNKNOWN_FAMILY = -5.0
_LONGEST_STRETCH = 4.4  # a window stretched further than the usual four times takes training: another model
_FINETUNE = -4.0  # a finetune may be better or worse than its base; between equals the model that is known goes first
_BASE_BUILD = -15.0  # a build without instruction tuning continues text, it does not answer


@dataclass(frozen=True, slots=True)
class ModelCapability:
    """One row of the table.

    Attributes:
        id: the canonical name; ``name`` is that, parsed.
        params, active: billions; ``active`` is 0 for a dense model.
        window: tokens the model was trained for.
        tier: 1 (large) to 3 (small), 0 when the user's file does not say.
        scores: 0 to 100 per category; a category without one is estimated.
        source: where the scores come from.
        capabilities: of ``chat, tools, vision, thinking, embeddings, fim``; empty when nobody says.
        sizes: every size in billions that names of it state.
    """

    id: str
    name: ModelName
    params: float
    active: float
    window: int
    tier: int = 0
    scores: Mapping[TaskCategory, float] = field(default_factory=dict)
    source: str = ""
    capabilities: frozenset[str] = frozenset()
    sizes: frozenset[float] = frozenset()

    @property
    def family(self) -> str:
        """The family, for example ``qwen``."""
        return self.name.family


@dataclass(frozen=True, slots=True)
class Rating:
    """What is known or estimated of a served model. ``source`` says which; ``canonical`` is "" for unknown models.

    ``params`` and ``active`` are billions, ``window`` tokens, scores 0 to 100.
    """

    canonical: str
    scores: Mapping[TaskCategory, float]
    source: str
    params: float
    active: float
    window: int
    capabilities: frozenset[str] = frozenset()


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    params: float
    window: int
    active: float = 0.0
    tier: int = 0
    source: str = ""
    scores: dict[TaskCategory, float] = {}
    capabilities: tuple[str, ...] = ()
    sizes: tuple[float, ...] = ()
    aliases: tuple[str, ...] = ()


class CapabilityTable:
    """The rows, found by parsed name. ``aliases`` maps lower-case ids that a parser cannot know to canonical names."""

    def __init__(self, rows: Mapping[str, ModelCapability], aliases: Mapping[str, str] | None = None) -> None:
        self._rows = dict(rows)
        self._aliases = dict(aliases or {})
        self._by_series: dict[str, list[ModelCapability]] = {}
        for row in self._rows.values():
            self._by_series.setdefault(row.name.series, []).append(row)
        self._resolved: dict[str, ModelCapability | None] = {}
        self._rated: dict[Model, Rating] = {}

    @property
    def ids(self) -> tuple[str, ...]:
        """The canonical names."""
        return tuple(self._rows)

    def get(self, canonical: str) -> ModelCapability | None:
        """The row of a canonical name."""
        return self._rows.get(canonical)

    def resolve(self, server_id: str) -> ModelCapability | None:
        """The row that a server's id means, or None: nobody knows it, or it is a model of its own made from one."""
        if server_id in self._resolved:
            return self._resolved[server_id]
        if len(self._resolved) > 10_000:
            self._resolved.clear()
        found = self._resolved[server_id] = self._resolve(server_id)
        return found

    def _resolve(self, server_id: str) -> ModelCapability | None:
        if row := self._rows.get(server_id):
            return row
        if canonical := self._alias(server_id):
            return self._rows[canonical]
        name = parse_model_name(server_id)
        row = self._row_of(name) if name.purpose == "chat" else None
        if row is None or "altered" in name.variants - row.name.variants:
            return None
        return row

    def _alias(self, server_id: str) -> str:
        """The canonical name that an alias means, wherever the id says that the model lies, or ""."""
        whole = server_id.lower().replace("\\", "/")
        return self._aliases.get(whole) or self._aliases.get(whole.rpartition("/")[2], "")

    def _row_of(self, name: ModelName) -> ModelCapability | None:
        """The row of a series, a size and the same words of its own."""
        rows = [row for row in self._by_series.get(name.series, ()) if name.series and _is_row(row, name)]
        return min(rows, key=lambda row: len(row.name.variants ^ name.variants), default=None)

    def matches(self, listed: str, server_id: str) -> bool:
        """Whether a name from a list or a user means this server's model.

        The same id always does. Otherwise every facet that ``listed`` states (series, size, variant, release,
        quantisation) must be so in ``server_id``: ``deepseek-v3`` means ``DeepSeek-V3-0324``, ``qwen2.5-coder`` every
        size of it, ``codellama-34b`` its instruct build too. A finetune by another name is never meant by its base's.
        """
        if listed.lower() == server_id.lower():
            return True
        listed, server_id = self._alias(listed) or listed, self._alias(server_id) or server_id
        one, other = parse_model_name(listed), parse_model_name(server_id)
        if not one.series and not other.series:
            return _plain(listed) == _plain(server_id)
        if not agrees(one, other):
            return False
        sizes = {one.size} if one.size_stated else set()
        if row := self._rows.get(listed):
            sizes |= row.sizes
        return not sizes or not other.size or other.size in sizes

    def rate(self, model: Model) -> Rating:
        """Scores, size and window of a served model: from the table, else estimated."""
        known = self._rated.get(model)
        if known is None:
            if len(self._rated) > 10_000:
                self._rated.clear()
            known = self._rated[model] = self._rate(model)
        return known

    def _rate(self, model: Model) -> Rating:
        row, name = self.resolve(model.id), parse_model_name(model.id)
        if name.purpose != "chat":
            return _not_for_chat(model, name)
        like = row or self._row_of(replace(name, derived=()))
        params, active = _parameters(model, name, like)
        quantization = model.quantization.lower() or name.quantization
        estimate = _estimate(name, params, active, quantization)
        change = _quantization_penalty(quantization) + (_BASE_BUILD if "base" in name.variants else 0.0)
        change += _FINETUNE if like is not None and row is None else 0.0
        scores = dict(estimate)
        if like is not None:
            scores |= {category: _bounded(score + change) for category, score in like.scores.items()}
        window = name.window or (like.window if like else 0) or guess_window(model.id)
        return Rating(
            row.id if row else "",
            scores,
            _source(row, like, change),
            params,
            active,
            window,
            model.capabilities or (row.capabilities if row else frozenset()),
        )

    def weights_of(self, model: Model) -> tuple[float, float, float]:
        """Billions of parameters that a token passes, bytes of all weights, and of those read for a token; each 0.0
        where nobody knows."""
        rating = self.rate(model)
        active = rating.active or rating.params
        bits = _bits(model.quantization or parse_model_name(model.id).quantization)
        total = float(model.size) or rating.params * 1e9 * bits / 8
        return active, total, total * active / rating.params if rating.params else total

    def memory_need_of(self, model: Model, window: int) -> int:
        """Bytes a served model needs with ``window`` tokens of context; its real size counts where the server tells."""
        rating = self.rate(model)
        quantization = model.quantization or parse_model_name(model.id).quantization
        if model.size:
            return model.size + _cache_bytes(rating.params, rating.active, window)
        return memory_need(rating.params, quantization, window, rating.active)


def _is_row(row: ModelCapability, name: ModelName) -> bool:
    if name.size and name.size not in row.sizes and abs(row.params - name.size) > 0.015 * row.params:
        return False
    if name.window > _LONGEST_STRETCH * row.window:
        return False
    stated = row.name.variants
    if "instruct" in stated and name.variants & {"base", "python"}:
        return False
    if row.name.derived != name.derived:
        return False
    return row.name.base in ("", name.base) and stated - {"instruct"} <= name.variants


def _plain(server_id: str) -> str:
    return server_id.strip().lower().removeprefix("library/").removesuffix(":latest")


def _not_for_chat(model: Model, name: ModelName) -> Rating:
    """Embedders, rerankers, guards and speech models must never be asked to answer."""
    capabilities = {"embedding": {"embeddings"}, "rerank": {"embeddings", "rerank"}}.get(name.purpose, {name.purpose})
    scores = dict.fromkeys(TaskCategory, 0.0)
    params = model.parameters / 1e9 or name.size
    window = name.window or guess_window(model.id)
    return Rating("", scores, f"made for {name.purpose}, not for chat", params, 0.0, window, frozenset(capabilities))


def _parameters(model: Model, name: ModelName, like: ModelCapability | None) -> tuple[float, float]:
    """Total and active billions: of the table, else as the server, the name or the file's size says."""
    if like is not None:
        return like.params, like.active
    total = model.parameters / 1e9 or name.size
    if not total and model.size:
        total = model.size * 8 / _bits(model.quantization or name.quantization) / 1e9
    return total, name.active


def _source(row: ModelCapability | None, like: ModelCapability | None, change: float) -> str:
    if like is None or not like.scores:
        return "estimate: from family, size and quantisation"
    adjusted = f", {change:+.0f} for this build" if change else ""
    if row is None:
        return f"estimate: a finetune of {like.id}{adjusted}"
    rest = "" if len(row.scores) == len(TaskCategory) else "; categories without a result: estimate"
    return (row.source or "the user's table") + adjusted + rest


def _bits(quantization: str) -> float:
    lowered = quantization.lower().replace("-", "_")
    return next((bits for pattern, bits in _BITS if re.match(pattern, lowered)), _COMMON_BITS)


def _quantization_penalty(quantization: str) -> float:
    """Below four bits a model loses quickly; down to four bits hardly anything."""
    return min(0.0, (_bits(quantization) - 4.0) * 8.0) if quantization else 0.0


def _estimate(name: ModelName, params: float, active: float, quantization: str) -> dict[TaskCategory, float]:
    """Scores where there is no evidence: family, size and quantisation, on the scale of the owner's table."""
    effective = math.sqrt(params * active) if active else params
    change = _FAMILY_OFFSETS.get(name.family, 0.0 if name.family else _UNKNOWN_FAMILY)
    change += _quantization_penalty(quantization) + (_BASE_BUILD if "base" in name.variants else 0.0)
    change += _FINETUNE if name.family and name.derived else 0.0
    coder = "coder" in name.series or "code" in name.series.split("-") or name.series in _CODE_LINES
    # The owner scored nothing under 3 billion parameters; the line would flatter what is far smaller.
    tiny = min(1.0, (effective / 3.0) ** 0.25) if effective else 0.8
    growth = math.log2(1 + (effective or 3.0))
    return {
        category: _bounded((constant + slope * growth + (code if coder else 0.0) + change) * tiny)
        for category, (constant, slope, code) in _LINES_OF_SCORE.items()
    }


def _bounded(score: float) -> float:
    return max(1.0, min(99.0, round(score, 1)))


def guess_window(server_id: str) -> int:
    """Tokens, from a marker in the name (``128k``), then the family: the last resort, shown as a guess (SVC-5)."""
    name = parse_model_name(server_id)
    if name.window:
        return name.window
    if name.series == "codellama":
        return 100_000
    if name.family == "llama" and name.version.startswith("3"):
        return 128_000
    if "mixtral" in name.series:
        return 65_536
    return _FAMILY_WINDOWS.get(name.family, SMALLEST_GUESS)


def memory_need(params: float, quantization: str, window: int, active: float = 0.0) -> int:
    """Bytes a model needs: weights (parameters x bits) and the KV cache of a full window.

    Args:
        params: billions of parameters, total.
        quantization: as a server or file names it; unknown is taken for 4 bits.
        window: tokens of context.
        active: billions of active parameters of a mixture of experts, 0 for a dense model.
    """
    return int(params * 1e9 * _bits(quantization) / 8) + _cache_bytes(params, active, window)


def _cache_bytes(params: float, active: float, window: int) -> int:
    """A 16-bit cache of grouped-query attention: 40 KiB per token and square root of a billion parameters.

    Llama 3 8B has 128 KiB (here 113), Qwen2.5 32B 256 (226), Llama 3 70B 320 (335).
    """
    effective = math.sqrt(params * active) if active else params
    return int(window * 40_960 * math.sqrt(max(effective, 0.1)))


@lru_cache(maxsize=1)
def _builtin() -> tuple[dict[str, ModelCapability], dict[str, str], Mapping[TaskCategory, tuple[str, ...]]]:
    data = tomllib.loads((files("turnout.routing") / "models.toml").read_text("utf-8"))
    rows = {key: msgspec.convert(row, _Row) for key, row in data["models"].items()}
    lists = {TaskCategory(category): tuple(names) for category, names in data["lists"].items()}
    return {key: _capability(key, row) for key, row in rows.items()}, _aliases(rows), lists


def _capability(key: str, row: _Row) -> ModelCapability:
    name = parse_model_name(key)
    sizes = frozenset({name.size or row.params, *row.sizes})
    return ModelCapability(
        key,
        name,
        row.params,
        row.active,
        row.window,
        row.tier,
        row.scores,
        row.source,
        frozenset(row.capabilities),
        sizes,
    )


def _aliases(rows: Mapping[str, _Row]) -> dict[str, str]:
    return {alias.lower(): key for key, row in rows.items() for alias in row.aliases}


def load_table(user_file: Path | None = None) -> CapabilityTable:
    """The shipped table, extended or overridden by the user's file (the same TOML: ``[models."NAME"]``).

    Raises:
        ConfigError: the user's file cannot be read, or a key or value in it is wrong.
    """
    rows, aliases, _ = _builtin()
    if user_file is None:
        return _shipped()
    own = _user_rows(user_file)
    return CapabilityTable(rows | {key: _capability(key, row) for key, row in own.items()}, aliases | _aliases(own))


@lru_cache(maxsize=1)
def _shipped() -> CapabilityTable:
    rows, aliases, _ = _builtin()
    return CapabilityTable(rows, aliases)


def _user_rows(path: Path) -> dict[str, _Row]:
    file = str(path)
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error  # its text has the path once more
        hint = 'routing.models_file names a TOML file with a table [models."NAME"] for each model'
        raise ConfigError(f"the models file cannot be read: {why}", file=file, hint=hint) from error
    wrong = next((key for key in data if key != "models"), "")
    if wrong:
        raise ConfigError("unknown key", file=file, key=wrong, hint='each model is a table [models."NAME"]')
    models = data.get("models")
    if not isinstance(models, dict) or not models:
        raise ConfigError('no model: each is a table [models."NAME"]', file=file, key="models")
    return {key: _user_row(file, key, row) for key, row in models.items()}


def _user_row(file: str, key: str, row: object) -> _Row:
    place = f"models.{key}"
    try:
        parsed = msgspec.convert(row, _Row)
    except msgspec.ValidationError as error:
        raise _row_error(file, place, str(error)) from error
    numbers = {"params": parsed.params, "active": parsed.active, "window": float(parsed.window)}
    numbers |= {"sizes": min(parsed.sizes, default=1.0), "tier": float(parsed.tier)}
    for name, value in numbers.items():
        allowed_zero = name in ("active", "tier")
        if not (0 <= value < 1e9) or (value == 0 and not allowed_zero):
            raise ConfigError(f"{value:g} is out of range", file=file, key=f"{place}.{name}", hint="above 0")
    if parsed.tier > 3:
        raise ConfigError(f"{parsed.tier} is out of range", file=file, key=f"{place}.tier", hint="1, 2 or 3")
    for category, score in parsed.scores.items():
        if not 0 <= score <= 100:
            raise ConfigError(
                f"{score:g} is out of range", file=file, key=f"{place}.scores.{category}", hint="0 to 100"
            )
    return parsed


def _row_error(file: str, place: str, message: str) -> ConfigError:
    """One line that names the key: where it is, and the nearest valid one."""
    path = re.search(r" - at `(?:key in )?\$\.?([^`]*)`", message)
    key = f"{place}.{path[1]}" if path and path[1] and path[1] != "..." else place
    text = message.split(" - at `", maxsplit=1)[0]
    if unknown := re.search(r"unknown field `([^`]+)`", message):
        near = difflib.get_close_matches(unknown[1], _Row.__struct_fields__, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(_Row.__struct_fields__)}"
        return ConfigError("unknown key", file=file, key=f"{place}.{unknown[1]}", hint=hint)
    if bad := re.search(r"Invalid enum value '([^']*)'", message):
        near = difflib.get_close_matches(bad[1], list(TaskCategory), 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(TaskCategory)}"
        return ConfigError("unknown category", file=file, key=f"{place}.scores.{bad[1]}", hint=hint)
    if missing := re.search(r"required field `([^`]+)`", message):
        return ConfigError(f"{missing[1]} is missing", file=file, key=place, hint="params and window are required")
    return ConfigError(text, file=file, key=key)


def shipped_lists() -> Mapping[TaskCategory, tuple[str, ...]]:
    """The owner's lists for policy ``lists``."""
    return _builtin()[2]
