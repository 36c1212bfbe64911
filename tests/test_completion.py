"""A shell completes `tlkit ...`: a real bash asks, and the words that may follow come back."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tlkit.cli import COMMANDS, main
from tlkit.commands.completion import complete_override
from tlkit.recipe.load import load_recipe
from tlkit.recipe.names import known_names

REPOSITORY = Path(__file__).parents[1]
ASK = """
tlkit() { "$PYTHON" -c 'from tlkit.cli import run; run()' "$@"; }
source <(tlkit completion bash)
while IFS= read -r line; do
  COMP_LINE=$line; COMP_POINT=${#line}; COMP_TYPE=9; COMPREPLY=()
  _python_argcomplete tlkit
  (IFS=' '; echo "${COMPREPLY[*]}")
done
"""


def answers(*lines: str) -> list[list[str]]:
    """What bash would offer at the end of each line."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
    asked = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(["bash", "-c", ASK], cwd=REPOSITORY, env=environment, input=asked, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_real_bash_completes_commands_recipes_options_keys_and_values() -> None:
    first, group, recipe, option, key, value = answers(
        "tlkit ", "tlkit recipes s", "tlkit finetune quic", "tlkit check quickstart --res", "tlkit plan quickstart seed=1 data.bat",
        "tlkit finetune quickstart data.normalize=",
    )  # fmt: skip
    assert first == list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    assert (group, recipe, option, key) == (["show"], ["quickstart"], ["--resolved"], ["data.batch_size=", "data.batch_size.find="])
    assert value == ["weights", "dataset", "pixelwise", "none"]


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete -o "), ("zsh", "#compdef tlkit"), ("fish", "complete --command tlkit")])
def test_each_shell_has_its_script(shell: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert words in capsys.readouterr().out


def test_keys_and_values_are_those_that_a_recipe_can_have() -> None:
    assert complete_override("phases[1].ep") == ["phases[1].epochs="]
    assert complete_override("trainer.deter") == ["trainer.deterministic="]
    assert complete_override("trainer.deterministic=") == ["trainer.deterministic=true", "trainer.deterministic=false"]
    assert complete_override("augment=") == ["augment=light", "augment=medium", "augment=heavy"]
    assert len(complete_override("model.backbone=")) == len(known_names()["backbones"])
    assert complete_override("nonsense=") == complete_override("nonsense.x") == []
    for value in complete_override("model.head.kind=")[:4]:
        load_recipe("quickstart", [value])
