"""Ways to a device, one file each: `run(job_folder, timeout, progress) -> out folder` brings a job there, runs it,
fetches what it wrote."""
