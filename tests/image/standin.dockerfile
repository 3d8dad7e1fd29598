# What a vLLM image is to its tap: a Python with pip and the packages that vLLM brings, ours not
# among them. They are those of the exporter's image, so nothing is fetched.
ARG EXPORTER
FROM ${EXPORTER} AS packages
FROM localhost/llm-internals-build:debian
RUN python3 -m venv /opt/venv
COPY --from=packages /opt/sidecar/lib /opt/venv/lib
RUN /opt/venv/bin/python -m pip uninstall --yes llm-internals-sidecar
ENV PATH=/opt/venv/bin:/usr/bin:/bin
