"""The Merkle tree against the recursive definitions of RFC 9162 section 2.1, which `naive.py` writes out."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.errors import VerificationError
from fieldprint.tlog import (
    CompactRange,
    leaf_hash,
    node_hash,
    prove_consistency,
    prove_inclusion,
    prove_subtree,
    tree_hash,
    verify_consistency,
    verify_inclusion,
    verify_subtree,
)
from fieldprint.tlog.merkle import is_subtree
from tests.tlog import naive
from tests.tlog.naive import mth, path, split, subproof

MOST = 40
ENTRIES = tuple(f"entry {i}".encode() for i in range(MOST))
SIZES = st.integers(1, MOST)
# Entries and roots of the test tree in the reference implementation of RFC 6962.
REFERENCE_ENTRIES = (
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
)
REFERENCE_ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def sides(index: int, size: int) -> str:
    """On which side of each split of the tree an entry lies: all that an audit path tells of index and size."""
    if size == 1:
        return ""
    k = split(size)
    return sides(index, k) + "L" if index < k else sides(index - k, size - k) + "R"


def prefix_sides(size1: int, size2: int, whole: bool = True) -> str:
    """The same for the end of a prefix: all that a consistency proof tells of the two sizes."""
    if size1 == 0:
        return "empty"
    if size1 == size2:
        return "whole" if whole else "part"
    k = split(size2)
    return (
        prefix_sides(size1, k, whole) + "L" if size1 <= k else prefix_sides(size1 - k, size2 - k, False) + "R"
    )


def read(level: int, index: int) -> bytes:
    entries = ENTRIES[index << level : (index + 1) << level]
    assert len(entries) == 1 << level, "the subtree is not complete"
    return mth(entries)


def root(size: int) -> bytes:
    return mth(ENTRIES[:size])


def flip(value: bytes, bit: int) -> bytes:
    position = bit % (8 * len(value))
    return bytes(b ^ (1 << position % 8 if i == position // 8 else 0) for i, b in enumerate(value))


def includes(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root_hash: bytes) -> bool:
    try:
        verify_inclusion(leaf, index, size, proof, root_hash)
    except VerificationError:
        return False
    return True


def consistent(size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> bool:
    try:
        verify_consistency(size1, size2, proof, root1, root2)
    except VerificationError:
        return False
    return True


@pytest.mark.parametrize("size", range(9))
def test_roots_of_the_reference_tree(size: int) -> None:
    entries = tuple(bytes.fromhex(entry) for entry in REFERENCE_ENTRIES[:size])
    hashes = {
        (level, i): mth(entries[i << level : (i + 1) << level])
        for level in range(4)
        for i in range(8 >> level)
    }
    assert tree_hash(size, lambda level, i: hashes[level, i]).hex() == REFERENCE_ROOTS[size]


@pytest.mark.parametrize("size", range(MOST + 1))
def test_root_equals_definition(size: int) -> None:
    assert tree_hash(size, read) == root(size)


@pytest.mark.parametrize("size", range(1, MOST + 1))
def test_inclusion_of_every_entry(size: int) -> None:
    for index in range(size):
        proof = prove_inclusion(index, size, read)
        assert proof == path(index, ENTRIES[:size])
        verify_inclusion(leaf_hash(ENTRIES[index]), index, size, proof, root(size))


@pytest.mark.parametrize("size2", range(MOST + 1))
def test_consistency_of_every_prefix(size2: int) -> None:
    for size1 in range(size2 + 1):
        proof = prove_consistency(size1, size2, read)
        assert proof == ([] if size1 == 0 else subproof(size1, ENTRIES[:size2], True))
        verify_consistency(size1, size2, proof, root(size1), root(size2))


@pytest.mark.parametrize("size", range(1, MOST + 1))
def test_inclusion_under_another_index_is_refused(size: int) -> None:
    for index in range(size):
        proof, leaf = prove_inclusion(index, size, read), leaf_hash(ENTRIES[index])
        for other in range(-1, size + 2):
            assert includes(leaf, other, size, proof, root(size)) == (other == index)


@settings(deadline=None, max_examples=300)
@given(st.data(), SIZES, st.integers(0, 10**6))
def test_altered_inclusion_proofs_are_refused(data: st.DataObject, size: int, bit: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof, leaf, top = prove_inclusion(index, size, read), leaf_hash(ENTRIES[index]), root(size)
    assert includes(leaf, index, size, proof, top)
    assert not includes(flip(leaf, bit), index, size, proof, top)
    assert not includes(leaf, index, size, proof, flip(top, bit))
    assert not includes(leaf, index, size, [*proof, flip(top, bit)], top)
    assert not includes(leaf, index, size, [top, *proof], top)
    assert not includes(leaf[:-1], index, size, proof, top)
    assert not includes(leaf, index, size, proof, top + b"\0")
    for i, value in enumerate(proof):
        assert not includes(leaf, index, size, [*proof[:i], flip(value, bit), *proof[i + 1 :]], top)
        assert not includes(leaf, index, size, [*proof[:i], value[:-1], *proof[i + 1 :]], top)
        assert not includes(leaf, index, size, proof[:i] + proof[i + 1 :], top)
    # The root alone does not name the size: another size is accepted just where it puts the entry on the same sides.
    other = data.draw(st.integers(index + 1, 2 * MOST))
    assert includes(leaf, index, other, proof, top) == (sides(index, other) == sides(index, size))
    assert not includes(leaf, index, data.draw(st.integers(-1, index)), proof, top)


@settings(deadline=None, max_examples=300)
@given(st.data(), SIZES, st.integers(0, 10**6))
def test_altered_consistency_proofs_are_refused(data: st.DataObject, size2: int, bit: int) -> None:
    size1 = data.draw(st.integers(0, size2))
    proof, top1, top2 = prove_consistency(size1, size2, read), root(size1), root(size2)
    assert consistent(size1, size2, proof, top1, top2)
    assert not consistent(size1, size2, proof, flip(top1, bit), top2)
    if size1:  # every tree is consistent with the empty one
        assert not consistent(size1, size2, proof, top1, flip(top2, bit))
    assert not consistent(size1, size2, [*proof, flip(top2, bit)], top1, top2)
    assert not consistent(size1, size2, [top1, *proof], top1, top2)
    assert not consistent(size1, size2, proof, top1[:-1], top2)
    assert not consistent(size1, size2, proof, top1, top2 + b"\0")
    for i, value in enumerate(proof):
        assert not consistent(size1, size2, [*proof[:i], flip(value, bit), *proof[i + 1 :]], top1, top2)
        assert not consistent(size1, size2, [*proof[:i], value[:-1], *proof[i + 1 :]], top1, top2)
        assert not consistent(size1, size2, proof[:i] + proof[i + 1 :], top1, top2)
    for other in range(-1, size2 + 2):
        assert consistent(other, size2, proof, top1, top2) == (other == size1)
    other = data.draw(st.integers(max(size1, 1), 2 * MOST))
    same = prefix_sides(size1, other) == prefix_sides(size1, size2)
    assert consistent(size1, other, proof, top1, top2) == same
    assert not consistent(size1, size1 - 1, proof, top1, top2)


def test_proof_functions_name_impossible_arguments() -> None:
    for index, size in ((-1, 3), (3, 3), (0, 0)):
        with pytest.raises(ValueError, match="is not in a tree"):
            prove_inclusion(index, size, read)
    for size1, size2 in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="no prefix"):
            prove_consistency(size1, size2, read)


def test_failed_checks_carry_their_number() -> None:
    leaf, proof = leaf_hash(ENTRIES[1]), prove_inclusion(1, 5, read)
    for number, arguments in {
        1: (leaf, 5, 5, proof, root(5)),
        2: (leaf, 1, 5, proof, root(6)),
    }.items():
        with pytest.raises(VerificationError) as caught:
            verify_inclusion(*arguments)
        assert caught.value.check == number
    steps = prove_consistency(3, 5, read)
    for number, (root1, root2) in {2: (root(4), root(5)), 3: (root(3), root(6))}.items():
        with pytest.raises(VerificationError) as caught:
            verify_consistency(3, 5, steps, root1, root2)
        assert caught.value.check == number


# Twins: the loops of RFC 9162, and the tree built anew


@settings(deadline=None, max_examples=400)
@given(st.data(), st.integers(0, 6), st.lists(st.binary(min_size=32, max_size=32), max_size=7))
def test_verify_inclusion_equals_the_loop_of_the_rfc(
    data: st.DataObject, size: int, noise: list[bytes]
) -> None:
    """Also on proofs of other trees, of other lengths and of noise."""
    index = data.draw(st.integers(-1, size))
    leaf = data.draw(st.sampled_from([leaf_hash(e) for e in ENTRIES[:8]]))
    real = prove_inclusion(index, size, read) if 0 <= index < size else []
    proof = data.draw(st.sampled_from([real, real[1:], [*real, *noise], noise]))
    top = data.draw(
        st.sampled_from([root(size), root(size + 1), naive.folded(leaf, index, size, proof) or bytes(32)])
    )
    assert includes(leaf, index, size, proof, top) == naive.includes(leaf, index, size, proof, top)


def test_verify_inclusion_equals_the_loop_of_the_rfc_on_every_shape() -> None:
    """The root that the RFC's loop computes from noise is the one that is accepted, for every index and size."""
    noise = [leaf_hash(bytes([i])) for i in range(9)]
    for size in range(1, 140):
        for index in range(size):
            for length in range(9):
                top = naive.folded(noise[8], index, size, noise[:length])
                assert includes(noise[8], index, size, noise[:length], top or bytes(32)) == (top is not None)


@given(st.integers(0, MOST), st.integers(0, MOST))
def test_compact_range_equals_the_tree_built_anew(size: int, more: int) -> None:
    tree = CompactRange.read(size, read)
    naive_tree = naive.Tree([leaf_hash(e) for e in ENTRIES[:size]])
    for i in range(size, min(MOST, size + more)):
        copy = tree.copy()
        leaf = leaf_hash(ENTRIES[i])
        assert tree.append(leaf) == naive_tree.append(leaf)
        assert tree.root() == naive_tree.root() == root(i + 1)
        assert copy.tree_size == i and copy.root() == root(i)
    assert tree.hashes == CompactRange.read(tree.tree_size, read).hashes


@given(st.integers(0, MOST), st.integers(0, MOST))
def test_a_compact_range_is_extended_by_the_hashes_of_a_stored_tree(size: int, stop: int) -> None:
    names = []

    def counted(level: int, index: int) -> bytes:
        names.append((level, index))
        return read(level, index)

    tree = CompactRange.read(size, read)
    tree.extend(stop, counted)
    assert (tree.tree_size, tree.hashes) == (max(size, stop), CompactRange.read(max(size, stop), read).hashes)
    covered = [i for level, index in names for i in range(index << level, (index + 1) << level)]
    assert covered == list(range(size, stop)) and len(names) <= 2 * MOST.bit_length()


def test_appends_make_fewer_nodes_than_entries() -> None:
    """n appends: n leaves and n - popcount(n) nodes, so each costs at most one node in the mean."""
    tree, made = CompactRange(), 0
    for size in range(1, 2000):
        made += len(tree.append(bytes(32))) - 1
        assert made == size - size.bit_count() and len(tree.hashes) == size.bit_count()


def test_compact_range_names_impossible_arguments() -> None:
    for size, hashes in ((-1, []), (3, [bytes(32)]), (0, [bytes(32)])):
        with pytest.raises(ValueError, match="compact range"):
            CompactRange(size, hashes)


# Subtrees


SUBTREES = [
    (a, b, n) for n in range(1, 19) for a in range(n) for b in range(a + 1, n + 1) if is_subtree(a, b)
]


def in_tree(start: int, stop: int, size: int, proof: Sequence[bytes], part: bytes, top: bytes) -> bool:
    try:
        verify_subtree(start, stop, size, proof, part, top)
    except VerificationError:
        return False
    return True


def test_subtrees_are_those_whose_start_is_a_multiple_of_the_next_power_of_two() -> None:
    for start in range(20):
        for stop in range(-1, 40):
            ceiling = 1
            while ceiling < stop - start:
                ceiling *= 2
            assert is_subtree(start, stop) == (stop > start and start % ceiling == 0)


@pytest.mark.parametrize("size", range(1, 19))
def test_subtree_proofs_of_every_subtree(size: int) -> None:
    for start, stop, _ in (s for s in SUBTREES if s[2] == size):
        proof, part = prove_subtree(start, stop, size, read), mth(ENTRIES[start:stop])
        assert proof == naive.subtree_subproof(start, stop, ENTRIES[:size], known=True)
        verify_subtree(start, stop, size, proof, part, root(size))
        if start == 0:
            assert proof == prove_consistency(stop, size, read)
        if stop == start + 1:
            assert proof == prove_inclusion(start, size, read)


@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from(SUBTREES), st.integers(0, 10**6))
def test_altered_subtree_proofs_are_refused(
    data: st.DataObject, subtree: tuple[int, int, int], bit: int
) -> None:
    start, stop, size = subtree
    proof, part, top = prove_subtree(start, stop, size, read), mth(ENTRIES[start:stop]), root(size)
    assert not in_tree(start, stop, size, proof, flip(part, bit), top)
    assert not in_tree(start, stop, size, proof, part, flip(top, bit))
    assert not in_tree(start, stop, size, [*proof, flip(top, bit)], part, top)
    assert not in_tree(start, stop, size, [top, *proof], part, top)
    assert not in_tree(start, stop, size, proof, part[:-1], top)
    for i, value in enumerate(proof):
        assert not in_tree(start, stop, size, [*proof[:i], flip(value, bit), *proof[i + 1 :]], part, top)
        assert not in_tree(start, stop, size, proof[:i] + proof[i + 1 :], part, top)
    other = data.draw(
        st.sampled_from([s for s in SUBTREES if s[2] == size and s[:2] != (start, stop)] or [(0, 0, 0)])
    )
    assert not in_tree(other[0], other[1], size, proof, part, top)


def test_subtree_functions_name_impossible_arguments() -> None:
    for start, stop, size in ((1, 3, 4), (2, 2, 4), (3, 2, 4), (0, 5, 4), (-1, 0, 4)):
        with pytest.raises(ValueError, match="no subtree"):
            prove_subtree(start, stop, size, read)
        assert not in_tree(start, stop, size, [], root(2), root(4))
    for number, (part, top) in {2: (root(1), root(5)), 3: (root(3), root(4))}.items():
        with pytest.raises(VerificationError) as caught:
            verify_subtree(0, 3, 5, prove_subtree(0, 3, 5, read), part, top)
        assert caught.value.check == number
    assert node_hash(leaf_hash(ENTRIES[0]), leaf_hash(ENTRIES[1])) == root(2)
