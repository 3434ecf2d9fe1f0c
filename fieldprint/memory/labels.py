"""The one place where labels are worked out: what a memory inherits, and how a later label reaches what came of it.

labels(m) = own(m) + what m's row has + what its text was stored with before + union of labels(p) over its parents p
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from fieldprint.errors import FieldprintError
from fieldprint.memory.memory import Memory, check_labels, union
from fieldprint.memory.schema import CLASSES, LINEAGE, MEMORIES

PIECE = 500  # values of one IN

Labels = Collection[str]


@dataclass(frozen=True, slots=True)
class Standing:
    """The row of a memory, deleted or not."""

    number: int
    id: str
    kind: str
    labels: tuple[str, ...]
    there: bool


def standing(connection: Connection, ids: Collection[str]) -> dict[str, Standing]:
    """The rows that these ids have, by id."""
    return {row.id: row for row in _rows(connection, MEMORIES.c.id, [bytes.fromhex(key) for key in ids])}


def inherited(
    connection: Connection, batch: Sequence[Memory], anchors: Mapping[str, Labels]
) -> dict[str, tuple[str, ...]]:
    """By id, the labels that each memory of the batch has once it is stored; ids occur once, parents first.

    Raises:
        FieldprintError: a parent is neither in the database nor earlier in the batch nor in `anchors`; or a memory
            was named as an anchor by a stored one, which then could not have had its labels.
    """
    parents = {parent for memory in batch for parent in memory.parents}
    here = standing(connection, parents | {memory.id for memory in batch})
    labels: dict[str, tuple[str, ...]] = {key: row.labels for key, row in here.items()}
    if early := _children(connection, [memory.id for memory in batch if memory.id not in here]):
        raise FieldprintError(
            f"{min(early)[:16]} is the parent of a stored memory as an anchor, and is now to be a memory",
            remedy="Store what was derived from it after it",
        )
    of_text = _labels_of_texts(connection, [text_digest(memory) for memory in batch])
    for memory in batch:
        given: list[Labels] = [memory.taint, labels.get(memory.id, ()), of_text.get(text_digest(memory), ())]
        for parent in memory.parents:
            unknown = parent not in labels and parent not in anchors
            if unknown and memory.id not in here:  # a row that is there has its parents' labels
                raise FieldprintError(
                    f"the parent {parent[:16]} is not in the store, so its labels are not known",
                    remedy="Add it first, or give the labels that the registry has for it as an anchor",
                )
            given += [labels.get(parent, ()), anchors.get(parent, ())]
        found = union(*given)
        check_labels(found)
        labels[memory.id] = found
        of_text[text_digest(memory)] = union(found, of_text.get(text_digest(memory), ()))
    return {memory.id: labels[memory.id] for memory in batch}


def spread(connection: Connection, labels: Mapping[str, Labels]) -> dict[int, int]:
    """The new class of every row that changed: these ids with more labels, and all that descends from them."""
    rows: dict[int, Standing] = {}
    grown: dict[int, set[str]] = {}
    frontier = {key: set(added) for key, added in labels.items()}
    while frontier:
        following: dict[str, set[str]] = {}
        level = standing(connection, list(frontier))
        children = _children(connection, list(level))
        for key, row in level.items():
            rows[row.number] = row
            missing = frontier[key] - set(row.labels) - grown.get(row.number, set())
            if missing:  # otherwise the descendants have them already
                grown.setdefault(row.number, set()).update(missing)
                for child in children.get(key, ()):
                    following.setdefault(child, set()).update(missing)
        frontier = following
    wanted = {
        number: (rows[number].kind, union(rows[number].labels, added)) for number, added in grown.items()
    }
    numbers = class_numbers(connection, wanted.values())
    changed = {number: numbers[wanted[number]] for number in sorted(wanted, reverse=True)}
    if changed:  # descendants first, as the triggers demand: a child's number is greater than its parents'
        statement = update(MEMORIES).where(MEMORIES.c.number == bindparam("row"))
        statement = statement.values({"class": bindparam("new")})
        for number, kind in changed.items():
            connection.execute(statement, {"row": number, "new": kind})
    return changed


def class_numbers(
    connection: Connection, wanted: Iterable[tuple[str, tuple[str, ...]]]
) -> dict[tuple[str, tuple[str, ...]], int]:
    """The number of each combination of kind and labels; one that is new is written down."""
    known = {(row.kind, tuple(json.loads(row.labels))): row.number for row in _classes(connection)}
    new = sorted(set(wanted) - known.keys())
    following = max(known.values(), default=0) + 1
    made = {combination: following + index for index, combination in enumerate(new)}
    if made:
        connection.execute(
            insert(CLASSES),
            [
                {"number": number, "kind": kind, "labels": json.dumps(labels)}
                for (kind, labels), number in made.items()
            ],
        )
    return known | made


def allowed_classes(connection: Connection, kinds: Collection[str], forbidden: Labels) -> list[int]:
    """The classes of these kinds that have none of the labels."""
    refused = set(forbidden)
    return [
        row.number
        for row in _classes(connection)
        if row.kind in kinds and refused.isdisjoint(json.loads(row.labels))
    ]


def text_digest(memory: Memory) -> bytes:
    """SHA-256 of the text: a label stays with a text, whoever stores it next."""
    return sha256(memory.text.encode()).digest()


def pieces(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """The values in runs that one statement takes."""
    return (values[start : start + PIECE] for start in range(0, len(values), PIECE))


def _classes(connection: Connection) -> Sequence[Any]:
    return connection.execute(select(CLASSES.c.number, CLASSES.c.kind, CLASSES.c.labels)).all()


def _rows(connection: Connection, column: Any, values: Sequence[bytes]) -> Iterable[Standing]:
    there = MEMORIES.c.text.is_not(None)
    for piece in pieces(values):
        rows = (
            select(MEMORIES.c.number, MEMORIES.c.id, CLASSES.c.kind, CLASSES.c.labels, there)
            .join(CLASSES, CLASSES.c.number == MEMORIES.c["class"])
            .where(column.in_(piece))
        )
        for number, id_bytes, kind, labels, alive in connection.execute(rows):
            yield Standing(number, bytes(id_bytes).hex(), kind, tuple(json.loads(labels)), bool(alive))


def _labels_of_texts(connection: Connection, digests: Sequence[bytes]) -> dict[bytes, tuple[str, ...]]:
    found: dict[bytes, tuple[str, ...]] = {}
    for piece in pieces(sorted(set(digests))):
        rows = (
            select(MEMORIES.c.text_sha256, CLASSES.c.labels)
            .distinct()
            .join(CLASSES, CLASSES.c.number == MEMORIES.c["class"])
            .where(MEMORIES.c.text_sha256.in_(piece))
        )
        for digest, labels in connection.execute(rows):
            found[bytes(digest)] = union(json.loads(labels), found.get(bytes(digest), ()))
    return found


def _children(connection: Connection, ids: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for piece in pieces([bytes.fromhex(key) for key in ids]):
        rows = (
            select(LINEAGE.c.parent, MEMORIES.c.id)
            .join(MEMORIES, MEMORIES.c.number == LINEAGE.c.child)
            .where(LINEAGE.c.parent.in_(piece))
        )
        for parent, child in connection.execute(rows):
            found.setdefault(bytes(parent).hex(), []).append(bytes(child).hex())
    return found
