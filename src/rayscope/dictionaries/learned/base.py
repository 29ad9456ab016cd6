"""What every learned dictionary shares: parameters, the loss with AuxK, what each step keeps.

N vectors, D site width, L latents, M chosen (vector, latent) pairs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayscope.dictionaries.base import Codes, whole
from rayscope.dictionaries.learned.folding import Folding
from rayscope.dictionaries.sparse.auxk import auxk_error
from rayscope.dictionaries.sparse.kernels import Plan, gather_dot, sparse_decode
from rayscope.dictionaries.sparse.selection import products

DECODERS = ("learned", "frozen", "soft_frozen")
ENCODERS = ("learned", "frozen")


class Learned(Folding):
    """pre = W_enc (s x - b_dec) + b_enc, z sparse from pre, s x_hat = z W_dec + b_dec, rows of W_dec of unit length.

    s is one number that makes E|s x|^2 = D. Codes are in the units of x: z / s (see `Folding`, for `whiten` too). Gradients
    never reach x. A subclass says how latents are chosen: `choose` while it trains, `entries` when it is used (exactly, in full precision).

    decoder: learned; frozen, its rows stay as drawn; soft_frozen, each stays within cosine min_cosine of the row drawn.
    encoder: learned; frozen, W_enc stays as drawn (its biases learn).
    """

    training_only = (*Folding.training_only, "initial_LD")
    exact_choice: bool = False  # to measure what choosing in bfloat16, where that pays, costs: see the benchmark
    min_cosine = 0.8
    last: dict[str, Tensor]
    from_model: tuple[str, ...] = ("width",)  # the arguments that the model sets, not its user
    initial_LD: Tensor | None  # the rows drawn, of a soft-frozen decoder

    def __init__(
        self,
        width: int,
        latents: int,
        k: int,
        seed: int = 0,
        decoder: str = "learned",
        encoder: str = "learned",
        lr: float | None = None,
        auxk: int | None = None,
        auxk_coefficient: float = 1 / 32,
        whiten: bool = False,
    ):
        super().__init__(width, latents, k, whiten)
        if decoder not in DECODERS:
            raise ValueError(f"decoder={decoder!r}; it is one of {', '.join(DECODERS)}")
        if encoder not in ENCODERS:
            raise ValueError(f"encoder={encoder!r}; it is one of {', '.join(ENCODERS)}")
        whole(seed=seed, **({} if auxk is None else {"auxk": auxk}))
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed={seed} must fit in 64 bits, as torch's generators take it")
        for name, value in (("lr", 1 if lr is None else lr), ("auxk_coefficient", auxk_coefficient)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name}={value!r} must be a number")
        if lr is not None and not lr > 0:
            raise ValueError(f"lr={lr} must be above 0 (null: 2e-4 / sqrt(latents / 2**14))")
        if auxk is not None and not 0 <= auxk <= latents:
            raise ValueError(f"auxk={auxk} must be between 0 (off) and the {latents} latents")
        if not auxk_coefficient >= 0:
            raise ValueError(f"auxk_coefficient={auxk_coefficient} must be at least 0")
        if whiten and decoder == "soft_frozen":
            raise ValueError(
                "whiten=True with decoder='soft_frozen': a cap about a row drawn in y is none in x; choose one"
            )
        self.seed, self.decoder, self.encoder = seed, decoder, encoder
        self.lr = lr if lr is not None else 2e-4 / (latents / 2**14) ** 0.5
        self.auxk = auxk if auxk is not None else min(width // 2, latents // 2)
        self.auxk_coefficient = auxk_coefficient
        rows_LD = F.normalize(torch.randn(latents, width, generator=torch.Generator().manual_seed(seed)))
        self.W_dec_LD = nn.Parameter(rows_LD, requires_grad=decoder != "frozen")
        self.W_enc_LD = nn.Parameter(rows_LD.clone(), requires_grad=encoder == "learned")
        self.b_enc_L = nn.Parameter(torch.zeros(latents))
        self.b_dec_D = nn.Parameter(torch.zeros(width))
        self.register_buffer("initial_LD", rows_LD.clone() if decoder == "soft_frozen" else None)
        self.last = {}

    def arguments(self) -> dict[str, Any]:
        own = ("seed", "decoder", "encoder", "lr", "auxk", "auxk_coefficient", "whiten")
        return {**super().arguments(), **{name: getattr(self, name) for name in own}}

    @property
    def directions(self) -> Tensor:
        return self.W_dec_LD if self.whitening is None else F.normalize(self.W_dec_LD @ self.whitening.inverse_DD)

    @property
    def bias(self) -> Tensor:
        return self._outside(self.b_dec_D)

    def choose(self, centred_ND: Tensor) -> Plan:
        """Which latents each vector uses in training."""
        raise AttributeError(f"{type(self).__name__} defines no choose")

    def entries(self, products_CL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(number of each vector's codes, their latents, their values in scaled units), from a chunk's pre - b_enc."""
        raise AttributeError(f"{type(self).__name__} defines no entries")

    @torch.no_grad()
    def encode_sparse(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> Codes:
        """Chunk by chunk, always in full precision; BatchTopK by its threshold, so vectors do not affect each other."""
        self.check(x_ND)
        if self.whitening is not None:
            return self.to_save().encode_sparse(x_ND, tokens_N)
        counts, indices, values = [], [], []
        with full_precision(x_ND):
            for _, products_CL in products(self._centred(x_ND, tokens_N), self.W_enc_LD, exact=True):
                for part, found in zip((counts, indices, values), self.entries(products_CL), strict=True):
                    part.append(found)
        if not counts:
            none = torch.zeros(0, dtype=torch.int64, device=x_ND.device)
            return Codes(none, self.b_enc_L.detach()[:0], F.pad(none, (1, 0)), self.latents)
        offsets = F.pad(torch.cat(counts).cumsum(0), (1, 0))
        indices_M, values_M = torch.cat(indices), torch.cat(values) / self.scale
        return Codes(indices_M, self._gained(values_M, indices_M), offsets, self.latents)

    @torch.no_grad()
    def prepare(
        self, x_ND: Tensor, dead_window: int, run_tokens: int | None = None, tokens_N: Tensor | None = None
    ) -> None:
        """From a sample: s = sqrt(D / E|x|^2), b_dec = s E[x]. A latent is dead after dead_window silent tokens.

        run_tokens: the length of the run, for what changes during it; None: ten dead windows.
        """
        self.check(x_ND)
        check_finite(x_ND)
        if dead_window < 1:
            raise ValueError(f"dead_window={dead_window} tokens must be at least 1")
        if run_tokens is not None and run_tokens < 1:
            raise ValueError(f"run_tokens={run_tokens} must be at least 1")
        inner_ND = x_ND
        if self.whitening is not None:
            self.whitening.fit(x_ND)
            inner_ND = self.whitening(x_ND.to(self.b_dec_D.dtype))
        power = inner_ND.double().square().sum(1).mean()
        if power == 0:
            raise ValueError(f"all {len(x_ND)} sample vectors are zero: nothing to learn from")
        self.scale.copy_((self.width / power).sqrt())
        self.b_dec_D.copy_(inner_ND.double().mean(0) * self.scale.double())
        self.dead_window.fill_(dead_window)
        self.calibrate(x_ND, tokens_N)

    def losses(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> dict[str, Tensor]:
        """reconstruction = sum|x - x_hat|^2 / sum|x - batch mean|^2, the batch's own FVU;
        auxk = coefficient * sum|e - e_hat|^2 / sum|e - batch mean of e|^2, e the residual (no gradient), e_hat its
        decode from the auxk strongest dead latents, in bfloat16 products where those pay; 0 where none is dead. Both are
        free of the scale of x.

        Counts the silent tokens, and leaves the batch's fvu, l0 and share of dead latents in `last`.
        """
        return self._training_pass(x_ND, tokens_N)[2]

    def reconstruct(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(x_hat as it is while training, with gradients to the parameters; losses)."""
        scaled_ND, residual_ND, losses = self._training_pass(x_ND, tokens_N)
        return self._outside(scaled_ND - residual_ND), losses

    def _training_pass(self, x_ND: Tensor, tokens_N: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(s x, s x - s x_hat, losses)."""
        self.check(x_ND)
        check_finite(x_ND)
        with full_precision(x_ND):
            given_ND, scaled_ND = x_ND, self._inside(x_ND)
            dead_A = self.dead_L.nonzero()[:, 0]
            total, x_ND = spread(scaled_ND), self._unknown(scaled_ND, tokens_N)
            plan = self.choose(x_ND - self.b_dec_D.detach())
            values_M, pre_M = self._codes(x_ND, plan)
            residuals = self._residuals(x_ND, plan, self._gained(values_M, plan.indices_M))
            self._learn_from(residuals[-1].detach(), tokens_N)
            errors = [residual_ND.square().sum() / total for residual_ND in residuals]
            losses = {"reconstruction": torch.stack(errors).mean(), "auxk": x_ND.new_zeros(())}
            if len(dead_A) and self.auxk:
                e_ND = residuals[-1].detach()
                parameters = self.W_enc_LD, self._auxk_bias(), self.b_dec_D, self.W_dec_LD
                error = auxk_error(*parameters, dead_A, x_ND, e_ND, self.auxk, self.signed)
                losses["auxk"] = self.auxk_coefficient * error / spread(e_ND)
            losses |= self.penalties(x_ND, plan, pre_M, values_M)
        fvu = errors[-1].detach()
        if self.whitening is not None:
            error_ND = residuals[-1].detach() @ self.whitening.inverse_DD / self.scale
            fvu = error_ND.square().sum() / spread(given_ND.detach().to(error_ND.dtype))
        self._observe(plan, values_M.detach(), len(x_ND), fvu)
        return scaled_ND, residuals[-1], losses

    def _centred(self, x_ND: Tensor, tokens_N: Tensor | None) -> Tensor:
        return self._unknown(self._inside(x_ND), tokens_N) - self.b_dec_D.detach()

    def _unknown(self, x_ND: Tensor, tokens_N: Tensor | None) -> Tensor:
        """What is left to code of s x: all of it, unless the kind reads tokens."""
        return x_ND

    def _residuals(self, x_ND: Tensor, plan: Plan, values_M: Tensor) -> list[Tensor]:
        """The (N, D) residuals whose mean FVU is minimised; the last is the whole decode's."""
        return [x_ND - (sparse_decode(values_M, self.W_dec_LD, plan) + self.b_dec_D)]

    def _learn_from(self, residual_ND: Tensor, tokens_N: Tensor | None) -> None:
        """What is learned without gradients."""

    def _codes(self, x_ND: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """(values, pre) of the pairs of a plan."""
        pre_M = gather_dot(x_ND, self.W_enc_LD, self.b_enc_L, self.b_dec_D, plan)
        return pre_M if self.signed else pre_M.relu(), pre_M

    def _auxk_bias(self) -> Tensor:
        """The b_enc that AuxK reads dead latents with."""
        return self.b_enc_L

    def penalties(self, x_ND: Tensor, plan: Plan, pre_M: Tensor, values_M: Tensor) -> dict[str, Tensor]:
        """Further losses by name, from the scaled x and what `_codes` returned."""
        return {}

    @torch.no_grad()
    def _observe(self, plan: Plan, values_M: Tensor, vectors: int, fvu: Tensor) -> None:
        fired_M = values_M != 0
        self.count(plan.indices_M[fired_M], vectors)
        self.last.update(fvu=fvu, l0=fired_M.sum() / vectors, dead=self.dead_L.float().mean())

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Takes from each row's gradient the part along the row, which unit length would undo: g - (g . w) w."""
        grad_LD = self.W_dec_LD.grad
        if grad_LD is not None:
            along_L1 = (grad_LD * self.W_dec_LD).sum(1, keepdim=True)
            grad_LD.addcmul_(self.W_dec_LD, along_L1, value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Unit rows again; soft-frozen ones at the nearest point whose cosine with the row drawn is min_cosine or more."""
        if self.W_dec_LD.requires_grad:
            self.W_dec_LD /= self.W_dec_LD.norm(dim=1, keepdim=True).clamp_min(1e-12)
        if self.initial_LD is not None:
            self.W_dec_LD.copy_(_within(self.W_dec_LD, self.initial_LD, self.min_cosine))

    def calibrate(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> None:
        """Sets what depends on the distribution of x; nothing does, except BatchTopK's threshold."""


def spread(x_ND: Tensor) -> Tensor:
    """sum |x - mean|^2 over the batch; 1 where that is 0, so that a ratio stays finite."""
    spread = (x_ND - x_ND.mean(0)).square().sum()
    return torch.where(spread > 0, spread, 1)


def _within(w_LD: Tensor, centre_LD: Tensor, cosine: float) -> Tensor:
    """Unit rows w, those outside the cap about their unit centre on its edge: cosine * c + sine * (w's unit part across c)."""
    along_L1 = (w_LD * centre_LD).sum(1, keepdim=True)
    across_LD = F.normalize(w_LD - along_L1 * centre_LD)
    return torch.where(along_L1 >= cosine, w_LD, cosine * centre_LD + (1 - cosine**2) ** 0.5 * across_LD)


def check_finite(x_ND: Tensor) -> None:
    """Raises ValueError where a vector holds NaN or inf."""
    if x_ND.sum().isfinite():
        return
    bad = int((~x_ND.isfinite().all(1)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(x_ND)} activation vectors hold NaN or inf; use finite ones (a wider precision?)"
        )


def full_precision(x_ND: Tensor) -> torch.autocast:
    return torch.autocast(x_ND.device.type, enabled=False)
