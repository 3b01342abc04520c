"""Every field of a run, what it may be, and what follows from it without any text."""

from imbalance_jax.config.schema import (
    REMAT as REMAT,
)
from imbalance_jax.config.schema import (
    SCALES as SCALES,
)
from imbalance_jax.config.schema import (
    SPECIALS as SPECIALS,
)
from imbalance_jax.config.schema import (
    AlignmentConfig as AlignmentConfig,
)
from imbalance_jax.config.schema import (
    CheckpointConfig as CheckpointConfig,
)
from imbalance_jax.config.schema import (
    Config as Config,
)
from imbalance_jax.config.schema import (
    EvaluationConfig as EvaluationConfig,
)
from imbalance_jax.config.schema import (
    LanguageConfig as LanguageConfig,
)
from imbalance_jax.config.schema import (
    MeshConfig as MeshConfig,
)
from imbalance_jax.config.schema import (
    MixtureConfig as MixtureConfig,
)
from imbalance_jax.config.schema import (
    ModelConfig as ModelConfig,
)
from imbalance_jax.config.schema import (
    OptimizerConfig as OptimizerConfig,
)
from imbalance_jax.config.schema import (
    ParallelConfig as ParallelConfig,
)
from imbalance_jax.config.schema import (
    Schedule as Schedule,
)
from imbalance_jax.config.schema import (
    SourceConfig as SourceConfig,
)
from imbalance_jax.config.schema import (
    SyntheticConfig as SyntheticConfig,
)
from imbalance_jax.config.schema import (
    TokenizerConfig as TokenizerConfig,
)
from imbalance_jax.config.schema import (
    VocabularyConfig as VocabularyConfig,
)
from imbalance_jax.config.schema import (
    build_config_dict as build_config_dict,
)
from imbalance_jax.config.schema import (
    build_run_identity as build_run_identity,
)
from imbalance_jax.config.schema import (
    cloned as cloned,
)
from imbalance_jax.config.schema import (
    compute_sequence_totals as compute_sequence_totals,
)
from imbalance_jax.config.schema import (
    continued as continued,
)
from imbalance_jax.config.schema import (
    declared as declared,
)
from imbalance_jax.config.schema import (
    default as default,
)
from imbalance_jax.config.schema import (
    describe_unknown_field as describe_unknown_field,
)
from imbalance_jax.config.schema import (
    equal_stages as equal_stages,
)
from imbalance_jax.config.schema import (
    find_differences as find_differences,
)
from imbalance_jax.config.schema import (
    hash_plain_values as hash_plain_values,
)
from imbalance_jax.config.schema import (
    joining_stages as joining_stages,
)
from imbalance_jax.config.schema import (
    list_stages as list_stages,
)
from imbalance_jax.config.schema import (
    make_natural_sort_key as make_natural_sort_key,
)
from imbalance_jax.config.schema import (
    parse_arg as parse_arg,
)
from imbalance_jax.config.schema import (
    parse_dataclass as parse_dataclass,
)
from imbalance_jax.config.schema import (
    parse_ratio as parse_ratio,
)
from imbalance_jax.config.schema import (
    reduce_ratio as reduce_ratio,
)
from imbalance_jax.config.schema import (
    resolve_config as resolve_config,
)
from imbalance_jax.config.schema import (
    resolve_stage_steps as resolve_stage_steps,
)
from imbalance_jax.config.schema import (
    scaled as scaled,
)
from imbalance_jax.config.schema import (
    spoken as spoken,
)
from imbalance_jax.config.schema import (
    to_dict as to_dict,
)
