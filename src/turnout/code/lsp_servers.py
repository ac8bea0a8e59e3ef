"""Which language server is asked about which files, and how it is told to write nothing and fetch nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from turnout.code.intelligence import Ability


@dataclass(frozen=True, slots=True)
class Server:
    """How a language server is started.

    Attributes:
        name: what to call it.
        command: program and arguments.
        settings: what it gets when it asks for its configuration, by section.
        options: its initialization options.
        env: variables beside the usual ones.
        lacks: what it claims and does not do.
        ready: what it logs once it has looked which files there are; before, it answers that there is nothing.
    """

    name: str
    command: tuple[str, ...]
    settings: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    lacks: frozenset[Ability] = frozenset()
    ready: str = ""


@dataclass(frozen=True, slots=True)
class Language:
    """A language: its files by suffix with the protocol's identifier of each, the files that configure it, and the
    servers that may be used, the first that is found before the others."""

    suffixes: Mapping[str, str]
    settled_by: frozenset[str] = frozenset()
    servers: tuple[Server, ...] = ()


# basedpyright's own default warns of every missing annotation; the workspace's configuration file overrules this.
_PYRIGHT = {"analysis": {"typeCheckingMode": "standard", "diagnosticMode": "openFilesOnly"}}
_C = {".c": "c", ".h": "cpp", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp", ".hh": "cpp", ".hpp": "cpp"}

LANGUAGES: Mapping[str, Language] = {
    "python": Language(
        {".py": "python", ".pyi": "python"},
        frozenset({"pyproject.toml", "ty.toml", "pyrightconfig.json", "setup.cfg"}),
        (
            Server("ty", ("ty", "server")),
            Server(
                "basedpyright",
                ("basedpyright-langserver", "--stdio"),
                settings={"basedpyright": _PYRIGHT, "python": _PYRIGHT},
                ready="source file",
            ),
            Server(
                "pyright",
                ("pyright-langserver", "--stdio"),
                settings={"python": _PYRIGHT},
                # Its Python wrapper looks for a newer version otherwise.
                env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
                ready="source file",
            ),
            # It reports syntax errors alone, and finds symbols only in files: nothing found would mean nothing.
            Server(
                "jedi",
                ("jedi-language-server",),
                lacks=frozenset({Ability.DIAGNOSTICS, Ability.WORKSPACE_SYMBOLS}),
            ),
        ),
    ),
    "typescript": Language(
        {
            ".ts": "typescript",
            ".tsx": "typescriptreact",
            ".mts": "typescript",
            ".cts": "typescript",
            ".js": "javascript",
            ".jsx": "javascriptreact",
            ".mjs": "javascript",
            ".cjs": "javascript",
        },
        frozenset({"package.json", "tsconfig.json", "jsconfig.json"}),
        (
            Server(
                "typescript-language-server",
                ("typescript-language-server", "--stdio"),
                # Otherwise it fetches types of packages from the registry; and its second process, which knows one file
                # at a time, answers until the first has read the project.
                options={"disableAutomaticTypingAcquisition": True, "tsserver": {"useSyntaxServer": "never"}},
            ),
        ),
    ),
    "go": Language(
        {".go": "go"},
        frozenset({"go.mod", "go.work"}),
        (Server("gopls", ("gopls",), env={"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}),),
    ),
    "rust": Language(
        {".rs": "rust"},
        frozenset({"Cargo.toml"}),
        (
            Server(
                "rust-analyzer",
                ("rust-analyzer",),
                # Build scripts and macros are programs of the workspace; they are not run.
                options={
                    "cargo": {"buildScripts": {"enable": False}, "targetDir": True},
                    "procMacro": {"enable": False},
                    "checkOnSave": False,
                },
                env={"CARGO_NET_OFFLINE": "true"},
            ),
        ),
    ),
    "cpp": Language(
        _C,
        frozenset({"compile_commands.json", "compile_flags.txt", ".clangd"}),
        # Its background index is a folder in the workspace.
        (Server("clangd", ("clangd", "--background-index=false")),),
    ),
    # Only with a command in `code.language_servers`.
    "bash": Language({".sh": "shellscript", ".bash": "shellscript"}),
    "csharp": Language({".cs": "csharp"}),
    "elixir": Language({".ex": "elixir", ".exs": "elixir"}),
    "haskell": Language({".hs": "haskell"}),
    "java": Language({".java": "java"}),
    "kotlin": Language({".kt": "kotlin", ".kts": "kotlin"}),
    "lua": Language({".lua": "lua"}),
    "php": Language({".php": "php"}),
    "ruby": Language({".rb": "ruby"}),
    "scala": Language({".scala": "scala"}),
    "swift": Language({".swift": "swift"}),
    "zig": Language({".zig": "zig"}),
}


def find_servers(
    configured: Mapping[str, Sequence[str]], places: Sequence[Path] = (), env: Mapping[str, str] = os.environ
) -> dict[str, Server]:
    """The server of each language for which there is one.

    Args:
        configured: commands by language (``code.language_servers``); an empty one switches a language off.
        places: directories that are looked into before the PATH, such as the code environment's.
        env: where PATH is taken from.
    """
    path = os.pathsep.join((*map(str, places), env.get("PATH", os.defpath)))
    found: dict[str, Server] = {}
    for name, language in LANGUAGES.items():
        candidates = language.servers
        if name in configured:
            candidates = (_known(tuple(configured[name]), language),) if configured[name] else ()
        started = (_with_program(server, path, env) for server in candidates)
        server = next((server for server in started if server is not None), None)
        if server is not None:
            found[name] = server
    return found


def _known(command: tuple[str, ...], language: Language) -> Server:
    """A configured command, with the settings of the server it is."""
    name = Path(command[0]).name
    known = next((server for server in language.servers if server.command[0] == name), Server(name, command))
    return replace(known, command=command)


def _with_program(server: Server, path: str, env: Mapping[str, str]) -> Server | None:
    program = shutil.which(server.command[0], path=path)
    # A relative one would be another program in every folder, perhaps one that somebody put into the workspace.
    if program is None or not Path(program).is_absolute() or _stands_for_nothing(Path(program), env):
        return None
    return replace(server, command=(program, *server.command[1:]))


def _stands_for_nothing(program: Path, env: Mapping[str, str]) -> bool:
    """rustup puts a link to itself in the place of each component, also of those that no toolchain has."""
    if program.resolve().stem != "rustup":
        return False
    home = Path(env.get("RUSTUP_HOME") or Path(env.get("HOME") or Path.home(), ".rustup"))
    return not any(home.glob(f"toolchains/*/bin/{program.name}"))
