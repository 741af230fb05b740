"""`gcgseg`: a caption, and a mask for each phrase that it grounds. METEOR, CIDEr, AP50, mIoU and recall."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataengine.errors import ReasonError
from dataengine.metrics import ap, captions
from dataengine.metrics.captions import Absent
from dataengine.metrics.grounded import Grounded, columns
from dataengine.sample import Sample
from dataengine.store.files import Folder
from pipelines.evaluate import scorers
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.predictions import mask_of, score_of, text_of
from pipelines.evaluate.samples import Samples
from pipelines.evaluate.scorers import Rules

MAX_CAPTION = 100_000  # characters
MAX_PHRASES = 10_000  # of one prediction
MAX_PHRASE = 10_000  # characters
MARKERS = re.compile(r"</?p>|<SEG>|\[SEG\]|<region>|<image>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A caption without markers, and its masks in order. phrases: one for each mask; None where some are not named."""

    text: str
    rles: tuple[bytes, ...]
    phrases: tuple[str, ...] | None
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a sample asks, and its ground truth. number: of the sample, among all."""

    number: int
    name: str
    height: int
    width: int
    truth: Caption


class Scorer(scorers.Scorer):
    """See `scorers.Scorer`."""

    def __init__(self, benchmark: Benchmark, rules: Rules) -> None:
        super().__init__()
        self._rules = rules
        self._samples = Samples(benchmark, _asked)
        self._found: dict[int, Caption] = {}

    def _take(self, record: Mapping[str, Any], place: str, folder: Folder | None) -> None:
        asked = self._samples.find(record)
        found = _caption(record, asked.height, asked.width)
        if asked.number in self._found:
            raise ReasonError("duplicate", f"{asked.name}: a second caption")
        self._found[asked.number] = found

    def add_nothing(self, sample_id: str, prompt: str | None) -> None:
        self._samples.find({"sample_id": sample_id})

    def result(self) -> dict[str, Any]:
        """Over all samples; with X-SAM's convention over those for which a mask was found."""
        published = self._rules.convention == "xsam"
        counted = [asked for asked in self._samples if not published or self._rles(asked)]
        scores: dict[str, Any] = {
            **self._texts(counted),
            **self._masks(counted),
        }
        return {
            "backend": scores.pop("backend"),
            "samples": len(self._samples),
            "samples_with_predictions": len(self._found),
            "scores": {"all": scores},
        }

    def _rles(self, asked: Asked) -> tuple[bytes, ...]:
        found = self._found.get(asked.number)
        return found.rles if found else ()

    def _texts(self, counted: Sequence[Asked]) -> dict[str, Any]:
        """METEOR and CIDEr; a sample without a caption has an empty one."""
        said = [captions.tokenize(found.text if (found := self._found.get(a.number)) else "") for a in counted]
        truth = [[captions.tokenize(asked.truth.text)] for asked in counted]
        scores: dict[str, Any] = {}
        for name, metric in (("meteor", captions.meteor), ("cider", captions.cider)):
            made = metric(said, truth)
            scores[name] = None if isinstance(made, Absent) else made.corpus
            if isinstance(made, Absent):
                scores[f"{name}_absent"] = made.reason
        return scores

    def _masks(self, counted: Sequence[Asked]) -> dict[str, Any]:
        """AP50, mIoU and recall."""
        grounded = Grounded()
        for asked in counted:
            found = self._found.get(asked.number)
            grounded.add(
                (asked.number,),
                asked.truth.rles,
                self._rles(asked),
                asked.height,
                asked.width,
                truth_phrases=asked.truth.phrases,
                found_phrases=found.phrases if found else (),
            )
        made = grounded.result("xsam" if self._rules.convention == "xsam" else "all")
        real = columns([asked.truth.rles for asked in counted])
        given = [self._found.get(asked.number) for asked in counted]
        guessed = columns([self._rles(asked) for asked in counted], [one.scores if one else () for one in given])
        precision = ap.average_precision(
            ap.Instances(**real),
            ap.Instances(**guessed),
            {place: (asked.height, asked.width) for place, asked in enumerate(counted)},
            categories=[1],
            backend=self._rules.backend,
        )
        return {
            "ap50": precision.ap50,
            "miou": made.miou,
            "recall": made.recall,
            "similarity": made.similarity,
            "objects": made.objects,
            "samples": made.images,
            "samples_with_predictions": sum(asked.number in self._found for asked in counted),
            "backend": precision.backend,
        }


def _asked(sample: Sample, number: int) -> Asked:
    named: dict[int, str] = {}
    for condition in sample.conditions:
        for place in condition.objects:
            named.setdefault(place, condition.text)
    things = [(place, thing) for place, thing in enumerate(sample.objects) if not thing.crowd]
    return Asked(
        number=number,
        name=sample.sample_id,
        height=sample.height,
        width=sample.width,
        truth=Caption(
            text=_plain(sample.caption or ""),
            rles=tuple(thing.rle for _, thing in things),
            phrases=tuple(named.get(place, "") for place, _ in things),
        ),
    )


def _caption(record: Mapping[str, Any], height: int, width: int) -> Caption:
    """A prediction, checked.

    Raises:
        ReasonError
    """
    text = text_of(record, "caption")
    if len(text) > MAX_CAPTION:
        raise ReasonError("bad_record", f"the caption has {len(text):,} characters; at most {MAX_CAPTION:,} can be")
    listed = record.get("phrases")
    if not isinstance(listed, list) or not all(isinstance(phrase, dict) for phrase in listed):
        raise ReasonError("bad_record", f"phrases must be a list of objects, not {listed!r:.80}")
    if len(listed) > MAX_PHRASES:
        raise ReasonError("bad_record", f"there are {len(listed):,} phrases; at most {MAX_PHRASES:,} can be")
    named = all(phrase.get("text") is not None for phrase in listed)
    return Caption(
        text=_plain(text),
        rles=tuple(mask_of(phrase, height, width) for phrase in listed),
        phrases=tuple(_phrase(phrase) for phrase in listed) if named else None,
        scores=tuple(1.0 if phrase.get("score") is None else score_of(phrase) for phrase in listed),
    )


def _phrase(record: Mapping[str, Any]) -> str:
    text = text_of(record, "text")
    if len(text) > MAX_PHRASE:
        raise ReasonError("bad_record", f"a phrase has {len(text):,} characters; at most {MAX_PHRASE:,} can be")
    return _plain(text)


def _plain(text: str) -> str:
    """Text without markers, and with single blanks."""
    return " ".join(MARKERS.sub(" ", text.encode("utf-8", "replace").decode("utf-8")).split())
