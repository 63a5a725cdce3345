"""The Quart application: routes from the table, every error as problem+json."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from zerostate_node.gateway import problems
from zerostate_node.gateway.exchange import SCOPE_KEY, Exchange
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
    exchange = _exchange()
    found = _found(error)
    if found.status == 500:
        log.error("a handler failed", route=exchange.route, exc_info=error)
    body = problems.encode(found, exchange.request_id)
    headers: dict[str, Any] = {"cache-control": "no-store", **found.headers}
    return _response(
        Answer(body, status=found.status, content_type=problems.CONTENT_TYPE, headers=headers)
    )


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
