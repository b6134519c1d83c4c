# The standalone bus. SQLite in /data unless EVENTBUS_DATABASE_URL names a server.

FROM python:3.13-slim AS build
WORKDIR /build
RUN python -m venv /venv
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
COPY . .
RUN /venv/bin/pip install '.[server,cli,dashboard,postgres,mysql,jwt,prometheus,fanout,relay]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home --home-dir /data eventbus
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER eventbus
WORKDIR /data
VOLUME /data
EXPOSE 3000
# Outside of this machine nobody may come in unasked: say who may do what (EVENTBUS_AUTH_FILE, EVENTBUS_AUTH), or give
# EVENTBUS_INSECURE=true where only whom you trust reaches the port. Without either it does not start.
# --start-interval asks often while it starts; afterwards every ten seconds are enough.
HEALTHCHECK --interval=10s --timeout=3s --retries=3 --start-period=30s --start-interval=1s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:3000/healthz', timeout=2)"]
ENTRYPOINT ["eventbus"]
CMD ["serve", "--host", "0.0.0.0", "--port", "3000"]
