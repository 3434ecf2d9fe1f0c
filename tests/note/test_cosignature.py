"""Cosignatures: the bytes that are signed, times and lengths, keys of each type, and where ML-DSA is missing."""

import struct
import sys

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.errors import FormatError, VerificationError
from fieldprint.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    COSIGNATURES,
    ED25519,
    LOG_SIGNATURES,
    MAX_TIMESTAMP,
    Cosigner,
    VerifierKey,
    parse_note,
    signature_line,
    verify_note,
    verify_signatures,
)
from tests.witnessing import LOG, NORTH, ORIGIN, SOUTH, TIME, head, latticed, signed

LATTICE = latticed()
HEAD = head(5)
TEXT = HEAD.to_text().encode()
COSIGNERS = {"ed25519": NORTH, "ml-dsa-44": LATTICE}


def by_hand(cosigner: Cosigner, timestamp: int) -> bytes:
    """The signed message as the specification writes it, without the code under test."""
    if cosigner is not LATTICE:
        return b"cosignature/v1\ntime " + str(timestamp).encode() + b"\n" + TEXT
    name, origin = cosigner.name.encode(), ORIGIN.encode()
    return b"".join(
        [
            b"subtree/v1\n\0",
            bytes([len(name)]),
            name,
            struct.pack(">Q", timestamp),
            bytes([len(origin)]),
            origin,
            struct.pack(">QQ", 0, 5),
            HEAD.root_hash,
        ]
    )


@pytest.mark.parametrize("cosigner", COSIGNERS.values(), ids=COSIGNERS)
@pytest.mark.parametrize("timestamp", [0, 1, TIME, MAX_TIMESTAMP])
def test_a_cosignature_is_key_id_time_and_signature_over_the_specified_bytes(
    cosigner: Cosigner, timestamp: int
) -> None:
    key = cosigner.verifier_key
    data = cosigner.cosign(TEXT, timestamp)
    assert data[:4] == key.key_id and data[4:12] == struct.pack(">Q", timestamp)
    loaded = (Ed25519PublicKey if cosigner is NORTH else MLDSA44PublicKey).from_public_bytes(key.public_bytes)
    loaded.verify(data[12:], by_hand(cosigner, timestamp))
    assert key.verify(data[4:], TEXT) == timestamp
    note = signed(HEAD, cosigner, time=timestamp)
    (found,) = verify_signatures(note, [key]).signatures
    assert (found.key, found.timestamp) == (key, timestamp)
    assert found.line.encode() in note and found.line.startswith(f"\N{EM DASH} {cosigner.name} ")


@pytest.mark.parametrize("cosigner", COSIGNERS.values(), ids=COSIGNERS)
def test_a_time_beyond_the_range_is_refused_though_it_is_signed(cosigner: Cosigner) -> None:
    key, timestamp = cosigner.verifier_key, MAX_TIMESTAMP + 1
    signature = cosigner._private_key.sign(by_hand(cosigner, timestamp))
    with pytest.raises(VerificationError, match="beyond 2\\^63 - 1"):
        key.verify(struct.pack(">Q", timestamp) + signature, TEXT)
    for wrong in (-1, timestamp):
        with pytest.raises(ValueError, match="timestamp"):
            cosigner.cosign(TEXT, wrong)


@pytest.mark.parametrize("cosigner", COSIGNERS.values(), ids=COSIGNERS)
def test_another_time_or_text_or_name_is_refused(cosigner: Cosigner) -> None:
    key, data = cosigner.verifier_key, cosigner.cosign(TEXT, TIME)[4:]
    with pytest.raises(VerificationError):
        key.verify(struct.pack(">Q", TIME + 1) + data[8:], TEXT)
    with pytest.raises(VerificationError):
        key.verify(data, head(6).to_text().encode())
    renamed = VerifierKey("witness.example/other", key.public_bytes, key.signature_type)
    if cosigner is LATTICE:  # it signs its name; the older type does not, and its key must not have two
        with pytest.raises(VerificationError):
            renamed.verify(data, TEXT)
    assert renamed.key_id != key.key_id


@pytest.mark.parametrize("cosigner", COSIGNERS.values(), ids=COSIGNERS)
@pytest.mark.parametrize("change", [-1, 1, -8, 8])
def test_signatures_of_a_wrong_length_are_refused(cosigner: Cosigner, change: int) -> None:
    data = cosigner.cosign(TEXT, TIME)[4:] + bytes(8)
    size = cosigner.verifier_key.signature_type.size
    with pytest.raises(VerificationError, match=f"and not {size}"):
        cosigner.verifier_key.verify(data[: size + change], TEXT)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(COSIGNERS)), st.data())
def test_any_flipped_bit_of_a_cosignature_is_refused(name: str, data: st.DataObject) -> None:
    cosigner = COSIGNERS[name]
    raw = bytearray(cosigner.cosign(TEXT, TIME)[4:])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(VerificationError):
        cosigner.verifier_key.verify(bytes(raw), TEXT)


def test_a_false_cosignature_by_a_known_key_refuses_the_note_and_by_an_unknown_one_does_not() -> None:
    line = signature_line(NORTH.name, NORTH.cosign(head(6).to_text().encode(), TIME))
    note = signed(HEAD) + line.encode()
    assert verify_note(note, [LOG.verifier_key, SOUTH.verifier_key]) == HEAD.to_text()
    with pytest.raises(VerificationError, match="north"):
        verify_note(note, [LOG.verifier_key, NORTH.verifier_key])


def test_one_key_signs_a_note_once() -> None:
    text = HEAD.to_text().encode()
    lines = [signature_line(NORTH.name, NORTH.cosign(text, time)) for time in (TIME, TIME + 1)]
    note = signed(HEAD) + "".join(lines).encode()
    with pytest.raises(FormatError, match="two signatures by one key"):
        verify_signatures(note, [NORTH.verifier_key])
    assert verify_signatures(note, [LOG.verifier_key]).signatures[0].timestamp is None


def test_a_plain_signature_is_no_cosignature_and_the_other_way_round() -> None:
    """One Ed25519 key under both types: the key ids differ, and each message is refused as the other."""
    private = Ed25519PrivateKey.from_private_bytes(bytes([11]) * 32)
    plain = VerifierKey(NORTH.name, NORTH.verifier_key.public_bytes)
    assert plain.key_id != NORTH.verifier_key.key_id
    stamped = NORTH.cosign(TEXT, TIME)[4:]
    with pytest.raises(VerificationError):
        plain.verify(stamped[8:], TEXT)
    with pytest.raises(VerificationError):
        NORTH.verifier_key.verify(bytes(8) + private.sign(TEXT), TEXT)


def test_two_keys_under_one_name_and_id_are_refused() -> None:
    other = VerifierKey(NORTH.name, SOUTH.verifier_key.public_bytes, COSIGNATURE_ED25519)
    assert other.key_id != NORTH.verifier_key.key_id
    same = type("Colliding", (VerifierKey,), {"key_id": NORTH.verifier_key.key_id})
    colliding = same(NORTH.name, SOUTH.verifier_key.public_bytes, COSIGNATURE_ED25519)
    with pytest.raises(FormatError, match="one key id"):
        verify_signatures(signed(HEAD, NORTH), [NORTH.verifier_key, colliding])
    twice = verify_signatures(signed(HEAD, NORTH), [NORTH.verifier_key, NORTH.verifier_key])
    assert len(twice.signatures) == 1


@pytest.mark.parametrize("cosigner", COSIGNERS.values(), ids=COSIGNERS)
def test_a_verifier_key_comes_back_and_only_as_a_wanted_type(cosigner: Cosigner) -> None:
    key = cosigner.verifier_key
    assert VerifierKey.parse(str(key), COSIGNATURES) == key
    with pytest.raises(FormatError, match="type Ed25519 \\(0x01\\)"):
        VerifierKey.parse(str(key))
    with pytest.raises(FormatError):
        VerifierKey.parse(str(LOG.verifier_key), COSIGNATURES)
    assert VerifierKey.parse(str(LOG.verifier_key), LOG_SIGNATURES).signature_type is ED25519
    with pytest.raises(FormatError, match="bytes"):
        VerifierKey(key.name, key.public_bytes[:-1], key.signature_type)


def test_the_lattice_cosignature_is_for_checkpoints_with_short_names() -> None:
    data = LATTICE.cosign(TEXT, TIME)[4:]
    with pytest.raises(VerificationError, match="three or more lines"):
        LATTICE.verifier_key.verify(data, b"some text\n")
    with pytest.raises(FormatError, match="255"):
        latticed("n" * 256).cosign(TEXT, TIME)
    long = TEXT.replace(ORIGIN.encode(), b"o" * 256)
    with pytest.raises(FormatError, match="255"):
        LATTICE.cosign(long, TIME)
    latticed("n" * 255).cosign(TEXT.replace(ORIGIN.encode(), b"o" * 255), TIME)


def test_the_lattice_cosignature_says_nothing_of_extension_lines_and_the_older_one_does() -> None:
    extended = head(5, extensions=("more",)).to_text().encode()
    assert LATTICE.verifier_key.verify(LATTICE.cosign(TEXT, TIME)[4:], extended) == TIME
    with pytest.raises(VerificationError):
        NORTH.verifier_key.verify(NORTH.cosign(TEXT, TIME)[4:], extended)


def test_without_mldsa_its_keys_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(LATTICE.verifier_key)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    with pytest.raises(FormatError, match="does not offer here"):
        VerifierKey.parse(text, COSIGNATURES)
    assert verify_note(signed(HEAD, NORTH), [NORTH.verifier_key]) == HEAD.to_text()


def test_without_mldsa_in_the_backend_its_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.hazmat.backends.openssl.backend import Backend

    text = str(LATTICE.verifier_key)
    monkeypatch.setattr(Backend, "mldsa_supported", lambda _self: False)
    with pytest.raises(FormatError, match="does not offer here"):
        VerifierKey.parse(text, COSIGNATURES)


def test_sixteen_lattice_signatures_fit_a_note() -> None:
    """The specification: at least 16 signatures must be accepted, and lattice signatures are long."""
    many = [latticed(f"w{i}", 100 + i) for i in range(16)]
    note = signed(HEAD, *many)
    assert len(verify_signatures(note, [cosigner.verifier_key for cosigner in many]).signatures) == 16


def test_parsing_believes_nothing() -> None:
    note = signed(HEAD, NORTH).replace(b"\n5\n", b"\n6\n")
    parsed = parse_note(note)
    assert [name for _, name, _ in parsed.signatures] == [ORIGIN, NORTH.name]
    with pytest.raises(VerificationError):
        verify_signatures(parsed, [LOG.verifier_key])
    assert verify_signatures(parsed, []).signatures == ()


def test_signing_by_mldsa_is_the_librarys() -> None:
    private = MLDSA44PrivateKey.from_seed_bytes(bytes([14]) * 32)
    assert private.public_key().public_bytes_raw() == LATTICE.verifier_key.public_bytes
    assert COSIGNATURE_MLDSA44.size == 8 + 2420 and COSIGNATURE_ED25519.size == 8 + 64
    with pytest.raises(InvalidSignature):
        private.public_key().verify(bytes(2420), by_hand(LATTICE, TIME))
