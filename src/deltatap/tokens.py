"""Tokens as tiktoken counts them, with vocabularies that the package carries: nothing is ever downloaded.

Knows which encoding a model uses. Leaves what a request has as input to ``input_tokens.py``.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from pathlib import Path

import tiktoken
from tiktoken import model as tiktoken_model

from deltatap.errors import VocabularyError

VOCABULARIES = Path(__file__).with_name("vocabularies")
# tiktoken's name for a file is the sha1 of the URL that it comes from; it checks the sha256.
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
    """The encoding, from the package's own files.

    Raises:
        VocabularyError: when the file is missing or damaged, or the package carries none for the name.
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
    # The one way to tell tiktoken where its files are. With the right file in place it looks nowhere else.
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
    """The encoding that a model uses, by tiktoken's tables; None for models that it does not know.

    A provider's prefix (``openai/gpt-4o``) does not count. Of old models (p50k_base, r50k_base) the package does not
    carry the vocabulary.
    """
    try:
        name = tiktoken_model.encoding_name_for_model(model.rpartition("/")[2])
    except KeyError:
        return None
    return name if name in _FILES else None


def count_text(text: str, encoding_name: str) -> int:
    """How many tokens a text has; what looks like a special token is text."""
    return len(encoding(encoding_name).encode_ordinary(text))
