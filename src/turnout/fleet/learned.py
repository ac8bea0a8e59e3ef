"""What answers have taught: windows that servers hide, how fast they read, how their tokens count.

Kept in memory and now and then in a small file of the data directory, which several processes share; the last to write
one entry wins. It holds names, numbers and times, nothing of what was asked or answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from turnout.files import lock_folder, read_file, replace_file, unlock_folder
from turnout.types import Endpoint, Model

WINDOW_HOLDS = 24 * 3600.0  # seconds: a server that was started again may have another one
# Tokens. A server that names more or fewer is wrong: nothing could be sent, or nothing would ever be too long.
LEAST_WINDOW, MOST_WINDOW = 128, 100_000_000
MAX_ENTRIES = {"windows": 2000, "speeds": 2000, "counts": 250, "hardware": 1000}  # of counts one takes 14 kB
SMOOTHING, MOST_SEEN = 0.25, 4  # the share of the newest observation, from the one on that it counts no more
FAR = 4.0  # times
LEAST, MOST = 1e-6, 1e18  # of what can be observed: a speed or seconds
UNCHANGED = 0.05  # what differs by less from what is known is no news
SAVE_EVERY = 60.0  # seconds

log = logging.getLogger("turnout")


class LearnedWindow(msgspec.Struct, frozen=True):
    """A window in tokens, when it was learned (seconds since the epoch), and what the server claimed then, or 0."""

    tokens: int
    at: float
    claimed: int = 0


class Speed(msgspec.Struct, frozen=True):
    """How fast a model at an endpoint is, 0.0 for what was not seen yet.

    Attributes:
        prefill: tokens of a prompt a second, those from a cache not counted.
        load: seconds until a model that was not loaded began to read.
        decode: tokens of an answer a second.
        seen: observations.
    """

    prefill: float = 0.0
    load: float = 0.0
    decode: float = 0.0
    seen: int = 0


class Hardware(msgspec.Struct, frozen=True):
    """What a server did with any model, 0.0 for what was not seen yet: a start for its other models.

    Attributes:
        compute: billions of active parameters times tokens of a prompt a second.
        bandwidth: bytes of active weights times tokens of an answer a second.
        disk: bytes loaded a second.
    """

    compute: float = 0.0
    bandwidth: float = 0.0
    disk: float = 0.0


NOT_SEEN, NO_HARDWARE = Speed(), Hardware()


class _Kept(msgspec.Struct):
    """The file."""

    windows: dict[str, LearnedWindow] = {}
    speeds: dict[str, Speed] = {}
    counts: dict[str, object] = {}
    hardware: dict[str, Hardware] = {}


def believable(tokens: int) -> bool:
    """Whether a window may have so many tokens."""
    return LEAST_WINDOW <= tokens <= MOST_WINDOW


def learned_path(data_dir: Path) -> Path:
    """Where it is kept."""
    return data_dir / "learned.json"


class Learned:
    """What was learned. The only writer of it in this process.

    Args:
        path: the file, or None to keep nothing beyond the process.
        clock: seconds since the epoch.
    """

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._told = False
        self._kept = self._read(path) if path is not None else _Kept()
        self._changed: set[tuple[str, str]] = set()

    def windowed(self, endpoint: Endpoint, model: Model) -> Model:
        """The model with the window that was learned, where its server hides it or claimed more than it had."""
        found = self._kept.windows.get(_key(endpoint, model))
        if found is None or not self._holds(found):
            return model
        hidden = model.window_source in ("guessed", "learned") or not model.window
        if not hidden and not (found.claimed == model.window > found.tokens):
            return model
        return replace(model, window=found.tokens, window_source="learned")

    def learn_window(self, endpoint: Endpoint, model: Model, tokens: int) -> None:
        """Requests to this model there may have so many tokens; what no window has is not learned.

        Args:
            model: as the catalog has it.
        """
        if not believable(tokens):
            return
        key = _key(endpoint, model)
        claimed = model.window if model.window_source in ("known", "configured") else 0
        if model.window_source == "learned" and (last := self._kept.windows.get(key)):
            claimed = last.claimed
        self._write("windows", key, LearnedWindow(tokens, self._clock(), claimed))

    def forget_windows(self, endpoint: Endpoint) -> None:
        """The server went away: it may come back with other windows."""
        gone = [key for key in self._kept.windows if key.startswith(endpoint.url + "\n")]
        for key in gone:
            self._write("windows", key, LearnedWindow(0, 0.0))

    def speed(self, endpoint: Endpoint, model: Model) -> Speed:
        """How fast it was."""
        return self._kept.speeds.get(_key(endpoint, model), NOT_SEEN)

    def learn_speed(
        self, endpoint: Endpoint, model: Model, *, prefill: float = 0.0, load: float = 0.0, decode: float = 0.0
    ) -> None:
        """One observation, of what is not 0.0."""
        last = self.speed(endpoint, model)
        if last.seen >= MOST_SEEN and not _news((last.prefill, last.load, last.decode), (prefill, load, decode)):
            return
        new = Speed(
            _smoothed(last.prefill, prefill, last.seen),
            _smoothed(last.load, load, last.seen),
            _smoothed(last.decode, decode, last.seen),
            min(last.seen + 1, MOST_SEEN),
        )
        self._write("speeds", _key(endpoint, model), new)

    def hardware(self, endpoint: Endpoint) -> Hardware:
        """What the server did with any of its models."""
        return self._kept.hardware.get(endpoint.url, NO_HARDWARE)

    def learn_hardware(
        self, endpoint: Endpoint, *, compute: float = 0.0, bandwidth: float = 0.0, disk: float = 0.0
    ) -> None:
        """One observation, of what is not 0.0."""
        last = self.hardware(endpoint)
        if not _news((last.compute, last.bandwidth, last.disk), (compute, bandwidth, disk)):
            return
        new = Hardware(
            _smoothed(last.compute, compute, MOST_SEEN),
            _smoothed(last.bandwidth, bandwidth, MOST_SEEN),
            _smoothed(last.disk, disk, MOST_SEEN),
        )
        self._write("hardware", endpoint.url, new)

    def counts(self, name: str) -> object:
        """What was learned of how a model's tokens count: what ``learn_counts`` was given, as JSON, or None."""
        return self._kept.counts.get(name)

    def learn_counts(self, name: str, value: object) -> None:
        """Replace it."""
        self._write("counts", name, value)

    def _holds(self, window: LearnedWindow) -> bool:
        return believable(window.tokens) and 0 <= self._clock() - window.at < WINDOW_HOLDS

    def _write(self, section: str, key: str, value: object) -> None:
        _put(self._kept, section, key, value)
        self._changed.add((section, key))

    def _read(self, path: Path) -> _Kept:
        kept, problem = _read(path)
        if problem and not self._told:
            log.warning("%s", problem)
        self._told = bool(problem)
        return kept

    def save(self) -> None:
        """Write what is new into the file, beside what others wrote. Blocking; what cannot be kept is learned again."""
        if self._path is None or not self._changed:
            return
        changed, self._changed = self._changed, set()
        try:
            folder = lock_folder(self._path.parent)
            try:
                kept = self._read(self._path)
                for section, key in changed:
                    if key in getattr(self._kept, section):
                        _put(kept, section, key, getattr(self._kept, section)[key])
                replace_file(self._path, msgspec.json.encode(kept))
            finally:
                unlock_folder(folder)
        except OSError as error:
            log.info("what was learned cannot be kept in %s: %s", self._path, error.strerror or error)


@asynccontextmanager
async def keep_saving(learned: Learned) -> AsyncIterator[None]:
    """Save now and then, for as long as the context is open; whoever closes it saves the rest."""
    saving = asyncio.create_task(_save_on(learned))
    try:
        yield
    finally:
        saving.cancel()
        with suppress(asyncio.CancelledError):
            await saving


async def _save_on(learned: Learned) -> None:
    while True:
        await asyncio.sleep(SAVE_EVERY)
        await asyncio.to_thread(learned.save)


def _put(kept: _Kept, section: str, key: str, value: object) -> None:
    entries: dict[str, object] = getattr(kept, section)
    entries.pop(key, None)
    entries[key] = value  # the newest last
    while len(entries) > MAX_ENTRIES[section]:
        del entries[next(iter(entries))]


def _read(path: Path) -> tuple[_Kept, str]:
    """The file, and what is wrong with it; nothing of what is damaged: all of it can be learned again."""
    try:
        kept = msgspec.json.decode(read_file(path), type=_Kept)
    except FileNotFoundError:
        return _Kept(), ""
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        said = " ".join(str(error).split())
        return _Kept(), f"what was learned in {path} cannot be read, and is learned again: {said}"
    speeds = {key: speed for key, speed in kept.speeds.items() if _sane(speed)}
    hardware = {url: its for url, its in kept.hardware.items() if _sane(its)}
    odd = len(kept.speeds) - len(speeds) + len(kept.hardware) - len(hardware)
    kept.speeds, kept.hardware = speeds, hardware
    return kept, f"{odd} speeds in {path} cannot be, and are learned again" if odd else ""


def _sane(values: msgspec.Struct) -> bool:
    """Whether numbers are such as can be observed: a damaged file must not make a server free, or endless."""
    return all(value == 0 or LEAST <= value <= MOST for value in msgspec.structs.astuple(values))


def _key(endpoint: Endpoint, model: Model) -> str:
    return f"{endpoint.url}\n{model.id}"


def _news(known: Sequence[float], seen: Sequence[float]) -> bool:
    """Whether an observation, 0.0 for none, differs from what is known."""
    return any(new and not abs(new - old) <= UNCHANGED * old for old, new in zip(known, seen, strict=True))


def _smoothed(last: float, new: float, seen: int) -> float:
    """The average after one more observation: of the first few each counts alike, later ones fade; one that is far off
    counts as if it were ``FAR`` times off, since a server that was busy with something else says little."""
    if not LEAST <= new <= MOST:  # also of 0.0, for not seen, and of what is no number
        return last
    if not last:
        return new
    share = max(SMOOTHING, 1.0 / (seen + 1))
    return float(last * (min(FAR, max(1.0 / FAR, new / last)) ** share))
