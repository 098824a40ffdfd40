"""The strategies by name, and what options of curation say: known without importing torch, which strategies need."""

from __future__ import annotations

from collections.abc import Sequence

from difixcli.errors import InputError, unknown

STRATEGIES = ("sparse", "cycle", "underfit", "cross-camera", "clips")
DEFAULT_SHIFTS = ("0.1",)
DEFAULT_STOPS = ("25%", "50%", "75%")
FILTERS = {
    "failed": "the render shows less than half of the view, or lies under 10 dB",
    "perfect": "the render lies above 35 dB: there is nothing to learn",
    "blurred": "the photo is much less sharp than the scene's others",
}
IMAGE_FORMATS = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
FORMATS = ("folder", "webdataset")


def check_named(strategy: str, keep: Sequence[str], image_format: str, pairs_format: str) -> None:
    """Raises InputError for an unknown name of a strategy, a filter or a format, and for clips in tars."""
    for what, names, known in (
        ("strategy", [strategy], STRATEGIES),
        ("filter", keep, FILTERS),
        ("image format", [image_format], IMAGE_FORMATS),
        ("format of pairs", [pairs_format], FORMATS),
    ):
        for name in names:
            if name not in known:
                raise unknown(what, name, known)
    if strategy == "clips" and pairs_format != "folder":
        raise InputError("Clips are read from folders of pairs; leave --format out.")


def parse_stop(text: str) -> float:
    """`25%` or `0.25` as a share; InputError for anything outside (0, 1)."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise InputError(f"--stop {text} is not a share of the schedule; write 25% or 0.25.") from error
    if not 0 < share < 1:
        raise InputError(f"--stop {text} is not between 0 and 100 % of the schedule; write for example 25%.")
    return share
