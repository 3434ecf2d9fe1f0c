"""The artifact: what is signed. Canonical JSON (RFC 8785) of an in-toto Statement (in-toto.io/Statement/v1)."""

import re
import unicodedata
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import rfc8785

from fieldprint.anchor.dsse import check_keys, parse_canonical
from fieldprint.errors import FormatError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:fieldprint:anchor:v1"
KINDS = ("identity", "policy", "memory", "assertion", "observation")
BEFORE = "-before"
FORMS = ("chat-system", "raw", "chat-system" + BEFORE, "raw" + BEFORE)
BLOCK = 32  # tokens; a fieldprint before position 0 fills whole blocks, and an engine's are of 16 or 32
MAX_TEXT_BYTES = 65536
MAX_ARTIFACT_SIZE = 512 * 1024
NAME = re.compile(r"[a-z0-9._-]{1,64}")
HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
TIME = re.compile(
    r"[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}T(?!24)[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
)  # years as strftime writes them; hour 24 is midnight to Pythons from 3.14 on
# Unicode's Default_Ignorable_Code_Point where the category is none of Cc, Cf, Co: no font draws them, and a tokenizer reads
# them. Among them are the variation selectors, which can hide any bytes behind a letter.
UNDRAWN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)


@dataclass(frozen=True, slots=True)
class FieldprintRecord:
    """The fieldprint of the text under one model: sizes and root, hex digests throughout.

    form: "chat-system" (the text as the chat template writes a system message) or "raw", realized at positions
    0..A-1. With "-before" behind it the same tokens end at position -1, for engines whose query is the same for context
    and anchor; filler in front of them makes A = num_tokens a multiple of BLOCK.
    """

    model: str
    form: str
    num_tokens: int
    token_ids_sha256: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    quantizer: str
    root: str

    def __post_init__(self) -> None:
        for name in ("model", "token_ids_sha256", "root"):
            check_digest(getattr(self, name), f"the fieldprint's {name}")
        for name in ("num_tokens", "num_layers", "num_kv_heads", "head_dim", "page_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
                raise FormatError(f"the fieldprint's {name} must be a positive integer")
        if self.form not in FORMS or self.quantizer != "int8-pow2-v1":
            raise FormatError("the fieldprint's form or quantizer is not known")
        if self.before and self.num_tokens % BLOCK:
            raise FormatError(
                f"a fieldprint of the form {self.form} must fill blocks of {BLOCK} tokens, and has {self.num_tokens}"
            )

    @property
    def before(self) -> bool:
        """Whether it lies at positions -A..-1, not at 0..A-1."""
        return self.form.endswith(BEFORE)


@dataclass(frozen=True, slots=True)
class AnchorArtifact:
    """A text with its kind, lineage, taint, validity, and its fieldprints.

    parents, supersedes: hex digests of other artifacts. not_before, not_after: UTC, whole seconds.
    """

    name: str
    kind: str
    text: str
    not_before: datetime
    not_after: datetime
    parents: tuple[str, ...] = ()
    taint: tuple[str, ...] = ()
    supersedes: tuple[str, ...] = ()
    fieldprints: tuple[FieldprintRecord, ...] = ()

    def __post_init__(self) -> None:
        validity = (self.not_before, self.not_after)
        check_metadata(self.name, self.kind, validity, self.parents, self.taint, self.supersedes)
        check_text(self.text)
        if len({(record.model, record.before) for record in self.fieldprints}) != len(self.fieldprints):
            raise FormatError("an anchor has at most one fieldprint for a model and placement")

    @property
    def digest(self) -> str:
        """Hex SHA-256 of `to_bytes()`: the anchor's identity."""
        return sha256(self.to_bytes()).hexdigest()

    def record_for(self, model: str, *, before: bool = False) -> FieldprintRecord | None:
        """The fieldprint under the model with this digest, if there is one; `before`: the one before position 0."""
        found = (record for record in self.fieldprints if (record.model, record.before) == (model, before))
        return next(found, None)

    def to_bytes(self) -> bytes:
        """Canonical bytes; `from_bytes` is their inverse."""
        predicate = {
            "fieldprints": [asdict(record) for record in self.fieldprints],
            "kind": self.kind,
            "name": self.name,
            "notAfter": format_time(self.not_after),
            "notBefore": format_time(self.not_before),
            "parents": list(self.parents),
            "supersedes": list(self.supersedes),
            "taint": list(self.taint),
            "text": self.text,
        }
        text_digest = sha256(self.text.encode()).hexdigest()
        return statement(PREDICATE_TYPE, f"anchor/{self.name}", text_digest, predicate)

    @classmethod
    def from_bytes(cls, data: bytes) -> "AnchorArtifact":
        """The artifact in `data`.

        Raises:
            FormatError: not canonical, not of this form, or the subject is not the text's.
        """
        subject, predicate = parse_statement(data, PREDICATE_TYPE)
        keys = {
            "fieldprints",
            "kind",
            "name",
            "notAfter",
            "notBefore",
            "parents",
            "supersedes",
            "taint",
            "text",
        }
        check_keys(predicate, keys, "the anchor")
        if not all(isinstance(predicate[name], str) for name in ("kind", "name", "text")):
            raise FormatError("the anchor's kind, name and text must be texts")
        records = predicate["fieldprints"]
        if not isinstance(records, list) or len(records) > 64:
            raise FormatError("the anchor's fieldprints must be a list of at most 64")
        for record in records:
            check_keys(record, set(FieldprintRecord.__dataclass_fields__), "a fieldprint of the anchor")
        artifact = cls(
            name=predicate["name"],
            kind=predicate["kind"],
            text=predicate["text"],
            not_before=parse_time(predicate["notBefore"]),
            not_after=parse_time(predicate["notAfter"]),
            parents=string_list(predicate["parents"], "parents"),
            taint=string_list(predicate["taint"], "taint"),
            supersedes=string_list(predicate["supersedes"], "supersedes"),
            fieldprints=tuple(FieldprintRecord(**record) for record in records),
        )
        expected = (f"anchor/{artifact.name}", sha256(artifact.text.encode()).hexdigest())
        if subject != expected:
            raise FormatError("the statement's subject is not the anchor's text")
        return artifact


def statement(predicate_type: str, name: str, digest: str, predicate: dict[str, Any]) -> bytes:
    """Canonical bytes of an in-toto Statement over one subject."""
    return rfc8785.dumps(
        {
            "_type": STATEMENT_TYPE,
            "predicate": predicate,
            "predicateType": predicate_type,
            "subject": [{"digest": {"sha256": digest}, "name": name}],
        }
    )


def parse_statement(data: bytes, predicate_type: str) -> tuple[tuple[str, str], dict[str, Any]]:
    """((subject name, its SHA-256), predicate) of a Statement of this type, or FormatError."""
    fields = parse_canonical(data, "the statement", MAX_ARTIFACT_SIZE)
    check_keys(fields, {"_type", "predicate", "predicateType", "subject"}, "the statement")
    if fields["_type"] != STATEMENT_TYPE or fields["predicateType"] != predicate_type:
        raise FormatError(f"the statement is not of type {predicate_type}")
    subjects = fields["subject"]
    if not isinstance(subjects, list) or len(subjects) != 1:
        raise FormatError("the statement must have one subject")
    check_keys(subjects[0], {"digest", "name"}, "the subject")
    check_keys(subjects[0]["digest"], {"sha256"}, "the subject's digest")
    if not isinstance(fields["predicate"], dict):
        raise FormatError("the statement's predicate is not an object")
    return (subjects[0]["name"], subjects[0]["digest"]["sha256"]), fields["predicate"]


def check_metadata(
    name: str,
    kind: str,
    validity: tuple[datetime, datetime],
    parents: tuple[str, ...],
    taint: tuple[str, ...],
    supersedes: tuple[str, ...],
) -> None:
    """Raise FormatError unless these are well formed, as an artifact and its registration hold them."""
    if not NAME.fullmatch(name):
        raise FormatError(f"an anchor's name must match [a-z0-9._-]{{1,64}}, not {name[:80]!r}")
    if kind not in KINDS:
        raise FormatError(f"an anchor's kind must be one of {', '.join(KINDS)}")
    for digest in (*parents, *supersedes):
        check_digest(digest, "a parent or superseded anchor")
    check_sorted(parents, "parents")
    check_labels(taint)
    check_sorted(supersedes, "supersedes")
    for time in validity:
        check_time(time, "validity")
    if validity[0] >= validity[1]:
        raise FormatError("the anchor is valid for no time: not_before is not before not_after")


def check_labels(labels: tuple[str, ...]) -> None:
    """Raise FormatError unless these are taint labels, sorted, each once."""
    for label in labels:
        check_label(label)
    check_sorted(labels, "taint")


def check_label(label: str) -> None:
    """Raise FormatError unless it is a taint label."""
    if not NAME.fullmatch(label):
        raise FormatError(f"a taint label must match [a-z0-9._-]{{1,64}}, not {label[:80]!r}")


def check_sorted(items: tuple[str, ...], what: str) -> None:
    """Raise FormatError unless the items are sorted by code point, each once."""
    if list(items) != sorted(set(items)):
        raise FormatError(f"{what} must be sorted, each once")


def check_time(time: datetime, what: str) -> None:
    """Raise FormatError unless the time has a zone and whole seconds."""
    if time.utcoffset() is None or time.microsecond:
        raise FormatError(f"{what} must be in UTC and whole seconds")


def check_text(text: object) -> None:
    """Raise FormatError unless `text` is text that looks the same to everybody: NFC, nothing that is not drawn."""
    if not isinstance(text, str) or not text:
        raise FormatError("an anchor's text must not be empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise FormatError("the text holds unpaired surrogates") from None
    if size > MAX_TEXT_BYTES:
        raise FormatError(f"the text has {size} bytes, more than {MAX_TEXT_BYTES}")
    if not unicodedata.is_normalized("NFC", text):
        raise FormatError("the text is not in Unicode's normal form C")
    for character in text:
        hidden = unicodedata.category(character) in ("Cc", "Cf", "Co") or UNDRAWN.match(character)
        if character not in "\n\t" and hidden:
            raise FormatError(f"the text holds the invisible character U+{ord(character):04X}")


def check_digest(value: object, what: str) -> None:
    """Raise FormatError unless `value` is 64 lower-case hex digits."""
    if not isinstance(value, str) or not HEX_DIGEST.fullmatch(value):
        raise FormatError(f"{what} must be a digest of 64 hex digits")


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC: 2026-11-24T00:00:00Z."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: object) -> datetime:
    """The time that `format_time` wrote, or FormatError."""
    try:
        if not isinstance(text, str) or not TIME.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text)
    except ValueError:
        raise FormatError(f"{str(text)[:40]!r} is not a time like 2026-11-24T00:00:00Z") from None


def string_list(value: object, what: str) -> tuple[str, ...]:
    """The texts of a JSON list, or FormatError."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FormatError(f"{what} must be a list of texts")
    return tuple(value)
