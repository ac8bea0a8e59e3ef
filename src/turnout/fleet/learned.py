"""What answers have taught: windows that servers hide, how fast they read, how their tokens count.

Kept in memory and now and then in a small file of the data directory, which several processes share; the last to write
one entry wins. It holds names, numbers and times, nothing of what was asked or answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from turnout.files import lock_folder, read_file, replace_file, unlock_folder
from turnout.types import Endpoint, Model

WINDOW_HOLDS = 24 * 3600.0  # seconds: a server that was started again may have another one
# Tokens. A server that names more or fewer is wrong: nothing could be sent, or nothing would ever be too long.
LEAST_WINDOW, MOST_WINDOW = 128, 100_000_000
MAX_ENTRIES = {"windows": 2000, "speeds": 2000, "counts": 250}  # one of the last takes 14 kB
SMOOTHING = 0.3  # the share of the newest observation
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
    """

    prefill: float = 0.0
    load: float = 0.0


class _Kept(msgspec.Struct):
    """The file."""

    windows: dict[str, LearnedWindow] = {}
    speeds: dict[str, Speed] = {}
    counts: dict[str, object] = {}


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
        self._kept = _read(path) if path is not None else _Kept()
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
        return self._kept.speeds.get(_key(endpoint, model), Speed())

    def learn_speed(self, endpoint: Endpoint, model: Model, *, prefill: float = 0.0, load: float = 0.0) -> None:
        """One observation, of what is not 0.0."""
        last = self.speed(endpoint, model)
        if prefill and abs(prefill - last.prefill) < UNCHANGED * last.prefill and not load:
            return
        new = Speed(_smoothed(last.prefill, prefill), _smoothed(last.load, load))
        self._write("speeds", _key(endpoint, model), new)

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

    def save(self) -> None:
        """Write what is new into the file, beside what others wrote. Blocking; what cannot be kept is learned again."""
        if self._path is None or not self._changed:
            return
        changed, self._changed = self._changed, set()
        try:
            folder = lock_folder(self._path.parent)
            try:
                kept = _read(self._path)
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


def _read(path: Path) -> _Kept:
    """The file; nothing when it is not there or damaged: all of it can be learned again."""
    try:
        return msgspec.json.decode(read_file(path), type=_Kept)
    except FileNotFoundError:
        return _Kept()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning(
            "what was learned in %s cannot be read, and is learned again: %s", path, " ".join(str(error).split())
        )
        return _Kept()


def _key(endpoint: Endpoint, model: Model) -> str:
    return f"{endpoint.url}\n{model.id}"


def _smoothed(last: float, new: float) -> float:
    if not new:
        return last
    return new if not last else last + SMOOTHING * (new - last)
