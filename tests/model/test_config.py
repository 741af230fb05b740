import json
import subprocess
import sys

import pytest

from dataengine.errors import UserError
from model.config import PRESETS, DecoderConfig, Part, from_json, hub_config, preset, stage1, to_json


@pytest.mark.parametrize("name", PRESETS)
def test_json_keeps_every_preset(name):
    assert from_json(to_json(PRESETS[name])) == PRESETS[name]
    assert from_json(to_json(stage1(PRESETS[name]))) == stage1(PRESETS[name])


@pytest.mark.parametrize("name", PRESETS)
def test_the_library_takes_every_part(name):
    pytest.importorskip("transformers")
    config = PRESETS[name]
    for part in (config.language, config.image_encoder, config.seg_encoder):
        assert hub_config(part).model_type == part.kind


def test_text_length_is_what_pictures_leave_of_the_context():
    # the recipe's rule: context - (384 / 14)² - 1024, cut to an integer
    assert PRESETS["xsam-phi3-siglip2-saml"].max_length == 2319
    assert PRESETS["xsam-qwen3-1.7b"].max_length == 39183


def test_segmentation_encoder_trains_from_scratch():
    # the library's own default is 1e-10
    assert {config.seg_encoder.settings["initializer_range"] for config in PRESETS.values()} == {0.02}


def tiny(**changes) -> str:
    document = json.loads(to_json(PRESETS["tiny"]))
    for path, value in changes.items():
        *folders, last = path.split("__")
        inner = document
        for folder in folders:
            inner = inner[folder]
        inner[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("[", "Invalid JSON", id="no json"),
        pytest.param("[]", "the file", id="no object"),
        pytest.param("{}", "seg_encoder: Field required", id="empty"),
        pytest.param(tiny(colour="red"), "colour: Unexpected", id="unknown field"),
        pytest.param(tiny(decoder__heads=5), "decoder: Value error, decoder: hidden_dim", id="heads do not divide"),
        pytest.param(tiny(decoder__hidden_dim=48), "multiple of 32", id="groups do not divide"),
        pytest.param(tiny(decoder__points=0), "points must be at least 1", id="no points"),
        pytest.param(tiny(decoder__oversample=0.5), "oversample", id="fewer candidates than points"),
        pytest.param(tiny(decoder__no_object=-1), "weights", id="negative weight"),
        pytest.param(tiny(connector__scales=[2, 1]), "connector.scales", id="two levels"),
        pytest.param(tiny(connector__scales=[2, 1, 0]), "scales must lie", id="scale 0"),
        pytest.param(tiny(region__kind="mean"), "region.kind", id="unknown region sampler"),
        pytest.param(tiny(downsample=0), "downsample must lie above 0", id="shuffled to nothing"),
        pytest.param(tiny(language=None), "come together", id="pictures without language"),
        pytest.param(
            tiny(language=None, image_encoder=None), "stage 1 has head 'linear'", id="cosine without language"
        ),
        pytest.param(tiny(tokens=["<p>", "<p>", "</p>"]), "tokens must differ", id="same token twice"),
        pytest.param(tiny(decoder__no_object=0.0), "no_object must be above 0", id="nothing for empty pictures"),
        pytest.param(tiny(decoder__layers=10**9), "at most 1000", id="endless decoder"),
        pytest.param(tiny(language__settings={"num_hidden_layers": 10**9}), "at most 1000", id="endless model"),
        pytest.param(tiny(seg_encoder__settings={"depths": [1, 10**9]}), "at most 1000", id="endless stage"),
        pytest.param(tiny(language__settings={"auto_map": {}}), "not a size", id="code from elsewhere"),
        pytest.param(
            tiny(seg_encoder__settings={"attn_implementation": "a/b"}), "not a size", id="kernel from elsewhere"
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_fields(text, said):
    with pytest.raises(UserError, match=r"some\.json: not the settings") as error:
        from_json(text, "some.json")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "part",
    [Part(kind="no_such_model"), Part(kind="phi3", settings={"vocab_size": "many"})],
    ids=["unknown kind", "wrong type"],
)
def test_a_part_the_library_refuses(part):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=part.kind):
        hub_config(part)


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(UserError, match="xsam-qwen3-4b"):
        preset("xsam")
    assert preset("tiny") is PRESETS["tiny"]


def test_a_decoder_may_have_any_whole_number_of_groups():
    assert DecoderConfig(hidden_dim=96, heads=3).hidden_dim == 96


def test_importing_the_package_loads_no_torch():
    code = "import sys, model; model.PRESETS; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
