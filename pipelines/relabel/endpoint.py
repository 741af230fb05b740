"""Labelers that are elsewhere: a function of your own, or a server that answers HTTP requests with JSON.

Both answer each picture with masks as `Mask` says. What does not is refused picture by picture, with a reason.
"""

from __future__ import annotations

import base64
import importlib
import io
import ipaddress
import json
import time
from collections.abc import Callable as Function
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dataengine import masks
from dataengine.errors import UserError
from dataengine.ledger.records import Concept, Picture, Proposal
from pipelines.relabel.concepts import Categories, concepts_of, wanted
from pipelines.relabel.labelers import LABELERS, AnswerError, Question, canonical, settings_of

if TYPE_CHECKING:
    from http.client import HTTPConnection

VERSION = "1"
MAX_ANSWER = 64 << 20  # bytes
CHUNK = 1 << 16
RETRY_S = (0.5, 2.0, 8.0)  # between attempts to reach a server
BUSY = (401, 403, 404, 429, 502, 503, 504)  # status of a server that says nothing of the pictures


class Rle(BaseModel):
    """A COCO mask. size: height, width. counts: compressed text, or run lengths."""

    model_config = ConfigDict(extra="forbid", strict=True)

    size: list[int] = Field(min_length=2, max_length=2)
    counts: str | list[int]


class Mask(BaseModel):
    """A mask of an answer. category_id: -1 for a phrase. prompt: any JSON value, of what made it."""

    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

    segmentation: Rle
    text: str
    score: float
    category_id: int = -1
    predicted_iou: float | None = None
    stability: float | None = None
    prompt: Any = None


class PictureAnswer(BaseModel):
    """The answer to one picture: `masks`, or `error`, why there are none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    masks: list[Any] = []
    error: str | None = None


class Answer(BaseModel):
    """The answer to a request: a `PictureAnswer` for each of its pictures, in their order."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]
    pictures: list[PictureAnswer]


def proposals_of(answer: Any, picture: Picture) -> list[Proposal]:
    """The proposals of a list of masks, each a mapping as `Mask`; its segmentation may be an (H, W) bool array.

    Raises:
        AnswerError: `answer_schema`, or a reason of `masks`.
    """
    if not isinstance(answer, list | tuple):
        raise AnswerError("answer_schema", f"a list of masks is needed, not {type(answer).__name__}")
    return [_proposal(one, picture, f"mask {number}") for number, one in enumerate(answer)]


def _proposal(one: Any, picture: Picture, where: str) -> Proposal:
    if not isinstance(one, Mapping):
        raise AnswerError("answer_schema", f"{where}: an object is needed, not {type(one).__name__}")
    values = dict(one)
    raster = values.get("segmentation")
    if isinstance(raster, np.ndarray):
        if raster.dtype != bool or raster.shape != (picture.height, picture.width):
            raise AnswerError("rle_size", f"{where}: a bool array of the picture's size is needed, not {raster.shape}")
        values["segmentation"] = {"size": list(raster.shape), "counts": masks.encode(raster).decode()}
    try:
        mask = Mask.model_validate(values)
        prompt = "" if mask.prompt is None else canonical(mask.prompt)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise AnswerError("answer_schema", f"{where}: {place}: {first['msg']}") from None
    except (TypeError, ValueError) as error:
        raise AnswerError("answer_schema", f"{where}: prompt: {error}") from None
    try:
        rle = masks.code_from_segmentation(mask.segmentation.model_dump(), picture.height, picture.width)
    except masks.MaskError as error:
        raise AnswerError(error.reason, f"{where}: {error}") from None
    return Proposal(
        rle=rle,
        concept=Concept(text=mask.text, category_id=mask.category_id),
        score=mask.score,
        predicted_iou=mask.predicted_iou,
        stability=mask.stability,
        prompt=prompt,
    )


# --- a function ------------------------------------------------------------------------------------------------------


@cache
def function_of(call: str, what: str) -> Function[..., Any]:
    """The function of `module:function`. what: it is for, for messages. Raises UserError where there is none."""
    module, _, name = call.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what}: {call}: {error}") from None
    if not callable(found):
        raise UserError(f"{what}: {call} cannot be called")
    function: Function[..., Any] = found
    return function


def _is_free(name: str) -> str:
    if name in LABELERS:
        raise ValueError(f"{name} is another labeler")
    return name


Name = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$"), AfterValidator(_is_free)]


class CallableSettings(BaseModel):
    """call: `module:function`; it is given pixels, (H, W, 3) uint8, and the categories' names, and returns masks.

    name: what it is called in the ledger, where labelers of one name are one. revision: what tells versions of it
    apart. categories: see `concepts_of`. arguments: further ones, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    call: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    name: Name | None = None
    revision: str = "1"
    categories: Categories | None = None
    arguments: dict[str, Any] = {}


class Callable:
    """See `CallableSettings`."""

    name = "callable"
    needs_pixels = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings_of(CallableSettings, settings, self.name)
        self.name = self._settings.name or self.name
        self._concepts = [] if self._settings.categories is None else concepts_of(self._settings.categories)
        self.asks = tuple(self._concepts)
        told = self._settings.model_dump(exclude={"name", "revision", "categories"})
        self.settings = canonical({**told, "categories": [[c.text, c.category_id] for c in self._concepts]})
        self.revision = f"{VERSION}-{self._settings.revision}"
        self._call: Function[..., Any] | None = None

    def load(self) -> None:
        self._call = function_of(self._settings.call, self.name)

    def label(self, questions: Sequence[Question]) -> list[list[Proposal]]:
        assert self._call is not None
        found = []
        for one in questions:
            names = [concept.text for concept in wanted(self._concepts, one)]
            found.append(proposals_of(self._call(one.pixels, names, **self._settings.arguments), one.picture))
        return found


# --- HTTP ------------------------------------------------------------------------------------------------------------


class HttpSettings(BaseModel):
    """url: that is sent a POST request of JSON: `version`, `categories` and `pictures`, of key, height, width and the
    picture as a base64 PNG; it answers as `Answer` says. Addresses off this machine and its networks need `https`.

    Pictures that lack different categories are sent apart. name, revision: see `CallableSettings`.
    timeout_s: for an answer. max_mb: of one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    name: Name | None = None
    revision: str = "1"
    categories: Categories | None = None
    timeout_s: float = Field(default=120, gt=0)
    max_mb: float = Field(default=MAX_ANSWER / (1 << 20), gt=0, le=1024)


class Http:
    """See `HttpSettings`. Redirects are not followed, and no proxy or password of the environment is used."""

    name = "http"
    needs_pixels = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings_of(HttpSettings, settings, self.name)
        self.name = self._settings.name or self.name
        _check_url(self._settings.url)
        self._concepts = [] if self._settings.categories is None else concepts_of(self._settings.categories)
        self.asks = tuple(self._concepts)
        self.settings = canonical({"categories": [[c.text, c.category_id] for c in self._concepts]})
        self.revision = f"{VERSION}-{self._settings.revision}"

    def load(self) -> None:
        """There is nothing to load; whether the server answers is seen when it is asked."""

    def label(self, questions: Sequence[Question]) -> list[list[Proposal]]:
        together: dict[tuple[Concept, ...], list[int]] = {}
        for place, question in enumerate(questions):
            together.setdefault(tuple(wanted(self._concepts, question)), []).append(place)
        found: list[list[Proposal]] = [[] for _ in questions]
        for concepts, places in together.items():
            if concepts or not self._concepts:
                answers = self._ask([questions[place] for place in places], concepts)
                for place, answer in zip(places, answers, strict=True):
                    found[place] = answer
        return found

    def _ask(self, questions: Sequence[Question], concepts: Sequence[Concept]) -> list[list[Proposal]]:
        asked = {
            "version": 1,
            "categories": [{"name": c.text, "id": c.category_id} for c in concepts],
            "pictures": [_told(question) for question in questions],
        }
        try:
            answer = Answer.model_validate_json(self._post(json.dumps(asked).encode()))
        except ValidationError as error:
            first = error.errors()[0]
            raise AnswerError("answer_schema", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if len(answer.pictures) != len(questions):
            raise AnswerError("answer_schema", f"{len(answer.pictures)} answers to {len(questions)} pictures")
        found = []
        for one, question in zip(answer.pictures, questions, strict=True):
            if one.error is not None:
                raise AnswerError("labeler_refused", one.error)
            found.append(proposals_of(one.masks, question.picture))
        return found

    def _connect(self) -> HTTPConnection:
        """Raises UserError where the server cannot be reached, which is no picture's fault."""
        from http.client import HTTPConnection, HTTPSConnection

        place = urlsplit(self._settings.url)
        kind = HTTPSConnection if place.scheme == "https" else HTTPConnection
        for wait_s in (*RETRY_S, None):
            connection = kind(place.hostname or "", place.port, timeout=self._settings.timeout_s)
            try:
                connection.connect()
                return connection
            except OSError as error:
                if wait_s is None:
                    raise UserError(f"http: {place.netloc} cannot be reached: {error}") from None
                time.sleep(wait_s)
        raise AssertionError

    def _post(self, body: bytes) -> bytes:
        """Raises AnswerError: `http_status`, `http_failed`, `labeler_hangs` or `answer_too_large`."""
        from http.client import HTTPException

        place, limit = urlsplit(self._settings.url), int(self._settings.max_mb * (1 << 20))
        connection = self._connect()
        try:
            target = (place.path or "/") + (f"?{place.query}" if place.query else "")
            connection.request("POST", target, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status in BUSY:
                raise UserError(f"http: {place.netloc} is not at work: it answered with status {response.status}")
            if response.status != 200:
                raise AnswerError("http_status", f"the server answered with status {response.status}")
            data = bytearray()
            while chunk := response.read(CHUNK):
                data += chunk
                if len(data) > limit:
                    raise AnswerError("answer_too_large", f"an answer of more than {limit:,} bytes")
            return bytes(data)
        except TimeoutError:
            raise AnswerError("labeler_hangs", f"no answer within {self._settings.timeout_s:g} s") from None
        except (OSError, HTTPException) as error:
            raise AnswerError("http_failed", f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()


def _told(question: Question) -> dict[str, Any]:
    from PIL import Image

    assert question.pixels is not None
    file = io.BytesIO()
    Image.fromarray(question.pixels).save(file, "PNG", compress_level=1)
    picture = question.picture
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return {"key": picture.key, "height": picture.height, "width": picture.width, "png": data}


def _check_url(url: str) -> None:
    """Raises UserError where a URL is none of HTTP, has a password in it, or would show pictures to everybody."""
    try:
        place = urlsplit(url)
        host, _ = place.hostname or "", place.port
    except ValueError as error:
        raise UserError(f"http: url: {error}") from None
    if place.scheme not in ("http", "https") or not host or place.username or place.password:
        raise UserError("http: url: http://HOST:PORT/PATH or https://… without a name and password is needed")
    if place.scheme == "http" and not _is_near(host):
        raise UserError(f"http: url: {host} is no address of this machine or a private network; use https")


def _is_near(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost"
