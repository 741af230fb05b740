"""The viewer's server: an ASGI app over opened datasets, and its start.

It answers a browser on this machine and nobody else: requests that name another host, come from another site, or want
anything but to read are refused. No path of a request reaches the file system: static files come from a fixed list,
pictures by the number of a row. Nothing of a dataset is served as anything but JSON and checked pictures.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from dataengine import malloc
from dataengine.errors import UserError
from dataengine.images import ImageError
from dataengine.sample import Image
from dataengine.store.commits import DatasetError
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.view import bundle, pictures, query, rows
from dataengine.view.compare import Comparison
from dataengine.view.listing import Listing
from dataengine.view.pictures import Picture
from dataengine.view.rows import Shown

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
TYPES = {".css": "text/css", ".js": "text/javascript"}
LOCAL = ("127.0.0.1", "localhost", "[::1]")
THREADS = 4  # requests that are answered at the same time
DECODERS = 2  # pictures that are read and made small at the same time
MAX_PX = 4096
PATIENCE_S = 0.5  # how long the background waits for requests between two row groups


@dataclass(slots=True)
class Work:
    """What goes on beside the requests: catalogues are filled, datasets compared. Requests go first."""

    tasks: Sequence[Callable[[Callable[[], bool]], None]]
    _stop: threading.Event = field(default_factory=threading.Event)
    _requests: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="catalogue", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def wait(self) -> None:
        """Until all is done."""
        if self._thread is not None:
            self._thread.join()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """While a request is answered."""
        with self._changed:
            self._requests += 1
        try:
            yield
        finally:
            with self._changed:
                self._requests -= 1
                self._changed.notify_all()

    def _pause(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._requests == 0, PATIENCE_S)
        return self._stop.is_set()

    def _run(self) -> None:
        for task in self.tasks:
            if not self._stop.is_set():
                task(self._pause)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the server listens. names: of hosts besides its own by which it may be asked for."""

    host: str = "127.0.0.1"
    port: int = 8765
    names: tuple[str, ...] = ()

    def serves(self, host: str) -> bool:
        """Whether a request's Host header names this server.

        A page elsewhere can make a name of its own mean this machine (DNS rebinding), so names are refused that
        nobody gave; an address cannot be made to mean another.
        """
        name, port = _split(host)
        if port != self.port:
            return False
        if name in (*LOCAL, _bracketed(self.host), *(given.lower() for given in self.names)):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self.host in ("0.0.0.0", "::")

    def url(self) -> str:
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, _bracketed(self.host))
        return f"http://{shown}:{self.port}/"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host.lower()


def _split(host: str) -> tuple[str, int]:
    """Name and port of a Host header; without a port it is 80."""
    name, mark, port = host.lower().rpartition(":")
    if not mark or host.endswith("]"):
        return host.lower(), 80
    return name, int(port) if port.isascii() and port.isdigit() and len(port) < 6 else -1


class Viewer:
    """The opened datasets and what is asked of them."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.listings = [Listing(dataset) for dataset in datasets]
        self.comparison: Comparison | None = None
        tasks: list[Callable[[Callable[[], bool]], None]] = [listing.catalog.fill for listing in self.listings]
        if len(self.listings) == 2:
            self.comparison = Comparison(self.listings[0].reader, self.listings[1].reader)
            for side, listing in enumerate(self.listings):
                listing.comparison, listing.side = self.comparison, side
            tasks.append(self.comparison.fill)
        self.work = Work(tasks)
        self._decoders = threading.BoundedSemaphore(DECODERS)

    def datasets(self, request: Request) -> dict[str, Any]:
        return {"datasets": [{"d": d, **listing.about()} for d, listing in enumerate(self.listings)]}

    def rows(self, request: Request) -> dict[str, Any]:
        params = request.query_params
        offset, limit = query.page(params)
        around = query.whole(params, "around") if params.get("around") else None
        return self._listing(request).page(query.filters(params), *query.order(params), offset, limit, around)

    def row(self, request: Request) -> dict[str, Any]:
        d, listing = query.index_of(request.query_params, self.listings), self._listing(request)
        name = query.text(request.query_params, "id")
        number = listing.number_of(name) if name else query.whole(request.query_params, "n")
        sample = listing.reader.sample(number)
        shard = listing.reader.shards[listing.reader.shard_of(number)]["name"]
        base = {"d": d, "n": number, "v": listing.dataset.manifest["version"][:16]}

        def shown(image: Image | None, **more: int) -> Shown:
            return Shown() if image is None else Shown(url=f"/api/picture?{urlencode({**base, **more})}")

        others = [shown(reference.image, r=index) for index, reference in enumerate(sample.references)]
        return rows.card_data(listing.dataset, sample, number, shard, shown(sample.image), others)

    def random(self, request: Request) -> dict[str, Any]:
        return {"number": self._listing(request).draw(query.filters(request.query_params))}

    def quarantine(self, request: Request) -> dict[str, Any]:
        params = request.query_params
        reasons, sources = query.texts(params, "reason"), query.texts(params, "source")
        return self._listing(request).quarantine.page(reasons, sources, *query.page(params))

    def compare(self, request: Request) -> dict[str, Any]:
        comparison = self._comparison()
        return {"ready": comparison.ready, "counts": comparison.counts(), "problems": comparison.problems[:100]}

    def change(self, request: Request) -> dict[str, Any]:
        from dataengine.view.compare import changes

        self._comparison()
        name = query.text(request.query_params, "id")
        numbers: list[int | None] = []
        for listing in self.listings:
            try:
                numbers.append(listing.number_of(name))
            except DatasetError:
                numbers.append(None)
        left, right = numbers
        found: dict[str, Any] = {"fields": [], "objects": []}
        if left is not None and right is not None:
            found = changes(self.listings[0].reader.sample(left), self.listings[1].reader.sample(right))
        elif left is None and right is None:
            raise DatasetError(f"no sample {name!r}")
        return {"left": left, "right": right, **found}

    def picture(self, request: Request) -> tuple[Picture, str]:
        """A picture and its tag, by which a browser asks whether it is still the same."""
        params = request.query_params
        listing = self._listing(request)
        number, reference = query.whole(params, "n"), query.whole(params, "r", -1, low=-1)
        px = query.whole(params, "px", 0, high=MAX_PX)
        with self._decoders:
            image, height, width = listing.reader.picture(number, reference)
            if image is None:
                raise ImageError("no_image", f"row {number} has no picture")
            try:
                found = pictures.load(image, height, width, listing.dataset.folder.uri)
            except OSError as error:
                raise ImageError("image_missing", f"the picture cannot be read: {error.strerror or error}") from None
            return (pictures.small(found, px) if px else found), listing.dataset.manifest["version"][:16]

    def _listing(self, request: Request) -> Listing:
        return self.listings[query.index_of(request.query_params, self.listings)]

    def _comparison(self) -> Comparison:
        if self.comparison is None:
            raise UserError(f"{len(self.listings)} datasets are opened; two are compared")
        return self.comparison


def page_routes(page: str) -> list[Route]:
    """Routes of a page and of the files that pages are made of, which come from a fixed list."""
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    names, keep = static_names(), {"Cache-Control": "no-cache"}

    def index(request: Request) -> Response:
        return Response(bundle.static(page), media_type="text/html", headers=keep)

    def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in names:
            return JSONResponse({"error": "there is no such file"}, 404)
        return Response(bundle.static(name), media_type=names[name], headers=keep)

    return [Route("/", index), Route("/static/{name}", static)]


def nothing_there(request: Request, error: Exception) -> Response:
    """The answer to a path that no route has."""
    from starlette.responses import JSONResponse

    return JSONResponse({"error": "there is nothing of that name"}, 404)


def make_app(datasets: Sequence[Dataset], place: Place | None = None) -> Starlette:
    """The app. Its background work begins and ends with it (`app.state.viewer.work`)."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    viewer = Viewer(datasets)

    def json(answer: Callable[[Request], dict[str, Any]]) -> Callable[[Request], Response]:
        def respond(request: Request) -> Response:
            with viewer.work.request():
                return refusing(lambda: JSONResponse(answer(request), headers={"Cache-Control": "no-store"}))

        return respond

    def picture(request: Request) -> Response:
        def respond() -> Response:
            found, version = viewer.picture(request)
            # the URL of a picture names the version of its dataset, so another dataset's is never shown for it
            fresh = request.query_params.get("v") == version
            keep = "private, max-age=86400, immutable" if fresh else "no-store"
            return Response(found.data, media_type=found.media_type, headers={"Cache-Control": keep})

        with viewer.work.request():
            return refusing(respond)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        import anyio

        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        viewer.work.start()
        yield
        viewer.work.stop()

    answers = (viewer.datasets, viewer.rows, viewer.row, viewer.random, viewer.quarantine, viewer.compare)
    routes = [Route(f"/api/{answer.__name__}", json(answer)) for answer in (*answers, viewer.change)]
    routes += [*page_routes("view.html"), Route("/api/picture", picture)]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: nothing_there})
    app.state.viewer = viewer
    app.add_middleware(Guard, place=place or Place())
    return app


def static_names() -> dict[str, str]:
    """The files that are served, with their media types."""
    found = (entry.name for entry in (files("dataengine.view") / "static").iterdir())
    return {name: TYPES[name[name.rfind(".") :]] for name in sorted(found) if name[name.rfind(".") :] in TYPES}


def refusing(respond: Callable[[], Response]) -> Response:
    """A response, or the reason why there is none, as JSON."""
    from starlette.responses import JSONResponse

    try:
        return respond()
    except ImageError as error:
        status, message = 422, str(error)
    except DatasetError as error:
        status, message = 404, str(error)
    except UserError as error:
        status, message = 400, str(error)
    except FileNotFoundError:
        status, message = 503, "a file of the dataset is gone"
    except OSError as error:
        status, message = 503, f"a file of the dataset cannot be read: {error.strerror or type(error).__name__}"
    except Exception as error:  # what a damaged shard can make of the libraries that read it
        status, message = 500, f"this cannot be read: {type(error).__name__}"
    return JSONResponse({"error": message}, status, headers={"Cache-Control": "no-store"})


class Guard:
    """Refuses requests that are not this machine's browser reading, and adds the headers that keep it to its place.

    writes: paths that are posted JSON to, by pages of this server alone.
    """

    def __init__(self, app: ASGIApp, place: Place, writes: Collection[str] = ()) -> None:
        self._app = app
        self._place = place
        self._writes = frozenset(writes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import JSONResponse

        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # nothing here speaks WebSocket
            return await send({"type": "websocket.close", "code": 1008})

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        refused = self._refusal(scope)
        app: ASGIApp = self._app if refused is None else JSONResponse({"error": refused[1]}, refused[0])
        return await app(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        writes = scope["path"] in self._writes
        if scope["method"] not in (("POST",) if writes else ("GET", "HEAD")):
            return 405, f"only {'POST is' if writes else 'GET and HEAD are'} answered here"
        hosts = [host.decode("latin-1") for host in headers.get(b"host", [])]
        if len(hosts) != 1 or not self._place.serves(hosts[0]):
            return 400, "this server does not answer to that name; --allow-host gives it another"
        if scope["path"] != "/" and headers.get(b"sec-fetch-site", [b"none"])[0] in (b"cross-site", b"same-site"):
            return 403, "pages of other sites are not answered"
        if writes and headers.get(b"origin") != [b"http://" + hosts[0].encode("latin-1")]:
            return 403, "only pages of this server write"  # browsers name the page's own site with every POST
        if writes and headers.get(b"content-type") != [b"application/json"]:
            return 415, "what is written is JSON"  # which no form sends, and no other site without asking first
        return None


def serve(
    uris: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8765,
    names: Sequence[str] = (),
    *,
    say: Callable[[str], None],
) -> None:
    """Serve datasets until the process is interrupted.

    Args:
        port: 0 for a free one. names: of hosts by which it may be asked for besides its own. say: told the URL.
    Raises:
        UserError: a dataset is not finished, or the port is not free.
    """
    malloc.share_between_threads()
    datasets = [open_dataset(uri) for uri in uris]
    with listening(host, port) as listener:
        place = Place(host=host, port=listener.getsockname()[1], names=tuple(names))
        app = make_app(datasets, place)
        say(place.url())
        run_app(app, listener)


def run_app(app: Starlette, listener: socket.socket) -> None:
    """Answer requests until the process is interrupted."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=200,
        timeout_graceful_shutdown=2,
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends in order on Ctrl-C and then raises it again
        uvicorn.Server(config).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """Raises UserError: nothing can listen there."""
    listener = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot listen on {host} port {port}: {reason}; --port 0 takes a free one") from None
    return listener
