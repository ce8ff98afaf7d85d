"""Models of Hugging Face: folders, names on the hub, and what turns texts and images into their inputs."""
