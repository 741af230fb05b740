"""The review mode of the viewer: a queue of a ledger's grey zone, and words on it that are saved at once.

Every reviewer goes through the same queue, in their own time; `words` keeps what they say. The ledger itself is only
read: what was said becomes a step of it later.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine import malloc
from dataengine.errors import UserError
from dataengine.images import ImageError
from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Entry, Picture
from dataengine.metrics.agreement import Agreement, Word, agreement, disputed
from dataengine.sample import Image
from dataengine.view import pictures, query, words
from dataengine.view.server import (
    DECODERS,
    MAX_PX,
    Guard,
    Place,
    listening,
    nothing_there,
    page_routes,
    refusing,
    run_app,
)
from dataengine.view.words import Changed, Said, Words

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.datastructures import QueryParams
    from starlette.requests import Request
    from starlette.responses import Response

WRITES = ("/api/word", "/api/undo")
MAX_BODY = 4096  # bytes
MAX_REVIEWERS = 100
MAX_OTHERS = 300  # masks that are shown beside the one in question


class Reviews:
    """A queue, and what reviewers said of it. folder: of their words."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger, self.folder = ledger, folder
        self.view = ledger.view()
        self.queue = [(entry.entry_id, entry.picture) for entry in self.view.grey()]
        self.places = {entry_id: place for place, (entry_id, _) in enumerate(self.queue)}
        self._members: dict[str, list[str]] = {}
        for entry_id, picture in self.queue:
            self._members.setdefault(picture, []).append(entry_id)
        self._pictures = dict(self.queue)  # of masks by their ids, also of those that no longer wait
        self._open: dict[str, Words] = {}
        self._reading = threading.Lock()  # a ledger's files are read by one at a time
        self._opening = threading.Lock()
        self._decoders = threading.BoundedSemaphore(DECODERS)

    def close(self) -> None:
        for opened in self._open.values():
            opened.close()

    def words(self, reviewer: str) -> Words:
        """The words of a reviewer. Raises UserError."""
        words.check_reviewer(reviewer)
        with self._opening:
            if reviewer not in self._open:
                if len(self._open) >= MAX_REVIEWERS:
                    raise UserError(f"there are {MAX_REVIEWERS} reviewers at most")
                self._open[reviewer] = Words(self.folder, reviewer)
            return self._open[reviewer]

    def decided(self, said: Sequence[Said]) -> dict[str, Said]:
        """The last word on each entry; that a picture is bad is a word on all its entries in the queue."""
        found: dict[str, Said] = {}
        for word in said:
            place = self.places.get(word.entry_id)
            if place is None:
                continue  # which is no longer in the queue
            is_all = word.action == "whole_image_bad"
            for entry_id in self._members[self.queue[place][1]] if is_all else (word.entry_id,):
                found[entry_id] = word
        return found

    # --- answers -----------------------------------------------------------------------------------------------------

    def state(self, params: QueryParams) -> dict[str, Any]:
        """How far a reviewer is. next: place of the first mask that nothing was said of; skipped: places; disputed:
        places of masks of which others say something else, as soon as there is no next one."""
        reviewer = query.text(params, "reviewer")
        words.check_reviewer(reviewer)
        if reviewer not in self._open and reviewer not in words.reviewers(self.folder):
            return self._state(reviewer, words.FIRST_SERIAL, ())  # asking makes no file
        return self._state_of(self.words(reviewer))

    def item(self, params: QueryParams) -> dict[str, Any]:
        """One mask of the queue, with its picture and the other masks there."""
        place, picture, entry = self._found(params)
        with self._reading:
            standings = self.view.standings(picture.key)
        others = [
            {"rle": s.entry.rle.decode("ascii"), "text": s.entry.concept.text, "state": s.entry.state}
            for s in standings
            if s.entry.entry_id != entry.entry_id and s.entry.state != "rejected" and not s.is_superseded
        ]
        return {
            "n": place,
            "entry_id": entry.entry_id,
            "rle": entry.rle.decode("ascii"),
            "text": entry.concept.text,
            "area": entry.area,
            "score": entry.score,
            "reason": entry.reason,
            "relation": entry.relation,
            "labeler": None if entry.labeler is None else f"{entry.labeler.name} {entry.labeler.revision}",
            "checks": [
                {"name": c.name, "value": c.value, "limit": c.limit, "verdict": c.verdict} for c in entry.checks
            ],
            "others": others[:MAX_OTHERS],
            "picture": {
                "key": picture.key,
                "height": picture.height,
                "width": picture.width,
                "url": f"/api/picture?n={place}&v={picture.sha256[:16]}",
            },
        }

    def agreement(self, params: QueryParams) -> dict[str, Any]:
        """Figures of all who have words in the folder."""
        return self.figures().as_dict()

    def figures(self) -> Agreement:
        """Of all words, also of those on masks that no longer wait."""
        said = {reviewer: words.read(self.folder, reviewer) for reviewer in words.reviewers(self.folder)}
        pictures = self._located({word.entry_id for each in said.values() for word in each})
        members: dict[str, list[str]] = {}
        for entry_id, key in pictures.items():
            members.setdefault(key, []).append(entry_id)
        found: dict[str, dict[str, Word]] = {}
        for reviewer, each in said.items():
            last: dict[str, Said] = {}
            for word in each:
                is_all = word.action == "whole_image_bad" and word.entry_id in pictures
                last |= dict.fromkeys(members[pictures[word.entry_id]] if is_all else (word.entry_id,), word)
            found[reviewer] = _decisions(last)
        return agreement(found)

    def _located(self, entry_ids: Set[str]) -> dict[str, str]:
        """The pictures of these masks and of the queue's; those that the ledger does not have are left out."""
        with self._reading:
            if missing := entry_ids - self._pictures.keys():
                self._pictures |= {name: place.picture for name, place in self.view.locate(missing).items()}
            return dict(self._pictures)

    def _disputed(self, reviewer: str, mine: Mapping[str, Said]) -> list[int]:
        """Places of the masks that others dispute with a reviewer, by the rule that `collect` has."""
        said = {name: words.read(self.folder, name) for name in words.reviewers(self.folder) if name != reviewer}
        pictures = self._located({word.entry_id for each in said.values() for word in each})
        found = {reviewer: _decisions(mine)}
        for name, each in said.items():
            before = {word.entry_id: word for word in each if word.entry_id in pictures}
            accepted = {entry_id: word for entry_id, word in before.items() if word.action == "accept"}
            found[name] = _decisions(accepted | self.decided(each))
        unsettled = disputed(found, pictures)
        return sorted(self.places[name] for name in found[reviewer] if name in unsettled)

    def picture(self, params: QueryParams) -> tuple[pictures.Picture, str]:
        """A picture and its tag."""
        _, picture, _ = self._found(params)
        px = query.whole(params, "px", 0, high=MAX_PX)
        image = Image(bytes=None, path=picture.path)
        with self._decoders:
            try:
                found = pictures.load(image, picture.height, picture.width, self.ledger.folder.uri)
            except OSError as error:
                raise ImageError("image_missing", f"the picture cannot be read: {error.strerror or error}") from None
            return (pictures.small(found, px) if px else found), picture.sha256[:16]

    def say(self, body: dict[str, Any]) -> dict[str, Any]:
        """A word on a mask of the queue; it is on the disk before this answers."""
        opened = self.words(_text(body, "reviewer"))
        word = words.said_of(body)
        if word.entry_id not in self.places:
            raise UserError("the queue has no such entry")
        opened.say(word, _serial(body))
        return self._state_of(opened)

    def undo(self, body: dict[str, Any]) -> dict[str, Any]:
        """Take back a reviewer's newest word. n: place of the mask that it was on."""
        opened = self.words(_text(body, "reviewer"))
        word = opened.undo(_serial(body))
        return {**self._state_of(opened), "n": self.places.get(word.entry_id)}

    def _state_of(self, opened: Words) -> dict[str, Any]:
        return self._state(opened.reviewer, opened.serial, tuple(opened.standing))

    def _state(self, reviewer: str, serial: int, standing: Sequence[Said]) -> dict[str, Any]:
        said = self.decided(standing)
        order = [entry_id for entry_id, _ in self.queue]
        skipped = [place for place, name in enumerate(order) if name in said and said[name].action == "skip"]
        following = next((place for place, name in enumerate(order) if name not in said), None)
        disputes = self._disputed(reviewer, said) if following is None and said else []
        return {
            "reviewer": reviewer,
            "serial": serial,
            "total": len(order),
            "decided": len(said) - len(skipped),
            "skipped": skipped[:MAX_OTHERS],
            "disputed": disputes[:MAX_OTHERS],
            "next": following,
            "can_undo": bool(standing),
        }

    def _found(self, params: QueryParams) -> tuple[int, Picture, Entry]:
        place = query.whole(params, "n")
        if place >= len(self.queue):
            raise UserError(f"the queue has {len(self.queue)} masks")
        entry_id, key = self.queue[place]
        with self._reading:
            picture = self.ledger.picture(key)
            entry = next(s.entry for s in self.view.standings(key) if s.entry.entry_id == entry_id)
        return place, picture, entry


def _decisions(said: Mapping[str, Said]) -> dict[str, Word]:
    return {entry_id: Word(action=word.action) for entry_id, word in said.items() if word.action != "skip"}


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise UserError(f"{name} is missing")
    return value


def _serial(body: dict[str, Any]) -> int:
    value = body.get("serial")
    if type(value) is not int:
        raise UserError("serial is missing")
    return value


def make_app(reviews: Reviews, place: Place | None = None) -> Starlette:
    """The app of a review; `reviews` is closed by who made it."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    plain = {"Cache-Control": "no-store"}

    def reading(answer: Callable[[QueryParams], dict[str, Any]]) -> Callable[[Request], Response]:
        return lambda request: refusing(lambda: JSONResponse(answer(request.query_params), headers=plain))

    def writing(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            import anyio

            data = b""
            async for part in request.stream():
                data += part
                if len(data) > MAX_BODY:
                    return JSONResponse({"error": f"a word has {MAX_BODY} bytes at most"}, 413, headers=plain)

            def answered() -> Response:
                try:
                    return JSONResponse(answer(_object(data)), headers=plain)
                except Changed as error:
                    return JSONResponse({"error": str(error), "changed": True}, 409, headers=plain)

            return await anyio.to_thread.run_sync(lambda: refusing(answered))

        return respond

    def picture(request: Request) -> Response:
        def respond() -> Response:
            found, tag = reviews.picture(request.query_params)
            keep = "private, max-age=86400, immutable" if request.query_params.get("v") == tag else "no-store"
            return Response(found.data, media_type=found.media_type, headers={"Cache-Control": keep})

        return refusing(respond)

    answers = (reviews.state, reviews.item, reviews.agreement)
    routes = [Route(f"/api/{answer.__name__}", reading(answer)) for answer in answers]
    for path, answer in zip(WRITES, (reviews.say, reviews.undo), strict=True):
        routes.append(Route(path, writing(answer), methods=["POST"]))
    routes += [*page_routes("review.html"), Route("/api/picture", picture)]
    app = Starlette(routes=routes, exception_handlers={404: nothing_there})
    app.add_middleware(Guard, place=place or Place(), writes=WRITES)
    return app


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError("what is written is a JSON object")
    return value


def serve(ledger: str, folder: Path, port: int = 8766, *, say: Callable[[str], None]) -> None:
    """Serve the review of a ledger to browsers of this machine until the process is interrupted.

    Args:
        folder: of the reviewers' words. port: 0 for a free one. say: told the URL.
    Raises:
        UserError: there is no ledger, nothing to review, or the port is not free.
    """
    malloc.share_between_threads()
    reviews = Reviews(Ledger.open(ledger), folder)
    if not reviews.queue:
        raise UserError(f"{ledger}: no mask waits for a review")
    host = Place().host
    with contextlib.closing(reviews), listening(host, port) as listener:
        place = Place(host=host, port=listener.getsockname()[1])
        app = make_app(reviews, place)
        say(place.url())
        run_app(app, listener)
