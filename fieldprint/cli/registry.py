"""`fieldprint registry`: the database that the log fills, and status roots."""

import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldprint.cli.cosigning import warn
from fieldprint.cli.events import Place, anchor_digest, append_made
from fieldprint.cli.inputs import confirm, open_policy, open_reader, open_signers, write_new
from fieldprint.cli.options import (
    DryRun,
    Json,
    LastSignedFile,
    LogPlace,
    PassphraseFile,
    PolicyFile,
    QuorumFile,
    Yes,
)
from fieldprint.cli.output import order_words, print_result, print_table, progress_bar
from fieldprint.errors import FieldprintError, VerificationError

if TYPE_CHECKING:
    from fieldprint.anchor import Policy
    from fieldprint.registry import AnchorRecord, Registry
    from fieldprint.registry.database import RegistryDatabase

app = typer.Typer(
    help="What became of every anchor, in a database that the log fills.\n\n"
    "The log is what counts: `registry sync` reads on, `registry rebuild` makes the same rows anew.",
    no_args_is_help=True,
)
DatabasePlace = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="FIELDPRINT_REGISTRY",
        help="A file, or the URL of a PostgreSQL database (better in the variable, if it holds a password).",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes that check signatures; without it one for each core."),
]
SMALL = 5000  # entries that one process reads sooner than others start


def _workers(given: int | None, entries: int) -> int:
    return given if given is not None else (os.cpu_count() or 1) if entries > SMALL else 0


@app.command("sync")
def registry_sync(
    policy: PolicyFile,
    log: LogPlace,
    database: DatabasePlace = "registry.db",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Apply what the log has and the database has not; the first time the database is made.

    A run that was stopped is resumed by the next one. A log that lost entries, was forked, or is another one is refused.
    """
    from fieldprint.registry.database import RegistryDatabase

    trusted = open_policy(policy)
    reader = open_reader(log, trusted)
    size = reader.checkpoint().tree_size
    with RegistryDatabase(database, create=True) as opened, progress_bar("reading", size, as_json) as advance:
        before = opened.position()
        count = _workers(workers, size - (before.next if before else 0))
        written = opened.sync(reader, trusted, workers=count, progress=lambda done, _: advance(done))
        summary = opened.summary()
    print_result(
        {"applied": written, "next": size, "database": _shown(database), **_counts(summary)},
        as_json,
        f"applied {written} entries of {log}, which has {size}: {_words(summary)}",
    )


@app.command("rebuild")
def registry_rebuild(
    policy: PolicyFile,
    log: LogPlace,
    database: DatabasePlace = "registry.db",
    workers: Workers = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make every row anew from the log, in one transaction. With --dry-run compare only: exit code 1 if rows differ."""
    from fieldprint.registry.database import RegistryDatabase

    trusted = open_policy(policy)
    reader = open_reader(log, trusted)
    size = reader.checkpoint().tree_size
    count = _workers(workers, size)
    if dry_run:
        with RegistryDatabase(database) as opened, progress_bar("reading", size, as_json) as advance:
            differ = _differences(opened, reader, trusted, count, advance)
        fields = {"dry_run": True, "differ": dict(differ)}
        tables = ", ".join(f"{number} of {name}" for name, number in sorted(differ.items()))
        print_result(fields, as_json, f"rows that differ: {tables or 'none'}")
        if differ:
            raise typer.Exit(1)
        return
    confirm(f"Replace every row of the registry in {_shown(database)} by what {log} gives?", yes)
    with RegistryDatabase(database, create=True) as opened, progress_bar("reading", size, as_json) as advance:
        opened.rebuild(reader, trusted, workers=count, progress=lambda done, _: advance(done))
        summary = opened.summary()
    print_result(
        {"applied": size, "next": size, **_counts(summary)},
        as_json,
        f"rebuilt from {size} entries of {log}: {_words(summary)}",
    )


def _differences(
    opened: "RegistryDatabase", reader: Any, policy: "Policy", workers: int, advance: Any
) -> Counter[str]:
    """Rows that differ, by table, between the database and one that is built in memory."""
    import json

    from fieldprint.registry.database import RegistryDatabase

    with RegistryDatabase(":memory:", create=True) as fresh:
        fresh.sync(reader, policy, workers=workers, progress=lambda done, _: advance(done))
        rows = set(opened.dump()) ^ set(fresh.dump())
    return Counter(json.loads(row)["table"] for row in rows)


def _shown(url: str) -> str:
    """The URL without its password."""
    from fieldprint.database import parse_url

    return parse_url(url, "registry database").render_as_string(hide_password=True)


def _counts(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in ("anchors", "events", "revoked")}


def _words(summary: dict[str, Any]) -> str:
    states = ", ".join(f"{number} {state}" for state, number in sorted(summary["anchors"].items()))
    return f"anchors: {states or 'none'}; {summary['events'].get('refused', 0)} events refused"


@app.command("list")
def registry_list(
    database: DatabasePlace = "registry.db",
    kind: Annotated[str | None, typer.Option("--kind", help="Only of this kind.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only of this name.")] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="registered, active, superseded or revoked.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """List the registered anchors, the newest first."""
    from fieldprint.registry.database import RegistryDatabase

    if state not in (None, "registered", "active", "superseded", "revoked"):
        raise typer.BadParameter("--state is registered, active, superseded or revoked")
    with RegistryDatabase(database) as opened:
        records = opened.anchors(kind=kind, name=name, state=state, limit=limit)
    _print_records(f"{len(records)} anchors", records, as_json)


def _print_records(title: str, records: "list[AnchorRecord]", as_json: bool) -> None:
    if as_json:
        print_result({"anchors": [_fields(record) for record in records]}, True, "")
        return
    columns = ("anchor", "kind", "name", "state", "taint", "entry")
    cells = [
        (
            record.registration.anchor[:16],
            record.registration.kind,
            record.registration.name,
            record.state + (", ancestor revoked" if record.revoked_ancestor else ""),
            ", ".join(sorted(record.taint)) or "none",
            str(record.index),
        )
        for record in records
    ]
    print_table(title, columns, cells)


def _fields(record: "AnchorRecord") -> dict[str, Any]:
    from fieldprint.anchor.artifact import format_time

    made = record.registration
    return {
        "anchor": made.anchor,
        "kind": made.kind,
        "name": made.name,
        "state": record.state,
        "taint": sorted(record.taint),
        "own_taint": list(made.taint),
        "endorsed": sorted(record.endorsed),
        "not_before": format_time(made.not_before),
        "not_after": format_time(made.not_after),
        "parents": list(made.parents),
        "supersedes": list(made.supersedes),
        "superseded_by": record.superseded_by,
        "revoked": None if record.revocation is None else record.revocation.reason,
        "revoked_ancestor": record.revoked_ancestor,
        "entry": record.index,
        "promotions": list(record.promotions),
    }


Anchor = Annotated[str, typer.Argument(help="An anchor's digest, or how it begins.")]


@app.command("show")
def registry_show(anchor: Anchor, database: DatabasePlace = "registry.db", as_json: Json = False) -> None:
    """Show what became of an anchor, and what overrides are in force on it."""
    from fieldprint.registry.database import RegistryDatabase

    with RegistryDatabase(database) as opened:
        record = opened.anchor(opened.resolve(anchor))
        if record is None:
            raise FieldprintError("the anchor was registered no more when it was read", remedy="Try again")
        made = record.registration
        override = opened.override_on(datetime.now(UTC), anchor=made.anchor, kind=made.kind)
    fields = _fields(record)
    fields["override"] = None if override is None else {"number": override.number, "action": override.action}
    if as_json:
        print_result(fields, True, "")
        return
    fields["override"] = None if override is None else order_words(override)
    cells = [
        (key, ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value))
        for key, value in fields.items()
        if value is not None
    ]
    print_table(f"{made.kind} {made.name}", ("what", "value"), cells)


@app.command("lineage")
def registry_lineage(anchor: Anchor, database: DatabasePlace = "registry.db", as_json: Json = False) -> None:
    """Show from whom an anchor descends, and who descends from it."""
    from fieldprint.registry.database import RegistryDatabase

    with RegistryDatabase(database) as opened:
        digest = opened.resolve(anchor)
        groups = {"ancestors": opened.ancestors(digest), "descendants": opened.descendants(digest)}
        if as_json:
            print_result({"anchor": digest, **groups}, True, "")
            return
        for title, digests in groups.items():
            records = [record for each in digests if (record := opened.anchor(each)) is not None]
            _print_records(f"{len(records)} {title} of {digest[:16]}", records, False)


@app.command("status")
def registry_status(
    policy: PolicyFile,
    log: LogPlace,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="Sign a new one: a key that the policy's table `status` names."),
    ] = None,
    log_key: Annotated[
        Path | None, typer.Option("--log-key", help="To sign a new one: the log's key.")
    ] = None,
    prove: Annotated[
        str | None,
        typer.Option("--prove", help="Prove that an anchor is not revoked: its file, or its digest."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the proof goes; else to standard output, alone.")
    ] = None,
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    passphrase_file: PassphraseFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Show the last status root over the revoked anchors; with --key and --log-key sign and append a new one first.

    Run it at an interval shorter than the policy's max_age_seconds, and after each revocation: verifiers without the log
    refuse every anchor when the last root is too old.
    """
    from fieldprint.registry import Registry, believe_event, prove_not_revoked

    if (key is None) != (log_key is None):
        raise typer.BadParameter("--key and --log-key are given together")
    wanted = None if prove is None else anchor_digest(prove)
    trusted = open_policy(policy)
    warning, index, signers = "", None, open_signers(key or [], passphrase_file)
    if log_key is not None and not dry_run:
        place = Place(policy, log, log_key, last_signed, quorum)
        index, warning = append_made(place, lambda registry, known: _status_entry(registry, known, signers))
    reader = open_reader(log, trusted)
    registry = Registry.replay(reader.entries(), trusted)
    fields: dict[str, Any] = {"revoked": len(registry.revoked), "appended": index, "dry_run": dry_run}
    fields |= {"root": registry.status_tree.root.hex(), "last": _last(registry), "warning": warning or None}
    said = f"{len(registry.revoked)} anchors are revoked, root {fields['root'][:16]}; last status root: "
    said += (
        "none"
        if fields["last"] is None
        else "entry {index}, of {time}, over {count}".format(**fields["last"])
    )
    if signers and dry_run:
        believe_event(registry, _status_entry(registry, trusted, signers))
        said = f"would be believed: a root over {len(registry.revoked)} revoked anchors\n{said}"
    if wanted is not None:
        proof = prove_not_revoked(registry, reader, wanted).to_bytes()
        fields["proof"] = proof.decode() if out is None else str(out)
        said += f"\nnot revoked: {wanted[:16]}" + (f", proof in {out}" if out else "")
        if out is not None:
            write_new(out, proof)
        elif not as_json:
            typer.echo(said, err=True)
            typer.echo(proof.decode(), nl=False)
            warn(warning)
            return
    print_result(fields, as_json, said)
    warn(warning)


def _status_entry(registry: "Registry", policy: "Policy", signers: Any) -> bytes:
    from fieldprint.anchor import StatusRoot, sign_statement
    from fieldprint.registry import event_entry

    if policy.status is None:
        raise VerificationError(
            1, "the policy names nobody who signs status roots", remedy="Add a table [status]"
        )
    root, now = registry.status_tree.root.hex(), datetime.now(UTC).replace(microsecond=0)
    age = policy.status.max_age_seconds
    made = StatusRoot(root, len(registry.revoked), registry.position, now, age)
    return event_entry("status", sign_statement(made, signers))


def _last(registry: "Registry") -> dict[str, Any] | None:
    from fieldprint.anchor.artifact import format_time

    if registry.status is None:
        return None
    index, root = registry.status
    return {
        "index": index,
        "time": format_time(root.time),
        "count": root.count,
        "size": root.size,
        "max_age": root.max_age,
    }
