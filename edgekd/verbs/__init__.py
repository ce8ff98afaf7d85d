"""The verbs of the command line. A file is a verb, a folder is a group of verbs; names with an underscore are neither.

A verb's file has `command`, its click command, and the Python function that the command calls. `edgekd --help` imports
every file of this folder, so what is heavy is imported inside the functions.
"""
