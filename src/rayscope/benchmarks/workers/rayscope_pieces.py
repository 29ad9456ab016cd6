"""The pieces that a k-sparse training step cannot do without, one after another: their sum is the step's limit.

Written apart from rayscope's own kernels. N vectors of a batch, C of a chunk, D site width,
L latents, k codes per vector.
"""

import time
from collections import defaultdict

import protocol
import torch
from torch.nn import functional as F

from rayscope.memory import keep_freed_memory

CHUNK = 512

settings = protocol.start()
keep_freed_memory()  # as the command line does
L, D, N, k = settings.latents, settings.width, settings.batch, settings.k
train_ND, _ = protocol.vectors(settings)
W_enc_LD, W_dec_LD = (F.normalize(torch.randn(L, D)).requires_grad_() for _ in range(2))
fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
choice = torch.bfloat16 if fast else torch.float32  # what the selection's matmul is made in
adam = torch.optim.Adam([W_enc_LD, W_dec_LD], lr=1e-6, fused=True)
starts_N = torch.arange(N) * k
rows_M = torch.arange(N).repeat_interleave(k)
spent = defaultdict(float)


class Piece:
    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_) -> None:
        spent[self.name] += time.perf_counter() - self.began


@torch.no_grad()
def pieces(x_ND: torch.Tensor) -> None:
    W_enc_LD.grad = W_dec_LD.grad = None
    with Piece("cast"):
        W_choice_LD = W_enc_LD.to(choice)
    with Piece("selection"):
        chunks = [F.linear(x_CD.to(choice), W_choice_LD).topk(k, sorted=False).indices for x_CD in x_ND.split(CHUNK)]
        indices_M = torch.cat(chunks).flatten()
    with Piece("values"):
        values_M = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            x_ND, W_enc_LD, indices_M, starts_N, rows_M, 0
        )
    with Piece("decode"):
        x_hat_ND = F.embedding_bag(indices_M, W_dec_LD, starts_N, mode="sum", per_sample_weights=values_M)
    gradient_ND = (x_hat_ND - x_ND) / N
    with Piece("gradient of values"):
        grad_M = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            gradient_ND, W_dec_LD, indices_M, starts_N, rows_M, 0
        )
    with Piece("gradients of weights"):
        order_M = indices_M.argsort(stable=True)
        offsets_L = F.pad(indices_M.bincount(minlength=L).cumsum(0), (1, 0))
        sums = {"mode": "sum", "include_last_offset": True}
        W_dec_LD.grad = F.embedding_bag(
            rows_M[order_M], gradient_ND, offsets_L, per_sample_weights=values_M[order_M], **sums
        )
        W_enc_LD.grad = F.embedding_bag(rows_M[order_M], x_ND, offsets_L, per_sample_weights=grad_M[order_M], **sums)
    with Piece("clip, row norms"):
        torch.nn.utils.clip_grad_norm_([W_enc_LD, W_dec_LD], 1.0)
        W_dec_LD.div_(W_dec_LD.norm(dim=1, keepdim=True))
    with Piece("Adam"):
        adam.step()


count = 0
for x_ND in protocol.batches(train_ND, N, settings.seed):
    pieces(x_ND)
    count += 1
protocol.finish(
    "rayscope", selection=str(choice), pieces={name: seconds / max(count, 1) for name, seconds in spent.items()}
)
