"""That an anchor is not revoked, shown to a verifier who does not replay the log.

    revoked set -> tlog.status.StatusTree -> StatusRoot, signed -> log entry -> proof of the entry + absence proof

A log proves presence, never absence: so the set of all revoked anchors has a root, which is signed, logged and good
for a while. Who cannot get a fresh one refuses. What a proof does not say: whether an ancestor is revoked, or an
override in force; for that one needs the log.
"""

import base64
from dataclasses import dataclass
from datetime import datetime, timedelta

import rfc8785

from fieldprint.anchor.artifact import format_time
from fieldprint.anchor.dsse import check_keys, check_version, decode_base64, parse_canonical
from fieldprint.anchor.policy import Policy
from fieldprint.anchor.statements import StatusRoot
from fieldprint.errors import FormatError, VerificationError
from fieldprint.registry.events import EventError, check_signers, event_type, read_event
from fieldprint.registry.state import Registry
from fieldprint.tlog.proof import MAX_PROOF_SIZE, LogProof, prove_entry, verify_log_proof
from fieldprint.tlog.reader import LogReader
from fieldprint.tlog.status import MAX_STATUS_PROOF_SIZE, AbsenceProof, verify_absent

MAX_SKEW = timedelta(seconds=60)  # a signer's clock may be ahead by so much
MAX_STATUS_FILE_SIZE = 2 * (MAX_PROOF_SIZE + MAX_STATUS_PROOF_SIZE)


@dataclass(frozen=True, slots=True)
class StatusProof:
    """A signed status root in a log, and the proof that one anchor is not in the set that it stands for.

    {"absence":"<base64 of an absence proof>","root":"<base64 of a .tlog-proof with the entry>","type":"status-proof","v":1}
    """

    root: LogProof
    absence: AbsenceProof

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785); `from_bytes` is its inverse."""
        return rfc8785.dumps(
            {
                "absence": base64.b64encode(self.absence.to_bytes()).decode(),
                "root": base64.b64encode(self.root.to_bytes()).decode(),
                "type": "status-proof",
                "v": 1,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "StatusProof":
        """The proof in `data`, or FormatError; nothing is verified."""
        fields = parse_canonical(data, "the status proof", MAX_STATUS_FILE_SIZE)
        check_keys(fields, {"absence", "root", "type", "v"}, "the status proof")
        check_version(fields, "status-proof", "the status proof")
        root = decode_base64(fields["root"], "the status proof's root")
        absence = decode_base64(fields["absence"], "the status proof's absence")
        return cls(LogProof.from_bytes(root), AbsenceProof.from_bytes(absence))


def prove_not_revoked(registry: Registry, log: LogReader, anchor: str) -> StatusProof:
    """The proof that the anchor was not revoked at the last status root, by who has replayed this log.

    Raises:
        VerificationError: there is no status root yet, the anchor is revoked, or another one was revoked since.
    """
    if registry.status is None:
        raise VerificationError(
            1, "the log holds no status root yet", remedy="Whoever signs them must add one"
        )
    if anchor in registry.revoked:
        raise VerificationError(2, "the anchor is revoked", remedy="Sign a new anchor")
    index, root = registry.status
    if root.count != len(registry.revoked):
        raise VerificationError(3, "an anchor was revoked since the last status root", remedy="Add a new one")
    absence = registry.status_tree.prove_absent(bytes.fromhex(anchor))
    return StatusProof(prove_entry(log, index, with_entry=True), absence)


def verify_not_revoked(proof: StatusProof, policy: Policy, anchor: str, now: datetime) -> StatusRoot:
    """Return the status root only if every check below holds.

    1. The proof's entry is in the policy's log, cosigned as the policy asks (`verify_log_proof`).
    2. It is a status root that the policy's status signers signed, over no more entries than stand before it.
    3. At `now` it is no older than it allows and than the policy allows, and not from the future.
    4. The anchor is not in the set (`verify_absent`).

    Raises:
        VerificationError: with the number of the check.
    """
    try:
        entry = verify_log_proof(proof.root.to_bytes(), policy)
    except VerificationError as error:
        raise VerificationError(1, error.what, remedy=error.remedy) from error
    try:
        if event_type(entry.entry) != "status":
            raise FormatError("the entry is no status root")
        event = read_event("status", entry.entry, policy)
        check_signers(event, policy)
    except (FormatError, EventError) as error:
        raise VerificationError(2, error.what, remedy=error.remedy) from error
    root = event.content
    if not isinstance(root, StatusRoot) or policy.status is None or root.size > entry.index:
        raise VerificationError(2, "the status root counts entries that stand behind it")
    longest = timedelta(seconds=min(root.max_age, policy.status.max_age_seconds))
    if not -MAX_SKEW <= now - root.time <= longest:
        raise VerificationError(
            3,
            f"the status root is of {format_time(root.time)}, and may be {int(longest.total_seconds())} s old",
            remedy="Get a fresh one",
        )
    try:
        verify_absent(bytes.fromhex(anchor), proof.absence, bytes.fromhex(root.root), root.count)
    except VerificationError as error:
        raise VerificationError(4, error.what, remedy="Get a proof for this anchor") from error
    return root
