"""The registry: which anchors were promoted, superseded and revoked, as replaying the log gives it.

Events are log entries in canonical JSON:

    {"anchor":"<digest>","fieldprint":"<root>","kind":"identity","model":"<digest>","supersedes":[],"type":"promote","v":1}
    {"envelope":"<base64 of the signed revocation>","type":"revoke","v":1}

The log holds everything that was appended; the registry believes a revocation only if the policy's revokers signed it.
A promotion is written by the engine; what it supersedes it read from a verified artifact. It supersedes anchors of its
own kind only: whoever may sign observations cannot put an identity out of use.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field

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
from fieldprint.anchor.statements import Revocation
from fieldprint.errors import FormatError, VerificationError

MAX_EVENT_SIZE = 65535


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


def revocation_entry(signed: bytes) -> bytes:
    """The log entry of a signed revocation."""
    return rfc8785.dumps({"envelope": base64.b64encode(signed).decode(), "type": "revoke", "v": 1})


@dataclass(slots=True)
class Registry:
    """What the events say: promotions in order, superseded (digest, kind of the newer anchor), revocations by digest."""

    promotions: list[Promotion] = field(default_factory=list)
    superseded: set[tuple[str, str]] = field(default_factory=set)
    revoked: dict[str, Revocation] = field(default_factory=dict)

    @classmethod
    def replay(cls, entries: Iterable[bytes], policy: Policy) -> "Registry":
        """The registry after all entries; entries that are no events, or not signed as they must be, change nothing."""
        registry = cls()
        for entry in entries:
            try:
                fields = parse_canonical(entry, "the entry", MAX_EVENT_SIZE)
                if fields.get("type") == "revoke":
                    revocation = read_revocation(fields, policy)
                    registry.revoked.setdefault(revocation.anchor, revocation)
                elif fields.get("type") == "promote":
                    promotion = read_promotion(fields)
                    registry.promotions.append(promotion)
                    registry.superseded.update((digest, promotion.kind) for digest in promotion.supersedes)
            except (FormatError, VerificationError):
                continue
        return registry


def read_envelope(fields: dict[str, object]) -> Envelope:
    """The envelope in a parsed `revoke` entry, whoever signed it.

    Raises:
        FormatError: the entry is malformed.
    """
    check_keys(fields, {"envelope", "type", "v"}, "the revocation entry")
    check_version(fields, "revoke", "the entry")
    return Envelope.from_bytes(decode_base64(fields["envelope"], "the revocation"))


def read_revocation(fields: dict[str, object], policy: Policy) -> Revocation:
    """The revocation in a parsed `revoke` entry, if the policy's revokers signed it.

    Raises:
        FormatError: the entry is malformed. VerificationError: too few revokers signed; check 1.
    """
    envelope = read_envelope(fields)
    signers = valid_signers(envelope, policy.trusted(policy.revokers))
    if envelope.payload_type != PAYLOAD_TYPE or len(signers) < policy.revocation_threshold:
        raise VerificationError(
            1,
            f"{len(signers)} of {policy.revocation_threshold} needed signatures on the revocation are valid",
        )
    return Revocation.from_bytes(envelope.payload)


def read_promotion(fields: dict[str, object]) -> Promotion:
    """The promotion in a parsed `promote` entry.

    Raises:
        FormatError: the entry is malformed.
    """
    check_keys(
        fields,
        {"anchor", "fieldprint", "kind", "model", "supersedes", "type", "v"},
        "the promotion entry",
    )
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
