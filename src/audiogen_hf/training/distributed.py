"""The `Accelerator` of a run, and what accelerate leaves to its user."""

import logging
import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from ..cpu_inference import PackedLinear

logger = logging.getLogger(__name__)


def build_accelerator(
    *, mixed_precision: str | None, gradient_accumulation_steps: int, report_to: list[str], project_dir: str
) -> Accelerator:
    """An `Accelerator` as `accelerate launch` configured it, with FSDP on the CPU too.

    Args:
        mixed_precision: None leaves it to the configuration.
        gradient_accumulation_steps: parts of a batch between two optimizer steps.
        report_to: names of trackers.
        project_dir: folder of the trackers' files.

    Raises:
        ValueError: a tracker does not exist or is not installed.
    """
    missing = sorted(set(report_to) - {"all", *map(str, get_available_trackers())})
    if missing:  # accelerate leaves out what is not installed without a word
        raise ValueError(f"report_to: there is no tracker {', '.join(missing)} here; is it installed?")
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # not told, processes without an accelerator do not join
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,
        log_with=report_to or None,
        project_dir=project_dir,
    )
    bfloat16_on_cpu = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    if bfloat16_on_cpu and not PackedLinear.is_available(torch.bfloat16):
        logger.warning("mixed_precision: PyTorch has no fast bf16 for this CPU, training takes less time with no.")
    asked_for_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked_for_fsdp and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate turns FSDP on for accelerators alone and would go on with DDP.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


def configure_deepspeed(accelerator: Accelerator, micro_batch_size: int, max_grad_norm: float) -> None:
    """Tell DeepSpeed, where it is in use, what it would otherwise take from a `DataLoader` and do itself.

    Args:
        micro_batch_size: clips that a process passes at once.
        max_grad_norm: DeepSpeed clips gradients inside its optimizer step.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = micro_batch_size
        config["gradient_clipping"] = max_grad_norm
