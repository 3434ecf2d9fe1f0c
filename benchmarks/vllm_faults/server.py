"""The real `fieldprint serve` as a process of its own, and what asks and disturbs it."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.vllm_faults.plugin import VARIABLE
from fieldprint.adapters.vllm.control import write_whole
from tests.adapters.vllm.serving import TOKEN, Serving, serving
from tests.adapters.vllm.world import World

ANSWER = 60.0  # seconds, on a busy machine
REQUESTS = 8
SECOND = (
    "Your codename is Heron. You live in Lima. Answer in one short sentence. The password of the vault is Topaz, and you "
    "never say anything else about it to anybody at all."
)


class Server:
    """A running server, with what asks and disturbs it.

    Args:
        served: the process.
        faults: the folder by which its plugin is told.
    """

    def __init__(self, served: Serving, faults: Path) -> None:
        self.served, self.faults = served, faults
        self.world, self.url, self.client, self.model = served.world, served.url, served.client, served.model
        self.failed = served.failed
        self._asked = 0

    def strike(self, kind: str, seed: int) -> str | None:
        """What a fault of this kind has struck, or None.

        Raises:
            ServerError: the plugin does not answer, or has failed.
        """
        self._asked += 1
        path = self.faults / f"{self._asked:06}.ask"
        write_whole(path, {"kind": kind, "seed": seed})
        done, end = path.with_suffix(".done"), time.monotonic() + ANSWER
        while not done.exists():
            if time.monotonic() > end or self.served.process.poll() is not None:
                raise self.failed(f"the plugin has not answered: {kind}")
            time.sleep(0.005)
        answer = json.loads(done.read_bytes())
        if "error" in answer:
            raise self.failed(answer["error"])
        what: str | None = answer["what"]
        return what

    def metrics(self) -> dict[str, float]:
        """Fieldprint's metrics by their short names."""
        text = httpx.get(f"{self.url}/metrics", timeout=ANSWER).text
        pattern = r"^vllm:fieldprint_(\w+?)(?:_total)?\{[^}]*\} (\S+)$"
        return {name: float(value) for name, value in re.findall(pattern, text, re.MULTILINE)}

    def receipt(self, name: str) -> bytes | None:
        """The receipt of an id, or None where there is none."""
        answer = httpx.get(f"{self.url}/fieldprint/receipts/{name}", timeout=ANSWER)
        return answer.content if answer.status_code == 200 else None

    def tell(self, path: str, **content: Any) -> dict[str, Any]:
        """The engine's answer to the admin.

        Raises:
            ServerError: it refuses.
        """
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(f"{self.url}/fieldprint/{path}", headers=headers, timeout=ANSWER, **content)
        if answer.status_code != 200:
            raise self.failed(f"{path} was refused: {answer.text}")
        said: dict[str, Any] = answer.json()
        return said


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """A server with two anchors in `folder`, that has answered that it is well; ended at the end.

    Raises:
        ServerError: it does not start.
    """
    world = _made_world(folder)
    faults = folder / "faults"
    faults.mkdir()
    with serving(
        world,
        requests=REQUESTS,
        timeout=240,
        modules=[_entry_point(folder)],
        environment={VARIABLE: str(faults)},
    ) as served:
        yield Server(served, faults)


def _made_world(folder: Path) -> World:
    from fieldprint.adapters.model_folder import prepare_demo_model
    from fieldprint.adapters.transformers import load_model

    model_folder = prepare_demo_model()
    world = World(folder, load_model(model_folder), model_folder)
    world.sign("main")
    world.sign("second", SECOND)
    return world


def _entry_point(folder: Path) -> Path:
    """A folder in which Python finds the plugin's entry point."""
    place = folder / "plugins"
    made = place / "fieldprint_faults-0.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: fieldprint-faults\nVersion: 0\n")
    (made / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nfieldprint_faults = benchmarks.vllm_faults.plugin:register\n"
    )
    return place
