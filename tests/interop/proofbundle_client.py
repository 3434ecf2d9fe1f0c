"""proofbundle: its command line on the `.tlog-proof`."""

import json
import subprocess
import sys
from pathlib import Path

for argument in sys.argv[1:]:
    folder = Path(argument)
    case = json.loads((folder / "case.json").read_text())
    command = [
        Path(sys.executable).parent / "proofbundle",
        "verify-proof",
        folder / "proof.tlog-proof",
        "--payload-file",
        folder / "entry",
        "--log-vkey",
        case["vkey"],
        "--expected-origin",
        case["origin"],
        "--threshold",
        "2",
        *(part for witness in case["witnesses"] for part in ("--witness-vkey", witness)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip() or "refused"
    if "usage:" in said:
        raise SystemExit(said)
    print(
        f"{case['name']}\t"
        + ("accepted" if done.returncode == 0 else f"refused\t{said.splitlines()[-1][:100]}")
    )
