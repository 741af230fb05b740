"""The bundled X-SAM, of random weights, as a labeler: what it is asked, and that its answers are the model's own."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from dataengine import invariants, masks
from dataengine.errors import UserError
from dataengine.ledger.records import Concept, Picture
from pipelines.relabel import consistency, filters, labelers
from pipelines.relabel.chain import Chain
from pipelines.relabel.filters import Evidence
from pipelines.relabel.labelers import AnswerError, Question, Spec
from pipelines.relabel.rounds import look_again, prompted
from pipelines.relabel.views import VIEWS, joined
from tests.pipelines.relabel import models
from tests.pipelines.relabel.models import HEIGHT, WIDTH

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


DOG, CAT = Concept(text="dog", category_id=1), Concept(text="cat", category_id=2)
BOTH = {"dog": 1, "cat": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from model import predicting, words
    from model.config import preset
    from model.xsam import XSam

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("xsam")
    predicting.save(folder, XSam(preset("tiny")), words.tiny_tokenizer())
    yield str(folder)
    torch.set_num_threads(threads)


@pytest.fixture
def question(tmp_path):
    """Makes a question about a picture that is a file."""

    def make(known=(), name="a.png", **fields) -> Question:
        file = tmp_path / name
        Image.fromarray(models.pixels()).save(file)
        digest = sha256(file.read_bytes()).hexdigest()
        picture = Picture(key=name, path=str(file), sha256=digest, height=HEIGHT, width=WIDTH, **fields)
        return Question(picture=picture, pixels=models.pixels(), known=tuple(known))

    return make


@pytest.fixture
def loaded(checkpoint):
    def make(**settings):
        made = labelers.make(Spec(name="xsam", settings={"model": checkpoint, **settings}))
        made.load()
        return made

    return make


KNOWN = [models.entry(1, 8, 8, 20, 20, concept=DOG), models.entry(2, 30, 20, 16, 16, concept=DOG)]


def test_categories_by_name(loaded, question):
    made = loaded(categories=BOTH, min_score=0.0)
    assert made.asks == (DOG, CAT)
    one = question()
    (found,) = made.label([one])
    assert labelers.check(found, one.picture)
    assert {p.concept for p in found} <= {DOG, CAT}
    (sample,) = made._samples(one)
    own = made._predictor.predictions([sample], thresholds=made._thresholds())
    assert [(m.rle, m.score) for m in next(iter(own))[1].masks] == [(p.rle, p.score) for p in found]
    assert made.label([one, one]) == [found, found] or len(found)  # in a batch floats may differ in the last bit


def test_views_are_joined(loaded, question):
    one = question()
    single, made = loaded(categories=BOTH, min_score=0.0), loaded(categories=BOTH, min_score=0.0, views=2)
    mirrored = replace(one, pixels=np.ascontiguousarray(one.pixels[:, ::-1]))
    answers = [single.label([asked])[0] for asked in (one, mirrored)]
    (found,) = made.label([one])
    assert found == joined(answers, VIEWS[:2], one.picture)
    assert labelers.check(found, one.picture)
    assert made.settings != single.settings


def test_what_a_picture_lacks_is_not_asked_for(loaded, question):
    made = loaded(categories=BOTH, per_question=1)
    asked = [sample.conditions[0].text for sample in made._samples(question())]
    assert asked == ["dog", "cat"]
    assert [sample.conditions[0].text for sample in made._samples(question(absent=(1,)))] == ["cat"]
    assert made.label([question(absent=(1, 2))]) == [[]]


def test_exemplars_of_the_picture_itself(loaded, question):
    made = loaded(task="vgd", categories=BOTH, min_score=0.0)
    assert not made.asks
    one = question(KNOWN)
    (sample,) = made._samples(one)
    invariants.check(sample)
    (condition,) = sample.conditions  # of no cat there is an exemplar
    assert (condition.kind, condition.text, condition.objects) == ("region", "dog", (0, 1))
    assert sample.objects[condition.exemplar].prompts[0].kind == "mask"
    (found,) = made.label([one])
    assert {p.concept for p in found} <= {DOG}
    assert labelers.check(found, one.picture)
    assert made.label([question()]) == [[]]


@pytest.fixture
def exemplars(tmp_path):
    """A COCO file of one picture with a dog."""
    folder = tmp_path / "exemplars"
    folder.mkdir()
    Image.fromarray(models.pixels(1)).save(folder / "e.png")
    document = {
        "images": [{"id": 3, "file_name": "e.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {"id": 9, "image_id": 3, "category_id": 1, "iscrowd": 0, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]},
            {"id": 10, "image_id": 3, "category_id": 2, "iscrowd": 1, "segmentation": {"size": [1, 1], "counts": [1]}},
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    file = folder / "exemplars.json"
    file.write_text(json.dumps(document))
    return {"exemplars": str(file), "pictures": str(folder), "categories": str(file)}


@pytest.mark.parametrize("kind", ["point", "scribble", "box", "mask"])
def test_exemplars_of_another_picture(loaded, question, exemplars, kind):
    made = loaded(task="vgd", kind=kind, min_score=0.0, **exemplars)
    one = question()
    (sample,) = made._samples(one)
    invariants.check(sample)
    assert [c.text for c in sample.conditions] == ["dog"]
    (reference,) = sample.references
    assert (reference.annotation_id, reference.prompts[0].kind) == ("9", kind)
    assert masks.area(reference.rle, HEIGHT, WIDTH) == 400
    (found,) = made.label([one])
    assert labelers.check(found, one.picture)
    assert {p.concept for p in found} <= {DOG}


def test_names_without_ids_have_exemplars(loaded, question, exemplars):
    own = loaded(task="vgd", categories=["dog", "cat"])
    (sample,) = own._samples(question(KNOWN))
    assert [(c.text, c.category_id, c.objects) for c in sample.conditions] == [("dog", -1, (0, 1))]
    invariants.check(sample)
    made = loaded(task="vgd", **{**exemplars, "categories": ["cat", "dog"]})
    (sample,) = made._samples(question())
    assert [(c.text, c.category_id) for c in sample.conditions] == [("dog", -1)]
    assert [r.annotation_id for r in sample.references] == ["9"]
    with pytest.raises(UserError, match="none of the categories has an object"):
        loaded(task="vgd", **{**exemplars, "categories": ["bird", "cat"]})


def test_an_exemplar_outside_its_folder_is_refused(loaded, question, exemplars, tmp_path):
    document = json.loads((tmp_path / "exemplars" / "exemplars.json").read_text())
    document["images"][0]["file_name"] = "../a.png"
    (tmp_path / "exemplars" / "exemplars.json").write_text(json.dumps(document))
    with pytest.raises(AnswerError, match="leaves the folder"):
        loaded(task="vgd", **exemplars).label([question()])


def test_phrases_have_a_mask_each(loaded, question, tmp_path):
    file = tmp_path / "phrases.json"
    file.write_text(json.dumps({"a.png": ["the left one", "what is red"]}))
    made = loaded(task="refer", phrases=str(file))
    one = question()
    (found,) = made.label([one])
    assert [p.concept.text for p in found] == ["the left one", "what is red"]
    assert labelers.check(found, one.picture)
    own = made._predictor.ask(one.pixels, "Segment <p>the left one</p>.", answer="<SEG>")
    assert (own.height, own.width) == (HEIGHT, WIDTH)
    assert made.label([question(name="b.png")]) == [[]]
    phrases = [models.entry(1, 8, 8, 20, 20, concept=Concept(text="my dog")), *KNOWN]
    (again,) = loaded(task="refer").label([question(phrases)])
    assert [p.concept for p in again] == [Concept(text="my dog")]


def test_what_the_model_says_itself(loaded, question, monkeypatch):
    made = loaded(task="gcg")
    assert isinstance(made.label([question()])[0], list)  # random weights say what they please
    answer = "<p>a dog</p> and <p>a red ball</p> <SEG>"
    ids = iter(made._predictor.tokenizer.encode(f"{answer}<|end|>", add_special_tokens=False))
    generate = made._predictor.model.generate
    says = lambda *a, **k: generate(*a, **k, choose=lambda logits: torch.tensor([next(ids)] * len(logits)))  # noqa: E731
    monkeypatch.setattr(made._predictor.model, "generate", says)
    (found,) = made.label([question()])
    assert {p.concept.text for p in found} <= {"a dog", "a red ball"}
    assert found
    assert all(json.loads(p.prompt)["caption"] == answer for p in found)
    labelers.check(found, question().picture)


def test_what_it_is_depends_on_its_files(checkpoint, exemplars, tmp_path):
    settings = {"model": checkpoint, "task": "vgd", **exemplars}
    before = labelers.record_of(labelers.make(Spec(name="xsam", settings=settings)))
    assert str(tmp_path) not in before.settings
    with open(exemplars["exemplars"], "a") as file:
        file.write("\n")
    after = labelers.record_of(labelers.make(Spec(name="xsam", settings=settings)))
    assert replace(after, settings="") == replace(before, settings="")
    assert after.settings != before.settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "/no/where"}, "no checkpoint folder"),
        ({}, "needs categories"),
        ({"task": "refer", "categories": ["dog"]}, "takes no categories"),
        ({"categories": []}, "there is none"),
        ({"categories": ["dog", "dog"]}, "stands for two"),
        ({"categories": "/no/file.json"}, "No such file"),
        ({"categories": ["dog"], "exemplars": "a.json"}, "of task vgd"),
        ({"categories": ["dog"], "phrases": "a.json"}, "phrases are for task refer"),
        ({"categories": ["dog"], "kind": "line"}, "kind"),
        ({"categories": ["dog"], "task": "vgd", "views": 2}, "left is right"),
        ({"categories": ["dog"], "views": 3}, "views"),
    ],
)
def test_settings_that_cannot_be(checkpoint, settings, said):
    with pytest.raises(UserError, match=said):
        labelers.make(Spec(name="xsam", settings={"model": checkpoint, **settings}))


class Bright:
    """A predictor that finds what is bright in the picture it is given."""

    def __init__(self):
        self.seen = []

    def predictions(self, samples, **options):
        from model.pictures import open_picture
        from model.predictions import Mask, Prediction

        for sample in samples:
            invariants.check(sample)
            pixels = np.asarray(open_picture(sample.image.bytes))
            self.seen.append(pixels)
            code = masks.encode(pixels[..., 0] > 127)
            found = Mask(condition=0, category_id=-1, text="", rle=code, score=0.9)
            told = {"height": sample.height, "width": sample.width, "variant": sample.variant}
            yield sample, Prediction(task=sample.task, prompt=options["kind"], masks=(found,), text="", **told)


@pytest.mark.parametrize(
    "settings", [{"categories": {"dog": 1}}, {"task": "vgd", "categories": {"dog": 1}}, {"task": "refer"}]
)
def test_what_is_seen_in_a_changed_picture_is_the_changed_picture(loaded, question, settings):
    made = loaded(**settings)
    made._predictor = Bright()
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[8:28, 8:28] = 255
    known = [models.entry(1, 8, 8, 20, 20, concept=DOG)]
    known += [models.entry(2, 8, 8, 20, 20, concept=Concept(text="dog on the left"))]
    one = replace(question(known), pixels=pixels)
    (found,) = made.label([one])
    again = consistency.by_concepts(partial(look_again, made, one))
    chain = Chain.parse("augmentation:looks=hflip/scale-0.75/scale-1.25")
    [(_, (check,))] = filters.apply(found, one.picture, chain, Evidence(again=again))
    assert check.value == 1
    seen = made._predictor.seen
    np.testing.assert_array_equal(seen[0], pixels)
    np.testing.assert_array_equal(seen[1], pixels[:, ::-1])
    assert [one.shape[:2] for one in seen] == [(48, 64), (48, 64), (36, 48), (60, 80)]


def test_pixels_are_not_changed(loaded, question):
    one = question()
    before = one.pixels.copy()
    loaded(categories=BOTH).label([one])
    np.testing.assert_array_equal(one.pixels, before)


def test_a_prompt_is_answered_by_the_mask_that_it_is_on(loaded, monkeypatch):
    """Of a point the surest mask that holds it, of a box the one with the nearest box; nothing where there is none."""
    from model.predictions import Mask, Prediction

    made = loaded(categories=BOTH, min_score=0.0)
    codes = []
    for x, y, w, h in ((4, 4, 20, 20), (8, 8, 8, 8), (40, 30, 10, 10)):
        raster = np.zeros((HEIGHT, WIDTH), bool)
        raster[y : y + h, x : x + w] = True
        codes.append(masks.encode(raster))
    scores, asked = (0.5, 0.9, 0.7), []

    def predictions(samples, **options):
        for sample in samples:
            invariants.check(sample)
            (thing,) = sample.objects
            asked.append((options["kind"], thing.prompts[0].kind, thing.prompts[0].points))
            there = tuple(
                Mask(condition=0, category_id=-1, text="", rle=code, score=score)
                for code, score in zip(codes, scores, strict=True)
            )
            yield sample, Prediction(task="vgdseg", prompt=options["kind"], masks=there, height=HEIGHT, width=WIDTH)

    monkeypatch.setattr(made._predictor, "predictions", predictions)
    empty = masks.encode(np.zeros((HEIGHT, WIDTH), bool))
    points = np.array([[10.5, 10.5], [5.5, 5.5], [45.5, 35.5], [60.5, 2.5]])
    assert made.prompted(models.pixels(), points=points) == [codes[1], codes[0], codes[2], empty]
    boxes = np.array([[5.0, 5.0, 25.0, 25.0], [8.0, 8.0, 17.0, 16.0], [55.0, 1.0, 60.0, 6.0]])
    assert made.prompted(models.pixels(), boxes=boxes) == [codes[0], codes[1], empty]
    assert asked[0] == ("point", "point", (10.5, 10.5))
    assert asked[4] == ("box", "box", (5.0, 5.0, 25.0, 25.0))


def test_the_model_is_asked_by_points_and_boxes(loaded, question):
    made = loaded(categories=BOTH, min_score=0.0)
    one = question()
    (found,) = made.label([one])
    again = consistency.by_concepts(partial(look_again, made, one), partial(prompted, made, one.pixels))
    checked = filters.apply(
        found[:3], one.picture, Chain.parse("reprompt,augmentation:looks=jitter"), Evidence(again=again)
    )
    assert checked
    assert all(0 <= check.value <= 1 for _, checks in checked for check in checks)
    before = one.pixels.copy()
    assert len(made.prompted(one.pixels, points=np.array([[3.0, 3.0]]))) == 1
    np.testing.assert_array_equal(one.pixels, before)
