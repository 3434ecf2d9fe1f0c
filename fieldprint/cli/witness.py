"""`fieldprint log witness` and `fieldprint log cosign`."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fieldprint.cli.inputs import open_trust, read_input, write_new
from fieldprint.cli.options import Json, LastSignedFile, WitnessTimeout
from fieldprint.cli.output import print_result, printable
from fieldprint.errors import FieldprintError

if TYPE_CHECKING:
    from fieldprint.note import Cosigner, VerifierKey
    from fieldprint.tlog import LogReader
    from fieldprint.tlog.witness_client import Answers


def log_witness(
    key: Annotated[
        list[Path],
        typer.Option("--key", help="Private key that cosigns, Ed25519 or ML-DSA-44; may be repeated."),
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the witness.")] = "fieldprint.local/witness",
    log_vkey: Annotated[
        list[str] | None, typer.Option("--log-vkey", help="Verifier key of a log to cosign; may be repeated.")
    ] = None,
    logs: Annotated[
        Path | None, typer.Option("--logs", help="Trust policy whose log lines are cosigned as well.")
    ] = None,
    state: Annotated[
        Path,
        typer.Option(
            "--state", help="SQLite file that remembers what was cosigned. Never restore an old one."
        ),
    ] = Path("witness.db"),
    new_state: Annotated[
        bool,
        typer.Option("--new-state", help="Make that file: for the first start of a witness, never after."),
    ] = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 7380,
    show_key: Annotated[bool, typer.Option("--show-key", help="Print the witness's keys and end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print a line for each request.")] = False,
    as_json: Json = False,
) -> None:
    """Be a witness: cosign each log's checkpoint that continues the last one. Ctrl-C ends it.

    Give the printed keys to those who verify (policy new --witness) and to the log's operator, with the URL. Plain HTTP:
    a proxy that speaks TLS belongs in front of it where others than this machine should reach it.
    """
    from fieldprint.tlog.witness import Witness, WitnessState
    from fieldprint.tlog.witness_server import WitnessServer

    cosigners = _cosigners(name, key)
    keys = [str(cosigner.verifier_key) for cosigner in cosigners]
    if show_key:
        print_result({"keys": keys}, as_json, "\n".join(keys))
        return
    known = _known_logs(log_vkey or [], logs)
    rows = WitnessState(state, new=new_state)
    try:
        witness = Witness(cosigners, known, rows)
        report = (lambda _line: None) if quiet else (lambda line: typer.echo(line, err=True))
        with WitnessServer(witness, (host, port), report) as server:
            origins = sorted({log.name for log in known})
            for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started it in the background
                signal.signal(number, signal.default_int_handler)
            try:
                print_result(
                    {"url": server.url, "keys": keys, "logs": origins},
                    as_json,
                    "\n".join([*keys, f"cosigning {', '.join(map(printable, origins))} at {server.url}"]),
                )
                server.serve_forever()
            except KeyboardInterrupt:
                typer.echo("stopped", err=True)
    finally:
        rows.close()


def _cosigners(name: str, paths: list[Path]) -> list["Cosigner"]:
    from fieldprint.anchor import load_cosigner_key
    from fieldprint.note import Cosigner

    return [Cosigner(name, load_cosigner_key(path)) for path in paths]


def _known_logs(texts: list[str], file: Path | None) -> list["VerifierKey"]:
    from fieldprint.note import LOG_SIGNATURES, VerifierKey
    from fieldprint.tlog import TrustPolicy

    known = [VerifierKey.parse(text, LOG_SIGNATURES) for text in texts]
    if file is not None:
        known += TrustPolicy.from_bytes(read_input(file)).log_keys
    if not known:
        raise typer.BadParameter("no log is known: give --log-vkey KEY or --logs FILE")
    return known


def log_cosign(
    place: Annotated[str, typer.Argument(help="The log's folder or URL.", metavar="LOG")],
    policy: Annotated[
        Path, typer.Option("--policy", help="Policy (TOML) or trust policy with the log's key.")
    ],
    quorum: Annotated[
        Path,
        typer.Option("--quorum", help="Trust policy (C2SP tlog-policy) with the witnesses and their URLs."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the cosigned checkpoint here.")
    ] = None,
    publish: Annotated[
        bool,
        typer.Option(
            "--publish", help="Put the cosigned checkpoint into the log, if no other was published meanwhile."
        ),
    ] = False,
    last_signed: LastSignedFile = None,
    timeout: WitnessTimeout = 5.0,
    as_json: Json = False,
) -> None:
    """Ask witnesses to cosign the log's checkpoint, and print, write or publish it. Only --publish changes the log.

    Exit code 1 if too few answered for the quorum; what they said is printed, and nothing is written.
    """
    if publish and place.startswith(("http://", "https://")):
        raise typer.BadParameter("it needs the log's own folder or store", param_hint="--publish")
    from fieldprint.tlog import LogReader, publish_cosigned
    from fieldprint.tlog.witness_client import with_cosignatures

    reader = LogReader(place, open_trust(policy).log_keys)
    found = _ask_witnesses(reader, quorum, timeout)
    before = reader.signed_checkpoint()
    note = with_cosignatures(before, found.signatures)
    if out is not None:
        write_new(out, note)
    if publish:
        publish_cosigned(place, note, before, last_signed=last_signed)
    names = [signature.key.name for signature in found.signatures]
    fields = {
        "checkpoint": note.decode(),
        "witnesses": names,
        "failures": dict(found.failures),
        "published": publish,
    }
    done = [f"wrote {out}"] * (out is not None) + [f"published in {place}"] * publish
    told = f"{', '.join(done)}: cosigned by {', '.join(names) or 'nobody'}" if done else ""
    print_result(fields, as_json, told or note.decode().rstrip("\n"))
    for said in [] if as_json else found.failures.values():
        typer.echo(printable(f"warning: {said}"), err=True)


def cosigned_checkpoint(reader: "LogReader", quorum: Path, timeout: float) -> bytes:
    """The log's checkpoint with the cosignatures of a quorum on it."""
    from fieldprint.tlog.witness_client import with_cosignatures

    return with_cosignatures(reader.signed_checkpoint(), _ask_witnesses(reader, quorum, timeout).signatures)


def _ask_witnesses(reader: "LogReader", quorum: Path, timeout: float) -> "Answers":
    """What the witnesses of a trust policy say to the log's checkpoint; an error if they are no quorum."""
    from fieldprint.tlog import TrustPolicy
    from fieldprint.tlog.witness_client import WitnessQuorum

    trust = TrustPolicy.from_bytes(read_input(quorum))
    ask = WitnessQuorum(trust, deadline=timeout)
    try:
        found = ask(reader.signed_checkpoint(), reader.consistency_proof)
    finally:
        ask.close()
    if not found.quorum:
        said = "; ".join(printable(text) for text in found.failures.values())
        raise FieldprintError(f"the quorum {trust.quorum_text} is not met: {said}")
    return found
