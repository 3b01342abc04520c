"""Garbage on the command line is refused by one line, and nothing is made."""

from faults.ledger import Case, Fault, Ledger, judge
from made_runs import make_run

COMMANDS = {
    "imbalance_jax.main": (),
    "imbalance_jax.evaluate": (),
    "imbalance_jax.generate": (),
    "imbalance_jax.report": (),
    "imbalance_jax.config": (),
    "imbalance_jax.data.inspect": (),
    "imbalance_jax.data.prepare": (),
    "imbalance_jax.study": ("plan", "run", "status", "collect", "check", "", "pln"),
    "launch": ("plan", "preflight", "render", "submit", "status", "logs", "", "lgos"),
}
# All flags of all commands: a command is given those of others, too.
FLAGS = (
    *("config", "workdir", "dry_run", "extend", "export", "devices", "accumulate", "remat"),
    *("study", "members", "data_dir", "mesh", "step", "language", "prompt", "tokens", "samples"),
    *("temperature", "seed", "any_language", "pairs", "languages", "losses", "overwrite", "rows"),
    *("diff", "check", "totals", "reference", "jobs", "pack", "only", "measure", "run", "field"),
    *("json", "profile", "out", "runs", "format", "image", "spot", "env", "env_file"),
    *("config.steps", "config.seed", "config.model.N", "config.nothing", "nothing", ""),
)
VALUES = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1e9",
        "nan",
        "99999999999999999999",
        "true",
        "no/such/place",
        "/proc",
        ".",
    ),
    *("/dev/null", "RUN", "RUN", "RUN", "RUN@5", "RUN,RUN", "\u00e9\u2028", "a=b,c", "{", "[,]"),
    *("90_10", "studies/ratio", "90_10:scale=nothing", "gs://", "s3://bucket/a", "file:///tmp"),
    *("$(true)", "`true`", "'", '"', "x" * 5000, "\udcff", "%s", "..", "-", "--", "*"),
)
# What trains or asks a machine elsewhere where it is taken for what it says.
_TRAINING = ("studies/ratio", "90_10")


def test_command_lines(ledger: Ledger, light_server, tmp_path) -> None:
    make_run(tmp_path / "made")
    light_only = {"imbalance_jax.report", "imbalance_jax.config", "imbalance_jax.data.inspect"}

    def check(case: Case) -> str:
        modules = sorted(COMMANDS)
        module = case.random.choice(modules)
        names = [name for name in (case.random.choice(COMMANDS[module] or ("",)),) if name]
        folder = tmp_path / str(case.number)
        folder.mkdir()
        values = VALUES
        if module not in light_only and names[:1] != ["plan"]:
            values = tuple(value for value in VALUES if not value.startswith(_TRAINING))
        args = [*names]
        for _ in range(case.random.randint(0, 3)):
            flag = case.random.choice(FLAGS)
            value = case.random.choice(values).replace("RUN", f"{tmp_path}/made")
            dashes = case.random.choice(("--", "--", "-", "--no", ""))
            args.append(f"{dashes}{flag}={value}" if case.random.random() < 0.9 else dashes + flag)
        about = f"{module} {args!r}"
        ended = light_server.run(module, args, cwd=folder)
        codes = (1, 2) if module.endswith("inspect") else (2,)  # 1 is a difference of two runs
        outcome = judge(ended, [], codes=codes, about=about)
        made = [str(path.relative_to(folder)) for path in folder.rglob("*")]
        if outcome == "refused" and made:
            raise Fault("made by a refusal", f"{about}: {made}")
        return outcome

    ledger.run(check, short=8, full=700)
