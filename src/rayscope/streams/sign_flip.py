"""SignFlip: a stream on which every feature is bipolar, because half of the vectors are mirrored in their mean.

N vectors, D site width.
"""

from dataclasses import replace

import torch
from torch import Tensor

from rayscope.seeding import generator_of
from rayscope.streams.stream import Batch, DerivedStream, Stream


class SignFlip(DerivedStream):
    """mean + s (x - mean) for each x of `real`, s = 1 or -1 with equal chance, one per vector for all sites.

    Mean and covariance stay what they are, and no half-line is left: whatever x holds, its mirror image is as frequent.
    s depends on (seed, batch number) alone. means: {site.key: mean_D}, of training vectors.
    """

    def __init__(self, real: Stream, means: dict[str, Tensor], *, seed: int = 0):
        super().__init__(real)
        for site in self.sites:
            if site.key not in means:
                raise ValueError(f"means: that of {site.hook} is not given; there are {', '.join(means) or 'none'}")
        self.seed = seed
        self.means = {key: mean_D.cpu() for key, mean_D in means.items()}

    def __getitem__(self, number: int) -> Batch:
        batch = self.real[number]
        chance = generator_of("sign flip", self.seed, number)
        sign_N1 = 2.0 * torch.randint(2, (len(batch), 1), generator=chance) - 1
        flipped = {
            key: mean_D + sign_N1.to(x_ND.dtype) * (x_ND - mean_D)
            for (key, x_ND), mean_D in ((item, self.means[item[0]]) for item in batch.activations.items())
        }
        return replace(batch, activations=flipped)
