"""Checkpoints (c2sp.org/tlog-checkpoint): origin, tree size and root hash, as the text of a signed note."""

import base64
from dataclasses import dataclass

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
        """The note text; `from_text` is its inverse."""
        lines = [
            self.origin,
            str(self.tree_size),
            base64.b64encode(self.root_hash).decode(),
            *self.extensions,
        ]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_text(cls, text: str) -> "Checkpoint":
        """The checkpoint in a note's text.

        Raises:
            FormatError: a line is missing, empty or not in its only spelling ("007" is refused).
        """
        return cls(*parse_tree_head(text))
