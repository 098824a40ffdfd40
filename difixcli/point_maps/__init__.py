"""Where the things are that photos show: a point for each pixel, and how far it is known.

`maps` says what a point map is and who makes one (`PointMapper`): `two_view` from the photos alone, `files` from what
other programs wrote. `cloud` makes one point cloud of them.
"""
