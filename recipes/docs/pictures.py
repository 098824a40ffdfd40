"""A picture for each command's page, made by running the commands on the sample scenes at toy size.

    python recipes/docs/pictures.py WORK

Some minutes on two cores. WORK keeps what the commands wrote and, in WORK/said, what they printed; a line that is done
there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PICTURES = Path(__file__).parent / "pictures"
LARGEST = 60 * 1024
"""Bytes of a picture, at most."""

_WIDTH = 960
_GAP = 6
_LABEL = 22


def _font(size: int, mono: bool = False) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono" if mono else "DejaVu Sans"), size)


def row(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Images beside each other, all of one height and `_WIDTH` wide together, each with its name above it."""
    shapes = [image.width / image.height for _, image in pictures]
    height = round((_WIDTH - _GAP * (len(pictures) - 1)) / sum(shapes))
    sheet = Image.new("RGB", (_WIDTH, height + _LABEL), "white")
    x = 0
    for (name, image), shape in zip(pictures, shapes, strict=True):
        width = min(round(height * shape), _WIDTH - x)
        sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (x, _LABEL))
        ImageDraw.Draw(sheet).text((x, 2), name, "black", _font(14))
        x += width + _GAP
    return sheet


def terminal(text: str) -> Image.Image:
    """Lines as a terminal shows them."""
    font = _font(15, mono=True)
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((12, 10), text, font, spacing=3)
    sheet = Image.new("RGB", (round(box[2]) + 12, round(box[3]) + 12), (24, 26, 31))
    ImageDraw.Draw(sheet).multiline_text((12, 10), text, (222, 224, 228), font, spacing=3)
    return sheet


class Studio:
    """Runs commands in a folder, each line once, and keeps what they say."""

    def __init__(self, work: Path) -> None:
        self.work = work
        (work / "said").mkdir(parents=True, exist_ok=True)

    def difix(self, name: str, *words: str, ends: int = 0) -> str:
        """What `difix WORDS` prints; kept as `said/NAME.txt`, and not run again where that is there.

        Raises RuntimeError where it does not end with the exit code `ends`.
        """
        said = self.work / "said" / f"{name}.txt"
        if not said.exists():
            print(f"difix {' '.join(words)}", flush=True)
            line = [sys.executable, "-m", "difixcli", *words]
            environment = {**os.environ, "COLUMNS": "92"}
            made = subprocess.run(
                line,
                cwd=self.work,
                env=environment,
                check=False,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            if made.returncode != ends:
                raise RuntimeError(f"difix {' '.join(words)} ended with {made.returncode}:\n{made.stdout}")
            shown = "\n".join(part.rstrip() for part in made.stdout.replace(f"{self.work}/", "").splitlines())
            said.write_text(f"$ difix {' '.join(words)}\n{shown}\n", encoding="utf-8")
        return said.read_text(encoding="utf-8")

    def image(self, name: str) -> Image.Image:
        return Image.open(self.work / name).convert("RGB")

    def sample_scene(self, name: str) -> None:
        self.difix(f"sample-{name}", "sample", name, name, "--size", "240", "--force")

    def distilled(self) -> None:
        """The run that `fix`, `enhance`, `eval` and `export` look at: the room from every fourth of its photos."""
        self.sample_scene("room")
        words = ["--split", "every:4", "--size", "240", "--iterations", "300", "--compare", "--output", "run"]
        self.difix("distill", "distill", "room", *words)


def sample(studio: Studio) -> Image.Image:
    names = ("room", "street", "table", "interior")
    for name in names:
        studio.sample_scene(name)
    photos = {name: sorted((studio.work / name / "images").rglob("*.png")) for name in names}
    return row([(name, Image.open(photos[name][len(photos[name]) // 2])) for name in names])


def pose(studio: Studio) -> Image.Image:
    studio.sample_scene("room")
    photos = studio.work / "photos"
    photos.mkdir(exist_ok=True)
    for photo in sorted((studio.work / "room" / "images").glob("train_*.png")):
        shutil.copy(photo, photos)
    studio.difix("pose", "pose", "photos")
    return studio.image("photos-posed/poses.png").resize((_WIDTH, _WIDTH // 2), Image.Resampling.LANCZOS)


def curate(studio: Studio) -> Image.Image:
    words = ["--strategy", "sparse", "--size", "120", "--iterations", "150", "--test-scene", "street"]
    studio.difix("curate", "curate", "sample:room", "sample:street", *words, "--output", "pairs")
    pairs = json.loads((studio.work / "pairs" / "data.json").read_text(encoding="utf-8"))["train"]
    pair = list(pairs.values())[len(pairs) // 2]
    shown = {"render": pair["image"], "photo": pair["target_image"], "reference, aligned": pair["aligned_refs"][0]}
    return row([(name, studio.image(f"pairs/{file}")) for name, file in shown.items()])


def finetune(studio: Studio) -> Image.Image:
    curate(studio)
    words = ["--base", "tiny", "--iterations", "20", "--crop", "64", "--output", "my-fixer"]
    studio.difix("finetune", "finetune", "pairs", *words)
    sheet = Image.open(max((studio.work / "my-fixer" / "validation").iterdir()))
    sheet = sheet.crop((0, 0, sheet.width, sheet.height // 2))  # three test pairs of six
    return sheet.resize((_WIDTH, round(sheet.height * _WIDTH / sheet.width)), Image.Resampling.LANCZOS)


def _a_view(studio: Studio) -> str:
    """Name of the test view that the rounds changed most."""

    def change(name: str) -> float:
        plain, distilled = (
            np.asarray(studio.image(f"run/renders/{of}/{name}"), float) for of in ("plain", "distilled")
        )
        truth = np.asarray(studio.image(f"run/renders/truth/{name}"), float)
        return float(np.mean((plain - truth) ** 2) - np.mean((distilled - truth) ** 2))

    return max((path.name for path in (studio.work / "run/renders/plain").glob("*.png")), key=change)


def fix(studio: Studio) -> Image.Image:
    studio.distilled()
    words = ["--scene", "room", "--confidence", "--output", "fixed"]
    studio.difix("fix", "fix", "run/renders/plain", *words)
    name = _a_view(studio)
    told = json.loads((studio.work / "fixed" / "run.json").read_text(encoding="utf-8"))
    photo = told["results"]["references"][Path(name).stem][0]
    return row(
        [
            ("render", studio.image(f"run/renders/plain/{name}")),
            (f"nearest photo: {Path(photo).stem}", studio.image(f"room/{photo}")),
            ("fixed", studio.image(f"fixed/{name}")),
            ("confidence", studio.image(f"fixed/{Path(name).stem}.confidence.png")),
        ]
    )


def distill(studio: Studio) -> Image.Image:
    studio.distilled()
    name = _a_view(studio)
    rows = ("plain", "fixed", "distilled", "enhanced", "truth")
    return row([(of, studio.image(f"run/renders/{of}/{name}")) for of in rows])


def enhance(studio: Studio) -> Image.Image:
    studio.distilled()
    words = ["--trajectory", "spiral:12", "--steady", "--split-screen", "--output", "film"]
    studio.difix("enhance", "enhance", "run", *words)
    import av

    with av.open(str(studio.work / "film" / "split_screen.mp4")) as film:
        frames = [frame.to_image() for frame in film.decode(video=0)]
    chosen = [0, len(frames) // 3, 2 * len(frames) // 3]
    return row([(f"split_screen.mp4, frame {i}", frames[i]) for i in chosen])


def evaluate(studio: Studio) -> Image.Image:
    """What the report draws: each view's figures, a line a row of the table."""
    studio.distilled()
    studio.difix("eval", "eval", "run", "--metrics", "psnr,ssim,st-lpips")
    told = json.loads((studio.work / "run" / "eval.json").read_text(encoding="utf-8"))["per_image"]
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9.6, 3.2), dpi=100)
    for axis, (metric, title) in zip(axes, (("psnr", "PSNR ↑"), ("st_lpips", "st-LPIPS ↓")), strict=True):
        for name, views in told.items():
            values = [view[metric] for view in (views.values() if isinstance(views, dict) else views)]
            axis.plot(range(len(values)), values, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("test view")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]


def export(studio: Studio) -> Image.Image:
    """The Gaussians' centres, from above and from the side, in their colours."""
    studio.distilled()
    studio.difix("export", "export", "run", "-o", "room.ply", "--force")
    from plyfile import PlyData

    points = PlyData.read(str(studio.work / "room.ply"))["vertex"]
    centres = np.stack([points[axis] for axis in "xyz"], 1)
    colors = np.stack([points[f"f_dc_{i}"] for i in range(3)], 1) * 0.28209479 + 0.5
    seen = 1 / (1 + np.exp(-points["opacity"])) > 0.5
    low, high = np.percentile(centres, [2, 98], axis=0)
    kept = seen & (centres >= low).all(1) & (centres <= high).all(1)
    side = _WIDTH // 2
    views = []
    for across, up, depth, name in ((0, 1, 2, "from above"), (0, 2, 1, "from the side")):
        order = np.argsort(centres[kept][:, depth])
        place, tint = centres[kept][order], np.clip(colors[kept][order], 0, 1)
        span = max(high[across] - low[across], high[up] - low[up])
        x = ((place[:, across] - low[across]) / span * (side - 2)).astype(int)
        y = ((high[up] - place[:, up]) / span * (side - 2)).astype(int)
        canvas = np.full((round((high[up] - low[up]) / span * (side - 2)) + 2, side, 3), 255, np.uint8)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            canvas[np.minimum(y + dy, len(canvas) - 1), np.minimum(x + dx, side - 1)] = (tint * 255).astype(np.uint8)
        views.append((f"room.ply, {name}", Image.fromarray(canvas)))
    return row(views)


def status(studio: Studio) -> Image.Image:
    curate(studio)
    return terminal(studio.difix("status", "status", "pairs"))


def download(studio: Studio) -> Image.Image:
    first = studio.difix("download-nothing", "download", "--", "distill", "sample:room", "--compare")
    second = studio.difix("download-no-line", "download", "--", "destill", "sample:room", "--compare", ends=2)
    return terminal(first + second.rstrip("\n"))


PAGES: dict[str, Callable[[Studio], Image.Image]] = {
    "sample": sample,
    "pose": pose,
    "curate": curate,
    "finetune": finetune,
    "fix": fix,
    "distill": distill,
    "enhance": enhance,
    "eval": evaluate,
    "export": export,
    "status": status,
    "download": download,
}


def write(picture: Image.Image, path: Path) -> None:
    """As WebP, in the best quality that fits into `LARGEST`."""
    for quality in (90, 80, 70, 60, 50):
        picture.save(path, quality=quality, method=6)
        if path.stat().st_size <= LARGEST:
            return
    raise RuntimeError(f"{path} does not fit into {LARGEST} bytes.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for what the commands write")
    parser.add_argument("only", nargs="*", metavar="COMMAND", help="pages to make a picture of; all by default")
    given = parser.parse_args()
    unknown = sorted(set(given.only) - set(PAGES))
    if unknown:
        parser.error(f"there is no page {unknown[0]}; write one of {', '.join(PAGES)}")
    studio = Studio(given.work.resolve())
    PICTURES.mkdir(exist_ok=True)
    for name in given.only or PAGES:
        write(PAGES[name](studio), PICTURES / f"{name}.webp")


if __name__ == "__main__":
    main()
