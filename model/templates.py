"""Chat templates as data: what stands around a question and after an answer.

Wording of the reference recipes (X-SAM `xsam/utils/template.py`, which follows xtuner's, and the models' own chat
templates); `plain` is that of the `tiny` preset. No template has a system message, as in all recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataengine.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a language model is spoken to.

    before, after: what stands around a question; the answer follows. suffix: what ends an answer, learned with it.
    separator: what follows the suffix, not learned. has_bos: whether a tokenizer's BOS is used. adds_eos: whether an
    answer ends with the tokenizer's EOS, learned with it, and BOS stands before each question, not only the first.
    """

    before: str
    after: str
    suffix: str = ""
    separator: str = "\n"
    has_bos: bool = True
    adds_eos: bool = False


_CHATML = Template(
    before="<|im_start|>user\n",
    after="<|im_end|>\n<|im_start|>assistant\n",
    suffix="<|im_end|>",
    has_bos=False,
)

TEMPLATES: Mapping[str, Template] = {
    # xtuner PROMPT_TEMPLATE.phi3_chat; microsoft/Phi-3-mini-4k-instruct
    "phi3": Template(before="<|user|>\n", after="<|end|>\n<|assistant|>\n", suffix="<|end|>"),
    # qwen3_instruct of the reference; Qwen/Qwen3-*-Instruct
    "qwen3": _CHATML,
    # qwen3_wothinking of the reference: the empty block with which Qwen3's own template turns thinking off
    "qwen3-no-thinking": Template(
        before=_CHATML.before,
        after=f"{_CHATML.after}<think>\n\n</think>\n\n",
        suffix=_CHATML.suffix,
        has_bos=False,
    ),
    # xtuner PROMPT_TEMPLATE.vicuna; lmsys/vicuna-7b-v1.5
    "vicuna": Template(before="USER: ", after=" ASSISTANT:", adds_eos=True),
    "plain": Template(before="<|user|>", after="<|assistant|>", suffix="<|end|>", separator=""),
}


def template(name: str) -> Template:
    """A template by name.

    Raises:
        UserError: lists the names there are.
    """
    if name not in TEMPLATES:
        raise UserError(f"no chat template {name!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
