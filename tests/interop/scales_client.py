"""tlog-scales: checkpoint, proofs and entries, the proofs both as given and built anew from the tiles.

Also `tlog-tiles gen-proof`, whose output must be our `.tlog-proof` byte for byte.
"""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tlog_scales import tiles
from tlog_scales.backend import LocalBackend
from tlog_scales.reader import TilesReader
from tlog_scales.signing import Vkey, VkeySet
from tlog_scales.tlog import Checkpoint, ConsistencyProof, InclusionProof


def verify(folder: Path, case: dict[str, Any]) -> None:
    raw = base64.b64decode
    reader = TilesReader(LocalBackend(folder / "log"))
    checkpoint = reader.get_checkpoint()
    checkpoint.verify(Vkey.from_string(case["vkey"]))
    witnesses = VkeySet(*map(Vkey.from_string, case["witnesses"]))
    if len(witnesses.verify(checkpoint.signatures, checkpoint)) != 2:
        raise ValueError("a cosignature is not valid")
    old = Checkpoint.from_text((folder / "old.checkpoint").read_text())
    old.verify(Vkey.from_string(case["vkey"]))
    index, size, leaf = case["index"], checkpoint.size, tiles.leaf_hash(raw(case["leaf"]))
    InclusionProof(index, size, [raw(h) for h in case["proof"]]).check(leaf, checkpoint.root_hash)
    consistency = [raw(h) for h in case["consistency"]]
    ConsistencyProof(case["old_size"], size, consistency).check(raw(case["old_root"]), checkpoint.root_hash)
    reader.get_inclusion_proof(index, size).check(
        tiles.leaf_hash(reader.get_entry(index)), checkpoint.root_hash
    )
    reader.get_consistency_proof(old.size, size).check(old.root_hash, checkpoint.root_hash)
    command = [Path(sys.executable).parent / "tlog-tiles", "gen-proof", str(folder / "log"), str(index)]
    made = subprocess.run(command, capture_output=True, check=True).stdout
    if made != (folder / "proof.tlog-proof").read_bytes():
        raise ValueError("gen-proof makes another .tlog-proof than ours")


for argument in sys.argv[1:]:
    case = json.loads((Path(argument) / "case.json").read_text())
    try:
        verify(Path(argument), case)
        print(f"{case['name']}\taccepted")
    except Exception as error:  # the client raises whatever its parsers raise
        print(f"{case['name']}\trefused\t{type(error).__name__} {str(error)[:80]}")
