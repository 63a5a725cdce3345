# docker build -t zerostate-node .
# docker run -p 127.0.0.1:8080:8080 -p 4001:4001 -v zerostate:/data --stop-timeout 30 zerostate-node
#
# One image for every role: ZEROSTATE_NODE_ROLE, or `start --role relay`. docs/operations/docker.md.

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# All that runs here is pinned by hash: the tools that build, then the dependencies, of which a few
# come as source and are built with those tools and nothing fetched on the way.
COPY requirements-build.lock requirements.lock ./
RUN python -m venv /opt/build \
 && /opt/build/bin/pip install --require-hashes --no-deps -r requirements-build.lock \
 && /opt/build/bin/pip wheel --require-hashes --no-deps --no-build-isolation \
      -r requirements.lock -w /wheels

COPY pyproject.toml README.md LICENSE ./
COPY zerostate_node zerostate_node
COPY protocols protocols
COPY bootstrap bootstrap
COPY configs configs
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation -w /wheels . \
 && python -m venv --without-pip /opt/zerostate \
 && /opt/build/bin/pip --python /opt/zerostate/bin/python install --no-deps --no-index /wheels/*.whl


FROM python:3.12-slim
LABEL org.opencontainers.image.title="zerostate-node" \
      org.opencontainers.image.description="A peer-to-peer node that runs sandboxed WASM agents" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 zerostate \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin \
      zerostate \
 && install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/zerostate /opt/zerostate

# The data directory is below the volume, not the volume itself: hosts mount volumes 0755 or with a
# lost+found in them, and the node insists on a directory of its own with mode 0700.
# Loopback of a container reaches nobody, so HTTP binds all; the ports that are published decide.
# localhost alone: any address is answered, of names only localhost. Name yours here to be served.
ENV PATH=/opt/zerostate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ZEROSTATE_NODE_DATA_DIR=/data/node \
    ZEROSTATE_NODE_ENVIRONMENT=production \
    ZEROSTATE_HTTP_HOST=0.0.0.0 \
    ZEROSTATE_HTTP_ALLOWED_HOSTS=localhost

USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080 4001
STOPSIGNAL SIGTERM

# Asks where the node says that it serves, so it holds whichever port is set.
HEALTHCHECK --interval=10s --timeout=2s --start-period=5s --retries=3 \
  CMD ["python", "-I", "-c", "import json, os, urllib.request as u; u.urlopen(json.load(open(os.environ['ZEROSTATE_NODE_DATA_DIR'] + '/node.json'))['http_url'] + '/health', timeout=1.5)"]

ENTRYPOINT ["zerostate-node"]
CMD ["start"]
