"""Where the things are that photos show: a point for each pixel, and how far it is known.

`maps` says what a point map is and who makes one (`PointMapper`): `two_view` from the photos alone, `files` from what
other programs wrote. `cloud` makes one point cloud of them.
"""

from difixcli.point_maps.maps import TRUSTED, PointMap, PointMapper, map_of_depth
from difixcli.point_maps.two_view import TwoViewGeometry

__all__ = ["TRUSTED", "PointMap", "PointMapper", "TwoViewGeometry", "map_of_depth"]
