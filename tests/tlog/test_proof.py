"""Proofs in a file: bytes and back, numbered checks, and that no byte can be changed."""

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.errors import FormatError, VerificationError
from fieldprint.tlog import LogProof, LogReader, LogWriter, prove_entry, prove_inclusion, verify_log_proof
from fieldprint.tlog.proof import HEADER
from tests.witnessing import EAST, LOG, NORTH, SOUTH, entries, hash_reader, head, latticed, signed, trust

LATTICE = latticed()
TRUST = trust(NORTH, LATTICE)
SIZE, INDEX = 13, 6
PROOF = LogProof(
    INDEX, tuple(prove_inclusion(INDEX, SIZE, hash_reader(SIZE))), signed(head(SIZE), NORTH, LATTICE)
)
ENTRY = entries(SIZE)[INDEX]
DATA = PROOF.to_bytes()


def refused(attempt: Callable[[], object]) -> int:
    with pytest.raises(VerificationError) as caught:
        attempt()
    return caught.value.check


def check(proof: LogProof, entry: bytes | None = ENTRY) -> int:
    return refused(lambda: verify_log_proof(proof.to_bytes(), TRUST, entry))


def test_the_file_is_what_the_specification_shows() -> None:
    hashes = "".join(base64.b64encode(value).decode() + "\n" for value in PROOF.hashes)
    assert f"{HEADER}\nindex 6\n{hashes}\n".encode() + PROOF.checkpoint == DATA
    assert (
        replace(PROOF, extra=b"more").to_bytes().startswith(f"{HEADER}\nextra bW9yZQ==\nindex 6\n".encode())
    )


def test_a_good_proof_passes() -> None:
    verified = verify_log_proof(DATA, TRUST, ENTRY)
    assert (verified.entry, verified.index, verified.checkpoint) == (ENTRY, INDEX, head(SIZE))
    assert {signature.key for signature in verified.cosignatures} == set(TRUST.witness_keys)


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.none() | st.binary(),
)
def test_a_proof_round_trips(index: int, hashes: list[bytes], extra: bytes | None) -> None:
    proof = LogProof(index, tuple(hashes), PROOF.checkpoint, extra)
    assert LogProof.from_bytes(proof.to_bytes()) == proof


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13])
def test_every_entry_of_small_logs_is_proved_and_found(tmp_path: Path, size: int) -> None:
    with LogWriter(tmp_path, LOG, create=True) as log:
        log.append(entries(size))
    reader = LogReader(tmp_path, [LOG.verifier_key])
    for index, entry in enumerate(entries(size)):
        proof = prove_entry(reader, index)
        assert verify_log_proof(proof.to_bytes(), trust(), entry).entry == entry
        whole = prove_entry(reader, index, with_entry=True)
        assert verify_log_proof(whole.to_bytes(), trust()).entry == entry
        assert replace(whole, extra=None) == proof
    for index in (-1, size):
        with pytest.raises(ValueError, match="none of them"):
            prove_entry(reader, index)


def test_each_check_of_a_proof() -> None:
    assert refused(lambda: verify_log_proof(b"", TRUST, ENTRY)) == 1
    assert check(PROOF, None) == 1
    assert check(PROOF, bytes(65_536)) == 1
    other = signed(head(SIZE), NORTH, LATTICE, signer=type(LOG)("fieldprint.example/other", LOG._private_key))
    assert check(replace(PROOF, checkpoint=other)) == 2
    assert check(replace(PROOF, checkpoint=PROOF.checkpoint.replace(b"\n13\n", b"\n14\n"))) == 2
    assert check(replace(PROOF, checkpoint=signed(head(SIZE), NORTH, SOUTH, EAST))) == 3
    stale = signed(head(SIZE)) + signed(head(12), NORTH).splitlines(keepends=True)[-1]
    assert check(replace(PROOF, checkpoint=stale)) == 3
    assert check(replace(PROOF, checkpoint=signed(head(12), NORTH, LATTICE))) == 4
    assert check(replace(PROOF, checkpoint=signed(head(SIZE, b"fork"), NORTH, LATTICE))) == 4
    assert check(PROOF, b"another entry") == 4
    assert check(replace(PROOF, extra=ENTRY), b"another entry") == 4
    assert check(replace(PROOF, index=INDEX + 1)) == 4
    assert check(replace(PROOF, index=SIZE)) == 4
    assert check(replace(PROOF, hashes=PROOF.hashes[:-1])) == 4
    assert check(replace(PROOF, hashes=(*PROOF.hashes, bytes(32)))) == 4


def test_any_flipped_byte_of_a_proof_is_refused() -> None:
    """Of every byte two bits; hypothesis, below, takes other changes. Extra data that is not the entry is free."""
    for position in range(len(DATA)):
        for bit in (0, 6):
            altered = bytearray(DATA)
            altered[position] ^= 1 << bit
            refused(lambda altered=altered: verify_log_proof(bytes(altered), TRUST, ENTRY))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_any_changed_byte_of_a_proof_is_refused(data: st.DataObject, with_entry: bool) -> None:
    altered = bytearray(replace(PROOF, extra=ENTRY if with_entry else None).to_bytes())
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    refused(lambda: verify_log_proof(bytes(altered), TRUST, None if with_entry else ENTRY))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_byte_of_a_cosigned_checkpoint_is_refused_where_all_cosignatures_are_needed(
    data: st.DataObject,
) -> None:
    altered = bytearray(PROOF.checkpoint)
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    assert check(replace(PROOF, checkpoint=bytes(altered))) in (1, 2, 3)


def test_every_cut_and_every_inserted_byte_is_refused() -> None:
    for position in range(len(DATA)):
        refused(lambda p=position: verify_log_proof(DATA[:p], TRUST, ENTRY))
        for byte in (b"\n", b" ", b"A", b"\0"):
            refused(lambda p=position, b=byte: verify_log_proof(DATA[:p] + b + DATA[p:], TRUST, ENTRY))
    for byte in (b"\n", b" ", b"A", b"\0"):
        refused(lambda b=byte: verify_log_proof(DATA + b, TRUST, ENTRY))


HASH = base64.b64encode(bytes(32))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (HEADER.encode(), b"c2sp.org/tlog-proof@v2"),
        (HEADER.encode(), b" " + HEADER.encode()),
        (HEADER.encode(), HEADER.encode() + b"\r"),
        (b"index 6", b"index 06"),
        (b"index 6", b"index +6"),
        (b"index 6", b"index -1"),
        (b"index 6", b"index  6"),
        (b"index 6", b"index 6 "),
        (b"index 6", b"index \xd9\xa6"),
        (b"index 6", b"Index 6"),
        (b"index 6", b"index "),
        (b"index 6", b"index 9223372036854775808"),
        (b"index 6\n", b""),
        (b"index 6\n", b"index 6\nindex 6\n"),
        (b"index 6", b"index 6\nextra YQ=="),
        (b"index 6", b"extra YQ==\nextra YQ==\nindex 6"),
        (b"index 6", b"extra YR==\nindex 6"),
        (b"index 6", b"extra YQ\nindex 6"),
        (b"index 6", b"extra\nindex 6"),
        (b"index 6", b"index 6\n" + HASH[:-4]),
        (b"index 6", b"index 6\n" + HASH[:-2] + b"B="),
        (b"index 6", b"index 6\n" + b"\n".join([HASH] * 64)),
        (b"index 6", b"index 6\n"),
        (b"fieldprint.example/log\n13\n", b"\nfieldprint.example/log\n13\n"),
        (b"\n13\n", b"\n013\n"),
    ],
    ids=str,
)
def test_malformed_proofs_are_refused(old: bytes, new: bytes) -> None:
    assert old in DATA
    with pytest.raises(FormatError):
        LogProof.from_bytes(DATA.replace(old, new, 1))


def test_too_long_proofs_are_refused() -> None:
    with pytest.raises(FormatError, match="more than"):
        LogProof.from_bytes(replace(PROOF, extra=bytes(1_200_000)).to_bytes())


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    for noise in (data, f"{HEADER}\n".encode() + data):
        with pytest.raises(FormatError):
            LogProof.from_bytes(noise)
