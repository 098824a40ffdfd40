"""The fixer: the network, its weights in every published layout, references and their alignment."""

from difixcli.fixer.fixer import SMALL_SIZES, Fixer, new_small_fixer
from difixcli.fixer.network import FixerConfig, FixerNetwork

__all__ = ["SMALL_SIZES", "Fixer", "FixerConfig", "FixerNetwork", "new_small_fixer"]
