"""`fieldprint keys`."""

from pathlib import Path
from typing import Annotated

import typer

from fieldprint.cli.options import Json
from fieldprint.cli.output import print_result

app = typer.Typer(help="Keys in files.", no_args_is_help=True)


@app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="Name of the key; files NAME.key and NAME.pub are written.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the files go.")] = Path("keys"),
    lattice: Annotated[
        bool, typer.Option("--ml-dsa-44", help="An ML-DSA-44 key, for a witness, in place of an Ed25519 key.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a key pair: NAME.key (private, mode 0600) and NAME.pub."""
    from fieldprint.anchor import key_id, load_public_key, new_key

    private, public = new_key(folder, name, lattice=lattice)
    identifier = None if lattice else key_id(load_public_key(public))
    print_result(
        {"private": str(private), "public": str(public), "key_id": identifier},
        as_json,
        f"wrote {private} (keep it secret) and {public}",
    )
