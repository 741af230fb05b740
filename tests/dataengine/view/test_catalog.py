"""Filters, sorts and facets, against the samples themselves, looked through one by one."""

import math
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataengine.sample import Turn
from dataengine.store.dataset import open_dataset
from dataengine.view import catalog as cataloguing
from dataengine.view import texts
from dataengine.view.catalog import Catalog, Filters
from dataengine.view.listing import Listing
from dataengine.view.reader import Reader

NUM = 120
NAMES = {1: "a", 2: "b", 3: "c"}  # of the dataset's categories; 4 has none


@pytest.fixture(scope="module")
def samples(made_samples):
    return made_samples


@pytest.fixture(scope="module")
def catalog(made_dataset):
    return filled(made_dataset)


def filled(out) -> Catalog:
    catalog = Catalog(Reader(open_dataset(str(out))))
    catalog.fill(lambda: False)
    return catalog


def passing(catalog, **filters) -> list[int]:
    mask, ready = catalog.search(Filters(**filters), 60)
    assert ready == 1
    return np.flatnonzero(mask).tolist()


def prompts(sample):
    """Prompts that could be made, of objects and references."""
    return [p for thing in (*sample.objects, *sample.references) for p in thing.prompts if p.status != "none"]


VALUES = {
    "task": lambda s: {s.task},
    "variant": lambda s: {s.variant} - {None},
    "source": lambda s: {s.source},
    "split": lambda s: {s.split},
    "license": lambda s: {str(s.license)},
    "category": lambda s: {NAMES.get(o.category_id, f"category {o.category_id}") for o in s.objects},
    "kind": lambda s: {p.kind for p in prompts(s)},
    "origin": lambda s: {o.lineage.origin for o in s.objects},
    "labeler": lambda s: {o.lineage.labeler for o in s.objects} - {None},
    "round": lambda s: {str(o.lineage.round) for o in s.objects if o.lineage.round is not None},
}


@pytest.mark.parametrize("name", VALUES)
def test_facets_count_and_filter_the_rows_that_have_a_value(catalog, samples, name):
    expected = Counter(value for sample in samples for value in VALUES[name](sample))
    assert dict(catalog.facets()[name]) == expected
    for value in expected:
        assert passing(catalog, facets=((name, (value,)),)) == [
            n for n, sample in enumerate(samples) if value in VALUES[name](sample)
        ]
    assert passing(catalog, facets=((name, tuple(expected)),)) == [n for n, s in enumerate(samples) if VALUES[name](s)]
    assert passing(catalog, facets=((name, ("no such value",)),)) == []


def least(values):
    return min(values, default=math.nan)


def scores(sample, name):
    return [v for o in sample.objects if (v := getattr(o.lineage, name)) is not None]


NUMBERS = {
    "objects": lambda s: len(s.objects),
    "conditions": lambda s: len(s.conditions),
    "words": lambda s: sum(len(turn.text.split()) for turn in s.turns),
    "area": lambda s: max((o.area for o in s.objects), default=math.nan),
    "smallest": lambda s: least(o.area for o in s.objects),
    "inside": lambda s: least(p.inside for p in prompts(s)),
    "other": lambda s: max((p.other for p in prompts(s)), default=math.nan),
    "score": lambda s: least(scores(s, "score")),
    "stability": lambda s: least(scores(s, "stability")),
}


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("descending", [False, True])
def test_rows_are_sorted_by_a_number_and_those_without_come_last(catalog, samples, key, descending):
    numbers = np.arange(NUM)
    values = [NUMBERS[key](sample) for sample in samples]
    np.testing.assert_allclose(catalog.value(numbers, key), values)
    ordered = [values[n] for n in catalog.order(numbers, key, descending).tolist()]
    there = [value for value in ordered if not math.isnan(value)]
    assert there == sorted(there, reverse=descending)
    assert all(map(math.isnan, ordered[len(there) :]))
    assert sorted(catalog.order(numbers, key, descending).tolist()) == list(range(NUM))


@pytest.mark.parametrize("name", ["objects", "inside", "other", "score", "stability"])
@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (-math.inf, 0.5), (2, math.inf), (2, 1)])
def test_ranges_hold_both_ends(catalog, samples, name, low, high):
    expected = [n for n, sample in enumerate(samples) if low <= NUMBERS[name](sample) <= high]
    assert passing(catalog, ranges=((name, low, high),)) == expected


def test_an_area_is_that_of_any_object(catalog, samples):
    """A small and a large object do not make one of medium size."""
    low, high = 150, 250
    expected = [n for n, s in enumerate(samples) if any(low <= o.area <= high for o in s.objects)]
    around = [n for n, s in enumerate(samples) if s.objects and NUMBERS["smallest"](s) <= high <= NUMBERS["area"](s)]
    assert passing(catalog, ranges=(("area", low, high),)) == expected != around


def test_ambiguous_rows_have_a_prompt_more_in_another_object(catalog, samples):
    expected = [n for n, s in enumerate(samples) if any(p.other > p.inside for p in prompts(s))]
    assert passing(catalog, ambiguous=True) == expected != []


TEXTS = [
    "zebra",
    "SNOW MAN",
    "ёЛКА",
    "100%",
    "a.b",
    "(left)",
    "здесь",
    "thing 7-0",
    "000017",
    "no such text",
    "\\",
    ".",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_searched_as_they_are_in_upper_and_lower_case(catalog, samples, text):
    def said(sample):
        return [sample.sample_id, *(t.text for t in sample.turns), *(c.text for c in sample.conditions)]

    expected = [n for n, s in enumerate(samples) if any(text.lower() in part.lower() for part in said(s))]
    assert passing(catalog, text=text) == expected


def test_texts_beyond_the_budget_are_read_again(catalog, made_dataset, monkeypatch):
    monkeypatch.setattr(texts.Texts.__init__, "__defaults__", (2000,))
    other = filled(made_dataset)
    kept = [block.data is not None for block in other.texts.blocks]
    assert any(kept)
    assert not all(kept)
    for text in TEXTS:
        assert passing(other, text=text) == passing(catalog, text=text)


def test_a_search_that_is_stopped_says_how_far_it_came_and_goes_on(made_dataset, samples):
    catalog = filled(made_dataset)
    shares = []
    for _ in catalog.texts.blocks:
        mask, ready = catalog.search(Filters(text="dog"), 0)
        shares.append(ready)
        if ready == 1:
            break
    assert 0 < shares[0] < 1
    assert shares == sorted(set(shares))
    assert np.flatnonzero(mask).tolist() == [n for n, s in enumerate(samples) if "dog" in s.turns[0].text]


def test_filters_hold_together(catalog, samples):
    expected = [
        n
        for n, s in enumerate(samples)
        if s.source == "alpha" and VALUES["kind"](s) & {"box", "mask"} and any(o.area >= 100 for o in s.objects)
    ]
    found = passing(
        catalog, facets=(("source", ("alpha",)), ("kind", ("box", "mask"))), ranges=(("area", 100, math.inf),)
    )
    assert found == expected != []


def test_rows_that_are_not_catalogued_yet_are_in_no_answer(made_dataset, samples):
    catalog = Catalog(Reader(open_dataset(str(made_dataset))))
    seen = 0

    def pause() -> bool:
        nonlocal seen
        seen += 1
        return seen > 9  # 3 row groups a shard of 10 rows: in the fourth shard

    catalog.fill(pause)
    assert catalog.rows == 30
    mask, ready = catalog.search(Filters(facets=(("task", ("vgdseg",)),)), 1)
    assert len(mask) == 30
    assert ready == catalog.ready == 30 / NUM
    assert dict(catalog.facets()["source"]) == Counter(s.source for s in samples)  # the manifest tells


def test_a_damaged_shard_is_named_and_the_others_are_catalogued(made_dataset, tmp_path):
    out = shutil.copytree(made_dataset, tmp_path / "damaged")
    damaged = sorted((out / "shards").iterdir())[1]
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) // 2])
    catalog = filled(out)
    assert list(catalog.damaged) == [1]
    assert damaged.name in catalog.damaged[1]
    assert passing(catalog, facets=(("split", ("train",)),)) == [*range(10), *range(20, NUM)]


def test_a_shard_that_is_damaged_halfway_counts_nowhere(made_dataset, samples, tmp_path):
    out = shutil.copytree(made_dataset, tmp_path / "damaged")
    dataset = open_dataset(str(out))
    entry = dataset.manifest["shards"][-1]  # the last one: rows that follow do not tell that it was passed
    damage_group(out / entry["name"], 1)
    catalog = filled(out)
    assert list(catalog.damaged) == [len(dataset.manifest["shards"]) - 1]
    left = samples[: -entry["rows"]]
    for name in ("task", "category", "kind", "license"):
        assert dict(catalog.facets()[name]) == Counter(value for sample in left for value in VALUES[name](sample))
    expected = [n for n, sample in enumerate(left) if "dog" in sample.turns[0].text]
    assert passing(catalog, text="dog") == expected != []


def damage_group(shard, group: int) -> None:
    """Write over the ids of a row group."""
    about = pq.ParquetFile(shard).metadata.row_group(group)
    column = next(c for c in map(about.column, range(about.num_columns)) if c.path_in_schema == "sample_id")
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(shard.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    shard.write_bytes(data)


def test_an_id_is_found_while_rows_are_catalogued(made_dataset, samples, monkeypatch):
    listing, candidates = Listing(open_dataset(str(made_dataset))), Catalog.candidates

    def meanwhile(catalog, sample_id):
        found = candidates(catalog, sample_id)
        catalog.fill(lambda: False)
        return found

    monkeypatch.setattr(Catalog, "candidates", meanwhile)
    assert listing.number_of(samples[45].sample_id) == 45


def test_an_id_is_found_behind_a_damaged_shard_that_is_not_catalogued_yet(made_dataset, samples, tmp_path):
    out = shutil.copytree(made_dataset, tmp_path / "damaged")
    listing = Listing(open_dataset(str(out)))
    (out / listing.dataset.manifest["shards"][0]["name"]).write_bytes(b"no shard")
    assert listing.number_of(samples[15].sample_id) == 15


def test_ids_are_found_by_their_hash(catalog, samples):
    for number, sample in enumerate(samples):
        assert catalog.candidates(sample.sample_id) == [number]


def test_a_facet_of_too_many_values_gathers_the_rest(write_dataset, make_sample, monkeypatch):
    monkeypatch.setattr(cataloguing, "MAX_NAMES", 5)
    samples = [replace(make_sample(1), sample_id=f"alpha/train/{n}/vgdseg", variant=f"v{n}") for n in range(20)]
    catalog = filled(write_dataset(samples))
    assert dict(catalog.facets()["variant"]) == {"v0": 1, "v1": 1, "v2": 1, "v3": 1, cataloguing.OTHERS: 16}
    assert passing(catalog, facets=(("variant", (cataloguing.OTHERS,)),)) == list(range(4, 20))


def test_words_are_parted_as_python_parts_ascii_blanks(write_dataset, make_sample):
    said = ["", " ", "one", " two  words ", "tab\tand\nline", "ends ", " ёлка-x y"]
    samples = [
        replace(
            make_sample(1),
            sample_id=f"alpha/train/{n}/vgdseg",
            turns=(Turn(role="user", text=text, supervised=False), Turn(role="user", text="next", supervised=False)),
        )
        for n, text in enumerate(said)
    ]
    catalog = filled(write_dataset(samples))
    assert catalog.numbers["words"].tolist() == [len(text.split()) + 1 for text in said]
