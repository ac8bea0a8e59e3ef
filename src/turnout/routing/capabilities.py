"""What each model is good for: the capability table, and an honest estimate for models that are not in it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import msgspec

from turnout.errors import ConfigError
from turnout.routing.estimate import (
    Lines,
    bits_of,
    bounded,
    effective_size,
    estimate,
    is_coder,
    quantization_penalty,
    spread,
)
from turnout.routing.lexicon import NOISE, VARIANTS
from turnout.routing.names import ModelName, agrees, parse_model_name
from turnout.routing.rows import Row, read_rows
from turnout.types import Model, TaskCategory

SMALLEST_GUESS = 8192
# The owner's last resort where the name has no marker (SPEC SVC-5).
_FAMILY_WINDOWS = {"qwen": 131_072, "deepseek": 128_000}
NO_LINES = Lines(40.0, 5.0, 0.0, 0.0, 0.0, 2024.5)
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
        released: year and month, for example ``2024-12``; "" when nobody says.
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
    released: str = ""

    @property
    def family(self) -> str:
        """The family, for example ``qwen``."""
        return self.name.family

    @property
    def year(self) -> float:
        """Of its release, with the middle of its month as a share; 0.0 when nobody says."""
        year, _, month = self.released.partition("-")
        return round(int(year) + (int(month) - 0.5) / 12, 2) if year else 0.0


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


class CapabilityTable:
    """The rows, found by parsed name. ``aliases`` maps lower-case ids that a parser cannot know to canonical names;
    ``lines`` say what is expected of a model that is in no row."""

    def __init__(
        self,
        rows: Mapping[str, ModelCapability],
        aliases: Mapping[str, str] | None = None,
        lines: Lines = NO_LINES,
    ) -> None:
        self._rows = dict(rows)
        self.lines = lines
        self.aliases = dict(aliases or {})
        self._by_series: dict[str, list[ModelCapability]] = {}
        for row in self._rows.values():
            self._by_series.setdefault(row.name.series, []).append(row)
        self._resolved: dict[str, ModelCapability | None] = {}
        self._rated: dict[Model, Rating] = {}

    def extended(self, rows: Mapping[str, ModelCapability], aliases: Mapping[str, str]) -> CapabilityTable:
        """This table with rows that come before its own."""
        return CapabilityTable(self._rows | dict(rows), self.aliases | dict(aliases), self.lines)

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

    def base_of(self, name: ModelName) -> ModelCapability | None:
        """The row of what a finetune or an altered build was made from."""
        return self._row_of(replace(name, derived=()))

    def _alias(self, server_id: str) -> str:
        """The canonical name that an alias means, wherever the id says that the model lies, or ""."""
        whole = server_id.lower().replace("\\", "/").removesuffix(":latest")
        return self.aliases.get(whole) or self.aliases.get(whole.rpartition("/")[2], "")

    def _row_of(self, name: ModelName) -> ModelCapability | None:
        """The row of a series, or of a name that no grammar knows, of a size and the same words of its own."""
        known = name.series or _own_words(name)
        rows = [row for row in self._by_series.get(name.series, ()) if known and _is_row(row, name)]
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
            return _plain(listed) == _plain(server_id) or self._is_own(listed, server_id)
        if not agrees(one, other):
            return False
        sizes = {one.size} if one.size_stated else set()
        if row := self._rows.get(listed):
            sizes |= row.sizes
        return not sizes or not other.size or other.size in sizes

    def _is_own(self, listed: str, server_id: str) -> bool:
        """Whether ``listed`` names a row of the user's file, and that is this server's model."""
        row = self._rows.get(listed)
        return row is not None and row is self.resolve(server_id)

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
        like = row or self.base_of(name)
        params, active = _parameters(model, name, like)
        quantization = model.quantization.lower() or name.quantization
        build = build_of(name, quantization, finetune=row is None and (like is not None or bool(name.derived)))
        change = sum(build.values())
        scores = {c: bounded(score + change) for c, score in self.expected(name, params, active, like).items()}
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

    def expected(
        self, name: ModelName, params: float, active: float, like: ModelCapability | None
    ) -> dict[TaskCategory, float]:
        """The scores of a row, and of every category that it has none for what size, age and family let expect."""
        found = estimate(self.lines, name, params, active, like.year if like else 0.0)
        if like is None:
            return found
        if (coding := like.scores.get(TaskCategory.CODING)) is not None:
            found = spread(self.lines, coding, effective_size(params, active), is_coder(name))
        return found | dict(like.scores)

    def weights_of(self, model: Model) -> tuple[float, float, float]:
        """Billions of parameters that a token passes, bytes of all weights, and of those read for a token; each 0.0
        where nobody knows."""
        rating = self.rate(model)
        active = rating.active or rating.params
        bits = bits_of(model.quantization or parse_model_name(model.id).quantization)
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
    if _own_words(row.name) != _own_words(name):
        return False
    return row.name.base in ("", name.base) and stated - {"instruct"} <= name.variants


def _own_words(name: ModelName) -> tuple[str, ...]:
    """The words that no grammar knows, without those that every model's name may have."""
    if name.series:
        return name.derived
    return tuple(word for word in name.derived if word not in NOISE and word not in VARIANTS)


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
        total = model.size * 8 / bits_of(model.quantization or name.quantization) / 1e9
    return total, name.active


def _source(row: ModelCapability | None, like: ModelCapability | None, change: float) -> str:
    if like is None or not like.scores:
        return "estimate: from size, age, family and quantisation"
    adjusted = f", {change:+.0f} for this build" if change else ""
    if row is None:
        return f"estimate: a finetune of {like.id}{adjusted}"
    rest = "" if len(row.scores) == len(TaskCategory) else "; categories without a result: estimate"
    return (row.source or "the user's table") + adjusted + rest


def build_of(name: ModelName, quantization: str, *, finetune: bool) -> dict[str, float]:
    """What a build adds to the score of its model, in points, by what it is."""
    changes = {
        f"weights of {bits_of(quantization):g} bits ({quantization})": quantization_penalty(quantization),
        "a base build": _BASE_BUILD if "base" in name.variants else 0.0,
        "a finetune by somebody else": _FINETUNE if finetune and name.family else 0.0,
    }
    return {what: points for what, points in changes.items() if points}


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
    return int(params * 1e9 * bits_of(quantization) / 8) + _cache_bytes(params, active, window)


def _cache_bytes(params: float, active: float, window: int) -> int:
    """A 16-bit cache of grouped-query attention: 40 KiB per token and square root of a billion parameters.

    Llama 3 8B has 128 KiB (here 113), Qwen2.5 32B 256 (226), Llama 3 70B 320 (335).
    """
    effective = effective_size(params, active)
    return int(window * 40_960 * math.sqrt(max(effective, 0.1)))


@lru_cache(maxsize=1)
def _shipped() -> tuple[CapabilityTable, Mapping[TaskCategory, tuple[str, ...]]]:
    data = tomllib.loads((files("turnout.routing") / "models.toml").read_text("utf-8"))
    rows = {key: msgspec.convert(row, Row) for key, row in data["models"].items()}
    lists = {TaskCategory(category): tuple(names) for category, names in data["lists"].items()}
    lines = msgspec.convert(data["lines"], Lines)
    return CapabilityTable({key: capability(key, row) for key, row in rows.items()}, aliases_of(rows), lines), lists


def capability(key: str, row: Row) -> ModelCapability:
    """A row as it stands in a file, with its name parsed."""
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
        row.released,
    )


def aliases_of(rows: Mapping[str, Row]) -> dict[str, str]:
    """The canonical name of each alias."""
    return {alias.lower(): key for key, row in rows.items() for alias in row.aliases}


def load_table(
    user_file: Path | None = None, on_mistake: Callable[[ConfigError], None] | None = None
) -> CapabilityTable:
    """The shipped table, extended or overridden by the user's file (the same TOML: ``[models."NAME"]``).

    Args:
        on_mistake: told of each mistake in the user's file; what is wrong is left out, and estimated.

    Raises:
        ConfigError: the user's file cannot be read, or a key or value in it is wrong, and nobody wants to be told.
    """
    table, _ = _shipped()
    if user_file is None:
        return table
    own, mistakes = read_rows(user_file)
    for mistake in mistakes:
        if on_mistake is None:
            raise mistake
        on_mistake(mistake)
    return table.extended({key: capability(key, row) for key, row in own.items()}, aliases_of(own))


def shipped_lists() -> Mapping[TaskCategory, tuple[str, ...]]:
    """The owner's lists for policy ``lists``."""
    return _shipped()[1]
