"""What a chat API answers: choices as replies, and refusals in the server's own words."""

from __future__ import annotations

import json

from capo_ray.critics.panel import FAILED, REFUSED, Reply
from capo_ray.critics.retries import retry_after_s

MAX_REPLY_BYTES = 8 << 20
MAX_WORDS_CHARS = 300
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class RequestFailed(RuntimeError):
    """A try that brought no answer.

    `again` says whether another may, `wait_s` what the server asked for, `kind` what becomes of the vote, `words` what
    the server said.
    """

    def __init__(
        self, reason: str, *, again: bool, kind: str = FAILED, wait_s: float | None = None, words: str = ""
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
        kind=FAILED if again else REFUSED,
        wait_s=retry_after_s(retry_after),
        words=words,
    )


def read_replies(raw: bytes) -> list[Reply]:
    """The choices of an answer; raises `RequestFailed` on one that is not in the API's form."""
    try:
        answer = json.loads(raw)
        choices = answer["choices"]
        usage = answer.get("usage")
        return [
            Reply(
                text=str(choice["message"].get("content") or ""),
                truncated=choice.get("finish_reason") == "length",
                output_tokens=_count(usage, "completion_tokens") // max(1, len(choices)),
                prompt_tokens=_count(usage, "prompt_tokens"),
            )
            for choice in choices
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestFailed(f"answer not in the API's form ({type(error).__name__})", again=True) from None


def _count(usage: object, name: str) -> int:
    """A number of tokens that the server says, 0 where it says none: a good answer does not depend on it."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


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
