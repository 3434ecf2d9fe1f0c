"""`fieldprint keys`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fieldprint.cli.inputs import ask_passphrase, ask_pin, ask_secret, passphrase_from, write_new
from fieldprint.cli.options import PASSPHRASE_VARIABLE, Json, PassphraseFile
from fieldprint.cli.output import print_result

app = typer.Typer(help="Keys in files, in the keyring, in tokens.", no_args_is_help=True)


@app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="Name of the key; files NAME.key and NAME.pub are written.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the files go.")] = Path("keys"),
    lattice: Annotated[
        bool, typer.Option("--ml-dsa-44", help="An ML-DSA-44 key, for a witness, in place of an Ed25519 key.")
    ] = False,
    encrypt: Annotated[
        bool,
        typer.Option(
            "--encrypt",
            help="Encrypt NAME.key with a passphrase of 12 characters or more, which is asked for.",
        ),
    ] = False,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--passphrase-file",
            help=f"With --encrypt: take the passphrase from this file's first line, or from that of the file "
            f"which {PASSPHRASE_VARIABLE} names.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key pair: NAME.key (private, mode 0600) and NAME.pub.

    Keys of logs and witnesses cannot be encrypted: their servers start with nobody there to ask.
    """
    from fieldprint.anchor import key_id, load_public_key, new_key

    if passphrase_file is not None and not encrypt:
        raise typer.BadParameter("--passphrase-file without --encrypt would leave the key unencrypted")
    if encrypt and lattice:
        raise typer.BadParameter("an ML-DSA-44 key is a witness's, which cannot be encrypted")
    passphrase = _new_passphrase(folder / f"{name}.key", passphrase_file) if encrypt else None
    private, public = new_key(folder, name, lattice=lattice, passphrase=passphrase)
    identifier = None if lattice else key_id(load_public_key(public))
    print_result(
        {"private": str(private), "public": str(public), "key_id": identifier, "encrypted": encrypt},
        as_json,
        f"wrote {private} ({'encrypted' if encrypt else 'keep it secret'}) and {public}",
    )


def _new_passphrase(path: Path, file: Path | None) -> bytes:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if file is not None or given:
        return passphrase_from(file or Path(given or ""))
    return ask_secret(
        f"new passphrase of {path}", f"Give --passphrase-file, or set {PASSPHRASE_VARIABLE}", twice=True
    )


@app.command("show")
def keys_show(
    key: Annotated[
        str,
        typer.Argument(help="A private key's file, its .pub file, keyring:SERVICE/NAME or a pkcs11: URI."),
    ],
    pub: Annotated[
        Path | None,
        typer.Option("--pub", help="Also write the public key to this file (PEM), as policy new reads it."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Print the id and the public half of a key; of the private half only that it can be used."""
    from fieldprint.anchor import Signer, load_public_key, open_signer
    from fieldprint.anchor.keys import key_id, public_pem

    signer: Signer | None = None
    if key.endswith(".pub"):
        identifier, raw = key_id(loaded := load_public_key(Path(key))), loaded.public_bytes_raw()
    else:
        signer = open_signer(key, passphrase=ask_passphrase(passphrase_file), pin=ask_pin)
        identifier, raw = signer.key_id, signer.public_key
    if pub is not None:
        write_new(pub, public_pem(raw))
    half = "public" if signer is None else "private"
    print_result(
        {
            "key_id": identifier,
            "public_key": raw.hex(),
            "half": half,
            "public": None if pub is None else str(pub),
        },
        as_json,
        f"key id      {identifier}\npublic key  {raw.hex()}\n{half} half of the key"
        + ("" if pub is None else f"\nwrote {pub}"),
    )


@app.command("import-keyring")
def keys_import_keyring(
    file: Annotated[Path, typer.Argument(help="The private key's file, plain or encrypted.")],
    reference: Annotated[str, typer.Argument(help="Where it goes: keyring:SERVICE/NAME.")],
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Store a private key in the operating system's keyring (extra `keyring`). The file stays where it is."""
    from fieldprint.anchor import key_id, load_private_key
    from fieldprint.anchor.keyring import store_in_keyring

    private = load_private_key(file, ask_passphrase(passphrase_file))
    store_in_keyring(reference, private)
    identifier = key_id(private.public_key())
    print_result(
        {"reference": reference, "key_id": identifier},
        as_json,
        f"stored key {identifier[:16]} as {reference}; once it has signed from there, {file} can be deleted",
    )
