"""The server of the page: static files, and a stream of events for each request.

A request is a POST whose answer is a stream of JSON lines (``jobs.Event``): progress, parts of the
result, and the result or a sentence that says what is wrong. Whoever closes the connection stops
the job. No path from a browser is ever opened, and no page of another site can ask for anything.
"""

import asyncio
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from utils import UserError, as_json

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.datastructures import Headers
    from starlette.requests import Request as HttpRequest
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise UserError(f"the page needs {error.name}: pip install -r requirements-web.txt") from error

from lmconv.web.jobs import Event, Job, Worker
from lmconv.web.requests import Request
from lmconv.web.tasks import TASKS, Tasks

__all__ = ["WebConfig", "make_app", "serve"]

log = logging.getLogger(__name__)

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_MOST_BYTES = 2**24  # of a request
_SECONDS_OF_SILENCE = 0.25
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class WebConfig:
    """Where the page is.

    Attributes:
        host: address that the server listens on.
        port: its port; 0 for any that is free.
        num_threads: threads of PyTorch; with all processors, the page would be slow beside others.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    num_threads: int = max(1, (os.cpu_count() or 1) // 2)


class _Guard:
    """Refuses requests under other names and from other sites, and adds headers to all answers.

    A site that gives its name the address of this server (DNS rebinding) is refused by its name:
    only addresses, ``localhost`` and the name that the server was started with are let in.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        refusal = self._refusal(scope["method"], headers)
        app = self._app if refusal is None else JSONResponse({"error": refusal}, 403)
        await app(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if not self._is_own(host):
            return "The page is not known under this name: use its address."
        if method in ("GET", "HEAD"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        if origin not in (None, f"http://{host}", f"https://{host}") or site != "same-origin":
            return "Other sites cannot use the page."
        return None

    def _is_own(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() in ("localhost", self._host.lower()):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def make_app(tasks: Tasks, worker: Worker, host: str = "127.0.0.1") -> ASGIApp:
    """The application.

    Args:
        tasks: what browsers can ask for.
        worker: what does it.
        host: a name for the server that browsers may use besides addresses.
    """

    async def models(request: HttpRequest) -> Response:
        return JSONResponse([file.name for file in tasks.models.files])

    async def ask(request: HttpRequest) -> Response:
        task = TASKS[request.path_params["task"]]
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            asked = await _read(request)
            job = Job(
                lambda job: task.run(tasks, asked, job),
                task.cost(asked),
                _client(request),
                lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
            )
            worker.submit(job)
        except (ValueError, UserError) as error:
            return JSONResponse({"error": str(error)}, 400)
        lines = _lines(request, job, worker, events)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    routes = [Route(path, _static(*file)) for path, file in _static_files().items()]
    routes.append(Route("/api/models", models))
    routes += [Route(f"/api/{name}", _with_task(ask, name), methods=["POST"]) for name in TASKS]
    return _Guard(Starlette(routes=routes), host)


def _with_task(ask: Callable[[HttpRequest], Any], name: str) -> Callable[[HttpRequest], Any]:
    async def respond(request: HttpRequest) -> Response:
        request.path_params["task"] = name
        answer: Response = await ask(request)
        return answer

    return respond


def _static_files() -> dict[str, tuple[bytes, str]]:
    """The files of the page, read once: content and type by path."""
    found = {}
    for file in files("lmconv.web").joinpath("static").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            found[f"/{file.name}"] = file.read_bytes(), kind
    return {"/": found["/index.html"], **found}


def _static(content: bytes, kind: str) -> Callable[[HttpRequest], Any]:
    async def respond(request: HttpRequest) -> Response:
        return Response(content, media_type=kind)

    return respond


def _client(request: HttpRequest) -> str:
    """Who asks: an address, and a page there."""
    address = request.client.host if request.client else ""
    return f"{address} {request.headers.get('x-page', '')[:40]}"


async def _read(request: HttpRequest) -> Request:
    """Read a request of bounded size: a JSON object, or a file with its object in the URL."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MOST_BYTES:
            raise ValueError(f"This is too large: {_MOST_BYTES // 2**20} MB are the most.")
    if request.headers.get("content-type") == "application/octet-stream":
        values = {name: _whole(value) for name, value in request.query_params.items()}
        return Request(values, bytes(content))
    return Request(bytes(content))


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 10 else None


async def _lines(
    request: HttpRequest, job: Job, worker: Worker, events: "asyncio.Queue[Event]"
) -> AsyncIterator[bytes]:
    """The events of a job as lines, until it ends; it is stopped if nobody listens any more."""
    try:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), _SECONDS_OF_SILENCE)
            except asyncio.TimeoutError:
                event = {"before": worker.number_before(job)}
            if await request.is_disconnected():
                return
            yield as_json(event).encode() + b"\n"
            if "result" in event or "error" in event:
                return
    finally:
        job.stop()


def open_socket(config: WebConfig) -> socket.socket:
    """A socket that listens where the page is to be.

    Raises:
        UserError: the address or the port cannot be used.
    """
    try:
        family = socket.getaddrinfo(config.host, config.port)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter for names that no host can have
        raise _unusable(config, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise _unusable(config, error) from error
    return listener


def _unusable(config: WebConfig, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or "it is not the name of a host"
    return UserError(
        f"`host` {config.host} with `port` {config.port} cannot be used ({reason}): give another "
        "one"
    )


def serve(config: WebConfig, tasks: Tasks, on_start: Callable[[str], object]) -> None:
    """Serve the page until the program is interrupted.

    Args:
        config: where.
        tasks: what browsers can ask for.
        on_start: called with the address of the page once it is there.

    Raises:
        UserError: the address or the port cannot be used.
    """
    with open_socket(config) as listener:
        name = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{name}:{listener.getsockname()[1]}/"
        app = make_app(tasks, Worker(config.num_threads), config.host)
        settings = uvicorn.Config(
            app, log_level="error", access_log=False, timeout_graceful_shutdown=1, lifespan="off"
        )
        server = uvicorn.Server(settings)
        listener.listen()
        on_start(address)
        server.run(sockets=[listener])
