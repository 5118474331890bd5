"""The delay pattern: the only place that knows how K streams of codes are shifted against each other.

Frame `t` of codebook `k` sits in column `1 + t + delays[k]` of the sequence that the decoder reads; every other cell
holds the special token. Column 0 is the start column. `T` frames make `T + 1 + max(delays)` columns (the "delay"
interleaving of https://arxiv.org/abs/2306.05284, section 2.2).
"""

from collections.abc import Sequence

import torch

UNKNOWN = -1  # a cell of the pattern that is still to be generated


def apply_delay_pattern(codes: torch.Tensor, delays: Sequence[int], special_token_id: int) -> torch.Tensor:
    """Lays codes out in delayed columns.

    Args:
        codes (`torch.Tensor` of shape `(..., K, T)`): one row of values a codebook.
        delays (`Sequence[int]` of length `K`): columns by which each codebook lags.
        special_token_id (`int`): the value of every cell outside the pattern.

    Returns:
        `torch.Tensor` of shape `(..., K, T + 1 + max(delays))`, same dtype and device as `codes`.
    """
    num_frames = codes.shape[-1]
    columns = codes.new_full((*codes.shape[:-1], num_frames + 1 + max(delays)), special_token_id)
    for codebook, delay in enumerate(delays):
        columns[..., codebook, 1 + delay : 1 + delay + num_frames] = codes[..., codebook, :]
    return columns


def revert_delay_pattern(columns: torch.Tensor, delays: Sequence[int]) -> torch.Tensor:
    """Gathers the complete frames out of delayed columns, the inverse of [`apply_delay_pattern`].

    Args:
        columns (`torch.Tensor` of shape `(..., K, S)`): delayed columns, the start column included.
        delays (`Sequence[int]` of length `K`): columns by which each codebook lags.

    Returns:
        `torch.Tensor` of shape `(..., K, max(S - 1 - max(delays), 0))`: the frames that all codebooks have reached.
    """
    num_frames = max(columns.shape[-1] - 1 - max(delays), 0)
    return torch.stack([columns[..., k, 1 + delay : 1 + delay + num_frames] for k, delay in enumerate(delays)], dim=-2)
