"""What runs on a few photos have in common: seed points that these photos know, plain rows of their own, pictures."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from difixcli.distillation.distill import Distillation
from difixcli.distillation.renders import write_truth
from difixcli.reconstruction import Reconstruction
from difixcli.runs import write_image
from difixcli.scenes.scene import Camera, Scene, Split


def known_scene(scene: Scene, split: Split) -> Scene:
    """The scene with the seed points that training photos have seen; without any where that is not known, and photos
    are held out.
    """
    if scene.tracks is None and split.test:
        return replace(scene, points=scene.points[:0], colors=scene.colors[:0])
    return scene.known_to(split.train)


class FewPhotos(Distillation):
    """A run on a few photos, whose views stand where they are aimed at in every round."""

    def _cameras(self, number: int) -> list[Camera]:
        """The targets' own: there is no way towards them."""
        return [target.camera for target in self.targets]

    def _alone(self, name: str, scene: Scene) -> Reconstruction:
        """Photos alone, in a schedule of their own that is as long as the whole, from the scene's seed points."""
        folder = self.folder / name
        if any((folder / "nerfstudio_models").glob("*.ckpt")):
            model = Reconstruction.load(folder, scene, self.split.train)
        else:
            model = self._begun(folder, self.schedule.iterations, scene)
        self._train(model, self.schedule.iterations, f"{name}, for comparison")
        return model

    def _write_model(self, variant: str, make: Callable[[], Reconstruction]) -> None:
        model = make()
        self._write(variant, partial(rendered, model))
        del model
        gc.collect()

    def _write(self, variant: str, picture: Callable[[str, Camera], np.ndarray]) -> None:
        """The test views as `variant`, or the targets where no photo is held out."""
        write_truth(self.folder, self.scene, self.split)
        part, views = "renders", [(self.scene.file_names[i], self.scene.frames[i].camera) for i in self.split.test]
        if not views:
            part, views = "path", [(target.name, target.camera) for target in self.targets]
        with self._timed("final renders"), self._progress(f"pictures, {variant}", len(views)) as update:
            for done, (name, camera) in enumerate(views, start=1):
                write_image(self.folder / part / variant / f"{name}.png", picture(name, camera))
                update(done)


def rendered(model: Reconstruction, name: str, camera: Camera) -> np.ndarray:
    """A model's picture of a camera."""
    return model.render(camera).color
