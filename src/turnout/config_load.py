"""Reading a configuration: find the file, expand variables, refuse what is wrong with file, line, key and a remedy."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, get_args, get_origin

import msgspec
from msgspec import inspect

from turnout.config import (
    LoadedConfig,
    RouterConfig,
    Section,
    user_config_dir,
)
from turnout.config_agents import AGENTS, agent_defaults
from turnout.config_secrets import NoSecretError, from_file, from_keyring
from turnout.config_values import TASK_DEFAULTS, KeyPath, dotted, doubtful, impossible, shown
from turnout.errors import ConfigError
from turnout.hidden import SHORTEST, hide
from turnout.types import TaskCategory

if TYPE_CHECKING:
    import yaml

MAX_FILE_BYTES = 1_000_000
MAX_DEPTH, MAX_VALUES = 12, 20_000

_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_SCALARS = ("str", "int", "float", "bool", "null", "timestamp")
_DURATION = re.compile(r"(\d{1,9})\s*(ms|s|m|min|h)")
_NAMED = {"services": "service", "task_routing": "category", "agents": "agent"}
_MS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000}


class _Unset(Exception):
    """A variable without a value."""


class _Source:
    """Where a configuration comes from: what an error needs to say the line, and what is noted on the way.

    Attributes:
        lines: the line of every key path; empty for a dict.
        names: the valid names in the sections whose keys are names.
        unset: the key paths that are missing because of a variable, and which.
        expanded: the key paths whose text came from a variable: ``"30000"`` may stand for a number there.
    """

    def __init__(self, file: Path | None, kinds: Mapping[str, str]) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self.names: dict[str, tuple[str, ...]] = {
            "services": tuple(kinds),
            "task_routing": tuple(TaskCategory),
            "agents": AGENTS,
        }
        self.expanded: set[KeyPath] = set()
        self.unset: dict[KeyPath, str] = {}
        self.warnings: list[str] = []

    def fail(self, message: str, path: KeyPath, hint: str = "") -> NoReturn:
        near = path
        while near and near not in self.lines:
            near = near[:-1]
        file = str(self.file) if self.file else ""
        raise ConfigError(message, file=file, line=self.lines.get(near, 0), key=dotted(path), hint=hint)

    def warn(self, path: KeyPath, message: str) -> None:
        self.warnings.append(f"{dotted(path)}: {message}")

    def place(self, path: str) -> Path:
        """A path of the configuration, relative to its file (of a dict: to the current directory)."""
        return (self.file.parent if self.file else Path.cwd()) / Path(path).expanduser()


def find_config(
    explicit: str | Path | None = None, env: Mapping[str, str] = os.environ, cwd: Path | None = None
) -> Path | None:
    """The file to read: given, ``TURNOUT_CONFIG``, ``turnout.yaml`` or ``local-llm-router.yaml`` here, or the user's.

    Raises:
        ConfigError: a file that was named does not exist.
    """
    named = explicit if explicit is not None else env.get("TURNOUT_CONFIG") or None
    if named == "":
        raise ConfigError("the name of the configuration file is empty", hint="name a file, or leave it out")
    if named is not None:
        return _named(str(named))
    here = cwd or Path.cwd()
    places = [here / "turnout.yaml", here / "local-llm-router.yaml"]
    # Who has no home directory (a container's user) has no file there either.
    with suppress(ConfigError):
        places.append(user_config_dir(env) / "turnout.yaml")
    # A dangling link or a directory of that name is taken too: reading it says so, passing it over would not.
    return next((path for path in places if os.path.lexists(path)), None)


def _named(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "`turnout config init` writes an example"
        raise ConfigError("there is no such file", file=name, hint=hint) from error
    except OSError as error:
        raise ConfigError(f"the file cannot be read: {error.strerror}", file=name) from error
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"not a path: {error}", file=shown(name)) from error
    return path


def load_config(
    path: str | Path | None = None, *, kinds: Mapping[str, str], env: Mapping[str, str] = os.environ
) -> LoadedConfig:
    """Find, read and check a file; the defaults when there is none.

    Args:
        path: the file, or None to look in the usual places.
        kinds: the kinds of service that exist, with their default addresses.
        env: variables for ``${NAME}``.

    Raises:
        ConfigError: one line that says what is wrong, where, and what is valid.
    """
    found = find_config(path, env)
    if found is None:
        return LoadedConfig(RouterConfig())
    source = _Source(found, kinds)
    node = _compose(found)
    data = {} if node is None else _plain(node, (), source)
    loaded = _checked({} if data is None else data, source, kinds, env)
    commands = loaded.config.code.language_servers
    if commands and path is None and not env.get("TURNOUT_CONFIG") and not _is_the_users(found, env):
        # It may have come with somebody's repository; asking a question there must not run what it names.
        hint = f"put them into {_users_file(env)}, or name this file: --config {found}"
        source.fail("a file found in the current directory names commands", ("code", "language_servers"), hint)
    return loaded


def _users_file(env: Mapping[str, str]) -> Path:
    try:
        return user_config_dir(env) / "turnout.yaml"
    except ConfigError:  # no home directory
        return Path("turnout.yaml")


def _is_the_users(file: Path, env: Mapping[str, str]) -> bool:
    return file.is_absolute() and file == _users_file(env)


def load_config_from_dict(
    data: Mapping[str, object], *, kinds: Mapping[str, str], env: Mapping[str, str] = os.environ
) -> LoadedConfig:
    """The same from a dict with the keys of the file.

    Raises:
        ConfigError: as ``load_config``, with the key path.
    """
    return _checked(data, _Source(None, kinds), kinds, env)


def read_bounded(path: Path) -> bytes:
    """A file that the configuration names.

    Raises:
        ConfigError: it cannot be read, or has more than ``MAX_FILE_BYTES``.
    """
    try:
        # Never more than the limit, whatever size the file claims: it may be a pipe or a device.
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the file cannot be read: {error.strerror}", file=str(path)) from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"the file is larger than {MAX_FILE_BYTES:,} bytes", file=str(path))
    return content


def _read(path: Path) -> str:
    content = read_bounded(path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError("the file is not UTF-8 text", file=str(path), line=line) from error


def _compose(path: Path) -> yaml.Node | None:
    import yaml

    text = _read(path)
    try:
        return yaml.SafeLoader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        rows = text.splitlines()
        tab = bool(rows) and "\t" in rows[min(line, len(rows)) - 1]
        # The name of an alias may be an unquoted secret that begins with `*`.
        said = re.sub(r"alias '.*'", "alias", ", ".join(part for part in (error.context, error.problem) if part))
        hint = "indent with spaces, not tabs" if tab else "text with special characters goes in quotes"
        raise ConfigError(f"not YAML: {said}", file=str(path), line=line, hint=hint) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError("not text: a control character", file=str(path), line=line) from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise ConfigError("not YAML, or nested too deeply", file=str(path)) from None


def _plain(node: yaml.Node, path: KeyPath, source: _Source) -> object:
    """A node as dicts, lists and scalars, the line of each kept; bounded, because aliases can multiply."""
    import yaml

    source.lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > MAX_DEPTH or len(source.lines) > MAX_VALUES:
        source.fail("nested too deeply, or endless through aliases", path[:3])
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        return _mapping(node, path, source)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        return [_plain(item, (*path, str(n)), source) for n, item in enumerate(node.value)]
    if not isinstance(node, yaml.ScalarNode) or node.tag.removeprefix(_TAG) not in _SCALARS:
        source.fail("not a valid value", path, "put text in quotes, and write no tags (!)")
    try:
        return yaml.SafeLoader("").construct_object(node)
    # What PyYAML raises for `!!int ""`, `!!bool x`, `!!timestamp x` and numbers out of its range.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError):
        source.fail("not a valid value", path, "put text in quotes")


def _mapping(node: yaml.MappingNode, path: KeyPath, source: _Source) -> dict[str, object]:
    import yaml

    found: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
        here = (*path, key)
        if key in found:
            source.lines[here] = line
            source.fail("the key is given twice", here, "remove one of them")
        source.lines[here] = line
        if not key or key == "<<":
            said = "merged keys are not read" if key else "a key is not a plain word"
            source.fail(said, here, "write the keys out")
        found[key] = _plain(value_node, here, source)
    return found


def _checked(data: object, source: _Source, kinds: Mapping[str, str], env: Mapping[str, str]) -> LoadedConfig:
    if not isinstance(data, Mapping):
        source.fail("the configuration is not a mapping of keys", (), "for example `environment: air-gapped`")
    given = _expanded_mapping(data, (), source, env)
    _as_meant(given, source)
    values = _section(given, RouterConfig, (), source)
    routing = values.get("task_routing")
    if isinstance(routing, dict):
        values["task_routing"] = {key: TASK_DEFAULTS.get(TaskCategory(key), {}) | own for key, own in routing.items()}
    agents = values.get("agents")
    if isinstance(agents, dict):
        values["agents"] = {name: agent_defaults(name) | own for name, own in agents.items()}
    config = _with_files(msgspec.convert(values, RouterConfig), source)
    for path, message, hint in impossible(config, kinds):
        source.fail(message, path, hint)
    for path, warning in doubtful(config, kinds):
        source.warn(path, warning)
    lines = {dotted(path): line for path, line in source.lines.items()}
    return LoadedConfig(config, source.file, tuple(source.warnings), lines)


def _expanded_mapping(
    data: Mapping[object, object], path: KeyPath, source: _Source, env: Mapping[str, str]
) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in data.items():
        here = (*path, str(key))
        try:
            found[str(key)] = _expanded(value, here, source, env)
        except _Unset as unset:
            source.unset[here] = str(unset)
            source.warn(here, f"{unset} is not set or empty, so the key counts as not given")
    return found


def _expanded(value: object, path: KeyPath, source: _Source, env: Mapping[str, str]) -> object:
    if len(path) > MAX_DEPTH:
        source.fail("nested too deeply", path[:3])
    if isinstance(value, Mapping):
        return _expanded_mapping(value, path, source, env)
    if isinstance(value, list | tuple):
        return _expanded_list(value, path, source, env)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return value
    if "${" in _VARIABLE.sub("", value):
        source.fail("a variable is malformed", path, "${NAME} or ${NAME:-default}")
    text = _VARIABLE.sub(lambda match: _variable(match, env), value)
    if text != value:
        source.expanded.add(path)
    if _CONTROL.search(text):
        source.fail("the text has a line break or a control character", path, "one line of text")
    return text


def _expanded_list(items: Sequence[object], path: KeyPath, source: _Source, env: Mapping[str, str]) -> list[object]:
    """An item without a value goes alone: were the whole list dropped, its default might allow more than was meant."""
    found: list[object] = []
    for number, item in enumerate(items):
        here = (*path, str(number))
        try:
            found.append(_expanded(item, here, source, env))
        except _Unset as unset:
            source.warn(here, f"{unset} is not set or empty, so the entry is left out")
    return found


def _variable(match: re.Match[str], env: Mapping[str, str]) -> str:
    # As in a shell, an empty variable takes the default too.
    value = env.get(match[1]) or match[2]
    if value is None:
        raise _Unset(f"${{{match[1]}}}")
    return value


def _as_meant(data: dict[str, object], source: _Source) -> None:
    """What YAML reads otherwise than people mean: ``version: 1.0`` is a number, ``priority: off`` is false."""
    version = data.get("version", "1.0")
    if isinstance(version, bool) or version not in ("1", "1.0", 1):
        source.fail(f"unknown version {shown(version)}", ("version",), 'the version is "1.0"')
    data["version"] = "1.0"
    serena = data.get("serena")
    if isinstance(serena, dict) and isinstance(serena.get("priority"), bool):
        if serena["priority"]:
            source.fail("`on` is not a value", ("serena", "priority"), "allowed: always_first, on_demand, off")
        serena["priority"] = "off"


def _section(data: object, section: type[Section], path: KeyPath, source: _Source) -> dict[str, object]:
    """The values of one section, each checked against the type and range that stand beside its key."""
    fields = {field.name: field for field in msgspec.structs.fields(section)}
    values: dict[str, object] = {}
    for key, value in _keys(data, path, source).items():
        if key not in fields:
            source.fail(f"unknown key {shown(key)}", (*path, key), _nearest(key, fields))
        values[key] = _value(value, fields[key].type, (*path, key), source)
    for field in fields.values():
        if field.required and field.name not in values:
            unset = source.unset.get((*path, field.name))
            hint = f"{unset} is not set or empty" if unset else f"add `{field.name}:`"
            source.fail(f"the key {field.name!r} is missing", path, hint)
    return values


def _keys(data: object, path: KeyPath, source: _Source) -> dict[str, object]:
    # A section whose lines are all commented out is null in YAML: it means the defaults.
    if data is not None and not isinstance(data, dict):
        source.fail(f"expected keys and values, got {shown(data)}", path, "for example `key: value`, indented below")
    return data or {}


def _value(value: object, hint: object, path: KeyPath, source: _Source) -> object:
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(kind, type) and issubclass(kind, Section):
        return _section(value, kind, path, source)
    inner = next((arg for arg in get_args(kind) if isinstance(arg, type) and issubclass(arg, Section)), None)
    if inner is None:
        return _leaf(value, hint, path, source)
    if get_origin(kind) is dict:
        known = source.names[path[-1]]
        for name in (found := _keys(value, path, source)):
            if name not in known:
                source.fail(f"unknown {_NAMED[path[-1]]} {shown(name)}", (*path, name), _nearest(name, known))
        return {name: _section(item, inner, (*path, name), source) for name, item in found.items()}
    if value is not None and not isinstance(value, list):
        source.fail(f"expected a list, got {shown(value)}", path, "each entry begins with `- `")
    return [_section(item, inner, (*path, str(n)), source) for n, item in enumerate(value or ())]


def _leaf(value: object, hint: object, path: KeyPath, source: _Source) -> object:
    try:
        return msgspec.convert(value, hint, strict=path not in source.expanded)
    except msgspec.ValidationError as error:
        _refuse(str(error), value, inspect.type_info(hint), path, source)


def _refuse(error: str, value: object, info: inspect.Type, path: KeyPath, source: _Source) -> NoReturn:
    wrong = re.search(r" - at `\$\[(\d+)\]`\Z", error)
    if wrong and isinstance(value, list):
        path, value, info = (*path, wrong[1]), value[int(wrong[1])], _item(info)
    got = "" if path[-1] == "key" else f", got {shown(value)}"
    source.fail(f"expected {expected(info)}{got}", path, _remedy(value, info, path))


def _bare(info: inspect.Type) -> inspect.Type:
    """Without the metadata, and without the None that means "not given"."""
    if isinstance(info, inspect.Metadata):
        return _bare(info.type)
    if isinstance(info, inspect.UnionType):
        return _bare(next(part for part in info.types if not isinstance(part, inspect.NoneType)))
    return info


def _item(info: inspect.Type) -> inspect.Type:
    bare = _bare(info)
    return bare.item_type if isinstance(bare, inspect.VarTupleType) else bare


def unit_of(info: inspect.Type) -> str:
    """The unit of a key, or ""."""
    if isinstance(info, inspect.Metadata):
        return str((info.extra or {}).get("unit", "")) or unit_of(info.type)
    if isinstance(info, inspect.UnionType):
        return next((unit for part in info.types if (unit := unit_of(part))), "")
    return ""


def expected(info: inspect.Type) -> str:
    """The type and range of a key for people: ``a whole number, 1 to 65,535``."""
    bare = _bare(info)
    if isinstance(bare, inspect.IntType):
        return f"a whole number, {bare.ge:,} to {bare.le:,}"
    if isinstance(bare, inspect.FloatType):
        return f"a number above {bare.gt:g}, at most {bare.le:,.0f}"
    if isinstance(bare, inspect.LiteralType):
        return "one of " + ", ".join(str(value) for value in bare.values)
    if isinstance(bare, inspect.VarTupleType):
        return "a list of text"
    if isinstance(bare, inspect.DictType):
        return "keys, each with a list of text"
    if isinstance(bare, inspect.BoolType):
        return "true or false"
    return "text"


def _remedy(value: object, info: inspect.Type, path: KeyPath) -> str:
    bare, unit = _bare(info), unit_of(info)
    if value is None:
        return "give a value, or remove the key"
    if isinstance(bare, inspect.LiteralType) and isinstance(value, str):
        return _closest(value, [str(allowed) for allowed in bare.values])
    if isinstance(bare, inspect.StrType) and isinstance(value, bool | int | float):
        return "put it in quotes"
    if isinstance(bare, inspect.VarTupleType) and isinstance(value, str):
        return f"write {path[-1]}: [...]"
    if unit == "ms" and isinstance(value, str) and (duration := _DURATION.fullmatch(value.strip())):
        return f"in milliseconds: {int(duration[1]) * _MS[duration[2]]}"
    return f"unit: {unit}" if unit else ""


def _closest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name[:64].lower(), list(known), 1, 0.5)
    return f"did you mean {found[0]}?" if found else ""


def _nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest of ``known``, else all of them."""
    names = list(known)
    return _closest(name, names) or f"there are: {', '.join(names)}"


def _with_files(config: RouterConfig, source: _Source) -> RouterConfig:
    """Keys read from their files, and the capability table's path made absolute."""
    replace = msgspec.structs.replace
    services = {
        kind: replace(section, key=_secret(section.key, ("services", kind, "key"), source))
        for kind, section in config.services.items()
    }
    custom = tuple(
        replace(section, key=_secret(section.key, ("custom_endpoints", str(n), "key"), source))
        for n, section in enumerate(config.custom_endpoints)
    )
    routing = config.routing
    _require_path(routing.models_file, ("routing", "models_file"), source)
    _require_path(config.serena.workspace, ("serena", "workspace"), source)
    for place in ("audit_log_path", "audit_head_path", "audit_syslog", "ca_file", "models_lock"):
        _require_path(getattr(config.security, place), ("security", place), source)
    for place in ("cert", "key", "client_ca"):
        _require_path(getattr(config.gateway.tls, place), ("gateway", "tls", place), source)
    for number, folder in enumerate(config.security.model_paths):
        _require_path(folder, ("security", "model_paths", str(number)), source)
    if routing.models_file is not None:
        routing = replace(routing, models_file=str(source.place(routing.models_file)))
    discovery = config.discovery
    for name in ("inventory", "inventory_key"):
        given = getattr(discovery, name)
        _require_path(given, ("discovery", name), source)
        if given is not None:
            discovery = replace(discovery, **{name: str(source.place(given))})
    return replace(config, services=services, custom_endpoints=custom, routing=routing, discovery=discovery)


def _require_path(name: str | None, path: KeyPath, source: _Source) -> None:
    if name is None:
        return
    try:
        Path(name).expanduser()
    except RuntimeError:
        source.fail(f"{shown(name)} names a user who has no home directory", path, "write the path out")
    if not name.strip():
        source.fail("the path is empty", path, "give a path, or remove the key")


def _secret(key: str | None, path: KeyPath, source: _Source) -> str | None:
    if key is None:
        return None
    try:
        if key.startswith("file:"):
            key = _from_file(key.removeprefix("file:"), path, source)
        elif key.startswith("keyring:"):
            key = from_keyring(key.removeprefix("keyring:"))
        elif len(key) >= SHORTEST and source.file is not None and path not in source.expanded:
            others = "${NAME}, file:/path and keyring:SERVICE/USER keep it out of copies"
            source.warn(path, f"the secret stands in the file itself: {others}")
    except NoSecretError as error:
        source.fail(str(error), path, error.hint)
    # A header carries visible ASCII only; anything else would fail at the first request.
    if not (key and key.isascii() and key.isprintable()):
        source.fail("the key is empty or has characters that no header carries", path, "printable ASCII")
    hide(key)
    return key


def _from_file(name: str, path: KeyPath, source: _Source) -> str:
    _require_path(name, path, source)
    secret, for_everybody = from_file(file := source.place(name))
    if for_everybody:
        source.warn(path, f"everybody may read the secret in {file}: chmod 600 {file}")
    return secret


def example_yaml(kinds: Mapping[str, str]) -> str:
    """A commented configuration to start from; it loads without a warning, also with its commented keys taken in."""
    services = "\n".join(
        f'#   {kind}: {{enabled: true, endpoint: "{url}", priority: 1}}' for kind, url in kinds.items()
    )
    return f"""\
# Turnout's configuration. Every key is described in docs/configuration.md; each may be left out.
# What is commented out here shows the form; take a line in by removing the first "# ".

version: "1.0"

# An air-gapped environment refuses allow_external; the others are internal and development.
environment: air-gapped

# Servers at their default addresses on this machine are found without configuration.
# A kind that is not wanted: enabled: false, then it is never probed.
# services:
{services}

# Any other server: name, address, and how it speaks. A key comes from the environment or from a file.
# custom_endpoints:
#   - name: gpu-box
#     endpoint: http://192.168.1.100:9000
#     priority: 0
#     api_style: openai
#     key: "${{GPU_BOX_KEY:-none}}"
#     window: 32768

# Which models for which work, first the best; without it, models are ranked by score.
# task_routing:
#   coding:
#     primary_models: [qwen2.5-coder-32b]
#     fallback_models: [phi-4]
#     min_context: 8192

# Code context is gathered before any model is asked: always_first, on_demand or off.
serena:
  priority: always_first

# A conversation is compacted when it exceeds this share of the model's window.
context:
  compaction_threshold: 0.8
  compaction_target: 0.5

# Conversations (turnout chat) are kept as plain text for so many days; store: false keeps none (docs/sessions.md).
sessions:
  store: true
  retention_days: 90

# What single coding agents get (docs/agents.md).
# agents:
#   aider: {{default_model_preference: qwen2.5-coder-32b}}

# Loopback may always be dialled. A server elsewhere needs its name, address or network here.
security:
  allow_external: false
  allowed_hosts: [localhost, 127.0.0.1, host.docker.internal]
  allowed_cidrs: [192.168.0.0/16, 10.0.0.0/8, 172.16.0.0/12]
  audit_enabled: true
"""
