"""Behind the verb `explain`: what it looks at, how the int8 file is made again with other settings, and which of them
fix it."""
