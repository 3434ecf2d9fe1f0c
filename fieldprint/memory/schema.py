"""The tables of a store, and the triggers that refuse what the store would never do.

    classes     every combination of kind and labels that some memory has; labels as canonical JSON
    memories    one row for each memory that ever was; a deleted one has no text
    lineage     child and parent, also where the parent is an anchor or was deleted
    settings    the encoder, and the version of these tables

A child's number is greater than its parents', which were there before it. Rows are never deleted and
classes never change: what was tainted once is known to be for as long as the database lives.
"""

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

VERSION = "1"
METADATA = MetaData()
NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows where the type is INTEGER

SETTINGS = Table(
    "settings", METADATA, Column("name", String(32), primary_key=True), Column("value", Text, nullable=False)
)
CLASSES = Table(
    "classes",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("labels", Text, nullable=False),
    UniqueConstraint("kind", "labels"),
)
MEMORIES = Table(
    "memories",
    METADATA,
    Column("number", NUMBER, primary_key=True, autoincrement=False),
    Column("id", LargeBinary(32), nullable=False, unique=True),
    Column("class", Integer, ForeignKey("classes.number"), nullable=False),
    Column("text_sha256", LargeBinary(32), nullable=False, index=True),
    Column("time", BigInteger, nullable=False),
    Column("source", String(128)),
    Column("text", Text),
)
LINEAGE = Table(
    "lineage",
    METADATA,
    Column("child", NUMBER, ForeignKey("memories.number"), primary_key=True),
    Column("parent", LargeBinary(32), primary_key=True),
)
Index("lineage_by_parent", LINEAGE.c.parent)

Missing = Callable[[str, str], str]


def _rules(missing: Missing) -> list[tuple[str, str, str, str, str]]:
    """(name, event, table, condition, what is said); missing(a, b) holds where a label of a is not in b, both not null."""
    labels = "(SELECT c.labels FROM classes c WHERE c.number = {})".format
    of_memory = (
        "(SELECT c.labels FROM classes c JOIN memories m ON m.class = c.number WHERE m.{} = {})".format
    )
    kind = "(SELECT kind FROM classes WHERE number = {})".format
    inherits = "a derived memory has every label of its parents"
    shrinks = missing(labels("OLD.class"), labels("NEW.class"))
    child_lacks = missing(labels("NEW.class"), of_memory("number", "l.child"))
    children = "SELECT 1 FROM lineage l WHERE l.parent = NEW.id"
    identity = " OR ".join(f"NEW.{name} <> OLD.{name}" for name in ("number", "id", "text_sha256", "time"))
    return [
        (
            "taint_never_shrinks",
            "UPDATE",
            "memories",
            f"{shrinks} OR {kind('OLD.class')} <> {kind('NEW.class')}",
            "a memory keeps its kind and every label",
        ),
        (
            "children_keep_up",
            "UPDATE",
            "memories",
            f"EXISTS ({children} AND {child_lacks})",
            inherits,
        ),
        (
            "parents_come_first",
            "INSERT",
            "memories",
            f"EXISTS ({children})",
            "a parent is there before what was derived from it",
        ),
        ("memories_keep_identity", "UPDATE", "memories", identity, "what a memory is does not change"),
        ("memories_stay", "DELETE", "memories", "1 = 1", "a deleted memory leaves its labels behind"),
        (
            "lineage_inherits",
            "INSERT",
            "lineage",
            missing(of_memory("id", "NEW.parent"), of_memory("number", "NEW.child")),
            inherits,
        ),
        ("lineage_is_not_changed", "UPDATE", "lineage", "1 = 1", "lineage does not change"),
        ("lineage_stays", "DELETE", "lineage", "1 = 1", "lineage does not change"),
        ("classes_are_not_changed", "UPDATE", "classes", "1 = 1", "a class does not change"),
        ("classes_stay", "DELETE", "classes", "1 = 1", "a class does not change"),
    ]


def create_tables(connection: Connection) -> None:
    """Make the tables and their triggers where they are missing."""
    METADATA.create_all(connection)
    statements = _postgres_triggers() if connection.dialect.name == "postgresql" else _sqlite_triggers()
    for statement in statements:
        connection.exec_driver_sql(statement)


def _sqlite_triggers() -> list[str]:
    # Not EXCEPT: SQLite's loses the row that an inner query of a compound one refers to.
    missing = (
        "EXISTS (SELECT 1 FROM json_each({}) a WHERE a.value NOT IN (SELECT b.value FROM json_each({}) b))"
    )
    rules = _rules(missing.format)
    return [
        f"CREATE TRIGGER IF NOT EXISTS {name} BEFORE {event} ON {table} WHEN {condition} "
        f"BEGIN SELECT RAISE(ABORT, '{said}'); END"
        for name, event, table, condition, said in rules
    ]


def _postgres_triggers() -> list[str]:
    made = []
    for name, event, table, condition, said in _rules("NOT COALESCE({1}::jsonb @> {0}::jsonb, TRUE)".format):
        row = "OLD" if event == "DELETE" else "NEW"
        made += [
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN "
            f"RAISE EXCEPTION '{said}' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN {row}; END $$",
            f"CREATE OR REPLACE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()",
        ]
    return made
