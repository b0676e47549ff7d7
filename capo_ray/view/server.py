"""The page's server: one document and its figures, for whoever has the token.

    GET /?token=…            the document, and a cookie for what follows
    GET /api/runs            GET /api/runs/0/series?names=…      GET /api/runs/0/groups?sort=…&filter=…&find=…
    GET /api/runs/0/groups/7[/credit?method=…&set=credit.key=value …]        …/critic  …/flow  …/methods  …/export
    GET /api/events          server-sent: a line whenever a run has written

Nothing is ever changed by a request. Without token or cookie the answer is 401, whatever is asked.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from capo_ray.runs.reading import Run
from capo_ray.view import figures
from capo_ray.view.document import build_document

FOLLOW_S = 1.0
"""Between two looks at the runs' files, while a page is open."""


class Guard:
    """Lets through who has the token, as `?token=…`, as a cookie or as a bearer; says 401 to everybody else."""

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        given = (request.query_params.get("token", ""), request.cookies.get(self._cookie, ""), bearer)
        if not any(hmac.compare_digest(one.encode(), self._token.encode()) for one in given):
            words = "expected the token that `capo-ray view` printed with its address, got none or another"
            await PlainTextResponse(words + "\n", 401)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def build_app(runs: Sequence[Run], token: str, stopping: Callable[[], bool] = lambda: False) -> ASGIApp:
    """The application that shows the runs, until `stopping` lets its open streams end."""
    cookie = f"capo_ray_{secrets.token_hex(4)}"
    views = _Views(runs, stopping)

    async def document(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        answer = Response(build_document(nonce=nonce), media_type="text/html")
        answer.headers["Content-Security-Policy"] = policy
        answer.set_cookie(cookie, token, httponly=True, samesite="strict")
        return answer

    routes = [
        Route("/", document),
        Route("/api/runs", _as_json(views.all_runs)),
        Route("/api/events", views.events),
        Route("/api/runs/{run:int}/series", _as_json(views.series)),
        Route("/api/runs/{run:int}/groups", _as_json(views.groups)),
        Route("/api/runs/{run:int}/groups/{group:int}", _as_json(views.group)),
        Route("/api/runs/{run:int}/groups/{group:int}/credit", _as_json(views.credit)),
        Route("/api/runs/{run:int}/methods", _as_json(views.methods)),
        Route("/api/runs/{run:int}/critic", _as_json(views.critic)),
        Route("/api/runs/{run:int}/flow", _as_json(views.flow)),
        Route("/api/runs/{run:int}/export", views.export),
    ]
    return Guard(Starlette(routes=routes), token, cookie)


def _as_json(answer: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that reads files in a thread; what is not there is 404 with a sentence."""

    async def endpoint(request: Request) -> Response:
        try:
            found = await run_in_threadpool(answer, request)
        except (IndexError, figures.Unknown) as error:
            words = str(error) if isinstance(error, figures.Unknown) else f"there is no {request.url.path}"
            return JSONResponse({"error": words}, 404)
        except (OSError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 500)
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return Response(json.dumps(found, allow_nan=False), media_type="application/json", headers=headers)

    return endpoint


class _Views:
    """Answers of the server, by run."""

    def __init__(self, runs: Sequence[Run], stopping: Callable[[], bool]) -> None:
        self._runs, self._stopping = runs, stopping

    def _run(self, request: Request) -> Run:
        return self._runs[request.path_params["run"]]

    def all_runs(self, request: Request) -> Any:
        return [figures.run_line(run, number) for number, run in enumerate(self._runs)]

    def series(self, request: Request) -> Any:
        return figures.series(self._run(request), request.query_params.get("names", "").split(","))

    def _chosen(self, request: Request) -> list[figures.Head]:
        query = request.query_params
        words = {name: query[name] for name in ("sort", "filter", "find") if name in query}
        return figures.choose(self._run(request), update=_whole(query.get("update")), **words)

    def groups(self, request: Request) -> Any:
        query = request.query_params
        return figures.group_list(
            self._chosen(request), _whole(query.get("offset")) or 0, _whole(query.get("limit")) or 50
        )

    def group(self, request: Request) -> Any:
        return self._run(request).group(request.path_params["group"])

    def credit(self, request: Request) -> Any:
        query = request.query_params
        from capo_ray.view import what_if  # every method's settings, which take longer to load than a run to open

        line = self._run(request).group_text(request.path_params["group"])
        return what_if.credit(line, query.get("method", ""), query.get("set", "").split(), self._run(request).settings)

    def methods(self, request: Request) -> Any:
        from capo_ray.view import what_if

        return what_if.methods(self._run(request).settings)

    def critic(self, request: Request) -> Any:
        return figures.critic_page(self._run(request))

    def flow(self, request: Request) -> Any:
        return figures.flow_page(self._run(request), _whole(request.query_params.get("update")))

    async def export(self, request: Request) -> Response:
        """Lines of the transcript as they stand."""
        try:
            run = self._run(request)
            ids = request.query_params.get("ids")
            chosen = [int(one) for one in ids.split(",")] if ids else None
            if chosen is None:
                chosen = [head.index for head in await run_in_threadpool(self._chosen, request)][:1000]
        except (IndexError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 404)

        def lines() -> Iterator[str]:
            for index in chosen:
                yield run.group_text(index)

        headers = {"Content-Disposition": "attachment; filename=groups.jsonl", "X-Content-Type-Options": "nosniff"}
        return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)

    async def events(self, request: Request) -> Response:
        async def stream() -> AsyncIterator[str]:
            told = ""
            while not self._stopping() and not await request.is_disconnected():
                now = json.dumps(await run_in_threadpool(self._state))
                # A comment keeps the line open through proxies, and shows when nobody listens any more.
                yield f"data: {now}\n\n" if now != told else ": \n\n"
                told = now
                await asyncio.sleep(FOLLOW_S)

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    def _state(self) -> list[dict[str, Any]]:
        state = []
        for run in self._runs:
            rows = run.rows()
            updates = rows[-1]["update"] if rows else 0
            state.append({"name": run.name, "status": run.status, "updates": updates, "groups": len(run.heads())})
        return state


def _whole(text: str | None) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise figures.Unknown(f"expected a whole number, got {text[:40]!r}") from None


def serve(runs: Sequence[Path], host: str, port: int, token: str, say: Callable[[str], None]) -> None:
    """Serve until ended by a signal; `say` gets the address with its token once requests are taken."""
    import uvicorn

    def stopping() -> bool:
        return server.should_exit

    app = build_app([Run(path) for path in runs], token, stopping)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(64)
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listener.getsockname()[1]}/?token={token}")
        server.run(sockets=[listener])
