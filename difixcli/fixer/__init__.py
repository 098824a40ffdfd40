"""The fixer: the network, its weights in every published layout, references and their alignment."""

from difixcli.fixer.fixer import Fixer, new_small_fixer
from difixcli.fixer.network import FixerConfig, FixerNetwork
from difixcli.fixer.weights import local_files

__all__ = ["Fixer", "FixerConfig", "FixerNetwork", "local_files", "new_small_fixer"]
