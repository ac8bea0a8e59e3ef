"""Real texts of the machine that a benchmark of counting runs on; none of them is kept in the repository.

The standard library and installed packages (Python, JavaScript, Go, Rust, C, shell), their README and help files, JSON
files, Chinese help files of the system, and what commands print. A file belongs to one of two halves by its path: one
half is for fitting the prior weights, the other for measuring. Chinese files are few, so their pieces are shared out.
For fitting alone there are the messages of programs in many languages: of most scripts the rest has next to nothing.
"""

from __future__ import annotations

import gettext
import re
import site
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple
from zlib import crc32

ROOT = Path(__file__).parents[1]
STDLIB = sysconfig.get_paths()["stdlib"]
SITE = site.getsitepackages()[0]
HOME = str(Path.home())
SIZES = (400, 1000, 2500, 6000, 12000)  # characters
LARGEST = 400_000  # bytes of a file
PLACES: dict[str, tuple[tuple[str, str, int], ...]] = {
    "code": (
        (STDLIB, "**/*.py", 160),
        (SITE, "**/*.py", 60),
        (f"{HOME}/go/pkg/mod", "**/*.go", 60),
        ("/usr/lib/node_modules", "**/*.js", 60),
        ("/usr/include", "**/*.h", 50),
        ("/usr/share", "**/*.sh", 20),
        (f"{HOME}/.cargo/registry/src", "**/*.rs", 40),
    ),
    "prose": (
        ("/usr/lib/node_modules", "**/*.md", 120),
        (f"{HOME}/go/pkg/mod", "**/*.md", 60),
        (SITE, "**/METADATA", 40),
        ("/usr/share/doc", "**/README*", 40),
        ("/usr/share/vim", "**/doc/*.txt", 60),
        ("/usr/share/common-licenses", "*", 10),
    ),
    "json": (
        ("/usr/lib/node_modules", "**/*.json", 80),
        (SITE, "**/*.json", 40),
        (f"{HOME}/go/pkg/mod", "**/*.json", 60),
        ("/usr/share", "**/*.json", 60),
    ),
    "chinese": (
        ("/usr/share/vim", "**/tutor.zh*utf-8", 40),
        ("/usr/share/gnupg", "help.zh*", 40),
        ("/usr/lib/systemd/catalog", "*.zh*", 40),
    ),
    "other": (
        ("/usr/share/vim", "**/tutor.*.utf-8", 40),
        ("/usr/share/gnupg", "help.*.txt", 40),
        ("/usr/lib/systemd/catalog", "systemd.*", 20),
    ),
}
FREQUENT = {"ar", "de", "es", "fr", "it", "ja", "ko", "pl", "pt_BR", "ru", "tr", "uk", "vi", "zh_CN"}
COMMANDS = (
    ("git", "log", "-p", "-n", "60"),
    ("git", "log", "--stat", "-n", "80"),
    ("ls", "-lR", "/usr/share/doc"),
    ("dpkg", "-l"),
    ("grep", "-rnE", "def |class |import ", "src", "tests"),
    ("find", "/usr/lib", "-type", "f", "-name", "*.so*"),
)


class Sample(NamedTuple):
    """A piece of a text, and its kind."""

    kind: str
    text: str


def samples(half: int) -> list[Sample]:
    """The texts of one half (0 for fitting, 1 for measuring), the same at every call on the same machine."""
    random = Random(half + 1)
    found = [Sample(kind, text) for kind, places in PLACES.items() for text in _of(kind, places, half, random)]
    found += [Sample("output", text) for text in _outputs(half, random)]
    random.shuffle(found)
    return found


def translations() -> list[Sample]:
    """Messages of half of the machine's programs: up to 1500 characters of a language, 6000 of a FREQUENT one."""
    random, found = Random(0), []
    languages: dict[str, list[str]] = {}
    for path in sorted(Path("/usr/share").rglob("LC_MESSAGES/*.mo")):
        if crc32(str(path).encode()) % 2 == 0 and "iso_" not in path.name:
            languages.setdefault(path.parts[-3], []).extend(_translated(path))
    for language, texts in languages.items():
        random.shuffle(texts)
        pieces = _pieces("\n".join(texts), 1500)[: 4 if language in FREQUENT else 1]
        found += [Sample("translation", piece) for piece in pieces if len(piece) > 300]
    return found


def _translated(path: Path) -> list[str]:
    with path.open("rb") as file:
        try:
            catalog = gettext.GNUTranslations(file)._catalog
        except (OSError, UnicodeDecodeError, IndexError):
            return []
    return [text for key, text in catalog.items() if key and len(text) > 25 and not text.isascii()]


def _of(kind: str, places: tuple[tuple[str, str, int], ...], half: int, random: Random) -> Iterator[str]:
    for folder, pattern, most in places:
        paths = sorted(p for p in Path(folder).glob(pattern) if p.is_file() and 200 < p.stat().st_size < LARGEST)
        random.shuffle(paths)
        taken = 0
        for path in paths:
            text = _read(path)
            if taken >= most or not text or (kind == "other" and "zh" in path.name):
                continue
            if kind in ("chinese", "other"):
                pieces = [p for i, p in enumerate(_pieces(text, 900)) if i % 2 == half]
            elif crc32(str(path).encode()) % 2 != half or _is_chinese(text):
                continue
            else:
                pieces = [_piece(text, random)]
            taken += len(pieces)
            yield from (piece for piece in pieces if len(piece) > 150)


def _outputs(half: int, random: Random) -> Iterator[str]:
    for command in COMMANDS:
        done = subprocess.run(command, check=False, capture_output=True, cwd=ROOT)
        pieces = [p for i, p in enumerate(_pieces(done.stdout.decode("utf-8", "replace"), 4000)) if i % 2 == half]
        random.shuffle(pieces)
        yield from pieces[:16]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _piece(text: str, random: Random) -> str:
    size = random.choice(SIZES)
    if len(text) <= size:
        return text
    start = random.randrange(len(text) - size + 1)
    start = text.find("\n", start) + 1 or start
    return text[start : start + size]


def _pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def _is_chinese(text: str) -> bool:
    return len(re.findall(r"[\u3000-\u9fff]", text)) > 0.02 * len(text)
