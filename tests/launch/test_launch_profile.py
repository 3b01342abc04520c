"""A profile is read whole or refused by the name of its file and field."""

import dataclasses
import pathlib
import re
import tomllib

import pytest
from helpers import ROOT
from made_plans import PROFILES

from launch import profile, profile_page

BY_NAME = {path.stem: path for path in PROFILES}


def changed(tmp_path: pathlib.Path, name: str, old: str, new: str) -> pathlib.Path:
    text = BY_NAME[name].read_text()
    assert old in text
    path = tmp_path / f"{name}.toml"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_of_the_package_is_read(path):
    assert profile.read_profile(str(path)).name == path.stem


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("gke-v6e", 'queue = "tpu-queue"\n', "", r"gke-v6e\.toml: gke\.queue is missing"),
        ("gke-v6e", "queue =", "queu =", r"gke has no field 'queu'\. Did you mean gke\.queue"),
        ("gke-v6e", '"tpu-queue"', "3", r"gke\.queue=3 must be of type str"),
        ("gke-v6e", "@sha256", ":v1@sha256x", r"gke\.image=.* must name its digest"),
        ("gke-v6e", '"4x4"', '"3x5"', r"gke-v6e\.toml: hardware\.topology='3x5' does not exist"),
        ("gke-v6e", "[hardware]", "[hardwares]", r"profile has no field 'hardwares'"),
        ("gke-v6e", "[gke]", "[sky]", r"\[sky\] is not read, as engine='gke'"),
        ("gke-v6e", '"gke"', '"gcp"', r"engine='gcp' is not one of gke, slurm"),
        ("gke-v6e", "[hardware]", "[mesh]\nfdsp = 4\n[hardware]", r"Did you mean mesh\.fsdp"),
        ("gke-v6e", '"4x4"', '"4x4', r"gke-v6e\.toml: .*line 7"),
        (
            "slurm-gpu",
            "[slurm]",
            '[hardware]\nfamily = "v6e"\n[slurm]',
            r"TPUs are reached with the engines gke, sky or tpuvm",
        ),
        ("slurm-gpu", "[slurm]", '[slurm]\ngpu_type = "tpu-v6e"', r"TPUs are not on SLURM"),
        ("slurm-gpu", "[slurm]", "[slurm]\ntasks_per_node = 2", r"Set slurm\.tasks_per_node=1"),
        ("slurm-gpu", "[slurm]", '[slurm]\noptions = ["-x"]', r"Write --NAME=VALUE"),
        (
            "sky-v6e-spot",
            "[hardware]",
            "[hardware]\nnum_slices = 2",
            r"SkyPilot cannot join slices\. Use the engine gke, or tpuvm",
        ),
        ("slurm-gpu", '"24:00:00"', '"2 days"', r"slurm\.time='2 days' is no time limit.*2-0"),
        ("slurm-gpu", '"24:00:00"', '"1-"', r"slurm\.time='1-' is no time limit"),
        ("sky-v6e-spot", '"2x4"', '"9x9"', r"does not exist for v6e"),
        (
            "sky-v6e-spot",
            "spot = true",
            'strategy = "EAGER"',
            r"sky\.strategy='EAGER' is not one of 'EAGER_NEXT",
        ),
        ("tpuvm-v5e", "gs://my-bucket/code", "gs:///code", r"tpuvm\.code=gs:///code.* no bucket"),
        ("tpuvm-v5e", '"gs://my-bucket/code', '"/my-bucket/code', r"must be a \.tar\.gz on gs"),
        ("tpuvm-v5e", '"v5e"\ntopology = "4x4"', '"h100"\ntopology = "1x8"', r"gke, slurm or sky"),
        ("local", "processes = 2", "processes = 0", r"local\.processes=0 must be 1 or more"),
    ],
)
def test_a_wrong_profile_is_refused_by_its_file_and_field(tmp_path, name, old, new, message):
    with pytest.raises(ValueError, match=message) as error:
        profile.read_profile(str(changed(tmp_path, name, old, new)))
    assert str(tmp_path / f"{name}.toml") in str(error.value)


@pytest.mark.parametrize(
    "time", ["90", "90:00", "24:00:00", "2-0", "2-12:30", "2-0:0:0", "UNLIMITED"]
)
def test_the_time_limits_of_sbatch_are_taken(tmp_path, time):
    """The forms that man sbatch lists."""
    path = changed(tmp_path, "slurm-gpu", "24:00:00", time)
    assert profile.read_profile(str(path)).settings.time == time


def test_a_profile_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"no such file\. \S*launch/profiles has gke-h100\.toml, "):
        profile.read_profile(str(tmp_path / "slurm.toml"))
    changed(tmp_path, "local", "2", "3")
    with pytest.raises(ValueError, match=r"no such file\. \S+ has local\.toml\.$"):
        profile.read_profile(str(tmp_path / "slurm.toml"))


def test_names_of_the_examples_that_are_left_are_said():
    where = profile.read_profile(str(BY_NAME["gke-v6e"]))
    said = profile.describe_placeholders(where, "gs://my-bucket/studies/ratio")
    assert said.startswith(
        "An example's name is still in --workdir, data_dir, gke.project, gke.cluster, gke.image."
    )
    where = profile.read_profile(str(BY_NAME["slurm-gpu"]))
    assert profile.describe_placeholders(where, "/shared/my-buckets") == ""


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in ("local", "slurm-gpu")])
def test_nothing_is_sent_to_a_place_of_the_examples(tmp_path, name):
    where = profile.read_profile(str(BY_NAME[name]))
    with pytest.raises(ValueError, match=rf"^{name}\.toml: An example's name is still in data_dir"):
        profile.check_placeholders(where, "gs://ours/ratio")
    # A cluster may be called my-cluster: its name is unique within the project only.
    text = re.sub("my-(bucket|project)", r"our-\1", BY_NAME[name].read_text())
    ours = tmp_path / "ours.toml"
    ours.write_text(text)
    if "sha256" in text:
        with pytest.raises(ValueError, match=r"gke\.image\. .*`docker push` prints the digest"):
            profile.check_placeholders(profile.read_profile(str(ours)), "gs://ours/ratio")
    ours.write_text(text.replace("sha256:" + "0" * 64, "sha256:" + "01" * 32))
    profile.check_placeholders(profile.read_profile(str(ours)), "gs://ours/ratio")
    for workdir in ("gs://my-bucket/ratio", "gs://BUCKET/ratio"):
        with pytest.raises(ValueError, match=r"still in --workdir"):
            profile.check_placeholders(profile.read_profile(str(ours)), workdir)


def test_many_chips_on_kubernetes_are_sent_to_gke_in_place_of_sky(tmp_path):
    path = changed(tmp_path, "sky-v6e-spot", '"2x4"', '"4x4"')
    path.write_text(path.read_text().replace('infra = "gcp"', 'infra = "k8s/mine"'))
    with pytest.raises(ValueError, match=r"8 chips at most, and v6e 4x4 has 16\. Use the engine"):
        profile.read_profile(str(path))


def test_slurm_says_itself_how_big_a_job_is():
    slurm = {"nodes": 2, "gpus_per_node": 8, "gpu_type": "h100"}
    size = profile.parse_profile("x", {"engine": "slurm", "slurm": slurm}).size
    assert (size.devices, size.processes) == (16, 2)
    size = profile.parse_profile("x", {"engine": "slurm", "slurm": {"tasks_per_node": 2}}).size
    assert (size.family, size.devices, size.processes) == ("cpu", 2, 2)


def test_the_page_of_a_profiles_fields_is_what_the_dataclasses_say():
    assert (ROOT / "docs/profiles.md").read_text() == profile_page.format_profile_page(), (
        "Run python -m launch.profile_page > docs/profiles.md"
    )
    for table, kind in {"hardware": profile.Hardware, **profile.ENGINES}.items():
        rows = profile_page.list_profile_rows(table)
        declared = {field.name: field for field in dataclasses.fields(kind)}
        assert [row.name for row in rows] == [f"{table}.{name}" for name in declared]
        for row, field in zip(rows, declared.values(), strict=True):
            assert row.meaning[0].isupper() and row.meaning.endswith("."), row.name
            optional = field.default is not dataclasses.MISSING or field.default_factory is dict
            assert (row.default is not dataclasses.MISSING) == optional


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_without_a_required_field_is_refused(path):
    """What the page calls required is what a file must have."""
    values = tomllib.loads(path.read_text())
    engine = values["engine"]
    for table in {"hardware", engine} & values.keys():
        for row in profile_page.list_profile_rows(table):
            name = row.name.rpartition(".")[2]
            if row.default is dataclasses.MISSING:
                less = {k: v for k, v in values[table].items() if k != name}
                with pytest.raises(ValueError, match=rf"{row.name} is missing"):
                    profile.parse_profile("x", {**values, table: less})
