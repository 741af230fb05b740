"""The whole X-SAM: pictures and words in, a text and masks out (X-SAM AAAI26_Archive, model/xsam.py).

    seen = model.see(batch)               pictures, once
    read = model.read(batch, seen)        the language model's states
    outputs = model.segment(read, seen)   masks and classes of every row

`loss` and `answer` do all three, `generate` writes the answer first. Attributes are named as in released weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from dataengine.errors import UserError
from model import regions
from model.batches import Assembled, Batch, assemble, region_tokens
from model.config import XSamConfig, hub_config
from model.encoders import ImageEncoder, set_checkpointing
from model.losses import Draws, Targets, Totals, segmentation_losses, total
from model.pictures import normalized
from model.projectors import Connector, Projector
from model.regions import RegionSampler
from model.segmentor import PixelFeatures, Segmentor, SegOutputs
from model.spans import REFERRING, Row, RowVectors, Spans, index_means, plan_rows, row_vectors
from model.words import IGNORED, NONE, MarkerIds, condition_ids, segment_ids

_BACKGROUND_STD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the model makes of a batch's pictures; it serves any number of questions about them.

    image_tokens: (I, V, D), those of the image encoder, then those of the segmentation encoder; None in stage 1.
    region_maps: (J, h, w, D), where prompts look; None in stage 1. levels: hidden states for the connector, each
    (J, H, W, C).
    """

    image_tokens: Tensor | None
    region_maps: Tensor | None
    levels: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What the language model makes of a batch. assembled: its inputs. states: (B, M, D), after the last norm.

    vectors: of the rows to be segmented; None where nothing is.
    """

    assembled: Assembled
    states: Tensor
    vectors: RowVectors | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """loss: what is trained on, the sum of the others. language: mean cross-entropy of the labelled ids, 0 in stage 1.
    segmentation: the sum of `terms`, 0 where nothing is segmented. terms: weighted, see `segmentation_losses`."""

    loss: Tensor
    language: Tensor
    segmentation: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Answers that were generated.

    ids: of each input, (n,) int64, with the stop id if there was one. states: of each prompt and answer,
    (M + n - 1, D): the last id has none. rows: what is segmented, of all inputs; classes are conditions of the question
    by number, or spans of the answer in their order. has_spans: of each input, which of these. vectors, outputs: of
    the rows; None where there are none.
    """

    ids: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    rows: tuple[Row, ...] = ()
    has_spans: tuple[bool, ...] = ()
    vectors: RowVectors | None = None
    outputs: SegOutputs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What one answer asks for. cond_ids, seg_ids: (M + n - 1,) int64, of its states. has_spans: see `Written`."""

    spans: Spans
    cond_ids: Tensor
    seg_ids: Tensor
    has_spans: bool


class XSam(nn.Module):
    """X-SAM with fresh weights; without a language model it is the segmentor that stage 1 trains."""

    def __init__(self, config: XSamConfig) -> None:
        """Raises UserError: a part's kind or settings are wrong, or do not fit the pictures' sizes."""
        super().__init__()
        self.config = config
        self.segmentor = Segmentor(config)
        channels = self.segmentor.encoder.state_channels
        self.seg_connector = Connector(config.connector, [channels[layer] for layer in config.connector.layers])
        self.checkpointing = False
        if config.language is None or config.image_encoder is None:
            return
        self.llm = AutoModelForCausalLM.from_config(hub_config(config.language))
        dim = self.llm.config.hidden_size
        self.visual_encoder = ImageEncoder(config.image_encoder, config.visual_layer)
        if config.image_px != self.visual_encoder.side:
            raise UserError(
                f"image_px is {config.image_px}, but image_size of image_encoder {self.visual_encoder.side}"
            )
        cells = config.seg_px // self.segmentor.encoder.state_strides[config.visual_layer]
        if not (cells * config.downsample).is_integer():
            raise UserError(f"{cells} x {cells} positions of seg_encoder cannot be shuffled by {config.downsample}")
        self.visual_projector = Projector(self.visual_encoder.dim, dim)
        self.seg_projector = Projector(channels[config.visual_layer], dim, config.downsample)
        self.llm_projector = Projector(dim, config.decoder.hidden_dim)
        self.bg_embeds = nn.Embedding(1, config.decoder.hidden_dim)
        nn.init.normal_(self.bg_embeds.weight, std=_BACKGROUND_STD)
        self.vision_sampler = RegionSampler(config.region, dim)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> XSam:
        """As the library moves and casts modules, but what is computed instead of learned, such as rotary frequencies,
        keeps its precision: rounded to bfloat16, positions far out would be others."""
        exact = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name in module._non_persistent_buffers_set and buffer.is_floating_point()
        ]
        super()._apply(fn, recurse)
        for module, name, before in exact:
            after = getattr(module, name)
            if after.dtype != before.dtype:
                setattr(module, name, before.to(after.device))
        return self

    def set_checkpointing(self, on: bool) -> None:
        """In training, layers are computed again in the backward pass instead of stored."""
        self.segmentor.set_checkpointing(on)
        if self.config.language is not None:
            set_checkpointing(self.visual_encoder.vision_model, on)
            set_checkpointing(self.llm, on)

    # --- steps ----------------------------------------------------------------------------------------------------

    def see(self, batch: Batch) -> Seen | None:
        """The pictures of a batch; None where there are none."""
        if batch.seg_pixel_values is None:
            return None
        dtype = next(self.seg_connector.parameters()).dtype
        encoded = self.segmentor.encode(normalized(batch.seg_pixel_values, batch.scaled_sizes).to(dtype))
        if self.config.language is None or batch.pixel_values is None:
            return Seen(image_tokens=None, region_maps=None, levels=encoded.levels)
        seg_tokens = self.seg_projector(encoded.tokens)
        visual_tokens = self.visual_projector(self.visual_encoder(normalized(batch.pixel_values).to(dtype)))
        side = int(encoded.tokens.shape[1] * self.config.downsample)
        return Seen(
            image_tokens=torch.cat([visual_tokens, seg_tokens[: len(visual_tokens)]], 1),
            region_maps=seg_tokens.unflatten(1, (side, -1)),
            levels=encoded.levels,
        )

    def assemble(self, batch: Batch, seen: Seen | None, draws: regions.Draws = regions.FIXED) -> Assembled:
        """The batch as the language model takes it.

        Args:
            draws: of the points under prompts.
        Raises:
            WordsError, RegionError: markers without a picture or a prompt, or the other way round.
        """
        images: list[Tensor | None] = [None] * len(batch.inputs)
        tokens: list[Tensor | None] = [None] * len(batch.inputs)
        if seen is not None and seen.image_tokens is not None and seen.region_maps is not None:
            images = [None if at < 0 else seen.image_tokens[at] for at in batch.images.tolist()]
            sampled = self.vision_sampler(seen.region_maps, batch.region_masks, batch.region_pictures, draws)
            tokens = [found if len(found) else None for found in region_tokens(batch, sampled)]
        embed = self.llm.get_input_embeddings()
        ids = (batch.input_ids, batch.labels, batch.cond_ids, batch.seg_ids, batch.attention_mask)
        return assemble(embed, *ids, images, tokens)

    def read(self, batch: Batch, seen: Seen | None, draws: regions.Draws = regions.FIXED) -> Read:
        """States of a batch whose answers are given, and the vectors of its rows."""
        assembled = self.assemble(batch, seen, draws)
        states = self.llm.base_model(
            inputs_embeds=assembled.embeds,
            attention_mask=assembled.attention_mask.long(),
            position_ids=assembled.position_ids,
            use_cache=False,
        ).last_hidden_state
        vectors = self._vectors(batch.rows, states, assembled.cond_ids, assembled.seg_ids) if batch.rows else None
        return Read(assembled=assembled, states=states, vectors=vectors)

    def segment(self, vectors: RowVectors, seen: Seen, images: Tensor) -> SegOutputs:
        """Masks and classes of rows.

        Args:
            images: (B,), each input's picture, as in `Batch`.
        """
        pictures = images[vectors.samples]
        return self.segmentor(self._features(seen, pictures), vectors.segs, vectors.conditions, vectors.mask)

    def _features(self, seen: Seen, pictures: Tensor) -> PixelFeatures:
        """Pixel features for rows; of pictures that no row is about none are made."""
        wanted, places = pictures.unique(return_inverse=True)
        maps = self.seg_connector([level[wanted] for level in seen.levels])
        return self.segmentor.pixel_decoder(maps).rows(places)

    def _vectors(self, rows: Sequence[Row], states: Tensor, cond_ids: Tensor, seg_ids: Tensor) -> RowVectors:
        projected = self.llm_projector(states)
        return row_vectors(
            rows, index_means(projected, cond_ids), index_means(projected, seg_ids), self.bg_embeds.weight
        )

    # --- what it is asked for -------------------------------------------------------------------------------------

    def forward(
        self,
        batch: Batch,
        points: Draws,
        prompts: regions.Draws = regions.FIXED,
        totals: Totals | None = None,
        touch: bool = False,
    ) -> Losses:
        """The losses of a batch whose answers are given.

        Args:
            points: where the mask losses look. prompts: where region tokens look.
            totals: what sums are divided by where the batch is a part of a step; None: what the batch has itself.
            touch: let the encoders' gradients be 0, not missing, where nothing is learned of the pictures; processes
                that share out the weights must all go the same way back.
        """
        seen = self.see(batch)
        outputs, language = None, torch.zeros((), device=batch.images.device)
        if self.config.language is None:
            if seen is None:
                raise ValueError("stage 1 learns from pictures; the batch has none")
            outputs = self.segmentor(self._features(seen, batch.images))
        else:
            read = self.read(batch, seen, prompts)
            language = self._language_loss(read, totals)
            if read.vectors is not None and seen is not None:
                outputs = self.segment(read.vectors, seen, batch.images)
        terms: dict[str, Tensor] = {}
        if outputs is not None:
            targets = [Targets.of_rles(target.labels, target.rles, target.size) for target in batch.targets]
            terms = segmentation_losses(outputs, targets, self.config.decoder, points, totals)
        if touch and seen is not None:
            states = seen.levels if seen.image_tokens is None else (seen.image_tokens, *seen.levels)
            language = language + 0.0 * torch.stack([state.float().sum() for state in states]).sum()
        segmentation = total(terms) if terms else torch.zeros_like(language)
        return Losses(loss=language + segmentation, language=language, segmentation=segmentation, terms=terms)

    def _language_loss(self, read: Read, totals: Totals | None) -> Tensor:
        """Mean cross-entropy of the labelled ids, each told by the state before it; logits are made for those only."""
        labels = read.assembled.labels[:, 1:]
        is_learned = labels != IGNORED
        logits = self.llm.get_output_embeddings()(read.states[:, :-1][is_learned])
        if not len(logits):
            return read.states.sum() * 0.0
        if totals is None:
            return functional.cross_entropy(logits.float(), labels[is_learned])
        return functional.cross_entropy(logits.float(), labels[is_learned], reduction="sum") / totals.tokens

    @torch.no_grad()
    def answer(self, batch: Batch, seen: Seen | None = None) -> SegOutputs | None:
        """Masks and classes of a batch whose answers are given, one for each of `batch.rows`; None without rows."""
        seen = self.see(batch) if seen is None else seen
        if seen is None or not batch.rows:
            return None
        if self.config.language is None:
            return self.segmentor(self._features(seen, batch.images))
        read = self.read(batch, seen)
        return None if read.vectors is None else self.segment(read.vectors, seen, batch.images)

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        markers: MarkerIds,
        stop: Sequence[int],
        *,
        max_new: int = 512,
        seen: Seen | None = None,
        choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1),
    ) -> Written:
        """Write the answers, then segment what they ask for.

        A `<SEG>` needs the state after it, so one that stands exactly at `max_new` is lost. Conditions are those of
        the question, unless the answer has spans of its own: then those, and no others.

        Args:
            batch: of inputs without their last answer.
            stop: ids that end an answer. max_new: ids of an answer, at least 1; never more than the language model has
                positions for.
            choose: the next ids, (B,), of logits (B, vocabulary).
        """
        seen = self.see(batch) if seen is None else seen
        assembled = self.assemble(batch, seen)
        ids, states = self._write(assembled, stop, max_new, choose)
        wanted = [self._wanted(batch, number, assembled, ids[number], markers) for number in range(len(ids))]
        rows = plan_rows([one.spans for one in wanted], is_shared=False)
        if not rows or seen is None:
            return Written(ids=tuple(ids), states=tuple(states))
        cond_ids = pad_sequence([one.cond_ids for one in wanted], batch_first=True, padding_value=NONE)
        seg_ids = pad_sequence([one.seg_ids for one in wanted], batch_first=True, padding_value=NONE)
        vectors = self._vectors(rows, pad_sequence(states, batch_first=True), cond_ids, seg_ids)
        return Written(
            ids=tuple(ids),
            states=tuple(states),
            rows=tuple(rows),
            has_spans=tuple(one.has_spans for one in wanted),
            vectors=vectors,
            outputs=self.segment(vectors, seen, batch.images),
        )

    def _write(
        self, assembled: Assembled, stop: Sequence[int], max_new: int, choose: Callable[[Tensor], Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Ids of each answer, and states of each prompt and answer, (M + n - 1, D): the last id has none."""
        from transformers import DynamicCache

        lengths = assembled.attention_mask.sum(1)
        width, device = int(lengths.max()), assembled.embeds.device
        # answers follow their prompts at once, so prompts end together: padding goes to the left
        order = (torch.arange(width, device=device) - (width - lengths)[:, None]) % width
        mask = torch.arange(width, device=device) >= (width - lengths)[:, None]
        embeds = assembled.embeds.gather(1, order[..., None].expand(-1, -1, assembled.embeds.shape[-1]))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.llm.config)
        is_open = torch.ones(len(lengths), dtype=torch.bool, device=device)
        stops = torch.tensor(list(stop), dtype=torch.int64, device=device)
        made: list[Tensor] = []
        steps: list[Tensor] = []
        context = self.llm.config.max_position_embeddings - width  # what the model has positions for
        for _ in range(max(1, min(max_new, context))):
            states = self.llm.base_model(
                inputs_embeds=embeds,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            steps.append(states)
            chosen = choose(self.llm.get_output_embeddings()(states[:, -1]).float())
            made.append(torch.where(is_open, chosen, IGNORED))
            is_open = is_open & ~torch.isin(chosen, stops)
            if not is_open.any():
                break
            embeds = self.llm.get_input_embeddings()(chosen)[:, None]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            positions = positions[:, -1:] + 1
        answers = torch.stack(made, 1)
        ids = [answer[answer != IGNORED] for answer in answers]
        every = torch.cat(steps, 1)
        starts = (width - lengths).tolist()
        ends = [width + len(answer) - 1 for answer in ids]
        return ids, [states[start:end] for states, start, end in zip(every, starts, ends, strict=True)]

    def _wanted(self, batch: Batch, number: int, assembled: Assembled, answer: Tensor, markers: MarkerIds) -> _Wanted:
        """What is asked for in the last exchange of a prompt and its answer."""
        inputs, device = batch.inputs[number], answer.device
        length = int(assembled.attention_mask[number].sum())
        given = assembled.cond_ids[number, :length]
        nothing = torch.full_like(given, NONE)
        spoken = condition_ids(answer.tolist(), markers).to(device)[:-1]
        segs = segment_ids(answer.tolist(), markers).to(device)[:-1]
        num_segs = int((segs >= 0).sum()) if batch.images[number] >= 0 else 0
        if has_spans := bool((spoken >= 0).any()):
            cond_ids, asked = torch.cat([nothing, spoken]), len(spoken[spoken >= 0].unique())
            unasked = 0
        else:
            before = int(assembled.seg_ids[number, :length].max()) + 1  # `<SEG>` of earlier answers
            cond_ids = torch.cat([given, torch.full_like(spoken, NONE)])
            asked = sum(condition.seg >= before for condition in inputs.conditions)
            unasked = len(inputs.conditions) - asked
        is_referring = inputs.task in REFERRING
        is_each = is_referring and num_segs == asked
        owners = (NONE,) * unasked + (tuple(range(asked)) if is_each else (0,) * asked)
        spans = Spans(owners=owners, num_segs=min(num_segs, max(owners, default=NONE) + 1), is_referring=is_referring)
        return _Wanted(spans=spans, cond_ids=cond_ids, seg_ids=torch.cat([nothing, segs]), has_spans=has_spans)
