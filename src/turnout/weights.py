"""What identifies a model's weights as its server tells it, and what came of checking them (SPEC SEC-4, PROOF-3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["", "verified", "unverified", "checking", "mismatch"]


@dataclass(frozen=True, slots=True)
class Weights:
    """What a server tells beside a digest.

    Attributes:
        path: where they are on the server's machine, a file or a folder, or "".
        vocabulary: tokens that the model knows, or 0.
        template: SHA-256 of its chat template, or "".
    """

    path: str = ""
    vocabulary: int = 0
    template: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a served model is the one that was recorded.

    Attributes:
        state: "" where nothing is recorded, so nothing is checked.
        why: for people.
        barred: why it may not serve, or "".
        weights: SHA-256 of the weights, where they are known, or "".
    """

    state: State = ""
    why: str = ""
    barred: str = ""
    weights: str = ""


NOT_TOLD = Weights()
UNCHECKED = Verdict()
