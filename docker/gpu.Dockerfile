# capo-ray on NVIDIA GPUs: vLLM's CUDA build brings its own torch; the rest is pinned by constraints.txt.
#   docker build -f docker/gpu.Dockerfile -t capo-ray:gpu .
#   docker run --rm --gpus all --shm-size=16g capo-ray:gpu doctor
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

LABEL org.opencontainers.image.title="capo-ray" \
      org.opencontainers.image.description="Post-train reasoning LLMs with step-level credit from an LLM critic, on Ray" \
      org.opencontainers.image.licenses="Apache-2.0"

# The compiler serves DeepSpeed and vLLM's kernels; wget serves KubeRay's health probes; rsync and ssh serve `ray up`.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv procps wget rsync openssh-client \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's own user has id 1000; Ray's images use that id for `ray`.
RUN userdel --remove ubuntu && useradd --create-home --uid 1000 ray
WORKDIR /opt/capo-ray
ENV PATH=/opt/venv/bin:$PATH \
    RAY_USAGE_STATS_ENABLED=0 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
RUN python3 -m venv /opt/venv

COPY constraints.txt ./
# Only what vLLM does not bring is taken from the lock; its own dependencies are resolved for CUDA.
RUN pip install vllm==0.32.0 \
    && grep -E '^(ray|deepspeed|peft|accelerate|transformers|pydantic|math-verify|latex2sympy2_extended|hydra-core|omegaconf|antlr4-python3-runtime|pyarrow|tensorboard|matplotlib|rich)==' \
       constraints.txt > own.txt \
    && pip install "ray[default]" -r own.txt
# What tracking=wandb, tracking=mlflow, data.kind=hub and the autoscaler of `ray up` on AWS need; nothing that is installed may
# change for them.
RUN pip freeze > held.txt && pip install -c held.txt wandb mlflow datasets boto3

COPY pyproject.toml README.md LICENSE ./
COPY conf ./conf
COPY capo_ray ./capo_ray
COPY scripts ./scripts
RUN pip install --no-deps . && mkdir /runs && chown ray /runs

USER ray
# `ray up` reads it to know where ~ is in the files that it mounts, and takes /root where it is not said.
ENV HOME=/home/ray
WORKDIR /runs
ENTRYPOINT ["capo-ray"]
CMD ["--help"]
