# Steadwire with the extras of requirements.lock. Everything is built in the first stage;
# the second one has no compiler, no pip and no sources.
#
#     docker build --tag steadwire .
#     docker run --read-only --publish 8000:8000 --volume steadwire:/data \
#       --env STEADWIRE_TOKEN_HMAC_SECRET_KEY --env STEADWIRE_API_KEY steadwire
#
# To follow the base image's updates, take the digest that its registry shows for the tag.
# checkov:skip=CKV_DOCKER_7: the tag and the digest of both stages are in PYTHON
ARG PYTHON=python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# The compiler stays in this stage, so its version is left to Debian's security updates.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --require-hashes --requirement requirements-build.lock \
    && python -m venv /opt/steadwire \
    && /opt/steadwire/bin/python -m pip install --require-hashes --requirement requirements.lock
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY _speedups _speedups
COPY clients clients
COPY demo demo
COPY service service
# A C extension that does not build is an error.
RUN SERVICE_BUILD_SPEEDUPS=yes /opt/build/bin/python -m pip wheel \
        --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/steadwire/bin/python -m pip install --no-deps --no-index /wheels/*.whl \
    && /opt/steadwire/bin/python -m pip uninstall --yes pip

FROM ${PYTHON}
RUN groupadd --gid 10001 steadwire \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin steadwire \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data
COPY --from=build /opt/steadwire /opt/steadwire
ENV PATH=/opt/steadwire/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    STEADWIRE_ENVIRONMENT=production \
    STEADWIRE_LOG_FORMAT=json \
    STEADWIRE_SERVER_HOST=0.0.0.0 \
    STEADWIRE_STORE_PATH=/data/steadwire.db
# All that is written: the SQLite file, where that is the store.
VOLUME /data
WORKDIR /data
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
ENTRYPOINT ["steadwire"]
CMD ["serve"]
