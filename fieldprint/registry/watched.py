"""The registry's database as a running engine's gate sees it: it comes back by itself when it was lost.

While it is lost every call raises, so that the gate counts its grace. A thread tries to open it again, once every few seconds:
a step never waits for a connection. A database that was made with another policy than the engine's is as good as none: what it
says was decided by others.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Self

from fieldprint.anchor.policy import Policy
from fieldprint.anchor.statements import Override, Revocation
from fieldprint.errors import FieldprintError
from fieldprint.registry.database import RegistryDatabase
from fieldprint.registry.watch import RegistryWatch, WatchLost

RETRY = 2.0  # seconds from one try to the next
ANY_KIND = "identity"  # of a look-up whose answer does not depend on it

Opened = tuple[RegistryWatch, RegistryDatabase]


class WatchedDatabase:
    """The registry behind a URL, watched for changes (`registry.gate.Watched`).

    Args:
        url: as of `RegistryDatabase`.
        policy: the engine's; the database must have been made with it.
        retry: seconds between tries to open it again.

    Raises:
        FieldprintError: it cannot be opened now, or was made with another policy.
    """

    def __init__(self, url: str, policy: Policy, *, retry: float = RETRY) -> None:
        self._url, self._policy, self._retry = url, policy, retry
        self._thread = ThreadPoolExecutor(1, "fieldprint-registry")
        self._opening: Future[Opened] | None = None
        self._tried = time.monotonic()
        self._opened: Opened | None = _open(url, policy)
        self._why = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._thread.shutdown()
        if self._opening is not None and self._opening.exception() is None:
            _close(self._opening.result())
        if self._opened is not None:
            _close(self._opened)
        self._opening = self._opened = None

    def poll(self) -> bool:
        """Whether something was written since this was last asked, or it came back.

        Raises:
            WatchLost: it cannot be reached.
        """
        if self._opened is None:
            self._opened = self._again()
            return True
        try:
            return self._opened[0].poll()
        except FieldprintError as error:
            raise self._lose(error) from error

    def revocation_of(self, anchor: str) -> Revocation | None:
        """The revocation of the anchor, or of one that it comes from. Raises as `poll`."""
        try:
            standing = self._database.standing(anchor, ANY_KIND, datetime.now(UTC))
            if standing.revocation is None and standing.revoked_ancestor is not None:
                standing = self._database.standing(standing.revoked_ancestor, ANY_KIND, datetime.now(UTC))
            return standing.revocation
        except FieldprintError as error:
            raise self._lose(error) from error

    def orders(self) -> Sequence[Override]:
        """The overrides in force. Raises as `poll`."""
        try:
            return self._database.overrides(datetime.now(UTC))
        except FieldprintError as error:
            raise self._lose(error) from error

    @property
    def _database(self) -> RegistryDatabase:
        if self._opened is None:
            raise WatchLost(self._why)
        self._opened[1].check_policy(self._policy)  # it may have been rebuilt with another
        return self._opened[1]

    def _lose(self, error: FieldprintError) -> WatchLost:
        if self._opened is not None:
            opened, self._opened = self._opened, None
            self._thread.submit(_close, opened)
        self._why = error.what
        return WatchLost(error.what, remedy=error.remedy)

    def _again(self) -> Opened:
        """What a thread has opened meanwhile."""
        if self._opening is not None and self._opening.done():
            opening, self._opening = self._opening, None
            error = opening.exception()
            if error is None:
                return opening.result()
            self._why = str(error)
        if self._opening is None and time.monotonic() - self._tried > self._retry:
            self._tried = time.monotonic()
            self._opening = self._thread.submit(_open, self._url, self._policy)
        raise WatchLost(f"the registry cannot be reached: {self._why}")


def _open(url: str, policy: Policy) -> Opened:
    watch = RegistryWatch(url)  # first: what is written from here on is told of
    try:
        database = RegistryDatabase(url)
        try:
            database.check_policy(policy)
        except BaseException:
            database.close()
            raise
    except BaseException:
        watch.close()
        raise
    return watch, database


def _close(opened: Opened) -> None:
    for each in opened:
        each.close()
