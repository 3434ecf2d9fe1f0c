"""Texts to vectors. The default is a small encoder whose weights are inside a wheel; any callable will do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fieldprint.errors import FieldprintError, IntegrityError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

DEFAULT = "wordllama-l2-supercat-256"
WEIGHTS = Path("weights/l2_supercat_256.safetensors")
TOKENIZER = Path("tokenizers/l2_supercat_tokenizer_config.json")


@dataclass(frozen=True)
class Encoder:
    """A callable from texts to float32 [n, dimensions], under a name and a digest that say which one it is.

    Vectors of two encoders cannot be compared, so a store remembers both and refuses another.
    """

    name: str
    digest: str
    dimensions: int
    encode: Callable[[Sequence[str]], "Vectors"]

    def __call__(self, texts: Sequence[str]) -> "Vectors":
        """Unit vectors of the texts, float32 [n, dimensions].

        Raises:
            IntegrityError: the callable gave another shape, or a vector that is zero or not finite.
        """
        if not texts:
            return np.zeros((0, self.dimensions), np.float32)
        found = np.asarray(self.encode(texts), np.float32)
        if found.shape != (len(texts), self.dimensions):
            raise IntegrityError(
                f"the encoder {self.name} gave {found.shape} for {len(texts)} texts of {self.dimensions} dimensions"
            )
        return unit(found)


def unit(vectors: "Vectors") -> "Vectors":
    """The vectors at length 1, or IntegrityError where one has no direction."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths)) or not np.all(lengths > 0):
        raise IntegrityError("a vector is zero or not finite, so nothing is near it or far from it")
    scaled: Vectors = (vectors / lengths).astype(np.float32)
    return scaled


class WordVectors:
    """The mean of a text's word vectors (Matryoshka-trained, 256 dimensions), read from the wheel of `wordllama`.

    Its files are read and its code is not imported: the import would set up logging for the whole process, and
    the loader asks the network for a tokenizer that is in the wheel. Tested to give what its own code gives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _model(self) -> tuple["Vectors", "object"]:
        from safetensors import safe_open
        from tokenizers import Tokenizer

        with safe_open(self.folder / WEIGHTS, framework="np") as file:
            table = file.get_tensor("embedding.weight").astype(np.float32)
        tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return table, tokenizer

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over the SHA-256 of the weights and of the tokenizer."""
        parts = [sha256((self.folder / name).read_bytes()).digest() for name in (WEIGHTS, TOKENIZER)]
        return sha256(b"".join(parts)).hexdigest()

    def __call__(self, texts: Sequence[str]) -> "Vectors":
        """The mean vector of each text's tokens; float32 [n, 256]."""
        table, tokenizer = self._model
        tokens = [found.ids for found in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]  # type: ignore[attr-defined]
        counts = np.array([len(ids) for ids in tokens])
        if not counts.all():
            raise FieldprintError("a text without a single token has no meaning to search by")
        rows = table[np.concatenate([np.asarray(ids) for ids in tokens])]
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        means: Vectors = (np.add.reduceat(rows, starts, axis=0) / counts[:, None]).astype(np.float32)
        return means


def default_encoder() -> Encoder:
    """The encoder that the extra `memory` installs; it loads nothing from the network, and its weights at its first use.

    Raises:
        FieldprintError: the wheel is not installed, or has no weights.
    """
    spec = find_spec("wordllama")
    places = spec.submodule_search_locations if spec is not None else None
    folder = Path(places[0]) if places else None
    if folder is None or not all((folder / name).is_file() for name in (WEIGHTS, TOKENIZER)):
        raise FieldprintError(
            "the encoder's weights are not installed", remedy="Run: pip install 'fieldprint[memory]'"
        )
    vectors = WordVectors(folder)
    return Encoder(DEFAULT, vectors.digest, 256, vectors)
