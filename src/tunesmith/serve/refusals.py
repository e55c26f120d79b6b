"""Errors as OpenAI's clients read them, with our code and fix."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import BadInput, MachineError, NumericalError, TunesmithError, UsageError, Where

STATUS = {
    "E412": 404,
    "E413": 413,
    "E415": 429,
    "E416": 401,
    "E417": 403,
    "E419": 404,
    "E424": 408,
    "E425": 500,
    "E426": 503,
    "E429": 429,
    "E486": 503,
}
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Refusal(TunesmithError):
    """A request that is not served; its status is that of the code unless one is given."""

    def __init__(self, code: str, message: str, *, field: str | None = None, fix: str, status: int = 0) -> None:
        where = None if field is None else Where(field=field)
        super().__init__(code, message, where=where, fixes=[fix])
        self.status = status
        self.headers: dict[str, str] = {}


def status_of(error: TunesmithError) -> int:
    """What the client did wrong is 4xx, what the server cannot do 5xx."""
    if isinstance(error, Refusal) and error.status:
        return error.status
    code = error.diagnostic.code
    if code in STATUS:
        return STATUS[code]
    if isinstance(error, MachineError):
        return 503
    if isinstance(error, NumericalError):
        return 500
    return 400 if isinstance(error, Refusal | BadInput | UsageError) or error.exit_code == 9 else 500


def body_of(error: TunesmithError) -> dict[str, Any]:
    """The shape of OpenAI's errors; `fixes` and `evidence` are ours."""
    found = error.diagnostic
    fix = [each.command or each.label for each in found.fixes]
    message = found.message + (f"; {fix[0]}" if fix else "")
    status = status_of(error)
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = found.where.field if found.where is not None else None
    told = {"message": message, "type": kind, "param": param, "code": found.code}
    return {"error": {**told, "fixes": fix, "evidence": list(found.evidence)}}


def bug(error: BaseException) -> TunesmithError:
    """What a client hears of a failure of ours; the traceback stays with the server."""
    return Refusal(
        "E425",
        f"the server met a failure of its own ({type(error).__name__}) and goes on",
        fix="ask again; if it stays, report it with the server's log",
    )
