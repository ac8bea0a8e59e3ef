"""Compute the capability table that ships, from public results.

    PYTHONPATH=src python train/models.py DATA    DATA: the folder with model-evidence.jsonl, model-facts.jsonl and
                                                  spec-models.json; `make table DATA=...` calls this

What is known of each model without measuring it stands in train/models.toml. Written are ``models.toml`` (the scores, and
the line for models that nobody measured) and ``evidence.toml`` (every result, what it means on our scale, and with what
weight), both in ``src/turnout/routing``. Nothing but the standard library; the same data gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fit import CODING, EXPECTED, RELATED, Fit, Subject, contrasts, expected, fit, others

from turnout.routing.capabilities import CapabilityTable, ModelCapability
from turnout.routing.estimate import Lines, bounded
from turnout.routing.evidence import OPINION, Benchmark, Evidence, Result, coding_terms, mean, other_terms
from turnout.routing.names import parse_model_name
from turnout.types import Json, TaskCategory

ROOT = Path(__file__).parents[1]
OUT = ROOT / "src/turnout/routing"
FILES = ("model-evidence.jsonl", "model-facts.jsonl", "spec-models.json")
AIDER, EVALPLUS, BIGCODE = "aider", "EvalPlus", "BigCodeBench"
CATALOGUE = "models.dev, July 2026"
OWNERS = {category: f"owner-{category.value}" for category in TaskCategory}
BENCHMARKS: Mapping[str, Benchmark] = {
    "aider-polyglot": Benchmark("aider polyglot, 225 exercises, solved at the second try", AIDER, CODING, "aider"),
    "aider-edit": Benchmark("aider edit, 133 exercises, solved at the second try", AIDER, CODING, "aider"),
    "aider-refactor": Benchmark("aider refactor, 89 tasks, solved at the first try", AIDER, CODING, "aider"),
    "humaneval": Benchmark("HumanEval, pass@1", EVALPLUS, CODING, "EvalPlus"),
    "humaneval+": Benchmark("HumanEval+, pass@1", EVALPLUS, CODING, "EvalPlus"),
    "mbpp": Benchmark("MBPP, pass@1", EVALPLUS, CODING, "EvalPlus"),
    "mbpp+": Benchmark("MBPP+, pass@1", EVALPLUS, CODING, "EvalPlus"),
    "bigcode-full-instruct": Benchmark("BigCodeBench full, instruct, pass@1", BIGCODE, CODING, "BigCodeBench"),
    "bigcode-full-complete": Benchmark("BigCodeBench full, complete, pass@1", BIGCODE, CODING, "BigCodeBench"),
    "bigcode-hard-instruct": Benchmark("BigCodeBench hard, instruct, pass@1", BIGCODE, CODING, "BigCodeBench"),
    "bigcode-hard-complete": Benchmark("BigCodeBench hard, complete, pass@1", BIGCODE, CODING, "BigCodeBench"),
    "swe-verified": Benchmark("SWE-bench Verified, resolved", "SWE-bench", CODING, CATALOGUE),
    "swe-multilingual": Benchmark("SWE-bench Multilingual, resolved", "SWE-bench", CODING, CATALOGUE),
    "swe-pro": Benchmark("SWE-bench Pro, resolved", "SWE-bench Pro", CODING, CATALOGUE),
    "terminal-hard": Benchmark("Terminal-Bench Hard, success", "Terminal-Bench", CODING, CATALOGUE),
    "terminal-2.1": Benchmark("Terminal-Bench 2.1, success", "Terminal-Bench", CODING, CATALOGUE),
    "nl2repo": Benchmark("NL2Repo", "NL2Repo", CODING, CATALOGUE),
    "atlas-refactoring": Benchmark("SWE-Atlas Refactoring", "SWE-Atlas", CODING, CATALOGUE),
    "atlas-tests": Benchmark("SWE-Atlas Test Writing", "SWE-Atlas", CODING, CATALOGUE),
    "scicode": Benchmark("SciCode, correct", "SciCode", TaskCategory.REASONING, CATALOGUE),
    "atlas-qna": Benchmark("SWE-Atlas Codebase QnA, score", "SWE-Atlas", TaskCategory.ANALYSIS, CATALOGUE),
    "owner-coding": Benchmark("the owner's number, an opinion without a source", OPINION, CODING, "the owner"),
    **{
        OWNERS[c]: Benchmark("the owner's number, an opinion without a source", OPINION, c, "the owner")
        for c in TaskCategory
        if c is not CODING
    },
}
# How the two lists name them. Left out: the share of well-formed edits, which is no ability; the Artificial Analysis
# index, which is (2 Terminal-Bench Hard + SciCode) / 3; results of an agent's index, of which a model is a part;
# SWE-bench Pro and Codebase QnA of the coding agent index, which are on another scale than the rest of their name.
EVIDENCE = {
    ("aider-polyglot (225 exercises)", "pass_rate_2 %"): "aider-polyglot",
    ("aider-edit (133 exercises)", "pass_rate_2 %"): "aider-edit",
    ("aider-refactor (89 tasks)", "pass_rate_1 %"): "aider-refactor",
    ("evalplus", "humaneval pass@1 %"): "humaneval",
    ("evalplus", "humaneval+ pass@1 %"): "humaneval+",
    ("evalplus", "mbpp pass@1 %"): "mbpp",
    ("evalplus", "mbpp+ pass@1 %"): "mbpp+",
    ("bigcodebench-full", "instruct pass@1 %"): "bigcode-full-instruct",
    ("bigcodebench-full", "complete pass@1 %"): "bigcode-full-complete",
    ("bigcodebench-hard", "instruct pass@1 %"): "bigcode-hard-instruct",
    ("bigcodebench-hard", "complete pass@1 %"): "bigcode-hard-complete",
}
FACTS = {
    ("SWE-Bench Verified", "resolved"): "swe-verified",
    ("SWE-Bench Verified", "percent resolved"): "swe-verified",
    ("SWE-Bench Multilingual", "percent resolved"): "swe-multilingual",
    ("SWE-Bench Pro", "resolve rate"): "swe-pro",
    ("SWE-Bench Pro", "percent resolved"): "swe-pro",
    ("Terminal-Bench Hard", "success rate"): "terminal-hard",
    ("Terminal-Bench 2.1", "percent"): "terminal-2.1",
    ("NL2Repo", "percent"): "nl2repo",
    ("SWE-Atlas Refactoring", "score"): "atlas-refactoring",
    ("SWE-Atlas Test Writing", "score"): "atlas-tests",
    ("SWE-Atlas Codebase QnA", "score"): "atlas-qna",
    ("SciCode", "percent correct"): "scicode",
    ("Aider Polyglot", "percent correct"): "aider-polyglot",
}
# Names of the lists that say another model than a server would mean by them, or more than a name.
RENAMED = {
    "Qwen3 235B A22B diff, no think, Alibaba API": "qwen3-235b-a22b",
    "DeepSeek Chat V2 0628": "",
    "DeepSeek-V2-Chat": "",
    "DeepSeek-V2-Chat (2024-06-28)": "",
    "ollama/mistral-small": "mistral-small-2409-22b",
    "Mistral-Small-2402": "",
    "Mistral-Large-2402": "",
    "Mistral Large (Mar 2024)": "",
    "Qwen2.5-Max": "",
    "qwen-max-2025-01-25": "",
    "QwQ-32B-Preview": "",
    "QwQ-32B + Qwen 2.5 Coder Instruct": "",
}
NOTE = re.compile(r"\s*\((?!\d{4}\)|\d{2}-\d{2}\)|\d{4}-\d\d-\d\d\)).*\)$")


@dataclass(frozen=True)
class Data:
    """What was read.

    Attributes:
        rows: of train/models.toml by canonical name, as they stand there.
        results: by canonical name, or by the listed name of a model that is in no table.
        opinions: the owner's numbers.
        digests: SHA-256 of each file.
    """

    lists: Mapping[str, Sequence[str]]
    rows: Mapping[str, dict[str, Json]]
    results: Mapping[str, Sequence[Result]]
    opinions: Mapping[str, Mapping[TaskCategory, float]]
    digests: Mapping[str, str]


def read(folder: Path) -> Data:
    """The four files."""
    base = tomllib.loads((ROOT / "train/models.toml").read_text("utf-8"))
    table = CapabilityTable({key: _bare(key, row) for key, row in base["models"].items()}, _aliases(base["models"]))
    texts = {name: (folder / name).read_bytes() for name in FILES}
    texts["train/models.toml"] = (ROOT / "train/models.toml").read_bytes()
    results: dict[str, list[Result]] = defaultdict(list)
    for line in texts["model-evidence.jsonl"].decode().splitlines():
        row = json.loads(line)
        if benchmark := EVIDENCE.get((row["benchmark"], row["metric"])):
            key = _model(row["model"], table)
            results[key].append(Result(benchmark, row["value"], row["as_of"], row["model"]))
    for line in texts["model-facts.jsonl"].decode().splitlines():
        row = json.loads(line)
        weights = row["weights"][0].split("/", 3)[-1] if row["weights"] else row["id"]
        found = table.resolve(weights)
        for b in row["benchmarks"]:
            if benchmark := FACTS.get((b["name"], b["metric"])):
                key = found.id if found else f"~{row['id']}"
                results[key].append(Result(benchmark, float(b["score"]), row["release_date"][:7], row["id"]))
    opinions: dict[str, Mapping[TaskCategory, float]] = {}
    for row in json.loads(texts["spec-models.json"])["models"]:  # one row is there twice: the first counts
        opinions.setdefault(row["id"], {TaskCategory(c): float(n) for c, n in row["scores"].items()})
    for key, numbers in opinions.items():
        results[key] += [Result(OWNERS[c], numbers[c], "2025-01", key) for c in TaskCategory]
    chosen = {key: _once(_as_served(rows)) for key, rows in sorted(results.items())}
    digests = {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    return Data(base["lists"], base["models"], chosen, opinions, digests)


def _bare(key: str, row: dict[str, Json]) -> ModelCapability:
    name = parse_model_name(key)
    sizes = frozenset({name.size or row["params"], *row.get("sizes", ())})
    return ModelCapability(key, name, row["params"], row.get("active", 0.0), row["window"], sizes=sizes)


def _aliases(rows: Mapping[str, dict[str, Json]]) -> dict[str, str]:
    return {alias.lower(): key for key, row in rows.items() for alias in row.get("aliases", ())}


def _model(listed: str, table: CapabilityTable) -> str:
    """The row a listed name means, or that name with a mark. A base build is none of the models that answer."""
    if listed in RENAMED:
        return RENAMED[listed] or f"~{listed}"
    plain = NOTE.sub("", listed)
    row = table.resolve(plain)
    if row is None or "base" in parse_model_name(plain).variants:
        return f"~{listed}"
    return row.id


def _as_served(rows: Sequence[Result]) -> list[Result]:
    """Without results of base builds: where a list has an instruct build too, the name without that word is the base."""
    tuned = {BENCHMARKS[r.benchmark].suite for r in rows if "instruct" in parse_model_name(r.listed).variants}
    return [
        r
        for r in rows
        if BENCHMARKS[r.benchmark].suite not in (tuned & {EVALPLUS, BIGCODE})
        or "instruct" in parse_model_name(r.listed).variants
        or not parse_model_name(r.listed).size_stated
    ]


def _once(rows: Iterable[Result]) -> list[Result]:
    """The same value of the same benchmark in both lists counts once."""
    found: dict[tuple[str, float], Result] = {}
    for row in rows:
        found.setdefault((row.benchmark, row.value), row)
    return list(found.values())


def subjects_of(data: Data) -> list[Subject]:
    """Every model of the table, and every other one with a result."""
    found = []
    for key, row in data.rows.items():
        year, month = map(int, row["released"].split("-"))
        when = round(year + (month - 0.5) / 12, 2)
        found.append(Subject(key, parse_model_name(key), row["params"], row.get("active", 0.0), when, listed=True))
    for key in sorted(set(data.results) - set(data.rows)):
        name = parse_model_name(NOTE.sub("", key[1:]))
        # EvalPlus gives one date for all of its list; the others say when a model came out.
        dates = [r.date for r in data.results[key] if BENCHMARKS[r.benchmark].suite not in (EVALPLUS, AIDER)]
        when = min((int(d[:4]) + (int(d[5:7] or 6) - 0.5) / 12 for d in dates), default=0.0)
        size = name.size if name.size_stated else 0.0
        base = "base" in name.variants
        found.append(Subject(key, name, size, name.active, 0.0 if base else when, listed=False))
    return found


@dataclass(frozen=True)
class Scored:
    """The table's scores, and what they were computed from."""

    lines: Lines
    evidence: Evidence
    scores: Mapping[str, Mapping[TaskCategory, float]]


def score(data: Data, keep: Callable[[str, Result], bool] = lambda _, __: True) -> Scored:
    """Every score of the table, from the results that ``keep`` keeps."""
    subjects = subjects_of(data)
    results = {key: [r for r in rows if keep(key, r)] for key, rows in data.results.items()}
    found = fit(subjects, results, BENCHMARKS)
    owner = found.benchmarks.get("owner-coding")
    worth = 0.01 / owner.slope if owner else 1.0
    lines = replace(found.lines, contrasts=contrasts(subjects, data.opinions, worth), years=_years(subjects))
    found = replace(found, lines=_rounded(lines))
    benchmarks = {**found.benchmarks, **others(found, subjects, results, BENCHMARKS)}
    benchmarks = {key: _short(benchmarks[key]) for key in BENCHMARKS if key in benchmarks}
    listed = {
        s.key: tuple(r for r in results.get(s.key, ()) if r.benchmark in benchmarks) for s in subjects if s.listed
    }
    evidence = Evidence(benchmarks, {key: rows for key, rows in listed.items() if rows}, EXPECTED, RELATED, {})
    raw = {s.key: _categories(evidence, found, s) for s in subjects if s.listed}
    least = _least(subjects, raw, evidence)
    whole = {key: {c: max(v, least.get(key, {}).get(c, v)) for c, v in each.items()} for key, each in raw.items()}
    scores = {key: {c: bounded(v) for c, v in each.items()} for key, each in whole.items()}
    return Scored(found.lines, replace(evidence, least=least), scores)


def _categories(evidence: Evidence, found: Fit, s: Subject) -> dict[TaskCategory, float]:
    coding = mean(coding_terms(evidence, s.key, expected(found.lines, s)))
    each = {CODING: coding}
    for category, contrast in found.lines.contrasts.items():
        at = coding + contrast.of(s.effective, s.coder)
        each[category] = mean(other_terms(evidence, s.key, category, at))
    return each


def _least(
    subjects: Sequence[Subject], raw: Mapping[str, Mapping[TaskCategory, float]], evidence: Evidence
) -> dict[str, dict[TaskCategory, float]]:
    """A larger model of a series is not worse than a smaller one, unless results of its own say so."""
    found: dict[str, dict[TaskCategory, float]] = {}
    best: dict[tuple[str, TaskCategory], float] = {}
    for s in sorted((s for s in subjects if s.listed), key=lambda s: (s.effective, s.key)):
        for category in TaskCategory:
            value, place = raw[s.key][category], (s.name.series, category)
            if value < (smaller := best.get(place, value)) and not evidence.results.get(s.key):
                value = round(smaller, 2)
                found.setdefault(s.key, {})[category] = value
            best[place] = max(value, best.get(place, value))
    return found


def _years(subjects: Sequence[Subject]) -> dict[str, float]:
    years: dict[str, float] = {}
    for s in subjects:
        if s.listed:
            years.setdefault(s.name.series, s.year)
    return years


def _rounded(lines: Lines) -> Lines:
    return replace(
        lines,
        constant=round(lines.constant, 2),
        size=round(lines.size, 3),
        large=round(lines.large, 3),
        year=round(lines.year, 3),
        code=round(lines.code, 2),
        families={key: round(value, 2) for key, value in lines.families.items()},
        series={key: round(value, 2) for key, value in lines.series.items() if key in lines.years},
        contrasts={
            c: replace(t, constant=round(t.constant, 2), size=round(t.size, 3), code=round(t.code, 2))
            for c, t in lines.contrasts.items()
        },
    )


def _short(b: Benchmark) -> Benchmark:
    return replace(b, middle=round(b.middle, 2), slope=round(b.slope, 5), noise=round(b.noise, 2))


def main(folder: Path) -> None:
    from write import write_tables

    data = read(folder)
    write_tables(OUT, data, score(data))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
