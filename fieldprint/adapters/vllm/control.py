"""Control of a running engine, by files: signed events and new anchors come in, answers and the state go out.

    folder/in/ID.json     {"signed": "<base64 of DSSE bytes>", "type": "revocation"}
                          {"artifact": "<base64>", "fieldprint": "/path", "name": "second", "type": "install"}
    folder/out/ID.json    {"index": 41}, {"accepted": "second"}, or {"refused": "revoked", "what": "it is revoked already"}
    folder/state.json     {"anchors": [{"digest": "5e..", "name": "main", "ready": true, "root": "9a..", "ruling": null,
                          "tokens": 64, "mass": null}], "default": "main"}     a ruling has action, reason and why

Whoever may write into the folder can ask; what counts is who signed. Events go into the log by the engine's own writer, which
holds its lock, and are in force at the next step. Files appear whole; an answer is deleted by who asked. A question that is
still there was not acted on: the engine renames it to `ID.taken` first.
"""

import base64
import binascii
import copy
import errno
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fieldprint.adapters.vllm.ask import check_private
from fieldprint.anchor import Policy
from fieldprint.anchor.statements import Override, Revocation
from fieldprint.errors import FieldprintError, FormatError
from fieldprint.registry.append import believe_event
from fieldprint.registry.events import EventError, event_entry
from fieldprint.registry.state import Registry, Standing
from fieldprint.tlog import LogReader, LogWriter

EVENTS = {
    "revocation": "revoke",
    "override": "override",
    "lift": "lift",
    "supersession": "supersede",
    "endorsement": "endorse",
    "registration": "sign",
}
MAX_REQUEST = 2 << 20
logger = logging.getLogger("vllm.fieldprint")  # vLLM shows what is logged under its own name
INTERVAL = 0.05  # seconds between two looks

State = dict[str, Any]


class LiveRegistry:
    """The registry that the engine's log tells, kept up to date with what this engine appends; for gates in another thread.

    Args:
        log: the engine's.
        policy: whose signatures count.
        registry: what the log said at the start.
    """

    def __init__(self, log: LogWriter, policy: Policy, registry: Registry) -> None:
        self._log, self._policy, self.known = log, policy, registry
        self._reader = LogReader(log.source, [policy.log_key])
        self._lock = threading.Lock()
        self._changed = False
        self._deaf: FieldprintError | None = None

    def hears(self, error: FieldprintError | None) -> None:
        """Whether events can come in: why not, or None. While they cannot, this registry counts as one out of reach."""
        with self._lock:
            self._deaf = error

    def poll(self) -> bool:
        """Whether an event came since this was last asked.

        Raises:
            FieldprintError: none can come in.
        """
        with self._lock:
            changed, self._changed = self._changed, False
            if self._deaf is not None and not changed:
                raise self._deaf
            return changed

    def revocation_of(self, anchor: str) -> Revocation | None:
        """The revocation of the anchor, or of one that it comes from."""
        with self._lock:
            return self.known.revocation_of(anchor)

    def orders(self) -> Sequence[Override]:
        """The overrides that were not lifted."""
        with self._lock:
            return tuple(self.known.overrides.values())

    def standing(self, anchor: str, kind: str, now: datetime) -> Standing:
        """What becomes of an anchor of this kind at this time."""
        with self._lock:
            return self.known.standing(anchor, kind, now)

    def append(self, entry: bytes) -> int:
        """The index of an event's entry, appended only if it is believed.

        Raises:
            EventError: it is refused; the log is as it was.
            LogError: the log cannot be read or written.
        """
        self._catch_up()
        believe_event(copy.deepcopy(self.known), entry)
        index = self._log.append([entry]).first_index
        self._catch_up()
        return index

    def _catch_up(self) -> None:
        self._reader.refresh()
        new = list(self._reader.entries(self.known.position))
        with self._lock:
            for entry in new:
                self.known.apply(self.known.position, entry)
            self._changed = True


class ControlFolder:
    """The engine's side: a thread that answers what lies in the folder and keeps its state there.

    Args:
        folder: made for its owner alone if it is not there.
        registry: where events go.
        install: takes the name, the signed artifact and the path of a fieldprint; raises FieldprintError where it refuses.
        state: what `state.json` says now.

    Raises:
        FieldprintError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        registry: LiveRegistry,
        install: Callable[[str, bytes, str], None],
        state: Callable[[], State],
    ) -> None:
        self._in, self._out, self._state = folder / "in", folder / "out", folder / "state.json"
        self._folder = folder
        self._registry, self._install, self._tell = registry, install, state
        try:
            for path in (folder, self._in, self._out):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise FieldprintError(
                f"{folder} cannot be made: {error.strerror}", remedy="Check the path"
            ) from error
        self._said: State | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fieldprint-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        deaf = False
        while not self._ended.wait(INTERVAL):
            try:
                self._round()
            except Exception as error:
                what = error.strerror if isinstance(error, OSError) else error
                lost = FieldprintError(
                    f"the control folder {self._folder} cannot be used: {what}",
                    remedy="Mend it; after the grace the engine acts as if every anchor were revoked",
                )
                if not deaf:
                    logger.error("%s", lost)
                self._registry.hears(lost)
                deaf, self._said = True, None  # what lies there then is written anew
            else:
                self._registry.hears(None)
                deaf = False

    def _round(self) -> None:
        for folder in (self._folder, self._in, self._out):
            check_private(folder)
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, f"{folder} may not be written to", str(folder))
        asked = [name for name in sorted(os.listdir(self._in)) if name.endswith(".json")]
        for path in (self._in / name for name in asked):
            taken = path.with_suffix(".taken")
            try:
                path.rename(taken)  # whoever asked can no more take it back
            except FileNotFoundError:
                continue
            write_whole(self._out / path.name, self._answer(taken))
            taken.unlink(missing_ok=True)
        state = self._tell()
        if state != self._said:
            write_whole(self._state, state)
            self._said = state

    def _answer(self, path: Path) -> State:
        try:
            return self._do(read_request(path))
        except EventError as error:
            return {"refused": error.why, "what": str(error)}
        except Exception as error:
            return {"refused": type(error).__name__, "what": str(error)}

    def _do(self, asked: State) -> State:
        kind = asked["type"]
        if kind == "install":
            self._install(asked["name"], asked["artifact"], asked["fieldprint"])
            return {"accepted": asked["name"]}
        return {"index": self._registry.append(event_entry(EVENTS[kind], asked["signed"]))}


def read_request(path: Path) -> State:
    """What a file asks, with its base64 decoded.

    Raises:
        FormatError: it is no request.
    """
    try:
        if path.stat().st_size > MAX_REQUEST:
            raise FormatError(f"the request is larger than {MAX_REQUEST} bytes")
        asked = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"the request cannot be read: {error}") from error
    kind = asked.get("type") if isinstance(asked, dict) else None
    fields = {"type", "name", "artifact", "fieldprint"} if kind == "install" else {"type", "signed"}
    if not isinstance(kind, str) or (kind not in EVENTS and kind != "install"):
        raise FormatError(f"the type must be one of {', '.join(EVENTS)} or install")
    if asked.keys() != fields or not all(isinstance(value, str) for value in asked.values()):
        raise FormatError(
            f"a request of the type {kind} has the fields {', '.join(sorted(fields))}, all texts"
        )
    for name in fields & {"artifact", "signed"}:
        try:
            asked[name] = base64.b64decode(asked[name], validate=True)
        except (binascii.Error, ValueError) as error:
            raise FormatError(f"{name} is no base64") from error
    return dict(asked)


def write_whole(path: Path, content: State) -> None:
    """Write a file that its readers see whole or not at all, for its owner alone."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, sort_keys=True)
    os.replace(part, path)
