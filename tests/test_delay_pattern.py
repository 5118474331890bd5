"""The delay pattern, cell by cell."""

import pytest
import torch

from audiogen_hf.delay_pattern import apply_delay_pattern, revert_delay_pattern

S = 99  # the special token


def test_frame_t_of_codebook_k_sits_in_column_one_plus_t_plus_its_delay():
    codes = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    expected = [
        [S, 1, 2, S, S, S],
        [S, S, 3, 4, S, S],
        [S, S, S, 5, 6, S],
        [S, S, S, S, 7, 8],
    ]
    assert apply_delay_pattern(codes, [0, 1, 2, 3], S).tolist() == expected


def test_stereo_delays_keep_both_channels_of_a_codebook_together():
    codes = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    expected = [
        [S, 1, 2, S],
        [S, 3, 4, S],
        [S, S, 5, 6],
        [S, S, 7, 8],
    ]
    assert apply_delay_pattern(codes, [0, 0, 1, 1], S).tolist() == expected


@pytest.mark.parametrize("delays", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 0], [2, 0, 5, 1], [1, 1, 2, 3], [0]])
@pytest.mark.parametrize("num_frames", [0, 1, 2, 7])
def test_reverting_gives_the_codes_back(delays, num_frames):
    codes = torch.randint(0, S, (2, len(delays), num_frames), generator=torch.Generator().manual_seed(0))
    columns = apply_delay_pattern(codes, delays, S)
    assert columns.shape == (2, len(delays), num_frames + 1 + max(delays))
    assert (columns == S).sum() == columns.numel() - codes.numel()
    assert torch.equal(revert_delay_pattern(columns, delays), codes)


def test_reverting_goes_by_place_and_not_by_value():
    codes = torch.tensor([[S, 1], [2, S]])  # an id that a filter by value would lose
    assert torch.equal(revert_delay_pattern(apply_delay_pattern(codes, [0, 1], S), [0, 1]), codes)


def test_columns_that_are_not_complete_make_no_frames():
    columns = apply_delay_pattern(torch.arange(20).view(4, 5), [0, 1, 2, 3], S)
    for length in range(columns.shape[-1] + 1):
        frames = revert_delay_pattern(columns[:, :length], [0, 1, 2, 3])
        assert frames.tolist() == [row[: max(length - 4, 0)] for row in torch.arange(20).view(4, 5).tolist()]


def test_dtype_device_and_input_are_kept():
    codes = torch.arange(8, dtype=torch.int16).view(2, 4)
    before = codes.clone()
    columns = apply_delay_pattern(codes, [0, 1], S)
    assert columns.dtype == torch.int16 and columns.device == codes.device
    assert torch.equal(codes, before)
    on_meta = torch.empty(2, 4, dtype=torch.long, device="meta")
    assert apply_delay_pattern(on_meta, [0, 1], S).device.type == "meta"
