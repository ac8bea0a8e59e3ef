"""The configuration described from its sections: JSON Schema for editors, Markdown for docs/configuration.md.

``python -m turnout.schema`` prints the page, ``python -m turnout.schema --json`` the schema.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec
from msgspec import inspect

from turnout.config import RouterConfig
from turnout.config_agents import AGENT_DEFAULTS, AGENTS
from turnout.config_load import expected, unit_of
from turnout.config_values import CODE_LANGUAGES, TASK_DEFAULTS
from turnout.types import Json, TaskCategory

_KEYED_BY = {"services": "kind", "task_routing": "category", "agents": "agent"}
DIALECT = "https://json-schema.org/draft/2020-12/schema"

_HEAD = """\
# Configuration

This page is made by `python -m turnout.schema`; a test compares the two.
`python -m turnout.schema --json` prints the JSON Schema.

Turnout reads the first of these files: `--config FILE`, `$TURNOUT_CONFIG`, `./turnout.yaml`,
`./local-llm-router.yaml`, `turnout.yaml` in the user's configuration directory (`$XDG_CONFIG_HOME/turnout` or
`~/.config/turnout`; macOS `~/Library/Application Support/turnout`; Windows `%APPDATA%\\turnout`). Without a file the
defaults hold. `turnout config init` writes an example, `turnout config check` checks the file, `turnout config show`
prints what is in effect.

- Every key may be left out, except those marked required. An unknown key, a wrong type or an impossible value is
  refused at start, in one line with file, line, key and the nearest valid key.
- `${NAME}` in a value is taken from the environment, `${NAME:-default}` has a default. Where `NAME` is not set or empty
  and there is no default, the key counts as not given (in a list: the entry is left out), with a warning.
- A file is UTF-8 YAML of at most 1 MB. A key given twice is refused, and so are merged keys (`<<`).
- Our own files are in the data directory: `$TURNOUT_DATA_DIR`, else `$XDG_DATA_HOME/turnout` or
  `~/.local/share/turnout` (macOS `~/Library/Application Support/turnout`; Windows `%LOCALAPPDATA%\\turnout`).
"""


def json_schema(kinds: Mapping[str, str]) -> dict[str, Json]:
    """The JSON Schema (2020-12) of the file.

    Args:
        kinds: the kinds of service that exist, with their default addresses.
    """
    made = cast("dict[str, Json]", msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(RouterConfig))))
    definitions = cast("dict[str, dict[str, Json]]", made["$defs"])
    properties = cast("dict[str, dict[str, Json]]", definitions["RouterConfig"]["properties"])
    properties["version"]["enum"] = ["1.0", "1", 1]
    del properties["version"]["type"]
    for key, names in (("services", tuple(kinds)), ("task_routing", tuple(TaskCategory)), ("agents", AGENTS)):
        section = properties[key].pop("additionalProperties")
        properties[key] |= {"properties": {str(n): section for n in names}, "additionalProperties": False}
        properties[key].pop("propertyNames", None)
    servers = cast("dict[str, dict[str, Json]]", definitions["CodeConfig"]["properties"])["language_servers"]
    command = servers.pop("additionalProperties")
    servers |= {"properties": dict.fromkeys(CODE_LANGUAGES, command), "additionalProperties": False}
    definitions.pop("TaskCategory", None)
    return {"$schema": DIALECT, "title": "Turnout configuration", **made}


def reference_markdown(kinds: Mapping[str, str]) -> str:
    """docs/configuration.md: every key with type, default, unit and meaning.

    Args:
        kinds: the kinds of service that exist, with their default addresses.
    """
    top = cast("inspect.StructType", inspect.type_info(RouterConfig))
    parts = [_HEAD, "\n## Top level\n\n", _table(top)]
    for field in top.fields:
        section, path = _inner(field)
        if section is None:
            continue
        parts += [f"\n## `{path}`\n\n{_prose(section)}\n\n", _table(section, path)]
        for inner in section.fields:
            deeper, name = _inner(inner)
            if deeper is not None:
                parts += [f"\n### `{path}.{name}`\n\n{_prose(deeper)}\n\n", _table(deeper)]
        if field.name == "services":
            rows = "".join(f"| `{kind}` | `{url}` |\n" for kind, url in kinds.items())
            parts += ["\nThe kinds, and where each is looked for by default:\n\n| kind | address |\n|---|---|\n", rows]
        if field.name == "task_routing":
            parts += ["\nDefaults of some categories differ:\n\n| category | key | default |\n|---|---|---|\n"]
            parts += _differing(TASK_DEFAULTS)
        if field.name == "agents":
            names = ", ".join(f"`{name}`" for name in AGENTS)
            parts += [f"\nThe agents: {names}. `qwen-cli` is `qwen-code`.\n\nDefaults of some differ:\n\n"]
            parts += ["| agent | key | default |\n|---|---|---|\n", *_differing(AGENT_DEFAULTS)]
    return "".join(parts)


def _differing(defaults: Mapping[Any, Mapping[str, object]]) -> Iterator[str]:
    return (f"| `{name}` | `{k}` | {_default(v)} |\n" for name, own in defaults.items() for k, v in own.items())


def _inner(field: inspect.Field) -> tuple[inspect.StructType | None, str]:
    """The section a key holds, and how its keys are addressed."""
    kind = field.type.type if isinstance(field.type, inspect.Metadata) else field.type
    if isinstance(kind, inspect.StructType):
        return kind, field.name
    if isinstance(kind, inspect.DictType) and isinstance(kind.value_type, inspect.StructType):
        return kind.value_type, f"{field.name}.<{_KEYED_BY[field.name]}>"
    if isinstance(kind, inspect.VarTupleType) and isinstance(kind.item_type, inspect.StructType):
        return kind.item_type, f"{field.name}[]"
    return None, ""


def _table(section: inspect.StructType, above: str = "") -> str:
    return "| key | type | default | unit | meaning |\n|---|---|---|---|---|\n" + "".join(_rows(section, above))


def _rows(section: inspect.StructType, above: str) -> Iterator[str]:
    for field in section.fields:
        inner, path = _inner(field)
        meaning = _description(field.type) or (_prose(inner) if inner else "")
        if inner is not None:
            link = "".join(c for c in above + path if c not in ".<>[]")
            default, kind = "", f"[section](#{link})"
        else:
            default, kind = ("required" if field.required else _default(_default_of(field))), expected(field.type)
        yield f"| `{field.name}` | {kind} | {default} | {unit_of(field.type)} | {meaning} |\n"


def _default_of(field: inspect.Field) -> object:
    return field.default_factory() if callable(field.default_factory) else field.default


def _description(info: inspect.Type) -> str:
    return str((info.extra_json_schema or {}).get("description", "")) if isinstance(info, inspect.Metadata) else ""


def _prose(section: inspect.StructType) -> str:
    text = " ".join((section.cls.__doc__ or "").split())
    return re.sub(r" \(SPEC [^)]*\)", "", text).replace("``", "`")


def _default(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _main(arguments: list[str]) -> None:
    from turnout.backends import DEFAULT_URLS

    if "--json" in arguments:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(json_schema(DEFAULT_URLS)), indent=2).decode() + "\n")
    else:
        sys.stdout.write(reference_markdown(DEFAULT_URLS))


if __name__ == "__main__":
    _main(sys.argv[1:])
