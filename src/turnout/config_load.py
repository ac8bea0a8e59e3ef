"""Reading a configuration: find the file, expand variables, refuse what is wrong with file, line, key and a remedy."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from turnout.config import (
    TASK_DEFAULTS,
    CustomEndpoint,
    LoadedConfig,
    RouterConfig,
    Section,
    ServiceConfig,
    user_config_dir,
)
from turnout.errors import ConfigError
from turnout.types import TaskCategory

if TYPE_CHECKING:
    import yaml

MAX_FILE_BYTES = 1_000_000
LONGEST_MS = 24 * 3600 * 1000
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}")
_AT = re.compile(r" - at `\$(.*)`\Z")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Unset(Exception):
    """A variable without a value: the key counts as not given."""


class _Source:
    """Where a configuration came from, so that an error can say the line of a key."""

    def __init__(self, file: Path | None, lines: Mapping[tuple[str, ...], int]) -> None:
        self.file, self._lines = file, lines

    def fail(self, message: str, path: tuple[str, ...], hint: str = "") -> NoReturn:
        near = path
        while near and near not in self._lines:
            near = near[:-1]
        raise ConfigError(
            message,
            file=str(self.file) if self.file else "",
            line=self._lines.get(near, 0),
            key=".".join(path),
            hint=hint,
        )


def find_config(
    explicit: str | Path | None = None, env: Mapping[str, str] = os.environ, cwd: Path | None = None
) -> Path | None:
    """The file to read: given, ``TURNOUT_CONFIG``, ``turnout.yaml`` or ``local-llm-router.yaml`` here, or the user's.

    Raises:
        ConfigError: a file that was named does not exist.
    """
    named = explicit or env.get("TURNOUT_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.exists():
            raise ConfigError("there is no such file", file=str(path), hint="`turnout config init` writes an example")
        return path
    here = cwd or Path.cwd()
    places = (here / "turnout.yaml", here / "local-llm-router.yaml", user_config_dir(env) / "turnout.yaml")
    return next((path for path in places if path.is_file()), None)


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
    node = _compose(found)
    if node is None:
        return LoadedConfig(RouterConfig(), found)
    lines: dict[tuple[str, ...], int] = {}
    source = _Source(found, lines)
    data = _value(node, (), lines, source, 0)
    return _checked(data, source, kinds, env)


def load_config_from_dict(
    data: Mapping[str, object], *, kinds: Mapping[str, str], env: Mapping[str, str] = os.environ
) -> LoadedConfig:
    """The same from a dict.

    Raises:
        ConfigError: as ``load_config``, with the key path.
    """
    return _checked(dict(data), _Source(None, {}), kinds, env)


def _compose(path: Path) -> yaml.Node | None:
    import yaml

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"the file is larger than {MAX_FILE_BYTES:,} bytes", file=str(path))
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"the file cannot be read: {error.strerror}", file=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError("the file is not UTF-8 text", file=str(path)) from error
    try:
        loader = yaml.SafeLoader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        tab = "\t" in text
        raise ConfigError(
            f"not YAML: {error.problem}", file=str(path), line=line, hint="indent with spaces, not tabs" if tab else ""
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError("not YAML: characters that are not allowed", file=str(path)) from error


def _value(
    node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int], source: _Source, depth: int
) -> object:
    import yaml

    lines[path] = node.start_mark.line + 1
    if depth > 12 or len(lines) > 20_000:
        source.fail("nested too deeply, or endless through aliases", path)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            here = (*path, key)
            lines[here] = key_node.start_mark.line + 1
            if not key:
                source.fail("a key is not a plain word", here)
            if key in found:
                source.fail("the key is given twice", here)
            found[key] = _value(value_node, here, lines, source, depth + 1)
            lines[here] = key_node.start_mark.line + 1
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, str(n)), lines, source, depth + 1) for n, item in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError):
        source.fail(f"{node.value!r} is not a valid value", path)


def _checked(data: object, source: _Source, kinds: Mapping[str, str], env: Mapping[str, str]) -> LoadedConfig:
    if data is None:
        return LoadedConfig(RouterConfig(), source.file)
    if not isinstance(data, dict):
        source.fail("the configuration is not a mapping of keys", ())
    warnings: list[str] = []
    data = cast("dict[str, object]", _expanded(data, (), env, warnings))
    _friendly(data, source)
    _known_keys(data, RouterConfig, (), source)
    _known_services(data, source, kinds)
    _task_defaults(data, source)
    try:
        config = msgspec.convert(data, RouterConfig)
    except msgspec.ValidationError as error:
        _refuse(error, data, source)
    config = _with_key_files(config, source)
    _possible(config, source, kinds)
    return LoadedConfig(config, source.file, tuple(warnings))


def _expanded(value: object, path: tuple[str, ...], env: Mapping[str, str], warnings: list[str]) -> object:
    if isinstance(value, dict):
        found = {}
        for key, item in value.items():
            try:
                found[str(key)] = _expanded(item, (*path, str(key)), env, warnings)
            except _Unset as unset:
                warnings.append(f"{'.'.join((*path, str(key)))}: {unset} is not set, so the key counts as not given")
        return found
    if isinstance(value, list | tuple):
        return [_expanded(item, (*path, str(n)), env, warnings) for n, item in enumerate(value)]
    return _VARIABLE.sub(lambda m: _variable(m, env), value) if isinstance(value, str) else value


def _variable(match: re.Match[str], env: Mapping[str, str]) -> str:
    value = env.get(match[1], match[2])
    if value is None:
        raise _Unset(f"${{{match[1]}}}")
    return value


def _friendly(data: dict[str, object], source: _Source) -> None:
    """What YAML reads otherwise than people mean: ``version: 1.0`` and ``priority: off``."""
    version = data.get("version", "1.0")
    if isinstance(version, bool) or str(version) not in ("1", "1.0"):
        source.fail(f"version {version!r} is not known", ("version",), 'the version is "1.0"')
    data["version"] = "1.0"
    serena = data.get("serena")
    if isinstance(serena, dict) and serena.get("priority") is False:
        serena["priority"] = "off"
    for key in [key for key, value in data.items() if value is None]:
        del data[key]


def _known_keys(data: object, section: type, path: tuple[str, ...], source: _Source) -> None:
    if not isinstance(data, dict):
        return
    hints = get_type_hints(section)
    for key, value in data.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.5)
            known = f"did you mean {near[0]}?" if near else f"there are: {', '.join(hints)}"
            source.fail(f"unknown key {key!r}", (*path, key), known)
        _known_inside(value, hints[key], (*path, key), source)


def _known_inside(value: object, hint: object, path: tuple[str, ...], source: _Source) -> None:
    inner = [arg for arg in get_args(hint) if isinstance(arg, type) and issubclass(arg, Section)]
    if isinstance(hint, type) and issubclass(hint, Section):
        _known_keys(value, hint, path, source)
    elif get_origin(hint) is dict and inner and isinstance(value, dict):
        for key, item in value.items():
            _known_keys(item, inner[0], (*path, key), source)
    elif get_origin(hint) is tuple and inner and isinstance(value, list):
        for number, item in enumerate(value):
            _known_keys(item, inner[0], (*path, str(number)), source)


def _known_services(data: Mapping[str, object], source: _Source, kinds: Mapping[str, str]) -> None:
    for section, known in (("services", tuple(kinds)), ("task_routing", tuple(TaskCategory))):
        found = data.get(section)
        for key in found if isinstance(found, dict) else ():
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
                source.fail(
                    f"unknown {'service' if section == 'services' else 'category'} {key!r}", (section, key), hint
                )


def _task_defaults(data: dict[str, object], source: _Source) -> None:
    routing = data.get("task_routing")
    if isinstance(routing, dict):
        for key, section in routing.items():
            if isinstance(section, dict):
                routing[key] = {**TASK_DEFAULTS.get(TaskCategory(key), {}), **section}


def _refuse(error: msgspec.ValidationError, data: object, source: _Source) -> NoReturn:
    text = str(error)
    at = _AT.search(text)
    path = tuple(re.findall(r"(?<=\[)(?:\.\.\.|\d+)(?=\])|\w+", at[1] if at else ""))
    path = _real_path(path, data)
    message = _AT.sub("", text).replace("`", "").replace("Expected", "expected")
    value = _at(data, path)
    shown = "" if isinstance(value, dict | list) or path[-1:] == ("key",) else f", got {value!r}"
    hint = _allowed(path)
    source.fail(f"{message.split(', got')[0]}{shown}", path, hint)


def _real_path(path: tuple[str, ...], data: object) -> tuple[str, ...]:
    """msgspec writes ``[...]`` for any key of a mapping: find the one that is meant by trying each."""
    if "..." not in path:
        return path
    place = path.index("...")
    head = path[:place]
    inner = _at(data, head)
    rest = path[place + 1 :]
    keys = (
        list(inner)
        if isinstance(inner, dict)
        else [str(n) for n in range(len(inner))]
        if isinstance(inner, list)
        else []
    )
    for key in keys:
        trial = (*head, str(key), *rest)
        if not rest or _at(data, trial) is not None:
            if _wrong(trial, data):
                return _real_path(trial, data)
    return (*head, *rest)


def _wrong(path: tuple[str, ...], data: object) -> bool:
    """Whether the value at ``path`` is what conversion refuses: it passes when that value alone is removed."""
    import copy

    trial = copy.deepcopy(data)
    holder = _at(trial, path[:-1])
    before = _message(data)
    if isinstance(holder, dict):
        holder.pop(path[-1], None)
    elif isinstance(holder, list) and path[-1].isdigit():
        del holder[int(path[-1])]
    return _message(trial) != before


def _message(data: object) -> str:
    try:
        msgspec.convert(data, RouterConfig)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _at(data: object, path: tuple[str, ...]) -> object:
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and part.isdigit() and int(part) < len(data):
            data = data[int(part)]
        else:
            return None
    return data


def _allowed(path: tuple[str, ...]) -> str:
    """The values a key allows, when they are a fixed few."""
    section: object = RouterConfig
    hint: object = None
    for part in path:
        hints = get_type_hints(section) if isinstance(section, type) and issubclass(section, Section) else {}
        hint = hints.get(part, hint)
        inner = [arg for arg in get_args(hint) if isinstance(arg, type) and issubclass(arg, Section)]
        section = hint if isinstance(hint, type) else inner[0] if inner else section
    values = [value for value in get_args(hint) if isinstance(value, str)]
    return f"allowed: {', '.join(values)}" if values else ""


def _with_key_files(config: RouterConfig, source: _Source) -> RouterConfig:
    services = {
        kind: msgspec.structs.replace(s, key=_secret(s.key, ("services", kind, "key"), source))
        for kind, s in config.services.items()
    }
    custom = tuple(
        msgspec.structs.replace(c, key=_secret(c.key, ("custom_endpoints", str(n), "key"), source))
        for n, c in enumerate(config.custom_endpoints)
    )
    return msgspec.structs.replace(config, services=services, custom_endpoints=custom)


def _secret(key: str | None, path: tuple[str, ...], source: _Source) -> str | None:
    if key is None or not key.startswith("file:"):
        if key is not None and (not key or not key.isascii() or not key.isprintable()):
            source.fail("the key is empty or has characters that no header carries", path)
        return key
    try:
        return Path(key.removeprefix("file:")).expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        source.fail("the key's file cannot be read", path, "file:/path/to/a/text/file")


def _possible(config: RouterConfig, source: _Source, kinds: Mapping[str, str]) -> None:
    for path, message, hint in _impossible(config, kinds):
        source.fail(message, path, hint)


def _impossible(config: RouterConfig, kinds: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Values that have the right type and make no sense: (key path, message, hint)."""
    for kind, service in config.services.items():
        yield from _endpoint_values(("services", kind), service, service.endpoint)
    names: set[str] = set()
    for number, custom in enumerate(config.custom_endpoints):
        here = ("custom_endpoints", str(number))
        if not re.fullmatch(r"[A-Za-z0-9][\w. -]{0,63}", custom.name):
            yield (*here, "name"), f"{custom.name!r} is not a name", "letters, digits, dot, dash, space; at most 64"
        if custom.name in names or custom.name in kinds:
            yield (*here, "name"), f"the name {custom.name!r} is taken", "choose another name"
        names.add(custom.name)
        if custom.window is not None and not 256 <= custom.window <= 100_000_000:
            yield (*here, "window"), f"a window of {custom.window} tokens is impossible", "at least 256"
        for key in ("chat_path", "models_path"):
            value = getattr(custom, key)
            if value is not None and not re.fullmatch(r"/[\w./-]*", value):
                yield (*here, key), f"{value!r} is not a path", "for example /v1/models"
        yield from _endpoint_values(here, custom, custom.endpoint)
    yield from _other_values(config)


def _endpoint_values(
    here: tuple[str, ...], section: ServiceConfig | CustomEndpoint, endpoint: str | None
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    if endpoint is not None and (problem := _url_problem(endpoint)):
        yield (*here, "endpoint"), f"{problem}: {re.sub('//[^/@]*@', '//…@', endpoint)!r}", "http://127.0.0.1:11434"
    for key in ("timeout", "first_byte_timeout", "total_timeout"):
        if not 0 < getattr(section, key) <= LONGEST_MS:
            yield (*here, key), f"{getattr(section, key)} ms is impossible", "milliseconds, from 1 to 86400000"
    if not 0 <= section.max_retries <= 100:
        yield (*here, "max_retries"), f"{section.max_retries} retries are impossible", "0 to 100"
    if not 0 <= section.priority <= 1000:
        yield (*here, "priority"), f"the priority {section.priority} is impossible", "0 to 1000, lower is preferred"


def _url_problem(url: str) -> str:
    if url.startswith("unix:"):
        return "" if url.startswith("unix:/") else "a socket needs an absolute path"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "the address is malformed"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "the address is not http, https or unix"
    if parts.username is not None or parts.password is not None:
        return "the address carries credentials, use `key`"
    if parts.query or parts.fragment or ".." in parts.path or any(c.isspace() for c in url) or port == 0:
        return "the address has more than host, port and path"
    return ""


def _other_values(config: RouterConfig) -> Iterator[tuple[tuple[str, ...], str, str]]:
    context = config.context
    for key in ("compaction_threshold", "compaction_target"):
        if not 0 < getattr(context, key) <= 1:
            yield ("context", key), f"{getattr(context, key)} is not a share of the window", "above 0, at most 1"
    if context.compaction_target >= context.compaction_threshold:
        yield ("context", "compaction_target"), "the target is not below the threshold", "for example 0.5 and 0.8"
    for key in ("preserve_recent_messages", "preserve_recent_tool_calls", "max_tool_output_tokens"):
        if not 0 <= getattr(context, key) <= 1_000_000:
            yield ("context", key), f"{getattr(context, key)} is impossible", "0 or more"
    for category, routing in config.task_routing.items():
        here = ("task_routing", str(category))
        if not 0 < routing.min_context <= 100_000_000:
            yield (*here, "min_context"), f"{routing.min_context} tokens are impossible", "1 or more"
        for key in ("primary_models", "fallback_models"):
            if any(not name.strip() for name in getattr(routing, key)):
                yield (*here, key), "a model has no name", "remove the empty entry"
    yield from _security_values(config)
    yield from _program_values(config)


def _program_values(config: RouterConfig) -> Iterator[tuple[tuple[str, ...], str, str]]:
    if not 0 < config.discovery.timeout <= 60_000:
        yield ("discovery", "timeout"), f"{config.discovery.timeout} ms is impossible", "1 to 60000"
    if not 1000 <= config.discovery.interval <= LONGEST_MS:
        yield ("discovery", "interval"), f"{config.discovery.interval} ms is impossible", "1000 or more"
    if not 256 <= config.embedded.context <= 8192:
        yield ("embedded", "context"), f"{config.embedded.context} tokens are impossible", "256 to 8192"
    if not 1 <= config.embedded.threads <= 256:
        yield ("embedded", "threads"), f"{config.embedded.threads} threads are impossible", "1 or more"
    if config.gateway.host not in _LOOPBACK:
        yield ("gateway", "host"), f"{config.gateway.host!r} is not loopback", "allowed: 127.0.0.1, ::1, localhost"
    if not 0 < config.gateway.port < 65536:
        yield ("gateway", "port"), f"{config.gateway.port} is no port", "1 to 65535"
    if not 0 < config.gateway.max_body_mb <= 1024:
        yield ("gateway", "max_body_mb"), f"{config.gateway.max_body_mb} MB is impossible", "1 to 1024"
    limit = config.routing.memory_limit_gb
    if limit is not None and not 0 < limit < 1e6:
        yield ("routing", "memory_limit_gb"), f"{limit} GB is impossible", "above 0"


def _security_values(config: RouterConfig) -> Iterator[tuple[tuple[str, ...], str, str]]:
    security = config.security
    if config.environment == "air-gapped" and security.allow_external:
        yield (
            ("security", "allow_external"),
            "an air-gapped environment allows nothing external",
            "environment: internal",
        )
    for number, cidr in enumerate(security.allowed_cidrs):
        try:
            ipaddress.ip_network(cidr)
        except ValueError:
            yield ("security", "allowed_cidrs", str(number)), f"{cidr!r} is not a network", _network_hint(cidr)
    for number, host in enumerate(security.allowed_hosts):
        path = ("security", "allowed_hosts", str(number))
        if "/" in host:
            try:
                ipaddress.ip_network(host)
            except ValueError:
                yield path, f"{host!r} is not a network", _network_hint(host)
        elif not re.fullmatch(r"[A-Za-z0-9_:]([\w.:-]{0,252}[A-Za-z0-9_:])?", host):
            yield path, f"{host!r} is neither a host name nor an address", "a name, an address, or a CIDR"


def _network_hint(text: str) -> str:
    try:
        return f"did you mean {ipaddress.ip_network(text, strict=False)}?"
    except ValueError:
        return "for example 192.168.0.0/16"


def example_yaml(kinds: Mapping[str, str]) -> str:
    """A commented configuration to start from; it loads without a warning."""
    services = "\n".join(f"  # {kind}:\n  #   endpoint: {url}\n  #   priority: 1" for kind, url in kinds.items())
    return f"""\
# Turnout's configuration. Every key may be left out; `turnout config show` prints all of them with their values.
version: "1.0"
environment: air-gapped        # air-gapped, internal or development

# Servers at their default addresses on this machine are found without configuration.
services:
{services}
  ollama:
    enabled: true

# Any other server: name, address, and how it speaks.
# custom_endpoints:
#   - name: gpu-box
#     endpoint: http://192.168.1.100:8000
#     priority: 0
#     key: file:/etc/turnout/gpu-box.key

# Which models for which work; leave it out to rank by score.
# task_routing:
#   coding:
#     primary_models: [qwen2.5-coder-32b]
#     fallback_models: [phi-4]
#     min_context: 8192

security:
  allow_external: false
  audit_enabled: true
"""
