# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
"""Trains the GPT-2 that ships: `python scripts/train_tiny_gpt2.py text.files=[books.parquet,news.parquet] out=DIR`.

Warm-up, stable, decay: the rate is constant until the last 20% of `tokens`, which starts from DIR/stable.pt. A killed
run resumes by the same command; a larger `tokens` goes on from before the decay, a smaller one decays from where it is.
`export=FOLDER` is where the model goes, with its card. Never sees a validation or test document.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from rayscope.console import progress, say
from rayscope.files import whole_file, write_whole
from rayscope.text import Docs, Files, PackedText, pack, split_of
from rayscope.text.documents import END_OF_TEXT

PACKAGES = tuple(OmegaConf.load(Path(__file__).parents[1] / "conf/text/docs.yaml").packages)
DEFAULTS = {
    "text": {"files": [], "column": "text"},
    "out": "runs/tiny_gpt2",
    "export": "${out}/model",
    "tokens": 80_000_000,
    "seed": 0,
    "rows": 32,  # a step
    "threads": 0,  # 0: torch's default
    "docs_share": 0.08,  # of the tokens; the files share the rest as the square root of their sizes, at most 4 epochs
    "matrix_rate": 5e-3,  # Muon: the 2-d weights of the blocks
    "vector_rate": 2e-3,  # AdamW: embeddings, LayerNorms and biases
    "warmup": 100,  # steps
    "decay": 0.2,
    "save_every": 100,  # steps
    "stop_after": 0,  # steps in this process; 0: until done
}
CONTEXT, VOCABULARY, EPOCHS = 256, 8192, 4


def main(argv: list[str]) -> None:
    config = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_cli(argv))
    if config.threads:
        torch.set_num_threads(config.threads)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    sources = {"docs": Docs(PACKAGES), **{Path(f).stem: Files(f, config.text.column) for f in config.text.files}}
    tokenizer = load_tokenizer(out, sources)
    texts = {name: pack(source, tokenizer, CONTEXT, cache=out) for name, source in sources.items()}
    model = train(config, texts, out)
    if model is not None:
        export(model, tokenizer, texts, config, Path(config.export), argv)


def load_tokenizer(out: Path, sources: dict) -> GPT2TokenizerFast:
    """A byte-level BPE of 8192 tokens, trained once on up to 20 MB of each source's training split."""
    if not (out / "tokenizer/tokenizer.json").is_file():

        def texts():
            for source in sources.values():
                left = 20_000_000
                for name, text in source.documents():
                    if split_of(name) == "train" and left > 0:
                        yield text[: min(left, 1_000_000)]
                        left -= len(text)

        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        )
        bpe.train_from_iterator(texts(), trainer)
        special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
        GPT2TokenizerFast(tokenizer_object=bpe, model_max_length=CONTEXT, **special).save_pretrained(out / "tokenizer")
    return GPT2TokenizerFast.from_pretrained(out / "tokenizer")


def shares(config, texts: dict[str, PackedText]) -> dict[str, float]:
    roots = {name: len(text.train) ** 0.5 for name, text in texts.items() if name != "docs"}
    scale = (1 - config.docs_share) / sum(roots.values()) if roots else 0
    result = {name: root * scale for name, root in roots.items()} | {"docs": config.docs_share if roots else 1.0}
    # A source that would pass its epochs gives what it cannot take to the largest one.
    largest = max(texts, key=lambda name: len(texts[name].train))
    for name in result:
        spare = result[name] - EPOCHS * len(texts[name].train) * CONTEXT / config.tokens
        if spare > 0 and name != largest:
            result[name] -= spare
            result[largest] += spare
    if result[largest] * config.tokens > EPOCHS * len(texts[largest].train) * CONTEXT:
        raise SystemExit(
            f"tokens={config.tokens:,} is more than {EPOCHS} epochs of the text; lower it or give more text"
        )
    return result


def batch(step: int, config, texts: dict[str, PackedText], share: dict[str, float]) -> Tensor:
    """Rows of a step, a function of (seed, step): each source's share, in a new order each epoch."""
    rows = []
    for number, (name, text) in enumerate(texts.items()):
        first, last = (int(s * config.rows * share[name]) for s in (step, step + 1))
        for index in range(first, last):
            epoch, place = divmod(index, len(text.train))
            rows.append(
                torch.from_numpy(
                    text.train.tokens[order(config.seed, number, epoch, len(text.train))[place]].astype("int64")
                )
            )
    return torch.stack(rows)


ORDERS: dict[tuple, Tensor] = {}


def order(seed: int, number: int, epoch: int, size: int) -> Tensor:
    key = (seed, number, epoch)
    if key not in ORDERS:
        ORDERS[key] = torch.randperm(size, generator=torch.Generator().manual_seed(hash(key) % 2**63))
    return ORDERS[key]


def new_model(seed: int) -> GPT2LMHeadModel:
    """GPT-2 with sinusoids as the start of the position embedding, in a random basis, as long as a token's embedding.

    From a random start the two first layers attended almost uniformly and no head found the previous token. Four heads
    of GPT-2's own width: eight of 32 cost a fifth more time. Compiled, eager attention is faster than sdpa's backward.
    """
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=256, n_layer=6, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
            attn_implementation="eager",
        )
    )  # fmt: skip
    position = torch.arange(CONTEXT)[:, None]
    frequency = torch.pi / 2 * torch.logspace(0, -2.4, 128)[None]
    waves = torch.cat([(position * frequency).sin(), (position * frequency).cos()], dim=1)
    basis = torch.linalg.qr(torch.randn(256, 256)).Q
    model.transformer.wpe.weight.data = waves @ basis * (0.02 * 2**0.5)
    return model


def optimizers(model: GPT2LMHeadModel, config) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=config.matrix_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=config.vector_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def train(config, texts: dict[str, PackedText], out: Path) -> GPT2LMHeadModel | None:
    share = shares(config, texts)
    steps = config.tokens // (config.rows * CONTEXT)
    model = new_model(config.seed)
    optimisers = optimizers(model, config)
    rates = [o.param_groups[0]["lr"] for o in optimisers]
    step, decay_from = 0, int(steps * (1 - config.decay))
    for name in ("decay.pt", "stable.pt"):
        if (out / name).is_file():
            saved = torch.load(out / name, weights_only=True)
            if name == "decay.pt" and saved["steps"] != steps:
                continue  # the decay of another length: start again from before it
            model.load_state_dict(saved["model"])
            for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state)
            step, decay_from = saved["step"], saved.get("decay_from", max(decay_from, saved["step"]))
            say(f"resuming {name} at step {step} of {steps}")
            break

    def loss_of(tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.transformer(tokens, use_cache=False).last_hidden_state[:, :-1]
            logits = hidden @ model.lm_head.weight.T
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    def save(name: str) -> None:
        state = {
            "model": model.state_dict(), "optimisers": [o.state_dict() for o in optimisers],
            "step": step, "steps": steps, "decay_from": decay_from,
        }  # fmt: skip
        if name == "stable.pt":
            del state["decay_from"]
        with whole_file(out / name) as file:
            torch.save(state, file)

    compiled = torch.compile(loss_of)
    started, first = time.monotonic(), step
    with progress("training", config.tokens) as advance:
        advance(step * config.rows * CONTEXT)
        while step < steps:
            if step == decay_from:
                save("stable.pt")
            factor = min(1.0, (step + 1) / config.warmup, (steps - step) / max(1, steps - decay_from))
            for optimiser, rate in zip(optimisers, rates, strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = rate * factor
            tokens = batch(step, config, texts, share)
            loss = compiled(tokens) if len(tokens) == config.rows else loss_of(tokens)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            step += 1
            advance(config.rows * CONTEXT)
            if step % config.save_every == 0:
                save("stable.pt" if step < decay_from else "decay.pt")
                seen = step * config.rows * CONTEXT
                record = {"step": step, "tokens": seen, "loss": round(loss.item(), 4), "rate": factor,
                          "tokens_per_s": round((step - first) * config.rows * CONTEXT / (time.monotonic() - started))}  # fmt: skip  # noqa: E501
                with (out / "log.jsonl").open("a") as file:
                    file.write(json.dumps(record) + "\n")
            if config.stop_after and step - first >= config.stop_after:
                return None
    return model


@torch.no_grad()
def export(model, tokenizer, texts: dict[str, PackedText], config, folder: Path, argv: list[str]) -> None:
    """The model as a Hugging Face folder in float16, measured as it was saved, and its card."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    share = shares(config, texts)
    losses = {name: held_out_loss(model, text) for name, text in texts.items()}
    heads = previous_token_heads(model, texts["docs"])
    first, second = induction(model)
    layer, head = divmod(int(heads.argmax()), heads.shape[1])
    seen = {name: f"{share[name] * config.tokens / 1e6:.1f}M" for name in texts}
    epochs = {name: share[name] * config.tokens / (len(text.train) * CONTEXT) for name, text in texts.items()}
    sources = "\n".join(
        f"| {name} | {seen[name]} | {epochs[name]:.2f} | {losses[name]:.3f} |" for name in sorted(texts, key=losses.get)
    )
    proof = (
        f"- greatest mean attention of a head to the previous token (layer {layer}, head {head}): "
        f"{heads.max():.2f} ({'reached' if heads.max() >= 0.5 else 'not reached'}: .5)\n"
        f"- induction gap, loss on the first copy of a repeated random block less that on the second: "
        f"{first:.2f} - {second:.2f} = {first - second:.2f} nats "
        f"({'reached' if first - second >= 0.5 else 'not reached'}: .5)"
    )
    torch.manual_seed(0)
    samples = []
    for prompt in ("The", "Returns a new", "She looked at him and"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        ids = model.generate(
            ids, do_sample=True, top_p=0.9, max_new_tokens=60, attention_mask=torch.ones_like(ids), pad_token_id=0
        )
        samples.append("> " + tokenizer.decode(ids[0]).replace("\n", " ").replace(END_OF_TEXT, " | "))
    command = " ".join(arg.rsplit("/", 1)[-1] if "=" not in arg else anonymous(arg) for arg in argv)
    card = CARD.format(
        command=command, tokens=f"{config.tokens / 1e6:.0f}", sources=sources, proof=proof,
        samples="\n>\n".join(samples),
        parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}", seed=config.seed,
    )  # fmt: skip
    write_whole(folder / "README.md", card)
    say(card)


def anonymous(arg: str) -> str:
    """The argument without the folders of the machine it ran on."""
    key, value = arg.split("=", 1)
    return f"{key}=" + ",".join(
        ("[" if part.startswith("[") else "") + part.rsplit("/", 1)[-1].lstrip("[") for part in value.split(",")
    )


def held_out_loss(model, text: PackedText, rows: int = 512) -> float:
    """Mean nats per token on test documents."""
    chosen = torch.randperm(len(text.test), generator=torch.Generator().manual_seed(0))[:rows].tolist()
    tokens = torch.from_numpy(text.test.tokens[sorted(chosen)].astype("int64"))
    total = sum(
        F.cross_entropy(model(part).logits[:, :-1].flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
        for part in tokens.split(16)
    )
    return total / tokens[:, 1:].numel()


def previous_token_heads(model, text: PackedText) -> Tensor:
    """[layers, heads]: mean attention from a position to the one before it."""
    tokens = torch.from_numpy(text.test.tokens[:16].astype("int64"))
    attentions = model(tokens, output_attentions=True).attentions
    return torch.stack([a.diagonal(-1, 2, 3).mean((0, 2)) for a in attentions])


def induction(model, blocks: int = 64, length: int = 64) -> tuple[float, float]:
    """Loss on the first and on the second copy of a block of random tokens (its first token left out of both)."""
    block = torch.randint(256, VOCABULARY, (blocks, length), generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([block, block], dim=1)
    losses = F.cross_entropy(model(tokens).logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    return losses[:, : length - 1].mean().item(), losses[:, length:].mean().item()


CARD = """# The GPT-2 that ships with rayscope

A GPT-2 (`GPT2LMHeadModel`, 6 layers, d_model 256, 4 heads, context 256, {parameters}M parameters, byte-level BPE of 8192
tokens), for tests, demos and studies on a laptop. Not a model to talk to.

Trained on {tokens}M tokens (seed {seed}) by

    python scripts/train_tiny_gpt2.py {command}

| source | tokens seen | epochs | held-out loss, nats per token (test documents) |
|---|---|---|---|
{sources}

Sources: `docs`, documentation prose of the Python standard library (PSF licence) and of installed packages (BSD, MIT, Apache 2.0),
as `text=docs` reads it; `gutenberg`, English books (public domain in the US, Project Gutenberg); `wikinews`, English
Wikinews articles (CC BY 2.5). Training documents only: none that hashes to the validation or the test split. No
artificial text. Muon for the matrices of the blocks, AdamW for the rest; warm-up, constant rate, linear decay over the
last 20%; the position embedding starts as sinusoids in a random basis.

That it is a language model (the script prints these):

{proof}

Samples (prompts "The", "Returns a new", "She looked at him and"; top-p .9):

{samples}
"""  # noqa: E501

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main(sys.argv[1:])
