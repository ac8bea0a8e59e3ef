"""Where our own files are kept on this platform."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from turnout.errors import ConfigError


def data_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Where our own files are kept: ``TURNOUT_DATA_DIR``, else the platform's place for them.

    Raises:
        ConfigError: there is no home directory.
    """
    if given := env.get("TURNOUT_DATA_DIR"):
        return Path(given)
    return _user_dir(env, "XDG_DATA_HOME", ".local/share", "LOCALAPPDATA")


def _user_dir(env: Mapping[str, str], xdg: str, fallback: str, windows: str) -> Path:
    place = env.get(windows if sys.platform == "win32" else xdg, "")
    # The XDG specification has relative paths ignored.
    if Path(place).is_absolute():
        return Path(place) / "turnout"
    try:
        home = Path(env.get("HOME") or Path.home())
    except RuntimeError as error:
        hint = "set HOME, or TURNOUT_DATA_DIR and TURNOUT_CONFIG"
        raise ConfigError("this user has no home directory", hint=hint) from error
    if sys.platform == "win32":
        return home / "turnout"
    return home / ("Library/Application Support" if sys.platform == "darwin" else fallback) / "turnout"


def user_config_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The user's configuration directory.

    Raises:
        ConfigError: there is no home directory.
    """
    return _user_dir(env, "XDG_CONFIG_HOME", ".config", "APPDATA")


def signing_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Where the signing key is, and by default what it signs. Its own folder, since others lock the data directory.

    Raises:
        ConfigError: there is no home directory.
    """
    return data_dir(env) / "signing"
