"""The procedural sample scenes: true images at every pose, for demos, training and tests."""
