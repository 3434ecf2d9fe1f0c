"""A witness over HTTP: `answer` maps a request to an answer without a socket, `WitnessServer` puts it behind one.

    POST /add-checkpoint                 200 cosignature lines; 400, 403, 404, 409 (with the size), 422
    GET  /<SHA-256 of origin>/checkpoint 200 the last cosigned checkpoint; 404

It speaks plain HTTP and stands behind a proxy that speaks TLS where others than this machine should reach it.
"""

import re
from collections.abc import Callable

from fieldprint.errors import LogError
from fieldprint.tlog.http_server import HttpServer, Response
from fieldprint.tlog.witness import MAX_REQUEST_SIZE, RefusalError, Witness

_MONITORED = re.compile(r"/([0-9a-f]{64})/checkpoint")


def answer(witness: Witness, method: str, path: str, body: bytes = b"") -> Response:
    """What the witness answers to a request; 500 if its state cannot be used, and then nothing was cosigned.

    Args:
        witness: who answers.
        method: GET or POST.
        path: below the witness's prefix, which is the same for submission and monitoring.
        body: of a POST.
    """
    monitored = _MONITORED.fullmatch(path)
    try:
        if path == "/add-checkpoint":
            if method != "POST":
                return Response(405, b"add-checkpoint is a POST\n")
            return Response(200, witness.add_checkpoint(body))
        if monitored and method == "GET":
            return Response(200, witness.checkpoint(monitored[1]))
    except RefusalError as refusal:
        return Response(refusal.status, refusal.body.encode(), refusal.content_type)
    except LogError:
        return Response(500, b"the witness cannot use its state\n")
    return Response(404, b"nothing is here\n")


class WitnessSite:
    """A witness as what `HttpServer` serves."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def limit(self, method: str, path: str, authorization: str) -> int:  # noqa: ARG002  a site's
        """The largest request."""
        return MAX_REQUEST_SIZE if method == "POST" else 0

    def answer(self, method: str, path: str, body: bytes, if_none_match: str) -> Response:  # noqa: ARG002
        """As `answer`."""
        return answer(self._witness, method, path, body)


class WitnessServer(HttpServer):
    """A witness on a port, a thread a connection; `serve_forever` runs it, `shutdown` ends it.

    Args:
        witness: who answers.
        address: host and port; port 0 takes a free one.
        report: called with one line for each request.
    """

    def __init__(
        self, witness: Witness, address: tuple[str, int], report: Callable[[str], None] = lambda _line: None
    ) -> None:
        self.witness = witness
        super().__init__(WitnessSite(witness), address, report)
