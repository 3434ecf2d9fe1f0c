"""Auditing a whole log: what `tlog.audit` checks of the tree, and every entry by its type.

    source, keys, policy, state -> tlog.audit.LogAudit -> bundles -> EntryCheck -> Progress, state

A wrong tree ends the audit at once: nothing behind it can be believed. A wrong entry is a finding: it is in the log for
good, so the audit goes on and says so at the end, this time and every later time.

6. An entry of a type of the registry's (`sign`, `promote`, `supersede`, `endorse`, `revoke`, `override`, `lift`, `status`)
   or of type `commitment` or `abort` parses, in canonical bytes; as many of the policy's signers for it as it asks for signed
   it; a commitment follows the one before it of the same request. Other entries are counted.

What an event may say after the events before it, the registry decides (`Registry.apply`); so it does whether a supersession
was signed by the signers of the older anchor's kind.
"""

import base64
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import rfc8785

from fieldprint.anchor.dsse import check_keys, check_version, decode_base64, parse_canonical
from fieldprint.anchor.policy import Policy
from fieldprint.commit.leaf import AbortEntry, Commitment
from fieldprint.errors import FieldprintError, FormatError, LogError
from fieldprint.registry import EVENT_TYPES, MAX_EVENT_SIZE, EventError, check_signers, read_fields
from fieldprint.tlog.audit import Audited, LogAudit
from fieldprint.tlog.storage import Source
from fieldprint.tlog.storage.disk import replace_file
from fieldprint.tlog.trust import Trust, verify_checkpoint

KINDS = (*EVENT_TYPES, "commitment", "abort", "other")
MAX_STATE_SIZE = 64 << 20
MAX_CHAINS = 10_000
MAX_FINDINGS = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """An entry that is not what its type promises."""

    index: int
    what: str


@dataclass(slots=True)
class EntryCheck:
    """Check 6, entry by entry; memory is bounded by the requests that are open at a time.

    counts: entries by type. findings: the first hundred; `num_findings` counts all. chains: of each request that has not
    ended, its next page and position and the hash of its last leaf, "" where an abort entry took it back to an earlier page.
    unfollowed: commitments whose chain was left behind, because more than ten thousand requests were open at a time or
    because of such an abort; they are parsed, and not compared with the leaf before.
    """

    policy: Policy | None = None
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    num_findings: int = 0
    chains: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    dropped: int = 0
    unfollowed: int = 0

    def copy(self) -> "EntryCheck":
        """Another that goes on from here and leaves this one as it is."""
        return replace(
            self, counts=self.counts.copy(), findings=self.findings.copy(), chains=self.chains.copy()
        )

    def add(self, index: int, entry: bytes, leaf_hash: bytes) -> None:
        """Check the entry and count it."""
        kind = "other"
        if entry[:1] == b"{":
            try:
                fields = parse_canonical(entry, "the entry", MAX_EVENT_SIZE)
            except FormatError:
                fields = {}
            kind = str(fields.get("type")) if fields.get("type") in KINDS[:-1] else "other"
        self.counts[kind] += 1
        if kind == "other":
            return
        try:
            self._check(kind, fields, leaf_hash)
        except (FormatError, EventError) as error:
            self.num_findings += 1
            if len(self.findings) < MAX_FINDINGS:
                self.findings.append(Finding(index, error.what))

    def _check(self, kind: str, fields: dict[str, Any], leaf_hash: bytes) -> None:
        if kind == "abort":
            self._go_back(AbortEntry.from_fields(fields))
        elif kind == "commitment":
            self._follow(Commitment.from_fields(fields), leaf_hash.hex())
        else:
            event = read_fields(kind, fields, self.policy)
            if self.policy is not None:
                check_signers(event, self.policy)

    def _follow(self, leaf: Commitment, leaf_hash: str) -> None:
        known = self.chains.pop(leaf.request, None)
        if leaf.text is None:
            self._expect(leaf.request, (leaf.page + 1, leaf.end, leaf_hash))
        if known is None and leaf.page > 0 and self.dropped:
            self.unfollowed += 1
            return
        page, start, previous = known or (0, 0, None)
        if previous == "" and leaf.page == page and leaf.previous is not None:
            self.unfollowed += 1
            return
        if (leaf.page, leaf.start, leaf.previous) != (page, start, previous):
            raise FormatError(
                f"the commitment is page {leaf.page} of request {leaf.request[:16]} from position {leaf.start}; "
                f"page {page} from position {start} is what follows the leaf before it"
            )

    def _go_back(self, abort: AbortEntry) -> None:
        """After an abort its page comes next, and the leaves from there on that the log may hold do not count."""
        known = self.chains.pop(abort.request, None)
        if known is not None and known[0] == abort.page:
            self._expect(abort.request, known)
        elif abort.page > 0:
            self._expect(abort.request, (abort.page, 0, ""))

    def _expect(self, request: str, following: tuple[int, int, str]) -> None:
        self.chains[request] = following
        if len(self.chains) > MAX_CHAINS:
            del self.chains[next(iter(self.chains))]
            self.dropped += 1


@dataclass(slots=True)
class AuditState:
    """What an audit leaves for the next one.

    {"audited":{"checkpoint":"<note>","position":600},"entries":{...},"sha256":"<hex>","signers":"<hex>",
    "type":"audit-state","v":1}

    signers: SHA-256 over the canonical JSON of whose signatures were checked, or null if none were: purpose to key ids and
    threshold, {"kind identity":{"keys":["<key id>",...],"threshold":1},"revocation":{...}}. sha256: over the canonical JSON
    without that field. It finds damage; who can write the file can write it too, so keep it where the log's operator cannot.
    """

    audited: Audited
    entries: EntryCheck

    def to_bytes(self) -> bytes:
        """The file; `from_bytes` is its inverse."""
        entries = self.entries
        fields: dict[str, Any] = {
            "audited": {
                "checkpoint": base64.b64encode(self.audited.signed_checkpoint).decode(),
                "position": self.audited.position,
            },
            "entries": {
                "chains": [[name, *chain] for name, chain in entries.chains.items()],
                "counts": {kind: entries.counts[kind] for kind in KINDS},
                "dropped": entries.dropped,
                "findings": [[finding.index, finding.what] for finding in entries.findings],
                "num_findings": entries.num_findings,
                "unfollowed": entries.unfollowed,
            },
            "signers": _signers(entries.policy),
            "type": "audit-state",
            "v": 1,
        }
        return rfc8785.dumps({**fields, "sha256": sha256(rfc8785.dumps(fields)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, trust: Trust, policy: Policy | None) -> "AuditState":
        """The state in a file.

        Raises:
            FormatError: damaged, of another form, beyond its checkpoint's tree, or made with other signers than the
                policy's. VerificationError: its checkpoint is not signed by the log's key.
        """
        fields = parse_canonical(data, "the state file", MAX_STATE_SIZE)
        check_keys(fields, {"audited", "entries", "sha256", "signers", "type", "v"}, "the state file")
        check_version(fields, "audit-state", "the state file")
        claimed = fields.pop("sha256")
        if claimed != sha256(rfc8785.dumps(fields)).hexdigest():
            raise FormatError("the state file's digest is not that of its content")
        if fields["signers"] != _signers(policy):
            raise FormatError(
                "events up to there were checked with other signers than this policy's, or with none"
            )
        check_keys(fields["audited"], {"checkpoint", "position"}, "the state file")
        signed = decode_base64(fields["audited"]["checkpoint"], "the state file's checkpoint")
        position = _count(fields["audited"]["position"])
        if position > verify_checkpoint(signed, trust.log_keys).tree_size:
            raise FormatError("the state file is beyond its checkpoint")
        return cls(Audited(signed, position), _entries(fields["entries"], position, policy))


def _signers(policy: Policy | None) -> str | None:
    """What of a policy decides on check 6, as a digest."""
    if policy is None:
        return None
    rules: dict[str, Any] = {
        what: {"keys": sorted(policy.trusted(rule.signers)), "threshold": rule.threshold}
        for what, rule in policy.signer_rules.items()
    }
    return sha256(rfc8785.dumps(rules)).hexdigest()


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise FormatError("the state file has something else where a count stands")
    return value


def _entries(fields: Any, position: int, policy: Policy | None) -> EntryCheck:
    names = {"chains", "counts", "dropped", "findings", "num_findings", "unfollowed"}
    check_keys(fields, names, "the state file's entries")
    check_keys(fields["counts"], set(KINDS), "the state file's counts")
    counts = Counter({kind: _count(number) for kind, number in fields["counts"].items()})
    if counts.total() != position:
        raise FormatError("the state file's counts are not those of its position")
    try:
        chains = {str(name): (_count(a), _count(b), str(h)) for name, a, b, h in fields["chains"]}
        findings = [Finding(_count(index), str(what)) for index, what in fields["findings"]]
    except (TypeError, ValueError) as error:
        raise FormatError("the state file's chains or findings are malformed") from error
    return EntryCheck(
        policy,
        counts,
        findings,
        _count(fields["num_findings"]),
        chains,
        _count(fields["dropped"]),
        _count(fields["unfollowed"]),
    )


@dataclass(slots=True)
class Audit:
    """An audit of a log; making one performs checks 1 to 3, `run` the others.

    Args:
        source: gives the log's files.
        trust: the log's keys, and the witnesses that must have cosigned its checkpoint.
        policy: whose signatures count; None leaves the signatures on events unchecked.
        state: what the last audit left; None begins at the first entry.
        workers: files that are read ahead by threads; 0 for a folder.

    Raises:
        AuditError: check 1, 2 or 3 failed. LogError: the log cannot be read at the moment.
    """

    log: LogAudit
    _state: AuditState

    def __init__(
        self,
        source: Source,
        trust: Trust,
        policy: Policy | None = None,
        state: AuditState | None = None,
        *,
        workers: int = 0,
    ) -> None:
        self.log = LogAudit(source, trust, None if state is None else state.audited, workers=workers)
        entries = EntryCheck(policy) if state is None else state.entries
        self._state = AuditState(Audited(self.log.signed_checkpoint, self.log.position), entries)

    @property
    def entries(self) -> EntryCheck:
        """What check 6 found up to the last whole bundle."""
        return self._state.entries

    def run(self) -> Iterator[int]:
        """Checks 4 to 6, a bundle at a time; gives the position after each.

        Raises:
            AuditError: check 4 or 5 failed. LogError: the log cannot be read at the moment.
        """
        for bundle in self.log.bundles():
            entries = self.entries.copy()
            for offset, (entry, leaf) in enumerate(zip(bundle.entries, bundle.leaf_hashes, strict=True)):
                entries.add(bundle.start + offset, entry, leaf)
            position = bundle.start + len(bundle.entries)
            self._state = AuditState(Audited(self.log.signed_checkpoint, position), entries)
            yield position

    def state(self) -> AuditState:
        """What the next audit may begin from: all up to the last whole bundle, also if `run` was interrupted in one."""
        return self._state


def load_state(path: Path, trust: Trust, policy: Policy | None) -> AuditState | None:
    """The state in a file, or None if there is no file.

    Raises:
        LogError: it is there and cannot be used; an audit must not silently begin anew.
    """
    remedy = "Restore it, or begin anew with --restart and compare the checkpoint with one that you trust"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STATE_SIZE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LogError(f"the state file {path} cannot be read: {error.strerror}", remedy=remedy) from error
    try:
        return AuditState.from_bytes(data, trust, policy)
    except FieldprintError as error:
        raise LogError(f"the state file {path} cannot be used: {error.what}", remedy=remedy) from error


def save_state(path: Path, state: AuditState) -> None:
    """Replace the file by one rename, durable before it gets its name.

    Raises:
        LogError: it cannot be written; the old one is still there.
    """
    try:
        replace_file(path, state.to_bytes())
    except OSError as error:
        raise LogError(f"the state file {path} cannot be written: {error.strerror}") from error
