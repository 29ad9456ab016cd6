"""Orthogonal matching pursuit, batched: k directions of each vector, one at a time, their codes always least squares.

N vectors, C vectors of a chunk, A of them that take another row, F of those fitted anew, D site width, L directions,
j or J rows taken so far.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries.coders.support import in_chunks, largest, nonnegative

GRAM = 2**26  # elements of the greatest Gram matrix that is formed: that of 8,192 directions


@torch.no_grad()
def omp(x_ND: Tensor, W_LD: Tensor, k: int | Tensor, signed: bool = True) -> tuple[Tensor, Tensor]:
    """(indices, values), both (N, k): repeat k times: take the row with the largest |r . w|, r = x - its projection.

    Without sign (rays): the row with the largest r . w, while one is positive, and r = x - its projection on the cone
    of the rows taken: codes are non-negative least squares (Bruckstein, Elad and Zibulevsky 2008); some may become 0.

    k: of all vectors, or (N) of each; what is beyond it is 0. Rows of W have unit length. The value is 0 of a row in
    the span of those taken before it, and of all rows taken once the residual is 0.

    r . w of all rows is one product of the chunk's residuals with W. On a CPU, if it is needed more than 2 L times and
    the Gram matrix of W has at most GRAM elements, it is x . w less what that matrix says of the codes, which reads k
    rows of it instead of all of W (Rubinstein, Zibulevsky and Elad's Batch-OMP, 2008).
    """
    steps = int(k.sum()) if isinstance(k, Tensor) else k * len(x_ND)
    pays = x_ND.device.type == "cpu" and steps > 2 * len(W_LD) and len(W_LD) ** 2 <= GRAM
    rows = Rows(W_LD, W_LD @ W_LD.T if pays else None)
    return in_chunks(lambda x_CD, k_C: Chunk(x_CD, rows, k_C, signed).codes(), x_ND, k, len(W_LD))


class Rows:
    """W, and what is asked of it. gram_LL: W W', if it was formed."""

    def __init__(self, W_LD: Tensor, gram_LL: Tensor | None):
        self.W_LD, self.gram_LL = W_LD, gram_LL

    def across(self, indices_CJ: Tensor, chosen_C: Tensor) -> Tensor:
        """(C, J): the product of each chosen row with those of the indices."""
        if self.gram_LL is not None:
            return self.gram_LL[chosen_C[:, None], indices_CJ].double()
        return (self.W_LD[chosen_C][:, None] @ self.W_LD[indices_CJ].mT)[:, 0].double()

    def gram(self, indices_CJ: Tensor) -> Tensor:
        """(C, J, J)"""
        if self.gram_LL is not None:
            return self.gram_LL[indices_CJ[:, :, None], indices_CJ[:, None]].double()
        rows_CJD = self.W_LD[indices_CJ]
        return (rows_CJD @ rows_CJD.mT).double()

    def residual(self, x_CD: Tensor, indices_CJ: Tensor, z_CJ: Tensor) -> Tensor:
        return x_CD - F.embedding_bag(indices_CJ, self.W_LD, mode="sum", per_sample_weights=z_CJ.to(x_CD.dtype))

    def gains(self, x_CD: Tensor, along_CL: Tensor, indices_CJ: Tensor, z_CJ: Tensor) -> Tensor:
        """(C, L): r . w of all rows; along: x . w."""
        if self.gram_LL is None:
            return self.residual(x_CD, indices_CJ, z_CJ) @ self.W_LD.T
        less_CJ = -z_CJ.to(along_CL.dtype)
        return F.embedding_bag(indices_CJ, self.gram_LL, mode="sum", per_sample_weights=less_CJ).add_(along_CL)


class Chunk:
    """C vectors, and the rows that each has taken.

    M is lower triangular with M G M' = 1, G the Gram matrix of a vector's rows. One more row w gives it one more row m,
    and the codes M' M b, b = x . w, become z + m (m . b). Where m is 0 the row taken has no code.
    """

    def __init__(self, x_CD: Tensor, rows: Rows, k_C: Tensor, signed: bool):
        C, k = len(x_CD), int(k_C[0])  # they fall
        self.x_CD, self.rows, self.k_C, self.signed = x_CD, rows, k_C, signed
        self.indices_Ck = torch.zeros(C, k, dtype=torch.int64, device=x_CD.device)
        self.used_Ck = torch.zeros(C, k, dtype=torch.bool, device=x_CD.device)
        self.M_Ckk = torch.zeros(C, k, k, dtype=torch.float64, device=x_CD.device)
        self.b_Ck, self.z_Ck = self.M_Ckk.new_zeros(C, k), self.M_Ckk.new_zeros(C, k)
        self.bounded_C = torch.zeros(C, dtype=torch.bool, device=x_CD.device)  # rays whose M' M b was not positive
        self.zero = 100 * torch.finfo(x_CD.dtype).eps  # what is left of a vector or a row below this part is rounding

    def codes(self) -> tuple[Tensor, Tensor]:
        along_CL = self.x_CD @ self.rows.W_LD.T
        zero_C = self.zero * self.x_CD.norm(dim=1)
        for j in range(self.indices_Ck.shape[1]):
            A = int((self.k_C > j).sum())
            taken = self.indices_Ck[:A, :j], self.z_Ck[:A, :j]
            gain_AL = self.rows.gains(self.x_CD[:A], along_CL[:A], *taken) if j else along_CL[:A].clone()
            size_AL = gain_AL.abs_() if self.signed else gain_AL
            best_A, chosen_A = largest(size_AL.scatter_(1, self.indices_Ck[:A, :j], -torch.inf))
            left_A = best_A > zero_C[:A]
            if not left_A.any():
                break
            self.indices_Ck[:A, j] = chosen_A
            self.b_Ck[:A, j] = along_CL[:A].gather(1, chosen_A[:, None])[:, 0]
            self.take(j, left_A)
        return self.indices_Ck, self.refined().to(self.x_CD.dtype)

    def take(self, j: int, left_A: Tensor) -> None:
        """Row j of M, and the codes. left: whose residual is not 0."""
        A = len(left_A)
        M_Ajj, m_AJ = self.M_Ckk[:A, :j, :j], self.M_Ckk[:A, j, : j + 1]
        z_AJ, bounded_A = self.z_Ck[:A, : j + 1], self.bounded_C[:A]
        inside_Aj1 = M_Ajj @ self.rows.across(self.indices_Ck[:A, :j], self.indices_Ck[:A, j])[:, :, None]
        room_A = 1 - inside_Aj1.square().sum((1, 2))  # squared distance of the row from the span of those before it
        useful_A = left_A & (room_A > self.zero) & ~bounded_A
        m_AJ[:, :j] = -(inside_Aj1.mT @ M_Ajj)[:, 0]
        m_AJ[:, j] = 1
        m_AJ *= (useful_A * room_A.clamp_min(self.zero).rsqrt())[:, None]
        self.used_Ck[:A, j] = useful_A | (left_A & bounded_A)
        new_AJ = z_AJ + m_AJ * (m_AJ * self.b_Ck[:A, : j + 1]).sum(1, keepdim=True)
        if not self.signed:
            bounded_A |= (new_AJ < 0).any(1)
            new_AJ[bounded_A] = self.non_negative(bounded_A.nonzero()[:, 0], z_AJ[bounded_A])
        z_AJ.copy_(new_AJ)

    def non_negative(self, at_F: Tensor, z_FJ: Tensor) -> Tensor:
        """Least squares over z >= 0, from the codes before the last row was taken."""
        J = z_FJ.shape[1]
        used_FJ = self.used_Ck[at_F, :J]
        gram_FJJ = self.rows.gram(self.indices_Ck[at_F, :J]) * (used_FJ[:, :, None] & used_FJ[:, None])
        return nonnegative(gram_FJJ, self.b_Ck[at_F, :J] * used_FJ, z_FJ)

    def refined(self) -> Tensor:
        """The codes after a step of iterative refinement: G is of W's own precision, which M amplifies."""
        residual_CD = self.rows.residual(self.x_CD, self.indices_Ck, self.z_Ck)
        slope_Ck1 = (residual_CD[:, None] @ self.rows.W_LD[self.indices_Ck].mT).mT.double()
        z_Ck = self.z_Ck + (self.M_Ckk.mT @ (self.M_Ckk @ slope_Ck1))[:, :, 0] * ~self.bounded_C[:, None]
        return z_Ck if self.signed else z_Ck.clamp_min_(0)
