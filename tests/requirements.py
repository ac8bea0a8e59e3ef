"""Every requirement of the specification, by id: the tests that prove it, or the issue that will.

A row is ``(id, what, proof)``. Proof is ``deferred: <issue>`` or ``Proven(tests, code)``: each test must execute the
named code (``module:qualified.name``), which ``python -m tests.check_requirements`` shows from the coverage data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Proven:
    """Tests (``path::name``, relative to tests/) and the code that each of them must execute."""

    tests: tuple[str, ...]
    code: tuple[str, ...]


def by(*tests: str, code: str | tuple[str, ...]) -> Proven:
    return Proven(tests, (code,) if isinstance(code, str) else code)


FLEET = "deferred: issue 3, the fleet"
CONTEXT = "deferred: issue 4, the conversation fits"
GATEWAY = "deferred: issue 5, the gateway"
CHOICE = "deferred: issue 6, choosing well"
CODE = "deferred: issue 7, code context first"
AIRGAP = "deferred: issue 8, the air gap"
LATER = "deferred: no issue filed yet"

REAL = "test_pipeline_real.py::"

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
        "streaming twin",
        by(REAL + "test_the_stream_says_its_route_first_and_reports_usage", code="turnout.api:LocalLLMRouter.events"),
    ),
    (
        "LIB-2",
        "session_id",
        by(REAL + "test_a_session_survives_a_restart", code="turnout.api:LocalLLMRouter._open_store"),
    ),
    (
        "LIB-3",
        "the ten steps",
        by(REAL + "test_quick_route_answers_with_the_real_model", code="turnout.router:Router.route"),
    ),
    ("LIB-3", "apply edits when asked", CODE),
    (
        "FB-1",
        "every attempt is named",
        by(REAL + "test_a_second_server_takes_over_before_the_first_byte", code="turnout.router:Router._execute"),
    ),
    (
        "FB-2",
        "overflow leads to level 2",
        by(REAL + "test_a_real_overflow_leads_to_level_2_and_succeeds", code="turnout.routing.fallback:after_error"),
    ),
)
