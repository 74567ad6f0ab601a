# `bmtpt serve` on a CPU, as a user without rights, on a file system that need not be writable (docs/serve-container.md).
#
#   docker build -t bmtpt-serve .
#   docker compose up
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
# PyTorch's own index has the build without CUDA, which is several GB smaller.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/bmtpt
ENV PATH=/opt/bmtpt/bin:$PATH
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --constraint constraints.txt ".[serve]"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/bmtpt /opt/bmtpt
# Nothing is fetched at run time: the model and the prompts are mounted. Caches go to /tmp, the one writable place.
ENV PATH=/opt/bmtpt/bin:$PATH HOME=/tmp HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
# With tokens, a server that lives answers 401 to a probe that has none.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", "import http.client; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status not in (200, 401))"]
ENTRYPOINT ["bmtpt", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--watch", "/prompts", "--backbone", "/model", "--token-file", "/run/secrets/tokens"]
