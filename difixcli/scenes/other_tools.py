"""Camera poses in files of tools that are not read: what they are, and how their scenes come to be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_HEAD = 2**16  # bytes of a file that tell whose it is


@dataclass(frozen=True)
class _Files:
    """A tool's file below a scene's folder, by a pattern and by a text near its start, and what makes a scene of it."""

    pattern: str
    holds: bytes
    tool: str
    cure: str


_AS_COLMAP = "export a COLMAP model there"
_WRITTEN = "write them as nerfstudio's transforms.json or a COLMAP model"
_RECORD3D = ("Record3D", "run `ns-process-data record3d` on it")
_TOOLS = (
    _Files("keyframes/*cameras/*.json", b"", "Polycam's raw export", "run `ns-process-data polycam` on it"),
    _Files("*cameras/*.json", b'"t_00"', "Polycam's raw export", "run `ns-process-data polycam` on the folder above"),
    _Files("*.xml", b"<document", "Metashape", f"{_AS_COLMAP}, or run `ns-process-data metashape`"),
    _Files("*.csv", b"#name,x,y", "RealityScan", f"{_AS_COLMAP}, or run `ns-process-data realitycapture`"),
    _Files("*.xmp", b"xcr:Rotation", "RealityScan", _AS_COLMAP),
    _Files("images/*.xmp", b"xcr:Rotation", "RealityScan", _AS_COLMAP),
    _Files("*calibrated_camera_parameters.txt", b"", "Pix4D", _AS_COLMAP),
    # an .r3d that was unpacked has no suffix
    _Files("metadata*", b'"poses"', *_RECORD3D),
    _Files("metadata*", b'"perFrameIntrinsicCoeffs"', *_RECORD3D),
    _Files("odometry.csv", b"timestamp", "Stray Scanner", "pose its video: `difix pose rgb.mp4`"),
    _Files("opensfm/reconstruction.json", b"", "OpenDroneMap", "run `ns-process-data odm` on it"),
    _Files("*.sfm", b"", "Meshroom", _AS_COLMAP),
    _Files("sfm_data.json", b"", "OpenMVG", "run `openMVG_main_openMVG2Colmap`"),
    _Files("*.nvm", b"NVM_V3", "VisualSFM", _AS_COLMAP),
    _Files("*.out", b"# Bundle file", "Bundler", _AS_COLMAP),
    _Files("cameras.json", b'"img_name"', "a trained splat", "name the scene it was trained on (see `cfg_args`)"),
    _Files("meta_data.json", b'"camtoworld"', "SDFStudio", _WRITTEN),
    _Files("cameras*.npz", b"", "NeuS and IDR", _WRITTEN),
    _Files("[cC]am*/*_cam.txt", b"extrinsic", "MVSNet", _WRITTEN),
    _Files("groundtruth.txt", b"tx ty tz", "TUM's RGB-D", _WRITTEN),
    _Files("*_COLMAP_SfM.log", b"", "Tanks and Temples", _WRITTEN),
    # a matrix for each photo
    _Files("*.pose.txt", b"", "7-Scenes", _WRITTEN),
    _Files("pose/*.txt", b"", "ScanNet and NSVF", _WRITTEN),
    _Files("*/pose/*.txt", b"", "NeRF++", _WRITTEN),
)


def poses_of_another_tool(root: Path) -> str | None:
    """What to say of a folder that holds camera poses which are not read, a sentence without its stop; None for others.

    Not said is whether its photos can be posed anew.
    """
    for files in _TOOLS:
        for path in sorted(root.glob(files.pattern)):
            if files.holds in _head(path):
                name = path.relative_to(root).as_posix()
                return f"{name} has camera poses of {files.tool}, which difix does not read; {files.cure}"
    return None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:  # a folder, or one that may not be read: it says nothing
        return b""
