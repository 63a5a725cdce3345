"""The page at /."""

from __future__ import annotations

from zerostate_node.gateway.route import Answer, Call, Handler


def page_handler(version: str) -> Handler:
    """The handler."""

    async def page(call: Call) -> Answer:
        return Answer(b"<!doctype html>", content_type="text/html; charset=utf-8")

    return page
