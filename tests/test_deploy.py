"""What is deployed, as far as it can be checked without a container engine, a cluster or a GPU."""

import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from ruamel.yaml import YAML
from tensorflow_serving.config import model_server_config_pb2

from pipeline.__main__ import app
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


@pytest.fixture(scope="module")
def built():
    """By overlay: the objects it makes, by kind and name."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    overlays = {}
    for overlay in OVERLAYS:
        result = subprocess.run(
            [kubectl, "kustomize", KUBERNETES / "overlays" / overlay], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        overlays[overlay] = {(each["kind"], each["metadata"]["name"]): each for each in documents(result.stdout)}
    return overlays


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


def test_the_user_is_the_same_everywhere(built):
    users = set(re.findall(r"--[ug]id (\d+)", DOCKERFILE))
    for both in re.findall(r"^USER (\d+:\d+)$", DOCKERFILE, re.MULTILINE):
        users |= set(both.split(":"))
    for overlay, name in [("cpu", "graft"), ("gpu", "graft"), ("gpu", "tfserving")]:
        context = pod(built, overlay, name)["securityContext"]
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


@pytest.mark.parametrize(("overlay", "name"), [("cpu", "graft"), ("gpu", "graft"), ("gpu", "tfserving")])
def test_pods_are_confined(built, overlay, name):
    spec = pod(built, overlay, name)
    container = spec["containers"][0]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    read_only = {mount["name"] for mount in container["volumeMounts"] if mount.get("readOnly")}
    assert {mount["name"] for mount in container["volumeMounts"]} - read_only == {"tmp"}


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
