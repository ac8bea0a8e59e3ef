"""Writes the test weights as the folder of safetensors that vLLM and MLX-LM read; they have no use for a GGUF.

    python tests/safetensors_of.py WEIGHTS.gguf FOLDER

Run by ``tests/get_servers.sh`` with the Python of such a server, which brings tokenizers; gguf is installed beside it.
For a model of the Llama architecture with a BPE tokenizer that splits digits, as SmolLM2. The tensors are dequantised
to float16, and the rows of q and k are put back from GGUF's order, in which the halves of a rotary pair are neighbours.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]
import numpy as np
from safetensors.numpy import save_file  # type: ignore[import-not-found]
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # type: ignore[import-not-found]

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
OF_A_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
TEMPLATE = Path(__file__).with_name("tools.jinja")
CONTROL = 3  # the type of a token that is no text


def config(told: dict[str, Any]) -> dict[str, object]:
    """What ``config.json`` says."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "hidden_size": told["llama.embedding_length"],
        "num_hidden_layers": told["llama.block_count"],
        "intermediate_size": told["llama.feed_forward_length"],
        "num_attention_heads": told["llama.attention.head_count"],
        "num_key_value_heads": told["llama.attention.head_count_kv"],
        "rms_norm_eps": told["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": told["llama.rope.freq_base"],
        "max_position_embeddings": told["llama.context_length"],
        "vocab_size": told["llama.vocab_size"],
        "tie_word_embeddings": True,
        "bos_token_id": told["tokenizer.ggml.bos_token_id"],
        "eos_token_id": told["tokenizer.ggml.eos_token_id"],
    }


def tensors(reader: gguf.GGUFReader, told: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor under the name that it has in safetensors."""
    heads = {"attn_q": told["llama.attention.head_count"], "attn_k": told["llama.attention.head_count_kv"]}
    found: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if layer is None:
            found[f"{OUTER[tensor.name.removesuffix('.weight')]}.weight"] = data
            continue
        number, part = layer.groups()
        if part in heads:
            pairs = data.reshape(heads[part], -1, 2, data.shape[1])
            data = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(data.shape)
        found[f"model.layers.{number}.{OF_A_LAYER[part]}.weight"] = data
    return found


def tokenizer(told: dict[str, Any]) -> Tokenizer:
    """The tokenizer that the GGUF describes."""
    tokens: list[str] = told["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in told["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    types = told["tokenizer.ggml.token_type"]
    made.add_special_tokens(
        [AddedToken(token, special=True) for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    )
    return made


def main(weights: str, folder: str) -> None:
    """Write the folder."""
    reader = gguf.GGUFReader(weights)
    told = {name: field.contents() for name, field in reader.fields.items()}
    tokens, into = told["tokenizer.ggml.tokens"], Path(folder)
    into.mkdir(parents=True, exist_ok=True)
    (into / "config.json").write_text(json.dumps(config(told), indent=1), "utf-8")
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[told["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[told["tokenizer.ggml.eos_token_id"]],
        "chat_template": TEMPLATE.read_text("utf-8"),
        "model_max_length": told["llama.context_length"],
    }
    (into / "tokenizer_config.json").write_text(json.dumps(words, indent=1), "utf-8")
    tokenizer(told).save(str(into / "tokenizer.json"))
    save_file(tensors(reader, told), into / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(*sys.argv[1:])
