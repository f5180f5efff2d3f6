# The image of c2d-agent, for linux/amd64, linux/arm64 and linux/arm/v7:
#
#   docker build -t c2d-agent .
#   docker buildx build --platform linux/amd64,linux/arm64,linux/arm/v7 --tag REGISTRY/c2d-agent --push .
#
# --build-arg FEATURES=gpio makes the small one for a device: no emulator, no c2d-send.
#
# The local IoT Hub alone, as an image of its own:
#
#   docker build --target emulator --build-arg FEATURES=emulator -t c2d-agent-emulator .
#
# Everything runs on the platform that builds, with a cross compiler, and nothing in the image of the target: no emulator
# of processors is needed. scripts/test-container.sh builds this file and runs the result.

FROM --platform=$BUILDPLATFORM docker.io/library/rust:1.95-bookworm AS build
ARG TARGETARCH
ARG TARGETVARIANT
WORKDIR /build
# The linker and, where it is missing, Rust's library for the target; cargo learns of both from its own configuration file.
# The C compiler for ring is found by the target's name.
RUN set -eu; \
    case "$TARGETARCH$TARGETVARIANT" in \
    amd64*) target=x86_64-unknown-linux-gnu gnu=x86_64-linux-gnu packages="gcc-x86-64-linux-gnu libc6-dev-amd64-cross" ;; \
    arm64*) target=aarch64-unknown-linux-gnu gnu=aarch64-linux-gnu packages="gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;; \
    armv7) target=armv7-unknown-linux-gnueabihf gnu=arm-linux-gnueabihf packages="gcc-arm-linux-gnueabihf libc6-dev-armhf-cross" ;; \
    *) echo "there is no image for $TARGETARCH$TARGETVARIANT: build with --platform linux/amd64, linux/arm64 or linux/arm/v7" >&2; exit 1 ;; \
    esac; \
    if ! command -v "$gnu-gcc"; then \
        apt-get update; \
        apt-get install -y --no-install-recommends $packages; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    [ -d "$(rustc --print target-libdir --target "$target")" ] || rustup target add "$target"; \
    printf '[build]\ntarget = "%s"\n[target.%s]\nlinker = "%s-gcc"\n' "$target" "$target" "$gnu" >>"$CARGO_HOME/config.toml"

# The dependencies first, on their own: this layer stays good for as long as they do.
ARG FEATURES=""
ARG PROFILE=release
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs && \
    cargo build --locked --profile "$PROFILE" ${FEATURES:+--no-default-features --features "$FEATURES"}
COPY src src
RUN touch src/main.rs src/lib.rs && \
    cargo build --locked --profile "$PROFILE" ${FEATURES:+--no-default-features --features "$FEATURES"} && \
    mkdir /result && cp target/*-linux-*/*/c2d-agent /result/

# The user, and the directory that belongs to it, made in the same system as the final one.
FROM --platform=$BUILDPLATFORM docker.io/library/debian:bookworm-slim AS files
RUN useradd --uid 10001 --user-group --home-dir /var/lib/c2d-agent --no-create-home --shell /usr/sbin/nologin c2d-agent && \
    mkdir -p /result/etc /result/state/c2d-agent && \
    cp /etc/passwd /etc/group /result/etc/ && chmod 700 /result/state/c2d-agent

# The local IoT Hub. Its options follow the name of the image.
FROM docker.io/library/debian:bookworm-slim AS emulator
COPY --from=files /result/etc/ /etc/
COPY --from=files --chown=10001:10001 /result/state/ /var/lib/
COPY --from=build /result/c2d-agent /usr/local/bin/c2d-agent

# As in Cargo.toml.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="c2d-agent-emulator" \
      org.opencontainers.image.description="A local Azure IoT Hub for development and tests" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

USER 10001:10001
# For `docker exec … c2d-agent emulator faults` and the other subcommands, too.
ENV C2D_EMULATOR_STATE_DIR=/var/lib/c2d-agent
# Keys, ca.pem and connection strings.
VOLUME /var/lib/c2d-agent
EXPOSE 8883 5671 443
STOPSIGNAL SIGTERM
# It asks the hub over HTTPS, and leaves nothing in its log.
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s --retries=3 CMD ["c2d-agent", "emulator", "faults"]
# In a container, loopback is for nobody else. Who can connect is decided by the ports that are published.
ENTRYPOINT ["c2d-agent", "emulator", "--bind", "0.0.0.0"]

FROM docker.io/library/debian:bookworm-slim
COPY --from=files /result/etc/ /etc/
COPY --from=files --chown=10001:10001 /result/state/ /var/lib/
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY packaging/container/config.toml /etc/c2d-agent/config.toml
COPY --from=build /result/c2d-agent /usr/local/bin/c2d-agent

# As in Cargo.toml.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="c2d-agent" \
      org.opencontainers.image.description="Azure IoT Hub cloud-to-device messages to GPIO outputs and commands, with the sender and a local hub emulator" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

USER 10001:10001
# The inbox: what is known of messages must outlive the container.
VOLUME /var/lib/c2d-agent
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s --retries=3 CMD ["c2d-agent", "healthcheck"]
ENTRYPOINT ["c2d-agent"]
CMD ["run"]
