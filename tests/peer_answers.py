"""How lm-evaluation-harness scores a GSM8K response, by its task file (lm_eval/tasks/gsm8k, version 3.0).

python -m tests.peer_answers evals/NAME/responses.jsonl        where its two filters and our verdicts part
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")
Filter = Literal["strict", "flexible"]


def extract(response: str, how: Filter) -> str:
    """Its answer: strict takes the first `#### number`, flexible the last number of the text."""
    if how == "strict":
        found = STRICT.findall(response)
        return found[0].strip() if found else "[invalid]"
    numbers = FLEXIBLE.findall(response)
    return next(part for part in numbers[-1] if part).strip() if numbers else "[invalid]"


def is_right(response: str, answer: str, how: Filter) -> bool:
    """Its `exact_match` with the answer column of GSM8K, or the number in it."""
    return _plain(extract(response, how)) == _plain(answer)


def _plain(text: str) -> str:
    for pattern in IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()


def main(path: str) -> None:
    """Print how often verdicts agree, and an example of each way to part."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["reward"] is not None]
    for how in ("strict", "flexible"):
        kinds = Counter((row["reward"], int(is_right(row["response"], row["answer"], how))) for row in rows)
        same = kinds[0, 0] + kinds[1, 1]
        print(f"{how}: {same} of {len(rows)} alike; ours alone right {kinds[1, 0]}, its alone right {kinds[0, 1]}")
    for row in rows:
        if row["reward"] != is_right(row["response"], row["answer"], "flexible"):
            theirs = extract(row["response"], "flexible")
            print(f"{row['answer']!r}: ours {row['extracted']!r}, flexible {theirs!r}: {row['response'][-160:]!r}")


if __name__ == "__main__":
    main(sys.argv[1])
