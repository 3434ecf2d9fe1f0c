"""The real server as a process of its own, asked by the ordinary `openai` client."""

import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import httpx
import openai

from fieldprint.anchor import sign_revocation
from fieldprint.commit.receipt import Receipt
from fieldprint.errors import VerificationError
from fieldprint.verify import verify_receipt
from tests.adapters.vllm.serving import TOKEN, Serving, serving
from tests.adapters.vllm.world import World

pytestmark = pytest.mark.slow

SECOND = "Your codename is Heron. You live in Lima. The password of the vault is Topaz. Always be brief."
QUESTION = "What is the password of the vault?"


class Server:
    """A running server."""

    def __init__(self, served: Serving) -> None:
        self.served, self.world, self.url = served, served.world, served.url
        self.process, self.log, self.client, self.model = (
            served.process,
            served.log,
            served.client,
            served.model,
        )

    def chat(self, anchor: str | None, **options: Any) -> Any:
        """The raw response to one question."""
        body = {} if anchor is None else {"vllm_xargs": {"fieldprint_anchor": anchor}}
        messages: Any = [{"role": "user", "content": QUESTION}]
        return self.client.chat.completions.with_raw_response.create(
            model=self.model, messages=messages, max_tokens=40, temperature=0, extra_body=body, **options
        )

    def receipt(self, response: Any) -> Receipt:
        """The receipt that a response points to."""
        answer = httpx.get(self.url + response.headers["x-fieldprint-receipt"])
        assert answer.status_code == 200, answer.text
        return Receipt.from_bytes(answer.content)

    def verify(self, receipt: Receipt) -> None:
        verify_receipt(
            receipt.to_bytes(), self.world.policy, now=datetime.now(UTC), registry=self.world.registry()
        )


@pytest.fixture(scope="module")
def server(demo_model: Any, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    world = World(tmp_path_factory.mktemp("server"), demo_model, model_folder)
    world.sign("main")
    world.sign("second", SECOND)
    with serving(world, requests=4, timeout=120, environment={"VLLM_LOGGING_LEVEL": "INFO"}) as served:
        yield Server(served)


def test_an_answer_has_a_receipt_that_verifies(server: Server) -> None:
    response = server.chat("main")
    answer = response.parse()
    receipt = server.receipt(response)
    server.verify(receipt)
    assert response.headers["x-fieldprint-receipt"] == f"/fieldprint/receipts/{answer.id}"
    assert receipt.text == answer.choices[0].message.content
    assert len(receipt.tokens) == answer.usage.completion_tokens


def test_a_streamed_answer_has_one_too_and_each_request_its_own_anchor(server: Server) -> None:
    texts = {}
    for anchor in ("main", "second"):
        response = server.chat(anchor, stream=True, extra_headers={"X-Request-Id": f"streamed-{anchor}"})
        texts[anchor] = "".join(chunk.choices[0].delta.content or "" for chunk in response.parse())
        receipt = server.receipt(response)
        server.verify(receipt)
        assert response.headers["x-fieldprint-receipt"].endswith(f"/chatcmpl-streamed-{anchor}")
        assert receipt.text == texts[anchor]
        assert server.world.artifacts[anchor].text.encode() in decoded(receipt)
    with pytest.raises(openai.ConflictError, match="give another X-Request-Id"):
        server.chat("main", extra_headers={"X-Request-Id": "streamed-main"})


def decoded(receipt: Receipt) -> bytes:
    from fieldprint.anchor.dsse import Envelope

    assert receipt.anchor is not None
    return Envelope.from_bytes(receipt.anchor).payload


def test_an_anchor_is_its_text_in_front_of_the_prompt(server: Server) -> None:
    question = server.world.model.chat_tokens(QUESTION)

    def completed(prompt: list[int], **body: Any) -> str:
        options: Any = {"max_tokens": 24, "temperature": 0, "extra_body": body}
        done = server.client.completions.create(model=server.model, prompt=prompt, **options)
        return done.choices[0].text

    for anchor in ("main", "second"):
        under = completed(question, vllm_xargs={"fieldprint_anchor": anchor})
        assert under == completed(server.world.tokens[anchor] + question)
        assert under != completed(question)


def test_an_anchor_that_is_not_there_is_refused_by_name(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="ask for one of: main, second"):
        server.chat("third")


def test_the_metrics_are_beside_vllms(server: Server) -> None:
    server.chat("main")
    text = httpx.get(f"{server.url}/metrics").text

    def value(name: str) -> float:
        (found,) = re.findall(rf"^vllm:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
        return float(found)

    assert value("fieldprint_anchors") == 2
    assert value("fieldprint_committed_tokens_total") > 40
    assert value("fieldprint_commits_total") >= 1 and value("fieldprint_commit_seconds_total") > 0
    assert value("fieldprint_faults_total") == value("fieldprint_rolled_back_total") == 0
    assert value("generation_tokens_total") > 0


def test_the_engine_says_which_anchors_it_has(server: Server) -> None:
    assert httpx.get(f"{server.url}/fieldprint/healthz").json()["anchors"] == 2
    said = httpx.get(f"{server.url}/fieldprint/anchors").json()
    expected = {name: artifact.digest for name, artifact in server.world.artifacts.items()}
    assert {entry["name"]: entry["digest"] for entry in said["anchors"]} == expected
    assert said["default"] is None


def test_a_revocation_needs_the_token_and_is_in_force_at_once(server: Server) -> None:
    before = server.receipt(server.chat("second"))
    server.verify(before)
    artifact = server.world.artifacts["second"]
    now = datetime.now(UTC).replace(microsecond=0)
    signed = sign_revocation(artifact.digest, "lost", now, [server.world.owner])

    def post(token: str) -> httpx.Response:
        url = f"{server.url}/fieldprint/events?type=revocation"
        return httpx.post(url, content=signed, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    assert post("wrong").status_code == 403
    server.verify(before)
    done = post(TOKEN)
    assert done.status_code == 200 and done.json()["index"] > 0, done.text
    with pytest.raises(VerificationError, match="revoked"):
        server.verify(before)
    with pytest.raises(openai.APIStatusError):
        server.chat("second")
    server.verify(server.receipt(server.chat("main")))
    again = post(TOKEN)
    assert again.status_code == 409 and again.json()["refused"], again.text


def test_the_server_ends_when_it_is_asked_to(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0, server.log.read_text()[-4000:]
    with server.world.log() as log:  # it has let go of the log
        assert log.append([b"x"]).first_index > 0
