"""Configuration: typed sections, YAML and environment in, unknown keys refused with the nearest valid one.

The owner's keys (SPEC CFG-1) keep their names and units: times are in milliseconds, windows in tokens. What a key
means and which values it takes stands beside it, once: checks, JSON Schema and docs/configuration.md follow from it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from turnout.hidden import MASK
from turnout.places import data_dir as data_dir  # noqa: PLC0414  # handed on
from turnout.places import signing_dir as signing_dir  # noqa: PLC0414  # handed on
from turnout.places import user_config_dir as user_config_dir  # noqa: PLC0414  # handed on
from turnout.types import TaskCategory

Milliseconds: TypeAlias = Annotated[int, Meta(ge=1, le=86_400_000, extra={"unit": "ms"})]
Tokens: TypeAlias = Annotated[int, Meta(ge=1, le=100_000_000, extra={"unit": "tokens"})]
Window: TypeAlias = Annotated[int, Meta(ge=256, le=100_000_000, extra={"unit": "tokens"})]
Share: TypeAlias = Annotated[float, Meta(gt=0, le=1, extra={"unit": "share of the window"})]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000)]
Priority: TypeAlias = Annotated[int, Meta(ge=0, le=1000, description="Lower is preferred.")]
Retries: TypeAlias = Annotated[
    int, Meta(ge=0, le=100, description="How often a failed attempt is tried again at the same server.")
]
Silence: TypeAlias = Annotated[
    Milliseconds,
    Meta(
        description="The longest silence once an answer has begun. Ten times as long it may send what is no part of an "
        "answer, such as empty pieces."
    ),
]
FirstByte: TypeAlias = Annotated[
    Milliseconds | None,
    Meta(
        description="The longest wait for the answer to begin. Default: it follows the time that loading the model and "
        "reading the prompt are expected to take, 30 s to 30 min."
    ),
]
Total: TypeAlias = Annotated[
    Milliseconds,
    Meta(
        description="The longest that one attempt may take. Where several are made, the largest of their servers' "
        "limits holds for all of them together."
    ),
]
Key: TypeAlias = Annotated[
    str | None,
    Meta(
        description="The secret sent to the server. `${NAME}` takes it from the environment, `file:/path` from a file "
        "(relative to the configuration file), `keyring:SERVICE/USER` from the system's keyring, by the "
        "package `keyring` where it is installed beside Turnout. It is never shown."
    ),
]
HiddenWindow: TypeAlias = Annotated[
    Window | None,
    Meta(
        description="The window that its models really have per request, where the server does not tell. A server that "
        "is told the window with each request (Ollama) is told this one; without it, the loaded model's, else what its "
        "Modelfile says, else 16384."
    ),
]
Slots: TypeAlias = Annotated[
    Annotated[int, Meta(ge=1, le=100_000)] | None,
    Meta(
        description="Requests that it serves at once; more wait in a queue of ours. Default: what the server tells, "
        "else one where its kind is known to queue without a word, else no limit."
    ),
]
ModelNames: TypeAlias = tuple[Annotated[str, Meta(pattern=r"\S")], ...]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: immutable, a key nobody knows is an error, and a secret is never in what is printed."""

    def __rich_repr__(self) -> list[tuple[str, object]]:
        """Names and values for people, the secret masked."""
        pairs = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, MASK if name == "key" and value else value) for name, value in pairs]

    def __repr__(self) -> str:
        pairs = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({pairs})"


class ServiceConfig(Section, frozen=True, kw_only=True):
    """A known kind of server. Without a section, or without an endpoint in it, its default address is looked at."""

    enabled: Annotated[bool, Meta(description="`false` means that it is never probed and never used.")] = True
    endpoint: Annotated[
        str | None,
        Meta(description="Its address: `http://`, `https://` or `unix:/path`. Default: see the kinds below."),
    ] = None
    priority: Annotated[
        Priority, Meta(description="Lower is preferred. A server that is found and has no section here has 5.")
    ] = 1
    timeout: Silence = 30_000
    max_retries: Retries = 3
    key: Key = None
    window: HiddenWindow = None
    slots: Slots = None
    first_byte_timeout: FirstByte = None
    total_timeout: Total = 1_800_000


class CustomEndpoint(Section, frozen=True, kw_only=True):
    """Any other server: name, address, how it speaks, and where."""

    name: Annotated[str, Meta(description="What it is called in answers and logs; unique, and no kind's name.")]
    endpoint: Annotated[str, Meta(description="Its address: `http://`, `https://` or `unix:/path`.")]
    priority: Priority = 1
    timeout: Silence = 30_000
    max_retries: Retries = 3
    api_style: Annotated[
        Literal["native", "openai", "custom"],
        Meta(
            description="`openai`: it speaks the OpenAI format. `native`: it is one of the known kinds, found out by "
            "what it answers. `custom`: the OpenAI format at the paths given here."
        ),
    ] = "openai"
    key: Key = None
    chat_path: Annotated[str | None, Meta(description="Where it takes chats, when not at the usual path.")] = None
    models_path: Annotated[str | None, Meta(description="Where it lists its models, when not at the usual path.")] = (
        None
    )
    window: HiddenWindow = None
    slots: Slots = None
    first_byte_timeout: FirstByte = None
    total_timeout: Total = 1_800_000


class TaskRouting(Section, frozen=True, kw_only=True):
    """The owner's lists for one category: when they are given, they rule (SPEC SEL-2)."""

    primary_models: Annotated[ModelNames, Meta(description="Tried first, in this order.")] = ()
    fallback_models: Annotated[ModelNames, Meta(description="Tried next, in this order.")] = ()
    min_context: Annotated[
        Tokens,
        Meta(description="A model with a smaller window is left out; also what a conversation is compacted to fit."),
    ] = 8192
    require_serena: Annotated[
        bool, Meta(description="Code context is mandatory: an answer made without it says so.")
    ] = False


class RoutingConfig(Section, frozen=True, kw_only=True):
    """How a model is chosen for a category that has no ``task_routing``."""

    policy: Annotated[
        Literal["balanced", "best", "fast", "lists"],
        Meta(
            description="`balanced`: the score against the seconds that an answer is expected to take. `fast`: the "
            "seconds count four times as much. `best`: by score. `lists`: by the shipped lists, then by score."
        ),
    ] = "balanced"
    classification: Annotated[
        Literal["learned", "rules"],
        Meta(
            description="How the kind of work of a query is found out. `learned`: by the classifier that ships "
            "(docs/classifier.md). `rules`: by the owner's patterns and weighted words."
        ),
    ] = "learned"
    models_file: Annotated[
        str | None,
        Meta(description="Your own capability table, added to the shipped one. Relative to the configuration file."),
    ] = None
    memory_limit_gb: Annotated[
        Annotated[float, Meta(gt=0, le=1e6, extra={"unit": "GB"})] | None,
        Meta(description="Models that need more memory are left out."),
    ] = None
    log_decisions: Annotated[
        bool,
        Meta(
            description="Keep in the data directory what each request could have been answered by and what came of "
            "it, for `turnout eval replay` and `turnout feedback`; never what was asked."
        ),
    ] = True


class SerenaConfig(Section, frozen=True, kw_only=True):
    """Code context first: what is gathered from the workspace before any model is asked."""

    enabled: Annotated[bool, Meta(description="`false` is the same as `priority: off`.")] = True
    priority: Annotated[
        Literal["always_first", "on_demand", "off"],
        Meta(
            description="`always_first`: before every query in a workspace. `on_demand`: only when the query needs "
            "code context. `off`: never."
        ),
    ] = "always_first"
    workspace: Annotated[
        str | None,
        Meta(description="Whose code may be read. Default: the nearest directory up from the current one with `.git`."),
    ] = None


class CodeConfig(Section, frozen=True, kw_only=True):
    """Who knows the code of a workspace (docs/code.md)."""

    language_servers: Annotated[
        dict[str, tuple[str, ...]],
        Meta(
            description="The command of the language server for a language, as a list: `python: [ty, server]`. `[]`: "
            "none. Default: the first known one that is installed. Since it is run, it is not taken from a file that "
            "is found in the current directory."
        ),
    ] = {}
    budget_ms: Annotated[
        Milliseconds,
        Meta(
            description="How long a question waits for code context. What is there by then is used, and what the text "
            "search found when nobody answers."
        ),
    ] = 3000
    cold_budget_ms: Annotated[
        Milliseconds, Meta(description="The same while Serena and the language servers are being started.")
    ] = 8000
    idle_minutes: Annotated[
        int,
        Meta(
            ge=1, le=10_080, description="Their process ends when nobody asks for so long.", extra={"unit": "minutes"}
        ),
    ] = 15


class ContextConfig(Section, frozen=True, kw_only=True):
    """When and how a conversation is compacted (SPEC CTX-3)."""

    compaction_threshold: Annotated[Share, Meta(description="A conversation above it is compacted.")] = 0.8
    compaction_target: Annotated[Share, Meta(description="What it is compacted down to; below the threshold.")] = 0.5
    preserve_recent_messages: Annotated[Count, Meta(description="The last messages that are kept verbatim.")] = 10
    preserve_recent_tool_calls: Annotated[Count, Meta(description="The last tool calls that are kept verbatim.")] = 5
    max_tool_output_tokens: Annotated[
        Count, Meta(description="Longer outputs of older tool calls become a stub.", extra={"unit": "tokens"})
    ] = 500
    summary_timeout: Annotated[
        int,
        Meta(
            ge=0,
            le=600_000,
            description="How long the smallest loaded model may take to summarise older messages; 0, or when it takes "
            "longer: their first sentences.",
            extra={"unit": "ms"},
        ),
    ] = 8000


class SessionsConfig(Section, frozen=True, kw_only=True):
    """What is kept of our own conversations, as plain text (docs/sessions.md). Of the gateway's nothing is kept."""

    store: Annotated[
        bool,
        Meta(description="`false` keeps nothing on the disk: a chat lives in memory, and has no history of lines."),
    ] = True
    retention_days: Annotated[
        int,
        Meta(
            ge=0,
            le=36_500,
            description="A conversation that was not used for so long is deleted; 0 keeps it for ever.",
            extra={"unit": "days"},
        ),
    ] = 90


class SecurityConfig(Section, frozen=True, kw_only=True):
    """What may be dialled, and what is written down (SPEC SEC-1 to SEC-4). Loopback always may be dialled."""

    allow_external: Annotated[
        bool, Meta(description="Lifts the allow-list, loudly. Refused while `environment` is `air-gapped`.")
    ] = False
    allowed_hosts: Annotated[
        tuple[str, ...], Meta(description="Names (matched whole), addresses or CIDRs, without scheme and port.")
    ] = ("localhost", "127.0.0.1", "host.docker.internal")
    allowed_cidrs: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks; `[]` for none. What an allowed name leads to must be in one. While `environment` is "
            "`air-gapped`: no public one, none larger than a /8 (IPv6: /16)."
        ),
    ] = ("192.168.0.0/16", "10.0.0.0/8", "172.16.0.0/12")
    ca_file: Annotated[
        str | None,
        Meta(
            description="The site's own authority (PEM): only servers with its certificates are trusted at `https://` "
            "addresses. Relative to the configuration file. Default: whom the system trusts."
        ),
    ] = None
    audit_enabled: Annotated[bool, Meta(description="Write the audit log; when it cannot be opened, nothing runs.")] = (
        True
    )
    audit_log_path: Annotated[
        str | None,
        Meta(description="Relative to the configuration file. Default: `audit.log` in the data directory."),
    ] = None
    audit_head_path: Annotated[
        str | None,
        Meta(
            description="The signed head of the log, which shows that no tail was cut off: best on another disk or "
            "machine. Relative to the configuration file. Default: in the data directory."
        ),
    ] = None
    audit_rotate_mb: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="A larger log file (MB) is full, and the log goes on in a new one; 0: never.",
        ),
    ] = 100
    audit_rotate_days: Annotated[
        int, Meta(ge=0, le=36_500, description="A log file whose first line is older (days) is full; 0: never.")
    ] = 30
    audit_keep_days: Annotated[
        int,
        Meta(
            ge=0, le=36_500, description="Full files are deleted after so many days, which the log records; 0: never."
        ),
    ] = 365
    audit_on_failure: Annotated[
        Literal["refuse", "continue"],
        Meta(
            description="When nothing can be written: `refuse` every query, or `continue` with an alarm; how many "
            "records are missing is then written as soon as that is possible."
        ),
    ] = "refuse"
    audit_fsync: Annotated[
        Literal["never", "second", "always"],
        Meta(
            description="When lines are forced to the disk: left to the system, with the head about each second, or at "
            "each write before a query runs (cost: docs/benchmarks.md)."
        ),
    ] = "second"
    audit_syslog: Annotated[
        str | None, Meta(description="A local syslog socket that gets a copy of every line, such as `/dev/log`.")
    ] = None
    log_queries: Annotated[bool, Meta(description="Log a keyed hash of each query, never its text.")] = True
    log_responses: Annotated[bool, Meta(description="Log the text of the answers.")] = False
    verify_checksums: Annotated[
        bool,
        Meta(
            description="Verify models against the lock file that `turnout models lock` writes; without one nothing is "
            "verified. What differs from it serves nothing."
        ),
    ] = True
    models_lock: Annotated[
        str | None,
        Meta(
            description="The lock file; where it is named here it must be there. Relative to the configuration file. "
            "Default: `models.lock.json` in the data directory."
        ),
    ] = None
    model_paths: Annotated[
        tuple[str, ...],
        Meta(
            description="Folders of weights on this machine that no server tells the place of: an Ollama store, what a "
            "container has under another name."
        ),
    ] = ()
    unverified_models: Annotated[
        Literal["serve", "refuse"],
        Meta(description="Where there is a lock file: models that are not in it, or that no digest is known of."),
    ] = "serve"


class DiscoveryConfig(Section, frozen=True, kw_only=True):
    """How servers are found. Nothing beyond this machine is dialled unless it is configured."""

    enabled: Annotated[bool, Meta(description="`false`: only configured endpoints are looked at.")] = True
    timeout: Annotated[
        int, Meta(ge=1, le=60_000, description="The longest wait for one probe.", extra={"unit": "ms"})
    ] = 800
    interval: Annotated[
        int,
        Meta(
            ge=1000,
            le=86_400_000,
            description="How often `turnout serve` looks at a server again; at most 20 looks a second in all.",
            extra={"unit": "ms"},
        ),
    ] = 15_000
    loopback_only: Annotated[
        bool,
        Meta(
            description="Nothing beyond this machine's loopback is looked for: no aliases of a container's host, no "
            "gateway, no scan, no beacon. `TURNOUT_LOOPBACK_ONLY=1` is the same. Configured endpoints stay."
        ),
    ] = False
    inventory: Annotated[
        str | None,
        Meta(description="The site's list of servers (docs/fleet.md). Relative to the configuration file."),
    ] = None
    inventory_key: Annotated[
        str | None,
        Meta(description="The site's Ed25519 public key (PEM): the inventory is used only when its signature is good."),
    ] = None
    scan_cidrs: Annotated[
        tuple[str, ...],
        Meta(description="Networks to scan, each at most a /24 and in the allow-list. Nothing is scanned by default."),
    ] = ()
    scan_ports: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65_535)], ...],
        Meta(description="The ports that a scan tries. Default: those of the known kinds."),
    ] = ()
    scan_rate: Annotated[
        int, Meta(ge=1, le=1000, description="Connections that a scan begins, at most.", extra={"unit": "a second"})
    ] = 50
    scan_interval: Annotated[
        int,
        Meta(ge=60_000, le=86_400_000, description="How often `turnout serve` scans again.", extra={"unit": "ms"}),
    ] = 3_600_000
    beacon: Annotated[
        bool, Meta(description="Listen for servers that announce themselves by broadcast (UDP port 13305).")
    ] = False


class EmbeddedConfig(Section, frozen=True, kw_only=True):
    """The bundled demonstration model."""

    fallback: Annotated[bool, Meta(description="`true` is the agreement to use it when nothing else answers.")] = False
    context: Annotated[int, Meta(ge=256, le=8192, description="Its window.", extra={"unit": "tokens"})] = 4096
    threads: Annotated[
        int,
        Meta(ge=1, le=256, description="On a busy machine, more than one is much slower.", extra={"unit": "threads"}),
    ] = 1


class TlsConfig(Section, frozen=True, kw_only=True):
    """TLS of the gateway (docs/gateway.md). Paths are relative to the configuration file; PEM."""

    cert: Annotated[str | None, Meta(description="Its certificate, and the chain up to the authority.")] = None
    key: Annotated[str | None, Meta(description="The private key, which not everybody may read.")] = None
    client_ca: Annotated[
        str | None,
        Meta(description="Clients must have a certificate of this authority too, beside their key. Default: not."),
    ] = None


class GatewayConfig(Section, frozen=True, kw_only=True):
    """``turnout serve`` (docs/gateway.md). Beyond loopback it needs keys."""

    host: Annotated[
        str,
        Meta(
            description="Where it listens: `127.0.0.1`, `::1`, `localhost`, or with keys another address of this host."
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535, description="The TCP port.")] = 4747
    max_body_mb: Annotated[
        int, Meta(ge=1, le=1024, description="Larger requests are refused.", extra={"unit": "MB"})
    ] = 32
    hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Names that clients call it by, beside `localhost` and the addresses it listens on; without "
            "port. A request for any other name is refused."
        ),
    ] = ()
    patience: Annotated[
        Milliseconds,
        Meta(
            description="How long the status of a stream is held while its model is loaded or reads: a failure in that "
            "time has a status of its own. Then signs of life are sent, and a failure is an event of the stream."
        ),
    ] = 5000
    max_connections: Annotated[
        int, Meta(ge=1, le=100_000, description="More at the same time are refused with 503.")
    ] = 2048
    body_timeout: Annotated[Milliseconds, Meta(description="The longest that a request may take to come in.")] = 60_000
    drain_timeout: Annotated[
        Milliseconds, Meta(description="How long what runs may go on once it is told to stop.")
    ] = 30_000
    access_log: Annotated[
        bool | None,
        Meta(description="A JSON line on standard output for each request. Default: only beyond loopback."),
    ] = None
    tls: TlsConfig = TlsConfig()


class AgentConfig(Section, frozen=True, kw_only=True):
    """What a coding agent gets that others do not (SPEC AGENT-2); docs/agents.md tells how it is known who calls."""

    default_model_preference: Annotated[
        str,
        Meta(
            description="For what it asks of `auto` or of a category. A model's id or canonical name: that model goes "
            "first. The beginning of names, such as `qwen`: those models count 10 points more where scores decide. "
            "Empty: no preference."
        ),
    ] = ""
    context_format: Annotated[
        Literal["openai", "anthropic", "qwen"],
        Meta(
            description="How code context is written into its prompts. `openai`: under Markdown headings. `anthropic`: "
            "in XML elements. `qwen`: in fenced blocks under headings."
        ),
    ] = "openai"
    supports_streaming: Annotated[
        bool, Meta(description="`false`: the answer that it asks for as a stream comes in one piece, when it is whole.")
    ] = True


class RouterConfig(Section, frozen=True, kw_only=True):
    """The whole configuration. Build it with ``load_config`` or ``load_config_from_dict``."""

    version: Annotated[str, Meta(description='Version of this format: `"1.0"`.')] = "1.0"
    environment: Annotated[
        Literal["air-gapped", "internal", "development"],
        Meta(description="`air-gapped` forbids `security.allow_external`; the others allow it."),
    ] = "air-gapped"
    services: Annotated[dict[str, ServiceConfig], Meta(description="The known kinds of server.")] = {}
    custom_endpoints: Annotated[tuple[CustomEndpoint, ...], Meta(description="Any other servers.")] = ()
    task_routing: Annotated[
        dict[TaskCategory, TaskRouting], Meta(description="Which models for which kind of work.")
    ] = {}
    routing: RoutingConfig = RoutingConfig()
    serena: SerenaConfig = SerenaConfig()
    code: CodeConfig = CodeConfig()
    context: ContextConfig = ContextConfig()
    sessions: SessionsConfig = SessionsConfig()
    security: SecurityConfig = SecurityConfig()
    discovery: DiscoveryConfig = DiscoveryConfig()
    embedded: EmbeddedConfig = EmbeddedConfig()
    gateway: GatewayConfig = GatewayConfig()
    agents: Annotated[dict[str, AgentConfig], Meta(description="What single coding agents get.")] = {}


class LoadedConfig(msgspec.Struct, frozen=True):
    """A configuration and where it came from.

    Attributes:
        config: the values.
        file: the file it was read from, or None for defaults or a dict.
        warnings: things that are allowed and probably not meant, one line each.
        lines: the 1-based line of each dotted key path in the file.
    """

    config: RouterConfig
    file: Path | None = None
    warnings: tuple[str, ...] = ()
    lines: dict[str, int] = {}

    def place(self, key: str) -> str:
        """Where a key is for people: ``turnout.yaml:3: services.ollama.endpoint``, without a file the key alone."""
        line = self.lines.get(key, 0)
        where = ":".join(part for part in (str(self.file or ""), str(line or "")) if part)
        return f"{where}: {key}" if where else key


def section_of(config: RouterConfig, endpoint: str) -> str:
    """The key path of the section of a configured endpoint, by the endpoint's name."""
    numbers = [n for n, custom in enumerate(config.custom_endpoints) if custom.name == endpoint]
    return f"custom_endpoints.{numbers[0]}" if numbers else f"services.{endpoint}"


def audit_path(loaded: LoadedConfig, env: Mapping[str, str] = os.environ) -> Path:
    """The audit log: relative to the configuration file, or in the data directory when no path is configured.

    Raises:
        ConfigError: no path is configured, and there is no home directory.
    """
    given = loaded.config.security.audit_log_path
    if not given:
        return data_dir(env) / "audit.log"
    return beside(loaded, given)


def beside(loaded: LoadedConfig, given: str) -> Path:
    """A configured path, relative to the configuration file."""
    return (loaded.file.parent if loaded.file else Path.cwd()) / Path(given).expanduser()
