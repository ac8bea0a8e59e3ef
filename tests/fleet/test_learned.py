"""What answers have taught: kept by several processes, for as long as it holds."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.context.calibration import SIZE, prior, to_json
from turnout.fleet.learned import MAX_ENTRIES, WINDOW_HOLDS, Hardware, Learned, LearnedWindow, Speed
from turnout.routing.price import Situation, Work, price
from turnout.types import Candidate, Endpoint, Model

BOX = Endpoint("box", "openai", "http://127.0.0.1:1")
HIDDEN = Model("m", window=8192, window_source="guessed")
CLAIMED = Model("m", window=8192)


def test_a_hidden_window_is_replaced_and_a_configured_one_is_not() -> None:
    learned = Learned()
    learned.learn_window(BOX, HIDDEN, 2000)
    assert learned.windowed(BOX, HIDDEN) == replace(HIDDEN, window=2000, window_source="learned")
    assert learned.windowed(BOX, replace(HIDDEN, window=0, window_source="known")).window == 2000
    chosen = replace(HIDDEN, window_source="configured")
    assert learned.windowed(BOX, chosen) == chosen
    assert learned.windowed(replace(BOX, url="http://127.0.0.1:2"), HIDDEN) == HIDDEN


def test_a_claim_that_was_too_large_is_corrected_for_as_long_as_it_is_made() -> None:
    learned = Learned()
    learned.learn_window(BOX, CLAIMED, 4096)
    assert learned.windowed(BOX, CLAIMED).window == 4096
    learned.learn_window(BOX, learned.windowed(BOX, CLAIMED), 3000)
    assert learned.windowed(BOX, CLAIMED).window == 3000
    reloaded = replace(CLAIMED, window=16_384)
    assert learned.windowed(BOX, reloaded) == reloaded


@pytest.mark.parametrize("tokens", [-5, 0, 1, 10**12, 2**64 - 1])
def test_a_window_that_no_model_has_is_neither_learned_nor_read(tmp_path: Path, tokens: int) -> None:
    file, now = tmp_path / "learned.json", 1_780_000_000.0
    learned = Learned(file, clock=lambda: now)
    learned.learn_window(BOX, HIDDEN, tokens)
    assert learned.windowed(BOX, HIDDEN) == HIDDEN
    file.write_text(json.dumps({"windows": {f"{BOX.url}\nm": {"tokens": tokens, "at": now}}}))
    assert Learned(file, clock=lambda: now).windowed(BOX, HIDDEN) == HIDDEN


@pytest.mark.parametrize("step", [WINDOW_HOLDS + 1, -10.0, -1e9], ids=["later", "back", "1970"])
def test_a_window_is_forgotten_in_time_and_when_the_clock_jumps(step: float) -> None:
    now = [1_780_000_000.0]
    learned = Learned(clock=lambda: now[0])
    learned.learn_window(BOX, HIDDEN, 2000)
    now[0] += step
    assert learned.windowed(BOX, HIDDEN) == HIDDEN


def test_a_server_that_went_away_may_come_back_with_another_window() -> None:
    learned = Learned()
    learned.learn_window(BOX, HIDDEN, 2000)
    learned.forget_windows(BOX)
    assert learned.windowed(BOX, HIDDEN) == HIDDEN


def test_speed_follows_what_is_seen_smoothly() -> None:
    learned = Learned()
    learned.learn_speed(BOX, HIDDEN, prefill=100.0)
    learned.learn_speed(BOX, HIDDEN, load=5.0)
    assert learned.speed(BOX, HIDDEN) == Speed(100.0, 5.0, seen=2)
    learned.learn_speed(BOX, HIDDEN, prefill=800.0)
    assert learned.speed(BOX, HIDDEN).prefill == pytest.approx(100 * 4 ** (1 / 3)), (
        "the third, and so far off that it counts as four times"
    )
    for _ in range(30):
        learned.learn_speed(BOX, HIDDEN, prefill=400.0)
    assert learned.speed(BOX, HIDDEN).prefill == pytest.approx(400.0, rel=0.05)
    learned.learn_speed(BOX, HIDDEN, prefill=4.0)
    assert learned.speed(BOX, HIDDEN).prefill > 250.0, "one that is far off says little"
    for odd in (math.nan, math.inf, -1.0):
        learned.learn_speed(BOX, HIDDEN, prefill=odd, load=odd, decode=odd)
    assert learned.speed(BOX, HIDDEN).prefill > 250.0


@pytest.mark.parametrize("speed", ['{"prefill": -5}', '{"prefill": 1e300}', '{"decode": 1e-300}', '{"load": -0.1}'])
def test_speeds_that_cannot_be_are_not_read(tmp_path: Path, speed: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "learned.json").write_text(
        f'{{"speeds": {{"http://127.0.0.1:1\\nm": {speed}}}, "hardware": {{"http://127.0.0.1:1": {{"compute": -1}}}}}}'
    )
    learned = Learned(tmp_path / "learned.json")
    assert (learned.speed(BOX, HIDDEN), learned.hardware(BOX)) == (Speed(), Hardware())
    learned.learn_window(BOX, HIDDEN, 2000)
    learned.save()
    assert [r.message for r in caplog.records] == [
        f"2 speeds in {tmp_path / 'learned.json'} cannot be, and are learned again"
    ], "once"


observed = st.floats(allow_nan=True, allow_infinity=True)
observations = st.lists(st.tuples(observed, observed, observed), max_size=12)


@given(observations, observations, st.integers(0, 10**9), st.integers(0, 10**6), st.sampled_from([None, True, False]))
def test_whatever_was_observed_a_price_is_finite_and_more_tokens_never_cost_less(
    speeds: list[tuple[float, float, float]],
    hardware: list[tuple[float, float, float]],
    prompt: int,
    answer: int,
    resident: bool | None,
) -> None:
    learned = Learned()
    for prefill, load, decode in speeds:
        learned.learn_speed(BOX, HIDDEN, prefill=prefill, load=load, decode=decode)
    for compute, bandwidth, disk in hardware:
        learned.learn_hardware(BOX, compute=compute, bandwidth=bandwidth, disk=disk)
    candidate = Candidate(BOX, replace(HIDDEN, resident=resident), "", 8192, "known", {})
    at = Situation(running=2, waiting=1, slots=2)
    less, more = (
        price(candidate, work, at, learned.speed(BOX, HIDDEN), learned.hardware(BOX))
        for work in (Work(prompt, answer), Work(prompt + 1000, answer + 10))
    )
    for found in (less, more):
        parts = (found.queue, found.load, found.prefill, found.decode, found.harm, found.seconds, found.weighed)
        assert all(math.isfinite(part) and part >= 0.0 for part in parts)
    assert more.seconds >= less.seconds
    assert more.weighed >= less.weighed


def test_two_processes_keep_what_each_has_learned(tmp_path: Path) -> None:
    path = tmp_path / "data" / "learned.json"
    one, two = Learned(path), Learned(path)
    one.learn_window(BOX, HIDDEN, 2000)
    two.learn_counts("qwen", [1.0, 2.0])
    one.save()
    two.save()
    again = Learned(path)
    assert again.windowed(BOX, HIDDEN).window == 2000
    assert again.counts("qwen") == [1.0, 2.0]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["learned.json"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]", b'{"windows": {"a": 1}}', b"[" * 100_000])
def test_a_damaged_file_is_learned_anew(tmp_path: Path, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "learned.json"
    path.write_bytes(body)
    learned = Learned(path)
    assert "learned again" in caplog.text
    learned.learn_window(BOX, HIDDEN, 2000)
    learned.save()
    assert len(caplog.records) == 1
    assert Learned(path).windowed(BOX, HIDDEN).window == 2000


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero")], ids=["pipe", "dir", "device"]
)
def test_what_is_no_file_holds_nobody_up(
    tmp_path: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "learned.json")
    learned = Learned(tmp_path / "learned.json")
    assert "learned again" in caplog.text
    assert learned.windowed(BOX, HIDDEN) == HIDDEN


def test_a_place_that_cannot_be_written_costs_nothing_but_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    caplog.set_level("INFO", "turnout")
    learned = Learned(tmp_path / "file" / "learned.json")
    learned.learn_window(BOX, HIDDEN, 2000)
    learned.save()
    assert "cannot be kept" in caplog.text
    assert learned.windowed(BOX, HIDDEN).window == 2000


def test_it_never_grows_without_end(tmp_path: Path) -> None:
    path, most = tmp_path / "learned.json", MAX_ENTRIES["windows"]
    counts = to_json(replace(prior("qwen"), covariance=((-1 / 30_000,) * SIZE,) * SIZE))
    learned = Learned(path)
    for n in range(most + 50):
        model = replace(HIDDEN, id=f"m{n}")
        learned.learn_window(BOX, model, 2000)
        learned.learn_speed(BOX, model, prefill=1 / 3, load=1 / 3)
        learned.learn_counts(model.id, counts)
    learned.save()
    kept = json.loads(path.read_text())["windows"]
    assert len(kept) == most
    assert any(key.endswith(f"m{most + 49}") for key in kept)
    assert Learned(path).counts(f"m{most + 49}") == counts, "it can be read"


async def test_what_is_learned_while_it_is_saved_is_saved_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    learned = Learned(path)

    async def learn() -> None:
        for n in range(MAX_ENTRIES["counts"]):
            learned.learn_counts(f"m{n}", [float(n)])
            await asyncio.sleep(0)

    async def save() -> None:
        for _ in range(20):
            await asyncio.to_thread(learned.save)

    await asyncio.gather(learn(), save())
    learned.save()
    assert len(json.loads(path.read_text())["counts"]) == MAX_ENTRIES["counts"]


def test_the_file_holds_names_numbers_and_times_alone() -> None:
    assert LearnedWindow.__struct_fields__ == ("tokens", "at", "claimed")
    assert Speed.__struct_fields__ == ("prefill", "load", "decode", "seen")
    assert Hardware.__struct_fields__ == ("compute", "bandwidth", "disk")
