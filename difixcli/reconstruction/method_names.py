"""The methods' names without importing nerfstudio, which takes long: they are read from its source."""

from __future__ import annotations

import ast
import os
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path

from difixcli.errors import unknown

_GROUP = "nerfstudio.method_configs"
_VARIABLE = "NERFSTUDIO_METHOD_CONFIGS"


def check_method_name(name: str) -> None:
    """Raises InputError for a method that nobody registers, as far as that can be told without importing any.

    A plug-in says what it is called when it is imported: where there is one, every name is let pass.
    """
    known = own_names()
    if known and name not in known and not plug_ins():
        raise unknown("method", name, known)


def plug_ins() -> bool:
    """Whether other packages offer methods here, of which nothing is known until they are imported."""
    return bool(entry_points(group=_GROUP)) or bool(os.environ.get(_VARIABLE))


@cache
def own_names() -> frozenset[str]:
    """Names that nerfstudio itself registers; none where its source is not as expected."""
    spec = PathFinder.find_spec("nerfstudio")
    if spec is None or spec.origin is None:
        return frozenset()
    try:
        source = (Path(spec.origin).parent / "configs" / "method_configs.py").read_text(encoding="utf-8")
        statements = ast.parse(source).body
    except (OSError, ValueError, SyntaxError):
        return frozenset()
    keys = [
        target.slice
        for statement in statements
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Subscript)
        and isinstance(target.value, ast.Name)
        and target.value.id == "method_configs"
    ]
    return frozenset(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
