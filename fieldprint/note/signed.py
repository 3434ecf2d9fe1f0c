"""The note itself: text that ends in a newline, an empty line, and signature lines.

    fieldprint.example/log
    600
    8QkYpWnbWtlEHfZcFzHZ2zMzUyoHz8Ej7n2n0QmXyvM=

    — fieldprint.example/log x1J3a...base64...==

A signature line is an em dash, the key's name, and base64 over a 4-byte key id and the signature.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from fieldprint.errors import FormatError, VerificationError
from fieldprint.note.key import Signer, VerifierKey, check_name
from fieldprint.note.signature import decode_base64

MAX_NOTE_SIZE = 1_000_000
MAX_SIGNATURES = 100
_PREFIX = "\N{EM DASH} "


@dataclass(frozen=True, slots=True)
class ParsedNote:
    """A well-formed note, nothing of it believed: its text, and (line, name, key id and signature) by line."""

    text: str
    signatures: tuple[tuple[str, str, bytes], ...]


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """A valid signature: the key, the time that it states (None without one), and its line with the newline."""

    key: VerifierKey
    timestamp: int | None
    line: str


@dataclass(frozen=True, slots=True)
class VerifiedNote:
    """A note's text with the valid signatures of trusted keys on it, in the order of the note."""

    text: str
    signatures: tuple[NoteSignature, ...]


def _check_text(text: str) -> None:
    if not text.endswith("\n") or any((ord(c) < 0x20 and c != "\n") for c in text):
        raise FormatError("a note's text ends in a newline and holds no control characters")


def signature_line(name: str, signature: bytes) -> str:
    """The line of a signature (key id in front), newline included."""
    return f"{_PREFIX}{name} {base64.b64encode(signature).decode()}\n"


def sign_note(text: str, signers: Sequence[Signer]) -> bytes:
    """The note: `text`, an empty line, and a signature line for each signer.

    Raises:
        FormatError: `text` does not end in a newline or holds other control characters.
    """
    _check_text(text)
    lines = [signature_line(s.name, s.sign(text.encode())) for s in signers]
    return (text + "\n" + "".join(lines)).encode()


def parse_note(data: bytes) -> ParsedNote:
    """The parts of a well-formed note; no signature is verified.

    Raises:
        FormatError: too long, not UTF-8, or not text, an empty line and 1 to 100 signature lines, none twice.
    """
    if len(data) > MAX_NOTE_SIZE:
        raise FormatError(f"the note has {len(data)} bytes, more than {MAX_NOTE_SIZE}")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("the note is not UTF-8") from error
    text, separator, block = whole.rpartition("\n\n")
    text += "\n"
    if not separator or not block.endswith("\n"):
        raise FormatError("the note has no signature lines behind an empty line")
    _check_text(text)
    return ParsedNote(text, parse_signature_lines(block))


def parse_signature_lines(block: str) -> tuple[tuple[str, str, bytes], ...]:
    """(line, name, key id and signature) for each line of the block behind a note's empty line.

    Raises:
        FormatError: a line is malformed or there twice, or there are more than 100.
    """
    lines = block.removesuffix("\n").split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise FormatError(f"the note has more than {MAX_SIGNATURES} signatures")
    if len(set(lines)) != len(lines):
        raise FormatError("the note has the same signature line twice")
    return tuple((line + "\n", *_signature(line)) for line in lines)


def verify_signatures(note: bytes | ParsedNote, keys: Sequence[VerifierKey]) -> VerifiedNote:
    """The note with the valid signatures by keys of `keys`; there may be none.

    1. The note is UTF-8 of text, an empty line and 1 to 100 signature lines, each well formed and none twice.
    2. Every signature by a key of `keys` is valid, and no key signed twice.

    Signatures by other keys are ignored, as the specification says.

    Raises:
        FormatError: check 1 failed, a key signed twice, or two of `keys` have one name and key id.
        VerificationError: check 2 failed.
    """
    parsed = parse_note(note) if isinstance(note, bytes) else note
    trusted: dict[tuple[str, bytes], VerifierKey] = {}
    for key in keys:
        if trusted.setdefault((key.name, key.key_id), key) != key:
            raise FormatError(f"two trusted keys have the name {key.name} and one key id")
    found: dict[VerifierKey, NoteSignature] = {}
    for line, name, signature in parsed.signatures:
        known = trusted.get((name, signature[:4]))
        if known is None:
            continue
        if known in found:
            raise FormatError("the note has two signatures by one key")
        timestamp = known.verify(signature[4:], parsed.text.encode())
        found[known] = NoteSignature(known, timestamp, line)
    return VerifiedNote(parsed.text, tuple(found.values()))


def verify_note(data: bytes, keys: Sequence[VerifierKey]) -> str:
    """The text of the note, if it is well formed and a key of `keys` signed it.

    1. The note passes check 1 of `verify_signatures`.
    2. It passes check 2 of it, and there is at least one signature by a key of `keys`.

    Raises:
        FormatError: check 1 failed.
        VerificationError: check 2 failed.
    """
    note = verify_signatures(data, keys)
    if not note.signatures:
        raise untrusted(data, keys)
    return note.text


def untrusted(data: bytes, keys: Sequence[VerifierKey]) -> VerificationError:
    """The error of a well-formed note that no key of `keys` signed: whose signatures it has, and whose count."""
    signed = [f"{name}+{signature[:4].hex()}" for _, name, signature in parse_note(data).signatures]
    wanted = [f"{key.name}+{key.key_id.hex()}" for key in keys]
    return VerificationError(
        2,
        f"no trusted key signed the note: it is signed by {_some(signed)}, and trusted is {_some(wanted)}",
        remedy="Check the log's name and key in the policy",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], "..."] if len(names) > 3 else names) or "nobody"


def _signature(line: str) -> tuple[str, bytes]:
    if not line.startswith(_PREFIX):
        raise FormatError("a signature line does not begin with an em dash")
    name, space, encoded = line[len(_PREFIX) :].partition(" ")
    signature = decode_base64(encoded, "a signature")
    if not space or len(signature) < 5:
        raise FormatError("a signature line has no name or no signature")
    return check_name(name), signature
