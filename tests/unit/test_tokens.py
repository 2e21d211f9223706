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


def test_bytes_of_a_character_are_marked_and_whole_ones_read() -> None:
    spiece, bpe = sentencepiece(), byte_level()
    assert TokenTexts(spiece)(spiece.get_vocab()["<0x0A>"]) == "\n"
    assert TokenTexts(spiece)(spiece.get_vocab()["<0xE2>"]) == "�"
    texts = TokenTexts(bpe)
    ids = bpe("é", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2
    assert [texts(i) for i in ids] == ["�", "�"]
    assert texts.joined(ids) == "é"


def test_an_id_without_a_token_reads_as_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    assert TokenTexts(tokenizer)(len(tokenizer) + 7) == ""
