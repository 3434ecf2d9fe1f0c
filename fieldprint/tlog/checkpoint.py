"""Checkpoints (c2sp.org/tlog-checkpoint): origin, tree size and root hash, as the text of a signed note."""

import base64
import binascii
from dataclasses import dataclass

from fieldprint.errors import FormatError
from fieldprint.tlog.merkle import HASH_SIZE


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log.

    fieldprint.example/log
    600
    8QkYpWnbWtlEHfZcFzHZ2zMzUyoHz8Ej7n2n0QmXyvM=
    """

    origin: str
    tree_size: int
    root_hash: bytes
    extensions: tuple[str, ...] = ()

    def to_text(self) -> str:
        """The note text; `from_text` is its inverse.

        Raises:
            FormatError: nobody could read it: a line is empty, or the size or the root is none.
        """
        lines = [
            self.origin,
            str(self.tree_size),
            base64.b64encode(self.root_hash).decode(),
            *self.extensions,
        ]
        text = "\n".join(lines) + "\n"
        if self.from_text(text) != self:
            raise FormatError("a line of the checkpoint is more than one")
        return text

    @classmethod
    def from_text(cls, text: str) -> "Checkpoint":
        """The checkpoint in a note's text.

        Raises:
            FormatError: a line is missing, empty or not in its only spelling ("007" is refused).
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] != "" or any(not line for line in lines[:-1]):
            raise FormatError("a checkpoint has three or more lines, none of them empty")
        origin, size, encoded, *extensions = lines[:-1]
        if (
            not size.isascii()
            or not size.isdigit()
            or len(size) > 19
            or str(int(size)) != size
            or int(size) >= 2**63
        ):
            raise FormatError(f"the checkpoint's tree size {size[:30]!r} is not a decimal number")
        try:
            root = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise FormatError("the checkpoint's root hash is not base64") from error
        if len(root) != HASH_SIZE or base64.b64encode(root).decode() != encoded:
            raise FormatError("the checkpoint's root hash is not 32 bytes in base64")
        return cls(origin, int(size), root, tuple(extensions))
