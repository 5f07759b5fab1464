# The image of the command `rfork`, which is planner and worker. It has one binary, the libraries that it loads, and no shell.
#
#     docker build --tag rfork:0.1.0 .
#     docker build --tag rfork:0.1.0 --platform linux/arm64 .
#
# The first stage is Debian's bookworm, whose glibc the image gets.
ARG RUST_VERSION=1.95
FROM rust:${RUST_VERSION}-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --locked --release --package rfork-cli --bin rfork && \
    loader/cli/image-root target/release/rfork /image

FROM scratch
COPY --from=build /image /
# What is copied belongs to root, but for this.
COPY --from=build --chown=65532:65532 /image/var/lib/rfork /var/lib/rfork
# A planner's own file is then /var/lib/rfork/planner.db.
ENV XDG_DATA_HOME=/var/lib
USER 65532:65532
EXPOSE 1223
ENTRYPOINT ["/usr/bin/rfork"]

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=
ARG SOURCE=
LABEL org.opencontainers.image.title="rfork" \
      org.opencontainers.image.description="Start inference workers from running ones: planner and worker" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
