"""The tests' faulty log, which also kills the thread that appends, and says what has struck."""

from collections.abc import Sequence
from pathlib import Path

from fieldprint.note import NoteSigner
from fieldprint.tlog import Appended, Pending
from tests.faulty_log import FaultyLog


class WatchedLog(FaultyLog):
    """Counts its submissions, and ends threads on demand."""

    def __init__(self, path: Path, signer: NoteSigner) -> None:
        self.submissions = 0
        self._death = ""
        super().__init__(path, signer)

    @property
    def armed(self) -> bool:
        """Whether a refusal, a fork, a lie or a death has not struck yet."""
        return bool(self.disk.refusals or self._forks or self._lies or self._death)

    def die(self, when: str) -> None:
        """End the thread of the next append "before" or "after" it."""
        self._death = when

    def submit(self, entries: Sequence[bytes], *, urgent: bool = False) -> Pending:
        self.submissions += 1
        if self._death == "before":
            self._death = ""
            raise SystemExit
        return super().submit(entries, urgent=urgent)

    def append(self, entries: Sequence[bytes]) -> Appended:
        appended = super().append(entries)
        if self._death == "after":
            self._death = ""
            raise SystemExit
        return appended

    def honest_again(self) -> None:
        """Forget every fault that has not struck."""
        self.refuse(0)
        self.fork(0)
        self._lies, self._death = 0, ""
        self.release()
