"""`fieldprint log audit`."""

import itertools
import os
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldprint.cli.inputs import open_policy
from fieldprint.cli.options import Json
from fieldprint.cli.output import print_result, printable
from fieldprint.errors import FieldprintError

if TYPE_CHECKING:
    from fieldprint.anchor import Policy
    from fieldprint.audit import Audit
    from fieldprint.tlog import Trust

SAVE_SECONDS = 5.0
SHOWN_FINDINGS = 20
WORKERS = 4


def log_audit(
    place: Annotated[
        str, typer.Argument(help="The log: a folder, or an http or https URL.", metavar="URL_OR_DIR")
    ],
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="The verifier's policy (TOML): log key, witnesses, who revokes."),
    ] = None,
    vkey: Annotated[
        str | None,
        typer.Option(
            "--log-vkey", help="The log's verifier key instead of a policy; events are then not judged."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            help="Where the audit keeps how far it came; by default a file of the log's key below "
            "$XDG_STATE_HOME/fieldprint/audits (or ~/.local/state).",
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Begin at the first entry; compare with no earlier audit, whose state file is kept.",
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds to wait for a server.")
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """Replay a log: its checkpoint, its tiles, its entries, the signatures in them, and what the last audit saw.

    Goes on where the last audit ended or was interrupted. Exit code 0: everything holds. 1: a check failed, and the first
    bad tile or entry is named; or the log could not be read. 2: usage. 130: ended by Ctrl-C.
    """
    from fieldprint.audit import Audit, load_state

    trusted, trust = _trust(policy, vkey)
    source = _source(place, timeout)
    file = _state_file(trust) if state is None else state
    started = time.perf_counter()
    report: dict[str, Any] = {"place": place, "state": str(file)}
    try:
        last = None if restart else load_state(file, trust, trusted)
        audit = Audit(source, trust, trusted, last, workers=WORKERS if "://" in place else 0)
        first = audit.log.position
        if restart and file.exists():
            report["earlier_state"] = str(_set_aside(file))
        report |= {"first": first, **_describe(audit)}
        _run(audit, file, show=not as_json and sys.stderr.isatty())
    except FieldprintError as error:
        _failed(error, report, file, as_json)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _stopped(report, None if "first" not in report else audit, as_json)
        raise typer.Exit(130) from None
    seconds = time.perf_counter() - started
    report |= _describe(audit) | {"ok": audit.entries.num_findings == 0, "seconds": round(seconds, 3)}
    print_result(report, as_json, _text(report, report["position"] - first, seconds, trusted is not None))
    if audit.entries.num_findings:
        raise typer.Exit(1)


def _trust(policy: Path | None, vkey: str | None) -> "tuple[Policy | None, Trust]":
    from fieldprint.note import VerifierKey
    from fieldprint.tlog import TrustPolicy
    from fieldprint.tlog.trust import KnownLog

    if (policy is None) == (vkey is None):
        raise typer.BadParameter(
            "give either --policy or --log-vkey: who signs the log must come from elsewhere"
        )
    if policy is not None:
        trusted = open_policy(policy)
        return trusted, trusted
    return None, TrustPolicy((KnownLog(VerifierKey.parse(str(vkey))),))


def _source(place: str, timeout: float) -> Any:
    from fieldprint.tlog.storage import open_source
    from fieldprint.tlog.storage.http import HttpSource

    if place.startswith(("http://", "https://")):
        return HttpSource(place, timeout=timeout)
    if "://" not in place and not Path(place).is_dir():
        raise typer.BadParameter(f"{place} is neither a folder nor a URL")
    return open_source(place)


def _state_file(trust: "Trust") -> Path:
    """One file a log, by its key."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    key = trust.log_keys[0]
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in key.name)[:100]
    folder = Path(base) / "fieldprint/audits"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{key.key_id.hex()}.json"


def _run(audit: "Audit", file: Path, *, show: bool) -> None:
    """Run to the end; whatever ends it, the state file says how far it came."""
    from fieldprint.audit import save_state

    saved = time.monotonic()
    advance, close = _progress(audit) if show else (lambda _position: None, lambda: None)
    try:
        for position in audit.run():
            advance(position)
            if time.monotonic() - saved > SAVE_SECONDS:
                save_state(file, audit.state())
                saved = time.monotonic()
    finally:
        close()
        save_state(file, audit.state())


def _progress(audit: "Audit") -> tuple[Callable[[int], None], Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("entries"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("entries", total=audit.log.checkpoint.tree_size, completed=audit.log.position)
    progress.start()
    return (lambda position: progress.update(task, completed=position)), progress.stop


def _set_aside(file: Path) -> Path:
    """Rename an earlier audit's state, which holds a checkpoint that the log signed, to a name that is free."""
    number = next(n for n in itertools.count(1) if not file.with_name(f"{file.name}.{n}").exists())
    kept = file.rename(file.with_name(f"{file.name}.{number}"))
    typer.echo(f"the earlier audit's state is kept as {kept}", err=True)
    return kept


def _describe(audit: "Audit") -> dict[str, Any]:
    from fieldprint.audit import KINDS

    checkpoint, entries = audit.log.checkpoint, audit.entries
    return {
        "origin": checkpoint.origin,
        "tree_size": checkpoint.tree_size,
        "root_hash": checkpoint.root_hash.hex(),
        "checkpoint": audit.log.signed_checkpoint.decode(),
        "position": audit.state().audited.position,
        "entries": {kind: entries.counts[kind] for kind in KINDS},
        "findings": entries.num_findings,
        "first_findings": [{"index": f.index, "what": f.what} for f in entries.findings[:SHOWN_FINDINGS]],
        "unfollowed": entries.unfollowed,
    }


def _failed(error: FieldprintError, report: dict[str, Any], file: Path, as_json: bool) -> None:
    """Say which check failed, or that there was nothing to check; a checkpoint that proves a fork is kept."""
    place, check = getattr(error, "place", ""), getattr(error, "check", None)
    report |= {"ok": False, "check": check, "failed_at": place, "error": str(error)}
    typer.echo(f"error: {printable(str(error))}", err=True)
    evidence = getattr(error, "evidence", b"")
    if evidence:
        kept = file.with_name(f"{file.name}.checkpoint-{sha256(evidence).hexdigest()[:16]}")
        kept.write_bytes(evidence)
        report |= {"checkpoint": evidence.decode(), "evidence": str(kept)}
        typer.echo(f"this checkpoint is kept as {kept}", err=True)
    told = "the audit could not be done" if check is None else "the log does not hold"
    print_result(report, as_json, f"{told}: first at {printable(place)}" if place else told)


def _stopped(report: dict[str, Any], audit: "Audit | None", as_json: bool) -> None:
    where = "before the first entry"
    if audit is not None:
        report |= _describe(audit)
        where = f"at {audit.state().audited.position} of {audit.log.checkpoint.tree_size}"
    text = f"stopped {where}; the next audit goes on from there"
    typer.echo(text, err=True)
    if as_json:
        print_result(report | {"ok": False, "check": None, "error": text}, True, "")


def _text(report: dict[str, Any], new: int, seconds: float, revocations: bool) -> str:
    counts = (
        ", ".join(f"{number} {kind}" for kind, number in report["entries"].items() if number) or "no entries"
    )
    lines = [
        f"{report['origin']}: {report['tree_size']} entries, root {report['root_hash'][:16]}",
        f"{new} audited now in {seconds:.1f} s ({new / seconds:.0f} entries/s), all since the first audit: {counts}",
    ]
    if not revocations:
        lines.append("the signatures on events were not checked: give --policy")
    if report["unfollowed"]:
        lines.append(
            f"{report['unfollowed']} commitments were parsed and not followed: too many open requests"
        )
    for finding in report["first_findings"]:
        lines.append(f"entry {finding['index']}: {finding['what']}")
    if report["findings"] > SHOWN_FINDINGS:
        lines.append(f"... and {report['findings'] - SHOWN_FINDINGS} more")
    lines.append(
        "everything holds" if report["ok"] else f"FAILED: {report['findings']} entries are not what they say"
    )
    return printable("\n".join(lines))
