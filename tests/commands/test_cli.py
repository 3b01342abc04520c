"""Behaviours of cli/command_line.py: how it reads a config from the command line."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import ml_collections
import pytest
from absl import flags
from helpers import ROOT
from made_configs import FRACTIONS, REFERENCE, STEPS, field_of, resolved, spoken

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.cli import command_line
from imbalance_jax.runs import run_directory as runs


def parse_flags(*args):
    """Returns the flags that a command with --config reads from a command line."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        cli.define_config_flag()
        command_line.parse_flags(["main", *args])
    return values


def refused(capsys, *args):
    """Returns the message that a command line is refused with."""
    with pytest.raises(SystemExit) as exit_:
        parse_flags(*args)
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "arg, message",
    [
        ("--config.step=5", "config has no field 'step'. Did you mean config.steps?"),
        ("--config.model.depth=5", "config.model has no field 'depth'. It has: "),
        ("--config.steps.x=5", "config.steps is a value and has no fields"),
        ("--config.mixture.ratio.fr=5", "not declared. config.languages has: en1, en2"),
        ("--config.sources.fr.kind=files", "config.sources has no field 'fr'. It has: en"),
        ("--config.parallel.en_fr.path=x", "config.parallel is empty. Set all of it, as in"),
        ("--config.vocabulary.mix.en=5", "--config.vocabulary.mix=\"{'en': ...}\""),
        ("--noconfig.model.tid", "config.model has no field 'tid'. Did you mean config.model.tied"),
    ],
)
@pytest.mark.parametrize("form", ["one", "two"])
def test_an_override_of_a_field_that_does_not_exist_is_refused(capsys, arg, message, form):
    # Either of --config=FILE and --config FILE.
    config = [f"--config={REFERENCE}"] if form == "one" else ["--config", REFERENCE]
    assert message in refused(capsys, *config, arg)
    assert message in refused(capsys, *config, *arg.split("="))


def test_a_field_of_a_run_is_refused_in_a_study_saying_where_its_runs_have_it(capsys):
    study = f"--config={ROOT}/configs/studies/anchors.py"
    for field in ("data_dir=elsewhere", "model.N=3"):
        message = refused(capsys, study, f"--config.{field}")
        assert "is a field of a run, and this config is a study" in message
        assert f"config.runs.NAME.config.{field.partition('=')[0]} for one run" in message
    assert "config has no field 'stps'" in refused(capsys, study, "--config.stps=5")


def test_overrides_of_fields_that_exist_pass():
    values = parse_flags(f"--config={REFERENCE}:scale=mini", "--config.steps=5", "--dry_run")
    assert (values.config.steps, values.config.model.D, values.dry_run) == (5, 512, True)
    values = parse_flags("--config", REFERENCE, "--config.mixture.ratio.en2", "5", "--nodry_run")
    assert values.config.mixture.ratio.en2 == 5
    assert parse_flags("--workdir=somewhere").config is None


def test_a_config_file_is_loaded_once(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        f"open({str(tmp_path / 'loads')!r}, 'a').write('1')\n" + pathlib.Path(REFERENCE).read_text()
    )
    parse_flags(f"--config={file}", "--config.steps=5")
    assert (tmp_path / "loads").read_text() == "1"


def run_shower(tmp_path, what, *args):
    """Returns what a program with --config shows of it."""
    program = f"""
        import json
        from imbalance_jax import cli, config
        def main():
            print(json.dumps({what}))
            return 0
        cli.define_config_flag()
        cli.run_command(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *args],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def leaves(group, name="config"):
    """Yields every field of a ConfigDict with its dotted name."""
    for field, value in group.items():
        if isinstance(value, ml_collections.ConfigDict) and value:
            yield from leaves(value, f"{name}.{field}")
        else:
            yield f"{name}.{field}", value


def another(name, value):
    """Returns a value of the same type, and how it is written on a command line."""
    if name.endswith((".stages", ".same_total_as")):
        return [[0, {"en": 1, "fr": 2}], [0.5, {"en": 3, "fr": 0}]], None
    if isinstance(value, ml_collections.ConfigDict):
        return {"en": 9, "fr": 1}, None
    if isinstance(value, tuple):
        return ["one", "two"], None
    if isinstance(value, bool):
        return not value, str(not value).lower()
    if isinstance(value, str):
        return "other", "other"
    return value + type(value)(2), str(value + type(value)(2))


def test_every_field_can_be_set_from_the_command_line(tmp_path):
    fields = dict(leaves(spoken()))
    assert {
        "config.vocabulary.mix",
        "config.vocabulary.tokenizer.path",
        "config.mixture.same_total_as",
        "config.languages.fr.anchor_choice",
        "config.sources.en.synthetic.shared_words",
        "config.parallel.en_fr.fields",
        "config.mixture.ratio.fr",
    } <= set(fields)
    wanted, args = {}, []
    for name, value in fields.items():
        wanted[name], written = another(name, value)
        if isinstance(wanted[name], list) and written is None:
            written = repr(tuple(tuple(v) if isinstance(v, list) else v for v in wanted[name]))
        args.append(f"--{name}={wanted[name] if written is None else written}")
    file = f"--config={ROOT}/configs/en_fr.py:scale=demo,files=DIR"
    shown = {"config": run_shower(tmp_path, "cli.require_config().to_dict()", file, *args)}
    assert {name: field_of(shown, name) for name in fields} == wanted


def test_a_command_line_of_new_fields_is_the_config_that_it_says(tmp_path):
    shown = run_shower(
        tmp_path,
        "config.to_dict(config.resolve_config(cli.require_config()))",
        f"--config={ROOT}/configs/en_fr.py:layout=joint,files=DIR",
        "--config.vocabulary.mix={'en': 9, 'fr': 1}",
        "--config.vocabulary.separator=own",
        "--config.mixture.stages=((0, {'en': 1, 'fr': 1}), (0.5, {'en': 19, 'fr': 1}))",
        "--config.mixture.order=sequential",
        "--config.parallel.en_fr.fields=('english', 'french')",
        "--config.languages.fr.words=permuted",
    )
    assert shown["vocabulary"]["mix"] == {"en": 9, "fr": 1}
    assert shown["vocabulary"]["separator"] == "own"
    assert shown["mixture"]["stages"] == [[0, {"en": 1, "fr": 1}], [0.5, {"en": 19, "fr": 1}]]
    assert shown["mixture"]["order"] == "sequential"
    assert shown["parallel"]["en_fr"]["fields"] == ["english", "french"]
    assert shown["languages"]["fr"]["words"] == "permuted"


def test_a_config_file_that_cannot_be_used_is_refused_with_the_reason(capsys, tmp_path):
    def message(content, choices=""):
        (tmp_path / "c.py").write_text(content)
        return refused(capsys, f"--config={tmp_path}/c.py{choices}")

    assert "there is no file nowhere.py" in refused(capsys, "--config=nowhere.py")
    assert "defines no function get_config" in message("x = 1")
    assert "fails with SyntaxError" in message("x = = 1")
    assert "fails with KeyError: 'SCRATCH'" in message("{}['SCRATCH']\ndef get_config(): pass")
    assert "fails with KeyError: 'a'" in message("def get_config(): return {}['a']")
    assert "takes 0 positional arguments" in message("def get_config(): return {}", ":scale=mini")
    assert "no choice 'size'" in refused(capsys, f"--config={REFERENCE}:size=mini")


def run_main(tmp_path, *args):
    command = [sys.executable, "-m", "imbalance_jax.main", "--workdir=run", *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)


@pytest.mark.parametrize(
    "args, message",
    [
        (("--config.steps=few",), "--config.steps=few"),
        (("--config", REFERENCE, "--config.modle.L=3"), "Did you mean config.model?"),
        (
            ("--config.mixture.ratio.en1=0.9",),
            "it must be a whole number of sequences. Write 92.5%",
        ),
        (("--config.mixture.ratio.en1=0", "--config.mixture.ratio.en2=0"), "zero for every"),
        (("--config.mixture.stages=((0,{'en1':1,'en2':1}),(5,{'en1':1}))",), "stages[1] says noth"),
        (("--config.languages.en2.anchor_choice=few",), "config.languages.en2.anchor_choice='few'"),
        (
            ("--config.model.N=100000", "--config.model.scan_layers=False"),
            "Set config.model.scan_layers=True",
        ),
        (("--config.batch_size=100000000",), "config.batch_size=100000000 are 150,000,000,000 seq"),
    ],
)
def test_a_command_with_a_wrong_config_exits_with_2_one_message_and_nothing_made(
    tmp_path, args, message
):
    done = run_main(tmp_path, f"--config={REFERENCE}", *args)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_flag_of_another_kind_is_refused_by_what_it_takes(capsys):
    values = flags.FlagValues()
    flags.DEFINE_integer("epochs", 1, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="2"):
        patch.setattr(flags, "FLAGS", values)
        command_line.parse_flags(["command", "--epochs=x"])
    assert capsys.readouterr().err == "error: --epochs=x: it must be an integer.\n"


@pytest.mark.parametrize(
    "arg",
    [
        *("--pairs=2147483648", "--pairs=7", "--pairs=1e3", "--length=9223372036854775808"),
        *("--share=inf", "--share=-inf", "--share=nan", "--rate=inf", "--rate=nan", "--rate=1e39"),
    ],
)
def test_a_number_beyond_the_ends_of_its_flag_is_refused_by_name(capsys, arg):
    values = flags.FlagValues()
    flags.DEFINE_integer("pairs", 512, "", lower_bound=8, flag_values=values)
    flags.DEFINE_integer("length", None, "", flag_values=values)
    flags.DEFINE_float("share", 0.5, "", lower_bound=0, upper_bound=1, flag_values=values)
    flags.DEFINE_float("rate", 0.5, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        command_line.parse_flags(["command", "--pairs=2147483647", "--share=1", "--rate=1e38"])
        with pytest.raises(SystemExit, match="2"):
            command_line.parse_flags(["command", arg])
    assert capsys.readouterr().err.startswith(f"error: {arg.partition('=')[0]}=")


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT"])
def test_a_command_that_is_told_to_stop_asks_to_be_started_again(sent):
    # Asleep for short times: another thread may be given the signal, which does not end a long one.
    # What a shell starts in the background begins with SIGINT ignored.
    program = f"""
        import os, signal, time
        from imbalance_jax import cli
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def main():
            os.kill(os.getpid(), signal.{sent})
            for _ in range(1000):
                time.sleep(0.01)
        cli.run_command(main)
    """
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (cli.PREEMPTED, "")
    assert done.stderr == "Interrupted. Start again to go on.\n"


def test_an_interrupt_that_comes_back_as_another_error_is_an_interrupt_and_the_last_one():
    # As a module in C++ makes an ImportError without a cause of an interrupt within its import.
    program = """
        import atexit, os, signal, time
        from imbalance_jax import cli
        def main():
            atexit.register(os.kill, os.getpid(), signal.SIGTERM)
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            except KeyboardInterrupt:
                pass
            raise ImportError("Encountered an error while initializing the extension.")
        cli.run_command(main)
    """
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (cli.PREEMPTED, "")
    assert done.stderr == "Interrupted. Start again to go on.\n"


def test_memory_that_a_device_lacks_is_a_line_and_another_of_xlas_errors_a_traceback():
    program = """
        from jax.errors import JaxRuntimeError
        from imbalance_jax import cli
        def main():
            raise JaxRuntimeError("{}")
        cli.run_command(main)
    """

    def run(error: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", textwrap.dedent(program).format(error)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    short = run("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    assert short.returncode == cli.REFUSED
    assert short.stderr.startswith("error: Out of memory: RESOURCE_EXHAUSTED: Out of memory alloca")
    assert "config.batch_size" in short.stderr and len(short.stderr.splitlines()) == 1
    assert "Traceback" in run("INTERNAL: a fault.").stderr


def test_an_interrupt_of_a_compilation_ends_with_the_code_of_one():
    """XLA crashes where Python takes its modules down after that."""
    program = """
        import os, signal, threading, time
        import jax, jax.numpy as jnp
        from imbalance_jax import cli
        def work(x):
            for n in range(1500):
                x = jnp.sin(x @ x) * n
            return x
        def main():
            lowered = jax.jit(jax.grad(lambda x: work(x).sum())).lower(jnp.ones((8, 8)))
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            lowered.compile()
            time.sleep(10)
        cli.run_command(main)
    """
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        cli.PREEMPTED,
        "Interrupted. Start again to go on.\n",
    )


def test_an_interrupt_waits_for_the_end_of_an_import(tmp_path):
    (tmp_path / "long_import.py").write_text("import time\ntime.sleep(0.5)\nprint('imported')\n")
    program = """
        import os, signal, threading, time
        from imbalance_jax import cli
        def main():
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            import long_import
            time.sleep(10)
        cli.run_command(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (cli.PREEMPTED, "imported\n")
    assert done.stderr == "Interrupted. Start again to go on.\n"


@pytest.mark.parametrize("stages_", [(), FRACTIONS, STEPS], ids=["none", "fractions", "steps"])
def test_overrides_without_a_config_change_that_of_the_run_in_the_workdir(
    tmp_path, monkeypatch, stages_
):
    started = resolved(mixture__stages=stages_, steps=1000)
    runs.RunDirectory(tmp_path / "run").claim(started)
    argv = ["main", f"--workdir={tmp_path / 'run'}", "--config.steps=2000", "--noconfig.model.tied"]
    monkeypatch.setattr("sys.argv", argv)
    values = parse_flags(*argv[1:])
    # More steps leave the stages where they were.
    expected = resolved(mixture__stages=STEPS if stages_ else (), steps=2000)
    assert config_lib.resolve_config(values.config) == expected
    assert sys.argv == argv  # what "To go on" repeats


@pytest.mark.parametrize("workdir", [[], ["--workdir=no/run"]])
def test_overrides_of_no_config_at_all_are_refused(capsys, monkeypatch, workdir):
    monkeypatch.setattr(command_line, "_list_config_flags", lambda: ["config"])
    with pytest.raises(SystemExit):
        command_line.insert_run_config(["main", *workdir, "--config.steps=5"])
    assert (
        "--config.steps changes a field of a config, and there is none" in capsys.readouterr().err
    )
    assert command_line.insert_run_config(["main", *workdir]) == ["main", *workdir]
    whole = ["main", *workdir, f"--config={REFERENCE}", "--config.steps=5"]
    assert command_line.insert_run_config(whole) == whole


def test_help_shows_every_flag_of_the_command():
    code = (
        "from absl import flags; from imbalance_jax import cli\n"
        "cli.define_config_flag(); cli.define_compute_flags()\n"
        "print(flags.FLAGS.main_module_help())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    for flag in ("--config", "--accumulate", "--remat"):
        assert f"\n  {flag}: " in done.stdout, done.stderr
