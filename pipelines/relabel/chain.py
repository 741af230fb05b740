"""Which filters a relabeling runs, in which order, and their limits: from YAML or `--filters` text, checked here.

The defaults are published ones where there are such; the class of a filter says whose. `PRESETS` are whole chains.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dataengine.errors import UserError
from dataengine.ledger.records import Check, Verdict
from pipelines.relabel.consistency import LOOKS

Number = Annotated[float, Field(allow_inf_nan=False)]
Scope = Literal["concept", "all"]


class FilterError(UserError):
    """A chain of filters that cannot be used; the message names the filter and what was expected."""


class Filter(BaseModel):
    """A filter's limits. A value as good as `accept` is accepted, one worse than `reject` rejected, others reviewed.

    reject: None for the same as `accept`, so that nothing is left for review. missing: the verdict where the filter
    does not apply, because nobody said what it needs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    more_is_better: ClassVar[bool] = True

    accept: Number
    reject: Number | None = None
    missing: Verdict = "accept"

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> Self:
        if self.reject is not None and not self.passes(self.accept, self.reject):
            worse = "above" if self.more_is_better else "below"
            raise ValueError(f"reject ({self.reject:g}) must not lie {worse} accept ({self.accept:g})")
        return self

    def passes(self, value: float, limit: float) -> bool:
        """Whether a value is as good as a limit."""
        return value >= limit if self.more_is_better else value <= limit

    def check(self, value: float | None) -> Check:
        """The verdict on a value, with the limit that it fell short of; what is no number is rejected."""
        reject = self.accept if self.reject is None else self.reject
        if value is None:
            return Check(name=self.name, value=None, limit=None, verdict=self.missing)
        if not math.isfinite(value):
            return Check(name=self.name, value=None, limit=reject, verdict="reject")
        if self.passes(value, self.accept):
            return Check(name=self.name, value=value, limit=self.accept, verdict="accept")
        if self.passes(value, reject):
            return Check(name=self.name, value=value, limit=self.accept, verdict="review")
        return Check(name=self.name, value=value, limit=reject, verdict="reject")


class Confidence(Filter):
    """The labeler's confidence: presence of the concept times match (SAM 3, arXiv 2511.16719: 0.5)."""

    name: ClassVar[str] = "confidence"
    accept: Number = 0.5


class PredictedIoU(Filter):
    """The IoU that the labeler predicts of its mask (SAM's automatic mask generator: 0.88; SAM 2's: 0.8)."""

    name: ClassVar[str] = "predicted_iou"
    accept: Number = 0.88


class Stability(Filter):
    """IoU of the masks above and below the threshold of the logits by 1 (SAM: 0.95; Semantic-SAM: 0.92)."""

    name: ClassVar[str] = "stability"
    accept: Number = 0.95


class MinArea(Filter):
    """Share of the picture that the mask covers, at least (1e-4, ours)."""

    name: ClassVar[str] = "min_area"
    accept: Number = 1e-4


class MaxArea(Filter):
    """Share of the picture that the mask covers, at most (SA-1B drops masks of 95 % and more)."""

    more_is_better: ClassVar[bool] = False
    name: ClassVar[str] = "max_area"
    accept: Number = 0.95


class Components(Filter):
    """Share of the mask in components of less than `pixels`, all but the largest one.

    SA-1B removes components below 100 px (SAM 2's data below 200); the shares are ours: a mask is not changed here.
    """

    more_is_better: ClassVar[bool] = False
    name: ClassVar[str] = "components"
    accept: Number = 0.05
    reject: Number | None = 0.2
    pixels: Annotated[int, Field(ge=1)] = 100


class Holes(Components):
    """Pixels in holes of less than `pixels`, as a share of the mask; see `Components`."""

    name: ClassVar[str] = "holes"


class CropEdge(Filter):
    """Smallest distance in px from a side of the mask's box to that side of its crop.

    Sides within `edge` px of the picture's own do not count (SAM drops masks within 20 px, so that 21 is accepted).
    """

    name: ClassVar[str] = "crop_edge"
    accept: Number = 21
    edge: Annotated[int, Field(ge=0)] = 20


class BoxNMS(Filter):
    """Largest IoU of the box with that of a better mask that stays (SAM: 0.7; detectors, GranD: 0.9).

    scope: better masks of the same concept, or all.
    """

    more_is_better: ClassVar[bool] = False
    name: ClassVar[str] = "box_nms"
    accept: Number = 0.7
    scope: Scope = "concept"


class MaskNMS(BoxNMS):
    """Largest IoU with a better mask that stays (0.8, ours); it spares what lies inside another mask's box."""

    name: ClassVar[str] = "mask_nms"
    accept: Number = 0.8


class IoMNMS(BoxNMS):
    """Largest intersection over the smaller mask with a better one that stays (SAM 3's agent: 0.3)."""

    name: ClassVar[str] = "iom_nms"
    accept: Number = 0.3


class Agreement(Filter):
    """How many other labelers have a mask of the same concept with IoU of boxes and Dice at least these.

    GranD (GLaMM): 0.65 and 0.75, one labeler is needed to be accepted. scope `all`: of any concept.
    """

    name: ClassVar[str] = "agreement"
    accept: Number = 1
    reject: Number | None = 0
    box_iou: Annotated[float, Field(ge=0, le=1)] = 0.65
    dice: Annotated[float, Field(ge=0, le=1)] = 0.75
    scope: Scope = "concept"


def _split(value: object) -> object:
    return tuple(value.split("/")) if isinstance(value, str) else value


class Augmentation(Filter):
    """Smallest IoU with what the labeler says when it is shown the picture changed (0.85 and 0.7, ours)."""

    name: ClassVar[str] = "augmentation"
    accept: Number = 0.85
    reject: Number | None = 0.7
    looks: Annotated[tuple[Literal[LOOKS], ...], Field(min_length=1), BeforeValidator(_split)] = LOOKS  # type: ignore[valid-type]


class Reprompt(Filter):
    """IoU with what the labeler says when it is asked by the mask's deepest pixel (0.8 ours; rejected below 0.5)."""

    name: ClassVar[str] = "reprompt"
    accept: Number = 0.8
    reject: Number | None = 0.5


class Verifier(Filter):
    """The probability that a verifier gives to accepting the mask (SAM 3); calibrate it on a gold set.

    call: the verifier, `module:function`; it is given the pixels, (H, W, 3) uint8, the mask, (H, W) bool, and the text
    of its concept, for each mask that no filter before it rejects.
    """

    name: ClassVar[str] = "verifier"
    accept: Number = 0.9
    reject: Number | None = 0.1
    call: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None = None


class Exhaustivity(Filter):
    """How sure it is that all instances of the concept are found: as a verifier says, or by the other labelers.

    Without a verifier: the share of the other labelers' masks of the concept that have a partner here. It never
    rejects, because a mask is not wrong for another that is missing.
    """

    name: ClassVar[str] = "exhaustivity"
    accept: Number = 0.9
    reject: Number | None = 0
    box_iou: Annotated[float, Field(ge=0, le=1)] = 0.65
    dice: Annotated[float, Field(ge=0, le=1)] = 0.75


class Text(Filter):
    """What is wrong with a phrase, which no category is: 0 nothing, 1 it names a side, 2 it cannot be used.

    It cannot be used with less than `shortest` or more than `longest` characters, with the format's markers or what
    cannot be printed, or where there is a caption and it does not stand there in whole words (GLaMM's loader). Left and
    right are false of a mirrored picture; `sides` says whether that counts.
    """

    more_is_better: ClassVar[bool] = False
    name: ClassVar[str] = "text"
    accept: Number = 0
    reject: Number | None = 1
    shortest: Annotated[int, Field(ge=1)] = 3
    longest: Annotated[int, Field(ge=1)] = 200
    sides: bool = True


KINDS: dict[str, type[Filter]] = {
    kind.name: kind
    for kind in (
        *(Confidence, PredictedIoU, Stability, MinArea, MaxArea, Components, Holes, CropEdge, BoxNMS, MaskNMS, IoMNMS),
        *(Agreement, Augmentation, Reprompt, Verifier, Exhaustivity, Text),
    )
}
PRESETS = {
    "default": "confidence,predicted_iou,stability,min_area,max_area,components,holes,crop_edge,box_nms,agreement,text",
    "thorough": "default,augmentation,reprompt",
    "sam": "predicted_iou,stability,crop_edge,box_nms:scope=all",
    "sam2": "sam,predicted_iou:0.8",
    "semantic-sam": "sam,stability:0.92",
    "grand": "confidence:0.1,box_nms:0.9:scope=all,agreement",
    "sam3": "confidence,iom_nms,exhaustivity",
}


@dataclass(frozen=True, slots=True)
class Chain:
    """The filters, in the order in which they look at a picture's masks; each kind once."""

    filters: tuple[Filter, ...] = ()

    @classmethod
    def parse(cls, value: object = "default", where: str = "filters") -> Chain:
        """The chain of a `--filters` text, or of a list as it stands in YAML.

        Text: items with commas between, each a preset, a filter as `NAME:ACCEPT:REJECT:KEY=VALUE` of which all but the
        name may be left out (`call=module:function` stands last), or
        `-NAME` for none of that name; `none` alone for no filter at all. A filter that is named again takes the place
        of the first. List: such items, or mappings of a name to a number (accept), two (accept, reject), or keys.

        Args:
            where: what the value is of, for messages.
        Raises:
            FilterError: something in it cannot be used.
        """
        found: dict[str, Filter] = {}
        for item in _items(value, where):
            if isinstance(item, str) and item.startswith("-") and item[1:] in found:
                del found[item[1:]]
            elif isinstance(item, str) and item in PRESETS:
                for one in cls.parse(PRESETS[item]).filters:
                    found[one.name] = one
            else:
                one = _filter(item, where)
                found[one.name] = one
        return cls(filters=tuple(found.values()))

    @classmethod
    def load(cls, given: str = "default") -> Chain:
        """The chain of `--filters`: a text as `parse` reads it, or the path of a YAML file that holds a list.

        Raises:
            FilterError: the file cannot be read, or something in it cannot be used.
        """
        if not given.endswith((".yaml", ".yml")):
            return cls.parse(given, "--filters")
        try:
            value = yaml.safe_load(Path(given).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise FilterError(f"{given}: cannot be read: {error}") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise FilterError(f"{given}: not a YAML file: {error}") from None
        return cls.parse(value, given)

    def get(self, name: str) -> Filter | None:
        """The filter of a name, if it is in the chain."""
        return next((one for one in self.filters if one.name == name), None)

    def check_answerable(self, others: bool) -> None:
        """Refuse what a round could not measure. others: whether another labeler has labelled before.

        Raises:
            FilterError: `verifier` has no call, or `exhaustivity` nobody to compare with.
        """
        verifier = self.get("verifier")
        if isinstance(verifier, Verifier) and verifier.call is None:
            raise FilterError("filters: verifier: nobody verifies; give it call=module:function, or leave it out")
        if self.get("exhaustivity") is not None and not others:
            raise FilterError(
                "filters: exhaustivity: no other labeler has labelled this ledger yet, with which it could be "
                "compared; leave it out (-exhaustivity)"
            )

    def with_limits(self, limits: Mapping[str, tuple[float, float | None]]) -> Chain:
        """The same chain with other limits, accept and reject, of some of its filters."""
        unknown = sorted(set(limits) - {one.name for one in self.filters})
        if unknown:
            raise FilterError(f"filters: {unknown[0]} is not in the chain, so that it can have no limits")
        changed = [
            _filter({one.name: one.model_dump() | _pair(limits[one.name])}, "filters") if one.name in limits else one
            for one in self.filters
        ]
        return Chain(filters=tuple(changed))

    def settings(self) -> str:
        """The whole chain as canonical JSON: a list that `parse` reads."""
        filters = [{one.name: one.model_dump(mode="json")} for one in self.filters]
        return json.dumps(filters, sort_keys=True, separators=(",", ":"))


def _pair(limits: tuple[float, float | None]) -> dict[str, float | None]:
    return {"accept": limits[0], "reject": limits[1]}


def _items(value: object, where: str) -> list[object]:
    if isinstance(value, str):
        return [] if value.strip() == "none" else [item.strip() for item in value.split(",")]
    if isinstance(value, Sequence):
        return [part for item in value for part in (_items(item, where) if isinstance(item, str) else [item])]
    raise FilterError(f"{where}: a text or a list of filters is needed, not {value!r:.80}")


def _filter(item: object, where: str) -> Filter:
    """One filter of a chain, from `NAME:…` or a mapping of its name."""
    if isinstance(item, str):
        item, mark, call = item.partition(":call=")
        name, *parts = (part.strip() for part in item.split(":"))
        parts += [f"call={call.strip()}"] if mark else []
        numbers = [part for part in parts if "=" not in part]
        values: dict[str, Any] = dict(zip(("accept", "reject"), numbers, strict=False))
        pairs = [part.split("=", 1) for part in parts if "=" in part]
        values |= {key: given for key, given in pairs}
        if len(numbers) > 2 or len(values) < len(parts):
            raise FilterError(f"{where}: {item!r} has too many limits, or a key twice; NAME:ACCEPT:REJECT:KEY=VALUE")
    elif isinstance(item, Mapping) and len(item) == 1:
        (name, given), *_ = item.items()
        if isinstance(given, Mapping):
            values = {str(key): one for key, one in given.items()}
        elif isinstance(given, Sequence) and not isinstance(given, str) and 0 < len(given) <= 2:
            values = dict(zip(("accept", "reject"), given, strict=False))
        else:
            values = {"accept": given}
    else:
        raise FilterError(f"{where}: {item!r:.80} is no filter; a name, or a mapping of one name, is needed")
    if not isinstance(name, str) or name.removeprefix("-") not in KINDS:
        raise FilterError(
            f"{where}: there is no filter {name!r:.80}; there are {', '.join(KINDS)}, "
            f"and the chains {', '.join(PRESETS)}"
        )
    if name.startswith("-"):
        raise FilterError(f"{where}: {name[1:]} is not in the chain, so that it cannot be taken out")
    if isinstance(values.get("accept"), bool) or isinstance(values.get("reject"), bool):
        raise FilterError(f"{where}: {name}: a limit must be a number, not yes or no")
    kind = KINDS[name]
    if "accept" in values and "reject" not in values and kind.model_fields["reject"].default is not None:
        values["reject"] = _default_reject(kind, values["accept"])
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            problem = f"there is no such key; there are {', '.join(kind.model_fields)}"
        raise FilterError(f"{where}: {name}{f': {key}' if key else ''}: {problem}") from None


def _default_reject(kind: type[Filter], accept: object) -> float | None:
    """The filter's own limit for rejecting, unless the given limit for accepting is laxer than that."""
    default: float = kind.model_fields["reject"].default
    try:
        limit = float(accept)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return default  # the model says what is wrong
    laxer = limit < default if kind.more_is_better else limit > default
    return None if laxer else default
