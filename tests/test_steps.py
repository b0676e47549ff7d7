"""Spans tile exactly, for real tokenizers too, and each token is with the step of its first character."""

import dataclasses
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from capo_ray.config.steps import SEGMENTERS
from capo_ray.protocols import step_texts
from capo_ray.steps import (
    SpanError,
    check_spans,
    cut_at_blank_lines,
    cut_at_newlines,
    cut_at_sentences,
    split_steps,
)
from capo_ray.types import Completion, VersionRun
from tests.examples import examples

TEXT_CUTS = {"blank_line": cut_at_blank_lines, "newline": cut_at_newlines, "sentence": cut_at_sentences}


def split(
    response: Completion, segmenter: str, entropies: Sequence[float] = (), **keys: object
) -> tuple[tuple[int, int], ...]:
    response = dataclasses.replace(response, entropies=tuple(entropies))
    return split_steps(response, SEGMENTERS[segmenter].model_validate(keys))


def completion(pieces: Sequence[str]) -> Completion:
    """A response whose tokens contribute these characters."""
    ends, total = [], 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    return of_ends("".join(pieces), ends)


def of_ends(text: str, ends: Sequence[int]) -> Completion:
    count = len(ends)
    runs = (VersionRun(0, count),)
    return Completion(tuple(range(count)), (0.0,) * count, tuple(ends), text, runs, "stop")


@pytest.mark.parametrize(
    ("pieces", "spans"),
    [
        (["7*8=56", "\n\n", "56+5=61", ""], ((0, 2), (2, 4))),  # delimiter with what it closes, end with the last
        (["a.\n\nb", "c"], ((0, 1), (1, 2))),  # the token over the delimiter stays where it starts
        (["a", ".\n", "\n", "b"], ((0, 3), (3, 4))),  # a delimiter in two tokens
        (["a", "\n\nb", "c"], ((0, 2), (2, 3))),  # `\n\nb` starts in step 0
        (["a", "\n", " \t", "\n\n", "b"], ((0, 4), (4, 5))),  # whitespace between the newlines
        (["a", "\n\n", "b", "\n\n", ""], ((0, 2), (2, 5))),  # trailing delimiter opens no step
        (["\n\n", "a", "\n\n", "b"], ((0, 3), (3, 4))),  # a leading one closes no step
        (["a", "\n\n", "", "", "é", "b"], ((0, 2), (2, 6))),  # first bytes of é go with é
        (["a", "\n\n", "b", "", ""], ((0, 2), (2, 5))),  # an unfinished character at the end
        (["a", "\n\nb\n\n", "c"], ((0, 2), (2, 3))),  # step b has no token that starts in it
        (["a", "\n\nb", "", ""], ((0, 4),)),  # nor here, and an end-of-sequence alone is no step
        (["a", "\n", "b"], ((0, 3),)),
        (["\n\n", " "], ((0, 2),)),
        (["", ""], ((0, 2),)),
        ([], ()),
    ],
)
def test_blank_lines_by_hand(pieces: list[str], spans: tuple[tuple[int, int], ...]) -> None:
    assert split_steps(completion(pieces)) == spans


def test_each_segmenter_by_hand() -> None:
    text = "1. Let x=3.14. Then y=2!\nSo z=5.\n\nDone."
    cuts = {name: [text[a:b] for a, b in pairwise([0, *cut(text), len(text)])] for name, cut in TEXT_CUTS.items()}
    assert cuts["blank_line"] == ["1. Let x=3.14. Then y=2!\nSo z=5.\n\n", "Done."]
    assert cuts["newline"] == ["1. Let x=3.14. Then y=2!\n", "So z=5.\n\n", "Done."]
    assert cuts["sentence"] == ["1. Let x=3.14.", " Then y=2!\n", "So z=5.\n\n", "Done."]


def test_a_word_that_a_tokenizer_joins_to_the_space_before_it_opens_its_sentence() -> None:
    pieces = ["It", " is", " 4", ".", " Then", " we", " add", ".", "  ", " x", "?", " Thus", " six", "!\n", "End", ""]
    spans = ((0, 4), (4, 9), (9, 11), (11, 14), (14, 16))
    assert split(completion(pieces), "sentence") == spans
    entropies = [2.0 if piece == " Then" else 1.0 if piece == " Thus" else 0.0 for piece in pieces]
    assert split(completion(pieces), "entropy", entropies) == ((0, 4), (4, 11), (11, 16))


def test_a_piece_whose_words_a_token_before_took_makes_no_step() -> None:
    assert split_steps(completion(["a\n\nb", "\n\n", "c"])) == ((0, 2), (2, 3))
    assert split_steps(completion(["a\n\nb", "\n\n", "c\n\nd", "\n", "\n", ""])) == ((0, 2), (2, 6))
    assert split_steps(completion(["a", "\n\nb\n\nc\n\nd", "\n\n", "e"])) == ((0, 3), (3, 4))


def incremental(tokenizer: Tokenizer, text: str) -> Completion:
    """The tokens of a text with the characters each contributes, by decoding prefixes, as an engine does."""
    ids = tokenizer.encode(text).ids
    ends = []
    for t in range(1, len(ids) + 1):
        prefix = tokenizer.decode(ids[:t]).rstrip("�")
        # Byte fallback turns a whole run of bytes into replacement characters while its last one is unfinished.
        ends.append(max(len(prefix), ends[-1] if ends else 0))
    assert tokenizer.decode(ids) == text
    return of_ends(text, [*ends, len(text)])  # and an end-of-sequence


@pytest.fixture(scope="module")
def byte_bpe() -> Tokenizer:
    """A byte-level BPE whose merges reach over the delimiter (`6\\n\\n5`) and which knows no multi-byte character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["7*8=6\n\n5+1=6\n\n6", "7*8=6\n\n5", "6\n\n5 so"] * 50, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """A BPE of Llama's kind: characters out of its vocabulary become one token per byte."""
    vocab = {f"<0x{b:02X}>": b for b in range(256)}
    for char in "0123456789+-*=\n abcxyz":
        vocab[char] = len(vocab)
    vocab["\n\n"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("\n", "\n")], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


TEXTS = st.text(alphabet="7*8=6\n\n\n 5.é雪🙂", min_size=1, max_size=40)


@settings(max_examples=examples(120))
@given(text=TEXTS, segmenter=st.sampled_from(sorted(TEXT_CUTS)), fallback=st.booleans())
def test_spans_tile_and_follow_first_characters_for_real_tokenizers(
    byte_bpe: Tokenizer, byte_fallback: Tokenizer, text: str, segmenter: str, fallback: bool
) -> None:
    response = incremental(byte_fallback if fallback else byte_bpe, text)
    check_spans(split(response, segmenter), len(response.token_ids))
    spans = split(response, segmenter, whole_blocks=False)
    check_spans(spans, len(response.token_ids))
    assert "".join(step_texts(text, response.char_ends, spans)) == text
    assert all(piece.strip() for piece in step_texts(text, response.char_ends, spans)) or len(spans) == 1
    # No cut falls between the first character of a step's first token and that of its last.
    starts = [0, *response.char_ends[:-1]]
    cuts = TEXT_CUTS[segmenter](text)
    for start, end in spans:
        inside = [cut for cut in cuts if starts[start] < cut <= starts[end - 1]]
        assert all(not text[starts[start] : cut].strip() or _opens_blank(text, cut, cuts) for cut in inside)


def _opens_blank(text: str, cut: int, cuts: Sequence[int]) -> bool:
    """Whether the piece of text that a cut opens is only whitespace."""
    following = min((c for c in cuts if c > cut), default=len(text))
    return not text[cut:following].strip()


def test_a_token_over_the_delimiter_stays_with_the_step_it_starts_in(byte_bpe: Tokenizer) -> None:
    response = incremental(byte_bpe, "7*8=6\n\n5+1=6")
    singles = [(t, t + 1) for t in range(len(response.token_ids))]
    pieces = step_texts(response.text, response.char_ends, singles)
    over = [t for t, piece in enumerate(pieces) if "6\n\n5" in piece]
    assert over, "the tokenizer was trained to have such a token"
    assert split_steps(response)[0] == (0, over[0] + 1)


def test_bytes_of_a_character_after_the_delimiter_open_the_next_step(byte_fallback: Tokenizer) -> None:
    response = incremental(byte_fallback, "1\n\n🙂")
    assert len(response.token_ids) == 1 + 1 + 4 + 1
    assert split_steps(response) == ((0, 2), (2, 7))


@pytest.mark.parametrize(
    ("text", "ends"), [("abc", [1, 2]), ("abc", [1, 2, 4]), ("abc", [2, 1, 3]), ("abc", [-1, 2, 3]), ("a", [])]
)
def test_tokens_that_do_not_describe_the_text_are_refused(text: str, ends: list[int]) -> None:
    with pytest.raises(SpanError):
        split_steps(of_ends(text, ends))


def test_one_char_end_per_token_is_required() -> None:
    response = of_ends("ab", [1, 2])
    with pytest.raises(SpanError, match="3 tokens"):
        split_steps(Completion((1, 2, 3), response.logprobs, response.char_ends, "ab", response.versions, "stop"))


@pytest.mark.parametrize("spans", [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 0), (0, 3)), ((0, 2),), ()])
def test_spans_that_do_not_tile_are_refused(spans: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(SpanError):
        check_spans(spans, 3)


@pytest.mark.slow
@pytest.mark.parametrize("segmenter", sorted(SEGMENTERS))
@pytest.mark.parametrize("unit", ["\n", " ", "\n ", ".", ". ", '."', "1. ", "\n\nx", "。"])
def test_segmenting_a_hostile_text_takes_linear_time(segmenter: str, unit: str) -> None:
    text = unit * 100_000
    start = time.process_time()  # not the time that a busy machine gives to others
    split(of_ends(text, [len(text)]), segmenter)
    assert time.process_time() - start < 2.0


def test_entropy_cuts_only_where_a_decision_follows() -> None:
    # four lines of five tokens; the top tenth of them are 5 and 16, so lines 1 and 3 open a step and line 2 does not
    response = completion(["a", "b", "c", "d", "\n"] * 4)
    entropies = [0.0] * 20
    entropies[5], entropies[16] = 2.0, 1.0
    assert split(response, "entropy", entropies) == ((0, 5), (5, 15), (15, 20))


def test_entropy_goes_by_surprisal_where_no_entropies_are_given() -> None:
    response = completion(["a", "b", "c", "d", "\n"] * 4)
    logprobs = [0.0] * 20
    logprobs[11] = logprobs[12] = -3.0
    surprised = dataclasses.replace(response, logprobs=tuple(logprobs))
    assert split(surprised, "entropy") == ((0, 10), (10, 20))


def test_entropy_joins_short_steps_and_bounds_their_number() -> None:
    short = split(completion(["a\n"] * 3 + ["b"] * 7), "entropy", [1.0] * 10)
    assert all(end - start >= 4 for start, end in short)
    many = split(completion(["a", "b", "c", "d\n"] * 100), "entropy", [float(t % 4 == 0) for t in range(400)])
    assert len(many) <= 32


@settings(max_examples=examples(60))
@given(pieces=st.lists(st.sampled_from(["a", "\n", "\n\n", ". ", "", "é"]), max_size=60), data=st.data())
def test_entropy_spans_tile(pieces: list[str], data: st.DataObject) -> None:
    entropies = data.draw(st.lists(st.floats(0, 5), min_size=len(pieces), max_size=len(pieces)))
    check_spans(split(completion(pieces), "entropy", entropies), len(pieces))
