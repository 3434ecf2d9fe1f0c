"""aics-tlog: its command line on the folder of tiles, and on the proofs as given."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def run(*arguments: object) -> str:
    """Nothing if the client accepts, else what it says."""
    command = [sys.executable, "-m", "aics_tlog", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 2:  # its parser did not like our arguments
        raise SystemExit(done.stderr)
    return "" if done.returncode == 0 else (done.stderr or done.stdout or "refused").strip()


def verify(folder: Path, work: Path) -> str:
    case = json.loads((folder / "case.json").read_text())
    (work / "vkey").write_text(case["vkey"] + "\n")  # it refuses one that lies beside the tiles
    (work / "inclusion").write_text("".join(h + "\n" for h in case["proof"]))
    (work / "consistency").write_text("".join(h + "\n" for h in case["consistency"]))
    north = case["witnesses"][0]  # it knows no ML-DSA-44
    signed = ("--vkey-file", work / "vkey", "--origin", case["origin"], "--witness-key", north, "--quorum", 1)
    tiles = ("--tiles", folder / "log")
    size, root = case["size"], case["root"]
    return (
        run("verify-checkpoint", *signed, *tiles)
        or run("verify-inclusion", *signed, *tiles, "--leaf", folder / "entry", "--index", case["index"])
        or run("verify-consistency", *signed[:4], *tiles, "--old-checkpoint", folder / "old.checkpoint")
        or run("verify-inclusion", "--leaf", folder / "entry", "--index", case["index"], "--size", size, "--root", root, "--proof", work / "inclusion")
        or run("verify-consistency", "--old-size", case["old_size"], "--new-size", size, "--old-root", case["old_root"], "--new-root", root, "--proof", work / "consistency")
    )  # fmt: skip


for argument in sys.argv[1:]:
    name = json.loads((Path(argument) / "case.json").read_text())["name"]
    with TemporaryDirectory() as scratch:
        why = verify(Path(argument), Path(scratch))
    print(f"{name}\trefused\t{why.splitlines()[-1][:100]}" if why else f"{name}\taccepted")
