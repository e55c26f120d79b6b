"""Who may ask, and what every request is held to before its route sees it."""

from __future__ import annotations

import hmac
import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.errors import TunesmithError
from tunesmith.serve.mailbox import Gone
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.refusals import Refusal, body_of, bug, status_of
from tunesmith.serve.settings import Settings, read_host
from tunesmith.serve.throttle import Throttle
from tunesmith.serve.worker import LOG

USUAL_PORTS = {"http": 80, "https": 443}


class Guard:
    """Around the application: host, origin, token and length of the address; every failure becomes JSON."""

    def __init__(self, app: ASGIApp, routes: list[Route], settings: Settings, metrics: Metrics) -> None:
        self.app, self.routes, self.settings, self.metrics = app, routes, settings, metrics
        self.throttle = Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        route = self.route_of(scope)
        try:
            await self.check(scope)
            self.check_route(scope, route)
            await self.app(scope, receive, noting)
        except Gone:
            status = 499
            self.metrics.cancelled += 1
        except Exception as error:
            found = as_refusal(error)
            if status:
                raise
            status = status_of(found)
            headers = found.headers if isinstance(found, Refusal) else {}
            await JSONResponse(body_of(found), status, headers)(scope, receive, send)
        finally:
            self.metrics.requests[route.path if route is not None else "other", status] += 1

    def route_of(self, scope: Scope) -> Route | None:
        return next((route for route in self.routes if route.matches(scope)[0] is not Match.NONE), None)

    def check_route(self, scope: Scope, route: Route | None) -> None:
        if route is None:
            known = ", ".join(readable(each) for each in self.routes)
            raise Refusal("E419", f"there is no {scope['path'][:200]}", fix=f"there are: {known}")
        if scope["method"] not in (route.methods or ()):
            allowed = ", ".join(sorted(route.methods or ()))
            error = Refusal("E419", f"{readable(route)} takes {allowed}", fix=f"use {allowed}", status=405)
            error.headers["Allow"] = allowed
            raise error

    async def check(self, scope: Scope) -> None:
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > self.settings.limits.path_bytes:
            raise Refusal("E413", "the address is too long", fix="send values in the body", status=414)
        headers = Headers(scope=scope)
        self.check_origin(headers)
        if self.settings.token is None:
            return
        address = (scope.get("client") or ("",))[0]
        self.throttle.check(address)
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.settings.token.encode()):
            return
        await self.throttle.note(address)
        error = Refusal("E416", "the token is missing or wrong", fix="send it as Authorization: Bearer TOKEN")
        error.headers["WWW-Authenticate"] = "Bearer"
        raise error

    def check_origin(self, headers: Headers) -> None:
        """A page of another site can neither reach the server by a name of its own nor send it anything."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self.settings.allows(hosts[0]):
            shown = ", ".join(hosts)[:200]
            raise Refusal("E417", f"this server is not called {shown!r}", fix="start it with --allow-host NAME")
        fix = "ask from a program, not a page"
        if len(origins) > 1 or (origins and not is_own(origins[0], hosts[0])):
            raise Refusal("E417", f"pages of {', '.join(origins)[:200]!r} may not ask here", fix=fix)
        sites = [site.strip().lower() for site in headers.getlist("sec-fetch-site")]
        if sites not in ([], ["same-origin"], ["none"]):  # none: an address that somebody typed
            raise Refusal("E417", f"pages of another site ({', '.join(sites)[:200]}) may not ask here", fix=fix)


def is_own(origin: str, host: str) -> bool:
    """Whether a page came from this very server."""
    scheme, sign, rest = origin.strip(" \t").lower().partition("://")
    page, own, usual = read_host(rest), read_host(host), USUAL_PORTS.get(scheme)
    if not sign or page is None or own is None or usual is None:
        return False
    return (page[0], page[1] or usual) == (own[0], own[1] or usual)


def readable(route: Route) -> str:
    """Its path as a person writes it: /v1/models/NAME."""
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: found[1].upper(), route.path)


def as_refusal(error: Exception) -> TunesmithError:
    if isinstance(error, TunesmithError):
        return error
    if isinstance(error, HTTPException):
        return Refusal("E419", str(error.detail), fix="see the guide", status=error.status_code)
    LOG.error("a request failed", exc_info=error)
    return bug(error)
