"""Asking a running engine: one file a question, one an answer, in a folder that is its owner's alone.

    FOLDER/in/ID.json    {"type": "revocation", "signed": "<base64>"}    written whole; the engine takes it away
    FOLDER/out/ID.json   {"index": 41}, {"accepted": "second"}, or {"refused": "<short name>", "what": "..."}    deleted by
                         who has asked
    FOLDER/state.json    {"anchors": [{"name", "digest", "root", "tokens", "ready", "ruling", "mass"}], "default": "main"}

The engine's scheduler runs in another process than the HTTP server. Whoever may write into the folder may ask; what a
question may change is for the engine to check, by its signatures.
"""

import asyncio
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldprint.errors import FieldprintError, FormatError

TIMEOUT = 30.0  # seconds
POLL = 0.02
MAX_ANSWER = 16 << 20  # the state, with the mass of each anchor in each head


class NoAnswerError(FieldprintError):
    """The engine has not answered in time."""


@dataclass(frozen=True, slots=True)
class Done:
    """What the engine has done, in its own words: {"index": 41}, or {"accepted": "second"}."""

    fields: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Refused:
    """What the engine says no to: a short name that stays, and a sentence."""

    name: str
    what: str


def check_private(folder: Path) -> None:
    """Pass with a folder that is its owner's alone.

    Raises:
        FieldprintError: it is not. OSError: there is none.
    """
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise FieldprintError(
            f"{folder} is not its owner's alone: whoever writes there may install anchors",
            remedy=f"Run: chmod 700 {folder}",
        )


class RunningEngine:
    """The asker's end of the folder.

    Args:
        folder: of the engine, as `prepare` makes it.
        timeout: seconds that an answer may take.
    """

    def __init__(self, folder: Path, timeout: float = TIMEOUT) -> None:
        self.folder, self.timeout = folder, timeout

    def prepare(self) -> None:
        """Make the folder, empty of what an engine before this one was asked.

        Raises:
            FieldprintError: it cannot be made, or others than its owner may write there.
        """
        try:
            for folder in (self.folder, self.folder / "in", self.folder / "out"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                check_private(folder)
                for pattern in ("*.json*", "*.taken", "*.part"):
                    for left in folder.glob(pattern):
                        left.unlink()
        except OSError as error:
            raise FieldprintError(
                f"the control folder {self.folder} cannot be used: {error.strerror}",
                remedy="Give another --control",
            ) from error

    def state(self) -> dict[str, Any] | None:
        """What the engine says of its anchors; None before it has begun.

        Raises:
            FormatError: it is something else.
        """
        try:
            fields = _read_object(self.folder / "state.json")
        except FileNotFoundError:
            return None
        anchors = fields.get("anchors")
        if not isinstance(anchors, list) or not all(
            isinstance(entry, dict) and isinstance(entry.get("name"), str) and "ready" in entry
            for entry in anchors
        ):
            raise FormatError(f"{self.folder / 'state.json'} does not say which anchors there are")
        return fields

    async def ask(self, question: Mapping[str, object]) -> Done | Refused:
        """What the engine has done, or its refusal.

        Raises:
            NoAnswerError: there is none in time, and whether anything was done.
            FormatError: the answer is no answer. FieldprintError: the question cannot be written.
        """
        number = secrets.token_hex(16)
        asked, answered = (self.folder / side / f"{number}.json" for side in ("in", "out"))
        part = asked.with_suffix(".part")
        try:
            part.write_text(json.dumps(question), encoding="ascii")
            os.replace(part, asked)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise FieldprintError(
                f"{asked} cannot be written: {error.strerror}", remedy="Check the control folder"
            ) from error
        try:
            async with asyncio.timeout(self.timeout):
                while not answered.exists():
                    await asyncio.sleep(POLL)
            return _answer(_read_object(answered))
        except TimeoutError:
            raise NoAnswerError(
                f"the engine has not answered in {self.timeout:g} seconds", remedy=_taken_back(asked)
            ) from None
        finally:
            asked.unlink(missing_ok=True)
            answered.unlink(missing_ok=True)


def _taken_back(asked: Path) -> str:
    """What became of a question that nobody has answered: one that is still there was not acted on."""
    try:
        asked.unlink()
    except FileNotFoundError:
        return "It may have done it all the same: look into the log"
    return "Nothing was done; ask again"


def _answer(fields: dict[str, Any]) -> Done | Refused:
    match fields:
        case {"refused": str(name), "what": str(what)} if len(fields) == 2:
            return Refused(name, what)
        case {"index": int(index)} if len(fields) == 1 and type(index) is int and index >= 0:
            return Done({"index": index})
        case {"accepted": str(accepted)} if len(fields) == 1:
            return Done({"accepted": accepted})
    raise FormatError("the engine's answer is neither an index, a name nor a refusal")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(MAX_ANSWER))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise FormatError(f"{path} holds no JSON object")
    return fields
