"""The real `fieldprint serve` of a world with the anchors main and second, as a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

from tests.adapters.vllm.world import ENVIRONMENT, World

ROOT = Path(__file__).parents[3]
TOKEN = "a-token-of-the-admin"
START = 300.0  # seconds, on a busy machine


class ServerError(Exception):
    """The server has failed; the end of its log is in the message."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server. log: what it has printed."""

    world: World
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    client: openai.OpenAI

    @property
    def model(self) -> str:
        """The name by which clients know it."""
        return self.world.model_folder.name

    def failed(self, what: str) -> ServerError:
        """An error with the end of the server's log."""
        return ServerError(f"{what}\n{self.log.read_text()[-4000:]}")


@contextmanager
def serving(
    world: World,
    *,
    requests: int,
    timeout: float,
    options: Sequence[str] = (),
    modules: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Serving]:
    """A server that has answered that it is well; ended at the end.

    Args:
        world: in whose folder it runs.
        requests: at a time.
        timeout: of the client, in seconds.
        options: more of the command's.
        modules: folders where its Python looks for modules, beside this project.
        environment: more of its environment.

    Raises:
        ServerError: it does not start.
    """
    token = world.folder / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-W", "ignore", "-m", "fieldprint.cli", "serve", str(world.model_folder),
        "--policy", "policy.toml", "--log", "log", "--log-key", "log.key", "--admin-token-file", "token",
        "--anchor", "main.json", "--anchor", "second=second.json", "--default", "none",
        "--fieldprint", "main.fieldprint", "--fieldprint", "second=second.fieldprint", "--control", "control",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "1024",
        "--max-num-seqs", str(requests), "--enforce-eager", *options,
    ]  # fmt: skip
    paths = os.pathsep.join(str(path) for path in (ROOT, *modules))
    everything = os.environ | ENVIRONMENT | {"PYTHONPATH": paths} | dict(environment or {})
    everything.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    log = world.folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=world.folder, env=everything, stdout=output, stderr=output, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=timeout) as client:
            server = Serving(world, url, process, log, client)
            _wait_until_well(server)
            yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_well(server: Serving) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise server.failed("the server did not start")
