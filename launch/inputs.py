"""Checks of the text, the tokenizers and the first weights that jobs read.

Where a job does not have the files that its text is made of, it opens the prepared text in
data_dir. A plan whose jobs could not open their inputs is refused before machines are paid for. A
note names each input that cannot be checked from this machine.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imbalance_jax.config import Config, ParallelConfig, SourceConfig, costs, list_pair_sets
from imbalance_jax.data import minimal_pairs, parallel, prepare, prepared
from imbalance_jax.data.text import own_files, patterns
from imbalance_jax.runs import storage
from imbalance_jax.study import grid
from launch.plan import Plan
from launch.profile import Profile


@dataclasses.dataclass(frozen=True)
class FoundText:
    """The prepared text of a source, as far as this machine can see it."""

    place: str  # where it is, or where it will come from
    tokens: float = 0  # to train on; 0 if nothing that was looked at says how many
    fingerprint: str = ""  # of the text that jobs will open; "" if unknown


@dataclasses.dataclass(frozen=True)
class SourceReport:
    """A text that jobs of a plan train on, and the run that goes through it the most times."""

    name: str
    found: FoundText
    run: str
    tokens: float  # that the run takes of it
    epochs: float  # that these make; 0 if the text has no end, or its length is unknown
    exhaustion: str  # config.mixture.on_exhaustion of the run

    def to_dict(self) -> dict[str, Any]:
        """Returns what `describe` says, with None for what is unknown."""
        known = 0 < self.found.tokens < math.inf
        return {
            "source": self.name,
            "place": self.found.place,
            "fingerprint": self.found.fingerprint or None,
            "endless": self.found.tokens == math.inf,
            "tokens": int(self.found.tokens) if known else None,
            "run": self.run,
            "run_tokens": self.tokens,
            "epochs": self.epochs or None,
            "on_exhaustion": self.exhaustion,
        }

    def describe(self) -> str:
        place = f"  {self.name}: {self.found.place}"
        taken = f"{self.run} takes {self.tokens:,.0f}"
        if not self.epochs:
            unknown = "of unknown length until it is prepared here"
            length = "without end" if self.found.tokens else unknown
            return f"{place}, {length}; {taken} tokens"
        line = f"{place}, {self.found.tokens:,.0f} tokens; {taken}, {self.epochs:.3g} epochs"
        ends = {"stop": "the run ends after one", "error": "the run is refused"}
        if self.epochs > 1 and self.exhaustion in ends:
            line += f", but config.mixture.on_exhaustion={self.exhaustion}: {ends[self.exhaustion]}"
        return line


@dataclasses.dataclass(frozen=True)
class InputReport:
    """The inputs of a plan's jobs, as far as this machine can see them."""

    notes: tuple[str, ...]  # lines on inputs that cannot be seen from here
    texts: Mapping[str, Mapping[str, str]]  # run -> source -> fingerprint of the text that it opens
    sources: tuple[SourceReport, ...] = ()  # one for each different text


def check_inputs(
    study: grid.StudyConfig,
    plan: Plan,
    profile: Profile,
    *,
    recorded: Mapping[str, Mapping[str, str]],
    reach: bool,
) -> InputReport:
    """Returns a report on the inputs of a plan's jobs.

    Args:
      study: the plan's.
      plan: with the jobs.
      profile: where they run.
      recorded: run -> source -> fingerprint, as the study's directory has them.
      reach: whether to look into stores, which takes a network and an account.

    Raises:
      ValueError: a job could not open an input; the error names its field and what to do.
    """
    checker = _PreparedTextChecker(plan.engine, reach)
    texts = {}
    sources: dict[tuple[str, FoundText], SourceReport] = {}
    for run in dict.fromkeys(member for job in plan.jobs for member in job.members):
        config = study.runs[run].config
        data_dir = profile.data_dir or config.data_dir
        try:
            found = checker.check_text(config, data_dir, recorded.get(run, {}))
            _check_init_from_path(config, plan, reach)
            _check_pair_files(config, plan)
        except ValueError as error:
            raise ValueError(f"Run {run}: {error}") from error
        texts[run] = {name: text.fingerprint for name, text in found.items() if text.fingerprint}
        for source in _list_source_uses(run, config, found):
            key = source.name, source.found
            before = sources.get(key)
            if not before or (source.epochs, source.tokens) > (before.epochs, before.tokens):
                sources[key] = source
    notes = [*checker.notes(), *_note_environment(plan), *_note_mirrors(study, plan, profile)]
    known = {run: text for run, text in texts.items() if text}
    return InputReport(tuple(notes), known, tuple(sources.values()))


def _list_source_uses(
    run: str, config: Config, found: Mapping[str, FoundText]
) -> Iterator[SourceReport]:
    """Yields how often a run goes through each of its texts."""
    taken = costs.count_language_tokens(config)
    for name, text in found.items():
        tokens = sum(taken[tag] for tag in config.tags if config.source_of(tag) == name)
        # A run trains on whole windows of the text, or on a share of them.
        L = config.model.L
        known = 0 < text.tokens < math.inf
        windows = int((text.tokens - 1) // L * config.mixture.text_share) if known else 0
        epochs = tokens / (windows * L) if windows else 0.0
        yield SourceReport(name, text, run, tokens, epochs, config.mixture.on_exhaustion)


class _PreparedTextChecker:
    """Looks for the prepared text of each run, once for each text."""

    def __init__(self, engine: str, reach: bool) -> None:
        self._engine, self._reach = engine, reach
        self._found: dict[str, FoundText] = {}  # by what stands for a text
        self._unseen: dict[str, dict[str, None]] = {}  # data_dir -> fields whose text it must have
        # data_dir -> fields of sources that jobs may prepare themselves.
        self._made_by_jobs: dict[str, dict[str, None]] = {}
        self._docstrings: dict[str, dict[str, None]] = {}  # as _made_by_jobs

    def check_text(
        self, config: Config, data_dir: str, recorded: Mapping[str, str]
    ) -> dict[str, FoundText]:
        """Returns the text of each source of a run that has one.

        Raises:
          ValueError: a source or a set of parallel texts has files that jobs do not have, and
            data_dir has no prepared form of it.
        """
        found: dict[str, FoundText] = {}
        used = prepare.list_language_sources(config)
        joint = prepared.make_joint_statement(config)
        for name in used:
            source = config.sources[name]
            if source.kind == "synthetic":
                found[name] = FoundText("made up", source.synthetic.tokens or math.inf)
                continue
            key = repr((data_dir, name, source, joint, recorded.get(name)))
            if key not in self._found:
                self._found[key] = self._check_source(
                    name, config, data_dir, joint, recorded.get(name, "")
                )
            found[name] = self._found[key]
        for name, texts in list_pair_sets(config.parallel).items():
            if texts.path and set(texts.sources) <= set(used):
                self._check_set(name, texts, config, data_dir, found)
        return found

    def _check_source(
        self,
        name: str,
        config: Config,
        data_dir: str,
        joint: Mapping[str, object] | None,
        recorded: str,
    ) -> FoundText:
        source, field = config.sources[name], f"config.sources.{name}"
        tokenizer_path = prepared.resolve_tokenizer_path(source, joint)
        paths = [*_list_raw_paths(source), *([tokenizer_path] if tokenizer_path else [])]
        hidden = [path for path in paths if not _is_visible_to_jobs(self._engine, path)]
        missing = (
            hidden
            or not prepared.is_text_here(name, source)
            or not prepared.is_file_here(tokenizer_path)
        )
        if not self._can_look(data_dir):
            if missing and source.kind != "tfds":
                self._unseen.setdefault(data_dir, {})[field] = None
            else:
                self._note_made_by_jobs(field, source, data_dir)
            return _find_copy_here(name, config, joint, data_dir, recorded)
        wanted = prepared.make_source_criteria(name, source, config.data_dir, joint)
        if recorded:
            wanted = dataclasses.replace(wanted, fingerprint=recorded)
        matching = prepared.find_matching_directories(name, data_dir, wanted)
        if not matching and source.kind == "docstrings" and not recorded:
            # Another machine with other packages may have prepared the text that jobs are to read.
            matching = prepared.find_matching_directories(
                name, data_dir, dataclasses.replace(wanted, text="")
            )
        chosen = prepared.choose_prepared_directory(field, matching, data_dir)
        if chosen:
            return FoundText(str(chosen.path), _count_tokens(chosen), chosen.fingerprint)
        if missing and source.kind != "tfds":
            raise ValueError(_describe_missing_input(field, name, config, data_dir, hidden))
        self._note_made_by_jobs(field, source, data_dir)
        return FoundText(f"not in {data_dir} yet (a job prepares it when it starts)")

    def _note_made_by_jobs(self, field: str, source: SourceConfig, data_dir: str) -> None:
        if self._engine != "local":
            of_kind = self._docstrings if source.kind == "docstrings" else self._made_by_jobs
            of_kind.setdefault(data_dir, {})[field] = None

    def _check_set(
        self,
        name: str,
        texts: ParallelConfig,
        config: Config,
        data_dir: str,
        found: Mapping[str, FoundText],
    ) -> None:
        field = f"config.parallel.{name}"
        hidden = [
            path
            for path in patterns.find_paths(texts.pattern)
            if not _is_visible_to_jobs(self._engine, path)
        ]
        if not hidden and parallel.are_files_here(texts):
            return
        if not self._can_look(data_dir):
            self._unseen.setdefault(data_dir, {})[field] = None
            return
        known = [
            (found[source].fingerprint or None) if source in found else None
            for source in texts.sources
        ]
        for set_ in parallel.list_sets(name, data_dir):
            if parallel.matches_config(set_, texts) and set_.about["L"] == config.model.L:
                made_of = set_.made_of["sources"]
                if all(ours in (None, of_set) for ours, of_set in zip(known, made_of, strict=True)):
                    return
        raise ValueError(
            _describe_missing_input(field, f"parallel-{name}", config, data_dir, hidden)
        )

    def _can_look(self, data_dir: str) -> bool:
        if storage.is_store(data_dir):
            return self._reach
        return self._engine == "local" or (self._engine == "slurm" and os.path.isdir(data_dir))

    def notes(self) -> list[str]:
        lines = []
        for data_dir, fields in self._unseen.items():
            why = (
                "is looked at by `submit --execute` only"
                if storage.is_store(data_dir)
                else "cannot be looked at from here"
            )
            lines.append(
                f"{data_dir} {why}. It must hold the prepared text of {', '.join(fields)}, because "
                "jobs do not have the files. Run python -m imbalance_jax.data.prepare here, and "
                f"copy its data_dir to {data_dir}."
            )
        for data_dir, fields in self._made_by_jobs.items():
            lines.append(
                f"If {data_dir} does not hold {', '.join(fields)} prepared, each job prepares the "
                "text when it starts."
            )
        for data_dir, fields in self._docstrings.items():
            lines.append(
                f"If {data_dir} does not hold {', '.join(fields)} prepared, jobs train on the "
                "docstrings of the Python packages of their own machines, which differ between "
                "machines. Run python -m imbalance_jax.data.prepare here, and copy its data_dir "
                f"to {data_dir}."
            )
        return lines


def _find_copy_here(
    name: str,
    config: Config,
    joint: Mapping[str, object] | None,
    data_dir: str,
    recorded: str,
) -> FoundText:
    """Returns a text that jobs read from where this machine cannot look.

    Its length is that of the copy in the data_dir of the config, if this machine has prepared one.
    The text is not read for this, so a copy of an earlier version of the same files counts too.
    """
    wanted = prepared.SourceCriteria(
        prepared.make_source_statement(config.sources[name], joint), fingerprint=recorded
    )
    copies = (
        []
        if storage.is_store(config.data_dir)
        else prepared.find_matching_directories(name, config.data_dir, wanted)
    )
    lengths = {_count_tokens(copy) for copy in copies}
    if len(lengths) != 1:
        return FoundText(f"{data_dir} (not looked at)", 0, recorded)
    place = f"{data_dir} (not looked at; this is the length of {copies[0].path})"
    return FoundText(place, lengths.pop(), recorded)


def _count_tokens(directory: prepared.PreparedDirectory) -> int:
    return directory.about.get("tokens", {}).get("train", 0)


def _list_raw_paths(source: SourceConfig) -> list[str]:
    """Returns the paths of this machine that have a source's raw text."""
    if source.kind == "files":
        return own_files.list_source_patterns(source)
    if source.kind == "tfds":
        return [source.dataset_dir or "~"]
    return []


def _is_visible_to_jobs(engine: str, path: str) -> bool:
    """Whether a job finds a path where this machine has it."""
    if storage.is_store(path) or engine == "local":
        return True
    # Jobs of SLURM run in the study's directory, on nodes that share absolute paths.
    return engine == "slurm" and os.path.isabs(os.path.expanduser(path))


def _describe_missing_input(
    field: str, name: str, config: Config, data_dir: str, hidden: Sequence[str]
) -> str:
    what = f"is made of {', '.join(hidden)}, which jobs do not have" if hidden else "is not here"
    copy = (
        f", and copy {config.data_dir} to {data_dir}"
        if storage.make_absolute_path(config.data_dir) != storage.make_absolute_path(data_dir)
        else ""
    )
    return (
        f"{field} {what}, and {data_dir} has no {name}-* that was prepared of it. Run python -m "
        f"imbalance_jax.data.prepare with the study as its --config where the text is{copy}."
    )


def _check_init_from_path(config: Config, plan: Plan, reach: bool) -> None:
    """Raises ValueError if a job would not find the run that its run begins with."""
    path = re.sub(r"@\d+$", "", config.init_from)
    if not path:
        return
    field = f"config.init_from={config.init_from!r}"
    if not _is_visible_to_jobs(plan.engine, path):
        other = (
            "is taken from a job's directory, the study's. Write the whole path"
            if plan.engine == "slurm"
            else f"is on this machine, and jobs of the engine {plan.engine} run on others. Copy "
            "that run to gs://BUCKET/RUN, and name it so"
        )
        raise ValueError(f"{field} {other}.")
    if storage.is_store(path) and not reach:
        return
    inside = storage.make_absolute_path(path).startswith(
        f"{storage.make_absolute_path(plan.workdir)}/"
    )
    # A run of the same study may still be trained before.
    if not inside and not (storage.parse_path(path) / "config.json").exists():
        raise ValueError(f"{field}: {path} holds no run. Correct the path.")


def _check_pair_files(config: Config, plan: Plan) -> None:
    """Raises ValueError if a job would not find the minimal pairs that its run scores."""
    value = config.evaluation.minimal_pairs
    if value in ("", minimal_pairs.OWN):
        return
    if hidden := [p for p in patterns.find_paths(value) if not _is_visible_to_jobs(plan.engine, p)]:
        raise ValueError(
            f"{minimal_pairs.FIELD}={value!r}: jobs do not have {hidden[0]}. Leave it empty, and "
            "score the finished runs with python -m imbalance_jax.evaluate --minimal_pairs."
        )
    minimal_pairs.find_pair_files(config, value, minimal_pairs.FIELD)


def _note_mirrors(study: grid.StudyConfig, plan: Plan, profile: Profile) -> list[str]:
    """Returns a line if runs report to Weights & Biases and jobs do not get its key."""
    members = [member for job in plan.jobs for member in job.members]
    mirrored = any("wandb" in study.runs[member].config.mirrors for member in members)
    if not mirrored or getattr(profile.settings, "secrets", True):
        return []
    return [
        f"config.mirrors has wandb, and {plan.engine}.secrets of the profile names no secret: jobs "
        "have no WANDB_API_KEY."
    ]


def _note_environment(plan: Plan) -> list[str]:
    """Returns lines on variables of this shell that change what runs do but do not reach jobs."""
    name = "IMBALANCE_JAX_CACHE"
    if plan.engine == "local" or name in plan.env or name not in os.environ:
        return []
    return [f"{name} of this shell does not reach jobs. Give --env={name}=DIR where they need it."]
