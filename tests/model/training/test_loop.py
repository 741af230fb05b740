import math
import os
import shutil
import signal
import threading
from dataclasses import dataclass, replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")
pytest.importorskip("accelerate")

from dataengine.errors import UserError  # noqa: E402
from model.checkpoints import CheckpointError, from_pretrained, read_state, save_pretrained  # noqa: E402
from model.config import stage1  # noqa: E402
from model.losses import RandomDraws  # noqa: E402
from model.training import export, loop, optim  # noqa: E402
from model.training.draws import StepPoints, StepPrompts  # noqa: E402
from model.training.parallel import Processes, blocks  # noqa: E402
from model.training.settings import Lora, StageError  # noqa: E402
from model.training.state import StateError  # noqa: E402
from model.training.step import Learner, LossError  # noqa: E402
from model.xsam import XSam  # noqa: E402
from tests.model.training.runs import CONFIG, PLAIN, TASKS, Loader, data_of, fresh, metrics, run  # noqa: E402

ALONE = Processes(rank=0, world=1, device=torch.device("cpu"))
SHORT = replace(PLAIN, steps=2, save_every=0)
FROZEN = replace(SHORT, frozen=("llm",))
WORDS = ("chat",)  # of which a step is short


def learner(stage=PLAIN, model=None):
    model = (model or fresh()).train()
    return Learner(model, optim.make_optimizer(model, stage), stage, ALONE)


def micros(stage, step):
    found = []
    for micro in Loader(stage=stage)(step):
        if micro.step != step:
            return found
        found.append(micro)


# --- a step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(3), ids=TASKS)
def test_a_step_of_one_batch_has_the_loss_and_gradient_of_the_model_itself(step):
    stage = replace(PLAIN, micro=4, clip=0.0)
    (micro,) = micros(stage, step)
    ours, model = learner(stage), fresh().train()
    points = StepPoints(stage.seed, step, micro.batch, CONFIG.decoder.num_queries, ALONE.device)
    expected = model(micro.batch, points, StepPrompts(stage.seed, step))
    expected.loss.backward()
    taken = ours.step(step, [micro])
    assert taken.parts["loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    assert taken.parts["language"] == pytest.approx(expected.language.item(), rel=1e-5)
    squares = sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None)
    assert taken.norm == pytest.approx(math.sqrt(squares), rel=1e-4)
    for (name, weight), other in zip(ours.model.named_parameters(), model.parameters(), strict=True):
        assert (weight.grad is None) == (other.grad is None), name
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, other.grad, atol=1e-4, rtol=1e-3, msg=name)
    assert taken.num_samples == 4


def test_positions_are_counted_as_the_language_model_has_them():
    (micro,) = micros(replace(PLAIN, micro=4), 0)
    taken = learner().step(0, [micro])
    model = fresh()
    assembled = model.assemble(micro.batch, model.see(micro.batch))
    assert taken.num_tokens == int(assembled.attention_mask.sum())


def test_a_stand_in_has_no_weight():
    stage = replace(PLAIN, micro=4)
    (micro,), (other,) = micros(stage, 0), micros(stage, 3)
    alone, beside = learner(stage), learner(stage)
    expected = alone.step(0, [micro])
    made = beside.step(0, [micro, replace(other, stand_in=True)])
    assert made.parts == pytest.approx(expected.parts)
    assert made.num_samples == 4
    for mine, theirs in zip(beside.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_the_gradient_is_clipped_as_a_whole():
    ours = learner(replace(PLAIN, clip=0.01))
    taken = ours.step(0, micros(PLAIN, 0))
    assert taken.norm > 1
    left = math.sqrt(sum(w.grad.square().sum().item() for w in ours.weights if w.grad is not None))
    assert left == pytest.approx(0.01, rel=1e-3)


def test_shared_phrases_are_told_from_those_of_the_whole_micro_batch():
    classes = {}
    for shared in (True, False):
        stage = replace(PLAIN, shared_phrases=shared, micro=4)
        micro = next(Loader(stage=stage, tasks=("refseg",))(0))
        classes[shared] = {len(row.classes) for row in micro.batch.rows}
    assert classes == {True: {4}, False: {1}}


# --- what goes wrong -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Poisoned(Loader):
    """One picture of step 1 is not a number."""

    def __call__(self, start):
        for micro in super().__call__(start):
            if micro.step == 1 and micro.index == 1:
                pixels = micro.batch.seg_pixel_values.float()
                pixels[1] = torch.nan
                micro = replace(micro, batch=replace(micro.batch, seg_pixel_values=pixels))
            yield micro


def test_a_loss_that_is_no_number_stops_with_its_samples_and_how_to_reproduce_them(tmp_path):
    model, stage = fresh(), replace(PLAIN, tasks=("genseg",))
    data = data_of(Poisoned(stage=stage, tasks=("genseg",)), place=lambda sample_id: "shards/train")
    with pytest.raises(LossError) as caught:
        loop.train(stage, model, data, tmp_path, cpu=True, say=lambda _: None)
    assert caught.value.sample_ids == ("genseg/6", "genseg/7")  # of the micro-batch, not of the step
    assert "dataengine reproduce shards/train --sample genseg/6" in str(caught.value)
    assert "step-00000001" in str(caught.value)
    assert all(weight.isfinite().all() for weight in model.parameters())
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert kept.name == "step-00000001"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps, with the language model frozen."""
    out = tmp_path_factory.mktemp("finished")
    run(FROZEN, out, Loader(stage=FROZEN, tasks=WORDS))
    return out


def _refuse(described):
    raise StateError("another dataset")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stage": replace(FROZEN, lr=1.0)}, r"stage\.lr: was 0\.001, is 1\.0"),
        ({"fingerprint": "other"}, "the dataset: was f, is other"),
        ({"check_same": _refuse}, "another dataset"),
        ({"order": {"seed": 2}}, "the order of samples"),
        ({"model": 1}, "the weights that are not learned"),
        ({"points": 5}, r"model\.decoder: was .*'points': 32.*, is .*'points': 5"),
        ({"resume": False}, "holds a run of 2 steps"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_is_not_gone_on_with(finished, changed, said):
    stage = changed.get("stage", FROZEN)
    data = data_of(
        Loader(stage=stage, tasks=WORDS),
        **{k: v for k, v in changed.items() if k in ("check_same", "fingerprint", "order")},
    )
    model = fresh(seed=changed.get("model", 0))
    if "points" in changed:
        model.config = replace(model.config, decoder=replace(model.config.decoder, points=changed["points"]))
    with pytest.raises(StateError, match=said):
        loop.train(stage, model, data, finished, resume=changed.get("resume", True), cpu=True, say=lambda _: None)


def test_what_cannot_be_learned_is_told_before_anything_is_written(tmp_path):
    stage = replace(PLAIN, lr_mult={"segmenter": 0.1})
    with pytest.raises(StageError, match="segmenter"):
        run(stage, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["ends", "skips"])
def test_a_loader_that_leaves_something_out(tmp_path, broken):
    def loader(start):
        for micro in Loader(stage=PLAIN)(start):
            if broken == "ends" and micro.step == 1:
                return
            if broken == "ends" or micro.index:
                yield micro

    loader.tasks = TASKS
    said = "data ended after 1 of 4" if broken == "ends" else "micro-batch 1 of step 0, where 0 of 0"
    with pytest.raises(UserError, match=said):
        run(PLAIN, tmp_path, loader)


def test_workers_that_were_asked_to_stop_too_do_not_break_the_step(tmp_path):
    def raises(number, frame):
        raise RuntimeError("DataLoader worker is killed by signal")

    def loader(start):
        signal.signal(signal.SIGCHLD, raises)  # as torch's DataLoader does
        for micro in Loader(stage=PLAIN, tasks=WORDS)(start):
            if micro.step == 0 and micro.index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGCHLD)
            yield micro

    loader.tasks = WORDS
    before = signal.getsignal(signal.SIGCHLD)
    result = run(SHORT, tmp_path, loader)
    assert (result.steps, result.signal) == (1, signal.SIGTERM)
    assert signal.getsignal(signal.SIGCHLD) is before


def test_data_that_fails_because_its_workers_were_asked_to_stop_too_ends_in_a_checkpoint(tmp_path):
    def loader(start):
        for micro in Loader(stage=PLAIN, tasks=WORDS)(start):
            if micro.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("DataLoader worker is killed by signal")
            yield micro

    loader.tasks = WORDS
    result = run(replace(SHORT, save_every=0), tmp_path, loader)
    assert (result.steps, result.signal) == (1, signal.SIGTERM)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def stopping_at(step):
    """Scores, and those of a step are interrupted once."""
    asked = []

    def evaluate(model, at):
        asked.append(at)
        if at == step and asked.count(at) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"ap": float(at)}

    return evaluate, asked


@pytest.mark.parametrize("step", [1, 2])
def test_an_evaluation_that_was_interrupted_is_done_when_the_run_goes_on(tmp_path, step):
    stage = replace(SHORT, evaluate_every=1, save_every=1)
    evaluate, asked = stopping_at(step)
    loader = Loader(stage=stage, tasks=WORDS)
    first = run(stage, tmp_path, loader, evaluate=evaluate)
    assert (first.steps, first.signal) == (step, signal.SIGTERM)
    assert not (tmp_path / "model").exists()
    again = run(stage, tmp_path, loader, evaluate=evaluate, resume=True)
    assert (again.steps, again.signal) == (2, None)
    assert asked == [1, 1, 2] if step == 1 else [1, 2, 2]
    scored = [record["step"] for record in metrics(tmp_path) if "eval/ap" in record]
    assert scored == [1, 2]
    assert (tmp_path / "model").exists()


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "checkpoints" / "step-00000002" / "state.json").unlink()
    for resume in (True, False):
        with pytest.raises(StateError, match=r"(?s)move them away.*step-00000002: state\.json cannot be used"):
            run(FROZEN, copy, Loader(stage=FROZEN, tasks=WORDS), resume=resume)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(StateError, match="holds a trained model without its checkpoints"):
        run(FROZEN, copy, Loader(stage=FROZEN, tasks=WORDS), resume=True)


def test_where_another_way_than_signals_asks_it_stops_after_the_step(tmp_path):
    looks = iter([None, None, None, signal.SIGTERM])
    asked = loop.Asked(look=lambda: next(looks))
    stage = replace(PLAIN, steps=20)
    result = run(stage, tmp_path, Loader(stage=stage, tasks=WORDS), asked=asked)
    assert result.signal == signal.SIGTERM
    assert result.steps == 4


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_evaluation_and_export_have_the_average_and_the_logs_everything(tmp_path):
    seen = []

    def evaluate(model, step):
        assert not model.training
        seen.append(model.bg_embeds.weight.detach().clone())
        return {"ap": 0.5 + step}

    stage = replace(SHORT, ema=0.9, evaluate_every=1, log_every=1)
    model, said = fresh(), []
    data = data_of(Loader(stage=stage, tasks=("genseg",)))
    result = loop.train(stage, model, data, tmp_path, evaluate=evaluate, cpu=True, say=said.append)
    assert (result.steps, result.signal) == (2, None)
    assert len(seen) == 2
    assert torch.equal(read_state(tmp_path / "model")["bg_embeds.weight"], seen[-1])
    assert not torch.equal(model.bg_embeds.weight, seen[-1])
    logged = metrics(tmp_path)
    assert [record["step"] for record in logged] == [1, 1, 2, 2]
    assert [record["eval/ap"] for record in logged[1::2]] == [1.5, 2.5]
    wanted = {"loss", "language", "segmentation", "mask", "dice", "class", "rate", "gradient", "epoch", "task"}
    wanted |= {"seconds_per_step", "samples_per_second", "tokens_per_second", "data_wait_share", "overhead_share"}
    assert logged[0].keys() >= wanted | {"memory_gib", "lost"}
    assert events(tmp_path / "tensorboard")["eval/ap"] == [(1, 1.5), (2, 2.5)]
    assert events(tmp_path / "tensorboard")["loss"] == [
        (record["step"], pytest.approx(record["loss"])) for record in logged if "loss" in record
    ]
    assert logged[0]["loss"] == pytest.approx(logged[0]["language"] + logged[0]["segmentation"], rel=1e-5)
    assert any("data wait" in line and "samples/s" in line for line in said)


def events(folder):
    """What TensorBoard reads: {name: [(step, value), …]}."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reading.EventAccumulator(str(folder))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_samples_that_are_lost_are_counted(tmp_path):
    stage = replace(SHORT, log_every=1)

    def loader(start):
        for micro in Loader(stage=stage, tasks=WORDS)(start):
            yield replace(micro, lost=("x",) * micro.step)

    loader.tasks = WORDS
    said = []
    loop.train(stage, fresh(), data_of(loader), tmp_path, cpu=True, say=said.append)
    per_step = next(Loader(stage=stage, tasks=WORDS)(0)).count
    assert [record["lost"] for record in metrics(tmp_path)] == [0, per_step]
    assert said[-1].endswith(f", {per_step} samples lost")


def test_a_finished_run_that_is_resumed_exports_again(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    before = read_state(copy / "model")
    (copy / "model" / "model.safetensors").unlink()
    assert run(FROZEN, copy, Loader(stage=FROZEN, tasks=WORDS), resume=True).steps == 2
    for name, weight in read_state(copy / "model").items():
        assert torch.equal(weight, before[name]), name


def test_it_runs_in_a_thread_where_signals_are_not_its_own(tmp_path):
    results, stage = [], replace(SHORT, steps=1)
    thread = threading.Thread(target=lambda: results.append(run(stage, tmp_path, Loader(stage=stage, tasks=WORDS))))
    thread.start()
    thread.join()
    assert results[0].steps == 1


def test_lines_after_the_checkpoint_are_dropped_from_the_log(tmp_path):
    from model.training.logs import Log

    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with Log(tmp_path, 2, lambda _: None) as log:
        log.write(3, {"loss": 1.0}, "")
    assert metrics(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]


@pytest.mark.parametrize(
    "changed",
    [
        {"precision": "bf16"},
        {"precision": "pure-bf16"},
        {"checkpointing": True},
    ],
    ids=str,
)
def test_other_ways_to_run_are_near(changed, plain):
    stage = replace(SHORT, **changed)
    model = fresh().bfloat16() if stage.precision == "pure-bf16" else fresh()
    model.set_checkpointing(stage.checkpointing)
    other = learner(stage, model)
    losses = [other.step(step, micros(stage, step)).parts["loss"] for step in range(2)]
    assert losses == pytest.approx(plain, rel=0.05 if "precision" in changed else 1e-4)


@pytest.fixture(scope="module")
def plain():
    """Losses of two steps."""
    ours = learner(SHORT)
    return [ours.step(step, micros(SHORT, step)).parts["loss"] for step in range(2)]


def test_regions_are_shown_by_others_of_their_category():
    together = micros(SHORT, 0)
    losses = [learner(replace(SHORT, prompt_swap=swaps)).step(0, together).parts["loss"] for swaps in (True, False)]
    assert losses[0] != losses[1]
    assert all(map(math.isfinite, losses))


# --- adapters and stages ---------------------------------------------------------------------------------------------


def test_adapters_are_learned_alone_and_merged_in_the_end(tmp_path):
    stage = replace(PLAIN, steps=3, lora=Lora(rank=2, alpha=4, targets=("q_proj", "v_proj")), lr=0.01)
    model = fresh()
    before = {name: weight.detach().clone() for name, weight in model.llm.named_parameters()}
    run(stage, tmp_path, model=model)
    for name, weight in model.llm.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(weight, before[name.replace(".base_layer.", ".")]), name
    exported = from_pretrained(tmp_path / "model", XSam)
    name = "model.layers.1.self_attn.q_proj"
    layer = model.llm.get_submodule(name)
    with torch.no_grad():
        added = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2  # alpha / rank
    assert added.abs().max() > 0
    torch.testing.assert_close(exported.llm.get_submodule(name).weight, before[f"{name}.weight"] + added)
    (micro,) = micros(replace(PLAIN, micro=4), 0)
    draws = lambda: RandomDraws(torch.Generator().manual_seed(0))  # noqa: E731
    with torch.no_grad():
        torch.testing.assert_close(exported(micro.batch, draws()).loss, model.eval()(micro.batch, draws()).loss)


def test_fresh_adapters_depend_on_the_seed_alone():
    def weights(seed, other):
        torch.manual_seed(other)
        model = fresh()
        export.add_adapters(model, Lora(rank=2, targets=("q_proj",)), seed)
        return torch.cat([w.flatten() for n, w in model.named_parameters() if ".lora_A." in n])

    assert torch.equal(weights(1, 1), weights(1, 2))
    assert not torch.equal(weights(1, 1), weights(2, 1))


@pytest.mark.parametrize("lora", [Lora(targets=("nothing",)), Lora()], ids=["no such layer", "no language model"])
def test_adapters_that_have_no_place(lora):
    config = CONFIG if lora.targets else stage1(CONFIG)
    with pytest.raises(StageError, match="lora"):
        export.add_adapters(XSam(config), lora, 0)


def test_each_stage_hands_on_what_the_next_one_begins_with(tmp_path):
    save_pretrained(XSam(stage1(CONFIG)), tmp_path / "s1", stage1(CONFIG))
    save_pretrained(fresh(seed=3), tmp_path / "s2", CONFIG)
    model, before = fresh(seed=5), fresh(seed=5)
    export.take_over(model, tmp_path / "s1", 1)
    export.take_over(model, tmp_path / "s2", 2)
    first, second = read_state(tmp_path / "s1"), read_state(tmp_path / "s2")
    old = dict(before.named_parameters())
    for name, weight in model.named_parameters():
        part = ".".join(name.split(".")[:2]) if name.startswith("segmentor") else name.partition(".")[0]
        if part in ("segmentor.encoder", "segmentor.pixel_decoder", "segmentor.decoder", "seg_connector"):
            assert torch.equal(weight, first[name]), name
        elif part in ("visual_projector", "seg_projector"):
            assert torch.equal(weight, second[name]), name
        else:
            assert torch.equal(weight, old[name]), name
    with pytest.raises(StageError, match="stage 3 hands nothing on"):
        export.take_over(model, tmp_path / "s2", 3)
    with pytest.raises(CheckpointError):
        export.take_over(model, tmp_path / "s1", 2)


def test_blocks_are_the_layers_of_the_encoders_and_of_the_language_model():
    model = fresh()
    names = {id(module): name for name, module in model.named_modules()}
    assert [names[id(block)] for block in blocks(model)] == [
        *(f"segmentor.encoder.layers.{n}" for n in range(3)),
        *(f"visual_encoder.vision_model.encoder.layers.{n}" for n in range(3)),
        *(f"llm.model.layers.{n}" for n in range(2)),
    ]
