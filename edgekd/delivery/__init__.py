"""What leaves a run for a device: `bundle.write(run_folder, ...)` makes a folder that says what it holds,
`bundle.read(folder)` verifies it."""
