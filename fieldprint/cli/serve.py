"""`fieldprint log serve`."""

import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fieldprint.cli.cosigning import open_cosigner, warn
from fieldprint.cli.inputs import open_policy, open_writer, read_input
from fieldprint.cli.log import LogArgument
from fieldprint.cli.options import LastSignedFile, QuorumFile
from fieldprint.cli.output import printable

if TYPE_CHECKING:
    from fieldprint.tlog.http_server import HttpServer
    from fieldprint.tlog.witness import Witness


def log_serve(
    place: LogArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8080,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", help="Accept entries (POST /add) from who bears the token in this file (0600)."
        ),
    ] = None,
    log_key: Annotated[
        Path | None,
        typer.Option("--log-key", help="With --token-file: private key that signs the log's checkpoints."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="With --token-file: policy (TOML) that names the log's key."),
    ] = None,
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    witness_key: Annotated[
        Path | None,
        typer.Option("--witness-key", help="Also be a witness, which cosigns with this private key."),
    ] = None,
    witness_name: Annotated[
        str, typer.Option("--witness-name", help="Name of the witness.")
    ] = "fieldprint.local/witness",
    witness_logs: Annotated[
        Path | None, typer.Option("--witness-logs", help="Trust policy that names the logs to cosign.")
    ] = None,
    witness_state: Annotated[
        Path | None,
        typer.Option("--witness-state", help="SQLite file where the witness remembers what it cosigned."),
    ] = None,
    new_state: Annotated[
        bool,
        typer.Option("--new-state", help="Make that file: for the first start of the witness, never after."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print a line for each request.")] = False,
) -> None:
    """Serve a log over HTTP: checkpoint, tiles and entries as static files, and /metrics. Ctrl-C ends it.

    Read-only unless --token-file, --log-key and --policy are given. Plain HTTP: a proxy that speaks TLS belongs in front of it where
    others than this machine should reach it.
    """
    from fieldprint.tlog.http_server import HttpServer
    from fieldprint.tlog.serve import LogSite
    from fieldprint.tlog.storage import open_storage

    if len({token_file is None, log_key is None, policy is None}) != 1:
        raise typer.BadParameter(
            "--token-file, --log-key and --policy belong together: who may write, who signs"
        )
    token = None if token_file is None else _token(token_file)
    storage = open_storage(place)
    if storage.read("checkpoint") is None:
        raise typer.BadParameter(f"{place} holds no log; make one with: fieldprint log new")
    witness = _witness(witness_key, witness_name, witness_logs, witness_state, new=new_state)
    with ExitStack() as stack:
        writer = None
        if log_key is not None and policy is not None:
            trusted = open_policy(policy)
            cosigner = stack.enter_context(open_cosigner(quorum, trusted, warn))
            writing = open_writer(place, log_key, trusted, last_signed, cosign=cosigner)
            writer = stack.enter_context(writing)
        site = LogSite(storage, writer=writer, token=token, witness=witness)
        report = (lambda _line: None) if quiet else (lambda line: typer.echo(line, err=True))
        server = stack.enter_context(HttpServer(site, (host, port), report))
        how = "writable with the token" if writer else "read-only"
        _run_until_stopped(server, f"serving {place} at {server.url}, {how}")
    typer.echo("stopped", err=True)


def _run_until_stopped(server: "HttpServer", announced: str) -> None:
    """Until SIGINT or SIGTERM, from the moment that it is announced; the requests in hand are finished by the server's threads."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    thread = threading.Thread(target=server.serve_forever, name="log server")
    thread.start()
    try:
        typer.echo(announced)
        stop.wait()
    finally:
        server.shutdown()
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _token(path: Path) -> str:
    from fieldprint.tlog.serve import token_in

    return token_in(path, read_input(path))


def _witness(
    key: Path | None, name: str, policy: Path | None, state: Path | None, *, new: bool
) -> "Witness | None":
    from fieldprint.anchor import load_cosigner_key
    from fieldprint.note import Cosigner
    from fieldprint.tlog import TrustPolicy
    from fieldprint.tlog.witness import Witness, WitnessState

    if key is None and policy is None and state is None:
        return None
    if key is None or policy is None or state is None:
        raise typer.BadParameter("a witness needs --witness-key, --witness-logs and --witness-state")
    logs = TrustPolicy.from_bytes(read_input(policy)).log_keys
    if not logs:
        raise typer.BadParameter(f"{printable(str(policy))} names no log that could be cosigned")
    return Witness([Cosigner(name, load_cosigner_key(key))], logs, WitnessState(state, new=new))
