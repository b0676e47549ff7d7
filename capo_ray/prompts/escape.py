"""Untrusted text made harmless in another model's prompt, by its letters alone.

Token ids are the tokenizer's business (`encode_data`); here the *text* loses what the critic's grammar or a chat
template could read as structure: step tags, the verdict's tag and word, thinking tags, chat tokens, invisible letters.
Ordinary mathematics passes unchanged. Linear time.
"""

from __future__ import annotations

import re
import unicodedata

# Names that mean something after `<` in our prompts, in a critic's answer or in a chat template.
_NAMES = (
    r"steps?(?![a-z])|incorrect|think|reasoning|solution|question|reference|problem|response|"
    r"s>|bos|eos|pad|unk|sep|cls|mask|begin|end|start|stop|im_|fim|tool|system|user|assistant|human|model|turn|message|channel|"
    r"function|extra_id|reserved|special|\||｜|\[|sys"
)
# One class of junk and possessive, so that runs of blanks or slashes cost linear time.
# Letters beyond ASCII count as a name: compatibility normalisation folds some of them into it (`＜ｓtep_3＞`).
_TAG = re.compile(rf"<(?=[\s/\\]*+(?:{_NAMES}|[a-z_]{{0,16}}[^\x00-\x7f]))", re.IGNORECASE)
_BRACKETS = re.compile(r"\[(?=[\s/]*+(?:inst|sys|avail|tool|system)[^\]]{0,20}\])", re.IGNORECASE)
_CLOSERS = re.compile(r"(?<=[|｜])>")
_VERDICT = re.compile(r"(judge?)(?=ments?)", re.IGNORECASE)
_FENCE_WORDS = re.compile(r"^([ \t]*(?:BEGIN|END)) (?=[0-9a-f]{8})", re.MULTILINE)
# Letters that compatibility normalisation, which some tokenizers apply, turns into `<` or `>`.
_FOLDED = str.maketrans({"＜": "&lt;", "﹤": "&lt;", "＞": "&gt;", "﹥": "&gt;"})
_KEPT_CONTROLS = frozenset("\n\t")
_ASCII_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def escape_data(text: str) -> str:
    """The text with everything that could pass for structure spelled so that it cannot."""
    if text.isascii():
        text = _ASCII_CONTROLS.sub("", text)
    else:
        text = "".join(c for c in text if c in _KEPT_CONTROLS or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    text = text.translate(_FOLDED)
    text = _TAG.sub("&lt;", text)
    text = _BRACKETS.sub("&#91;", text)
    text = _CLOSERS.sub("&gt;", text)
    text = _FENCE_WORDS.sub(r"\1-", text)
    return _VERDICT.sub(r"\1-", text)
