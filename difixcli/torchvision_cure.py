"""Lets a CPU torch live beside a CUDA-built torchvision; inert wherever torchvision is whole.

Such a torchvision cannot load its compiled operators and then fails at import, because its Python half registers
fake kernels for two operators that nobody defined. Declaring their schemas is enough for all that this project and
its dependencies use (models and transforms, not `torchvision.io` or `ops.nms`).

nerfstudio's own commands import torchvision before they read a run's configuration, so nothing in a run could cure
them. torch calls `cure` at the end of its own import: it is an entry point of the group `torch.backends`.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[object] = []  # an operator lives as long as the Library that defined it


def cure() -> None:
    """Make `import torchvision` work; call before the first import of torchvision, lpips, peft or nerfstudio."""
    if "torchvision" in sys.modules:
        return
    import torch  # which calls this in its turn

    if _libraries:
        return
    spec = PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None or torch.version.cuda is not None:
        return
    version = Path(spec.origin).parent / "version.py"
    if version.is_file() and "+cu" in version.read_text(encoding="utf-8"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms" + _SCHEMA)
        library.define("qnms" + _SCHEMA)
        _libraries.append(library)
