from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.code.enrich import build_enriched_query, without_secrets
from turnout.code.provider import CodeContext, Excerpt, Issue, Reference
from turnout.request import enrich
from turnout.types import ChatRequest, RawBody, WireFormat, message

PLACES = st.lists(st.builds(Reference, st.sampled_from(["a.py", "src/b.ts"]), st.integers(1, 99)), max_size=15)


def test_the_sections_and_their_order() -> None:
    context = CodeContext(
        "x",
        type_information="def total(cart: Cart) -> int",
        references=tuple(Reference(f"src/{n}.py", n, "  total(cart)  ") for n in range(1, 13)),
        issues=tuple(Issue(n, f"wrong {n}") for n in range(1, 8)),
        definitions=(Reference("src/shop.py", 4, "def total(cart):"),),
        outline="src/shop.py:\n- total (line 4)",
        excerpts=(Excerpt("src/shop.py", 9, ("x = 1", "y" * 400), 20, 10),),
    )
    query = "Rename total,\nplease"
    text = build_enriched_query(query, context)
    assert text.startswith(f"{query}\n\n")
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Type Information",
        "References (12 found)",
        "Current Issues (7)",
        "Code",
        "Definition",
        "Outline",
    ]
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("- src/")] == [
        *(f"- src/{n}.py:{n}: total(cart)" for n in range(1, 11)),
        "- src/shop.py:4: def total(cart):",
    ]
    code = lines.index("src/shop.py, lines 9 to 10 of 20 (line 10 is marked):")
    assert lines[code + 1 : code + 3] == ["   9 | x = 1", f"> 10 | {'y' * 300}…"]
    assert [line for line in lines if line.startswith("- Line")] == [f"- Line {n}: wrong {n}" for n in range(1, 6)]


def test_the_sections_as_an_agent_wants_them() -> None:
    context = CodeContext("x", references=(Reference("a.py", 3, "total()"),), outline="````md\nkey = 1")
    markdown, xml, fenced = (build_enriched_query("Q", context, s) for s in ("openai", "anthropic", "qwen"))
    assert markdown == "Q\n\n## References (1 found)\n- a.py:3: total()\n\n## Outline\n````md\nkey = 1"
    assert xml == "Q\n\n<references>\n- a.py:3: total()\n</references>\n\n<outline>\n````md\nkey = 1\n</outline>"
    assert "## References (1 found)\n```\n- a.py:3: total()\n```\n" in fenced
    assert fenced.endswith("\n`````\n````md\nkey = 1\n`````"), "what is quoted must not end its own fence"


@given(st.text(), PLACES, st.text(st.characters(codec="ascii"), max_size=50))
def test_the_users_words_come_first_and_the_bytes_are_always_the_same(
    query: str, places: list[Reference], outline: str
) -> None:
    context = CodeContext("x", references=tuple(places), outline=outline)
    text = build_enriched_query(query, context)
    assert text.startswith(query)
    assert text == build_enriched_query(query, CodeContext("y", references=tuple(places), outline=outline, note="z"))
    assert (text == query) == (not places and not outline)


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("PASSWORD = 'correct horse battery'", "horse"),
        ('"client_secret": "abcd efgh"', "abcd"),
        ("API_KEY=abcdef123", "abcdef123"),
        ("export GITHUB_TOKEN=foobarbaz", "foobarbaz"),
        ("password: hunter22hunter", "hunter22hunter"),
        ("Authorization: Bearer abcdefghijklmnopqrst", "abcdefghijklmnop"),
        ("url = 'postgres://bob:hunter2@db/shop'", "hunter2"),
        ("x = 'sk-abcdefghijklmnopqrstuvwx'", "sk-abc"),
        ("x = 'ghp_abcdefghijklmnopqrstuvwx'", "ghp_"),
        ("x = 'AKIAIOSFODNN7EXAMPLE'", "AKIA"),
        ('SECRET = """correct horse"""', "horse"),
        ("-----BEGIN RSA PRIVATE KEY-----MIIEpAIBAAKCAQEAxyzxyzxyzxyz-----END RSA PRIVATE KEY-----", "MIIE"),
        (
            (
                "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOYBGabcdefgh0123456789abcdefgh\n"
                "-----END PGP PRIVATE KEY BLOCK-----"
            ),
            "lQOY",
        ),
        ("const apiKey = `abcdef123`", "abcdef"),
        ('{"Authorization": "Basic dXNlcjpodW50ZXI="}', "dXNlc"),
        ('DSN = "Server=db;Password=hunter2;User Id=sa"', "hunter2"),
        ("x = 'npm_abcdefghijklmnopqrstuvwx'", "npm_"),
    ],
)
def test_secrets_do_not_leave_the_workspace(line: str, secret: str) -> None:
    context = CodeContext("x", type_information=line, references=(Reference("a.py", 1, line),), outline=line)
    text = build_enriched_query("q", context)
    assert secret not in text
    assert text.count("[redacted]") == 3


@pytest.mark.parametrize(
    "line",
    [
        "max_tokens = min(wanted, window // 2)",
        "token_counter: TokenCounter = get_token_counter(name)",
        "api_key: str | None = None",
        "def tokens(self, form: Form, end: int) -> int:",
        "PRIMARY_KEY=build_key(row)",
        "if key == cache_key(a, b):",
        "password=ask(name); basic understanding of authorization",
        "risk-averse-people-do-not-count",
        "if '-----BEGIN PRIVATE KEY-----' in text: refuse()",
    ],
)
def test_code_that_speaks_of_tokens_stays_readable(line: str) -> None:
    assert without_secrets(line) == line


@pytest.mark.parametrize("text", ["token", "KEY_", "token:", "password=", ";password=", "token: a1 "])
def test_looking_for_secrets_takes_time_in_proportion_to_the_text(text: str) -> None:
    """Tried from each of its words on, a megabyte would hold the interpreter for hours, and all of a gateway."""
    assert "[redacted]" not in without_secrets(text * (1_000_000 // len(text)))


def test_a_request_with_code_context_is_not_forwarded_as_the_bytes_that_have_none() -> None:
    request = ChatRequest((message("user", "q"),), raw=RawBody(WireFormat.OPENAI_CHAT, b"{}"))
    assert enrich(request, None, "openai") is request
    enriched = enrich(request, CodeContext("x", type_information="int"), "openai")
    assert "int" in enriched.messages[0].text
    assert enriched.raw is None
