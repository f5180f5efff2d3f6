# The image of c2d-agent: the program alone on Debian, without root, for amd64, arm64 and arm/v7.
#
#   docker build -t c2d-agent .
#   docker buildx build --platform linux/amd64,linux/arm64,linux/arm/v7 -t REGISTRY/c2d-agent:VERSION --push .
#   docker build --build-arg IMAGE=device -t c2d-agent:device .     # run, check, inbox, status, healthcheck only
#
# It is compiled on the machine that builds, whatever the image is for, and the last stage runs nothing: no emulation is needed.

FROM --platform=$BUILDPLATFORM rust:1-bookworm AS build
ARG TARGETARCH
ARG TARGETVARIANT
# full or device
ARG IMAGE=full
WORKDIR /build
COPY . .
RUN scripts/build-image.sh "$TARGETARCH" "$TARGETVARIANT" "$IMAGE" /image

FROM debian:bookworm-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="c2d-agent" \
      org.opencontainers.image.description="Azure IoT Hub cloud-to-device messages to GPIO outputs and commands" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
# The program, the system's roots for TLS, and an empty directory for the inbox that belongs to the user below.
COPY --from=build /image/root /
COPY --from=build --chown=10001:10001 /image/state /var/lib/c2d-agent
USER 10001:10001
VOLUME ["/var/lib/c2d-agent"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["c2d-agent", "healthcheck"]
ENTRYPOINT ["c2d-agent"]
CMD ["run"]
