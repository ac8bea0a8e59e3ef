"""Whether answers were any good, as people said: counts for each model and kind of work, in a small file.

The file has one writer at a time, whoever holds the folder's lock: a vote is read, counted and written at once, since
votes are rare and none must be lost. Other processes see it at their next look.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from turnout.errors import StorageError
from turnout.files import lock_folder, read_file, replace_file, unlock_folder

# Points of a score of 100 that any number of votes can move it by, and the votes that move it by half of them: as if so
# many had been given before, half of them good. So one vote is worth half a point, and nobody's alone decide.
MOST_POINTS, VOTES_FOR_HALF = 10.0, 20.0
HALF_LIFE = 90 * 86_400.0  # seconds: models are replaced under the same name
MAX_MODELS, MAX_GIVEN, MAX_NOTE = 2000, 1000, 500  # entries, votes that can still be changed, characters
MOST_VOTES = 1e6

log = logging.getLogger("turnout")


class Votes(msgspec.Struct, frozen=True):
    """Good and bad answers of a model at a kind of work, older ones counting less; ``at``: seconds since the epoch."""

    good: float = 0.0
    bad: float = 0.0
    at: float = 0.0


class Given(msgspec.Struct, frozen=True):
    """One vote, kept so that whoever gave it can change it. ``note``: in their own words, "" for none."""

    good: bool
    model: str
    category: str
    who: str
    at: float
    note: str = ""


class _Kept(msgspec.Struct):
    """The file: votes by model and category, and the newest of them by request id, the newest last."""

    votes: dict[str, dict[str, Votes]] = {}
    given: dict[str, Given] = {}


def feedback_path(data_dir: Path) -> Path:
    """Where it is kept."""
    return data_dir / "feedback.json"


def feedback_change(votes: Votes) -> float:
    """By how many points votes move a score of 0 to 100: at most MOST_POINTS either way, and slowly."""
    good, bad = max(0.0, votes.good), max(0.0, votes.bad)
    return MOST_POINTS * (good - bad) / (good + bad + VOTES_FOR_HALF)


def feedback_words(votes: Votes) -> str:
    """Where the change comes from, for people."""
    return f"feedback {feedback_change(votes):+.1f} ({votes.good:.3g} good, {votes.bad:.3g} bad)"


class Feedback:
    """What people said.

    Args:
        path: the file, or None to keep nothing beyond the process.
        clock: seconds since the epoch.
    """

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._seen = _identity(path)
        self._kept = _read(path)

    def of(self, model: str) -> dict[str, Votes]:
        """The votes on a model by category, as they count now; only those with any."""
        found = self._kept.votes.get(model, {})
        return {category: _faded(votes, self._clock()) for category, votes in found.items()}

    @property
    def given(self) -> Mapping[str, Given]:
        """The newest votes by request id, the newest last."""
        return dict(self._kept.given)

    def refresh(self) -> bool:
        """Read what others have written. Blocking. Whether there was anything new."""
        now = _identity(self._path)
        if now == self._seen:
            return False
        self._seen, self._kept = now, _read(self._path)
        return True

    def vote(self, request_id: str, model: str, category: str, who: str, *, good: bool, note: str = "") -> Votes:
        """Count a vote, or change the one that was given on this request. Blocking.

        Returns:
            The votes on the model at this kind of work.

        Raises:
            StorageError: it cannot be kept.
        """
        now = self._clock()
        given = Given(good, model, category, who, now, note[:MAX_NOTE])
        if self._path is None:
            return _count(self._kept, request_id, given)
        try:
            folder = lock_folder(self._path.parent)
            try:
                kept = _read(self._path, aside=True)
                votes = _count(kept, request_id, given)
                replace_file(self._path, msgspec.json.encode(kept))
                self._kept, self._seen = kept, _identity(self._path)
            finally:
                unlock_folder(folder)
        except (OSError, UnicodeEncodeError) as error:
            said = getattr(error, "strerror", None) or error
            raise StorageError(f"the feedback cannot be kept in {self._path}: {said}") from error
        return votes


def _count(kept: _Kept, request_id: str, given: Given) -> Votes:
    now, of_model = given.at, kept.votes.pop(given.model, {})
    votes = _faded(of_model.get(given.category, Votes()), now)
    counted = {True: votes.good, False: votes.bad}
    last = kept.given.pop(request_id, None)
    if last is not None:
        counted[last.good] = max(0.0, counted[last.good] - _weight(now - last.at))
    counted[given.good] = min(MOST_VOTES, counted[given.good] + 1.0)
    votes = Votes(counted[True], counted[False], now)
    kept.votes[given.model] = {**of_model, given.category: votes}
    kept.given[request_id] = given
    for entries, most in ((kept.votes, MAX_MODELS), (kept.given, MAX_GIVEN)):
        while len(entries) > most:
            del entries[next(iter(entries))]
    return votes


def _faded(votes: Votes, now: float) -> Votes:
    share = _weight(now - votes.at)
    return Votes(votes.good * share, votes.bad * share, votes.at)


def _weight(seconds: float) -> float:
    """What a vote of so long ago counts; one from the future, by a clock that was set back, counts in full."""
    return math.exp2(-max(0.0, seconds) / HALF_LIFE)


def _identity(path: Path | None) -> tuple[int, int, int] | None:
    """What changes when the file does; None where there is none."""
    with suppress(OSError):
        if path is not None:
            status = path.stat()
            return status.st_ino, status.st_mtime_ns, status.st_size
    return None


def _read(path: Path | None, *, aside: bool = False) -> _Kept:
    """The file; nothing when it is not there or damaged.

    Args:
        aside: keep a damaged one under another name, since it is about to be replaced.
    """
    if path is None:
        return _Kept()
    try:
        kept = msgspec.json.decode(read_file(path), type=_Kept)
    except FileNotFoundError:
        return _Kept()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        said = " ".join(str(error).split())
        if aside:
            path.replace(path.with_suffix(".damaged"))
        else:
            log.warning("the feedback in %s cannot be read, and counts for nothing: %s", path, said)
        return _Kept()
    sane = {model: {c: votes for c, votes in found.items() if _sane(votes)} for model, found in kept.votes.items()}
    if odd := sum(map(len, kept.votes.values())) - sum(map(len, sane.values())):
        log.warning("%d counts of feedback in %s cannot be, and count for nothing", odd, path)
    return _Kept(sane, kept.given)


def _sane(votes: Votes) -> bool:
    return 0.0 <= votes.good <= MOST_VOTES and 0.0 <= votes.bad <= MOST_VOTES and math.isfinite(votes.at)
