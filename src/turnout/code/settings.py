"""What a host is told by whoever starts it."""

from __future__ import annotations

import msgspec


class HostSettings(msgspec.Struct, frozen=True):
    """For the life of a host: who starts it decides, and the others take it as it is. Times in seconds.

    Attributes:
        idle_seconds: it ends when nobody has asked anything for so long.
        look_seconds: how often it looks whether it is still wanted.
        most_hosts: of this user at the same time; the one that was idle longest ends.
        language_servers: the command for a language that the configuration gives.
    """

    idle_seconds: float = 900.0
    look_seconds: float = 5.0
    most_hosts: int = 3
    language_servers: dict[str, tuple[str, ...]] = {}
