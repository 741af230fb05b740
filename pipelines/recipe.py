"""Recipes: YAML files that say which sources become which samples. Checked here, at the boundary."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from dataengine import builder, mixing
from dataengine.builder import OptionError, SourceError
from dataengine.errors import UserError
from dataengine.sample import Task
from dataengine.store.files import Folder

SHIPPED = Path(__file__).parent / "recipes"
REGION_TASKS = ("vgdseg", "intseg")
Int = Annotated[int, Field(strict=True)]  # YAML's `yes` is no number
Seed = Annotated[Int, Field(ge=0, lt=1 << 63)]


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ValueError(f"{value!r} is no name; 1 to 64 letters, digits and _ . - make one")
    return value


def _role(value: str) -> str:
    source, _, split = value.partition("/")
    try:
        return f"{_name(source)}/{_name(split)}"
    except ValueError:
        raise ValueError(f"{value!r} is no role; write SOURCE/SPLIT, for example refcoco/val") from None


Name = Annotated[str, AfterValidator(_name)]
Role = Annotated[str, AfterValidator(_role)]


def _without_repeats(values: tuple[str, ...]) -> tuple[str, ...]:
    again = [value for n, value in enumerate(values) if value in values[:n]]
    if again:
        raise ValueError(f"{again[0]} is named twice")
    return values


Names = Annotated[tuple[Name, ...], AfterValidator(_without_repeats)]
Roles = Annotated[tuple[Role, ...], AfterValidator(_without_repeats)]
Kinds = Annotated[
    tuple[Literal["point", "scribble", "box", "mask"], ...], Field(min_length=1), AfterValidator(_without_repeats)
]


class RecipeError(UserError):
    """A recipe that cannot be used; the message names the file and the field."""


class _Misplaced(ValueError):
    """Keys that do not go together. place: of the one to look at, as `sources.coco`."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(message)
        self.place = place


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(_Model):
    """One source: which builder reads it, what it becomes, where its files are.

    root: folder of the published layout. files: paths by role, for trees that are not laid out as published; they win.
    splits: the wanted ones; none means all there are. options: the builder's own. expected: how many training records
    the published source has, without those that the options filter, for a mixing table without data; a build says where
    there are more or fewer. Whole thousands are taken for rounded.
    """

    builder: Name
    task: Task
    root: str | None = None
    files: dict[str, str] = {}
    splits: Names = ()
    options: dict[str, Any] = {}
    expected: Int | None = Field(default=None, ge=0)


class PromptSpec(_Model):
    """Which visual prompts are simulated for the objects of region conditions.

    fallback: make those that the profile cannot make by the `strict` one, which never fails, and flag them; else such
    a prompt has the status `none`.
    """

    profile: Literal["published", "strict"] = "published"
    kinds: Kinds = ("point", "scribble", "box", "mask")
    fallback: bool = False


class VariantSpec(_Model):
    """What else is asked of each picture of a `vgdseg` source; see `pipelines.variants`.

    cross_image: its categories, each shown in another picture. negatives: how many absent categories are shown besides
    those that are there. shots: in how many other pictures each of its categories is shown.
    """

    cross_image: bool = False
    negatives: Int = Field(default=0, ge=0, le=1000)
    shots: Int = Field(default=0, ge=0, le=100)

    @property
    def any(self) -> bool:
        return self.cross_image or self.negatives > 0 or self.shots > 0


class ShardSpec(_Model):
    """images: how many pictures make one shard, which is one task."""

    images: Int = Field(default=500, ge=1, le=100_000)


class BudgetSpec(_Model):
    """The job stops when more than `min_count` records, and more than `max_fraction` of all, are quarantined."""

    max_fraction: float = Field(default=0.01, ge=0, le=1)
    min_count: Int = Field(default=100, ge=0)


class BalancedSpec(_Model):
    """See `mixing.Balanced`."""

    rule: Literal["balanced"]
    threshold: float = Field(default=0.1, ge=0, le=1e6)
    mult: float = Field(default=1.0, gt=0, le=1e6)

    def to_rule(self) -> mixing.Rule:
        return mixing.Balanced(threshold=self.threshold, mult=self.mult)


class TemperatureSpec(_Model):
    """See `mixing.Temperature`."""

    rule: Literal["temperature"]
    temperature: float = Field(gt=0)
    total: Int | None = Field(default=None, ge=1)

    def to_rule(self) -> mixing.Rule:
        return mixing.Temperature(self.temperature, total=self.total)


class WeightsSpec(_Model):
    """See `mixing.Weights`."""

    rule: Literal["weights"]
    weights: dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)
    total: Int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _something_is_drawn(self) -> WeightsSpec:
        if not any(self.weights.values()):
            raise _Misplaced("mixing.weights", "all weights are 0; nothing can be drawn")
        return self

    def to_rule(self) -> mixing.Rule:
        return mixing.Weights(self.weights, total=self.total)


MixSpec = Annotated[BalancedSpec | TemperatureSpec | WeightsSpec, Field(discriminator="rule")]
RULES: dict[str, type[BaseModel]] = {"balanced": BalancedSpec, "temperature": TemperatureSpec, "weights": WeightsSpec}


class Recipe(_Model):
    """What a dataset is made of.

    held_out: sources that are only read for the pictures of their held-out splits.
    forbid: roles (`source/split`) whose pictures must not be trained on; None for all held-out splits that there are
        of `sources` and `held_out`.
    variants: samples besides those of the sources themselves, for benchmarks.
    mixing: how often a trainer draws from each source.
    """

    name: Name
    description: str = ""
    seed: Seed = 0
    sources: dict[Name, SourceSpec] = Field(min_length=1)
    held_out: dict[Name, SourceSpec] = {}
    forbid: Roles | None = None
    prompts: PromptSpec | None = None
    variants: VariantSpec | None = None
    mixing: MixSpec | None = None
    shard: ShardSpec = ShardSpec()
    budget: BudgetSpec = BudgetSpec()
    _lines: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _regions_are_shown(self) -> Recipe:
        if self.prompts is not None:
            return self
        shown = sorted(name for name, spec in self.sources.items() if spec.task in REGION_TASKS)
        shown = [name for name in shown if not builder.brings_prompts(self.sources[name].builder)]
        if shown:
            message = f"source {shown[0]} needs visual prompts: add `prompts:` to the recipe"
            raise _Misplaced(f"sources.{shown[0]}", message)
        return self

    @model_validator(mode="after")
    def _variants_have_exemplars(self) -> Recipe:
        if self.variants is not None and self.variants.any:
            for name, spec in self.sources.items():
                if spec.task != "vgdseg" or not builder.has_exemplars(spec.builder):
                    message = f"variants need sources of task vgdseg whose builder lists exemplars; {name} is none"
                    raise _Misplaced("variants", message)
        return self

    @model_validator(mode="after")
    def _names_are_one_source(self) -> Recipe:
        both = sorted(set(self.sources) & set(self.held_out))
        if both:
            message = f"source {both[0]} is named in sources and in held_out; once is enough"
            raise _Misplaced(f"held_out.{both[0]}", message)
        unknown = [role for role in self.forbid or () if role.partition("/")[0] not in self.sources | self.held_out]
        if unknown:
            raise _Misplaced("forbid", f"{unknown[0]} is of no source of this recipe; add it to held_out")
        if isinstance(self.mixing, WeightsSpec) and set(self.mixing.weights) != set(self.sources):
            odd = min(set(self.mixing.weights) ^ set(self.sources))
            message = f"weights must name each source once; {odd} is in only one of the two"
            raise _Misplaced("mixing.weights", message)
        return self

    def place(self, source: str) -> str:
        """Where the recipe says what a source is, for messages: `FILE, line N, source NAME`."""
        where = self._lines.get(f"sources.{source}") or self._lines.get(f"held_out.{source}") or f"recipe {self.name}"
        return f"{where}, source {source}"

    @contextmanager
    def naming(self, source: str) -> Iterator[None]:
        """Errors of a source that cannot be used say where the recipe names it, and how to say where it is."""
        try:
            yield
        except (SourceError, OptionError) as error:
            spec = (self.sources | self.held_out)[source]
            hint = ""
            if isinstance(error, SourceError) and spec.root is not None and not Folder(spec.root).exists():
                hint = f" (there is no {spec.root}: say where it is by --root DIR or --source {source}=PATH)"
            raise type(error)(f"{self.place(source)}: {error}{hint}") from None

    def with_paths(self, change: Callable[[str], str]) -> Recipe:
        """The same recipe with every path of a source changed."""

        def changed(specs: Mapping[str, SourceSpec]) -> dict[str, SourceSpec]:
            return {
                name: spec.model_copy(
                    update={
                        "root": None if spec.root is None else change(spec.root),
                        "files": {role: change(path) for role, path in spec.files.items()},
                    }
                )
                for name, spec in specs.items()
            }

        return self.model_copy(update={"sources": changed(self.sources), "held_out": changed(self.held_out)})

    def with_absolute_paths(self) -> Recipe:
        """The same recipe with local paths made absolute, so that it can be used from elsewhere."""
        return self.with_paths(lambda path: path if "://" in path else str(Path(path).absolute()))

    def with_root(self, root: str) -> Recipe:
        """The same recipe with its relative paths below a folder, a path or URI."""
        return self.with_paths(
            lambda path: path if "://" in path or Path(path).is_absolute() else (Folder(root) / path).uri
        )


def read_change(change: str, example: str, error: type[UserError]) -> tuple[str, Any]:
    """Key and YAML value of KEY=VALUE, as `--set` takes them. Raises `error` where it is not written so."""
    key, mark, text = change.partition("=")
    if not mark or not key:
        raise error(f"--set {change}: write KEY=VALUE, for example {example}")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise error(f"--set {change}: not a YAML value: {problem}") from None


def shipped() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load(name: str) -> Recipe:
    """A recipe by the name of one that ships with the package, or by the path of a YAML file.

    Raises:
        RecipeError: there is none, or it is not valid.
    """
    path = SHIPPED / f"{name}.yaml" if name in shipped() else Path(name)
    try:
        text = path.read_text()
        data = yaml.safe_load(text)
        lines = _lines_of(yaml.compose(text, Loader=yaml.SafeLoader), name)
    except OSError:
        raise RecipeError(
            f"{name}: no recipe of that name and no such file; recipes that ship with the package: "
            f"{', '.join(shipped())}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: not a YAML file: {error}") from None
    except RecursionError:
        raise RecipeError(f"{name}: something in it holds itself, or is nested too deep") from None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        where, problem = _first_of(error)
        line = next((lines[key] for key in _outwards(where) if key in lines), 1)
        raise RecipeError(f"{name}, line {line}: {where or 'the top level'}: {problem}") from None
    recipe._lines = {key: f"{name}, line {line}" for key, line in lines.items()}
    return recipe


def parse(values: Mapping[str, Any], name: str) -> Recipe:
    """The recipe of these values. name: of what it is for, for messages. Raises RecipeError."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        where, problem = _first_of(error)
        raise RecipeError(f"{name}: {where}: {problem}") from None


def _first_of(error: ValidationError) -> tuple[str, str]:
    """Where the first thing that is wrong with a recipe stands (`sources.coco.task`), and what it is."""
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"] if part != "[key]"]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, _Misplaced):
        return raised.place, str(raised)
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        problem = f"there is no such key; there are {', '.join(_model_at(loc[:-1]).model_fields)}"
    elif first["type"] == "tuple_type":
        problem = f"a list is needed, such as [{first['input']}]"
    elif first["type"] in ("dict_type", "model_type", "model_attributes_type"):
        problem = "keys with values are needed here"
    elif first["type"] == "union_tag_not_found":
        problem = f"`rule:` is missing; there are {', '.join(RULES)}"
    elif first["type"] == "union_tag_invalid":
        problem = f"there is no rule {first['ctx']['tag']!r}; there are {', '.join(RULES)}"
    if loc[:1] == ["mixing"] and loc[1:2] and loc[1] in RULES:  # the rule is no key
        del loc[1]
    return ".".join(loc), problem


def _model_at(loc: list[str]) -> type[BaseModel]:
    """The model whose keys stand at a place of a recipe."""
    models: dict[str, type[BaseModel]] = {
        "prompts": PromptSpec,
        "variants": VariantSpec,
        "shard": ShardSpec,
        "budget": BudgetSpec,
    }
    if not loc:
        return Recipe
    if loc[0] == "mixing":
        return RULES[loc[1]]
    return models.get(loc[0], SourceSpec)


def _lines_of(node: yaml.Node | None, file: str, key: str = "", line: int = 1) -> dict[str, int]:
    """Line of each key of a YAML document, by its place (`sources.coco.task`).

    Raises:
        RecipeError: a key is given twice, of which YAML would forget the first.
    """
    found = {key: line}
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for name, value in node.value:
            place = f"{key}.{name.value}" if key else str(name.value)
            if place in seen:
                raise RecipeError(f"{file}, line {name.start_mark.line + 1}: {place}: is given twice")
            seen.add(place)
            found |= _lines_of(value, file, place, name.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            found |= _lines_of(value, file, f"{key}.{number}", value.start_mark.line + 1)
    return found


def _outwards(key: str) -> Iterator[str]:
    """A place, and those around it."""
    while key:
        yield key
        key = key.rpartition(".")[0]
    yield ""


def with_sources(recipe: Recipe, given: list[str]) -> Recipe:
    """The recipe with the folders of `--source NAME=PATH`.

    NAME is a source of the recipe; or, for a recipe with a single source, an installed builder, which then reads it,
    and whose name the samples carry.

    Raises:
        RecipeError: a source is not written NAME=PATH, or the recipe has no such source.
    """
    sources, held_out = dict(recipe.sources), dict(recipe.held_out)
    seen = set()
    for text in given:
        name, mark, root = text.partition("=")
        if not mark or not name or not root:
            raise RecipeError(f"--source {text}: write NAME=PATH, for example --source coco=/data/coco")
        if name in seen:
            raise RecipeError(f"--source {name}: given twice")
        seen.add(name)
        if name in held_out:
            held_out[name] = held_out[name].model_copy(update={"root": root})
            continue
        if name not in sources and len(recipe.sources) == 1 and len(given) == 1 and name in builder.names():
            sources[name] = sources.pop(next(iter(sources))).model_copy(update={"builder": name})
        if name not in sources:
            there = ", ".join([*recipe.sources, *recipe.held_out])
            raise RecipeError(f"--source {name}: recipe {recipe.name} has the sources {there}")
        sources[name] = sources[name].model_copy(update={"root": root})
    return _checked(recipe, "--source", sources=sources, held_out=held_out)


def _checked(recipe: Recipe, option: str, **changes: Any) -> Recipe:
    """The recipe with changes that a command line option asks for."""
    try:
        changed = Recipe.model_validate(recipe.model_copy(update=changes).model_dump())
    except ValidationError as error:
        raise RecipeError(f"{option}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    changed._lines = recipe._lines
    return changed


def with_splits(recipe: Recipe, splits: list[str]) -> Recipe:
    """The recipe with only these splits of every source; all of its own where none is given."""
    if not splits:
        return recipe
    sources = {name: spec.model_copy(update={"splits": tuple(splits)}) for name, spec in recipe.sources.items()}
    return _checked(recipe, "--split", sources=sources)
