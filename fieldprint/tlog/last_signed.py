"""The last checkpoint that was signed for each log, in an SQLite file: what keeps a key from signing two histories.

    last_signed(log TEXT PRIMARY KEY, signed BLOB)
    fieldprint.example/log+3c2f8a91+AZ...    the signed note

A checkpoint stands here, durably, before it is shown to anybody. It lies apart from the log's entries, so that a log
that was restored from an old copy does not match it.
"""

import sqlite3
from pathlib import Path

from fieldprint.errors import CapacityError, LogError, LogLockedError
from fieldprint.tlog.storage.disk import Disk


class LastSigned:
    """A register for each log, with compare-and-swap; `log` is the verifier key as text."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            LogError: it is no such file, or cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                self._database.execute("PRAGMA wal_autocheckpoint = 8")  # pages: one row needs no long one
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS last_signed (log TEXT PRIMARY KEY, signed BLOB NOT NULL)"
                )
                Disk().sync_folder(path.absolute().parent)
            except BaseException:
                self._database.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from error

    def read(self, log: str) -> bytes | None:
        """The note that was signed last for `log`; None if there was none.

        Raises:
            LogError: the file cannot be read.
        """
        try:
            row = self._database.execute("SELECT signed FROM last_signed WHERE log = ?", (log,)).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return None if row is None else bytes(row[0])

    def swap(self, log: str, previous: bytes | None, signed: bytes) -> None:
        """Replace `previous` (None: nothing) by `signed`; durable on return.

        Raises:
            LogLockedError: something else than `previous` stands there. Nothing was changed.
            CapacityError: the disk is full. LogError: another failure. Which of the two stands there is not known
                then; `read` says it.
        """
        try:
            if previous is None:
                done = self._database.execute(
                    "INSERT INTO last_signed VALUES (?, ?) ON CONFLICT DO NOTHING", (log, signed)
                )
            else:
                done = self._database.execute(
                    "UPDATE last_signed SET signed = ? WHERE log = ? AND signed = ?", (signed, log, previous)
                )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        if done.rowcount != 1:
            raise LogLockedError(
                f"{self.path} holds another checkpoint of this log: another writer has signed one",
                remedy="Let one writer end, and open the log again",
            )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _failed(self, error: Exception) -> LogError | CapacityError:
        what = f"the record of the last checkpoint, {self.path}, cannot be written: {error}"
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return CapacityError(what, remedy="Free disk space; what was acknowledged is still there")
        return LogError(what, remedy="Check that file and its folder")
