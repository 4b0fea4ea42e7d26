//! Hostile, clumsy and slow admin clients, rows A1 to A9 of the fault table: each gets its clear error, the daemon serves on,
//! and sessions notice nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use harness::proxy::{PROXYCTL, PROXYD};
use harness::{Census, Client, Conf, Port, Proxy, Tagged, peer, until};
use nix::unistd::Uid;

const DEADLINE: Duration = Duration::from_secs(30);

/// A daemon with one session that must notice nothing.
struct Scene {
    /// Dropped before the proxy, which would wait for it.
    session: Client,
    bind: Port,
    proxy: Proxy,
    _backend: Tagged,
}

impl Scene {
    fn start() -> Self {
        Self::start_with(|conf| conf)
    }

    fn start_with(more: impl FnOnce(Conf) -> Conf) -> Self {
        let backend = Tagged::start("a");
        let bind = Port::reserve();
        let proxy = Proxy::start(&more(Conf::simple(&bind, &[backend.address()])));
        let session = Client::greeted(bind.address()).0;
        Self { session, bind, proxy, _backend: backend }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.proxy.socket()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Sends these bytes to the Unix socket and reads until the daemon closes.
    fn raw(&self, bytes: &[u8]) -> String {
        exchange(self.connect(), bytes)
    }

    /// The same over TCP.
    fn raw_tcp(&self, bytes: &[u8]) -> String {
        let stream = TcpStream::connect(self.proxy.admin()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        exchange(stream, bytes)
    }

    fn post(&self, body: &[u8]) -> String {
        self.raw(&[head(body.len()).as_bytes(), body].concat())
    }

    /// Everything works as before.
    #[track_caller]
    fn serves(&mut self) {
        self.session.echo("noticed nothing");
        assert_eq!(Client::greeted(self.bind.address()).1, "a");
        assert_eq!(self.proxy.ctl_json(&["status"])["keeper"]["state"], "serving");
        assert!(self.proxy.is_ready());
    }
}

fn head(length: usize) -> String {
    format!("POST /v1/command HTTP/1.1\r\nHost: proxyd\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")
}

fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> String {
    // A daemon that has read enough answers and closes: the rest is refused.
    let _refused = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    // A reset may follow the answer, for bytes that were not read; a deadline may not pass.
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&chunk[..n]),
            Err(error) => {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the daemon does not close");
                break;
            }
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[track_caller]
fn answers(answer: &str, code: u16, parts: &[&str]) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "expected {code}: {answer:?}");
    for part in parts {
        assert!(answer.contains(part), "{part:?} is missing in {answer}");
    }
}

#[track_caller]
fn exits(output: &Output, code: i32, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in {said}");
    }
}

fn ctl_at(socket: &Path) -> Output {
    Command::new(PROXYCTL).arg("--socket").arg(socket).arg("status").stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a1_nobody_or_somebody_else_at_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    exits(&ctl_at(&at("none")), 3, &["no proxyd answers at", "none"]);
    drop(UnixListener::bind(at("stale")).unwrap());
    exits(&ctl_at(&at("stale")), 3, &["no proxyd answers at", "stale"]);
    assert!(at("stale").exists(), "the client has removed it");
    fs::write(at("file"), "").unwrap();
    exits(&ctl_at(&at("file")), 3, &["no proxyd answers at"]);
    let other = UnixListener::bind(at("other")).unwrap();
    let program = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").unwrap();
        let mut rest = Vec::new();
        let _gone = stream.read_to_end(&mut rest);
    });
    exits(&ctl_at(&at("other")), 3, &["no proxyd answers at"]);
    program.join().unwrap();
}

/// `proxyctl` as somebody else, who can execute it.
fn as_nobody(directory: &Path, socket: &Path, words: &[&str]) -> Option<Command> {
    let setpriv = peer("setpriv")?;
    if !Uid::effective().is_root() {
        println!("skipped: only root can become someone else");
        return None;
    }
    let binary = directory.join("proxyctl");
    if !binary.exists() {
        fs::copy(PROXYCTL, &binary).unwrap();
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(setpriv);
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(binary).arg("--socket").arg(socket);
    command.args(words).stdin(Stdio::null());
    Some(command)
}

#[test]
fn a2_another_user_is_denied_by_the_file_and_by_the_daemon() {
    let public = tempfile::tempdir().unwrap();
    let socket = public.path().join("admin.sock");
    let line = format!("socket = {socket:?}");
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &[backend.address()]).with("admin", &line);
    let proxy = Proxy::start(&conf);
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    let Some(mut status) = as_nobody(public.path(), &socket, &["status"]) else { return };
    exits(&status.output().unwrap(), 7, &["ermission"]);
    // Someone has opened it to all: the daemon itself looks who asks.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    for words in [&["status"][..], &["reload"], &["upgrade"], &["kill", "--all"], &["metrics"], &["shutdown"]] {
        let output = as_nobody(public.path(), &socket, words).unwrap().output().unwrap();
        exits(&output, 7, &["denied", "you are uid 65534"]);
    }
    assert!(proxy.stderr().contains("a process of another user was refused"), "{}", proxy.stderr());
    assert!(proxy.is_ready());
    assert_eq!(Client::greeted(bind.address()).1, "a");
}

#[test]
fn the_socket_and_its_directory_are_private() {
    let scene = Scene::start();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(scene.proxy.socket()), 0o600);
    assert_eq!(mode(scene.proxy.socket().parent().unwrap().into()), 0o700);
}

#[test]
fn a3_words_that_are_not_known_name_those_that_are() {
    let mut scene = Scene::start();
    let ctl = |words: &[&str]| scene.proxy.ctl(words);
    exits(&ctl(&["upgarde"]), 2, &["upgarde", "upgrade"]);
    exits(&ctl(&[]), 2, &["Usage"]);
    exits(&ctl(&["pool", "swap", "main"]), 2, &["<POOL>"]);
    exits(&ctl(&["reload", "now"]), 2, &["now"]);
    exits(&ctl(&["backend", "weight", "pool", "x", "many"]), 2, &["many"]);
    exits(&ctl(&["pool", "swap", "mian", "pool"]), 1, &["mian", "main"]);
    exits(&ctl(&["pool", "show", "poll"]), 2, &["there are: pool"]);
    answers(&scene.post(br#"{"verb":"explode"}"#), 400, &["explode", "upgrade"]);
    answers(&scene.post(br#"{"verb":"reload","now":true}"#), 400, &["now"]);
    answers(&scene.post(br#"{"verb":"pool-swap","listener":"main"}"#), 400, &["pool"]);
    answers(&scene.post(br#"{"verb":"kill","rate":"fast"}"#), 400, &["not a command"]);
    answers(&scene.raw(b"GET /v1/everything HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), 404, &["/v1/status"]);
    let query = b"GET /v1/sessions?colour=red HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    answers(&scene.raw(query), 400, &["colour", "listener"]);
    scene.serves();
}

#[test]
fn a4_requests_that_are_no_commands() {
    let mut scene = Scene::start();
    answers(&scene.post(b""), 400, &["the body is empty"]);
    answers(&scene.post(b"{\"verb\":\"rel\xff\"}"), 400, &["not a command"]);
    answers(&scene.post(b"{\"verb\":"), 400, &["not a command"]);
    answers(&scene.post(b"{\"verb\":\"reload\"} and more"), 400, &["not a command"]);
    answers(&scene.post("[".repeat(60_000).as_bytes()), 400, &["nests deeper than 32"]);
    // 100 MB are announced, and refused before they come.
    answers(&scene.raw(head(100_000_000).as_bytes()), 413, &["longer than 65536 bytes"]);
    // Without a length it is counted.
    let chunks = "POST /v1/command HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
        + &format!("10000\r\n{}\r\n", "x".repeat(65_536)).repeat(3);
    answers(&scene.raw(chunks.as_bytes()), 413, &["longer than 65536 bytes"]);
    let line = scene.raw(&vec![b'x'; 1 << 20]);
    assert!(line.is_empty() || line.starts_with("HTTP/1.1 4"), "{line:?}");
    let header = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat();
    let answer = scene.raw(&header);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    scene.serves();
}

#[test]
fn a4_a_thousand_requests_in_one_go() {
    let mut scene = Scene::start();
    let one = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let last = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut stream = scene.connect();
    let mut writer = stream.try_clone().unwrap();
    let all = one.repeat(999) + last;
    let writing = std::thread::spawn(move || writer.write_all(all.as_bytes()));
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    writing.join().unwrap().unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1_000);
    scene.serves();
}

#[test]
fn a4_whoever_takes_too_long_is_cut() {
    let mut scene = Scene::start();
    // Nothing at all, half a head, half a body: 5 s for the whole of a request.
    let mut silent = scene.connect();
    let mut half_head = scene.connect();
    half_head.write_all(b"POST /v1/command HT").unwrap();
    let mut half_body = scene.connect();
    half_body.write_all(format!("{}{{\"verb\"", head(1_000)).as_bytes()).unwrap();
    let mut dribbling = scene.connect();
    let mut more = dribbling.try_clone().unwrap();
    let dribble = std::thread::spawn(move || {
        // One byte at a time puts nothing off.
        while more.write_all(b"G").is_ok() {
            std::thread::park_timeout(Duration::from_millis(500));
        }
    });
    scene.serves();
    let mut rest = String::new();
    silent.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    half_head.read_to_string(&mut rest).unwrap();
    half_body.read_to_string(&mut rest).unwrap();
    answers(&rest, 408, &["nothing was done"]);
    let mut answer = Vec::new();
    let _cut = dribbling.read_to_end(&mut answer);
    dribble.join().unwrap();
    scene.serves();
}

#[test]
fn a4_an_answer_that_is_not_read_costs_its_reader_only() {
    let mut scene = Scene::start();
    let mut greedy: Vec<UnixStream> = (0..5).map(|_| scene.connect()).collect();
    for stream in &mut greedy {
        stream.set_nonblocking(true).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
        while stream.write(request.as_bytes()).is_ok() {}
    }
    scene.serves();
    assert_eq!(scene.proxy.ctl_json(&["upgrade"])["result"], "committed");
    scene.serves();
}

#[test]
fn a5_browsers_and_other_protocols() {
    let mut scene = Scene::start();
    let host = scene.proxy.admin();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let request =
            format!("{method} /v1/command HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        answers(&scene.raw_tcp(request.as_bytes()), 405, &["read-only"]);
    }
    let page =
        format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nOrigin: http://evil.example\r\nConnection: close\r\n\r\n");
    answers(&scene.raw_tcp(page.as_bytes()), 403, &["another origin"]);
    let command = r#"{"verb":"shutdown"}"#;
    let forged = head(command.len()).replace("Host: proxyd", "Host: proxyd\r\nOrigin: http://evil.example") + command;
    answers(&scene.raw(forged.as_bytes()), 403, &["another origin"]);
    for path in ["/v1/status", "/v1/sessions", "/v1/command", "/../state", "/metrics/"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        answers(&scene.raw_tcp(request.as_bytes()), 404, &["/metrics"]);
    }
    for greeting in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"EHLO there\r\n", b"\0\0\0\0\0\0\0\0\r\n\r\n"]
    {
        let answer = scene.raw_tcp(greeting);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer:?}");
        let answer = scene.raw(greeting);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer:?}");
    }
    scene.serves();
}

#[test]
fn a6_a_hundred_idle_clients_do_not_keep_the_operator_out() {
    let mut scene = Scene::start();
    let before = Census::of(scene.proxy.keeper_pid()).unwrap().open();
    let idle: Vec<UnixStream> = (0..100).map(|_| scene.connect()).collect();
    let idle_tcp: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(scene.proxy.admin()).unwrap()).collect();
    scene.serves();
    assert_eq!(scene.proxy.ctl_json(&["upgrade"])["result"], "committed");
    scene.serves();
    let held = Census::of(scene.proxy.keeper_pid()).unwrap().open();
    assert!(held <= before + 2 * 64 + 20, "{held} descriptors for {before} and two times 64 clients");
    drop((idle, idle_tcp));
    until("the keeper has let go of them", DEADLINE, || {
        // The old generation may still drain, with a channel and a pidfd.
        Census::of(scene.proxy.keeper_pid()).unwrap().open() <= before + 6
    });
}

#[test]
fn a6_who_vanishes_before_the_answer_cancels_nothing_and_leaks_nothing() {
    let mut scene = Scene::start();
    let serving = scene.proxy.serving();
    let body = br#"{"verb":"upgrade"}"#;
    let mut stream = scene.connect();
    stream.write_all(&[head(body.len()).as_bytes(), body].concat()).unwrap();
    let mut first = [0; 1];
    // It has begun once its first line is there.
    stream.read_exact(&mut first).unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
    drop(stream);
    until("the upgrade goes on to its end", DEADLINE, || {
        let now = scene.proxy.serving();
        now.is_some() && now != serving
    });
    let open = || Census::of(scene.proxy.keeper_pid()).unwrap().descriptors.get("socket").copied().unwrap_or(0);
    let before = open();
    for _ in 0..200 {
        let mut stream = scene.connect();
        let _gone = stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    until("nothing is left of them", DEADLINE, || open() <= before);
    scene.serves();
}

#[test]
fn a7_a_binary_that_others_could_have_made() {
    let mut scene = Scene::start();
    let directory = scene.proxy.directory().to_owned();
    let binary = directory.join("proxyd-next");
    fs::copy(PROXYD, &binary).unwrap();
    let upgrade = |scene: &Scene, binary: &str| scene.proxy.ctl(&["upgrade", "--binary", binary]);
    let path = binary.to_str().unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o757)).unwrap();
    exits(&upgrade(&scene, path), 1, &["preflight", "writable by others", "still serving"]);
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    if Uid::effective().is_root() {
        chown(&binary, Some(65_534), Some(65_534)).unwrap();
        exits(&upgrade(&scene, path), 1, &["preflight", "belongs to uid 65534", "still serving"]);
        chown(&binary, Some(0), Some(65_534)).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o775)).unwrap();
        exits(&upgrade(&scene, path), 1, &["preflight", "writable by others"]);
        chown(&binary, Some(0), Some(0)).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // The keeper would look in another directory: it is told absolute paths only, and `proxyctl` makes them so.
    answers(&scene.post(br#"{"verb":"upgrade","binary":"proxyd-next"}"#), 400, &["must be absolute"]);
    scene.serves();
    let mut relative = scene.proxy.ctl_command(&["upgrade", "--binary", "./proxyd-next"]);
    let output = relative.current_dir(&directory).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    scene.serves();
}

#[test]
fn a9_out_of_range_and_gone() {
    let mut scene = Scene::start();
    let text = fs::read_to_string(scene.proxy.config()).unwrap();
    for timeout in ["-1s", "31d", "99999999999999999999s"] {
        fs::write(scene.proxy.config(), format!("{text}\n[drain]\ntimeout = \"{timeout}\"\n")).unwrap();
        exits(&scene.proxy.ctl(&["reload"]), 1, &["`drain.timeout`", "\"30d\"", "is unchanged"]);
    }
    fs::write(scene.proxy.config(), text).unwrap();
    let killed = scene.proxy.ctl_json(&["kill", "--generation", "77"]);
    assert_eq!(killed["matched"], 0, "{killed}");
    exits(&scene.proxy.ctl(&["kill", "--generation", "-1"]), 2, &["-1"]);
    exits(&scene.proxy.ctl(&["--timeout", "0s", "status"]), 2, &["longer than nothing"]);
    scene.serves();
}
