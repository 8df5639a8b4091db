#!/bin/bash
# Succeeds when TensorFlow Serving has a version AVAILABLE of any model in models.config. Its status answers 200 while a
# model is still loading, so that alone says nothing. Its images have no curl, but bash and grep.
#
#   bash available.sh [models.config] [port]
config=${1:-/etc/tfserving/models.config}
port=${2:-8501}

for name in $(grep -v '^\s*#' "$config" | grep -oP '\bname:\s*"\K[^"]+'); do
    exec 3<>"/dev/tcp/127.0.0.1/$port" || exit 1
    printf 'GET /v1/models/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$name" >&3
    grep -q '"state": *"AVAILABLE"' <&3 && exit 0
    exec 3>&-
done
exit 1
