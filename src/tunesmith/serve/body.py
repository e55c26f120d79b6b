"""The body of a request: read within limits of size and time, then strict JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

from starlette.requests import ClientDisconnect, Request

from tunesmith.serve.refusals import Refusal
from tunesmith.serve.settings import Limits

BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"|([{\[])|([}\]])', re.DOTALL)


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The object that the client sends. Raises Refusal E410 (not JSON), E413 (large), E419 (a form), E424 (slow)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal("E419", f"the body is {kind or 'of no type'}", fix="send application/json", status=415)
    return parse(await read_body(request, limits), limits)


async def read_body(request: Request, limits: Limits) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.body_bytes:
        raise too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise too_large(limits)
    except TimeoutError as error:
        raise Refusal(
            "E424", f"the body did not come within {limits.body_seconds:g} s", fix="send it at once"
        ) from error
    except ClientDisconnect as error:
        raise Refusal("E424", "the client left before its request was whole", fix="send it again") from error
    return bytes(body)


def too_large(limits: Limits) -> Refusal:
    error = Refusal("E413", f"the body is larger than {limits.body_bytes:,} bytes", fix="ask for less at a time")
    error.headers["Connection"] = "close"
    return error


def parse(body: bytes, limits: Limits) -> dict[str, Any]:
    try:
        if depth_of(body) > limits.depth:
            raise ValueError(f"it is nested more than {limits.depth} deep")
        found = json.loads(
            body.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant, parse_float=number
        )
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        raise Refusal("E410", f"the body cannot be read as JSON: {error}", fix="send one JSON object") from error
    return found


def depth_of(body: bytes) -> int:
    deepest = depth = 0
    for match in BRACKET.finditer(body):
        depth += bool(match[1]) - bool(match[2])
        deepest = max(deepest, depth)
    return deepest


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON value")


def number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
