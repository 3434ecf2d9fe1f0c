"""Opening what options name: files, policies, logs, models."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fieldprint.cli.options import PASSPHRASE_VARIABLE
from fieldprint.errors import FieldprintError, FormatError

if TYPE_CHECKING:
    from fieldprint.adapters.transformers import LoadedModel
    from fieldprint.anchor import Policy, Signer
    from fieldprint.anchor.keys import AskSecret
    from fieldprint.registry import Registry, StatusProof
    from fieldprint.tlog import Cosign, LogReader, LogWriter, TrustPolicy


def read_input(path: Path) -> bytes:
    """The bytes of a file that the user named."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from error


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not be there yet."""
    from fieldprint.anchor.keys import write_new_file

    try:
        write_new_file(path, data)
    except FileExistsError:
        raise typer.BadParameter(f"{path} exists and is not overwritten") from None
    except OSError as error:
        raise FieldprintError(f"{path} cannot be written: {error.strerror}") from error


def open_signers(references: Sequence[str], passphrase_file: Path | None) -> "list[Signer]":
    """The signers that `--key` names; what they need to be asked is asked at the terminal."""
    from fieldprint.anchor import open_signer

    passphrase = ask_passphrase(passphrase_file)
    return [open_signer(reference, passphrase=passphrase, pin=ask_pin) for reference in references]


def ask_passphrase(file: Path | None) -> "AskSecret":
    """What answers for a passphrase: the file, or whoever sits at the terminal."""

    def ask(what: str) -> bytes:
        remedy = f"Give --passphrase-file, or set {PASSPHRASE_VARIABLE}"
        return ask_secret(what, remedy) if file is None else passphrase_from(file)

    return ask


def passphrase_from(file: Path) -> bytes:
    """The passphrase in a file."""
    from fieldprint.anchor.keys import read_secret

    return read_secret(file, "passphrase")


def ask_pin(what: str) -> bytes:
    """The PIN of a token, asked at the terminal."""
    return ask_secret(what, "Put ?pin-source=/path/of/file behind the URI")


def ask_secret(what: str, remedy: str, *, twice: bool = False) -> bytes:
    """What is typed at the terminal without being shown; `remedy` is for where there is none."""
    if not sys.stdin.isatty():
        raise FieldprintError(f"the {what} is needed, and there is no terminal to ask at", remedy=remedy)
    typed: str = typer.prompt(what, hide_input=True, confirmation_prompt=twice, err=True)
    return typed.encode()


def confirm(question: str, yes: bool) -> None:
    """Return only if `--yes` was given, or whoever sits at the terminal says so: for what cannot be undone."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{question} There is no terminal to ask at: add --yes", param_hint="--yes")
    typer.confirm(question, abort=True, err=True)


def open_policy(path: Path) -> "Policy":
    """The policy in a file."""
    from fieldprint.anchor import Policy

    try:
        return Policy.from_bytes(read_input(path))
    except FormatError as error:
        raise FormatError(f"{path}: {error.what}", remedy=error.remedy) from error


def open_trust(path: Path) -> "Policy | TrustPolicy":
    """A policy, or a C2SP trust policy, which begins with a line of its own: no TOML line has these words."""
    from fieldprint.tlog import TrustPolicy

    data = read_input(path)
    if re.match(rb"(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]*(?:log|witness|group|quorum)[ \t]+[^ \t=]", data):
        return TrustPolicy.from_bytes(data)
    return open_policy(path)


def open_reader(place: Path | str, policy: "Policy") -> "LogReader":
    """The log, read with the policy's key."""
    from fieldprint.tlog import LogReader

    return LogReader(place, [policy.log_key])


def open_status(path: Path | None, log: str | None, trusted: "Policy | TrustPolicy") -> "StatusProof | None":
    """The status proof in a file, if `--status` names one; refused where nobody would look at it."""
    from fieldprint.anchor import Policy
    from fieldprint.registry import StatusProof

    if path is None:
        return None
    if log is not None:
        raise typer.BadParameter("--status is for who has no --log")
    if not isinstance(trusted, Policy) or trusted.status is None:
        raise typer.BadParameter(
            "--status needs a policy with a table `status`, which says who signs status roots"
        )
    return StatusProof.from_bytes(read_input(path))


def open_registry(place: Path | str, policy: "Policy") -> "Registry":
    """The registry that replaying the log gives."""
    from fieldprint.registry import Registry

    return Registry.replay(open_reader(place, policy).entries(), policy)


@contextmanager
def open_writer(
    place: str,
    log_key: Path,
    policy: "Policy",
    last_signed: Path | None,
    *,
    adopt: bool = False,
    cosign: "Cosign | None" = None,
) -> Iterator["LogWriter"]:
    """The log's writer, if the key is the policy's; `cosign` asks witnesses before a checkpoint is published."""
    from fieldprint.registry import open_log

    with open_log(place, log_key, policy, last_signed=last_signed, adopt=adopt, cosign=cosign) as writer:
        yield writer


def open_model(folder: Path | None, dtype: str = "float32") -> "LoadedModel":
    """The model in a folder, or the demo model."""
    from fieldprint.adapters.model_folder import prepare_demo_model

    path = prepare_demo_model() if folder is None else folder
    from fieldprint.adapters.transformers import load_model

    return load_model(path, dtype=dtype)
