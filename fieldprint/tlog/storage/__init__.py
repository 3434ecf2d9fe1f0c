"""Where a log lies: named objects, read by anybody, written by one.

    checkpoint    tile/0/000    tile/0/001.p/44    tile/entries/000

A `Source` can be read; a `Storage` is a source that a writer fills. `open_storage` takes a folder, or the URL of an
object store; `open_source` also that of a server.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from fieldprint.tlog.storage.posix import PosixStorage

__all__ = ["PosixStorage", "Source", "Storage", "open_source", "open_storage"]

STORES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "file", "memory", "http", "https")


class Source(Protocol):
    """Where a log is read from."""

    @property
    def place(self) -> str:
        """The folder or URL, for messages."""

    def read(self, name: str) -> bytes | None:
        """The object's bytes, or one more than its kind may have if there are more; None if there is no such object.

        Raises:
            LogError: it cannot be read.
        """


class Storage(Source, Protocol):
    """Where a log is written to, by one writer at a time."""

    @property
    def lock_file(self) -> Path | None:
        """The file that the writer holds by flock; None where the storage has no place for one."""

    def create(self) -> None:
        """Make the place, if it is not there; durable on return."""

    def names(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`, a folder's name with its slash; in no promised order."""

    def write(self, objects: Mapping[str, bytes]) -> None:
        """Write objects, each whole or not at all; on return all are durable.

        Raises:
            CapacityError: no room. LogError: another failure. Any of the objects may then be there.
        """

    def publish(self, name: str, data: bytes, previous: bytes | None) -> None:
        """Replace the object `previous` (None: no object) by `data`, atomically; durable on return.

        Raises:
            LogError: it holds something else than `previous`, or cannot be written. CapacityError: no room.
        """


def open_source(place: Path | str) -> Source:
    """The source at the http or https URL of a log, in a folder or in an object store.

    Raises:
        ValueError: an http or https URL with a user, a query or a fragment.
        LogError: as `open_storage`.
    """
    if isinstance(place, str) and place.startswith(("http://", "https://")):
        from fieldprint.tlog.storage.http import HttpSource

        return HttpSource(place)
    return open_storage(place)


def open_storage(place: Path | str) -> Storage:
    """The storage of a folder's path, or of the URL of an object store.

        log    /var/lib/fieldprint/log    s3://bucket/log

    Object stores need the extra `fieldprint[s3]`. Credentials, region and endpoint come from the environment, as
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL; an http:// endpoint also needs
    AWS_ALLOW_HTTP=true.

    Raises:
        ValueError: the URL is of another scheme than STORES.
        LogError: the store cannot be opened.
        ModuleNotFoundError: the extra is not installed.
    """
    if isinstance(place, str) and "://" in place:
        if not place.startswith(tuple(f"{scheme}://" for scheme in STORES)):
            raise ValueError(f"{place} is of no object store: {', '.join(STORES)} are known")
        from fieldprint.tlog.storage.objects import ObjectStorage

        return ObjectStorage(place)
    return PosixStorage(Path(place))
