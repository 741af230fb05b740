"""Scores of captions: tokens as the Penn Treebank has them, CIDEr, and METEOR through its own Java program.

CIDEr is in [0, 10], ten times a mean cosine, as it is published; METEOR is in [0, 1].
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

Tokens = Sequence[str]
NGRAMS = 4
SIGMA = 6.0  # of the Gaussian penalty on the difference in length

# pycocoevalcap drops these; its list has brackets in capitals while the tokens are in lower case, so brackets stay
PUNCTUATION = frozenset(["''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_UNIFORM = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "--", "—": "--", "…": "...", "€": "$", "£": "#"})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PARTS = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
    "'tis": "'t is",
    "'twas": "'t was",
    "y'all": "y' all",
}
_ABBREVIATIONS = (
    r"mrs?|ms|dr|st|jr|sr|prof|gen|col|capt|maj|lt|sgt|adm|cmdr|gov|rev|sen|rep|pres|hon|messrs|esq|ph\.d|mt|ave|blvd|rd|"
    r"inc|corp|ltd|co|bros|assn|dept|univ|jan|feb|apr|aug|sept|dec|etc|vs"
)
_WORD = r"[^\W_]+(?:_+[^\W_]+)*"
_TOKEN = re.compile(
    rf"""
    https?://\S+ | [\w.+-]{{1,64}}@[\w-]+(?:\.[\w-]+)+ # addresses
    | </?[a-z][a-z0-9]*/?>                          # tags
    | '(?:tis|twas)\b | '\d\ds?\b | (?<=\s)'n'(?=\s)
    | (?:{_ABBREVIATIONS})\.(?!{_WORD})
    | (?:no|fig)\.(?=\s*\d)
    | (?:[^\W\d_]\.){{2,}}(?!{_WORD})               # u.s., a.m.
    | (?<!\w)[-+]?\d*(?:[.,:/]\d+)+(?![\d/-])       # 1,000.5, 10:30, 3/4
    | (?<!\w)[-+]\d+\b
    | [@#][^\W\d_]\w*
    | {_WORD}(?:[-/.&']{_WORD})*
    | \.{{2,}} | -{{2,}} | [!?]+
    | [^\s\w] | _+
    """,
    re.X,
)
_CONTRACTED = ("n't", "'s", "'m", "'d", "'re", "'ve", "'ll")  # no one ends another


def tokenize(text: str) -> list[str]:
    """Words of a caption in lower case, contractions taken apart (`it 's`, `is n't`), punctuation left out.

    The rules are those of Stanford's PTBTokenizer as pycocoevalcap 1.2 runs it (3.4.1, `-lowerCase`) and filters it;
    brackets stay, as `-lrb-`, as they do there. They agree on ordinary captions. They differ on what is seldom in one:
    abbreviations other than the common ones, units run into numbers (`7:00pm`), `rock'n'roll`, characters beyond the
    Unicode basic plane (dropped there, kept here), entities such as `&amp;`.
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(text.lower().translate(_UNIFORM)):
        if token in _BRACKETS:
            tokens.append(_BRACKETS[token])
        elif token in _PARTS:
            tokens.extend(_PARTS[token].split())
        elif token not in PUNCTUATION and token.strip(".-"):
            tokens.extend(_apart(token))
    return tokens


def _apart(token: str) -> list[str]:
    """A word without its contractions, and they after it."""
    ends: list[str] = []
    while end := next((end for end in _CONTRACTED if token.endswith(end) and token != end), None):
        token = token.removesuffix(end)
        ends.append(end)
    return [token, *reversed(ends)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionScore:
    """corpus: of all captions together. per_item: of each, in order."""

    corpus: float
    per_item: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Absent:
    """A score that could not be had, and why. It is never replaced by another number."""

    reason: str


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> CaptionScore | Absent:
    """CIDEr-D (Vedantam et al., CVPR 2015) as pycocoevalcap computes it under the name CIDEr.

    For n = 1 to 4 an n-gram weighs count · (ln N - ln max(1, df)), df the number of items in whose references it
    occurs. Of candidate c and reference r, Σ min(c, r) · r / (|c| |r|), times exp(-(difference in length)² / (2 · 6²)),
    the length being the number of bigrams; mean over n and over references, times 10. Of a single item all weights are
    0, and so is the score.

    Args:
        candidates: tokens of one caption an item. references: those of one caption or several of each.
    Returns:
        in [0, 10]; the corpus is the mean. `Absent` of no items.
    Raises:
        ValueError: lengths differ, an item has no reference, or texts were given for tokens.
    """
    _check(candidates, references)
    if not candidates:
        return Absent("there are no captions")
    counted = [[_ngrams(reference) for reference in several] for several in references]
    frequency = Counter(ngram for several in counted for ngram in set().union(*several))
    log_items = math.log(len(candidates))
    scores = []
    for candidate, several in zip(candidates, counted, strict=True):
        own = _weighed(_ngrams(candidate), frequency, log_items)
        pairs = [_similarity(own, _weighed(reference, frequency, log_items)) for reference in several]
        scores.append(10.0 * math.fsum(pairs) / len(pairs))
    return CaptionScore(corpus=math.fsum(scores) / len(scores), per_item=tuple(scores))


Ngram = tuple[str, ...]
Weighed = tuple[list[dict[Ngram, float]], list[float], int]  # weights and their norms for n = 1 to 4, number of bigrams


def _ngrams(tokens: Tokens) -> Counter[Ngram]:
    return Counter(
        tuple(tokens[start : start + n]) for n in range(1, NGRAMS + 1) for start in range(len(tokens) - n + 1)
    )


def _weighed(counts: Counter[Ngram], frequency: Counter[Ngram], log_items: float) -> Weighed:
    weights: list[dict[Ngram, float]] = [{} for _ in range(NGRAMS)]
    length = 0
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * (log_items - math.log(max(1, frequency[ngram])))
        length += count * (len(ngram) == 2)
    norms = [math.sqrt(math.fsum(weight * weight for weight in of_n.values())) for of_n in weights]
    return weights, norms, length


def _similarity(candidate: Weighed, reference: Weighed) -> float:
    """Mean over n of the clipped cosines, with the penalty on length."""
    values = []
    for own, other, norm, other_norm in zip(candidate[0], reference[0], candidate[1], reference[1], strict=True):
        shared = math.fsum(min(own[ngram], other[ngram]) * other[ngram] for ngram in own.keys() & other.keys())
        values.append(shared / (norm * other_norm) if norm and other_norm else 0.0)
    difference = candidate[2] - reference[2]
    return math.fsum(values) / NGRAMS * math.exp(-(difference**2) / (2 * SIGMA**2))


def meteor(
    candidates: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    *,
    jar: str | Path | None = None,
    java: str = "java",
    timeout: float = 600.0,
) -> CaptionScore | Absent:
    """METEOR 1.5 (Denkowski and Lavie, WMT 2014), English, by its own Java program: `-stdio -l en -norm`.

    Args:
        candidates, references: see `cider`.
        jar: meteor-1.5.jar, with its paraphrases in `data/` beside it; None looks at the environment's `METEOR_JAR`,
            then in the installed pycocoevalcap. java: the program. timeout: seconds.
    Returns:
        in [0, 1]; the corpus is no mean of the items. `Absent` where Java or the jar is missing or failed.
    Raises:
        ValueError: see `cider`.
    """
    _check(candidates, references)
    if not candidates:
        return Absent("there are no captions")
    program = shutil.which(java)
    if program is None:
        return Absent(f"METEOR needs Java; there is no program {java!r}")
    place = _meteor_jar(jar)
    if isinstance(place, Absent):
        return place
    questions = [
        " ||| ".join(["SCORE", *map(_line, several), _line(candidate)])
        for candidate, several in zip(candidates, references, strict=True)
    ]
    answers = _asked(program, place, questions, timeout)
    if isinstance(answers, Absent):
        return answers
    scores = []
    for answer in answers:
        try:
            scores.append(float(answer))
        except ValueError:
            scores.append(math.nan)
        if not 0 <= scores[-1] <= 1:
            return Absent(f"METEOR answered no number in [0, 1]: {answer!r:.200}")
    return CaptionScore(corpus=scores[-1], per_item=tuple(scores[:-1]))


def _meteor_jar(jar: str | Path | None) -> Path | Absent:
    given = jar or os.environ.get("METEOR_JAR")
    if given:
        return Path(given).resolve() if Path(given).is_file() else Absent(f"there is no METEOR jar at {given}")
    package = importlib.util.find_spec("pycocoevalcap")
    for folder in (package.submodule_search_locations or []) if package else []:
        if (place := Path(folder) / "meteor" / "meteor-1.5.jar").is_file():
            return place
    return Absent("METEOR needs meteor-1.5.jar: set METEOR_JAR, or install pycocoevalcap")


def _asked(program: str, jar: Path, questions: Sequence[str], timeout: float) -> list[str] | Absent:
    """METEOR's scores of the questions, then that of all.

    Each question is answered by statistics, and all statistics together by scores; one by one, so that no pipe fills.
    """
    command = [program, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    wanted = 2 * len(questions) + 1
    answers: list[str] = []
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=jar.parent,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            return Absent(f"METEOR could not be started: {error}")
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        with suppress(BrokenPipeError), process:
            answers.extend(_exchange(process, questions))
        late = not timer.is_alive()
        timer.cancel()
        if len(answers) == wanted:
            return answers[len(questions) :]
        if late:
            return Absent(f"METEOR took more than {timeout:g} s")
        said.seek(0)
        last = said.read().decode(errors="replace").strip()[-300:]
    return Absent(f"METEOR ended after {len(answers)} of {wanted} answers, exit status {process.returncode}: {last}")


def _exchange(process: subprocess.Popen[str], questions: Sequence[str]) -> Iterator[str]:
    """What the program answers, until it says nothing more."""
    assert process.stdin is not None
    assert process.stdout is not None
    statistics = []
    for question in questions:
        process.stdin.write(question + "\n")
        process.stdin.flush()
        statistics.append(process.stdout.readline().strip())
        if not statistics[-1]:
            return
        yield statistics[-1]
    process.stdin.write(" ||| ".join(["EVAL", *statistics]) + "\n")
    process.stdin.flush()
    for _ in range(len(questions) + 1):
        if not (answer := process.stdout.readline().strip()):
            return
        yield answer


def _line(tokens: Tokens) -> str:
    """Tokens as one line without METEOR's separator."""
    return " ".join(" ".join(tokens).replace("|||", " ").split())


def _check(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates have {len(references)} items of references")
    for number, (candidate, several) in enumerate(zip(candidates, references, strict=True)):
        if not several:
            raise ValueError(f"item {number} has no reference")
        if isinstance(candidate, str) or isinstance(several, str) or any(isinstance(one, str) for one in several):
            raise ValueError(f"item {number}: lists of tokens are needed, not texts; see `tokenize`")
