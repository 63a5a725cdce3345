"""The OpenAPI 3.1 document, made from the route table and the msgspec structs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from zerostate_node.gateway.problems import CONTENT_TYPE, Problem
from zerostate_node.gateway.route import JSON, Answer, Call, Handler, Route
from zerostate_node.ports.desk import Event

_REF = "#/components/schemas/{name}"
_ANY_ROUTE = (400, 500, 503)  # malformed request, a fault of ours, no room or no answer in time


def document_handler(routes: Sequence[Route], version: str) -> Handler:
    """The handler; the document is made at the first request, when the table is complete."""
    made: list[bytes] = []

    async def openapi(call: Call) -> Answer:
        if not made:
            made.append(msgspec.json.encode(document(routes, version)))
        return Answer(made[0])

    return openapi


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The whole document."""
    kinds = list(_structs(routes))
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    by_kind = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operations = paths.setdefault(route.template, {})
        operations[route.method.lower()] = _operation(route, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ZeroState node",
            "version": version,
            "description": "What a client may ask of one node. Numbers named `_ms` are "
            "milliseconds, `_bytes` bytes, `_ucr` micro-credits.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "operator": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The operator key, from operator.key in the data directory.",
                }
            },
        },
    }


def _structs(routes: Sequence[Route]) -> Iterator[Any]:
    seen: set[str] = set()
    for route in routes:
        for kind in (route.query, route.takes, route.gives, *route.also.values()):
            if kind is not None and not isinstance(kind, str) and repr(kind) not in seen:
                seen.add(repr(kind))
                yield kind
    yield Problem
    yield Event


def _operation(route: Route, by_kind: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_query_parameters(route), *_heads_in(route)],
        "responses": _responses(route, by_kind),
        "security": [{"operator": []}] if route.private else [],
    }
    if route.takes is not None:
        operation["requestBody"] = {
            "required": not route.takes_optional,
            "content": _content(route.takes, by_kind),
        }
    return operation


def _operation_id(route: Route) -> str:
    words = re.findall(r"[a-z0-9]+", route.template.removeprefix("/api/v1").lower())
    return "_".join([route.method.lower(), *(words or ["page"])])


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.template)
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    _, parts = msgspec.json.schema_components([route.query], ref_template=_REF)
    found = parts[route.query.__name__]
    return [
        {
            "name": name,
            "in": "query",
            "required": name in found.get("required", ()),
            "schema": schema,
        }
        for name, schema in found["properties"].items()
    ]


def _heads_in(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
        for name, text in route.headers_in
    ]


def _responses(route: Route, by_kind: dict[str, Any]) -> dict[str, Any]:
    good: dict[str, Any] = {
        "description": HTTPStatus(route.status).phrase,
        "content": _content(route.gives, by_kind),
    }
    if route.headers_out:
        good["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in route.headers_out
        }
    responses = {str(route.status): good}
    for status, kind in route.also.items():
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": _content(kind, by_kind),
        }
    bad = {*_ANY_ROUTE, *route.problems, *((401,) if route.private else ())}
    for status in sorted(bad):
        content = {CONTENT_TYPE: {"schema": by_kind[repr(Problem)]}}
        entry = responses.setdefault(
            str(status), {"description": HTTPStatus(status).phrase, "content": {}}
        )
        entry["content"] = {**entry["content"], **content}
    return responses


def _content(kind: Any, by_kind: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(kind, str):
        return {JSON: {"schema": by_kind[repr(kind)]}}
    if kind == "text/event-stream":
        event = {"contentMediaType": JSON, "contentSchema": by_kind[repr(Event)]}
        return {kind: {"schema": {"type": "string", "description": "data: of each event", **event}}}
    if kind.startswith("text/"):
        return {kind: {"schema": {"type": "string"}}}
    return {kind: {}}
