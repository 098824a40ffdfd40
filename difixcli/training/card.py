"""A model card made from a training's run, and the upload of a fixer with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difixcli import __version__
from difixcli.errors import InputError
from difixcli.evaluation.metrics import METRICS
from difixcli.runs import atomic

CARD = "README.md"
PUSHED = ("config.json", "model.safetensors", CARD)
"""What of a training's folder is uploaded."""
_SHOWN = (
    "iterations", "batch", "accumulate", "learning_rate", "schedule", "dtype", "crop", "frame_height", "frame_width",
    "supervise", "references", "pixel", "signed_pixels", "perceptual", "perceptual_weight", "window", "gram_weight",
    "gram_start", "gram_window", "flips", "latents", "drop_references", "ema", "train", "seed",
)  # fmt: skip


def write_card(
    folder: Path,
    base: str,
    sources: Sequence[str],
    photos: Path | None,
    options: Mapping[str, Any],
    results: Mapping[str, Any],
    licence: str,
) -> Path:
    """Write a fixer's model card into its folder: what it was trained from, on and how, its figures and its licence.

    `sources` are the pairs' folders, of which the card names the last part alone; `options` and `results` are those of
    `finetune`.
    """
    from huggingface_hub import ModelCardData

    hub = base if "/" in base and not Path(base).exists() else None
    short = "apache-2.0" if licence == "Apache-2.0" else "other"
    data = ModelCardData(
        license=short,
        license_name=None if short != "other" else "see-below",
        base_model=hub,
        library_name="difixcli",
        tags=["image-to-image", "novel-view-synthesis", "difix"],
    )
    named = [Path(source).parent.name if Path(source).suffix == ".json" else Path(source).name for source in sources]
    counts = {name: count for name, count in results["pairs"].items() if count}
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {folder.resolve().name}",
        "Cleans renders of NeRFs and Gaussian splats, with clean photos of the same scene beside them (Difix3D+, arXiv "
        f"2503.01774). Trained with difixcli {__version__}.",
        f'```python\nfrom difixcli.fixer import Fixer\n\nfixer = Fixer.from_pretrained("{folder.resolve().name}")\n```',
        "## Data",
        f"From the base `{hub or Path(base).name}`, on "
        + (", ".join(f"`{name}`" for name in named) or "no curated pairs")
        + (f" and the photos of `{photos.name}`" if photos else "")
        + f": {', '.join(f'{count:,} {name}' for name, count in counts.items())}.",
        "## Training",
        f"{results['steps']:,} steps in {results['processes']} process{'es' if results['processes'] > 1 else ''}, "
        f"{results['seconds'] / 3600:.2f} h"
        + (", stopped early" if results["stopped_early"] else "")
        + f"; the weights are those of step {results['best_step']:,}.",
        "| option | value |\n|---|---|\n" + "\n".join(f"| {n} | {options[n]} |" for n in _SHOWN if n in options),
        "## Figures",
        _figures(results),
        "## Licence",
        f"{licence[0].upper()}{licence[1:]}.",
    ]
    path = folder / CARD
    with atomic(path) as temporary:
        temporary.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def _figures(results: Mapping[str, Any]) -> str:
    """A table of the validation, or that there was none."""
    if not results["validation"]:
        return "None: there were no pairs for testing."
    rows = results["validation"]
    keys = list(rows["fixed"])
    head = (
        "| mean over the test pairs | "
        + " | ".join(METRICS[key].label for key in keys)
        + " |\n|---|"
        + "---|" * len(keys)
    )
    names = {"identity": "renders as they are", "unsharp": "best unsharp mask", "fixed": "fixed"}
    body = (f"| {names[row]} | " + " | ".join(f"{rows[row][key]:.4f}" for key in keys) + " |" for row in names)
    return "\n".join([head, *body])


def push(folder: Path, repository: str) -> str:
    """Upload a trained fixer and its card to OWNER/NAME on the hub, made if missing; its address.

    Raises InputError without a network, a login or the right to write there; the folder stays what would be uploaded.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(PUSHED),
            commit_message=f"Trained with difixcli {__version__}",
        )
    except Exception as error:  # the hub's client raises errors of several libraries
        raise InputError(
            f"{repository} cannot be pushed to the hub ({type(error).__name__}): check the network and the login, and "
            f"run the same line again; {', '.join(PUSHED)} in {folder} are what would be pushed."
        ) from error
    return str(done.commit_url)
