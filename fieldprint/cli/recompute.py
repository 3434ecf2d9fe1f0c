"""`fieldprint audit`: what needs the model."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fieldprint.cli.inputs import open_model, open_policy, open_registry, open_status, read_input
from fieldprint.cli.options import Json, ModelFolder, PolicyFile, StatusFile
from fieldprint.cli.output import print_result, printable, progress_bar
from fieldprint.errors import FieldprintError

if TYPE_CHECKING:
    from fieldprint.adapters.transformers import LoadedModel
    from fieldprint.recompute import Recomputation

SHOWN = 8  # differences, as text

app = typer.Typer(help="Recompute what receipts say, with the model.", no_args_is_help=True)


@app.callback()
def options() -> None:
    """Recompute what receipts say, with the model."""


@app.command("recompute")
def audit_recompute(
    files: Annotated[list[Path], typer.Argument(help="Receipts.", metavar="RECEIPT...")],
    policy: PolicyFile,
    model: ModelFolder = None,
    log: Annotated[str | None, typer.Option("--log", help="The log, for revocations.")] = None,
    status: StatusFile = None,
    tau: Annotated[
        float,
        typer.Option(
            "--tau", min=0, max=100, help="Logits by which this machine's may be off from the engine's."
        ),
    ] = 0.01,
    as_json: Json = False,
) -> None:
    """Verify receipts, run the model over their tokens in one prefill, and draw every token of the answers again.

    OK: every token is the one that the model gives, or would be if its logits were off by --tau or less. OUT_OF_TOLERANCE: at
    least one is not; the positions are named, with the tau that each would need. This says whether tokens are the model's, and
    nothing of the K/V that lay there, which `verify` is about.

    Exit code 0: all are OK. 1: one is not, or a check failed. 2: usage.
    """
    trusted = open_policy(policy)
    registry = None if log is None else open_registry(log, trusted)
    proof = open_status(status, log, trusted)
    loaded = open_model(model)
    from fieldprint.recompute import recompute_receipt

    failed = False
    for file in files:
        data = read_input(file)
        with progress_bar(file.name, 1, as_json) as show:
            try:
                found = recompute_receipt(
                    data,
                    trusted,
                    model=loaded,
                    now=datetime.now(UTC),
                    registry=registry,
                    status=proof,
                    tau=tau,
                    on_progress=lambda done, count, show=show: show(done / count),  # type: ignore[misc]
                )
            except FieldprintError as error:
                error.what = f"{file}: {error.what}"
                raise
        failed |= bool(found.failed)
        print_result(_fields(file, found), as_json, _text(file, found, loaded))
    if failed:
        raise typer.Exit(1)


def _fields(file: Path, found: "Recomputation") -> dict[str, Any]:
    return {
        "receipt": str(file),
        "verdict": found.verdict,
        "tau": found.tau,
        "tokens": found.num_tokens,
        "anchor": None if found.receipt.anchor is None else found.receipt.anchor.digest,
        "model": found.receipt.model,
        "differences": [
            {
                "position": one.position,
                "token": one.token,
                "drawn": one.drawn,
                "passes": one.passes,
                "needed": one.needed,
            }
            for one in found.differences
        ],
    }


def _text(file: Path, found: "Recomputation", model: "LoadedModel") -> str:
    same = found.num_tokens - len(found.differences)
    lines = [f"{found.verdict}: {file}: {same} of {found.num_tokens} tokens drawn again, tau {found.tau:g}"]
    for one in found.differences[:SHOWN]:
        says = "passes" if one.passes else "fails"
        needs = "" if one.needed is None else f", needs {one.needed:.3g}"
        token, drawn = (printable(repr(model.decode([each]))) for each in (one.token, one.drawn))
        lines.append(f"  position {one.position}: {token} was committed, {drawn} is drawn: {says}{needs}")
    if len(found.differences) > SHOWN:
        lines.append(f"  and {len(found.differences) - SHOWN} more; --json has all")
    return "\n".join(lines)
