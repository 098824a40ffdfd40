"""Camera poses of photos and videos, by structure from motion: pycolmap's features, matches and mappers."""

from difixcli.posing.pose import pose, pose_inputs

__all__ = ["pose", "pose_inputs"]
