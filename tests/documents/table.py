"""Which test runs a documented command for real, or why none can.

Every command is read, and its configuration planned, by `test_as_written.py` itself; what starts
nothing it runs as well. This is the rest.
"""

from __future__ import annotations

STAGES = "tests/pipelines/stages"
QUICKSTART = f"{STAGES}/test_stages.py::test_it_ends_with_the_report"
SMOLLM2 = f"{STAGES}/test_smollm2.py::test_the_learner_steps_on_what_the_engine_sampled"

RUNS_IN = {
    **dict.fromkeys(("quickstart", "segment", "label", "train", "solve", "select"), QUICKSTART),
    **dict.fromkeys(("finetune", "report"), QUICKSTART),
    "evaluate": f"{STAGES}/test_stages.py::test_an_evaluation_asks_only_what_is_new",
    "annotate": f"{STAGES}/test_stages.py::test_two_shards_fill_one_directory",
    "ablate": f"{STAGES}/test_ablate.py::test_arms_share_their_labels_and_a_second_start_goes_on",
    "serve": "tests/serve/test_http.py::test_signals_take_the_service_down",
    "judge": "tests/serve/test_http.py::test_a_file_is_judged_alike_by_engines_and_by_the_server",
}
"""Commands that start engines, by name, on the packaged task."""

CONFIG_RUNS_IN = {
    "configs/embedded.yaml": QUICKSTART,
    "configs/ablate-embedded.yaml": RUNS_IN["ablate"],
    "configs/real-0.5b-cpu.yaml": SMOLLM2,
}
"""Scenarios that a test runs stages of, with smaller sizes."""

CONFIG_CANNOT = {
    "configs/a100/1.5b-1gpu.yaml": "an A100; tests/stepwiser/run/memory/test_layout.py places it",
    "configs/a100/1.5b-4x8.yaml": "32 A100s; test_layout.py places it",
    "configs/a100/7b-1gpu.yaml": "an A100; test_layout.py places it",
    "configs/a100/32b-8gpu.yaml": "eight A100s; test_layout.py places it",
    "configs/a100/32b-4x8.yaml": "32 A100s; test_layout.py places it",
    "configs/gsm8k.yaml": "a GPU; configs/real-0.5b-cpu.yaml has the same stages for a CPU",
    "configs/paper-1.5b.yaml": "eight A100s for days, and a segmenter of 70B behind a URL",
    "configs/paper-7b.yaml": "eight A100s for weeks, and a segmenter of 70B behind a URL",
    "configs/real-0.5b-gpu.yaml": "a GPU",
    "configs/train-1gpu.yaml": "a GPU",
    "configs/train-8xa100-7b.yaml": "eight A100s",
    "configs/train-multinode-a100.yaml": "four nodes with eight A100s each",
}
"""Scenarios that ask for what the machine that tests does not have; they are planned."""

JOB = "tests/cluster/test_job.py::test_a_stage_runs_as_a_job"
SUBMITTED = "tests/cluster/test_job.py::test_what_is_submitted_gives_the_numbers_of_a_local_run"
JOBS = dict.fromkeys(("submit", "jobs", "logs", "stop"), SUBMITTED)
"""Commands of `stepwiser` that need a cluster's head."""

PROGRAM_RUNS_IN = {
    "ray job": JOB,
    "curl": "tests/serve/test_http.py::test_steps_are_judged",
}
PROGRAM_CANNOT = {
    "ray up": "a cloud; tests/cluster/test_ray_up.py prepares every file, test_aws.py launches one",
    "ray dashboard": "a cluster on a cloud",
    "ray down": "a cluster on a cloud; tests/cluster/test_aws.py ends one on a mock",
    "ray start": "nodes of a cloud",
    "ray stop": "ends every Ray of the machine",
    "ray get-auth-token": "writes into the home folder",
    "docker": "no container engine where the tests run",
    "kubectl": "a Kubernetes cluster; tests/cluster/test_kuberay.py has KubeRay's schemas",
    "hf": "a network",
    "serve run": "a cluster; tests/pipelines/stages/test_serve.py builds the application",
    "pip": "installs hundreds of packages; .ci/run does from the same pyproject.toml",
    "uv": "installs packages",
    "viewers": "waits for a person to look",
    "apt-get": "runs in the image",
    "rm": "runs in the image",
    "base64": "what it reads a Kubernetes cluster says",
    "dpkg": "runs on the nodes",
    "mountpoint": "runs on the nodes",
    "sudo": "runs on the nodes",
    "pytest": "is what runs this",
    "ruff": "formats the checkout",
    "make": "sets up, or runs all tests; .ci/run does both",
    "tests/fresh.sh": "runs all tests in another checkout",
    "python -m venv": "makes an environment",
    "benchmarks": "hours; tests/benchmarks has the parts",
    "tests": "minutes; the tests use the same functions",
    "stepwiser": "tests/stepwiser/config/test_reference.py compares the page that it prints",
}
"""Programs that no test can run as they stand; their words are read."""
