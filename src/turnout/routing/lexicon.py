"""The words of model names and what each one means. A new line of models is one line here.

The sizes that bare names stand for are those of the Ollama library, whose ids they are.
"""

from __future__ import annotations

# head: family | words of a series of its own | words that change nothing. A star marks a named finetune.
GRAMMAR = """
qwen: qwen | coder vl math next omni audio |
codeqwen: qwen ||
qwq: qwen ||
qvq: qwen ||
deepseek: deepseek | coder lite r1 distill vl ocr math prover llm zero flash pro speciale | terminus exp
llama: llama | vision scout maverick | llama
codellama: llama ||
tinyllama: llama ||
mistral: mistral | nemo small medium large tiny saba | open
mixtral: mistral || open
codestral: mistral | mamba |
devstral: mistral | medium | small
magistral: mistral | medium | small
ministral: mistral ||
mathstral: mistral ||
pixtral: mistral | large |
voxtral: mistral | mini small |
gemma: gemma | n |
codegemma: gemma ||
phi: phi | mini medium small moe vision multimodal reasoning plus flash silica |
gpt-oss: gpt-oss ||
glm: glm | air airx flash flashx v x z1 edge |
codegeex: glm | all |
chatglm: glm ||
granite: granite | code vision moe tiny small micro nano | dense h
starcoder: starcoder | base |
starchat: starcoder | alpha beta |
stable-code: stable ||
stablelm: stable | zephyr |
yi: yi | coder vl large lightning |
command: cohere | r a plus light vision translate | c4ai
aya: cohere | expanse vision | c4ai
smollm: smollm ||
smolvlm: smollm ||
solar: solar | pro mini |
falcon: falcon | mamba h1 |
internlm: internlm | math |
internvl: internlm ||
olmo: olmo ||
olmoe: olmo ||
exaone: exaone | deep |
kimi: kimi | k2 dev linear vl code |
minimax: minimax | m1 m2 m3 text |
seed-oss: seed ||
seed-coder: seed ||
hunyuan: hunyuan | large moe |
ernie: ernie | vl |
lfm: lfm | vl moe |
opencoder: opencoder ||
sqlcoder: sqlcoder ||
nemotron: nemotron | nano super ultra mini omni vl cascade | nvidia *
dolphin: dolphin || *
hermes: nous || nous *
openhermes: nous || *
wizardcoder: wizard | python | *
wizardlm: wizard | math | *
magicoder: magicoder || s ds cl *
deepcoder: deepcoder || *
deepscaler: deepcoder || *
zephyr: zephyr | orpo | *
vicuna: vicuna || *
openchat: openchat || *
mimo: mimo | flash pro vl omni |
step: step | flash |
ornith: ornith ||
sarvam: sarvam ||
grok: grok ||
jamba: jamba | mini large |
dbrx: dbrx ||
cogito: cogito ||
minicpm: minicpm | v o |
llava: llava | next | *
bakllava: llava || *
moondream: moondream ||
baichuan: baichuan ||
orca: orca | mini | *
tulu: tulu || *
apertus: apertus ||
"""


# Two words that are one, and one word that is two.
JOINED = {
    ("code", "llama"): "codellama",
    ("tiny", "llama"): "tinyllama",
    ("gpt", "oss"): "gpt-oss",
    ("stable", "code"): "stable-code",
    ("seed", "oss"): "seed-oss",
    ("seed", "coder"): "seed-coder",
    ("star", "coder"): "starcoder",
    ("wizard", "coder"): "wizardcoder",
    ("wizard", "lm"): "wizardlm",
    ("deep", "coder"): "deepcoder",
    ("open", "hermes"): "openhermes",
    ("open", "coder"): "opencoder",
    ("code", "gemma"): "codegemma",
    ("code", "qwen"): "codeqwen",
    ("deep", "seek"): "deepseek",
}
SPLIT_WORDS = {"gptoss": ("gpt-oss",), "deepseekcoder": ("deepseek", "coder"), "stablecode": ("stable-code",)}

VARIANTS = {
    "instruct": "instruct", "instr": "instruct", "inst": "instruct", "it": "instruct", "chat": "instruct",
    "base": "base", "text": "base", "pt": "base", "pretrained": "base",
    "python": "python",
    "thinking": "thinking", "think": "thinking", "reasoning": "thinking", "reasoner": "thinking",
    "abliterated": "altered", "ablated": "altered", "uncensored": "altered", "heretic": "altered",
    "derestricted": "altered", "lorablated": "altered", "josiefied": "altered",
}  # fmt: skip
PURPOSES = {
    "embed": "embedding", "embedding": "embedding", "embeddings": "embedding", "embedder": "embedding",
    "embeddinggemma": "embedding", "bge": "embedding", "gte": "embedding", "e5": "embedding", "minilm": "embedding",
    "mxbai": "embedding", "nomic": "embedding", "paraphrase": "embedding", "colbert": "embedding", "sbert": "embedding",
    "rerank": "rerank", "reranker": "rerank",
    "guard": "moderation", "guardian": "moderation", "safeguard": "moderation", "shieldgemma": "moderation",
    "moderation": "moderation", "safety": "moderation",
    "whisper": "speech", "tts": "speech", "asr": "speech", "kokoro": "speech", "parakeet": "speech", "piper": "speech",
    "flux": "image", "sdxl": "image", "diffusion": "image", "dreamshaper": "image",
    "mmproj": "projector",
}  # fmt: skip
# Formats, ways of quantising, and publishers inside a name: they say nothing of what the model is.
_NOISE = """
gguf ggml ggmlv3 gguf2 exl exl2 exl3 mlx bnb hf gptq awq quant quants quantized quantised imatrix imat i1 ud dynamic
dwq qat safetensors onnx openvino ov ct2 autoround compressed tensors marlin sgptq actorder act order desc true
false latest local cpu gpu cuda vllm cpp sglang ollama koboldcpp main default preview original fim mtp cloud ctx
optiq databricks meta mistralai google microsoft ibm openai zai thudm deepseekai alibaba thebloke bartowski unsloth
lmstudio community nvidia turnout demo model models weights fp instruction tuned static xl rc hq lm vlm multimodal
tools official release final hub snapshot snapshots checkpoint
"""
NOISE = frozenset(_NOISE.split())
# Makers and packagers that put their name before a model's with "_" or "."; any other word there names a finetune.
_PUBLISHERS = """
01-ai agentica-org ai21labs alibaba-nlp allenai amazon arcee-ai baai baidu bartowski bigcode bullerwins
bytedance-seed casperhansen codellama cohere cohereforai coherelabs cpatonn cyankiwi databricks deepcogito
deepreinforce-ai deepseek deepseek-ai devquasar ggml-org google hugging-quants huggingfacetb ibm ibm-granite
inclusionai internlm ista-daslab kaitchup kwaipilot lgai-exaone liquidai lmstudio-community lonestriker
maziyarpanahi meta meta-llama microsoft minimax minimaxai mistral mistral-community mistralai mlx-community
modelcloud moonshotai mradermacher mungert neuralmagic nousresearch nvidia openai openbmb opencoder opengvlab
ornith-ai quantfactory quanttrio qwen redhatai sarvamai second-state stabilityai stelterlab stepfun-ai tencent
thebloke thudm tiiuae tinyllama turboderp ubergarm unsloth upstage wizardlm wizardlmteam xai-org xiaomimimo zai-org
zhipuai
"""
PUBLISHERS = frozenset(_PUBLISHERS.split())
# Lines whose makers publish thinking builds beside the others.
_THINKERS = "qwen olmo ministral magistral kimi deepseek glm ernie lfm nemotron hunyuan minicpm internvl"
THINKERS = frozenset(_THINKERS.split())
_GENERIC = "model models ggml gguf weights main master snapshots snapshot blobs pytorch consolidated"
GENERIC = frozenset(_GENERIC.split())

# Billions when a name leaves the size out: what a registry's bare name or ``latest`` stands for.
USUAL = {
    "qwen": 4, "deepseek-v2-lite": 16, "qwen2": 7, "qwen2.5": 7, "qwen2.5-coder": 7, "qwen2.5-vl": 7, "qwen2.5-math": 7,
    "qwen2-vl": 7,
    "qwen3": 8, "qwen3-coder": 30, "qwen3-coder-next": 80, "qwen3-next": 80, "qwen3-vl": 8, "qwen3.5": 9, "qwq": 32,
    "codeqwen": 7, "deepseek-v2": 16, "deepseek-v2.5": 236, "deepseek-v3": 671, "deepseek-v3.1": 671,
    "deepseek-v3.2": 671, "deepseek-r1": 671, "deepseek-coder": 1.3, "deepseek-llm": 7,
    "deepseek-coder-v2": 236, "deepseek-coder-v2-lite": 16, "llama": 7, "llama-2": 7, "llama-3": 8, "llama-3.1": 8,
    "llama-3.2": 3, "llama-3.2-vision": 11, "llama-3.3": 70, "llama-4-scout": 109, "llama-4-maverick": 400,
    "codellama": 7, "tinyllama": 1.1, "mistral": 7, "mistral-nemo": 12, "mistral-small": 24, "mistral-large": 123,
    "mistral-large-3": 675, "mistral-small-4": 119, "mixtral": 46.7, "codestral": 22, "devstral": 24, "magistral": 24,
    "ministral": 8, "ministral-3": 8, "mathstral": 7, "pixtral": 12, "pixtral-large": 124, "gemma": 7, "gemma-2": 9,
    "gemma-3": 4, "gemma-3-n": 4, "gemma-4": 4, "codegemma": 7, "phi": 2.7, "phi-2": 2.7, "phi-3-mini": 3.8,
    "phi-3-medium": 14, "phi-3-small": 7, "phi-3.5-mini": 3.8, "phi-3.5-moe": 42, "phi-4": 14, "phi-4-mini": 3.8,
    "phi-4-reasoning": 14, "phi-4-reasoning-plus": 14, "phi-4-mini-reasoning": 3.8, "phi-4-multimodal": 5.6,
    "gpt-oss": 20, "glm-4": 9, "glm-4.5": 355, "glm-4.5-air": 106, "glm-4.6": 355, "glm-4.7": 355, "glm-4.7-flash": 30,
    "codegeex-4": 9, "granite-3": 8, "granite-4": 3, "granite-code": 3, "starcoder": 3, "starcoder2": 3,
    "stable-code": 3, "yi": 6, "yi-coder": 9, "command-r": 35, "command-r-plus": 104, "command-a": 111,
    "aya": 8, "aya-expanse": 8, "smollm": 1.7, "smollm2": 1.7, "smollm3": 3, "solar": 10.7, "falcon": 7, "falcon3": 7,
    "internlm2": 7, "internlm3": 8, "olmo-2": 7, "olmo-3": 7, "exaone-3.5": 7.8, "exaone-deep": 7.8, "kimi-k2": 1000,
    "kimi-k2.5": 1000, "kimi-k2.6": 1000, "minimax-m2": 230, "minimax-m2.1": 230, "minimax-m2.5": 230, "seed-oss": 36,
    "opencoder": 8, "sqlcoder": 7, "nemotron": 70, "nemotron-mini": 4, "nemotron-3-nano": 30, "magicoder": 7,
    "deepcoder": 14, "dolphin-mixtral": 46.7, "hermes-2-mixtral": 46.7,
}  # fmt: skip
# ``latest`` is the registry's own tag, and there these bare names mean the small sibling.
LATEST = {"deepseek-r1": ("deepseek-r1-distill", 8.0), "deepseek-coder-v2": ("deepseek-coder-v2-lite", 16.0)}
# Mixtures of experts by their layout: total billions, active billions.
MIXTURES = {"8x7b": (46.7, 12.9), "8x22b": (141.0, 39.0), "16x17b": (109.0, 17.0), "128x17b": (400.0, 17.0)}
# Words that state the size within a series.
SIZE_WORDS = {
    "phi-3": {"mini": 3.8, "small": 7.0, "medium": 14.0},
    "granite-4": {"micro": 3.0, "tiny": 7.0, "small": 32.0},
}
UNHYPHENED = frozenset({"qwen", "starcoder", "smollm", "falcon", "internlm"})


ORDER = {"coder": 0, "r": 0, "a": 0, "r1": 0, "small": 1, "mini": 1, "nano": 1, "next": 7, "plus": 8, "lite": 9}
