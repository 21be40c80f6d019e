"""The server of the page: Dash on waitress, on this machine."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
from typing import Any

from geolatent.checks import requirement
from geolatent.explorer.callbacks import Page, add_callbacks
from geolatent.explorer.door import PARAMETER, guard, is_loopback
from geolatent.explorer.jobs import Jobs
from geolatent.explorer.layout import page as make_page
from geolatent.explorer.subject import Subject

try:
    import waitress
    from dash import Dash
    from flask import Response, request
except ModuleNotFoundError as error:
    message = (
        "The explorer needs Dash and waitress. Install them from the checkout: "
        "pip install '.[explore]'"
    )
    raise ModuleNotFoundError(message) from error

# requests that are answered at once
_THREADS = 8
CLOSED = "/closed"


def make_app(subject: Subject, jobs: Jobs, token: str | None = None) -> Dash:
    """Return the page's application; everything that it loads comes from this machine."""
    app = Dash(
        "geolatent.explorer",
        title="geolatent explorer",
        update_title="",
        serve_locally=True,
        add_log_handler=False,
        enable_mcp=False,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.layout = lambda: make_page(subject)
    add_callbacks(app, Page(subject, jobs))
    guard(app.server, token)

    @app.server.post(CLOSED)
    def closed() -> Response:
        """End the work of a page that was left."""
        jobs.stop(request.get_data(as_text=True)[:64])
        return Response(status=204)

    return app


class Server:
    """The page at an address, until it is closed.

    Parameters
    ----------
    subject
        What is explored.
    host, port
        Where to listen; port 0 takes a free one. Any host but loopback gets a token.
    jobs
        Who solves; by default two at once.

    Raises
    ------
    OSError
        Where nothing can listen there.
    """

    def __init__(
        self, subject: Subject, host: str = "127.0.0.1", port: int = 8050, jobs: Jobs | None = None
    ) -> None:
        listening = _listen(host, port)
        self.host = host
        self.port = int(listening.getsockname()[1])
        self.jobs = jobs if jobs is not None else Jobs()
        self.token = None if is_loopback(host) else secrets.token_urlsafe(24)
        app = make_app(subject, self.jobs, self.token)
        self._server: Any = waitress.create_server(
            app.server, sockets=[listening], threads=_THREADS, ident=None
        )
        self._lock = threading.Lock()
        self._running = False
        self._closed = False

    @property
    def url(self) -> str:
        """The address, with the token where one is needed.

        Where it listens at all addresses it is that of the machine's name.
        """
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        host = f"[{host}]" if ":" in host else host
        query = "" if self.token is None else f"?{PARAMETER}={self.token}"
        return f"http://{host}:{self.port}/{query}"

    def run(self) -> None:
        """Answer requests until the process is interrupted or `close` is called."""
        with self._lock:
            self._running = True
        try:
            self._server.run()
        finally:
            with self._lock:
                self._running = False
            self.jobs.close()

    def close(self) -> None:
        """Stop answering, once what is being answered is; any thread may ask for it."""
        self.jobs.close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._running:
                # by the loop itself: it may be about to wait for what would be closed
                self._server.trigger.pull_trigger(self._end)
            else:
                self._end()

    def _end(self) -> None:
        """Leave the loop nothing to listen to, by which it ends."""
        self._server.task_dispatcher.shutdown()
        for channel in self._server.active_channels.values():
            channel.will_close = True  # once its answer is sent
        self._server.close()


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket at an address."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        required = f"a name or an address of this machine ({error.strerror or error})"
        raise OSError(requirement("host", required, host)) from error
    made = socket.socket(family, kind)
    try:
        if os.name == "posix":  # elsewhere it would let two processes have one port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            message = requirement("port", "a free port, or 0 for any", port)
        else:
            required = f"one that can be listened at ({error.strerror or error})"
            message = requirement("host and port", required, f"{host}:{port}")
        raise OSError(message) from error
    return made
