"""Prints every figure the README claims, as a Markdown table."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import build, evaluation, index, inputs, loading, metrics, prompts, relabel, sources, training, viewer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--images", type=int, default=20_000, help="of the world that is built")
    parser.add_argument("--tree", type=Path, help="a COCO tree to build instead of a new world of shapes")
    parser.add_argument("--instances", type=Path, help="an instances json to index instead of a made one")
    arguments = parser.parse_args()
    print(f"Measured on {prompts.machine()}.\n")
    print("| what | measured | wanted |\n|---|---|---|")
    for rows in (
        lambda: prompts.rows(),
        lambda: index.rows(arguments.instances),
        lambda: sources.rows(),
        lambda: metrics.rows(),
        lambda: evaluation.rows(),
        lambda: build.rows(arguments.tree, arguments.images),
        lambda: viewer.rows(),
        lambda: loading.rows(),
        lambda: inputs.rows(),
        lambda: training.rows(),
        lambda: relabel.rows(),
    ):
        for row in rows():
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
