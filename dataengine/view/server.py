"""The viewer's server: an ASGI app over opened datasets. It reads what a page asks for, and keeps no rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataengine.store.dataset import Dataset
from dataengine.view import bundle, pictures, rows
from dataengine.view.rows import Shown

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STATIC = (
    "style.css",
    "card.css",
    "view.css",
    "dom.js",
    "rle.js",
    "look.js",
    "stage.js",
    "talk.js",
    "card.js",
    "view.js",
)


def make_app(datasets: Sequence[Dataset]) -> Starlette:
    """The app."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def index(request: Request) -> Response:
        return Response(bundle.static("view.html"), media_type="text/html", headers={"Content-Security-Policy": POLICY})

    def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return Response("no such file", 404)
        return Response(bundle.static(name), media_type="text/css" if name.endswith(".css") else "text/javascript")

    def row(request: Request) -> Response:
        dataset = datasets[0]
        number = int(request.query_params["n"])
        sample = dataset.pick(number + 1)[number]
        shown = Shown(url=f"/api/picture?d=0&n={number}")
        return JSONResponse(rows.card_data(dataset, sample, number, "", shown, []))

    def picture(request: Request) -> Response:
        number = int(request.query_params["n"])
        sample = datasets[0].pick(number + 1)[number]
        assert sample.image is not None
        found = pictures.load(sample.image, sample.height, sample.width)
        return Response(found.data, media_type=found.media_type)

    routes: list[Any] = [
        Route("/", index),
        Route("/static/{name}", static),
        Route("/api/row", row),
        Route("/api/picture", picture),
    ]
    return Starlette(routes=routes)
