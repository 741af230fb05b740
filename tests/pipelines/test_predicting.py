"""`predict` and `import-xsam` as a person meets them, and predictions for benchmarks through the real evaluation."""

import json
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dataengine import masks
from pipelines.cli import app


@pytest.fixture
def call(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_without_torch_it_is_said_what_to_install(call, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    for arguments in (["predict", "--model", tmp_path, "--image", "a.png"], ["import-xsam", "a.bin", "--out", "b"]):
        result = call(*arguments)
        assert result.exit_code == 1
        assert result.stderr == "error: the model needs torch; install dataengine[model]\n"


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def checkpoint(torch, tmp_path_factory):
    """A tiny model with random weights."""
    from model import predicting, words
    from model.config import preset
    from model.xsam import XSam

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    predicting.save(folder, XSam(preset("tiny")), words.tiny_tokenizer())
    return folder


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 48, 3), dtype=np.uint8)).save(file)
    return file


# --- predict ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_written(call, checkpoint, picture, tmp_path):
    out = tmp_path / "out"
    result = call(
        *("predict", "--model", checkpoint, "--image", picture, "--prompt", "segment <p>the dog</p>"),
        *("--answer", "It is <SEG>.", "--out", out),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("refseg: It is <SEG>.\n  0: the dog, score 0.")
    assert result.stdout.endswith(f"{out}: 1 masks\n")
    found = json.loads((out / "prediction.json").read_text())
    assert (found["task"], found["size"], found["text"]) == ("refseg", [30, 48], "It is <SEG>.")
    (mask,) = found["masks"]
    with Image.open(out / "masks" / "000.png") as png:
        pixels = np.array(png)
    assert set(np.unique(pixels)) <= {0, 255}
    np.testing.assert_array_equal(pixels > 0, masks.decode(mask["segmentation"]["counts"].encode(), 30, 48))
    with Image.open(out / "overlay.png") as overlay:
        assert overlay.size == (48, 30)
    assert (out / "answer.txt").read_text() == "It is <SEG>.\n"
    again = call("predict", "--model", checkpoint, "--image", picture, "--prompt", "a", "--out", out)
    assert (again.exit_code, again.stderr) == (1, f"error: --out {out}: a new or empty folder is needed\n")


def test_visual_prompts_become_regions(call, checkpoint, picture, tmp_path):
    """In the order points, boxes, scribbles, masks; each has its own mask."""
    shape = np.zeros((30, 48), np.uint8)
    shape[3:9, 4:20] = 1
    Image.fromarray(shape).save(tmp_path / "mask.png")
    prompts = ("--mask", tmp_path / "mask.png", "--point", "5,6", "--box", "1,2,20,25", "--scribble", "3,4,9,9,20,5")
    result = call(
        *("predict", "--model", checkpoint, "--image", picture, "--answer", "<SEG>", "--out", tmp_path / "o", *prompts)
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "o" / "prediction.json").read_text())
    assert (found["task"], [mask["condition"] for mask in found["masks"]]) == ("intseg", [0, 1, 2, 3])


def test_the_prompts_are_those_that_were_typed(torch, tmp_path):
    from pipelines.predicting import read_prompts

    shape = np.zeros((5, 6), np.uint8)
    shape[1:3, 2:4] = 1
    Image.fromarray(shape).save(tmp_path / "mask.png")
    clicks, corners, stroke, mask = read_prompts(["5,6.5,7,8"], ["9,8,1,2"], ["1,1,4,1"], [tmp_path / "mask.png"])
    assert (clicks.kind, clicks.points) == ("point", (5.0, 6.5, 7.0, 8.0))
    assert (corners.kind, corners.points) == ("box", (1.0, 2.0, 9.0, 8.0))
    assert (stroke.kind, stroke.points) == ("scribble", (1.0, 1.0, 2.0, 1.0, 3.0, 1.0, 4.0, 1.0))
    np.testing.assert_array_equal(mask, shape > 0)


def test_an_answer_is_generated_without_a_given_one(call, checkpoint, picture):
    result = call("predict", "--model", checkpoint, "--image", picture, "--prompt", "What is it?", "--max-new", 4)
    assert result.exit_code == 0, result.output
    assert "gcgseg: " in result.stdout
    assert "nothing was segmented" in result.stdout


def test_what_is_printed_does_not_steer_a_terminal(torch):
    """A model may say anything; its answer is one line, and the file keeps it as it is."""
    from model.predictions import Mask, Prediction
    from pipelines.predicting import summary

    rle = masks.encode(np.ones((2, 2), bool))
    said = Mask(rle=rle, condition=0, category_id=-1, text="\x1b[2Jdog\n  1: cat", score=0.5)
    text = "\x1b]0;title\x07red\x1b[0m\r\nfake\u202e <SEG>"
    printed = summary(Prediction(task="refseg", height=2, width=2, masks=(said,), text=text))
    assert printed == "refseg: ]0;title red [0m fake <SEG>\n  0: [2Jdog 1: cat, score 0.500, 4 px"


def test_errors_do_not_steer_a_terminal(call, checkpoint, tmp_path):
    """They quote files and weights of others."""
    result = call("predict", "--model", checkpoint, "--image", tmp_path / "a\x1b[31m.png", "--prompt", "a")
    assert result.exit_code == 1
    assert "a\\x1b[31m.png" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a \udcff"], "is none of Unicode: '\\udcff'"),
        (["--prompt", "segment <region>"], "the text has 1 <region> for 0 visual prompts"),
        (["--prompt", "segment <p>the dog"], "<p> is never closed"),
        (["--prompt", "<p>a</p>", "--answer", "No."], "needs a <SEG>"),
        ([], "neither a question nor a visual prompt is given"),
        (["--point", "100,3"], "prompt 0: a point has no place on 48 x 30 px"),
        (["--point", "3"], "--point 3: finite numbers X,Y are needed"),
        (["--point", "a,b"], "--point a,b: numbers X,Y are needed"),
        (["--point", "nan,1"], "--point nan,1: finite numbers"),
        (["--box", "1,2,3"], "--box 1,2,3: finite numbers X,Y,X,Y are needed"),
        (["--scribble", "1,2,1e300,5"], "too long to be drawn"),
        (["--mask", "nothing.png"], "nothing.png"),
        (["--prompt", "a", "--task", "paint"], "'paint' is no task"),
        (["--prompt", "a", "--variant", "long"], "'long' is none of panoptic"),
        (["--prompt", "a", "--thresholds", "low"], "--thresholds low: there are evaluate"),
        (["--prompt", "a", "--device", "abacus"], "--device abacus: cpu or cuda"),
    ],
)
def test_mistakes_are_named(call, checkpoint, picture, arguments, message):
    result = call("predict", "--model", checkpoint, "--image", picture, *arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_files_that_are_no_pictures_are_named(call, checkpoint, tmp_path):
    (tmp_path / "nothing.png").write_bytes(b"")
    # a PNG whose header says 0 x 0 pixels
    (tmp_path / "empty.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(8) + b"\x08\x02\0\0\0" + bytes(4))
    for name in ("nothing.png", "empty.png", "missing.png"):
        result = call("predict", "--model", checkpoint, "--image", tmp_path / name, "--prompt", "a")
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("error: ")


def test_folders_that_are_no_checkpoints_are_named(call, checkpoint, picture, tmp_path, torch):
    def error_of(folder):
        result = call("predict", "--model", folder, "--image", picture, "--prompt", "a")
        assert result.exit_code == 1, result.output
        return result.stderr

    assert "config.json: cannot be read" in error_of(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoModel": "evil.py"}}')
    assert "not the settings of an X-SAM" in error_of(tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert "no model.safetensors here" in error_of(tmp_path)
    whole = (checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "damaged, truncated" in error_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Evil(tmp_path / "run")))
    assert "damaged, truncated" in error_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    assert "no tokenizer can be read" in error_of(tmp_path)
    assert not (tmp_path / "run").exists()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, file) -> None:
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


# --- import-xsam -----------------------------------------------------------------------------------------------------


@pytest.fixture
def released(torch, checkpoint, tmp_path):
    """The tiny model in the released layout."""
    from model.predicting import load

    state = load(checkpoint).model.state_dict()
    state["segmentor.shared_image_embedding.positional_embedding"] = torch.zeros(2, 8)
    torch.save(state, tmp_path / "pytorch_model.bin")
    return tmp_path / "pytorch_model.bin"


def test_a_released_checkpoint_is_imported_and_asked(call, checkpoint, released, picture, tmp_path):
    out = tmp_path / "imported"
    result = call("import-xsam", released, "--out", out, "--settings", "tiny", "--tokenizer", checkpoint)
    assert result.exit_code == 0, result.output
    assert "stage 3, names of AAAI26_Archive, queries 20" in result.stdout
    assert "dropped segmentor.shared_image_embedding.positional_embedding: SAM's prompt encoding" in result.stdout
    asked = ("--image", picture, "--prompt", "<p>a</p>", "--answer", "<SEG>")
    assert call("predict", "--model", out, *asked).stdout == call("predict", "--model", checkpoint, *asked).stdout
    assert call("import-xsam", released, "--out", out, "--settings", "tiny").exit_code == 1


def test_without_a_tokenizer_it_is_said_that_one_is_needed(call, released, checkpoint, picture, tmp_path):
    out = tmp_path / "imported"
    result = call("import-xsam", released, "--out", out, "--settings", checkpoint / "config.json")
    assert result.exit_code == 0, result.output
    assert "has no tokenizer yet" in result.stderr
    assert "no tokenizer is here" in call("predict", "--model", out, "--image", picture, "--prompt", "a").stderr


def test_the_projectors_of_stage_2_are_kept_alone(call, torch, checkpoint, tmp_path):
    from model.checkpoints import HANDED_ON, read_state

    state = {key: value for key, value in read_state(checkpoint).items() if key.startswith(HANDED_ON[2])}
    torch.save(state, tmp_path / "two.bin")
    result = call("import-xsam", tmp_path / "two.bin", "--out", tmp_path / "o", "--settings", "tiny")
    assert result.exit_code == 0, result.output
    kept = read_state(tmp_path / "o")
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[key], state[key]) for key in state)


def test_files_that_cannot_be_imported_are_named(call, released, torch, tmp_path):
    def error_of(file, *more):
        result = call("import-xsam", file, "--out", tmp_path / "o", *more)
        assert result.exit_code == 1, result.output
        assert not (tmp_path / "o").exists()
        return result.stderr

    assert "xsam-phi3-siglip2-saml: the segmentation encoder has 5 hidden states" in error_of(
        released
    )  # a wrong preset
    assert "no preset 'huge'" in error_of(released, "--settings", "huge")
    assert "no such file" in error_of(tmp_path / "nowhere.bin")
    torch.save({"a": Evil(tmp_path / "run")}, tmp_path / "evil.bin")
    assert "holds more than tensors" in error_of(tmp_path / "evil.bin")
    assert not (tmp_path / "run").exists()
    cut = tmp_path / "cut.bin"
    cut.write_bytes(released.read_bytes()[:-1000])
    assert "truncated" in error_of(cut, "--settings", "tiny")
    (tmp_path / "empty").mkdir()
    assert "no tokenizer can be read" in error_of(released, "--settings", "tiny", "--tokenizer", tmp_path / "empty")


# --- benchmarks ------------------------------------------------------------------------------------------------------

RECIPE = """
name: eval
prompts: {profile: strict}
sources:
  whole: {builder: shapes, task: genseg, root: tree, options: {variants: [panoptic, semantic]}}
  things: {builder: shapes, task: genseg, root: tree, options: {variants: [instance]}}
  vgd: {builder: shapes, task: vgdseg, root: tree}
"""


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Two pictures of shapes as a benchmark of several tasks."""
    from builders.world_tree import write_tree

    folder = tmp_path_factory.mktemp("benchmark")
    write_tree(folder / "tree", 2)
    (folder / "eval.yaml").write_text(RECIPE)
    arguments = ["build", str(folder / "eval.yaml"), "--root", str(folder), "--out", str(folder / "bench")]
    built = CliRunner().invoke(app, [*arguments, "--no-report"])
    assert built.exit_code == 0, built.output
    return folder / "bench"


@pytest.fixture(scope="module")
def predictor(checkpoint):
    from model.predicting import load

    return load(checkpoint)


def samples_of(benchmark, task):
    from dataengine.store.dataset import open_dataset

    return [sample for sample in open_dataset(str(benchmark)).samples() if sample.task == task]


@pytest.mark.parametrize("task", ["genseg", "vgdseg"])
def test_predictions_are_what_the_evaluation_reads(predictor, benchmark, tmp_path, call, task):
    """Every sample is answered, and no record is at fault."""
    samples = samples_of(benchmark, task)
    assert samples
    kind = "box" if task == "vgdseg" else None
    records = list(predictor.predict_samples(samples, kind=kind, batch_size=3))
    assert {record["sample_id"] for record in records} == {sample.sample_id for sample in samples}
    (tmp_path / "predictions.json").write_text(json.dumps(records))
    result = call(
        *("eval", task, "--benchmark", benchmark, "--predictions", tmp_path / "predictions.json"),
        *("--out", tmp_path / "scores"),
    )
    assert result.exit_code == 0, result.output


def test_samples_together_are_samples_one_by_one(predictor, benchmark):
    """Whatever a batch holds, a sample has its own answer."""
    samples = [one for one in samples_of(benchmark, "genseg") if one.variant == "instance"]
    samples += samples_of(benchmark, "vgdseg")
    scores = [
        sorted(
            (record["sample_id"], record["score"])
            for record in predictor.predict_samples(samples, kind="box", batch_size=n)
        )
        for n in (1, len(samples))
    ]
    assert [name for name, _ in scores[0]] == [name for name, _ in scores[1]]
    np.testing.assert_allclose([score for _, score in scores[0]], [score for _, score in scores[1]], atol=1e-3)


def test_samples_may_be_answered_by_the_model_itself(predictor, benchmark):
    """A model that asks for no masks finds nothing."""
    samples = [one for one in samples_of(benchmark, "genseg") if one.variant == "instance"]
    assert list(predictor.predict_samples(samples, generate=True, max_new=3)) == []


def test_samples_that_cannot_be_answered_are_named(predictor, benchmark):
    from dataengine.errors import UserError

    (sample, *_) = samples_of(benchmark, "vgdseg")
    with pytest.raises(UserError, match=f"{sample.sample_id}: vgdseg needs the kind of prompt"):
        list(predictor.predict_samples([sample]))
    with pytest.raises(UserError, match="a prompt must be one of"):
        list(predictor.predict_samples([sample], kind="smell"))


def test_samples_that_cannot_be_answered_may_be_left_out(predictor, benchmark, call, tmp_path):
    """They are counted by reason, and the evaluation scores the rest."""
    from pipelines.evaluate.predictions import Faults

    good = samples_of(benchmark, "vgdseg")
    without_prompts = [replace(thing, prompts=()) for thing in good[0].objects]
    bad = [
        replace(good[0], sample_id="a/b/c/vgdseg", image=None),
        replace(good[0], sample_id="a/b/d/vgdseg", objects=tuple(without_prompts)),
        replace(good[0], sample_id="a/b/e/chat", task="chat"),
        replace(good[0], sample_id="a/b/f/vgdseg", image=replace(good[0].image, bytes=b"", path=None)),
    ]
    faults = Faults()
    records = list(
        predictor.predict_samples([bad[0], good[0], *bad[1:], *good[1:]], kind="box", batch_size=2, skipped=faults.add)
    )
    assert sum(faults.counts.values()) == len(bad)
    assert faults.counts["region_prompt"] == faults.counts["task"] == 1
    said = [message for messages in faults.examples.values() for message in messages]
    assert sorted(message.split(":")[0] for message in said) == [sample.sample_id for sample in bad]
    assert records == list(predictor.predict_samples(good, kind="box", batch_size=2))
    (tmp_path / "predictions.json").write_text(json.dumps(records))
    result = call(
        *("eval", "vgdseg", "--benchmark", benchmark, "--predictions", tmp_path / "predictions.json"),
        *("--out", tmp_path / "scores"),
    )
    assert result.exit_code == 0, result.output


def test_a_picture_of_samples_in_a_row_is_seen_once(predictor, benchmark, monkeypatch, request):
    from model import pictures

    samples = samples_of(benchmark, "genseg") + samples_of(benchmark, "vgdseg")
    samples.sort(key=lambda sample: sample.image_key)
    num = len({sample.image_key for sample in samples})
    assert len(samples) > num == 2
    alone = [list(predictor.predict_samples([sample], kind="box")) for sample in samples]
    made, encoded, prepare = [], [], pictures.prepare
    monkeypatch.setattr(pictures, "prepare", lambda *args, **kw: made.append(args) or prepare(*args, **kw))
    for part in (predictor.model.segmentor.encoder.patch_embed, predictor.model.visual_encoder):
        hook = part.register_forward_hook(lambda module, given, _: encoded.append(len(given[0])))
        request.addfinalizer(hook.remove)
    records = list(predictor.predict_samples(samples, kind="box", batch_size=len(samples)))
    assert len(made) == num
    assert encoded == [num, num]
    assert [record["sample_id"] for record in records] == [one["sample_id"] for few in alone for one in few]
