"""How a Serena is started for a workspace: what is written for it beforehand, its command line and its environment.

Source of every key and flag: facts/serena.md, sections 1.1, 1.3, 2.1 and 2.4. All of it lies in the data directory, in
a home of the workspace's own; nothing is written into the workspace.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from turnout.code.install import SerenaProgram, environment_dir
from turnout.code.intelligence import Ability
from turnout.code.search import files_of
from turnout.files import replace_file

# The tools that are asked; whatever else Serena has (a shell, memories, an interpreter) cannot be reached.
TOOLS = (
    "find_declaration",
    "find_implementations",
    "find_referencing_symbols",
    "find_symbol",
    "get_diagnostics_for_file",
    "rename_symbol",
    "replace_symbol_body",
    "restart_language_server",
)
# Seconds after which Serena itself gives up on a question, and its only queue moves on.
TOOL_SECONDS = 30
MAX_LOOKED = 50_000


@dataclass(frozen=True, slots=True)
class Language:
    """Files of a language, and the servers that Serena starts for them: its key, the program, more settings.

    Attributes:
        suffixes: of its files, in lower case.
        servers: the first whose program is found is used.
        lacks: what cannot be asked about it.
    """

    suffixes: frozenset[str]
    servers: tuple[tuple[str, str], ...]
    settings: Mapping[str, object]
    lacks: Mapping[str, frozenset[Ability]]


LANGUAGES = {
    "python": Language(
        frozenset({".py", ".pyi"}),
        (
            ("python_ty", "ty"),
            ("python_basedpyright", "basedpyright-langserver"),
            ("python", "pyright-langserver"),
        ),
        {},
        {"python": frozenset({Ability.IMPLEMENTATIONS})},
    ),
    "cpp": Language(
        frozenset({".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp"}),
        (("cpp", "clangd"),),
        # Its index of other files would be a folder in the workspace; without it, it misses their references.
        {"ls_args": ["--background-index=false"]},
        {"cpp": frozenset({Ability.REFERENCES, Ability.CALLS, Ability.IMPLEMENTATIONS, Ability.RENAME})},
    ),
}


@dataclass(frozen=True, slots=True)
class Server:
    """A language server that Serena will start. ``key`` is Serena's name for it."""

    key: str
    program: Path
    language: Language

    @property
    def lacks(self) -> frozenset[Ability]:
        """What it cannot be asked."""
        return self.language.lacks.get(self.key, frozenset())


@dataclass(frozen=True, slots=True)
class Look:
    """What a quick look at a workspace showed.

    Attributes:
        servers: for its languages, the one with the most files first.
        size: bytes of the files in these languages; of a workspace with very many files, of those looked at.
        sample: one of these files, relative to the workspace, "" for none.
        whole: whether all files were looked at.
    """

    servers: tuple[Server, ...]
    size: int
    sample: str
    whole: bool


def find_server(language: Language, program: SerenaProgram, data_dir: Path) -> Server | None:
    """The first server of a language that is in our environment, beside Serena, or on the PATH."""
    places = (environment_dir(data_dir) / _BIN, program.path.parent, *_absolute_path())
    searched = os.pathsep.join(map(str, places))
    for key, name in language.servers:
        found = shutil.which(name, path=searched)
        if found is not None:
            return Server(key, Path(found).absolute(), language)
    return None


_BIN = "Scripts" if sys.platform == "win32" else "bin"


def _absolute_path() -> tuple[Path, ...]:
    """PATH without relative entries, which would name programs of the workspace."""
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return tuple(path for path in map(Path, entries) if path.is_absolute())


def look_at(workspace: Path, program: SerenaProgram, data_dir: Path) -> Look:
    """Which languages a workspace has by the suffixes of its files. Blocks: call it in a thread."""
    servers = {name: find_server(language, program, data_dir) for name, language in LANGUAGES.items()}
    by_suffix = {suffix: name for name, language in LANGUAGES.items() if servers[name] for suffix in language.suffixes}
    counts: dict[str, int] = {}
    samples: dict[str, str] = {}
    size, looked = 0, 0
    for path in files_of(workspace):
        looked += 1
        if looked > MAX_LOOKED:
            break
        name = by_suffix.get(path.suffix.lower(), "")
        if name:
            bytes_ = _size(path)
            size += bytes_
            counts[name] = counts.get(name, 0) + 1
            if bytes_ and name not in samples:
                samples[name] = path.relative_to(workspace).as_posix()
    order = sorted(counts, key=lambda name: (-counts[name], name))
    chosen = tuple(server for name in order if (server := servers[name]) is not None)
    sample = next((samples[name] for name in order if name in samples), "")
    return Look(chosen, size, sample, looked <= MAX_LOOKED)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def home_of(workspace: Path, data_dir: Path) -> Path:
    """Serena's own directory for a workspace."""
    digest = hashlib.sha256(str(workspace.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return data_dir.absolute() / "code" / "serena" / digest


def prepare(home: Path, workspace: Path, servers: tuple[Server, ...], version: str) -> None:
    """Write the configuration anew, whatever is there: Serena rewrites it, and nobody else may switch something on.

    JSON is YAML. The project's own settings count for nothing that runs a program: no project is trusted.

    Raises:
        OSError: it cannot be written.
    """
    # Serena keeps a log of each start, with the code that it was asked about.
    shutil.rmtree(home / "logs", ignore_errors=True)
    project, context = home / "project", home / "context.yml"
    config: dict[str, object] = {
        "language_backend": "LSP",
        "gui_log_window": False,
        "web_dashboard": False,
        "web_dashboard_open_on_launch": False,
        "log_level": 40,
        "trace_lsp_communication": False,
        "ls_specific_settings": {s.key: {"ls_path": str(s.program), **s.language.settings} for s in servers},
        "trusted_project_path_patterns": [],
        "project_serena_folder_location": str(project),
        "base_modes": [],
        "default_modes": [],
        "tool_timeout": TOOL_SECONDS,
        "default_max_tool_answer_chars": 20_000,
        "token_count_estimator": "CHAR_COUNT",
        "projects": [],
    }
    if not _is_first(version):
        config["agent_interface"] = "tools"
    _write(home / "serena_config.yml", config)
    _write(
        project / "project.yml",
        {
            "project_name": workspace.name or "workspace",
            "language_servers": [server.key for server in servers],
            "encoding": "utf-8",
            "ignored_paths": [".venv", "venv", "node_modules", ".tox", "__pycache__"],
        },
    )
    _write(
        context,
        {
            "name": "turnout",
            "description": "code intelligence for a router",
            "prompt": "",
            "single_project": True,
            "structured_tool_output": False,
            "fixed_tools": list(TOOLS),
        },
    )


def _write(path: Path, content: dict[str, object]) -> None:
    replace_file(path, json.dumps(content, indent=1).encode("utf-8", "surrogateescape"))


def command_of(program: SerenaProgram, home: Path, workspace: Path, version: str) -> list[str]:
    """The start line: standard streams alone, and every switch that opens a port or a window off."""
    command = [str(program.path), "start-mcp-server", "--project", str(workspace)]
    command += ["--context", str(home / "context.yml"), "--transport", "stdio", "--log-level", "ERROR"]
    command += ["--enable-web-dashboard", "false", "--open-web-dashboard", "false"]
    command += ["--enable-gui-log-window", "false", "--tool-timeout", str(TOOL_SECONDS)]
    # From version 2 on, the default is an interface that runs any Python it is sent.
    return command if _is_first(version) else [*command, "--agent-interface", "tools"]


def environment_of(home: Path, program: SerenaProgram, servers: tuple[Server, ...]) -> dict[str, str]:
    """What is set beside the few variables that every child of ours gets."""
    folders = dict.fromkeys((*(server.program.parent for server in servers), program.path.parent, *_absolute_path()))
    return {
        "SERENA_HOME": str(home),
        "SERENA_USAGE_REPORTING": "false",
        "PATH": os.pathsep.join(map(str, folders)),
        "XDG_CACHE_HOME": str(home / "cache"),
        # Every dialogue of a tool that would fetch something fails at once.
        "UV_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "npm_config_offline": "true",
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }


def _is_first(version: str) -> bool:
    return version.startswith(("0.", "1."))
