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
    """One row, whether anything is known of the anchor or not: what must belong together is read at once."""
    anchor, kind = bindparam("anchor", type_=String), bindparam("kind", type_=String)
    asked = select(anchor.label("asked")).subquery()
    return select(
        ANCHORS,
        REVOCATIONS.c.reason.label("revoked_reason"),
        REVOCATIONS.c.time.label("revoked_time"),
        SUPERSESSIONS.c.newer.label("newer"),
        POSITION.c.policy.label("made_with"),
    ).select_from(
        asked.outerjoin(ANCHORS, ANCHORS.c.digest == anchor)
        .outerjoin(REVOCATIONS, REVOCATIONS.c.anchor == anchor)
        .outerjoin(SUPERSESSIONS, and_(SUPERSESSIONS.c.older == anchor, SUPERSESSIONS.c.kind == kind))
        .outerjoin(POSITION, true())
    )


def _walk_query(here: Column[str], there: Column[str]) -> Select[Any]:
    """Everybody who is reached by steps from `here` to `there`, unsorted: else SQLite goes through all anchors in order."""
    walk = select(there.label("digest")).where(here == bindparam("anchor")).cte(recursive=True)
    walk = walk.union(select(there).join(walk, here == walk.c.digest))
    return select(ANCHORS.c.entry, ANCHORS.c.digest).join(walk, ANCHORS.c.digest == walk.c.digest)


STANDING = _standing_query()
ANCESTORS = _walk_query(LINEAGE.c.child, LINEAGE.c.parent)
DESCENDANTS = _walk_query(LINEAGE.c.parent, LINEAGE.c.child)
IN_FORCE = select(OVERRIDES).where(OVERRIDES.c.lifted.is_(None)).order_by(OVERRIDES.c.number)
BY_DIGEST = select(ANCHORS).where(ANCHORS.c.digest == bindparam("anchor"))
PROMOTED = (
    select(PROMOTIONS.c.entry).where(PROMOTIONS.c.anchor == bindparam("anchor")).order_by(PROMOTIONS.c.entry)
)
ACTIVE = (
    select(ANCHORS)
    .where(
        ANCHORS.c.kind == bindparam("kind"), ANCHORS.c.name == bindparam("name"), ANCHORS.c.state == "active"
    )
    .order_by(ANCHORS.c.entry.desc())
    .limit(1)
)
REVOKED = select(REVOCATIONS).where(REVOCATIONS.c.anchor == bindparam("anchor"))
