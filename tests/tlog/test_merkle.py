"""The Merkle tree against the recursive definitions of RFC 9162 section 2.1, written out here."""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.errors import VerificationError
from fieldprint.tlog import (
    leaf_hash,
    prove_consistency,
    prove_inclusion,
    tree_hash,
    verify_consistency,
    verify_inclusion,
)

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


def split(size: int) -> int:
    """The largest power of two smaller than `size`."""
    k = 1
    while k * 2 < size:
        k *= 2
    return k


@cache
def mth(entries: tuple[bytes, ...]) -> bytes:
    """MTH of RFC 9162 section 2.1.1."""
    if not entries:
        return sha256().digest()
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0]).digest()
    k = split(len(entries))
    return sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


def path(m: int, entries: tuple[bytes, ...]) -> list[bytes]:
    """PATH of RFC 9162 section 2.1.3.1."""
    if len(entries) == 1:
        return []
    k = split(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: tuple[bytes, ...], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 9162 section 2.1.4.1."""
    if m == len(entries):
        return [] if whole else [mth(entries)]
    k = split(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


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
