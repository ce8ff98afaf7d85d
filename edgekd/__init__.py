"""edgekd: distil, prune and quantize a teacher for the edge; profile, choose and gate the exported file."""

__version__ = "0.1.0"
