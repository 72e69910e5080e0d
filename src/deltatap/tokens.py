"""Counts tokens with tiktoken and vocabularies that are part of the package. Nothing is downloaded.

Knows which encoding a model uses. ``api/input_tokens.py`` knows which parts of a request are input.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tiktoken
from tiktoken import model as tiktoken_model

from deltatap.errors import VocabularyError

if TYPE_CHECKING:
    from collections.abc import Iterator

VOCABULARIES = Path(__file__).with_name("vocabularies")
# tiktoken names a file by the sha1 of its URL and checks its sha256: file name, sha256.
_CL100K = (
    "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
)
_O200K = (
    "fb374d419588a4632f3f557e76b4b70aebbca790",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
)
_FILES = {"cl100k_base": _CL100K, "o200k_base": _O200K, "o200k_harmony": _O200K}
_environment = threading.Lock()


@functools.cache
def encoding(name: str) -> tiktoken.Encoding:
    """Load an encoding from the package's own files.

    Raises:
        VocabularyError: the file is missing or damaged, or the package has no vocabulary of this name.
    """
    if name not in _FILES:
        raise VocabularyError(f"encoding {name}: expected one of {', '.join(_FILES)}")
    file, sha256 = _FILES[name]
    path = VOCABULARIES / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VocabularyError(
            f"vocabulary {name}: {path} cannot be read ({error.strerror}); `make setup` unpacks it in a checkout"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise VocabularyError(f"vocabulary {name}: {path} is damaged; delete it and run `make setup`")
    # Only this variable tells tiktoken where its files are. It downloads a file only if it is missing or damaged.
    with _environment:
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = str(VOCABULARIES)
        try:
            return tiktoken.get_encoding(name)
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


@functools.lru_cache(maxsize=1024)
def known_encoding(model: str) -> str | None:
    """The encoding of a model in tiktoken's tables, or None.

    None if tiktoken does not know the model, or if the vocabulary is not part of the package, as for the old encodings
    p50k_base and r50k_base. A provider's prefix (``openai/gpt-4o``) is ignored.
    """
    try:
        name = tiktoken_model.encoding_name_for_model(model.rpartition("/")[2])
    except KeyError:
        return None
    return name if name in _FILES else None


# tiktoken panics on a run of about a million white-space characters, so it gets long texts in pieces of this length.
_PIECE = 100_000
# The last place in a piece where the encodings never join the text before and after it: between the end of a word or
# number and white space or punctuation.
_BETWEEN_WORDS = re.compile(r".*[^\W_](?=[\s.,;:!?()\u3001\u3002\uff0c\uff01\uff1f])", re.DOTALL)


def count_text(text: str, encoding_name: str) -> int:
    """The number of tokens in a text, in a time that is linear in its length.

    A text that looks like a special token counts as ordinary text. The number is exact unless the text has 100,000
    characters without a boundary between words: such a run is cut anywhere, which adds a token at most.
    """
    encode = encoding(encoding_name).encode_ordinary
    return sum(len(encode(piece)) for piece in _pieces(text))


def token_ends(text: str, encoding_name: str) -> np.ndarray[Any, Any]:
    """Where each token of a text ends, in bytes of its UTF-8. There are as many as :func:`count_text` counts."""
    tokens = [_encoded(piece, encoding_name) for piece in _pieces(text)]
    ends: np.ndarray[Any, Any] = token_sizes(encoding_name)[np.concatenate(tokens)].cumsum()
    return ends


@functools.cache
def token_sizes(encoding_name: str) -> np.ndarray[Any, Any]:
    """The number of bytes of each token by its id; takes about 20 ms the first time."""
    loaded = encoding(encoding_name)
    ranks = loaded._mergeable_ranks  # noqa: SLF001 - the public methods take 0.2 s of calls, one for each token
    sizes = np.zeros(loaded.n_vocab, np.int64)
    sizes[np.fromiter(ranks.values(), np.int64, len(ranks))] = np.fromiter(map(len, ranks), np.int64, len(ranks))
    return sizes


def _encoded(text: str, encoding_name: str) -> np.ndarray[Any, Any]:
    try:
        return encoding(encoding_name).encode_to_numpy(text, disallowed_special=())
    except UnicodeEncodeError:  # a lone surrogate, which encode_ordinary replaces
        return np.array(encoding(encoding_name).encode_ordinary(text), np.int64)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that tiktoken can encode."""
    at = 0
    while len(text) - at > _PIECE:
        boundary = _BETWEEN_WORDS.match(text, at, at + _PIECE)
        end = boundary.end() if boundary else at + _PIECE
        yield text[at:end]
        at = end
    yield text[at:] if at else text
