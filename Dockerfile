# Three images, by target:
#   exporter  what runs beside vLLM: the sidecar, the fleet job, what lays the tap. No torch, no shell.
#   vllm      a vLLM image with the tap in it; none of its packages is moved.
#   sbom      one file: what the exporter's image has of Python, as CycloneDX.
# All bases are arguments, to be pinned by digest: --build-arg BASE=registry/name@sha256:...
# Behind a mirror: --secret id=pip,src=pip.conf, and --secret id=ca,src=ca.pem for who signs it.

# Has Python of the minor version that BASE has, with venv, and a shell.
ARG BUILD=docker.io/library/python:3.11-slim-bookworm
# Has Python and the C++ runtime; nothing else is asked of it.
ARG BASE=gcr.io/distroless/python3-debian12:nonroot
ARG VLLM=docker.io/vllm/vllm-openai:v0.32.0

FROM ${BUILD} AS build
# Where BASE has its Python.
ARG PYTHON=/usr/bin/python3
# Anything but nothing brings what SIDECAR_RECORD needs: some 170 MB more.
ARG RECORDINGS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
WORKDIR /src
COPY requirements/build.lock requirements/exporter.lock requirements/recordings.lock requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/ca.pem \
    if [ -s /run/ca.pem ]; then export PIP_CERT=/run/ca.pem; fi \
 && python3 -m venv /tools \
 && python3 -m venv --without-pip /opt/sidecar \
 && /tools/bin/pip install --require-hashes --only-binary :all: --requirement requirements/build.lock \
 && /tools/bin/pip --python /opt/sidecar/bin/python install --require-hashes --only-binary :all: \
    --requirement requirements/exporter.lock ${RECORDINGS:+--requirement requirements/recordings.lock}
COPY pyproject.toml README.md LICENSE ./
COPY sidecar sidecar
RUN /tools/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels . \
 && /tools/bin/pip --python /opt/sidecar/bin/python install --no-deps --no-index /wheels/*.whl \
 && /tools/bin/cyclonedx-py environment --output-reproducible \
    --output-format JSON --output-file /opt/sidecar/sbom.cdx.json /opt/sidecar/bin/python
# From here on it is BASE's Python that this environment belongs to. What
# only tests, compilers and type checkers read stays behind.
RUN ln -sfn "${PYTHON}" /opt/sidecar/bin/python3 \
 && ln -sfn python3 /opt/sidecar/bin/python \
 && sed -i "s|^home = .*|home = ${PYTHON%/*}|" /opt/sidecar/pyvenv.cfg \
 && find /opt/sidecar/lib -type d \( -name tests -o -path '*/numpy/f2py' -o -path '*/numpy/distutils' \) \
    -prune -exec rm -rf {} + \
 && find /opt/sidecar/lib -type f \( -name '*.a' -o -name '*.h' -o -name '*.pyi' -o -name '*.pxd' \) -delete \
 && mkdir /empty

FROM scratch AS sbom
COPY --from=build /opt/sidecar/sbom.cdx.json /

FROM ${VLLM} AS vllm
USER 0
# Refuses, and so ends the build, when a package of vLLM's would have to move.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=scripts/add_tap.py,target=/add_tap.py \
    ["python3", "/add_tap.py", "/wheels"]
USER 65532:65532

FROM ${BASE} AS exporter
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="llm-internals-sidecar" \
      org.opencontainers.image.description="Model-internal telemetry beside vLLM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/sidecar /opt/sidecar
# What is learnt, where both sides meet, and where the tap is laid; mounted over, mostly, and then a
# new volume of Docker's or podman's takes its owner from here.
COPY --from=build --chown=65532:65532 /empty /var/lib/llm-internals
COPY --from=build --chown=65532:65532 /empty /run/llm-internals
COPY --from=build --chown=65532:65532 /empty /opt/llm-internals
ENV PATH=/opt/sidecar/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
# The environment is BASE's Python's, or this fails.
RUN ["sidecar", "version"]
EXPOSE 9478 9479
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["sidecar", "health"]
ENTRYPOINT ["sidecar"]
CMD ["serve"]
