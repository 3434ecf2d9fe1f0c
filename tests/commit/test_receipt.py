"""The receipt's bytes: they come back, and every deviation is refused before anything is checked."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from fieldprint.commit import LeafProof, Receipt, renew_receipt
from fieldprint.commit import receipt as module
from fieldprint.errors import FormatError, IntegrityError
from fieldprint.tlog import LogReader, LogWriter
from fieldprint.verify import verify_receipt
from tests.vectors.make_vectors import NOW, SIGNER, policy, story

hashes = st.binary(min_size=32, max_size=32)
leaves = st.builds(
    LeafProof,
    st.integers(0, 2**53 - 1),
    st.text(max_size=30).map(str.encode),
    st.lists(hashes, max_size=3).map(tuple),
)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=20).map(tuple)
receipts = st.builds(
    Receipt,
    checkpoint=st.text(max_size=30),
    leaves=st.lists(leaves, min_size=1, max_size=3).map(tuple),
    salt=st.binary(min_size=16, max_size=16),
    prompt=ids,
    tokens=ids,
    text=st.text(max_size=30),
    anchor=st.none() | st.binary(max_size=30),
)
RECEIPT = Receipt(
    "note", (LeafProof(3, b"{}", (bytes(32),)),), bytes(range(16)), (1, 2), (3,), "text", b"anchor"
)


@given(receipts)
def test_a_receipt_round_trips(receipt: Receipt) -> None:
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt


def test_a_receipt_is_renewed_with_proofs_to_the_present_checkpoint(tmp_path: Path) -> None:
    entries, old = story()
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log:
        log.append(entries)
        log.append([b"later"])
    reader = LogReader(tmp_path / "log", [SIGNER.verifier_key])
    renewed = renew_receipt(old, reader)
    assert verify_receipt(old.to_bytes(), policy(), now=NOW).tree_size == 10
    assert verify_receipt(renewed.to_bytes(), policy(), now=NOW).tree_size == 11
    assert replace(renewed, checkpoint=old.checkpoint, leaves=old.leaves) == old
    other = renew_receipt(old, reader, renewed.checkpoint.encode() + b"more\n").checkpoint
    assert other == renewed.checkpoint + "more\n"
    moved = replace(old, leaves=(replace(old.leaves[0], index=5), *old.leaves[1:]))
    beyond = replace(old, leaves=(replace(old.leaves[0], index=11), *old.leaves[1:]))
    for wrong in (moved, beyond):
        with pytest.raises(IntegrityError, match="does not hold"):
            renew_receipt(wrong, reader)


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Receipt.from_bytes(data)


LEAF = {"index": 3, "leaf": "{}", "proof": []}


@pytest.mark.parametrize(
    "change",
    [
        {"anchor": 5},
        {"anchor": "YQ"},
        {"anchor": "YR=="},
        {"checkpoint": None},
        {"text": 1},
        {"salt": "00" * 15},
        {"salt": "0A" * 16},
        {"salt": "zz" * 16},
        {"salt": 7},
        {"prompt": [1, -1]},
        {"prompt": [2**31]},
        {"tokens": [True]},
        {"tokens": "12"},
        {"tokens": None},
        {"leaves": []},
        {"leaves": {}},
        {"leaves": 5},
        {"leaves": {"index": 3}},
        {"leaves": [5]},
        {"leaves": [LEAF | {"index": -1}]},
        {"leaves": [LEAF | {"index": True}]},
        {"leaves": [LEAF | {"leaf": 1}]},
        {"leaves": [LEAF | {"proof": "AA=="}]},
        {"leaves": [LEAF | {"proof": {"AA==": 1}}]},
        {"leaves": [LEAF | {"proof": 5}]},
        {"leaves": [LEAF | {"proof": [5]}]},
        {"leaves": [LEAF | {"proof": ["AA="]}]},
        {"leaves": [LEAF | {"proof": ["AA=="] * 65}]},
        {"leaves": [LEAF | {"more": 1}]},
        {"type": "commitment"},
        {"v": 2},
        {"v": True},
        {"more": 1},
    ],
    ids=str,
)
def test_every_deviation_is_refused(change: dict[str, Any]) -> None:
    values = json.loads(RECEIPT.to_bytes())
    assert Receipt.from_bytes(rfc8785.dumps(values)) == RECEIPT
    with pytest.raises(FormatError):
        Receipt.from_bytes(rfc8785.dumps(values | change))


@pytest.mark.parametrize("name", sorted(json.loads(RECEIPT.to_bytes())))
def test_every_field_is_needed(name: str) -> None:
    values = json.loads(RECEIPT.to_bytes())
    del values[name]
    with pytest.raises(FormatError, match="exactly the fields"):
        Receipt.from_bytes(rfc8785.dumps(values))


def test_the_largest_values_are_read() -> None:
    edge = (0, 2**31 - 1)
    receipt = Receipt("", (LeafProof(2**53 - 1, b"", (bytes(32),) * 64),), bytes(16), edge, edge, "", b"")
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt


def test_a_receipt_has_at_most_64_mebibytes() -> None:
    with pytest.raises(FormatError, match="more than 67108864"):
        Receipt.from_bytes(bytes(67108865))


def test_bytes_have_one_spelling_and_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = RECEIPT.to_bytes()
    for other in (
        data + b" ",
        b" " + data,
        data.replace(b":", b": ", 1),
        data.replace(b"text", b"\\u0074ext", 1),
    ):
        with pytest.raises(FormatError):
            Receipt.from_bytes(other)
    monkeypatch.setattr(module, "MAX_RECEIPT_SIZE", len(data) - 1)
    with pytest.raises(FormatError, match="more than"):
        Receipt.from_bytes(data)
