"""sigstore-python: checkpoint and inclusion, by the functions that it verifies Rekor's with.

Run in an environment of its own, with case folders as arguments; a line for each, "name<TAB>accepted" or
"name<TAB>refused<TAB>why".
"""

import base64
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sigstore._internal.merkle import verify_merkle_inclusion
from sigstore._internal.rekor.checkpoint import verify_checkpoint
from sigstore._internal.trust import Keyring
from sigstore.errors import VerificationError
from sigstore_models.common.v1 import PublicKey, PublicKeyDetails

SPKI = bytes.fromhex("302a300506032b6570032100")  # in front of the 32 bytes of an Ed25519 key


def verify(case: dict[str, Any]) -> None:
    raw = base64.b64decode
    key_id = bytes.fromhex(case["vkey"].split("+")[1]) + bytes(28)
    key = PublicKey(
        raw_bytes=base64.b64encode(SPKI + raw(case["public_key"])),
        key_details=PublicKeyDetails.PKIX_ED25519,
    )
    proof = SimpleNamespace(
        log_index=case["index"],
        tree_size=case["size"],
        hashes=[raw(h) for h in case["proof"]],
        root_hash=raw(case["root"]),
        checkpoint=SimpleNamespace(envelope=case["checkpoint"]),
    )
    inner = SimpleNamespace(
        inclusion_proof=proof,
        canonicalized_body=raw(case["leaf"]),
        log_id=SimpleNamespace(key_id=key_id),
    )
    entry: Any = SimpleNamespace(_inner=inner)
    verify_merkle_inclusion(entry)
    verify_checkpoint(Keyring([key]), entry)  # type: ignore[arg-type]


for folder in sys.argv[1:]:
    case = json.loads((Path(folder) / "case.json").read_text())
    try:
        verify(case)
        print(f"{case['name']}\taccepted")
    except VerificationError as error:
        print(f"{case['name']}\trefused\t{str(error).splitlines()[0][:100]}")
