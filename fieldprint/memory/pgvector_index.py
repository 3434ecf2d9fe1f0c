"""Nearest memories on PostgreSQL: pgvector's HNSW graph, which goes on until enough allowed ones are found.

embeddings   number, class, unit vector; an HNSW index by cosine, and one by class
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from fieldprint.errors import FieldprintError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

NEEDED = (0, 8)  # the first release whose scans go on
_NEAREST = text(
    "SELECT number, 1 - (embedding <=> CAST(:query AS vector)) FROM embeddings WHERE class = ANY(:classes) "
    "ORDER BY embedding <=> CAST(:query AS vector) LIMIT :k"
)
_VECTORS = text("SELECT number, CAST(embedding AS text) FROM embeddings WHERE number = ANY(:numbers)")


class PgvectorIndex:
    """The table with its two indexes, for vectors of so many dimensions."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def create(self, connection: Connection) -> None:
        """Make the table where it is missing.

        Raises:
            FieldprintError: the server has no pgvector, or one that is too old.
        """
        try:
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector")
        except DBAPIError as error:
            raise FieldprintError(
                f"the server has no pgvector: {str(error.orig).splitlines()[0]}",
                remedy="Install pgvector 0.8 or newer on it, or use SQLite",
            ) from error
        version = str(
            connection.exec_driver_sql(
                "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
            ).scalar_one()
        )
        if tuple(int(part) for part in version.split(".")[:2]) < NEEDED:
            raise FieldprintError(
                f"pgvector {version} gives up before it has found enough",
                remedy="Update it to 0.8 or newer: ALTER EXTENSION vector UPDATE",
            )
        connection.exec_driver_sql(
            "CREATE TABLE IF NOT EXISTS embeddings (number bigint PRIMARY KEY REFERENCES memories, "
            f"class integer NOT NULL REFERENCES classes, embedding vector({self.dimensions}) NOT NULL)"
        )
        connection.exec_driver_sql(
            "CREATE INDEX IF NOT EXISTS embeddings_by_meaning ON embeddings USING hnsw (embedding vector_cosine_ops)"
        )
        connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS embeddings_by_class ON embeddings (class)")

    def add(self, connection: Connection, rows: Sequence[tuple[int, int]], vectors: "Vectors") -> None:
        """Index the unit vectors of (number, class)."""
        if rows:
            connection.execute(
                text("INSERT INTO embeddings VALUES (:number, :kind, CAST(:vector AS vector))"),
                [
                    {"number": number, "kind": kind, "vector": _written(vector)}
                    for (number, kind), vector in zip(rows, vectors, strict=True)
                ],
            )

    def relabel(self, connection: Connection, classes: Mapping[int, int]) -> None:
        """Give the numbers their new classes."""
        if classes:
            connection.execute(
                text("UPDATE embeddings SET class = :kind WHERE number = :number"),
                [{"number": number, "kind": kind} for number, kind in classes.items()],
            )

    def remove(self, connection: Connection, number: int) -> None:
        """Forget a vector."""
        connection.execute(text("DELETE FROM embeddings WHERE number = :number"), {"number": number})

    def vectors(self, connection: Connection, numbers: Sequence[int]) -> tuple[list[int], "Vectors"]:
        """Those of the numbers that have a vector, and their unit vectors."""
        found = connection.execute(_VECTORS, {"numbers": list(numbers)}).all()
        rows = [np.array(written[1:-1].split(","), np.float32) for _, written in found]
        return [int(number) for number, _ in found], np.array(rows, np.float32).reshape(
            len(rows), self.dimensions
        )

    def nearest(
        self, connection: Connection, query: "NDArray[np.float32]", k: int, classes: Collection[int]
    ) -> list[tuple[int, float]]:
        """(number, cosine) of the k nearest in these classes, the nearest first.

        Where the graph ends with fewer than k, every allowed one is compared, so the answer is short only if the store is.
        """
        given = {"query": _written(query), "classes": list(classes), "k": k}
        for setting in (
            "hnsw.iterative_scan = strict_order",
            f"hnsw.ef_search = {min(1000, max(100, 4 * k))}",
        ):
            connection.exec_driver_sql(f"SET LOCAL {setting}")
        found = connection.execute(_NEAREST, given).all()
        if len(found) < k:
            connection.exec_driver_sql("SET LOCAL enable_indexscan = off")
            found = connection.execute(_NEAREST, given).all()
            connection.exec_driver_sql("SET LOCAL enable_indexscan = on")
        ranked = sorted((-float(score), int(number)) for number, score in found)
        return [(number, -score) for score, number in ranked]


def _written(vector: "NDArray[np.float32]") -> str:
    return f"[{','.join(map(repr, vector.tolist()))}]"
