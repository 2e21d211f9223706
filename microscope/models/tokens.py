"""How token ids read in running text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from microscope.errors import MicroscopeError

# A character takes at most this many bytes in UTF-8, and a token holds at least one.
_LONGEST = 4
_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The character by which byte-level tokenizers write each byte (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_alphabet()


def check_tokens(ids: Iterable[int], vocabulary: int, tokenizer: Any, where: str) -> None:
    """Whether a model whose embedding has ``vocabulary`` rows knows every token.

    Raises:
        MicroscopeError: ``no_such_token`` with the token's name.
    """
    highest = int(max(ids, default=0))
    if highest >= vocabulary:
        raise MicroscopeError(
            "no_such_token",
            f"{where} contains the token '{tokenizer.convert_ids_to_tokens(highest)}' (number {highest}), and "
            f"the model's embedding has {vocabulary} rows: the tokenizer knows more tokens than the model.",
            "Use the tokenizer the model was trained with, or text without this token.",
        )


class TokenTexts:
    """Text of token ids as it stands inside a text, whatever the kind of tokenizer.

    Decoders treat the first token specially: those that write a leading space as ``▁`` (Metaspace,
    SentencePiece) or a missing one as ``##`` (WordPiece) drop or add a space there. So ids are decoded
    behind an ordinary token, whose own text is then cut off. Special tokens read as their names.

    Tokens may hold parts of a character: bytes of its UTF-8 form, in byte-level tokenizers and in
    SentencePiece's byte fallback. In running text (:meth:`each`) the whole character stands on the token
    that completes it and the tokens before read as nothing; alone, or where the text never makes a
    character of them, such bytes read as ``<0xE6>``.

    Args:
        tokenizer: a Hugging Face tokenizer, fast or slow.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._known: dict[int, str | bytes] = {}
        self._before: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._start = self._decoded(())

    def __call__(self, token: int) -> str:
        """One token alone; a special one by its name, an id without a token as nothing."""
        own = self._own(token)
        return own if isinstance(own, str) else _shares([own])[0]

    def each(
        self, tokens: Sequence[int], *, before: Sequence[int] = (), after: Sequence[int] = ()
    ) -> list[str]:
        """What each of consecutive tokens adds to their text; together that is the text.

        Args:
            tokens: token ids.
            before: the tokens in front of them, of which three suffice.
            after: the tokens behind them, likewise.
        """
        first, known = before[max(0, len(before) - _LONGEST + 1) :], self._known
        around = (*first, *tokens, *after[: _LONGEST - 1])
        pieces = [known.get(token) or self._own(int(token)) for token in around]
        texts: list[str] = []
        parts: list[bytes] = []
        for piece in (*pieces, ""):
            if isinstance(piece, bytes):
                parts.append(piece)
                continue
            if parts:
                texts += _shares(parts)
                parts = []
            texts.append(piece)
        return texts[len(first) : len(first) + len(tokens)]

    def so_far(self, tokens: Sequence[int]) -> str:
        """The text of tokens to which more will be added, without a last character that is not whole yet."""
        last = len(tokens)
        while last and isinstance(self._own(tokens[last - 1]), bytes):
            last -= 1
        waiting = [self._own(token) for token in tokens[last:]]
        whole = b"".join(part for part in waiting if isinstance(part, bytes))
        return "".join(self.each(tokens[:last])) + "".join(_shares([whole[: _whole_until(whole)]]))

    def joined(self, tokens: Sequence[int]) -> str:
        """Consecutive tokens as the tokenizer decodes them, with the space in front of the first."""
        text = self._decoded(tokens)
        if text.startswith(self._start):
            return text[len(self._start) :]
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def _own(self, token: int) -> str | bytes:
        """A token's text, or its bytes where these are no whole characters."""
        own = self._known.get(token)
        if own is None:
            name = self._tokenizer.convert_ids_to_tokens(token) if token in self._special else None
            text = self.joined((token,)) if name is None else str(name)
            own = self._known[token] = (self._bytes(token, text) if "�" in text else None) or text
        return own

    def _bytes(self, token: int, text: str) -> bytes | None:
        """The bytes behind a text with replacement characters; None where the tokenizer does not tell them."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(name, bytes):
            return name
        name = str(name)
        match = _BYTE_NAME.fullmatch(name)
        if match:
            return bytes([int(match[1], 16)])
        if not all(letter in _BYTES for letter in name):
            return None
        found = bytes(_BYTES[letter] for letter in name)
        readable = found.decode("utf-8", "replace").replace("�", "")
        return found if readable == text.replace("�", "") else None

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode([*self._before, *map(int, tokens)], clean_up_tokenization_spaces=False)
        )


def _shares(parts: Sequence[bytes]) -> list[str]:
    """Text of consecutive pieces of UTF-8: each character where its last byte is, strays as ``<0xE6>``."""
    texts = [""] * len(parts)
    data = b"".join(parts)
    owner = [number for number, part in enumerate(parts) for _ in part]
    at = 0
    while at < len(data):
        size = _size(data[at])
        try:
            text = data[at : at + size].decode("utf-8")
        except UnicodeDecodeError:
            text, size = f"<0x{data[at]:02X}>", 1
        texts[owner[at + size - 1]] += text
        at += size
    return texts


def _size(lead: int) -> int:
    """Bytes of the character that begins with this one."""
    return 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


def _whole_until(data: bytes) -> int:
    """How much of it more bytes cannot change: all but a last character that is not complete."""
    for seen in range(1, min(_LONGEST, len(data) + 1)):
        lead = data[-seen]
        if lead >= 0xC0:
            return len(data) - seen if _size(lead) > seen else len(data)
        if lead < 0x80:
            break
    return len(data)
