"""`report.json` and `report.html` of a loop: what each round did, in figures and curves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dataengine.view import bundle
from pipelines.loop.recipe import LoopRecipe

JSON, FILE, PAGE = "report.json", "report.html", "loop.html"
Rounds = Sequence[dict[str, Any]]


def write(out: Path, recipe: LoopRecipe, rounds: Rounds, ended: str | None) -> None:
    """Write both files. ended: why the loop ended, None while it goes on."""
    told = [{**one, "before": rounds[place - 1]["score"] if place else None} for place, one in enumerate(rounds)]
    data = {"name": recipe.name, "ended": ended, "seed": recipe.seed, "rounds": told}
    _write(out / JSON, json.dumps(data, indent=1) + "\n")
    lost = {str(one["round"]): {**one["by_filter"], **one["by_rule"]} for one in rounds[1:]}
    shown = {
        "title": recipe.name,
        "description": recipe.description,
        "folder": str(out),
        "ended": ended,
        "table": table(rounds),
        "charts": [chart for chart in charts(recipe, rounds) if any(curve["points"] for curve in chart["curves"])],
        "lost": lost if any(lost.values()) else {},
    }
    _write(out / FILE, bundle.page(PAGE, shown))


def _write(file: Path, text: str) -> None:
    staged = file.with_name(f".{file.name}.tmp")
    staged.write_text(text, encoding="utf-8")
    staged.replace(file)


def line(rounds: Rounds) -> str:
    """The newest round in a line."""
    one = rounds[-1]
    parts = [f"score {_percent(one['score'])}"]
    if len(rounds) > 1:
        parts[0] += f", before {_percent(rounds[-2]['score'])}"
        parts += [
            f"{one[name]:,} {name.replace('_', ' ')}"
            for name in ("proposed", "added", "renewed", "confirmed", "conflicted")
        ]
        parts += [f"{sum(one['by_filter'].values()):,} rejected by filters", f"{one['in_review']:,} in review"]
    if one["hidden"] is not None and one["hidden"]["kept"]:
        hidden = one["hidden"]
        parts += [f"precision {_percent(hidden['precision'])}, recall {_percent(hidden['recall'])} of what is hidden"]
    return "; ".join(parts)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def table(rounds: Rounds) -> list[list[str]]:
    """Rows of the page's table, a round a column; the first row is the head. Empty rows are left out."""
    rows = [
        ("round", [str(one["round"]) for one in rounds]),
        ("score before, %", [_number(before) for before in [None, *(one["score"] for one in rounds[:-1])]]),
        ("score after, %", [_number(one["score"]) for one in rounds]),
        ("score with people's masks alone, %", [_number(one["alone"]) for one in rounds]),
        ("score with round 1's labels, %", [_number(one["frozen"]) for one in rounds]),
        *(
            (name, [f"{one['kept'][key]:,}" for one in rounds])
            for name, key in (("masks of people", "human"), ("masks of models", "model"))
        ),
        *(
            (name.replace("_", " "), ["–" if one["round"] == 0 else f"{one[name]:,}" for one in rounds])
            for name in ("proposed", "added", "renewed", "confirmed", "conflicted", "in_review")
        ),
        ("not found again", ["–" if one["round"] == 0 else f"{one['lost']:,}" for one in rounds]),
        (
            "rejected by filters",
            ["–" if one["round"] == 0 else f"{sum(one['by_filter'].values()):,}" for one in rounds],
        ),
        ("rejected by rules", ["–" if one["round"] == 0 else f"{sum(one['by_rule'].values()):,}" for one in rounds]),
        *(
            (
                f"people: {action.replace('_', ' ')}",
                ["–" if not one["round"] else f"{n:,}" for one, n in zip(rounds, ns, strict=True)],
            )
            for action, ns in _words(rounds).items()
        ),
        ("accepted, %", [_number(one["accept"]) for one in rounds]),
        *(
            (f"{name} of {kind} masks, %", [_number((one[kind] or {}).get(name)) for one in rounds])
            for kind in ("hidden", "gold")
            for name in ("precision", "recall")
        ),
        ("drift of classes, %", [_number(one["drift"]) for one in rounds]),
        ("seconds of people", [f"{one['human_seconds']:g}" if one["human_seconds"] else "–" for one in rounds]),
    ]
    return [[name, *cells] for name, cells in rows if set(cells) != {"–"}]


def _words(rounds: Rounds) -> dict[str, list[int]]:
    """What reviewers said, by action: how often in each round."""
    actions = sorted({action for one in rounds for action in one["by_people"]})
    return {action: [one["by_people"].get(action, 0) for one in rounds] for action in actions}


def _number(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def charts(recipe: LoopRecipe, rounds: Rounds) -> Iterator[dict[str, Any]]:
    """Curves over the rounds."""
    score = {"loop": _curve((one["round"], one["score"]) for one in rounds)}
    if recipe.people_alone:
        score["people's masks alone"] = _curve((one["round"], one["alone"]) for one in rounds)
    if recipe.frozen_teacher:
        score["round 1's labels"] = _curve((one["round"], one["frozen"]) for one in rounds)
    yield _chart(f"Score: {recipe.score.figure} of {recipe.score.exam}", "%", score)
    for kind, title in (("hidden", "Hidden masks"), ("gold", "Masks of the gold set")):
        judged = [(one["round"], one[kind] or {}) for one in rounds if one["round"]]
        names = ("precision", "recall")
        yield _chart(title, "%", {name: _curve((n, one.get(name)) for n, one in judged) for name in names})
    known = [one for one in rounds if one["round"]]
    counts = {
        "proposed": [(one["round"], one["proposed"]) for one in known],
        "kept": [(one["round"], one["added"] + one["renewed"]) for one in known],
        "confirmed": [(one["round"], one["confirmed"]) for one in known],
        "by filters": [(one["round"], sum(one["by_filter"].values())) for one in known],
        "in review": [(one["round"], one["in_review"]) for one in known],
    }
    yield _chart("Masks of a round", "", {name: _curve(points, 1.0) for name, points in counts.items()})
    yield _chart("Accepted", "%", {"of what is not confirmed": _curve((one["round"], one["accept"]) for one in known)})
    yield _chart("Drift of classes", "%", {"from round 0": _curve((one["round"], one["drift"]) for one in rounds)})


def _curve(points: Any, factor: float = 100.0) -> list[tuple[float, float]]:
    return [(float(x), float(f"{factor * y:.5g}")) for x, y in points if y is not None]


def _chart(title: str, unit: str, curves: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    shown = [{"name": name, "points": points} for name, points in curves.items() if points]
    return {"title": title, "unit": unit, "curves": shown}
