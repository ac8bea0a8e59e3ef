"""A bundle of Turnout itself, made once without an index from the packages that are installed here."""

from __future__ import annotations

import asyncio
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bundle.wheelhouse import make_wheelhouse
from tests.code.test_install import wheel
from turnout.bundle.make import Made, Wanted, make
from turnout.bundle.target import target_of
from turnout.code.install import TY_VERSION
from turnout.guard.signing import Signer


@dataclass(frozen=True)
class Whole:
    """``folder`` is the bundle unpacked."""

    made: Made
    folder: Path
    wanted: Wanted
    signer: Signer


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Everything that Turnout needs, and a Serena that only tells its version."""
    place = tmp_path_factory.mktemp("whole")
    lock = make_wheelhouse(place / "wheels")
    wheel(place / "wheels", "serena-agent", "2.1.0", "serena", "Serena 2.1.0")
    wheel(place / "wheels", "ty", TY_VERSION, "ty", f"ty {TY_VERSION}")
    wanted = Wanted(target_of(), (place / "wheels",), False, True, place / "data", lock)
    signer = Signer(place / "signing")
    made = asyncio.run(make(wanted, place / "bundle.tar", signer))
    with tarfile.open(made.path) as opened:
        opened.extractall(place / "carried over", filter="data")
    return Whole(made, place / "carried over" / wanted.name, wanted, signer)
