"""Pixels that a scene's masks leave out neither teach, nor stand beside a render, nor count in a figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difixcli.evaluation import evaluate_run
from difixcli.evaluation.metrics import psnr
from difixcli.fixer.alignment import align_references
from difixcli.reconstruction.seed_depth import SeedRays
from difixcli.reconstruction.seeding import seed_gaussians
from difixcli.runs import write_image
from difixcli.scenes import load_scene
from difixcli.scenes.ply import write_points
from difixcli.scenes.scene import Scene

WIDTH, HEIGHT = 64, 48


def masked_scene(folder: Path, points: np.ndarray) -> Scene:
    """Three cameras in a row before a green wall; the red left half of each photo is masked."""
    photo = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    photo[:, : WIDTH // 2, 0] = photo[:, WIDTH // 2 :, 1] = 255
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, WIDTH // 2 :] = 255
    frames = []
    for i in range(3):
        pose = np.eye(4)
        pose[0, 3] = i - 1
        names = {"file_path": f"images/{i}.png", "mask_path": f"masks/{i}.png"}
        for name, pixels in zip(names.values(), (photo, mask), strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
        frames.append({**names, "transform_matrix": pose.tolist()})
    meta = {"fl_x": 60, "fl_y": 60, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT, "frames": frames}
    if len(points):
        colors = np.tile(np.array([[255, 0, 0]], np.uint8), (len(points), 1))
        colors[len(points) // 2 :] = (0, 255, 0)
        write_points(folder / "points.ply", points.astype(np.float32), colors)
        meta["ply_file_path"] = "points.ply"
    (folder / "transforms.json").write_text(json.dumps(meta))
    return load_scene(folder)


def test_gaussians_start_where_a_photo_counts(tmp_path: Path) -> None:
    scene = masked_scene(tmp_path, np.zeros((0, 3)))
    points, colors = seed_gaussians(scene, [0, 1, 2], 300, seed=0)
    assert len(points) == len(colors) == 300 and np.isfinite(points).all()
    assert (colors == (0, 255, 0)).all()
    for i in range(3):
        Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / f"masks/{i}.png")
    assert len(seed_gaussians(load_scene(tmp_path), [0, 1, 2], 300, seed=0)[0]) == 0


def test_seed_rays_go_through_pixels_that_count(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-1, 1, 400), rng.uniform(-0.5, 0.5, 400), np.full(400, -3.0)], axis=1)
    points[:200, 0] = -np.abs(points[:200, 0]) - 1  # red ones to the left of everybody
    rays = SeedRays.of(masked_scene(tmp_path, points), [0, 1, 2])
    assert len(rays.pixels) > 20 and (rays.pixels[:, 2] >= WIDTH // 2).all()


def test_a_reference_shows_nothing_where_its_mask_leaves_it_out() -> None:
    k = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    image = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    depth = torch.full((1, 1, HEIGHT, WIDTH), 3.0)
    mask = torch.ones(1, 1, 1, HEIGHT, WIDTH)
    mask[..., :20] = 0
    same = (
        image,
        depth,
        k[None],
        torch.eye(4)[None],
        image[None],
        depth[None],
        k[None, None],
        torch.eye(4)[None, None],
    )
    _, without = align_references(*same)
    aligned, visibility = align_references(*same, ref_masks=mask)
    assert without[0, 0, 0, 5:-5, 5:-5].min() > 0.9
    assert visibility[..., :19].max() == 0 and aligned[..., :19].max() == 0
    assert visibility[0, 0, 0, 5:-5, 25:-5].min() > 0.9


def test_a_run_is_measured_where_its_masks_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((HEIGHT, WIDTH, 3)).astype(np.float32)
    render = np.clip(truth + 0.05, 0, 1)
    render[:, :20] = 0
    mask = np.ones((HEIGHT, WIDTH), np.float32)
    mask[:, :20] = 0
    for name in ("a", "b"):
        write_image(tmp_path / "renders" / "truth" / f"{name}.png", truth)
        write_image(tmp_path / "renders" / "plain" / f"{name}.png", render)
    unmasked = evaluate_run(tmp_path)
    write_image(tmp_path / "renders" / "mask" / "a.png", mask)
    found = evaluate_run(tmp_path, unsharp=True)
    assert list(found["results"]) == ["plain"] and "masked" in found["protocol"]["psnr"]
    assert "masked" not in unmasked["protocol"]["psnr"]
    each = found["per_image"]["plain"]
    assert each["b"] == unmasked["per_image"]["plain"]["b"]
    assert each["a"]["psnr"] == pytest.approx(psnr(render, truth, mask), abs=0.1) and each["a"]["psnr"] > 20
    # a view of which nothing counts is no view
    write_image(tmp_path / "renders" / "mask" / "b.png", np.zeros((HEIGHT, WIDTH)))
    assert evaluate_run(tmp_path)["images"] == 1
