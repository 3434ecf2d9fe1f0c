"""The questions that are asked often, put together once: building a query costs more than answering it."""

from typing import Any

from sqlalchemy import Column, Select, String, and_, bindparam, select, true

from fieldprint.registry.tables import (
    ANCHORS,
    LINEAGE,
    OVERRIDES,
    POSITION,
    PROMOTIONS,
    REVOCATIONS,
    SUPERSESSIONS,
)


def _standing_query() -> Select[Any]:
    """A row for each override that was not lifted, or one row; the rest of it is the same in all of them.

    One statement sees one state of the database, and costs one way there and back: columns of overrides begin with "override_".
    """
    anchor, kind = bindparam("anchor", type_=String), bindparam("kind", type_=String)
    asked = select(anchor.label("asked")).subquery()
    return select(
        ANCHORS,
        REVOCATIONS.c.reason.label("revoked_reason"),
        REVOCATIONS.c.time.label("revoked_time"),
        SUPERSESSIONS.c.newer.label("newer"),
        POSITION.c.policy.label("made_with"),
        *(column.label(f"override_{column.name}") for column in OVERRIDES.c),
    ).select_from(
        asked.outerjoin(ANCHORS, ANCHORS.c.digest == anchor)
        .outerjoin(REVOCATIONS, REVOCATIONS.c.anchor == anchor)
        .outerjoin(SUPERSESSIONS, and_(SUPERSESSIONS.c.older == anchor, SUPERSESSIONS.c.kind == kind))
        .outerjoin(POSITION, true())
        .outerjoin(OVERRIDES, OVERRIDES.c.lifted.is_(None))
    )


def _walk_query(here: Column[str], there: Column[str]) -> Select[Any]:
    """Everybody who is reached by steps from `here` to `there`, unsorted: else SQLite goes through all anchors in order."""
    walk = select(there.label("digest")).where(here == bindparam("anchor")).cte(recursive=True)
    walk = walk.union(select(there).join(walk, here == walk.c.digest))
    return select(ANCHORS.c.entry, ANCHORS.c.digest).join(walk, ANCHORS.c.digest == walk.c.digest)


def with_events(anchors: Select[Any]) -> Select[Any]:
    """These anchors, the newest first, with their revocation in columns: a row for each promotion, or one row."""
    chosen = anchors.subquery()
    return (
        select(
            chosen,
            REVOCATIONS.c.reason.label("revoked_reason"),
            REVOCATIONS.c.time.label("revoked_time"),
            PROMOTIONS.c.entry.label("promotion"),
        )
        .select_from(
            chosen.outerjoin(REVOCATIONS, REVOCATIONS.c.anchor == chosen.c.digest).outerjoin(
                PROMOTIONS, PROMOTIONS.c.anchor == chosen.c.digest
            )
        )
        .order_by(chosen.c.entry.desc(), PROMOTIONS.c.entry)
    )


STANDING = _standing_query()
ANCESTORS = _walk_query(LINEAGE.c.child, LINEAGE.c.parent)
DESCENDANTS = _walk_query(LINEAGE.c.parent, LINEAGE.c.child)
IN_FORCE = select(OVERRIDES).where(OVERRIDES.c.lifted.is_(None)).order_by(OVERRIDES.c.number)
BY_DIGEST = with_events(select(ANCHORS).where(ANCHORS.c.digest == bindparam("anchor")))
ACTIVE = with_events(
    select(ANCHORS)
    .where(
        ANCHORS.c.kind == bindparam("kind"), ANCHORS.c.name == bindparam("name"), ANCHORS.c.state == "active"
    )
    .order_by(ANCHORS.c.entry.desc())
    .limit(1)
)
