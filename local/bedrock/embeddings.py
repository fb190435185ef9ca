"""Embeddings of 256 dimensions by WordLlama: static vectors of tokens, averaged."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DIMENSIONS = 256


class EmbeddingModel:
    """The model in the package `wordllama`, loaded by the first text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: Any = None

    def embed(self, texts: Sequence[str], normalize: bool) -> tuple[list[list[float]], int]:
        """A vector for each text, and the number of tokens in all."""
        with self._lock:
            if self._loaded is None:
                self._loaded = _load()
            vectors = self._loaded.embed(list(texts), norm=normalize)
            tokens = sum(
                sum(encoded.attention_mask) for encoded in self._loaded.tokenize(list(texts))
            )
        return vectors.tolist(), tokens


def _load() -> Any:
    import wordllama  # half a second: for those only who embed

    return wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__).parent, dim=DIMENSIONS, disable_download=True
    )
