"""How token ids read in running text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TokenTexts:
    """Text of token ids as it stands inside a text, whatever the kind of tokenizer.

    Decoders treat the first token specially: those that write a leading space as ``▁`` (Metaspace,
    SentencePiece) or a missing one as ``##`` (WordPiece) drop or add a space there. So ids are decoded
    behind an ordinary token, whose own text is then cut off. Bytes that are no whole character read
    as ``�``, special tokens as their names.

    Args:
        tokenizer: a Hugging Face tokenizer, fast or slow.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._known: dict[int, str] = {}
        self._before: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._start = self._decoded(())

    def __call__(self, token: int) -> str:
        """One token; a special one by its name, an id without a token as nothing."""
        text = self._known.get(token)
        if text is None:
            name = self._tokenizer.convert_ids_to_tokens(token) if token in self._special else None
            text = self._known[token] = self.joined((token,)) if name is None else str(name)
        return text

    def joined(self, tokens: Sequence[int]) -> str:
        """Consecutive tokens, with the space in front of the first."""
        text = self._decoded(tokens)
        if text.startswith(self._start):
            return text[len(self._start) :]
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode([*self._before, *map(int, tokens)], clean_up_tokenization_spaces=False)
        )
