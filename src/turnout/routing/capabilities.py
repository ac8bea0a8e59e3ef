"""What each model is good for: the capability table, and an honest estimate for models that are not in it."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import msgspec

from turnout.errors import ConfigError
from turnout.routing.names import ModelName, parse_model_name, same_model
from turnout.types import Model, TaskCategory

SMALLEST_GUESS = 8192
# The owner's last resort (SPEC SVC-5): markers in the name, then the family.
_WINDOW_MARKS = ((128, 131_072), (131, 131_072), (64, 65_536), (32, 32_768), (16, 16_384))
_FAMILY_WINDOWS = (("qwen", 131_072), ("deepseek", 128_000), ("codellama", 100_000), ("mixtral", 65_536))
_BITS = (
    (r"iq1|tq1|q1", 2.0),
    (r"iq2|q2|tq2", 2.8),
    (r"iq3|q3", 3.7),
    (r"q4|iq4|int4|4_?bit|awq|gptq|mxfp4|nvfp4|w4", 4.7),
    (r"q5", 5.6),
    (r"q6", 6.6),
    (r"q8|int8|8_?bit|fp8|w8", 8.5),
    (r"f16|fp16|bf16", 16.0),
    (r"f32|fp32", 32.0),
)
_STRONG = {"coder": 4.0, "code": 3.0, "devstral": 5.0, "codestral": 3.0}


@dataclass(frozen=True, slots=True)
class ModelCapability:
    """One row of the table. ``params`` and ``active`` in billions, ``window`` in tokens, scores 0 to 100."""

    id: str
    name: ModelName
    params: float
    active: float
    window: int
    tier: int = 0
    scores: Mapping[TaskCategory, float] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True)
class Rating:
    """What is known or estimated of a served model. ``source`` says which."""

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


class CapabilityTable:
    """The rows, found by parsed name."""

    def __init__(self, rows: Mapping[str, ModelCapability]) -> None:
        self._rows = dict(rows)
        self._by_series: dict[str, list[ModelCapability]] = {}
        for row in self._rows.values():
            self._by_series.setdefault(row.name.series, []).append(row)
        self._rated: dict[Model, Rating] = {}

    @property
    def ids(self) -> tuple[str, ...]:
        """The canonical names."""
        return tuple(self._rows)

    def get(self, canonical: str) -> ModelCapability | None:
        """The row of a canonical name."""
        return self._rows.get(canonical)

    def resolve(self, server_id: str) -> ModelCapability | None:
        """The row that a server's id means, or None when nobody knows it."""
        if server_id in self._rows:
            return self._rows[server_id]
        name = parse_model_name(server_id)
        if not name.series:
            return None
        rows = self._by_series.get(name.series, [])
        fitting = [
            row for row in rows if not name.size or _near(row.params, name.size) or _near(row.name.size, name.size)
        ]
        if not fitting:
            return None
        return min(fitting, key=lambda row: _distance(row, name))

    def matches(self, listed: str, server_id: str) -> bool:
        """Whether a name from a list or a user means this server's model."""
        if listed.lower() == server_id.lower():
            return True
        one, other = parse_model_name(listed), parse_model_name(server_id)
        if not one.series:
            return False
        row = self._rows.get(listed)
        if row is not None and not one.size_stated and len(self._by_series.get(one.series, [])) == 1:
            return one.series == other.series and (not other.size_stated or _near(row.params, other.size))
        return same_model(one, other)

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
        params = (row.params if row else 0.0) or model.parameters / 1e9 or name.size or _params_of_size(model, name)
        active = (row.active if row else 0.0) or name.active
        estimate = _estimate(name, params, active, model.quantization or name.quantization)
        scores = {category: (row.scores.get(category) if row else None) or estimate for category in TaskCategory}
        source = "estimate: from family, size and quantisation"
        if row is not None and row.scores:
            source = {"owner": "owner's table, January 2025"}.get(row.source, row.source or "user's table")
        capabilities = model.capabilities
        if name.series in ("embedding", "reranker"):
            capabilities = frozenset({"embeddings"})
        window = (row.window if row else 0) or guess_window(model.id)
        return Rating(row.id if row else "", scores, source, params, active, window, capabilities)

    def memory_need_of(self, model: Model, window: int) -> float:
        """Bytes a served model needs with ``window`` tokens of context."""
        rating = self.rate(model)
        name = parse_model_name(model.id)
        return memory_need(rating.params, model.quantization or name.quantization, window)


def _near(one: float, other: float) -> bool:
    return one > 0 and other > 0 and abs(one - other) <= 0.09 * max(one, other)


def _distance(row: ModelCapability, name: ModelName) -> tuple[int, float, int]:
    differing = row.name.variants ^ name.variants
    return len(differing - {"instruct", "altered"}), abs(row.params - name.size), len(differing)


def _bits(quantization: str) -> float:
    lowered = quantization.lower()
    return next((bits for pattern, bits in _BITS if re.search(pattern, lowered)), 4.7)


def _params_of_size(model: Model, name: ModelName) -> float:
    return model.size * 8 / _bits(model.quantization or name.quantization) / 1e9 if model.size else 0.0


def _estimate(name: ModelName, params: float, active: float, quantization: str) -> float:
    """A score where there is no evidence: it grows with the logarithm of the size, experts count in part."""
    if params <= 0:
        return 40.0
    effective = math.sqrt(params * active) if active else params
    score = 38.0 + 11.0 * math.log2(1 + effective) * 0.85
    score += next((bonus for word, bonus in _STRONG.items() if word in name.series), 0.0)
    if not name.series:
        score -= 5.0
    if quantization and _bits(quantization) < 4.0:
        score -= (4.0 - _bits(quantization)) * 8.0
    if "base" in name.variants:
        score -= 15.0
    return max(1.0, min(92.0, score))


def guess_window(server_id: str) -> int:
    """Tokens, from markers in the name and the family: the last resort, always shown as a guess (SPEC SVC-5)."""
    lowered = server_id.lower()
    for mark, window in _WINDOW_MARKS:
        if re.search(rf"(?<![0-9]){mark}k(?![a-z0-9])", lowered):
            return window
    name = parse_model_name(server_id)
    if name.series == "codellama":
        return 100_000
    if name.series.startswith("llama-3"):
        return 128_000
    return next((w for family, w in _FAMILY_WINDOWS if family in (name.family, name.series)), SMALLEST_GUESS)


def memory_need(params: float, quantization: str, window: int) -> float:
    """Bytes: weights (parameters x bits) plus a KV cache.

    The cache per token is that of grouped-query models at 16 bits: about 16 KB per square root of a billion
    parameters and token, which is within a factor of two of the published architectures.

    Args:
        params: billions of parameters.
        quantization: as a server or file names it; unknown is taken for 4 bits.
        window: tokens of context.
    """
    return params * 1e9 * _bits(quantization) / 8 + window * 16_384 * math.sqrt(max(params, 0.1)) * 2.5


@lru_cache(maxsize=1)
def _builtin() -> tuple[dict[str, ModelCapability], Mapping[TaskCategory, tuple[str, ...]]]:
    data = tomllib.loads((files("turnout.routing") / "models.toml").read_text("utf-8"))
    rows = {key: _capability(key, msgspec.convert(row, _Row)) for key, row in data["models"].items()}
    return rows, {TaskCategory(category): tuple(names) for category, names in data["lists"].items()}


def _capability(key: str, row: _Row) -> ModelCapability:
    return ModelCapability(
        key, parse_model_name(key), row.params, row.active, row.window, row.tier, row.scores, row.source
    )


def load_table(user_file: Path | None = None) -> CapabilityTable:
    """The shipped table, extended or overridden by the user's file (the same TOML: ``[models."NAME"]``).

    Raises:
        ConfigError: the user's file cannot be read, or a key or value in it is wrong.
    """
    rows = dict(_builtin()[0])
    if user_file is not None:
        rows |= _user_rows(user_file)
    return CapabilityTable(rows)


def _user_rows(path: Path) -> dict[str, ModelCapability]:
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the models file cannot be read: {error}", file=str(path)) from error
    models = data.get("models")
    if not isinstance(models, dict) or set(data) != {"models"}:
        raise ConfigError('the models file needs one table, [models."NAME"] for each model', file=str(path))
    return {key: _user_row(path, key, row) for key, row in models.items()}


def _user_row(path: Path, key: str, row: object) -> ModelCapability:
    try:
        parsed = msgspec.convert(row, _Row)
    except msgspec.ValidationError as error:
        unknown = re.search(r"unknown field `([^`]+)`", str(error))
        near = difflib.get_close_matches(unknown[1], _Row.__struct_fields__, 1) if unknown else []
        hint = f"did you mean {near[0]}?" if near else ""
        raise ConfigError(str(error), file=str(path), key=f"models.{key}", hint=hint) from error
    bad = [v for v in (parsed.params, parsed.active, *parsed.scores.values()) if not 0 <= v < 1e6]
    if bad or parsed.window < 1 or any(v > 100 for v in parsed.scores.values()):
        raise ConfigError("a number is out of range", file=str(path), key=f"models.{key}", hint="scores are 0 to 100")
    return _capability(key, parsed)


def shipped_lists() -> Mapping[TaskCategory, tuple[str, ...]]:
    """The owner's lists for policy ``lists``."""
    return _builtin()[1]
