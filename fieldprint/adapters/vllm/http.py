"""Fieldprint's side of vLLM's HTTP server: an ASGI middleware, which vLLM takes by `--middleware`.

    POST /v1/chat/completions, /v1/completions    answered by vLLM; the answer has X-Fieldprint-Receipt: /fieldprint/receipts/ID
    GET  /fieldprint/receipts/ID                  the receipt, when the answer has ended
    GET  /fieldprint/anchors                      what the engine says of its anchors
    GET  /fieldprint/healthz                      {"anchors": 2, "in_force": 2}; 503 before the engine has begun
    POST /fieldprint/events?type=revocation       a signed statement; {"index": 41} or 409 {"refused": ..., "what": ...}
    POST /fieldprint/anchors                      {"name", "artifact": base64, "fieldprint": path on the server}; {"accepted": ...}

The two POST need the admin's token. Where vLLM asks for an API key, receipts and anchors do too.
"""

import asyncio
import base64
import hmac
import json
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fieldprint.adapters.vllm.anchors import read_file
from fieldprint.adapters.vllm.ask import NoAnswerError, Refused, RunningEngine
from fieldprint.adapters.vllm.control import EVENTS
from fieldprint.adapters.vllm.receipts import receipt_path
from fieldprint.adapters.vllm.settings import ServeSettings
from fieldprint.anchor.dsse import Envelope
from fieldprint.errors import FieldprintError, FormatError
from fieldprint.tlog.serve import token_in

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PREFIX = "/fieldprint/"
MAX_BODY = 1 << 20
# What vLLM makes of a request's id: of the answer, then of each of several.
RECEIPTS = {
    "/v1/chat/completions": ("chatcmpl-{}", "0_chatcmpl-{}"),
    "/v1/completions": ("cmpl-{}-0", "0_cmpl-{}-0"),
}
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # no dot: ID.1 is what came before an anchor was left
ANCHOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class _Answer(Exception):  # noqa: N818 - most are no errors
    """An answer of ours, from wherever it is known."""

    def __init__(self, status: int, fields: dict[str, Any] | bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()

    async def __call__(self, send: Send) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self.body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def _error(status: int, what: str) -> _Answer:
    """As OpenAI's clients show it."""
    return _Answer(status, {"error": {"message": what, "type": "fieldprint", "code": status}})


class FieldprintMiddleware:
    """An app in front of vLLM's; the settings are those of the engine that vLLM has in `app.state.args`.

    Args:
        app: what answers the rest.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._site: FieldprintSite | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have the app answer."""
        if scope["type"] not in ("http", "lifespan"):
            await self._app(scope, receive, send)
            return
        # In the lifespan's scope already, so that a server whose token cannot be read does not start.
        if self._site is None:
            self._site = FieldprintSite.of(scope["app"].state.args)
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            if not path.startswith(PREFIX):
                with self._site.named(scope, path) as receipt:
                    if receipt is not None:
                        receive, send = await self._site.asking(receive), _pointing_to(receipt, send)
                    await self._app(scope, receive, send)
                return
            answer = await self._site.answer(scope, path.removeprefix(PREFIX), receive)
        except _Answer as refusal:
            answer = refusal
        await answer(send)


class FieldprintSite:
    """What is answered here.

    Args:
        settings: of the engine.
        api_keys: of vLLM, any of which opens receipts; none: they are open.
        admin: the admin's token; None: nobody is the admin.
        timeout: seconds that the engine may take to answer.
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        api_keys: tuple[str, ...] = (),
        admin: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._settings, self._receipts = settings, Path(settings.receipts)
        self._control = None if settings.control is None else RunningEngine(Path(settings.control), timeout)
        self._api_keys, self._admin = api_keys, admin
        self._in_hand: set[str] = set()

    @classmethod
    def of(cls, args: Any) -> "FieldprintSite":
        """The site of vLLM's arguments.

        Raises:
            FieldprintError: the engine is not Fieldprint's, or the token's file is not what it should be.
        """
        transfer = args.kv_transfer_config
        if transfer is None or transfer.kv_connector != "FieldprintConnector":
            raise FormatError("this engine has no FieldprintConnector", remedy="Start with fieldprint serve")
        settings = ServeSettings.from_config(transfer.kv_connector_extra_config)
        admin = None
        if settings.admin_token is not None:
            admin = token_in(Path(settings.admin_token), read_file(settings.admin_token))
        keys = args.api_key or [os.environ.get("VLLM_API_KEY")]
        return cls(settings, api_keys=tuple(key for key in keys if key), admin=admin)

    # Requests that vLLM answers

    @contextmanager
    def named(self, scope: Scope, path: str) -> Iterator[str | None]:
        """Give a request the id by which vLLM names its answer; where its receipt will be, for the two paths that say so.

        A client's own id is taken for these two, once: whoever could use another's would write over the other's receipt.
        """
        if scope["method"] != "POST":
            yield None
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        fresh = secrets.token_hex(16)
        names: list[str] = []
        if path in RECEIPTS:
            if given:
                fresh = _request_id(given)
            names = [form.format(fresh) for form in RECEIPTS[path]]
            if self._in_hand.intersection(names) or any(self._has(name) for name in names):
                raise _error(409, f"there is a request {fresh} already; give another X-Request-Id, or none")
        scope["headers"] = [*headers, (b"x-request-id", fresh.encode())]
        self._in_hand.update(names)
        try:
            yield f"{PREFIX}receipts/{names[0]}" if names else None
        finally:
            self._in_hand.difference_update(names)

    async def asking(self, receive: Receive) -> Receive:
        """What gives the app a request's body again, once it is seen that it asks for no anchor that is not there or was ended.

        vLLM would answer with 500, and with no reason. A body that is not understood is for vLLM to refuse, and what the engine
        has not said yet the scheduler refuses.
        """
        messages = [await receive()]
        while messages[-1].get("more_body", False):
            messages.append(await receive())
        asked = _anchor_asked(b"".join(message.get("body", b"") for message in messages))
        if asked is not None:
            known = await asyncio.to_thread(self._known)
            if not isinstance(asked, str) or asked not in known:
                names = ", ".join(sorted(known)) or "none"
                raise _error(400, f"there is no anchor {str(asked)[:64]!r} here; ask for one of: {names}")
        ended = await asyncio.to_thread(self._ended, asked)
        if ended is not None:
            raise _error(403, ended)
        waiting = iter(messages)

        async def again() -> MutableMapping[str, Any]:
            message = next(waiting, None)
            return await receive() if message is None else message

        return again

    def _known(self) -> set[str]:
        state = self._told()
        installed = [] if state is None else state["anchors"]
        return {*self._settings.anchors, *(entry["name"] for entry in installed)}

    def _ended(self, asked: object) -> str | None:
        """Why the anchor of a request, its own or the default, is not served, in words; None if nobody has said so."""
        try:
            state = None if self._control is None else self._control.state()
        except FieldprintError:
            return None
        name = asked if asked is not None or state is None else state.get("default")
        for entry in [] if state is None else state["anchors"]:
            ruling = entry.get("ruling")
            if entry["name"] == name and isinstance(ruling, dict) and ruling.get("action") == "stop":
                return f"the anchor {name} is not served: {ruling.get('why')}"
        return None

    def _told(self) -> dict[str, Any] | None:
        try:
            return None if self._control is None else self._control.state()
        except FieldprintError as error:
            raise _error(503, str(error)) from error

    def _has(self, name: str) -> bool:
        return receipt_path(self._receipts, name).exists()

    # Requests that are answered here

    async def answer(self, scope: Scope, path: str, receive: Receive) -> _Answer:
        """The answer to `path`, what is behind /fieldprint/."""
        method, (name, _, rest) = scope["method"], path.partition("/")
        try:
            if name == "receipts" and rest:
                _need(method, "GET")
                self._need_key(scope)
                return await asyncio.to_thread(self._receipt, rest)
            if path == "healthz":
                _need(method, "GET")
                return await asyncio.to_thread(self._health)
            if path == "anchors" and method == "GET":
                self._need_key(scope)
                return _Answer(200, await asyncio.to_thread(self._state))
            if path in ("anchors", "events"):
                _need(method, "POST")
                control = self._need_admin(scope)
                if path == "events":
                    question = _event(scope, await _body(scope, receive))
                else:
                    question = _installation(await _body(scope, receive))
                return await self._asked(control, question)
        except FormatError as error:
            return _error(400, str(error))
        return _error(404, "there is receipts/ID, anchors, events and healthz")

    def _receipt(self, name: str) -> _Answer:
        path = receipt_path(self._receipts, name)
        try:
            return _Answer(200, path.read_bytes())
        except FileNotFoundError:
            return _error(
                404,
                f"there is no receipt of {name}: ask again when the answer has ended. A request for several answers "
                "(n) has 0_ID, 1_ID and so on, one with several prompts ID-0, ID-1",
            )

    def _state(self) -> dict[str, Any]:
        state = self._told()
        if state is None:
            raise _error(503, "the engine has not said yet which anchors it has")
        return state

    def _health(self) -> _Answer:
        anchors = self._state()["anchors"]
        in_force = sum(bool(entry["ready"]) and entry.get("ruling") is None for entry in anchors)
        return _Answer(200, {"anchors": len(anchors), "in_force": in_force})

    async def _asked(self, control: RunningEngine, question: dict[str, object]) -> _Answer:
        try:
            done = await control.ask(question)
        except NoAnswerError as error:
            return _error(504, str(error))
        except FieldprintError as error:
            return _error(502, str(error))
        if isinstance(done, Refused):
            return _Answer(409, {"refused": done.name, "what": done.what})
        return _Answer(200, dict(done.fields))

    # Who may

    def _need_key(self, scope: Scope) -> None:
        allowed = [*self._api_keys, *([self._admin] if self._admin else [])]
        if self._api_keys and not _bears(scope, allowed):
            raise _error(401, "give one of the server's API keys: Authorization: Bearer KEY")

    def _need_admin(self, scope: Scope) -> RunningEngine:
        if self._admin is None or self._control is None:
            raise _error(403, "this server takes no orders: it has no --admin-token-file and --control")
        if not _bears(scope, [self._admin]):
            raise _error(403, "give the admin's token: Authorization: Bearer TOKEN")
        return self._control


def _request_id(given: list[bytes]) -> str:
    text = given[0].decode("latin-1")
    if len(given) > 1 or not REQUEST_ID.fullmatch(text):
        raise _error(400, "X-Request-Id must be one of 1 to 64 letters, digits, - and _")
    return text


def _anchor_asked(body: bytes) -> object:
    """The anchor that a request names; None where it names none."""
    if b"fieldprint_anchor" not in body:
        return None
    try:
        return json.loads(body)["vllm_xargs"]["fieldprint_anchor"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _pointing_to(receipt: str, send: Send) -> Send:
    async def pointing(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            headers = [*message.get("headers", ()), (b"x-fieldprint-receipt", receipt.encode())]
            message = {**message, "headers": headers}
        await send(message)

    return pointing


def _need(method: str, needed: str) -> None:
    if method != needed:
        raise _error(405, f"{needed} it")


def _bears(scope: Scope, tokens: list[str]) -> bool:
    """Whether a request bears one of these; the time that takes says nothing of them."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
    digest = sha256(token).digest()
    same = [hmac.compare_digest(digest, sha256(known.encode()).digest()) for known in tokens]
    return scheme.lower() == b"bearer" and any(same)


async def _body(scope: Scope, receive: Receive) -> bytes:
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if length.isdigit() and int(length) > MAX_BODY:
        raise _error(413, f"at most {MAX_BODY} bytes")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _error(400, "the request broke off")
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise _error(413, f"at most {MAX_BODY} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _event(scope: Scope, signed: bytes) -> dict[str, object]:
    kinds = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("type", [])
    if len(kinds) != 1 or kinds[0] not in EVENTS:
        raise FormatError(f"?type= must be one of {', '.join(EVENTS)}")
    Envelope.from_bytes(signed)
    return {"type": kinds[0], "signed": base64.b64encode(signed).decode()}


def _installation(body: bytes) -> dict[str, object]:
    try:
        fields = json.loads(body)
        if not isinstance(fields, dict) or fields.keys() != {"name", "artifact", "fieldprint"}:
            raise FormatError("the body must be an object with name, artifact and fieldprint")
        name, artifact, fieldprint = fields["name"], fields["artifact"], fields["fieldprint"]
        if not isinstance(name, str) or not ANCHOR_NAME.fullmatch(name) or name == "none":
            raise FormatError("name must be 1 to 64 letters, digits, - _ and ., and not none")
        if not isinstance(fieldprint, str) or "\0" in fieldprint or not Path(fieldprint).is_absolute():
            raise FormatError("fieldprint must be an absolute path on the server")
        Envelope.from_bytes(base64.b64decode(artifact, validate=True))
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"the body is no JSON, or the artifact no base64: {error}") from error
    return {"type": "install", "name": name, "artifact": artifact, "fieldprint": fieldprint}
