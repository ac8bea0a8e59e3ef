"""The capability table: the owner's models, matching, ratings with their source, memory, and a user's own file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from turnout.errors import ConfigError
from turnout.routing.capabilities import guess_window, load_table, memory_need, shipped_lists
from turnout.routing.estimate import effective_size
from turnout.routing.evidence import shipped_evidence
from turnout.routing.why import scored
from turnout.types import Model, TaskCategory

ROOT, MADE = Path(__file__).parents[2], ("models.toml", "evidence.toml")
CODING = TaskCategory.CODING
OWNERS = {
    "deepseek-v3": ("deepseek", 1, 128_000, (99, 97, 96, 92)),
    "qwen2.5-coder-32b": ("qwen", 1, 131_072, (96, 82, 92, 88)),
    "deepseek-coder-v2": ("deepseek", 1, 128_000, (95, 88, 92, 80)),
    "codellama-70b": ("llama", 1, 100_000, (90, 70, 85, 75)),
    "codellama-34b": ("llama", 2, 100_000, (85, 65, 80, 70)),
    "qwen2.5-coder-14b": ("qwen", 2, 131_072, (82, 60, 75, 70)),
    "starcoder2-15b": ("starcoder", 2, 16_384, (80, 50, 70, 60)),
    "deepseek-coder-6.7b": ("deepseek", 3, 16_384, (75, 50, 65, 55)),
    "codellama-7b": ("llama", 3, 16_384, (70, 45, 60, 50)),
    "deepseek-r1": ("deepseek", 1, 128_000, (92, 99, 95, 90)),
    "deepseek-r1-distill-70b": ("deepseek", 1, 128_000, (88, 94, 90, 86)),
    "qwen2.5-72b-instruct": ("qwen", 1, 131_072, (88, 95, 92, 94)),
    "llama-3.3-70b-instruct": ("llama", 1, 128_000, (85, 92, 88, 90)),
    "deepseek-r1-distill-32b": ("deepseek", 2, 128_000, (82, 90, 85, 82)),
    "mistral-small-24b": ("mistral", 2, 32_768, (80, 85, 82, 84)),
    "qwen2.5-32b-instruct": ("qwen", 2, 131_072, (78, 86, 82, 88)),
    "phi-4": ("phi", 2, 16_384, (82, 88, 80, 78)),
    "deepseek-r1-distill-14b": ("deepseek", 2, 128_000, (75, 85, 78, 76)),
    "llama-3.2-11b-vision": ("llama", 2, 128_000, (68, 78, 75, 80)),
    "gemma-2-27b": ("gemma", 2, 8192, (78, 82, 78, 80)),
    "deepseek-r1-distill-8b": ("deepseek", 3, 128_000, (68, 78, 70, 68)),
    "gemma-2-9b": ("gemma", 3, 8192, (72, 75, 70, 74)),
    "llama-3.2-3b": ("llama", 3, 128_000, (55, 65, 58, 65)),
    "codellama-34b-instruct": ("llama", 2, 100_000, (80, 70, 88, 75)),
    "mistral-nemo-12b": ("mistral", 2, 128_000, (65, 70, 65, 82)),
    "mistral-7b": ("mistral", 3, 32_768, (55, 60, 55, 72)),
    "phi-3-medium": ("phi", 2, 128_000, (72, 75, 68, 70)),
    "yi-34b": ("yi", 2, 200_000, (72, 82, 75, 80)),
    "command-r-plus": ("cohere", 1, 128_000, (70, 85, 78, 88)),
    "wizardcoder-33b": ("wizard", 2, 16_384, (85, 60, 75, 65)),
    "magicoder-7b": ("magicoder", 3, 16_384, (78, 50, 65, 55)),
    "dolphin-mixtral-8x7b": ("dolphin", 2, 32_768, (75, 78, 72, 75)),
    "nous-hermes-2-mixtral": ("nous", 2, 32_768, (72, 82, 75, 78)),
    "solar-10.7b": ("solar", 3, 4096, (60, 72, 65, 75)),
}


@pytest.mark.parametrize("canonical", OWNERS)
def test_the_owners_models_are_in_the_table(canonical: str) -> None:
    row = load_table().get(canonical)
    assert row is not None
    family, tier, window, _ = OWNERS[canonical]
    assert (row.family, row.tier, row.window) == (family, tier, window)
    opinions = {r.benchmark: r.value for r in shipped_evidence().results[canonical] if r.benchmark.startswith("owner")}
    assert tuple(opinions[f"owner-{category}"] for category in TaskCategory) == OWNERS[canonical][3]
    rating = load_table().rate(Model(canonical))
    assert rating.scores == row.scores
    assert rating.source == row.source


def test_every_row_is_sound() -> None:
    table = load_table()
    assert len(table.ids) >= 150
    for canonical in table.ids:
        row = table.get(canonical)
        assert row is not None
        assert row.name.series
        assert row.name.purpose == "chat"
        assert row.params > row.active >= 0
        assert row.tier in (1, 2, 3)
        assert 2023 < row.year < 2027
        assert row.source
        assert set(row.scores) == set(TaskCategory)
        assert all(1 <= score <= 99 for score in row.scores.values())


def test_both_files_were_made_of_the_same_data_by_the_script() -> None:
    """The facts of each row stand in train/models.toml alone: who changes it must run the script again."""
    folder = ROOT / "src/turnout/routing"
    digests = [re.findall(r"(\S+) SHA-256 ([0-9a-f]{64})", (folder / name).read_text()) for name in MADE]
    assert digests[0] == digests[1]
    assert [name for name, _ in digests[0]] == [
        "model-evidence.jsonl",
        "model-facts.jsonl",
        "spec-models.json",
        "train/models.toml",
    ]
    ours = (ROOT / "train/models.toml").read_bytes()
    assert dict(digests[0])["train/models.toml"] == hashlib.sha256(ours).hexdigest()


def test_every_score_can_be_computed_again_from_its_evidence() -> None:
    table, evidence = load_table(), shipped_evidence()
    for canonical in table.ids:
        row = table.get(canonical)
        assert row is not None
        for category, score in row.scores.items():
            assert score == pytest.approx(scored(evidence, table, row, category).score, abs=0.11), (canonical, category)


def test_a_larger_model_of_a_series_is_not_worse_unless_results_say_so() -> None:
    table, evidence = load_table(), shipped_evidence()
    rows = [row for row in map(table.get, table.ids) if row]
    for one in rows:
        if evidence.results.get(one.id):
            continue
        size = effective_size(one.params, one.active)
        for other in rows:
            if other.name.series == one.name.series and effective_size(other.params, other.active) <= size:
                assert all(one.scores[c] >= other.scores[c] for c in TaskCategory), (one.id, other.id)


def test_measured_order_is_kept() -> None:
    """aider polyglot: 59.6, 40.0 and 16.4 per cent; BigCodeBench full, instruct: 45.8, 37.6 and 8.8."""
    table = load_table()
    for names in (
        ("qwen3-235b-a22b", "qwen3-32b", "qwen2.5-coder-32b"),
        ("qwen2.5-72b-instruct", "qwen2.5-7b-instruct", "qwen2.5-0.5b-instruct"),
    ):
        scores = [table.rate(Model(name)).scores[CODING] for name in names]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == len(scores)


def test_the_shipped_lists_are_the_owners() -> None:
    lists = shipped_lists()
    assert set(lists) == set(TaskCategory)
    assert lists[CODING][:3] == ("deepseek-v3", "qwen2.5-coder-32b", "deepseek-coder-v2")
    assert lists[TaskCategory.ANALYSIS][3] == "codellama-34b-instruct"
    assert [len(lists[category]) for category in TaskCategory] == [11, 13, 5, 6]
    assert all(load_table().get(name) for names in lists.values() for name in names)


@pytest.mark.parametrize(
    ("listed", "served"),
    [
        ("deepseek-v3", "unsloth/DeepSeek-V3-0324-GGUF"),
        ("qwen2.5-coder-32b", "qwen2.5-coder:32b-instruct-q4_K_M"),
        ("qwen2.5-coder", "qwen2.5-coder:32b"),
        ("qwen2.5-coder", "Qwen/Qwen2.5-Coder-0.5B"),
        ("qwen2.5-coder-32b-q4", "qwen2.5-coder:32b-instruct-q4_K_M"),
        ("codellama-34b", "TheBloke_CodeLlama-34B-Instruct-GPTQ"),
        ("qwen2.5-72b-instruct", "qwen2.5:72b"),
        ("qwen2.5-72b-instruct", "qwen2.5:72b-instruct-q8_0"),
        ("phi-4", "phi4:14b-q4_K_M"),
        ("deepseek-r1-distill-32b", "deepseek-r1:32b"),
        ("magicoder-7b", "ise-uiuc/Magicoder-S-DS-6.7B"),
        ("command-r", "command-r:35b"),
        ("phi-3-medium", "phi3:14b"),
        ("mistral-small-24b", "mistral-small3.2:24b"),
        ("qwen3:8b", "Qwen/Qwen3-8B-AWQ"),
        ("llama3-chatqa:8b", "nvidia/Llama3-ChatQA-8B"),
        ("Our-Own-Model", "our-own-model:latest"),
        ("qwen3-30b", "Qwen3-30B-A3B-Instruct-2507"),
        ("starcoder2-15b", "starcoder2:instruct"),
        ("starcoder2", "starcoder2:instruct"),
        ("phi", "phi:2.7b"),
    ],
)
def test_a_listed_name_means_this_model(listed: str, served: str) -> None:
    assert load_table().matches(listed, served)


@pytest.mark.parametrize(
    ("listed", "served"),
    [
        ("llama-3", "codellama:34b"),
        ("llama-3", "llama3.1:8b"),
        ("qwen2.5-coder-3b", "qwen2.5-coder:32b"),
        ("qwen2.5-coder-32b", "qwen2.5-coder:3b"),
        ("qwen2.5-coder-32b-q8_0", "qwen2.5-coder:32b-instruct-q4_K_M"),
        ("phi-4", "phi4-mini"),
        ("phi-4", "phi4-reasoning:14b"),
        ("phi-3-mini", "phi3:medium"),
        ("deepseek-r1", "deepseek-r1:8b"),
        ("deepseek-r1", "deepseek-r1:latest"),
        ("deepseek-v3", "deepseek-v3.1:671b"),
        ("deepseek-v3-0324", "deepseek-ai/DeepSeek-V3"),
        ("deepseek-coder-v2", "deepseek-coder:6.7b"),
        ("deepseek-coder-v2", "deepseek-coder-v2:16b"),
        ("mistral-7b", "mistral-nemo"),
        ("mistral-small-24b", "mistral-small:22b"),
        ("mixtral-8x7b", "dolphin-mixtral:8x7b"),
        ("mixtral-8x7b", "mixtral:8x22b"),
        ("llama-3-8b-instruct", "dolphin-llama3:8b"),
        ("qwen2.5-32b-instruct", "DeepSeek-R1-Distill-Qwen-32B"),
        ("qwen2.5-32b-instruct", "qwen2.5-coder:32b"),
        ("qwen2.5-coder-7b", "Qwen2.5-Coder-7B-Instruct-abliterated"),
        ("codellama-34b-instruct", "codellama:34b-code"),
        ("qwen2.5-72b-instruct", "qwen2.5:72b-base"),
        ("gemma-2-27b", "gemma3:27b"),
        ("command-r", "command-r7b"),
        ("command-r", "command-r-plus"),
        ("starcoder2-3b", "starcoder2:instruct"),
        ("qwen3-4b-thinking", "qwen3:4b-instruct"),
        ("qwen3-0.6b", "Qwen/Qwen3-Embedding-0.6B"),
        ("our-model", "our-other-model"),
        ("", "qwen3:8b"),
    ],
)
def test_a_listed_name_means_no_other_model(listed: str, served: str) -> None:
    assert not load_table().matches(listed, served)


def test_what_the_server_hides_is_estimated_and_says_so() -> None:
    table = load_table()
    sizes = [table.rate(Model(f"our-model-{size}b")).scores[CODING] for size in (0.1, 1, 3, 8, 32, 70, 400)]
    assert sizes == sorted(set(sizes)), "larger is better when nothing else is known"
    rating = table.rate(Model("our-model-8b"))
    assert rating.source.startswith("estimate")
    assert (rating.canonical, rating.params, rating.window) == ("", 8.0, 8192)
    told = table.rate(Model("our-model", parameters=8_000_000_000))
    assert told.scores == rating.scores
    weighed = table.rate(Model("our-model", size=4_700_000_000, quantization="Q4_K_M"))
    assert weighed.params == pytest.approx(8.0)
    low, common = (table.rate(Model(f"our-model-8b-{quant}")).scores[CODING] for quant in ("q2_k", "q4_k_m"))
    assert low < common - 5
    coder, general = (table.rate(Model(name)) for name in ("qwen9-coder:8b", "qwen9:8b"))
    assert coder.scores[CODING] > general.scores[CODING]
    assert coder.scores[TaskCategory.REASONING] < general.scores[TaskCategory.REASONING]


def test_a_category_without_a_result_is_estimated_and_says_so() -> None:
    rating = load_table().rate(Model("qwen2.5-coder:7b"))
    assert rating.canonical == "qwen2.5-coder-7b"
    assert "aider" in rating.source
    assert "BigCodeBench" in rating.source
    assert rating.source.endswith("estimate: reasoning, analysis, documentation")
    assert set(rating.scores) == set(TaskCategory)


def test_a_build_is_not_as_good_as_its_model() -> None:
    table = load_table()
    whole = table.rate(Model("qwen2.5-coder:32b"))
    assert table.rate(Model("qwen2.5-coder:32b-instruct-q4_K_M")).scores == whole.scores
    squeezed = table.rate(Model("qwen2.5-coder:32b-instruct-q2_K"))
    assert squeezed.canonical == whole.canonical
    assert squeezed.scores[CODING] < whole.scores[CODING]
    assert "for this build" in squeezed.source
    assert table.rate(Model("qwen2.5-coder:32b", quantization="IQ1_S")).scores[CODING] < squeezed.scores[CODING]
    assert table.rate(Model("qwen2.5-coder:32b-base")).scores[CODING] < whole.scores[CODING] - 10
    altered = table.rate(Model("Qwen2.5-Coder-32B-Instruct-abliterated"))
    assert altered.canonical == ""
    assert altered.source.startswith("estimate: a finetune of qwen2.5-coder-32b")
    assert whole.scores[CODING] - 10 < altered.scores[CODING] < whole.scores[CODING]


@pytest.mark.parametrize("server_id", ["nomic-embed-text:latest", "bge-m3", "Qwen/Qwen3-Embedding-8B", "bge-reranker"])
def test_what_makes_embeddings_is_not_for_chat(server_id: str) -> None:
    rating = load_table().rate(Model(server_id))
    assert "embeddings" in rating.capabilities
    assert "chat" not in rating.capabilities
    assert set(rating.scores.values()) == {0.0}


def test_what_a_server_says_it_can_do_counts_first() -> None:
    table = load_table()
    assert "tools" in table.rate(Model("qwen3:32b")).capabilities
    assert table.rate(Model("qwen3:32b", capabilities=frozenset({"chat"}))).capabilities == {"chat"}


@pytest.mark.parametrize(
    ("server_id", "window"),
    [
        ("our-model-128k", 131_072),
        ("our-model-131k", 131_072),
        ("our-model-64k", 65_536),
        ("our-model-32k-q4_0", 32_768),
        ("our-model-16k", 16_384),
        ("our-model-1128k16", 8192),
        ("Phi-3-mini-4k-instruct", 4096),
        ("qwen-something", 131_072),
        ("deepseek-something", 128_000),
        ("llama-3-something", 128_000),
        ("codellama-something", 100_000),
        ("mixtral-something", 65_536),
        ("dolphin-mixtral:8x7b", 65_536),
        ("something", 8192),
        ("", 8192),
    ],
)
def test_a_window_is_guessed_from_the_name(server_id: str, window: int) -> None:
    assert guess_window(server_id) == window


def test_a_marker_in_the_name_beats_the_tables_window() -> None:
    table = load_table()
    assert table.rate(Model("Phi-3-mini-4k-instruct.Q4_0.gguf")).window == 4096
    assert table.rate(Model("phi3:mini")).window == 131_072


def test_memory_is_computed() -> None:
    table = load_table()
    assert memory_need(32.8, "q4_k_m", 0) == pytest.approx(19.3e9, rel=0.05)
    assert memory_need(32.8, "bf16", 0) == pytest.approx(65.6e9, rel=0.01)
    assert memory_need(8, "q8_0", 8192) - memory_need(8, "q8_0", 0) == pytest.approx(8192 * 131_072, rel=0.2)
    assert table.memory_need_of(Model("deepseek-v3:671b"), 8192) > 300e9, "it does not fit 48 GB"
    assert table.memory_need_of(Model("qwen3:8b", size=5_000_000_000), 0) == 5_000_000_000
    mixture, dense = memory_need(30.5, "q4_0", 32_768, active=3.3), memory_need(30.5, "q4_0", 32_768)
    assert mixture < dense


def test_a_users_file_extends_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        '[models."phi-4"]\nparams = 14.7\nwindow = 32768\nscores = { coding = 99 }\n'
        '[models."house-model-7b"]\nparams = 7\nwindow = 4096\naliases = ["House"]\ncapabilities = ["chat", "tools"]\n'
        '[models."llama3-chatqa-8b"]\nparams = 8\nwindow = 4096\nscores = { analysis = 70 }\n'
    )
    table = load_table(file)
    assert table.rate(Model("phi4:14b")).scores[CODING] == 99
    assert table.rate(Model("phi4:14b")).source.startswith("the user's table")
    house = table.resolve("house")
    assert house is not None
    assert house.id == "house-model-7b"
    assert table.matches("house-model-7b", "House")
    chatqa = table.resolve("llama3-chatqa:8b")
    assert chatqa is not None
    assert chatqa.id == "llama3-chatqa-8b"
    base = table.resolve("llama3:8b")
    assert base is not None
    assert base.id == "llama-3-8b-instruct", "a row for a finetune does not catch its base"
    assert load_table().rate(Model("phi4:14b")).scores[CODING] < 99, "the shipped table is as it was"
    told: list[ConfigError] = []
    assert load_table(file, told.append).ids == table.ids
    assert told == []


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("[model.x]\nparams = 1\nwindow = 1\n", "model", "[models."),
        ("", "models", ""),
        ("models = 3\n", "models", ""),
        ('[models."x-7b"]\nparams = 7\nwindw = 4096\n', "models.x-7b.windw", "did you mean window?"),
        ('[models."x-7b"]\nparams = 7\nwindow = 1\nfoo = 1\n', "models.x-7b.foo", "one of params, window"),
        ('[models."x-7b"]\nwindow = 4096\n', "models.x-7b", "params and window are required"),
        ('[models."x-7b"]\nparams = "7"\nwindow = 4096\n', "models.x-7b.params", ""),
        ('[models."x-7b"]\nparams = 0\nwindow = 4096\n', "models.x-7b.params", "above 0"),
        ('[models."x-7b"]\nparams = 7\nwindow = -1\n', "models.x-7b.window", "above 0"),
        ('[models."x-7b"]\nparams = nan\nwindow = 1\n', "models.x-7b.params", "above 0"),
        ('[models."x-7b"]\nparams = 7\nwindow = 1\ntier = 4\n', "models.x-7b.tier", "1, 2 or 3"),
        ('[models."x-7b"]\nparams = 7\nwindow = 1\nscores = { codng = 1 }\n', "models.x-7b.scores.codng", "coding?"),
        (
            '[models."x-7b"]\nparams = 7\nwindow = 1\nscores = { coding = 101 }\n',
            "models.x-7b.scores.coding",
            "0 to 100",
        ),
        ('[models."x-7b"]\nparams = 7\nwindow = 1\nscores = { coding = "a" }\n', "models.x-7b.scores", ""),
        ("[models\n", "", ""),
        ("a = " + "[" * 5000 + "]" * 5000, "", ""),
        (f'[models."x-7b"]\nparams = 7\nwindow = {"9" * 5000}\n', "", ""),
        (f'[models."x-7b"]\nparams = 7\nwindow = {"9" * 400}\n', "models.x-7b.window", "above 0"),
        (f'[models."x-7b"]\nparams = 7\nwindow = 1\ntier = {"9" * 400}\n', "models.x-7b.tier", "above 0"),
        ('[models."x-7b"]\nparams = 7\nwindow = 1\nsizes = [1.0, nan]\n', "models.x-7b.sizes", "above 0"),
    ],
)
def test_a_mistake_in_a_users_file_is_named(tmp_path: Path, text: str, key: str, hint: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_table(file)
    assert caught.value.file == str(file)
    assert caught.value.key.startswith(key) if key else caught.value.key == ""
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)
    told: list[ConfigError] = []
    table = load_table(file, told.append)
    assert str(told[0]) == str(caught.value)
    assert table.rate(Model("phi4:14b")) == load_table().rate(Model("phi4:14b")), "the rest goes on"
    assert all(1 <= score <= 99 for score in table.rate(Model("x-7b")).scores.values())


def test_what_is_wrong_in_a_row_is_left_out_and_estimated(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        '[models."house-7b"]\nparams = 7\nwindow = 4096\nkind = "x"\n'
        "scores = { coding = 140, reasoning = nan, analysis = 60 }\n"
        '[models."wide-7b"]\nparams = 7\nwindow = 0\nscores = { coding = 90 }\n'
        '[models."good-7b"]\nparams = 7\nwindow = 8192\nscores = { coding = 90 }\n'
    )
    told: list[ConfigError] = []
    table = load_table(file, told.append)
    assert [error.key for error in told] == [
        "models.house-7b.kind",
        "models.house-7b.scores.coding",
        "models.house-7b.scores.reasoning",
        "models.wide-7b.window",
    ]
    house = table.rate(Model("house-7b"))
    assert house.scores[TaskCategory.ANALYSIS] == 60
    assert house.scores[CODING] == load_table().rate(Model("house-7b")).scores[CODING]
    assert table.get("wide-7b") is None
    assert table.rate(Model("good-7b")).scores[CODING] == 90


def test_a_users_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_table(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("served", "known"),
    [
        ("house-model-7b", True),
        ("house-model:7b", True),
        ("house-model:7b-instruct-q4_K_M", True),
        ("hf.co/us/House-Model-7B-GGUF:Q8_0", True),
        ("house:latest", True),
        ("house-model:70b", False),
        ("house-model-7b-uncensored", False),
        ("other-model:7b", False),
        ("7b-instruct", False),
    ],
)
def test_a_row_of_ones_own_is_found_however_a_server_writes_its_name(served: str, known: bool, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[models."house-model-7b"]\nparams = 7\nwindow = 32768\nscores = { coding = 60 }\naliases = ["house"]\n'
    )
    table = load_table(file)
    row = table.resolve(served)
    assert (row.id if row else "") == ("house-model-7b" if known else "")
    assert table.matches("house-model-7b", served) == known
