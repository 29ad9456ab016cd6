"""Which positions count, in rows written out by hand. 0 separates documents, 1 begins a row (BOS), 2 pads its end."""

import copy

import numpy as np
import pytest
import torch

from rayscope.model import LanguageModel
from rayscope.streams import positions

SPECIAL = (0, 1, 2)
TOKENS_RC = [
    [7, 8, 0, 7, 9, 0],  # begins inside a document, ends with a separator
    [0, 7, 0, 0, 8, 9],  # begins with a separator, holds an empty document
    [1, 7, 8, 2, 2, 2],  # BOS, then padding
    [9, 9, 9, 9, 9, 9],
]
IN_STREAM = ["-x-xx-", "-x--xx", "-xx---", "-xxxxx"]
CODED = ["x" + row[1:] for row in IN_STREAM]


def drawn(mask_RC) -> list[str]:
    return ["".join("x" if kept else "-" for kept in row) for row in mask_RC.tolist()]


@pytest.mark.parametrize("tokens_RC", [torch.tensor(TOKENS_RC), np.array(TOKENS_RC, np.uint16)], ids=["torch", "numpy"])
def test_masks_by_hand(tokens_RC):
    assert drawn(positions.in_stream(tokens_RC, SPECIAL)) == IN_STREAM
    assert drawn(positions.coded(tokens_RC, SPECIAL)) == CODED
    assert drawn(positions.in_stream(tokens_RC, ())) == ["-xxxxx"] * 4
    assert drawn(positions.coded(tokens_RC, ())) == ["xxxxxx"] * 4


def test_position_0_is_known_by_its_index():
    first_RC = positions.first(torch.tensor(TOKENS_RC))
    assert drawn(first_RC) == ["x-----"] * 4
    assert drawn(positions.counted(first_RC, "excluded")) == ["-xxxxx"] * 4
    assert drawn(positions.counted(first_RC, "included")) == ["xxxxxx"] * 4


def test_the_views_count_the_places_of_what_they_keep():
    """Sums by place (0 later, 1 position 0), added up over a view's places,
    are sums over the vectors that it counts.
    """
    first_N, values_N = torch.tensor([True, False, False, True, False]), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    by_place_P = torch.zeros(2).index_add_(0, first_N.long(), values_N)
    sums = {view: by_place_P[places].sum().item() for view, places in positions.VIEWS.items()}
    assert sums == {view: values_N[positions.counted(first_N, view)].sum().item() for view in positions.VIEWS}
    assert sums == {"excluded": 22.0, "included": 31.0}


@pytest.mark.parametrize("chunk", [1, 12, 13, 2**24])
def test_stream_sizes_count_what_a_stream_holds(chunk):
    tokens_RC = np.array(TOKENS_RC, np.uint16)
    assert positions.stream_sizes(tokens_RC, SPECIAL, chunk).tolist() == [3, 3, 2, 5]
    assert positions.stream_sizes(tokens_RC, (), chunk).tolist() == [5, 5, 5, 5]


def test_keep_first_keeps_position_0_of_x_and_the_rest_of_x_hat():
    x_RCD, x_hat_RCD = torch.zeros(2, 3, 1), torch.ones(2, 3, 1)
    assert positions.keep_first(x_RCD, x_hat_RCD)[..., 0].tolist() == [[0, 1, 1]] * 2


def test_padding_and_bos_of_a_tokenizer_are_special(model: LanguageModel):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>", "pad_token": "<pad>"})
    other = LanguageModel("with BOS", model.network, tokenizer)
    bos, pad, (end,) = tokenizer.bos_token_id, tokenizer.pad_token_id, model.special_ids
    assert set(other.special_ids) == {end, bos, pad}
    tokens_RC = torch.tensor([[bos, 40, end, 41, pad, pad]])
    assert drawn(positions.in_stream(tokens_RC, other.special_ids)) == ["-x-x--"]
    assert drawn(positions.coded(tokens_RC, other.special_ids)) == ["xx-x--"]
