"""A whole Hugging Face model directory of a few hundred kilobytes, for tests and benchmarks.

    write_tiny_model(path) -> config.json, generation_config.json, model.safetensors, tokenizer.json, ...

Invariant: decoding is exact concatenation. Each token of the vocabulary is its own text, so `"".join` of the pieces is
the text, newlines and spaces included. A vocabulary entry longer than a character is found before any shorter one.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path

EOS = "<eos>"
PAD = "<pad>"
UNK = "<unk>"
SPECIALS = (PAD, EOS, UNK)
DEFAULT_VOCAB: tuple[str, ...] = tuple(string.ascii_letters + string.digits + "\n +-*/=.,:;?!#$%&'\"()<>[]{}_|@^~\\`")


def write_tiny_model(
    path: str | Path,
    *,
    vocab: Sequence[str] | None = None,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int | None = None,
    head_dim: int = 32,
    intermediate: int | None = None,
    max_positions: int = 2048,
    tie_embeddings: bool = True,
    init_scale: float = 1.0,
    seed: int = 0,
) -> None:
    """Write a randomly initialised Qwen3 model and its tokenizer under `path`.

    vLLM's CPU attention needs head_dim >= 32. `init_scale` multiplies all matrices: above 1 the untrained model is less
    uniform, so that a wrong logprob in a test cannot hide.
    """
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    if head_dim < 32:
        raise ValueError(f"head_dim must be >= 32 for vLLM's CPU attention (got {head_dim})")
    Path(path).mkdir(parents=True, exist_ok=True)
    vocab = write_tokenizer(path, vocab)
    config = Qwen3Config(
        vocab_size=len(vocab),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        head_dim=head_dim,
        intermediate_size=intermediate or 4 * hidden,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tie_embeddings,
        bos_token_id=None,
        eos_token_id=SPECIALS.index(EOS),
        pad_token_id=SPECIALS.index(PAD),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float()
    if init_scale != 1.0:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(init_scale)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, do_sample=True
    )
    model.save_pretrained(path, safe_serialization=True)


def write_tokenizer(path: str | Path, vocab: Sequence[str] | None = None) -> tuple[str, ...]:
    """The whole vocabulary of a tokenizer written under `path`: three special tokens, then `vocab` in its order."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = tuple(vocab) if vocab is not None else DEFAULT_VOCAB
    if any(not word for word in words) or len(set(words)) != len(words) or set(words) & set(SPECIALS):
        raise ValueError(f"vocab must be distinct non-empty strings other than {SPECIALS} (got {words[:20]})")
    tokens = (*SPECIALS, *words)
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNK))
    # An ordered alternation is tried from the left, so the longest entry wins; `[\s\S]` sends the rest to <unk>.
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join([*(re.escape(word) for word in longest_first), r"[\s\S]"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(path)
    return tokens
