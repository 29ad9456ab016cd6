"""The report shows what the files hold, says what they lack, and lets no text in them act."""

import io
import json
import math
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rayscope.drawing import label
from rayscope.escapes import visible
from rayscope.pipeline import write_table
from rayscope.report import build, print_summary, read_file, verdicts
from rayscope.report.figures import bits_figure, styles, token_figure
from rayscope.report.metrics import METRICS
from rayscope.report.tables import at_k, documents_said, headline_k, points, rows
from rayscope.report.verdicts import sentence

SITES = ("blocks.3.hook_resid_post", "blocks.3.mlp.hook_post")
KS = (4, 8, 16, 32)
WORLD = {  # method: kind, latents, FVU at k = 1 and its fall with log2 k, bits(k)
    "random": ("linear", 2048, 1.0, 0.07, lambda k: _choose(2048, k) + 9 * k),
    "pca_topk": ("linear", 256, 0.74, 0.09, lambda k: _choose(256, k) + 9 * k),
    "pca_prefix": ("linear", 256, 0.85, 0.07, lambda k: 8 * k),
    "svd_W_E": ("linear", 256, 0.86, 0.08, lambda k: _choose(256, k) + 9 * k),
    "token_means": ("linear", 500, 0.88, 0.06, lambda k: _choose(500, k) + 9 * k),
    "neurons": ("linear", 256, 0.95, 0.08, lambda k: _choose(256, k) + 9 * k),
    "topk_frozen": ("topk", 2048, 0.83, 0.09, lambda k: _choose(2048, k) + 8 * k),
    "abstopk": ("abstopk", 2048, 0.66, 0.1, lambda k: _choose(2048, k) + 9 * k),
    "batchtopk": ("batchtopk", 2048, 0.62, 0.1, lambda k: _choose(2048, k) + 8 * k),
    "topk": ("topk", 2048, 0.64, 0.1, lambda k: _choose(2048, k) + 8 * k),
}
TOKENS = [
    ",",
    " the",
    ".",
    " of",
    " to",
    " and",
    " a",
    " in",
    "\n",
    " is",
    "NA",
    "null",
    '"',
    " $x$",
    " <b>",
    "\0",
    "\r",
]
HOSTILE = [
    "<script>alert(1)</script>",
    "\0\x1b[31m",
    "\u202egnp.exe",
    "line\nbreak",
    "$\\frac{",
    "</span>",
    "é漢\u0301",
]


def role_of(method: str) -> str:
    roles = {
        "random": "control",
        "topk_frozen": "control",
        "abstopk": "directions",
        "topk": "rays",
        "batchtopk": "rays",
    }
    return roles.get(method, "baseline")


def _choose(n: int, k: int) -> float:
    return math.log2(math.comb(n, k))


def evaluation_table() -> pd.DataFrame:
    found = []
    for site in SITES:
        for position0 in ("excluded", "included"):
            for name, fvu in (
                ("identity", 0.0),
                ("mean", 1.0),
                ("position0", 1.0 if position0 == "excluded" else 0.31),
            ):
                base = [site, name, name, "reference", "codec", None, None]
                for metric, value in (("fvu", fvu), ("dce", 2.9 * fvu), ("kl", 2.8 * fvu)):
                    found.append([*base, metric, value, value, value, position0, "test", 32768, None, 0])
            for name, (kind, latents, start, slope, bits) in WORLD.items():
                for k in KS:
                    fvu = max(0.02, start - slope * math.log2(k)) * (0.4 if position0 == "included" else 1.0)
                    base = [site, f"{name}_k{k}", name, role_of(name), kind, k, latents]
                    values = {"fvu": fvu, "dce": 1.3 * fvu**2 + 0.01, "kl": 1.1 * fvu**2, "l0": k, "bits": bits(k)}
                    values |= {
                        "loss_recovered_mean": 1 - fvu**2,
                        "loss_recovered_zero": 1 - fvu**2 / 2,
                        "dead": fvu / 9,
                    }
                    values |= {"density": k / latents, "l2_ratio": 1 - fvu / 2}
                    for metric, value in values.items():
                        spread = 0.015 * value if metric in ("fvu", "dce", "kl") else math.nan
                        found.append(
                            [*base, metric, value, value - spread, value + spread, position0, "test", 32768, 600_000, 0]
                        )
    columns = (
        "site dictionary method role kind k latents metric value low high position0 split tokens trained_tokens seed"
    )
    table = pd.DataFrame(found, columns=columns.split())
    table.insert(6, "coder", "own")
    families = table["method"].replace({"pca_topk": "PCA", "pca_prefix": "PCA", "token_means": "token lookup"})
    return table.assign(family=families, value_bits=math.nan)


def features_table(tokens: list[str]) -> pd.DataFrame:
    chance, found = np.random.default_rng(7), []
    for site in SITES:
        for predicate in ("current", "previous"):
            for rank, token in enumerate(tokens, 1):
                names = {n: WORLD[n] for n in ("random", "pca_topk", "token_means", "abstopk", "topk")}
                for name, (kind, latents, start, *_) in names.items():
                    for labels in ("real", "shuffled"):
                        top = 0.52 if labels == "shuffled" else min(0.99, 1.45 - start - 0.05 * math.log(rank))
                        score = float(np.clip(top + 0.03 * chance.standard_normal(), 0.5, 1))
                        at = 2e4 * rank**0.6 if labels == "real" and "topk" in name and "pca" not in name else math.nan
                        at = at if score > 0.6 else math.nan
                        row = [
                            site,
                            f"{name}_k8",
                            name,
                            role_of(name),
                            kind,
                            8,
                            latents,
                            predicate,
                            token,
                            rank + 10,
                            rank,
                            10**6 // rank,
                            3 * rank,
                        ]
                        hard = [score / rank, score - 0.1, score > 0.9, "11 12", "' <b>or' 'x'"]
                        seen = [at / 2.4, at, False] if labels == "real" and at > 0 else [math.nan, math.nan, ""]
                        last = [900, labels, "test", 32768, 600_000, 0, *seen]
                        found.append([*row, 1, 0.5, score, score, score / rank, *hard, *last])
                row = [
                    site,
                    "linear_probe",
                    "linear_probe",
                    "reference",
                    "probe",
                    None,
                    None,
                    predicate,
                    token,
                    rank + 10,
                    rank,
                    10**6 // rank,
                    None,
                ]
                hard = [0.9, 0.95, True, "11", "'x'"]
                found.append([*row, 1, 0.5, 0.98, 0.97, 0.5, *hard, 900, "real", "test", 32768, None, 0, *[None] * 3])
    columns = (
        "site dictionary method role kind k latents predicate token token_id rank count latent sign threshold auroc "
        "balanced_accuracy f1 precision_at_80 hard_auroc found hard_ids hard_tokens positives labels split tokens "
        "trained_tokens seed appeared_after appeared_by censored"
    )
    return pd.DataFrame(found, columns=columns.split())


def make_run(run: Path, tokens: int = 60) -> Path:
    run.mkdir(parents=True)
    chance = np.random.default_rng(3)
    config = "model:\n  name: tiny\ntext:\n  name: docs\nseed: 0\ntokens: 600000\nnote: <script>alert(2)</script>\n"
    (run / "config.yaml").write_text(config)
    environment = {
        "versions": {"torch": "2.13.0", "rayscope": "0.1.0"},
        "threads": 2,
        "command": ["rayscope", "demo", "text=<script>alert(1)</script>"],
        "started": "2026-01-02T03:04:05",
    }
    (run / "environment.json").write_text(json.dumps(environment))
    evaluation_table().to_csv(run / "evaluation.csv", index=False)
    density = [
        [site, f"{name}_k8", latent, value]
        for site in SITES
        for name in ("pca_topk", "abstopk", "topk")
        for latent, value in enumerate(np.minimum(1, 10 ** chance.normal(-2.6, 0.7, 400)) * (chance.random(400) > 0.1))
    ]
    pd.DataFrame(density, columns=["site", "dictionary", "latent", "density"]).to_csv(
        run / "latent_density.csv", index=False
    )
    timed = evaluation_table()[["site", "dictionary", "method", "k", "coder"]].drop_duplicates()
    timed = timed[timed["k"].notna()].assign(also="", seconds_per_1000=0.25)
    timed.to_csv(run / "encode_seconds.csv", index=False)
    names = TOKENS + HOSTILE + [f" word{i}" for i in range(tokens - len(TOKENS) - len(HOSTILE))]
    features_table(names).to_csv(run / "token_features.csv", index=False)
    entries = [
        {
            "site": SITES[0],
            "dictionary": "topk_k8",
            "predicate": predicate,
            "token": token,
            "latent": 17 * i,
            "sign": 1,
            "contexts": [
                {
                    "tokens": [
                        "",
                        "It",
                        " was",
                        " the",
                        " best",
                        " of",
                        " times",
                        *HOSTILE,
                        token,
                        " so",
                        " they",
                        " said",
                    ],
                    "activations": [0.0] * 9 + [0.3, -0.2, 0, 0, 0, 4.0 - j, 1.5, 0, 0],
                    "focus": 14,
                }
                for j in range(3)
            ],
        }
        for i, (predicate, token) in enumerate([("previous", " and"), ("current", " the"), ("current", HOSTILE[0])])
    ]
    (run / "contexts.json").write_text(json.dumps(entries))
    tokens_seen = np.arange(1, 61) * 10_000
    training = {"tokens": tokens_seen, "step": tokens_seen // 1000}
    for site in SITES:
        for name in ("abstopk_k8", "topk_k8", "topk_k32"):
            training[f"train/fvu/{site}/{name}"] = 0.3 + np.exp(-tokens_seen / 9e4)
            training[f"train/dead/{site}/{name}"] = 0.1 * (1 - np.exp(-tokens_seen / 2e5))
    pd.DataFrame(training).to_csv(run / "training.csv", index=False)
    return run


class Page(HTMLParser):
    """Tags with their attributes, and the text outside <style>."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page_text(tmp_path_factory) -> str:
    return build(make_run(tmp_path_factory.mktemp("report") / "demo run")).read_text(encoding="utf-8")


@pytest.mark.slow
def test_hostile_text_shows_as_text(page_text):
    page = Page(page_text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "b", "iframe", "object", "link", "svg")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    text = "".join(page.text)
    for seen in (
        "<script>alert(1)</script>",
        "<script>alert(2)</script>",
        "\\x00\\x1b[31m",
        "\\u202egnp.exe",
        "line\\nbreak",
        "</span>",
    ):
        assert seen in text, seen
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]", page_text)


@pytest.mark.slow
def test_nothing_is_fetched(page_text):
    page = Page(page_text)
    links = [
        value for _, a in page.tags for name, value in a.items() if name in ("src", "href", "action", "srcset", "data")
    ]
    assert links
    assert all(value.startswith(("#", "data:image/svg+xml;base64,")) for value in links)
    assert not re.search(r"https?://|@import|url\(", page_text)
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {value[1:] for value in links if value[0] == "#"} <= targets


def test_table_holds_the_values_of_the_csv(page_text):
    evaluation = evaluation_table()
    shown = sorted(float(a["value"]) for tag, a in Page(page_text).tags if tag == "data")
    table = rows(evaluation)
    values = table[list(METRICS)].to_numpy(float).ravel()
    assert len(values[~np.isnan(values)]) == len(shown)
    assert np.array_equal(np.sort(values[~np.isnan(values)]), shown)
    assert set(evaluation["value"]) == set(shown)


def test_what_was_run_and_seeds_are_said(page_text):
    text = "".join(Page(page_text).text)
    for seen in (
        "name tiny",
        "torch 2.13.0",
        "rayscope demo",
        "1 seed",
        *SITES,
        "600,000",
        "32,768",
        "previous token is",
    ):
        assert seen in text, seen
    assert page_text.count("<img ") == 8


@pytest.mark.slow
def test_same_input_same_bytes(tmp_path, page_text):
    assert build(make_run(tmp_path / "demo run")).read_text(encoding="utf-8") == page_text


@pytest.mark.slow
def test_a_resume_writes_its_records_in_another_order_and_the_page_is_the_same(tmp_path, page_text):
    path = make_run(run := tmp_path / "demo run") / "environment.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert build(run).read_text(encoding="utf-8") == page_text


@pytest.mark.slow
def test_missing_files_are_named_with_their_commands(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    text = "".join(Page(build(tmp_path).read_text(encoding="utf-8")).text)
    for file, command in (
        ("evaluation.csv", "evaluate"),
        ("token_features.csv", "features"),
        ("contexts.json", "features"),
    ):
        assert file in text
        assert f"rayscope {command} out={tmp_path}" in text
    run = make_run(tmp_path / "run", tokens=30)
    for file in ("evaluation.csv", "latent_density.csv", "training.csv"):
        (run / file).unlink()
    page = build(run).read_text(encoding="utf-8")
    assert page.count("<img ") == 2  # token features and when they appeared
    assert "evaluation.csv (" in "".join(Page(page).text)
    assert "token_features.csv (" not in "".join(Page(page).text)


def test_bad_files_are_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        build(tmp_path / "nothing")
    (tmp_path / "contexts.json").write_text("[{")
    with pytest.raises(
        ValueError, match=r"contexts.json: Expecting .*; remove it, and `rayscope features` makes it again"
    ):
        build(tmp_path)
    (tmp_path / "contexts.json").write_text('[{"site": "s"}]')
    with pytest.raises(ValueError, match=r"contexts.json is not what .*KeyError"):
        build(tmp_path)
    (tmp_path / "contexts.json").unlink()
    (tmp_path / "evaluation.csv").write_text("site,dictionary\na,b\n")
    with pytest.raises(ValueError, match=r"no column 'method'; .*; remove it, and `rayscope evaluate` makes it again$"):
        build(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_folder_without_a_run_is_refused_with_the_runs_below_it(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no config.yaml, .* or contexts.json$"):
        build(tmp_path, tmp_path.parent / "studies")
    for name in ("seed_0", "deeper/seed_1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("")
    with pytest.raises(
        ValueError, match=rf"below it are the runs deeper/seed_1, seed_0: give one, such as out={tmp_path}/"
    ):
        build(tmp_path)
    assert not (tmp_path / "report").exists()


FEATURES_ROWS = pd.DataFrame(
    {
        "site": "s", "dictionary": ["topk", "NA", 'a"b', "null"], "method": "topk", "role": "rays", "kind": "topk",
        "k": 8, "predicate": "current",
        "token": ["NA", '"quoted", and\nbroken', "\r\x1b", "\u202e "], "rank": [1, 2, 3, 4],
        "balanced_accuracy": [0.5, 0.75, None, 1.0], "precision_at_80": 0.5, "hard_auroc": 0.5,
        "found": [True, False, None, True], "hard_tokens": ["", "' a\r'", "nan", "'\x1b'"],
        "labels": "real", "appeared_after": None, "appeared_by": None, "censored": None,
    }
)  # fmt: skip


def test_tables_are_read_as_they_were_written(tmp_path):
    write_table(FEATURES_ROWS, tmp_path / "token_features.csv")
    table = read_file(tmp_path / "token_features.csv")
    for column in ("dictionary", "token", "hard_tokens"):
        assert table[column].tolist() == FEATURES_ROWS[column].tolist()
    assert table["found"].tolist() == ["True", "False", "", "True"]
    assert table["balanced_accuracy"].isna().tolist() == [False, False, True, False]


@pytest.mark.parametrize("name", ["token_features.csv", "contexts.json"])
def test_a_file_cut_at_any_byte_is_one_line_or_whole_lines_of_it(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".csv"):
        write_table(FEATURES_ROWS, path)
    else:
        path.write_text(json.dumps([{"site": "s", "tokens": [" and", "\n"]}]))
    whole, content = read_file(path), path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            table = read_file(path)
        except ValueError as error:
            message = str(error)
        else:
            assert content[:length].endswith(b"\n")
            pd.testing.assert_frame_equal(table, whole[: len(table)])
            continue
        assert message.startswith(f"{path}: ")
        assert message.endswith("; remove it, and `rayscope features` makes it again")
        assert len(message.splitlines()) == 1


@settings(deadline=None, derandomize=True, max_examples=100)
@given(content=st.binary(max_size=60), header=st.booleans())
def test_a_file_of_anything_is_one_line(content, header, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "latent_density.csv"
    path.write_bytes((b"site,dictionary,latent,density\n" if header else b"") + content)
    try:
        table = read_file(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
    else:
        assert header
        assert list(table.columns) == ["site", "dictionary", "latent", "density"]


def test_a_word_where_a_number_belongs_is_no_blank(tmp_path):
    (tmp_path / "latent_density.csv").write_text("site,dictionary,latent,density\ns,d,0,0.5\ns,d,1,half\n")
    with pytest.raises(ValueError, match="record 3 has density='half', not a number"):
        read_file(tmp_path / "latent_density.csv")


def test_tables_without_rows_are_no_error(tmp_path):
    run = make_run(tmp_path / "run", tokens=30)
    for file in run.glob("*.csv"):
        file.write_text(file.read_text(encoding="utf-8").partition("\n")[0] + "\n", encoding="utf-8")
    assert "<img" not in build(run).read_text(encoding="utf-8")


def hand_table(points: list[tuple]) -> pd.DataFrame:
    """Dictionaries by their methods' names; what is linear is a baseline, anything else is rays."""
    found = []
    for name, kind, k, bits, fvu, low, high in points:
        role = "baseline" if kind == "linear" else "rays"
        for metric, triple in (("bits", (bits, None, None)), ("fvu", (fvu, low, high))):
            row = ["s", name, name, role, kind, k, "own", 16, metric, *triple, "excluded", "test", 10, 20, 0, name]
            found.append([*row, math.nan])
    return pd.DataFrame(found, columns=evaluation_table().columns)


def test_how_many_documents_is_said():
    points = [("rays", "topk", 8, 200.0, 0.4, None, None)]
    assert documents_said(hand_table(points)) == ""  # a table that was made before they were counted
    assert documents_said(hand_table(points).assign(documents=12)) == "12 documents"
    assert documents_said(hand_table(points).assign(documents=1)) == "1 document; intervals and verdicts need 5"


def test_a_dictionary_without_codes_is_shown_at_its_k():
    points = [("pca_topk", "linear", 4, 200.0, 0.6, 0.5, 0.7), ("rays", "topk", 8, 0.0, 1.0, 0.9, 1.1)]
    assert len(at_k(rows(hand_table(points)), 8)) == 2


def test_roles_and_order():
    table = rows(evaluation_table())
    here = table[(table["site"] == SITES[0]) & (table["position0"] == "excluded")]
    assert list(here["dictionary"][:4]) == ["identity", "mean", "position0", "random_k4"]
    assert list(dict.fromkeys(here["role"])) == ["reference", "control", "baseline", "directions", "rays"]
    assert headline_k(table) == 8
    assert set(here.loc[here["role"] == "rays", "method"]) == {"topk", "batchtopk"}
    assert here.loc[here["kind"] == "codec", "bits"].isna().all()


def test_a_name_that_says_another_role_or_k_changes_nothing():
    """The names are hostile: they say "random", "frozen", "mean", another method, another k."""
    honest = evaluation_table()
    names = {
        "topk_k8": "random_init_topk",
        "batchtopk_k8": "pca_topk_k8",
        "abstopk_k8": "frozen_mean",
        "topk_k16": "k4",
    }
    misled = honest.assign(dictionary=honest["dictionary"].replace(names))
    before, after = (rows(table).drop(columns="dictionary") for table in (honest, misled))
    pd.testing.assert_frame_equal(before, after)
    assert headline_k(rows(misled)) == 8
    before, after = ([sentence(one, 137) for one in verdicts(rows(table))] for table in (honest, misled))
    assert before == after


def test_a_table_without_roles_says_what_to_run_again(tmp_path):
    for name, command in (("evaluation.csv", "evaluate"), ("token_features.csv", "features")):
        table = evaluation_table() if command == "evaluate" else features_table([" and"])
        write_table(table.drop(columns=["method", "role"]), tmp_path / name)
        said = f"^{tmp_path / name}: no column 'method'; .*; remove it, and `rayscope {command}` makes it again$"
        with pytest.raises(ValueError, match=said):
            read_file(tmp_path / name)
        write_table(table.assign(role=table["role"].replace("rays", "null")), tmp_path / name)
        with pytest.raises(ValueError, match=r"record \d+ has role='null', not one of reference, control, baseline, "):
            read_file(tmp_path / name)


def test_seeds_become_their_mean_and_widest_interval():
    one, two = (
        hand_table([("rays", "topk", 8, 50.0, v, v - 0.1, v + 0.1)]).assign(seed=s) for s, v in ((0, 0.4), (1, 0.6))
    )
    row = rows(pd.concat([one, two])).iloc[0]
    assert row[["fvu", "fvu_low", "fvu_high", "seeds"]].tolist() == pytest.approx([0.5, 0.3, 0.7, 2])


def test_summary_prints_references_on_top_and_verdicts():
    out = io.StringIO()
    print_summary(evaluation_table(), Console(file=out, width=80))
    text = out.getvalue()
    order = [text.index(name) for name in (SITES[0], "identity", "random", "pca_topk", "abstopk", " topk ", SITES[1])]
    assert order == sorted(order)
    assert f"{SITES[0]}, position 0 excluded, at 137 bits per token" in text
    assert "Do rays beat the best of each family here?" in text
    assert "  topk: Yes: at every rate against PCA, svd_W_E, token lookup, neurons," in text
    assert "at 137 bits 0.160 against 0.282 (pca_topk)" in text
    assert "1 seed" in text
    assert max(map(len, text.split("Do rays")[0].splitlines())) <= 80


def test_visible_keeps_letters_and_shows_the_rest():
    assert visible("a\0\n\x1b\x85\u202e\u200b\ufeffé漢 $") == "a\\x00\\n\\x1b\\x85\\u202e\\u200b\\ufeffé漢 $"
    assert visible("\u0301a\u0301") == "\\u0301a\u0301"  # a leading accent would settle on the text before


def test_figures_take_any_name_and_warn_of_nothing():
    name = "$\\frac{\u202e漢\n"
    table = rows(
        hand_table([(name, "topk", 8, 50.0, 0.5, 0.4, 0.6), (name, "topk", 16, 90.0, 0.3, math.nan, math.nan)])
    )
    features = features_table([*HOSTILE, " and"])
    features.loc[features["dictionary"] == "topk_k8", "dictionary"] = name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bits_figure(table, "fvu", styles(table)).startswith("<svg")
        assert bits_figure(table, "dce", styles(table)) == ""
        assert token_figure(features, styles(table)).startswith("<svg")
    assert label(name) == "$\\frac{\\u202e\\u6f22\\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "said"), [([], "not at the 8 bits"), ([2, 8], "at 2 and 8 bits"), ([2, 3], "at 2 and 3 bits")]
)
def test_the_report_shows_the_most_bits_per_value_and_says_how_many(tmp_path: Path, bits: list[int], said: str):
    """Fewer bits have three times the FVU here, and the same L0 as any."""
    whole = evaluation_table()
    of_codes = whole["metric"].isin(["l0", "density", "dead"]) | (whole["kind"] == "codec")
    parts = [whole[of_codes]] if bits else [whole]
    for b in bits:
        part = whole[~of_codes].assign(value_bits=float(b))
        parts.append(part.assign(value=part["value"] * (1 if b == max(bits) else 3)))
    evaluation = pd.concat(parts, ignore_index=True)
    evaluation.to_csv(tmp_path / "evaluation.csv", index=False)
    metrics = ["bits", "fvu", "dce", "l0"]
    keys = ["site", "dictionary", "position0"]
    pd.testing.assert_frame_equal(
        rows(evaluation).set_index(keys)[metrics].sort_index(), rows(whole).set_index(keys)[metrics].sort_index()
    )
    found = points(evaluation)
    assert len(found) == len(rows(whole)) + (len(bits) - 1) * (rows(whole)["role"] != "reference").sum() * bool(bits)
    for _, few in found[found["value_bits"] < max(bits, default=0)].iterrows():
        most = found[(found[keys] == few[keys]).all(axis=1) & (found["value_bits"] == max(bits))].iloc[0]
        assert few[["fvu", "bits"]].tolist() == pytest.approx((3 * most[["fvu", "bits"]]).tolist())
        assert few["l0"] == most["l0"]
    console = Console(file=io.StringIO(), width=200)
    print_summary(pd.read_csv(tmp_path / "evaluation.csv"), console)
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    for text in (shown, build(tmp_path).read_text()):
        assert said in text


def test_a_table_from_before_bits_per_value_were_measured_says_what_to_run_again(tmp_path: Path):
    table = evaluation_table().drop(columns=["value_bits"])
    table.assign(quantised=True).to_csv(tmp_path / "evaluation.csv", index=False)
    said = r"evaluation.csv: no column 'value_bits'; .*; remove it, and `rayscope evaluate` makes it again$"
    with pytest.raises(ValueError, match=said):
        build(tmp_path)


def test_a_page_of_somebody_else_is_not_written_over(tmp_path):
    page = tmp_path / "report" / "index.html"
    page.parent.mkdir()
    page.write_text("<title>my notes</title>")
    with pytest.raises(ValueError, match=r"index.html is not a page that rayscope made; move it away"):
        build(tmp_path)
    assert page.read_text() == "<title>my notes</title>"
    page.unlink()
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert build(tmp_path) == build(tmp_path)  # its own it replaces
