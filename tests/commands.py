"""`fieldprint` as tests run it: in this process, or in one of its own where a process is what is tested.

Starting a process takes most of the time of a command: it imports everything anew, for some also torch and a model.
`run_here` goes through the same `main`, with the same arguments, streams and exit codes.
"""

import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

COMMAND = [sys.executable, "-W", "ignore", "-m", "fieldprint.cli"]
NO_ROOM = (
    "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}));"
)  # no file grows beyond so many bytes

Ended = subprocess.CompletedProcess[str]


def run_here(folder: Path, *arguments: str | Path) -> Ended:
    """What a command said and its exit code, run in this process."""
    from fieldprint.cli import main

    given = ["fieldprint", *map(str, arguments)]
    said, told = StringIO(), StringIO()
    before, sys.argv = sys.argv, given
    try:
        with chdir(folder), redirect_stdout(said), redirect_stderr(told):
            main()
        code: object = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    assert isinstance(code, int), code
    return Ended(given, code, said.getvalue(), told.getvalue())


def done(folder: Path, *arguments: str | Path) -> str:
    """What a command said that went well."""
    ended = run_here(folder, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def make_policy_here(folder: Path) -> None:
    """Keys of an owner and of a log, and `policy.toml`, which trusts both."""
    for arguments in (
        ("keys", "new", "owner"),
        ("keys", "new", "log"),
        ("policy", "new", "policy.toml", "--signer", "keys/owner.pub", "--log-pub", "keys/log.pub"),
    ):
        ended = run_here(folder, *arguments)
        assert ended.returncode == 0, ended.stderr


def run_process(folder: Path, *arguments: str | Path, before: str = "", **environment: str) -> Ended:
    """The same of a process; `before` is Python that it runs first."""
    script = f"{before}\nfrom fieldprint.cli import main; main()"
    start = [sys.executable, "-W", "ignore", "-c", script] if before else COMMAND
    return subprocess.run(
        [*start, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )
