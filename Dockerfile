# syntax=docker/dockerfile:1.7
#
#   docker build --target serve --tag graft-serve .                        the endpoint, without TensorFlow
#   docker build --target train --tag graft-train .                        training, on the CPU
#   docker build --target train --tag graft-train-gpu --build-arg GPU=1 .  the same with CUDA
#
# What Graft needs is in a layer of its own, below Graft: a change of code builds and moves a few hundred kilobytes.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS base
ENV PATH=/opt/graft/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1
# A fixed number, so that Kubernetes sees that it is not root, and folders can be given to it.
RUN groupadd --gid 10001 graft && useradd --uid 10001 --gid graft --no-create-home --home-dir /tmp graft

# Only the lists of requirements leave this stage: after any other change of pyproject.toml nothing is installed again.
FROM base AS requirements
WORKDIR /requirements
COPY pyproject.toml .
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    open('serve.txt', 'w').write('\n'.join(project['dependencies'])); \
    open('train.txt', 'w').write('\n'.join(project['optional-dependencies']['train']))"

FROM base AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY serving serving
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /dist .

FROM base AS serve-requirements
WORKDIR /requirements
COPY constraints.txt .
COPY --from=requirements /requirements/serve.txt .
# Of OpenVINO, what computes on Intel's GPUs and NPUs and reads other formats goes again: a fifth of everything. So does
# its telemetry, which tells Google Analytics of every start; OpenVINO does without where it is missing.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/graft && \
    pip --python /opt/graft/bin/python install --constraint constraints.txt --requirement serve.txt && \
    pip --python /opt/graft/bin/python uninstall --yes openvino-telemetry && \
    find /opt/graft -regextype posix-extended -regex \
        '.*/libopenvino_(intel_[gn]pu_plugin|(gguf|jax|onnx|paddle|pytorch|tensorflow_lite)_frontend)\.so.*' -delete

FROM base AS train-requirements
# Empty, or anything: then TensorFlow brings the CUDA libraries it was built for; the driver is the host's.
ARG GPU=
WORKDIR /requirements
COPY constraints.txt .
COPY --from=requirements /requirements/serve.txt /requirements/train.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/graft && \
    pip --python /opt/graft/bin/python install --constraint constraints.txt \
        --requirement serve.txt --requirement train.txt "tensorflow${GPU:+[and-cuda]}" && \
    pip --python /opt/graft/bin/python uninstall --yes openvino-telemetry

# Mount a folder for whatever is to outlive the container: runs/, export/, and keras/, where weights are downloaded to.
FROM base AS train
COPY --from=train-requirements /opt/graft /opt/graft
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip --python /opt/graft/bin/python install --no-deps --no-cache-dir /dist/*.whl && \
    install --directory --owner graft --group graft /work /work/runs /work/export /work/keras
ENV HOME=/tmp \
    KERAS_HOME=/work/keras
WORKDIR /work
VOLUME ["/work/runs", "/work/export", "/work/keras"]
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["graft"]
CMD ["--help"]

# Writes nothing but temporary files, to /tmp: give it a read-only root filesystem and a tmpfs there.
FROM base AS serve
COPY --from=serve-requirements /opt/graft /opt/graft
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip --python /opt/graft/bin/python install --no-deps --no-cache-dir /dist/*.whl && \
    install --directory --owner graft --group graft /models
# Not loopback, so it starts only with a token (GRAFT_TOKEN, or a file named by GRAFT_SERVE_TOKEN_FILE) or --no-auth.
ENV GRAFT_SERVE_HOST=0.0.0.0 \
    GRAFT_SERVE_PORT=8501 \
    HOME=/tmp
USER 10001:10001
EXPOSE 8501
STOPSIGNAL SIGTERM
# Alive, not ready: where there is no model yet, a restart brings none.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --start-interval=1s \
    CMD ["python", "-c", "import http.client, os, sys; \
server = http.client.HTTPConnection('127.0.0.1', int(os.environ['GRAFT_SERVE_PORT']), timeout=3); \
server.request('GET', '/healthz'); sys.exit(server.getresponse().status != 200)"]
# Options can follow; --models-config takes the place of /models.
ENTRYPOINT ["graft", "serve", "/models"]
