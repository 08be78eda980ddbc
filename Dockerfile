# syntax=docker/dockerfile:1
# unmask for the CPU:        docker build -t unmask .
# for a GPU, of CUDA 12.8:   docker build -t unmask:cuda --build-arg PYTORCH=cu128 .
# Run it:                    docker run --rm -v "$PWD:/work" unmask pretrain mae-vit-small data.train=photos output=runs/mae
# The CUDA libraries come with PyTorch's wheels: the host needs the driver and the container toolkit (`--gpus all`).
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG PYTORCH=cpu
ARG EXTRAS=torch,demo,hub,remote,report,serve,tiff
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/unmask
WORKDIR /source
# What is heavy and rarely changes first: a change of the code does not fetch PyTorch again.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/unmask/bin/pip install torch --index-url "https://download.pytorch.org/whl/${PYTORCH}"
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/unmask/bin/pip install ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/unmask /opt/unmask
COPY release/smoke.sh /opt/unmask/smoke.sh
# Any user may run it (`--user $(id -u)`), so that files belong to who started it: what it caches goes where all may write.
RUN useradd --create-home --uid 1000 unmask && mkdir -p /work /cache && chmod 1777 /work /cache
ENV PATH=/opt/unmask/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    UNMASK_CACHE=/cache/unmask HF_HOME=/cache/huggingface MPLCONFIGDIR=/cache/matplotlib TORCHINDUCTOR_CACHE_DIR=/cache/torch
USER 1000
WORKDIR /work
STOPSIGNAL SIGTERM
ENTRYPOINT ["unmask"]
CMD ["doctor"]
