"""The progressive 3D update: render, fix, train on, again."""
