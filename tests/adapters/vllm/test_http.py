"""The middleware in front of a small app, with a real control folder over a real log behind it."""

import asyncio
import base64
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from fieldprint.adapters.vllm.ask import RunningEngine
from fieldprint.adapters.vllm.control import ControlFolder, LiveRegistry
from fieldprint.adapters.vllm.http import MAX_BODY, FieldprintMiddleware, FieldprintSite
from fieldprint.adapters.vllm.settings import AnchorFiles, ServeSettings
from fieldprint.anchor import AnchorArtifact, sign_anchor, sign_registration, sign_revocation
from fieldprint.errors import FieldprintError, FormatError
from fieldprint.note import NoteSigner
from fieldprint.registry.state import Registry
from fieldprint.tlog import LogReader, LogWriter
from tests.signing import ORIGIN, make_policy

TOKEN = "a-token-of-the-admin"
CHAT = "/v1/chat/completions"


@dataclass
class Site:
    """An engine's folders, and clients of a server in front of them."""

    folder: Path
    settings: ServeSettings
    owner: Ed25519PrivateKey
    log: LogWriter
    installed: dict[str, bytes]

    def app(self, *, api_key: list[str] | None = None, **changed: Any) -> Starlette:
        """vLLM's place is taken by an app that says which id it was given."""

        async def answer(request: Request) -> JSONResponse:
            if request.headers.get("x-break"):
                return JSONResponse({"error": "broken"}, 400)
            return JSONResponse(
                {"id": request.headers.getlist("x-request-id"), "body": (await request.body()).decode()}
            )

        async def stream(request: Request) -> StreamingResponse:
            given = request.headers["x-request-id"]
            return StreamingResponse(
                iter([f"data: {given}\n\n", "data: [DONE]\n\n"]), media_type="text/event-stream"
            )

        paths = (CHAT, "/v1/responses", "/fieldprintx")
        app = Starlette(
            routes=[
                *(Route(path, answer, methods=["GET", "POST"]) for path in paths),
                Route("/v1/completions", stream, methods=["POST"]),
            ]
        )
        transfer = SimpleNamespace(
            kv_connector="FieldprintConnector",
            kv_connector_extra_config=replace(self.settings, **changed).to_config(),
        )
        app.state.args = SimpleNamespace(kv_transfer_config=transfer, api_key=api_key)
        app.add_middleware(FieldprintMiddleware)
        return app

    def ask(self, method: str, path: str, *, app: Starlette | None = None, **options: Any) -> httpx.Response:
        """The answer to one request."""

        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(app or self.app())
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **options)

        return asyncio.run(asked())

    def artifact(self, name: str = "main") -> AnchorArtifact:
        """Something to register and to revoke."""
        now = datetime.now(UTC).replace(microsecond=0)
        return AnchorArtifact(name, "identity", "You are Falcon.", now, now + timedelta(days=1))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    owner, log_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    policy = make_policy(owner, log_key)
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(TOKEN + "\n")
    (tmp_path / "receipts").mkdir()
    told = ServeSettings(
        policy="policy.toml",
        model="model",
        log=str(tmp_path / "log"),
        log_key="log.key",
        receipts=str(tmp_path / "receipts"),
        anchors={"main": AnchorFiles("main.json", "main.fieldprint")},
        default="main",
        control=str(tmp_path / "control"),
        admin_token=str(token),
    )
    RunningEngine(tmp_path / "control").prepare()
    installed: dict[str, bytes] = {}

    def install(name: str, signed: bytes, file: str) -> None:
        if name in installed:
            raise FormatError(f"there is an anchor {name} already")
        installed[name] = signed

    def state() -> dict[str, Any]:
        names = ["main", *sorted(installed)]
        return {"anchors": [{"name": name, "ready": name == "main"} for name in names], "default": "main"}

    with LogWriter(tmp_path / "log", NoteSigner(ORIGIN, log_key), create=True) as log:
        registry = Registry.replay(LogReader(tmp_path / "log", [policy.log_key]).entries(), policy)
        engine = ControlFolder(tmp_path / "control", LiveRegistry(log, policy, registry), install, state)
        try:
            yield Site(tmp_path, told, owner, log, installed)
        finally:
            engine.close()


def admin(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def posted(site: Site, kind: str, signed: bytes, **options: Any) -> httpx.Response:
    return site.ask("POST", f"/fieldprint/events?type={kind}", content=signed, headers=admin(), **options)


# Ids and receipts


def test_a_request_without_an_id_gets_one_and_the_answer_says_where_its_receipt_is(site: Site) -> None:
    answer = site.ask("POST", CHAT, content=b"{}")
    (given,) = answer.json()["id"]
    assert len(given) == 32
    assert answer.headers["x-fieldprint-receipt"] == f"/fieldprint/receipts/chatcmpl-{given}"
    assert site.ask("POST", CHAT).json()["id"] != [given]


def test_the_clients_own_id_is_kept(site: Site) -> None:
    answer = site.ask("POST", CHAT, headers={"X-Request-Id": "mine_1-a"}, content=b'{"a": 1}')
    assert answer.json() == {"id": ["mine_1-a"], "body": '{"a": 1}'}
    assert answer.headers["x-fieldprint-receipt"] == "/fieldprint/receipts/chatcmpl-mine_1-a"


def test_a_streamed_answer_says_it_too(site: Site) -> None:
    answer = site.ask("POST", "/v1/completions", headers={"X-Request-Id": "s"})
    assert answer.text.startswith("data: s\n")
    assert answer.headers["x-fieldprint-receipt"] == "/fieldprint/receipts/cmpl-s-0"


def test_an_answer_that_failed_names_no_receipt(site: Site) -> None:
    answer = site.ask("POST", CHAT, headers={"X-Break": "1"})
    assert answer.status_code == 400 and "x-fieldprint-receipt" not in answer.headers


def test_elsewhere_a_clients_id_is_replaced(site: Site) -> None:
    answer = site.ask("POST", "/v1/responses", headers={"X-Request-Id": "../../etc"})
    assert len(answer.json()["id"]) == 1 and answer.json()["id"] != ["../../etc"]
    assert "x-fieldprint-receipt" not in answer.headers
    assert site.ask("GET", "/fieldprintx").json()["id"] == []


@pytest.mark.parametrize("name", ["chatcmpl-x", "0_chatcmpl-x"], ids=["one answer", "several answers"])
def test_an_id_whose_receipt_is_there_is_refused(site: Site, name: str) -> None:
    (site.folder / "receipts" / f"{name}.receipt.json").write_bytes(b"{}")
    answer = site.ask("POST", CHAT, headers={"X-Request-Id": "x"})
    assert answer.status_code == 409 and "x-fieldprint-receipt" not in answer.headers
    assert site.ask("POST", "/v1/completions", headers={"X-Request-Id": "x"}).status_code == 200


def test_an_id_that_is_in_hand_is_refused_and_free_again_afterwards(site: Site) -> None:
    door = FieldprintSite(site.settings)

    def scope() -> dict[str, Any]:
        return {"method": "POST", "headers": [(b"x-request-id", b"x")]}

    with door.named(scope(), CHAT) as receipt:
        assert receipt == "/fieldprint/receipts/chatcmpl-x"
        with pytest.raises(Exception, match="409"), door.named(scope(), CHAT):
            pass
    with door.named(scope(), CHAT):
        pass


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.one_of(
        st.text(max_size=200), st.sampled_from(["", ".", "..", "a.1", "a/b", "%2e%2e", "a\0", "a" * 65])
    )
)
def test_an_id_is_plain_or_refused(site: Site, name: str) -> None:
    door = FieldprintSite(site.settings)
    scope: dict[str, Any] = {"method": "POST", "headers": [(b"x-request-id", name.encode())]}
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        with door.named(scope, CHAT) as receipt:
            assert receipt == f"/fieldprint/receipts/chatcmpl-{name}"
        return
    with pytest.raises(Exception, match="400"), door.named(scope, CHAT):
        pass


def test_two_ids_are_refused(site: Site) -> None:
    headers = [("X-Request-Id", "a"), ("X-Request-Id", "b")]
    assert site.ask("POST", CHAT, headers=headers).status_code == 400


def test_a_receipt_is_given_out_and_one_that_is_not_there_says_when_to_ask(site: Site) -> None:
    missing = site.ask("GET", "/fieldprint/receipts/chatcmpl-x")
    assert (
        missing.status_code == 404
        and "ask again when the answer has ended" in missing.json()["error"]["message"]
    )
    (site.folder / "receipts" / "chatcmpl-x.receipt.json").write_bytes(b'{"a":1}')
    there = site.ask("GET", "/fieldprint/receipts/chatcmpl-x")
    assert there.status_code == 200 and there.content == b'{"a":1}'
    assert there.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "name", ["..%2f..%2ftoken", "%2e%2e%2ftoken", "a%00", "a" * 129, "a%2f..%2fb", "%ff"]
)
def test_a_receipts_name_never_leaves_the_folder(site: Site, name: str) -> None:
    answer = site.ask("GET", f"/fieldprint/receipts/{name}")
    assert answer.status_code == 400 and TOKEN not in answer.text


# Who may read


def test_receipts_and_anchors_ask_for_the_api_key_where_vllm_does(site: Site) -> None:
    app = site.app(api_key=["key-of-the-server"])
    for path in ("/fieldprint/receipts/chatcmpl-x", "/fieldprint/anchors"):
        assert site.ask("GET", path, app=app).status_code == 401
        assert site.ask("GET", path, app=app, headers=admin("wrong")).status_code == 401
        assert site.ask("GET", path, app=app, headers=admin("key-of-the-server")).status_code in (
            200,
            404,
            503,
        )
        assert site.ask("GET", path, app=app, headers=admin()).status_code in (200, 404, 503)


def test_what_the_engine_says_is_shown(site: Site) -> None:
    wait_for_state(site)
    assert site.ask("GET", "/fieldprint/anchors").json()["default"] == "main"
    assert site.ask("GET", "/fieldprint/healthz").json() == {"anchors": 1, "in_force": 1}


def test_before_the_engine_has_begun_it_is_said(site: Site) -> None:
    app = site.app(control=str(site.folder / "elsewhere"))
    for path in ("anchors", "healthz"):
        answer = site.ask("GET", f"/fieldprint/{path}", app=app)
        assert answer.status_code == 503 and "not said yet" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("action", "status"), [("stop", 403), ("bypass", 200), (None, 200)])
def test_a_request_under_an_anchor_that_was_ended_is_told_so(
    site: Site, action: str | None, status: int
) -> None:
    folder = site.folder / "elsewhere"
    folder.mkdir()
    ruling = (
        None if action is None else {"action": action, "reason": "revoked", "why": "the anchor was revoked"}
    )
    anchors = [
        {"name": "main", "ready": True, "ruling": ruling},
        {"name": "second", "ready": True, "ruling": None},
    ]
    (folder / "state.json").write_text(json.dumps({"anchors": anchors, "default": "main"}))
    app = site.app(control=str(folder))
    health = site.ask("GET", "/fieldprint/healthz", app=app).json()
    assert health == {"anchors": 2, "in_force": 2 if action is None else 1}
    for body, expected in (
        (b"{}", status),
        (b'{"vllm_xargs": {"fieldprint_anchor": "main"}}', status),
        (b'{"vllm_xargs": {"fieldprint_anchor": "second"}}', 200),
        (b"not understood", status),
    ):
        answer = site.ask("POST", CHAT, content=body, app=app)
        assert answer.status_code == expected
        if expected == 403:
            assert "main is not served: the anchor was revoked" in answer.json()["error"]["message"]
            assert "x-fieldprint-receipt" not in answer.headers


@pytest.mark.parametrize("state", [b"", b"[]", b"{", b'{"anchors": 1}', b'{"anchors": [{"name": 1}]}'])
def test_a_state_that_is_none_is_said(site: Site, state: bytes) -> None:
    folder = site.folder / "elsewhere"
    folder.mkdir()
    (folder / "state.json").write_bytes(state)
    assert site.ask("GET", "/fieldprint/anchors", app=site.app(control=str(folder))).status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "receipts/x", 405),
        ("POST", "healthz", 405),
        ("DELETE", "anchors", 405),
        ("GET", "events", 405),
        ("GET", "", 404),
        ("GET", "receipts/", 404),
        ("GET", "nothing", 404),
    ],
)
def test_other_methods_and_paths_are_refused(site: Site, method: str, path: str, status: int) -> None:
    answer = site.ask(method, f"/fieldprint/{path}")
    assert answer.status_code == status and answer.json()["error"]["message"]


# Anchors that are asked for


def test_a_request_for_an_anchor_that_is_not_there_is_refused(site: Site) -> None:
    wait_for_state(site)
    body = {"vllm_xargs": {"fieldprint_anchor": "second"}}
    answer = site.ask("POST", CHAT, json=body)
    assert answer.status_code == 400 and "ask for one of: main" in answer.json()["error"]["message"]
    body["vllm_xargs"]["fieldprint_anchor"] = "main"
    passed = site.ask("POST", CHAT, json=body)
    assert json.loads(passed.json()["body"]) == body
    assert passed.headers["x-fieldprint-receipt"]


@pytest.mark.parametrize(
    "body",
    [
        b"fieldprint_anchor",
        b'["fieldprint_anchor"]',
        b'{"vllm_xargs": "fieldprint_anchor"}',
        b"\xff fieldprint_anchor",
    ],
)
def test_a_body_that_is_not_understood_is_left_to_vllm(site: Site, body: bytes) -> None:
    answer = site.ask("POST", "/v1/completions", content=body)
    assert answer.status_code == 200


def test_a_name_that_is_no_text_is_refused(site: Site) -> None:
    for name in (["main"], 1, {"a": 1}):
        answer = site.ask("POST", CHAT, json={"vllm_xargs": {"fieldprint_anchor": name}})
        assert answer.status_code == 400


# The admin


def test_a_signed_event_goes_into_the_log_and_a_second_is_refused_by_name(site: Site) -> None:
    artifact = site.artifact()
    registered = posted(site, "registration", sign_registration(artifact, [site.owner]))
    assert registered.json() == {"index": 0}, registered.text
    revocation = sign_revocation(
        artifact.digest, "lost", datetime.now(UTC).replace(microsecond=0), [site.owner]
    )
    assert posted(site, "revocation", revocation).json() == {"index": 1}
    again = posted(site, "revocation", revocation)
    assert again.status_code == 409 and again.json().keys() == {"refused", "what"}
    assert list((site.folder / "control/in").iterdir()) == list((site.folder / "control/out").iterdir()) == []


def test_a_stranger_signs_in_vain(site: Site) -> None:
    stranger = Ed25519PrivateKey.generate()
    answer = posted(site, "registration", sign_registration(site.artifact(), [stranger]))
    assert answer.status_code == 409
    assert site.log.append([b"x"]).first_index == 0, "the refused event is in the log"


def test_an_anchor_is_installed_by_name(site: Site) -> None:
    signed = sign_anchor(site.artifact("second"), [site.owner])
    fields = {"name": "second", "artifact": base64.b64encode(signed).decode(), "fieldprint": "/a/file"}
    answer = site.ask("POST", "/fieldprint/anchors", json=fields, headers=admin())
    assert answer.json() == {"accepted": "second"} and site.installed == {"second": signed}
    again = site.ask("POST", "/fieldprint/anchors", json=fields, headers=admin())
    assert again.status_code == 409 and "already" in again.json()["what"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        admin("wrong"),
        admin(TOKEN + "x"),
        admin(""),
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")],
    ],
)
def test_without_the_token_nothing_is_asked(site: Site, headers: Any) -> None:
    signed = sign_registration(site.artifact(), [site.owner])
    for path in ("events?type=registration", "anchors"):
        answer = site.ask("POST", f"/fieldprint/{path}", content=signed, headers=headers)
        assert answer.status_code == 403 and TOKEN not in answer.text
    assert site.log.append([b"x"]).first_index == 0


def test_a_server_without_a_token_takes_no_orders(site: Site) -> None:
    answer = site.ask("POST", "/fieldprint/events?type=lift", app=site.app(admin_token=None), headers=admin())
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "query", ["", "?type=", "?type=promotion", "?type=lift&type=lift", "?type=install", "?type=%00"]
)
def test_another_type_is_refused(site: Site, query: str) -> None:
    signed = sign_registration(site.artifact(), [site.owner])
    answer = site.ask("POST", f"/fieldprint/events{query}", content=signed, headers=admin())
    assert answer.status_code == 400 and "revocation" in answer.json()["error"]["message"]


def test_a_body_that_is_too_large_is_refused_with_and_without_a_length(site: Site) -> None:
    async def pieces() -> Any:
        for _ in range(3):
            yield b"x" * (MAX_BODY // 2)

    for content in (b"x" * (MAX_BODY + 1), pieces()):
        answer = site.ask("POST", "/fieldprint/events?type=lift", content=content, headers=admin())
        assert answer.status_code == 413


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(st.binary(max_size=64), st.sampled_from([b"{}", b"[" * 5000, b'{"payload":1}', b"null"]))
)
def test_a_body_that_is_no_envelope_never_reaches_the_engine(site: Site, body: bytes) -> None:
    assert posted(site, "revocation", body).status_code == 400
    assert site.ask("POST", "/fieldprint/anchors", content=body, headers=admin()).status_code == 400


@pytest.mark.parametrize(
    "changed",
    [
        {"name": ""},
        {"name": "../x"},
        {"name": "none"},
        {"name": 1},
        {"artifact": "?"},
        {"artifact": 1},
        {"fieldprint": "relative"},
        {"fieldprint": None},
        {"more": 1},
    ],
)
def test_an_installation_that_is_none_is_refused(site: Site, changed: dict[str, Any]) -> None:
    signed = base64.b64encode(sign_anchor(site.artifact("second"), [site.owner])).decode()
    fields = {"name": "second", "artifact": signed, "fieldprint": "/a/file"} | changed
    assert site.ask("POST", "/fieldprint/anchors", json=fields, headers=admin()).status_code == 400
    assert site.installed == {}


def test_an_engine_that_does_not_answer_is_given_up(site: Site) -> None:
    silent = site.folder / "silent"
    RunningEngine(silent).prepare()
    engine = RunningEngine(silent, timeout=0.1)
    with pytest.raises(FieldprintError, match="has not answered"):
        asyncio.run(engine.ask({"type": "lift", "signed": ""}))
    assert list((silent / "in").iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"index": true}',
        b'{"index": -1}',
        b'{"index": 1, "refused": "x"}',
        b'{"refused": "x"}',
        b'{"accepted": 1}',
    ],
)
def test_an_answer_that_is_none_is_an_error(tmp_path: Path, answer: bytes) -> None:
    RunningEngine(tmp_path / "c").prepare()

    async def asked() -> None:
        engine = RunningEngine(tmp_path / "c", timeout=10)
        task = asyncio.create_task(engine.ask({"type": "lift", "signed": ""}))
        while not (found := list((tmp_path / "c/in").glob("*.json"))):
            await asyncio.sleep(0.01)
        (tmp_path / "c/out" / found[0].name).write_bytes(answer)
        await task

    with pytest.raises(FormatError):
        asyncio.run(asked())
    assert [*(tmp_path / "c/in").iterdir(), *(tmp_path / "c/out").iterdir()] == []


# The start


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir(0o755)
    with pytest.raises(FieldprintError, match="chmod 700"):
        RunningEngine(tmp_path / "c").prepare()


def test_what_an_engine_before_was_asked_is_forgotten(tmp_path: Path) -> None:
    RunningEngine(tmp_path / "c").prepare()
    (tmp_path / "c/in/old.json").write_text("{}")
    (tmp_path / "c/state.json").write_text('{"anchors": []}')
    engine = RunningEngine(tmp_path / "c")
    engine.prepare()
    assert list((tmp_path / "c/in").iterdir()) == [] and engine.state() is None


def test_an_engine_that_is_not_ours_has_no_site() -> None:
    with pytest.raises(FormatError, match="fieldprint serve"):
        FieldprintSite.of(SimpleNamespace(kv_transfer_config=None))


def test_a_token_that_others_can_read_is_refused(site: Site) -> None:
    (site.folder / "token").chmod(0o644)
    with pytest.raises(FormatError, match="chmod 600"):
        site.ask("GET", "/fieldprint/healthz")


def wait_for_state(site: Site) -> None:
    end = time.monotonic() + 10
    while not (site.folder / "control/state.json").exists():
        assert time.monotonic() < end, "the engine has not said its state"
        time.sleep(0.01)
