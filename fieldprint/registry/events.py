"""Events: the log's entries about anchors, their parsing, and whose signatures each needs.

{"envelope":"<base64 of the signed statement>","type":"sign","v":1}
{"anchor":"<digest>","fieldprint":"<root>","kind":"identity","model":"<digest>","supersedes":[],"type":"promote","v":1}

The first form has seven types: sign, supersede, endorse, revoke, override, lift, status. A promotion is written by an
engine and not signed; it counts only for a registered anchor, and says of it what the registration says.
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from fieldprint.anchor.artifact import KINDS, check_digest
from fieldprint.anchor.dsse import (
    Envelope,
    check_keys,
    check_version,
    decode_base64,
    parse_canonical,
    valid_signers,
)
from fieldprint.anchor.policy import Policy
from fieldprint.anchor.sign import PAYLOAD_TYPE
from fieldprint.anchor.statements import (
    Endorsement,
    Lift,
    Override,
    Registration,
    Revocation,
    Statement,
    StatusRoot,
    Supersession,
)
from fieldprint.errors import FieldprintError, FormatError

MAX_EVENT_SIZE = 65535
PARSERS: Mapping[str, Callable[[bytes], Statement]] = {
    "sign": Registration.from_bytes,
    "supersede": Supersession.from_bytes,
    "endorse": Endorsement.from_bytes,
    "revoke": Revocation.from_bytes,
    "override": Override.from_bytes,
    "lift": Lift.from_bytes,
    "status": StatusRoot.from_bytes,
}
EVENT_TYPES = (*PARSERS, "promote")
ENDING = re.compile(rb',"type":"(' + "|".join(EVENT_TYPES).encode() + rb')","v":1\}\Z')
LONGEST_ENDING = 40


class EventError(FieldprintError):
    """An event is not believed; `why` is a short name that stays, `what` a sentence."""

    def __init__(self, why: str, what: str, *, remedy: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.why = why


@dataclass(frozen=True, slots=True)
class Promotion:
    """An anchor was pinned by an engine."""

    anchor: str
    fieldprint: str
    model: str
    kind: str
    supersedes: tuple[str, ...] = ()

    def to_entry(self) -> bytes:
        """The log entry."""
        return rfc8785.dumps(
            {
                "anchor": self.anchor,
                "fieldprint": self.fieldprint,
                "kind": self.kind,
                "model": self.model,
                "supersedes": list(self.supersedes),
                "type": "promote",
                "v": 1,
            }
        )


@dataclass(frozen=True, slots=True)
class Event:
    """What an entry says, and the names of the policy's keys that signed it, each once."""

    type: str
    content: Statement | Promotion
    signers: frozenset[str]


def event_entry(kind: str, signed: bytes) -> bytes:
    """The log entry of a signed statement; `kind` is its type, such as "sign".

    Raises:
        ValueError: there is no signed event of that type.
        FormatError: the entry would not fit into a log.
    """
    if kind not in PARSERS:
        raise ValueError(f"kind must be one of {', '.join(PARSERS)}")
    entry = rfc8785.dumps({"envelope": base64.b64encode(signed).decode(), "type": kind, "v": 1})
    if len(entry) > MAX_EVENT_SIZE:
        raise FormatError(
            f"the signed statement makes an entry of {len(entry)} bytes, more than {MAX_EVENT_SIZE}"
        )
    return entry


def registration_entry(signed: bytes) -> bytes:
    """The log entry of a signed registration."""
    return event_entry("sign", signed)


def revocation_entry(signed: bytes) -> bytes:
    """The log entry of a signed revocation."""
    return event_entry("revoke", signed)


def event_type(entry: bytes) -> str | None:
    """The type that the entry claims, or None if it is no event of this version.

    Canonical JSON sorts its fields, so each event ends with its type and version: others are passed over unparsed.
    """
    found = ENDING.search(entry, max(0, len(entry) - LONGEST_ENDING))
    return None if found is None else found[1].decode()


def read_event(kind: str, entry: bytes, policy: Policy) -> Event:
    """The event in an entry that claims the type `kind`, with who signed it.

    Raises:
        FormatError: the entry or its statement is malformed.
    """
    return read_fields(kind, parse_canonical(entry, "the entry", MAX_EVENT_SIZE), policy)


def read_fields(kind: str, fields: Mapping[str, Any], policy: Policy | None) -> Event:
    """The event in a parsed entry; without a policy nobody is known, and nobody signed.

    Raises:
        FormatError: the entry or its statement is malformed.
    """
    if kind == "promote":
        return Event(kind, _promotion(fields), frozenset())
    check_keys(fields, {"envelope", "type", "v"}, f"the {kind} entry")
    check_version(fields, kind, "the entry")
    envelope = Envelope.from_bytes(decode_base64(fields["envelope"], "the envelope"))
    if envelope.payload_type != PAYLOAD_TYPE:
        raise FormatError(f"the payload type is {envelope.payload_type[:60]!r}, not {PAYLOAD_TYPE}")
    content = PARSERS[kind](envelope.payload)
    if policy is None:
        return Event(kind, content, frozenset())
    names = (policy.name_of(signer) for signer in valid_signers(envelope, policy.trusted()))
    return Event(kind, content, frozenset(names))


def check_signers(event: Event, policy: Policy) -> None:
    """Raise EventError unless the policy's signers for this event, as many as it asks for, signed it.

    Whose signatures a supersession needs depends on the older anchor's kind: `check_kind_signers`.

    Raises:
        EventError: `no-rule`: the policy lets nobody do this. `signatures`: too few signed.
    """
    for purpose in _purposes(event.content):
        _check_rule(event, policy, purpose)


def check_kind_signers(event: Event, policy: Policy, kind: str) -> None:
    """Raise EventError unless the signers of this kind of anchor, as many as the policy asks for, signed the event."""
    _check_rule(event, policy, f"kind {kind}")


def _purposes(content: Statement | Promotion) -> tuple[str, ...]:
    match content:
        case Registration():
            return (f"kind {content.kind}",)
        case Revocation():
            return ("revocation",)
        case Endorsement():
            return tuple(f"endorsement {label}" for label in content.labels)
        case Override() | Lift():
            return ("override",)
        case StatusRoot():
            return ("status",)
        case Supersession() | Promotion():
            return ()


def _check_rule(event: Event, policy: Policy, purpose: str) -> None:
    rule = policy.signer_rules.get(purpose)
    if rule is None:
        raise EventError(
            "no-rule", f"the policy names nobody for: {purpose}", remedy="Name signers in the policy"
        )
    count = len(event.signers.intersection(rule.signers))
    if count < rule.threshold:
        raise EventError(
            "signatures",
            f"{count} of {rule.threshold} needed signatures for {purpose} are valid",
            remedy=f"It needs keys of {', '.join(rule.signers)}",
        )


def _promotion(fields: Mapping[str, Any]) -> Promotion:
    keys = {"anchor", "fieldprint", "kind", "model", "supersedes", "type", "v"}
    check_keys(fields, keys, "the promotion entry")
    check_version(fields, "promote", "the entry")
    supersedes = fields["supersedes"]
    if not isinstance(supersedes, list):
        raise FormatError("the promotion's supersedes is no list")
    if fields["kind"] not in KINDS:
        raise FormatError("the promotion's kind is not known")
    for digest in (fields["anchor"], fields["fieldprint"], fields["model"], *supersedes):
        check_digest(digest, "a digest of the promotion")
    return Promotion(
        str(fields["anchor"]),
        str(fields["fieldprint"]),
        str(fields["model"]),
        str(fields["kind"]),
        tuple(supersedes),
    )
