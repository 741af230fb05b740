"""Training on datasets: shards to steps."""

import pickle
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")
pytest.importorskip("accelerate")

from benchmarks.overfit import write_dataset  # noqa: E402
from dataengine.errors import UserError  # noqa: E402
from dataengine.loader import scratch  # noqa: E402
from dataengine.loader.groups import open_data  # noqa: E402
from dataengine.loader.loader import Loader  # noqa: E402
from dataengine.loader.order import Draw, Order  # noqa: E402
from model.inputs import Processor  # noqa: E402
from model.training.draws import Collate, Make  # noqa: E402
from model.training.loop import Data, train  # noqa: E402
from model.training.step import LossError  # noqa: E402
from model.words import tiny_tokenizer  # noqa: E402
from tests.model.training.runs import CONFIG, PLAIN, fresh, metrics  # noqa: E402

STAGE = replace(PLAIN, steps=None, epochs=1, batch=2, micro=1, save_every=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "default_folder", lambda: tmp_path / "scratch")


def feed(rows):
    """What a run reads of datasets."""
    order, processor = Order(rows.sources, seed=1, batch=2), Processor(CONFIG, tiny_tokenizer())

    def loader(start):
        return Loader(rows, order, Make(processor=processor, stage=STAGE), Collate(stage=STAGE), micro=1, start=start)

    return Data(
        loader=loader,
        tasks=frozenset(order.tasks),
        steps_per_epoch=order.steps_per_epoch,
        fingerprint=rows.fingerprint,
        order=order.settings,
        place=lambda sample_id: str(rows.datasets[0].folder.uri),
        described=rows.describe(),
        check_same=rows.check_same,
    )


@pytest.fixture
def fed(dataset):
    rows = open_data([dataset])
    return rows, feed(rows)


def open_ids(data):
    return [sample.sample_id for sample in data.datasets[0].samples()]


def test_an_epoch_of_a_dataset_is_learned_and_gone_on_with(fed, tmp_path):
    data, found = fed
    seen = []

    def loader(start):
        for micro in found.loader(start):
            seen.append((micro.step, *micro.sample_ids))
            yield micro

    result = train(STAGE, fresh(), replace(found, loader=loader), tmp_path, cpu=True, say=lambda _: None)
    # three pictures as regions, three by categories, two by expressions
    assert found.steps_per_epoch == result.steps == 2 + 2 + 1
    assert found.tasks == {"vgdseg", "genseg", "refseg"}
    assert sorted(sample for _, sample in seen) == sorted(open_ids(data))
    assert len(metrics(tmp_path)) == 5
    fewer = open_data([data.datasets[0].folder.uri], tasks=["vgdseg"])
    with pytest.raises(UserError, match=r"what the run began with: source .* is gone"):
        train(STAGE, fresh(), feed(fewer), tmp_path, resume=True, cpu=True, say=lambda _: None)


def test_what_cannot_be_learned_from_is_named_with_its_dataset(fed, tmp_path):
    data, found = fed
    model = fresh()
    with torch.no_grad():
        model.bg_embeds.weight.fill_(torch.inf)
    with pytest.raises(LossError, match="dataengine reproduce ") as caught:
        train(STAGE, model, found, tmp_path, cpu=True, say=lambda _: None)
    assert f"dataengine reproduce {data.datasets[0].folder.uri} --sample" in str(caught.value)


def test_what_is_made_depends_on_the_time_a_sample_is_drawn_alone(fed):
    data, _ = fed
    make = Make(processor=Processor(CONFIG, tiny_tokenizer()), stage=STAGE)
    sample = next(one for one in data.datasets[0].samples() if one.task == "vgdseg")

    def shown(epoch, copy=0, maker=make):
        made = maker(sample, Draw(number=0, epoch=epoch, copy=copy))
        return [int(one.mask.sum()) for one in made.shown]

    again = pickle.loads(pickle.dumps(make))
    assert shown(3) == shown(3, maker=again)
    assert len({tuple(shown(epoch, copy)) for epoch in range(4) for copy in range(2)}) > 1
    swapping = Make(processor=make.processor, stage=replace(STAGE, prompt_swap=True))
    assert len(shown(0, maker=swapping)) == len(sample.objects)
    assert pickle.loads(pickle.dumps(Collate(stage=STAGE))) == Collate(stage=STAGE)
