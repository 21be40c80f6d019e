"""Who may see the page: this machine alone, or who has the token."""

from __future__ import annotations

import ipaddress
import secrets
from typing import Any
from urllib.parse import urlsplit

try:
    from flask import Flask, Response, redirect, request
except ModuleNotFoundError as error:
    message = "The explorer needs Dash. Install it from the checkout: pip install '.[explore]'"
    raise ModuleNotFoundError(message) from error

COOKIE, PARAMETER = "geolatent-explorer", "token"
_LOCAL_NAMES = ("localhost", "localhost.")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine alone.

    Examples
    --------
    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host.lower() in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def guard(server: Flask, token: str | None) -> None:
    """Refuse requests that may not be answered.

    Without a token only requests to this machine by its own name are answered, so that no page of
    another site that points its name here can read; with one only who brings it, in the address of
    the first request and then in a cookie. Requests that another site's page sends are refused
    either way.

    Parameters
    ----------
    server
        The server of the page.
    token
        What the address has to bring; None for this machine alone.
    """

    @server.before_request
    def check() -> Any:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return _refused("Requests of other sites' pages are not answered.")
        if token is None:
            if is_loopback(urlsplit(f"//{request.host}").hostname or ""):
                return None
            return _refused("The explorer answers to this machine's own names alone.")
        if _same(request.cookies.get(COOKIE), token):
            return None
        if not _same(request.args.get(PARAMETER), token):
            return _refused("The address lacks the token that `geolatent explore` printed.")
        # the token leaves the address bar and the history
        answer = redirect(request.path, code=303)
        answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
        return answer

    @server.after_request
    def harden(answer: Response) -> Response:
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["X-Frame-Options"] = "DENY"
        return answer


def _same(given: str | None, token: str) -> bool:
    """Compare in a time that does not tell how much was right."""
    return given is not None and secrets.compare_digest(given.encode(), token.encode())


def _refused(text: str) -> Response:
    return Response(f"{text}\n", status=403, mimetype="text/plain")
