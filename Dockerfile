# Two stages: the binaries are built where there is a compiler and run where there is none.
#
# Both base images can be replaced by build arguments. RUNTIME_IMAGE must bring a glibc at least as new as the builder's.
ARG BUILDER_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${BUILDER_IMAGE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin proxyd --bin proxyctl \
 && mkdir -p /out \
 && cp target/release/proxyd target/release/proxyctl /out/

FROM ${RUNTIME_IMAGE}
COPY --from=build /out/proxyd /out/proxyctl /usr/local/bin/
COPY deploy/proxyd/proxyd.toml /etc/proxyd/proxyd.toml
# State lives in memory and ends with the container; the keeper refuses a directory that others may enter. Mount a tmpfs
# here (uid 65532, mode 0700) when the root file system is read-only.
RUN mkdir -p /run/proxyd && chown 65532:65532 /run/proxyd && chmod 0700 /run/proxyd
# By number, so that an orchestrator can see that it is not root. No name is needed.
USER 65532:65532
# TERM drains. A container runtime sends KILL after its own grace period: give it more than [drain] timeout.
STOPSIGNAL SIGTERM
EXPOSE 7000 9900
ENTRYPOINT ["proxyd"]
CMD ["--config", "/etc/proxyd/proxyd.toml"]
