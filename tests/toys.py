"""A toy GPT-2 with its own tokenizer, and a toy text, made in seconds."""

import random
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment

TEXT = """the a of and to in that it was he she they with his her for had on at by but not from this which all were one
said there out when up who would if them then into time some could very little like now man house river light hand road
day night water stone garden window letter morning table voice winter summer story city green old small long quiet"""
WORDS = TEXT.split()


def prose(documents: int, seed: int = 0) -> list[str]:
    """Made-up sentences, about 100 words a document; word frequencies fall as in text."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, weights, k=rng.randint(5, 12))).capitalize() + "."

    return ["\n\n".join(" ".join(sentence() for _ in range(6)) for _ in range(2)) for _ in range(documents)]


def write_text(path: Path, documents: int = 150) -> Path:
    path.write_text("\n<|endoftext|>\n".join(prose(documents)), encoding="utf-8")
    return path


def save_gpt2(folder: Path) -> Path:
    """A Hugging Face folder: 3 layers, d_model 32, 2 heads, context 32,
    weights drawn larger than GPT-2's so that they act.
    """

    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        prose(50, seed=1), vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False, min_frequency=2
    )
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=end, eos_token=end, unk_token=end, model_max_length=32
    )
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=32,
        n_embd=32,
        n_layer=3,
        n_head=2,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GPT2LMHeadModel(config)
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):  # zero in a new model: a bias left out would not show
                torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mcc(A_LD: torch.Tensor, B_MD: torch.Tensor, signed: bool = False) -> float:
    """Mean cosine of the one-to-one match of unit rows with the greatest sum; signed: of |cosines|."""
    cosines_LM = torch.nn.functional.normalize(A_LD) @ torch.nn.functional.normalize(B_MD).T
    cosines_LM = (cosines_LM.abs() if signed else cosines_LM).detach()
    return cosines_LM[linear_sum_assignment(cosines_LM.numpy(), maximize=True)].mean().item()


def latest(*arguments: object) -> list[str]:
    """The arguments, the last of each key: a command refuses a key that is given twice."""
    return list({str(argument).partition("=")[0]: str(argument) for argument in arguments}.values())
