"""Receipts by the id that clients know, one file each, readable by whoever the folder's owner lets."""

import os
from pathlib import Path

from fieldprint.adapters.vllm.row import Row
from fieldprint.adapters.vllm.versions import public_id
from fieldprint.errors import FieldprintError, FormatError
from fieldprint.generate import GenerationResult
from fieldprint.note import VerifierKey
from fieldprint.pipeline import receipt_of
from fieldprint.tlog import LogReader
from fieldprint.tlog.storage import Source

SUFFIX = ".receipt.json"
MAX_ID = 128


class ReceiptFolder:
    """A folder of receipts: `ID.receipt.json`, and `ID.1.receipt.json` of what came before an anchor was left.

    Args:
        folder: made if it is not there, for its owner alone: receipts hold prompts and answers.
        source: of the log.
        key: of the log.

    Raises:
        FieldprintError: the folder cannot be made.
    """

    def __init__(self, folder: Path, source: Path | str | Source, key: VerifierKey) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise FieldprintError(
                f"{folder} cannot be made: {error.strerror}", remedy="Check the path"
            ) from error
        self._reader = LogReader(source, [key])

    def holds(self, request_id: str) -> bool:
        """Whether there is a receipt of an earlier request of this id."""
        return receipt_path(self.folder, public_id(request_id)).exists()

    def content(self, row: Row, text: str) -> tuple[str, GenerationResult, bytes | None]:
        """What `write` takes, copied from the row as it is now."""
        number = f".{row.parts + 1}" if row.ending is not None and row.ending.goes_on else ""
        result = GenerationResult(
            tuple(row.tokens[: row.prompt_len]),
            tuple(row.tokens[row.prompt_len :]),
            text,
            "",
            row.terms.salt,
            tuple(row.pages),
        )
        return public_id(row.request.request_id) + number, result, row.anchor.signed

    def write(self, name: str, result: GenerationResult, signed: bytes | None) -> None:
        """Write the receipt with proofs to the log's checkpoint of now; whole or not at all.

        Raises:
            FieldprintError: it cannot be written, or the log cannot be read.
        """
        self._reader.refresh()
        data = receipt_of(result, self._reader, signed).to_bytes()
        path = receipt_path(self.folder, name)
        part = path.with_name(path.name + ".part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.link(part, path)  # never in the place of another's
            part.unlink()
        except FileExistsError as error:
            part.unlink(missing_ok=True)
            raise FieldprintError(
                f"there is a receipt {path.name} already", remedy="Give each request an id of its own"
            ) from error
        except OSError as error:
            part.unlink(missing_ok=True)
            raise FieldprintError(
                f"the receipt {path} cannot be written: {error.strerror}",
                remedy="Free disk space or check the folder",
            ) from error


def receipt_path(folder: Path, name: str) -> Path:
    """Where the receipt of this id lies.

    Raises:
        FormatError: the id could not be one: it is looked up as it is and must not leave the folder.
    """
    if (
        not 0 < len(name) <= MAX_ID
        or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name)
        or ".." in name
    ):
        raise FormatError(f"{name[:40]!r} is not the id of a request")
    return folder / f"{name}{SUFFIX}"
