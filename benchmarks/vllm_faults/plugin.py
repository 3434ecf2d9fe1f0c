"""A second entry point `vllm.general_plugins`: faults on order, in whichever process of the engine they can strike.

    FOLDER/ID.ask     {"kind": "zeroed block", "seed": 17}; taken by the process that can do it
    FOLDER/ID.done    {"what": "blocks [12]"}, {"what": null} where there was nothing to strike, or {"error": "..."}

The folder is $FIELDPRINT_FAULTS. The entry point is found by a dist-info folder that the campaign makes; nothing is installed.
"""

import json
import os
import random
import threading
import time
from pathlib import Path

from benchmarks.vllm_faults.strike import MEMORY_KINDS, Memory, Service, memory_here, service_here
from fieldprint.adapters.vllm.control import write_whole

VARIABLE = "FIELDPRINT_FAULTS"
THREAD = "fieldprint-faults"
POLL = 0.01  # seconds


def register() -> None:
    """Start the thread, once a process."""
    folder = os.environ.get(VARIABLE)
    if folder is not None and all(thread.name != THREAD for thread in threading.enumerate()):
        threading.Thread(target=_Listener(Path(folder)).listen, name=THREAD, daemon=True).start()


class _Listener:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[bool, Memory | Service | None] = {}  # by whether memory is asked for

    def listen(self) -> None:
        while True:
            for path in sorted(self._folder.glob("*.ask")):
                self._take(path)
            time.sleep(POLL)

    def _take(self, path: Path) -> None:
        try:
            asked = json.loads(path.read_bytes())
            striker = self._striker(asked["kind"] in MEMORY_KINDS)
            if striker is None:
                return
            path.rename(path.with_suffix(".taken"))
        except FileNotFoundError:  # another process was quicker
            return
        try:
            chance = random.Random(asked["seed"])  # noqa: S311
            answer = {"what": striker.strike(asked["kind"], chance)}
        except Exception as error:  # the campaign ends with it
            answer = {"error": repr(error)}
        write_whole(path.with_suffix(".done"), answer)

    def _striker(self, memory: bool) -> Memory | Service | None:
        if memory not in self._found:  # asked for when the engine is up: what is not here then never is
            self._found[memory] = memory_here() if memory else service_here()
        return self._found[memory]
