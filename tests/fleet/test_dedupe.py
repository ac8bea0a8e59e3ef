from __future__ import annotations

from dataclasses import replace

import pytest

from turnout.fleet.catalog import EndpointStatus
from turnout.fleet.dedupe import Facts, may_have_children, settle
from turnout.types import Endpoint, Health, Model

LAN = Facts(own=frozenset({"192.168.1.7"}))


def server(
    name: str,
    url: str,
    kind: str = "ollama",
    *,
    models: tuple[str, ...] = ("m",),
    version: str = "1",
    health: Health = Health.ONLINE,
    children: tuple[str, ...] = (),
    priority: int = 5,
    configured: bool = False,
) -> EndpointStatus:
    endpoint = Endpoint(name, kind, url, priority=priority, configured=configured)
    listed = tuple(Model(m) for m in models)
    return EndpointStatus(endpoint, health, "", 0.0, version=version, models=listed, children=children)


def unused(seen: list[EndpointStatus], facts: Facts = LAN) -> list[str]:
    settled = settle(seen, facts)
    assert [s.endpoint for s in settled] == [s.endpoint for s in seen]
    return [s.unused for s in settled]


@pytest.mark.parametrize("host", ["[::1]", "localhost", "host.docker.internal", "192.168.1.7"])
def test_one_server_at_two_addresses_is_one(host: str) -> None:
    first = server("a", "http://127.0.0.1:11434")
    assert unused([first, server("b", f"http://{host}:11434")]) == ["", "the same server as a"]


def test_the_configured_or_the_preferred_one_stays() -> None:
    found = server("found", "http://127.0.0.1:11434", priority=1)
    named = server("named", "http://192.168.1.7:11434/v1", priority=9, configured=True)
    assert unused([found, named]) == ["the same server as named", ""]
    better = replace(found, endpoint=replace(found.endpoint, name="x", url="http://[::1]:11434", priority=0))
    assert unused([found, better]) == ["the same server as x", ""]


@pytest.mark.parametrize(
    "other",
    [
        server("b", "http://[::1]:11435"),
        server("b", "http://[::1]:11434", kind="koboldcpp"),
        server("b", "http://[::1]:11434", version="2"),
        server("b", "http://[::1]:11434", models=("m", "n")),
        server("b", "http://192.168.1.8:11434"),
        server("b", "http://127.0.0.2:11434"),
        server("b", "http://[::1]:11434", health=Health.OFFLINE),
        server("b", "unix:/run/b.sock"),
    ],
    ids=["port", "kind", "version", "models", "host", "loopback", "offline", "socket"],
)
def test_what_differs_is_two(other: EndpointStatus) -> None:
    assert unused([server("a", "http://127.0.0.1:11434"), other]) == ["", ""]


def test_names_that_lead_to_one_address_are_one() -> None:
    facts = Facts(names={"gpu1": frozenset({"10.0.0.5"}), "gpu1.lan": frozenset({"10.0.0.5", "fd00::5"})})
    seen = [server(n, f"http://{n}:8000", configured=True) for n in ("gpu1", "gpu1.lan", "gpu2")]
    assert unused(seen, facts) == ["", "the same server as gpu1", ""]
    assert unused([*seen, server("ip", "http://10.0.0.5:8000")], facts)[-1] == "the same server as gpu1"
    different = [seen[0], replace(seen[1], models=(Model("other"),))]  # one address, told apart by the name asked for
    assert unused(different, facts) == ["", ""]


def test_a_server_that_wants_a_key_at_one_address_is_the_one_that_has_it_at_the_other() -> None:
    locked = server("a", "http://127.0.0.1:8000", kind="vllm", health=Health.NEEDS_KEY, models=(), version="")
    opened = server("b", "http://192.168.1.7:8000", kind="vllm", configured=True)
    assert unused([locked, opened]) == ["the same server as b", ""]
    wrong_key = replace(opened, health=Health.NEEDS_KEY, models=())
    usable = replace(locked, health=Health.ONLINE, models=(Model("m"),))
    assert unused([usable, wrong_key]) == ["", ""]  # what works is never given up for what does not


def test_a_child_by_the_process_tree_is_not_used_unless_configured() -> None:
    parent, child = server("jan", "http://127.0.0.1:1337", kind="jan"), server("x", "http://127.0.0.1:8080", "llamacpp")
    owners = {("127.0.0.1", 1337): (50, 40, 30), ("0.0.0.0", 8080): (70, 60, 50, 40, 30)}
    assert unused([child, parent], Facts(owners=owners)) == ["jan runs it for itself alone", ""]
    named = replace(child, endpoint=replace(child.endpoint, configured=True))
    assert unused([named, parent], Facts(owners=owners)) == ["", ""]
    siblings = owners | {("0.0.0.0", 8080): (70, 40, 30)}
    assert unused([child, parent], Facts(owners=siblings)) == ["", ""]
    same_process = owners | {("0.0.0.0", 8080): (50, 40, 30)}
    assert unused([child, parent], Facts(owners=same_process)) == ["", ""]
    elsewhere = replace(child, endpoint=replace(child.endpoint, url="http://10.0.0.9:8080"))
    assert unused([elsewhere, parent], Facts(owners=owners)) == ["", ""]


def test_a_child_by_its_parents_word() -> None:
    swap = server("swap", "http://10.0.0.9:9000", "llamaswap", children=("http://127.0.0.1:8080", "http://[::1", "x"))
    child = server("x", "http://10.0.0.9:8080", "llamacpp")
    mine = server("y", "http://127.0.0.1:8080", "llamacpp", models=("mine",))
    assert unused([swap, child, mine]) == ["", "swap runs it for itself alone", ""]
    itself = replace(swap, children=("http://localhost:9000",))
    assert unused([itself]) == [""]


def test_servers_that_call_each_other_children_do_not_all_go_unused() -> None:
    a, b, c = "http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"
    seen = [server("a", a, children=(c,)), server("b", b, children=(a,)), server("c", c, children=(b,))]
    assert unused(seen).count("") == 1
    chain = [server("a", a, children=(b,)), server("b", b, children=(c,)), server("c", c)]
    assert unused(chain) == ["", "a runs it for itself alone", "b runs it for itself alone"]


def test_a_child_by_the_store_that_its_weights_come_from() -> None:
    child = replace(server("x", "http://127.0.0.1:8080", "llamacpp"), child_of="ollama")
    parent = server("ollama", "http://localhost:11434", models=("m", "n"))
    assert unused([child, parent]) == ["ollama runs it for itself alone", ""]
    elsewhere = replace(parent, endpoint=replace(parent.endpoint, url="http://10.0.0.9:11434"))
    assert unused([child, elsewhere]) == ["", ""]
    assert unused([child]) == [""]


def test_a_front_end_says_whose_models_it_has() -> None:
    front = server("ui", "http://127.0.0.1:3000", "openwebui", models=("m", "n"))
    behind = [server("a", "http://127.0.0.1:11434"), server("b", "http://127.0.0.1:8000", "vllm", models=("n",))]
    assert settle([front, *behind], LAN)[0].notes == ("its models are those of a, b",)
    assert settle([front, behind[0]], LAN)[0].notes == ()
    assert settle(behind, LAN)[0].notes == ()


def test_a_front_end_says_so_also_of_models_that_it_calls_external() -> None:
    front = replace(server("ui", "http://127.0.0.1:3000", "openwebui", models=()), excluded=(("m", "external"),))
    assert settle([front, server("a", "http://127.0.0.1:11434")], LAN)[0].notes == ("its models are those of a",)


def test_what_a_front_end_has_of_a_server_beside_it_is_asked_for_there_alone() -> None:
    front = server("ui", "http://127.0.0.1:3000", "openwebui", models=("m", "own"), configured=True)
    beside = server("a", "http://localhost:11434")
    mixed, whole = (
        settle([replace(front, models=models), beside], LAN)[0] for models in (front.models, front.models[:1])
    )
    assert ([model.id for model in mixed.models], mixed.unused) == (["own"], "")
    assert mixed.excluded == (("m", "a has it, and is asked for it directly"),)
    assert (whole.models, whole.unused) == ((), "its models are those of a, asked for there directly")
    only_found = settle([replace(front, unused="only found"), beside], LAN)[0]
    assert (only_found.models, only_found.unused) == (front.models, "only found")


@pytest.mark.parametrize(
    "other",
    [
        server("far", "http://10.0.0.9:11434"),
        server("off", "http://127.0.0.1:11434", health=Health.OFFLINE),
        replace(server("unused", "http://127.0.0.1:11434"), unused="switched off in the configuration"),
        replace(server("sized", "http://127.0.0.1:11434"), models=(Model("m", size=2),)),
        server("swap", "http://127.0.0.1:9000", "llamaswap", children=("http://127.0.0.1:5",)),
    ],
    ids=lambda status: status.endpoint.name,
)
def test_what_a_front_end_may_have_of_somebody_else_stays_its_own(other: EndpointStatus) -> None:
    front = replace(server("ui", "http://127.0.0.1:3000", "openwebui", configured=True), models=(Model("m", size=1),))
    settled = settle([front, other], LAN)[0]
    assert (settled.models, settled.unused) == (front.models, "")


def test_the_process_tree_is_read_only_when_it_can_tell_something() -> None:
    a, b = server("a", "http://127.0.0.1:1"), server("b", "http://127.0.0.1:2")
    assert may_have_children([a, b], LAN)
    assert not may_have_children([a], LAN)
    assert not may_have_children([a, replace(b, health=Health.OFFLINE)], LAN)
    assert not may_have_children([a, server("b", "http://10.0.0.1:2")], LAN)
    named = [replace(s, endpoint=replace(s.endpoint, configured=True)) for s in (a, b)]
    assert not may_have_children(named, LAN)
