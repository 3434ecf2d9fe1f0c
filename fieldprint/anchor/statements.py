"""What is signed about anchors besides the artifact itself: in-toto Statements in canonical JSON, one class each.

    Registration   an artifact's metadata without its text, for a log that everybody reads
    Revocation     it must not be used any more
    Supersession   another one of its kind takes its place
    Endorsement    these taint labels do not hold for it
    Override       generate without it, or stop, whatever it says; Lift ends an override
    StatusRoot     the root over all revoked anchors, at a time

Who must have signed which stands in the policy; whether it is believed the registry decides.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, get_args

from fieldprint.anchor.artifact import (
    KINDS,
    NAME,
    AnchorArtifact,
    check_digest,
    check_labels,
    check_metadata,
    check_text,
    check_time,
    format_time,
    parse_statement,
    parse_time,
    statement,
    string_list,
)
from fieldprint.anchor.dsse import check_keys
from fieldprint.errors import FormatError

REGISTRATION_TYPE = "urn:fieldprint:registration:v1"
REVOCATION_TYPE = "urn:fieldprint:revocation:v1"
SUPERSESSION_TYPE = "urn:fieldprint:supersession:v1"
ENDORSEMENT_TYPE = "urn:fieldprint:endorsement:v1"
OVERRIDE_TYPE = "urn:fieldprint:override:v1"
LIFT_TYPE = "urn:fieldprint:lift:v1"
STATUS_TYPE = "urn:fieldprint:status:v1"
MAX_LINEAGE = 128  # parents, and superseded anchors, of a registration: it must fit into a log entry
MAX_TAINT = 32
MAX_ENDORSED = 16
MAX_REASON_BYTES = 4096
MAX_NUMBER = 2**53 - 1  # what canonical JSON keeps exactly
MAX_STATUS_AGE = 366 * 86400

Action = Literal["bypass", "freeze"]
Scope = Literal["anchor", "kind", "engine", "all"]


@dataclass(frozen=True, slots=True)
class Registration:
    """The statement that an artifact exists: its metadata, and the SHA-256 of its text in place of the text.

    Subject: `anchor`, the artifact's digest. Predicate:

    {"kind":"identity","name":"me","notAfter":"2027-11-24T00:00:00Z","notBefore":"2026-11-24T00:00:00Z","parents":[],
    "supersedes":[],"taint":[],"textSha256":"<digest>"}
    """

    anchor: str
    name: str
    kind: str
    text_sha256: str
    not_before: datetime
    not_after: datetime
    parents: tuple[str, ...] = ()
    taint: tuple[str, ...] = ()
    supersedes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_digest(self.anchor, "the registered anchor")
        check_digest(self.text_sha256, "the text of the registered anchor")
        validity = (self.not_before, self.not_after)
        check_metadata(self.name, self.kind, validity, self.parents, self.taint, self.supersedes)
        if max(len(self.parents), len(self.supersedes)) > MAX_LINEAGE or len(self.taint) > MAX_TAINT:
            raise FormatError(
                f"an anchor with more than {MAX_LINEAGE} parents or superseded anchors, or {MAX_TAINT} labels, "
                "cannot be registered"
            )
        if self.anchor in self.parents or self.anchor in self.supersedes:
            raise FormatError("an anchor is neither its own parent nor superseded by itself")

    @classmethod
    def of(cls, artifact: AnchorArtifact) -> "Registration":
        """The registration that belongs to the artifact.

        Raises:
            FormatError: it has more parents, superseded anchors or labels than a registration holds.
        """
        return cls(
            anchor=artifact.digest,
            name=artifact.name,
            kind=artifact.kind,
            text_sha256=sha256(artifact.text.encode()).hexdigest(),
            not_before=artifact.not_before,
            not_after=artifact.not_after,
            parents=artifact.parents,
            taint=artifact.taint,
            supersedes=artifact.supersedes,
        )

    def to_bytes(self) -> bytes:
        """Canonical bytes; `from_bytes` is their inverse."""
        predicate = {
            "kind": self.kind,
            "name": self.name,
            "notAfter": format_time(self.not_after),
            "notBefore": format_time(self.not_before),
            "parents": list(self.parents),
            "supersedes": list(self.supersedes),
            "taint": list(self.taint),
            "textSha256": self.text_sha256,
        }
        return statement(REGISTRATION_TYPE, "anchor", self.anchor, predicate)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Registration":
        """The registration in `data`, or FormatError."""
        keys = {"kind", "name", "notAfter", "notBefore", "parents", "supersedes", "taint", "textSha256"}
        anchor, fields = _parse(data, REGISTRATION_TYPE, keys, "anchor", "the registration")
        return cls(
            anchor=anchor,
            name=_string(fields["name"], "name"),
            kind=_string(fields["kind"], "kind"),
            text_sha256=fields["textSha256"],
            not_before=parse_time(fields["notBefore"]),
            not_after=parse_time(fields["notAfter"]),
            parents=string_list(fields["parents"], "parents"),
            taint=string_list(fields["taint"], "taint"),
            supersedes=string_list(fields["supersedes"], "supersedes"),
        )


@dataclass(frozen=True, slots=True)
class Revocation:
    """The statement that an artifact must not be used any more.

    Subject: `anchor`, its digest. Predicate: {"reason":"lost","time":"2027-01-15T09:30:00Z"}
    """

    anchor: str
    reason: str
    time: datetime

    def __post_init__(self) -> None:
        check_digest(self.anchor, "the revoked anchor")
        _check_reason(self.reason, self.time)

    def to_bytes(self) -> bytes:
        """Canonical bytes; `from_bytes` is their inverse."""
        predicate = {"reason": self.reason, "time": format_time(self.time)}
        return statement(REVOCATION_TYPE, "anchor", self.anchor, predicate)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Revocation":
        """The revocation in `data`, or FormatError."""
        anchor, fields = _parse(data, REVOCATION_TYPE, {"reason", "time"}, "anchor", "the revocation")
        return cls(anchor, fields["reason"], parse_time(fields["time"]))


@dataclass(frozen=True, slots=True)
class Supersession:
    """The statement that `newer`, another anchor of the same kind, takes the place of `anchor`.

    Subject: `anchor`, the older one's digest. Predicate: {"newer":"<digest>","reason":"...","time":"..."}
    """

    anchor: str
    newer: str
    reason: str
    time: datetime

    def __post_init__(self) -> None:
        check_digest(self.anchor, "the superseded anchor")
        check_digest(self.newer, "the newer anchor")
        _check_reason(self.reason, self.time)
        if self.anchor == self.newer:
            raise FormatError("an anchor does not supersede itself")

    def to_bytes(self) -> bytes:
        """Canonical bytes; `from_bytes` is their inverse."""
        predicate = {"newer": self.newer, "reason": self.reason, "time": format_time(self.time)}
        return statement(SUPERSESSION_TYPE, "anchor", self.anchor, predicate)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Supersession":
        """The supersession in `data`, or FormatError."""
        keys = {"newer", "reason", "time"}
        anchor, fields = _parse(data, SUPERSESSION_TYPE, keys, "anchor", "the supersession")
        return cls(anchor, fields["newer"], fields["reason"], parse_time(fields["time"]))


@dataclass(frozen=True, slots=True)
class Endorsement:
    """The statement that these taint labels do not hold for an anchor, nor for what descends from it through it.

    Subject: `anchor`, its digest. Predicate: {"labels":["untrusted"],"reason":"read by two of us","time":"..."}
    """

    anchor: str
    labels: tuple[str, ...]
    reason: str
    time: datetime

    def __post_init__(self) -> None:
        check_digest(self.anchor, "the endorsed anchor")
        check_labels(self.labels)
        _check_reason(self.reason, self.time)
        if not 0 < len(self.labels) <= MAX_ENDORSED:
            raise FormatError(f"an endorsement names 1 to {MAX_ENDORSED} labels")

    def to_bytes(self) -> bytes:
        """Canonical bytes; `from_bytes` is their inverse."""
        predicate = {"labels": list(self.labels), "reason": self.reason, "time": format_time(self.time)}
        return statement(ENDORSEMENT_TYPE, "anchor", self.anchor, predicate)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Endorsement":
        """The endorsement in `data`, or FormatError."""
        keys = {"labels", "reason", "time"}
        anchor, fields = _parse(data, ENDORSEMENT_TYPE, keys, "anchor", "the endorsement")
        labels = string_list(fields["labels"], "labels")
        return cls(anchor, labels, fields["reason"], parse_time(fields["time"]))


@dataclass(frozen=True, slots=True)
class Override:
    """The order to generate without anchors (`bypass`) or not at all (`freeze`), within a scope.

    Subject: the scope's name, with the target if that is an anchor, else SHA-256 of the target. Predicate:

    {"action":"freeze","expires":null,"number":7,"reason":"...","scope":"kind","target":"identity","time":"..."}

    target: an anchor's digest, a kind, an engine's name, or "*" for the scope `all`. number: greater than that of every
    override before it in the log. expires: until before when it holds, or None: until it is lifted.
    """

    action: Action
    scope: Scope
    target: str
    number: int
    reason: str
    time: datetime
    expires: datetime | None = None

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise FormatError("an override's action must be bypass or freeze")
        if self.scope == "anchor":
            check_digest(self.target, "the override's target")
        elif self.scope == "kind" and self.target not in KINDS:
            raise FormatError(f"the override's target must be one of {', '.join(KINDS)}")
        elif self.scope == "engine" and not NAME.fullmatch(self.target):
            raise FormatError("the override's target must be an engine's name: [a-z0-9._-]{1,64}")
        elif self.scope == "all" and self.target != "*":
            raise FormatError("an override of everything has the target *")
        elif self.scope not in get_args(Scope):
            raise FormatError("an override's scope must be anchor, kind, engine or all")
        _check_integer(self.number, 1, MAX_NUMBER, "an override's number")
        _check_reason(self.reason, self.time)
        if self.expires is not None:
            check_time(self.expires, "an override's end")
            if self.expires <= self.time:
                raise FormatError("the override holds for no time: it expires before it begins")

    def holds(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.expires is None or now < self.expires

    def concerns(
        self, *, anchor: str | None = None, kind: str | None = None, engine: str | None = None
    ) -> bool:
        """Whether its scope takes in this anchor, kind or engine."""
        if self.scope == "all":
            return True
        return self.target == {"anchor": anchor, "kind": kind, "engine": engine}[self.scope]

    def to_bytes(self) -> bytes:
        """Canonical bytes; `from_bytes` is their inverse."""
        predicate = {
            "action": self.action,
            "expires": None if self.expires is None else format_time(self.expires),
            "number": self.number,
            "reason": self.reason,
            "scope": self.scope,
            "target": self.target,
            "time": format_time(self.time),
        }
        return statement(OVERRIDE_TYPE, self.scope, self._subject, predicate)

    @property
    def _subject(self) -> str:
        return self.target if self.scope == "anchor" else sha256(self.target.encode()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Override":
        """The override in `data`, or FormatError."""
        subject, fields = parse_statement(data, OVERRIDE_TYPE)
        keys = {"action", "expires", "number", "reason", "scope", "target", "time"}
        check_keys(fields, keys, "the override")
        for name in ("action", "scope", "target"):
            _string(fields[name], name)
        made = cls(
            action=fields["action"],
            scope=fields["scope"],
            target=fields["target"],
            number=fields["number"],
            reason=fields["reason"],
            time=parse_time(fields["time"]),
            expires=None if fields["expires"] is None else parse_time(fields["expires"]),
        )
        if subject != (made.scope, made._subject):
            raise FormatError("the statement's subject is not the override's scope")
        return made


def strongest(
    orders: Iterable[Override],
    now: datetime,
    *,
    anchor: str | None = None,
    kind: str | None = None,
    engine: str | None = None,
) -> Override | None:
    """The one of these overrides that counts for this anchor, kind or engine: a freeze before a bypass, then the newest."""
    found = [
        order
        for order in orders
        if order.holds(now) and order.concerns(anchor=anchor, kind=kind, engine=engine)
    ]
    return max(found, key=lambda order: (order.action == "freeze", order.number), default=None)


@dataclass(frozen=True, slots=True)
class Lift:
    """The order that the override with this number ends (`restore`).

    Subject: `override`, SHA-256 of the number in decimal. Predicate: {"number":7,"reason":"...","time":"..."}
    """

    number: int
    reason: str
    time: datetime

    def __post_init__(self) -> None:
        _check_integer(self.number, 1, MAX_NUMBER, "an override's number")
        _check_reason(self.reason, self.time)

    def to_bytes(self) -> bytes:
        """Canonical bytes; `from_bytes` is their inverse."""
        predicate = {"number": self.number, "reason": self.reason, "time": format_time(self.time)}
        return statement(LIFT_TYPE, "override", self._subject, predicate)

    @property
    def _subject(self) -> str:
        return sha256(str(self.number).encode()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Lift":
        """The lift in `data`, or FormatError."""
        digest, fields = _parse(data, LIFT_TYPE, {"number", "reason", "time"}, "override", "the lift")
        made = cls(fields["number"], fields["reason"], parse_time(fields["time"]))
        if digest != made._subject:
            raise FormatError("the statement's subject is not the lifted override")
        return made


@dataclass(frozen=True, slots=True)
class StatusRoot:
    """The statement which anchors are revoked: the root of the tree over their digests.

    Subject: `status`, the root. Predicate: {"count":2,"maxAge":3600,"size":4711,"time":"..."}

    count: revoked anchors. size: entries of the log that were replayed. max_age: seconds for which it may be relied on.
    """

    root: str
    count: int
    size: int
    time: datetime
    max_age: int

    def __post_init__(self) -> None:
        check_digest(self.root, "the status root")
        _check_integer(self.size, 0, MAX_NUMBER, "the status root's size")
        _check_integer(self.count, 0, self.size, "the status root's count")
        _check_integer(self.max_age, 1, MAX_STATUS_AGE, "the status root's age")
        check_time(self.time, "the status root's time")

    def to_bytes(self) -> bytes:
        """Canonical bytes; `from_bytes` is their inverse."""
        predicate = {
            "count": self.count,
            "maxAge": self.max_age,
            "size": self.size,
            "time": format_time(self.time),
        }
        return statement(STATUS_TYPE, "status", self.root, predicate)

    @classmethod
    def from_bytes(cls, data: bytes) -> "StatusRoot":
        """The status root in `data`, or FormatError."""
        keys = {"count", "maxAge", "size", "time"}
        root, fields = _parse(data, STATUS_TYPE, keys, "status", "the status root")
        return cls(root, fields["count"], fields["size"], parse_time(fields["time"]), fields["maxAge"])


Statement = Registration | Revocation | Supersession | Endorsement | Override | Lift | StatusRoot


def _parse(data: bytes, kind: str, keys: set[str], subject: str, what: str) -> tuple[str, dict[str, Any]]:
    """(the subject's digest, the predicate) of a statement with this subject name and these fields."""
    (name, digest), fields = parse_statement(data, kind)
    check_keys(fields, keys, what)
    if name != subject:
        raise FormatError(f"{what} must have a subject named {subject}")
    return digest, fields


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise FormatError(f"the statement's {what} must be a text")
    return value


def _check_reason(reason: object, time: datetime) -> None:
    check_text(reason)
    if len(str(reason).encode()) > MAX_REASON_BYTES:
        raise FormatError(f"a reason has at most {MAX_REASON_BYTES} bytes")
    check_time(time, "the statement's time")


def _check_integer(value: object, low: int, high: int, what: str) -> None:
    if type(value) is not int or not low <= value <= high:
        raise FormatError(f"{what} must be an integer from {low} to {high}")
