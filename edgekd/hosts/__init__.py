"""Hosts that run jobs, one file each: `run(job_folder, timeout, progress) -> out folder` copies a job to the device,
runs it, and copies its output back."""
