"""A log in an object store, through `obstore` (the extra `fieldprint[s3]`); nothing else of the package loads it."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import from_url

from fieldprint.errors import LogError
from fieldprint.tlog.tile import max_size

_CONNECTIONS = 16
_RETRIES = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
_ERRORS = (BaseError, OSError)  # obstore raises Python's own for what Python has a name for


class ObjectStorage:
    """The objects below a URL such as s3://bucket/log. A put is durable when the store has answered.

    The checkpoint is replaced by a conditional put, so of two writers that do not know of each other one fails. The
    tiles are not guarded by that: one machine writes a log, and holds a lock beside its record of the last
    checkpoint.
    """

    def __init__(self, url: str, **config: Any) -> None:
        """Open the store.

        Args:
            url: s3://bucket/prefix, or another that obstore knows.
            config: of the store, as obstore names it; what is missing comes from the environment.

        Raises:
            LogError: the URL or the configuration is not one of a store.
        """
        self.place = url
        self.lock_file = None
        try:
            self._store: Any = from_url(url, **{"retry_config": _RETRIES, **config})
        except (*_ERRORS, ValueError) as error:
            raise LogError(
                f"{url} cannot be opened: {error}", remedy="Is this the URL of a store?"
            ) from error

    def create(self) -> None:
        """Nothing: the bucket is there, and a prefix needs no making."""

    def read(self, name: str) -> bytes | None:
        """The object's bytes, up to one more than its kind may have; None if there is no such object.

        Raises:
            LogError: it cannot be read.
        """
        found = self._read(name)
        return None if found is None else found[0]

    def _read(self, name: str) -> tuple[bytes, str | None] | None:
        """The object's bytes and entity tag."""
        limit, data = max_size(name), bytearray()
        try:
            result = obstore.get(self._store, name)
            for chunk in result.stream():
                data += memoryview(chunk)[: limit + 1 - len(data)]
                if len(data) > limit:
                    break
            return bytes(data), result.meta["e_tag"]
        except (NotFoundError, FileNotFoundError):
            return None
        except _ERRORS as error:
            raise self._failed(name, "read", error) from error

    def names(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`, which ends in a slash."""
        try:
            for chunk in obstore.list(self._store, prefix=prefix):
                yield from (meta["path"] for meta in chunk)
        except _ERRORS as error:
            raise self._failed(prefix, "listed", error) from error

    def write(self, objects: Mapping[str, bytes]) -> None:
        """Put objects, several at a time; on return the store has answered for all.

        Raises:
            LogError: one was refused. Any of the objects may then be there.
        """
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for done in [pool.submit(self._put, name, data, "overwrite") for name, data in objects.items()]:
                done.result()

    def publish(self, name: str, data: bytes, previous: bytes | None) -> None:
        """Replace the object `previous` (None: no object) by `data`, if it is still that.

        Raises:
            LogError: it holds something else than `previous`, or the store refused.
        """
        found = self._read(name)
        if (None if found is None else found[0]) != previous:
            raise self._changed(name)
        self._put(name, data, "create" if found is None else {"e_tag": found[1]})

    def _put(self, name: str, data: bytes, mode: Any) -> None:
        try:
            obstore.put(self._store, name, data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError) as error:
            raise self._changed(name) from error
        except _ERRORS as error:
            raise self._failed(name, "written", error) from error

    def _changed(self, name: str) -> LogError:
        return LogError(
            f"{self.place}/{name} was changed by somebody else",
            remedy="Nothing but the log's writer may write there",
        )

    def _failed(self, name: str, what: str, error: Exception) -> LogError:
        detail = str(error).strip().partition("\n")[0]
        return LogError(
            f"{self.place}/{name} cannot be {what}: {detail}", remedy="Check the store and the credentials"
        )
