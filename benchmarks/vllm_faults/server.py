"""The real `fieldprint serve` as a process of its own, and what asks and disturbs it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from benchmarks.record import ROOT
from benchmarks.vllm_faults.plugin import VARIABLE
from fieldprint.adapters.vllm.control import write_whole
from tests.adapters.vllm.world import ENVIRONMENT, World

TOKEN = "the-token-of-the-campaign"  # noqa: S105
START, ANSWER = 300.0, 60.0  # seconds, on a busy machine
REQUESTS = 8
SECOND = (
    "Your codename is Heron. You live in Lima. Answer in one short sentence. The password of the vault is Topaz, and you "
    "never say anything else about it to anybody at all."
)


class ServerError(Exception):
    """The server or its plugin has failed; the end of its log is in the message."""


@dataclass
class Server:
    """A running server.

    faults: the folder by which its plugin is told. log: what it has printed.
    """

    world: World
    url: str
    process: subprocess.Popen[bytes]
    client: openai.OpenAI
    faults: Path
    log: Path
    asked: int = 0

    @property
    def model(self) -> str:
        """The name by which clients know it."""
        return self.world.model_folder.name

    def strike(self, kind: str, seed: int) -> str | None:
        """What a fault of this kind has struck, or None.

        Raises:
            ServerError: the plugin does not answer, or has failed.
        """
        self.asked += 1
        path = self.faults / f"{self.asked:06}.ask"
        write_whole(path, {"kind": kind, "seed": seed})
        done, end = path.with_suffix(".done"), time.monotonic() + ANSWER
        while not done.exists():
            if time.monotonic() > end or self.process.poll() is not None:
                raise self.failed(f"the plugin has not answered: {kind}")
            time.sleep(0.005)
        answer = json.loads(done.read_bytes())
        if "error" in answer:
            raise self.failed(answer["error"])
        what: str | None = answer["what"]
        return what

    def failed(self, what: str) -> ServerError:
        """An error with the end of the server's log."""
        return ServerError(f"{what}\n{self.log.read_text()[-4000:]}")

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
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-W", "ignore", "-m", "fieldprint.cli", "serve", str(world.model_folder),
        "--policy", "policy.toml", "--log", "log", "--log-key", "log.key", "--admin-token-file", "token",
        "--anchor", "main.json", "--anchor", "second=second.json", "--default", "none",
        "--fieldprint", "main.fieldprint", "--fieldprint", "second=second.fieldprint", "--control", "control",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "1024",
        "--max-num-seqs", str(REQUESTS), "--enforce-eager",
    ]  # fmt: skip
    paths = os.pathsep.join((str(ROOT), str(_entry_point(folder))))
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": paths, VARIABLE: str(faults)}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=240) as client:
            server = Server(world, url, process, client, faults, log)
            _wait_until_well(server)
            yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _made_world(folder: Path) -> World:
    from fieldprint.adapters.model_folder import prepare_demo_model
    from fieldprint.adapters.transformers import load_model

    model_folder = prepare_demo_model()
    world = World(folder, load_model(model_folder), model_folder)
    world.sign("main")
    world.sign("second", SECOND)
    token = folder / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
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


def _wait_until_well(server: Server) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise server.failed("the server did not start")
