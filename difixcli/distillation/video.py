"""A scene from a few photos far apart: ReconX (Liu et al., 2024, arXiv 2408.16767).

Point maps of the photos give one cloud (see `point_maps`); the splats begin with it and with the seed points that the
photos know. After a training on the photos, a video model films the ways between neighbouring photos (see
`video_prior`), and the splats train on its pictures beside the photos. What a run's folder holds beside what any has:

    cloud/cloud.ply            the point cloud, in the world of the scene's file
    cloud/maps.npz             the point maps, as --points reads them
    cloud/*.png                each photo's depths, near is bright, and how far they are known
    rounds/01/between-*.png    the film's pictures, the renders that they are made from, and their weights
    plain/, points/            with a comparison: photos alone for as many iterations in a schedule of their own, from
                               the scene's seed points, and from the point cloud too
    renders/{truth,plain,points,distilled}/*.png   the test views

Other than in the paper, the splats are densified unless `--set` says otherwise, photos are drawn beside the film's
pictures all the way, and their depths stand for a second point map of these.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from difixcli.distillation.distill import CLOUD, PLAIN, POINTS, Say
from difixcli.distillation.few_photos import FewPhotos, known_scene, rendered
from difixcli.distillation.filming import NO_CLOUD
from difixcli.distillation.prior import Context
from difixcli.distillation.schedule import Schedule
from difixcli.distillation.settings import Settings
from difixcli.distillation.targets import Target
from difixcli.distillation.ways import Ways
from difixcli.errors import InputError
from difixcli.point_maps.cloud import Cloud, cloud_of, seeded
from difixcli.point_maps.files import point_mapper, write_maps
from difixcli.point_maps.maps import TRUSTED, PointMap
from difixcli.point_maps.two_view import SIDE
from difixcli.priors.video.span import VideoModel
from difixcli.runs import Progress, Run, atomic, write_image
from difixcli.scenes.ply import write_points
from difixcli.scenes.poses import transform_points
from difixcli.scenes.scene import Camera, Scene, Split
from difixcli.wording import counted

_MAPS = "maps.npz"
_LITTLE = 0.2  # of what photos show; where less is known, films did worse than photos alone
_PERCEPTUAL = {"cpu": 0.1, "gpu": 0.5}


class Filmed(FewPhotos):
    """A run of ReconX on a scene of few photos. Making one checks what was asked and writes nothing."""

    def __init__(self, scene: Scene, split: Split, settings: Settings) -> None:
        assert settings.filming is not None
        self._own = known_scene(scene, split)
        self._ways = Ways(scene, split.train, settings.filming.frames)
        super().__init__(self._own, split, settings)
        self._filming = settings.filming

    def film(self, video: VideoModel, run: Run, progress: Progress, say: Say) -> dict[str, dict[str, Any]]:
        """Run, or go on with, it; return the figures of each variant on the test views."""
        self._begin(run, progress, say)
        self._video = video
        if self._filming.points != NO_CLOUD:
            self.scene = self._with_cloud()
        else:
            self._ways.points = np.asarray(self.scene.points, np.float32)
            self._ways.colors = np.asarray(self.scene.colors, np.float32) / 255
        model = self._update(self._photos())
        self._write("distilled", partial(rendered, model))
        del model
        gc.collect()  # the parts of a model hold on to each other
        if self.settings.compare:
            self._write_model(PLAIN, lambda: self._alone(PLAIN, self._own))
            if self._filming.points != NO_CLOUD:
                self._write_model(POINTS, lambda: self._alone(POINTS, self.scene))
        return self._figures()

    def _targets(self) -> list[Target]:
        return self._ways.targets()

    def _context(self) -> Context:
        return replace(super()._context(), ways=self._ways, video=self._video, scratch=self.rounds.parent)

    def _told(self, record: dict[str, Any]) -> str:
        figures = [view["figures"] for view in record["views"]]
        change = 255 * float(np.mean([one["change"] for one in figures]))
        # of a round that an earlier version began, by its name there
        unsteady = 255 * float(
            np.mean([one.get("reprojected_difference", one.get("warped_difference")) for one in figures])
        )
        return (
            f"{counted(len(figures), 'picture')} filmed, which differ from the renders by {change:.1f} of 255 and, "
            f"brought into one another, from their neighbours by {unsteady:.1f}; mean agreement "
            f"{record['mean_confidence']:.2f}"
        )

    # The point cloud

    def _with_cloud(self) -> Scene:
        """The scene with the point cloud for seed points, which is made once."""
        detailed = self._detailed()
        photos, cameras = [photo for photo, _, _ in detailed], [camera for _, camera, _ in detailed]
        file = self.folder / CLOUD / _MAPS
        if not file.is_file():
            with self._timed("point cloud"), self._progress("point maps", len(photos)) as update:
                maps = point_mapper(self._filming.points, self._own, self.split.train).maps(photos, cameras, update)
            known = [
                one if mask is None else replace(one, confidence=np.where(mask, one.confidence, 0))
                for one, (_, _, mask) in zip(maps, detailed, strict=True)
            ]
            with atomic(file) as part:
                write_maps(part, known, [self.scene.frames[i].name for i in self.split.train])
        # from disk, so that a run that was stopped goes on with the very same points
        maps = point_mapper(str(file), self._own, self.split.train).maps(photos, cameras)
        share = float(np.mean([(one.confidence >= TRUSTED).mean() for one in maps]))
        # a cloud of points alone covers few pixels wherever photos were taken
        if share < _LITTLE and not self._filming.points.lower().endswith(".ply"):
            self._say(
                f"Warning: the photos hardly overlap: only {share:.0%} of what they show is known, and the films fill "
                "in the rest. Take photos a smaller step apart, train on more of them (--views K, --split groups:K), "
                "or give --points FILE of a program that needs less overlap."
            )
        cloud = cloud_of(maps, photos)
        if not (self.folder / CLOUD / "cloud.ply").is_file():
            self._write_cloud(cloud, maps, share)
        self._ways.points, self._ways.colors = cloud.points, cloud.colors.astype(np.float32) / 255
        return seeded(self._own, cloud, self.split.train)

    def _detailed(self) -> list[tuple[np.ndarray, Camera, np.ndarray | None]]:
        """The photos that train as point maps are made of them, with their cameras and masks: in one size, larger than
        the run's where the files are.
        """
        ways = Ways(self._own, self.split.train, 3)
        width, height = ways.size
        frames = [self._own.frames[i] for i in self.split.train]
        most = min(min(frame.lens.size[0] / width, frame.lens.size[1] / height) for frame in frames)
        scale = max(1.0, min(most, SIDE / max(width, height)))
        ways.size = (round(width * scale), round(height * scale))
        return [(ways.photo(i), ways.camera(i), ways.mask(i)) for i in self.split.train]

    def _write_cloud(self, cloud: Cloud, maps: Sequence[PointMap], share: float) -> None:
        folder = self.folder / CLOUD
        if not len(cloud.points):
            raise InputError(
                f"Nothing in the point maps of {self._filming.points} is known surely; use another --points."
            )
        for i, one in zip(self.split.train, maps, strict=True):
            name, known = self.scene.file_names[i], one.confidence >= TRUSTED
            near = 1 / np.maximum(one.depth, 1e-6)
            low, high = np.quantile(near[known], (0.02, 0.98)) if known.any() else (0, 1)
            write_image(folder / f"{name}.depth.png", np.clip((near - low) / max(high - low, 1e-9), 0, 1))
            write_image(folder / f"{name}.confidence.png", one.confidence)
        to_file = np.linalg.inv(self.scene.source_to_world)
        with atomic(folder / "cloud.ply") as part:
            write_points(part, transform_points(to_file, cloud.points), cloud.colors)
        self._say(f"Point cloud: {len(cloud.points):,} points; {share:.0%} of what the photos show is known")


def own_terms(images: bool, preset: str) -> dict[str, float]:
    """The loss of a picture unless told otherwise: 0.8 · L1 + 0.2 · D-SSIM, which is the own loss of splats, and
    0.5 · perceptual, the paper's; on the cpu preset 0.1, since at thumbnails' size 0.5 outweighs the pixels.
    """
    pixels = {"method": 1.0} if images else {"l1": 0.8, "d_ssim": 0.2}
    return {**pixels, "perceptual": _PERCEPTUAL[preset]}


def planned(schedule: Schedule) -> str:
    """A schedule in words."""
    rounds = f"{counted(schedule.rounds, 'round')} of {schedule.every}"
    return f"{schedule.photos} iterations on photos, {rounds} on films between them, photos beside them"
