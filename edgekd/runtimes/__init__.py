"""What is copied to a device: `worker.py` and one file per runtime. They import nothing of edgekd, and read as Python 3.8.

A runtime file offers `FORMAT`, `load(path, threads) -> infer`, and optionally `operators(...)`; see `onnxruntime.py`.
"""
