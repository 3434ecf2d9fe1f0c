"""`fieldprint log proof`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fieldprint.cli.inputs import open_trust, write_new
from fieldprint.cli.options import Json
from fieldprint.cli.output import print_result
from fieldprint.cli.witness import ask_witnesses


def log_proof(
    folder: Annotated[Path, typer.Argument(help="The log's folder.")],
    index: Annotated[int, typer.Argument(help="Index of the entry, from 0 on.")],
    policy: Annotated[
        Path, typer.Option("--policy", help="Policy (TOML) or trust policy with the log's key.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, NAME.tlog-proof.")],
    with_entry: Annotated[
        bool,
        typer.Option(
            "--with-entry", help="Put the entry into the file, so that it needs no other beside it."
        ),
    ] = False,
    entry_out: Annotated[Path | None, typer.Option("--entry-out", help="Write the entry here.")] = None,
    quorum: Annotated[
        Path | None, typer.Option("--quorum", help="Ask the witnesses of this trust policy to cosign first.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the witnesses.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Write the proof that an entry is in the log: a file that anybody can check offline, also with other tools.

    Check it with: fieldprint verify NAME.tlog-proof --policy FILE [--entry FILE].
    """
    from fieldprint.tlog import LogReader, prove_entry
    from fieldprint.tlog.witness_client import with_cosignatures

    reader = LogReader(folder, open_trust(policy).log_keys)
    proof = prove_entry(reader, index, with_entry=with_entry)
    if quorum is not None:
        found = ask_witnesses(reader, quorum, timeout).signatures
        proof = replace(proof, checkpoint=with_cosignatures(proof.checkpoint, found))
    data = proof.to_bytes()
    write_new(out, data)
    if entry_out is not None:
        write_new(entry_out, reader.entry(index))
    size = reader.checkpoint().tree_size
    print_result(
        {"proof": str(out), "index": index, "tree_size": size, "bytes": len(data)},
        as_json,
        f"wrote {out}: entry {index} of {size}, {len(data)} bytes",
    )
