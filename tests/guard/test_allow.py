"""What is read as an allowed destination and what is refused before anything is resolved (SPEC SEC-1, SEC-2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout.config import SecurityConfig
from turnout.errors import EXIT_REFUSED, ConfigError, GuardError
from turnout.guard.allow import AllowList, Target

SECURITY = SecurityConfig(allowed_hosts=("gpu1.lan", "host.docker.internal", "10.9.0.0/16", "fd12:3456::/48"))

# (what is tried, words of the refusal). {p} is the port of a listener that hears every address, see test_network.py.
HOSTILE: tuple[tuple[str, str], ...] = (
    # Public and special addresses, written plainly.
    ("http://8.8.8.8:{p}/", "outside the allowed networks"),
    ("http://203.0.113.5:{p}/v1/models", "outside the allowed networks"),
    ("https://203.0.113.5:{p}/", "outside the allowed networks"),
    ("http://100.64.0.1:{p}/", "outside the allowed networks"),
    ("http://172.32.0.1:{p}/", "outside the allowed networks"),
    ("http://192.167.255.255:{p}/", "outside the allowed networks"),
    ("http://11.0.0.1:{p}/", "outside the allowed networks"),
    ("http://128.0.0.1:{p}/", "outside the allowed networks"),
    ("http://240.0.0.1:{p}/", "outside the allowed networks"),
    ("http://0.0.0.0:{p}/", "no particular host"),
    ("http://0.1.2.3:{p}/", "no particular host"),
    ("http://169.254.169.254:{p}/latest/meta-data/", "cloud metadata"),
    ("http://169.254.1.1:{p}/", "link-local"),
    ("http://224.0.0.1:{p}/", "multicast"),
    ("http://239.255.255.250:{p}/", "multicast"),
    ("http://255.255.255.255:{p}/", "broadcast"),
    # One address in the spellings that C libraries, browsers and old parsers take for it.
    ("http://134744072:{p}/", "one decimal number"),
    ("http://2130706433:{p}/", "one decimal number"),
    ("http://3405803781:{p}/", "one decimal number"),
    ("http://0x08080808:{p}/", "hexadecimal"),
    ("http://0x7f000001:{p}/", "hexadecimal"),
    ("http://0X7F000001:{p}/", "hexadecimal"),
    ("http://0x8.0x8.0x8.0x8:{p}/", "hexadecimal"),
    ("http://127.0.0.0x1:{p}/", "hexadecimal"),
    ("http://0x:{p}/", "hexadecimal"),
    ("http://gpu1.lan.0x8080808:{p}/", "hexadecimal"),
    ("http://010.010.010.010:{p}/", "leading zeros"),
    ("http://0177.0.0.1:{p}/", "leading zeros"),
    ("http://0177.0x0.0.1:{p}/", "hexadecimal"),
    ("http://127.0.0.01:{p}/", "leading zeros"),
    ("http://00.0.0.0:{p}/", "leading zeros"),
    ("http://01002004010:{p}/", "leading zeros"),
    ("http://8.8.2056:{p}/", "shortened"),
    ("http://8.526344:{p}/", "shortened"),
    ("http://127.1:{p}/", "shortened"),
    ("http://0:{p}/", "one decimal number"),
    ("http://1.2.3.4.5:{p}/", "ends like an IPv4 address"),
    ("http://256.0.0.1:{p}/", "ends like an IPv4 address"),
    ("http://localhost.1:{p}/", "ends like an IPv4 address"),
    # IPv6, and IPv4 hidden in it.
    ("http://[2001:4860:4860::8888]:{p}/", "outside the allowed networks"),
    ("http://[2001:db8::5]:{p}/", "outside the allowed networks"),
    ("http://[fd12:3457::1]:{p}/", "outside the allowed networks"),
    ("http://[::]:{p}/", "no particular host"),
    ("http://[::ffff:8.8.8.8]:{p}/", "IPv4-mapped"),
    ("http://[::ffff:808:808]:{p}/", "IPv4-mapped"),
    ("http://[::ffff:127.0.0.1]:{p}/", "IPv4-mapped"),
    ("http://[::FFFF:203.0.113.5]:{p}/", "IPv4-mapped"),
    ("http://[::808:808]:{p}/", "IPv4-compatible"),
    ("http://[::7f00:1]:{p}/", "IPv4-compatible"),
    ("http://[::8.8.8.8]:{p}/", "canonical"),
    ("http://[::ffff:0:808:808]:{p}/", "translated"),
    ("http://[64:ff9b::808:808]:{p}/", "NAT64"),
    ("http://[64:ff9b::7f00:1]:{p}/", "NAT64"),
    ("http://[64:ff9b:1::808:808]:{p}/", "NAT64"),
    ("http://[2002:808:808::1]:{p}/", "6to4"),
    ("http://[2001:0:808:808::1]:{p}/", "Teredo"),
    ("http://[fe80::1]:{p}/", "link-local"),
    ("http://[fe80::1%25lo]:{p}/", "names an interface"),
    ("http://[::1%lo]:{p}/", "names an interface"),
    ("http://[fd00:ec2::254]:{p}/", "cloud metadata"),
    ("http://[ff02::1]:{p}/", "multicast"),
    ("http://[0:0:0:0:0:0:0:1]:{p}/", "canonical"),
    ("http://[::0001]:{p}/", "canonical"),
    ("http://[::1:{p}/", "malformed IPv6"),
    ("http://[127.0.0.1]:{p}/", "malformed IPv6"),
    ("http://[::1]evil.example:{p}/", "malformed port"),
    ("http://[v1.fe80::a]:{p}/", "not an IPv6 address"),
    ("http://::1:{p}/", "malformed port"),
    # Another destination behind an allowed one: userinfo, fragments, backslashes, doubled separators.
    ("http://127.0.0.1@8.8.8.8:{p}/", "credentials"),
    ("http://127.0.0.1:{p}@8.8.8.8:{p}/", "credentials"),
    ("http://user:secret@127.0.0.1:{p}/", "credentials"),
    ("http://gpu1.lan:{p}%40@8.8.8.8:{p}/", "credentials"),
    ("http://8.8.8.8:{p}#@127.0.0.1:{p}/", "credentials"),
    ("http://8.8.8.8:{p}\\@127.0.0.1:{p}/", "credentials"),
    ("http://127.0.0.1:{p}\\@8.8.8.8:{p}/", "credentials"),
    ("http://@127.0.0.1:{p}/", "credentials"),
    ("http://127.0.0.1:{p}\\.evil.example/", "malformed port"),
    ("http://127.0.0.1:{p}/v1#x", "not a plain"),
    ("http://127.0.0.1:{p}/\\\\8.8.8.8/", "not a plain"),
    ("http:\\\\8.8.8.8:{p}\\", "not a plain"),
    ("http:///8.8.8.8:{p}/", "no host"),
    ("http:/8.8.8.8:{p}/", "not a plain"),
    ("http:8.8.8.8:{p}/", "not a plain"),
    ("//8.8.8.8:{p}/", "not a plain"),
    ("8.8.8.8:{p}", "not a plain"),
    ("http://?@8.8.8.8:{p}/", "no host"),
    ("", "not a plain"),
    # Characters that one parser drops and the next one keeps.
    ("http://127.0.0.1:{p}/\r\nHost: evil.example", "no address has"),
    ("http://127.0.0.1\r\n.evil.example:{p}/", "no address has"),
    ("http://127.0.0.1\t.evil.example:{p}/", "no address has"),
    ("http://evil\x00.example:{p}/", "no address has"),
    (" http://8.8.8.8:{p}/", "not a plain"),
    ("http:// 8.8.8.8:{p}/", "not a host name"),
    ("http://8.8.8.8 :{p}/", "not a host name"),
    ("http://127.0.0.1:{p}/a b", "not a plain"),
    ("http://%38.8.8.8:{p}/", "not a host name"),
    ("http://127.0.0.1%2eevil.example:{p}/", "not a host name"),
    ("http://gpu1%2elan:{p}/", "not a host name"),
    ("http://127。0。0。1:{p}/", "no address has"),
    ("http://①②⑦.⓪.⓪.①:{p}/", "no address has"),
    ("http://\uff18.\uff18.\uff18.\uff18:{p}/", "no address has"),
    ("http://ɢpu1.lan:{p}/", "no address has"),
    ("http://gpu1.lan\u200b:{p}/", "no address has"),
    # Names: only whole listed names, never a part, a neighbour, or another way to write one.
    ("http://evil.example:{p}/", "not on the allow-list"),
    ("http://localhost.evil.example:{p}/", "not on the allow-list"),
    ("http://127.0.0.1.nip.io:{p}/", "not on the allow-list"),
    ("http://7f000001.rbndr.example:{p}/", "not on the allow-list"),
    ("http://gpu1.lan.evil.example:{p}/", "not on the allow-list"),
    ("http://evil.gpu1.lan:{p}/", "not on the allow-list"),
    ("http://xgpu1.lan:{p}/", "not on the allow-list"),
    ("http://gpu1:{p}/", "not on the allow-list"),
    ("http://metadata.google.internal:{p}/", "not on the allow-list"),
    ("http://gateway.docker.internal:{p}/", "not on the allow-list"),
    ("http://xn--gpu1-xyz.lan:{p}/", "not on the allow-list"),
    ("http://gpu1.lan.:{p}/", "dot"),
    ("http://localhost.:{p}/", "dot"),
    ("http://8.8.8.8.:{p}/", "dot"),
    ("http://gpu1..lan:{p}/", "not a host name"),
    ("http://-gpu1.lan:{p}/", "not a host name"),
    ("http://gpu1.lan,evil.example:{p}/", "not a host name"),
    ("http://*:{p}/", "not a host name"),
    # Ports and schemes.
    ("http://127.0.0.1:0/", "malformed port"),
    ("http://127.0.0.1:65536/", "malformed port"),
    ("http://127.0.0.1:-1/", "malformed port"),
    ("http://127.0.0.1:/", "malformed port"),
    ("http://127.0.0.1:{p}:80/", "malformed port"),
    ("http://127.0.0.1:0{p}/", "malformed port"),
    ("http://127.0.0.1:+{p}/", "malformed port"),
    ("ftp://127.0.0.1:{p}/", "not a plain"),
    ("file:///etc/passwd", "not a plain"),
    ("gopher://8.8.8.8:{p}/", "not a plain"),
    ("ws://8.8.8.8:{p}/", "not a plain"),
    ("HTTP://8.8.8.8:{p}/", "not a plain"),
    ("http+unix://%2Frun%2Fx.sock/", "not a plain"),
    ("unix:relative.sock", "absolute path"),
    ("unix:/run/../etc/x.sock", "absolute path"),
    ("unix:/run/x.sock:8.8.8.8", "absolute path"),
    ("unix:/run/x.sock:/v1\\models", "request path"),
    # More public and special networks, each by an address of it.
    ("http://1.1.1.1:{p}/", "outside the allowed networks"),
    ("http://9.255.255.255:{p}/", "outside the allowed networks"),
    ("http://126.255.255.255:{p}/", "outside the allowed networks"),
    ("http://172.15.255.255:{p}/", "outside the allowed networks"),
    ("http://192.0.0.192:{p}/", "outside the allowed networks"),
    ("http://192.0.2.1:{p}/", "outside the allowed networks"),
    ("http://192.88.99.1:{p}/", "outside the allowed networks"),
    ("http://192.169.0.0:{p}/", "outside the allowed networks"),
    ("http://198.18.0.1:{p}/", "outside the allowed networks"),
    ("http://198.51.100.1:{p}/", "outside the allowed networks"),
    ("http://100.100.100.200:{p}/latest/meta-data/", "outside the allowed networks"),
    ("http://168.63.129.16:{p}/", "outside the allowed networks"),
    ("http://254.255.255.255:{p}/", "outside the allowed networks"),
    ("http://169.254.170.2:{p}/v2/credentials", "link-local"),
    ("http://169.254.169.253:{p}/", "link-local"),
    ("http://224.0.0.251:{p}/", "multicast"),
    ("http://0.0.0.1:{p}/", "no particular host"),
    ("http://[fec0::1]:{p}/", "outside the allowed networks"),
    ("http://[fd12:3455:ffff::1]:{p}/", "outside the allowed networks"),
    ("http://[fc00::1]:{p}/", "outside the allowed networks"),
    ("http://[100::1]:{p}/", "outside the allowed networks"),
    ("http://[2606:4700:4700::1111]:{p}/", "outside the allowed networks"),
    ("http://[2001:2::1]:{p}/", "outside the allowed networks"),
    ("http://[5f00::1]:{p}/", "outside the allowed networks"),
    ("http://[fe80::a9fe:a9fe]:{p}/", "link-local"),
    ("http://[febf::1]:{p}/", "link-local"),
    ("http://[ff05::1]:{p}/", "multicast"),
    ("http://[::2]:{p}/", "IPv4-compatible"),
    ("http://[::a9fe:a9fe]:{p}/", "IPv4-compatible"),
    ("http://[::ffff:a9fe:a9fe]:{p}/", "IPv4-mapped"),
    ("http://[::ffff:0:7f00:1]:{p}/", "translated"),
    ("http://[64:ff9b::a9fe:a9fe]:{p}/", "NAT64"),
    ("http://[2002:7f00:1::]:{p}/", "6to4"),
    ("http://[2001:0:7f00:1::]:{p}/", "Teredo"),
    # More spellings.
    ("http://3232235777:{p}/", "one decimal number"),
    ("http://4294967295:{p}/", "one decimal number"),
    ("http://4294967296:{p}/", "one decimal number"),
    ("http://017700000001:{p}/", "leading zeros"),
    ("http://0xa9fea9fe:{p}/", "hexadecimal"),
    ("http://0xA9.0xFE.0xA9.0xFE:{p}/", "hexadecimal"),
    ("http://169.0xfe.169.254:{p}/", "hexadecimal"),
    ("http://0x7f.1:{p}/", "hexadecimal"),
    ("http://0251.0376.0251.0376:{p}/", "leading zeros"),
    ("http://169.254.0251.0376:{p}/", "leading zeros"),
    ("http://169.254.43518:{p}/", "shortened"),
    ("http://169.16689662:{p}/", "shortened"),
    ("http://8.8.8.08:{p}/", "leading zeros"),
    ("http://8.8.8.256:{p}/", "ends like an IPv4 address"),
    ("http://8.8.8.8.0x8:{p}/", "hexadecimal"),
    ("http://[::ffff:010.8.8.8]:{p}/", "not an IPv6 address"),
    ("http://[::ffff:8.8.8]:{p}/", "not an IPv6 address"),
    ("http://[2001:DB8::5]:{p}/", "outside the allowed networks"),
    ("http://[2001:db8:0:0:0:0:0:5]:{p}/", "canonical"),
    ("http://[::1%25eth0]:{p}/", "names an interface"),
    ("http://[[::1]]:{p}/", "malformed"),
    ("http://[]:{p}/", "malformed IPv6"),
    ("http://[::1]]:{p}/", "malformed port"),
    ("http://[fe80::1]%25lo:{p}/", "malformed port"),
    # More of what one parser reads and the next does not.
    ("http://127.0.0.1%00.evil.example:{p}/", "not a host name"),
    ("http://127.0.0.1%0d%0a.evil.example:{p}/", "not a host name"),
    ("http://127.0.0.1;evil.example:{p}/", "not a host name"),
    ("http://127.0.0.1&@8.8.8.8:{p}/", "credentials"),
    ("http://8.8.8.8:{p};127.0.0.1/", "malformed port"),
    ("http://127.0.0.1:{p}@evil.example/", "credentials"),
    ("http://user@8.8.8.8:{p}/", "credentials"),
    ("http://:@8.8.8.8:{p}/", "credentials"),
    ("http://127.0.0.1:{p}:@8.8.8.8/", "credentials"),
    ("http://gpu1.lan@evil.example:{p}/", "credentials"),
    ("http://evil.example:{p}?@127.0.0.1/", "not on the allow-list"),
    ("http://evil.example:{p}/@127.0.0.1/", "not on the allow-list"),
    ("http://evil.example:{p}#127.0.0.1", "malformed port"),
    ("http:///evil.example:{p}/", "no host"),
    ("http:////evil.example:{p}/", "no host"),
    ("http://\\evil.example:{p}/", "not a host name"),
    ("http:\t//evil.example:{p}/", "no address has"),
    ("http://evil.example\u3002com:{p}/", "no address has"),
    ("http://\u2025.example:{p}/", "no address has"),
    ("http://127.0.0.1\u2044:{p}/", "no address has"),
    ("http://\u0131nternal.lan:{p}/", "no address has"),
    ("http://gpu1.lan\x7f:{p}/", "no address has"),
    ("http://gpu1.lan\x0b:{p}/", "no address has"),
    # More names: what leads to loopback or to anywhere by somebody else's DNS, and what only looks listed.
    ("http://localtest.me:{p}/", "not on the allow-list"),
    ("http://lvh.me:{p}/", "not on the allow-list"),
    ("http://0x7f.0.0.1.nip.io:{p}/", "not on the allow-list"),
    ("http://169.254.169.254.sslip.io:{p}/", "not on the allow-list"),
    ("http://localhost.localdomain:{p}/", "not on the allow-list"),
    ("http://localhost6:{p}/", "not on the allow-list"),
    ("http://ip6-localhost:{p}/", "not on the allow-list"),
    ("http://host.containers.internal:{p}/", "not on the allow-list"),
    ("http://kubernetes.default.svc:{p}/", "not on the allow-list"),
    ("http://metadata:{p}/", "not on the allow-list"),
    ("http://instance-data:{p}/", "not on the allow-list"),
    ("http://gpu1_lan:{p}/", "not on the allow-list"),
    ("http://gpu1.lan.localhost:{p}/", "not on the allow-list"),
    ("http://gpu1-lan:{p}/", "not on the allow-list"),
    ("http://wpad:{p}/wpad.dat", "not on the allow-list"),
    ("http://gpu1.lan..:{p}/", "dot"),
    ("http://.gpu1.lan:{p}/", "not a host name"),
    ("http://gpu1.lan-:{p}/", "not a host name"),
    ("http://" + "a" * 64 + ".lan:{p}/", "not a host name"),
    # More schemes and ports.
    ("https//8.8.8.8:{p}/", "not a plain"),
    ("hhttp://8.8.8.8:{p}/", "not a plain"),
    ("http+https://8.8.8.8:{p}/", "not a plain"),
    ("javascript:alert(1)", "not a plain"),
    ("data:text/plain,x", "not a plain"),
    ("dict://8.8.8.8:{p}/", "not a plain"),
    ("ldap://8.8.8.8:{p}/", "not a plain"),
    ("wss://8.8.8.8:{p}/", "not a plain"),
    ("socks5://8.8.8.8:{p}/", "not a plain"),
    ("unix:", "absolute path"),
    ("unix://run/x.sock/../../y", "absolute path"),
    ("unix:/run/x.sock:/v1 /models", "request path"),
    ("http://127.0.0.1:65537/", "malformed port"),
    ("http://127.0.0.1:99999999999/", "malformed port"),
    ("http://127.0.0.1:8080x/", "malformed port"),
    ("http://127.0.0.1:0x50/", "malformed port"),
    ("http://127.0.0.1: {p}/", "malformed port"),
    ("http://127.0.0.1:\u0661/", "no address has"),
    ("http://127.0.0.1:{p}/" + "a" * 3000, "too long"),
)


@pytest.fixture
def allow() -> AllowList:
    return AllowList.from_config(SECURITY)


@pytest.mark.parametrize(("url", "words"), HOSTILE)
def test_hostile_urls_are_refused(allow: AllowList, url: str, words: str) -> None:
    with pytest.raises(GuardError) as caught:
        allow.check_url(url.replace("{p}", "8080"))
    assert words in caught.value.message
    assert caught.value.exit_code == EXIT_REFUSED


@pytest.mark.parametrize(("url", "words"), HOSTILE)
def test_allow_external_lifts_nothing_but_the_lists(url: str, words: str) -> None:
    external = AllowList.from_config(SecurityConfig(allow_external=True))
    if words in ("outside the allowed networks", "not on the allow-list"):
        assert external.check_url(url.replace("{p}", "8080")).port == 8080
        return
    with pytest.raises(GuardError, match=words):
        external.check_url(url.replace("{p}", "8080"))


def test_the_table_is_long_enough() -> None:
    assert len({url for url, _ in HOSTILE}) == len(HOSTILE) >= 200


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:11434", Target("http", "127.0.0.1", 11434, "")),
        ("http://127.255.1.2/", Target("http", "127.255.1.2", 80, "/")),
        ("https://localhost/v1/models?a=1&b=%20", Target("https", "localhost", 443, "/v1/models?a=1&b=%20")),
        ("http://GPU1.Lan:8000/v1", Target("http", "gpu1.lan", 8000, "/v1")),
        ("http://[::1]:8080/x", Target("http", "::1", 8080, "/x")),
        ("http://[FD12:3456::7]", Target("http", "fd12:3456::7", 80, "")),
        ("http://192.168.1.5:1234", Target("http", "192.168.1.5", 1234, "")),
        ("http://10.9.8.7:65535", Target("http", "10.9.8.7", 65535, "")),
        ("http://172.31.255.255:1", Target("http", "172.31.255.255", 1, "")),
        ("http://127.0.0.1:1?x", Target("http", "127.0.0.1", 1, "?x")),
        ("unix:/run/llama.sock", Target("unix", "", 0, "", "/run/llama.sock")),
        ("unix:/run/llama.sock:/v1/models", Target("unix", "", 0, "/v1/models", "/run/llama.sock")),
    ],
)
def test_plain_destinations_are_read(allow: AllowList, url: str, target: Target) -> None:
    assert allow.check_url(url) == target


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://gpu9.lan:80/", 'security.allowed_hosts: ["gpu9.lan"]'),
        ("http://203.0.113.5/", 'security.allowed_hosts: ["203.0.113.5"]'),
        ("http://[2001:db8::5]/", 'security.allowed_hosts: ["2001:db8::5"]'),
    ],
)
def test_the_hint_is_the_line_that_allows_it(allow: AllowList, url: str, line: str) -> None:
    with pytest.raises(GuardError) as caught:
        allow.check_url(url)
    assert line in caught.value.hint
    named = line.partition('"')[2].partition('"')[0]
    assert AllowList.from_config(SecurityConfig(allowed_hosts=(named,))).check_url(url).host == named


def test_a_refusal_never_shows_credentials_or_control_characters(allow: AllowList) -> None:
    for url in ("http://user:hunter2@203.0.113.5/", "http:\\\\user:hunter2@203.0.113.5", "http://u:hunter2@h/\x1b[2J"):
        with pytest.raises(GuardError) as caught:
            allow.check_url(url)
        assert "hunter2" not in f"{caught.value} {caught.value.target}"
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "ip",
    ["127.0.0.1", "127.9.9.9", "::1", "10.1.2.3", "192.168.0.1", "::ffff:10.1.2.3", "::ffff:127.0.0.1", "fd12:3456::9"],
)
def test_addresses_that_may_be_dialled(allow: AllowList, ip: str) -> None:
    allow.check_address(ip)


@pytest.mark.parametrize(
    ("ip", "words"),
    [
        ("8.8.8.8", "outside"),
        ("::ffff:8.8.8.8", "outside"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::ffff:0.0.0.0", "no particular host"),
        ("fe80::1%lo", "link-local"),
        ("64:ff9b::7f00:1", "NAT64"),
        ("::127.0.0.1", "IPv4-compatible"),
        ("127.0.0.1%lo", "not an IP address"),
        ("0177.0.0.1", "not an IP address"),
        ("2130706433", "not an IP address"),
        ("gpu1.lan", "not an IP address"),
        ("", "not an IP address"),
    ],
)
def test_addresses_that_may_not(allow: AllowList, ip: str, words: str) -> None:
    with pytest.raises(GuardError, match=words):
        allow.check_address(ip)


def test_an_outside_address_is_told_with_the_name_that_led_there(allow: AllowList) -> None:
    with pytest.raises(GuardError, match=r"gpu1\.lan leads to 203\.0\.113\.5, which is outside"):
        allow.check_address("203.0.113.5", name="gpu1.lan")


@pytest.mark.parametrize(
    ("entry", "ip"),
    [
        ("169.254.169.254", "169.254.169.254"),
        ("169.254.0.0/16", "169.254.1.1"),
        ("fe80::/10", "fe80::1%lo"),
        ("64:ff9b::/96", "64:ff9b::808:808"),
        ("2002:808:808::/48", "2002:808:808::1"),
        ("[2001:db8::5]", "2001:db8::5"),
    ],
)
def test_special_addresses_open_only_when_listed_themselves(entry: str, ip: str) -> None:
    AllowList.from_config(SecurityConfig(allowed_hosts=(entry,))).check_address(ip)


@pytest.mark.parametrize(
    "ip", ["169.254.169.254", "0.0.0.0", "224.0.0.1", "fe80::1", "64:ff9b::808:808", "2002::1", "::"]
)
def test_a_network_as_wide_as_the_world_does_not_open_special_addresses(ip: str) -> None:
    wide = AllowList.from_config(SecurityConfig(allowed_cidrs=("0.0.0.0/0", "::/0")))
    wide.check_address("8.8.8.8")
    wide.check_address("2001:db8::1")
    with pytest.raises(GuardError):
        wide.check_address(ip)


def test_loopback_only_forgets_the_configuration() -> None:
    alone = AllowList.from_config(SecurityConfig(allowed_hosts=("gpu1.lan",), allow_external=True), loopback_only=True)
    assert alone.check_url("http://localhost:1").host == "localhost"
    for url in ("http://gpu1.lan", "http://10.1.2.3", "http://host.docker.internal"):
        with pytest.raises(GuardError):
            alone.check_url(url)


@pytest.mark.parametrize(
    "entry", ["http://gpu1.lan", "gpu1.lan:8000", "*.lan", "0177.0.0.1", "127.1", "gpu 1", "", "-x"]
)
def test_a_wrong_entry_is_named_with_its_key(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AllowList.from_config(SecurityConfig(allowed_hosts=("gpu1.lan", entry)))
    assert caught.value.key in ("security.allowed_hosts[1]", "security.allowed_cidrs[1]")


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "10.0.0/8", "gpu1.lan", ""])
def test_a_wrong_cidr_is_named_with_its_key(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AllowList.from_config(SecurityConfig(allowed_cidrs=(entry,)))
    assert caught.value.key == "security.allowed_cidrs[0]"


def test_the_hosts_file_is_read_as_resolvers_read_it(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# 203.0.113.5 host.docker.internal\n10.0.2.2 other HOST.docker.internal # x\n\n::1 localhost\n")
    allow = AllowList(hosts_file=hosts)
    assert allow.hosts_file_addresses("host.docker.internal") == ("10.0.2.2",)
    assert allow.hosts_file_addresses("gateway.docker.internal") == ()
    assert AllowList(hosts_file=tmp_path / "none").hosts_file_addresses("localhost") == ()
