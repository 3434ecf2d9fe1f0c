"""Nearest memories on SQLite: a scan of one bit a dimension, then the exact cosine of the best of it.

    embeddings   number, float32 of the unit vector
    coarse       sqlite-vec's vec0: number, class, the signs of the vector as bits

vec0 keeps the bits in chunks of 4,096 beside their classes, adds, changes and removes in place and within the transaction.
Its own KNN query goes through a chunk once for each of the k results (measured at 1,000,000 memories: k = 10 takes 20 to
60 ms, k = 400 half a second), and exact rescoring needs thousands. So the scan reads vec0's chunks and counts bits with
numpy; a test holds it to vec0's own answer. Filters are applied in the scan: what is not allowed never takes a place.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Connection

from fieldprint.errors import FieldprintError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

CHUNK = 4096  # the most that vec0 allows
CANDIDATES = 2000  # at least so many are rescored exactly
NOWHERE = np.uint16(65535)  # the distance of what is not allowed
_SCAN = (
    "SELECT c.rowids, c.validity, m.data, v.vectors FROM coarse_chunks c "
    "JOIN coarse_vector_chunks00 v ON v.rowid = c.chunk_id JOIN coarse_metadatachunks00 m ON m.rowid = c.chunk_id"
)
_FULL = b"\xff" * (CHUNK // 8)  # the validity of a chunk without a hole
_VECTORS = "SELECT number, embedding FROM embeddings WHERE number IN (SELECT value FROM json_each(?))"


class SqliteIndex:
    """The two tables, for vectors of so many dimensions."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.bits = -(-dimensions // 64) * 64

    def create(self, connection: Connection) -> None:
        """Make the tables where they are missing."""
        connection.exec_driver_sql(
            "CREATE TABLE IF NOT EXISTS embeddings (number INTEGER PRIMARY KEY, embedding BLOB NOT NULL)"
        )
        connection.exec_driver_sql(
            "CREATE VIRTUAL TABLE IF NOT EXISTS coarse USING vec0("
            f"number INTEGER PRIMARY KEY, class INTEGER, code BIT[{self.bits}], chunk_size={CHUNK})"
        )

    def add(self, connection: Connection, rows: Sequence[tuple[int, int]], vectors: "Vectors") -> None:
        """Index the unit vectors of (number, class)."""
        if not rows:
            return
        codes = self.codes(vectors)
        connection.exec_driver_sql(
            "INSERT INTO embeddings VALUES (?, ?)",
            [(number, vector.tobytes()) for (number, _), vector in zip(rows, vectors, strict=True)],
        )
        connection.exec_driver_sql(
            "INSERT INTO coarse (number, class, code) VALUES (?, ?, vec_bit(?))",
            [(*row, code.tobytes()) for row, code in zip(rows, codes, strict=True)],
        )

    def relabel(self, connection: Connection, classes: Mapping[int, int]) -> None:
        """Give the numbers their new classes."""
        if classes:
            connection.exec_driver_sql(
                "UPDATE coarse SET class = ? WHERE number = ?", [(c, n) for n, c in classes.items()]
            )

    def remove(self, connection: Connection, number: int) -> None:
        """Forget a vector."""
        connection.exec_driver_sql("DELETE FROM coarse WHERE number = ?", (number,))
        connection.exec_driver_sql("DELETE FROM embeddings WHERE number = ?", (number,))

    def vectors(self, connection: Connection, numbers: Sequence[int]) -> tuple[list[int], "Vectors"]:
        """Those of the numbers that have a vector, and their unit vectors."""
        rows = list(_plain(connection, _VECTORS, json.dumps(numbers)))
        found = np.frombuffer(b"".join([vector for _, vector in rows]), np.float32)
        return [number for number, _ in rows], found.reshape(len(rows), self.dimensions)

    def nearest(
        self, connection: Connection, query: "NDArray[np.float32]", k: int, classes: Collection[int]
    ) -> list[tuple[int, float]]:
        """(number, cosine) of the k nearest in these classes, the nearest first; exact for up to CANDIDATES of them."""
        slots, distances = self.scan(connection, query, classes)
        best = closest(distances, max(CANDIDATES, 20 * k))
        numbers, vectors = self.vectors(connection, slots[best].tolist())
        scores = np.einsum("nd,d->n", vectors, query)  # not BLAS: its threads cost more than the product
        ranked = sorted(zip((-scores).tolist(), numbers, strict=True))[:k]
        return [(number, -score) for score, number in ranked]

    def scan(
        self, connection: Connection, query: "NDArray[np.float32]", classes: Collection[int]
    ) -> tuple["NDArray[np.int64]", "NDArray[np.uint16]"]:
        """Number and Hamming distance of every slot; NOWHERE for what is empty or in another class."""
        allowed = np.zeros(max(classes, default=0) + 2, bool)
        allowed[list(classes)] = True
        words = self.bits // 64
        code = np.tile(self.codes(query[None])[0].view(np.uint64), CHUNK)
        differing, counts = np.empty(len(code), np.uint64), np.empty(len(code), np.uint8)
        numbers: list[NDArray[np.int64]] = []
        distances: list[NDArray[np.uint16]] = []
        for ids, valid, kinds, vectors in _plain(connection, _SCAN):
            inside = allowed.take(np.frombuffer(kinds, np.int64), mode="clip")
            if valid != _FULL:
                inside &= np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little").view(bool)
            np.bitwise_xor(np.frombuffer(vectors, np.uint64), code, out=differing)
            np.bitwise_count(differing, out=counts)
            found = counts[::words].astype(np.uint16)
            for word in range(1, words):
                found += counts[word::words]
            numbers.append(np.frombuffer(ids, np.int64))
            distances.append(np.where(inside, found, NOWHERE))
        if not numbers:
            return np.zeros(0, np.int64), np.zeros(0, np.uint16)
        return np.concatenate(numbers), np.concatenate(distances)

    def codes(self, vectors: "Vectors") -> "NDArray[np.uint8]":
        """The signs of the vectors, one bit each, zeros up to a multiple of 64."""
        if vectors.shape[1] != self.dimensions:
            raise FieldprintError(f"a vector has {vectors.shape[1]} dimensions, the store {self.dimensions}")
        packed = np.zeros((len(vectors), self.bits // 8), np.uint8)
        signs = np.packbits(vectors > 0, axis=1, bitorder="little")
        packed[:, : signs.shape[1]] = signs
        return packed


def _plain(connection: Connection, statement: str, *parameters: str) -> Iterator[tuple[Any, ...]]:
    """The rows, within the connection's transaction, without SQLAlchemy's own work on each of thousands."""
    driver: Any = connection.connection.driver_connection
    rows: Iterator[tuple[Any, ...]] = driver.execute(statement, parameters)
    return rows


def closest(distances: "NDArray[np.uint16]", count: int) -> "NDArray[np.intp]":
    """Indices of the `count` smallest distances, in order of index; of equal ones the first. NOWHERE is never among them."""
    totals = np.cumsum(np.bincount(distances, minlength=int(NOWHERE) + 1)[:NOWHERE])
    limit = int(np.searchsorted(totals, count))
    if limit >= NOWHERE:
        return np.flatnonzero(distances < NOWHERE)
    inside = np.flatnonzero(distances < limit)
    edge = np.flatnonzero(distances == limit)[: count - len(inside)]
    return np.sort(np.concatenate([inside, edge]))
