"""Checkpoints of a run: folders `step-00001234`, complete or invisible, of which the newest sound one is resumed.

A folder holds the learned weights, the optimizer's state and the moving average as sharded safetensors
(torch.distributed.checkpoint), each process its part, and `state.json`: the step, what the run was made of, and every
file's size and SHA-256. Any number of processes reads what any other number wrote. Nothing random is stored, as
nothing random has a state.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dataengine.errors import UserError
from dataengine.keyed import key_hash
from dataengine.store.files import hash_file, is_temporary, temporary_name
from model.training import parallel
from model.training.optim import Average, learned

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

FORMAT = 1
STATE = "state.json"
MAX_STATE = 1 << 24  # bytes
FILE = 1 << 31  # bytes of weights in a file of a checkpoint, all processes' parts of it together
_NAME = re.compile(r"step-(\d{8,})")
_SAMPLED = 64  # numbers of each frozen weight that its digest looks at


class StateError(UserError):
    """A checkpoint of a run that cannot be written, or be gone on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A complete checkpoint. step: how many steps were taken. run: what the run was made of, as given to `save`."""

    folder: Path
    step: int
    run: Mapping[str, Any]


class Checkpoints:
    """Those of one run. All processes call each method; the folder is one that all of them see."""

    def __init__(self, folder: str | Path, keep: int, processes: parallel.Processes) -> None:
        self.folder, self.keep, self.processes = Path(folder), keep, processes

    def save(self, step: int, tensors: Mapping[str, Tensor], run: Mapping[str, Any]) -> Path:
        """Write a checkpoint; older ones than the `keep` newest are removed after that.

        Args:
            step: how many steps were taken. run: values of JSON that a resume compares.
        Raises:
            StateError: it could not be written; those before are as they were.
        """
        import torch.distributed.checkpoint as dcp

        name = f"step-{step:08d}"
        (staged,) = set(parallel.gather(temporary_name(name) if self.processes.is_first else "")) - {""}
        place, problem = self.folder / staged, ""
        try:
            place.mkdir(parents=True, exist_ok=True)
            writer = dcp.HuggingFaceStorageWriter(str(place), _files(tensors), save_distributed=True)
            _quietly(dcp.save, dict(tensors), storage_writer=writer)
            parallel.wait()
            files = sorted(place.iterdir())[self.processes.rank :: self.processes.world]
            mine = {file.name: _settle(file) for file in files}
        except (OSError, dcp.CheckpointException, RuntimeError) as error:
            problem, mine = _reason(error), {}
        everyone = parallel.gather((problem, mine))
        if not any(said for said, _ in everyone) and self.processes.is_first:
            try:
                listed = {name: entry for _, part in everyone for name, entry in part.items()}
                _publish(place, self.folder / name, {"format": FORMAT, "step": step, "run": run, "files": listed})
                self._forget(name)
            except OSError as error:
                problem = _reason(error)
        problems = [said for said in parallel.gather(problem) if said]
        if problems:
            if self.processes.is_first:
                shutil.rmtree(place, ignore_errors=True)
            raise StateError(f"{self.folder / name}: could not be written: {problems[0]}; {self._left()}")
        return self.folder / name

    def newest(self) -> Found | None:
        """The newest checkpoint whose files are all there and unchanged; None where there is none."""
        return self.look()[0]

    def look(self) -> tuple[Found | None, list[str]]:
        """`newest`; and of those that are newer, why they are passed over."""
        return parallel.gather(self._look() if self.processes.is_first else (None, []))[0]

    def load(self, found: Found, tensors: dict[str, Tensor]) -> None:
        """Fill tensors from a checkpoint.

        Raises:
            StateError: it holds others.
        """
        import torch.distributed.checkpoint as dcp

        stored = stored_shapes(found)
        wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if wrong := [name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name)]:
            wrong.sort(key=lambda name: (not name.startswith("weights."), name))
            shown = ", ".join(f"{n} (stored {stored.get(n)}, wanted {wanted.get(n)})" for n in wrong[:5])
            raise StateError(f"{found.folder}: {len(wrong)} weights are not those of this run: {shown}")
        try:
            _quietly(dcp.load, tensors, storage_reader=dcp.HuggingFaceStorageReader(str(found.folder)))
        except (OSError, dcp.CheckpointException, RuntimeError) as error:
            raise StateError(f"{found.folder}: cannot be read: {_reason(error)}") from None

    def _look(self) -> tuple[Found | None, list[str]]:
        unsound = []
        for folder in reversed(self._folders()):
            try:
                state = _sound(folder)
            except StateError as error:
                unsound.append(str(error))
            else:
                return Found(folder=folder, step=state["step"], run=state["run"]), unsound
        return None, unsound

    def _folders(self) -> list[Path]:
        """From old to new."""
        if not self.folder.is_dir():
            return []
        found = [(int(match[1]), f) for f in self.folder.iterdir() if (match := _NAME.fullmatch(f.name))]
        return [folder for _, folder in sorted(found)]

    def _forget(self, newest: str) -> None:
        """Remove what is older than the newest ones, and what was never finished."""
        folders = self._folders()
        old = [folder for folder in folders if folder.name <= newest][: -self.keep]
        for folder in [*old, *(f for f in self.folder.iterdir() if is_temporary(f.name))]:
            shutil.rmtree(folder, ignore_errors=True)

    def _left(self) -> str:
        folders = self._folders()
        return f"the newest before it is {folders[-1].name}" if folders else "there is none before it"


# --- what is in one --------------------------------------------------------------------------------------------------


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None) -> dict[str, Tensor]:
    """What a checkpoint holds: `weights.NAME`, `optimizer.NAME.KIND` of weights that had a gradient, `average.NAME`."""
    weights = learned(model)
    tensors: dict[str, Tensor] = {f"weights.{name}": parameter.detach() for name, parameter in weights.items()}
    for name, parameter in weights.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{kind}"] = value.detach().reshape(1) if value.dim() == 0 else value.detach()
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.values.items()}
    return tensors


def restore(
    checkpoints: Checkpoints,
    found: Found,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
) -> None:
    """Put a checkpoint into a model, its optimizer and its average.

    Raises:
        StateError: it is none of theirs.
    """
    weights, stored = learned(model), stored_shapes(found)
    for name, parameter in weights.items():
        state = {}
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            if f"optimizer.{name}.{kind}" in stored:
                state[kind] = torch.zeros((), device=parameter.device) if kind == "step" else _like(parameter)
        if state:
            optimizer.state[parameter] = state
    checkpoints.load(found, tensors_of(model, optimizer, average))


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """A digest of some numbers of each weight: tells whether a frozen part is the one that a run began with."""
    parts: list[str] = []
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().reshape(-1)
        number = min(_SAMPLED, flat.numel())
        places = torch.arange(number) * (flat.numel() - 1) // max(1, number - 1)
        values = flat[places.to(flat.device)].float().cpu()
        parts += [name, str(tuple(tensor.shape)), values.numpy().tobytes().hex()]
    return key_hash(*parts).hex()


def stored_shapes(found: Found) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors."""
    import torch.distributed.checkpoint as dcp

    try:
        metadata: Metadata = dcp.HuggingFaceStorageReader(str(found.folder)).read_metadata()
    except Exception as error:  # of safetensors, json and the file system
        raise StateError(f"{found.folder}: cannot be read: {_reason(error)}") from None
    return {name: tuple(entry.size) for name, entry in metadata.state_dict_metadata.items()}  # type: ignore[union-attr]


def _like(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, memory_format=torch.preserve_format)


# --- files -----------------------------------------------------------------------------------------------------------


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of the file, from 1, that each tensor goes to: a file is put together in memory."""
    number, size, places = 1, 0, dict[str, int]()
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > FILE:
            number, size = number + 1, 0
        places[name] = number
        size += tensor.nbytes
    return places


def _settle(file: Path) -> dict[str, Any]:
    """A file's size and hash, once it is on the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        digest = hash_file(opened)
    return {"size": file.stat().st_size, "sha256": digest}


def _publish(place: Path, target: Path, state: Mapping[str, Any]) -> None:
    with (place / STATE).open("x", encoding="utf-8") as file:
        json.dump(state, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _settle_folder(place)
    before = target.with_name(temporary_name(target.name))
    if target.exists():  # of a run that went back before it, or unsound
        target.rename(before)
    place.rename(target)
    _settle_folder(target.parent)
    shutil.rmtree(before, ignore_errors=True)


def _settle_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sound(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint. Raises StateError where it does not list its files as they are."""
    try:
        with (folder / STATE).open("rb") as file:
            state = dict(json.loads(file.read(MAX_STATE)))
        if state["format"] != FORMAT or folder.name != f"step-{state['step']:08d}":
            raise StateError(f"{folder}: {STATE} is of another format or step")
        listed, run = state["files"], state["run"]
        if not isinstance(run, dict):
            raise StateError(f"{folder}: {STATE} does not say what the run was")
        files = {f.name: f for f in folder.iterdir() if f.name != STATE}
        if wrong := sorted(files.keys() ^ listed.keys()):
            raise StateError(f"{folder}: {wrong[0]} is {'not listed' if wrong[0] in files else 'missing'}")
        for name, path in files.items():
            with path.open("rb") as opened:
                if path.stat().st_size != listed[name]["size"] or hash_file(opened) != listed[name]["sha256"]:
                    raise StateError(f"{folder}: {name} is not as it was written")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StateError(f"{folder}: {STATE} cannot be used: {_reason(error)}") from None
    return state


def _quietly(call: Any, *arguments: Any, **named: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is a single process, and the like
        call(*arguments, **named)


def _reason(error: BaseException) -> str:
    """The innermost cause, on one line."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return " ".join(str(error).split())[:300] or type(error).__name__
