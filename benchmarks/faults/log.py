"""The tests' faulty log, which also says what it was asked to append, and kills the thread that asks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fieldprint.note import NoteSigner
from fieldprint.tlog import Appended, Pending
from tests.faulty_log import FaultyLog


class WatchedLog(FaultyLog):
    """Knows the abort entries of every submission, and dies on demand.

    submissions: how many there were. aborts: of each submission, the parsed abort entries.
    """

    def __init__(self, path: Path, signer: NoteSigner) -> None:
        self.submissions = 0
        self.aborts: list[list[dict[str, Any]]] = []
        self._death = ""
        super().__init__(path, signer)

    def die(self, when: str) -> None:
        """End the thread of the next append "before" or "after" it."""
        self._death = when

    def submit(self, entries: Sequence[bytes], *, urgent: bool = False) -> Pending:
        aborts = [json.loads(entry) for entry in entries if b'"type":"abort"' in entry]
        self.aborts.append(aborts)
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
