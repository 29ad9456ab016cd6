"""The table of token features: means over tokens and how many are found, by hand, on the terminal and on the page."""

import io

import pandas as pd
from rich.console import Console

from rayscope.pipeline import write_table
from rayscope.report import build, print_features, read_file
from rayscope.report.features import by_site, means

ROW = {
    "site": "blocks.0.hook_resid_post", "dictionary": "topk_k8", "method": "topk", "role": "rays", "kind": "topk",
    "k": 8, "predicate": "current", "token": " and", "token_id": 5, "rank": 1, "balanced_accuracy": 0.9,
    "precision_at_80": 0.5,
    "hard_auroc": 0.75, "found": False, "hard_tokens": "' <i>or' ' but'", "labels": "real", "latent": 3, "sign": 1,
    "appeared_after": None, "appeared_by": None, "censored": None,
}  # fmt: skip
OTHER = {"token": " or", "token_id": 6, "rank": 2, "balanced_accuracy": 0.7, "precision_at_80": 0.1}
PROBE = {"dictionary": "linear_probe", "method": "linear_probe", "role": "reference", "kind": "probe", "k": None}
UNKNOWN = {"balanced_accuracy": None, "precision_at_80": None, "hard_auroc": None, "found": None}


def table():
    rows = [
        ROW,
        ROW | OTHER | {"hard_auroc": 0.95, "found": True},
        ROW | UNKNOWN | {"token": " rare", "token_id": 7, "rank": 3},
        ROW | {"predicate": "previous", "hard_auroc": 0.5},
        ROW | PROBE | {"hard_auroc": 0.85, "found": True},
        ROW | {"labels": "shuffled", "balanced_accuracy": 0.5, "hard_auroc": 0.4},
        ROW | PROBE | {"labels": "shuffled", "balanced_accuracy": 0.1},
    ]
    return pd.DataFrame(rows)


def written(tmp_path):
    write_table(table(), tmp_path / "token_features.csv")
    return read_file(tmp_path / "token_features.csv")


def test_means_by_hand(tmp_path):
    """A token without scores counts neither in the means nor in "of"; the floor is not the probe's."""
    found = means(written(tmp_path))
    assert found["dictionary"].tolist() == ["linear_probe", "topk_k8", "shuffled labels", "topk_k8"]
    assert found["predicate"].tolist() == ["current", "current", "current", "previous"]
    assert found["balanced_accuracy"].round(6).tolist() == [0.9, 0.8, 0.5, 0.9]
    assert found["precision_at_80"].round(6).tolist() == [0.5, 0.3, 0.5, 0.5]
    assert found["hard_auroc"].round(6).tolist() == [0.85, 0.85, 0.4, 0.5]
    assert list(zip(found["found"], found["tokens"], strict=True)) == [(1, 1), (1, 2), (0, 1), (0, 1)]


def test_a_line_has_the_current_token_and_then_the_previous_one(tmp_path):
    (one,) = by_site(written(tmp_path))
    assert one["site"] == ROW["site"]
    assert [row["cells"] for row in one["rows"]] == [
        ["0.900", "0.500", "0.850", "1 of 1", "", "", "", ""],
        ["0.800", "0.300", "0.850", "1 of 2", "0.900", "0.500", "0.500", "0 of 1"],
        ["0.500", "0.500", "0.400", "0 of 1", "", "", "", ""],
    ]


def test_the_terminal_shows_it_in_eighty_columns(tmp_path):
    console = Console(file=io.StringIO(), width=80)
    print_features(written(tmp_path), console)
    lines = console.file.getvalue().splitlines()
    row = next(line for line in lines if "topk_k8" in line)
    assert row.split() == [
        "topk_k8",
        "0.800",
        "0.300",
        "0.850",
        "1",
        "of",
        "2",
        "0.900",
        "0.500",
        "0.500",
        "0",
        "of",
        "1",
    ]
    assert "both over .8" in " ".join(lines)


def test_the_page_has_means_before_latents_and_names_the_hard_negatives(tmp_path):
    contexts = (
        '[{"site": "blocks.0.hook_resid_post", "dictionary": "topk_k8", "predicate": "current", "token": " and", '
        '"latent": 3, "sign": 1, "contexts": []}]'
    )
    (tmp_path / "contexts.json").write_text(contexts)
    written(tmp_path)
    page = build(tmp_path).read_text()
    said = (
        "balanced accuracy 0.900, AUROC 0.750 against the nearest of &#39; &lt;i&gt;or&#39; &#39; but&#39;: not found"
    )
    assert page.index("1 of 2") < page.index(said)
