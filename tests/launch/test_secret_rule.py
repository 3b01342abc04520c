"""What looks like a secret is refused, and what only sounds like one is taken."""

import pytest
from made_plans import PROFILES

from launch import plan, profile, secret_rule

# Names of the field: of hubs, clouds, trackers, databases and continuous integration.
SECRETS = [
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_TOKEN",
    "WANDB_API_KEY",
    "WANDB_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SESSION_TOKEN",
    "SSH_PRIVATE_KEY",
    "SSH_KEY",
    "NPM_TOKEN",
    "NODE_AUTH_TOKEN",
    "PYPI_TOKEN",
    "TWINE_PASSWORD",
    "GITHUB_TOKEN",
    "GH_TOKEN",
    "GH_PAT",
    "AZURE_DEVOPS_PAT",
    "GITLAB_TOKEN",
    "CI_JOB_TOKEN",
    "DB_PASS",
    "DB_PASSWORD",
    "DB_PASSWORD_PROD",
    "MYSQL_PWD",
    "MYSQL_PASS",
    "PGPASSWORD",
    "REDIS_PASSWORD",
    "REDIS_AUTH",
    "SMTP_PASS",
    "SSHPASS",
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "OPENAI_KEY",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_KEY",
    "AZURE_CREDENTIALS",
    "GCP_CREDENTIALS",
    "DOCKER_PASSWORD",
    "DOCKER_PASSWD",
    "COMET_API_KEY",
    "NEPTUNE_API_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "SLACK_BOT_TOKEN",
    "DISCORD_TOKEN",
    "KAGGLE_KEY",
    "SECRET",
    "my_secret",
    "TOKEN",
    "PASSWORD",
    "API_KEY",
    "APIKEY",
    "API_KEYS",
    "apiKey",
    "dbPassword",
    "SECRET_KEY",
    "SECRET_KEY_BASE",
    "SECRET_ID",
    "JWT_SECRET",
    "SIGNING_KEY",
    "ENCRYPTION_KEY",
    "MASTER_KEY",
    "DEPLOY_KEY",
    "GPG_PASSPHRASE",
    "VAULT_TOKEN",
    "ACCESS_TOKENS",
    "HF_TOKEN_2",
    "HF_TOKEN_PROD",
    "SENTRY_DSN",
    "SERVICE_ACCOUNT_KEY",
    "BEARER_TOKEN",
]
OTHERS = [
    "NUM_TOKENS",
    "MAX_TOKENS",
    "TOKENS_PER_BATCH",
    "TRAIN_TOKENS",
    "WARMUP_TOKENS",
    "TOKENIZER",
    "TOKENIZER_PATH",
    "TOKENIZERS_PARALLELISM",
    "MAX_TOKEN_LENGTH",
    "TOKEN_COUNT",
    "PAD_TOKEN",
    "EOS_TOKEN",
    "MASK_TOKEN",
    "SPECIAL_TOKENS",
    "HF_TOKEN_PATH",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "MONKEY",
    "KEYBOARD",
    "TURKEY",
    "HOTKEYS",
    "KEYWORDS",
    "NUM_KEYS",
    "ATTENTION_KEYS",
    "SORT_KEY",
    "CACHE_KEY",
    "PRIMARY_KEY",
    "PUBLIC_KEY",
    "PRNG_KEY",
    "RANDOM_KEY",
    "JAX_DEBUG_KEY_REUSE",
    "PASSES",
    "NUM_PASSES",
    "COMPASS",
    "BYPASS",
    "FORWARD_PASS",
    "TWO_PASS",
    "PASS_THROUGH",
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PATTERN",
    "PATCH_SIZE",
    "PWD",
    "OLDPWD",
    "AUTHOR",
    "AUTHORITY",
    "USE_AUTH",
    "GIT_AUTHOR_NAME",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AWS_SHARED_CREDENTIALS_FILE",
    "SSH_PRIVATE_KEY_PATH",
    "SSH_KEY_FILE",
    "PASSWORD_FILE",
    "PGPASSFILE",
    "SECRET_NAME",
    "SSH_AUTH_SOCK",
    "SECRETARY",
    "CREDITS",
    "KUBECONFIG",
    "HOME",
    "USER",
    "TMPDIR",
    "JAX_COMPILATION_CACHE_DIR",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "LIBTPU_INIT_ARGS",
    "NCCL_DEBUG",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "WANDB_PROJECT",
    "WANDB_MODE",
    "PYTHONHASHSEED",
    "OMP_NUM_THREADS",
    "IMBALANCE_JAX_CACHE",
]
# In two parts, so that no scanner of repositories takes them for real ones.
VALUES = {
    "a token of GitHub": "ghp_" + "a1" * 18,
    "a token of Hugging Face": "hf_" + "aB" * 17,
    "a key of AWS": "AKIA" + "ABCDEFGH" * 2,
    "a key of an API": "sk-" + "proj-" + "a1" * 12,
    "a web token": "eyJ" + "a1" * 8 + ".eyJ" + "b2" * 8 + ".c3",
    "a private key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----\nb3Bl",
    "an address with a password": "postgres://me:" + "hush@db.example/x",
    "a value of HF_TOKEN": "--export=ALL,HF_TOKEN=" + "hush",
}
ENGINES = {
    **{"gke": "gke.secrets", "slurm": "--env_file", "sky": "sky.secrets"},
    **{"tpuvm": "tpuvm.secrets", "local": "Export it in the shell"},
}


def test_names_of_secrets_are_told_from_names_that_sound_alike():
    assert min(len(SECRETS), len(OTHERS)) > 60
    assert [name for name in SECRETS if not secret_rule.is_secret_name(name)] == []
    assert [name for name in OTHERS if secret_rule.is_secret_name(name)] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_secret_is_refused_with_how_it_is_handed_over_and_is_not_repeated(engine):
    with pytest.raises(ValueError, match=rf"^HF_TOKEN looks like a secret.*{ENGINES[engine]}"):
        secret_rule.check_env({"HF_TOKEN": "hush"}, engine)
    for kind, value in VALUES.items():
        with pytest.raises(ValueError, match=rf"^MINE holds .* {kind}.*{ENGINES[engine]}") as error:
            secret_rule.check_env({"MINE": f"x={value}"}, engine)
        assert value not in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        *("gs://bucket/path", "https://host:8080/a@b", "gcr.io/me/image@sha256:" + "a" * 64),
        *("--xla_gpu_autotune_level=2", "export HF_TOKEN=$(cat /run/secrets/hf)", "HF_TOKEN=$MINE"),
        *(
            "sort --key=2",
            "NUM_TOKENS=3",
            "hf_hub",
            "sk-learn",
            "trainer@p.iam.gserviceaccount.com",
        ),
    ],
)
def test_other_values_are_taken(value):
    assert secret_rule.describe_secret_value(value) == ""


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("slurm", "options", ["--export=ALL,WANDB_API_KEY=hush"]),
        ("slurm", "container", ["apptainer", "exec", "--env", "DB_PASS=hush", "i.sif"]),
        ("sky", "setup", "export HF_TOKEN=hush\npip install ."),
        ("sky", "setup", "git clone https://me:hush@code.example/ours.git"),
    ],
)
def test_a_secret_in_a_field_of_a_profile_is_refused(table, field, value):
    values: dict = {"engine": table, table: {"infra": "gcp", "setup": ""} if table == "sky" else {}}
    values |= {"hardware": {"family": "h100", "topology": "1x8"}} if table == "sky" else {}
    values[table][field] = value
    with pytest.raises(ValueError, match=rf"^{table}\.{field} holds what looks like") as error:
        profile.parse_profile("mine", values)
    assert "hush" not in str(error.value)


def test_a_secret_in_the_name_of_the_studys_directory_is_refused():
    from made_plans import study

    where = profile.read_profile(str(next(p for p in PROFILES if p.stem == "slurm-gpu")))
    with pytest.raises(ValueError, match=r"^--workdir holds what looks like a token of GitHub"):
        plan.make_plan(study(), where, workdir="/shared/ghp_" + "a1" * 18)
