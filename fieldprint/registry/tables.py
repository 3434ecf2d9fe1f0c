"""The registry's tables: a view of the log, which may be dropped and filled again.

position      one row: the log, how far it was read and the tree's root there, and the policy that decided
anchors       what became of each registered anchor; lists are canonical JSON, times as in the statements
lineage       child and parent
promotions    by index in the log
revocations   of registered anchors and of others
supersessions the older anchor, registered or not, for one kind; and who took its place
endorsements  of registered anchors and of others
overrides     with the index of the entry that lifted each
statuses      the status roots
refused       the last thousand events that were not believed
counts        events by type, and all that were refused as the type `refused`
"""

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text

VERSION = 1
METADATA = MetaData()
NUMBER = BigInteger().with_variant(Integer, "sqlite")


def _entry() -> Column[int]:
    return Column("entry", NUMBER, primary_key=True, autoincrement=False)


def _digest(name: str, *, key: bool = False, empty: bool = False) -> Column[str]:
    return Column(name, String(64), primary_key=key, nullable=empty)


POSITION = Table(
    "registry_position",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("origin", Text, nullable=False),
    Column("next", NUMBER, nullable=False),
    _digest("root"),
    _digest("policy"),
)
ANCHORS = Table(
    "registry_anchors",
    METADATA,
    _digest("digest", key=True),
    Column("entry", NUMBER, nullable=False, unique=True),
    Column("name", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    _digest("text_sha256"),
    Column("not_before", String(20), nullable=False),
    Column("not_after", String(20), nullable=False),
    Column("parents", Text, nullable=False),
    Column("supersedes", Text, nullable=False),
    Column("own_taint", Text, nullable=False),
    Column("endorsed", Text, nullable=False),
    Column("taint", Text, nullable=False),
    _digest("superseded_by", empty=True),
    _digest("revoked_ancestor", empty=True),
)
Index("registry_anchors_by_name", ANCHORS.c.kind, ANCHORS.c.name, ANCHORS.c.state, ANCHORS.c.entry)
Index("registry_anchors_by_state", ANCHORS.c.state, ANCHORS.c.kind, ANCHORS.c.entry)
LINEAGE = Table("registry_lineage", METADATA, _digest("child", key=True), _digest("parent", key=True))
Index("registry_lineage_by_parent", LINEAGE.c.parent, LINEAGE.c.child)
PROMOTIONS = Table(
    "registry_promotions", METADATA, _entry(), _digest("anchor"), _digest("fieldprint"), _digest("model")
)
Index("registry_promotions_by_anchor", PROMOTIONS.c.anchor, PROMOTIONS.c.entry)
REVOCATIONS = Table(
    "registry_revocations",
    METADATA,
    _digest("anchor", key=True),
    Column("entry", NUMBER, nullable=False, unique=True),
    Column("reason", Text, nullable=False),
    Column("time", String(20), nullable=False),
)
SUPERSESSIONS = Table(
    "registry_supersessions",
    METADATA,
    _digest("older", key=True),
    Column("kind", String(16), primary_key=True),
    _digest("newer"),
)
ENDORSEMENTS = Table(
    "registry_endorsements",
    METADATA,
    _entry(),
    _digest("anchor"),
    Column("labels", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("time", String(20), nullable=False),
)
Index("registry_endorsements_by_anchor", ENDORSEMENTS.c.anchor)
OVERRIDES = Table(
    "registry_overrides",
    METADATA,
    Column("number", NUMBER, primary_key=True, autoincrement=False),
    Column("entry", NUMBER, nullable=False, unique=True),
    Column("action", String(8), nullable=False),
    Column("scope", String(8), nullable=False),
    Column("target", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("time", String(20), nullable=False),
    Column("expires", String(20)),
    Column("lifted", NUMBER),
)
Index("registry_overrides_in_force", OVERRIDES.c.lifted, OVERRIDES.c.number)
STATUSES = Table(
    "registry_statuses",
    METADATA,
    _entry(),
    _digest("root"),
    Column("revoked", NUMBER, nullable=False),
    Column("size", NUMBER, nullable=False),
    Column("time", String(20), nullable=False),
    Column("max_age", Integer, nullable=False),
)
REFUSED = Table(
    "registry_refused",
    METADATA,
    _entry(),
    Column("type", String(16), nullable=False),
    Column("why", String(32), nullable=False),
    Column("what", Text, nullable=False),
)
COUNTS = Table(
    "registry_counts",
    METADATA,
    Column("type", String(16), primary_key=True),
    Column("number", NUMBER, nullable=False),
)
