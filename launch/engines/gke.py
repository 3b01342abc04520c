"""GKE: a JobSet for each job, admitted by Kueue.

A slice is a Job of the JobSet and a host is a pod of it. A pod that ends with a code of
plan.RESTART fails its Job, and the JobSet starts all slices anew; any other code fails the
JobSet for good.
"""

import shlex
from typing import Any

from launch import engines, hardware
from launch.engines import JobRequest, RenderedJobs, dump_yaml, refuse_env_file, refuse_parallel
from launch.plan import RESTART, Job, Plan
from launch.profile import GkeSettings, Profile

_CONTAINER = "run"  # and the replicated job
_PORT = 8476


def render_jobs(plan: Plan, profile: Profile, request: JobRequest) -> RenderedJobs:
    gke: GkeSettings = profile.settings
    refuse_parallel(request, f"the quota of Kueue's queue {gke.queue!r} says how many run.")
    refuse_env_file(request, "Name a Kubernetes Secret in gke.secrets.")
    for character in ',"':
        engines.refuse_character("--out", request.out, character, "kubectl --filename")
    kubectl = ("kubectl", f"--context={gke.context}", f"--namespace={gke.namespace}")
    files = {
        f"{job.name}.yaml": dump_yaml(build_jobset(plan, profile, job)) for job in request.jobs
    }
    commands: list[tuple[str, ...]] = []
    if request.again:  # a JobSet that has ended is not started by applying it again
        names = [job.name for job in request.jobs]
        commands.append((*kubectl, "delete", "jobset", "--ignore-not-found", *names))
    commands.append((*kubectl, "apply", *(f"--filename={request.out}/{name}" for name in files)))
    return RenderedJobs(files, tuple(commands), _format_xpk_note(plan, gke, request.jobs))


def build_jobset(plan: Plan, profile: Profile, job: Job) -> dict[str, Any]:
    """Returns the JobSet of a job."""
    gke: GkeSettings = profile.settings
    labels = {"app.kubernetes.io/name": "imbalance-jax", "imbalance-jax/job": job.name}
    exit_codes = {"containerName": _CONTAINER, "operator": "NotIn", "values": list(RESTART)}
    spec = {
        "parallelism": plan.size.hosts,
        "completions": plan.size.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": exit_codes}]},
        "template": {"metadata": {"labels": labels}, "spec": _build_pod_spec(plan, gke, job)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": gke.namespace,
            "labels": {**labels, "kueue.x-k8s.io/queue-name": gke.queue},
            "annotations": {
                "imbalance-jax/runs": ",".join(job.members),
                **_build_topology_annotations(plan.size),
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": gke.max_restarts,
                "rules": [
                    {
                        "name": "final",  # a webhook would make one up; the schema asks for it
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": _CONTAINER,
                    "replicas": plan.size.num_slices,
                    "template": {"spec": spec},
                }
            ],
        },
    }


def _build_topology_annotations(size: hardware.JobSize) -> dict[str, str]:
    """Keeps the pods of other slices off a slice's node pool; GPUs share their pools."""
    key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    return {key: "cloud.google.com/gke-nodepool"} if size.is_tpu else {}


def _build_pod_spec(plan: Plan, gke: GkeSettings, job: Job) -> dict[str, Any]:
    size = plan.size
    if size.is_tpu:
        resource = "google.com/tpu"
        selector = {
            "cloud.google.com/gke-tpu-accelerator": hardware.TPUS[size.family].gke,
            "cloud.google.com/gke-tpu-topology": size.topology,
        }
    else:
        resource = "nvidia.com/gpu"
        selector = {"cloud.google.com/gke-accelerator": hardware.GPUS[size.family].gke}
    tolerations = [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}]
    if gke.spot:
        spot = "cloud.google.com/gke-spot"
        selector[spot] = "true"
        tolerations.append(
            {"key": spot, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    container = {
        "name": _CONTAINER,
        "image": gke.image,
        # The image's entrypoint execs them.
        "args": [_escape_references(arg) for arg in job.command],
        "env": [
            *(
                {"name": name, "value": _escape_references(value)}
                for name, value in plan.env.items()
            ),
            *([] if size.is_tpu else _list_peer_variables(size, job)),
        ],
        "envFrom": [{"secretRef": {"name": name}} for name in gke.secrets],
        "resources": {"limits": {resource: size.devices_per_host}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    return {
        "restartPolicy": "Never",
        "serviceAccountName": gke.service_account,
        "terminationGracePeriodSeconds": gke.grace_seconds,
        # Slices talk to each other fastest on their hosts' own network.
        **({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if size.is_tpu else {}),
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }


def _escape_references(text: str) -> str:
    """Returns what Kubernetes reads as this text. It puts a variable for $(NAME), and $ for $$."""
    return text.replace("$", "$$")


def _list_peer_variables(size: hardware.JobSize, job: Job) -> list[dict[str, Any]]:
    """Returns the variables by which the pods of a GPU job find each other.

    A pod's host name is JobSet-job-index of the Job-index of the pod, in a subdomain that is
    called as the JobSet. TPU pods are told by GKE, in a way that JAX knows.
    """
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "IMB_COORDINATOR", "value": f"{job.name}-{_CONTAINER}-0-0.{job.name}:{_PORT}"},
        {"name": "IMB_NUM_PROCESSES", "value": str(size.processes)},
        {"name": "IMB_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def _format_xpk_note(plan: Plan, gke: GkeSettings, jobs: tuple[Job, ...]) -> tuple[str, ...]:
    """Returns what users of xpk would write for the first job, whose restarts it counts itself."""
    if not plan.size.is_tpu or not jobs:
        return ()
    command = (
        *("xpk", "workload", "create", f"--cluster={gke.cluster}", f"--project={gke.project}"),
        *("--zone=ZONE", f"--workload={jobs[0].name}", f"--tpu-type={plan.size.xpk}"),
        *(f"--num-slices={plan.size.num_slices}", f"--docker-image={gke.image}"),
        f"--max-restarts={gke.max_restarts}",
        f"--restart-on-exit-codes={','.join(map(str, RESTART))}",
        f"--command={shlex.join(jobs[0].command)}",  # which a shell in the pod reads
    )
    return (engines.format_note("with xpk", command),)


def build_logs_command(plan: Plan, profile: Profile, job: Job) -> tuple[str, ...]:
    gke: GkeSettings = profile.settings
    return (
        *("kubectl", f"--context={gke.context}", f"--namespace={gke.namespace}", "logs"),
        *(f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}", "--prefix", "--tail=-1"),
    )


def name_log(plan: Plan, job: Job) -> str:
    return f"of the pods {job.name}-{_CONTAINER}-*"
