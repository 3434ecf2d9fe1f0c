"""`fieldprint verify`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fieldprint.cli.inputs import open_policy, open_registry, read_input
from fieldprint.cli.options import Json, PolicyFile
from fieldprint.cli.output import print_result, printable
from fieldprint.errors import VerificationError


def verify(
    receipts: Annotated[list[Path], typer.Argument(help="Receipt files.", metavar="RECEIPT...")],
    policy: PolicyFile,
    log: Annotated[Path | None, typer.Option("--log", help="The log, for revocations.")] = None,
    as_json: Json = False,
) -> None:
    """Check receipts offline: with the files and a policy, without model, torch or network.

    Stops at the first that fails. With --log, an anchor that has been revoked since makes its receipts fail check 7.
    """
    from fieldprint.verify import verify_receipt

    trusted = open_policy(policy)
    registry = None if log is None else open_registry(log, trusted)
    for receipt in receipts:
        try:
            verified = verify_receipt(read_input(receipt), trusted, now=datetime.now(UTC), registry=registry)
        except VerificationError as error:
            raise VerificationError(error.check, f"{receipt}: {error.what}", remedy=error.remedy) from error
        name = "no anchor" if verified.anchor is None else f"anchor {verified.anchor.artifact.name}"
        note = "" if log is not None or verified.anchor is None else " (revocation not checked: give --log)"
        print_result(
            {
                "verified": True,
                "receipt": str(receipt),
                "text": verified.text,
                "anchor": None if verified.anchor is None else verified.anchor.digest,
                "revocation_checked": log is not None,
                "model": verified.model,
                "leaves": verified.num_leaves,
                "origin": verified.origin,
                "tree_size": verified.tree_size,
            },
            as_json,
            f"verified: {verified.num_tokens} tokens under {name}, {verified.num_leaves} leaves in {verified.origin} "
            f"of {verified.tree_size} entries{note}\n{printable(verified.text)}",
        )
