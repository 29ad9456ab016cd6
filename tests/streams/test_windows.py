"""Whole rows and the vectors that count, by hand. 0 is special;
vector (row, position) of the site is 10 row + position.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from rayscope.dictionaries import Codes, Dictionary
from rayscope.model import LanguageModel
from rayscope.model.sites import Site, resolve
from rayscope.streams.source import Source
from rayscope.streams.windows import Window
from rayscope.text import PackedText

TOKENS_RC = torch.tensor([[0, 5, 0, 6], [7, 0, 8, 9]])
CODED = [0, 1, 3, 10, 12, 13]  # position 0 whatever its token, and no other special token


SITE = Site("here", 1, 0)


class AtTokens(Dictionary):
    """One latent, whose code is x at an even token and -x at an odd one. No `kind`: it is not for saving."""

    directions, bias = torch.ones(1, 1), torch.zeros(1)

    def __init__(self):
        super().__init__(1, 1, 1)
        self.signed, self.side = True, "current token"

    def encode_sparse(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> Codes:
        return Codes.of_dense(torch.where(tokens_N[:, None] % 2 == 0, x_ND, -x_ND))


@pytest.fixture
def window() -> Window:
    x_RCD = torch.tensor([[[0.0], [1], [2], [3]], [[10], [11], [12], [13]]])
    documents_RC = torch.tensor([[4, 4, 4, 5], [6, 6, 7, 7]])
    return Window(TOKENS_RC, documents_RC, {"here": x_RCD}, special=(0,))


def test_vectors_stand_in_the_order_of_the_text_with_their_own_labels(window: Window):
    vectors = window.at(SITE)
    assert vectors.x_ND.flatten().tolist() == CODED
    assert vectors.tokens_N.tolist() == [0, 5, 6, 7, 8, 9]
    assert vectors.documents_N.tolist() == [4, 4, 5, 6, 7, 7]
    assert vectors.first_N.tolist() == [True, False, False, True, False, False]
    later = vectors.take(~vectors.first_N)
    assert later.x_ND.flatten().tolist() == [1, 3, 12, 13]
    assert later.tokens_N.tolist() == [5, 6, 8, 9]
    assert not later.first_N.any()


def test_codes_are_those_of_each_vector_at_its_token(window: Window):
    assert window.at(SITE).encode(AtTokens()).dense().flatten().tolist() == [0, -1, 3, -10, 12, -13]


def test_what_is_put_back_into_rows_leaves_every_other_position_as_it_was(window: Window):
    x_RCD = window.activations["here"]
    put_RCD = window.in_rows(-window.at(SITE).x_ND, x_RCD)
    assert put_RCD.flatten().tolist() == [0, -1, 2, -3, -10, 11, -12, -13]
    assert x_RCD.flatten().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_windows_of_a_source_are_the_models_own_rows(model: LanguageModel, packed: PackedText):
    (site,) = resolve("blocks.1.hook_resid_post", model)
    read = list(Source(model, packed, seed=4).windows("test", [site], tokens=5 * 32 - 3, rows=2))
    assert [len(window.tokens_RC) for window in read] == [2, 2, 1]  # at least the tokens that were asked for
    for window in read:
        of_rows = {tuple(row): n for n, row in enumerate(packed.test.tokens.tolist())}
        chosen = [of_rows[tuple(row)] for row in window.tokens_RC.tolist()]
        assert np.array_equal(packed.test.documents[chosen], window.documents_RC.numpy())
        assert torch.equal(window.activations[site.key], model.activations(window.tokens_RC, [site])[site.key])
        vectors, special = window.at(site), torch.tensor(model.special_ids)
        kept_RC = ~torch.isin(window.tokens_RC, special)
        kept_RC[:, 0] = True
        assert torch.equal(vectors.x_ND, window.activations[site.key][kept_RC])
        assert not torch.isin(vectors.tokens_N[~vectors.first_N], special).any()
        assert int(vectors.first_N.sum()) == len(window.tokens_RC)
