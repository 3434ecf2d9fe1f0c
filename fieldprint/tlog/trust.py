"""Whose signatures on a checkpoint count: the trust policy file (c2sp.org/tlog-policy), and checking by it.

    log fieldprint.example/log+3c2f8a91+AZ...

    witness north witness.example/north+7d0d2a51+BG... https://witness.example/north
    witness south witness.example/south+91ff3c02+BK...
    group both all north south
    quorum both

Lines of items between spaces and tabs; a group needs all, any or a number of its members. Names are octets: they are
kept as text that writes the same octets again.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fieldprint.errors import FormatError, VerificationError
from fieldprint.note import COSIGNATURES, LOG_SIGNATURES, NoteSignature, VerifierKey, verify_signatures
from fieldprint.note.signature import SignatureType
from fieldprint.note.signed import untrusted
from fieldprint.tlog.checkpoint import Checkpoint

MAX_POLICY_SIZE = 1 << 20
MAX_DEFINITIONS = 1024
NONE = "none"
_SPACE = re.compile(r"[ \t]+")
_ITEM = re.compile(r"[^\x00-\x20\x7f]+")


class Trust(Protocol):
    """Whose signatures on a checkpoint count; a trust policy, or a policy of anchors."""

    @property
    def log_keys(self) -> Sequence[VerifierKey]:
        """Keys of the logs that are accepted; a key's name is its log's origin."""

    @property
    def witness_keys(self) -> Sequence[VerifierKey]:
        """Keys of the witnesses that are known."""

    @property
    def quorum_text(self) -> str:
        """What the quorum asks, in words for an error."""

    def quorum_met(self, keys: Collection[VerifierKey]) -> bool:
        """Whether cosignatures by these keys are enough."""


@dataclass(frozen=True, slots=True)
class KnownLog:
    """A `log` line: a key whose name is the log's origin, and where the log is."""

    key: VerifierKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class KnownWitness:
    """A `witness` line: a name within the file, a key, and the submission prefix."""

    name: str
    key: VerifierKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A `group` line: as many members as `threshold` must have witnessed."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """Logs, witnesses, groups in the order of their definition, and the name of the quorum or `none`."""

    logs: tuple[KnownLog, ...] = ()
    witnesses: tuple[KnownWitness, ...] = ()
    groups: tuple[Group, ...] = ()
    quorum: str = NONE

    def __post_init__(self) -> None:
        if max(len(self.logs), len(self.witnesses), len(self.groups)) > MAX_DEFINITIONS:
            raise FormatError(f"the trust policy has more than {MAX_DEFINITIONS} logs, witnesses or groups")
        _check_keys([log.key for log in self.logs], LOG_SIGNATURES, "log")
        _check_keys([witness.key for witness in self.witnesses], COSIGNATURES, "witness")
        logs = {log.key.public_bytes for log in self.logs}
        if any(witness.key.public_bytes in logs for witness in self.witnesses):
            raise FormatError(
                "a witness of the trust policy has a log's key, and a log is no witness of itself"
            )
        for url in (*(log.url for log in self.logs), *(witness.url for witness in self.witnesses)):
            _check_item(url or "-")
        defined: set[str] = set()
        for witness in self.witnesses:
            _define(witness.name, defined)
        taken: set[str] = set()
        for group in self.groups:
            for member in group.members:
                if member not in defined:
                    raise FormatError(f"group {group.name!r}: {member!r} is not defined before it")
                if member in taken:
                    raise FormatError(f"{member!r} is a member twice, and would count twice")
                taken.add(member)
            if not 1 <= group.threshold <= len(group.members):
                raise FormatError(
                    f"group {group.name!r}: {group.threshold} of {len(group.members)} members are no threshold"
                )
            _define(group.name, defined)
        if self.quorum != NONE and self.quorum not in defined:
            raise FormatError(f"the quorum {self.quorum!r} is not defined")

    @property
    def log_keys(self) -> tuple[VerifierKey, ...]:
        """The keys of all logs."""
        return tuple(log.key for log in self.logs)

    @property
    def witness_keys(self) -> tuple[VerifierKey, ...]:
        """The keys of all witnesses."""
        return tuple(witness.key for witness in self.witnesses)

    @property
    def quorum_text(self) -> str:
        """The quorum's name with what it asks."""
        group = next((group for group in self.groups if group.name == self.quorum), None)
        if group is None:
            return self.quorum
        return f"{self.quorum}: {group.threshold} of {', '.join(group.members)}"

    def quorum_met(self, keys: Collection[VerifierKey]) -> bool:
        """Whether cosignatures by these keys fulfil the quorum; groups are reckoned in their order, one pass."""
        if self.quorum == NONE:
            return True
        witnessed = {witness.name for witness in self.witnesses if witness.key in keys}
        for group in self.groups:
            if len(witnessed.intersection(group.members)) >= group.threshold:
                witnessed.add(group.name)
        return self.quorum in witnessed

    def to_bytes(self) -> bytes:
        """The file: logs, witnesses, groups, quorum; `from_bytes` is its inverse."""
        lines = [f"log {log.key} {log.url}".rstrip() for log in self.logs]
        lines += [f"witness {w.name} {w.key} {w.url}".rstrip() for w in self.witnesses]
        lines += [f"group {g.name} {g.threshold} {' '.join(g.members)}" for g in self.groups]
        lines.append(f"quorum {self.quorum}")
        return "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrustPolicy":
        """The policy in a file.

        Raises:
            FormatError: too long, a forbidden octet, a line that is none of the four or not of its form, a key of
                another use or twice, a name undefined, taken or listed twice, or not exactly one quorum line.
        """
        if len(data) > MAX_POLICY_SIZE:
            raise FormatError(f"the trust policy has more than {MAX_POLICY_SIZE} bytes")
        if any((octet < 0x20 and octet not in b"\t\n") or octet == 0x7F for octet in data):
            raise FormatError("the trust policy holds a control character other than tab and newline")
        if not data.endswith(b"\n"):
            raise FormatError("the trust policy does not end in a newline")
        lines = data.decode("utf-8", "surrogateescape").split("\n")[:-1]
        file = _File()
        for number, line in enumerate(lines, 1):
            words = _SPACE.split(line.strip(" \t"))
            if words[0] and not words[0].startswith("#"):
                try:
                    file.read(words)
                except FormatError as error:
                    raise FormatError(f"line {number} of the trust policy: {error.what}") from error
        if len(file.quorums) != 1:
            raise FormatError(f"the trust policy has {len(file.quorums)} quorum lines and not one")
        return cls(tuple(file.logs), tuple(file.witnesses), tuple(file.groups), file.quorums[0])


@dataclass(slots=True)
class _File:
    """What the lines up to here define."""

    logs: list[KnownLog] = field(default_factory=list)
    witnesses: list[KnownWitness] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    quorums: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def read(self, words: Sequence[str]) -> None:
        """Take up one line."""
        match words:
            case ["log", key, *url] if len(url) < 2:
                self.logs.append(KnownLog(VerifierKey.parse(key, LOG_SIGNATURES), "".join(url)))
            case ["witness", name, key, *url] if len(url) < 2:
                _define(name, self.names)
                self.witnesses.append(KnownWitness(name, VerifierKey.parse(key, COSIGNATURES), "".join(url)))
            case ["group", name, threshold, *members] if members:
                for member in members:
                    self._known(member)
                _define(name, self.names)
                self.groups.append(Group(name, _threshold(threshold, len(members)), tuple(members)))
            case ["quorum", name]:
                if name != NONE:
                    self._known(name)
                self.quorums.append(name)
            case _:
                raise FormatError("not of the form log KEY [URL], witness NAME KEY [URL], "
                                  "group NAME all|any|NUMBER NAME..., or quorum NAME")  # fmt: skip

    def _known(self, name: str) -> None:
        if name not in self.names:
            raise FormatError(f"{name!r} is not defined on a line before")


def _define(name: str, defined: set[str]) -> None:
    _check_item(name)
    if name == NONE or name in defined:
        raise FormatError(f"the name {name!r} is taken")
    defined.add(name)


def _check_item(item: str) -> None:
    if not _ITEM.fullmatch(item):
        raise FormatError(
            f"{item!r} is no item of a trust policy: no spaces, no control characters, not empty"
        )


def _check_keys(keys: Sequence[VerifierKey], types: Sequence[SignatureType], what: str) -> None:
    if any(key.signature_type not in types for key in keys):
        raise FormatError(f"a {what} of the trust policy has a key of another use")
    if len({key.public_bytes for key in keys}) != len(keys):
        raise FormatError(f"two {what} lines of the trust policy have one public key")


def _threshold(text: str, members: int) -> int:
    if text in ("any", "all"):
        return 1 if text == "any" else members
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise FormatError(f"{text!r} is neither all nor any nor a number from 1 on")
    return int(text)


def verify_checkpoint(note: bytes, log_keys: Sequence[VerifierKey]) -> Checkpoint:
    """The checkpoint in `note`, if a key of its log signed it.

    1. The note and the checkpoint in it are well formed.
    2. A key of `log_keys` whose name is the origin signed it, and no signature by a key of `log_keys` is false.

    Raises:
        FormatError: check 1 failed.
        VerificationError: check 2 failed.
    """
    verified = verify_signatures(note, log_keys)
    checkpoint = Checkpoint.from_text(verified.text)
    if not verified.signatures:
        raise untrusted(note, log_keys)
    names = {signature.key.name for signature in verified.signatures}
    if checkpoint.origin not in names:
        raise VerificationError(
            2, f"the checkpoint is of {checkpoint.origin}, not of {' or '.join(sorted(names))}"
        )
    return checkpoint


RENEW = "Get it again once the witnesses have seen the log (fieldprint log renew, log proof --quorum)"


def verify_cosignatures(note: bytes, trust: Trust, *, remedy: str = RENEW) -> tuple[NoteSignature, ...]:
    """The cosignatures on a checkpoint by witnesses of `trust`, if they are enough.

    3. No cosignature by a witness of `trust` is false, and together they meet its quorum.

    Args:
        note: the checkpoint.
        trust: the witnesses and their quorum.
        remedy: what the error says can be done about too few; by default for a receipt or a proof.

    Raises:
        FormatError: the note is not well formed.
        VerificationError: check 3 failed.
    """
    try:
        found = verify_signatures(note, trust.witness_keys).signatures
    except VerificationError as error:
        raise VerificationError(3, error.what) from error
    if not trust.quorum_met({signature.key for signature in found}):
        names = ", ".join(sorted({signature.key.name for signature in found})) or "none"
        raise VerificationError(
            3,
            f"too few witnesses cosigned the checkpoint: wanted {trust.quorum_text}, found {names}",
            remedy=remedy,
        )
    return found
