"""Rows of the tables, from what the registry believed and back."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Row, Table, bindparam, delete, insert, select, update

from fieldprint.anchor.artifact import format_time, parse_time, string_list
from fieldprint.anchor.statements import (
    Endorsement,
    Lift,
    Override,
    Registration,
    Revocation,
    StatusRoot,
    Supersession,
)
from fieldprint.errors import FormatError
from fieldprint.registry import tables
from fieldprint.registry.events import Promotion
from fieldprint.registry.lineage import AnchorRecord
from fieldprint.registry.state import Change, Refused, Registry


@dataclass(frozen=True, slots=True)
class Mark:
    """How far two growing dictionaries of a registry were, so that what came since is found again."""

    superseded: int

    @classmethod
    def of(cls, registry: Registry) -> "Mark":
        """Here."""
        return cls(len(registry.superseded))


def write_changes(
    connection: Connection, registry: Registry, changes: Sequence[Change], mark: Mark, first: int
) -> None:
    """Write what was believed from index `first` on, as the registry is now; the position is written by the caller."""
    new = {change.index: change.content for change in changes}
    registered = [content for content in new.values() if isinstance(content, Registration)]
    made = {registration.anchor for registration in registered}
    touched = dict.fromkeys(anchor for change in changes for anchor in change.anchors)
    _insert(connection, tables.ANCHORS, (anchor_row(registry.anchors[each.anchor]) for each in registered))
    _update_anchors(connection, [registry.anchors[anchor] for anchor in touched if anchor not in made])
    _insert(
        connection,
        tables.LINEAGE,
        ({"child": each.anchor, "parent": parent} for each in registered for parent in each.parents),
    )
    rows: dict[Table, list[dict[str, Any]]] = {}
    lifted = []
    for index, content in new.items():
        if isinstance(content, Lift):
            lifted.append({"lifts": content.number, "at": index})
        elif not isinstance(content, Registration | Supersession):
            table, row = _row(content)
            rows.setdefault(table, []).append({"entry": index} | row)
    for table, values in rows.items():
        _insert(connection, table, values)
    fresh = islice(registry.superseded.items(), mark.superseded, None)
    _insert(
        connection,
        tables.SUPERSESSIONS,
        ({"older": older, "kind": kind, "newer": newer} for (older, kind), newer in fresh),
    )
    if lifted:
        number = tables.OVERRIDES.c.number == bindparam("lifts")
        connection.execute(update(tables.OVERRIDES).where(number).values(lifted=bindparam("at")), lifted)
    _write_refused(connection, registry, first)


def _write_refused(connection: Connection, registry: Registry, first: int) -> None:
    """The registry keeps the last thousand, and so does the table; `counts` are all."""
    refused = [
        {"entry": each.index, "type": each.type, "why": each.why, "what": each.what}
        for each in registry.refused
        if each.index >= first
    ]
    _insert(connection, tables.REFUSED, refused)
    if refused:
        connection.execute(delete(tables.REFUSED).where(tables.REFUSED.c.entry < registry.refused[0].index))
    counts = dict(registry.believed) | ({"refused": registry.num_refused} if registry.num_refused else {})
    connection.execute(delete(tables.COUNTS))
    _insert(connection, tables.COUNTS, ({"type": kind, "number": n} for kind, n in counts.items()))


def _insert(connection: Connection, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """The driver gets the rows as they are: texts and integers need none of SQLAlchemy's work on each value."""
    values = list(rows)
    if not values:
        return
    compiled = insert(table).compile(dialect=connection.dialect, column_keys=list(table.c.keys()))
    order: Sequence[str] | None = getattr(compiled, "positiontup", None)  # None: the driver wants names
    given: Any = values if order is None else [tuple(row[name] for name in order) for row in values]
    connection.exec_driver_sql(str(compiled), given)


def _update_anchors(connection: Connection, records: Sequence[AnchorRecord]) -> None:
    if records:
        columns = ("state", "endorsed", "taint", "superseded_by", "revoked_ancestor")
        rows = [anchor_row(record) for record in records]
        values = [{"anchor": row["digest"]} | {f"new_{name}": row[name] for name in columns} for row in rows]
        statement = update(tables.ANCHORS).where(tables.ANCHORS.c.digest == bindparam("anchor"))
        connection.execute(statement.values({name: bindparam(f"new_{name}") for name in columns}), values)


def anchor_row(record: AnchorRecord) -> dict[str, Any]:
    """The row of an anchor."""
    made = record.registration
    return {
        "digest": made.anchor,
        "entry": record.index,
        "name": made.name,
        "kind": made.kind,
        "state": record.state,
        "text_sha256": made.text_sha256,
        "not_before": format_time(made.not_before),
        "not_after": format_time(made.not_after),
        "parents": _texts(made.parents),
        "supersedes": _texts(made.supersedes),
        "own_taint": _texts(made.taint),
        "endorsed": _texts(sorted(record.endorsed)),
        "taint": _texts(sorted(record.taint)),
        "superseded_by": record.superseded_by,
        "revoked_ancestor": record.revoked_ancestor,
    }


def registration_of(row: Row[Any]) -> Registration:
    """The registration in the row of an anchor."""
    return Registration(
        anchor=row.digest,
        name=row.name,
        kind=row.kind,
        text_sha256=row.text_sha256,
        not_before=parse_time(row.not_before),
        not_after=parse_time(row.not_after),
        parents=_list(row.parents),
        taint=_list(row.own_taint),
        supersedes=_list(row.supersedes),
    )


def override_of(row: Row[Any], prefix: str = "") -> Override:
    """The override in a row, whose columns' names begin with `prefix`."""
    columns = row._mapping
    action, scope, target, number, reason, time, expires = (
        columns[prefix + name]
        for name in ("action", "scope", "target", "number", "reason", "time", "expires")
    )
    until = None if expires is None else parse_time(expires)
    return Override(action, scope, target, number, reason, parse_time(time), until)


def labels_of(text: str) -> frozenset[str]:
    """The labels in a cell."""
    return frozenset(_list(text))


def _list(text: str) -> tuple[str, ...]:
    """The texts in a cell, or FormatError: somebody else may have written it."""
    try:
        return string_list(json.loads(text), "a cell of the registry database")
    except (ValueError, RecursionError) as error:
        raise FormatError(
            "a cell of the registry database is no list of texts", remedy="fieldprint registry rebuild"
        ) from error


def _texts(texts: Sequence[str]) -> str:
    return json.dumps(texts, separators=(",", ":")) if texts else "[]"


def _row(
    content: Promotion | Revocation | Endorsement | Override | StatusRoot,
) -> tuple[Table, dict[str, Any]]:
    """The table and the row, without its index, of an event that makes one."""
    match content:
        case Promotion():
            return tables.PROMOTIONS, {
                "anchor": content.anchor,
                "fieldprint": content.fieldprint,
                "model": content.model,
            }
        case StatusRoot():
            return tables.STATUSES, {
                "root": content.root,
                "revoked": content.count,
                "size": content.size,
                "time": format_time(content.time),
                "max_age": content.max_age,
            }
    row: dict[str, Any] = {"reason": content.reason, "time": format_time(content.time)}
    match content:
        case Revocation():
            return tables.REVOCATIONS, row | {"anchor": content.anchor}
        case Endorsement():
            return tables.ENDORSEMENTS, row | {"anchor": content.anchor, "labels": _texts(content.labels)}
        case Override():
            return tables.OVERRIDES, row | {
                "number": content.number,
                "action": content.action,
                "scope": content.scope,
                "target": content.target,
                "expires": None if content.expires is None else format_time(content.expires),
                "lifted": None,
            }


def read_registry(connection: Connection, registry: Registry, position: int) -> None:
    """Fill an empty registry with what the tables hold: as far as the log was read, without its signatures."""

    def rows(table: Table, order: str = "entry") -> Iterable[Row[Any]]:
        return connection.execute(select(table).order_by(table.c[order]))

    registry.superseded.update(
        ((row.older, row.kind), row.newer) for row in rows(tables.SUPERSESSIONS, "older")
    )
    overrides = list(rows(tables.OVERRIDES, "number"))
    registry.restore(
        position,
        ((row.entry, registration_of(row)) for row in rows(tables.ANCHORS)),
        ((row.anchor, _list(row.labels)) for row in rows(tables.ENDORSEMENTS)),
        ((row.anchor, row.entry) for row in rows(tables.PROMOTIONS)),
        (Revocation(row.anchor, row.reason, parse_time(row.time)) for row in rows(tables.REVOCATIONS)),
        overrides[-1].number if overrides else 0,
    )
    registry.overrides.update((row.number, override_of(row)) for row in overrides if row.lifted is None)
    for row in rows(tables.STATUSES):
        root = StatusRoot(row.root, row.revoked, row.size, parse_time(row.time), row.max_age)
        registry.status = (row.entry, root)
    for row in rows(tables.REFUSED):
        registry.refused.append(Refused(row.entry, row.type, row.why, row.what))
    counts = {row.type: row.number for row in rows(tables.COUNTS, "type")}
    registry.num_refused = counts.pop("refused", 0)
    registry.believed.update(counts)
