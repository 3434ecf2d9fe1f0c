"""`fieldprint log`."""

from typing import Annotated, Any

import typer

from fieldprint.cli.inputs import open_policy, open_reader, open_writer
from fieldprint.cli.options import Json, LastSignedFile, LogKey, PolicyFile
from fieldprint.cli.output import order_words, print_result, printable
from fieldprint.errors import FieldprintError, FormatError

app = typer.Typer(help="The transparency log.", no_args_is_help=True)

LogArgument = Annotated[
    str, typer.Argument(metavar="LOG", help="The log's folder, or the URL of its object store.")
]

SIGNED = {
    "sign": "a signed registration",
    "supersede": "a signed supersession",
    "endorse": "a signed endorsement",
    "revoke": "a signed revocation",
    "override": "a signed override",
    "lift": "the signed end of an override",
    "status": "a signed status root",
}


@app.command("new")
def log_new(
    place: LogArgument,
    log_key: LogKey,
    origin: Annotated[str, typer.Option("--origin", help="Name of the log.")] = "fieldprint.local/log",
    last_signed: LastSignedFile = None,
) -> None:
    """Create an empty log and print the key that its readers need."""
    from fieldprint.anchor import load_private_key
    from fieldprint.note import NoteSigner
    from fieldprint.tlog import LogWriter, open_storage

    if open_storage(place).read("checkpoint") is not None:
        raise FieldprintError(f"{place} holds a log already", remedy="Choose another folder")
    signer = NoteSigner(origin, load_private_key(log_key))
    with LogWriter(place, signer, create=True, last_signed=last_signed) as log:
        typer.echo(log.verifier_key)


@app.command("adopt")
def log_adopt(
    place: LogArgument, policy: PolicyFile, log_key: LogKey, last_signed: LastSignedFile = None
) -> None:
    """Take over a log that was moved here, or whose record of the last signed checkpoint is lost.

    Only if this is its newest state: from an older one the key would sign a second history, which anybody can prove.
    """
    with open_writer(place, log_key, open_policy(policy), last_signed, adopt=True) as log:
        typer.echo(f"adopted {place} with {log.tree_size} entries")


@app.command("show")
def log_show(
    place: LogArgument,
    policy: PolicyFile,
    start: Annotated[int, typer.Option("--start", help="First entry to show.")] = 0,
    as_json: Json = False,
) -> None:
    """Show the entries, each checked against the signed checkpoint's tree."""
    reader = open_reader(place, open_policy(policy))
    checkpoint = reader.checkpoint()
    if reader.root_hash() != checkpoint.root_hash:
        raise FormatError("the tiles do not lead to the checkpoint's root")
    start = min(start, checkpoint.tree_size)
    entries = [_entry(entry) for entry in reader.entries(start)]
    if as_json:
        rows = [{**fields, "index": index} for index, fields in enumerate(entries, start)]
        print_result(
            {"origin": checkpoint.origin, "tree_size": checkpoint.tree_size, "entries": rows}, True, ""
        )
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{checkpoint.origin}, {checkpoint.tree_size} entries, root {checkpoint.root_hash.hex()[:16]}"
    )
    for column in ("index", "type", "what"):
        table.add_column(column)
    for index, fields in enumerate(entries, start):
        cells = (str(index), str(fields.get("type", "?"))[:40], _summary(fields))
        table.add_row(*(Text(printable(cell)) for cell in cells))  # an entry's text is no markup
    Console().print(table)


def _entry(entry: bytes) -> dict[str, Any]:
    from fieldprint.anchor.dsse import parse_canonical

    try:
        return parse_canonical(entry, "the entry", 65535)
    except FormatError:
        return {"type": "?"}


def _summary(fields: dict[str, Any]) -> str:
    kind = fields.get("type")
    part = {
        name: str(fields.get(name))[:16] for name in ("request", "page", "start", "end", "anchor", "model")
    }
    if kind == "commitment":
        return f"request {part['request']} page {part['page']}, positions {part['start']} to {part['end']}"
    if kind == "abort":
        return f"request {part['request']}: {str(fields.get('reason'))[:100]}"
    if kind == "promote":
        return f"anchor {part['anchor']} under model {part['model']}"
    return _order(fields) or SIGNED.get(str(kind), "")


def _order(fields: dict[str, Any]) -> str:
    """What a signed override or its end says; nothing of other entries."""
    from fieldprint.anchor import Lift, Override
    from fieldprint.registry import read_fields

    if fields.get("type") not in ("override", "lift"):
        return ""
    try:
        content = read_fields(str(fields["type"]), fields, None).content
    except FormatError:
        return "not read: it is malformed"
    if isinstance(content, Override):
        return f"a signed override: {order_words(content)}"
    return (
        f"the signed end of override {content.number}: {content.reason}" if isinstance(content, Lift) else ""
    )
