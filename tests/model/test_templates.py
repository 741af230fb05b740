import json

import pytest

from dataengine.errors import UserError
from model.config import PRESETS
from model.templates import TEMPLATES, template


@pytest.mark.parametrize(("name", "recorded"), [("phi3", "phi3_chat"), ("vicuna", "vicuna")])
def test_templates_are_those_of_the_reference(fixtures, name, recorded):
    stated = json.loads((fixtures / "golden/encode/constants.json").read_text())[recorded]
    ours = template(name)
    assert ours.before + "{input}" + ours.after == stated["INSTRUCTION"]
    assert (ours.suffix, ours.separator) == (stated.get("SUFFIX", ""), stated["SEP"])
    assert ours.adds_eos == (not stated.get("SUFFIX_AS_EOS", False))


def test_qwen_is_spoken_to_in_chatml():
    ours = template("qwen3")
    assert f"{ours.before}Hello{ours.after}Hi{ours.suffix}{ours.separator}" == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
    )
    assert template("qwen3-no-thinking").after == ours.after + "<think>\n\n</think>\n\n"


def test_an_unknown_template_is_named_with_those_there_are():
    with pytest.raises(UserError, match=r"'phi4'.*phi3, qwen3"):
        template("phi4")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_templates_there_are(name):
    assert PRESETS[name].template in TEMPLATES
