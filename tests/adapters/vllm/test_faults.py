"""The campaign through the HTTP API, in small: a real server under load and faults, and a judge who would see a difference."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("vllm")

from benchmarks.vllm_faults.campaign import (
    KINDS,
    OVERRIDDEN,
    REVOKED,
    STRUCK_KINDS,
    Campaign,
    plan_of,
    rows_of,
)
from benchmarks.vllm_faults.server import Server, running_server
from benchmarks.vllm_faults.wave import TOKENS, Answer, Judge, Request

pytestmark = pytest.mark.slow
SEED = 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.fixture(scope="module")
def campaign(server: Server) -> Campaign:
    return Campaign(server, SEED, print)


def test_nothing_is_missed(campaign: Campaign) -> None:
    waves = [campaign.play(plan_of(SEED, number)) for number in range(3)]
    assert [line for wave in waves for line in wave.wrong] == []
    made = {kind for wave in waves for kind, _ in wave.made}
    assert len(made) >= 8 and made & {REVOKED, OVERRIDDEN}
    found = {(row["cell"], row["metric"]): row["ours"] for row in rows_of(waves)}
    assert found["all", "faults"] >= 15
    assert found["all", "misses"] == 0 and found["all", "requests"] == 24
    assert (
        found["all", "faults that /metrics counted"] >= 3
        and found["all", "requests taken back, by /metrics"] >= 3
    )
    assert found["all", "receipts verified"] >= 20


def test_another_text_would_be_a_miss(campaign: Campaign, server: Server) -> None:
    known = campaign.undisturbed[0, "main"]
    name = next(server.world.folder.glob("receipts/chatcmpl-*.receipt.json")).name.removesuffix(
        ".receipt.json"
    )
    receipt, wrong = Judge(server, campaign.undisturbed).verified(name, None)
    assert receipt is not None and wrong == []
    right = replace(known, prompt=receipt.prompt, tokens=receipt.tokens, text=receipt.text)
    answer = Answer(Request(0, "main", True, tokens=len(receipt.tokens)), receipt.text, "length", None, name)

    def said(answer: Answer, tokens: tuple[int, ...]) -> list[str]:
        return Judge(server, {(0, "main"): replace(right, tokens=tokens)}).same(answer, None)

    assert said(answer, right.tokens) == []
    assert "tokens" in said(answer, (*right.tokens[:-1], right.tokens[-1] + 1))[0]
    assert "the client got" in said(replace(answer, text=answer.text[:-1]), right.tokens)[0]
    assert "no receipt" in said(replace(answer, name="chatcmpl-nobody"), right.tokens)[0]
    assert "ended with error" in said(replace(answer, finish="error"), right.tokens)[0]
    altered = replace(receipt, tokens=(receipt.tokens[0] + 1, *receipt.tokens[1:]))
    path = server.world.folder / "receipts" / "chatcmpl-altered.receipt.json"
    path.write_bytes(altered.to_bytes())
    assert "does not verify" in said(replace(answer, name="chatcmpl-altered"), right.tokens)[0]


def test_plans_are_of_the_seed_and_come_to_every_kind() -> None:
    assert plan_of(SEED, 5) == plan_of(SEED, 5) != plan_of(SEED + 1, 5)
    plans = [plan_of(SEED, number) for number in range(2 * len(STRUCK_KINDS))]
    assert {kind for plan in plans for _, kind, _ in plan.faults} == set(STRUCK_KINDS)
    assert {plan.own for plan in plans} == {*STRUCK_KINDS, None}
    assert {*STRUCK_KINDS, *(plan.order for plan in plans if plan.order)} == set(KINDS)
    assert all(sum(request.streamed for request in plan.requests) == len(plan.requests) / 2 for plan in plans)
    assert all(request.tokens <= TOKENS for plan in plans for request in plan.requests)
