"""How many tokens a text has: by a tokenizer of Hugging Face's `tokenizers`, or without one by a plain rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataengine.errors import UserError
from dataengine.tokens import MARKERS

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "tokenizer.json"
# RE2's \w and \s know ASCII only
PIECES = "|".join([*map(re.escape, MARKERS), r"[\pL\pM\pN_]+", r"[^\pL\pM\pN_\s\pZ\pC]"])


class TokenizerError(UserError):
    """A tokenizer that cannot be used."""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """What is counted, in words; and the function that counts it: texts (n,) → (n,) int64."""

    unit: str
    count: Callable[[pa.Array], np.ndarray]


def pieces() -> TokenCount:
    """Words, punctuation marks and the format's markers, one each: near to what tokenizers give for plain English."""
    return TokenCount("words, marks and markers", _count_pieces)


def _count_pieces(texts: pa.Array) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.count_substring_regex(texts, PIECES), 0)).astype(np.int64)


def of_tokenizer(path: str) -> TokenCount:
    """The tokens of a tokenizer; the format's markers are one each, added where it does not have them.

    Texts are counted as they stand, without a chat template, and `<image>` and `<region>` without what a model puts in
    their place.

    Args:
        path: a `tokenizer.json`, or a folder that has one.
    Raises:
        TokenizerError: there is none, it cannot be read, or `tokenizers` is not installed.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise TokenizerError(f"--tokenizer {path}: there is no file {file}")
    try:
        from tokenizers import AddedToken, Tokenizer
    except ImportError:
        raise TokenizerError("--tokenizer needs the package tokenizers: pip install tokenizers") from None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # it has no class of its own
        raise TokenizerError(f"--tokenizer {file}: is no {FILE} of Hugging Face: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])

    def count(texts: pa.Array) -> np.ndarray:
        encoded = tokenizer.encode_batch_fast([text or "" for text in texts.to_pylist()], add_special_tokens=False)
        return np.fromiter((len(one) for one in encoded), dtype=np.int64, count=len(encoded))

    name = file.resolve().parent.name if file.name == FILE else file.stem
    return TokenCount(f"tokens of {name}", count)
