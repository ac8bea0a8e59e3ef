"""The configuration: the owner's file loads as written, and each mistake is one clear line."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import keyring
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnout import config_values, hidden
from turnout.backends import DEFAULT_URLS
from turnout.config import (
    CustomEndpoint,
    LoadedConfig,
    RouterConfig,
    SecurityConfig,
    ServiceConfig,
    TaskRouting,
    audit_path,
    data_dir,
    user_config_dir,
)
from turnout.config_load import example_yaml, find_config, load_config, load_config_from_dict
from turnout.config_values import redacted
from turnout.errors import ConfigError
from turnout.fleet.discovery import targets
from turnout.fleet.host import HostInfo
from turnout.guard.allow import AllowList

OWNERS = Path(__file__).parent / "data" / "owner-config.yaml"
BROKEN = tomllib.loads((Path(__file__).parent / "broken_configs.toml").read_text("utf-8"))["row"]
HOST = HostInfo("linux", "6", "x86_64")


def load_text(text: str, folder: Path, **env: str) -> LoadedConfig:
    path = folder / "turnout.yaml"
    path.write_text(text, "utf-8")
    return load_config(path, kinds=DEFAULT_URLS, env=env)


def load_dict(data: dict[str, object], **env: str) -> LoadedConfig:
    return load_config_from_dict(data, kinds=DEFAULT_URLS, env=env)


@pytest.mark.parametrize("row", BROKEN, ids=lambda row: row["yaml"].replace("\n", " ")[:60])
def test_a_mistake_is_one_clear_line(row: dict[str, str | int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(str(row["yaml"]), tmp_path)
    error = caught.value
    shown = str(error)
    assert (error.line, error.key) == (row["line"], row["key"])
    assert shown.startswith(f"{tmp_path / 'turnout.yaml'}:{row['line']}: {row['key']}")
    assert str(row["says"]) in shown
    assert len(shown.splitlines()) == 1
    assert "s3cret" not in shown
    assert "pa/ss" not in shown


def test_the_owners_file_loads_as_written(tmp_path: Path) -> None:
    unset = load_config(OWNERS, kinds=DEFAULT_URLS, env={})
    assert unset.config.serena.workspace is None
    assert unset.warnings == (
        "serena.workspace: ${WORKSPACE_ROOT} is not set or empty, so the key counts as not given",
    )
    loaded = load_config(OWNERS, kinds=DEFAULT_URLS, env={"WORKSPACE_ROOT": str(tmp_path)})
    config = loaded.config
    assert loaded.warnings == ()
    assert config.serena.workspace == str(tmp_path)
    assert config.services["jan"].enabled is False
    assert config.services["lmstudio"].timeout == 30_000
    custom = config.custom_endpoints[0]
    assert (custom.name, custom.priority, custom.api_style) == ("internal-gpu-server", 0, "openai")
    routing = {str(category): section for category, section in config.task_routing.items()}
    assert routing["coding"].primary_models[1] == "qwen2.5-coder-32b"
    assert routing["analysis"] == TaskRouting(
        primary_models=("deepseek-v3", "qwen2.5-coder-32b"),
        fallback_models=("codellama-34b-instruct", "qwen2.5-72b-instruct"),
        min_context=16_384,
        require_serena=True,
    )
    assert routing["documentation"].fallback_models == ("mistral-nemo-12b",)
    assert routing["documentation"].min_context == 8192
    assert config.security.allowed_cidrs == ("192.168.0.0/16", "10.0.0.0/8", "172.16.0.0/12")
    assert audit_path(loaded) == OWNERS.parent / "llm-router-audit.log"


def test_lists_that_are_not_given_are_the_categorys_own() -> None:
    routing = load_dict(
        {"task_routing": {"documentation": {"min_context": 4096}, "reasoning": None}}
    ).config.task_routing
    found = {str(category): section for category, section in routing.items()}
    assert found["documentation"].fallback_models == ("qwen2.5-32b-instruct", "mistral-nemo-12b")
    assert found["documentation"].min_context == 4096
    assert found["reasoning"].min_context == 16_384
    emptied = load_dict({"task_routing": {"analysis": {"fallback_models": [], "require_serena": False}}})
    (analysis,) = emptied.config.task_routing.values()
    assert (analysis.fallback_models, analysis.require_serena) == ((), False)


def test_a_disabled_service_is_not_looked_at() -> None:
    config = load_dict({"services": {"jan": {"enabled": False}}}).config
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
    assert find_config(env=env | {"TURNOUT_CONFIG": ""}, cwd=here) == here / "turnout.yaml"


@pytest.mark.parametrize("name", ["absent.yaml", "", "a\0b", "~nobody-here/x.yaml", "n" * 5000, f"{OWNERS}/x"])
def test_a_file_that_was_named_must_be_there(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_config(name, env={})
    assert len(str(caught.value).splitlines()) == 1
    if name:
        with pytest.raises(ConfigError):
            find_config(env={"TURNOUT_CONFIG": name})


def test_a_dangling_link_here_is_said_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "turnout.yaml").symlink_to(tmp_path / "gone")
    found = find_config(env={"HOME": str(tmp_path)}, cwd=tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(found, kinds=DEFAULT_URLS)


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"version: '1'\n\xff\xfe\x00binary", 2, "not UTF-8 text"),
        (b"a: 1\nb: \x00", 2, "control character"),
        (b"x" * 1_000_001, 0, "larger than 1,000,000 bytes"),
        (b"[" * 5000, 0, "nested too deeply"),
        ("version: '1'".encode("utf-16"), 1, "not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_text_is_refused(content: bytes, line: int, says: str, tmp_path: Path) -> None:
    path = tmp_path / "turnout.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path, kinds=DEFAULT_URLS)
    assert caught.value.line == line
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, kinds=DEFAULT_URLS)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_device_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="larger than"):
        load_config("/dev/zero", kinds=DEFAULT_URLS)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root and Windows read every file")
def test_an_unreadable_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "turnout.yaml"
    path.touch(mode=0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_config(path, kinds=DEFAULT_URLS)


def test_aliases_are_read_and_cannot_multiply_without_end(tmp_path: Path) -> None:
    shared = "services:\n  ollama: &slow\n    timeout: 60000\n  jan: *slow\n"
    assert load_text(shared, tmp_path).config.services["jan"].timeout == 60_000
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="endless through aliases"):
        load_text("\n".join(rows), tmp_path)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeff# marked\n", "null", "services:\nsecurity:\n"])
def test_an_empty_file_means_the_defaults(text: str, tmp_path: Path) -> None:
    assert load_text(text, tmp_path).config == RouterConfig()


@pytest.mark.parametrize("version", ["1.0", '"1.0"', "1", '"1"'])
def test_every_spelling_of_the_version_is_the_same(version: str, tmp_path: Path) -> None:
    assert load_text(f"version: {version}", tmp_path).config.version == "1.0"


def test_off_needs_no_quotes(tmp_path: Path) -> None:
    assert load_text("serena:\n  priority: off", tmp_path).config.serena.priority == "off"
    assert load_text("serena:\n  priority: 'off'", tmp_path).config.serena.priority == "off"


def test_variables_stand_for_text_numbers_and_switches(tmp_path: Path) -> None:
    text = """
services:
  ollama: {endpoint: "http://${HOST}:${PORT:-11434}", timeout: "${MS}", enabled: "${ON:-false}"}
gateway: {port: "${EMPTY:-5000}"}
"""
    config = load_text(text, tmp_path, HOST="127.0.0.1", MS="5000", EMPTY="").config
    assert config.services["ollama"] == ServiceConfig(endpoint="http://127.0.0.1:11434", timeout=5000, enabled=False)
    assert config.gateway.port == 5000
    with pytest.raises(ConfigError, match=r"services\.ollama\.timeout: expected a whole number"):
        load_text(text, tmp_path, HOST="127.0.0.1", MS="soon")
    with pytest.raises(ConfigError, match="got '5000'"):
        load_text("services:\n  ollama:\n    timeout: '5000'", tmp_path)


def test_what_a_variable_holds_is_not_expanded_again() -> None:
    config = load_dict({"serena": {"workspace": "${A}"}}, A="${B}", B="wrong").config
    assert config.serena.workspace == "${B}"


def test_an_unset_variable_never_widens_what_may_be_dialled() -> None:
    loaded = load_dict({"security": {"allowed_hosts": ["gpu", "${OTHER}"], "allowed_cidrs": ["${NET}"]}})
    assert loaded.config.security.allowed_hosts == ("gpu",)
    assert loaded.config.security.allowed_cidrs == ()
    assert [warning.split(":")[0] for warning in loaded.warnings] == [
        "security.allowed_hosts.1",
        "security.allowed_cidrs.0",
    ]


@pytest.mark.parametrize(
    "host", ["localhost", "GPU-1.lan", "127.0.0.1", "::1", "[::1]", "fd00::/16", "10.0.0.0/255.0.0.0", "under_score"]
)
def test_a_host_that_is_accepted_is_one_the_guard_takes(host: str) -> None:
    security = load_dict({"security": {"allowed_hosts": [host]}}).config.security
    assert security.allowed_hosts == (host,)
    assert security.allowed_cidrs == SecurityConfig().allowed_cidrs
    allow = AllowList.from_config(security)
    assert len(allow.names) + len(allow.addresses) + len(allow.networks) == 5 - (host == "localhost")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"environment": "internal", "security": {"allowed_cidrs": ["8.0.0.0/8"]}},
            "security.allowed_cidrs.0: 8.0.0.0/8 is not a private network",
        ),
        (
            {"environment": "internal", "security": {"allowed_hosts": ["8.0.0.0/8"]}},
            "security.allowed_hosts.0: 8.0.0.0/8 is not a private network",
        ),
        (
            {
                "services": {"vllm": {"endpoint": "http://10.0.0.1:8000/"}},
                "custom_endpoints": [{"name": "a", "endpoint": "http://10.0.0.1:8000"}],
            },
            "services.vllm.endpoint: the same address as custom_endpoints.0, which is the one that is used",
        ),
    ],
)
def test_what_is_probably_not_meant_is_a_warning(data: dict[str, object], says: str) -> None:
    loaded = load_dict(data)
    (warning,) = loaded.warnings
    assert warning.startswith(says)
    assert len([t for t in targets(loaded.config, HOST) if t.endpoint.url == "http://10.0.0.1:8000"]) <= 1


def test_no_key_is_without_effect() -> None:
    """Every key is read somewhere beyond the loader."""
    source = Path(config_values.__file__).parent
    loader = ("config.py", "config_load.py", "schema.py")
    read = "\n".join(path.read_text() for path in source.rglob("*.py") if path.name not in loader)
    sections = {name: getattr(RouterConfig(), name) for name in RouterConfig.__struct_fields__}
    keys = [(name, key) for name, section in sections.items() for key in getattr(section, "__struct_fields__", ())]
    keys += [(str(s), key) for s in (ServiceConfig, CustomEndpoint, TaskRouting) for key in s.__struct_fields__]
    keys += [("", name) for name in sections if name != "version"]
    assert {path for path in keys if not re.search(rf"\.{path[1]}\b", read)} == set()


def test_kinds_that_share_a_default_port_are_no_mistake() -> None:
    services = {kind: {"endpoint": url} for kind, url in DEFAULT_URLS.items()}
    assert load_dict({"services": services}).warnings == ()
    box = {"name": "box", "endpoint": DEFAULT_URLS["vllm"]}
    (warning,) = load_dict({"services": services, "custom_endpoints": [box]}).warnings
    assert warning.startswith("services.vllm.endpoint: the same address as custom_endpoints.0")


def test_the_open_environments_may_allow_everything() -> None:
    data: dict[str, object] = {
        "environment": "internal",
        "security": {"allow_external": True, "allowed_cidrs": ["::/0", "0.0.0.0/1", "8.8.8.0/24"]},
    }
    assert load_dict(data).config.security.allow_external is True


@pytest.mark.parametrize(
    "network",
    [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "fd00::/8",
        "fc00::/7",
        "::1/128",
    ],
)
def test_an_air_gapped_site_has_its_own_networks(network: str) -> None:
    assert load_dict({"security": {"allowed_cidrs": [network]}}).config.security.allowed_cidrs == (network,)


def test_a_key_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    text = """
services:
  ollama: {key: "file:key"}
  jan: {key: "${JAN}"}
custom_endpoints: [{name: a, endpoint: "http://127.0.0.1:9", key: third}]
"""
    loaded = load_text(text, tmp_path, JAN="other")
    config = loaded.config
    assert (config.services["ollama"].key, config.services["jan"].key) == ("s3cret", "other")
    assert config.custom_endpoints[0].key == "third"
    assert "********" in repr(loaded)
    for shown in (str(redacted(config)), repr(loaded), str(config), f"{config.services}", str(config.__rich_repr__())):
        assert not any(secret in shown for secret in ("s3cret", "other", "third"))
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not ASCII text"):
        load_text(text, tmp_path, JAN="other")


KEPT = """\
import sys
from pathlib import Path
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked

class Kept(KeyringBackend):
    priority = 1

    def get_password(self, service, username):
        if service == "locked":
            raise KeyringLocked("the collection is locked")
        if service == "broken":
            raise RuntimeError
        kept = {"gpu box/turnout": "s3cret-word", "https://a/b/u": "with-slashes", "odd/u": "two\\nlines"}
        return kept.get(f"{service}/{username}")

    def set_password(self, service, username, password):
        raise NotImplementedError
"""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real package before a backend of this test's; there is no service of the system here that it could ask."""
    (tmp_path / "kept_secrets.py").write_text(KEPT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "kept_secrets.Kept")
    monkeypatch.setattr(keyring.core, "_keyring_backend", None)
    yield
    sys.modules.pop("kept_secrets", None)


@pytest.mark.parametrize(("entry", "secret"), [("gpu box/turnout", "s3cret-word"), ("https://a/b/u", "with-slashes")])
def test_a_key_comes_from_the_keyring_and_is_never_shown(entry: str, secret: str, tmp_path: Path, kept: None) -> None:
    loaded = load_text(f'services: {{ollama: {{key: "keyring:{entry}"}}}}', tmp_path)
    assert loaded.config.services["ollama"].key == secret
    assert loaded.warnings == ()
    assert secret not in repr(loaded)
    assert hidden.without_secrets(f"it is {secret}") == f"it is {hidden.MASK}"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("nobody/u", "the keyring has nothing for u of nobody"),
        ("locked/u", "the keyring does not answer: the collection is locked"),
        ("broken/u", "the keyring does not answer: RuntimeError"),
        ("odd/u", "characters that no header carries"),
        ("", "no service or no user"),
        ("service", "no service or no user"),
        ("service/", "no service or no user"),
        ("/user", "no service or no user"),
    ],
)
def test_a_keyring_without_the_key_is_one_clear_line(entry: str, said: str, tmp_path: Path, kept: None) -> None:
    with pytest.raises(ConfigError, match=said):
        load_text(f'services: {{ollama: {{key: "keyring:{entry}"}}}}', tmp_path)


def test_a_keyring_that_cannot_be_had_is_one_clear_line(
    tmp_path: Path, kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "kept_secrets.Nothing")
    with pytest.raises(ConfigError, match="does not answer: module 'kept_secrets' has no attribute 'Nothing'"):
        load_text('services: {ollama: {key: "keyring:a/b"}}', tmp_path)


def test_without_the_package_there_is_no_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(ConfigError, match="its package is not installed"):
        load_text('services: {ollama: {key: "keyring:a/b"}}', tmp_path)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    text = "routing: {models_file: mine.toml}\nsecurity: {audit_log_path: logs/a.log}"
    loaded = load_text(text, tmp_path / "sub")
    assert loaded.config.routing.models_file == str(tmp_path / "sub" / "mine.toml")
    assert audit_path(loaded) == tmp_path / "sub" / "logs" / "a.log"
    monkeypatch.chdir(tmp_path)
    assert audit_path(load_dict({"security": {"audit_log_path": "a.log"}})) == tmp_path / "a.log"
    assert audit_path(LoadedConfig(RouterConfig()), {"TURNOUT_DATA_DIR": "/d"}) == Path("/d/audit.log")


@pytest.mark.parametrize(
    ("system", "env", "data", "config"),
    [
        ("linux", {}, "/h/.local/share/turnout", "/h/.config/turnout"),
        ("linux", {"XDG_DATA_HOME": "/x", "XDG_CONFIG_HOME": "/y"}, "/x/turnout", "/y/turnout"),
        ("linux", {"XDG_DATA_HOME": "x", "XDG_CONFIG_HOME": "y"}, "/h/.local/share/turnout", "/h/.config/turnout"),
        ("darwin", {}, "/h/Library/Application Support/turnout", "/h/Library/Application Support/turnout"),
        ("darwin", {"XDG_DATA_HOME": "/x"}, "/x/turnout", "/h/Library/Application Support/turnout"),
        ("win32", {"LOCALAPPDATA": "/l", "APPDATA": "/a"}, "/l/turnout", "/a/turnout"),
        ("win32", {}, "/h/turnout", "/h/turnout"),
    ],
)
def test_each_platform_has_its_places(
    system: str, env: dict[str, str], data: str, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", system)
    assert data_dir({"HOME": "/h"} | env) == Path(data)
    assert user_config_dir({"HOME": "/h"} | env) == Path(config)
    assert data_dir({"TURNOUT_DATA_DIR": "/mine"} | env) == Path("/mine")


def test_who_has_no_home_directory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert find_config(env={}, cwd=tmp_path) is None
    with pytest.raises(ConfigError, match="set HOME"):
        data_dir({})


def test_a_dict_may_hold_what_python_has() -> None:
    data: dict[str, object] = {
        "serena": {"workspace": PurePosixPath("/w")},
        "custom_endpoints": ({"name": "a", "endpoint": "unix:/run/llama.sock"},),
    }
    config = load_dict(data).config
    assert config.serena.workspace == "/w"
    assert config.custom_endpoints == (CustomEndpoint(name="a", endpoint="unix:/run/llama.sock"),)
    for workspace in ("", "~nobody-here/w"):
        with pytest.raises(ConfigError, match=r"^serena\.workspace: "):
            load_dict({"serena": {"workspace": workspace}})
    endless: dict[str, object] = {}
    endless["serena"] = endless
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_dict(endless)
    with pytest.raises(ConfigError, match=r"^services\.ollama\.timeout: "):
        load_dict({"services": {"ollama": {"timeout": "x"}}})


def test_the_callers_dict_stays_as_it_was() -> None:
    data: dict[str, object] = {"version": 1.0, "serena": {"priority": False}, "task_routing": {"analysis": {}}}
    before = repr(data)
    load_dict(data)
    assert repr(data) == before


@pytest.mark.parametrize("text", [OWNERS.read_text("utf-8"), example_yaml(DEFAULT_URLS), ""])
def test_values_written_out_load_to_the_same(text: str, tmp_path: Path) -> None:
    config = load_text(text, tmp_path, WORKSPACE_ROOT="/w").config
    assert load_dict(msgspec.to_builtins(config)).config == config


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = (RouterConfig, ServiceConfig, CustomEndpoint, TaskRouting, SecurityConfig)
WORDS = sorted({*DEFAULT_URLS, "coding", *(name for section in SECTIONS for name in section.__struct_fields__)})
NEAR = st.recursive(
    VALUES, lambda inner: st.dictionaries(st.sampled_from(WORDS), inner) | st.lists(inner, max_size=2), max_leaves=12
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(RouterConfig.__struct_fields__), NEAR))
def test_any_dict_loads_or_is_a_config_error(data: dict[str, object]) -> None:
    try:
        loaded = load_dict(data)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert isinstance(loaded, LoadedConfig)


SPACES = ["\n", "\n  ", "\n    ", "\n  - ", "|\n", "\t", "\u2028", ": ", "--- ", "? ", "<<: "]
MARKS = ["[", "]", "{", "}", "'", '"', "%", ",", "=", "&a ", "*a ", "!t ", "!!int ", "${X}", "${", "http://x"]
SCALARS = ["~", "on", "1", "0x1f", "1e999", "2024-13-45", ".inf"]
CHUNKS = st.sampled_from([*WORDS, *SPACES, *MARKS, *SCALARS])


@settings(suppress_health_check=list(HealthCheck), max_examples=300, deadline=None)
@given(st.lists(CHUNKS | st.text(max_size=4), max_size=25).map("".join))
def test_any_text_loads_or_is_a_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "turnout.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        loaded = load_config(path, kinds=DEFAULT_URLS, env={})
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert isinstance(loaded, LoadedConfig)


def test_a_file_that_lies_in_the_current_directory_names_no_command_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "code:\n  language_servers:\n    python: [ty, server]\n    go: []\n"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    here = Path("turnout.yaml").absolute()
    here.write_text(text)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "user"), "HOME": str(tmp_path)}
    with pytest.raises(
        ConfigError, match=r"turnout\.yaml:2: code\.language_servers: a file found in the current"
    ) as caught:
        load_config(None, kinds=DEFAULT_URLS, env=env)
    assert f"--config {here}" in str(caught.value)
    expected = {"python": ("ty", "server"), "go": ()}
    assert load_config(here, kinds=DEFAULT_URLS, env=env).config.code.language_servers == expected
    named = {**env, "TURNOUT_CONFIG": "turnout.yaml"}
    assert load_config(None, kinds=DEFAULT_URLS, env=named).config.code.language_servers == expected
    here.unlink()
    (tmp_path / "user" / "turnout").mkdir(parents=True)
    (tmp_path / "user" / "turnout" / "turnout.yaml").write_text(text)
    assert load_config(None, kinds=DEFAULT_URLS, env=env).config.code.language_servers == expected


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such modes")
def test_a_secret_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("s3cret-s3cret")
    (tmp_path / "mine").chmod(0o600)
    (tmp_path / "open").write_text("s3cret-s3cret")
    (tmp_path / "open").chmod(0o644)
    file = tmp_path / "turnout.yaml"
    given = "ollama: {key: 'file:mine'}, jan: {key: 'file:open'}, vllm: {key: sk-1234567890}, lmstudio: {key: none}"
    file.write_text(f"services: {{{given}, localai: {{key: '${{K}}'}}}}")
    warnings = load_config(file, kinds=DEFAULT_URLS, env={"K": "sk-0987654321"}).warnings
    assert [warning.partition(": ")[0] for warning in warnings] == ["services.jan.key", "services.vllm.key"]
    assert "everybody may read the secret" in warnings[0]
    assert "stands in the file itself" in warnings[1]
