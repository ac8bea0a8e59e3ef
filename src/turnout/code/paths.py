"""Which files of a workspace an edit may touch: plain text files that are not secret, ignored, linked or read-only."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath

from turnout.code.ignore import ignored
from turnout.code.search import MAX_FILE_BYTES, is_skipped
from turnout.errors import EditError

# Names that Windows reads as devices, with any suffix.
_DEVICE = re.compile(r"(?i)(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?")
# And as another name of what is there: GIT~1 is .git.
_SHORTENED = re.compile(r"[^.]{1,6}~\d{1,6}(?:\.[^.]{0,3})?")
_LONGEST, _DEEPEST = 240, 40


def checked(root: Path, text: str) -> str:
    """The path, relative to the workspace with ``/``, of a file that may be written to; it need not exist.

    Args:
        root: the workspace, resolved.
        text: the path as the answer has it.

    Raises:
        EditError: it may not; says why, without the path.
    """
    path = _plain(text)
    for part in path.parts:
        # Also as a disk reads it that does not tell upper from lower case: there ``diﬅ`` is ``dist``.
        if is_skipped(part) or is_skipped(part.lower()) or is_skipped(part.casefold()):
            raise EditError(
                f"{part!a} is what Turnout neither reads nor writes: a secret, a repository's own, or built"
            )
    require_writable(root, path)
    if rule := ignored(root, path):
        raise EditError(f"it is ignored: {rule}")
    return path.as_posix()


def require_unlinked(root: Path, path: PurePosixPath) -> None:
    """Refuse a path that leads over a link, or to what is no plain file. Raises EditError."""
    _looked_at(root, path)


def require_writable(root: Path, path: PurePosixPath) -> None:
    """The same, and a file that is too large or read-only. Raises EditError."""
    status = _looked_at(root, path)
    if status is None:
        return
    if status.st_size > MAX_FILE_BYTES:
        raise EditError(f"it has {status.st_size:,} bytes, the most is {MAX_FILE_BYTES:,}")
    if not status.st_mode & 0o222:
        raise EditError("it is read-only")


def _looked_at(root: Path, path: PurePosixPath) -> os.stat_result | None:
    """The plain file that is there, None for none."""
    here, status = root, None
    for number, part in enumerate(path.parts):
        here = here / part
        status = _plain_status(here, last=number == len(path.parts) - 1)
        if status is None:
            return None
    return status


def _plain(text: str) -> PurePosixPath:
    """A path that says where it leads. Judged by its letters alone, so that it means the same on every platform."""
    if not text or not text.isprintable() or len(text.encode("utf-8", "replace")) > 4 * _LONGEST:
        raise EditError("that is no path")
    if text.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:", text):
        raise EditError("it is not relative to the workspace")
    if "\\" in text:
        raise EditError("it has a backslash: paths are written with /")
    parts = [part for part in text.split("/") if part != "."]
    if ".." in parts:
        raise EditError("it leads out of the workspace or up in it")
    if not parts or len(parts) > _DEEPEST or not all(map(_is_name, parts)):
        raise EditError("that is no path of a file")
    return PurePosixPath(*parts)


def _is_name(part: str) -> bool:
    fits = bool(part) and len(part.encode("utf-8", "replace")) <= _LONGEST
    other = _DEVICE.fullmatch(part) or _SHORTENED.fullmatch(part)
    return fits and not part.endswith((" ", ".")) and ":" not in part and not other


def _plain_status(path: Path, *, last: bool) -> os.stat_result | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EditError(f"it cannot be looked at: {error.strerror}") from None
    if stat.S_ISLNK(status.st_mode):
        raise EditError(f"{path.name!a} is a link: edit what it leads to by its own path")
    if not last and not stat.S_ISDIR(status.st_mode):
        raise EditError(f"{path.name!a} is no folder")
    if last and not stat.S_ISREG(status.st_mode):
        raise EditError("it is no regular file")
    return status
