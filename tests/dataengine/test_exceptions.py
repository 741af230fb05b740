"""Exceptions of the store and of invariants cross process borders: Ray and pools pickle them."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil

import pytest

from dataengine import invariants, store
from dataengine.invariants import InvariantError

MODULES = [
    invariants,
    *(importlib.import_module(f"{store.__name__}.{m.name}") for m in pkgutil.iter_modules(store.__path__)),
]
CLASSES = sorted(
    {
        value
        for module in MODULES
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Exception) and value.__module__ == module.__name__
    },
    key=lambda kind: kind.__name__,
)
ARGUMENTS = {InvariantError: ("s/1", "area", "area 1 stated, 2 in the mask")}


def test_the_classes_are_found():
    names = [kind.__name__ for kind in CLASSES]
    assert names == [
        "BudgetError",
        "DatasetError",
        "InvariantError",
        "LockedError",
        "NondeterminismError",
        "StoreError",
    ]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        *((kind, ARGUMENTS.get(kind, ("a message",))) for kind in CLASSES),
        next((kind, (28, "No space left on device", "/out/a")) for kind in CLASSES if kind.__name__ == "StoreError"),
    ],
)
def test_an_exception_comes_back_as_it_was(kind, arguments):
    error = kind(*arguments)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error)
