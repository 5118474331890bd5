"""Learning rate schedules by name."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

# Names of options -> names of transformers' schedules; each begins with a linear warm-up from 0.
SCHEDULES = {
    "constant": "constant_with_warmup",
    "cosine": "cosine",  # to 0 at the last step
    "inverse_sqrt": "inverse_sqrt",  # peak * sqrt(warmup_steps / step)
}


def build_schedule(optimizer: Optimizer, name: str, warmup_steps: int, max_steps: int) -> LambdaLR:
    """A schedule to be stepped once for every optimizer step.

    Args:
        optimizer: its learning rate is the peak.
        name: "constant", "cosine" or "inverse_sqrt".
        warmup_steps: steps of linear rise from 0; "inverse_sqrt" needs at least one.
        max_steps: length of the run, where "cosine" arrives at 0.
    """
    if name not in SCHEDULES:
        raise ValueError(f"lr_schedule: got {name!r}, takes one of {', '.join(SCHEDULES)}")
    if warmup_steps < 0 or (name == "inverse_sqrt" and warmup_steps == 0):
        raise ValueError(f"warmup_steps: got {warmup_steps}, takes 0 or more, and at least 1 with inverse_sqrt")
    return get_scheduler(SCHEDULES[name], optimizer, num_warmup_steps=warmup_steps, num_training_steps=max_steps)
