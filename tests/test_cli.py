"""The command line: exit codes, messages, and what is not imported."""

import errno
import os
import re
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from tlkit import __version__, cli
from tlkit.commands import models
from tlkit.commands.evaluate import metrics_table
from tlkit.system import shipped

REPOSITORY = Path(__file__).parents[1]
SLOW_TO_IMPORT = ("torch", "timm", "lightning", "albumentations", "numpy", "PIL", "matplotlib")


def tlkit(*words: str) -> subprocess.CompletedProcess[str]:
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
        code = cli.main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `tlkit models` raise."""

    def command(arguments: Namespace) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "models", ("list", models.models_arguments, command))


def test_file_names_are_utf8_in_every_locale_and_output_is_not(tmp_path: Path) -> None:
    """In the locale C without its UTF-8 mode, `日本` in the recipe and the folder 日本 were two names."""
    for name in ("日本", "花"):
        (tmp_path / "写真" / name).mkdir(parents=True)
    command = [sys.executable, "-m", "tlkit", "data", "check", "写真"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "\\u65e5\\u672c" in done.stdout.decode("ascii")
    assert "\\u82b1" in done.stdout.decode("ascii")


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_output_may_be_closed(utf8: str) -> None:
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "tlkit", "check", "quickstart"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def in_shell(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the words, as `"$@"` of a shell script. The checkout is on its path."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(["sh", "-c", script, "sh", sys.executable, *words], env=environment, capture_output=True, text=True)


def test_input_may_be_closed() -> None:
    code = "import sys; from tlkit import cli; cli.main = lambda: len(sys.stdin.read()); cli.run()"
    done = in_shell('"$@" <&-', "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    done = in_shell(f'mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; "$@"', "-m", "tlkit", "check", "quickstart")
    assert done.returncode == 2
    assert done.stderr == "The folder that the command is run in is not there any more.\n  Change to another one: cd ~\n"


def test_help_lists_every_command_and_two_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in cli.COMMANDS)
    assert printed.count("\n  tlkit ") == 2
    assert max(map(len, printed.splitlines())) <= 110


def test_the_readme_has_every_command_in_the_same_order() -> None:
    table = [line for line in (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `tlkit ")]
    named = [name for line in table for name in re.findall(r"`tlkit ((?:data |recipes )?\w+)", line.split(" | ")[0])]
    assert list(dict.fromkeys(named)) == list(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_its_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    assert f"usage: tlkit {name}" in capsys.readouterr().out


def test_every_command_that_takes_a_recipe_takes_changes_of_its_keys() -> None:
    for name, (_, add_arguments, _) in cli.COMMANDS.items():
        parser = ArgumentParser(name)
        add_arguments(parser)
        names = {str(action.metavar) for action in parser._actions}
        assert "KEY=VALUE" in names or not names & {"RECIPE", "DIR|RECIPE"}, name


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tlkit {__version__}\n"


def test_help_check_and_a_faulty_recipe_import_nothing_slow() -> None:
    commands = [
        "--help",
        "check recipes/cifar_resnet.yaml",
        "check recipes/cifar_resnet.yaml --resolved",
        "finetune quickstart sede=1",
        "recipes ls",
        "recipes help phases.train",
        "schema",
    ]
    code = f"""
import sys
from tlkit.cli import main
for words in sys.argv[1:]:
    main(words.split())
    print(words, [module for module in {SLOW_TO_IMPORT} if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code, *commands], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [words for words in commands if f"{words} []" not in lines] == []


def test_check_of_a_sound_recipe_exits_0_and_sums_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    done = tlkit("check", "recipes/cifar_resnet.yaml", "phases[0].epochs=7")
    assert (done.returncode, done.stderr) == (0, "")
    assert "train head, 7 epochs, lr 0.001" in done.stdout
    assert len(done.stdout.splitlines()) <= 24


def test_check_resolved_prints_a_recipe_that_checks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = tlkit("check", "quickstart", "--resolved", "model.weights=random")
    assert first.returncode == 0
    (tmp_path / "again.yaml").write_text(first.stdout)
    assert tlkit("check", "again.yaml", "--resolved").stdout == first.stdout
    assert "  weights: random\n" in first.stdout


def test_a_faulty_recipe_exits_2_with_every_fault_on_stderr_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("nme: a\nseed: -1\n")
    command, environment = [sys.executable, "-m", "tlkit", "check", "mine.yaml"], {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "mine.yaml:1: nme is not a key of a recipe.\n  Expected one of: name, " in done.stderr
    assert "mine.yaml:2: seed = -1 is out of range." in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_anywhere_shows_the_traceback_with_the_same_exit_code() -> None:
    for words in (["--debug", "check", "nowhere"], ["check", "nowhere", "--debug"]):
        done = tlkit(*words)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert (
            f"nowhere does not exist.\n  tlkit ships these: {', '.join(sorted(path.stem for path in shipped('recipes').glob('*.yaml')))}."
            in done.stderr
        )
        assert "For images of your own, write one: " in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "fintune x.yaml",
            f"tlkit has no command 'fintune'.\n  Expected one of: {', '.join(cli.COMMANDS)}. Did you mean 'finetune'?\n  See",
        ),
        ("train x.yaml", "Did you mean 'finetune'?"),
        ("eval runs/quickstart/001", "Did you mean 'evaluate'?"),
        ("finetune tests", "tests is a folder, not a recipe.\n  If it holds a folder of images for each class, write a recipe for them:\n"),
        ("--vrsion", "tlkit has no option '--vrsion'.\n  Expected one of: --help, --version, --debug. Did you mean '--version'?"),
        ("finetune", "the following arguments are required: RECIPE\n"),
        ("predict run", "the following arguments are required: PATH\n"),
        ("predict run a.png --top-k 0", "'0' is not a whole number of at least 1"),
        ("evaluate run --split train", "invalid choice: 'train'"),
        ("evaluate run --tta 0", "'0' is not flip, crops or a number from 1 to 1000"),
    ],
)
def test_a_slip_on_the_command_line_exits_2_with_the_fix(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_no_command_prints_the_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_overrides_may_stand_before_and_after_an_option() -> None:
    words = ["quickstart", "seed=3", "--resolved", "name=other"]
    assert tlkit("check", *words).stdout.startswith("name: other\nseed: 3\n")


def test_ctrl_c_exits_130_with_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    assert cli.main(["models"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_fault_of_tlkit_exits_1_with_its_first_line_and_the_fix_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(ZeroDivisionError("by zero\nand more"), monkeypatch)
    assert cli.main(["models"]) == 1
    fault = "Internal error (a bug in tlkit): ZeroDivisionError: by zero"
    assert capsys.readouterr().err == f"{fault}\n  Run again with --debug for the traceback.\n"


def test_a_folder_that_may_not_be_written_exits_2_with_its_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(PermissionError(errno.EACCES, "Permission denied", "runs/a"), monkeypatch)
    assert cli.main(["models"]) == 2
    assert "runs/a can't be read or written: Permission denied." in capsys.readouterr().err


def test_a_name_that_is_longer_than_a_file_can_have_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", "a" * 300]) == 2
    assert "a can't be read or written: File name too long.\n  Use a shorter name." in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *("init x --out", "rank quickstart --backbones lenet5 --out x --write", "compare a b --curves", "report run --out"),
        *("data check quickstart --out", "data preview quickstart --out", "predict run a.png --out", "recipes cp quickstart"),
    ],
)
def test_a_file_whose_folder_is_not_there_is_named_before_any_work(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words.split(), "no where/a.csv"]) == 2
    assert capsys.readouterr().err == "no where/a.csv can't be written: no where is not a folder.\n  Make it first: mkdir -p 'no where'\n"


def test_curves_are_drawn_into_a_png_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "a", "b", "--curves", "c.jpg"]) == 2
    assert capsys.readouterr().err == "--curves c.jpg is not a .png file.\n  Name one, such as curves.png.\n"


@pytest.mark.parametrize("words", ["init x --out", "predict run a.png --out", "recipes cp quickstart"])
def test_a_dash_is_no_name_of_a_file_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    assert cli.main([*words.split(), "-"]) == 2
    assert capsys.readouterr().err == "'-' does not mean stdout here.\n  Expected the name of a file; one that is called - is ./-\n"
    assert not Path("-").exists()


@pytest.mark.parametrize(
    "words", ["finetune quickstart --out", "data fetch quickstart --to", "explain run x.png --out", "export run --out"]
)
def test_a_dash_is_no_name_of_a_folder_to_write(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words.split(), "-"]) == 2
    assert capsys.readouterr().err == "'-' does not mean stdout here.\n  Expected the name of a folder; one that is called - is ./-\n"


def test_a_file_where_a_folder_is_needed_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    for make, error in ((Path.mkdir, "File exists"), (lambda file: (file / "a").mkdir(), "Not a directory")):
        with pytest.raises(OSError, match=error) as raised:
            make(tmp_path / "taken")
        raising(raised.value, monkeypatch)
        assert cli.main(["models"]) == 2
        assert f"can't be read or written: {error}.\n  Choose another name" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_exits_2_without_a_traceback() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "tlkit", "--help"], cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("The disk is full")
    assert "Traceback" not in done.stderr


def test_matplotlib_says_nothing_where_its_cache_cannot_be_written() -> None:
    script = "from tlkit.cli import main; main(['--version']); import matplotlib; print(matplotlib.get_cachedir())"
    home = {"PATH": os.environ["PATH"], "HOME": os.devnull}
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env=home, capture_output=True, text=True, check=True)
    assert "matplotlib-" in done.stdout  # a temporary folder
    assert done.stderr == ""


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "tlkit", "--help"], cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_metrics_are_shown_with_a_row_a_class() -> None:
    row = {"precision": 0.5, "recall": 1.0, "f1": 2 / 3}
    metrics = {
        "primary_metric": "accuracy",
        "pictures": 4,
        "accuracy": 0.75,
        "accuracy_interval": [0.3, 0.95],
        "top2_accuracy": 1.0,
        "loss": 0.5,
        "macro": row,
        "per_class": {"ankle boot": {"pictures": 4, **row}},
    }
    table = metrics_table(metrics)
    assert "accuracy               0.7500  (95 % interval 0.300 to 0.950, 4 images)" in table
    assert "top2 accuracy          1.0000" in table
    assert "ankle boot       4     0.5000     1.0000     0.6667" in table
    assert "test-time" not in table
    grouped = metrics_table({**metrics, "groups": 1, "per_class": {"日本": {"pictures": 4, **row}}})
    assert "0.950, 4 images in 1 group)" in grouped
    assert "\nclass  images" in grouped
    assert "\n日本        4" in grouped  # each of the two is as wide as two of "class"
    beside = metrics_table({**metrics, "tta": {**metrics, "kind": "flip", "views": 2, "accuracy": 1.0, "gained": 1, "lost": 0}})
    assert "(flip: 2 views of each image, their probabilities averaged)" in beside
    assert "accuracy                  0.7500     1.0000" in beside
    assert "1 wrong answer becomes right, and 0 right ones wrong." in beside
