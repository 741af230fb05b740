"""Conversations: every wording of every task gives a sample whose links hold."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace

import numpy as np
import pytest

from dataengine import conversation, masks, tokens
from dataengine.conversation import WORDINGS, render
from dataengine.invariants import check
from dataengine.keyed import keyed
from dataengine.sample import TASKS, Condition, Image, Object, Prompt, Provenance, Sample, Turn

RLE = masks.rle_from_counts([0, 16], 4, 4)
POINT = Prompt(kind="point", profile="strict", version=1, status="ok", points=(1.5, 1.5), parts=(1,))
THING = Object(rle=RLE, bbox=(0, 0, 4, 4), area=16, category_id=1, annotation_id="1", prompts=(POINT,))
PHRASES = (Condition(kind="phrase", text="a dog {spans}", objects=(0,)), Condition(kind="phrase", text="größe 😀"))
REGIONS = tuple(Condition(kind="region", text="dog", objects=(0,), exemplar=0) for _ in range(3))


def facts(task: str) -> Sample:
    return Sample(
        sample_id="s/train/1",
        task=task,
        variant="panoptic" if task == "genseg" else None,
        source="s",
        split="train",
        image=Image(bytes=b"x", path="a.jpg"),
        image_key="s/1",
        height=4,
        width=4,
        objects=(THING,),
        conditions=REGIONS if task in ("vgdseg", "intseg") else PHRASES,
        caption="<p>A dog</p> on <p>grass</p>." if task == "gcgseg" else None,
        provenance=Provenance(file="a.json", record="1", builder="b", version=1, seed=0),
    )


class Fixed:
    """A generator that gives chosen indices."""

    def __init__(self, *indices):
        self.indices = list(indices)

    def integers(self, number):
        return min(self.indices.pop(0), number - 1) if self.indices else 0


@pytest.mark.parametrize("task", WORDINGS)
def test_every_wording_gives_a_valid_sample(task):
    wording = WORDINGS[task]
    assert len(set(wording.questions)) >= 8
    assert len(set(wording.answers)) >= 5
    for question in range(len(wording.questions)):
        for answer in range(len(wording.answers)):
            sample = render(facts(task), Fixed(question, answer))
            check(sample)
            text = "".join(turn.text for turn in sample.turns)
            assert "{variant}" not in text
            assert "{caption}" not in text
            assert sample.turns[0].text.startswith("<image>\n")
            assert [turn.role for turn in sample.turns] == ["user", "assistant"] * (len(sample.turns) // 2)
            assert all(turn.supervised == (turn.role == "assistant") for turn in sample.turns)


def test_regions_of_other_pictures_have_a_wording_of_their_own():
    """It does not count the examples among what is to be found, and leaves room for finding nothing."""
    from dataengine.sample import Reference

    wording = conversation._VISUAL_ELSEWHERE
    assert len(wording.questions) == len(set(wording.questions)) == len(WORDINGS["vgdseg"].questions)
    other = Reference(
        image=Image(bytes=b"x", path="b.jpg"),
        image_key="s/2",
        annotation_id="2",
        category_id=1,
        height=4,
        width=4,
        rle=RLE,
        prompts=(POINT,),
    )
    shown = Condition(kind="region", text="dog", objects=(0,), reference=0)
    given = replace(facts("vgdseg"), conditions=(REGIONS[0], shown), references=(other,))
    for question, text in enumerate(wording.questions):
        sample = render(given, Fixed(question, 0))
        check(sample)
        spans = ", ".join([tokens.REGION_SPAN] * 2)
        assert sample.turns[0].text == "<image>\n" + text.replace("{spans}", spans)
        assert re.search("this (image|picture)", text)


def test_spans_stand_where_the_format_says():
    for task in ("refseg", "grefseg", "reaseg"):
        sample = render(facts(task), keyed(0, task))
        assert [(c.turn, c.seg) for c in sample.conditions] == [(0, 0), (2, 1)]
        assert [turn.text.count("<SEG>") for turn in sample.turns] == [0, 1, 0, 1]
    sample = render(facts("gcgseg"), keyed(0))
    assert {c.turn for c in sample.conditions} == {1}
    sample = render(facts("vgdseg"), keyed(0))
    assert ", ".join([tokens.REGION_SPAN] * 3) in sample.turns[0].text
    assert {(c.turn, c.seg) for c in sample.conditions} == {(0, 0)}


def test_explained_questions_ask_for_their_explanation():
    first, second = facts("reaseg").conditions
    explained = replace(facts("reaseg"), conditions=(first, replace(second, explanation="It is {spans} tall.")))
    plain = render(facts("reaseg"), keyed(0))
    for seed in range(20):
        sample = render(explained, keyed(seed))
        check(sample)
        assert sample.turns[3].text.startswith("It is {spans} tall. ")
        assert "explanation" not in sample.turns[3].text
        assert re.search("why|explain|explanation|reason|justify", sample.turns[2].text, re.I)
        assert [c.explanation for c in sample.conditions] == [None, "It is {spans} tall."]
    assert render(explained, keyed(0)).turns[:2] == plain.turns[:2]


def test_choice_is_seeded_and_spreads():
    drawn = {render(facts("vgdseg"), keyed(n, "s")).turns for n in range(400)}
    assert len(drawn) == len(WORDINGS["vgdseg"].questions) * len(WORDINGS["vgdseg"].answers)
    assert render(facts("vgdseg"), keyed(3)) == render(render(facts("vgdseg"), keyed(9)), keyed(3))


def test_chat_keeps_its_turns_and_every_task_has_a_wording():
    chat = replace(facts("chat"), turns=(Turn(role="user", text="Hello", supervised=False),), conditions=())
    assert render(chat, np.random.default_rng(0)) is chat
    assert set(TASKS) == {*WORDINGS, "chat"}
    assert conversation.VERSION >= 1


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("vgdseg", {"conditions": ()}, "needs a condition"),
        ("gcgseg", {"caption": None}, "needs a caption"),
        ("gcgseg", {"caption": "<p>a</p>"}, "1 spans for 2 conditions"),
    ],
)
def test_missing_facts_are_named(task, changes, message):
    with pytest.raises(ValueError, match=rf"^s/train/1: .*{message}"):
        render(replace(facts(task), **changes), keyed(0))


def test_a_placed_condition_keeps_all_else():
    """Every field but the four that say where it stands, those of later versions too."""
    given = {f.name: index for index, f in enumerate(dataclasses.fields(Condition), start=10)}
    placed = conversation._placed(Condition(**given), 1, 2, 3, 4)
    assert placed == Condition(**(given | {"seg": 1, "turn": 2, "start": 3, "end": 4}))
