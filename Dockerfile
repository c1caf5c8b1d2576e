# trpo-brax in a container, on an NVIDIA GPU or on the CPU; README, "In a container", says how it is built and run.

# Pin it by digest to have the same base again.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# With SOURCE_DATE_EPOCH bytecode is checked by its source's hash: by time it can be stale once copied to another stage,
# and a non-root user would compile it anew at every start.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    SOURCE_DATE_EPOCH=315532800
WORKDIR /build
RUN python -m venv /opt/trpo_brax

# The dependencies before the code: an edit of the code installs none of them again.
COPY requirements/ requirements/
ARG ACCELERATOR=cuda12
RUN case "$ACCELERATOR" in \
      cpu) requirements=base ;; \
      cuda12 | cuda13) requirements=$ACCELERATOR ;; \
      *) echo "ACCELERATOR is '$ACCELERATOR', and can be cpu, cuda12 or cuda13." >&2; exit 2 ;; \
    esac && \
    /opt/trpo_brax/bin/python -m pip install --require-hashes --only-binary :all: \
      --requirement "requirements/$requirements.txt"

# Into a folder of its own, so that the code is a small layer over that of its dependencies.
COPY pyproject.toml README.md LICENSE ./
COPY trpo_brax/ trpo_brax/
RUN /opt/trpo_brax/bin/python -m pip install --no-deps --no-build-isolation --prefix /package .


FROM ${BASE_IMAGE}
# What MuJoCo renders with where there is no display; MUJOCO_GL chooses between them at run time.
# NVIDIA's container runtime brings the driver's EGL library, and not always the file by which libEGL finds it.
RUN apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      libegl1 libgl1 libgl1-mesa-dri libosmesa6 && \
    rm -rf /var/lib/apt/lists/* && \
    mkdir -p /usr/share/glvnd/egl_vendor.d && \
    echo '{"file_format_version": "1.0.0", "ICD": {"library_path": "libEGL_nvidia.so.0"}}' \
      > /usr/share/glvnd/egl_vendor.d/10_nvidia.json && \
    mkdir --mode 1777 /runs /cache

COPY --from=build /opt/trpo_brax/ /opt/trpo_brax/
COPY --from=build /package/ /opt/trpo_brax/

# Home and caches are in a volume: writable for any user, on a read-only root filesystem too.
# Unbuffered: what the trainer says appears in the container's log when it is said.
ENV PATH=/opt/trpo_brax/bin:$PATH \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics

# Last, since every commit changes it: provenance.json takes the commit from here.
ARG GIT_COMMIT=""
ENV GIT_COMMIT=$GIT_COMMIT

VOLUME ["/runs", "/cache"]
# A run's default folder is runs/... under the current one: from here, it is in the volume.
WORKDIR /
# By number, so that a cluster can see that it is not root; it has no passwd entry, as any other given by --user.
USER 1000:1000
ENTRYPOINT ["trpo-brax"]
CMD ["--help"]
