"""Checkpoints of tiny models with random weights, written to folders; and pictures to ask them about."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataengine import masks
from dataengine.ledger.records import Concept, Entry, Picture
from pipelines.relabel.labelers import Question

HEIGHT, WIDTH = 48, 64


def sam(folder: Path) -> str:
    import torch
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "global_attn_indexes": [0],
            "window_size": 2,
            "mlp_dim": 16,
            "num_pos_feats": 8,
            "initializer_range": 0.1,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    SamModel(config).save_pretrained(folder)
    return str(folder)


def sam2(folder: Path) -> str:
    import torch
    from transformers import Sam2Config, Sam2Model

    torch.manual_seed(0)
    config = Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [64, 64],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 1, 1],
                "window_size_per_stage": [8, 4, 4, 2],
                "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [4, 4],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    Sam2Model(config).save_pretrained(folder)
    return str(folder)


VIT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "window_size": 2,
    "global_attn_indexes": [1],
    "pretrain_image_size": 28,
}
SAM3_VISION = {
    "backbone_config": {"model_type": "sam3_vit_model", **VIT},
    "fpn_hidden_size": 32,
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
}


def sam3_tracker(folder: Path) -> str:
    import torch
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    torch.manual_seed(0)
    config = Sam3TrackerConfig(
        vision_config={"model_type": "sam3_vision_model", **SAM3_VISION},
        prompt_encoder_config={"hidden_size": 32, "image_size": 56, "patch_size": 14},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    Sam3TrackerModel(config).save_pretrained(folder)
    return str(folder)


def sam3(folder: Path) -> str:
    import torch
    from transformers import Sam3Config, Sam3Model

    from model.words import tiny_tokenizer

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id or tokenizer.pad_token_id or 0
    part = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    config = Sam3Config(
        vision_config=SAM3_VISION,
        text_config={
            "vocab_size": max(tokenizer.get_vocab().values()) + 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "projection_dim": 32,
            "max_position_embeddings": 32,
            "eos_token_id": end,
        },
        geometry_encoder_config={**part, "num_layers": 1},
        detr_encoder_config={**part, "num_layers": 1},
        detr_decoder_config={**part, "num_layers": 2, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    Sam3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def pixels(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def entry(number: int, x: int, y: int, w: int, h: int, **fields) -> Entry:
    """A box of a person's."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    told = {"origin": "human", "annotation_id": str(number), **fields}
    return Entry(
        entry_id=f"e{number}",
        mask_id="m",
        picture="p",
        round=0,
        concept=told.pop("concept", Concept(text="dog", category_id=1)),
        rle=masks.encode(mask),
        bbox=(float(x), float(y), float(w), float(h)),
        area=w * h,
        **told,
    )


def question(known=(), seed: int = 0, **fields) -> Question:
    picture = Picture(key="p", path="p.png", sha256="0" * 64, height=HEIGHT, width=WIDTH, **fields)
    return Question(picture=picture, pixels=pixels(seed), known=tuple(known))
