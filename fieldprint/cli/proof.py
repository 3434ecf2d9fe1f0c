"""`fieldprint log proof` and `fieldprint log renew`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fieldprint.cli.inputs import open_trust, read_input, write_new
from fieldprint.cli.options import Json, QuorumFile, WitnessTimeout
from fieldprint.cli.output import print_result
from fieldprint.cli.witness import cosigned_checkpoint


def log_proof(
    place: Annotated[str, typer.Argument(help="The log's folder or URL.", metavar="LOG")],
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
    quorum: QuorumFile = None,
    timeout: WitnessTimeout = 5.0,
    as_json: Json = False,
) -> None:
    """Write the proof that an entry is in the log: a file that anybody can check offline, also with other tools.

    Check it with: fieldprint verify NAME.tlog-proof --policy FILE [--entry FILE].
    """
    from fieldprint.tlog import LogReader, prove_entry

    reader = LogReader(place, open_trust(policy).log_keys)
    proof = prove_entry(reader, index, with_entry=with_entry)
    if quorum is not None:
        proof = replace(proof, checkpoint=cosigned_checkpoint(reader, quorum, timeout))
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


def log_renew(
    place: Annotated[str, typer.Argument(help="The log's folder or URL.", metavar="LOG")],
    receipt: Annotated[Path, typer.Argument(help="A receipt of a request in that log.")],
    policy: Annotated[
        Path, typer.Option("--policy", help="Policy (TOML) or trust policy with the log's key.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    quorum: QuorumFile = None,
    timeout: WitnessTimeout = 5.0,
    as_json: Json = False,
) -> None:
    """Write a receipt anew, with proofs to the log's present checkpoint and the cosignatures that it has by now."""
    from fieldprint.commit import Receipt, renew_receipt
    from fieldprint.tlog import LogReader

    old = Receipt.from_bytes(read_input(receipt))
    reader = LogReader(place, open_trust(policy).log_keys)
    note = None if quorum is None else cosigned_checkpoint(reader, quorum, timeout)
    write_new(out, renew_receipt(old, reader, note).to_bytes())
    size = reader.checkpoint().tree_size
    print_result(
        {"receipt": str(out), "tree_size": size}, as_json, f"wrote {out}: in the tree of {size} entries"
    )
