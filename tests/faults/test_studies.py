"""A damaged file of a study is named, or its table is that of the undamaged study."""

import pathlib
import shutil

from faults.damage import KINDS, damage_file, hash_files, is_valid_text
from faults.ledger import Case, Fault, Ledger, judge
from helpers import ROOT

KEPT = ROOT / "tests" / "earlier_runs" / "studies" / "toys"  # two of its three runs are done
SUBCOMMANDS = ("status", "collect")
# What is written anew from the rest.
WRITTEN = ("table.csv", "table.parquet")


def read_values(study: pathlib.Path, subcommand: str, said: str) -> str:
    return said if subcommand == "status" else (study / "table.csv").read_text()


def test_damaged_studies(ledger: Ledger, light_server, tmp_path) -> None:
    study = tmp_path / "toys"
    files = sorted(file.relative_to(KEPT) for file in KEPT.rglob("*") if file.is_file())
    contents = {file: (KEPT / file).read_bytes() for file in files}

    def run(subcommand: str):
        return light_server.run("imbalance_jax.study", [subcommand, f"--workdir={study}"])

    def reset() -> None:
        shutil.rmtree(study, ignore_errors=True)
        shutil.copytree(KEPT, study)

    expected = {}
    for subcommand in SUBCOMMANDS if ledger.full else SUBCOMMANDS[:1]:
        reset()
        ended = run(subcommand)
        assert ended.code == 0, ended
        expected[subcommand] = read_values(study, subcommand, ended.out)

    def check(case: Case) -> str:
        reset()
        file = files[case.number % len(files)] if ledger.full else case.random.choice(files)
        kind = case.random.choice(KINDS)
        alike = [contents[other] for other in files if other.suffix == file.suffix]
        subcommand = case.random.choice(sorted(expected))
        done = damage_file(study / file, kind, alike, case.random)
        about = f"{file} {done}, study {subcommand}"
        before = hash_files(study)
        ended = run(subcommand)
        names = [file.name, file.parent.name] if len(file.parts) > 1 else [file.name]
        outcome = judge(ended, [*names, "config."], codes=(1, 2), about=about)
        if outcome == "refused":
            harmed = {name for name, digest in hash_files(study).items() if before[name] != digest}
            if harmed:
                raise Fault("harmed by a refusal", f"{about}: {harmed}")
            return "refused"
        if read_values(study, subcommand, ended.out) == expected[subcommand]:
            return "same values"
        if kind in ("flip", "swap") and is_valid_text(study / file):
            return "shows the values of an edited file"
        if kind == "delete":
            return "shows what is absent"
        if (
            kind in ("truncate", "empty")
            and file.name == "metrics.jsonl"
            and "uneven" in file.parts[1]
        ):
            return "shows the run as a kill would have left it"
        if file.name in ended.out + ended.err:
            return "said, and left out"
        raise Fault("silent difference", f"{about} -> {ended.out[-500:]}")

    ledger.run(check, short=1, full=250)
