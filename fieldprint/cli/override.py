"""`fieldprint override`: the door that always opens."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fieldprint.cli.cosigning import open_cosigner, warn
from fieldprint.cli.events import anchor_digest
from fieldprint.cli.inputs import confirm, open_policy, open_signers, open_writer
from fieldprint.cli.options import (
    DryRun,
    Json,
    LastSignedFile,
    PassphraseFile,
    PolicyFile,
    QuorumFile,
    SigningKeys,
    Yes,
)
from fieldprint.cli.output import print_result, print_table
from fieldprint.errors import FieldprintError

if TYPE_CHECKING:
    from fieldprint.anchor import Policy
    from fieldprint.registry.orders import OrdersFile

app = typer.Typer(
    help="Order engines to leave an anchor (bypass) or to stop (freeze), and take it back (restore).\n\n"
    "An order goes into a file that engines look at before every step (`generate --orders`), which works while the log "
    "and the database are out of reach; and into the log, now with --log, or later with `override record`.",
    no_args_is_help=True,
)

MOST_HOURS = 24 * 366 * 100  # a century
Orders = Annotated[
    Path,
    typer.Option("--orders", envvar="FIELDPRINT_ORDERS", help="The file of orders; made if it is not there."),
]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is public.")]
OrdersThere = Annotated[
    Path, typer.Option("--orders", envvar="FIELDPRINT_ORDERS", help="The file of orders.")
]
Anchor = Annotated[
    str | None, typer.Option("--anchor", help="The anchor that it is about: its file, or its digest.")
]
Kind = Annotated[str | None, typer.Option("--kind", help="Kind of the anchors that it is about.")]
EngineName = Annotated[str | None, typer.Option("--engine", help="Name of the engine that it is about.")]
Everything = Annotated[bool, typer.Option("--all", help="It is about everything.")]
Hours = Annotated[
    float | None,
    typer.Option("--hours", min=0.01, max=MOST_HOURS, help="How long it holds; else until restored."),
]
Number = Annotated[
    int | None,
    typer.Option(
        "--number", min=1, max=2**53 - 1, help="Number of the order, as a dry run said it; else the next one."
    ),
]
LogPlaceOrNone = Annotated[str | None, typer.Option("--log", help="Append the order to this log too.")]
LogKeyOrNone = Annotated[Path | None, typer.Option("--log-key", help="Private key of that log.")]


@app.command("bypass", help="Generate without the anchor from the next step on.")
@app.command(
    "freeze", help="Stop: what was generated is committed, and nothing is generated until it is restored."
)
def override_order(
    context: typer.Context,
    key: SigningKeys,
    policy: PolicyFile,
    orders: Orders,
    reason: Reason,
    anchor: Anchor = None,
    kind: Kind = None,
    engine: EngineName = None,
    everything: Everything = False,
    hours: Hours = None,
    number: Number = None,
    log: LogPlaceOrNone = None,
    log_key: LogKeyOrNone = None,
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    passphrase_file: PassphraseFile = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Give the order that the command is named for."""
    scope, target = _scope(anchor, kind, engine, everything)
    place = _log_of(log, log_key, last_signed, quorum)
    what = _What(str(context.info_name), scope, target, reason, hours, number)
    _order(what, _Signing(key, passphrase_file, policy), orders, place, _How(dry_run, yes, as_json))


@app.command("restore")
def override_restore(
    number: Annotated[int, typer.Argument(help="Number of the order that ends; see `override list`.")],
    key: SigningKeys,
    policy: PolicyFile,
    orders: Orders,
    reason: Reason,
    log: LogPlaceOrNone = None,
    log_key: LogKeyOrNone = None,
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    passphrase_file: PassphraseFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """End an order: engines may generate under the anchor again."""
    from fieldprint.anchor.sign import sign_statement
    from fieldprint.anchor.statements import Lift
    from fieldprint.registry import event_entry

    place = _log_of(log, log_key, last_signed, quorum)
    trusted = open_policy(policy)
    lift = Lift(number, reason, datetime.now(UTC).replace(microsecond=0))
    file = _orders_of(orders, trusted)
    entry = event_entry("lift", sign_statement(lift, open_signers(key, passphrase_file)))
    fields: dict[str, object] = {"number": number, "reason": reason, "dry_run": dry_run}
    if dry_run:
        file.check(entry)
        print_result(fields, as_json, f"would restore {number}")
        return
    file.append(entry)
    shown, warning = _recorded(file, trusted, place)
    print_result(fields | shown, as_json, f"restored {number}{_where(shown)}")
    warn(warning)


@app.command("list")
def override_list(policy: PolicyFile, orders: OrdersThere, as_json: Json = False) -> None:
    """Show the orders in the file that were not lifted."""
    from fieldprint.anchor.artifact import format_time

    file = _orders_of(orders, open_policy(policy))
    _warn_if_missing(orders)
    now = datetime.now(UTC)
    rows = [
        {
            "number": order.number,
            "action": order.action,
            "scope": order.scope,
            "target": order.target,
            "reason": order.reason,
            "time": format_time(order.time),
            "expires": None if order.expires is None else format_time(order.expires),
            "holds": order.holds(now),
        }
        for order in file.in_force
    ]
    if as_json:
        print_result({"orders": rows}, True, "")
        return
    if not rows:
        typer.echo("no order is in force")
        return
    cells = [
        (
            str(row["number"]),
            str(row["action"]) if row["holds"] else f"{row['action']} (expired)",
            f"{row['scope']} {row['target']}",
            str(row["time"]),
            str(row["expires"] or "restored"),
            str(row["reason"]),
        )
        for row in rows
    ]
    print_table(str(orders), ("number", "order", "on", "since", "until", "reason"), cells)


@app.command("record")
def override_record(
    policy: PolicyFile,
    orders: OrdersThere,
    log: Annotated[str, typer.Option("--log", help="The log.")],
    log_key: Annotated[Path, typer.Option("--log-key", help="Private key of that log.")],
    last_signed: LastSignedFile = None,
    quorum: QuorumFile = None,
    as_json: Json = False,
) -> None:
    """Append the file's orders to the log that it does not know yet."""
    trusted = open_policy(policy)
    file = _orders_of(orders, trusted)
    _warn_if_missing(orders)
    shown, warning = _appended(file, trusted, _Log(log, log_key, last_signed, quorum))
    said = f"recorded, in the log: {shown['indices']}"
    if not shown["indices"]:
        said = "the log knows every order of the file" if shown["recorded"] else "nothing was recorded"
    print_result(shown, as_json, said)
    warn(warning)
    if not shown["recorded"]:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _What:
    """What is ordered."""

    action: str
    scope: str
    target: str
    reason: str
    hours: float | None
    number: int | None


@dataclass(frozen=True, slots=True)
class _Signing:
    """Who signs, under which policy."""

    key: list[str]
    passphrase_file: Path | None
    policy: Path


@dataclass(frozen=True, slots=True)
class _Log:
    """The log that is to know of an order."""

    place: str
    key: Path
    last_signed: Path | None
    quorum: Path | None


@dataclass(frozen=True, slots=True)
class _How:
    dry_run: bool
    yes: bool
    as_json: bool


def _scope(anchor: str | None, kind: str | None, engine: str | None, everything: bool) -> tuple[str, str]:
    """The scope and the target, of the one option that was given."""
    given = [
        (scope, target)
        for scope, target in (("anchor", anchor), ("kind", kind), ("engine", engine))
        if target is not None
    ] + ([("all", "*")] if everything else [])
    if len(given) != 1:
        raise typer.BadParameter("give one of --anchor, --kind, --engine and --all")
    scope, target = given[0]
    return scope, anchor_digest(target) if scope == "anchor" else target


def _orders_of(path: Path, policy: "Policy") -> "OrdersFile":
    from fieldprint.registry.orders import OrdersFile

    if not path.absolute().parent.is_dir():
        raise FieldprintError(f"{path} lies in a folder that is not there")
    file = OrdersFile(path, policy)
    if file.broken is not None:
        raise FieldprintError(
            file.broken, remedy="Engines that look at it are stopped; restore the file from a copy"
        )
    return file


def _order(what: _What, signing: _Signing, path: Path, log: _Log | None, how: _How) -> None:
    from fieldprint.anchor.artifact import format_time
    from fieldprint.anchor.sign import sign_statement
    from fieldprint.anchor.statements import Override
    from fieldprint.registry import event_entry

    trusted = open_policy(signing.policy)
    file = _orders_of(path, trusted)
    now = datetime.now(UTC).replace(microsecond=0)
    expires = None if what.hours is None else now + timedelta(seconds=int(3600 * what.hours))
    # Milliseconds grow by themselves, also while nobody can ask the log for the last number; a clock may go back.
    number = what.number or max(time.time_ns() // 1_000_000, file.last_number + 1)
    order = Override(what.action, what.scope, what.target, number, what.reason, now, expires)  # type: ignore[arg-type]
    entry = event_entry("override", sign_statement(order, open_signers(signing.key, signing.passphrase_file)))
    fields: dict[str, object] = {
        "number": number,
        "action": what.action,
        "scope": what.scope,
        "target": what.target,
        "expires": None if expires is None else format_time(expires),
        "orders": str(path),
        "dry_run": how.dry_run,
    }
    on = f"{what.scope} {what.target}"
    if how.dry_run:
        file.check(entry)
        print_result(fields, how.as_json, f"would {what.action} {on} as order {number}")
        return
    if what.scope == "all":
        confirm(f"This will {what.action} every engine that looks at {path}. Go on?", how.yes)
    file.append(entry)
    shown, warning = _recorded(file, trusted, log)
    print_result(fields | shown, how.as_json, f"order {number}: {what.action} {on}{_where(shown)}")
    warn(warning)


def _log_of(
    place: str | None, key: Path | None, last_signed: Path | None, quorum: Path | None
) -> _Log | None:
    """The log that the options name, if they name one."""
    if (place is None) != (key is None):
        raise typer.BadParameter("--log and --log-key are given together")
    return None if place is None or key is None else _Log(place, key, last_signed, quorum)


def _recorded(file: "OrdersFile", policy: "Policy", log: _Log | None) -> tuple[dict[str, object], str]:
    """What the log said of the file's orders, and a warning; an order stands whether or not the log can be reached."""
    if log is None:
        return {"indices": [], "recorded": False}, ""
    try:
        return _appended(file, policy, log)
    except (FieldprintError, OSError) as error:
        return {"indices": [], "recorded": False}, f"the order stands, but the log does not know it: {error}"


def _appended(file: "OrdersFile", policy: "Policy", log: _Log) -> tuple[dict[str, object], str]:
    """What the log took of the file's orders, and a warning: what it refuses, what witnesses fell short of."""
    from fieldprint.registry.orders import record_orders

    with (
        open_cosigner(log.quorum, policy) as cosigner,
        open_writer(log.place, log.key, policy, log.last_signed, cosign=cosigner) as writer,
    ):
        recorded = record_orders(file, writer, policy)
    shown: dict[str, object] = {"indices": list(recorded.indices), "recorded": not recorded.refused}
    return shown, "; ".join(filter(None, [*recorded.refused, cosigner.shortfall]))


def _warn_if_missing(orders: Path) -> None:
    """A file that is not there holds no orders; but its name may be misspelt."""
    if not orders.exists():
        warn(f"there is no file {orders}, so it holds no orders")


def _where(shown: dict[str, object]) -> str:
    return (
        f", in the log: {shown['indices']}"
        if shown["recorded"]
        else "; append it to the log with `override record`"
    )
