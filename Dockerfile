# syntax=docker/dockerfile:1
# espd and espctl in a small image: no shell, no package manager, not root.
#
#   docker build --tag espd .
#   docker run --rm --volume "$PWD/espd:/etc/espd:ro" --env DATABASE_URL --publish 127.0.0.1:4680:4680 espd
#
# The configuration is /etc/espd/espd.toml. Its [admin] should listen on 0.0.0.0:4680, with a token, so that the health check
# and the world outside reach it: see docs/deployment.md.

FROM rust:1.94-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --locked --release --bins \
 && mkdir -p /out \
 && cp target/release/espd target/release/espctl /out/

# The C library, root certificates, time zones, and the user 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/espd /out/espctl /usr/local/bin/
ENV ESPD_CONFIG=/etc/espd/espd.toml
USER 65532:65532
WORKDIR /home/nonroot
EXPOSE 4680
STOPSIGNAL SIGTERM
# Whether the supervisor's loop turns; asks no database.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/espd", "probe", "livez"]
# espd is process 1 and collects what its children leave.
ENTRYPOINT ["/usr/local/bin/espd"]
CMD ["run"]
