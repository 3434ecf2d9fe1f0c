"""BLAKE3: the plain-Python twin and the package against the official vectors and each other, and the root over digests.

`test_vectors.json` is test_vectors/test_vectors.json of https://github.com/BLAKE3-team/BLAKE3 at commit 77b257ee, which is
in the public domain (CC0 1.0); a digest is the first 32 bytes of each output.
"""

import json
from hashlib import sha256
from pathlib import Path

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.blake3 import digest, tree_root
from fieldprint.blake3.naive import naive_derive, naive_digest, naive_keyed, naive_root

LENGTHS = (0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 3072, 3073, 5000)
KEY = bytes(range(32))
CONTEXT = "fieldprint test context"
OFFICIAL = json.loads((Path(__file__).parent / "test_vectors.json").read_text())


def message(length: int) -> bytes:
    return bytes(i % 251 for i in range(length))


def digests(count: int) -> list[bytes]:
    return [sha256(i.to_bytes(4, "big")).digest() for i in range(count)]


def check_modes(data: bytes) -> None:
    assert naive_digest(data) == digest(data) == blake3.blake3(data).digest()
    assert naive_keyed(data, KEY) == blake3.blake3(data, key=KEY).digest()
    assert naive_derive(data, CONTEXT) == blake3.blake3(data, derive_key_context=CONTEXT).digest()


def test_digest_of_nothing_is_the_published_one() -> None:
    assert digest(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_twin_and_package_pass_the_official_vectors() -> None:
    key, context = OFFICIAL["key"].encode(), OFFICIAL["context_string"]
    assert len(OFFICIAL["cases"]) == 35
    for case in OFFICIAL["cases"]:
        data = message(case["input_len"])
        want = [case[name][:64] for name in ("hash", "keyed_hash", "derive_key")]
        twin = [naive_digest(data), naive_keyed(data, key), naive_derive(data, context)]
        assert [found.hex() for found in twin] == want, case["input_len"]
        assert digest(data).hex() == want[0]
        assert blake3.blake3(data, key=key).hexdigest() == want[1]
        assert blake3.blake3(data, derive_key_context=context).hexdigest() == want[2]


@pytest.mark.parametrize("length", LENGTHS)
def test_twin_equals_package_at_block_and_chunk_borders(length: int) -> None:
    check_modes(message(length))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 6000))
def test_twin_equals_package_at_any_length(length: int) -> None:
    check_modes(message(length))


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=200), st.binary(min_size=32, max_size=32), st.text(max_size=80))
def test_twin_equals_package_for_any_key_and_context(data: bytes, key: bytes, context: str) -> None:
    assert naive_keyed(data, key) == blake3.blake3(data, key=key).digest()
    assert naive_derive(data, context) == blake3.blake3(data, derive_key_context=context).digest()


def test_digest_takes_a_memoryview() -> None:
    data = message(3000)
    assert digest(memoryview(data)[10:2000]) == digest(data[10:2000])


@pytest.mark.parametrize("count", range(1, 21))
def test_root_equals_recursive_definition(count: int) -> None:
    assert tree_root(digests(count)) == naive_root(digests(count))


def test_root_depends_on_every_digest_their_order_and_their_number() -> None:
    pages = digests(9)
    root = tree_root(pages)
    for i in range(9):
        altered = [*pages]
        altered[i] = bytes([altered[i][0] ^ 1]) + altered[i][1:]
        assert tree_root(altered) != root
    assert tree_root(pages[::-1]) != root
    assert tree_root([*pages, pages[-1]]) != root
    assert tree_root(pages[:-1]) != root


def test_a_node_cannot_pass_for_a_leaf() -> None:
    pages = digests(4)
    assert tree_root([tree_root(pages[:2]), tree_root(pages[2:])]) != tree_root(pages)
    assert tree_root(pages[:1]) != pages[0]


@pytest.mark.parametrize("bad", [[], [b""], [bytes(31)], [bytes(32), bytes(33)]])
def test_root_refuses_no_digests_and_wrong_lengths(bad: list[bytes]) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        tree_root(bad)
