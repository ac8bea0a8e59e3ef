"""Names: every real id in the table resolves to its model, and look-alikes stay apart."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing.capabilities import load_table
from turnout.routing.names import parse_model_name

TABLE = tomllib.loads((Path(__file__).parent / "model_ids.toml").read_text())
IDS = [(server_id, canonical) for canonical, row in TABLE.items() for server_id in row["ids"]]


def test_the_table_is_large_and_mostly_known() -> None:
    assert len(IDS) >= 150
    assert sum(canonical == "unknown" for _, canonical in IDS) <= 0.05 * len(IDS)


@pytest.mark.parametrize(("server_id", "canonical"), IDS)
def test_a_real_id_resolves_to_its_model(server_id: str, canonical: str) -> None:
    found = load_table().resolve(server_id)
    assert (found.id if found else "unknown") == canonical


@pytest.mark.parametrize("canonical", load_table().ids)
def test_every_canonical_name_resolves_to_itself(canonical: str) -> None:
    table = load_table()
    found = table.resolve(canonical)
    assert found is not None
    assert found.id == canonical
    assert table.matches(canonical, canonical)


@pytest.mark.parametrize(
    ("listed", "served", "expected"),
    [
        ("deepseek-v3", "deepseek-ai/DeepSeek-V3-0324", True),
        ("qwen2.5-coder-32b", "qwen2.5-coder:32b-instruct-q4_K_M", True),
        ("codellama-34b", "TheBloke_CodeLlama-34B-Instruct-GPTQ", True),
        ("qwen2.5-72b-instruct", "qwen2.5:72b", True),
        ("phi-4", "phi4:14b-q4_K_M", True),
        ("deepseek-r1-distill-32b", "deepseek-r1:32b", True),
        ("qwen2.5-coder", "qwen2.5-coder:32b", True),
        ("llama-3", "codellama:34b", False),
        ("qwen2.5-coder-3b", "qwen2.5-coder:32b", False),
        ("qwen2.5-coder-32b", "qwen2.5-coder:3b", False),
        ("phi-4", "phi4-mini", False),
        ("deepseek-r1", "deepseek-r1:8b", False),
        ("deepseek-coder-v2", "deepseek-coder:6.7b", False),
        ("mistral-7b", "mistral-nemo", False),
        ("llama-3-8b-instruct", "dolphin-llama3:8b", False),
        ("qwen2.5-32b-instruct", "DeepSeek-R1-Distill-Qwen-32B", False),
        ("qwen2.5-32b-instruct", "qwen2.5-coder:32b", False),
        ("codellama-34b-instruct", "codellama:34b-code", False),
        ("mixtral-8x7b", "dolphin-mixtral:8x7b", False),
        ("gemma-2-27b", "gemma3:27b", False),
    ],
)
def test_a_listed_name_means_this_model_and_no_other(listed: str, served: str, expected: bool) -> None:
    assert load_table().matches(listed, served) is expected


@given(st.text(max_size=300))
def test_any_text_is_read_without_failing(text: str) -> None:
    name = parse_model_name(text)
    assert name.size >= 0
    assert load_table().matches(text, text) or text.lower() != text.lower()
