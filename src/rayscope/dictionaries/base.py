"""Codes and Dictionary: what everything that encodes and decodes has in common, and how it is saved.

N vectors, D site width, L latents, M non-zero codes of N vectors.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from rayscope.dictionaries import code_length
from rayscope.dictionaries.code_length import VALUE_BITS
from rayscope.files import whole_folder

FORMAT = 1
KINDS: dict[str, type["Dictionary"]] = {}  # by the name that config.json gives; filled as classes are defined


@dataclass(frozen=True)
class Codes:
    """Sparse codes of N vectors in compressed rows: row n holds entries offsets[n] to offsets[n + 1]."""

    indices_M: Tensor
    values_M: Tensor
    offsets: Tensor
    latents: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows_M(self) -> Tensor:
        """The vector that each entry belongs to."""
        counts = self.offsets.diff()
        return torch.arange(len(self), device=counts.device).repeat_interleave(counts)

    def dense(self) -> Tensor:
        z_NL = self.values_M.new_zeros(len(self), self.latents)
        return z_NL.index_put_((self.rows_M, self.indices_M), self.values_M, accumulate=True)

    def cpu(self) -> "Codes":
        return Codes(self.indices_M.cpu(), self.values_M.cpu(), self.offsets.cpu(), self.latents)

    @classmethod
    def join(cls, parts: Sequence["Codes"]) -> "Codes":
        """Of the vectors of all parts, in order; there is one at least."""
        counts = torch.cat([part.offsets.diff() for part in parts])
        indices_M, values_M = (torch.cat([getattr(p, name) for p in parts]) for name in ("indices_M", "values_M"))
        return cls(indices_M, values_M, F.pad(counts.cumsum(0), (1, 0)), parts[0].latents)

    @classmethod
    def of_rows(cls, indices_Nk: Tensor, values_Nk: Tensor, latents: int) -> "Codes":
        """From the same number of entries per row; zeros are left out."""
        kept = values_Nk != 0
        offsets = F.pad(kept.sum(1).cumsum(0), (1, 0))
        return cls(indices_Nk[kept], values_Nk[kept], offsets, latents)

    @classmethod
    def of_dense(cls, z_NL: Tensor) -> "Codes":
        kept = z_NL != 0
        offsets = F.pad(kept.sum(1).cumsum(0), (1, 0))
        return cls(kept.nonzero()[:, 1], z_NL[kept], offsets, z_NL.shape[1])


def whole(**values: Any) -> None:
    """Raises ValueError for the first that is not a whole number."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be a whole number")


class Dictionary(nn.Module, ABC):
    """x_hat = z @ directions + bias, z sparse. Subclasses say how x is encoded.

    A subclass sets `kind` (its name in config.json) and `signed`, defines `directions`, `bias` and `encode_sparse`, and
    extends `arguments`: it is rebuilt as `cls(**arguments())` and `load_weights`. Codes are non-negative if `signed` is
    False, except those of the last `dense` latents, which are signed, always active and not counted in k.

    Every call takes `tokens_N`, the id of each vector's token. Most kinds ignore it; one that reads it (`side`) raises
    ValueError if it is missing.
    """

    kind: str
    width: int
    latents: int
    k: int
    signed: bool
    adaptive: bool = False  # the number of codes varies between vectors
    fixed_support: bool = False  # the same k latents are active on all vectors
    dense: int = 0  # number of always-active signed latents (the last ones), not counted in k
    side: str | None = None  # what it reads of `tokens_N`
    provenance: dict[str, Any]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    def __init__(self, width: int, latents: int, k: int):
        super().__init__()
        whole(width=width, latents=latents, k=k)
        if width < 1 or latents < 1:
            raise ValueError(f"width={width} and latents={latents} must be at least 1")
        if k < 1:
            raise ValueError(f"k={k} must be at least 1")
        if k > latents:
            raise ValueError(f"k={k} exceeds the {latents} latents; lower k or raise latents")
        self.width, self.latents, self.k = width, latents, k
        self.provenance = {}

    @property
    def output_width(self) -> int:
        """Of what decode gives; `width` is of what encode takes."""
        return self.width

    @property
    @abstractmethod
    def directions(self) -> Tensor:
        """(L, D): the linear part of decode."""

    @property
    @abstractmethod
    def bias(self) -> Tensor:
        """(D): decode(0)."""

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in self.state_dict().values()), torch.device("cpu"))

    @abstractmethod
    def encode_sparse(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> Codes: ...

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes, as plain values."""
        return {"width": self.width, "latents": self.latents, "k": self.k}

    @property
    def plain(self) -> bool:
        """Exactly k codes and nothing else: a fixed number, no dense latents, no side information."""
        return not (self.adaptive or self.dense or self.side)

    def bits(self, k: int | None = None, value_bits: int = VALUE_BITS) -> float:
        """Bits per token at its own k, or at another; value_bits: of each value, and one more for its sign."""
        return float(code_length.bits(self.latents, self.k if k is None else k, *self._code, value_bits))

    def mean_bits(self, counts: Tensor, value_bits: int = VALUE_BITS) -> float:
        """Mean bits per token if counts[n] tokens have n codes, and what it costs to say n: the entropy of counts.

        `bits()` if k is fixed.
        """
        if not self.adaptive:
            return self.bits(value_bits=value_bits)
        k = (torch.arange(len(counts), dtype=torch.float64) - self.dense).clamp(min=0)
        bits = torch.as_tensor(code_length.bits(self.latents, k, *self._code, value_bits))
        return ((bits * counts).sum() / counts.sum()).item() + code_length.entropy(counts)

    def bits_entropy(self, codes: Codes, frequency_L: Tensor, value_bits: int = VALUE_BITS) -> Tensor:
        """(N): bits of each vector's code under its latents' firing frequencies."""
        return code_length.bits_entropy(codes.indices_M, codes.offsets, frequency_L, *self._code, value_bits)

    def k_of_bits(self, budget: float, value_bits: int = VALUE_BITS) -> int:
        """The least k that costs at least `budget` bits per token; all latents if none does."""
        return code_length.k_of_bits(budget, self.latents, *self._code, value_bits)

    @property
    def allocation_L(self) -> Tensor | None:
        """Bits of each latent's value, sign and all, for a kind that gives them out itself: value_bits are not its."""
        return None

    def at_bits(self, budget: float, value_bits: int = VALUE_BITS, max_k: int | None = None) -> "Dictionary":
        """The same weights at the least k that costs at least `budget` bits per token, max_k at most."""
        return self.with_k(min(self.k_of_bits(budget, value_bits), max_k or self.latents))

    @property
    def _code(self) -> tuple[bool, bool, int]:
        return self.signed, self.fixed_support, self.dense

    def with_k(self, k: int) -> "Dictionary":
        """The same weights at another k."""
        other = type(self)(**{**self.arguments(), "k": k})
        other.load_weights(self.weights())
        other.provenance = dict(self.provenance)
        return other.eval()

    def bias_at(self, tokens_N: Tensor | None = None) -> Tensor:
        """decode(0) at these tokens: `bias`, or (N, D) for a kind that reads tokens."""
        return self.bias

    def encode(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> Tensor:
        return self.encode_sparse(x_ND, tokens_N).dense()

    def decode(self, z_NL: Tensor, tokens_N: Tensor | None = None) -> Tensor:
        return z_NL @ self.directions + self.bias_at(tokens_N)

    def decode_sparse(self, codes: Codes, tokens_N: Tensor | None = None) -> Tensor:
        if len(codes.values_M) == 0:
            return self.bias_at(tokens_N).expand(len(codes), -1).clone()
        directions = self.directions
        return self.bias_at(tokens_N) + F.embedding_bag(
            codes.indices_M,
            directions,
            codes.offsets,
            mode="sum",
            per_sample_weights=codes.values_M.to(directions.dtype),
            include_last_offset=True,
        )

    def forward(self, x_ND: Tensor, tokens_N: Tensor | None = None) -> Tensor:
        self.check(x_ND)
        return self.decode_sparse(self.encode_sparse(x_ND, tokens_N), tokens_N)

    def check(self, x_ND: Tensor) -> None:
        if x_ND.ndim != 2 or x_ND.shape[1] != self.width:
            shape = tuple(x_ND.shape)
            raise ValueError(f"this {self.kind} dictionary has width {self.width}, the vectors given are {shape}")

    def to_save(self) -> "Dictionary":
        """The dictionary as it is written: a learned one folds its input scale."""
        return self

    def weights(self) -> dict[str, Tensor]:
        """What `weights.safetensors` holds: the state, without what only training needs."""
        return self.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """The inverse of `weights`; raises if a tensor is missing, unknown or of another shape."""
        self.load_state_dict(weights)

    @torch.no_grad()
    def save(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> Path:
        """Writes `config.json` and `weights.safetensors`, whole or not at all; what was in the folder is replaced.

        config: format, kind, arguments, signed, sha256 of the weights file, and the provenance given (site, model,
        text, tokens, seed). Raises ValueError if a weight is NaN or infinite.
        """
        folder, saved = Path(folder), self.to_save()
        for name, tensor in saved.weights().items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"{folder}: {name} of this {saved.kind} dictionary holds NaN or infinity; it is not saved"
                )
        weights = save_tensors({name: t.detach().cpu().contiguous() for name, t in saved.weights().items()})
        config = {
            "format": FORMAT,
            "kind": saved.kind,
            "arguments": saved.arguments(),
            "signed": saved.signed,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "provenance": {**saved.provenance, **(provenance or {})},
        }
        text = json.dumps(config, indent=2, allow_nan=False)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as temporary:
            (temporary / "weights.safetensors").write_bytes(weights)
            (temporary / "config.json").write_text(text, encoding="utf-8")
        return folder
