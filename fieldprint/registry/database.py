"""The registry in a database: a view of the log, for many workers, that replaying the log gives again.

    LogReader -> read_ahead (parse, signatures) -> Registry (believed?) -> rows, in one transaction a batch

Nothing is decided here. Whoever may write to the database can change what it says, as whoever may write to the memory of
this process can; the log cannot be changed so, and `rebuild` makes the rows from it anew.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Self

from sqlalchemy import (
    Connection,
    Row,
    Select,
    delete,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)

from fieldprint.anchor.artifact import parse_time
from fieldprint.anchor.policy import Policy
from fieldprint.anchor.statements import Override, Revocation, strongest
from fieldprint.database import Database
from fieldprint.errors import FieldprintError
from fieldprint.registry.lineage import AnchorRecord
from fieldprint.registry.queries import (
    ACTIVE,
    ANCESTORS,
    BY_DIGEST,
    DESCENDANTS,
    IN_FORCE,
    STANDING,
    with_events,
)
from fieldprint.registry.reading import Reading, read_ahead
from fieldprint.registry.rows import (
    Mark,
    labels_of,
    override_of,
    read_registry,
    registration_of,
    write_changes,
)
from fieldprint.registry.state import Change, Registry, Standing
from fieldprint.registry.tables import (
    ANCHORS,
    COUNTS,
    METADATA,
    POSITION,
    REFUSED,
    REVOCATIONS,
    STATUSES,
    VERSION,
)
from fieldprint.tlog.reader import LogReader

BATCH = 2000  # events of a transaction
MANY = 1000  # entries after which PostgreSQL should count its rows again
WRITERS_LOCK = 0x6669656C6465  # of PostgreSQL's advisory locks
CHANNEL = "fieldprint_registry"  # of PostgreSQL's notifications
WHAT = "registry database"
BEGINNING = re.compile(r"[0-9a-f]{1,64}")
REBUILD = "fieldprint registry rebuild, if this is the right log and policy"
Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Position:
    """How far the database has read which log: `next` is the index of the entry after the last, `root` that tree's root.

    policy: SHA-256 of the policy that decided what is believed.
    """

    origin: str
    next: int
    root: str
    policy: str


class RegistryDatabase:
    """The registry behind a URL of PostgreSQL, or in a file of SQLite. One object belongs to one thread.

    `standing` makes it a registry for `verify_anchor`. It knows the log as far as the last `sync` read it, by whichever
    process; `RegistryWatch` tells when that moves.

    Args:
        url: where it is.
        create: make what is not there yet.

    Raises:
        FieldprintError: it is not there, cannot be opened, or is of another version.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        self._database = Database(
            url, WHAT, lock=WRITERS_LOCK, create=create, remedy="fieldprint registry sync"
        )
        self._registry: Registry | None = None
        self._written: Position | None = None
        try:
            self._prepare(create)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def _prepare(self, create: bool) -> None:
        with self._database.reading() as connection:
            there = inspect(connection).has_table(POSITION.name)
            version = connection.execute(select(POSITION.c.version)).scalar() if there else None
        if not there and not create:
            raise FieldprintError("the database holds no registry", remedy="fieldprint registry sync")
        if version not in (None, VERSION):
            raise FieldprintError(
                f"the registry's tables are of version {version}, not {VERSION}",
                remedy="Drop them, and fieldprint registry sync",
            )
        if create and not there:
            with self._database.writing() as connection:
                METADATA.create_all(connection)

    # Filling it from the log

    def sync(
        self,
        reader: LogReader,
        policy: Policy,
        *,
        workers: int = 0,
        batch: int = BATCH,
        progress: Progress | None = None,
    ) -> int:
        """Apply what the log has and the database has not; gives the number of entries that this call wrote.

        Each batch is one transaction with the position in it, so a crash loses a batch at most and the next call goes on.
        Several processes may do this at once: each entry is applied by one of them.

        Args:
            reader: the log, as far as its checkpoint goes.
            policy: who is believed; the one that the database was made with.
            workers: processes that check signatures ahead; worth their start from some thousands of entries on.
            batch: entries of a transaction.
            progress: called after each batch with the next entry's index and the log's size.

        Raises:
            FieldprintError: the database is of another log or policy, ahead of the log or forked from it; it was rebuilt
                meanwhile from less of the log; or it cannot be written.
            LogError, FormatError: the log cannot be read, or is damaged.
        """
        try:
            return self._sync(reader, policy, workers, batch, progress)
        except BaseException:
            self._registry = self._written = None  # it may be ahead of what is stored
            raise

    def _sync(
        self, reader: LogReader, policy: Policy, workers: int, batch: int, progress: Progress | None
    ) -> int:
        if batch < 1:
            raise ValueError("batch must be at least 1")
        self._written = None  # by this call: nothing yet, so that the first look compares everything
        with self._database.reading() as connection:
            position = self._check(connection, reader, policy)
            registry = self._current(connection, position, policy)
        start, size, written = registry.position, reader.checkpoint().tree_size, 0
        readings = read_ahead(reader.entries(start, size), policy, workers)
        while start < size:
            chunk = list(islice(readings, batch))
            with self._database.writing() as connection:
                position = self._check(connection, reader, policy)
                written += self._apply(connection, registry, chunk, position, reader)
            start = registry.position
            if progress is not None:
                progress(start, size)
        if written >= MANY:
            with self._database.writing() as connection:
                self._analyze(connection)
        return written

    def rebuild(
        self,
        reader: LogReader,
        policy: Policy,
        *,
        workers: int = 0,
        batch: int = BATCH,
        progress: Progress | None = None,
    ) -> int:
        """Make every row anew from the log, whatever the rows say now; gives the number of entries.

        It is one transaction: until it is done others see the rows as they were, and if it fails they stay.
        """
        registry, size = Registry(policy), reader.checkpoint().tree_size
        self._registry = self._written = None
        readings = read_ahead(reader.entries(0, size), policy, workers)
        with self._database.writing() as connection:
            for table in METADATA.sorted_tables:
                connection.execute(delete(table))
            position: Position | None = None
            while registry.position < size:
                chunk = list(islice(readings, batch))
                self._apply(connection, registry, chunk, position, reader)
                position = _position(connection)
                if progress is not None:
                    progress(registry.position, size)
            self._analyze(connection)
            self._notify(connection)
        self._registry = registry
        return size

    def _apply(
        self,
        connection: Connection,
        registry: Registry,
        chunk: list[Reading],
        position: Position | None,
        reader: LogReader,
    ) -> int:
        """Apply a chunk to the registry, and write what lies behind the position: others may have been faster."""
        first = 0 if position is None else position.next
        if first < registry.position:  # what lies between would never be written
            raise FieldprintError(
                f"the registry database went back from entry {registry.position} to {first}: somebody rebuilt it meanwhile",
                remedy="fieldprint registry sync",
            )
        changes: list[Change] = []
        mark, written = Mark.of(registry), 0
        for read in chunk:
            index = registry.position
            if index == first:
                mark = Mark.of(registry)
            change = registry.believe(index, read)
            if index >= first:
                written += 1
                if change is not None:
                    changes.append(change)
        if written:
            write_changes(connection, registry, changes, mark, first)
            root = reader.root_hash(registry.position).hex()
            moved = Position(reader.checkpoint().origin, registry.position, root, registry.policy.digest)
            self._store(connection, moved, new=position is None)
            self._notify(connection)
        return written

    def _current(self, connection: Connection, position: Position | None, policy: Policy) -> Registry:
        """The registry at the position or before it; behind it only what another process wrote since is missing."""
        registry = self._registry
        there = 0 if position is None else position.next
        if registry is None or registry.policy != policy or registry.position > there:
            registry = Registry(policy)
            read_registry(connection, registry, there)
            self._registry = registry
        return registry

    def _store(self, connection: Connection, position: Position, *, new: bool) -> None:
        values = {
            "version": VERSION,
            "origin": position.origin,
            "next": position.next,
            "root": position.root,
            "policy": position.policy,
        }
        if new:
            connection.execute(insert(POSITION), [{"id": 1} | values])
        else:
            connection.execute(update(POSITION).values(values))
        self._written = position

    def _analyze(self, connection: Connection) -> None:
        """Tell PostgreSQL how large the tables have become, sooner than it finds out: else it reads them from end to end."""
        if self._database.dialect == "postgresql":
            connection.execute(text(f"ANALYZE {', '.join(METADATA.tables)}"))

    def _notify(self, connection: Connection) -> None:
        """PostgreSQL tells its listeners when, and only if, this transaction is committed."""
        if self._database.dialect == "postgresql":
            connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})

    def _check(self, connection: Connection, reader: LogReader, policy: Policy) -> Position | None:
        """The stored position, if the log continues it under the same policy; None for an empty database."""
        position = _position(connection)
        if position is None or position == self._written:
            return position
        _check_policy(position, policy)
        if position.origin != reader.checkpoint().origin:
            raise FieldprintError(
                f"the registry database is of the log {position.origin}, not of {reader.checkpoint().origin}",
                remedy="Give the database of this log, or another one",
            )
        if position.next > reader.checkpoint().tree_size:
            reader.refresh()  # another process may have seen a newer checkpoint
        size = reader.checkpoint().tree_size
        if position.next > size:
            raise FieldprintError(
                f"the registry database has read {position.next} entries, and the log has {size}: the log lost some",
                remedy=f"Find out why; then {REBUILD}",
            )
        if reader.root_hash(position.next).hex() != position.root:
            raise FieldprintError(
                f"the log's first {position.next} entries are not those that the registry database has read: it was "
                "forked or rewritten",
                remedy=f"Keep both as evidence; then {REBUILD}",
            )
        return position

    # Asking it

    def position(self) -> Position | None:
        """How far the log was read; None in an empty database."""
        with self._database.reading() as connection:
            return _position(connection)

    def check_policy(self, policy: Policy) -> None:
        """Return only if a log was read with this policy, which names the log's key too.

        Raises:
            FieldprintError: it was another policy, or nothing was read yet.
        """
        position = self.position()
        if position is None:
            raise FieldprintError(
                "the registry database has read no log yet", remedy="fieldprint registry sync"
            )
        _check_policy(position, policy)

    def standing(self, anchor: str, kind: str, now: datetime) -> Standing:
        """What is said of an anchor of this kind at this time, of one state of the database."""
        rows = self._database.ask(STANDING, {"anchor": anchor, "kind": kind})
        row = rows[0]
        found = [override_of(each, "override_") for each in rows if each.override_number is not None]
        revocation = None
        if row.revoked_time is not None:
            revocation = Revocation(anchor, row.revoked_reason, parse_time(row.revoked_time))
        return Standing(
            registration=None if row.digest is None else registration_of(row),
            taint=frozenset() if row.digest is None else labels_of(row.taint),
            revoked_ancestor=row.revoked_ancestor,
            revocation=revocation,
            newer=row.newer,
            override=strongest(found, now, anchor=anchor, kind=kind),
            policy=row.made_with or "",
        )

    def anchor(self, digest: str) -> AnchorRecord | None:
        """The record of a registered anchor, without what it hands on to others of its text (`carried`)."""
        return next(iter(_records(self._database.ask(BY_DIGEST, {"anchor": digest}))), None)

    def anchors(
        self,
        *,
        kind: str | None = None,
        name: str | None = None,
        state: str | None = None,
        limit: int | None = None,
    ) -> list[AnchorRecord]:
        """The registered anchors of this kind, name and state, the newest first."""
        query = select(ANCHORS).order_by(ANCHORS.c.entry.desc()).limit(limit)
        for column, value in ((ANCHORS.c.kind, kind), (ANCHORS.c.name, name), (ANCHORS.c.state, state)):
            if value is not None:
                query = query.where(column == value)
        return _records(self._database.ask(with_events(query), {}))

    def active(self, kind: str, name: str) -> AnchorRecord | None:
        """The active anchor of this kind and name; the newest, if there are several."""
        return next(iter(_records(self._database.ask(ACTIVE, {"kind": kind, "name": name}))), None)

    def resolve(self, prefix: str) -> str:
        """The digest of the registered anchor that begins with these hex digits.

        Raises:
            FieldprintError: none does, or more than one.
        """
        if not BEGINNING.fullmatch(prefix):
            raise FieldprintError(
                f"an anchor is named by its digest or how it begins, at most 64 hex digits, not {prefix[:80]!r}",
                remedy="fieldprint registry list",
            )
        low, high = prefix.ljust(64, "0"), prefix.ljust(64, "f")
        query = select(ANCHORS.c.digest).where(ANCHORS.c.digest.between(low, high)).limit(2)
        with self._database.reading() as connection:
            found = connection.execute(query).scalars().all()
        if len(found) != 1:
            what = "several anchors begin" if found else "no registered anchor begins"
            raise FieldprintError(f"{what} with {prefix[:64]}", remedy="fieldprint registry list")
        return str(found[0])

    def ancestors(self, digest: str) -> list[str]:
        """All from whom the anchor descends, in the order of registration."""
        return self._walk(ANCESTORS, digest)

    def descendants(self, digest: str) -> list[str]:
        """All who descend from the anchor, in the order of registration."""
        return self._walk(DESCENDANTS, digest)

    def _walk(self, query: Select[Any], digest: str) -> list[str]:
        found = sorted(tuple(row) for row in self._database.ask(query, {"anchor": digest}))
        return [each for _, each in found]

    def revoked(self) -> dict[str, Revocation]:
        """The revocations by digest, whether registered or not, in the order of the log."""
        with self._database.reading() as connection:
            rows = connection.execute(select(REVOCATIONS).order_by(REVOCATIONS.c.entry))
            return {row.anchor: Revocation(row.anchor, row.reason, parse_time(row.time)) for row in rows}

    def overrides(self, now: datetime) -> list[Override]:
        """The overrides in force, by number."""
        with self._database.reading() as connection:
            found = [override_of(row) for row in connection.execute(IN_FORCE)]
        return [override for override in found if override.holds(now)]

    def override_on(
        self, now: datetime, *, anchor: str | None = None, kind: str | None = None, engine: str | None = None
    ) -> Override | None:
        """As that of `Registry`: a freeze before a bypass, then the newest."""
        return strongest(self.overrides(now), now, anchor=anchor, kind=kind, engine=engine)

    def summary(self) -> dict[str, Any]:
        """Anchors by state, events by type, and the last status root."""
        with self._database.reading() as connection:
            states = connection.execute(select(ANCHORS.c.state, func.count()).group_by(ANCHORS.c.state))
            counts = connection.execute(select(COUNTS).order_by(COUNTS.c.type))
            revoked = connection.execute(select(func.count()).select_from(REVOCATIONS)).scalar_one()
            latest = select(STATUSES).order_by(STATUSES.c.entry.desc()).limit(1)
            status = connection.execute(latest).mappings().first()
            refused = select(REFUSED).order_by(REFUSED.c.entry.desc()).limit(20)
            return {
                "anchors": {state: number for state, number in states},  # noqa: C416
                "events": {row.type: row.number for row in counts},
                "revoked": revoked,
                "status": None if status is None else dict(status),
                "refused": [dict(row) for row in connection.execute(refused).mappings()],
            }

    def dump(self) -> Iterator[str]:
        """Every row as a line of JSON, in an order that depends on what the rows say alone: equal registries, equal dumps."""
        with self._database.reading() as connection:
            for table in sorted(METADATA.tables.values(), key=lambda table: table.name):
                for row in connection.execute(select(table).order_by(*table.primary_key)).mappings():
                    yield json.dumps({"table": table.name, **row}, sort_keys=True, separators=(",", ":"))


def _check_policy(position: Position, policy: Policy) -> None:
    if position.policy != policy.digest:
        raise FieldprintError("the registry database was made with another policy", remedy=REBUILD)


def _position(connection: Connection) -> Position | None:
    row = connection.execute(select(POSITION)).first()
    return None if row is None else Position(row.origin, row.next, row.root, row.policy)


def _records(rows: Sequence[Row[Any]]) -> list[AnchorRecord]:
    """The records of the anchors in these rows of `with_events`."""
    found: dict[int, AnchorRecord] = {}
    for row in rows:
        record = found.get(row.entry) or found.setdefault(row.entry, _record(row))
        if row.promotion is not None:
            record.promotions.append(row.promotion)
    return list(found.values())


def _record(row: Row[Any]) -> AnchorRecord:
    """Without its promotions."""
    revoked = None
    if row.state == "revoked":
        revoked = Revocation(row.digest, row.revoked_reason, parse_time(row.revoked_time or ""))
    return AnchorRecord(
        registration_of(row),
        row.entry,
        taint=labels_of(row.taint),
        endorsed=labels_of(row.endorsed),
        superseded_by=row.superseded_by,
        revocation=revoked,
        revoked_ancestor=row.revoked_ancestor,
    )
