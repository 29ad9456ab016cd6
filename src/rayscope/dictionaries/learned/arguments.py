"""What the arguments of learned dictionaries must be."""

from rayscope.dictionaries.base import whole

DECODERS = ("learned", "frozen", "soft_frozen")
ENCODERS = ("learned", "frozen")


def check_arguments(
    latents: int,
    seed: int,
    decoder: str,
    encoder: str,
    lr: float | None,
    auxk: int | None,
    auxk_coefficient: float,
    whiten: bool,
    initial_rows: str | None,
) -> None:
    """Raises ValueError with the argument and its value."""
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
        raise ValueError(f"lr={lr} must be above 0 (null: by the number of latents and of steps)")
    if auxk is not None and not 0 <= auxk <= latents:
        raise ValueError(f"auxk={auxk} must be between 0 (off) and the {latents} latents")
    if not auxk_coefficient >= 0:
        raise ValueError(f"auxk_coefficient={auxk_coefficient} must be at least 0")
    if initial_rows is not None and not (isinstance(initial_rows, str) and initial_rows):
        raise ValueError(f"initial_rows={initial_rows!r} must be a name or null (that of the kind)")
    if whiten and decoder == "soft_frozen":
        raise ValueError(
            "whiten=True with decoder='soft_frozen': a cap around a row in whitened space is no cap in x; choose one"
        )


def check_run(dead_window: int, run_tokens: int | None) -> None:
    """The same for the arguments of `prepare`."""
    if dead_window < 1:
        raise ValueError(f"dead_window={dead_window} tokens must be at least 1")
    if run_tokens is not None and run_tokens < 1:
        raise ValueError(f"run_tokens={run_tokens} must be at least 1")
