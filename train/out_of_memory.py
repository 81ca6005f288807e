"""The error message for a batch that does not fit into the device's memory."""

from __future__ import annotations

import gc
import traceback
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .fit_options import TrainOptions
    from .module import DepthModule

__all__ = ["is_out_of_memory", "out_of_memory"]

_CPU_WORDS = "can't allocate memory"  # torch raises a plain RuntimeError if the CPU's allocator fails


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or _CPU_WORDS in str(error)


def out_of_memory(module: DepthModule, options: TrainOptions, device: torch.device, error: BaseException) -> str:
    """The message for the user, with the largest divisor of the batch whose trial step at full size fits into memory.

    Args:
        module: of the run that ended.
        options: of that run.
        device: device of that run; Lightning has moved the module off it.
        error: the error that ended it; the tensors in its traceback are released.
    """
    traceback.clear_frames(error.__traceback__)
    fits = _largest_that_fits(module.to(device), options)
    module.cpu()
    height, width = options.size
    message = f"{device} has not enough memory for {options.batch} pictures per pass"
    if fits is None:
        return f"{message}, and at {height}x{width} not even for one; lower --size"
    accumulate = options.batch // fits * options.accumulate
    return f"{message}; at {height}x{width} {fits} fit: `--batch {fits} --accumulate {accumulate}` trains the same"


def _largest_that_fits(module: DepthModule, options: TrainOptions) -> int | None:
    for batch in (n for n in range(options.batch // 2, 0, -1) if options.batch % n == 0):
        module.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        try:
            module.trial_step(batch, options.size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
        else:
            return batch
    return None
