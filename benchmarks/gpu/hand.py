"""The same distillation written by hand in plain PyTorch, as somebody would who trains this one student: pinned memory,
asynchronous copies, autocast, a fused optimizer, and nothing read from the GPU within an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def epochs(
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    device: str,
    batch: int,
    count: int,
    precision: str,
    tf32: bool,
    compiled: bool,
    wait: Callable[[], Any],
) -> list[float]:
    """Trains for `count` epochs; returns the time (seconds) at which each begins, and that of the end. `wait` waits for
    the device."""
    kind = device.partition(":")[0]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    teacher, student = teacher.to(device).eval().requires_grad_(False), student.to(device).train()
    low = precision in TYPES
    if low:
        teacher, student = (m.to(memory_format=torch.channels_last) for m in (teacher, student))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=kind == "cuda" or None)
    scaler = torch.amp.GradScaler(kind, enabled=precision == "float16")
    model = torch.compile(student) if compiled else student
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    total, step, times = count * (len(x) // batch), 0, []
    for _ in range(count):
        wait()
        times.append(time.monotonic())
        order = torch.randperm(len(x))
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            inputs, target = x[rows], y[rows]
            if kind == "cuda":
                inputs, target = inputs.pin_memory(), target.pin_memory()
            inputs, target = inputs.to(device, non_blocking=True), target.to(device, non_blocking=True)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - step / total)
            with torch.autocast(kind, TYPES.get(precision, torch.bfloat16), enabled=low):
                with torch.no_grad():
                    theirs = teacher(inputs)
                ours = model(inputs)
            ours, theirs = ours.float(), theirs.float()
            divergence = F.kl_div(F.log_softmax(ours / 4, -1), F.log_softmax(theirs / 4, -1), log_target=True,
                                  reduction="batchmean")  # fmt: skip
            loss = 0.1 * F.cross_entropy(ours, target) + 0.9 * 16 * divergence
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            step += 1
    wait()
    return [*times, time.monotonic()]
