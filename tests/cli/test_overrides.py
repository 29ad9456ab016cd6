"""Arguments as a shell hands them over, and what hydra's grammar then reads;
lines of README and docs, through the shells.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rayscope.cli import command_line
from rayscope.cli.flags import apart
from rayscope.cli.grammar import at_commas
from rayscope.cli.groups import groups
from rayscope.cli.options import declared
from rayscope.cli.overrides import ready
from rayscope.dictionaries import base

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/studies/*.md"))]
START = re.compile(
    r"(?:PYTHONPATH=\. )?(?:\.venv/bin/)?rayscope (?:-sc|demo|train|evaluate|features|study|sites|report|benchmark)\b.*"
)
PART = re.compile(r"'?\+?[\w.]+=\S.*|-m .*")  # an argument by itself: `model=gpt2 model.name=x`


def meant(argument: str) -> object:
    """What hydra reads of the argument made ready."""
    (text,) = ready([argument])
    return OverridesParser.create().parse_override(text).value()


@pytest.mark.parametrize(
    "path",
    [
        "runs/lr=0.001", "runs/日本語", "día=1", "a b", "a (1)", "C:\\runs\\x", "a%b~c#d@e:f", "it's", 'a"b', "a\\",
        "null_", "1", "1e3",
        "true", "1_000", "[a]", "{a}", "(", "range(1)", "a,b",
    ],
)  # fmt: skip
def test_a_path_is_what_was_typed(path):
    argument = path if "," not in path else f'"{path}"'
    assert meant(f"out={argument}") == path


def test_lists_of_text_and_numbers_in_other_spellings():
    assert meant('text.files=[my file (1).txt, "b,c.txt"]') == ["my file (1).txt", "b,c.txt"]
    assert meant("sites.patterns=[blocks.{2,4}.hook_resid_post,blocks.*.x]") == [
        "blocks.{2,4}.hook_resid_post",
        "blocks.*.x",
    ]
    assert meant("text.column=0") == "0"
    assert (meant("tokens=1e6"), meant("k=8.0"), meant("cache=None")) == (10**6, 8, None)
    assert meant("dictionaries.topk.lr='1e-3'") == 1e-3
    assert ready(["out=runs/${seed}", "out2=x"])[0] == "out=runs/${seed}"
    assert meant("out=runs/lr=${k}") == "runs/lr=${k}"


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=12))
@example("'a'b'")
@example("\\'")
@example('"')
def test_any_text_is_one_argument_or_one_line(text):
    for argument in (f"out={text}", f"text.files=[{text}]", f"k={text}"):
        made, said = "", ""
        try:
            (made,) = ready([argument])
        except ValueError as wrong:
            said = str(wrong)
        if said:
            assert said.startswith(argument.partition("=")[0])
            assert len(said.splitlines()) == 1
        else:
            OverridesParser.create().parse_override(made)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["k=4", "k=8"], "k is given 2 times (4, 8); give it once"),
        (["k=4", "+k=8"], "k is given 2 times"),
        (["k=4,8"], "k=4,8: give -m to run several"),
        (["k=range(1,4)"], "k=range(1,4): give -m to run several"),
        (["k=4", "~k"], "~k takes out what k=4 sets; give one of them"),
        (["~training", "training.log_every=3"], "~training takes out what training.log_every=3 sets"),
        (["k=None"], "k=None: a whole number"),
        (["dictionaries.topk.lr=1e-400"], "dictionaries.topk.lr=1e-400: a number above 0"),
        (["out=a,b"], "out=a,b: give -m to run several, or for one value with a comma 'out=\"a,b\"'"),
        (["dictionaries=topk,abstopk"],
         "dictionaries=topk,abstopk: give -m to run several, or [topk,abstopk] for a list"),
        (["dictionaries=[topk],[abstopk]"], "dictionaries=[topk],[abstopk]: give -m to run several, or [topk,abstopk]"),
        (["model=tiny,gpt2"], "model=tiny,gpt2: give -m to run several"),
        (["model=tiyn"], "no model=tiyn; nearest: tiny"),
        (["out=a${"], "out=a${: ${ begins a reference to another option"),
        (["tokens"], "'tokens' is not key=value"),
    ],
)  # fmt: skip
def test_what_is_wrong(arguments, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        ready(arguments)


def test_with_m_commas_separate_values_and_a_wrong_one_is_left_to_its_job():
    assert ready(["k=4,8.0", "dictionaries=[topk],[abstopk]", "k2=range(1,3)"], sweep=True)[0] == "k=4,8"
    assert ready(["out=a b,c=d"], sweep=True) == ['out=a b,"c=d"']
    assert ready(["k=4,abc"], sweep=True) == ["k=4,abc"]


def test_a_list_in_quotes_is_that_list():
    assert ready(['dictionaries="[topk,abstopk]"', "k=2"]) == ["dictionaries=[topk,abstopk]", "k=2"]
    assert meant("text.files='[a.txt, b c.txt]'") == ["a.txt", "b c.txt"]


def test_lists_given_twice_are_not_called_braces():
    with pytest.raises(ValueError, match=r"; give it once$"):
        ready(["dictionaries=[topk]", "dictionaries=[abstopk]"])


def test_braces_that_a_shell_expanded_are_given_back_quoted():
    line = "rayscope train sites.patterns=[blocks.{2,4}.hook_resid_post,blocks.*.mlp.hook_post]"
    arguments = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    with pytest.raises(ValueError, match="is given 2 times") as wrong:
        ready(arguments.stdout.splitlines()[2:])
    quoted = str(wrong.value).rpartition(": ")[2]
    assert shlex.split(quoted) == [line.split()[-1]]


def test_at_commas():
    assert at_commas("a,[b,c],{d,e},'f,g'") == ["a", "[b,c]", "{d,e}", "'f,g'"]
    assert at_commas("it's,a") == ["it's", "a"]


def lines() -> list[str]:
    """Every command line of the pages, and every argument that stands alone there, of the command that takes it."""
    found = []
    for page in PAGES:
        text = re.sub(r"```python.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        found += [line.strip() for line in text.splitlines() if START.fullmatch(line.strip())]
        for span in re.findall(r"`([^`\n]+)`", text):
            if START.fullmatch(span):
                found.append(span)
            elif PART.fullmatch(span) and is_option(span):
                found.append(f"rayscope {command_of(span)} {span}")
    placeholders = ("key=value", "group=choice", "=..")
    return [line for line in dict.fromkeys(found) if not any(word in line for word in placeholders)]


def is_option(arguments: str) -> bool:
    """Not a variable of the environment, nor an argument in Python."""
    key = arguments.removeprefix("-m ").lstrip("'+").partition("=")[0]
    return key in groups() or declared(key) is not None or key.startswith("dictionaries.")


def command_of(arguments: str) -> str:
    for command, keys in {
        "evaluate": ("baselines", "evaluation"),
        "study": ("size=", "study", "part="),
        "demo": ("elsewhere",),
    }.items():
        if arguments.lstrip("'+").startswith(keys):
            return command
    return "train logger=wandb" if arguments.startswith("logger.") else "train"


def test_the_pages_have_command_lines():
    assert len(lines()) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_command_lines_of_the_pages_compose(shell, tmp_path, monkeypatch, capsys):
    """Each line goes through the shell to a stand-in; the arguments that arrive must compose and be of their types."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    arrived, stand_in = tmp_path / "arrived", tmp_path / ".venv" / "bin" / "rayscope"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(
        f"#!/bin/sh\nfor argument; do printf '%s\\n' \"$argument\"; done >> {arrived}\nprintf '%s\\n' '' >> {arrived}\n"
    )
    stand_in.chmod(0o755)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_module.py").write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(base, "KINDS", dict(base.KINDS))
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    script = "\n".join(lines())
    ran = subprocess.run(
        [shell, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": f"{stand_in.parent}:/usr/bin:/bin"},
    )
    assert ran.stderr == ""
    commands = [block.split("\n") for block in arrived.read_text().strip("\n").split("\n\n")]
    assert len(commands) == len(lines())
    for line, command in zip(lines(), commands, strict=True):
        if command[0] == "-sc":
            continue
        flags, given = apart(command[1:])
        given = command_line.in_short(command[0], given)
        made = ready(given, sweep="-m" in flags)
        if "-m" not in flags:
            mandatory = {"text=files": "text.files=[a.txt]", "text=hub": "text.dataset=a/b"}
            chosen = [
                extra for choice, extra in mandatory.items() if choice in made and extra.split("=")[0] not in str(made)
            ]
            config = command_line.compose(command[0], [], [*made, *chosen])
            command_line.check(command[0], config)
            assert config is not None, line


def test_no_argument_of_the_pages_needs_quotes_that_it_lacks():
    """What zsh would expand, or refuse for want of a file, is quoted, whether or not zsh is here."""
    for line in lines():
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.partition("  #")[0])
        assert not re.search(r"[][{}*?~]", bare), line


def test_groups_are_those_of_conf():
    assert {"model", "text", "dictionaries", "baselines"} <= set(groups())
