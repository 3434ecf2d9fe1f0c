from typing import Protocol


class Source(Protocol):
    """Where a log is read from."""

    @property
    def place(self) -> str:
        """The folder or URL, for messages."""

    def read(self, name: str) -> bytes | None:
        """The object's bytes; None if there is no such object.

        Raises:
            LogError: it cannot be read.
        """
