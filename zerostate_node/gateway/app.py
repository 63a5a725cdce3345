"""The Quart application: routes from the table, every error as problem+json."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog
import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from zerostate_node.gateway import problems
from zerostate_node.gateway.exchange import SCOPE_KEY, WORK_KEY, Answerer, Exchange
from zerostate_node.gateway.options import GatewaySettings
from zerostate_node.gateway.problems import HttpError
from zerostate_node.gateway.route import Answer, Call, Route, parse_query
from zerostate_node.ports.desk import Desk

log = structlog.get_logger()


def build_app(routes: Sequence[Route], desk: Desk, settings: GatewaySettings) -> QuartTrio:
    """The application that serves `routes`; bodies, limits and keys are the shell's."""
    app = QuartTrio("zerostate_node.gateway", static_folder=None, template_folder=None)
    app.url_map.merge_slashes = False  # one spelling a route, no redirects
    app.url_map.strict_slashes = True
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["MAX_CONTENT_LENGTH"] = None  # the shell counts; see body.py
    app.config["RESPONSE_TIMEOUT"] = None  # the connection times each send
    for route in routes:
        if route.handle is not None:
            app.add_url_rule(
                route.rule,
                endpoint=f"{route.method} {route.path}",
                view_func=_view(route, desk, settings),
                methods=[route.method],
                provide_automatic_options=False,
            )
    app.register_error_handler(Exception, _on_error)
    return app


def _view(
    route: Route, desk: Desk, settings: GatewaySettings
) -> Callable[..., Awaitable[Response]]:
    async def view(**params: str) -> Response:
        exchange = _exchange()
        exchange.route = route.template
        if route.private and not exchange.actor:
            raise problems.unauthorized()  # the shell asked already; this is the second lock
        query: Any = parse_query(route.query, list(request.args.items(multi=True)))
        call = Call(desk=desk, settings=settings, exchange=exchange, params=params, query=query)
        return _response(await _within(route, call, settings))

    return view


class Direct:
    """
    The few routes that are asked most, answered without the framework.

    The same handlers, limits and errors; what is left out is a request context and a router for
    each call, which cost more than the handler. Anything that is not the plain spelling of such a
    route (a query, an escape) goes through the framework.
    """

    def __init__(self, routes: Sequence[Route], desk: Desk, settings: GatewaySettings) -> None:
        self._desk = desk
        self._settings = settings
        self._routes = [
            (route.method, re.compile(route.pattern).fullmatch, route)
            for route in routes
            if route.direct and route.handle is not None
        ]

    async def answer(self, scope: dict[str, Any], exchange: Exchange, send: Answerer) -> bool:
        """Answer one request whose head was checked; False: it is not one of these."""
        if scope["query_string"]:
            return False
        for method, match, known in self._routes:
            if method == exchange.method and (found := match(exchange.path)):
                with trio.CancelScope() as scope[WORK_KEY]:
                    answer = await self._ask(known, found.groupdict(), exchange)
                if not scope[WORK_KEY].cancelled_caught:
                    await _send_whole(answer, send)
                return True
        return False

    async def _ask(self, route: Route, params: Mapping[str, str], exchange: Exchange) -> Answer:
        exchange.route = route.template
        try:
            if route.private and not exchange.actor:
                raise problems.unauthorized()  # the shell asked already; this is the second lock
            call = Call(
                desk=self._desk,
                settings=self._settings,
                exchange=exchange,
                params=params,
                query=route.query(),
            )
            return await _within(route, call, self._settings)
        except Exception as error:
            return _problem(error, exchange)  # the bulkhead around one handler


async def _send_whole(answer: Answer, send: Answerer) -> None:
    assert isinstance(answer.body, bytes)  # streams are the framework's
    fields = {
        "content-type": answer.content_type,
        "content-length": str(len(answer.body)),
        "cache-control": "no-store",
        **answer.headers,
    }
    head = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send.whole(answer.status, head, answer.body)


async def _within(route: Route, call: Call, settings: GatewaySettings) -> Answer:
    assert route.handle is not None
    if not route.timed:
        return await route.handle(call)
    limit_s = route.timeout_s or settings.handler_timeout_s
    with trio.move_on_after(limit_s):
        return await route.handle(call)
    raise problems.timed_out(f"the node had no answer within {limit_s:g} s")


def _response(answer: Answer) -> Response:
    response: Response = QuartTrio.response_class(answer.body, status=answer.status)
    response.headers["content-type"] = answer.content_type
    response.headers.setdefault("cache-control", "no-store")
    for name, value in answer.headers.items():
        response.headers[name] = value
    response.timeout = None
    return response


async def _on_error(error: Exception) -> Response:
    return _response(_problem(error, _exchange()))


def _problem(error: Exception, exchange: Exchange) -> Answer:
    found = _found(error)
    if found.status == 500:
        log.error("a handler failed", route=exchange.route, exc_info=error)
    body = problems.encode(found, exchange.request_id)
    headers: dict[str, Any] = {"cache-control": "no-store", **found.headers}
    return Answer(body, status=found.status, content_type=problems.CONTENT_TYPE, headers=headers)


def _found(error: Exception) -> HttpError:
    match error:
        case MethodNotAllowed():
            allowed = sorted(set(error.valid_methods or ()) - {"HEAD"})
            return HttpError(
                405,
                "method_not_allowed",
                f"this path takes {', '.join(allowed)}",
                headers={"allow": ", ".join(allowed)},
            )
        case NotFound():
            return HttpError(404, "no_route", "there is nothing here", hint="GET /openapi.json")
        case HTTPException():
            return HttpError(error.code or 500, "bad_request", error.description or "")
    return problems.of(error)


def _exchange() -> Exchange:
    exchange: Exchange = request.scope[SCOPE_KEY]
    return exchange
