"""Anchors that come at run time and are taken away in mid-stream, by what their owner signs."""

import base64
import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import httpx

from benchmarks.vllm_faults.server import ANSWER, Server
from fieldprint.anchor import sign_anchor, sign_registration, sign_revocation, sign_statement
from fieldprint.anchor.statements import Lift, Override

LIKE = "main"  # an anchor of the same text: what is said under a new one is known


def install(server: Server, name: str) -> None:
    """Register and install an anchor of this name, and wait until every worker has it.

    Raises:
        ServerError: the server refuses, or takes too long.
    """
    world = server.world
    artifact = replace(world.artifacts[LIKE], name=name)
    world.artifacts[name] = artifact
    server.tell("events?type=registration", content=sign_registration(artifact, [world.owner]))
    body = {
        "name": name,
        "artifact": base64.b64encode(sign_anchor(artifact, [world.owner])).decode(),
        "fieldprint": str(world.folder / f"{LIKE}.fieldprint"),
    }
    said = server.tell("anchors", content=json.dumps(body).encode())
    if said != {"accepted": name}:
        raise server.failed(f"an anchor was not accepted: {said}")


def known_to_clients(server: Server, name: str) -> None:
    """Wait until a request may name this anchor.

    Raises:
        ServerError: it is not so in time.
    """
    end = time.monotonic() + ANSWER
    while time.monotonic() < end:
        said = httpx.get(f"{server.url}/fieldprint/anchors", timeout=ANSWER).json()
        if any(entry["name"] == name for entry in said["anchors"]):
            return
        time.sleep(0.05)
    raise server.failed(f"the engine does not tell of {name}")


def revoke(server: Server, name: str) -> None:
    """Revoke an anchor."""
    digest = server.world.artifacts[name].digest
    signed = sign_revocation(digest, "a wave of the campaign", _now(), [server.world.owner])
    server.tell("events?type=revocation", content=signed)


def bypass(server: Server, name: str, number: int) -> None:
    """Order that nothing is generated under an anchor."""
    digest = server.world.artifacts[name].digest
    order = Override("bypass", "anchor", digest, number, "a wave of the campaign", _now())
    server.tell("events?type=override", content=sign_statement(order, [server.world.overrider]))


def lift(server: Server, number: int) -> None:
    """Lift an order."""
    signed = sign_statement(Lift(number, "the wave is over", _now()), [server.world.overrider])
    server.tell("events?type=lift", content=signed)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
