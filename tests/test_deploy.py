"""What is deployed, as far as it can be checked without a container engine, a cluster or a GPU."""

import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from ruamel.yaml import YAML
from tensorflow_serving.config import model_server_config_pb2

from pipeline.__main__ import app
from pipeline.config_file import load
from pipeline.errors import ConfigError
from pipeline.schedule import cron_times
from serving import models_config
from serving.engines.tfserving import TensorFlowServing
from serving.routes import routes
from serving.settings import Settings

ROOT = Path(__file__).parent.parent
TFSERVING = ROOT / "serving" / "tfserving"
DEPLOY = ROOT / "serving" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ["cpu", "gpu"]

DOCKERFILE = (ROOT / "Dockerfile").read_text()
DEFAULTS = Settings()


def documents(text):
    return list(YAML(typ="safe", pure=True).load_all(text))


COMPOSE = documents((DEPLOY / "compose.yaml").read_text())[0]["services"]


def kustomized(folder):
    """The objects that a folder makes, by kind and name."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    result = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {(each["kind"], each["metadata"]["name"]): each for each in documents(result.stdout)}


@pytest.fixture(scope="module")
def built():
    """By overlay: the objects it makes, by kind and name."""
    return {overlay: kustomized(KUBERNETES / "overlays" / overlay) for overlay in OVERLAYS}


@pytest.fixture(scope="module")
def retrain():
    """The objects beside an overlay that retrain every night."""
    return kustomized(KUBERNETES / "retrain")


def retrain_pod(retrain):
    return retrain["CronJob", "retrain"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def pod(built, overlay, name="graft"):
    return built[overlay]["Deployment", name]["spec"]["template"]["spec"]


@contextmanager
def answering(answer):
    """A server on a free port of 127.0.0.1, for as long as the block runs; `answer` is from path to status and text."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, text = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    "path", sorted([*DEPLOY.rglob("*.yaml"), *TFSERVING.glob("*.yaml")]), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_yaml_file_is_yaml(path):
    assert all(documents(path.read_text()))


# graft serve's options


def test_every_setting_is_an_option_of_graft_serve(built):
    command = typer.main.get_command(app).commands["serve"]
    known = set()
    for option in command.params:
        known.update([option.envvar] if isinstance(option.envvar, str) else option.envvar or [])
    used = set(re.findall(r"\bGRAFT_SERVE_\w+(?==)", DOCKERFILE))
    for service in ("serve", "front"):
        used |= set(COMPOSE[service]["environment"])
    for overlay in OVERLAYS:
        used |= {variable["name"] for variable in pod(built, overlay)["containers"][0]["env"]}
    assert used <= known
    assert {"GRAFT_SERVE_HOST", "GRAFT_SERVE_TOKEN_FILE", "GRAFT_SERVE_UPSTREAM"} <= used
    assert 'ENTRYPOINT ["graft", "serve", "/models"]' in DOCKERFILE


def test_probes_ask_for_pages_that_there_are(built):
    pages = {route.path for route in routes()}
    asked = set(re.findall(r"'GET', '(/\w+)'", DOCKERFILE))
    for overlay in OVERLAYS:
        container = pod(built, overlay)["containers"][0]
        asked |= {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
        asked.add(
            built[overlay]["Deployment", "graft"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"]
        )
    assert asked == {"/healthz", "/readyz", "/metrics"}
    assert asked <= pages


def test_the_port_is_the_same_everywhere(built):
    ports = {
        *re.findall(r"EXPOSE (\d+)", DOCKERFILE),
        *re.findall(r"GRAFT_SERVE_PORT=(\d+)", DOCKERFILE),
        *(part for service in ("serve", "front") for part in COMPOSE[service]["ports"][0].split(":")[1:]),
    }
    for overlay in OVERLAYS:
        objects = built[overlay]
        annotations = objects["Deployment", "graft"]["spec"]["template"]["metadata"]["annotations"]
        ports |= {
            annotations["prometheus.io/port"],
            str(pod(built, overlay)["containers"][0]["ports"][0]["containerPort"]),
            str(objects["Service", "graft"]["spec"]["ports"][0]["port"]),
            str(objects["NetworkPolicy", "graft"]["spec"]["ingress"][0]["ports"][0]["port"]),
        }
    assert ports == {str(DEFAULTS.port)}


def test_the_user_is_the_same_everywhere(built, retrain):
    users = set(re.findall(r"--[ug]id (\d+)", DOCKERFILE))
    for both in re.findall(r"^USER (\d+:\d+)$", DOCKERFILE, re.MULTILINE):
        users |= set(both.split(":"))
    pods = [pod(built, overlay, name) for overlay, name in [("cpu", "graft"), ("gpu", "graft"), ("gpu", "tfserving")]]
    for spec in [*pods, retrain_pod(retrain)]:
        context = spec["securityContext"]
        users |= {str(context[key]) for key in ("runAsUser", "runAsGroup")}
    assert users == {"10001"}


# The image


def test_what_the_image_copies_is_there_and_not_ignored():
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "pipeline", "serving"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{source}" for source in copied} <= set(ignored)
    assert all((ROOT / source).exists() for source in copied)


def test_the_lists_of_requirements_are_those_of_the_project(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (program,) = re.findall(r'^RUN python -c "(import tomllib.+?)"$', DOCKERFILE, re.MULTILINE | re.DOTALL)
    subprocess.run([sys.executable, "-c", program.replace("\\\n", "")], cwd=tmp_path, check=True)
    serve, train = ((tmp_path / name).read_text().splitlines() for name in ("serve.txt", "train.txt"))
    assert any(line.startswith("openvino") for line in serve)
    assert not any(line.startswith("tensorflow") for line in serve)
    assert any(line.startswith("tensorflow>") for line in train)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_image_is_healthy_while_it_answers(status, code):
    (program,) = re.findall(r'CMD \["python", "-c", "(.+?)"\]', DOCKERFILE, re.DOTALL)
    with answering(lambda path: (status if path == "/healthz" else 404, "")) as port:
        result = subprocess.run(
            [sys.executable, "-c", program.replace("\\\n", "")],
            env=os.environ | {"GRAFT_SERVE_PORT": str(port)}, check=False, timeout=20,
        )  # fmt: skip
    assert result.returncode == code


def test_the_image_is_unhealthy_where_nothing_answers():
    (program,) = re.findall(r'CMD \["python", "-c", "(.+?)"\]', DOCKERFILE, re.DOTALL)
    with answering(lambda path: (200, "")) as port:
        pass
    result = subprocess.run(
        [sys.executable, "-c", program.replace("\\\n", "")],
        env=os.environ | {"GRAFT_SERVE_PORT": str(port)}, capture_output=True, check=False, timeout=20,
    )  # fmt: skip
    assert result.returncode == 1


# TensorFlow Serving's files


def message(name, fields):
    """A message class in TensorFlow Serving's words; its package does not bring these two.

    Args:
        fields: from name to type: a scalar's, a message's full name, or either in a list where it is repeated.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package="tensorflow.serving", syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )  # fmt: skip
    Field = descriptor_pb2.FieldDescriptorProto  # noqa: N806
    kinds = {bool: Field.TYPE_BOOL, int: Field.TYPE_INT64, str: Field.TYPE_STRING}

    def declare(name, fields):
        described = file.message_type.add(name=name)
        for number, (key, kind) in enumerate(fields.items(), 1):
            label = Field.LABEL_REPEATED if isinstance(kind, list) else Field.LABEL_OPTIONAL
            kind = kind[0] if isinstance(kind, list) else kind
            field = described.field.add(name=key, number=number, label=label)
            if isinstance(kind, dict):
                declare(f"{name}_{key}", kind)
                kind = f".tensorflow.serving.{name}_{key}"
            if isinstance(kind, str):
                field.type, field.type_name = Field.TYPE_MESSAGE, kind
            else:
                field.type = kinds[kind]

    declare(name, fields)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


INT64 = ".google.protobuf.Int64Value"


@pytest.fixture(scope="module")
def batching():
    """From tensorflow_serving/servables/tensorflow/session_bundle_config.proto."""
    fields = {
        "max_batch_size": INT64,
        "batch_timeout_micros": INT64,
        "max_enqueued_batches": INT64,
        "num_batch_threads": INT64,
        "thread_pool_name": ".google.protobuf.StringValue",
        "allowed_batch_sizes": [int],
        "pad_variable_length_inputs": bool,
    }
    return text_format.Parse((TFSERVING / "batching.config").read_text(), message("BatchingParameters", fields)())


def test_batch_sizes_ascend_to_the_largest(batching):
    sizes = list(batching.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == batching.max_batch_size.value


def test_two_whole_requests_fit_into_a_batch(batching):
    assert batching.max_batch_size.value >= 2 * DEFAULTS.max_batch


def test_the_queue_holds_what_all_front_doors_send(batching, built):
    doors = built["gpu"]["HorizontalPodAutoscaler", "graft"]["spec"]["maxReplicas"]
    pictures = doors * TensorFlowServing.at_once * DEFAULTS.max_batch
    assert batching.max_enqueued_batches.value * batching.max_batch_size.value >= pictures


def test_figures_are_where_kubernetes_says_they_are(built):
    """From tensorflow_serving/config/monitoring_config.proto."""
    kind = message("MonitoringConfig", {"prometheus_config": {"enable": bool, "path": str}})
    config = text_format.Parse((TFSERVING / "monitoring.config").read_text(), kind()).prometheus_config
    annotations = built["gpu"]["Deployment", "tfserving"]["spec"]["template"]["metadata"]["annotations"]
    assert (config.enable, config.path) == (True, annotations["prometheus.io/path"])


def examples():
    yield "models.config", (TFSERVING / "models.config").read_text()
    for number, block in enumerate(
        re.findall(r"```\n(model_config_list.+?)```", (TFSERVING / "README.md").read_text(), re.S)
    ):
        yield f"README.md, {number}", block


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in examples()])
def test_models_are_read_alike_by_both_servers(text, tmp_path, built):
    theirs = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    (tmp_path / "models.config").write_text(text)
    ours = models_config.read(tmp_path / "models.config")
    assert [(model.name, str(model.base_path), model.labels) for model in ours] == [
        (model.name, model.base_path, dict(model.version_labels)) for model in theirs
    ]
    for name in ("graft", "tfserving"):
        mounts = {mount["mountPath"] for mount in pod(built, "gpu", name)["containers"][0]["volumeMounts"]}
        assert all(str(model.base_path.parent) in mounts for model in ours)


def test_the_readme_has_an_example_with_labels():
    assert any("version_labels" in text for _, text in examples())


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ({"ants": "AVAILABLE", "bees": "AVAILABLE"}, 0),
        ({"ants": "LOADING", "bees": "AVAILABLE"}, 0),
        ({"ants": "LOADING", "bees": "END"}, 1),
        ({}, 1),
    ],
)
def test_tensorflow_serving_is_ready_when_a_version_is_available(states, code, tmp_path):
    config = tmp_path / "models.config"
    config.write_text(
        '# name: "wasps"\nmodel_config_list {\n  config { name: "ants" base_path: "/models/ants" }\n'
        '  config {\n    name: "bees"\n    base_path: "/models/bees"\n  }\n}\n'
    )

    def status(path):
        state = states.get(path.removeprefix("/v1/models/"))
        if state is None:
            return 404, '{ "error": "Could not find any versions of model" }'
        return 200, f'{{\n "model_version_status": [\n  {{\n   "version": "1",\n   "state": "{state}",\n  }}\n ]\n}}\n'

    with answering(status) as port:
        result = subprocess.run(
            ["bash", TFSERVING / "available.sh", config, str(port)], capture_output=True, check=False, timeout=20
        )
    assert result.returncode == code


def test_tensorflow_serving_is_not_ready_where_nothing_answers():
    with answering(lambda path: (200, "")) as port:
        pass
    result = subprocess.run(
        ["bash", TFSERVING / "available.sh", TFSERVING / "models.config", str(port)],
        capture_output=True, check=False, timeout=20,
    )  # fmt: skip
    assert result.returncode == 1


def test_tensorflow_serving_is_started_alike_everywhere(built):
    container = pod(built, "gpu", "tfserving")["containers"][0]
    assert container["image"] == COMPOSE["tfserving"]["image"]
    assert container["command"] == COMPOSE["tfserving"]["entrypoint"]
    assert container["args"] == COMPOSE["tfserving"]["command"]
    assert container["readinessProbe"]["exec"]["command"] == COMPOSE["tfserving"]["healthcheck"]["test"][1:]


def test_every_file_that_is_named_reaches_the_container(built):
    files = built["gpu"]["ConfigMap", "tfserving"]["data"]
    container = pod(built, "gpu", "tfserving")["containers"][0]
    words = [*container["args"], *container["readinessProbe"]["exec"]["command"]]
    named = {name for word in words for name in re.findall(r"/etc/tfserving/(.+)", word)}
    assert named == set(files)
    assert all(files[name] == (TFSERVING / name).read_text() for name in named)


# How it is stopped, and what it may do


def test_there_is_time_to_finish(built):
    needed = DEFAULTS.request_seconds + 1
    for overlay in OVERLAYS:
        spec = pod(built, overlay)
        wait = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
        assert spec["terminationGracePeriodSeconds"] > wait + needed
    for service in ("serve", "front"):
        assert int(COMPOSE[service]["stop_grace_period"].removesuffix("s")) > needed
    spec = pod(built, "gpu", "tfserving")
    wait = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert wait > needed
    assert spec["terminationGracePeriodSeconds"] == wait + 1
    assert "tfserving" in COMPOSE["front"]["depends_on"]


def confined(spec):
    """What a pod may write to; it is confined otherwise."""
    container = spec["containers"][0]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    return {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}


@pytest.mark.parametrize(("overlay", "name"), [("cpu", "graft"), ("gpu", "graft"), ("gpu", "tfserving")])
def test_pods_are_confined(built, overlay, name):
    assert confined(pod(built, overlay, name)) == {"tmp"}


def test_training_writes_to_its_volumes_only(retrain):
    assert confined(retrain_pod(retrain)) == {"tmp", "models", "training"}


@pytest.mark.parametrize("service", ["serve", "front", "train", "mlflow"])
def test_services_are_confined(service):
    definition = COMPOSE[service]
    assert definition["read_only"]
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in definition.get("ports", []))


def test_each_profile_serves_on_its_own_and_trains():
    profiles = {name: service["profiles"] for name, service in COMPOSE.items()}
    assert profiles == {
        "serve": ["cpu"], "front": ["gpu"], "tfserving": ["gpu"], "train": ["cpu", "gpu"], "mlflow": ["cpu", "gpu"],
    }  # fmt: skip


def test_mlflow_is_of_the_version_that_graft_was_tested_with():
    (version,) = re.findall(r"^mlflow==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert COMPOSE["mlflow"]["image"].endswith(f":v{version}")


def test_training_can_write_where_serving_reads():
    """Who is first to mount an empty volume gives it its owner; tfserving, whose folder is root's, must not."""
    (models,) = [each for each in COMPOSE["tfserving"]["volumes"] if isinstance(each, dict)]
    assert (models["source"], models["read_only"], models["volume"]) == ("export", True, {"nocopy": True})
    assert "export:/work/export" in COMPOSE["train"]["volumes"]


# Retraining


def test_the_night_job_is_graft_retrain_with_a_config_that_is_there(retrain, tmp_path):
    (container,) = retrain_pod(retrain)["containers"]
    assert 'ENTRYPOINT ["graft"]' in DOCKERFILE
    command, path, *options = container["args"]
    parameters = typer.main.get_command(app).commands[command].params
    assert set(options) <= {name for parameter in parameters for name in parameter.opts}
    (config_map,) = (each for (kind, _), each in retrain.items() if kind == "ConfigMap")
    volumes = {volume["name"]: volume for volume in retrain_pod(retrain)["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volumes["config"]["configMap"]["name"] == config_map["metadata"]["name"]
    assert Path(path).parent == Path(mounts["config"])
    written = tmp_path / "config.yaml"
    written.write_text(config_map["data"][Path(path).name])
    config, work = load(written), Path("/work")
    assert "WORKDIR /work\n" in DOCKERFILE
    assert str(work / config.data.path) == mounts["pictures"]
    assert str(work / config.export.dir) == mounts["models"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    for written_to in (work / config.output_dir, work / config.cache_dir, Path(variables["KERAS_HOME"])):
        assert written_to.is_relative_to(mounts["training"])


def test_the_smoke_test_asks_the_service_with_its_token(built, retrain, tmp_path):
    (config_map,) = (each for (kind, _), each in retrain.items() if kind == "ConfigMap")
    (tmp_path / "config.yaml").write_text(config_map["data"]["retrain.yaml"])
    smoke_test = load(tmp_path / "config.yaml").retrain.smoke_test
    (port,) = built["cpu"]["Service", "graft"]["spec"]["ports"]
    assert smoke_test.url == f"http://graft:{port['port']}"
    both = [pod(built, "cpu"), retrain_pod(retrain)]
    variables = {variable["name"]: variable for variable in both[0]["containers"][0]["env"]}
    assert smoke_test.token_file == variables["GRAFT_SERVE_TOKEN_FILE"]["value"]
    mounts, volumes = (
        [each for spec in both for each in listed(spec) if each["name"] == "token"]
        for listed in (lambda spec: spec["containers"][0]["volumeMounts"], lambda spec: spec["volumes"])
    )
    assert mounts[0] == mounts[1]
    assert volumes[0] == volumes[1]


def test_the_night_job_runs_alone_ends_and_can_be_stopped(retrain):
    cron_job = retrain["CronJob", "retrain"]["spec"]
    job, spec = cron_job["jobTemplate"]["spec"], retrain_pod(retrain)
    times = cron_times(cron_job["schedule"], cron_job["timeZone"])
    first = times(datetime(2026, 11, 23, tzinfo=UTC))
    between = (times(first) - first).total_seconds()
    assert cron_job["concurrencyPolicy"] == "Forbid"
    # Over before the next one is due, and never two that were missed.
    assert job["activeDeadlineSeconds"] < between
    assert cron_job["startingDeadlineSeconds"] < between
    assert spec["terminationGracePeriodSeconds"] >= 60
    assert spec["restartPolicy"] == "Never"  # podFailurePolicy asks for it.
    stop, ignore = job["podFailurePolicy"]["rules"]
    assert (stop["action"], stop["onExitCodes"]["values"]) == ("FailJob", [ConfigError.exit_code])
    assert stop["onExitCodes"]["containerName"] == spec["containers"][0]["name"]
    assert ignore["action"] == "Ignore"


def test_the_night_job_brings_what_the_overlays_do_not(built, retrain):
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in retrain_pod(retrain)["volumes"]
              if "persistentVolumeClaim" in volume}  # fmt: skip
    there = {name for kind, name in [*retrain, *built["cpu"]] if kind == "PersistentVolumeClaim"}
    assert claims == there
    assert not set(retrain) & set(built["cpu"])
    (policy,) = (each for (kind, _), each in retrain.items() if kind == "NetworkPolicy")
    labels = retrain["CronJob", "retrain"]["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_compose_starts_the_scheduler():
    """With each variable's default, as compose puts it in."""
    service = COMPOSE["train"]
    words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in service["command"]]
    assert "entrypoint" not in service
    command, config, *options = words
    assert command == "schedule"
    load(ROOT / config)
    given = dict(option.split("=", 1) for option in options)
    parameters = typer.main.get_command(app).commands["schedule"].params
    assert set(given) <= {name for parameter in parameters for name in parameter.opts}
    cron_times(given["--cron"], given["--timezone"])
    assert service["restart"] == "unless-stopped"
    assert service["init"]
    assert int(service["stop_grace_period"].removesuffix("s")) >= 60
    assert "runs:/work/runs" in service["volumes"]  # Where the schedule's state is.


SCHEDULING = (ROOT / "docs" / "scheduling.md").read_text()


def test_systemd_has_nothing_to_say_about_the_units(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    units = re.findall(r"`/etc/systemd/system/(graft-[\w.-]+)`.*?```ini\n(.+?)```", SCHEDULING, re.DOTALL)
    assert [name for name, _ in units] == ["graft-schedule.service", "graft-retrain.service", "graft-retrain.timer"]
    for name, text in units:
        (tmp_path / name).write_text(text.replace("/opt/graft/bin/graft", sys.executable))
    result = subprocess.run(
        [analyze, "verify", *(tmp_path / name for name, _ in units)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_dags_are_python():
    blocks = re.findall(r"```python\n(.+?)```", SCHEDULING, re.DOTALL)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        compile(block, f"docs/scheduling.md, {number}", "exec")
