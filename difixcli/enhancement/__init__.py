"""Images, folders of frames, videos and runs through the fixer, frame by frame."""

from difixcli.enhancement.enhance import check_images, enhance_images
from difixcli.enhancement.sequence import Film

__all__ = ["Film", "check_images", "enhance_images"]
