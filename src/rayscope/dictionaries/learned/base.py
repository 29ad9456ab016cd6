"""What every learned dictionary shares: parameters, the loss with AuxK, and what happens after each step.

N vectors, D site width, L latents, M chosen (vector, latent) pairs.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayscope.dictionaries.base import Codes
from rayscope.dictionaries.learned.arguments import check_arguments, check_run
from rayscope.dictionaries.learned.firing import Firing
from rayscope.dictionaries.learned.folding import Folding
from rayscope.dictionaries.learned.naming import save_parts_as_own
from rayscope.dictionaries.learned.rate import default_rate
from rayscope.dictionaries.learned.revival import revive
from rayscope.dictionaries.learned.rows import drawn_rows, within_caps
from rayscope.dictionaries.learned.training_pass import TrainingPass
from rayscope.dictionaries.learned.units import Sides, Units
from rayscope.dictionaries.learned.vectors import check_finite, full_precision, spread
from rayscope.dictionaries.learned.whitening import Whitening
from rayscope.dictionaries.sparse.auxk import auxk_error
from rayscope.dictionaries.sparse.kernels import SparsePattern, gather_dot, sparse_decode
from rayscope.dictionaries.sparse.selection import products


class Learned(Folding):
    """pre = W_enc (s x - b_dec) + b_enc, z sparse from pre, s x_hat = z W_dec + b_dec, rows of W_dec of unit length.

    s is one number that makes E|s x|^2 = D, and codes are in the units of x: z / s. Gradients never reach x. A subclass
    says which latents a vector uses: `choose` while it trains, `active_codes` in use (exactly, in full precision).

    decoder: learned; frozen, its rows stay as drawn; soft_frozen, each stays within cosine min_cosine of the row drawn.
    encoder: learned; frozen, W_enc stays as drawn (its biases learn).
    lr: None, that of `default_rate`, for the steps that `train_for` is given, or for endless ones.
    whiten: learned, losses too, in y = s (x - m) P instead of s x (see `Whitening`); the metric fvu is that of x.
    initial_rows: a name; with one seed and one name the same rows are drawn. None: the kind, so that two kinds differ.
    """

    training_only: tuple[str, ...] = (*Firing.state, *Whitening.state, "initial_LD")  # of a checkpoint, not of a file
    from_model: tuple[str, ...] = ("width",)  # arguments that the model sets, not its user
    min_cosine = 0.8
    initial_LD: Tensor | None  # the rows drawn, of a soft-frozen decoder
    gain_L: Tensor | None  # what codes are multiplied by after `fold`, if whitened

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
        initial_rows: str | None = None,
    ):
        super().__init__(width, latents, k)
        check_arguments(latents, seed, decoder, encoder, lr, auxk, auxk_coefficient, whiten, initial_rows)
        self.seed, self.decoder, self.encoder, self.whiten = seed, decoder, encoder, whiten
        self.initial_rows = initial_rows
        self.lr, self.lr_given = lr if lr is not None else default_rate(latents), lr is not None
        self.auxk = auxk if auxk is not None else min(width // 2, latents // 2)
        self.auxk_coefficient = auxk_coefficient
        rows_LD = drawn_rows(latents, width, seed, initial_rows or self.kind)
        self.W_dec_LD = nn.Parameter(rows_LD, requires_grad=decoder != "frozen")
        self.W_enc_LD = nn.Parameter(rows_LD.clone(), requires_grad=encoder == "learned")
        self.b_enc_L = nn.Parameter(torch.zeros(latents))
        self.b_dec_D = nn.Parameter(torch.zeros(width))
        self.register_buffer("gain_L", torch.ones(latents) if whiten else None)
        self.register_buffer("initial_LD", rows_LD.clone() if decoder == "soft_frozen" else None)
        self.firing = Firing(latents)
        self.units = Sides({"input": Units(width, whiten)})
        save_parts_as_own(self)

    @property
    def centre_D(self) -> Tensor:
        """What the encoder subtracts from s x."""
        return self.b_dec_D

    def arguments(self) -> dict[str, Any]:
        own = ("seed", "decoder", "encoder", "lr", "auxk", "auxk_coefficient", "whiten", "initial_rows")
        return {**super().arguments(), **{name: getattr(self, name) for name in own}}

    @property
    def directions(self) -> Tensor:
        rows_LD = self.units.outer.unwhiten(self.W_dec_LD)
        return rows_LD if rows_LD is self.W_dec_LD else F.normalize(rows_LD)

    @property
    def bias(self) -> Tensor:
        return self.units.outer.invert(self.b_dec_D)

    @abstractmethod
    def choose(self, centred_ND: Tensor) -> SparsePattern:
        """Which latents each vector uses in training."""

    @abstractmethod
    def active_codes(self, products_CL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(number of codes per vector, their latents, their values in scaled units), from a chunk's pre - b_enc."""

    @torch.no_grad()
    def encode_sparse(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> Codes:
        """Chunk by chunk, always in full precision; BatchTopK by its threshold, so vectors do not affect each other."""
        self.check(x_ND)
        if len(x_ND) == 0:
            return Codes.of_dense(self.b_enc_L.detach().expand(0, -1))
        with full_precision(x_ND):
            chunks = products(self._centred(x_ND, tokens_N), self.W_enc_LD, exact=True)
            parts = zip(*(self.active_codes(products_CL) for _, products_CL in chunks), strict=True)
            counts_N, indices_M, values_M = map(torch.cat, parts)
            gain_L = self._gain()
        offsets, values_M = F.pad(counts_N.cumsum(0), (1, 0)), values_M / self.units.outer.scale
        return Codes(indices_M, values_M if gain_L is None else values_M * gain_L[indices_M], offsets, self.latents)

    def _gain(self) -> Tensor | None:
        """(L): what codes of W_dec's rows are multiplied by to be codes of `directions`."""
        if self.units.outer.whitening is None or self.gain_L is None:
            return self.gain_L
        return self.gain_L * self.units.outer.unwhiten(self.W_dec_LD).norm(dim=1)

    def train_for(self, steps: int) -> None:
        """Sets lr, if it was not given, to the rate of a run of so many steps (`default_rate`)."""
        if not self.lr_given:
            self.lr = default_rate(self.latents, steps)

    @torch.no_grad()
    def prepare(
        self,
        x_ND: Tensor,
        dead_window: int,
        run_tokens: int | None = None,
        tokens_N: Tensor | None = None,
        target_ND: Tensor | None = None,
    ) -> None:
        """Sets s = sqrt(D / E|x|^2) and b_dec = s E[x] from a sample. A latent is dead after dead_window silent tokens.

        run_tokens: the length of the run, for what changes during it; ten dead windows if None.
        """
        self.check(x_ND)
        check_finite(x_ND)
        check_run(dead_window, run_tokens)
        samples = {"input": x_ND, "output": x_ND if target_ND is None else target_ND}
        means = [units.fit(samples[side]) for side, units in self.units.each().items()]
        self.b_dec_D.copy_(means[-1])
        self.firing.dead_window.fill_(dead_window)
        self.calibrate(x_ND, tokens_N)
        with full_precision(x_ND):
            self._start(self._centred(x_ND, tokens_N), tokens_N, run_tokens or 10 * dead_window)

    def _start(self, centred_ND: Tensor, tokens_N: Tensor | None, run_tokens: int) -> None:
        """What else a kind sets from the sample. centred_ND: what W_enc multiplies."""

    def losses(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> dict[str, Tensor]:
        """reconstruction = sum|x - x_hat|^2 / sum|x - batch mean|^2, the batch's own FVU;
        auxk = coefficient * sum|e - e_hat|^2 / sum|e - batch mean of e|^2, e the residual (no gradient), e_hat =
        z W_dec, z = relu(W_enc e) (signed: W_enc e) of the auxk strongest dead latents, in bfloat16 products where
        those pay; 0 if none is dead. Dead latents code e, not x: to predict e from x their rows of W_enc would shrink,
        and then they never fire. If what is read is not what is reconstructed, they do code s x - centre.
        Both are free of the scale of x. Changes no state: `after_step` does.
        """
        return self.training_pass(x_ND, tokens_N).losses

    def training_pass(
        self, x_ND: Tensor, tokens_N: Tensor | None = None, target_ND: Tensor | None = None
    ) -> TrainingPass:
        """`losses`, and what `after_step` needs. target_ND: what is reconstructed, if it is not x."""
        self.check(x_ND)
        check_finite(x_ND)
        target_ND = x_ND if target_ND is None else target_ND
        with full_precision(x_ND):
            y_ND = self.units.inner(x_ND)
            goal_ND = y_ND if target_ND is x_ND else self.units.outer(target_ND)
            total, dead_A = spread(goal_ND), self.firing.dead_L.nonzero()[:, 0]
            y_ND = self._unknown(y_ND, tokens_N)
            goal_ND = y_ND if target_ND is x_ND else self._unknown(goal_ND, tokens_N)
            pattern = self.choose(y_ND - self.centre_D.detach())
            values_M, pre_M = self._codes(y_ND, pattern)
            gained_M = values_M if self.gain_L is None else values_M * self.gain_L[pattern.indices_M]
            residuals = self._residuals(goal_ND, pattern, gained_M)
            errors = [residual_ND.square().sum() / total for residual_ND in residuals]
            losses = {"reconstruction": torch.stack(errors).mean(), "auxk": y_ND.new_zeros(())}
            if len(dead_A) and self.auxk:
                e_ND = residuals[-1].detach()
                coded_ND = e_ND if target_ND is x_ND else y_ND - self.centre_D.detach()
                error = auxk_error(self.W_enc_LD, self.W_dec_LD, dead_A, coded_ND, e_ND, self.auxk, self.signed)
                losses["auxk"] = self.auxk_coefficient * error / spread(e_ND)
            losses |= self.penalties(y_ND, pattern, pre_M, values_M)
        fvu = errors[-1].detach()
        if self.units.outer.whitening is not None:
            error_ND = self.units.outer.unwhiten(residuals[-1].detach()) / self.units.outer.scale
            fvu = error_ND.square().sum() / spread(target_ND.detach().to(error_ND.dtype))
        return TrainingPass(losses, pattern, values_M.detach(), residuals[-1], tokens_N, fvu, target_ND is x_ND)

    def _centred(self, x_ND: Tensor, tokens_N: Tensor | None) -> Tensor:
        return self._unknown(self.units.inner(x_ND), tokens_N) - self.centre_D.detach()

    def _unknown(self, y_ND: Tensor, tokens_N: Tensor | None) -> Tensor:
        """What is left to code of s x: all of it, unless the kind reads tokens."""
        return y_ND

    def _residuals(self, goal_ND: Tensor, pattern: SparsePattern, values_M: Tensor) -> list[Tensor]:
        """The (N, D) residuals whose mean FVU is minimised; the last is the whole decode's."""
        return [goal_ND - (sparse_decode(values_M, self.W_dec_LD, pattern) + self.b_dec_D)]

    def _codes(self, x_ND: Tensor, pattern: SparsePattern) -> tuple[Tensor, Tensor]:
        """(values, pre) of the pairs of a pattern."""
        pre_M = gather_dot(x_ND, self.W_enc_LD, self.b_enc_L, self.centre_D, pattern)
        return pre_M if self.signed else pre_M.relu(), pre_M

    def penalties(self, x_ND: Tensor, pattern: SparsePattern, pre_M: Tensor, values_M: Tensor) -> dict[str, Tensor]:
        """Further losses by name, from the scaled x and what `_codes` returned."""
        return {}

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Removes from each row's gradient the part along the row, which unit length would undo: g - (g . w) w."""
        grad_LD = self.W_dec_LD.grad
        if grad_LD is not None:
            along_L1 = (grad_LD * self.W_dec_LD).sum(1, keepdim=True)
            grad_LD.addcmul_(self.W_dec_LD, along_L1, value=-1)

    @torch.no_grad()
    def after_step(self, passed: TrainingPass) -> None:
        """After the optimiser's step: restores the constraints on weights, counts what the pass fired, and revives
        latents (see `revive`)."""
        self.project_weights()
        self.firing.count(passed.fired_M, passed.vectors)
        due_L = self.due(self.firing.due_L(passed.vectors))
        if passed.autoencodes and due_L.any():
            revive(self, due_L, passed.residual_ND.detach())
            self.project_weights()

    def due(self, due_L: Tensor) -> Tensor:
        """Which of the latents that have been silent for a dead window, or another one, are to be revived."""
        return due_L

    def metrics(self, passed: TrainingPass) -> dict[str, Tensor]:
        """Of a pass after its step, by name: the batch's fvu and l0, the fraction of latents that are dead."""
        return {"fvu": passed.fvu, "l0": passed.l0, "dead": self.firing.dead_L.float().mean(), **passed.metrics}

    @torch.no_grad()
    def project_weights(self) -> None:
        """Unit rows again; soft-frozen ones at the nearest point whose cosine with the row drawn is >= min_cosine."""
        if self.W_dec_LD.requires_grad:
            self.W_dec_LD.div_(self.W_dec_LD.norm(dim=1, keepdim=True).clamp_min(1e-12))
        if self.initial_LD is not None:
            self.W_dec_LD.copy_(within_caps(self.W_dec_LD, self.initial_LD, self.min_cosine))

    def calibrate(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> None:
        """Sets what depends on the distribution of x; nothing does, except BatchTopK's threshold."""
