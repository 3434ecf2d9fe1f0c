"""`fieldprint verify`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldprint.cli.inputs import open_registry, open_status, open_trust, read_input
from fieldprint.cli.options import Json, StatusFile
from fieldprint.cli.output import print_result, printable, unchecked
from fieldprint.errors import VerificationError

if TYPE_CHECKING:
    from fieldprint.anchor import Policy
    from fieldprint.registry import Registry, StatusProof
    from fieldprint.tlog import Trust

NEITHER = "it is neither a receipt, which is JSON, nor a proof, whose first line is c2sp.org/tlog-proof@v1"


def verify(
    files: Annotated[
        list[Path], typer.Argument(help="Receipts, or proofs (.tlog-proof).", metavar="RECEIPT...")
    ],
    policy: Annotated[
        Path,
        typer.Option("--policy", help="The verifier's policy (TOML); for proofs also a C2SP trust policy."),
    ],
    entry: Annotated[
        Path | None, typer.Option("--entry", help="The entry of a proof that does not hold it itself.")
    ] = None,
    log: Annotated[str | None, typer.Option("--log", help="The log, for revocations.")] = None,
    status: StatusFile = None,
    as_json: Json = False,
) -> None:
    """Check receipts and proofs offline: with the files and a policy, without model, torch or network.

    Stops at the first that fails and says which numbered check it was. With --log, an anchor that has been revoked or
    superseded since makes its receipts fail check 7. Where the policy has a table `status`, receipts of an anchor need
    --log or --status. Too few witnesses: check 8 of a receipt, check 3 of a proof.
    """
    from fieldprint.anchor import Policy

    trusted = open_trust(policy)
    if entry is not None and len(files) != 1:
        raise typer.BadParameter("--entry belongs to one proof", param_hint="--entry")
    if log is not None and not isinstance(trusted, Policy):
        raise typer.BadParameter("revocations need a policy in TOML", param_hint="--log")
    registry = open_registry(log, trusted) if log is not None and isinstance(trusted, Policy) else None
    proof = open_status(status, log, trusted)
    for file in files:
        data = read_input(file)
        is_proof = data.startswith(b"c2sp.org/tlog-proof")
        if not is_proof and (entry is not None or not isinstance(trusted, Policy)):
            raise typer.BadParameter(f"{file} is no proof; a receipt needs a policy in TOML, and no --entry")
        try:
            if not is_proof and not data.lstrip().startswith(b"{"):
                raise VerificationError(1, NEITHER)
            if is_proof:
                fields, text = _proof(data, trusted, None if entry is None else read_input(entry))
            else:
                assert isinstance(trusted, Policy)  # noqa: S101  refused above
                fields, text = _receipt(data, trusted, registry, proof)
        except VerificationError as error:
            raise VerificationError(error.check, f"{file}: {error.what}", remedy=error.remedy) from error
        print_result({"verified": True, "receipt": str(file), **fields}, as_json, text)


def _receipt(
    data: bytes, trusted: "Policy", registry: "Registry | None", status: "StatusProof | None"
) -> tuple[dict[str, Any], str]:
    from fieldprint.verify import verify_receipt

    verified = verify_receipt(data, trusted, now=datetime.now(UTC), registry=registry, status=status)
    name = "no anchor" if verified.anchor is None else f"anchor {verified.anchor.artifact.name}"
    note = "" if registry is not None or verified.anchor is None else unchecked(status)
    fields = {
        "text": verified.text,
        "anchor": None if verified.anchor is None else verified.anchor.digest,
        "revocation_checked": registry is not None,
        "model": verified.model,
        "leaves": verified.num_leaves,
        "origin": verified.origin,
        "tree_size": verified.tree_size,
        "witnesses": list(verified.witnesses),
    }
    return fields, (
        f"verified: {verified.num_tokens} tokens under {name}, {verified.num_leaves} leaves in {verified.origin} "
        f"of {verified.tree_size} entries{_cosigned(verified.witnesses)}{note}\n{printable(verified.text)}"
    )


def _proof(data: bytes, trusted: "Trust", entry: bytes | None) -> tuple[dict[str, Any], str]:
    from fieldprint.tlog import verify_log_proof

    verified = verify_log_proof(data, trusted, entry)
    checkpoint = verified.checkpoint
    names = sorted({signature.key.name for signature in verified.cosignatures})
    fields = {
        "index": verified.index,
        "entry": verified.entry.decode(errors="replace"),
        "origin": checkpoint.origin,
        "tree_size": checkpoint.tree_size,
        "witnesses": names,
    }
    return fields, (
        f"verified: entry {verified.index} of {checkpoint.origin} with {checkpoint.tree_size} entries"
        f"{_cosigned(names)}\n{printable(verified.entry.decode(errors='replace'))}"
    )


def _cosigned(names: "tuple[str, ...] | list[str]") -> str:
    return f", cosigned by {', '.join(names)}" if names else ""
