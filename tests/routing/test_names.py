"""Names: every real id in the table resolves to its model, and look-alikes stay apart."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing.capabilities import load_table
from turnout.routing.names import MAX_NAME, parse_model_name

TABLE = tomllib.loads((Path(__file__).parent / "model_ids.toml").read_text("utf-8"))
IDS = [(server_id, canonical) for canonical, row in TABLE.items() for server_id in row["ids"]]
KNOWN = [server_id for server_id, canonical in IDS if canonical != "unknown"]


def test_the_table_is_large_and_mostly_known() -> None:
    assert len(IDS) >= 170
    assert len({server_id for server_id, _ in IDS}) == len(IDS)
    assert sum(canonical == "unknown" for _, canonical in IDS) <= 0.05 * len(IDS)


@pytest.mark.parametrize(("server_id", "canonical"), IDS)
def test_a_real_id_resolves_to_its_model(server_id: str, canonical: str) -> None:
    found = load_table().resolve(server_id)
    assert (found.id if found else "unknown") == canonical


@pytest.mark.parametrize("canonical", load_table().ids)
def test_every_canonical_name_resolves_to_itself(canonical: str) -> None:
    table = load_table()
    for spelling in (canonical, canonical.upper(), f"/models/{canonical}-Q4_K_M.gguf", f"someone/{canonical}-GGUF"):
        found = table.resolve(spelling)
        assert found is not None, spelling
        assert found.id == canonical
    assert table.matches(canonical, canonical)


def test_a_canonical_name_means_no_other_row() -> None:
    """But for CodeLlama 34B, whose unmarked and instruct builds the owner lists apart."""
    table = load_table()
    pairs = {(one, other) for one in table.ids for other in table.ids if one != other and table.matches(one, other)}
    assert pairs == {("codellama-34b", "codellama-34b-instruct"), ("codellama-34b-instruct", "codellama-34b")}


@pytest.mark.parametrize(
    "server_id",
    [
        "Llama-3-8B-Instruct-Somename",
        "Somename-Qwen2.5-32B",
        "somename-mistral-7b-v0.2.Q4_0.gguf",
        "someone/phi-4-somename-GGUF:Q4_K_M",
        "gemma3:27b-somename",
        "Phind-CodeLlama-34B-v2",
        "nvidia/Mistral-NeMo-Minitron-8B-Instruct",
        "mistral-openorca:7b",
        "llava-llama3:8b",
        "dolphin-mistral:7b",
        "NousResearch/Hermes-3-Llama-3.1-8B",
        "WizardCoder-Python-34B-V1.0",
        "deepseek-ai/deepseek-coder-7b-instruct-v1.5",
        "DeepSeek-R1T2-Chimera",
        "huihui_ai/qwen3-abliterated:8b",
        "togethercomputer/Llama-2-7B-32K-Instruct",
        "Qwen/Qwen3-Reranker-4B",
        "Qwen/Qwen3Guard-Gen-8B",
        "google/shieldgemma-9b",
        "Evil_Llama-3.1-8B-Instruct-Q4_K_M.gguf",
        "someone_qwen3-8b",
        "llama-3.1-8b-think",
        "Qwen2.5-7B-Instruct-Reasoning",
        "master-yi-9b",
        "granite-4.1-3b-Q5_K_S",
        "mmproj-google_gemma-3-27b-it-f16.gguf",
    ],
)
def test_a_finetune_is_never_silently_its_base(server_id: str) -> None:
    assert load_table().resolve(server_id) is None


def test_a_name_is_a_parsed_value() -> None:
    name = parse_model_name("hf.co/unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF:UD-Q4_K_XL")
    assert (name.family, name.series, name.version) == ("qwen", "qwen3-coder", "3")
    assert (name.size, name.size_stated, name.active) == (30.0, True, 3.0)
    assert (set(name.variants), name.quantization, name.publisher) == ({"instruct"}, "q4_k_xl", "unsloth")
    distilled = parse_model_name("DeepSeek-R1-Distill-Llama-70B")
    assert (distilled.series, distilled.base, distilled.size) == ("deepseek-r1-distill", "llama", 70.0)
    mixture = parse_model_name("mistralai/Mixtral-8x22B-Instruct-v0.1")
    assert (mixture.size, mixture.active, set(mixture.releases)) == (141.0, 39.0, {"v0.1"})
    assert parse_model_name("llama3-chatqa:8b").derived == ("chatqa",)
    assert parse_model_name("bge-m3").purpose == "embedding"
    assert parse_model_name("BAAI/bge-reranker-v2-m3").purpose == "rerank"
    assert parse_model_name("whisper-1").purpose == "speech"
    assert parse_model_name("llama-guard3:8b").purpose == "moderation"
    assert not parse_model_name("our-model").series


@pytest.mark.parametrize(
    ("server_id", "quantization"),
    [
        ("qwen2.5-coder:32b-instruct-q4_K_M", "q4_k_m"),
        ("Qwen3-32B-UD-Q4_K_XL.gguf", "q4_k_xl"),
        ("gemma-4-26b-a4b-it-ud-q4-k-m", "q4_k_m"),
        ("mistral-small-4-119b-2603-q8-0", "q8_0"),
        ("Llama-3.3-70B-Instruct-IQ3_XXS.gguf", "iq3_xxs"),
        ("Qwen3.6-27B-TQ3_4S", "tq3_4s"),
        ("qwen3-coder-next-mxfp4_moe", "mxfp4_moe"),
        ("Qwen3.6-35B-A3B-APEX-I-Compact", "apex_i_compact"),
        ("x-IQ4_NL", "iq4_nl"),
        ("Qwen2.5-72B-Instruct-GPTQ-Int8", "int8"),
        ("Qwen2.5-72B-Instruct-AWQ", "awq"),
        ("mlx-community/Llama-3.3-70B-Instruct-8bit", "8bit"),
        ("Mixtral-8x7B-Instruct-v0.1-3.5bpw-h6-exl2", "3.5bpw"),
        ("Llama-3.3-70B-Instruct-quantized.w4a16", "w4a16"),
        ("gpt-oss-20b-mxfp4.gguf", "mxfp4"),
        ("gemma-3-27b-it-bf16", "bf16"),
        ("qwen3:8b", ""),
    ],
)
def test_a_quantisation_is_read_in_every_spelling(server_id: str, quantization: str) -> None:
    assert parse_model_name(server_id).quantization == quantization


@pytest.mark.parametrize(
    ("server_id", "series", "publisher"),
    [
        ("Qwen_QwQ-32B-AWQ", "qwq", "qwen"),
        ("deepseek_coder_6.7b_instruct", "deepseek-coder", ""),
        ("mistral_small_24b", "mistral-small", ""),
        ("deepseek-ai.deepseek-v3.2", "deepseek-v3.2", "deepseek-ai"),
        ("ByteDance-Seed_Seed-OSS-36B-Instruct-Q4_K_M.gguf", "seed-oss", "bytedance-seed"),
        ("databricks-meta-llama-3-1-405b-instruct", "llama-3.1", ""),
        ("Qwen25-VL-32B-Instruct-Q4_K_M", "qwen2.5-vl", ""),
        ("llama33-70b", "llama-3.3", ""),
        ("gemma-2-2b-it", "gemma-2", ""),
    ],
)
def test_versions_and_publishers_are_told_from_the_name(server_id: str, series: str, publisher: str) -> None:
    name = parse_model_name(server_id)
    assert (name.series, name.publisher, name.derived) == (series, publisher, ())


@given(st.text(max_size=300))
def test_any_text_is_read_without_failing(text: str) -> None:
    name = parse_model_name(text)
    assert 0 <= name.size < 1e6
    assert 0 <= name.active < 1e6
    assert load_table().matches(text, text)


SPELLED = (
    "qwen llama 3.1 2.5 v3 r1 deepseek mixtral 8x7b 99999x9b 70b 999999999b a3b a99999999b e4b 17b 16e coder instruct "
    "q4_k_m - _ . : / @ \\ 128k 9999999999k 1m -00001-of-00003 .gguf models-- latest + \x00 ٣b ²"
)
PIECES = st.sampled_from(SPELLED.split(" "))


@given(st.lists(PIECES, max_size=40).map("".join))
def test_any_pile_of_name_pieces_is_read_and_rated(text: str) -> None:
    from turnout.types import Model

    name = parse_model_name(text)
    assert 0 <= name.size < 1e6
    assert 0 <= name.active < 1e6
    rating = load_table().rate(Model(text))
    assert all(0 <= score <= 100 for score in rating.scores.values())
    assert load_table().memory_need_of(Model(text), 4096) >= 0


@given(st.sampled_from(KNOWN), st.sampled_from(["/data/", "library/", "C:\\m\\", "hf.co/someone/"]))
def test_where_a_file_lies_changes_nothing(server_id: str, place: str) -> None:
    table = load_table()
    found, moved = table.resolve(server_id), table.resolve(place + server_id)
    assert moved is not None
    assert moved == found


def test_only_the_end_of_a_very_long_id_is_read() -> None:
    assert parse_model_name("x" * 100_000).series == ""
    assert parse_model_name("/deep" * 10_000 + "/qwen2.5-coder-32b.gguf").series == "qwen2.5-coder"
    assert parse_model_name("a" * MAX_NAME * 100 + "_" * 1000 + "1" * 100_000).size == 0
