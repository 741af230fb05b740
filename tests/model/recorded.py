"""The recorded whole model, its batches as inputs."""

import torch

from dataengine import masks as rles
from model.config import ConnectorConfig, DecoderConfig, Part, RegionConfig, XSamConfig
from model.inputs import AskedFor, Inputs, Shown, Target
from model.pictures import Picture
from model.words import MarkerIds, Words
from model.xsam import XSam


def recorded_decoder(config: dict) -> DecoderConfig:
    """The recorded sizes of both decoders; the library counts one layer more than there is."""
    decoder = config["segmentor_decoder"]
    return DecoderConfig(
        hidden_dim=decoder["hidden_dim"],
        num_queries=decoder["num_queries"],
        heads=decoder["num_attention_heads"],
        encoder_layers=decoder["encoder_layers"],
        encoder_feedforward=decoder["encoder_feedforward_dim"],
        layers=decoder["decoder_layers"] - 1,
        feedforward=decoder["dim_feedforward"],
        points=decoder["train_num_points"],
    )


def recorded_config(config: dict) -> XSamConfig:
    """The recorded tiny sizes."""
    return XSamConfig(
        name="recorded",
        language=Part(kind="phi3", settings=config["llm"]),
        image_encoder=Part(kind="siglip_vision_model", settings=dict(config["vision"])),
        seg_encoder=Part(kind="sam_vision_model", settings=config["segmentor_encoder"]),
        connector=ConnectorConfig(hidden_dim=16, layers=tuple(config["seg_select_layers"])),
        decoder=recorded_decoder(config),
        region=RegionConfig(points=256),
        image_px=28,
        seg_px=128,
    )


def recorded_model(case) -> XSam:
    """The recorded weights."""
    model = XSam(recorded_config(case.config))
    weights = case.tensors("weights")
    weights.pop("segmentor.shared_image_embedding.positional_embedding")
    model.load_state_dict(weights)
    return model


MARKERS = MarkerIds(seg=61, phrase_open=62, phrase_close=63)


def recorded_inputs(
    task: str, tensors: dict, common: dict, config: dict, *, image_index: int | None = None, has_answer: bool = True
) -> list[Inputs]:
    """The recorded ids, pictures and targets as inputs. image_index: of the picture, by default each has its own."""
    found = []
    for n in range(len(tensors["in.input_ids"])):
        image = n if image_index is None else image_index
        keep = tensors["in.input_ids"][n] != 0
        nothing = torch.full_like(tensors["in.input_ids"][n], -1)
        conds, segs = tensors.get("in.cond_ids"), tensors.get("in.seg_ids")
        words = Words(
            input_ids=tensors["in.input_ids"][n][keep],
            labels=tensors["in.labels"][n][keep],
            cond_ids=(nothing if conds is None else conds[n])[keep],
            seg_ids=(nothing if segs is None else segs[n])[keep],
        )
        seg_pixels = common["in.extra_pixel_values"][image]
        picture = Picture(
            pixel_values=common["in.pixel_values"][image],
            seg_pixel_values=seg_pixels,
            scaled_size=(128, 128),
            size=(128, 128),
        )
        num, referring = words.num_conditions, task in ("refseg",)
        asked = [AskedFor(text="", category_id=-1, seg=k if referring else 0) for k in range(num)]
        labels = tensors.get(f"in.class_labels.{n}", torch.zeros(0, dtype=torch.int64))
        bitmaps = tensors.get(f"in.mask_labels.{n}")
        targets = [
            Target(condition=label, rle=rles.encode(mask.numpy().astype(bool)))
            for label, mask in zip(labels.tolist(), () if bitmaps is None else bitmaps, strict=True)
        ]
        shown = []
        if "swap" in config:  # instances that have a prompt, and which category each `<region>` is
            of_instance = config["swap"]["class_labels"][n]
            wanted = config["swap"]["prompted_labels"][n]
            for k, mask in enumerate(tensors[f"in.vprompt_masks.{n}"]):
                region = wanted.index(of_instance[k])
                shown.append(Shown(mask=mask.bool(), region=region, label=of_instance[k]))
        found.append(
            Inputs(
                task=task,
                words=words,
                picture=picture,
                shown=tuple(shown),
                conditions=tuple(asked),
                targets=tuple(targets),
                has_answer=has_answer,
            )
        )
    return found
