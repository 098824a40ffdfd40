"""Lenses: the camera models of COLMAP and nerfstudio, and where a pinhole's pixels lie in the photo of any of them.

`(u, v)` is where a ray crosses the plane at depth 1, u to the right and v down. Every lens maps it to a point of its
own plane, which focal lengths and principal point bring to pixels. Pixel positions count from the image's upper left
corner: the first pixel's centre is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from difixcli.errors import InputError

KINDS = {
    "perspective": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "four_radial": ("k1", "k2", "k3", "k4", "p1", "p2"),
    "fisheye": ("k1", "k2", "p1", "p2", "k3", "k4", "sx1", "sy1"),
    "fisheye624": ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "s1", "s2", "s3", "s4"),
    "fov": ("omega",),
    "division": ("k",),
    "eucm": ("alpha", "beta"),
}
"""The formulas and the names of their numbers, in the order of `Lens.distortion`.

`perspective` is OpenCV's rational model and `four_radial` nerfstudio's polynomial, whose k4 is a fourth radial power;
`fisheye` is equidistant with OpenCV's k1..k4 and COLMAP's thin prism, `fisheye624` Project Aria's; `fov`, `division`
and `eucm` are COLMAP's models of these names.
"""

NO_DISTORTION = (0.0,) * 8

WIDEST_VIEW = math.radians(110)
"""The most that the pinhole of a wide lens shows across either side of a photo, in radians."""

UNFILLED = -2.0
"""Where `sampling_maps` sends the pixels that the photo does not fill: outside of it."""

# COLMAP's models: the kind, whether one focal length serves both axes, and the numbers after the principal point.
MODELS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "SIMPLE_PINHOLE": ("perspective", True, ()),
    "PINHOLE": ("perspective", False, ()),
    "SIMPLE_RADIAL": ("perspective", True, ("k1",)),
    "RADIAL": ("perspective", True, ("k1", "k2")),
    "OPENCV": ("perspective", False, ("k1", "k2", "p1", "p2")),
    "FULL_OPENCV": ("perspective", False, KINDS["perspective"]),
    "SIMPLE_FISHEYE": ("fisheye", True, ()),
    "FISHEYE": ("fisheye", False, ()),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", True, ("k1",)),
    "RADIAL_FISHEYE": ("fisheye", True, ("k1", "k2")),
    "OPENCV_FISHEYE": ("fisheye", False, ("k1", "k2", "k3", "k4")),
    "THIN_PRISM_FISHEYE": ("fisheye", False, KINDS["fisheye"]),
    "RAD_TAN_THIN_PRISM_FISHEYE": ("fisheye624", False, KINDS["fisheye624"]),
    "FOV": ("fov", False, ("omega",)),
    "SIMPLE_DIVISION": ("division", True, ("k",)),
    "DIVISION": ("division", False, ("k",)),
    "EUCM": ("eucm", False, ("alpha", "beta")),
}
_PANORAMAS = {"EQUIRECTANGULAR", "SPHERICAL", "PANORAMA"}
_NO_PHOTOS = {
    "ORTHOPHOTO",
    "ORTHOGRAPHIC",
    "FTHETA",
    *(f"{kind}_{eye}" for kind in ("OMNIDIRECTIONALSTEREO", "VR180") for eye in "LR"),
}
_OTHER_NAMES = {"FISHEYE624": "RAD_TAN_THIN_PRISM_FISHEYE"}


@dataclass(frozen=True)
class Lens:
    """A lens as declared for a photo: pixels, the first pixel's centre at (0.5, 0.5).

    `distortion` holds the numbers that KINDS names for `kind`; they do not change with the photo's size. `cx` and
    `cy` are None where the file does not declare them, `width` and `height` where it leaves them to the photo.
    `circle` is the radius of a fisheye's image circle about the photo's middle in units of `fx`; None: it has none.
    """

    fx: float
    fy: float
    cx: float | None
    cy: float | None
    width: int | None
    height: int | None
    kind: str = "perspective"
    distortion: tuple[float, ...] = NO_DISTORTION
    circle: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height). ValueError where they are not declared and not taken from the photo yet."""
        if self.width is None or self.height is None:
            raise ValueError("a lens without a declared size has none before its photo is read")
        return self.width, self.height

    @property
    def centre(self) -> tuple[float, float]:
        """(cx, cy) in pixels: the middle of the photo where they are not declared."""
        width, height = self.size
        return width / 2 if self.cx is None else self.cx, height / 2 if self.cy is None else self.cy

    def resized(self, width: int, height: int) -> Lens:
        """The lens of the same photo at another size. ValueError as `size`."""
        if (width, height) == self.size:
            return self
        sx, sy = width / self.size[0], height / self.size[1]
        cx, cy = self.centre
        return replace(self, fx=self.fx * sx, fy=self.fy * sy, cx=cx * sx, cy=cy * sy, width=width, height=height)

    @property
    def is_pinhole(self) -> bool:
        """Whether its photos need no undistorting."""
        return self.kind in ("perspective", "four_radial") and not any(self.distortion)


def model_kind(model: str, where: str) -> str:
    """The kind of a camera model by its name, in capitals. InputError, saying `where`, for those that none serves."""
    name = _OTHER_NAMES.get(model, model)
    if name in _PANORAMAS:
        raise InputError(
            f"The camera model {model} of {where} is a whole panorama; cut the panoramas into perspective crops first "
            "(`ns-process-data images --camera-type equirectangular`)."
        )
    if name in _NO_PHOTOS:
        raise InputError(
            f"The camera model {model} of {where} is neither a perspective nor a fisheye lens, so its photos cannot be "
            "undistorted; use photos of one of these."
        )
    if name not in MODELS:
        raise InputError(
            f"The camera model {model} of {where} is not supported; undistort the photos to a perspective camera first "
            f"(for example with `colmap image_undistorter`) or use one of {', '.join(MODELS)}."
        )
    return MODELS[name][0]


def parameter_count(model: str) -> int:
    """How many parameters a COLMAP camera of one of MODELS has: focal lengths, principal point, distortion."""
    _, single, names = MODELS[model]
    return (1 if single else 2) + 2 + len(names)


def colmap_lens(model: str, params: Sequence[float], width: int, height: int, where: str) -> Lens:
    """The lens of a COLMAP camera from its model's name and its parameters in COLMAP's order.

    Raises InputError, saying `where`, for a model that is not supported and for parameters that are none.
    """
    model_kind(model, where)
    kind, single, names = MODELS[model]
    focals = 1 if single else 2
    if len(params) != parameter_count(model) or not np.isfinite(params).all() or min(params[:focals]) <= 0:
        raise InputError(
            f"The {model} camera of {where} has the parameters {', '.join(f'{value:g}' for value in params)}, which "
            "make no lens (too few, not finite, or no positive focal length); run the mapper again."
        )
    terms = dict(zip(names, params[focals + 2 :], strict=True))
    return Lens(
        fx=params[0],
        fy=params[focals - 1],
        cx=params[focals],
        cy=params[focals + 1],
        width=width,
        height=height,
        kind=kind,
        distortion=distortion_of(kind, terms, where),
    )


def distortion_of(kind: str, terms: Mapping[str, float], where: str) -> tuple[float, ...]:
    """The numbers of a kind by their names, 0 where not given. InputError, saying `where`, for impossible ones."""
    values = tuple(float(terms.get(name, 0.0)) for name in KINDS[kind])
    if kind == "fov" and not 0 <= values[0] < math.pi:
        raise InputError(f"omega of {where} is {values[0]:g}, but a field of view lies in [0, π); calibrate it again.")
    if kind == "eucm" and not (0 <= values[0] <= 1 and values[1] > 0):
        raise InputError(
            f"alpha and beta of {where} are {values[0]:g} and {values[1]:g}, but alpha lies in [0, 1] and beta is "
            "positive; calibrate it again."
        )
    return values


def pinhole(lens: Lens) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) in pixels of the pinhole that photos of a lens are undistorted to, of the photo's own size.

    It keeps the lens's principal point and the photo's resolution around it, so that a perspective lens keeps all
    four numbers. A pinhole's pixels grow without bound towards 90°: where a fisheye's (or another wide lens's) would
    see more than WIDEST_VIEW across a side, both focal lengths are enlarged by what makes it that.
    """
    cx, cy = lens.centre
    fx, fy = lens.fx, lens.fy
    if lens.kind in ("perspective", "four_radial"):
        return fx, fy, cx, cy
    if lens.kind == "fov" and lens.distortion[0] > 0:
        at_centre = 2 * math.tan(lens.distortion[0] / 2) / lens.distortion[0]
        fx, fy = fx * at_centre, fy * at_centre
    half = math.tan(WIDEST_VIEW / 2)
    width, height = lens.size
    enlarged = max(1.0, width / 2 / fx / half, height / 2 / fy / half)
    return fx * enlarged, fy * enlarged, cx, cy


def project(lens: Lens, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays through (u, v) are in the photo: x and y in pixels, float64, in the shape that u and v broadcast
    to; NaN for the rays that the lens does not see (see `view_limit`). Nothing is clipped to the photo."""
    u, v = np.broadcast_arrays(np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64))
    cx, cy = lens.centre
    x, y = _bent(lens.kind, lens.distortion, u, v)
    unseen = ~(u * u + v * v < math.tan(view_limit(lens.kind, lens.distortion)) ** 2)
    x, y = lens.fx * x + cx, lens.fy * y + cy
    x[unseen] = y[unseen] = np.nan
    return x, y


@lru_cache(maxsize=1024)
def view_limit(kind: str, distortion: tuple[float, ...]) -> float:
    """How far off its axis a lens sees, in radians below 90°.

    The formulas hold up to where a ray farther out lands no farther from the principal point. Beyond, polynomials
    turn back, and a ray would find the pixel that belongs to another one.
    """
    angles = np.radians(np.arange(9000) * 0.01)
    around = np.linspace(0, 2 * np.pi, 16, endpoint=False)[:, None]
    x, y = _bent(kind, distortion, np.tan(angles) * np.cos(around), np.tan(angles) * np.sin(around))
    with np.errstate(all="ignore"):
        rising = (np.diff(np.hypot(x, y), axis=1) > 0).all(axis=0)
    return float(angles[-1] if rising.all() else angles[np.argmin(rising)])


@lru_cache(maxsize=8)
def sampling_maps(lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of a lens's pinhole, where the photo shows it: x and y, both (height, width) float32.

    They are in the positions of `cv2.remap`, whose first pixel's centre is (0, 0). Pixels that the lens does not see
    or that lie beyond its image circle are UNFILLED; those outside the photo are told by their position.
    """
    width, height = lens.size
    fx, fy, cx, cy = pinhole(lens)
    u = (np.arange(width) + 0.5 - cx) / fx
    v = ((np.arange(height) + 0.5 - cy) / fy)[:, None]
    if lens.kind == "perspective":
        map_x, map_y = _opencv_maps(lens)
        unfilled = u * u + v * v >= math.tan(view_limit(lens.kind, lens.distortion)) ** 2
    else:
        map_x, map_y = np.empty((2, height, width), dtype=np.float32)
        # a few rows at a time, which stay in the processor's cache
        for top in range(0, height, 16):
            x, y = project(lens, u, v[top : top + 16])
            map_x[top : top + 16], map_y[top : top + 16] = x - 0.5, y - 0.5
        unfilled = np.isnan(map_x) | np.isnan(map_y)
    if lens.circle is not None:
        away = np.hypot(map_x + 0.5 - width / 2, map_y + 0.5 - height / 2)
        unfilled |= away > lens.circle * lens.fx
    map_x[unfilled] = map_y[unfilled] = UNFILLED
    return map_x, map_y


def _opencv_maps(lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """The maps of a perspective lens: OpenCV's are several times as fast as `project`."""
    import cv2

    cx, cy = lens.centre
    matrix = np.array([[lens.fx, 0, cx - 0.5], [0, lens.fy, cy - 0.5], [0, 0, 1]])
    maps = cv2.initUndistortRectifyMap(matrix, np.array(lens.distortion), np.eye(3), matrix, lens.size, cv2.CV_32FC1)
    return maps[0], maps[1]


def _bent(kind: str, numbers: tuple[float, ...], u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(u, v) in the lens's own plane, in focal lengths from the principal point. Not finite where it has no place."""
    with np.errstate(all="ignore"):
        if kind == "perspective":
            k1, k2, p1, p2, k3, k4, k5, k6 = numbers
            r2 = u * u + v * v
            radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
            return _decentred(u, v, r2, radial, p1, p2)
        if kind == "four_radial":
            k1, k2, k3, k4, p1, p2 = numbers
            r2 = u * u + v * v
            return _decentred(u, v, r2, 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4))), p1, p2)
        if kind == "fisheye":
            k1, k2, p1, p2, k3, k4, sx1, sy1 = numbers
            u, v, r2 = _equidistant(u, v)
            x, y = _decentred(u, v, r2, 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4))), p1, p2)
            return (x + sx1 * r2, y + sy1 * r2) if sx1 or sy1 else (x, y)
        if kind == "fisheye624":
            k1, k2, k3, k4, k5, k6, p1, p2, s1, s2, s3, s4 = numbers
            u, v, r2 = _equidistant(u, v)
            radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * (k4 + r2 * (k5 + r2 * k6)))))
            u, v = u * radial, v * radial
            r2 = u * u + v * v
            # unlike in the other models, p1 stands with x and p2 with y, and the bent point decentres
            x, y = _decentred(u, v, r2, 1.0, p2, p1)
            return x + r2 * (s1 + r2 * s2), y + r2 * (s3 + r2 * s4)
        r = np.hypot(u, v)
        if kind == "fov":
            (omega,) = numbers
            if omega == 0:
                return 1.0 * u, 1.0 * v
            wide = 2 * math.tan(omega / 2)
            # at the very centre, the limit of the quotient
            factor = np.where(r > 1e-12, np.arctan(r * wide) / (np.maximum(r, 1e-12) * omega), wide / omega)
        elif kind == "division":
            (k,) = numbers
            factor = 2 / (1 + np.sqrt(1 - 4 * k * r * r))
        elif kind == "eucm":
            alpha, beta = numbers
            factor = 1 / (alpha * np.sqrt(beta * r * r + 1) + 1 - alpha)
        else:
            raise ValueError(f"no formula for the lens {kind!r}; there are {', '.join(KINDS)}")
        return u * factor, v * factor


def _equidistant(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(u, v) moved to where its distance from the axis is the ray's angle to it, and that angle squared."""
    r = np.hypot(u, v)
    angle = np.arctan(r)
    factor = np.where(r > 1e-12, angle / np.maximum(r, 1e-12), 1.0)
    return u * factor, v * factor, angle * angle


def _decentred(
    u: np.ndarray, v: np.ndarray, r2: np.ndarray, radial: np.ndarray | float, p1: float, p2: float
) -> tuple[np.ndarray, np.ndarray]:
    """(u, v) times a radial factor, plus OpenCV's tangential distortion."""
    x, y = u * radial, v * radial
    if p1 or p2:
        x = x + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
        y = y + 2 * p2 * u * v + p1 * (r2 + 2 * v * v)
    return x, y
