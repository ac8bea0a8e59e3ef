"""Pinned models: the file, what is cold, and what a load would push out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from turnout.errors import StorageError
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.fleet.pins import Pin, cold, evicted_by, pins_path, read_pins, write_pins
from turnout.types import Endpoint, Health, Model


def status(*models: Model, capacity: int = 0, health: Health = Health.ONLINE) -> EndpointStatus:
    return EndpointStatus(Endpoint("box", "x", "http://127.0.0.1:1"), health, "", 0.0, models=models, capacity=capacity)


def test_the_list_is_kept(tmp_path: Path) -> None:
    path = pins_path(tmp_path / "new")
    assert read_pins(path) == frozenset()
    pins = {Pin("b", "box"), Pin("a", "box")}
    write_pins(path, pins)
    assert read_pins(path) == pins
    assert [file.name for file in path.parent.iterdir()] == ["pins.json"]


@pytest.mark.parametrize("text", ["", "{}", '[{"model": 1}]', "\x00"])
def test_a_damaged_list_is_said(tmp_path: Path, text: str) -> None:
    path = pins_path(tmp_path)
    path.write_text(text)
    with pytest.raises(StorageError, match="cannot be read"):
        read_pins(path)


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero")], ids=["pipe", "dir", "device"]
)
def test_what_is_no_file_holds_nobody_up(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(pins_path(tmp_path))
    with pytest.raises(StorageError, match="cannot be read"):
        read_pins(pins_path(tmp_path))


def test_what_is_cold() -> None:
    models = (Model("a", resident=False), Model("b", resident=True), Model("c", resident=False), Model("d"))
    pins = {Pin(name, "box") for name in "abd"} | {Pin("c", "elsewhere")}
    assert [m.id for _, m in cold(pins, Catalog((status(*models),)))] == ["a"]
    assert cold(pins, Catalog((status(*models, health=Health.OFFLINE),))) == []


def test_what_a_load_would_push_out() -> None:
    big, small = Model("big", resident=True), Model("small", resident=False)
    pins = frozenset({Pin("big", "box")})
    assert evicted_by(small, status(big, small), pins) == "big", "a server that does not tell its room is not trusted"
    assert evicted_by(small, status(big, small, capacity=1), pins) == "big"
    assert evicted_by(small, status(big, small, capacity=2), pins) == ""
    assert evicted_by(big, status(big, small, capacity=1), pins) == "", "what is loaded pushes nothing out"
    assert evicted_by(small, status(big, small), frozenset()) == ""
