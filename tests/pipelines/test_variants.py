"""Variants of region samples: the same truth; what is shown is another picture's object, as it is there; no chance."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import coco
from dataengine.keyed import keyed
from dataengine.sample import Image
from dataengine.store.dataset import open_dataset, validate
from pipelines import build, variants
from pipelines.build import Settings
from pipelines.recipe import PromptSpec, Recipe, RecipeError, ShardSpec, SourceSpec, VariantSpec, load
from pipelines.variants import CROSS_IMAGE, K_SHOT, NEGATIVES, SAME_IMAGE, Library, Pictures

WIDE = [[2, 12, 30, 12, 30, 22, 2, 22]]


def recipe_of(root, *, images: int = 500, options=None, **wanted) -> Recipe:
    source = SourceSpec(builder="coco", task="vgdseg", root=str(root), splits=("val",), options=options or {})
    return Recipe(
        name="variants",
        sources={"coco": source},
        prompts=PromptSpec(profile="strict", fallback=True),
        variants=VariantSpec(**wanted),
        shard=ShardSpec(images=images),
    )


@pytest.fixture
def varied(tmp_path):
    """Builds a tree's variants: the samples by variant and picture, and the manifest."""

    def make(tree, **wanted):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        manifest = build.run(recipe_of(tree.root, **wanted), str(out), Settings())
        assert validate(str(out)).problems == []
        found: dict[str, dict] = {name: {} for name in variants.NAMES}
        for sample in open_dataset(str(out)).samples():
            found[sample.variant][sample.image_key] = sample
        return found, manifest

    return make


@pytest.fixture
def tree(coco_tree):
    """Eight pictures with two of three categories each; a crowd in the first, of the category that it lacks."""
    made = coco_tree(8, split="val")
    made.annotations.append(
        {
            "id": 99,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 1,
            "segmentation": {"size": [24, 32], "counts": [0, 768]},
        }
    )
    made.save()
    return made


def by_category(sample) -> dict[int, tuple[str, ...]]:
    """What is to be found, by category."""
    return {c.category_id: tuple(sample.objects[i].annotation_id for i in c.objects) for c in sample.conditions}


def test_all_variants_have_the_same_truth(varied, tree):
    found, _ = varied(tree, cross_image=True, negatives=1, shots=2)
    bare = [[replace(o, prompts=()) for o in s.objects] for s in found[SAME_IMAGE].values()]
    categories = {a["image_id"]: set() for a in tree.annotations}
    for annotation in tree.annotations:
        categories[annotation["image_id"]] |= {annotation["category_id"]} - ({1} if annotation["iscrowd"] else set())
    for samples in found.values():
        assert list(samples) == list(found[SAME_IMAGE])
        assert [[replace(o, prompts=()) for o in s.objects] for s in samples.values()] == bare
        for number, sample in enumerate(samples.values(), 1):
            asked = {category: names for category, names in by_category(sample).items() if names}
            assert asked == by_category(found[SAME_IMAGE][sample.image_key])
            assert set(asked) == categories[number]
    names = {s.sample_id for samples in found.values() for s in samples.values()}
    assert len(names) == 4 * 8


def test_what_is_shown_is_an_object_of_another_picture_as_it_is_there(varied, tree):
    found, _ = varied(tree, cross_image=True, negatives=2, shots=3)
    own = {o.annotation_id: (s, o) for s in found[SAME_IMAGE].values() for o in s.objects}
    for variant in (CROSS_IMAGE, NEGATIVES, K_SHOT):
        assert any(sample.references for sample in found[variant].values())
        for sample in found[variant].values():
            for condition in sample.conditions:
                if condition.reference < 0:
                    assert variant == NEGATIVES
                    continue
                shown = [sample.references[i] for i in (condition.reference, *condition.shots)]
                assert len({r.image_key for r in shown} | {sample.image_key}) == len(shown) + 1
                for reference in shown:
                    there, thing = own[reference.annotation_id]
                    assert reference.category_id == condition.category_id == thing.category_id
                    assert (reference.image, reference.image_key) == (there.image, there.image_key)
                    assert (reference.rle, reference.prompts) == (thing.rle, thing.prompts)
                    assert len(reference.prompts) == 4


def test_shots_are_nested(varied, tree):
    few, _ = varied(tree, cross_image=True, shots=2)
    many, _ = varied(tree, shots=4)

    def shown(sample):
        return {
            c.category_id: [sample.references[i].annotation_id for i in (c.reference, *c.shots)]
            for c in sample.conditions
        }

    for key, sample in few[CROSS_IMAGE].items():
        one, two, four = shown(sample), shown(few[K_SHOT][key]), shown(many[K_SHOT][key])
        assert {len(names) for names in one.values()} == {1}
        assert {len(names) for names in two.values()} == {2}
        assert {len(names) for names in four.values()} == {4}
        assert all(four[c][:2] == two[c] and two[c][:1] == one[c] for c in four)


def test_more_shots_than_pictures(varied, tree):
    found, _ = varied(tree, shots=50)
    pictures = Counter(a["category_id"] for a in tree.annotations if not a["iscrowd"])  # one of a category in each
    for sample in found[K_SHOT].values():
        for condition in sample.conditions:
            assert 1 + len(condition.shots) == pictures[condition.category_id] - 1


def test_negatives_are_not_in_the_picture_not_even_as_a_crowd(varied, tree):
    found, _ = varied(tree, negatives=5)
    for number, sample in enumerate(found[NEGATIVES].values(), 1):
        there = {a["category_id"] for a in tree.annotations if a["image_id"] == number}
        absent = {category for category, names in by_category(sample).items() if not names}
        assert absent == {1, 2, 3} - there
        own = found[SAME_IMAGE][sample.image_key]
        kept = {c.category_id: c.exemplar for c in sample.conditions if c.objects}
        assert kept == {c.category_id: c.exemplar for c in own.conditions}


def test_a_picture_of_which_an_annotation_was_refused_has_no_negatives(varied, tree):
    tree.annotations[2]["segmentation"] = [[1, 1]]  # refused when it is read: of picture 2
    tree.annotations.append(dict(tree.annotations[0], image_id=3, category_id=3))  # when it is indexed: id 10 again
    tree.save()
    found, manifest = varied(tree, negatives=1)
    keys = list(found[SAME_IMAGE])
    assert list(found[NEGATIVES]) == keys
    unsure = [k for k, s in found[NEGATIVES].items() if not s.references]
    assert unsure == [keys[0], keys[1], keys[2]]  # picture 1 has all three, one of them as a crowd
    counts = manifest["counts"]["records"]
    assert counts["filtered"]["variant_regions"] == {"absence_unsure": 2}
    built = sum(len(s.conditions) for s in found[NEGATIVES].values())
    assert counts["built"]["variant_regions"] == built
    assert counts["read"]["variant_regions"] == built + 2


def test_a_category_of_one_picture_cannot_be_shown_by_another(varied, tree):
    tree.categories.append({"id": 7, "name": "lonely"})
    tree.annotations.append({"id": 77, "image_id": 2, "category_id": 7, "iscrowd": 0, "segmentation": WIDE})
    tree.save()
    found, manifest = varied(tree, cross_image=True, shots=2)
    asked, own = (by_category(list(found[name].values())[1]) for name in (CROSS_IMAGE, SAME_IMAGE))
    assert own[7] == ("77",)
    assert set(own) - set(asked) == {7}
    assert manifest["counts"]["records"]["filtered"]["variant_regions"] == {"no_reference": 2}


def test_pictures_that_cannot_be_read_are_not_shown(varied, tree):
    for number in (2, 3, 4, 5):
        (tree.root / "val" / f"{number}.jpg").unlink()
    found, _ = varied(tree, cross_image=True, shots=5)
    shown = {r.image_key for s in found[K_SHOT].values() for r in s.references}
    assert shown == {f"coco/{n:012d}" for n in (1, 6, 7, 8)} == set(found[SAME_IMAGE])


def test_embedded_references_hold_their_picture(varied, tree):
    found, _ = varied(tree, cross_image=True, options={"images": "embed"})
    for sample in found[CROSS_IMAGE].values():
        for reference in sample.references:
            name = f"{int(reference.image_key.split('/')[-1])}.jpg"
            assert reference.image.bytes == (tree.root / "val" / name).read_bytes()


def test_how_shards_are_cut_and_what_is_at_hand_make_no_difference(varied, tree, monkeypatch):
    wanted = {"cross_image": True, "negatives": 1, "shots": 2}
    whole, _ = varied(tree, **wanted)
    monkeypatch.setattr(variants, "KEPT", 0)
    monkeypatch.setattr(Pictures.__init__, "__defaults__", (0,))
    assert varied(tree, images=1, **wanted)[0] == whole


def test_pictures_that_must_not_be_trained_on_are_not_shown_either(tmp_path, coco_tree):
    train, val = coco_tree(8, split="train"), coco_tree(4, split="val")  # 1 to 4 are the same pictures
    source = SourceSpec(builder="coco", task="vgdseg", root=str(train.root), splits=("train",))
    recipe = recipe_of(val.root, images=3, cross_image=True, negatives=2, shots=5)
    recipe = recipe.model_copy(update={"sources": {"coco": source}})
    shown = {}
    for name, held_out in (("free", {}), ("held", {"eval": source.model_copy(update={"root": str(val.root)})})):
        held_out = {key: spec.model_copy(update={"splits": ("val",)}) for key, spec in held_out.items()}
        build.run(recipe.model_copy(update={"held_out": held_out}), str(tmp_path / name), Settings())
        samples = list(open_dataset(str(tmp_path / name)).samples())
        shown[name] = {r.image_key for s in samples for r in s.references}, {s.image_key for s in samples}
    own = {f"coco/{number:012d}" for number in range(5, 9)}
    assert shown["free"][0] > own  # the others are shown where nothing forbids it
    assert shown["held"] == (own, own)


def test_wording_does_not_speak_of_examples_in_this_picture(varied, tree):
    found, _ = varied(tree, cross_image=True)
    for sample in found[CROSS_IMAGE].values():
        assert sample.turns[0].text.count("<p><region></p>") == len(sample.conditions)
        assert "examples too" not in sample.turns[0].text


def test_a_builder_that_knows_what_is_absent_is_believed(read_source, tree):
    (reading,) = read_source(coco, tree.root, "vgdseg")
    pool = variants.load_pool(str(variants.write_pool("coco", reading.context, reading.index.path, reading.report.bad)))
    spec = VariantSpec(negatives=9)
    library = Library(
        builder=coco,
        context=reading.context,
        index=reading.index,
        pool=pool,
        prompts=PromptSpec(profile="strict"),
        spec=spec,
    )
    outcome = reading.outcomes[1]
    (base,) = outcome.samples
    missing = ({1, 2, 3} - {o.category_id for o in base.objects}).pop()
    for known, drawn in ((None, {missing}), (frozenset({missing}), {missing}), (frozenset(), set())):
        made = variants.vary(base, replace(outcome, absent=known), library)
        assert {c.category_id for c in made.samples[1].conditions if not c.objects} == drawn
    refused = replace(outcome, bad=[object()])  # what is refused is of no interest where absence is stated
    assert variants.vary(base, replace(refused, absent=frozenset({missing})), library).filtered == {}
    assert variants.vary(base, refused, library).filtered == {"absence_unsure": 9}


@given(st.integers(0, 3000), st.integers(0, 9))
def test_shuffling_gives_each_once(number, seed):
    drawn = list(variants._shuffled(number, keyed(seed, "shuffled")))
    assert sorted(drawn) == list(range(number))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4000)), max_size=40), st.integers(0, 30_000))
def test_pictures_at_hand_fit_their_limit(puts, limit):
    kept, last = Pictures(limit), {}
    for name, size in puts:
        sample = _sample(size)
        kept.put(str(name), sample)
        last[str(name)] = sample
        held = {n: kept.get(n) for n in sorted(last) if kept.get(n) is not None}
        assert sum(map(variants._size_of, held.values())) == kept._size <= limit
        assert all(value is last[n] for n, value in held.items())


def _sample(size: int):
    from dataengine.sample import Provenance, Sample

    origin = Provenance(file="", record="", builder="", version=1, seed=0)
    return Sample(
        sample_id="",
        task="vgdseg",
        source="",
        split="",
        image=Image(bytes=bytes(size), path=""),
        image_key="",
        height=1,
        width=1,
        provenance=origin,
    )


def test_sources_without_exemplars_have_no_variants(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"name": "a", "sources": {"s": {"builder": "coco_vgd", "task": "vgdseg"}}}))
    path.write_text(path.read_text()[:-1] + ', "variants": {"shots": 1}}')
    with pytest.raises(RecipeError, match="variants need sources of task vgdseg whose builder lists exemplars; s is"):
        load(str(path))
