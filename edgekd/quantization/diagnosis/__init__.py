"""Why an int8 file loses accuracy: layer by layer, by cause, and the settings that could fix it."""
