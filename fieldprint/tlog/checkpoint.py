"""Checkpoints (c2sp.org/tlog-checkpoint): origin, tree size and root hash, as the text of a signed note."""

import base64
from dataclasses import dataclass

from fieldprint.errors import FormatError
from fieldprint.note.signature import parse_tree_head


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
        return cls(*parse_tree_head(text))
