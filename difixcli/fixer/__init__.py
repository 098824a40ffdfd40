"""The fixer: the network, its weights in every published layout, references and their alignment."""
