"""Signed notes: round trips, a published example, strict parsing, and that no byte can be changed."""

import base64
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.errors import FormatError, VerificationError
from fieldprint.note import MAX_NOTE_SIZE, NoteSigner, VerifierKey, sign_note, verify_note

TEXT = "fieldprint.example/log\n3\nsome text\n"
DASH = "\N{EM DASH} "


def signer(name: str = "fieldprint.example/log", seed: int = 1) -> NoteSigner:
    return NoteSigner(name, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


SIGNER = signer()
KEY = SIGNER.verifier_key
OTHER = signer("fieldprint.example/witness", 2)
NOTE = sign_note(TEXT, [SIGNER])


def line_of(who: NoteSigner, text: str = TEXT) -> str:
    return f"{DASH}{who.name} {base64.b64encode(who.sign(text.encode())).decode()}\n"


def test_note_is_text_empty_line_and_signature_line() -> None:
    assert NOTE.decode() == f"{TEXT}\n{line_of(SIGNER)}"
    assert verify_note(NOTE, [KEY]) == TEXT


def test_example_of_the_go_implementation_verifies() -> None:
    key = VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    assert verify_note(f"{text}\n{DASH}PeterNeumann {signature}\n".encode(), [key]) == text


lines = st.text(st.characters(min_codepoint=0x20, codec="utf-8"), max_size=30)


@settings(deadline=None)
@given(st.lists(lines, min_size=1, max_size=6))
def test_any_text_comes_back(parts: list[str]) -> None:
    text = "\n".join(parts) + "\n"
    assert verify_note(sign_note(text, [OTHER, SIGNER]), [KEY]) == text


def test_every_flipped_bit_is_refused() -> None:
    for position in range(len(NOTE)):
        for bit in range(8):
            altered = bytearray(NOTE)
            altered[position] ^= 1 << bit
            with pytest.raises((FormatError, VerificationError)):
                verify_note(bytes(altered), [KEY])


def test_every_cut_and_every_inserted_byte_is_refused() -> None:
    for position in range(len(NOTE)):
        with pytest.raises((FormatError, VerificationError)):
            verify_note(NOTE[:position], [KEY])
        for byte in (b"\n", b" ", b"=", b"A", b"\0"):
            with pytest.raises((FormatError, VerificationError)):
                verify_note(NOTE[:position] + byte + NOTE[position:], [KEY])


@pytest.mark.parametrize(
    "trailing", ["\n", " ", "\0", "x\n", "\n\n", f"{DASH}\n", f"{DASH}name\n", f"{DASH}name \n"]
)
def test_trailing_bytes_are_refused(trailing: str) -> None:
    with pytest.raises(FormatError):
        verify_note(NOTE + trailing.encode(), [KEY])


def test_signatures_by_unknown_keys_are_ignored() -> None:
    assert verify_note(sign_note(TEXT, [OTHER, SIGNER]), [KEY]) == TEXT
    forged = f"{TEXT}\n{line_of(OTHER, 'another text')}{line_of(SIGNER)}"
    assert verify_note(forged.encode(), [KEY]) == TEXT


def test_every_signature_by_a_trusted_key_must_be_valid() -> None:
    forged = f"{TEXT}\n{line_of(OTHER, 'another text')}{line_of(SIGNER)}"
    with pytest.raises(VerificationError, match="witness"):
        verify_note(forged.encode(), [KEY, OTHER.verifier_key])


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [OTHER.verifier_key],
        [signer(seed=3).verifier_key],
        [VerifierKey("fieldprint.example/lo", KEY.public_bytes)],
    ],
    ids=["none", "other", "same-name", "same-bytes"],
)
def test_note_without_a_trusted_signature_is_refused(keys: list[VerifierKey]) -> None:
    with pytest.raises(VerificationError, match="no trusted key"):
        verify_note(NOTE, keys)


def test_signature_under_another_name_is_refused() -> None:
    renamed = NOTE.replace(f"{DASH}fieldprint.example/log".encode(), f"{DASH}fieldprint.example/lot".encode())
    assert renamed != NOTE
    with pytest.raises(VerificationError):
        verify_note(renamed, [KEY, VerifierKey("fieldprint.example/lot", KEY.public_bytes)])


def test_duplicate_signature_lines_are_refused() -> None:
    for duplicated in ([SIGNER, SIGNER], [SIGNER, OTHER, OTHER]):
        with pytest.raises(FormatError, match="twice"):
            verify_note(sign_note(TEXT, duplicated), [KEY])


def test_two_different_signatures_by_one_key_are_refused() -> None:
    twice = f"{TEXT}\n{line_of(SIGNER)}{line_of(SIGNER, 'another text')}"
    with pytest.raises(FormatError, match="two signatures by one key"):
        verify_note(twice.encode(), [KEY])


def test_more_than_a_hundred_signatures_are_refused() -> None:
    signers = [signer(f"witness{i}", 1 + i) for i in range(100)]
    assert verify_note(sign_note(TEXT, signers), [signers[-1].verifier_key]) == TEXT
    with pytest.raises(FormatError, match="more than 100"):
        verify_note(sign_note(TEXT, [*signers, SIGNER]), [KEY])


def test_too_long_notes_are_refused() -> None:
    with pytest.raises(FormatError, match="more than"):
        verify_note(b"a" * MAX_NOTE_SIZE + NOTE, [KEY])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n",
        b"text\n",
        b"text\n\n",
        b"\xff" + NOTE,
        NOTE.replace(b"\n\n", b"\n"),
        NOTE.replace(b"\n\n", b"\n\n\n", 1) + b"\n",
        NOTE.replace(b"\n", b"\r\n"),
        NOTE.replace(DASH.encode(), b"- "),
        NOTE.replace(DASH.encode(), b""),
        NOTE + b"\n" + NOTE.partition(b"\n\n")[2].replace(b"\n", b""),
    ],
)
def test_malformed_notes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        verify_note(data, [KEY])


@pytest.mark.parametrize("size", [0, 4, 5, 67, 69])
def test_signatures_of_a_wrong_length_are_refused(size: int) -> None:
    encoded = base64.b64encode((SIGNER.sign(TEXT.encode()) + b"\0")[:size]).decode()
    with pytest.raises((FormatError, VerificationError)):
        verify_note(f"{TEXT}\n{DASH}{SIGNER.name} {encoded}\n".encode(), [KEY])


def test_base64_in_another_spelling_is_refused() -> None:
    encoded = base64.b64encode(SIGNER.sign(TEXT.encode())).decode()
    assert encoded.endswith("=")
    last = encoded.rstrip("=")[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = alphabet[alphabet.index(last) + 1]
    stem, padding = encoded.rstrip("=")[:-1], "=" * encoded.count("=")
    for spelling in (
        stem + other + padding,
        encoded.rstrip("="),
        encoded + "=",
        encoded[:8] + " " + encoded[8:],
    ):
        with pytest.raises(FormatError):
            verify_note(f"{TEXT}\n{DASH}{SIGNER.name} {spelling}\n".encode(), [KEY])


@pytest.mark.parametrize("text", ["", "no newline", "tab\t\n", "nul\0\n", "return\r\n", "escape\x1b[31m\n"])
def test_text_without_newline_or_with_control_characters_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="control characters"):
        sign_note(text, [SIGNER])


def test_signed_text_with_control_characters_is_refused() -> None:
    for text in ("tab\t\n", "nul\0\n", "return\r\n"):
        with pytest.raises(FormatError):
            verify_note(f"{text}\n{line_of(SIGNER, text)}".encode(), [KEY])


def test_verifier_key_comes_back_from_its_text() -> None:
    assert VerifierKey.parse(str(KEY)) == KEY
    expected = sha256(b"fieldprint.example/log\n\x01" + KEY.public_bytes).digest()[:4]
    assert KEY.key_id == expected
    golang = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    assert str(VerifierKey.parse(golang)) == golang


def _spelling(
    name: str = KEY.name, hashed: str = KEY.key_id.hex(), data: bytes = b"\x01" + KEY.public_bytes
) -> str:
    return f"{name}+{hashed}+{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000",
        _spelling(name="another"),
        _spelling(name=""),
        _spelling(name="with space"),
        _spelling(hashed="00000000"),
        _spelling(hashed=""),
        _spelling(hashed=KEY.key_id.hex().upper()),
        _spelling(data=b"\x02" + KEY.public_bytes),
        _spelling(data=b"\x01" + KEY.public_bytes[:-1]),
        _spelling(data=b"\x01" + KEY.public_bytes + b"\0"),
        _spelling() + "\n",
        " " + _spelling(),
        _spelling() + "=",
        "name+00000000+\N{EM DASH}",
    ],
)
def test_malformed_verifier_keys_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        VerifierKey.parse(text)


@pytest.mark.parametrize("name", ["", "a+b", "a b", "a\n", "a\0", "a\u00a0b", "\ud800"])
def test_names_that_a_signature_line_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="no key name"):
        signer(name)
    with pytest.raises(FormatError, match="no key name"):
        VerifierKey(name, KEY.public_bytes)


def test_public_keys_of_a_wrong_length_are_refused() -> None:
    with pytest.raises(FormatError, match="32 bytes"):
        VerifierKey("name", bytes(31))


def test_a_note_by_others_is_refused_with_the_names_of_both_sides() -> None:
    other = NoteSigner("other.example/log", Ed25519PrivateKey.generate())
    note = sign_note("text\n", [other])
    wanted = NoteSigner("wanted.example/log", Ed25519PrivateKey.generate()).verifier_key
    with pytest.raises(VerificationError) as caught:
        verify_note(note, [wanted])
    assert f"signed by {other.name}+{other.verifier_key.key_id.hex()}, and" in caught.value.what
    assert f"trusted is {wanted.name}+{wanted.key_id.hex()}" in caught.value.what
