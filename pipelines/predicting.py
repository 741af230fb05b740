"""`dataengine predict` and `dataengine import-xsam`. Nothing heavy is imported before it is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.command import errors, for_terminal
from pipelines.markdown import printable

if TYPE_CHECKING:
    import numpy as np

    from dataengine.sample import Prompt
    from model.predictions import Prediction

_NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "accelerate")
_DEVICES = ("cpu", "cuda")


def predict(
    model: Annotated[str, typer.Option("--model", metavar="DIR", help="A checkpoint folder with its tokenizer.")],
    image: Annotated[Path, typer.Option("--image", metavar="FILE", help="The picture.")],
    text: Annotated[
        str,
        typer.Option("--prompt", metavar="TEXT", help="The question; <p>…</p> stands about what to segment."),
    ] = "",
    point: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="A click, px; of several points: on one thing.")
    ] = None,
    box: Annotated[list[str] | None, typer.Option(metavar="X0,Y0,X1,Y1", help="A box, px.")] = None,
    scribble: Annotated[
        list[str] | None, typer.Option(metavar="X,Y,X,Y,…", help="A stroke through points, px.")
    ] = None,
    mask: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A mask of the picture's size, set where not black.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="TEXT", help="An answer with <SEG> to segment, instead of a generated one.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="By default what the question looks like.")] = None,
    variant: Annotated[
        str, typer.Option(metavar="panoptic|semantic|instance", help="Of genseg and ovseg.")
    ] = "instance",
    thresholds: Annotated[
        str, typer.Option(metavar="NAME", help="show, evaluate, evaluate-stage1 or published.")
    ] = "show",
    max_new: Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer, in ids.")] = 512,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where the model runs.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A new or empty folder for masks, overlay and answer.")
    ] = None,
) -> None:
    """Ask an X-SAM about a picture. Each <region> is a prompt: points, boxes, scribbles, masks, in this order."""
    with errors():
        require_model()
        from dataengine.errors import UserError
        from model import predicting
        from model.postprocess import THRESHOLDS

        if thresholds not in THRESHOLDS:
            raise UserError(f"--thresholds {thresholds}: there are {', '.join(THRESHOLDS)}")
        if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out {out}: a new or empty folder is needed")
        prompts = read_prompts(point or [], box or [], scribble or [], mask or [])
        predictor = predicting.load(model, device=_device(device))
        prediction = predictor.ask(
            image,
            text,
            prompts,
            task=task,  # type: ignore[arg-type]  # checked there
            answer=answer,
            variant=variant,
            thresholds=THRESHOLDS[thresholds],
            max_new=max_new,
        )
        typer.echo(summary(prediction))
        if out is not None:
            write(prediction, image, out)
            typer.echo(f"{out}: {len(prediction.masks)} masks")


def import_xsam(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A published pytorch_model.bin or .safetensors, or its folder.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty checkpoint folder.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="DIR|NAME", help="The language model's tokenizer, without which nobody can ask."),
    ] = None,
    settings: Annotated[
        str, typer.Option(metavar="PRESET|FILE", help="What the weights do not tell, such as numbers of heads.")
    ] = "xsam-phi3-siglip2-saml",
) -> None:
    """Turn a checkpoint that X-SAM's authors published into one of ours, and say what became of each weight."""
    with errors():
        require_model()
        from dataengine.errors import UserError
        from model import predicting, words
        from model.checkpoints import load_into, save_pretrained, without_values
        from model.config import PRESETS, from_json, preset
        from model.released import import_released
        from model.xsam import XSam

        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out {out}: a new or empty folder is needed")
        is_file = settings not in PRESETS and Path(settings).is_file()
        base = from_json(Path(settings).read_bytes(), settings) if is_file else preset(settings)
        config, state, report = import_released(file, XSam, base)
        typer.echo(for_terminal("\n".join(report.lines())))
        found = None
        if tokenizer is not None and config.language is not None:
            found = words.load_tokenizer(tokenizer)
            predicting.check_tokenizer(found, config.language.settings.get("vocab_size"), tokenizer)
        if report.stage == 2:
            from safetensors.torch import save_file

            out.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, out / "model.safetensors")
            typer.echo(f"{out}: projectors alone, to be loaded into a whole model")
            return
        model = without_values(XSam, config)
        load_into(model, state, name=str(file))
        save_pretrained(model, out, config)
        if found is not None:
            found.save_pretrained(str(out))
        elif config.language is not None:
            typer.echo(f"{out} has no tokenizer yet; predict needs the language model's, see --tokenizer", err=True)
        typer.echo(f"{out}: {config.name}, {sum(p.numel() for p in model.parameters()):,} parameters")


def require_model() -> None:
    """Raise UserError where what the model runs on is not installed."""
    from importlib.util import find_spec

    from dataengine.errors import UserError

    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"the model needs {', '.join(missing)}; install dataengine[model]")


# --- what is given ---------------------------------------------------------------------------------------------------


def read_prompts(
    points: Sequence[str], boxes: Sequence[str], scribbles: Sequence[str], masks: Sequence[Path]
) -> list["Prompt | np.ndarray"]:
    """Visual prompts of their texts.

    Raises:
        UserError: a text has other numbers than needed, or a mask cannot be read.
    """
    from model import inputs

    found: list[Prompt | np.ndarray] = []
    for text in points:
        found.append(inputs.point(*_pairs("--point", text)))
    for text in boxes:
        corners = _pairs("--box", text, exactly=2)
        found.append(inputs.box(*corners[0], *corners[1]))
    found += [inputs.scribble(_pairs("--scribble", text)) for text in scribbles]
    return found + [_mask(file) for file in masks]


def _pairs(option: str, text: str, exactly: int | None = None) -> list[tuple[float, float]]:
    import math

    from dataengine.errors import UserError

    needed = "X,Y" if exactly is None else ",".join(["X,Y"] * exactly)
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text:.80}: numbers {needed} are needed") from None
    if len(numbers) % 2 or not all(map(math.isfinite, numbers)) or exactly not in (None, len(numbers) // 2):
        raise UserError(f"{option} {text:.80}: finite numbers {needed} are needed")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _mask(file: Path) -> "np.ndarray":
    import numpy as np

    from model.pictures import open_picture

    return np.any(np.asarray(open_picture(file)), axis=-1)


def _device(name: str) -> str:
    import torch

    from dataengine.errors import UserError

    if name.partition(":")[0] not in _DEVICES:
        raise UserError(f"--device {name}: cpu or cuda is needed")
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no such device here")
    return name


# --- what is found ---------------------------------------------------------------------------------------------------


def summary(prediction: "Prediction") -> str:
    """What was said, on one line, and a line for each mask; nothing of it steers a terminal."""
    from dataengine import masks

    size = prediction.height, prediction.width
    lines = [f"{prediction.task}: {printable(prediction.text)}"]
    for number, one in enumerate(prediction.masks):
        name = printable(one.text) or f"condition {one.condition}"
        lines.append(f"  {number}: {name}, score {one.score:.3f}, {masks.area(one.rle, *size):,} px")
    return "\n".join(lines if prediction.masks else [*lines, "  nothing was segmented"])


def write(prediction: "Prediction", image: Path, out: Path) -> None:
    """answer.txt, prediction.json with masks as RLE, masks/N.png (0 and 255), and overlay.png."""
    import json

    import numpy as np
    from PIL import Image

    from dataengine import masks
    from model.pictures import open_picture
    from model.predictions import overlay, to_json

    folder = out / "masks"
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(prediction.masks):
        mask = masks.decode(one.rle, prediction.height, prediction.width)
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number:03}.png")
    overlay(open_picture(image), prediction).save(out / "overlay.png")
    (out / "answer.txt").write_text(prediction.text + "\n", encoding="utf-8")
    (out / "prediction.json").write_text(json.dumps(to_json(prediction), indent=1, ensure_ascii=False) + "\n", "utf-8")
