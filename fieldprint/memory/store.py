"""The store of memories: labels go in and are inherited, and nothing here takes one away."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import DBAPIError

from fieldprint.anchor.artifact import check_digest
from fieldprint.errors import FieldprintError, IntegrityError
from fieldprint.memory.database import open_database
from fieldprint.memory.encoder import Encoder
from fieldprint.memory.labels import (
    Labels,
    Standing,
    allowed_classes,
    class_numbers,
    inherited,
    pieces,
    spread,
    standing,
    text_digest,
)
from fieldprint.memory.memory import KINDS, Memory, check_labels, union, whole_second
from fieldprint.memory.pgvector_index import PgvectorIndex
from fieldprint.memory.schema import CLASSES, LINEAGE, MEMORIES, SETTINGS, VERSION, create_tables
from fieldprint.memory.sqlite_index import SqliteIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

BATCH = 1000
PREFIX = re.compile(r"[0-9a-f]{8,64}")
PROBE = "The same text gives the same vector for as long as this store lives."
SAME = 0.999  # cosine of the probe's vector with the stored one, at least


@dataclass(frozen=True, slots=True)
class Added:
    """What `add_many` did: ids of new memories, and how many were there already."""

    new: tuple[str, ...]
    known: int


@dataclass(frozen=True, slots=True)
class Found:
    """A memory, with its cosine to what was asked and its unit vector."""

    memory: Memory
    score: float
    vector: "NDArray[np.float32]" = field(repr=False, compare=False)


class MemoryStore:
    """Memories in SQLite (a path) or PostgreSQL (a URL), found by meaning.

    Labels only grow: what is added has its own labels, those of its parents, and those that the same text was stored with
    before, deleted or not; a label that is added later reaches all descendants in the same transaction. The database's
    triggers refuse the contrary (`schema.py`). Endorsing a label away is the registry's to do, for an anchor.
    """

    def __init__(self, url: str, encoder: Encoder, *, create: bool = False) -> None:
        """Open a store; with `create`, make it where there is none.

        Raises:
            FieldprintError: there is no store, another encoder made it, or the database lacks what it needs.
        """
        self.encoder = encoder
        self._database = open_database(url, create=create)
        make = PgvectorIndex if self._database.dialect == "postgresql" else SqliteIndex
        self._index: PgvectorIndex | SqliteIndex = make(encoder.dimensions)
        try:
            if create:
                with self._database.writing() as connection:
                    create_tables(connection)
                    self._index.create(connection)
                    self._introduce(connection)
            self._check_encoder()
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def add(self, memory: Memory, *, anchors: Mapping[str, Labels] | None = None) -> Memory:
        """`memory` as it is stored: with the labels that it inherits. See `add_many`."""
        self.add_many([memory], anchors=anchors)
        stored = self.get(memory.id)
        if stored is None:
            raise FieldprintError(f"memory {memory.id[:16]} was deleted while it was added")
        return stored

    def add_many(
        self,
        memories: Iterable[Memory],
        *,
        anchors: Mapping[str, Labels] | None = None,
        batch_size: int = BATCH,
        progress: Callable[[int], object] | None = None,
    ) -> Added:
        """What was new. Each batch is one transaction; what is there already is not encoded again, so a run that was
        stopped is resumed by running it again.

        Args:
            memories: in an order in which parents come before what was derived from them.
            anchors: for parents that are anchors, the effective taint that the registry gives.
            batch_size: memories of a transaction.
            progress: if given, called after each batch with the number of memories that are done.

        Raises:
            FieldprintError: a parent is neither in the store nor in `anchors`.
        """
        if batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        new: list[str] = []
        done = 0
        for batch, given in _batches(memories, batch_size):
            new += self._add_batch(batch, anchors or {})
            done += given
            if progress is not None:
                progress(done)
        return Added(tuple(new), done - len(new))

    def derive(
        self,
        text: str,
        parents: Collection[str],
        *,
        source: str,
        kind: str = "memory",
        time: datetime | None = None,
        taint: Labels = (),
        anchors: Mapping[str, Labels] | None = None,
    ) -> Memory:
        """A new memory made from others, stored with every label of its parents.

        Raises:
            FieldprintError: there is no parent, or an unknown one.
        """
        if not parents:
            raise FieldprintError("what is derived has a parent", remedy="Add it as a memory of its own")
        memory = Memory(text, kind, source, whole_second(time), union(taint), union(parents))
        return self.add(memory, anchors=anchors)

    def preview(self, memory: Memory, *, anchors: Mapping[str, Labels] | None = None) -> Memory:
        """`memory` with the labels that it would be stored with; nothing is written."""
        with self._database.reading() as connection:
            return replace(memory, taint=inherited(connection, [memory], anchors or {})[memory.id])

    def add_labels(self, id: str, labels: Labels) -> Memory:  # noqa: A002
        """The memory with more labels, which its descendants get as well.

        Raises:
            FieldprintError: there is no such memory.
        """
        check_labels(labels)
        with self._database.writing() as connection:
            row = standing(connection, [id]).get(id)
            if row is None or not row.there:
                raise _unknown(id)
            self._index.relabel(connection, spread(connection, {id: labels}))
        stored = self.get(id)
        if stored is None:
            raise _unknown(id)
        return stored

    def get(self, id: str) -> Memory | None:  # noqa: A002
        """The memory, or None if there is none or it was deleted."""
        check_digest(id, "a memory's id")
        with self._database.reading() as connection:
            return next(iter(_read(connection, MEMORIES.c.id == bytes.fromhex(id)).values()), None)

    def resolve(self, prefix: str) -> str:
        """The id that begins with these hex digits.

        Raises:
            FieldprintError: none does, or more than one, or it was deleted.
        """
        if not PREFIX.fullmatch(prefix):
            raise FieldprintError(f"an id begins with 8 to 64 hex digits, not {prefix[:80]!r}")
        low, high = (bytes.fromhex(prefix.ljust(64, fill)) for fill in "0f")
        gone = MEMORIES.c.text.is_(None)
        query = (
            select(MEMORIES.c.id, gone.label("gone")).where(MEMORIES.c.id.between(low, high)).order_by(gone)
        )
        with self._database.reading() as connection:
            found = connection.execute(query.limit(2)).all()
        there = [row.id for row in found if not row.gone]
        if len(there) > 1:
            raise FieldprintError(f"several memories begin with {prefix}")
        if not there and found:
            raise FieldprintError(
                f"memory {bytes(found[0].id).hex()[:16]} was deleted",
                remedy="Its labels stay with what was derived from it",
            )
        if not there:
            raise _unknown(prefix)
        return bytes(there[0]).hex()

    def delete(self, id: str) -> bool:  # noqa: A002
        """Whether a memory was there. Text, source and vector go; id, lineage and labels stay, for what was derived
        from it and for its coming again."""
        check_digest(id, "a memory's id")
        with self._database.writing() as connection:
            here = (MEMORIES.c.id == bytes.fromhex(id)) & MEMORIES.c.text.is_not(None)
            number = connection.execute(select(MEMORIES.c.number).where(here)).scalar_one_or_none()
            if number is None:
                return False
            gone = update(MEMORIES).where(MEMORIES.c.number == number).values(text=None, source=None)
            connection.execute(gone)
            self._index.remove(connection, number)
        return True

    def count(self, *, kinds: Collection[str] = KINDS, forbidden: Labels = ()) -> int:
        """How many memories are of these kinds and have none of these labels."""
        with self._database.reading() as connection:
            allowed = allowed_classes(connection, kinds, forbidden)
            there = MEMORIES.c.text.is_not(None) & MEMORIES.c["class"].in_(allowed)
            return int(connection.execute(select(func.count()).where(there)).scalar_one())

    def iterate(
        self, *, kinds: Collection[str] = KINDS, forbidden: Labels = (), batch_size: int = BATCH
    ) -> Iterator[Memory]:
        """Every memory of these kinds without these labels, in the order in which they were added."""
        last = 0
        while True:
            with self._database.reading() as connection:
                allowed = allowed_classes(connection, kinds, forbidden)
                here = MEMORIES.c["class"].in_(allowed) & (MEMORIES.c.number > last)
                found = _read(connection, here & MEMORIES.c.text.is_not(None), limit=batch_size)
            if not found:
                return
            yield from found.values()
            last = max(found)

    def ancestors(self, id: str) -> frozenset[str]:  # noqa: A002
        """Every id that the memory was derived from, over any number of steps; anchors' digests among them."""
        with self._database.reading() as connection:
            seen: set[str] = set()
            frontier = {id}
            while frontier:
                keys = [bytes.fromhex(each) for each in frontier]
                steps = (
                    select(LINEAGE.c.parent)
                    .join(MEMORIES, MEMORIES.c.number == LINEAGE.c.child)
                    .where(MEMORIES.c.id.in_(keys))
                )
                frontier = {bytes(parent).hex() for (parent,) in connection.execute(steps)} - seen
                seen |= frontier
            return frozenset(seen)

    def search(
        self, query: str, k: int = 10, *, kinds: Collection[str] = KINDS, forbidden: Labels = ()
    ) -> list[Found]:
        """The k memories nearest in meaning, the nearest first, of these kinds and without any of these labels.

        The filters are part of the search: the answer is shorter than k only where fewer are allowed at all.
        """
        return self.nearest(self.encoder([query])[0], k, kinds=kinds, forbidden=forbidden)

    def nearest(
        self,
        vector: "NDArray[np.float32]",
        k: int = 10,
        *,
        kinds: Collection[str] = KINDS,
        forbidden: Labels = (),
    ) -> list[Found]:
        """As `search`, for a unit vector."""
        if k < 1:
            raise ValueError("k must be at least 1")
        check_labels(forbidden)
        with self._database.reading() as connection:
            allowed = allowed_classes(connection, kinds, forbidden)
            if not allowed:
                return []
            scores = dict(self._index.nearest(connection, vector, k, allowed))
            found = _read(connection, MEMORIES.c.number.in_(list(scores)))
            vectors = dict(zip(*self._index.vectors(connection, list(scores)), strict=True))
        return [Found(found[number], score, vectors[number]) for number, score in scores.items()]

    def _introduce(self, connection: Connection) -> None:
        """Write down the encoder, in a new store."""
        if connection.execute(select(SETTINGS.c.name)).first() is None:
            probe = self.encoder([PROBE])[0].tobytes().hex()
            values = {
                "version": VERSION,
                "encoder": self.encoder.name,
                "encoder_digest": self.encoder.digest,
                "dimensions": str(self.encoder.dimensions),
                "probe": probe,
            }
            connection.execute(
                insert(SETTINGS), [{"name": name, "value": value} for name, value in values.items()]
            )

    def _check_encoder(self) -> None:
        with self._database.reading() as connection:
            try:
                rows = connection.execute(select(SETTINGS.c.name, SETTINGS.c.value)).all()
            except DBAPIError as error:
                raise FieldprintError(
                    "the database is no memory store", remedy="Add a memory first"
                ) from error
        stored: dict[str, str] = {name: value for name, value in rows}  # noqa: C416
        if stored.get("version") != VERSION:
            raise FieldprintError("the memory store was made by another version of Fieldprint")
        mine = (self.encoder.name, self.encoder.digest, str(self.encoder.dimensions))
        theirs = (stored["encoder"], stored["encoder_digest"], stored["dimensions"])
        same = mine == theirs
        if same:
            probe = np.frombuffer(bytes.fromhex(stored["probe"]), np.float32)
            same = float(self.encoder([PROBE])[0] @ probe) >= SAME
        if not same:
            raise FieldprintError(
                f"the store's vectors are of the encoder {theirs[0]} ({theirs[1][:16]}), not of {mine[0]} ({mine[1][:16]})",
                remedy="Open it with that encoder, or add its memories to a new store",
            )

    def _add_batch(self, batch: Sequence[Memory], anchors: Mapping[str, Labels]) -> list[str]:
        with self._database.reading() as connection:
            here = standing(connection, [memory.id for memory in batch])
        vectors = self._encode(batch, here)
        with self._database.writing() as connection:
            here = standing(connection, [memory.id for memory in batch])
            vectors |= self._encode([memory for memory in batch if memory.id not in vectors], here)
            labels = inherited(connection, batch, anchors)
            new = [memory for memory in batch if memory.id not in here]
            self._insert(connection, new, labels)
            back = [memory for memory in batch if memory.id in here and not here[memory.id].there]
            for memory in back:
                values = {"text": memory.text, "source": memory.source}
                connection.execute(
                    update(MEMORIES).where(MEMORIES.c.id == bytes.fromhex(memory.id)).values(values)
                )
            changed = spread(connection, {key: labels[key] for key in here if key in labels})
            self._index.relabel(connection, changed)
            final = standing(connection, [memory.id for memory in (*new, *back)])
            fresh = [final[memory.id] for memory in (*new, *back)]
            classes = class_numbers(connection, ())
            rows = [(row.number, classes[row.kind, row.labels]) for row in fresh]
            if rows:
                self._index.add(connection, rows, np.stack([vectors[row.id] for row in fresh]))
        return [row.id for row in fresh]

    def _encode(
        self, memories: Sequence[Memory], here: Mapping[str, Standing]
    ) -> dict[str, "NDArray[np.float32]"]:
        """Vectors by id of those that are not there."""
        new = [memory for memory in memories if memory.id not in here or not here[memory.id].there]
        vectors = self.encoder([memory.text for memory in new])
        return {memory.id: vector for memory, vector in zip(new, vectors, strict=True)}

    def _insert(
        self, connection: Connection, new: Sequence[Memory], labels: Mapping[str, tuple[str, ...]]
    ) -> None:
        """Write the new rows, and their lineage behind them."""
        if not new:
            return
        classes = class_numbers(connection, [(memory.kind, labels[memory.id]) for memory in new])
        last = connection.execute(select(func.coalesce(func.max(MEMORIES.c.number), 0))).scalar_one()
        numbers = [int(last) + 1 + index for index in range(len(new))]
        rows = [
            {
                "number": number,
                "id": bytes.fromhex(memory.id),
                "class": classes[memory.kind, labels[memory.id]],
                "text_sha256": text_digest(memory),
                "time": int(memory.time.timestamp()),
                "source": memory.source,
                "text": memory.text,
            }
            for number, memory in zip(numbers, new, strict=True)
        ]
        connection.execute(insert(MEMORIES), rows)
        lineage = [
            {"child": number, "parent": bytes.fromhex(parent)}
            for number, memory in zip(numbers, new, strict=True)
            for parent in memory.parents
        ]
        if lineage:
            connection.execute(insert(LINEAGE), lineage)


def _batches(memories: Iterable[Memory], size: int) -> Iterator[tuple[list[Memory], int]]:
    """Runs of memories in which no id occurs twice, and how many were given; labels of the same memory are joined."""
    gathered: dict[str, Memory] = {}
    given = 0
    for memory in memories:
        same = gathered.get(memory.id)
        gathered[memory.id] = (
            memory if same is None else replace(memory, taint=union(memory.taint, same.taint))
        )
        given += 1
        if given == size:
            yield list(gathered.values()), given
            gathered, given = {}, 0
    if gathered:
        yield list(gathered.values()), given


def _read(connection: Connection, condition: Any, *, limit: int | None = None) -> dict[int, Memory]:
    """The memories that are there under the condition, by number, checked against their ids."""
    rows = (
        select(MEMORIES, CLASSES.c.kind, CLASSES.c.labels)
        .join(CLASSES, CLASSES.c.number == MEMORIES.c["class"])
        .where(condition, MEMORIES.c.text.is_not(None))
        .order_by(MEMORIES.c.number)
        .limit(limit)
    )
    found = connection.execute(rows).mappings().all()
    parents: dict[int, list[str]] = {}
    for piece in pieces([row["number"] for row in found]):
        lines = select(LINEAGE.c.child, LINEAGE.c.parent).where(LINEAGE.c.child.in_(piece))
        for child, parent in connection.execute(lines):
            parents.setdefault(child, []).append(bytes(parent).hex())
    read: dict[int, Memory] = {}
    for row in found:
        memory = Memory(
            text=row["text"],
            kind=row["kind"],
            source=row["source"],
            time=datetime.fromtimestamp(row["time"], UTC),
            taint=tuple(json.loads(row["labels"])),
            parents=tuple(sorted(parents.get(row["number"], []))),
        )
        if memory.id != bytes(row["id"]).hex():
            raise IntegrityError(
                f"memory {bytes(row['id']).hex()[:16]} in the store is not what its id says: it was changed there"
            )
        read[row["number"]] = memory
    return read


def _unknown(id: str) -> FieldprintError:  # noqa: A002
    return FieldprintError(f"there is no memory {id[:16]}")
