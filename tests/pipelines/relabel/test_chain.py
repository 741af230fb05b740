import json
import pickle

import pytest

from pipelines.relabel.chain import KINDS, PRESETS, Chain, FilterError

PUBLISHED = {
    "confidence": 0.5,
    "predicted_iou": 0.88,
    "stability": 0.95,
    "min_area": 1e-4,
    "max_area": 0.95,
    "box_nms": 0.7,
    "iom_nms": 0.3,
    "agreement": 1,
    "augmentation": 0.85,
    "reprompt": 0.8,
}


def test_defaults_are_the_published_ones():
    chain = Chain.parse(",".join(KINDS))
    assert {one.name: one.accept for one in chain.filters if one.name in PUBLISHED} == PUBLISHED
    assert chain.get("components").pixels == chain.get("holes").pixels == 100
    assert chain.get("crop_edge").edge == 20
    assert (chain.get("agreement").box_iou, chain.get("agreement").dice) == (0.65, 0.75)
    assert chain.get("augmentation").reject == 0.7
    assert chain.get("augmentation").looks == ("hflip", "scale-0.75", "scale-1.25", "jitter")
    assert Chain.parse("sam2").get("predicted_iou").accept == 0.8
    assert Chain.parse("semantic-sam").get("stability").accept == 0.92
    assert Chain.parse("grand").get("box_nms").accept == 0.9


def test_text_changes_a_preset_in_place():
    chain = Chain.parse("default, confidence:0.6:0.4, -holes, agreement:missing=review, mask_nms:scope=all")
    names = [one.name for one in Chain.parse("default").filters]
    names.remove("holes")
    assert [one.name for one in chain.filters] == [*names, "mask_nms"]
    assert (chain.get("confidence").accept, chain.get("confidence").reject) == (0.6, 0.4)
    assert chain.get("agreement").missing == "review"
    assert chain.get("mask_nms").scope == "all"


def test_yaml_and_text_say_the_same():
    text = Chain.parse("sam,confidence:0.6:0.4,agreement:2:dice=0.8,stability:0.9")
    listed = ["sam", {"confidence": [0.6, 0.4]}, {"agreement": {"accept": 2, "dice": 0.8}}, {"stability": 0.9}]
    assert Chain.parse(listed) == text


def test_a_file_holds_a_list(tmp_path):
    path = tmp_path / "filters.yaml"
    path.write_text("- default\n- confidence: 0.6\n- agreement: {missing: review}\n- -holes\n")
    assert Chain.load(str(path)) == Chain.parse("default,confidence:0.6,agreement:missing=review,-holes")
    assert Chain.load("sam2") == Chain.parse("sam2")
    for text, message in [
        ("- confidence: [", "not a YAML file"),
        ("a: 1", "a text or a list"),
        ("- x", "no filter 'x'"),
    ]:
        path.write_text(text)
        with pytest.raises(FilterError, match=message) as caught:
            Chain.load(str(path))
        assert str(path) in str(caught.value)
    with pytest.raises(FilterError, match="cannot be read"):
        Chain.load(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("name", [*PRESETS, "none"])
def test_settings_are_read_back(name):
    chain = Chain.parse(name)
    assert Chain.parse(json.loads(chain.settings())) == chain
    assert pickle.loads(pickle.dumps(chain)) == chain
    assert (len(chain.filters) == 0) == (name == "none")


def test_a_limit_laxer_than_the_default_for_rejecting_takes_its_place():
    assert Chain.parse("augmentation:0.6").get("augmentation").reject is None
    assert Chain.parse("augmentation:0.8").get("augmentation").reject == 0.7
    assert Chain.parse("components:0.5").get("components").reject is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("confidenc", "there is no filter 'confidenc'; there are confidence,", id="name"),
        pytest.param("", "there is no filter ''", id="nothing"),
        pytest.param("confidence:0.4:0.5", r"confidence: reject \(0.5\) must not lie above accept \(0.4\)", id="order"),
        pytest.param(
            "max_area:0.9:0.8", r"max_area: reject \(0.8\) must not lie below accept", id="order, less is better"
        ),
        pytest.param("confidence:high", "confidence: accept: Input should be a valid number", id="no number"),
        pytest.param("confidence:nan", "confidence: accept: Input should be a finite number", id="NaN"),
        pytest.param("confidence:1:1:1", "too many limits", id="three limits"),
        pytest.param("agreement:dice=1:dice=0.5", "a key twice", id="key twice"),
        pytest.param("confidence:dice=1", "confidence: dice: there is no such key; there are accept", id="key"),
        pytest.param("-confidence", "confidence is not in the chain", id="nothing to take out"),
        pytest.param("augmentation:looks=up", "augmentation: looks.0: Input should be 'hflip'", id="look"),
        pytest.param([{"confidence": True}], "confidence: a limit must be a number, not yes", id="YAML's yes"),
        pytest.param([{"confidence": 1, "stability": 1}], "is no filter; a name, or a mapping of one", id="two in one"),
        pytest.param([["confidence"]], "is no filter", id="nested"),
        pytest.param({"confidence": 1}, "a text or a list of filters is needed", id="mapping"),
    ],
)
def test_what_is_no_chain_is_refused(value, message):
    with pytest.raises(FilterError, match=message) as caught:
        Chain.parse(value, "loop.yaml: filters")
    assert str(caught.value).startswith("loop.yaml: filters: ")


@pytest.mark.parametrize(
    ("text", "value", "verdict", "limit"),
    [
        ("confidence:0.6:0.4", 0.6, "accept", 0.6),
        ("confidence:0.6:0.4", 0.59, "review", 0.6),
        ("confidence:0.6:0.4", 0.4, "review", 0.6),
        ("confidence:0.6:0.4", 0.39, "reject", 0.4),
        ("confidence:0.6", 0.59, "reject", 0.6),
        ("components:0.1:0.3", 0.1, "accept", 0.1),
        ("components:0.1:0.3", 0.3, "review", 0.1),
        ("components:0.1:0.3", 0.31, "reject", 0.3),
        ("confidence", None, "accept", None),
        ("confidence:missing=review", None, "review", None),
        ("components:0.1:0.3", float("nan"), "reject", 0.3),
    ],
)
def test_two_limits_make_three_verdicts(text, value, verdict, limit):
    check = Chain.parse(text).filters[0].check(value)
    assert (check.verdict, check.limit) == (verdict, limit)
    assert check.value == value or (value != value and check.value is None)
