"""The result of an evaluation as a file and as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# scores → how tables call them; what is not here keeps its name
TITLES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "APs",
    "ap_medium": "APm",
    "ap_large": "APl",
    "ar100": "AR100",
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "miou": "mIoU",
    "fwiou": "fwIoU",
    "macc": "mAcc",
    "pacc": "pAcc",
    "ciou": "cIoU",
    "giou": "gIoU",
    "precision": "Pr",
    "n_acc": "N-acc",
    "t_acc": "T-acc",
    "meteor": "METEOR",
    "cider": "CIDEr",
}
# what the file has and the table has no room for
LEFT_OUT = frozenset({"per_category", "strata", "ar1", "ar10", "ar_small", "ar_medium", "ar_large"})
HEADS = {
    "size": "size of what is shown",
    "inside": "prompt inside it",
    "ambiguous": "ambiguous",
    "instances": "objects wanted",
}
Row = tuple[str, Mapping[str, Any]]


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Write `result.json` and `result.txt` into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    made = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "result.json").write_text(made + "\n", encoding="utf-8")
    (folder / "result.txt").write_text(text(result) + "\n", encoding="utf-8")


def text(result: Mapping[str, Any]) -> str:
    """Scores in percent as tables, how much was predicted, and what was left out."""
    blocks = ["\n".join(_head(result))]
    rows = list(_rows(result["scores"]))
    if "xsam" in result:  # each row with its counterpart below it
        other = dict(_rows(result["xsam"]["scores"]))
        rows = [pair for row in rows for pair in (row, ("  xsam", other.get(row[0], {})))]
    blocks += _tables(rows)
    strata = [(name, row["strata"]) for name, row in rows if row.get("strata")]
    if strata:
        blocks.append(_strata_table(strata))
    blocks.append("\n".join(_notes(result)))
    return "\n\n".join(block for block in blocks if block)


def _head(result: Mapping[str, Any]) -> Iterator[str]:
    convention = {"both": "standard convention, and X-SAM's below it"}.get(
        result["convention"], f"{result['convention']} convention"
    )
    split = f", {result['split']}" if result.get("split") else ""
    yield f"{result['task']} on {result['name']}{split} ({result['benchmark']})"
    facts = [convention, result.get("backend"), f"{result['predictions']:,} predictions"]
    if "samples" in result:
        facts.append(f"for {result['samples_with_predictions']:,} of {result['samples']:,} samples")
    yield "; ".join(fact for fact in facts if fact) + "; in percent"


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    if result.get("not_answered"):
        yield f"without any prediction, and not scored: {', '.join(result['not_answered'])}"
    if result.get("names_benchmark") is False:
        yield "the file does not say for which benchmark it was made"
    for reason, fault in result["excluded"].items():
        yield f"left out: {fault['count']:,} {reason}, such as {fault['examples'][0]}"


# --- rows ------------------------------------------------------------------------------------------------------------


def _rows(scores: Mapping[str, Any], place: str = "") -> Iterator[Row]:
    """What has numbers of its own, by its place in the tree."""
    if any(not isinstance(value, Mapping) for value in scores.values()):
        yield place or "all", scores
        return
    for name, value in scores.items():
        yield from _rows(value, f"{place}/{name}" if place else name)


def _shares(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Scores of a row by title; counts and texts are none."""
    for name, value in row.items():
        title = f"{prefix}{TITLES.get(name, name)}"
        if name in LEFT_OUT:
            continue
        if name == "false_positives":
            yield "FP@0.5", value["rate"]["0.5"]
        elif isinstance(value, Mapping):
            yield from _shares(value, f"{title} ")
        elif value is None or isinstance(value, float):
            yield title, value


def _tables(rows: Iterable[Row]) -> list[str]:
    """One table for each set of rows that have the same scores, or some of them."""
    tables: list[tuple[list[str], list[tuple[str, dict[str, float | None]]]]] = []
    for name, row in rows:
        shares = dict(_shares(row))
        for titles, lines in tables:
            if set(titles) & set(shares) or not shares:
                titles += [title for title in shares if title not in titles]
                lines.append((name, shares))
                break
        else:
            tables.append((list(shares), [(name, shares)]))
    return [
        _aligned(["", *titles], [[name, *(_percent(v, t) for t in titles)] for name, v in lines])
        for titles, lines in tables
    ]


def _percent(shares: Mapping[str, float | None], title: str) -> str:
    if title not in shares:
        return ""
    value = shares[title]
    return "-" if value is None else f"{100 * value:.2f}"


def _aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in (head, *lines)
    )


def _strata_table(rows: Sequence[Row]) -> str:
    """AP by stratum: a row each, strata side by side under what they tell apart."""
    blocks = [["AP by stratum", "", *(name for name, _ in rows)]]
    width = max(map(len, blocks[0]))
    lines = [[cell.ljust(width)] for cell in blocks[0]]
    for name, strata in rows[0][1].items():
        columns = [[label, *(_percent({"ap": row[name][label]["ap"]}, "ap") for _, row in rows)] for label in strata]
        sides = [max(map(len, column)) for column in columns]
        body = [
            "  ".join(column[line].rjust(side) for column, side in zip(columns, sides, strict=True))
            for line in range(len(rows) + 1)
        ]
        block = [HEADS.get(name, name), *body]
        wide = max(map(len, block))
        for line, cell in zip(lines, block, strict=True):
            line.append(cell.rjust(wide))
    return "\n".join("   ".join(line).rstrip() for line in lines)
