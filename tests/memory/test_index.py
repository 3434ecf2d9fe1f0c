"""The index against its slow twin: the same k, whatever is allowed; sqlite-vec's own answer for the coarse scan."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.memory import MemoryStore, naive
from fieldprint.memory.sqlite_index import CANDIDATES, CHUNK, NOWHERE, SqliteIndex, closest
from tests.memory.stores import SCATTER, memory, open_store

KINDS = ("memory", "assertion", "observation")
LABELS = ("a", "b", "c")


def fill(store: MemoryStore, count: int) -> None:
    draw = random.Random(count)
    store.add_many(
        memory(f"text {n}", *draw.sample(LABELS, draw.randint(0, 3)), kind=draw.choice(KINDS))
        for n in range(count)
    )


def slow(
    store: MemoryStore, query: str, k: int, kinds: set[str], forbidden: set[str]
) -> list[tuple[str, float]]:
    everything = list(store.iterate())
    vectors = SCATTER([each.text for each in everything]).tolist()
    allowed = {each.id for each in everything if each.kind in kinds and forbidden.isdisjoint(each.taint)}
    by_id = {each.id: vector for each, vector in zip(everything, vectors, strict=True)}
    return naive.nearest(by_id, SCATTER([query])[0].tolist(), k, allowed)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    with open_store(tmp_path_factory.mktemp("index") / "memory.db") as store:
        fill(store, 400)
        for number in range(0, 400, 7):
            store.delete(next(m.id for m in store.iterate() if m.text == f"text {number}"))
    return store


@settings(deadline=None, max_examples=40)
@given(
    query=st.text("abc", min_size=1),
    k=st.integers(1, 500),
    kinds=st.sets(st.sampled_from(KINDS)),
    forbidden=st.sets(st.sampled_from((*LABELS, "unknown"))),
)
def test_search_equals_naive(
    filled: MemoryStore, query: str, k: int, kinds: set[str], forbidden: set[str]
) -> None:
    """Exact and complete while no more are allowed than are rescored."""
    found = filled.search(query, k, kinds=kinds, forbidden=forbidden)
    expected = slow(filled, query, k, kinds, forbidden)
    assert [each.score for each in found] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert {each.memory.id for each in found} == {key for key, _ in expected}


@pytest.mark.parametrize("forbidden", [set(), {"a"}, {"a", "b"}, {"a", "b", "c"}])
def test_every_database_finds_the_k_best_that_are_allowed(store: MemoryStore, forbidden: set[str]) -> None:
    fill(store, 300)
    for query in ("one", "two"):
        found = store.search(query, 25, kinds={"memory"}, forbidden=forbidden)
        expected = slow(store, query, 25, {"memory"}, forbidden)
        assert len(found) == len(expected) > 0
        assert all(each.memory.kind == "memory" and forbidden.isdisjoint(each.memory.taint) for each in found)
        assert len({each.memory.id for each in found} & {key for key, _ in expected}) >= 0.9 * len(expected)


def test_a_needle_is_found_behind_what_is_forbidden(store: MemoryStore) -> None:
    """The k best allowed, not those of the k best that are allowed: everything nearer than the needle is tainted."""
    store.add_many([*(memory(f"near {n}", "untrusted") for n in range(300)), memory("needle")])
    vector = SCATTER(["near 0"])[0]
    assert [each.memory.text for each in store.nearest(vector, 10, forbidden=["untrusted"])] == ["needle"]
    assert store.nearest(vector, 1)[0].memory.text == "near 0"


def test_nothing_allowed_is_an_empty_answer(store: MemoryStore) -> None:
    assert store.search("anything") == []
    store.add(memory("one", "a"))
    assert store.search("one", forbidden=["a"]) == [] and store.search("one", kinds=[]) == []
    with pytest.raises(ValueError, match="at least 1"):
        store.search("one", 0)


def test_scan_equals_the_distances_of_sqlite_vec(tmp_path: Path) -> None:
    """More than a chunk, with holes and changed labels in it."""
    with open_store(tmp_path / "memory.db") as store:
        store.add_many(memory(f"text {n}", LABELS[n % 3]) for n in range(CHUNK + 500))
        first = list(store.iterate())[:40]
        for each in first[:20]:
            store.delete(each.id)
        for each in first[20:]:
            store.add_labels(each.id, ["late"])
        vector = SCATTER(["query"])[0]
        index = SqliteIndex(SCATTER.dimensions)
        with store._database.reading() as connection:
            classes = [
                number
                for (number,) in connection.exec_driver_sql(
                    "SELECT number FROM classes WHERE labels LIKE '%a%'"
                )
            ]
            numbers, distances = index.scan(connection, vector, classes)
            inside = distances < NOWHERE
            mine = dict(zip(numbers[inside].tolist(), distances[inside].tolist(), strict=True))
            marks = ",".join(map(str, classes))
            theirs = connection.exec_driver_sql(
                f"SELECT number, distance FROM coarse WHERE code MATCH vec_bit(?) AND k = 4096 AND class IN ({marks})",
                (index.codes(vector[None])[0].tobytes(),),
            ).all()
        assert mine == {number: int(distance) for number, distance in theirs} and len(mine) > 1400


def test_recall_is_high_when_more_are_allowed_than_are_rescored(tmp_path: Path) -> None:
    """Points without any structure are the hardest case: every vector is about as far away as every other."""
    with open_store(tmp_path / "memory.db") as store:
        store.add_many((memory(f"text {n}") for n in range(2 * CANDIDATES + 1000)), batch_size=5000)
        texts = [f"query {n}" for n in range(20)]
        vectors = SCATTER([f"text {n}" for n in range(2 * CANDIDATES + 1000)])
        hits = []
        for text, vector in zip(texts, SCATTER(texts), strict=True):
            tenth = np.sort(vectors @ vector)[-10]
            hits += [each.score >= tenth - 1e-6 for each in store.search(text, 10)]
        assert np.mean(hits) > 0.9


@given(st.lists(st.one_of(st.integers(0, 300), st.just(int(NOWHERE))), max_size=200), st.integers(1, 250))
def test_closest_equals_sorting(distances: list[int], count: int) -> None:
    given_ = np.array(distances, np.uint16)
    order = sorted((d, i) for i, d in enumerate(distances) if d < NOWHERE)[:count]
    assert closest(given_, count).tolist() == sorted(i for _, i in order)


@pytest.mark.parametrize("dimensions", [1, 8, 63, 64, 65, 256])
def test_codes_are_the_signs(dimensions: int) -> None:
    vectors = np.random.default_rng(1).standard_normal((5, dimensions)).astype(np.float32)
    bits = np.unpackbits(SqliteIndex(dimensions).codes(vectors), axis=1, bitorder="little")
    assert (bits[:, :dimensions] == (vectors > 0)).all() and not bits[:, dimensions:].any()
