"""The published schema, reference and example are what the loader really takes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from turnout.backends import DEFAULT_URLS
from turnout.config import RouterConfig
from turnout.config_load import example_yaml, load_config
from turnout.fleet.discovery import FOUND_PRIORITY
from turnout.schema import json_schema, reference_markdown

ROOT = Path(__file__).parents[1]
ROWS = tomllib.loads((Path(__file__).parent / "broken_configs.toml").read_text("utf-8"))["row"]
SCHEMA: dict[str, Any] = json_schema(DEFAULT_URLS)
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
ABOUT = {"$schema", "$defs", "$ref", "title", "description", "default"}
SHAPE = {"type", "enum", "anyOf", "properties", "required", "additionalProperties", "items", "pattern"}
RANGE = {"minimum", "maximum", "exclusiveMinimum"}


def refusals(value: Any, schema: dict[str, Any]) -> Iterator[str]:
    """What a JSON Schema validator would say, for the words that the schema uses."""
    assert set(schema) <= ABOUT | SHAPE | RANGE
    if "$ref" in schema:
        yield from refusals(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema and all(any(refusals(value, choice)) for choice in schema["anyOf"]):
        yield f"{value!r} fits no choice"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{value!r} is none of {schema['enum']}"
    if "type" in schema and not is_of(value, schema["type"]):
        yield f"{value!r} is no {schema['type']}"
    elif isinstance(value, int | float):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            yield f"{value} is out of range"
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            yield f"{value} is out of range"
    elif isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{value!r} does not match"
    elif isinstance(value, list):
        for item in value:
            yield from refusals(item, schema.get("items", {}))
    elif isinstance(value, dict):
        yield from refused_keys(value, schema)


def refused_keys(value: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    properties = schema.get("properties", {})
    yield from (f"{key} is missing" for key in schema.get("required", ()) if key not in value)
    for key, item in value.items():
        if key in properties:
            yield from refusals(item, properties[key])
        elif schema.get("additionalProperties") is False:
            yield f"unknown key {key}"


def is_of(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def uncommented(text: str) -> str:
    """The example with its commented keys taken in: they begin in lower case or with a dash."""
    return re.sub(r"^# ( *(- )?[a-z0-9_]+:( .*)?)$", r"\1", text, flags=re.MULTILINE)


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert page == reference_markdown(DEFAULT_URLS), "run `python -m turnout.schema > docs/configuration.md`"


def test_the_example_file_is_up_to_date() -> None:
    text = (ROOT / "turnout.example.yaml").read_text("utf-8")
    assert text == example_yaml(DEFAULT_URLS), "run `turnout config init` elsewhere and take its file"


def test_the_example_loads_without_a_warning() -> None:
    loaded = load_config(ROOT / "turnout.example.yaml", kinds=DEFAULT_URLS, env={})
    assert (loaded.config, loaded.warnings) == (RouterConfig(), ())


def test_the_commented_part_of_the_example_loads_too(tmp_path: Path) -> None:
    path = tmp_path / "turnout.yaml"
    path.write_text(uncommented(example_yaml(DEFAULT_URLS)))
    loaded = load_config(path, kinds=DEFAULT_URLS, env={})
    assert set(loaded.config.services) == set(DEFAULT_URLS)
    assert loaded.warnings == ()
    assert loaded.config.custom_endpoints[0].window == 32_768
    assert [str(category) for category in loaded.config.task_routing] == ["coding"]


@pytest.mark.parametrize(
    "text",
    [
        example_yaml(DEFAULT_URLS),
        uncommented(example_yaml(DEFAULT_URLS)),
        (ROOT / "tests" / "data" / "owner-config.yaml").read_text("utf-8"),
        "version: 1.0",
    ],
)
def test_the_schema_takes_what_loads(text: str) -> None:
    assert list(refusals(yaml.safe_load(text), SCHEMA)) == []


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("schema")])
def test_the_schema_refuses_what_it_can_tell(row: dict[str, str]) -> None:
    assert list(refusals(yaml.safe_load(row["yaml"]), SCHEMA))


def test_the_schema_is_json_and_describes_every_key() -> None:
    again = msgspec.json.decode(msgspec.json.encode(json_schema(DEFAULT_URLS)))
    assert again == SCHEMA
    for name, section in SCHEMA["$defs"].items():
        for key, value in section["properties"].items():
            assert value.get("description") or "$ref" in value, f"{name}.{key}"


def test_the_page_tells_every_key_its_unit_and_its_default() -> None:
    page = reference_markdown(DEFAULT_URLS)
    assert "| `timeout` | a whole number, 1 to 86,400,000 | `30000` | ms | The longest silence" in page
    assert "| `analysis` | `require_serena` | `true` |" in page
    assert "| `endpoint` | text | required |" in page
    assert f"A server that is found and has no section here has {FOUND_PRIORITY}. |" in page
    for section in SCHEMA["$defs"].values():
        for key in section["properties"]:
            row = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
            assert not row.endswith("|  |"), row
