"""The secrets of this process, so that no error, log or answer tells one: a server may say in its error which key it
got.

One set for the whole process, since whoever words an error does not know whose key it quotes.
"""

from __future__ import annotations

MASK = "********"
SHORTEST = 8  # what is shorter is a stand-in such as "none", and a word that other sentences have too
_SECRETS: set[str] = set()


def hide(secret: str) -> None:
    """From here on it is in no error."""
    if len(secret) >= SHORTEST:
        _SECRETS.add(secret)


def without_secrets(text: str) -> str:
    """The text, each secret in it masked."""
    for secret in _SECRETS:
        if secret in text:
            text = text.replace(secret, MASK)
    return text
