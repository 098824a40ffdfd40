"""One pipeline that carries frames through read, align, fix, check and write; `fix`, `enhance` and `distill` use it."""

from difixcli.frames.pipeline import Fix, FrameOptions, FramePipeline
from difixcli.frames.stages import Behind, Pace, carried

__all__ = ["Behind", "Fix", "FrameOptions", "FramePipeline", "Pace", "carried"]
