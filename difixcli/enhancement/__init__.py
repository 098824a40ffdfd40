"""Images, folders of frames and videos through the fixer, frame by frame."""

from difixcli.enhancement.enhance import check_images, enhance_images, fix_image
from difixcli.enhancement.video import write_video

__all__ = ["check_images", "enhance_images", "fix_image", "write_video"]
