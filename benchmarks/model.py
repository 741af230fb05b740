"""What a training step of a preset costs, counted on tensors without values: operations of each part, and bytes.

Counted are matrix products and convolutions, a multiplication and an addition as two; of attention the full square,
whatever its mask leaves out. Reading at points (deformable attention, losses) and everything else is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.attention import DeformableAttention
from model.config import PRESETS, XSamConfig
from model.inputs import num_image_tokens
from model.xsam import XSam

BATCH, TEXT, LABELLED = 4, 256, 64
STATE_BYTES = {"weights, bfloat16": 2, "gradients, bfloat16": 2, "AdamW: weights and two moments, float32": 12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one step. forward: operations of each part. parameters: of each part. saved: bytes of the inputs of layers
    that are kept in bfloat16 where everything inside of them is computed again."""

    batch: int
    positions: int
    forward: Mapping[str, int]
    parameters: Mapping[str, int]
    saved: int

    @property
    def step(self) -> int:
        """Forward, and twice as much backward."""
        return 3 * sum(self.forward.values())

    @property
    def step_again(self) -> int:
        """With layers computed again: a second forward."""
        return 4 * sum(self.forward.values())


def count(config: XSamConfig, batch: int = BATCH, text: int = TEXT, labelled: int = LABELLED) -> Cost:
    """The cost of a step with a `<SEG>` in each sample.

    Args:
        text: ids a sample besides its picture; labelled: of those, how many are learned.
    """
    with torch.device("meta"):
        model = XSam(config).to("meta").train()
        dim = model.llm.config.hidden_size
        positions = text + num_image_tokens(config)
        seg_pixels = torch.empty(batch, 3, config.seg_px, config.seg_px)
        pixels = torch.empty(batch, 3, config.image_px, config.image_px)
        embeds, mask = torch.empty(batch, positions, dim), torch.ones(batch, 1, positions, positions, dtype=torch.bool)
        for layer in model.segmentor.pixel_decoder.encoder.layers:
            layer.self_attn.attend = partial(_products, layer.self_attn)
        forward: dict[str, int] = {}

        def counted(name: str, run: Callable[[], Any]) -> Any:
            with FlopCounterMode(display=False) as counter:
                made = run()
            forward[name] = counter.get_total_flops()
            return made

        seen = counted("segmentor.encoder", lambda: model.segmentor.encode(seg_pixels))
        image = counted("visual_encoder", lambda: model.visual_encoder(pixels))
        counted("projectors", lambda: (model.seg_projector(seen.tokens), model.visual_projector(image)))
        states: Tensor = counted(
            "llm",
            lambda: model.llm.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state,
        )
        counted("llm: logits of what is learned", lambda: model.llm.lm_head(states[:, :labelled]))
        seg = counted("llm_projector", lambda: model.llm_projector(states))[:, 0]
        maps = counted("seg_connector", lambda: model.seg_connector(list(seen.levels)))
        features = counted("segmentor.pixel_decoder", lambda: model.segmentor.pixel_decoder(maps))
        counted("segmentor.decoder", lambda: model.segmentor.decoder.decode(features, seg))
    layers = model.llm.config.num_hidden_layers
    tower = model.visual_encoder.vision_model.config
    kept = layers * embeds.numel() + (tower.num_hidden_layers - 1) * image.numel()
    kept += len(model.segmentor.encoder.state_channels) * seen.tokens.numel()
    return Cost(
        batch=batch,
        positions=positions,
        forward=forward,
        parameters=parameters(model),
        saved=2 * kept,
    )


def _products(attention: DeformableAttention, x: Tensor, positions: Tensor, *_: Any) -> Tensor:
    """Deformable attention without reading at points, which this device cannot."""
    attention.sampling_offsets(x + positions)
    attention.attention_weights(x + positions)
    return attention.output_proj(attention.value_proj(x))


def parameters(model: XSam) -> dict[str, int]:
    """Of each part; the segmentor's own parts by themselves."""
    found: dict[str, int] = {}
    for name, weight in model.named_parameters():
        parts = name.split(".")
        key = ".".join(parts[: 2 if parts[0] == "segmentor" else 1])
        found[key] = found.get(key, 0) + weight.numel()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("--preset", default="xsam-phi3-siglip2-saml", choices=PRESETS)
    parser.add_argument("--batch", type=int, default=BATCH)
    arguments = parser.parse_args()
    cost = count(PRESETS[arguments.preset], arguments.batch)
    print(
        f"{arguments.preset}, batch {cost.batch}, {cost.positions:,} positions\n\n| part | TFLOP forward |\n|---|---|"
    )
    for name, operations in cost.forward.items():
        print(f"| {name} | {operations / 1e12:,.3f} |")
    print(f"| a step | {cost.step / 1e12:,.1f} |\n| a step, layers computed again | {cost.step_again / 1e12:,.1f} |\n")
    print("| part | parameters |\n|---|---|")
    for name, number in cost.parameters.items():
        print(f"| {name} | {number:,} |")
    total = sum(cost.parameters.values())
    print(f"| all | {total:,} |\n\n| bytes | GB |\n|---|---|")
    for name, size in STATE_BYTES.items():
        print(f"| {name} | {size * total / 1e9:.1f} |")
    print(f"| inputs of layers | {cost.saved / 1e9:.2f} |")


if __name__ == "__main__":
    main()
