"""`fieldprint anchor`."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldprint.cli.cosigning import warn
from fieldprint.cli.events import Place, anchor_digest, append
from fieldprint.cli.inputs import (
    confirm,
    open_model,
    open_policy,
    open_reader,
    open_registry,
    open_signers,
    open_status,
    read_input,
    write_new,
)
from fieldprint.cli.options import (
    DryRun,
    Json,
    LastSignedFile,
    LogKey,
    LogPlace,
    ModelFolder,
    PassphraseFile,
    PolicyFile,
    QuorumFile,
    SigningKeys,
    StatusFile,
    Yes,
)
from fieldprint.cli.output import print_result, printable, unchecked
from fieldprint.errors import FieldprintError

if TYPE_CHECKING:
    from fieldprint.anchor import FieldprintRecord, Policy, Revocation
    from fieldprint.promote import Fieldprint

app = typer.Typer(help="Sign, register, verify, show and revoke anchors.", no_args_is_help=True)


class UsedBy(StrEnum):
    """The engines that an anchor is signed for: vLLM puts it in front of position 0."""

    FIELDPRINT = "fieldprint"
    VLLM = "vllm"


@app.command("sign")
def anchor_sign(
    text: Annotated[Path, typer.Argument(help="File with the anchor's text (UTF-8).")],
    key: SigningKeys,
    out: Annotated[Path, typer.Option("--out", help="Where the signed anchor goes.")],
    name: Annotated[str, typer.Option("--name", help="Name of the anchor.")] = "anchor",
    kind: Annotated[
        str, typer.Option("--kind", help="identity, policy, memory, assertion or observation.")
    ] = "identity",
    days: Annotated[int, typer.Option("--days", min=1, max=36600, help="How long it is valid.")] = 365,
    taint: Annotated[
        list[str] | None, typer.Option("--taint", help="A taint label; may be repeated.")
    ] = None,
    parent: Annotated[
        list[str] | None, typer.Option("--parent", help="Digest of a parent; may be repeated.")
    ] = None,
    supersedes: Annotated[
        list[str] | None, typer.Option("--supersedes", help="Digest of an older anchor.")
    ] = None,
    form: Annotated[
        str, typer.Option("--form", help="chat-system (as the template's system message) or raw.")
    ] = "chat-system",
    engine: Annotated[
        list[UsedBy] | None,
        typer.Option(
            "--engine",
            help="Engine that will use it, fieldprint if none is named; given for both, it has a fieldprint for each.",
        ),
    ] = None,
    model: ModelFolder = None,
    fieldprint_out: Annotated[
        Path | None,
        typer.Option(
            "--fieldprint-out",
            help="Also write the fieldprint, for machines that load it; of two, vLLM's goes beside it as NAME-vllm.",
        ),
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="To register at once: the policy.")] = None,
    log: Annotated[str | None, typer.Option("--log", help="To register at once: the log.")] = None,
    log_key: Annotated[
        Path | None, typer.Option("--log-key", help="To register at once: the log's private key.")
    ] = None,
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Realize the text under the model, and sign text and fieldprint together.

    With --policy, --log and --log-key it is registered as well, as by `anchor register`.
    """
    from fieldprint.anchor import AnchorArtifact, sign_anchor, sign_registration
    from fieldprint.registry import registration_entry

    place = None
    if policy is not None and log is not None and log_key is not None:
        place = Place(policy, log, log_key, last_signed, quorum)
    elif (policy, log, log_key) != (None, None, None):
        raise typer.BadParameter(
            "--policy, --log and --log-key belong together: with all three it is registered"
        )
    signers = open_signers(key, passphrase_file)
    content = read_input(text).decode("utf-8").rstrip("\n")
    realized = _realize(model, content, form, engine or [UsedBy.FIELDPRINT])
    records = tuple(record for _, record in realized)
    now = datetime.now(UTC).replace(microsecond=0)
    artifact = AnchorArtifact(
        name=name,
        kind=kind,
        text=content,
        not_before=now,
        not_after=now + timedelta(days=days),
        parents=tuple(sorted(set(parent or []))),
        taint=tuple(sorted(set(taint or []))),
        supersedes=tuple(sorted(set(supersedes or []))),
        fieldprints=records,
    )
    write_new(out, sign_anchor(artifact, signers))
    files = [] if fieldprint_out is None else _save(realized, fieldprint_out)
    fields = {
        "anchor": artifact.digest,
        "tokens": records[0].num_tokens,
        "root": records[0].root,
        "file": str(out),
        "forms": [record.form for record in records],
        "fieldprint_files": files,
    }
    said = f"signed {out}: anchor {artifact.digest[:16]}"
    for record in records:
        where = " in front of position 0" if record.before else ""
        said += f", {record.num_tokens} tokens{where}, fieldprint {record.root[:16]}"
    if place is None:
        print_result(fields, as_json, said)
        return
    index, warning = append(place, registration_entry(sign_registration(artifact, signers)))
    print_result(
        fields | {"index": index, "warning": warning or None},
        as_json,
        f"{said}\nregistered: entry {index} of {place.log}",
    )
    warn(warning)


def _realize(
    model: Path | None, text: str, form: str, engines: Sequence[UsedBy]
) -> "list[tuple[Fieldprint, FieldprintRecord]]":
    """A fieldprint with its record for each of these engines, our own first."""
    from fieldprint.anchor.artifact import BEFORE
    from fieldprint.pipeline import fieldprint_of

    if form.endswith(BEFORE):
        raise typer.BadParameter(
            f"--form {form} is written as --form {form.removesuffix(BEFORE)} --engine vllm"
        )
    loaded = open_model(model)
    endings = {UsedBy.FIELDPRINT: "", UsedBy.VLLM: BEFORE}
    return [fieldprint_of(loaded, text, form + endings[engine]) for engine in UsedBy if engine in engines]


def _save(realized: "list[tuple[Fieldprint, FieldprintRecord]]", path: Path) -> list[str]:
    """Write a file for each; of two, the one before position 0 is NAME-vllm beside `path`."""
    beside = path.with_name(f"{path.stem}-vllm{path.suffix}")
    files = [beside if record.before and len(realized) > 1 else path for _, record in realized]
    for (fieldprint, _), file in zip(realized, files, strict=True):
        fieldprint.save(file)
    return [str(file) for file in files]


@app.command("register")
def anchor_register(
    file: Annotated[Path, typer.Argument(help="The signed anchor.")],
    key: SigningKeys,
    policy: PolicyFile,
    log: LogPlace,
    log_key: LogKey,
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Sign an anchor's registration and append it to the log; before that nothing is generated under it there.

    The registration holds the anchor's metadata and the digest of its text, never the text. The keys are those of the
    anchor's kind, as many as its threshold.
    """
    from fieldprint.anchor import AnchorArtifact, Envelope, sign_registration
    from fieldprint.registry import registration_entry

    artifact = AnchorArtifact.from_bytes(Envelope.from_bytes(read_input(file)).payload)
    entry = registration_entry(sign_registration(artifact, open_signers(key, passphrase_file)))
    index, warning = append(Place(policy, log, log_key, last_signed, quorum), entry)
    print_result(
        {"anchor": artifact.digest, "index": index, "warning": warning or None},
        as_json,
        f"registered {artifact.kind} {artifact.name}, {artifact.digest[:16]}: entry {index} of {log}",
    )
    warn(warning)


@app.command("cosign")
def anchor_cosign(
    file: Annotated[Path, typer.Argument(help="The signed anchor.")],
    key: SigningKeys,
    out: Annotated[Path, typer.Option("--out", help="Where the anchor with one more signature goes.")],
    digest: Annotated[
        str | None,
        typer.Option("--digest", help="Refuse to sign an anchor of another digest (all 64 digits)."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="Say how many signatures of its kind the policy still needs."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Add a signature to a signed anchor, for a threshold whose keys lie on different machines.

    A key that has signed already is refused. Read the text first: fieldprint anchor show FILE.
    """
    from fieldprint.anchor import AnchorArtifact, Envelope, cosign_envelope, valid_signers

    trusted = None if policy is None else open_policy(policy)
    envelope = Envelope.from_bytes(read_input(file))
    artifact = AnchorArtifact.from_bytes(envelope.payload)
    if digest is not None and digest != artifact.digest:
        raise FieldprintError(f"{file} is anchor {artifact.digest}", remedy="Nothing was signed")
    signed = cosign_envelope(envelope, open_signers(key, passphrase_file))
    write_new(out, signed.to_bytes())
    result: dict[str, Any] = {
        "anchor": artifact.digest,
        "signatures": [k for k, _ in signed.signatures],
        "file": str(out),
    }
    text = f"signed {out}: {artifact.kind} {artifact.name} {artifact.digest[:16]}, {len(signed.signatures)} signatures"
    rule = None if trusted is None else trusted.kinds.get(artifact.kind)
    if trusted is not None:
        counted = 0 if rule is None else len(valid_signers(signed, trusted.trusted(rule.signers)))
        needed = None if rule is None else rule.threshold
        result |= {"counted": counted, "threshold": needed}
        text += f"; {counted} of {needed} that the policy needs" if rule else "; the policy has no such kind"
    print_result(result, as_json, text)


@app.command("verify")
def anchor_verify(
    file: Annotated[Path, typer.Argument(help="The signed anchor.")],
    policy: PolicyFile,
    log: Annotated[str | None, typer.Option("--log", help="The log, for revocations.")] = None,
    model_digest: Annotated[
        str | None, typer.Option("--model-digest", help="Require a fieldprint for this model.")
    ] = None,
    status: StatusFile = None,
    as_json: Json = False,
) -> None:
    """Check a signed anchor against the policy; needs no model.

    Where the policy has a table `status`, it needs --log or --status.
    """
    from fieldprint.verify import verify_anchor

    trusted = open_policy(policy)
    registry = None if log is None else open_registry(log, trusted)
    verified = verify_anchor(
        read_input(file),
        trusted,
        now=datetime.now(UTC),
        registry=registry,
        model=model_digest,
        status=open_status(status, log, trusted),
    )
    print_result(
        {
            "anchor": verified.digest,
            "name": verified.artifact.name,
            "kind": verified.artifact.kind,
            "signers": verified.signers,
        },
        as_json,
        f"verified: {verified.artifact.kind} {verified.artifact.name}, signed by {', '.join(verified.signers)}"
        + ("" if log else unchecked(status)),
    )


@app.command("show")
def anchor_show(file: Annotated[Path, typer.Argument(help="The signed anchor.")]) -> None:
    """Print an anchor's content as JSON. Nothing is verified."""
    from fieldprint.anchor import AnchorArtifact, Envelope

    envelope = Envelope.from_bytes(read_input(file))
    artifact = AnchorArtifact.from_bytes(envelope.payload)
    content = json.loads(envelope.payload)["predicate"]
    shown = {
        "verified": False,
        "digest": artifact.digest,
        "signatures": [k for k, _ in envelope.signatures],
        **content,
    }
    typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))


@app.command("revoke")
def anchor_revoke(
    anchor: Annotated[str, typer.Argument(help="The signed anchor's file, or its digest.")],
    key: SigningKeys,
    policy: PolicyFile,
    log: LogPlace,
    log_key: LogKey,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is public.")],
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            envvar="FIELDPRINT_REGISTRY",
            help="Sync this registry too, so that the engines that watch it learn of it at once.",
        ),
    ] = None,
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    passphrase_file: PassphraseFile = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Sign a revocation and append it to the log; from then on the anchor is refused, and what comes from it.

    It cannot be taken back, so you are asked first; where there is no terminal, --yes must be given. Of one that is
    revoked already only the database is told.
    """
    from fieldprint.anchor import sign_revocation
    from fieldprint.registry import EventError, believe_event, revocation_entry

    digest = anchor_digest(anchor)
    now = datetime.now(UTC).replace(microsecond=0)
    entry = revocation_entry(sign_revocation(digest, reason, now, open_signers(key, passphrase_file)))
    trusted = open_policy(policy)
    registry = open_registry(log, trusted)
    try:
        others = [other for other in believe_event(registry, entry).anchors if other != digest]
    except EventError as error:
        if error.why != "revoked":
            raise
        synced = None if dry_run or database is None else _sync(database, log, trusted)
        _revoked_already(registry.revoked[digest], synced, dry_run, as_json)
        return
    fields: dict[str, Any] = {"anchor": digest, "already": False, "descendants": others}
    if dry_run:
        said = f"would revoke {digest[:16]}, and with it {len(others)} that come from it"
        print_result(fields | {"dry_run": True}, as_json, said)
        return
    confirm(f"Revoke {digest[:16]}, and with it {len(others)} that come from it?", yes)
    index, warning = append(Place(policy, log, log_key, last_signed, quorum), entry)
    synced = None if database is None else _sync(database, log, trusted)
    print_result(
        fields | {"index": index, "synced": synced, "warning": warning or None},
        as_json,
        f"revoked {digest[:16]}: entry {index} of {log}",
    )
    warn(warning)


def _revoked_already(revocation: "Revocation", synced: bool | None, dry_run: bool, as_json: bool) -> None:
    from fieldprint.anchor.artifact import format_time

    time = format_time(revocation.time)
    said = f"revoked already at {time}: {revocation.reason}; nothing was appended"
    fields = {"anchor": revocation.anchor, "already": True, "time": time, "reason": revocation.reason}
    print_result(
        fields | {"index": None, "synced": synced, "dry_run": dry_run},
        as_json,
        printable(said + ("; the database knows it" if synced else "")),
    )
    if synced is False:  # the one thing that was left to do
        raise typer.Exit(1)


def _sync(database: str, log: str, policy: "Policy") -> bool:
    """Bring the registry's database up to the log; that it could not be done is said, the event stands."""
    from fieldprint.registry.database import RegistryDatabase

    try:
        with RegistryDatabase(database, create=True) as opened:
            opened.sync(open_reader(log, policy), policy)
        return True
    except (FieldprintError, OSError) as error:
        warn(f"it is in the log, and the registry's database does not know it: {error}")
        return False
