//! The embedded demo: two small backends and a configuration in front of them, so that the main job can be seen at once.

use std::fs::DirBuilder;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::keeper::StateDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, LocalSet};

/// A demo that is ready to be served: its backends run, its configuration is on disk.
#[derive(Debug)]
pub struct Demo {
    pub config: PathBuf,
    pub greeting: String,
}

/// Starts the backends on a thread of their own (they end with the process) and writes the configuration.
///
/// # Errors
/// The state directory cannot be made or is not ours, or no port is to be had.
pub fn start() -> io::Result<Demo> {
    let state_dir = state_dir();
    claim(&state_dir)?;
    // Not over the configuration of a demo that runs.
    let _claimed = StateDir::claim(&state_dir).map_err(io::Error::other)?;
    let backends = [("one", bind()?), ("two", bind()?)];
    let addresses = backends.each_ref().map(|(_, listener)| listener.local_addr());
    let [one, two] = addresses;
    let (one, two) = (one?, two?);
    std::thread::Builder::new().name("demo-backends".into()).spawn(move || serve(backends))?;
    let config = state_dir.join("demo.toml");
    let fresh = state_dir.join(".demo.toml");
    std::fs::write(&fresh, configuration(&state_dir, one, two))?;
    std::fs::rename(&fresh, &config)?;
    Ok(Demo { greeting: greeting(&config), config })
}

/// `$TMPDIR/proxyd-demo-UID`, where `proxyctl` looks as well.
pub fn state_dir() -> PathBuf {
    std::env::temp_dir().join(format!("proxyd-demo-{}", nix::unistd::geteuid()))
}

fn claim(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = std::fs::symlink_metadata(dir)?;
    if meta.uid() != nix::unistd::geteuid().as_raw() || !meta.is_dir() {
        return Err(io::Error::other(format!(
            "{} exists and is not a directory of ours; remove it, or set TMPDIR",
            dir.display()
        )));
    }
    Ok(())
}

fn bind() -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn configuration(state_dir: &Path, one: SocketAddr, two: SocketAddr) -> String {
    format!(
        r#"# Written by the demo at its start.
[runtime]
state_dir = {state_dir:?}
on_keeper_death = "exit"

[admin]
listen = "127.0.0.1:9900"

[drain]
timeout = "10m"

[listeners.demo]
bind = "127.0.0.1:7000"
pool = "demo"

[pools.demo]
backends = [{{ name = "one", address = "{one}" }}, {{ name = "two", address = "{two}" }}]
"#
    )
}

fn greeting(config: &Path) -> String {
    format!(
        "proxyd demo: 127.0.0.1:7000 -> two small backends. Ctrl-C ends it.\n\n\
         Try, in another terminal:\n  \
         curl http://127.0.0.1:7000/                               answered by backend one, then two\n  \
         cargo run --release --bin proxyctl -- status              who serves\n  \
         cargo run --release --bin proxyctl -- upgrade             a new generation takes over, with what is open\n  \
         cargo run --release --bin proxyctl -- sessions            the live table\n  \
         curl http://127.0.0.1:9900/metrics                        for Prometheus\n\n\
         The page:          http://127.0.0.1:9900/\n\
         Its configuration: {}\n",
        config.display()
    )
}

fn serve(backends: [(&'static str, std::net::TcpListener); 2]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    LocalSet::new().block_on(&runtime, async {
        let mut accepting = JoinSet::new();
        for (name, listener) in backends {
            accepting.spawn_local(accept(name, listener));
        }
        while accepting.join_next().await.is_some() {}
    });
}

async fn accept(name: &'static str, listener: std::net::TcpListener) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                connections.spawn_local(answer(name, stream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// An HTTP request gets a page; anything else its echo.
async fn answer(name: &'static str, mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let n = stream.read(&mut bytes).await?;
        if n == 0 {
            return Ok(());
        }
        let said = &bytes[..n];
        if [&b"GET "[..], b"HEAD ", b"POST "].iter().any(|method| said.starts_with(method)) {
            let body = format!("backend {name} says hello\n");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
            let body = if said.starts_with(b"HEAD ") { "" } else { &body };
            stream.write_all(format!("{head}{body}").as_bytes()).await?;
        } else {
            stream.write_all(said).await?;
        }
    }
}
