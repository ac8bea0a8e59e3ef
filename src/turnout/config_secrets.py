"""Secrets that stand elsewhere: in a file, or in the system's keyring through the package `keyring` (our extra)."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote

FORM = "key: keyring:SERVICE/USER, as `keyring set SERVICE USER` keeps it"


class NoSecretError(Exception):
    """There is none: what is wrong, and what to do."""

    def __init__(self, said: str, hint: str) -> None:
        super().__init__(said)
        self.hint = hint


def from_file(file: Path) -> tuple[str, bool]:
    """The secret in a file, and whether everybody may read it.

    Raises:
        NoSecretError: it cannot be read, or is no text.
    """
    try:
        with file.open("rb") as opened:
            for_everybody = os.name == "posix" and bool(os.fstat(opened.fileno()).st_mode & 0o007)
            return opened.read(65_536).decode("ascii").strip(), for_everybody
    except OSError as error:
        said = f"the key's file {file} cannot be read: {error.strerror}"
        raise NoSecretError(said, "key: file:/path/to/a/text/file") from error
    except UnicodeDecodeError as error:
        raise NoSecretError(f"the key's file {file} is not ASCII text", "one line with the key") from error


def from_keyring(name: str) -> str:
    """The secret that is kept under ``SERVICE/USER``; a service may hold slashes itself.

    Raises:
        NoSecretError: the name has another form, there is no keyring, it is locked, or has nothing under that name.
    """
    service, slash, user = name.rpartition("/")
    if not (slash and service.strip() and user.strip()):
        raise NoSecretError("the keyring's entry has no service or no user", FORM)
    try:
        import keyring
    except ImportError as error:
        raise NoSecretError(
            "there is no keyring: its package is not installed",
            "`pip install keyring` into the environment of Turnout, or use ${NAME} or file:/path",
        ) from error
    try:
        secret = keyring.get_password(service, user)
    # A backend is code of the system's or the user's choice (D-Bus, Keychain, a file), and raises what it likes.
    except Exception as error:
        raise NoSecretError(
            f"the keyring does not answer: {' '.join(str(error).split()) or type(error).__name__}",
            "unlock it, or use ${NAME} or file:/path; `keyring diagnose` shows which one it is",
        ) from error
    if secret is None:
        hint = f"run `keyring set {quote(service)} {quote(user)}`"
        raise NoSecretError(f"the keyring has nothing for {user} of {service}", hint)
    return secret
