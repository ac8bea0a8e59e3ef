"""The configuration: the owner's file loads as written, and each mistake is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnout.backends import DEFAULT_URLS
from turnout.config import LoadedConfig, RouterConfig, audit_path, redacted
from turnout.config_load import example_yaml, find_config, load_config, load_config_from_dict
from turnout.errors import ConfigError
from turnout.fleet.discovery import targets
from turnout.fleet.host import HostInfo

OWNERS = Path(__file__).parent / "data" / "owner-config.yaml"
HOST = HostInfo("linux", "6", "x86_64")

# (text, line, key path, what the message or hint must say)
BROKEN = [
    ("servces: {}", 1, "servces", "did you mean services?"),
    ("services:\n  olama:\n    enabled: true", 2, "services.olama", "did you mean ollama?"),
    ("services:\n  ollama:\n    enabeld: true", 3, "services.ollama.enabeld", "did you mean enabled?"),
    ("services:\n  ollama:\n    timeout: 30s", 3, "services.ollama.timeout", "expected int"),
    ("services:\n  ollama:\n    timeout: 0", 3, "services.ollama.timeout", "impossible"),
    ("services:\n  ollama:\n    timeout: -5", 3, "services.ollama.timeout", "milliseconds"),
    ("services:\n  ollama:\n    timeout: 999999999", 3, "services.ollama.timeout", "impossible"),
    ("services:\n  ollama:\n    max_retries: -1", 3, "services.ollama.max_retries", "0 to 100"),
    ("services:\n  ollama:\n    priority: high", 3, "services.ollama.priority", "expected int"),
    ("services:\n  ollama:\n    enabled: maybe", 3, "services.ollama.enabled", "expected bool"),
    ("services:\n  ollama:\n    endpoint: localhost:11434", 3, "services.ollama.endpoint", "not http"),
    ("services:\n  ollama:\n    endpoint: ftp://x", 3, "services.ollama.endpoint", "not http"),
    ("services:\n  ollama:\n    endpoint: http://u:p@x:1", 3, "services.ollama.endpoint", "credentials"),
    ("services:\n  ollama:\n    endpoint: http://x:99999", 3, "services.ollama.endpoint", "malformed"),
    ("services:\n  ollama:\n    endpoint: http://x?y=1", 3, "services.ollama.endpoint", "more than host"),
    ("services: [ollama]", 1, "services", "expected object"),
    ("services:\n  ollama: true", 2, "services.ollama", "expected object"),
    ("custom_endpoints:\n  - endpoint: http://x", 2, "custom_endpoints.0", "name"),
    ("custom_endpoints:\n  - name: a", 2, "custom_endpoints.0", "endpoint"),
    ("custom_endpoints:\n  - name: ''\n    endpoint: http://x", 2, "custom_endpoints.0.name", "not a name"),
    (
        "custom_endpoints:\n  - {name: a, endpoint: 'http://x'}\n  - {name: a, endpoint: 'http://y'}",
        3,
        "custom_endpoints.1.name",
        "taken",
    ),
    ("custom_endpoints:\n  - {name: ollama, endpoint: 'http://x'}", 2, "custom_endpoints.0.name", "taken"),
    (
        "custom_endpoints:\n  - {name: a, endpoint: 'http://x', api_style: grpc}",
        2,
        "custom_endpoints.0.api_style",
        "native, openai, custom",
    ),
    ("custom_endpoints:\n  - {name: a, endpoint: 'http://x', window: 10}", 2, "custom_endpoints.0.window", "256"),
    ("custom_endpoints:\n  - {name: a, endpoint: 'unix:x'}", 2, "custom_endpoints.0.endpoint", "absolute"),
    ("task_routing:\n  codng:\n    primary_models: [x]", 2, "task_routing.codng", "did you mean coding?"),
    ("task_routing:\n  coding:\n    primary_models: x", 3, "task_routing.coding.primary_models", "expected array"),
    ("task_routing:\n  coding:\n    primary_models: ['']", 3, "task_routing.coding.primary_models", "no name"),
    ("task_routing:\n  coding:\n    min_context: -1", 3, "task_routing.coding.min_context", "impossible"),
    ("serena:\n  priority: sometimes", 2, "serena.priority", "always_first, on_demand, off"),
    ("context:\n  compaction_threshold: 1.5", 2, "context.compaction_threshold", "at most 1"),
    ("context:\n  compaction_target: 0.9", 2, "context.compaction_target", "not below"),
    ("context:\n  preserve_recent_messages: -1", 2, "context.preserve_recent_messages", "0 or more"),
    ("security:\n  allowed_cidrs: [192.168.0.0/99]", 2, "security.allowed_cidrs.0", "not a network"),
    ("security:\n  allowed_cidrs: [192.168.1.5/16]", 2, "security.allowed_cidrs.0", "did you mean 192.168.0.0/16?"),
    ("security:\n  allowed_hosts: ['bad host!']", 2, "security.allowed_hosts.0", "neither a host name"),
    ("security:\n  allow_external: true", 2, "security.allow_external", "environment: internal"),
    ("environment: airgapped", 1, "environment", "air-gapped"),
    ("version: '2.0'", 1, "version", '"1.0"'),
    ("gateway:\n  host: 0.0.0.0", 2, "gateway.host", "loopback"),
    ("gateway:\n  port: 70000", 2, "gateway.port", "1 to 65535"),
    ("routing:\n  policy: bestest", 2, "routing.policy", "lists, best"),
    ("security:\n  audit_enabled: true\n  audit_enabled: false", 3, "security.audit_enabled", "twice"),
    ("- a\n- b", 1, "", "not a mapping"),
    ("services:\n\tollama: {}", 2, "", "spaces, not tabs"),
    ("services: {ollama: ", 1, "", "not YAML"),
]


@pytest.mark.parametrize(("text", "line", "key", "says"), BROKEN, ids=range(len(BROKEN)))
def test_a_mistake_is_one_clear_line(text: str, line: int, key: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "turnout.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, kinds=DEFAULT_URLS)
    shown = str(caught.value)
    assert shown.startswith(f"{path}:{line}")
    assert key in shown
    assert says in shown
    assert "\n" not in shown


def test_the_owners_file_loads_as_written(tmp_path: Path) -> None:
    unset = load_config(OWNERS, kinds=DEFAULT_URLS, env={})
    assert unset.config.serena.workspace is None
    assert "WORKSPACE_ROOT" in unset.warnings[0]
    loaded = load_config(OWNERS, kinds=DEFAULT_URLS, env={"WORKSPACE_ROOT": str(tmp_path)})
    config = loaded.config
    assert loaded.warnings == ()
    assert config.serena.workspace == str(tmp_path)
    assert config.services["jan"].enabled is False
    assert config.services["lmstudio"].timeout == 30_000
    assert config.custom_endpoints[0].name == "internal-gpu-server"
    assert config.task_routing["coding"].primary_models[1] == "qwen2.5-coder-32b"  # type: ignore[index]
    analysis = config.task_routing["analysis"]  # type: ignore[index]
    assert (analysis.min_context, analysis.fallback_models[0]) == (16_384, "codellama-34b-instruct")
    assert config.security.allowed_cidrs == ("192.168.0.0/16", "10.0.0.0/8", "172.16.0.0/12")
    assert audit_path(loaded) == OWNERS.parent / "llm-router-audit.log"


def test_a_disabled_service_is_not_looked_at() -> None:
    config = load_config_from_dict({"services": {"jan": {"enabled": False}}}, kinds=DEFAULT_URLS).config
    urls = [target.endpoint.url for target in targets(config, HOST)]
    assert DEFAULT_URLS["jan"] not in urls
    assert DEFAULT_URLS["ollama"] in urls


def test_the_first_file_in_the_order_is_read(tmp_path: Path) -> None:
    user = tmp_path / "home" / "turnout" / "turnout.yaml"
    here = tmp_path / "here"
    user.parent.mkdir(parents=True)
    here.mkdir()
    env = {"XDG_CONFIG_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
    assert find_config(env=env, cwd=here) is None
    for path in (user, here / "local-llm-router.yaml", here / "turnout.yaml"):
        path.write_text("")
        assert find_config(env=env, cwd=here) == path
    named = tmp_path / "named.yaml"
    named.write_text("")
    assert find_config(env=env | {"TURNOUT_CONFIG": str(named)}, cwd=here) == named
    assert find_config(user, env=env | {"TURNOUT_CONFIG": str(named)}, cwd=here) == user
    with pytest.raises(ConfigError, match="no such file"):
        find_config(tmp_path / "absent.yaml", env=env)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"a: \x00", b"x" * 2_000_000])
def test_a_file_that_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "turnout.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(path, kinds=DEFAULT_URLS)
    with pytest.raises(ConfigError):
        load_config(tmp_path, kinds=DEFAULT_URLS)


def test_the_example_loads_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "turnout.yaml"
    path.write_text(example_yaml(DEFAULT_URLS))
    assert load_config(path, kinds=DEFAULT_URLS).warnings == ()


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "turnout.yaml"
    path.write_text("# nothing\n")
    assert load_config(path, kinds=DEFAULT_URLS).config == RouterConfig()


def test_a_key_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    data = {"services": {"ollama": {"key": f"file:{tmp_path / 'key'}"}, "jan": {"key": "${JAN}"}}}
    config = load_config_from_dict(data, kinds=DEFAULT_URLS, env={"JAN": "other"}).config
    assert (config.services["ollama"].key, config.services["jan"].key) == ("s3cret", "other")
    assert "s3cret" not in str(redacted(config))
    assert "other" not in str(redacted(config))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*RouterConfig.__struct_fields__, "x"])


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, VALUES | st.dictionaries(st.sampled_from(["ollama", "coding", "timeout"]), VALUES)))
def test_any_dict_loads_or_is_a_config_error(data: dict[str, object]) -> None:
    try:
        loaded = load_config_from_dict(data, kinds=DEFAULT_URLS, env={})
    except ConfigError as error:
        assert error.message
    else:
        assert isinstance(loaded, LoadedConfig)
