"""Posed photo sets: reading, splitting, camera paths."""

from difixcli.scenes.loading import check_scene, load_scene, scene_fingerprint, scene_name, scene_root
from difixcli.scenes.photo_store import load_mask, load_photo
from difixcli.scenes.poses import nearest_cameras, pose_distance
from difixcli.scenes.scene import Camera, Frame, Scene, Split
from difixcli.scenes.splits import DEFAULT_RULE, check_rule, default_split_rule, make_split
from difixcli.scenes.trajectories import Trajectory, interpolate, make_trajectory, orbit, spiral, step_towards

__all__ = [
    "DEFAULT_RULE",
    "Camera",
    "Frame",
    "Scene",
    "Split",
    "Trajectory",
    "check_rule",
    "check_scene",
    "default_split_rule",
    "interpolate",
    "load_mask",
    "load_photo",
    "load_scene",
    "make_split",
    "make_trajectory",
    "nearest_cameras",
    "orbit",
    "pose_distance",
    "scene_fingerprint",
    "scene_name",
    "scene_root",
    "spiral",
    "step_towards",
]
