"""Text to token ids and back, on a local Hugging Face tokenizer.

Invariant: trusted text and data enter by different doors. What `encode_data` returns holds no special or control token,
whatever the text spells, so no response can close its own turn in another model's prompt.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capo_ray.imports import unwatched

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Rendered as the user turn to find where a chat template puts it; letters only, so that no template escapes it.
_SENTINEL = "QqZzUserTurnGoesHereZzQq"


class TokenizerRefused(ValueError):
    """A tokenizer that cannot be used, or text that it cannot carry safely."""


class HfTokenizer:
    """`protocols.Tokenizer` over `AutoTokenizer` (fast tokenizers only; no remote code)."""

    def __init__(self, path: str | Path, loaded: PreTrainedTokenizerBase | None = None) -> None:
        self.path = str(path)
        self.hf: PreTrainedTokenizerBase = loaded or _load(self.path)
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is None:
            raise TokenizerRefused(f"{self.path} has no fast tokenizer (tokenizer.json); convert it with transformers")
        self.backend: Any = backend
        if self.hf.eos_token_id is None:
            raise TokenizerRefused(f"{self.path} has no eos token; set eos_token in its tokenizer_config.json")
        self.eos_id = int(self.hf.eos_token_id)
        self.vocab_size = len(self.hf)
        added = self.hf.added_tokens_decoder
        special = {i for i, token in added.items() if token.special} | set(self.hf.all_special_ids)
        # What decoding leaves out: the ids marked special. What data may never become: every added token, since some
        # control tokens (`<tool_call>`, `<think>`) are not marked; runs of spaces and a pure <unk> do no harm.
        self.special_ids = frozenset(special)
        plain = {i for i, token in added.items() if not token.content.strip()}
        if self.hf.unk_token_id not in (self.eos_id, self.hf.bos_token_id, self.hf.pad_token_id):
            plain.add(self.hf.unk_token_id)
        self.control_ids = frozenset((special | set(added)) - plain)
        self._spellings = [token.content for i, token in added.items() if i in self.control_ids]

    @classmethod
    def of(cls, loaded: PreTrainedTokenizerBase) -> HfTokenizer:
        """Over a tokenizer that somebody else has loaded, and which stays as it is."""
        return cls(loaded.name_or_path, loaded)

    def encode(self, text: str) -> list[int]:
        """The ids of trusted text, control tokens recognised, nothing added before or after."""
        return list(self.hf.encode(text, add_special_tokens=False))

    def encode_data(self, text: str) -> list[int]:
        """The ids of untrusted text: no special or control token can come out, whatever the text spells."""
        ids = self._encode_plain(text)
        if self.control_ids.isdisjoint(ids):
            return ids
        # Added tokens not marked special are matched all the same; cut where their spellings stand, then everywhere
        # (a normaliser may spell what the text did not).
        ids = [i for piece in self._cut(text) for i in self._encode_plain(piece)]
        if self.control_ids.isdisjoint(ids):
            return ids
        return [i for char in text for i in self._encode_plain(char) if i not in self.control_ids]

    def _encode_plain(self, text: str) -> list[int]:
        return list(self.hf.encode(text, add_special_tokens=False, split_special_tokens=True))

    def _cut(self, text: str) -> list[str]:
        """The text in pieces, none of which holds the whole spelling of a control token."""
        cuts = {0, len(text)}
        for spelling in self._spellings:
            at = text.find(spelling)
            while at >= 0:
                cuts.add(at + 1)
                at = text.find(spelling, at + 1)
        bounds = sorted(cuts)
        return [text[start:end] for start, end in itertools.pairwise(bounds)]

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]], *, begins: bool) -> list[int]:
        """As `protocols.Tokenizer.encode_pieces`: the ids that the whole text has, as when the model was trained.

        Where data spells a control token, its pieces are encoded apart: then a dummy prefix may stand before each.
        """
        start = self.start_ids if begins else []
        ids = self._encode_joint(pieces)
        if ids is None:
            ids = [i for text, trusted in pieces for i in (self.encode(text) if trusted else self.encode_data(text))]
        return ids if ids[: len(start)] == start else [*start, *ids]

    def _encode_joint(self, pieces: Sequence[tuple[str, bool]]) -> list[int] | None:
        """The ids of the joined text; None where a control token comes out of a piece of data."""
        found = self.hf(
            "".join(text for text, _ in pieces),
            add_special_tokens=False,
            split_special_tokens=False,
            return_offsets_mapping=True,
        )
        ids, offsets = list(found["input_ids"]), found["offset_mapping"]
        ends = list(itertools.accumulate(len(text) for text, _ in pieces))
        data = [(end - len(text), end) for (text, trusted), end in zip(pieces, ends, strict=True) if not trusted]
        control = [offsets[place] for place, i in enumerate(ids) if i in self.control_ids]
        touches = any((a < stop and start < b) or a == b for a, b in control for start, stop in data)
        return None if touches else ids

    @functools.cached_property
    def start_ids(self) -> list[int]:
        """What the tokenizer puts before a text of its own accord: a begin-of-sequence token, or nothing."""
        plain, whole = self.encode("a"), list(self.hf.encode("a"))
        at = next((k for k in range(len(whole)) if whole[k : k + len(plain)] == plain), 0)
        return whole[:at]

    def stop_ids(self, tokens: Sequence[str]) -> tuple[int, ...]:
        """The ids of tokens given by their texts; raises `TokenizerRefused` on a text that is not one token."""
        vocab = self.hf.get_vocab()
        for token in tokens:
            if token not in vocab:
                raise TokenizerRefused(
                    f"model.stop_tokens must be tokens of {self.path} (got {token!r}); give texts as model.stop_strings"
                )
        return tuple(vocab[token] for token in tokens)

    def chat_frame(self, system: str, **names: object) -> tuple[str, str] | None:
        """As `protocols.Tokenizer.chat_frame`; raises `TokenizerRefused` where the template refuses the turns."""
        from jinja2.exceptions import TemplateError

        if not getattr(self.hf, "chat_template", None):
            return None
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": _SENTINEL})
        try:
            rendered = self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **names)
        except (TemplateError, ValueError) as error:
            cure = "leave model.system_prompt empty, or set" if system else "mend it, or set"
            raise TokenizerRefused(
                f"the chat template of {self.path} refuses {'a system and ' if system else ''}a user turn "
                f"({str(error)[:200]}); {cure} model.chat_template=false"
            ) from error
        parts = str(rendered).split(_SENTINEL)
        if len(parts) != 2:
            raise TokenizerRefused(
                f"the chat template of {self.path} must show the user turn once (shown {len(parts) - 1} times); "
                "set model.chat_template=false or mend the template"
            )
        return parts[0], parts[1]

    def reply_frame(self, **names: object) -> tuple[str, str] | None:
        """As `protocols.Tokenizer.reply_frame`."""
        if not getattr(self.hf, "chat_template", None):
            return None
        turns = [("user", "a"), ("assistant", _SENTINEL), ("user", _SENTINEL)]
        messages = [{"role": role, "content": text} for role, text in turns]
        parts = str(self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **names)).split(
            _SENTINEL
        )
        if len(parts) != 3:
            raise TokenizerRefused(
                f"the chat template of {self.path} must show a model's turn and the user's that follows as they are; "
                "set model.chat_template=false and environment.reply_template"
            )
        return parts[1], parts[2]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""
        return str(
            self.hf.decode(list(map(int, token_ids)), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def decode_pieces(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """The text of the ids and, per token, the length of the text once it is decoded.

        A token that completes no character repeats the length before it; bytes that never complete a character come
        with the last token. The text is the concatenation of the pieces, as in `Completion`.
        """
        text = self.decode(token_ids)
        ends = self._stream_ends(token_ids, text)
        return text, ends if ends is not None else self._prefix_ends(token_ids, text)

    def _stream_ends(self, token_ids: Sequence[int], text: str) -> tuple[int, ...] | None:
        """The ends by incremental detokenisation, or None where the stream loses its way (undecodable bytes)."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(ids=[], skip_special_tokens=True)
        ends: list[int] = []
        at = 0
        try:
            for token in token_ids:
                piece = stream.step(self.backend, int(token)) or ""
                if not text.startswith(piece, at):
                    return None
                at += len(piece)
                ends.append(at)
        except Exception as error:
            if type(error) is not Exception:  # the stream's own errors have no class of their own
                raise
            return None
        return self._close(token_ids, ends, len(text))

    def _prefix_ends(self, token_ids: Sequence[int], text: str) -> tuple[int, ...]:
        """The ends by decoding every prefix: quadratic, and right whatever the bytes."""
        ends: list[int] = []
        at = 0
        for t in range(1, len(token_ids) + 1):
            prefix = self.decode(token_ids[:t])
            # U+FFFD at the end may yet become a character with the next bytes.
            known = len(prefix.rstrip("\ufffd"))
            while known > at and prefix[at:known] != text[at:known]:
                known -= 1
            at = max(at, known)
            ends.append(at)
        return self._close(token_ids, ends, len(text))

    def _close(self, token_ids: Sequence[int], ends: list[int], length: int) -> tuple[int, ...]:
        """`ends` with bytes that never completed a character given to the last token that is not special."""
        last = len(ends) - 1
        while last >= 0 and int(token_ids[last]) in self.special_ids:
            last -= 1
        for t in range(max(last, 0), len(ends)):
            ends[t] = length
        return tuple(ends)


def _is_plain(path: Path) -> bool:
    """Whether a directory's files say that `AutoTokenizer` would choose transformers' plain class for it.

    Choosing imports torch and all models' registry: three seconds of a driver that needs neither. Only where the answer
    is certain: for many architectures `AutoTokenizer` knows better than the files.
    """
    try:
        chosen = json.loads((path / "tokenizer_config.json").read_bytes())
        model = json.loads((path / "config.json").read_bytes())
        plain = chosen["tokenizer_class"] == "TokenizersBackend" and "auto_map" not in chosen
        return plain and model["model_type"] in ("llama", "qwen3") and (path / "tokenizer.json").is_file()
    except (OSError, ValueError, LookupError, TypeError):
        return False  # whatever is wrong with them, `AutoTokenizer` tells


def _load(path: str) -> PreTrainedTokenizerBase:
    local = Path(path).exists()
    with unwatched():
        if _is_plain(Path(path)):
            from transformers import TokenizersBackend as Loader
        else:
            from transformers import AutoTokenizer as Loader
    loaded = Loader.from_pretrained(path, trust_remote_code=False, local_files_only=local)
    loaded.model_max_length = 10**9  # lengths are the caller's affair: no warning into somebody's progress page
    return loaded
