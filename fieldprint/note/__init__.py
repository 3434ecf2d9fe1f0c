"""Signed notes (c2sp.org/signed-note): text and keys to signed text, and back only if a trusted key signed it."""

from fieldprint.note.key import Cosigner, NoteSigner, VerifierKey
from fieldprint.note.signature import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    COSIGNATURES,
    ED25519,
    LOG_SIGNATURES,
    MAX_TIMESTAMP,
    SignatureType,
)
from fieldprint.note.signed import (
    MAX_NOTE_SIZE,
    MAX_SIGNATURES,
    NoteSignature,
    ParsedNote,
    VerifiedNote,
    parse_note,
    sign_note,
    signature_line,
    verify_note,
    verify_signatures,
)

__all__ = [
    "COSIGNATURES",
    "COSIGNATURE_ED25519",
    "COSIGNATURE_MLDSA44",
    "ED25519",
    "LOG_SIGNATURES",
    "MAX_NOTE_SIZE",
    "MAX_SIGNATURES",
    "MAX_TIMESTAMP",
    "Cosigner",
    "NoteSignature",
    "NoteSigner",
    "ParsedNote",
    "SignatureType",
    "VerifiedNote",
    "VerifierKey",
    "parse_note",
    "sign_note",
    "signature_line",
    "verify_note",
    "verify_signatures",
]
