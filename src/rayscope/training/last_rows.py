"""LastRows: the batches of whole rows that fine-tuning reads.

R rows, C context.
"""

import numpy as np
import torch
from torch import Tensor

from rayscope.seeding import generator_of
from rayscope.text import Rows


class LastRows:
    """Batches of whole rows, a function of (seed, number): each pass of the training stream's order, from its end.

    So the first rows are those that training over less than one pass read last, or never.
    """

    def __init__(self, rows: Rows, *, tokens: int, rows_per_batch: int, seed: int = 0):
        context = rows.tokens.shape[1]
        if not 1 <= rows_per_batch <= len(rows):
            raise ValueError(f"finetuning.rows={rows_per_batch}: at least 1, at most the {len(rows)} rows of the text")
        if tokens < rows_per_batch * context:
            raise ValueError(
                f"finetuning.tokens={tokens} is less than one batch of {rows_per_batch} rows of {context}; raise it"
            )
        self.rows, self.rows_per_batch, self.seed = rows, rows_per_batch, seed
        self.tokens_per_batch = rows_per_batch * context
        self.length = tokens // self.tokens_per_batch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Tensor:
        places = np.arange(number * self.rows_per_batch, (number + 1) * self.rows_per_batch)
        passes, within = np.divmod(places, len(self.rows))
        keys = {p: generator_of("pass", self.seed, p) for p in np.unique(passes)}
        orders = {p: torch.randperm(len(self.rows), generator=key).numpy()[::-1] for p, key in keys.items()}
        chosen = np.array([orders[p][w] for p, w in zip(passes, within, strict=True)])
        return torch.from_numpy(self.rows.tokens[chosen].astype(np.int64))
