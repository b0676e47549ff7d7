r"""The tokenizers of the laptop world: printable characters and a few longer tokens, longest match first.

Invariant: decoding is the exact concatenation of the tokens' texts. The step tags of the critic are ordinary
vocabulary, not special tokens, so they decode to text. An operation and its digit are one token to it, which it can
compare at a glance. Every printable ASCII character has a token, so any English question can be encoded (the policy has
learnt only digits and operators); other characters become `<unk>`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Role = Literal["policy", "critic"]
PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
NUM_STEP_TAGS = 32

_PRINTABLE = [chr(code) for code in range(32, 127)]
_LONG = {
    "policy": ["\n\n", "\\boxed{"],
    "critic": [
        "\n\n",
        "\\boxed{",
        *(f"<step_{k}>" for k in range(NUM_STEP_TAGS)),
        *(f"</step_{k}>" for k in range(NUM_STEP_TAGS)),
        "Judgement:",
        " Yes",
        " No",
        "<incorrect_steps>",
        "</incorrect_steps>",
        *(f"{operator}{digit}" for operator in "+-*" for digit in range(10)),
    ],
}


def vocabulary(role: Role) -> list[str]:
    """The tokens in id order: pad, eos, unk, single characters, longer tokens."""
    return [PAD, EOS, UNK, "\n", *_PRINTABLE, *_LONG[role]]


def build_tokenizer(role: Role, max_tokens: int = 512) -> PreTrainedTokenizerFast:
    """The Hugging Face tokenizer of the laptop policy or critic; nothing is added before or after a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(vocabulary(role))}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    longest_first = sorted(_LONG[role], key=len, reverse=True)
    pattern = "|".join([*(re.escape(token) for token in longest_first), r"[\s\S]"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )
