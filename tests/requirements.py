"""Every requirement of the specification, by id: the tests that prove it, or the issue that will.

A row is ``(id, what, proof)``. Proof is ``deferred: <issue>`` or ``Proven(tests, code)``: each test must execute the
named code (``module:qualified.name``), which ``python -m tests.check_requirements`` shows from the coverage data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Proven:
    """Tests (``path::name``, relative to tests/) and the code that each of them must execute.

    Of a test with cases, ``path::name[case]`` means one, and the name alone the first three that ran.
    """

    tests: tuple[str, ...]
    code: tuple[str, ...]


def by(*tests: str, code: str | tuple[str, ...]) -> Proven:
    return Proven(tests, (code,) if isinstance(code, str) else code)


def serves(kind: str, backend: str, *, streams: bool = True) -> Proven:
    """A kind of server (SPEC SVC-1): found, known, well, its models listed, and a chat answered, streamed and not."""
    names = ("identified", "online", "models", "chat", *(("stream",) if streams else ()))
    tests = tuple(f"{KINDS}[{kind}-{name}]" for name in names)
    return Proven(tests, (f"turnout.backends.{backend}.identify", f"turnout.backends.{backend}.inspect"))


def airgap(line: str, check: str) -> Proven:
    """A line of the air-gap checklist: that it is checked, passes and fails (not that the site passes it)."""
    cases = (f"{CHECKED}test_each_line_passes[{line}]", f"{CHECKED}test_each_line_fails_with_evidence_and_fix")
    return Proven(cases, (f"turnout.cli.airgap:{check}",))


LATER = "deferred: no issue filed yet"

BUNDLE = "bundle/"
LOCK = "cli/test_models_lock.py::"
EDITS = "code/test_edits.py::"
APPLY = "code/test_apply.py::"
ANSWERS = "code/test_answers.py::"
EDITS_CLI = "cli/test_edits.py::"
EDIT_SYMBOLS = "code/test_edit_symbols.py::"
BAD_WORKSPACE = "cli/test_bad_workspace.py::"
REAL = "test_pipeline_real.py::"
GATE = "gateway/test_gateway.py::"
AGENT_GATE = "gateway/test_agents.py::"
CALLERS = "fleet/test_callers.py::"
FITTING = "test_fitting.py::"
SUMMARY = "test_summary.py::"
HANDOFF = "test_handoff.py::"
MODELS_GATE = "gateway/test_models.py::"
OLLAMA_GATE = "gateway/test_ollama.py::"
UNTHINKING = (
    "wire/test_requests.py::"
    "test_who_wants_no_thinking_is_heard_where_a_servers_switch_is_known_and_nothing_else_is_sent"
)
SIDE_GATE = "gateway/test_side.py::"
NATIVE = "gateway/test_native.py::"
PASSING = "wire/test_passing.py::"
ALLOW = "guard/test_allow.py::"
ACCESS = "gateway/test_access.py::"
TOKENS = "guard/test_tokens.py::"
TLS = "gateway/test_tls.py::"
SECRETS = "gateway/test_secrets.py::"
PROVE = "guard/test_prove.py::"
CUT = "guard/test_cut.py::"
HOOK = "guard/test_hook.py::"
LEAVES = "cli/test_nothing_leaves.py::"
CHECKED = "cli/test_airgap.py::"
NET = "guard/test_network.py::"
CONF = "test_config.py::"
NAMES = "routing/test_names.py::"
CAPABILITIES = "routing/test_capabilities.py::"
HELD_OUT = "routing/test_held_out.py::"
PARTS = "test_parts.py::"
LSP = "code/test_lsp.py::"
CHAIN = "code/test_chain.py::"
GATHER = "code/test_gather.py::"
SEALING = "guard/test_sealing.py::"
FALL = "test_fallback.py::"
PLAN = "routing/test_fallback.py::"
SERENA = "code/test_serena_real.py::"
SCRIPTED = "code/test_serena.py::"
LLAMACPP = "backends/test_llamacpp.py::"
OLLAMA = "backends/test_ollama.py::"
KINDS = "backends/test_conformance.py::test_behaviour"
CUSTOM = "fleet/test_custom.py::"
SEARCH = "fleet/test_search.py::"
BUILD = "test_build.py::"
INVENTORY = "fleet/test_inventory.py::"
HOST = "fleet/test_host.py::"
WARM = "test_residency.py::"
SHOWN = "cli/test_fleet.py::"
TALKS = "cli/test_session.py::"
SESSION = "test_session.py::"
UPKEEP = "context/test_upkeep.py::"
IDENTITY = "backends/test_identity.py::"
HEALTH = "fleet/test_health.py::"
WATCH = "fleet/test_watch.py::"
COMPACT = "context/test_compaction.py::"
BAD = "context/test_bad_input.py::"
HOSTED = "code/test_host.py::"
INSERTED = "test_inserted.py::"
OPENAI = "backends/test_openai_compatible.py::"

ROWS: tuple[tuple[str, str, Proven | str], ...] = (
    (
        "LIB-1",
        "quick_route answers",
        by(REAL + "test_quick_route_answers_with_the_real_model", code="turnout.api:quick_route"),
    ),
    (
        "LIB-1",
        "NoServiceError says what was probed",
        by(REAL + "test_nothing_listening_is_no_service", code="turnout.router:Router._select"),
    ),
    (
        "LIB-2",
        "LocalLLMRouter: route, stream, close",
        by(
            REAL + "test_the_stream_says_its_route_first_and_reports_usage",
            code=("turnout.api:LocalLLMRouter.events", "turnout.api:LocalLLMRouter.initialize"),
        ),
    ),
    ("LIB-2", "file_context", by(PARTS + "test_file_context_is_checked", code="turnout.api:parse_file_context")),
    (
        "LIB-2",
        "session_id",
        by(REAL + "test_a_session_survives_a_restart", code="turnout.api:LocalLLMRouter._open_store"),
    ),
    (
        "LIB-3",
        "steps 1 to 9 in order",
        by(
            REAL + "test_quick_route_answers_with_the_real_model",
            code=("turnout.router:Router.route", "turnout.request:classify", "turnout.router:Router._with_code"),
        ),
    ),
    (
        "LIB-3",
        "code context comes before the model",
        by(
            PARTS + "test_code_context_reaches_the_model_at_the_end_of_the_users_turn",
            code=("turnout.request:enrich", "turnout.code.enrich:build_enriched_query", "turnout.code.search:look_up"),
        ),
    ),
    (
        "LIB-3",
        "apply edits when asked",
        by(
            EDITS_CLI + "test_apply_writes_and_undo_takes_it_back",
            EDITS_CLI + "test_the_library_proposes_applies_and_undoes",
            code=("turnout.run:proposed_in", "turnout.code.apply:Editor.apply"),
        ),
    ),
    (
        "LIB-4",
        "the system prompt",
        by(PARTS + "test_the_system_prompt_states_what_it_must", code="turnout.api:build_system_prompt"),
    ),
    ("LIB-5", "quick_route is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    ("LIB-5", "LocalLLMRouter is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    ("LIB-5", "RouterConfig is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    ("LIB-5", "TaskCategory is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    (
        "LIB-5",
        "ClassificationResult is public",
        by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__"),
    ),
    ("LIB-5", "FallbackLevel is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    ("LIB-5", "ExecutionResult is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    ("LIB-5", "detect_os is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    ("LIB-5", "discover_services is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    ("LIB-5", "classify_task is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    ("LIB-5", "select_model is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    (
        "LIB-5",
        "build_enriched_query is public",
        by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__"),
    ),
    (
        "LIB-5",
        "detect_coding_agent is public",
        by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__"),
    ),
    (
        "LIB-5",
        "get_agent_specific_config is public",
        by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__"),
    ),
    (
        "LIB-5",
        "load_config_from_dict is public",
        by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__"),
    ),
    ("LIB-5", "get_token_counter is public", by(PARTS + "test_every_public_name_is_there", code="turnout:__getattr__")),
    (
        "SVC-1",
        "llama.cpp",
        by(
            REAL + "test_the_stream_says_its_route_first_and_reports_usage",
            code="turnout.backends.llamacpp:LlamaCpp.inspect",
        ),
    ),
    (
        "SVC-1",
        "Ollama",
        by(
            GATE + "test_an_ollama_behind_an_openai_client_is_translated", code="turnout.backends.ollama:Ollama.inspect"
        ),
    ),
    ("SVC-1", "llama.cpp, by its fake", serves("llamacpp", "llamacpp:LlamaCpp")),
    ("SVC-1", "Ollama, by its fake", serves("ollama", "ollama:Ollama")),
    ("SVC-1", "LM Studio", serves("lmstudio", "lmstudio:LmStudio")),
    ("SVC-1", "Jan", serves("jan", "jan:Jan")),
    ("SVC-1", "Open WebUI", serves("openwebui", "openwebui:OpenWebUI")),
    ("SVC-1", "LocalAI", serves("localai", "localai:LocalAI")),
    ("SVC-1", "vLLM", serves("vllm", "vllm:Vllm")),
    ("SVC-1", "KoboldCpp", serves("koboldcpp", "koboldcpp:KoboldCpp")),
    ("SVC-1", "GPT4All, which does not stream", serves("gpt4all", "gpt4all:Gpt4All", streams=False)),
    ("SVC-1", "text-generation-webui", serves("textgen", "textgen:TextGen")),
    (
        "SVC-2",
        "custom endpoints",
        by(GATE + "test_unknown_fields_survive_the_raw_lane", code="turnout.fleet.discovery:targets"),
    ),
    (
        "SVC-2",
        "key, chat_path and models_path in each api_style",
        by(
            CUSTOM + "test_it_is_found_and_answers_with_its_key_at_its_paths[native-koboldcpp-paths0-koboldcpp]",
            CUSTOM + "test_it_is_found_and_answers_with_its_key_at_its_paths[openai-openai-paths4-openai]",
            CUSTOM + "test_it_is_found_and_answers_with_its_key_at_its_paths[custom-openai-paths5-openai]",
            CUSTOM + "test_paths_are_those_of_the_openai_format_also_at_a_server_with_one_of_its_own",
            code=("turnout.fleet.discovery:_custom", "turnout.fleet.discovery:_spoken_to"),
        ),
    ),
    (
        "SVC-3",
        "identity by fingerprint: llama.cpp, Ollama, any OpenAI-compatible server",
        by(
            LLAMACPP + "test_it_names_itself_in_every_state",
            OLLAMA + "test_it_is_known_by_its_greeting_and_its_status",
            OPENAI + "test_it_is_known_by_its_model_list_alone",
            code="turnout.fleet.discovery:identify",
        ),
    ),
    (
        "SVC-3",
        "identity by fingerprint: every kind is itself at every kind's default port",
        by(
            IDENTITY + "test_every_kind_is_itself_at_every_default_port",
            code=(
                "turnout.fleet.discovery:identify",
                "turnout.backends.lmstudio:LmStudio.identify",
                "turnout.backends.jan:Jan.identify",
                "turnout.backends.openwebui:OpenWebUI.identify",
                "turnout.backends.localai:LocalAI.identify",
                "turnout.backends.vllm:Vllm.identify",
                "turnout.backends.koboldcpp:KoboldCpp.identify",
                "turnout.backends.gpt4all:Gpt4All.identify",
                "turnout.backends.textgen:TextGen.identify",
            ),
        ),
    ),
    (
        "SVC-3",
        "two servers of one kind are two endpoints",
        by(IDENTITY + "test_two_of_a_kind_at_different_ports_are_two", code="turnout.fleet.discovery:identify"),
    ),
    (
        "SVC-3",
        "an address is explained: every probe, its answer, the verdict",
        by(
            "fleet/test_discovery.py::test_an_address_is_explained_with_every_probe_and_rule",
            code="turnout.fleet.discovery:explain_address",
        ),
    ),
    ("SVC-4", "needs_key", by(REAL + "test_a_wrong_key_is_not_retried", code="turnout.backends.base:health_of_status")),
    (
        "SVC-4",
        "loading",
        by(
            REAL + "test_a_loading_server_is_waited_for",
            code=("turnout.fleet.discovery:look", "turnout.router:Router._wait_for_load"),
        ),
    ),
    (
        "SVC-4",
        "offline with its reason",
        by(REAL + "test_nothing_listening_is_no_service", code="turnout.fleet.discovery:look"),
    ),
    (
        "SVC-3",
        "one server at two addresses, or run by another, is one endpoint",
        by(
            WATCH + "test_one_server_at_two_names_is_used_once",
            WATCH + "test_a_servers_own_child_is_shown_and_not_used",
            code="turnout.fleet.dedupe:settle",
        ),
    ),
    (
        "SVC-4",
        "degraded, with what it has, when it is slow once",
        by(
            WATCH + "test_a_slow_look_leaves_a_server_in_use_behind_the_others",
            HEALTH + "test_a_server_that_is_slow_once_is_degraded_and_after_several_looks_offline",
            code="turnout.fleet.health:_after_silence",
        ),
    ),
    (
        "SVC-4",
        "hostile servers are bounded, marked with the reason, and harmless to a terminal",
        by(
            "fleet/test_hostile.py::test_what_a_terminal_would_obey_is_never_kept",
            "fleet/test_hostile.py::test_a_list_of_a_hundred_thousand_models_is_cut_and_says_so",
            "fleet/test_hostile.py::test_many_hostile_servers_leave_the_good_one_usable",
            code="turnout.fleet.discovery:_bounded",
        ),
    ),
    (
        "SVC-4",
        "the state machine with one writer",
        by(
            HEALTH + "test_a_state_has_its_reason_and_its_time_and_remembers_the_last_changes",
            HEALTH + "test_whatever_happens_whenever_it_is_tried_again",
            code="turnout.fleet.health:after_look",
        ),
    ),
    (
        "SVC-4",
        "servers that come and go are noticed",
        by(
            WATCH + "test_servers_that_come_and_go_are_noticed",
            WATCH + "test_a_feed_makes_a_look_come_soon_and_is_read_again_after_it_broke",
            code="turnout.fleet.watch:Fleet._watch",
        ),
    ),
    (
        "SVC-5",
        "window, size, residency as the server tells them",
        by(
            OLLAMA + "test_a_list_without_capabilities_is_completed_model_by_model",
            OLLAMA + "test_a_loaded_models_window_is_the_one_it_was_given",
            code="turnout.backends.ollama:_model",
        ),
    ),
    (
        "SVC-5",
        "window, size, residency of a llama.cpp server, alone and as a router",
        by(
            LLAMACPP + "test_a_running_server_tells_its_window_size_and_quantisation",
            LLAMACPP + "test_a_routers_models_have_the_window_that_they_will_get",
            code="turnout.backends.llamacpp:LlamaCpp.model",
        ),
    ),
    (
        "SVC-5",
        "resident, windows, quantisation and capabilities as LM Studio tells them",
        by(
            KINDS + "[lmstudio-window]",
            KINDS + "[lmstudio-max_window]",
            KINDS + "[lmstudio-residency]",
            KINDS + "[lmstudio-quantization]",
            KINDS + "[lmstudio-capabilities]",
            code="turnout.backends.lmstudio:LmStudio.inspect",
        ),
    ),
    (
        "SVC-5",
        "the digest where the server gives one",
        by(KINDS + "[ollama-digest]", code="turnout.backends.ollama:_model"),
    ),
    (
        "SVC-5",
        "a model that a server only proxies to elsewhere is not used",
        by(KINDS + "[ollama-remote]", KINDS + "[openwebui-remote]", code="turnout.fleet.discovery:_look"),
    ),
    (
        "SVC-5",
        "pinned models stay resident",
        by(
            WARM + "test_a_dropped_model_is_loaded_again",
            WARM + "test_a_load_that_fails_is_tried_again_after_a_pause_that_grows",
            code="turnout.residency:_keep_warm",
        ),
    ),
    (
        "SVC-5",
        "no load pushes a pinned model out",
        by("fleet/test_pins.py::test_what_a_load_would_push_out", code="turnout.fleet.pins:evicted_by"),
    ),
    (
        "SVC-5",
        "the guess from the name is the last resort",
        by(PARTS + "test_a_guess_is_marked_as_one", code="turnout.routing.capabilities:guess_window"),
    ),
    ("SVC-6", "where we run", by(PARTS + "test_where_we_run", code="turnout.fleet.host:detect_os")),
    ("SVC-6", "WSL and its networking mode", by(HOST + "test_wsl", code="turnout.fleet.host:_wsl_networking")),
    ("SVC-6", "container kinds", by(HOST + "test_containers", code="turnout.fleet.host:_container")),
    (
        "SVC-6",
        "default gateways",
        by(HOST + "test_the_gateway_is_read_where_it_may_be_the_host", code="turnout.fleet.host:_default_gateway"),
    ),
    (
        "SVC-6",
        "default addresses are expanded, never rewritten",
        by(HOST + "test_default_addresses_are_expanded_never_rewritten", code="turnout.fleet.host:candidate_urls"),
    ),
    (
        "SVC-6",
        "one switch ends discovery at loopback",
        by(
            "fleet/test_reach.py::test_one_switch_ends_discovery_at_loopback",
            SEARCH + "test_one_switch_ends_both",
            code="turnout.fleet.host:loopback_only",
        ),
    ),
    (
        "SVC-7",
        "a dead endpoint delays nothing",
        by(
            WATCH + "test_those_that_hang_hold_up_neither_the_start_nor_the_others",
            REAL + "test_a_second_server_takes_over_before_the_first_byte",
            code="turnout.fleet.watch:Fleet._look_at_all",
        ),
    ),
    (
        "SVC-7",
        "scans and announcements, when they are asked for",
        by(
            SEARCH + "test_who_is_heard_is_looked_at",
            SEARCH + "test_a_later_scan_finds_who_came_later_and_each_is_audited",
            SEARCH + "test_closing_ends_a_scan_that_is_under_way",
            code="turnout.fleet.search:keep_on",
        ),
    ),
    (
        "SVC-7",
        "the site's inventory, signed, with drift",
        by(
            BUILD + "test_the_sites_inventory_is_looked_at_and_drift_is_said",
            code=("turnout.build:read_listed", "turnout.fleet.inventory:compared"),
        ),
    ),
    (
        "SVC-7",
        "an inventory whose signature is not good is not used",
        by(INVENTORY + "test_nothing_is_read_whose_signature_is_not_good", code="turnout.fleet.inventory:_verify"),
    ),
    (
        "TASK-1",
        "category, confidence, evidence, needs_code_context",
        by(PARTS + "test_the_owners_rules", code="turnout.routing.classify:classify_task"),
    ),
    ("TASK-2", "the owner's rules", by(PARTS + "test_the_owners_rules", code="turnout.routing.classify:classify_task")),
    (
        "TASK-3",
        "a classifier that ships and needs no library",
        by(
            "routing/test_classifier.py::test_plain_cases",
            "routing/test_classifier.py::test_what_is_pasted_and_how_it_is_wrapped_decides_nothing",
            code="turnout.routing.classifier:Classifier.classify",
        ),
    ),
    (
        "TASK-3",
        "how good the classifier is can be measured on queries of one's own",
        by(
            "cli/test_eval.py::test_the_measures_are_those_made_by_hand",
            "cli/test_eval.py::test_the_shipped_classifier_is_measured",
            code=("turnout.routing.evaluate:evaluate", "turnout.cli.evaluate:classify"),
        ),
    ),
    (
        "SEL-1",
        "the owner's models are in the table",
        by(NAMES + "test_every_canonical_name_resolves_to_itself", code="turnout.routing.capabilities:load_table"),
    ),
    (
        "SEL-1",
        "scores from evidence for today's models, each with its sources",
        by(
            CAPABILITIES + "test_every_score_can_be_computed_again_from_its_evidence",
            code="turnout.routing.why:scored",
        ),
    ),
    (
        "SEL-1",
        "each score is told with its terms and their sources",
        by(
            "cli/test_capabilities.py::test_the_terms_make_the_score",
            "cli/test_capabilities.py::test_why_names_each_result_with_its_list_and_date",
            code=("turnout.routing.why:scored", "turnout.cli.capabilities:explain_model"),
        ),
    ),
    (
        "SEL-1",
        "a mistake in the user's own file is told, left out and estimated",
        by(
            CAPABILITIES + "test_what_is_wrong_in_a_row_is_left_out_and_estimated",
            "cli/test_capabilities.py::test_a_users_score_is_said_to_be_his_and_a_mistake_is_told",
            code="turnout.routing.rows:read_rows",
        ),
    ),
    (
        "SEL-2",
        "the configured lists rule",
        by(PARTS + "test_the_owners_lists_rule", code="turnout.routing.select:_by_lists"),
    ),
    (
        "SEL-2",
        "ranking by score",
        by(PARTS + "test_without_lists_the_best_score_wins", code="turnout.routing.select:_by_score"),
    ),
    (
        "SEL-3",
        "filters, then rank, else the nearest thing",
        by(PARTS + "test_filters_come_before_the_rank", code="turnout.routing.select:select"),
    ),
    (
        "SEL-3",
        "no hard limit is ever broken, and a better candidate never makes the choice worse",
        by(
            "routing/test_select.py::test_who_lacks_what_is_needed_is_never_ranked",
            "routing/test_select.py::test_one_candidate_more_never_makes_the_choice_worse",
            "routing/test_select.py::test_simulated_fleets_with_servers_down_shut_or_leading_away",
            code="turnout.routing.select:select",
        ),
    ),
    (
        "SEL-3",
        "how good the choice is can be measured on queries of one's own, over simulated fleets or the one that runs",
        by(
            "cli/test_eval_route.py::test_wrong_labels_cost_points",
            "cli/test_eval_route.py::test_the_fleet_that_runs",
            code=("turnout.routing.simulate:decide", "turnout.cli.evaluate:route"),
        ),
    ),
    (
        "SEL-4",
        "names are parsed, not searched",
        by(NAMES + "test_a_real_id_resolves_to_its_model", code="turnout.routing.names:parse_model_name"),
    ),
    (
        "SEL-4",
        "ids written before the parser: none wrong, few unknown",
        by(
            HELD_OUT + "test_no_id_is_taken_for_another_model",
            HELD_OUT + "test_at_most_one_in_twenty_known_models_is_unknown",
            code="turnout.routing.capabilities:CapabilityTable.resolve",
        ),
    ),
    (
        "SEL-5",
        "unknown models are estimated",
        by(
            PARTS + "test_a_model_nobody_knows_is_estimated_and_can_be_chosen",
            code="turnout.routing.estimate:estimate",
        ),
    ),
    (
        "CTX-1",
        "estimates per family",
        by(PARTS + "test_tokens_are_estimated_per_family", code="turnout.context.tokens:get_token_counter"),
    ),
    (
        "CTX-1",
        "learning from what servers report, also for the next process",
        by(
            FITTING + "test_counts_follow_what_the_server_reports_also_in_the_next_process",
            code=("turnout.context.calibration:observe", "turnout.fitting:Fitter.answered"),
        ),
    ),
    (
        "CTX-1",
        "exact when the server counts, near the limit",
        by(FITTING + "test_the_servers_own_count_decides_near_the_limit", code="turnout.fitting:Fitter._count"),
    ),
    (
        "CTX-2",
        "sessions survive a restart: messages with time and tokens, active model, model history",
        by(
            REAL + "test_a_session_survives_a_restart",
            code=("turnout.context.store:SessionStore.load", "turnout.context.store:SessionStore.append"),
        ),
    ),
    (
        "CTX-2",
        "system prompt and compaction count of a session",
        by(
            REAL + "test_a_session_keeps_its_system_prompt_and_counts_what_was_sent_compacted",
            code=("turnout.context.store:exchange", "turnout.router:Router._store_exchange"),
        ),
    ),
    (
        "CTX-2",
        "killed at any moment, nothing acknowledged is lost",
        by(
            "context/test_kill.py::test_a_writer_killed_inside_an_operation_loses_nothing_it_had_told_of[12]",
            "context/test_kill.py::test_a_process_killed_while_it_makes_the_store_is_in_nobodys_way[6]",
            code="turnout.context.store:SessionStore._connect",
        ),
    ),
    (
        "CTX-2",
        "metadata of messages: which model on which service answered, at which level",
        by(TALKS + "test_hand_overs_are_shown_with_time_model_and_reason", code="turnout.context.store:exchange"),
    ),
    (
        "CTX-2",
        "several processes continue one session, each with what the others added",
        by(
            SESSION + "test_two_routers_that_continue_one_session_read_each_other",
            code=("turnout.session:Session._read", "turnout.context.store:SessionStore.version"),
        ),
    ),
    (
        "CTX-2",
        "bad input: session ids that are paths, a clock that jumps, lone surrogates, processes that migrate at once",
        by(
            BAD + "test_a_session_id_that_is_no_name_is_refused_before_a_model_is_asked",
            BAD + "test_a_clock_that_jumps_changes_no_order_and_loses_nothing",
            BAD + "test_half_characters_go_through_compaction_store_and_server",
            BAD + "test_processes_that_migrate_an_old_store_at_once_keep_what_is_in_it",
            code="turnout.context.store:open_store",
        ),
    ),
    (
        "CTX-2",
        "retention, which no clock that jumps misleads",
        by(
            UPKEEP + "test_retention_deletes_what_was_not_used_for_so_long",
            UPKEEP + "test_a_clock_that_jumps_and_comes_back_deletes_nothing",
            code="turnout.context.store:SessionStore.prune",
        ),
    ),
    (
        "CTX-2",
        "nothing is on the disk when nothing is to be stored",
        by(SESSION + "test_nothing_is_stored_when_nothing_is_to_be", code="turnout.session:open_sessions"),
    ),
    (
        "CTX-3",
        "compaction in the stated order",
        by(PARTS + "test_compaction_properties", code="turnout.context.compaction:fit"),
    ),
    (
        "CTX-3",
        "a summary by the smallest loaded model, in time, once, never in the session's only slot",
        by(
            SUMMARY + "test_a_smaller_loaded_model_writes_the_summary_and_it_stays",
            SUMMARY + "test_who_does_not_write_in_time_is_not_asked_again",
            SUMMARY + "test_the_only_slot_of_the_model_that_answers_is_left_alone",
            "test_long_conversation.py::test_a_real_model_writes_the_summary_and_it_stays_as_it_is",
            code="turnout.summary:Summarizer.write",
        ),
    ),
    (
        "CTX-4",
        "pairs, system prompt and last user message survive",
        by(PARTS + "test_compaction_properties", code="turnout.context.compaction:_cut"),
    ),
    (
        "CTX-4",
        "whatever a client sends: within the window, pairs, order, idempotent, append-stable, refused only for the last",
        by(
            COMPACT + "test_what_holds_for_whatever_a_client_sends",
            COMPACT + "test_whatever_is_added_the_longer_begins_with_the_shorter",
            COMPACT + "test_whatever_came_before_only_the_last_user_message_can_be_too_long",
            COMPACT + "test_a_long_answers_room_does_not_move_the_prefix_with_every_message",
            code="turnout.context.compaction:fit",
        ),
    ),
    (
        "CTX-4",
        "sixty turns of the real server, read at its side",
        by(
            "test_long_conversation.py::test_a_session_of_sixty_turns[short]",
            "test_long_conversation.py::test_an_agent_that_resends_sixty_turns_with_tools[short]",
            code=("turnout.fitting:Fitter.fit", "turnout.context.compaction:_cut"),
        ),
    ),
    (
        "CTX-4",
        "reversible: what is left out of a request is still shown by turnout session show --full",
        by(
            TALKS + "test_show_is_what_would_be_sent_and_full_is_the_original",
            code=("turnout.session:outlook", "turnout.cli.session:markdown"),
        ),
    ),
    (
        "CTX-5",
        "the hand-over between models of a session is kept and shown with time and reason",
        by(
            TALKS + "test_hand_overs_are_shown_with_time_model_and_reason",
            code=("turnout.context.store:_switch", "turnout.cli.session:markdown"),
        ),
    ),
    (
        "CTX-5",
        "calls, results and reasoning go along, the window is kept, and the switch is recorded with its reason",
        by(
            HANDOFF + "test_calls_results_and_reasoning_go_along_in_the_other_dialect",
            HANDOFF + "test_a_smaller_window_compacts_and_the_switch_is_recorded_with_its_reason",
            code="turnout.router:Router._attempt",
        ),
    ),
    (
        "FB-1",
        "every attempt is named, with level and service",
        by(REAL + "test_a_second_server_takes_over_before_the_first_byte", code="turnout.router:Router._execute"),
    ),
    (
        "FB-1",
        "the five levels: primary, fallback, reduced context, smallest, failed",
        by(
            FALL + "test_an_error_does_what_the_page_says[primary-fails with a 500]",
            FALL + "test_an_error_does_what_the_page_says[reduced-refuses the key]",
            FALL + "test_an_error_does_what_the_page_says[before-fails with a 500]",
            FALL + "test_an_error_does_what_the_page_says[alone-fails with a 500]",
            code=("turnout.routing.fallback:plan_attempts", "turnout.routing.fallback:after_error"),
        ),
    ),
    (
        "FB-1",
        "the result and the audit log have each attempt with its error and its duration, also one that was left",
        by(
            FALL + "test_who_leaves_is_in_the_audit_log_with_the_server_that_was_asked",
            FALL + "test_the_duration_of_the_answer_is_that_of_the_whole_answer",
            code=("turnout.router:Router._execute", "turnout.outcome:record_of"),
        ),
    ),
    (
        "FB-1",
        "who asked learns which failure decided, and what else was tried",
        by(
            FALL + "test_a_failed_plan_tells_a_client_what_else_was_tried",
            code=("turnout.outcome:cause_of", "turnout.gateway.refusal:cause_of"),
        ),
    ),
    (
        "FB-2",
        "only overflow leads to level 2",
        by(REAL + "test_a_real_overflow_leads_to_level_2_and_succeeds", code="turnout.routing.fallback:after_error"),
    ),
    (
        "FB-2",
        "each class of error prunes the plan",
        by(PARTS + "test_what_an_error_does_to_the_plan", code="turnout.routing.fallback:after_error"),
    ),
    (
        "FB-2",
        "a refused key is not retried",
        by(
            FALL + "test_an_error_does_what_the_page_says[alone-refuses the key]",
            code=("turnout.router:Router._execute", "turnout.routing.fallback:after_error"),
        ),
    ),
    (
        "FB-2",
        "a busy server is tried elsewhere, then waited for as it says, before the smallest model has to do",
        by(
            FALL + "test_an_error_does_what_the_page_says[primary-is busy, with Retry-After]",
            FALL + "test_an_error_does_what_the_page_says[before-is busy, with Retry-After]",
            FALL + "test_a_busy_server_is_waited_for_as_long_as_it_says_and_no_shorter",
            code="turnout.routing.fallback:_again_later",
        ),
    ),
    (
        "FB-2",
        "a server that is busy for minutes is not waited for, and the client is told",
        by(
            FALL + "test_an_error_does_what_the_page_says[alone-is busy for minutes]",
            PLAN + "test_an_error_keeps_retries_before_the_smallest_model_and_a_load_behind_it",
            code="turnout.routing.fallback:_again_later",
        ),
    ),
    (
        "FB-3",
        "time limits by phase: connect, first byte, silence, total",
        by(
            FALL + "test_an_error_does_what_the_page_says[alone-connections are not accepted]",
            FALL + "test_an_error_does_what_the_page_says[alone-no first byte]",
            FALL + "test_an_error_does_what_the_page_says[alone-silence after two words]",
            FALL + "test_an_error_does_what_the_page_says[alone-words without end]",
            code="turnout.guard.network:_too_long",
        ),
    ),
    (
        "FB-3",
        "an answer that goes on without a word breaks off, in both lanes",
        by(
            "test_liars.py::test_what_does_not_move_an_answer_on_keeps_it_alive_for_a_while_only",
            "test_liars.py::test_a_word_now_and_then_among_what_is_empty_keeps_an_answer_alive",
            code="turnout.guard.network:StreamReply.begin",
        ),
    ),
    (
        "FB-3",
        "a request as a whole is bounded: attempts and waits",
        by(
            FALL + "test_the_attempts_of_a_request_take_no_longer_together_than_the_longest_total",
            FALL + "test_a_place_in_the_queue_is_waited_for_no_longer_than_the_total",
            code="turnout.router:Router._execute",
        ),
    ),
    (
        "FB-3",
        "embeddings, reranking and text completions are bounded as a whole",
        by(SIDE_GATE + "test_servers_that_hang_have_one_time_together", code="turnout.sidework:_within"),
    ),
    (
        "FB-3",
        "a place in a queue is waited for no longer than the rest of the time",
        by(
            FALL + "test_a_place_in_the_queue_is_waited_for_no_longer_than_the_total",
            code="turnout.fleet.admission:_wait",
        ),
    ),
    (
        "FB-3",
        "an answer that breaks off ends with an error that carries what came, and is not retried",
        by(
            FALL + "test_an_error_does_what_the_page_says[alone-the connection is cut after two words]",
            FALL + "test_a_broken_answer_brings_a_client_what_had_come",
            code="turnout.outcome:broken",
        ),
    ),
    (
        "FB-3",
        "all retries together are bounded",
        by("test_fitting.py::test_all_retries_together_are_bounded", code="turnout.routing.fallback:RetryBudget.take"),
    ),
    (
        "FB-3",
        "no retry after the first byte",
        by(
            GATE + "test_a_stream_that_breaks_ends_with_an_error_event_and_is_not_retried",
            code="turnout.backends.lanes:raw_lane",
        ),
    ),
    (
        "FB-3",
        "circuit breaker with half-open probing",
        by(
            WATCH + "test_a_dead_server_costs_a_request_nothing",
            WATCH + "test_failed_answers_are_told_and_a_broken_server_is_left_out",
            WATCH + "test_when_all_are_dead_the_nearest_is_tried_all_the_same",
            code=("turnout.fleet.health:after_attempt", "turnout.routing.select:select_around"),
        ),
    ),
    (
        "FB-3",
        "at a half-open endpoint one request decides",
        by(
            HEALTH + "test_the_book_lets_one_request_decide_at_a_half_open_endpoint",
            code=("turnout.fleet.health:HealthBook.begin", "turnout.fleet.health:HealthBook.bars"),
        ),
    ),
    (
        "FB-3",
        "a refused key, a rate limit or an overflow opens no circuit",
        by(
            WATCH + "test_what_is_no_fault_of_the_server_bars_nobody",
            HEALTH + "test_what_is_no_fault_of_the_server_never_opens",
            code="turnout.fleet.health:after_attempt",
        ),
    ),
    (
        "FB-3",
        "the wait for a first byte follows load and prefill, unless somebody chose it",
        by(
            FITTING + "test_a_server_that_hangs_is_given_up_when_an_honest_one_would_have_begun",
            code="turnout.routing.patience:first_byte_limit",
        ),
    ),
    (
        "FB-3",
        "all retries together are bounded",
        by(FITTING + "test_all_retries_together_are_bounded", code="turnout.routing.fallback:RetryBudget.take"),
    ),
    (
        "FB-3",
        "max_retries with backoff",
        by(PARTS + "test_retries_end", code="turnout.routing.fallback:_again_later"),
    ),
    (
        "CODE-1",
        "symbol operations, by a language server",
        by(
            LSP + "test_symbol_operations",
            code=(
                "turnout.code.lsp:LanguageServer.find_symbol",
                "turnout.code.lsp:LanguageServer.references",
                "turnout.code.lsp:LanguageServer.hover",
            ),
        ),
    ),
    (
        "CODE-1",
        "navigation, by a language server",
        by(
            LSP + "test_navigation",
            code=(
                "turnout.code.lsp:LanguageServer.definition",
                "turnout.code.lsp:LanguageServer.type_definition",
                "turnout.code.lsp:LanguageServer.implementations",
            ),
        ),
    ),
    (
        "CODE-1",
        "understanding, by a language server",
        by(
            LSP + "test_understanding",
            code=(
                "turnout.code.lsp:LanguageServer.outline",
                "turnout.code.lsp:LanguageServer.workspace_symbols",
                "turnout.code.lsp:LanguageServer.calls",
            ),
        ),
    ),
    (
        "CODE-1",
        "modification: a rename is proposed as edits",
        by(LSP + "test_a_rename_is_proposed_and_nothing_is_written", code="turnout.code.lsp:LanguageServer.rename"),
    ),
    (
        "CODE-1",
        "diagnostics, by a language server",
        by(LSP + "test_diagnostics", code=("turnout.code.lsp:LanguageServer.diagnostics",)),
    ),
    (
        "CODE-1",
        "symbol operations, by the real Serena",
        by(
            SERENA + "test_symbols_are_found_by_name_by_path_of_names_and_by_part_of_a_name",
            code="turnout.code.serena:SerenaIntelligence._search",
        ),
    ),
    (
        "CODE-1",
        "symbol operations, by the real Serena: references",
        by(
            SERENA + "test_references_have_every_place_of_every_file",
            code="turnout.code.serena:SerenaIntelligence.references",
        ),
    ),
    (
        "CODE-1",
        "symbol operations, by the real Serena: hover",
        by(
            SERENA + "test_hover_tells_the_signature_and_the_documentation",
            code="turnout.code.serena:SerenaIntelligence.hover",
        ),
    ),
    (
        "CODE-1",
        "navigation, by the real Serena: definition",
        by(
            SERENA + "test_a_definition_in_another_file_is_found_from_behind_a_wide_character",
            code=("turnout.code.serena:SerenaIntelligence.definition", "turnout.code.serena_text:pattern_of"),
        ),
    ),
    (
        "CODE-1",
        "navigation, by the real Serena: implementations",
        by(
            SERENA + "test_implementations_leave_out_what_they_implement",
            code="turnout.code.serena:SerenaIntelligence.implementations",
        ),
    ),
    (
        "CODE-1",
        "understanding, by the real Serena: document symbols",
        by(
            SERENA + "test_the_outline_holds_nested_functions_and_overloads_in_order",
            code="turnout.code.serena:SerenaIntelligence.outline",
        ),
    ),
    (
        "CODE-1",
        "understanding, by the real Serena: callers",
        by(
            SERENA + "test_callers_are_told_and_not_who_only_mentions_it",
            code="turnout.code.serena:SerenaIntelligence.calls",
        ),
    ),
    (
        "CODE-1",
        "modification, by the real Serena: a whole symbol, a rename",
        by(
            SERENA + "test_a_symbol_is_replaced_and_renamed_everywhere",
            code="turnout.code.serena:SerenaIntelligence._change",
        ),
    ),
    (
        "CODE-1",
        "diagnostics, by the real Serena",
        by(
            SERENA + "test_diagnostics_of_types_of_syntax_and_of_a_file_without_fault",
            code="turnout.code.serena:SerenaIntelligence.diagnostics",
        ),
    ),
    (
        "CODE-2",
        "the enriched query",
        by(PARTS + "test_the_enriched_query", code="turnout.code.enrich:build_enriched_query"),
    ),
    (
        "CODE-2",
        "the code at the position, within the window",
        by(
            PARTS + "test_the_code_at_the_position_reaches_the_model_within_its_window",
            code=("turnout.code.excerpt:around", "turnout.router:Router._code_room"),
        ),
    ),
    (
        "CODE-3",
        "the real Serena over MCP, behind the host of its workspace",
        by(
            EDIT_SYMBOLS + "test_a_rename_by_the_real_serena_alone_is_tried_put_back_and_then_written",
            code=("turnout.code.serena_process:SerenaProcess.call", "turnout.code.host:Host._writer"),
        ),
    ),
    (
        "CODE-3",
        "what is wrong with a workspace fails no query",
        by(
            BAD_WORKSPACE + "test_an_unknown_language",
            BAD_WORKSPACE + "test_something_else_that_is_called_serena",
            BAD_WORKSPACE + "test_a_workspace_that_vanishes",
            code="turnout.code.client:HostedCode._why_not",
        ),
    ),
    (
        "CODE-4",
        "an answer's edits are parsed, and an example is none",
        by(
            EDITS + "test_every_form_changes_the_same_line",
            EDITS + "test_an_example_is_no_edit",
            EDITS + "test_half_an_edit_is_none_and_the_reason_is_told",
            code="turnout.code.edits:parse_edits",
        ),
    ),
    (
        "CODE-4",
        "validated: only plain files of the workspace",
        by(APPLY + "test_hostile_paths_are_refused", code="turnout.code.paths:checked"),
    ),
    (
        "CODE-4",
        "a corpus of answers, good, malformed and hostile, each with its outcome",
        by(
            ANSWERS + "test_an_answer_of_the_corpus_does_what_is_written_of_it_and_nothing_else",
            code="turnout.code.apply:_require_applicable",
        ),
    ),
    (
        "CODE-4",
        "proposed by default",
        by(EDITS_CLI + "test_edits_are_named_and_nothing_is_written", code="turnout.run:proposed_in"),
    ),
    (
        "CODE-4",
        "previewed as a diff",
        by(
            EDITS_CLI + "test_json_holds_the_diffs_and_why_nothing_was_written",
            code="turnout.code.preview:FileChange.diff",
        ),
    ),
    (
        "CODE-4",
        "snapshotted, all or nothing, taken back",
        by(
            APPLY + "test_all_is_written_and_taken_back",
            APPLY + "test_undo_leaves_alone_what_was_changed_since",
            code=("turnout.code.journal:Journal.begin", "turnout.code.journal:Journal.put_back"),
        ),
    ),
    (
        "CODE-4",
        "rolled back when it adds errors",
        by(APPLY + "test_new_errors_have_it_put_back", code="turnout.code.apply:_added"),
    ),
    (
        "CODE-4",
        "a symbol operation where one fits",
        by(APPLY + "test_a_symbol_is_renamed_everywhere_in_one_set", code="turnout.code.semantic:_renamed"),
    ),
    (
        "CODE-3",
        "Serena as a process over MCP, started when it is first asked",
        by(
            SCRIPTED + "test_who_asks_while_it_starts_is_answered_by_one_serena",
            SCRIPTED + "test_it_is_started_with_everything_off_that_dials_listens_or_runs_commands",
            code=("turnout.code.serena_process:start_serena", "turnout.code.serena_setup:command_of"),
        ),
    ),
    (
        "CODE-3",
        "a slow or broken Serena is an error in time, and no error text is context",
        by(
            SCRIPTED + "test_a_question_that_hangs_ends_in_time_and_makes_it_busy_until_it_answers",
            SCRIPTED + "test_what_breaks_it_is_an_error_and_the_next_question_starts_a_new_one",
            SCRIPTED + "test_an_error_text_is_an_error_without_absolute_paths",
            code="turnout.code.serena_keeper:SerenaKeeper.ask",
        ),
    ),
    (
        "CODE-3",
        "an environment of its own, from a wheelhouse",
        by(
            "code/test_install.py::test_it_is_installed_from_a_wheelhouse_once",
            code="turnout.code.install:_install",
        ),
    ),
    (
        "CODE-2",
        "hover, references and issues are gathered",
        by(GATHER + "test_at_a_position", code=("turnout.code.gather:gather", "turnout.code.ask_around:Asker.place")),
    ),
    (
        "CODE-2",
        "references for refactor and rename",
        by(GATHER + "test_by_names", code=("turnout.code.gather:wishes_of", "turnout.code.ask_around:Asker.name")),
    ),
    (
        "CODE-3",
        "who is missing, slow or broken degrades to the next",
        by(
            CHAIN + "test_who_hangs_does_not_keep_the_next_from_answering_and_is_given_up",
            code="turnout.code.chain:Chain._first",
        ),
    ),
    (
        "CODE-3",
        "never a failed query, never beyond the budget",
        by(
            GATHER + "test_who_hangs_costs_the_budget_and_not_more_and_the_text_search_answers",
            code="turnout.code.gather:gather",
        ),
    ),
    (
        "CODE-1",
        "every ability through the host of a workspace, and back with its errors",
        by(
            HOSTED + "test_every_ability_goes_there_and_back",
            HOSTED + "test_an_error_of_the_intelligence_is_an_error_of_the_same_kind_here",
            code=("turnout.code.host:Host._look", "turnout.code.connection:HostConnection._send"),
        ),
    ),
    (
        "CODE-1",
        "on the command line, by the real ty",
        by("cli/test_code.py::test_every_question_is_answered_by_a_real_server", code="turnout.cli.code:_asked"),
    ),
    (
        "CODE-2",
        "gathered once per question, never on tool results, sent again byte for byte",
        by(
            INSERTED + "test_a_question_has_its_code_in_every_later_turn",
            INSERTED + "test_a_tools_result_has_nothing_gathered_and_the_question_keeps_its_code",
            INSERTED + "test_a_session_has_it_in_the_next_process_too",
            code="turnout.inserted:Inserted.into",
        ),
    ),
    (
        "CODE-2",
        "through the gateway: only of the workspaces that a key allows",
        by(
            "gateway/test_auth.py::test_code_is_read_where_the_key_has_a_workspace_and_nowhere_else",
            code="turnout.gateway.auth:_workspace",
        ),
    ),
    (
        "CODE-3",
        "one host for each workspace, however many processes ask",
        by(HOSTED + "test_ten_processes_at_once_have_one_host", code="turnout.code.client:Hosts.running"),
    ),
    (
        "CODE-3",
        "lazy, ended when idle, with its workspace, and as the fourth",
        by(
            HOSTED + "test_it_ends_when_nobody_asks",
            HOSTED + "test_it_ends_with_its_workspace_and_with_its_socket",
            HOSTED + "test_of_four_the_one_that_was_idle_longest_ends",
            code="turnout.code.host:Host._until_it_ends",
        ),
    ),
    (
        "CODE-3",
        "missing, killed or hung: the text search within the budget, with a note",
        by(
            HOSTED + "test_a_host_that_is_killed_in_the_middle_of_a_question_is_replaced",
            HOSTED + "test_a_host_that_hangs_costs_no_more_than_the_budget_and_is_then_left_alone",
            HOSTED + "test_a_host_that_cannot_start_is_told_of_and_does_not_cost_the_budget",
            HOSTED + "test_where_nothing_is_installed_no_process_is_started",
            code="turnout.code.client:HostedCode.gather",
        ),
    ),
    (
        "CODE-4",
        "errors before and after, told by a real language server",
        by(
            EDIT_SYMBOLS + "test_an_edit_that_adds_an_error_is_put_back_by_the_real_ty",
            EDITS_CLI + "test_an_edit_that_adds_errors_is_put_back_unless_told_otherwise",
            code=("turnout.build:_intelligence_of", "turnout.code.semantic:issues_of"),
        ),
    ),
    (
        "CODE-4",
        "a rename by a real language server, through the host",
        by(
            EDIT_SYMBOLS + "test_a_rename_by_the_real_ty_is_shown_first",
            code=("turnout.code.semantic:_renamed", "turnout.code.client:HostedIntelligence.rename"),
        ),
    ),
    (
        "CODE-4",
        "through Serena where it alone can: tried, previewed, put back, also after a kill",
        by(
            EDIT_SYMBOLS + "test_a_rename_by_the_real_serena_alone_is_tried_put_back_and_then_written",
            EDIT_SYMBOLS + "test_a_trial_that_is_cancelled_is_put_back",
            code="turnout.code.trial:Trial.rename",
        ),
    ),
    (
        "CODE-4",
        "a trial that was killed is put back by the next edit",
        by(
            EDIT_SYMBOLS + "test_a_trial_that_is_killed_is_put_back_by_the_next_edit_and_others_changes_stay",
            code="turnout.code.journal:Journal._is_renamed",
        ),
    ),
    (
        "CODE-4",
        "an undo is whole or not at all, and puts back only bytes that are what was kept, within the workspace",
        by(
            APPLY + "test_an_undo_that_cannot_be_whole_changes_nothing_and_is_in_nobodys_way",
            code=("turnout.code.journal:Journal.undo", "turnout.code.journal:Journal._before"),
        ),
    ),
    (
        "CFG-0",
        "no key is accepted and ignored: enabled, allow_external",
        by(CONF + "test_a_disabled_service_is_not_looked_at", code="turnout.fleet.discovery:targets"),
    ),
    (
        "CFG-0",
        "every key documented in docs/configuration.md",
        by(
            "test_schema.py::test_the_page_tells_every_key_its_unit_and_its_default",
            code="turnout.schema:reference_markdown",
        ),
    ),
    (
        "CFG-1",
        "the owner's file loads as written",
        by(CONF + "test_the_owners_file_loads_as_written", code="turnout.config_load:load_config"),
    ),
    (
        "CFG-2",
        "mistakes are one clear line",
        by(CONF + "test_a_mistake_is_one_clear_line", code="turnout.config_load:load_config"),
    ),
    (
        "CFG-2",
        "JSON Schema",
        by("test_schema.py::test_the_schema_is_json_and_describes_every_key", code="turnout.schema:json_schema"),
    ),
    (
        "SEC-1",
        "what is allowed",
        by(ALLOW + "test_plain_destinations_are_read", code="turnout.guard.allow:AllowList.check_url"),
    ),
    (
        "SEC-2",
        "a second line: what Python code of the gateway dials outside the list is refused and logged",
        by(
            HOOK + "test_python_code_of_any_library_is_refused",
            HOOK + "test_the_gateway_has_it_and_writes_down_what_it_refused",
            code="turnout.guard.hook:second_line",
        ),
    ),
    (
        "SEC-2",
        "a child makes no packet, and that is looked at, not believed",
        by(
            CUT + "test_in_a_namespace_a_child_makes_no_packet",
            CUT + "test_a_cut_that_only_says_so_is_not_believed",
            code="turnout.guard.process:spawn",
        ),
    ),
    (
        "SEC-2",
        "a filter for children where there can be no namespace (test_where_there_can_be_none_a_filter_does_it)",
        by(CUT + "test_the_filter_of_each_machine", code="turnout.guard.launcher:filter_program"),
    ),
    (
        "SEC-2",
        "doctor says whether children have a network",
        by(
            "cli/test_doctor.py::test_children_that_have_the_network_are_a_warning_with_the_fix",
            "cli/test_doctor.py::test_all_is_well_with_a_server_and_without_the_bundled_model",
            code="turnout.cli.doctor:_children",
        ),
    ),
    (
        "PROOF-1",
        "a child is cut off in the midst of it; one that is not gets out and is told",
        by(
            PROVE + "test_a_child_gets_nowhere_in_the_midst_of_it",
            PROVE + "test_a_child_that_is_not_cut_gets_out_and_is_told",
            code="turnout.guard.canaries:fly_child",
        ),
    ),
    (
        "SEC-2",
        "no command makes a packet off the list; a guard that was broken on purpose is caught",
        by(LEAVES + "test_no_command_makes_a_packet_off_the_list", code="turnout.guard.allow:AllowList.check_host"),
    ),
    (
        "SEC-2",
        "names outside are not resolved; the dialled address is checked",
        by(NET + "test_no_hostile_url_is_resolved_or_dialled", code="turnout.guard.allow:AllowList.check_url"),
    ),
    (
        "SEC-3",
        "start and end, keyed hash, chain",
        by(PARTS + "test_the_audit_chain", code="turnout.guard.audit:AuditLog._write"),
    ),
    (
        "SEC-1",
        "a key comes from environment, file or keyring, and is never shown",
        by(
            CONF + "test_a_key_comes_from_a_file_and_is_never_shown",
            CONF + "test_a_key_comes_from_the_keyring_and_is_never_shown",
            code="turnout.config_load:_secret",
        ),
    ),
    (
        "SEC-3",
        "changes of keys are logged before they are made",
        by(
            "cli/test_key.py::test_a_key_is_printed_once_and_every_change_is_in_the_audit_log",
            code="turnout.cli.key:_change",
        ),
    ),
    (
        "SEC-3",
        "refusals at the gateway are logged, and do not fill the log",
        by(
            "gateway/test_auth.py::test_refusals_are_in_the_audit_log_and_do_not_fill_it",
            code="turnout.gateway.auth:RefusalLog.write",
        ),
    ),
    (
        "SEC-4",
        "a model that differs from its record serves nothing",
        by(
            LOCK + "test_a_locked_model_serves_and_a_swapped_one_serves_nothing",
            LOCK + "test_a_file_replaced_under_the_real_server_is_not_served",
            code=("turnout.fleet.identity:Verifier._judge", "turnout.guard.modelslock:judged"),
        ),
    ),
    (
        "SEC-4",
        "... and one that was swapped since the last look gives no token",
        by(
            "fleet/test_identity.py::test_a_model_swapped_since_the_last_look_gives_no_token",
            code="turnout.fleet.identity:Verifier.guarded",
        ),
    ),
    (
        "SEC-4",
        "a lock file that cannot be trusted lets nothing serve",
        by(
            LOCK + "test_a_lock_file_that_cannot_be_trusted_lets_nothing_serve",
            code="turnout.guard.modelslock:read_lock",
        ),
    ),
    (
        "SEC-4",
        "what cannot be verified serves as the policy says",
        by(
            LOCK + "test_policy_decides_whether_what_cannot_be_verified_may_serve",
            code="turnout.fleet.identity:Verifier._judge",
        ),
    ),
    ("SEC-5", "no external DNS resolution", airgap("no external DNS resolution", "_no_dns")),
    ("SEC-5", "egress traffic blocked at the firewall", airgap("egress traffic blocked at the firewall", "_egress")),
    ("SEC-5", "only internal IP ranges allowed", airgap("only internal IP ranges allowed", "_internal_only")),
    ("SEC-5", "IPv6 disabled if not needed", airgap("IPv6 disabled if not needed", "_no_ipv6")),
    ("SEC-5", "required models already downloaded", airgap("required models already downloaded", "_downloaded")),
    (
        "SEC-5",
        "SHA-256 checksums generated for all models",
        airgap("SHA-256 checksums generated for all models", "_generated"),
    ),
    (
        "SEC-5",
        "checksums stored in a tamper-evident place",
        airgap("checksums stored in a tamper-evident place", "_stored"),
    ),
    (
        "SEC-5",
        "checksums verified before a model is loaded",
        airgap("checksums verified before a model is loaded", "_verified"),
    ),
    ("SEC-5", "role-based access to the LLM services", airgap("role-based access to the LLM services", "_roles")),
    (
        "SEC-5",
        "authentication required on all endpoints",
        airgap("authentication required on all endpoints", "_authenticated"),
    ),
    ("SEC-5", "short-lived tokens for API access", airgap("short-lived tokens for API access", "_short_lived")),
    ("SEC-5", "all access attempts logged", airgap("all access attempts logged", "_access_logged")),
    ("SEC-5", "comprehensive audit logging on", airgap("comprehensive audit logging on", "_logging")),
    ("SEC-5", "queries logged as hashes, not as text", airgap("queries logged as hashes, not as text", "_hashed")),
    ("SEC-5", "model usage patterns logged", airgap("model usage patterns logged", "_usage")),
    ("SEC-5", "all security events logged", airgap("all security events logged", "_events")),
    ("SEC-5", "log rotation and retention in place", airgap("log rotation and retention in place", "_rotated")),
    (
        "SEC-5",
        "access: every route gives every role, key and token its answer",
        by(
            ACCESS + "test_every_route_gives_every_key_and_token_the_answer_that_it_should",
            code=("turnout.gateway.auth:Door.admit", "turnout.guard.roles:may"),
        ),
    ),
    (
        "SEC-5",
        "access: short-lived tokens that nobody forges, prolongs or keeps after they are revoked",
        by(
            TOKENS + "test_no_change_of_a_token_is_taken_for_one",
            TOKENS + "test_a_clock_that_is_set_back_gives_it_no_time",
            TOKENS + "test_what_revokes_it",
            TOKENS + "test_it_ends_with_the_key_it_came_from",
            code="turnout.guard.tokens:Tokenring.find",
        ),
    ),
    (
        "SEC-5",
        "access: nobody grants more than he has",
        by(
            ACCESS + "test_nobody_grants_more_than_he_has",
            ACCESS + "test_a_token_asks_as_itself_and_never_beyond_the_key_it_came_from",
            code="turnout.guard.tokens:mint",
        ),
    ),
    (
        "SEC-5",
        "access: grants and revocations are in the audit log",
        by(ACCESS + "test_a_key_mints_lists_and_revokes_over_http", code="turnout.gateway.tokens:_changed"),
    ),
    (
        "SEC-5",
        "access: who shows many wrong keys is shut out for a while, and nobody else",
        by(
            ACCESS + "test_many_wrong_keys_are_refused_for_a_while_and_a_right_one_on_loopback_never",
            ACCESS + "test_elsewhere_a_locked_out_address_is_not_listened_to_and_others_are",
            code="turnout.gateway.lockout:Lockout.count",
        ),
    ),
    (
        "SEC-5",
        "access: TLS and client certificates of the site's own authority",
        by(
            TLS + "test_the_gateway_speaks_tls_alone",
            TLS + "test_a_client_needs_a_certificate_of_the_authority_that_is_named_and_a_key",
            code="turnout.guard.tls:server_context",
        ),
    ),
    (
        "SEC-5",
        "access: who never ends a TLS handshake keeps nobody away, and who has no certificate is in the audit log",
        by(
            TLS + "test_who_says_nothing_keeps_nobody_else_away",
            TLS + "test_who_has_no_certificate_is_told_of",
            code="turnout.guard.handshake:Greeter.run",
        ),
    ),
    (
        "SEC-5",
        "access: servers trusted by the site's own authority alone",
        by(
            TLS + "test_a_server_is_trusted_by_the_sites_authority_and_by_no_other",
            code="turnout.guard.tls:client_context",
        ),
    ),
    (
        "SEC-5",
        "access: no secret in anything that comes out",
        by(SECRETS + "test_no_repr_of_a_configuration_tells_a_key", code="turnout.config:Section.__repr__"),
    ),
    (
        "AGENT-1",
        "from environment and processes",
        by(PARTS + "test_who_is_calling", code="turnout.fleet.agents:detect_coding_agent"),
    ),
    (
        "AGENT-1",
        "from HTTP headers and system prompts, per request",
        by(CALLERS + "test_a_recorded_agent_is_known", code="turnout.fleet.callers:calling_agent"),
    ),
    (
        "AGENT-1",
        "told in the access log and the audit log",
        by(AGENT_GATE + "test_the_logs_name_the_agent", code="turnout.gateway.completions:answered"),
    ),
    (
        "AGENT-1",
        "from MCP client info",
        by(CALLERS + "test_mcp_clients", code="turnout.fleet.callers:mcp_client"),
    ),
    (
        "AGENT-2",
        "per-agent settings",
        by(PARTS + "test_who_is_calling", code="turnout.fleet.agents:get_agent_specific_config"),
    ),
    (
        "AGENT-2",
        "a preferred model or family",
        by(
            AGENT_GATE + "test_an_agents_model_goes_first_and_a_family_counts_more", code="turnout.routing.select:_rank"
        ),
    ),
    (
        "AGENT-2",
        "the format of code context",
        by(
            AGENT_GATE + "test_code_context_is_written_as_the_agent_wants_it",
            code="turnout.code.enrich:build_enriched_query",
        ),
    ),
    (
        "AGENT-2",
        "no streams for who does not read them",
        by(AGENT_GATE + "test_an_agent_that_reads_no_streams_gets_one_piece", code="turnout.run:in_one_piece"),
    ),
    (
        "GW-1",
        "OpenAI chat completions",
        by(
            GATE + "test_the_openai_sdk_gets_a_real_answer_whole_and_streamed",
            code="turnout.gateway.completions:ChatEndpoint.__call__",
        ),
    ),
    (
        "GW-1",
        "Anthropic messages",
        by(
            GATE + "test_the_anthropic_sdk_gets_a_real_answer_whole_and_streamed",
            code="turnout.gateway.completions:ChatEndpoint.__call__",
        ),
    ),
    (
        "GW-1",
        "OpenAI Responses",
        by(
            "gateway/test_responses.py::test_the_real_model_answers_whole_streamed_and_on",
            "gateway/test_responses.py::test_parallel_calls_make_the_round_trip",
            code="turnout.wire.responses_answer:StreamRenderer.close",
        ),
    ),
    (
        "GW-1",
        "Ollama chat, generate, tags, show, ps, version, embed",
        by(
            OLLAMA_GATE + "test_the_client_gets_a_real_answer_whole_and_streamed",
            OLLAMA_GATE + "test_recorded_bytes_of_the_server_reach_its_own_client",
            code="turnout.gateway.ollama:_Chat.__call__",
        ),
    ),
    (
        "GW-1",
        "Ollama's lists tell the true window",
        by(
            OLLAMA_GATE + "test_lists_tell_the_true_window_and_what_models_can",
            code=("turnout.gateway.ollama:tags", "turnout.gateway.ollama:_shown"),
        ),
    ),
    (
        "GW-1",
        "completions, embeddings",
        by(
            SIDE_GATE + "test_a_text_is_gone_on_with_by_the_real_server",
            SIDE_GATE + "test_the_openai_client_gets_vectors_packed_and_plain_from_the_endpoint_that_has_the_model",
            code="turnout.sidework:Sidework._run",
        ),
    ),
    (
        "GW-1",
        "count_tokens",
        by(
            "gateway/test_count.py::test_the_count_is_what_the_real_server_then_reads",
            "gateway/test_count.py::test_a_choice_is_counted_by_the_model_that_would_answer",
            code=("turnout.router:Router.count", "turnout.fitting:Fitter.tokens_of"),
        ),
    ),
    (
        "GW-2",
        "every client format before every server: what works, what is lost, what is refused",
        by(
            "gateway/test_conformance.py::test_every_client_before[ollama]",
            "gateway/test_conformance.py::test_every_client_before[mlx]",
            "gateway/test_conformance.py::test_every_client_before[llama.cpp, for real]",
            code=("turnout.backends.base:Backend.check", "turnout.wire.anthropic:_form"),
        ),
    ),
    (
        "GW-2",
        "ids, indexes and arguments of tool calls are complete, whatever a server leaves out",
        by(
            "gateway/test_repairs.py::test_calls_have_ids_indexes_and_arguments_whatever_the_server_leaves_out",
            code=("turnout.wire.calls:Calls.events",),
        ),
    ),
    (
        "GW-2",
        "logprobs where they exist",
        by(
            "gateway/test_logprobs.py::test_the_openai_client_gets_them_in_both_of_its_formats",
            "gateway/test_logprobs.py::test_the_ollama_client_gets_them",
            code="turnout.wire.base:text_of",
        ),
    ),
    (
        "GW-2",
        "... also where bytes are passed on",
        by(
            "gateway/test_repairs.py::test_calls_have_ids_indexes_and_arguments_whatever_the_server_leaves_out[neither-OpenAI chat]",
            code=("turnout.wire.calls:Mender.event",),
        ),
    ),
    (
        "GW-2",
        "the same format passes through",
        by(
            GATE + "test_unknown_fields_survive_the_raw_lane",
            NATIVE + "test_bytes_go_up_with_the_named_edits_and_come_down_as_they_are",
            NATIVE + "test_the_real_server_is_spoken_to_in_the_clients_format",
            code=("turnout.backends.lanes:raw_lane", "turnout.backends.base:Backend.takes"),
        ),
    ),
    (
        "GW-2",
        "changed by the closed table of named edits alone",
        by(
            PASSING + "test_what_nobody_knows_goes_up_byte_for_byte",
            PASSING + "test_a_limit_is_named_for_servers_that_would_take_their_own",
            code=(
                "turnout.wire.scan:prepare",
                "turnout.wire.scan_anthropic:prepare",
                "turnout.wire.scan_ollama:prepare",
            ),
        ),
    ),
    (
        "GW-2",
        "prefix hygiene in the client's own bytes",
        by(
            PASSING + "test_bytes_are_tidied_as_messages_are",
            PASSING + "test_system_messages_of_claude_code_join_the_leading_one_or_become_reminders",
            NATIVE + "test_a_prompt_of_claude_code_goes_up_with_its_system_messages_where_templates_want_them",
            code="turnout.wire.rows:tidied",
        ),
    ),
    (
        "GW-2",
        "what a server does not speak well is translated",
        by(
            NATIVE + "test_servers_that_do_not_speak_it_well_are_asked_in_their_own_format",
            code="turnout.router:Router._lane",
        ),
    ),
    (
        "GW-1",
        "a client that wants no thinking is heard, and a tool's failure told",
        by(
            f"{UNTHINKING}[llamacpp-said0]",
            f"{UNTHINKING}[vllm-said0]",
            code="turnout.backends.openai_compatible:OpenAICompatible.switched",
        ),
    ),
    (
        "GW-1",
        "custom tools of Responses are functions of one text, both ways",
        by(
            "wire/test_properties.py::test_calls_of_custom_tools_are_legal_and_come_back_as_they_were",
            "wire/test_responses.py::test_a_models_text_is_found_however_it_wrote_it",
            code="turnout.wire.freeform:text_of",
        ),
    ),
    (
        "GW-2",
        "Responses are passed through to vLLM, and kept here",
        by(
            "gateway/test_responses.py::test_what_passes_through_is_kept_shown_and_gone_on_from",
            "gateway/test_responses.py::test_the_clients_own_reader_of_streams_takes_what_passes_through",
            code="turnout.wire.scan_responses:prepare",
        ),
    ),
    (
        "GW-2",
        "Responses that vLLM would get wrong without a word are translated",
        by(
            "gateway/test_responses.py::test_what_such_a_server_would_get_wrong_is_translated",
            code="turnout.wire.openai_responses:passes",
        ),
    ),
    (
        "GW-2",
        "what only an Ollama can be told goes to an Ollama, as it is",
        by(
            NATIVE + "test_what_only_an_ollama_can_be_told_goes_past_servers_that_cannot",
            NATIVE + "test_where_no_ollama_is_that_is_said",
            code="turnout.backends.lanes:require_translatable",
        ),
    ),
    (
        "GW-2",
        "what a stricter server does not know is translated",
        by(
            NATIVE + "test_what_a_stricter_server_does_not_know_is_translated",
            code="turnout.backends.lanes:native_lane",
        ),
    ),
    (
        "GW-1",
        "with keys, no route is open without one",
        by("gateway/test_auth.py::test_no_route_is_open_without_a_key", code="turnout.gateway.auth:Door.admit"),
    ),
    (
        "GW-1",
        "a key does what it may: models, routes, rate, requests at once",
        by(
            "gateway/test_auth.py::test_too_much_is_503_with_a_wait_and_never_429",
            "gateway/test_auth.py::test_no_more_run_at_once_than_the_key_may_have",
            code="turnout.gateway.auth:Meter.take",
        ),
    ),
    (
        "GW-1",
        "limits of headers, bodies, times and connections",
        by(
            "gateway/test_limits.py::test_a_request_that_does_not_come_in_is_ended",
            code="turnout.gateway.transport:GatheringProtocol.end_when_late",
        ),
    ),
    (
        "GW-1",
        "which way an answer went, in its headers",
        by(
            "gateway/test_metrics.py::test_every_answer_says_which_way_it_went",
            code="turnout.gateway.exchange:decision_headers",
        ),
    ),
    ("GW-3", "real agents", "deferred: opt-in, `make test-agents DIR=DIR` runs it"),
    (
        "GW-4",
        "virtual models",
        by(
            GATE + "test_the_model_list_satisfies_both_sdks_and_tells_the_window",
            code="turnout.gateway.completions:list_models",
        ),
    ),
    (
        "GW-4",
        "the model list: names that go where they say, with the window that a request has",
        by(
            MODELS_GATE + "test_every_name_of_the_list_goes_to_a_model_that_it_names_and_is_found",
            MODELS_GATE + "test_the_window_of_every_name_is_the_one_that_a_request_gets",
            MODELS_GATE + "test_both_sdks_ask_by_canonical_name_and_by_alias_whole_and_streamed",
            code=("turnout.gateway.listing:listed", "turnout.gateway.listing:aliases"),
        ),
    ),
    (
        "GW-4",
        "a key opens a model by all of its names or by none",
        by(
            MODELS_GATE + "test_a_key_opens_a_model_by_all_of_its_names_or_by_none",
            MODELS_GATE + "test_a_key_for_one_build_never_reaches_another_by_the_name_they_share",
            code=("turnout.routing.select:opens", "turnout.routing.select:permitted"),
        ),
    ),
    (
        "GW-4",
        "sticky sessions",
        by(
            "test_placement.py::test_many_conversations_spread_and_each_stays_where_it_is",
            "test_placement.py::test_a_dead_or_slow_server_keeps_no_conversation",
            code="turnout.routing.affinity:Affinity.order",
        ),
    ),
    (
        "GW-5",
        "errors in the caller's format",
        by(
            GATE + "test_a_failure_has_the_status_and_code_that_agents_understand",
            "gateway/test_fuzz.py::test_whatever_is_sent_is_answered_in_the_callers_format_and_leaves_nothing",
            code="turnout.wire.openai_chat:render_error",
        ),
    ),
    (
        "GW-5",
        "cancellation frees the server",
        by(
            GATE + "test_a_client_that_leaves_frees_the_server",
            "gateway/test_leavers.py::test_of_many_that_leave_nothing_stays",
            code="turnout.gateway.completions:WhilePresent.__exit__",
        ),
    ),
    (
        "GW-6",
        "overflow of an exact model is refused with the number",
        by(
            GATE + "test_a_failure_has_the_status_and_code_that_agents_understand",
            code="turnout.wire.openai_chat:render_error",
        ),
    ),
    (
        "GW-5",
        "signs of life while nothing comes are events, which agents count",
        by(
            "wire/test_properties.py::test_signs_of_life_are_events_and_change_nothing",
            code=(
                "turnout.wire.openai_chat:StreamRenderer.keep_alive",
                "turnout.wire.responses_answer:StreamRenderer.keep_alive",
            ),
        ),
    ),
    (
        "GW-7",
        "the status line is held",
        by(
            GATE + "test_a_failure_has_the_status_and_code_that_agents_understand",
            code="turnout.gateway.completions:ChatAnswer._stream",
        ),
    ),
    (
        "WIN-1",
        "what a server hides is learned, what it would cut is refused or compacted, and a cut is told of",
        by(
            FITTING + "test_a_window_that_an_overflow_names_is_learned_shown_and_kept",
            FITTING + "test_what_a_server_would_cut_is_refused_with_the_number",
            FITTING + "test_a_prompt_that_was_cut_is_told_of_and_the_second_time_learned",
            code="turnout.fitting:Fitter.fit",
        ),
    ),
    (
        "WIN-1",
        "one window for each model of Ollama",
        by(
            FITTING + "test_one_window_is_chosen_for_a_model_of_ollama_and_kept",
            FITTING + "test_a_modelfiles_window_is_respected_and_a_configured_one_rules",
            code="turnout.backends.ollama:Ollama.render",
        ),
    ),
    (
        "WIN-1",
        "the model list tells the window",
        by(
            GATE + "test_the_model_list_satisfies_both_sdks_and_tells_the_window",
            code="turnout.gateway.completions:list_models",
        ),
    ),
    (
        "PRICE-1",
        "queue, load, prefill of what is not cached, decode, and the harm to others",
        by(
            "routing/test_price.py::test_the_parts",
            "routing/test_price.py::test_what_others_lose_is_counted",
            code="turnout.routing.price:price",
        ),
    ),
    (
        "PRICE-1",
        "every decision is kept with its candidates, what was expected of them and what came of it",
        by(
            "test_journal.py::test_a_decision_is_kept_with_its_candidates_and_what_came_of_it",
            "test_journal.py::test_no_word_of_what_was_asked_or_answered_is_kept",
            code=("turnout.journal:decision_of", "turnout.fleet.decisions:DecisionLog.save"),
        ),
    ),
    (
        "PRICE-1",
        "another policy can be judged by what was kept",
        by(
            "routing/test_replay.py::test_the_figures_are_those_made_by_hand",
            "routing/test_replay.py::test_the_policy_that_was_in_effect_would_do_it_again",
            code=("turnout.routing.replay:replay", "turnout.routing.replay:again"),
        ),
    ),
    (
        "PRICE-1",
        "prices are finite and never negative, whatever was observed",
        by(
            "routing/test_price.py::test_no_claim_of_a_server_makes_a_price_endless_or_negative",
            "fleet/test_learned.py::test_whatever_was_observed_a_price_is_finite_and_more_tokens_never_cost_less",
            code="turnout.routing.price:price",
        ),
    ),
    (
        "SEL-1",
        "feedback moves a score slowly and not far, by whoever asked alone, and is in the audit log",
        by(
            "test_journal.py::test_feedback_moves_the_score_of_that_model_at_that_kind_of_work",
            "test_journal.py::test_nobody_judges_what_another_has_asked",
            code=("turnout.journal:Journal.feedback", "turnout.fleet.feedback:Feedback.vote"),
        ),
    ),
    (
        "PRICE-1",
        "the choice weighs quality against the time",
        by("routing/test_price.py::test_a_policy_weighs_time_against_quality", code="turnout.routing.price:value"),
    ),
    (
        "PRICE-2",
        "prefix hygiene, by the real server's cache counters",
        by(
            "test_placement.py::test_what_changes_with_each_request_is_no_part_of_the_prefix",
            code="turnout.hygiene:tidy",
        ),
    ),
    (
        "PRICE-3",
        "limits, a bounded queue with a longest wait, and those of the loaded model first",
        by(
            "fleet/test_admission.py::test_so_many_run_at_once_and_the_others_in_turn",
            "fleet/test_admission.py::test_where_models_are_swapped_those_of_the_loaded_one_go_first_but_not_for_ever",
            "fleet/test_admission.py::test_side_requests_let_the_others_go_first",
            "fleet/test_admission.py::test_the_queue_is_bounded_and_so_is_the_wait",
            code="turnout.fleet.admission:Admission.admitted",
        ),
    ),
    (
        "PRICE-3",
        "a limit of one where the server never says busy",
        by(
            "test_placement.py::test_a_server_that_never_says_busy_is_asked_one_thing_at_a_time",
            code="turnout.placement:Placement.admitted",
        ),
    ),
    (
        "PROOF-1",
        "canaries: no door of ours makes a packet, what gets out is told, a broken guard is caught",
        by(
            PROVE + "test_no_door_of_ours_makes_a_packet",
            PROVE + "test_a_broken_guard_is_caught[check_address]",
            PROVE + "test_without_the_second_line_pythons_own_doors_are_open",
            code="turnout.guard.canaries:fly_own",
        ),
    ),
    (
        "PROOF-1",
        "what only the network stops is told as such",
        by(
            PROVE + "test_what_only_the_network_stops_gets_out_where_it_does_not",
            PROVE + "test_where_there_is_no_way_out_the_kernel_stops_them",
            code="turnout.guard.canaries:fly_others",
        ),
    ),
    (
        "PROOF-1",
        "a prompt's address and a backend's redirect",
        by(
            PROVE + "test_a_prompt_and_a_backend_make_the_gateway_dial_nothing",
            code="turnout.guard.canary_gateway:fly_through_gateway",
        ),
    ),
    (
        "PROOF-1",
        "the report is signed and verified elsewhere",
        by(
            "cli/test_prove.py::test_a_closed_machine_is_proven_signed_and_verified_elsewhere",
            code=("turnout.cli.prove:prove", "turnout.cli.prove:verify", "turnout.guard.report:check"),
        ),
    ),
    (
        "PROOF-2",
        "signed checkpoints and head; the verifier names what was changed, removed, added, moved or cut off",
        by(
            SEALING + "test_each_of_many_mutations_is_found_at_its_line",
            SEALING + "test_a_tail_that_was_cut_off_is_told_from_a_crash",
            SEALING + "test_a_log_that_was_computed_anew_fails_at_its_first_checkpoint",
            code=("turnout.guard.chain:verify", "turnout.guard.audit:AuditLog._write_head"),
        ),
    ),
    (
        "PROOF-2",
        "no writer continues and signs what somebody has put in the log's place",
        by(SEALING + "test_no_writer_signs_a_log_that_was_computed_anew", code="turnout.guard.chain:still_has"),
    ),
    (
        "PROOF-2",
        "no writer takes a head that is not ours",
        by(
            SEALING + "test_a_head_that_is_not_ours_is_told_by_the_next_writer",
            code="turnout.guard.audit:AuditLog._known",
        ),
    ),
    (
        "SEC-3",
        "rotation and retention",
        by(
            SEALING + "test_old_files_are_retired_by_a_signed_record_and_what_is_left_verifies",
            code="turnout.guard.audit:AuditLog._ready",
        ),
    ),
    (
        "PROOF-2",
        "what has the name of a full file and is none, bytes after a full file's end, and endless lines",
        by(
            SEALING + "test_what_is_no_file_and_has_the_name_of_one_is_nobodys_business",
            SEALING + "test_bytes_after_the_end_of_a_full_file_are_found",
            SEALING + "test_a_line_longer_than_any_record_is_not_read_whole",
            code=("turnout.guard.chain:rotated_files", "turnout.guard.chain:lines_of"),
        ),
    ),
    (
        "PROOF-2",
        "an auditor needs the public key alone",
        by("cli/test_audit.py::test_what_is_exported_verifies_anywhere", code="turnout.cli.audit:export"),
    ),
    (
        "PROOF-3",
        "the same weights under other names at other servers",
        by(LOCK + "test_the_same_weights_are_known_under_every_name", code="turnout.guard.modelslock:same_weights"),
    ),
    (
        "PROOF-3",
        "drift raises an alarm",
        by(
            "fleet/test_identity.py::test_without_a_lock_a_name_that_means_other_weights_is_an_alarm_and_serves",
            code="turnout.fleet.identity:Verifier._tell",
        ),
    ),
    ("UI-1", "command line", by("cli/test_ask.py::test_the_real_model_answers", code="turnout.cli.ask:ask")),
    (
        "UI-1",
        "turnout discover, also --json",
        by(
            SHOWN + "test_discover_shows_each_server_with_its_state",
            SHOWN + "test_discover_as_json",
            code="turnout.cli.fleet:discover",
        ),
    ),
    (
        "UI-1",
        "turnout discover --explain",
        by(SHOWN + "test_discover_explains_one_address", code="turnout.cli.fleet:_explain"),
    ),
    (
        "UI-1",
        "turnout models, also --json",
        by(SHOWN + "test_models_shows_what_each_server_offers", code="turnout.cli.fleet:list_models"),
    ),
    (
        "UI-1",
        "turnout models warm, unload, pin, unpin",
        by(
            SHOWN + "test_a_model_is_warmed_unloaded_and_pinned",
            code=(
                "turnout.cli.models:warm",
                "turnout.cli.models:unload",
                "turnout.cli.models:pin",
                "turnout.cli.models:unpin",
            ),
        ),
    ),
    ("UI-1", "turnout models fit", by(SHOWN + "test_what_fits_into_memory", code="turnout.cli.models:fit")),
    (
        "UI-1",
        "turnout top: what there is now, in a pipe and as --json",
        by(
            SHOWN + "test_top_in_a_pipe_shows_what_there_is_now",
            SHOWN + "test_top_shows_how_fast_a_server_is",
            code=("turnout.cli.top:top", "turnout.cli.top:_fields"),
        ),
    ),
    (
        "UI-1",
        "turnout top, live on a terminal",
        by("cli/test_top.py::test_a_frame_shows_what_is_loaded_and_what_changed", code="turnout.cli.top:_frame"),
    ),
    (
        "UI-1",
        "turnout chat",
        by(
            "cli/test_chat.py::test_from_a_pipe_each_line_is_a_question_and_stdout_the_answers",
            code=("turnout.cli.chat:chat", "turnout.cli.chat:Chat.take", "turnout.cli.chat:Chat.undo"),
        ),
    ),
    (
        "UI-1",
        "turnout ask --session",
        by(TALKS + "test_ask_begins_and_continues_a_conversation", code="turnout.cli.ask:require_store"),
    ),
    (
        "UI-1",
        "turnout session list",
        by(TALKS + "test_conversations_are_listed_and_the_nearest_is_named", code="turnout.cli.session:list_"),
    ),
    (
        "UI-1",
        "turnout session show and export",
        by(
            TALKS + "test_export_is_whole_exact_in_json_and_harmless_in_markdown",
            code=("turnout.cli.session:show", "turnout.cli.session:export"),
        ),
    ),
    (
        "UI-1",
        "turnout session delete",
        by(TALKS + "test_delete_says_what_is_gone", code="turnout.cli.session:delete"),
    ),
    (
        "UI-1",
        "turnout session resume",
        by(TALKS + "test_resume_goes_on", code="turnout.cli.session:resume"),
    ),
    (
        "UI-1",
        "turnout session prune",
        by(
            TALKS + "test_retention_is_applied_when_the_store_is_opened_and_by_prune",
            code="turnout.cli.session:prune",
        ),
    ),
    (
        "UI-1",
        "completion in real shells",
        by(
            "cli/test_completion.py::test_a_tab_completes_commands_and_options[bash]",
            code="turnout.cli.reference:reference",
        ),
    ),
    ("UI-2", "dashboard", LATER),
    ("UI-3", "MCP server", LATER),
    (
        "UI-4",
        "metrics",
        by(
            "gateway/test_metrics.py::test_requests_are_counted_by_what_became_of_them",
            "gateway/test_metrics.py::test_what_clients_write_is_never_a_label",
            code=("turnout.gateway.metrics:Metrics.ended", "turnout.gateway.metrics:Metrics.families"),
        ),
    ),
    (
        "UI-5",
        "an offline bundle installs on a machine with no index, and what works there is kept",
        by(
            BUNDLE + "test_install.py::test_it_installs_without_an_index_and_what_works_is_kept",
            code="turnout.bundle.archive:check_archive",
        ),
    ),
    (
        "UI-5",
        "it holds what the lock says and no other wheel",
        by(
            BUNDLE + "test_make.py::test_a_wheel_that_is_not_the_locked_one_is_refused",
            code="turnout.bundle.wheels:gather",
        ),
    ),
    (
        "UI-5",
        "the same input makes the same bytes",
        by(
            BUNDLE + "test_make.py::test_the_same_input_makes_the_same_bytes",
            code=("turnout.bundle.make:make", "turnout.bundle.own:pack_own_wheel", "turnout.bundle.archive:header"),
        ),
    ),
    (
        "UI-5",
        "an SBOM tells every package",
        by(BUNDLE + "test_make.py::test_the_list_says_what_every_package_is", code="turnout.bundle.sbom:sbom"),
    ),
    (
        "UI-5",
        "whatever was changed is refused before anything is touched",
        by(
            BUNDLE + "test_archive.py::test_whatever_was_changed_is_named_and_nothing_is_installed",
            BUNDLE + "test_archive.py::test_no_byte_of_it_can_be_changed",
            code="turnout.bundle.archive:check_archive",
        ),
    ),
    (
        "UI-5",
        "turnout bundle make and verify",
        by(
            "cli/test_bundle.py::test_a_bundle_is_made_and_checked",
            code=("turnout.cli.bundle:make", "turnout.cli.bundle:verify"),
        ),
    ),
    ("UI-5", "in a root of its own with the network cut", "deferred: opt-in, `make test-bundle` runs it"),
    (
        "UI-5",
        "a model travels as one signed file, and is put in place when all of it is verified",
        by(
            "cli/test_models_travel.py::test_a_models_journey_from_one_real_server_to_another",
            "cli/test_models_travel.py::test_a_model_of_a_store_comes_into_another_as_it_was",
            code=(
                "turnout.guard.model_archive:write_archive",
                "turnout.guard.model_archive:Archive.check_signature",
                "turnout.fleet.placing:place",
            ),
        ),
    ),
    (
        "UI-5",
        "... nor as a model that an Ollama would ask elsewhere",
        by(
            "cli/test_models_travel.py::test_a_model_that_is_asked_elsewhere_does_not_come_in",
            code="turnout.backends.ollama_shelf:OllamaShelf.check",
        ),
    ),
    (
        "UI-5",
        "... and nowhere when any of it is not as it was signed",
        by(
            "fleet/test_travel.py::test_what_is_not_as_it_was_signed_is_put_nowhere",
            code="turnout.guard.model_archive:Archive._manifest",
        ),
    ),
    (
        "UI-5",
        "... into the places that the local servers read",
        by("backends/test_shelf.py::test_where_each_kind_looks", code="turnout.backends.shelf:plain_files"),
    ),
    ("HA-1", "replicas", LATER),
)
