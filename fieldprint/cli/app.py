"""The commands put together, and `main`, which turns expected errors into one line and an exit code."""

import json
import sys
from importlib import metadata
from typing import Annotated

import typer

from fieldprint.cli import (
    anchor,
    audit,
    events,
    generate,
    keys,
    log,
    memory,
    override,
    policy,
    proof,
    recompute,
    registry,
    serve,
    serve_vllm,
    verify,
    witness,
)
from fieldprint.cli.output import printable
from fieldprint.errors import FieldprintError

EXTRAS = dict.fromkeys(("torch", "transformers", "safetensors", "numpy"), "demo") | {
    "obstore": "s3",
    "sqlalchemy": "registry",
    "psycopg": "registry",
}  # what the base install leaves out, and which extra brings it

app = typer.Typer(
    help="Signed texts, pinned as K/V pages that every query attends to, with a log of what was generated.\n\n"
    "Begin with `fieldprint demo`, or: keys new, policy new, log new, anchor sign, anchor register, generate, verify.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fieldprint {metadata.version('fieldprint')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end."),
    ] = False,
) -> None:
    """Options that stand before the command."""


app.add_typer(keys.app, name="keys")
app.add_typer(policy.app, name="policy")
app.add_typer(anchor.app, name="anchor")
app.add_typer(override.app, name="override")
app.add_typer(log.app, name="log")
app.add_typer(registry.app, name="registry")
app.add_typer(memory.app, name="memory")
app.add_typer(recompute.app, name="audit")
anchor.app.command("endorse")(events.anchor_endorse)
anchor.app.command("supersede")(events.anchor_supersede)
log.app.command("audit")(audit.log_audit)
log.app.command("serve")(serve.log_serve)
log.app.command("proof")(proof.log_proof)
log.app.command("renew")(proof.log_renew)
log.app.command("witness")(witness.log_witness)
log.app.command("cosign")(witness.log_cosign)
for command in (generate.promote, generate.generate, verify.verify, generate.model, generate.demo):
    app.command()(command)
# What is not ours is vLLM's, and vLLM refuses what it does not know.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve_vllm.serve)


def main() -> None:
    """Run the command line; expected errors are one line and exit code 1, with --json an object on stdout as well."""
    try:
        app()
    except SystemExit as stop:
        refused = getattr(
            stop.__context__, "format_message", None
        )  # typer's own usage error, printed already
        if refused is not None:
            _in_json(f"usage: {refused()}", check=None)
        raise
    except FieldprintError as error:
        sys.exit(_failed(str(error), 1, check=getattr(error, "check", None)))
    except ValueError as error:
        sys.exit(_failed(f"usage: {error}", 2))
    except OSError as error:
        sys.exit(_failed(f"{error.filename or 'output'}: {error.strerror}", 1))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        what = f"this command needs {error.name}, which the base install leaves out"
        sys.exit(_failed(f"{what}. Run: pip install 'fieldprint[{extra}]'", 1))


def _failed(text: str, code: int, *, check: int | None = None) -> int:
    typer.echo(f"error: {printable(text)}", err=True)
    _in_json(text, check=check)
    return code


def _in_json(text: str, *, check: int | None) -> None:
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": text, "check": check}, ensure_ascii=False))
