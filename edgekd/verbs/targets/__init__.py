"""Times a target's board (calibrate). `edgekd list targets` shows the targets there are."""
