"""What an API answers when it does not answer: refusals in the server's own words."""

from __future__ import annotations

import json
from typing import Literal

from capo_ray.served.retries import retry_after_s

Kind = Literal["failed", "refused", "late"]
"""One that may pass, one that would come again, and one that had its time."""
MAX_WORDS_CHARS = 300
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class RequestFailed(RuntimeError):
    """A try that brought no answer.

    `again` says whether another may, `wait_s` what the server asked for, `words` what the server said.
    """

    def __init__(
        self, reason: str, *, again: bool, kind: Kind = "failed", wait_s: float | None = None, words: str = ""
    ) -> None:
        super().__init__(reason)
        self.again, self.kind, self.wait_s, self.words = again, kind, wait_s, words


def refusal(status: int, raw: bytes, retry_after: str, path: str, key: str) -> RequestFailed:
    """The failure that a status and a body are, in the server's words, with the API key blotted out of them."""
    words = _words(raw)
    if key:
        words = words.replace(key, "***")
    again = status in RETRIED
    where = "" if again else f" at {path}"  # a refusal may be of another address than was meant
    return RequestFailed(
        f"HTTP {status}{where}" + (f": {words}" if words else ""),
        again=again,
        kind="failed" if again else "refused",
        wait_s=retry_after_s(retry_after),
        words=words,
    )


def _words(raw: bytes) -> str:
    """What an error's body says on one line, shortened: the message of the API's form, or the beginning of the text."""
    text = raw[: 1 << 16].decode("utf-8", "replace")
    try:
        answer = json.loads(text)
        error = answer.get("error", answer)
        said = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        text = said if isinstance(said, str) else text
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_WORDS_CHARS]
