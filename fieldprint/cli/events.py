"""Events from the command line: signed, believed by the registry that the log gives, and only then appended."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fieldprint.cli.cosigning import open_cosigner, warn
from fieldprint.cli.inputs import confirm, open_policy, open_registry, open_signers, open_writer, read_input
from fieldprint.cli.options import (
    DryRun,
    Json,
    LastSignedFile,
    LogKey,
    LogPlace,
    PassphraseFile,
    PolicyFile,
    QuorumFile,
    SigningKeys,
    Yes,
)
from fieldprint.cli.output import print_result

if TYPE_CHECKING:
    from fieldprint.anchor import AnchorArtifact, Policy
    from fieldprint.registry import Registry

DIGEST = re.compile(r"[0-9a-f]{64}")
Reason = Annotated[str, typer.Option("--reason", help="Why; it is public.")]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an event goes: what the options say."""

    policy: Path
    log: str
    log_key: Path
    last_signed: Path | None
    quorum: Path | None


def append(place: Place, entry: bytes) -> tuple[int, str]:
    """The index of the event's entry, and what the witnesses fell short of."""
    return append_made(place, lambda _registry, _policy: entry)


def append_made(place: Place, make: "Callable[[Registry, Policy], bytes]") -> tuple[int, str]:
    """As `append`, of an entry that is made from the registry in front of it, while nobody else can write."""
    from fieldprint import registry

    trusted = open_policy(place.policy)
    with (
        open_cosigner(place.quorum, trusted) as cosigner,
        open_writer(place.log, place.log_key, trusted, place.last_signed, cosign=cosigner) as writer,
    ):
        index = registry.append_made(writer, trusted, lambda before: make(before, trusted))
    return index, cosigner.shortfall


def anchor_digest(anchor: str) -> str:
    """The digest that is given, or that of the signed anchor in a file."""
    return anchor if DIGEST.fullmatch(anchor) else _read_anchor(anchor).digest


def _read_anchor(file: str) -> "AnchorArtifact":
    from fieldprint.anchor import AnchorArtifact, Envelope

    if not Path(file).exists():
        raise typer.BadParameter(f"{file} is no file, and no digest, which has 64 hex digits")
    return AnchorArtifact.from_bytes(Envelope.from_bytes(read_input(Path(file))).payload)


def _tell(place: Place, entry: bytes, what: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Show that the event would be believed; ask; append it."""
    from fieldprint.registry import believe_event

    trusted = open_policy(place.policy)
    registry = open_registry(place.log, trusted)
    changed = believe_event(registry, entry).anchors
    fields = {"dry_run": dry_run, "changed": list(changed)}
    if dry_run:
        print_result(
            fields, as_json, f"would be believed: {what}; it changes {len(changed)} registered anchors"
        )
        return
    confirm(
        f"{what}: {len(changed)} registered anchors change, and an entry cannot be taken back. Append?", yes
    )
    index, warning = append(place, entry)
    fields |= {"index": index, "warning": warning or None}
    print_result(fields, as_json, f"{what}: entry {index} of {place.log}")
    warn(warning)


def anchor_endorse(
    anchor: Annotated[str, typer.Argument(help="The signed anchor's file, or its digest.")],
    label: Annotated[list[str], typer.Option("--label", help="A taint label; may be repeated.")],
    key: SigningKeys,
    policy: PolicyFile,
    log: LogPlace,
    log_key: LogKey,
    reason: Reason,
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    passphrase_file: PassphraseFile = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Take taint labels away at an anchor, and through it at what descends from it.

    The keys are those of the policy's `endorsement` of each label, as many as its threshold. An anchor whose taint is
    forbidden for its kind is endorsed first and registered then, wherever the label comes from. Who verifies it needs the
    log, which holds the endorsement.
    """
    from fieldprint.anchor import Endorsement, sign_statement
    from fieldprint.registry import event_entry

    digest, labels = anchor_digest(anchor), tuple(sorted(set(label)))
    _check_labels(anchor, labels, open_registry(log, open_policy(policy)))
    now = datetime.now(UTC).replace(microsecond=0)
    made = Endorsement(digest, labels, reason, now)
    entry = event_entry("endorse", sign_statement(made, open_signers(key, passphrase_file)))
    place = Place(policy, log, log_key, last_signed, quorum)
    _tell(place, entry, f"endorse {digest[:16]} against {', '.join(labels)}", dry_run, yes, as_json)


def _check_labels(anchor: str, labels: tuple[str, ...], registry: "Registry") -> None:
    """Refuse labels that the anchor does not have, before anybody signs; of a digest alone it may not be known."""
    from fieldprint.anchor import Registration
    from fieldprint.registry import EventError

    if DIGEST.fullmatch(anchor):
        record = registry.anchors.get(anchor)
        registration = None if record is None else record.registration
    else:
        registration = Registration.of(_read_anchor(anchor))
    try:
        missing = [] if registration is None else sorted(set(labels) - registry.taint_of(registration))
    except EventError:  # a parent is not registered yet
        return
    if missing:
        what = f"the anchor does not have {', '.join(missing)}, or has it no more"
        raise EventError("label", what, remedy="Nothing was signed")


def anchor_supersede(
    old: Annotated[str, typer.Argument(help="The older signed anchor's file, or its digest.")],
    new: Annotated[str, typer.Argument(help="The newer one's.")],
    key: SigningKeys,
    policy: PolicyFile,
    log: LogPlace,
    log_key: LogKey,
    reason: Reason,
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    passphrase_file: PassphraseFile = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Sign that a registered anchor takes the place of another of its kind, which is refused from then on.

    The keys are those of the older anchor's kind, as many as its threshold.
    """
    from fieldprint.anchor import Supersession, sign_statement
    from fieldprint.registry import event_entry

    older, newer = anchor_digest(old), anchor_digest(new)
    made = Supersession(older, newer, reason, datetime.now(UTC).replace(microsecond=0))
    entry = event_entry("supersede", sign_statement(made, open_signers(key, passphrase_file)))
    place = Place(policy, log, log_key, last_signed, quorum)
    _tell(place, entry, f"supersede {older[:16]} by {newer[:16]}", dry_run, yes, as_json)
