"""Lines as pairs of rays.

L directions of the lines, D site width.
"""

import torch

from rayscope.dictionaries import Linear


def split(lines: Linear) -> Linear:
    """Each direction and its opposite as two rays: (2 L, D), the L opposites last, the same coder without signs."""
    if lines.coder == "prefix":
        raise ValueError(
            "coder='prefix' has the same latents on every vector, which pairs of rays have not; use topk or omp"
        )
    both_LD = torch.cat([lines.directions, -lines.directions])
    rays = Linear(lines.width, 2 * lines.latents, lines.k, lines.coder, both_LD, lines.bias, signed=False)
    rays.provenance = dict(lines.provenance)
    return rays
