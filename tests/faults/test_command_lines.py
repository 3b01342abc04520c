"""Garbage on the command line is refused by one line, and nothing is made."""

from faults.ledger import Case, Fault, Ledger, judge
from made_runs import make_run

SUBCOMMANDS = {
    "imbalance_jax.study": ("plan", "run", "status", "collect", "propose", "check", "", "pln"),
    "launch": ("plan", "preflight", "render", "submit", "status", "logs", "", "lgos"),
}
FLAGS = {
    "imbalance_jax.main": "config workdir dry_run extend export devices accumulate remat study "
    "members data_dir mesh config.steps config.seed config.model.N",
    "imbalance_jax.evaluate": "workdir step pairs languages losses overwrite data_dir",
    "imbalance_jax.generate": "workdir step language prompt tokens samples temperature seed",
    "imbalance_jax.report": "workdir reference",
    "imbalance_jax.config": "config workdir run field json config.steps config.mixture.ratio.en1",
    "imbalance_jax.data.inspect": "config workdir step rows diff check totals",
    "imbalance_jax.data.prepare": "config study config.data_dir",
    "imbalance_jax.study": "config workdir jobs pack only measure",
    "launch": "study workdir runs format profile pack pack_size env spot image out only",
}
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
        module = case.random.choice(sorted(FLAGS))
        names = [case.random.choice(SUBCOMMANDS[module])] if module in SUBCOMMANDS else []
        folder = tmp_path / str(case.number)
        folder.mkdir()
        values = VALUES
        if module not in light_only and names[:1] != ["plan"]:
            values = tuple(value for value in VALUES if not value.startswith(_TRAINING))
        args = [*names]
        if "workdir" in FLAGS[module].split() and case.random.random() < 0.4:
            args.append(f"--workdir={tmp_path}/made")
        for _ in range(case.random.randint(0, 3)):
            # Most are flags of the command, and some of another one.
            own = module if case.random.random() < 0.85 else case.random.choice(sorted(FLAGS))
            flag = case.random.choice([*FLAGS[own].split(), "nothing"])
            value = case.random.choice(values).replace("RUN", f"{tmp_path}/made")
            dashes = case.random.choice(("--", "--", "--", "--", "-", "--no", ""))
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
