"""The status tree: what is absent can be proved absent, what is present never, and nothing survives a change."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from time import process_time
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fieldprint.errors import FormatError, VerificationError
from fieldprint.tlog.status import (
    MAX_COUNT,
    AbsenceProof,
    Neighbour,
    PresenceProof,
    StatusTree,
    status_root,
    verify_absent,
    verify_present,
)
from tests.tlog import naive, naive_status

# Few different digests, so that hits, duplicates and neighbours are common; the edges of the order are among them.
DIGESTS = st.one_of(
    st.integers(0, 24).map(lambda i: bytes([i * 10]) * 32),
    st.sampled_from([bytes(32), b"\xff" * 32, bytes(31) + b"\x01"]),
    st.binary(min_size=32, max_size=32),
)
SETS = st.sets(DIGESTS, max_size=20)


def digest(i: int) -> bytes:
    return sha256(i.to_bytes(4, "big")).digest()


def passes(check: Callable[..., None], *arguments: Any) -> int | None:
    """None if the check lets it pass, else the number of what failed."""
    try:
        check(*arguments)
    except VerificationError as error:
        return error.check
    return None


@settings(deadline=None)
@given(st.lists(DIGESTS, max_size=20), st.lists(DIGESTS, max_size=20), st.booleans())
def test_the_root_is_that_of_the_definition_in_whatever_order_digests_come(
    first: list[bytes], later: list[bytes], looked: bool
) -> None:
    tree = StatusTree(first)
    if looked:
        assert tree.root == naive_status.root(first)
    for i, value in enumerate(later):
        assert tree.add(value) == (value not in {*first, *later[:i]})
        if looked:
            assert tree.root == naive_status.root([*first, *later[: i + 1]])
    both = {*first, *later}
    assert tree.root == StatusTree(both).root == naive_status.root(both)
    assert len(tree) == len(both) and all(value in tree for value in both)


@settings(deadline=None)
@given(SETS, DIGESTS)
def test_every_absent_digest_is_provable_and_no_present_one(present: set[bytes], value: bytes) -> None:
    tree = StatusTree(present)
    if value in present:
        with pytest.raises(ValueError, match="is in the set"):
            tree.prove_absent(value)
        verify_present(value, tree.prove_present(value), tree.root, len(tree))
    else:
        with pytest.raises(ValueError, match="not in the set"):
            tree.prove_present(value)
        proof = tree.prove_absent(value)
        assert proof == naive_status.prove_absent(present, value)
        verify_absent(value, proof, tree.root, len(tree))


@settings(deadline=None)
@given(SETS, DIGESTS, DIGESTS)
def test_the_proof_for_one_digest_holds_for_another_only_if_that_is_absent(
    present: set[bytes], value: bytes, other: bytes
) -> None:
    assume(value not in present)
    tree = StatusTree(present)
    proof = tree.prove_absent(value)
    passed = passes(verify_absent, other, proof, tree.root, len(tree)) is None
    assert passed == (other not in present and tree.prove_absent(other) == proof)


@settings(deadline=None, max_examples=60)
@given(st.sets(DIGESTS, min_size=1, max_size=12), st.data())
def test_no_two_leaves_of_the_tree_make_a_present_digest_absent(
    present: set[bytes], data: st.DataObject
) -> None:
    """A prover that may use every honest path and every rank finds no proof for what is in the set."""
    tree, leaves = StatusTree(present), sorted(present)
    value = data.draw(st.sampled_from(leaves))
    paths = [Neighbour(leaf, tree.prove_present(leaf).path) for leaf in leaves]
    ends: list[Neighbour | None] = [None, *paths]
    hashed = tree.prove_present(value).tree
    for before in ends:
        for after in ends:
            for rank in range(len(leaves) + 1):
                proof = AbsenceProof(rank, before, after, hashed)
                assert passes(verify_absent, value, proof, tree.root, len(tree)) is not None


def test_neighbours_with_a_leaf_between_them_are_refused() -> None:
    """Every gap of a tree of every size up to 9 is claimed at every rank; only the gap that is there passes."""
    for size in range(10):
        leaves = [bytes([20 * i + 10]) * 32 for i in range(size)]
        tree = StatusTree(leaves)
        hashed = tree.prove_absent(bytes(32)).tree
        ends: list[Neighbour | None] = [None, *(Neighbour(x, tree.prove_present(x).path) for x in leaves)]
        for value in (bytes([20 * i + 1]) * 32 for i in range(size + 1)):
            passed = [
                proof
                for before in ends
                for after in ends
                for rank in range(size + 1)
                if passes(
                    verify_absent, value, proof := AbsenceProof(rank, before, after, hashed), tree.root, size
                )
                is None
            ]
            assert passed == [tree.prove_absent(value)]


def flipped(value: bytes, bit: int) -> bytes:
    position = bit % (8 * len(value))
    return bytes(b ^ (1 << position % 8 if i == position // 8 else 0) for i, b in enumerate(value))


def paths_of(path: tuple[bytes, ...], bit: int) -> Iterator[tuple[bytes, ...]]:
    """The path changed: a hash in it flipped, shortened or dropped, one too many, two exchanged."""
    for i in range(len(path)):
        yield (*path[:i], flipped(path[i], bit), *path[i + 1 :])
        yield (*path[:i], path[i][:-1], *path[i + 1 :])
        yield (*path[:i], *path[i + 1 :])
        if i and path[i] != path[i - 1]:
            yield (*path[: i - 1], path[i], path[i - 1], *path[i + 1 :])
    yield (*path, bytes(32))


def neighbours_of(neighbour: Neighbour | None, bit: int) -> Iterator[Neighbour | None]:
    if neighbour is None:
        yield Neighbour(digest(bit), ())
        return
    yield None
    yield replace(neighbour, digest=flipped(neighbour.digest, bit))
    yield replace(neighbour, digest=neighbour.digest[:-1])
    for path in paths_of(neighbour.path, bit):
        yield replace(neighbour, path=path)


def absence_proofs_of(proof: AbsenceProof, bit: int) -> Iterator[AbsenceProof]:
    for rank in (-1, proof.rank - 1, proof.rank + 1, proof.rank + 2, 2 * proof.rank + 3, MAX_COUNT + 1):
        yield replace(proof, rank=rank)
    yield replace(proof, tree=flipped(proof.tree, bit))
    yield replace(proof, tree=proof.tree[:-1])
    for changed in neighbours_of(proof.before, bit):
        yield replace(proof, before=changed)
    for changed in neighbours_of(proof.after, bit):
        yield replace(proof, after=changed)
    if proof.before != proof.after:
        yield replace(proof, before=proof.after, after=proof.before)


@settings(deadline=None)
@given(SETS, DIGESTS, st.integers(0, 255))
def test_any_change_of_absence_proof_root_or_count_is_refused(
    present: set[bytes], value: bytes, bit: int
) -> None:
    assume(value not in present)
    tree = StatusTree(present)
    proof, root, count = tree.prove_absent(value), tree.root, len(tree)
    for changed in absence_proofs_of(proof, bit):
        assert passes(verify_absent, value, changed, root, count) is not None, changed
    for other in (flipped(root, bit), root[:-1], b"", proof.tree):
        assert passes(verify_absent, value, proof, other, count) in (1, 2)
    for other_count in {-1, 0, count - 1, count + 1, 2 * count, 2**53, 2**64} - {count}:
        assert passes(verify_absent, value, proof, root, other_count) in (1, 2)
    for other in (value[:-1], value + b"\0", b""):
        assert passes(verify_absent, other, proof, root, count) == 1


@settings(deadline=None)
@given(st.sets(DIGESTS, min_size=1, max_size=20), st.integers(0, 255), st.data())
def test_any_change_of_presence_proof_root_count_or_digest_is_refused(
    present: set[bytes], bit: int, data: st.DataObject
) -> None:
    tree = StatusTree(present)
    value = data.draw(st.sampled_from(sorted(present)))
    proof, root, count = tree.prove_present(value), tree.root, len(tree)
    changes = [replace(proof, index=i) for i in range(-2, count + 3) if i != proof.index]
    changes += [replace(proof, path=path) for path in paths_of(proof.path, bit)]
    changes += [replace(proof, tree=tree) for tree in (flipped(proof.tree, bit), proof.tree[:-1])]
    for changed in changes:
        assert passes(verify_present, value, changed, root, count) is not None
    for other in (flipped(root, bit), root[:-1]):
        assert passes(verify_present, value, proof, other, count) in (1, 2)
    for other_count in {-1, 0, count - 1, count + 1, 2**53} - {count}:
        assert passes(verify_present, value, proof, root, other_count) in (1, 2)
    for other in (flipped(value, bit), value[:-1]):
        assert passes(verify_present, other, proof, root, count) in (1, 3)


def test_the_empty_tree_proves_everything_absent() -> None:
    tree = StatusTree()
    assert tree.root == status_root(sha256().digest(), 0) and len(tree) == 0
    proof = tree.prove_absent(digest(1))
    assert proof == AbsenceProof(0, None, None, sha256().digest())
    verify_absent(digest(1), proof, tree.root, 0)
    another = replace(proof, tree=bytes(32))
    assert passes(verify_absent, digest(1), another, status_root(bytes(32), 0), 0) == 2
    assert passes(verify_present, digest(1), PresenceProof(0, (), proof.tree), tree.root, 0) == 3


def test_one_leaf_has_two_edges() -> None:
    leaf = b"\x80" * 32
    tree = StatusTree([leaf])
    below, above = tree.prove_absent(bytes(32)), tree.prove_absent(b"\xff" * 32)
    assert (below.rank, below.before, below.after) == (0, None, Neighbour(leaf, ()))
    assert (above.rank, above.before, above.after) == (1, Neighbour(leaf, ()), None)
    verify_absent(bytes(32), below, tree.root, 1)
    verify_absent(b"\xff" * 32, above, tree.root, 1)
    assert passes(verify_absent, b"\xff" * 32, below, tree.root, 1) == 3
    assert passes(verify_absent, bytes(32), above, tree.root, 1) == 3
    assert (
        passes(verify_absent, leaf, below, tree.root, 1)
        == passes(verify_absent, leaf, above, tree.root, 1)
        == 3
    )


def test_a_proof_of_an_older_root_does_not_hold_under_a_newer_one() -> None:
    tree = StatusTree(map(digest, range(10)))
    revoked, old_root = digest(99), tree.root
    proof = tree.prove_absent(revoked)
    tree.add(revoked)
    verify_absent(revoked, proof, old_root, 10)
    assert passes(verify_absent, revoked, proof, tree.root, 11) == 2


def test_a_node_is_no_leaf_and_a_root_is_no_node() -> None:
    """What is hashed has another first byte in each place, so that none can stand for another."""
    a, b = sorted(map(digest, (1, 2)))
    tree = StatusTree([a, b])
    (sibling,) = tree.prove_present(a).path
    assert sibling == sha256(b"\0" + b).digest()
    inner = naive.mth((a, b))
    assert len({tree.root, inner, sha256(b"\0" + inner).digest()}) == 3
    assert passes(verify_present, inner, PresenceProof(0, (), inner), status_root(inner, 1), 1) == 3


@pytest.mark.parametrize("value", [b"", bytes(31), bytes(33), b"ab" * 32])
def test_what_is_no_digest_is_refused(value: bytes) -> None:
    tree = StatusTree([digest(1)])
    for attempt in (lambda: StatusTree([value]), lambda: tree.add(value), lambda: tree.prove_absent(value)):
        with pytest.raises(ValueError, match="32 bytes"):
            attempt()
    assert value not in tree and "text" not in tree and len(tree) == 1


@settings(deadline=None)
@given(SETS, DIGESTS)
def test_proofs_round_trip(present: set[bytes], value: bytes) -> None:
    tree = StatusTree(present)
    if value in present:
        found = tree.prove_present(value)
        assert PresenceProof.from_bytes(found.to_bytes()) == found
    else:
        proof = tree.prove_absent(value)
        assert AbsenceProof.from_bytes(proof.to_bytes()) == proof


def test_the_largest_proof_is_parsed() -> None:
    largest = Neighbour(b"\xff" * 32, (b"\xee" * 32,) * 53)
    proof = AbsenceProof(MAX_COUNT, largest, largest, bytes(32))
    assert AbsenceProof.from_bytes(proof.to_bytes()) == proof
    for changed in (
        replace(proof, rank=MAX_COUNT + 1),
        replace(proof, after=replace(largest, path=(*largest.path, bytes(32)))),
    ):
        with pytest.raises(FormatError):
            AbsenceProof.from_bytes(json.dumps(_plain(changed), separators=(",", ":")).encode())


def _plain(proof: AbsenceProof) -> dict[str, Any]:
    def written(side: Neighbour | None) -> Any:
        return side and {"digest": side.digest.hex(), "path": [value.hex() for value in side.path]}

    return {
        "after": written(proof.after),
        "before": written(proof.before),
        "rank": proof.rank,
        "tree": proof.tree.hex(),
        "type": "absence",
        "v": 1,
    }


ABSENT = StatusTree(map(digest, range(3))).prove_absent(digest(7))
FIELDS = _plain(ABSENT)


def dumped(fields: object, **options: Any) -> bytes:
    return json.dumps(fields, **{"separators": (",", ":"), "sort_keys": True} | options).encode()


def test_the_written_fields_are_the_proof() -> None:
    assert dumped(FIELDS) == ABSENT.to_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"[" * 9999, b"\xff", b"1" * 9999, dumped(FIELDS) + b"\n", b" " + dumped(FIELDS),
        dumped(FIELDS, separators=(", ", ": ")), dumped(dict(reversed(FIELDS.items())), sort_keys=False),
        dumped(FIELDS | {"more": 1}), dumped({k: v for k, v in FIELDS.items() if k != "rank"}),
        dumped(FIELDS | {"v": 2}), dumped(FIELDS | {"v": True}), dumped(FIELDS | {"v": 1.0}),
        dumped(FIELDS | {"type": "presence"}), dumped(FIELDS | {"type": ["absence"]}),
        dumped(FIELDS | {"rank": True}), dumped(FIELDS | {"rank": -1}), dumped(FIELDS | {"rank": 1.0}),
        dumped(FIELDS | {"rank": "1"}), dumped(FIELDS | {"rank": 10**40}), dumped(FIELDS | {"rank": float("nan")}),
        dumped(FIELDS | {"tree": FIELDS["tree"].upper()}), dumped(FIELDS | {"tree": FIELDS["tree"][2:]}),
        dumped(FIELDS | {"tree": " " + FIELDS["tree"][1:]}), dumped(FIELDS | {"tree": None}),
        dumped(FIELDS | {"tree": FIELDS["tree"][:-2] + "  "}), dumped(FIELDS | {"tree": "\ud800" * 64}),
        dumped(FIELDS | {"after": {"digest": FIELDS["tree"]}}), dumped(FIELDS | {"after": []}),
        dumped(FIELDS | {"after": {"digest": FIELDS["tree"], "path": None}}),
        dumped(FIELDS | {"after": {"digest": FIELDS["tree"], "path": [1]}}),
        dumped(FIELDS | {"after": {"digest": FIELDS["tree"], "path": [], "x": 1}}),
        dumped(FIELDS).replace(b'"v":1', b'"v":1,"v":1'), dumped(FIELDS | {"rank": 0}).replace(b'"rank":0', b'"rank":-0'),
        dumped(FIELDS).replace(b'"absence"', b'"\\u0061bsence"'), dumped(FIELDS) + b" " * 20000,
    ],
)  # fmt: skip
def test_other_bytes_are_refused(data: bytes) -> None:
    for parse in (AbsenceProof.from_bytes, PresenceProof.from_bytes):
        with pytest.raises(FormatError):
            parse(data)


def test_a_hundred_insertions_before_the_root_is_asked_for_are_hashed_once() -> None:
    """Replaying a log must not hash the tree for every revocation in it."""
    start = process_time()
    tree = StatusTree(digest(i) for i in range(4000))
    first = tree.root
    once = process_time() - start
    for i in range(4000, 12000):
        tree.add(digest(i))
    assert tree.root == naive_status.root([digest(i) for i in range(12000)]) != first
    assert process_time() - start < 60 * once + 1
