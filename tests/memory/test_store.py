"""The store on both databases: adding, deriving, labelling, deleting; what is refused, also by the database itself."""

import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from fieldprint.errors import FieldprintError, IntegrityError
from fieldprint.memory import Encoder, Memory, MemoryStore, default_encoder
from tests.memory.stores import SCATTER, memory, open_store, scatter


def test_what_is_added_is_there_again(store: MemoryStore) -> None:
    first = memory("A falcon.\n\tIt is called Ada. 🦅", "pii", "untrusted", kind="assertion")
    assert store.add(first) == first == store.get(first.id)
    assert list(store.iterate()) == [first] and store.count() == 1
    assert store.get("00" * 32) is None


def test_a_derived_memory_has_the_labels_of_all_its_parents(store: MemoryStore) -> None:
    one, two = store.add(memory("one", "a")), store.add(memory("two", "b"))
    made = store.derive("both", [one.id, two.id], source="test", taint=["c"])
    assert made.taint == ("a", "b", "c") and made.parents == tuple(sorted((one.id, two.id)))
    again = store.derive("of both", [made.id], source="test")
    assert again.taint == made.taint
    assert store.ancestors(again.id) == {made.id, one.id, two.id}


def test_claimed_parents_cannot_be_stripped_of_labels(store: MemoryStore) -> None:
    """The labels come from the store, whatever the caller's object says of its parents."""
    one = store.add(memory("one", "a"))
    assert store.add(memory("from one", parents=[one.id])).taint == ("a",)


def test_unknown_parents_are_refused_unless_the_registry_knows_them(store: MemoryStore) -> None:
    anchor = "ab" * 32
    with pytest.raises(FieldprintError, match="its labels are not known"):
        store.derive("from an anchor", [anchor], source="test")
    assert store.count() == 0
    made = store.derive("from an anchor", [anchor], source="test", anchors={anchor: ["x"]})
    assert made.taint == ("x",) and store.ancestors(made.id) == {anchor}
    with pytest.raises(FieldprintError, match="has a parent"):
        store.derive("from nothing", [], source="test")


def test_a_memory_that_was_named_as_an_anchor_is_refused(store: MemoryStore) -> None:
    """Otherwise a child that was stored first would lack the labels of its parent."""
    late = memory("late", "a")
    store.derive("early", [late.id], source="test", anchors={late.id: []})
    with pytest.raises(FieldprintError, match="as an anchor"):
        store.add(late)


def test_a_later_label_reaches_every_descendant(store: MemoryStore) -> None:
    one = store.add(memory("one"))
    line = [store.derive("two", [one.id], source="test")]
    for name in ("three", "four"):
        line.append(store.derive(name, [line[-1].id], source="test"))
    aside = store.add(memory("aside"))
    both = store.derive("both", [aside.id, line[1].id], source="test")
    assert store.add_labels(one.id, ["late"]).taint == ("late",)
    for each in (*line, both):
        found = store.get(each.id)
        assert found is not None and found.taint == ("late",)
    assert store.get(aside.id) == aside
    assert not store.search("four", 1, forbidden=["late"])[0].memory.taint
    with pytest.raises(FieldprintError, match="no memory"):
        store.add_labels("00" * 32, ["late"])


def test_adding_again_joins_the_labels_and_reaches_descendants(store: MemoryStore) -> None:
    one = store.add(memory("one", "a"))
    made = store.derive("made", [one.id], source="test")
    added = store.add_many([memory("one", "b"), memory("one", "c")])
    assert added == type(added)((), 2)
    assert {store.get(one.id), store.get(made.id)} == {
        replace(one, taint=("a", "b", "c")),
        replace(made, taint=("a", "b", "c")),
    }


def test_the_same_text_keeps_its_labels_under_another_source(store: MemoryStore) -> None:
    store.add(memory("poison", "untrusted"))
    assert store.add(replace(memory("poison"), source="owner")).taint == ("untrusted",)


def test_deleting_takes_text_and_vector_and_leaves_the_labels(store: MemoryStore) -> None:
    one = store.add(memory("secret", "pii"))
    made = store.derive("made", [one.id], source="test")
    assert store.delete(one.id) and not store.delete(one.id)
    assert store.get(one.id) is None and list(store.iterate()) == [made] and store.count() == 1
    assert [found.memory for found in store.search("secret", 5)] == [made]
    with store._database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM embeddings")).scalar_one() == 1
        assert connection.execute(text("SELECT text, source FROM memories ORDER BY number")).first() == (
            None,
            None,
        )
    assert store.add(memory("secret")).taint == ("pii",)  # it comes again, without its label
    assert store.search("secret", 1)[0].memory.id == one.id
    assert store.add(replace(memory("secret"), source="owner")).taint == ("pii",)


def test_what_is_there_needs_no_labels_of_its_anchors_again(store: MemoryStore) -> None:
    made = store.derive("made", ["ab" * 32], source="test", anchors={"ab" * 32: ["x"]})
    assert store.add(replace(made, taint=())) == made


def test_preview_writes_nothing(store: MemoryStore) -> None:
    one = store.add(memory("one", "a"))
    made = memory("made", parents=[one.id])
    assert store.preview(made).taint == ("a",)
    assert store.get(made.id) is None and store.count() == 1


def test_a_run_that_was_stopped_is_resumed(url: str) -> None:
    asked: list[str] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        if "text 25" in texts and len(asked) < 40:
            raise ConnectionError
        return scatter(texts)

    wanted = [memory(f"text {number}", "bulk") for number in range(50)]
    seen: list[int] = []
    with open_store(url, replace(SCATTER, encode=encode)) as store:
        with pytest.raises(ConnectionError):
            store.add_many(wanted, batch_size=10)
        assert store.count() == 20
        asked.extend(["resumed"] * 40)
        added = store.add_many(wanted, batch_size=10, progress=seen.append)
        assert (len(added.new), added.known) == (30, 20) and seen == [10, 20, 30, 40, 50]
        assert list(store.iterate(batch_size=7)) == wanted
    assert sum(each == "text 3" for each in asked) == 1


def test_a_batch_is_stored_whole_or_not_at_all(store: MemoryStore) -> None:
    with pytest.raises(FieldprintError):
        store.add_many([memory("one"), memory("two", parents=["cd" * 32])])
    assert store.count() == 0


def test_filters_of_count_and_iterate(store: MemoryStore) -> None:
    store.add_many([memory("one", "a"), memory("two", "b", kind="memory"), memory("three", "a", "b")])
    assert store.count(forbidden=["b"]) == 1 and store.count(kinds=["memory"]) == 1
    assert [each.text for each in store.iterate(kinds=["observation"], forbidden=["b"])] == ["one"]


def test_another_encoder_is_refused(url: str) -> None:
    with open_store(url) as store:
        store.add(memory("one"))
    others = (
        default_encoder(),
        replace(SCATTER, name="other"),
        replace(SCATTER, digest="00" * 32),
        replace(SCATTER, encode=lambda texts: -scatter(texts)),  # the same name, and not the same
    )
    for other in others:
        with pytest.raises(FieldprintError, match="vectors are of the encoder scatter"):
            open_store(url, other)
    with MemoryStore(url, SCATTER) as store:
        assert store.count() == 1


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FieldprintError, match="no memory store at"):
        MemoryStore(str(tmp_path / "none.db"), SCATTER)
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "empty.db").touch()
    with pytest.raises(FieldprintError, match="is no memory store"):
        MemoryStore(str(tmp_path / "empty.db"), SCATTER)


@pytest.mark.parametrize("create", [False, True])
def test_what_is_no_database_is_named(tmp_path: Path, create: bool) -> None:
    (tmp_path / "notes.txt").write_text("no database, " * 1000)
    for url in (str(tmp_path / "notes.txt"), f"postgresql://nobody@/none?host={tmp_path}"):
        with pytest.raises(FieldprintError, match="the memory store cannot be"):
            MemoryStore(url, SCATTER, create=create)


def test_a_new_file_is_the_owners_alone(tmp_path: Path) -> None:
    with open_store(tmp_path / "memory.db") as store:
        store.add(memory("secret"))
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_deleted_memory_gets_no_label(store: MemoryStore) -> None:
    one = store.add(memory("one"))
    store.delete(one.id)
    with pytest.raises(FieldprintError, match="no memory"):
        store.add_labels(one.id, ["late"])
    assert store.add(one).taint == ()


@pytest.mark.parametrize("wrong", ["mysql://host/db", "http://host", "://"])
def test_other_databases_are_refused(wrong: str) -> None:
    with pytest.raises(FieldprintError):
        MemoryStore(wrong, SCATTER, create=True)


def test_postgresql_without_pgvector_says_what_to_do(postgres_url: str) -> None:
    with pytest.raises(FieldprintError, match=r"has no pgvector.*Install pgvector"):
        open_store(postgres_url)


FORGERIES = {
    "a label taken away": (
        "UPDATE memories SET class = (SELECT number FROM classes WHERE labels = '[]' AND kind = 'observation') WHERE number = 2",
        "keeps its kind and every label",
    ),
    "another kind": (
        "UPDATE memories SET class = (SELECT number FROM classes WHERE kind = 'memory' AND labels LIKE '%z%') WHERE number = 1",
        "keeps its kind and every label",
    ),
    "another number": ("UPDATE memories SET number = number + 100", "what a memory is does not change"),
    "another time": ("UPDATE memories SET time = time + 1", "what a memory is does not change"),
    "a memory removed": ("DELETE FROM memories", "leaves its labels behind"),
    "lineage removed": ("DELETE FROM lineage", "lineage does not change"),
    "lineage changed": ("UPDATE lineage SET child = 1", "lineage does not change"),
    "labels of a class changed": ("UPDATE classes SET labels = '[]'", "a class does not change"),
    "a class removed": ("DELETE FROM classes", "a class does not change"),
    "a child without its parent's label": (
        "INSERT INTO lineage SELECT 1, id FROM memories WHERE number = 2",
        "has every label of its parents",
    ),
    "a label that the child lacks": (
        "UPDATE memories SET class = (SELECT number FROM classes WHERE labels LIKE '%more%') WHERE number = 2",
        "has every label of its parents",
    ),
    "a parent after its child": (
        "INSERT INTO memories SELECT 50, parent, 1, parent, 1, 'x', 'x' FROM lineage WHERE child = 6",
        "is there before what was derived",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_the_database_itself_refuses(store: MemoryStore, forgery: str) -> None:
    tainted = memory("tainted", "a")
    store.add_many(
        [memory("clean"), tainted, memory("other", "a", "more"), memory("fact", "z", kind="memory")]
    )
    store.derive("made", [tainted.id], source="test")
    store.derive("from an anchor", ["ab" * 32], source="test", anchors={"ab" * 32: ()})
    before = list(store.iterate())
    statement, said = FORGERIES[forgery]
    with pytest.raises(FieldprintError, match=said), store._database.writing() as connection:
        connection.execute(text(statement))
    assert list(store.iterate()) == before


def test_a_text_that_was_changed_in_the_database_is_found_out(store: MemoryStore) -> None:
    one = store.add(memory("I may read."))
    with store._database.writing() as connection:
        connection.execute(text("UPDATE memories SET text = 'I may write.'"))
    for ask in (lambda: store.get(one.id), lambda: store.search("I may", 1), lambda: list(store.iterate())):
        with pytest.raises(IntegrityError, match="was changed there"):
            ask()


def together(*tasks: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def run(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_writers_side_by_side_lose_nothing_and_no_label(url: str) -> None:
    with open_store(url) as one, open_store(url) as two:
        root = one.add(memory("root"))

        def add(store: MemoryStore, name: str) -> None:
            for number in range(10):
                store.add_many([memory(f"shared {number}", name), memory(f"{name} {number}")])
                store.derive(f"from root {name} {number}", [root.id], source="test")

        def label() -> None:
            for number in range(10):
                two.add_labels(root.id, [f"l{number}"])

        together(lambda: add(one, "a"), lambda: add(two, "b"), label)
        found = list(one.iterate())
    labels = tuple(f"l{number}" for number in range(10))
    assert len(found) == 1 + 10 + 20 + 20
    assert {each.taint for each in found if each.text.startswith("shared")} == {("a", "b")}
    assert {each.taint for each in found if "root" in each.text} == {labels}


def test_any_callable_encodes(tmp_path: Path) -> None:
    letters = Encoder("letters", "11" * 32, 26, lambda texts: np.array([[t.count(chr(97 + i)) + 0.01 for i in range(26)] for t in texts]))  # fmt: skip
    with open_store(tmp_path / "letters.db", letters) as store:
        store.add_many([memory("zzz"), memory("aaa"), memory("aab")])
        assert [found.memory.text for found in store.search("aaaa", 2)] == ["aaa", "aab"]


def test_memories_are_found_by_meaning(tmp_path: Path) -> None:
    told = [
        "The user keeps a falcon called Ada.",
        "Income tax is due in April.",
        "The deploy key is rotated weekly.",
    ]
    with open_store(tmp_path / "meaning.db", default_encoder()) as store:
        store.add_many(memory(each) for each in told)
        assert store.search("Which bird does the user own?", 1)[0].memory.text == told[0]
        assert store.search("when do I pay taxes", 1)[0].memory.text == told[1]


def test_a_memory_keeps_its_type(store: MemoryStore) -> None:
    store.add(memory("one"))
    (found,) = store.search("one", 3)
    assert isinstance(found.memory, Memory) and found.score == pytest.approx(1, abs=1e-5)
    assert found.vector.dtype == np.float32 and np.linalg.norm(found.vector) == pytest.approx(1, abs=1e-5)
