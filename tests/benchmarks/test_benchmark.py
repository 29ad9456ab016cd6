"""The benchmark: the race's arithmetic with workers that tell fixed numbers, one part end to end,
table, JSON and figure.
"""

import json
import re
import sys
from pathlib import Path

import hydra
import pytest
import torch

from rayscope.benchmarks import running
from rayscope.benchmarks.bench import Bench
from rayscope.benchmarks.environments import PEERS, python_of
from rayscope.benchmarks.figure import figure
from rayscope.benchmarks.parts import PARTS, cycle
from rayscope.benchmarks.planted import planted_rays
from rayscope.benchmarks.race import WORKERS, Contender, race, total
from rayscope.benchmarks.records import merge, short, table
from rayscope.cli.command_line import in_short, main
from rayscope.cli.groups import groups
from rayscope.dictionaries import TopK
from rayscope.evaluation.metrics import fvu
from rayscope.limits import met

# tells `settings["seconds"]` of the round, the same for every step, and writes each turn it takes to a shared file
FAKE = """
import json, sys
settings = json.loads(sys.argv[1])
def tell(**message): print(json.dumps(message), flush=True)
if settings.get("fails") == "setup":
    raise SystemExit("no such library")
tell(ready=True)
for number, line in enumerate(sys.stdin):
    if settings.get("fails") == number:
        raise ValueError("out of memory")
    steps = json.loads(line)["steps"]
    with open(settings["turns"], "a") as file:
        file.write(f"{settings['name']}{steps} ")
    seconds = settings["seconds"][number]
    tell(seconds=[seconds] * steps, cpu_seconds=2 * seconds * steps)
tell(peak_mb=100.0, threads=settings["threads"])
"""


@pytest.fixture
def fake(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def contender(name: str, seconds: list[float], steps: int = 1, units: float = 1.0, **settings) -> Contender:
        settings |= {"name": name, "seconds": seconds, "turns": str(tmp_path / "turns")}
        return Contender(name, script, settings, steps=steps, units=units)

    return contender


def run(contenders, tmp_path, rounds=3):
    results = race(
        contenders, rounds=rounds, threads=1, logs=tmp_path / "logs", python=lambda peer: Path(sys.executable)
    )
    return {result.contender.name: result for result in results}


def test_workers_take_turns_and_ratios_are_medians_of_the_rounds(fake, tmp_path):
    # round by round 2, 4 and 3 times as slow, though the medians alone would say 3 / 1.5 = 2
    a, b = fake("a", [9, 1.0, 1.5, 2.0], steps=2), fake("b", [9, 2.0, 6.0, 6.0])
    found = run([a, b], tmp_path)
    assert (tmp_path / "turns").read_text() == "a1 b1 " + "a2 b1 " * 3  # one step each to warm up
    assert found["a"].seconds == [1.0, 1.5, 2.0]
    assert found["a"].cpu_seconds == [2.0, 3.0, 4.0]
    assert found["a"].units_per_second == 1 / 1.5
    assert found["b"].times(found["a"]) == 3.0
    assert found["a"].times(found["b"]) == pytest.approx(1 / 3)
    assert found["a"].facts == {"peak_mb": 100.0, "threads": 1}


def test_ratios_are_of_the_time_for_the_same_work(fake, tmp_path):
    found = run([fake("a", [1.0] * 4, units=10), fake("b", [1.0] * 4, units=5)], tmp_path)
    assert found["b"].times(found["a"]) == 2.0
    assert found["a"].units_per_second == 10


def test_sums_go_round_by_round(fake, tmp_path):
    found = run([fake("a", [9, 1.0, 2.0, 3.0], units=7), fake("b", [9, 10.0, 20.0, 30.0])], tmp_path)
    summed = total("both", [found["a"], found["b"]], [1.0, 0.5])
    assert summed.seconds == [6.0, 12.0, 18.0]
    assert (summed.contender.name, summed.contender.units) == ("both", 7)


@pytest.mark.parametrize(
    ("fails", "said", "rounds"),
    [("setup", "no such library", 0), (0, "ValueError: out of memory", 0), (2, "ValueError: out of memory", 1)],
)
def test_a_worker_that_fails_stops_no_other(fake, tmp_path, fails, said, rounds):
    found = run([fake("bad", [1.0] * 4, fails=fails), fake("good", [9, 1.0, 2.0, 3.0])], tmp_path)
    assert found["bad"].error == said
    assert len(found["bad"].seconds) == rounds
    assert (found["good"].error, found["good"].seconds) == (None, [1.0, 2.0, 3.0])
    log = (tmp_path / "logs" / "bad.log").read_text()
    assert said in log
    assert ("Traceback" in log) == (fails != "setup")
    assert total("both", [found["good"], found["bad"]]).error == f"bad: {said}"


def bench(tmp_path, **limits) -> Bench:
    return Bench("step", "steps", {}, limits, ["saelens"], 3, 1, 0, tmp_path, tmp_path / "logs")


def test_rows_say_against_what_and_whether_the_limit_is_met(fake, tmp_path):
    found = run([fake("ours", [1.0] * 4), fake("theirs", [2.0] * 4), fake("bad", [1.0] * 4, fails=1)], tmp_path)
    made = bench(tmp_path, theirs=">= 2.5", share="<= 0.05")
    made.compare(found, "ours")
    made.check("share", 0.04)
    made.check("nothing", None)
    ours, theirs, bad = made.rows
    assert "ratio" not in ours
    assert (theirs["against"], theirs["ratio"], theirs["limit"], theirs["met"]) == ("ours", 2.0, ">= 2.5", False)
    assert bad == {"contender": "bad", "peer": None, "error": "ValueError: out of memory"}
    assert made.checks == [{"check": "share", "value": 0.04, "limit": "<= 0.05", "met": True}]
    assert met(3.0, ">= 3.0")
    assert met(None, ">= 3.0") is None
    with pytest.raises(ValueError, match="is not such as"):
        met(1.0, "about 3")


def test_contenders_of_other_peers_are_left_out(fake, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr("rayscope.benchmarks.bench.race", lambda contenders, **_: taken.extend(contenders) or [])
    made = bench(tmp_path)
    peers = [None, "saelens", "sparsify"]
    made.race([made.contender(str(peer), "rayscope_step", peer, k=3, units=5) for peer in peers])
    assert [one.name for one in taken] == ["None", "saelens"]
    assert (taken[0].settings, taken[0].units) == ({"seed": 0, "k": 3}, 5)


ROWS = [
    {"contender": "topk", "peer": None, "per_second": 3.1, "cpu_seconds": 0.61, "seconds": [0.32], "peak_mb": 1357.0},
    {"contender": "saelens topk", "peer": "saelens", "per_second": 0.18, "cpu_seconds": 9.9, "seconds": [5.5],
     "peak_mb": 4717.0, "against": "topk", "ratio": 17.2, "limit": ">= 14", "met": True},
    {"contender": "saelens topk autocast", "peer": "saelens", "autocast": True, "per_second": 0.5, "cpu_seconds": 5.0,
     "seconds": [2.0],
     "peak_mb": 4000.0, "against": "topk", "ratio": 6.25, "limit": ">= 8", "met": False},
    {"contender": "sparsify topk", "peer": "sparsify", "error": "ImportError: no module"},
]  # fmt: skip
CHECK = {"check": "peak MB of topk without the data", "value": 1234.0, "limit": "<= 1500", "met": True}
RECORD = {"unit": "steps", "threads": 2, "rounds": 5, "rows": ROWS, "checks": [CHECK]}


def test_table():
    assert table("step", RECORD).splitlines() == [
        "step: 2 threads, medians of 5 rounds",
        "contender              steps/s  CPU-s/step  peak MB  against  x its time  asked  met",
        "topk                      3.10       0.610    1,357",
        "saelens topk             0.180        9.90    4,717     topk        17.2  >= 14  yes",
        "saelens topk autocast    0.500        5.00    4,000     topk        6.25   >= 8   NO",
        "sparsify topk  failed: ImportError: no module",
        "",
        "check                             value    asked  met",
        "peak MB of topk without the data  1,234  <= 1500  yes",
    ]
    assert [short(v) for v in (None, 0.0, 12345.6, 99.96, 0.00123, 2.5e-6)] == [
        "", "0", "12,346", "100", "0.00123", "2.5e-06",
    ]  # fmt: skip


def test_parts_are_merged_into_one_file(tmp_path):
    path = tmp_path / "day.json"
    merge(path, "step", {"rows": [{"contender": "a"}]})
    merge(path, "many", {"rows": [{"contender": "b"}]})
    merged = merge(path, "step", {"rows": [{"contender": "c"}]})
    assert merged["parts"] == {"step": {"rows": [{"contender": "c"}]}, "many": {"rows": [{"contender": "b"}]}}
    assert json.loads(path.read_text()) == merged
    assert merged["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff", b"{", b"[]", b"1", b"{}", b'{"parts": []}', b'{"machine": {}, "parts": {"step": {}}}',
        b'{"machine": {}, "parts": {"step": {"rows": [1]}}}', b'{"machine": 1, "parts": {}}', b"[" * 100_000,
        b'{"machine": {}, "parts": {"step": {"rows": [{"ratio": "x", "limit": ">= 2"}]}}}',
    ],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_said_before_the_first_part_and_stays(content, tmp_path, monkeypatch):
    path = tmp_path / "day.json"
    path.write_bytes(content)
    monkeypatch.setattr("rayscope.benchmarks.running.path_of", lambda out, scale: path)
    with pytest.raises(ValueError, match=r"day\.json is not what rayscope benchmark wrote .*; move it away"):
        benchmark(tmp_path)
    assert path.read_bytes() == content


def test_parts_of_another_machine_are_not_mixed_in(tmp_path):
    path = tmp_path / "day.json"
    merge(path, "step", {"rows": []})
    held = json.loads(path.read_text())
    held["machine"]["torch"] = "1.0"
    path.write_text(json.dumps(held))
    with pytest.raises(
        ValueError, match=rf"measured with torch 1\.0, here it is {re.escape(torch.__version__)}; move it"
    ):
        merge(path, "many", {"rows": []})


def test_limits_and_the_figure_are_checked_before_the_first_part(tmp_path):
    with pytest.raises(ValueError, match=r"limits\.step\.pieces: '> 3' is not such as"):
        benchmark(tmp_path, limits={"step": {"pieces": "> 3"}})
    with pytest.raises(ValueError, match=r"figure=.*: is a folder"):
        benchmark(tmp_path, figure=tmp_path)


def benchmark(folder: Path, **options) -> None:
    """A benchmark whose one part fails if it is begun."""
    given = {
        "parts": ["step"],
        "peers": [],
        "scale": {"name": "full"},
        "limits": {},
        "threads": 1,
        "rounds": 1,
        "seed": 0,
    }
    running.run(**given | {"out": folder, "figure": None, "environments": None, "show": pytest.fail} | options)


def test_the_figure_has_a_bar_for_each_ratio_to_a_peer():
    svg = figure({"parts": {"step": RECORD, "many": {**RECORD, "rows": ROWS[:1]}}})
    assert svg.startswith("<svg")
    assert svg == figure({"parts": {"step": RECORD}})  # the same bytes; a part without peers has no panel
    assert figure({"parts": {"many": {**RECORD, "rows": ROWS[:1]}}}) == ""


def test_planted_vectors_are_sparse_in_rays_that_no_dictionary_starts_with():
    x_ND = planted_rays(2000, 32, l0=3.0)
    assert torch.equal(x_ND, planted_rays(2000, 32, l0=3.0))
    assert not torch.equal(x_ND, planted_rays(2000, 32, l0=3.0, seed=1))
    found = torch.pca_lowrank(x_ND - x_ND.mean(0), q=32)[1]
    assert found[-1] > 0.05 * found[0]  # of full rank: features outnumber dimensions
    start = TopK(32, 6 * 32, 3, seed=0)
    start.prepare(x_ND, 10**6)
    error_ND = x_ND - start(x_ND)
    assert error_ND.square().sum() > 0.2 * (x_ND - x_ND.mean(0)).square().sum()


def compose(*overrides: str):
    with hydra.initialize_config_module("rayscope.conf", version_base="1.3"):
        return hydra.compose("benchmark", [*overrides])


@pytest.mark.slow
def test_limits_and_sizes_are_of_parts_that_there_are():
    for choice in groups()["scale"]:
        config = compose(f"scale={choice}")
        assert config.scale.name == choice
        assert set(config.scale) == {"name", *PARTS}
        assert set(config.limits) <= set(PARTS)
        assert list(config.parts) == list(PARTS)
        assert list(config.peers) == list(PEERS)
        assert config.scale.step.keys() == compose().scale.step.keys()
        for part in ("pipeline", "many"):
            scale = config.scale[part]
            assert cycle(scale) * scale.batch <= scale.rows * scale.context  # a harvest reads no row twice


def test_workers_of_peers_import_nothing_of_rayscope():
    for script in WORKERS.glob("*.py"):
        if not script.name.startswith((*PEERS, "protocol")):
            continue
        assert "rayscope" not in script.read_text().partition('"""\n')[2], script


@pytest.fixture
def toy(tmp_path, capsys):
    """Runs a part at toy size without peers: (its record, what it printed)."""

    def run(part: str, *more: str):
        main(["benchmark", part, "scale=toy", "threads=1", "peers=[]", f"out={tmp_path / 'out'}", *more])
        said, err = capsys.readouterr()
        (path,) = (tmp_path / "out").glob("*-toy.json")
        assert err.strip().splitlines()[-1] == f"benchmark: {path}"
        return json.loads(path.read_text())["parts"][part], said

    return run


@pytest.mark.slow
def test_one_part_end_to_end(toy):
    found, said = toy("evaluation", "rounds=2")
    encode, measure = found["rows"]
    assert [row["contender"] for row in found["rows"]] == ["encode", "encode and measure"]
    assert measure["against"] == "encode"
    assert measure["ratio"] > 0
    assert "limit" not in measure  # nothing is judged at this size
    assert len(encode["seconds"]) == 2
    assert encode["version"].startswith("rayscope ")
    assert encode["peak_mb"] > 50
    assert said.startswith("evaluation: 1 threads, medians of 2 rounds\ncontender")


@pytest.mark.slow
def test_the_pipeline_is_timed_as_lightning_runs_it(toy):
    found, _ = toy("pipeline", "rounds=1")
    assert [row.get("error") for row in found["rows"]] == [None, None]
    (check,) = found["checks"]
    assert 0 < check["value"] < 1  # model and step were both seen, and neither twice


@pytest.mark.slow
def test_quality_scores_what_was_trained(toy):
    found, _ = toy("quality", "scale.quality.steps=40", "scale.quality.rates.topk=[5e-3]")
    checks = {check["check"]: check["value"] for check in found["checks"]}
    x_ND = planted_rays(512 + 64, 32)
    start = TopK(32, 128, 4, seed=0)
    start.prepare(x_ND[:512], 10**6)
    assert checks["best fvu of topk"] < 0.9 * fvu(x_ND[512:], start(x_ND[512:]))
    assert checks["best learning rate of topk"] == 5e-3
    assert checks["fvu against fp32 selection's"] == 1.0  # so few weights are never chosen by in bfloat16


def test_bare_words_are_parts():
    given = ["step", "rounds=3", "many"]
    assert in_short("benchmark", given) == ["parts=[step,many]", "rounds=3"]
    assert in_short("benchmark", ["rounds=3"]) == ["rounds=3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["stp"], "no parts=stp; nearest: step"),
        (["peers=[saelen]"], "no peers=saelen; nearest: saelens"),
        (["step", "round=3"], "no option 'round'; nearest: rounds"),
        (["rounds=0"], "rounds=0: a whole number of at least 1"),
        (["parts=[]"], "parts=[]: give at least one of step, harvest"),
        (["threads=null"], "threads=null: times are of a known number of threads"),
        (["scale=hug"], "no scale=hug; nearest:"),
    ],
)
def test_what_is_wrong_is_one_line(argv, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", *argv, f"out={tmp_path / 'out'}"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(f"rayscope: {message}")
    assert not (tmp_path / "out").exists()


def test_environments_are_built_once_and_again_where_the_recipe_changed(tmp_path, monkeypatch):
    called = []

    def call(command):
        called.append(command[-2:])
        (tmp_path / "sparsify/bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sparsify/bin/python").touch()

    monkeypatch.setattr("rayscope.benchmarks.environments.call", call)
    python = python_of("sparsify", tmp_path)
    assert python == tmp_path / "sparsify/bin/python"
    assert called[1] == ["--quiet", "torch==2.13.0"]
    assert called[2] == ["--no-deps", "eai-sparsify==1.3.3"]
    python_of("sparsify", tmp_path)
    assert len(called) == 4
    (tmp_path / "sparsify/installed").write_text("something older")
    python_of("sparsify", tmp_path)
    assert len(called) == 8
    (tmp_path / "sparsify/bin/python").unlink()  # half of it is gone
    python_of("sparsify", tmp_path)
    assert len(called) == 12
    (tmp_path / "sparsify").chmod(0o777)
    with pytest.raises(ValueError, match=r"sparsify: .*others than its owner"):
        python_of("sparsify", tmp_path)
    assert python_of(None) == python_of("transformer_lens") == Path(sys.executable)
