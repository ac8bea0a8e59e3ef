"""``turnout feedback`` and ``turnout eval replay``: answers that really were given, and files that are not right."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.cli.conftest import Fakes, configure, run, run_beside
from turnout.config import data_dir
from turnout.fleet.decisions import Decision, DecisionLog, Option, Outcome, decisions_path

MODELS = ("qwen2.5-coder:7b", "llama3.1:8b", "gemma2:9b")
OPTIONS = (
    Option("large", "a", score=90.0, priced=True, prefill=10.0, decode=30.0),
    Option("small", "b", score=80.0, level=1, priced=True, prefill=0.5, decode=2.0),
)


def decided(number: int, **fields: object) -> Decision:
    outcome = Outcome(first=1.0, total=80.0)
    made = Decision(
        1_780_000_000.0, f"{number:032x}", "local", "best", "coding", options=OPTIONS, chosen=0, outcome=outcome
    )
    return msgspec.structs.replace(made, **fields)


def keep(*found: Decision) -> Path:
    log = DecisionLog(decisions_path(data_dir()))
    for decision in found:
        log.add(decision)
    log.save()
    return decisions_path(data_dir())


async def test_an_answer_is_judged_and_the_explanation_says_so(fakes: Fakes) -> None:
    configure(await fakes.start(*MODELS))
    asked = json.loads((await run_beside("ask", "Write a parser", "--json")).stdout)
    used = asked["route"]["request_id"]
    (listed,) = json.loads(run("feedback", "--json").stdout)["requests"]
    assert (listed["request_id"], listed["model"], listed["verdict"]) == (used, asked["route"]["model"], None)
    told = await run_beside("feedback", used, "bad", "--note", "it does not compile")
    assert "feedback -0.5 (0 good, 1 bad)" in told.stderr
    table = run("feedback").stdout.splitlines()
    assert table[0].split("\t") == ["request", "when", "category", "model", "service", "seconds", "verdict", "note"]
    assert table[1].split("\t")[-2:] == ["bad", "it does not compile"]
    voted = json.loads((await run_beside("feedback", used, "good", "--json")).stdout)
    assert (voted["good"], voted["bad"], voted["change"]) == (1.0, 0.0, 0.476)
    explained = json.loads((await run_beside("explain", "Write a parser", "--json")).stdout)
    reasons = {c["model"]: c["reason"] for c in explained["candidates"] if c["decision"] != "not taken"}
    assert "feedback +0.5 (1 good, 0 bad)" in reasons[asked["route"]["model"]]
    events = [json.loads(line) for line in (data_dir() / "audit.log").read_text().splitlines()]
    assert [e["service"].split(":")[0] for e in events if e["event_type"] == "feedback"] == ["bad", "good"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((f"{1:032x}", "good"), "no request of yours"),
        ((f"{2:032x}", "good"), "no request of yours"),
        ((f"{3:032x}", "bad"), "an exact model was asked for"),
        ((f"{4:032x}", "bad"), "no model answered it"),
        ((f"{5:032x}",), "the verdict is missing"),
        (("--", "-1", "good"), "no request of yours"),
        ((f"{5:032x}", "meh"), "'meh' is not one of"),
    ],
)
def test_what_cannot_be_judged_is_said(args: tuple[str, ...], says: str) -> None:
    keep(decided(2, who="ann"), decided(3, category=""), decided(4, chosen=-1), decided(5))
    found = run("feedback", *args)
    assert found.exit_code == 2
    assert says in found.stderr


def test_without_a_request_the_last_of_ones_own_are_listed() -> None:
    keep(*(decided(n, who="ann" if n % 2 else "local") for n in range(60)))
    found = json.loads(run("feedback", "--json").stdout)["requests"]
    assert [row["request_id"] for row in found] == [f"{n:032x}" for n in range(58, 38, -2)]
    configure(routing={"log_decisions": False})
    decisions_path(data_dir()).unlink()
    assert "routing.log_decisions is false" in run("feedback").stderr
    decisions_path(data_dir()).mkdir()
    assert "cannot be read" in run("feedback").stderr


def test_a_policy_is_replayed_on_the_log_of_the_data_directory() -> None:
    path = keep(decided(1), decided(2, category="", policy="exact"), decided(3, options=OPTIONS[:1]))
    path.with_name(f"{path.name}.1").write_bytes(path.read_bytes() + b"half a li")
    found = json.loads(run("eval", "replay", "--policy", "fast", "--json").stdout)
    assert {k: found[k] for k in ("policy", "decisions", "damaged", "exact", "alone", "replayed", "differ")} == {
        "policy": "fast",
        "decisions": 6,
        "damaged": 1,
        "exact": 2,
        "alone": 2,
        "replayed": 2,
        "differ": 2,
    }
    assert found["method"].startswith("direct")
    assert found["expected"] == {
        "logged": {"seconds": 40.0, "first": 10.0, "score": 90.0},
        "policy": {"seconds": 2.5, "first": 0.5, "score": 80.0},
    }
    assert found["first_choices"] == {"expected_seconds": 40.0, "observed_seconds": 80.0, "observed_by_expected": 2.0}
    shown = run("eval", "replay", str(path), "--policy", "best")
    assert "best would choose otherwise\t0 (0.0%)" in shown.stdout
    assert "expected seconds\t40.00\t40.00" in shown.stdout
    assert "lines that are no decisions, left out: 1" in run("eval", "replay").stderr


def test_a_log_without_decisions_has_no_means(tmp_path: Path) -> None:
    (path := tmp_path / "empty.jsonl").write_text("{}\n")
    shown = run("eval", "replay", str(path))
    assert (shown.exit_code, "replayed\t0" in shown.stdout, "expected" in shown.stdout) == (0, True, False)
    assert "left out: 1" in shown.stderr


def test_without_a_policy_the_configured_one_is_replayed() -> None:
    configure(routing={"policy": "fast"})
    keep(decided(1))
    assert json.loads(run("eval", "replay", "--json").stdout)["policy"] == "fast"


def test_a_log_that_cannot_be_read_is_said() -> None:
    found = run("eval", "replay")
    assert found.exit_code == 2
    assert "there is no decision log" in found.stderr
    for name in ("nowhere.jsonl", "."):
        found = run("eval", "replay", name)
        assert found.exit_code == 2
        assert f"{name}: " in found.stderr


def test_of_a_log_without_choices_the_table_is_empty() -> None:
    Path("none.jsonl").write_text("")
    shown = run("eval", "replay", "none.jsonl").stdout
    assert "decisions\t0" in shown
    assert json.loads(run("eval", "replay", "none.jsonl", "--json").stdout)["expected"] == {
        "logged": None,
        "policy": None,
    }
