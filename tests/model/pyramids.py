"""Small segmentation encoders with a pyramid of their own: four stages of strides 4, 8, 16, 32."""

from model.config import Part


def swin(image_px: int, depths: tuple[int, ...] = (1, 1, 1, 1)) -> Part:
    settings = {
        "image_size": image_px,
        "embed_dim": 16,
        "depths": list(depths),
        "num_heads": [2, 2, 4, 4],
        "window_size": 4,
        "drop_path_rate": 0.0,
    }
    return Part(kind="swin", settings=settings)


def hiera(image_px: int) -> Part:
    settings = {
        "hidden_size": 16,
        "image_size": [image_px, image_px],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [4, 4, 2, 2],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    return Part(kind="sam2_hiera_det_model", settings=settings)
