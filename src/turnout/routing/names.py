"""What a model's name says, as a value (SPEC SEL-4): series, size, variant, quantisation.

``qwen2.5-coder:32b-instruct-q4_K_M`` and ``Qwen/Qwen2.5-Coder-32B-Instruct-GGUF`` name one model. A finetune under a
name of its own is a model of its own, never silently its base.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

MAX_NAME = 400

# (pattern on the normalised name, series, family, size in billions when the name leaves it out). First match wins, so
# finetunes come before their bases and longer names before shorter ones.
_EMBEDDERS = (
    r"nomic-embed|mxbai-embed|bge-|gte-|e5-|all-minilm|minilm-l|snowflake-arctic-embed|jina-(?:v\d-)?embed|"
    r"embeddinggemma|qwen3-embedding|paraphrase-|text-embedding|embed-text|granite-embedding|multilingual-e5"
)
_FINETUNES = (
    r"zephyr|vicuna|openchat|neural-chat|airoboros|samantha|starling|stablelm-zephyr|orca|platypus|alpaca|guanaco|"
    r"mythomax|everythinglm|xwin|tulu|firefunction|reflection|athene|sky-t1|bespoke|openthinker|marco-o1|acemath"
)
_SERIES: tuple[tuple[str, str, str, float], ...] = (
    (_EMBEDDERS, "embedding", "embedding", 0.3),
    (r"rerank", "reranker", "reranker", 0.3),
    (r"dolphin.*mixtral|mixtral.*dolphin", "dolphin-mixtral", "dolphin", 46.7),
    (r"nous-hermes-?2-mixtral|hermes.*mixtral", "nous-hermes-2-mixtral", "nous", 46.7),
    (r"dolphin", "dolphin", "dolphin", 0),
    (r"openhermes", "openhermes", "nous", 7),
    (r"hermes-?4", "hermes-4", "nous", 0),
    (r"hermes-?3", "hermes-3", "nous", 8),
    (r"hermes", "hermes", "nous", 0),
    (r"deephermes", "deephermes", "nous", 0),
    (r"wizardcoder|wizard-coder", "wizardcoder", "wizard", 33),
    (r"wizardlm|wizard-vicuna|wizard-?math", "wizardlm", "wizard", 0),
    (r"magicoder", "magicoder", "magicoder", 7),
    (_FINETUNES, "finetune", "finetune", 0),
    (r"nemotron-?3|nemotron-nano|nemotron-super|nemotron-ultra|nemotron", "nemotron", "nemotron", 0),
    (r"deepcoder", "deepcoder", "deepcoder", 14),
    (r"deepseek-?(?:r1|r-1).*(?:distill|qwen|llama)|r1-distill", "deepseek-r1-distill", "deepseek", 0),
    (r"deepseek-?r1", "deepseek-r1", "deepseek", 0),
    (r"deepseek-?v3\.2", "deepseek-v3.2", "deepseek", 671),
    (r"deepseek-?v3\.1", "deepseek-v3.1", "deepseek", 671),
    (r"deepseek-?v3", "deepseek-v3", "deepseek", 671),
    (r"deepseek-?v2\.5", "deepseek-v2.5", "deepseek", 236),
    (r"deepseek-?coder-?v2-?lite", "deepseek-coder-v2-lite", "deepseek", 16),
    (r"deepseek-?coder-?v2", "deepseek-coder-v2", "deepseek", 0),
    (r"deepseek-?coder", "deepseek-coder", "deepseek", 0),
    (r"deepseek-?v2", "deepseek-v2", "deepseek", 0),
    (r"codeqwen", "codeqwen", "qwen", 7),
    (r"qwq", "qwq", "qwen", 32),
    (r"qwen-?3\.6", "qwen3.6", "qwen", 0),
    (r"qwen-?3\.5", "qwen3.5", "qwen", 0),
    (r"qwen-?3-?coder-?next", "qwen3-coder-next", "qwen", 80),
    (r"qwen-?3-?coder", "qwen3-coder", "qwen", 30),
    (r"qwen-?3-?next", "qwen3-next", "qwen", 80),
    (r"qwen-?3-?vl", "qwen3-vl", "qwen", 8),
    (r"qwen-?3-?omni", "qwen3-omni", "qwen", 30),
    (r"qwen-?3(?![.\d])", "qwen3", "qwen", 8),
    (r"qwen-?2\.5(?:\.1)?-?coder", "qwen2.5-coder", "qwen", 7),
    (r"qwen-?2\.5-?vl", "qwen2.5-vl", "qwen", 7),
    (r"qwen-?2\.5-?math", "qwen2.5-math", "qwen", 7),
    (r"qwen-?2\.5", "qwen2.5", "qwen", 7),
    (r"qwen-?2-?vl", "qwen2-vl", "qwen", 7),
    (r"qwen-?2(?![.\d])", "qwen2", "qwen", 7),
    (r"qwen-?1\.5|qwen(?![\d.-]*\d)", "qwen", "qwen", 0),
    (r"code-?llama|phind-codellama", "codellama", "llama", 7),
    (r"tiny-?llama", "tinyllama", "llama", 1.1),
    (r"llama-?4-?maverick", "llama-4-maverick", "llama", 400),
    (r"llama-?4(?![.\d])", "llama-4-scout", "llama", 109),
    (r"llama-?3\.3", "llama-3.3", "llama", 70),
    (r"llama-?3\.2-?(?:\d+b-)?vision", "llama-3.2-vision", "llama", 11),
    (r"llama-?3\.2", "llama-3.2", "llama", 3),
    (r"llama-?3\.1", "llama-3.1", "llama", 8),
    (r"llama-?3(?![.\d])", "llama-3", "llama", 8),
    (r"llama-?2(?![.\d])", "llama-2", "llama", 7),
    (r"llava|bakllava|minicpm-v|moondream|internvl", "vision-other", "vision", 7),
    (r"codestral", "codestral", "mistral", 22),
    (r"devstral", "devstral", "mistral", 24),
    (r"magistral", "magistral", "mistral", 24),
    (r"ministral", "ministral", "mistral", 8),
    (r"mathstral", "mathstral", "mistral", 7),
    (r"pixtral", "pixtral", "mistral", 12),
    (r"mixtral", "mixtral", "mistral", 46.7),
    (r"mistral-?nemo", "mistral-nemo", "mistral", 12),
    (r"mistral-?small", "mistral-small", "mistral", 24),
    (r"mistral-?medium", "mistral-medium", "mistral", 0),
    (r"mistral-?large", "mistral-large", "mistral", 123),
    (r"mistral", "mistral", "mistral", 7),
    (r"codegemma", "codegemma", "gemma", 7),
    (r"medgemma|shieldgemma|recurrentgemma|functiongemma|paligemma", "gemma-other", "gemma", 0),
    (r"gemma-?4", "gemma-4", "gemma", 0),
    (r"gemma-?3n", "gemma-3n", "gemma", 8),
    (r"gemma-?3(?![.\d])", "gemma-3", "gemma", 4),
    (r"gemma-?2(?![.\d])", "gemma-2", "gemma", 9),
    (r"gemma", "gemma", "gemma", 7),
    (r"phi-?4-?mini", "phi-4-mini", "phi", 3.8),
    (r"phi-?4-?multimodal", "phi-4-multimodal", "phi", 5.6),
    (r"phi-?4-?reasoning|phi-?4", "phi-4", "phi", 14),
    (r"phi-?3\.5-?moe", "phi-3.5-moe", "phi", 42),
    (r"phi-?3\.5", "phi-3.5-mini", "phi", 3.8),
    (r"phi-?3-?medium|phi-?3-14b", "phi-3-medium", "phi", 14),
    (r"phi-?3", "phi-3-mini", "phi", 3.8),
    (r"phi-?2", "phi-2", "phi", 2.7),
    (r"gpt-?oss", "gpt-oss", "gpt-oss", 20),
    (r"glm-?5", "glm-5", "glm", 0),
    (r"glm-?4\.7-?flash", "glm-4.7-flash", "glm", 30),
    (r"glm-?4\.7", "glm-4.7", "glm", 355),
    (r"glm-?4\.6", "glm-4.6", "glm", 355),
    (r"glm-?4\.5-?air", "glm-4.5-air", "glm", 106),
    (r"glm-?4\.5", "glm-4.5", "glm", 355),
    (r"glm-?4|codegeex", "glm-4", "glm", 9),
    (r"granite-?code", "granite-code", "granite", 8),
    (r"granite-?4", "granite-4", "granite", 0),
    (r"granite", "granite-3", "granite", 8),
    (r"starcoder-?2", "starcoder2", "starcoder", 3),
    (r"starcoder", "starcoder", "starcoder", 15),
    (r"stable-?code", "stable-code", "stable", 3),
    (r"yi-?coder", "yi-coder", "yi", 9),
    (r"(?<![a-z])yi-?(?:1\.5|\d|:|$|large)", "yi", "yi", 6),
    (r"command-?r7b", "command-r7b", "cohere", 7),
    (r"command-?r-?plus|command-?r\+", "command-r-plus", "cohere", 104),
    (r"command-?r", "command-r", "cohere", 35),
    (r"command-?a", "command-a", "cohere", 111),
    (r"aya", "aya", "cohere", 8),
    (r"smollm-?3", "smollm3", "smollm", 3),
    (r"smollm-?2|turnout-demo", "smollm2", "smollm", 1.7),
    (r"smollm", "smollm", "smollm", 1.7),
    (r"solar", "solar", "solar", 10.7),
    (r"falcon-?3", "falcon3", "falcon", 7),
    (r"falcon", "falcon", "falcon", 7),
    (r"internlm-?3", "internlm3", "internlm", 8),
    (r"internlm", "internlm2", "internlm", 7),
    (r"olmo-?3", "olmo-3", "olmo", 7),
    (r"olmo-?2|olmo", "olmo-2", "olmo", 7),
    (r"exaone-?deep", "exaone-deep", "exaone", 7.8),
    (r"exaone", "exaone", "exaone", 7.8),
    (r"kimi-?k2", "kimi-k2", "kimi", 1000),
    (r"kimi-?dev", "kimi-dev", "kimi", 72),
    (r"minimax-?m2", "minimax-m2", "minimax", 230),
    (r"seed-?oss", "seed-oss", "seed", 36),
    (r"hunyuan", "hunyuan", "hunyuan", 0),
    (r"ernie", "ernie-4.5", "ernie", 21),
    (r"lfm-?2", "lfm2", "lfm", 1.2),
    (r"opencoder", "opencoder", "opencoder", 8),
    (r"sqlcoder", "sqlcoder", "sqlcoder", 7),
    (r"nous", "nous", "nous", 0),
)  # fmt: skip
_COMPILED = tuple((re.compile(rf"(?:{p})"), s, f, size) for p, s, f, size in _SERIES)
# Names whose tag means another size than the series' usual one (a registry's ``latest``).
_DEFAULT_VARIANTS = {"deepseek-coder": 1.3, "deepseek-coder-v2": 16.0, "yi": 6.0}

_QUANT = re.compile(
    r"(?<![a-z0-9])(i?q[1-8](?:[-_](?:[01ksml]|xs|xxs|nl|xl)){0,3}|iq\d[-_](?:xxs|xs|nl|[sm])|ud-q\d[-_a-z]*|f16|fp16|bf16|f32|fp32|fp8|"
    r"mxfp4(?:[-_]moe)?|nvfp4|awq|gptq|int4|int8|[48]-?bit|w4a16|w8a8|tq[12]_0|\d(?:\.\d+)?bpw)(?![a-z0-9])"
)
_SPLIT = re.compile(r"-?\d{5}-of-\d{5}")
_ENDING = re.compile(r"\.(?:gguf|safetensors|bin|ggml|mlmodelc|dlim)$")
_MOE = re.compile(r"(?<![a-z0-9.])(\d+)x(\d+(?:\.\d+)?)b(?![a-z])")
_SIZE = re.compile(r"(?<![a-z0-9.])(?:e)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
_ACTIVE = re.compile(r"(?<![a-z0-9])a(\d+(?:\.\d+)?)b(?![a-z0-9])")
_VARIANTS = {
    "instruct": re.compile(r"(?<![a-z])(?:instruct|it|chat|inst)(?![a-z])"),
    "base": re.compile(r"(?<![a-z])(?:base|text|pt|code)(?![a-z])"),
    "python": re.compile(r"(?<![a-z])python(?![a-z])"),
    "thinking": re.compile(r"(?<![a-z])(?:thinking|reasoning)(?![a-z])"),
    "vision": re.compile(r"(?<![a-z])(?:vision|vl)(?![a-z])"),
    "altered": re.compile(r"(?<![a-z])(?:abliterated|uncensored|heretic|derestricted)(?![a-z])"),
}


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed name.

    Attributes:
        series: line and version, for example ``qwen2.5-coder``; "" when nobody knows it.
        family: for example ``qwen``.
        size: total parameters in billions, 0 when the name does not say and the series has no usual one.
        size_stated: the name itself says the size.
        active: active parameters in billions of a mixture of experts, 0 when not stated.
        quantization: as written, lower-case, "" when not stated.
        variants: of ``instruct, base, python, thinking, vision, altered``.
    """

    series: str
    family: str
    size: float = 0.0
    size_stated: bool = False
    active: float = 0.0
    quantization: str = ""
    variants: frozenset[str] = frozenset()


@lru_cache(maxsize=4096)
def parse_model_name(server_id: str) -> ModelName:
    """Read any server's id, canonical name or file path. Never raises; a name nobody knows has no series.

    Example::

        parse_model_name("hf.co/bartowski/Qwen2.5-Coder-32B-Instruct-GGUF:Q4_K_M").series  # "qwen2.5-coder"
    """
    text = _normalised(server_id[:MAX_NAME])
    quant = _QUANT.search(text)
    rest = _QUANT.sub(" ", text)
    series, family, usual = _series(rest)
    size, stated = _size(rest, series)
    variants = frozenset(name for name, pattern in _VARIANTS.items() if pattern.search(rest))
    if series == "deepseek-r1" and 0 < size < 600:
        series = "deepseek-r1-distill"
    if series == "deepseek-r1" and not stated:
        size = 671.0
    if series == "deepseek-coder-v2" and 0 < size < 30:
        series = "deepseek-coder-v2-lite"
    if series == "mistral-small" and size == 22:
        series = "mistral-small-2409"
    if series.startswith("llama-4"):
        # Its names state the active size: 17B of 109 or 400.
        size, stated = usual, False
    active = _ACTIVE.search(rest)
    return ModelName(
        series,
        family,
        size if stated or size else usual,
        stated,
        float(active[1]) if active else 0.0,
        quant[1].replace("-", "_") if quant else "",
        variants,
    )


def _normalised(server_id: str) -> str:
    text = server_id.strip().lower().replace("\\", "/")
    text = _SPLIT.sub("", _ENDING.sub("", text)).split("@", 1)[0] + " " + server_id.lower().partition("@")[2]
    head, _, tag = text.strip().partition(":")
    parts = [part for part in head.split("/") if part]
    name = parts[-1] if parts else ""
    if name in ("model", "snapshot", "main", "gguf") and len(parts) > 1:
        name = parts[-2]
    joined = f"{name} {'' if tag.strip() == 'latest' else tag}"
    return re.sub(r"[\s_+]+", lambda m: "_" if m[0] == "_" else "-" if "+" not in m[0] else "+", joined).strip("-")


def _series(text: str) -> tuple[str, str, float]:
    flat = re.sub(r"[_\s:/]+", "-", text)
    flat = re.sub(r"^(?:meta|mistralai|google|microsoft|nvidia-(?!nemotron)|ibm|deepseek-ai)-+(?=[a-z])", "", flat)
    for pattern, series, family, usual in _COMPILED:
        if pattern.search(flat):
            return series, family, usual
    return "", "", 0.0


def _size(text: str, series: str) -> tuple[float, bool]:
    flat = re.sub(r"[_\s:]+", "-", text)
    if moe := _MOE.search(flat):
        total = {"8x7": 46.7, "8x22": 141.0}.get(f"{moe[1]}x{moe[2]}", int(moe[1]) * float(moe[2]) * 0.85)
        return total, True
    sizes = [float(n) / (1000 if unit == "m" else 1) for n, unit in _SIZE.findall(flat)]
    if sizes:
        return max(sizes), True
    return 0.0, False


def same_model(listed: ModelName, served: ModelName) -> bool:
    """Whether a server's model is the one a list or a user names: every facet that is stated must agree."""
    if not listed.series or listed.series != served.series:
        return False
    if listed.size_stated and not _close(listed.size, served.size):
        return False
    if not listed.size_stated and served.size_stated and listed.size and not _close(listed.size, served.size):
        return listed.series not in _ONE_SIZE and not listed.size_stated
    if listed.quantization and listed.quantization != served.quantization:
        return False
    stated, has = listed.variants, served.variants
    if "instruct" in stated and "instruct" not in has and has & {"base", "python"}:
        return False
    return not ((stated - {"instruct"}) - has)


_ONE_SIZE = frozenset(
    {"phi-4", "deepseek-v3", "deepseek-v3.1", "deepseek-v3.2", "mistral-nemo", "qwq", "command-r-plus"}
)


def _close(one: float, other: float) -> bool:
    return one == other or (one > 0 and other > 0 and abs(one - other) <= 0.06 * max(one, other))
