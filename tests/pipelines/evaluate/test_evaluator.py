"""Scoring files and arrays for a benchmark that was built: forms of predictions, faults, the result, the command."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from builders.world_tree import write_tree
from dataengine import masks
from dataengine.sample import PROMPT_KINDS
from pipelines import build
from pipelines.cli import app
from pipelines.evaluate.benchmark import open_benchmark
from pipelines.evaluate.evaluator import Evaluator, evaluate
from pipelines.evaluate.predictions import PredictionError
from pipelines.evaluate.scorers import Rules
from pipelines.evaluate.writing import write
from pipelines.vgd import baseline
from pipelines.vgd import benchmark as benchmarks


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> str:
    """A benchmark of ten pictures of shapes, in all variants."""
    root = tmp_path_factory.mktemp("vgd")
    write_tree(root / "shapes", 10, seed=3)
    settings = benchmarks.Settings(root=str(root / "shapes"), split="train", negatives=2, cross_image=True, shots=2)
    benchmarks.build(benchmarks.recipe_of(settings), str(root / "bench"), build.Settings())
    return str(root / "bench")


@pytest.fixture(scope="module")
def opened(bench):
    return open_benchmark(bench, "vgdseg")


@pytest.fixture(scope="module")
def noisy(opened) -> list[dict]:
    made = baseline.predictions(opened.samples(), "noisy", 1)
    return [record for record in made if record["prompt"] in ("point", "box")]


@pytest.fixture(scope="module")
def expected(bench, noisy, opened, tmp_path_factory) -> dict:
    """The result for `noisy`."""
    file = tmp_path_factory.mktemp("expected") / "noisy.json"
    write(noisy, file, opened.id)
    return evaluate(bench, "vgdseg", str(file))


# --- what is right ---------------------------------------------------------------------------------------------------


def test_the_ground_truth_scores_one(bench, opened, tmp_path):
    write(baseline.predictions(opened.samples(), "truth"), tmp_path / "truth.parquet", opened.id)
    result = evaluate(bench, "vgdseg", str(tmp_path / "truth.parquet"), Rules(convention="both"))
    assert set(result["scores"]) == {"same_image", "cross_image", "negatives", "k_shot"}
    for scores in (result["scores"], result["xsam"]["scores"]):
        for kinds in scores.values():
            assert set(kinds) == set(PROMPT_KINDS)
            for made in kinds.values():
                assert [made[name] for name in ("ap", "ap50", "ap75", "ar100")] == pytest.approx([1] * 4)
                for labels in made.get("strata", {}).values():
                    assert all(v["ap"] is None or v["ap"] == pytest.approx(1) for v in labels.values())
    rates = result["scores"]["negatives"]["box"]["false_positives"]
    assert rates["regions"] > 0
    assert set(rates["rate"].values()) == {0}


def test_noise_scores_as_pycocotools_has_it(expected, noisy, opened):
    """COCOeval itself, fed with the samples: for each variant and kind of prompt."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    samples = list(opened.samples())
    numbers = {sample.sample_id: number for number, sample in enumerate(samples, start=1)}
    for variant, kind in (("same_image", "box"), ("negatives", "point"), ("cross_image", "box")):
        images, annotations, results = [], [], []
        for sample in samples:
            if sample.variant != variant:
                continue
            image = numbers[sample.sample_id]
            images.append({"id": image, "height": sample.height, "width": sample.width})
            for o in sample.objects:
                if o.category_id in {c.category_id for c in sample.conditions}:
                    row = {"id": len(annotations) + 1, "image_id": image, "category_id": o.category_id, "area": o.area}
                    rle = {"size": [sample.height, sample.width], "counts": o.rle}
                    annotations.append({**row, "iscrowd": int(o.crowd), "segmentation": rle})
        shown = {image["id"] for image in images}
        for record in noisy:
            if numbers[record["sample_id"]] in shown and record["prompt"] == kind:
                row = {key: record[key] for key in ("category_id", "segmentation", "score")}
                results.append({**row, "image_id": numbers[record["sample_id"]]})
        categories = [{"id": c} for c in sorted({c.category_id for s in samples for c in s.conditions})]
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(results), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        ours = expected["scores"][variant][kind]
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
        names += ("ar_small", "ar_medium", "ar_large")
        assert [-1 if ours[name] is None else ours[name] for name in names] == pytest.approx(list(evaluation.stats))
        assert 0.05 < ours["ap"] < 0.95


def test_the_backend_makes_no_difference(bench, expected, noisy, opened, tmp_path):
    some = [record for record in noisy if record["prompt"] == "box" and record["sample_id"].endswith("vgdseg")]
    write(some, tmp_path / "box.json", opened.id)
    made = evaluate(bench, "vgdseg", str(tmp_path / "box.json"), Rules(backend="pycocotools"))
    assert made["backend"].startswith("pycocotools ")
    assert expected["backend"].startswith("hotcoco ")
    assert made["scores"]["same_image"]["box"] == expected["scores"]["same_image"]["box"]


def test_the_result_counts_and_names_what_it_is_about(expected, noisy, opened):
    assert expected["benchmark"] == opened.id
    assert expected["names_benchmark"] is True
    assert expected["predictions"] == len(noisy)
    assert expected["samples"] == len(list(opened.samples()))
    assert expected["samples_with_predictions"] == len({record["sample_id"] for record in noisy})
    per_part = [made["predictions"] for kinds in expected["scores"].values() for made in kinds.values()]
    assert sum(per_part) == len(noisy)
    json.dumps(expected, allow_nan=False)


# --- forms of a file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_forms_are_equal(suffix, bench, expected, noisy, opened, tmp_path):
    shuffled = list(noisy)
    random.Random(0).shuffle(shuffled)
    write(shuffled, tmp_path / f"p{suffix}", opened.id)
    assert evaluate(bench, "vgdseg", str(tmp_path / f"p{suffix}")) == expected


def test_a_list_that_names_no_benchmark_is_taken_and_said(bench, expected, noisy, tmp_path):
    """With uncompressed masks besides."""
    listed = []
    for record in noisy:
        height, width = record["segmentation"]["size"]
        runs = masks.counts_from_rle(record["segmentation"]["counts"].encode(), height, width).tolist()
        listed.append({**record, "segmentation": {"size": [height, width], "counts": runs}})
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert evaluate(bench, "vgdseg", str(tmp_path / "list.json")) == {**expected, "names_benchmark": False}


OTHER = "0" * 32


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("first.json", {"benchmark": OTHER, "predictions": [3]}, f"made for the benchmark {OTHER}"),
        ("last.json", {"predictions": [], "benchmark": OTHER}, f"made for the benchmark {OTHER}"),
        ("number.json", {"benchmark": 3, "predictions": []}, "must be the id of a benchmark"),
        ("no_list.json", {"predictions": {}}, "no list of predictions"),
        ("text.json", "hello", "expected a JSON array"),
        ("lines.jsonl", {"benchmark": OTHER}, f"made for the benchmark {OTHER}"),
    ],
)
def test_files_that_cannot_be_scored(name, content, message, bench, tmp_path):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        evaluate(bench, "vgdseg", str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.json", b""), ("cut.json", b'[{"sample_id": "a"'), ("no.parquet", b"PAR1"), ("binary.json", b"[\xff\xfe]")],
)
def test_damaged_files_are_refused_in_words(name, content, bench, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        evaluate(bench, "vgdseg", str(tmp_path / name))


def test_a_byte_order_mark_changes_nothing(bench, expected, noisy, opened, tmp_path):
    content = json.dumps({"benchmark": opened.id, "predictions": noisy}).encode()
    (tmp_path / "marked.json").write_bytes(codecs.BOM_UTF8 + b"\n " + content)
    assert evaluate(bench, "vgdseg", str(tmp_path / "marked.json")) == expected


@pytest.mark.parametrize("more", [{"predictions": []}, {"image_id": 1, "score": 0.5}])
def test_only_what_names_nothing_but_the_benchmark_is_no_prediction(more, bench, opened, tmp_path):
    (tmp_path / "lines.jsonl").write_text(json.dumps({"benchmark": opened.id, **more}))
    with pytest.raises(PredictionError, match="1 bad_record"):
        evaluate(bench, "vgdseg", str(tmp_path / "lines.jsonl"))


def test_parquet_values_that_python_cannot_hold_are_told(bench, tmp_path):
    text = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe"))
    columns = {"text": text, "date": pa.array([2**62], pa.timestamp("us")), "time": pa.array([2**62], pa.duration("s"))}
    for name, column in columns.items():
        pq.write_table(pa.table({"sample_id": column}), tmp_path / f"{name}.parquet")
        with pytest.raises(PredictionError, match=f"{name}.parquet: cannot be read"):
            evaluate(bench, "vgdseg", str(tmp_path / f"{name}.parquet"))


def test_a_file_of_two_benchmarks_is_refused(bench, opened, tmp_path):
    (tmp_path / "two.jsonl").write_text(f'{{"benchmark": "{opened.id}"}}\n{{"benchmark": "{OTHER}"}}\n')
    with pytest.raises(PredictionError, match="names two benchmarks"):
        evaluate(bench, "vgdseg", str(tmp_path / "two.jsonl"))


def test_numbers_that_python_cannot_hold_are_faults(bench, tmp_path):
    (tmp_path / "long.json").write_text('{"predictions": [{"score": ' + "9" * 5000 + "}]}")
    with pytest.raises(PredictionError, match="1 bad_record"):
        evaluate(bench, "vgdseg", str(tmp_path / "long.json"))


# --- arrays ----------------------------------------------------------------------------------------------------------


class Tensor:
    """A tensor on a device: numpy cannot read it before it is brought to memory."""

    def __init__(self, values, dtype=None) -> None:
        self._values, self.dtype = values, dtype or f"torch.{values.dtype}"

    def __array__(self, *_, **__):
        raise TypeError("can't convert device type tensor to numpy")

    def detach(self):
        return self

    def cpu(self):
        return Memory(self._values, self.dtype)


class Memory(Tensor):
    """The same in memory; numpy has no bfloat16."""

    def float(self):
        return Memory(self._values, "torch.float32")

    def numpy(self):
        assert "bfloat16" not in str(self.dtype)
        return self._values


def _by_sample(records) -> dict:
    grouped: dict = {}
    for record in records:
        grouped.setdefault((record["sample_id"], record["prompt"]), []).append(record)
    return grouped


@pytest.mark.parametrize(
    "form",
    [
        lambda maps, scores, ids: (maps, scores, ids),
        lambda maps, scores, ids: (maps.astype(np.uint8) * 255, scores.tolist(), ids.tolist()),
        lambda maps, scores, ids: (Tensor(maps), Tensor(scores, "torch.bfloat16"), Tensor(ids)),
    ],
    ids=["arrays", "pictures and lists", "tensors on a device"],
)
def test_arrays_score_as_a_file(form, bench, expected, noisy):
    evaluator = Evaluator(bench, "vgdseg")
    _add_all(evaluator, noisy, form)
    assert {**evaluator.result(), "names_benchmark": True} == expected


def test_tensors_of_torch_score_as_a_file(bench, expected, noisy):
    torch = pytest.importorskip("torch")
    evaluator = Evaluator(bench, "vgdseg")
    _add_all(evaluator, noisy, lambda *columns: map(torch.from_numpy, columns))
    assert {**evaluator.result(), "names_benchmark": True} == expected


def _add_all(evaluator, records, form) -> None:
    for (name, prompt), rows in _by_sample(records).items():
        maps = np.stack([masks.decode(r["segmentation"]["counts"].encode(), *r["segmentation"]["size"]) for r in rows])
        scores = np.array([r["score"] for r in rows])
        maps, scores, categories = form(maps, scores, np.array([r["category_id"] for r in rows]))
        evaluator.add(name, masks=maps, scores=scores, categories=categories, prompt=prompt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": np.zeros((4, 4), bool)}, r"\(n, height, width\), not \(4, 4\)"),
        ({"masks": np.zeros((1, 4, 4))}, "not float64: say what is set, as in `logits > 0`"),
        ({"masks": Tensor(np.zeros((1, 4, 4)), "torch.float16")}, "not torch.float16"),
        ({"scores": [0.5, 0.5]}, r"scores must have the shape \(1,\)"),
        ({"categories": [[1]]}, r"categories must have the shape \(1,\)"),
        ({"masks": np.zeros((1, 4, 4), bool)}, r"bad_mask .*size \[4, 4\]"),
        ({"prompt": "finger"}, "bad_prompt"),
        ({"scores": [np.nan]}, "bad_score"),
        ({"categories": [1.5]}, "bad_record .*category_id must be a whole number"),
        ({"sample_id": "z"}, "unknown_sample"),
    ],
)
def test_arrays_that_cannot_be_scored_are_refused_at_once(change, message, bench, opened):
    sample = next(s for s in opened.samples() if s.conditions)
    good = {
        "sample_id": sample.sample_id,
        "masks": np.ones((1, sample.height, sample.width), bool),
        "scores": [0.5],
        "categories": [sample.conditions[0].category_id],
        "prompt": "point",
    }
    evaluator = Evaluator(bench, "vgdseg")
    arguments = {**good, **change}
    with pytest.raises(PredictionError, match=message):
        evaluator.add(arguments.pop("sample_id"), **arguments)
    evaluator.add(good.pop("sample_id"), **good)
    assert evaluator.result(exclude_faults=True)["predictions"] == 1


def test_a_kind_of_prompt_for_which_nothing_is_found_scores_0(bench, opened):
    """Where another kind finds something, too; of a file nobody knows that the model was asked."""
    evaluator = Evaluator(bench, "vgdseg", Rules(strata=False))
    sample = next(s for s in opened.samples() if s.variant == "same_image")
    mask = np.ones((1, sample.height, sample.width), bool)
    category = [sample.conditions[0].category_id]
    evaluator.add(sample.sample_id, masks=mask, scores=[0.5], categories=category, prompt="box")
    evaluator.add(sample.sample_id, masks=[], prompt="point")
    result = evaluator.result()
    assert result["scores"]["same_image"]["point"]["ap"] == 0.0
    assert "same_image/point" not in result["not_answered"]
    assert "same_image/mask" in result["not_answered"]
    with pytest.raises(PredictionError, match="no sample of the benchmark"):
        evaluator.add("nobody", masks=[], prompt="point")
    with pytest.raises(PredictionError, match="prompt must be one of"):
        evaluator.add(sample.sample_id, masks=[], prompt="finger")


def test_no_masks_are_no_predictions(bench, opened):
    evaluator = Evaluator(bench, "vgdseg")
    name = next(opened.samples()).sample_id
    for none in (np.zeros((0, 4, 4), bool), []):
        evaluator.add(name, masks=none, scores=[], categories=[], prompt="point")
    assert evaluator.result()["predictions"] == 0


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command_writes_and_prints_the_result(call, bench, expected, noisy, opened, tmp_path):
    write(noisy, tmp_path / "noisy.json", opened.id)
    out = tmp_path / "out"
    done = call("eval", "vgd", "--benchmark", bench, "--predictions", tmp_path / "noisy.json", "--out", out)
    assert done.exit_code == 0, done.output
    assert json.loads((out / "result.json").read_text()) == expected
    assert (out / "result.txt").read_text() == done.stdout
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("same_image/box"))
    assert row[1] == f"{100 * expected['scores']['same_image']['box']['ap']:.2f}"


def test_faults_end_the_command_with_one_report(call, bench, noisy, opened, tmp_path):
    bad = [noisy[0], noisy[0], {**noisy[1], "sample_id": "z"}, *({**noisy[2], "score": None} for _ in range(5))]
    write(bad, tmp_path / "bad.json", opened.id)
    arguments = ("eval", "vgd", "--benchmark", bench, "--predictions", tmp_path / "bad.json", "--out", tmp_path / "out")
    done = call(*arguments)
    assert done.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert done.stderr.splitlines() == [
        "error: 7 predictions cannot be scored; mend them, or leave them out by --exclude-faults:",
        "  1 unknown_sample: no sample of the benchmark has this id",
        "    bad.json: predictions[2]: 'z' is no sample of the benchmark",
        "  5 bad_score: a score that is no finite number",
        *(f"    bad.json: predictions[{n}]: score must be a finite number, not None" for n in (3, 4, 5)),
        "    …",
        "  1 duplicate: said twice",
        f"    bad.json: predictions[1]: {noisy[0]['sample_id']}: the same mask with the same score for category "
        f"{noisy[0]['category_id']}",
    ]
    done = call(*arguments, "--exclude-faults")
    assert done.exit_code == 0
    assert "left out: 5 bad_score" in done.stdout


def test_predictions_for_another_benchmark_are_refused(call, bench, noisy, tmp_path):
    write(noisy, tmp_path / "other.json", OTHER)
    done = call("eval", "vgd", "--benchmark", bench, "--predictions", tmp_path / "other.json", "--out", tmp_path / "o")
    assert done.exit_code == 1
    assert f"made for the benchmark {OTHER}" in done.stderr
