"""Display texts of token ids, with small tokenizers of every kind trained on the spot."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from microscope.models import TokenTexts

TEXT = [
    "the senate asked the house to pass the budget for the schools",
    "the people of the union ask for peace and trade and the roads",
    "congress passed a law and the court reported on the treaties",
] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    return _wrapped(tokenizer)


def metaspace() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL))
    return _wrapped(tokenizer)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As converted Llama tokenizers decode: ▁ to spaces, byte tokens to bytes, one leading space stripped."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL))
    vocabulary = tokenizer.get_vocab()
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    pieces = [*specials, *(p for p in sorted(vocabulary, key=vocabulary.get) if p not in specials)]
    pieces += [a + b for a, b in merges if a + b not in pieces]
    table = {piece: number for number, piece in enumerate(pieces)}
    tokenizer.model = models.BPE(table, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return _wrapped(tokenizer)


def wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(TEXT, trainer)
    return _wrapped(tokenizer)


MAKERS = {
    "byte-level": byte_level,
    "metaspace": metaspace,
    "sentencepiece": sentencepiece,
    "wordpiece": wordpiece,
}


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return MAKERS[kind]()


def test_single_tokens_join_to_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """Token by token with their spaces, the text comes out as it is read: no space is lost or invented."""
    texts = TokenTexts(tokenizer)
    for text in dict.fromkeys(TEXT):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(map(texts, ids)).removeprefix(" ") == text
        for cut in range(len(ids)):
            assert texts.joined(ids[cut:]) == "".join(map(texts, ids[cut:]))


def test_words_begin_with_their_space_and_parts_do_not(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    texts, vocabulary = TokenTexts(tokenizer), tokenizer.get_vocab()
    whole, part = {
        "byte-level": ("Ġthe", "e"),
        "metaspace": ("▁the", "e"),
        "sentencepiece": ("▁the", "th"),
        "wordpiece": ("the", "##e"),
    }[kind]
    assert texts(vocabulary[whole]) == " the"
    assert texts(vocabulary[part]) == part.removeprefix("##")


def test_special_tokens_read_as_their_names(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = TokenTexts(tokenizer)
    assert [texts(i) for i in (0, 1, 2)] == SPECIAL


WRITTEN = (
    "東京は日本の首都です。",
    "Привет, мир!",
    "the senate 🦖🌍 the house",
    "नमस्ते दुनिया",
    "café naïve \u00a0 the",
    "👩\u200d👩\u200d👧 é é",
    "a genuine \ufffd sign",
)


@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize("maker", [byte_level, sentencepiece])
def test_characters_of_several_tokens_read_whole(maker, text) -> None:
    """Token by token the text comes out; each character stands on the token with its last byte."""
    tokenizer = maker()
    texts = TokenTexts(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    read = texts.each(ids)
    assert len(ids) == len(read) > len(text.split())
    assert "".join(read).removeprefix(" ") == text
    for place, share in enumerate(read):
        assert "".join(read[: place + 1]) == texts.so_far(ids[: place + 1])
        assert "\ufffd" not in share or "\ufffd" in text
    for first in range(len(ids)):
        for last in range(first + 1, min(first + 6, len(ids) + 1)):
            cut = texts.each(ids[first:last], before=ids[:first], after=ids[last:])
            assert cut == read[first:last]
            assert (
                texts.each(ids[first:last], before=ids[max(0, first - 3) : first], after=ids[last:][:3])
                == cut
            )


@pytest.mark.parametrize("maker", [byte_level, sentencepiece])
def test_running_text_only_grows_and_never_shows_half_a_character(maker) -> None:
    tokenizer = maker()
    texts = TokenTexts(tokenizer)
    ids = tokenizer("東the🦖é", add_special_tokens=False)["input_ids"]
    ids = [*ids[:2], *ids[3:], *ids[1:3], *ids[:1]]  # characters that lose a byte, and strays
    said = ""
    for length in range(len(ids) + 1):
        text = texts.so_far(ids[:length])
        assert text.startswith(said)
        assert "\ufffd" not in text
        said = text
    assert "the" in said
    assert "🦖é" in said
    assert "<0x" in said


@pytest.mark.parametrize(("maker", "name"), [(byte_level, "æ"), (sentencepiece, "<0xE6>")])
def test_bytes_alone_are_named(maker, name) -> None:
    tokenizer = maker()
    assert TokenTexts(tokenizer)(tokenizer.get_vocab()[name]) == "<0xE6>"


def test_bytes_beside_whole_characters_are_named_in_their_place() -> None:
    """Merged tokens hold the end of one character, whole ones, and the beginning of the next."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["本é a", "語é a", "は日é a", "日 æ a"] * 9 + ["x é"] * 9, trainer)
    texts = TokenTexts(_wrapped(tokenizer))
    for text in ("本é a語é a", "x éは日é a", " 日 æ a"):
        ids = tokenizer.encode(text).ids
        assert "".join(texts.each(ids)) == text
    lonely = [texts(i) for i in range(tokenizer.get_vocab_size())]
    assert not any("\ufffd" in text for text in lonely)
    mixed = [text for text in lonely if "<0x" in text and len(text) % 6]
    assert mixed, "no token of both kinds was made"


def test_a_line_break_of_the_byte_fallback_is_one() -> None:
    spiece = sentencepiece()
    assert TokenTexts(spiece)(spiece.get_vocab()["<0x0A>"]) == "\n"


def test_an_id_without_a_token_reads_as_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    assert TokenTexts(tokenizer)(len(tokenizer) + 7) == ""
