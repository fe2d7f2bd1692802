FROM rust:1.95-bookworm AS build
WORKDIR /src
# The dependencies first: they change seldom, and this layer is then taken from the cache.
COPY Cargo.toml Cargo.lock ./
COPY benches benches
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs && cargo build --release --locked --bins
COPY migrations migrations
COPY sql sql
COPY src src
RUN touch src/main.rs src/lib.rs && cargo build --release --locked --bins

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libcurl4 libssl3 zlib1g \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/walcast /usr/local/bin/walcast
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s CMD ["walcast", "status"]
ENTRYPOINT ["walcast"]
CMD ["run"]
