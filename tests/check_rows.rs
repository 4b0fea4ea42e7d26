//! Bad configurations, rows K1 to K12 of the fault table, given to the real `proxyd check` and `proxyd --config`; and what
//! `proxyd` exits with.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use harness::proxy::PROXYD;
use harness::{Conf, Port, Proxy, Starter, peer};
use nix::unistd::Uid;
use tempfile::TempDir;

const REST: &str =
    "[listeners.web]\nbind = \"127.0.0.1:7080\"\npool = \"app\"\n[pools.app]\nbackends = [\"127.0.0.1:7081\"]\n";

struct Scene {
    directory: TempDir,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("state")).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, text: &[u8]) -> PathBuf {
        let file = self.path("proxyd.toml");
        fs::write(&file, text).unwrap();
        file
    }

    /// A whole configuration that is good, with more lines at its start.
    fn good(&self, head: &str) -> String {
        format!("{head}{REST}[runtime]\nstate_dir = {:?}\nthreads = 1\n", self.path("state"))
    }
}

fn proxyd(words: &[&Path]) -> Output {
    Command::new(PROXYD).args(words).stdin(Stdio::null()).output().unwrap()
}

/// `check` exits with 1 and `--config` with 78, both saying where and what; nothing is started.
#[track_caller]
fn refused(file: &Path, position: &str, parts: &[&str]) {
    let place = if position.is_empty() { file.display().to_string() } else { format!("{}:{position}", file.display()) };
    for (first, code) in [("check", 1), ("--config", 78)] {
        let output = proxyd(&[Path::new(first), file]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{first}: {said}");
        for part in [&[place.as_str()], parts].concat() {
            assert!(said.contains(part), "{first}: {part:?} is missing in {said}");
        }
    }
}

#[track_caller]
fn accepted(file: &Path) -> String {
    let output = proxyd(&[Path::new("check"), file]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("ok"), "{output:?}");
    said
}

#[test]
fn k1_what_is_no_configuration_file() {
    let scene = Scene::new();
    refused(&scene.write(b""), "", &["there is no listener", "[listeners.NAME]"]);
    refused(scene.directory.path(), "", &["this is a directory"]);
    refused(&scene.path("none.toml"), "", &["there is no such file"]);
    refused(&scene.write(&[b'#'; (16 << 20) + 1]), "", &["larger than 16 MiB"]);
    refused(&scene.write(b"\x7fELF\x02\x01\x01\0\0"), "", &["binary file"]);
    refused(&scene.write(b"[admin]\nlisten = \"\xff\"\n"), "2:11", &["not UTF-8"]);
    refused(&scene.write(format!("[runtime\n{REST}").as_bytes()), "1:9", &["not TOML"]);
    let crlf = format!("\u{feff}{}", scene.good("").replace('\n', "\r\n"));
    accepted(&scene.write(crlf.as_bytes()));
}

#[test]
fn k1_a_file_that_may_not_be_read() {
    let Some(setpriv) = peer("setpriv") else { return };
    if !Uid::effective().is_root() {
        println!("skipped: only root can become someone else");
        return;
    }
    let scene = Scene::new();
    let file = scene.write(scene.good("").as_bytes());
    fs::set_permissions(scene.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let binary = scene.path("proxyd");
    fs::copy(PROXYD, &binary).unwrap();
    let mut other = Command::new(setpriv);
    other.args(["--reuid", "65534", "--clear-groups"]).arg(binary).arg("check").arg(&file);
    let output = other.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot be read") && said.contains("ermission denied"), "{said}");
}

#[test]
fn k2_keys_and_types() {
    let scene = Scene::new();
    let good = |head: &str| scene.write(scene.good(head).as_bytes());
    refused(
        &good("[admin]\nlisen = \"off\"\n"),
        "2:1",
        &["unknown key `lisen`", "did you mean `listen`?", "lisen = \"off\""],
    );
    refused(&good("[drain]\ntimeout = 5\n"), "2:11", &["has no unit"]);
    refused(&good("[admin]\nexpose = \"yes\"\n"), "2:10", &["is a string", "true or false"]);
    refused(&good("[drain]\nclose = \"fin\"\nclose = \"fin\"\n"), "3:1", &["duplicate key"]);
    refused(&good("[upgrade]\nsessions = \"keep\"\n"), "2:12", &["one of \"move\", \"drain\""]);
}

#[test]
fn k2_all_mistakes_at_once() {
    let scene = Scene::new();
    let file = scene.write(scene.good("[admin]\nlisen = 1\n[drain]\ntimeout = \"10\"\nspraed = \"1s\"\n").as_bytes());
    refused(&file, "2:1", &["did you mean `listen`?", "has no unit", "did you mean `spread`?"]);
    let said = String::from_utf8(proxyd(&[Path::new("check"), &file]).stderr).unwrap();
    assert_eq!(said.matches("error: ").count(), 3, "{said}");
}

#[test]
fn k3_addresses() {
    let scene = Scene::new();
    for (bind, part) in [
        ("127.0.0.1:0", "port 0"),
        ("127.0.0.1:65536", "port 65536 is above 65535"),
        ("127.0.0.1:http", "port `http` is not a number"),
        ("127.0.0.1", "the port is missing"),
        ("[::1:80", "the closing `]` is missing"),
        ("[fe80::1%eth0]:80", "scope ids"),
        ("localhost:80", "host names are not available"),
    ] {
        let text = scene.good("").replace("127.0.0.1:7080", bind);
        refused(&scene.write(text.as_bytes()), "2:8", &[part, "`listeners.web.bind`", bind]);
    }
}

#[test]
fn k4_two_listeners_at_one_place() {
    let scene = Scene::new();
    let twin = |first: &str, second: &str| {
        let text = scene.good("").replace("bind = \"127.0.0.1:7080\"", first);
        scene.write(format!("{text}[listeners.twin]\n{second}\npool = \"app\"\n").as_bytes())
    };
    let one = "bind = \"127.0.0.1:7080\"";
    refused(&twin(one, one), "10:8", &["is wanted twice", "listener `web`", "listener `twin`", "proxyd.toml:2:8"]);
    refused(&twin("bind = \"0.0.0.0:7080\"", one), "10:8", &["overlap"]);
    refused(&twin("v6only = false\nbind = \"[::]:7080\"", "bind = \"0.0.0.0:7080\""), "11:8", &["overlap"]);
    accepted(&twin("bind = \"[::]:7080\"", "bind = \"0.0.0.0:7080\""));
}

#[test]
fn k5_pools() {
    let scene = Scene::new();
    let backends =
        |list: &str| scene.write(scene.good("").replace("[\"127.0.0.1:7081\"]", &format!("[{list}]")).as_bytes());
    refused(&backends(""), "5:12", &["is empty", "at least one address"]);
    refused(&backends("\"127.0.0.1:1\", \"127.0.0.1:1\""), "5:28", &["twice", "first here"]);
    refused(&backends("{ address = \"127.0.0.1:1\", weight = 0 }"), "5:49", &["out of range", "1 to 256"]);
    refused(&backends("{ address = \"127.0.0.1:1\", weight = -1 }"), "5:49", &["out of range", "1 to 256"]);
    let unknown = scene.good("").replace("pool = \"app\"", "pool = \"apq\"");
    refused(&scene.write(unknown.as_bytes()), "3:8", &["there is no pool `apq`", "did you mean `app`?"]);
    let spare = format!("{}[pools.spare]\nbackends = [\"127.0.0.1:9\"]\n", scene.good(""));
    assert!(accepted(&scene.write(spare.as_bytes())).contains("no listener uses the pool `spare`"));
}

#[test]
fn k6_loops() {
    let scene = Scene::new();
    let itself = scene.good("").replace(":7081", ":7080");
    refused(&scene.write(itself.as_bytes()), "5:13", &["listener `web` sends to itself"]);
    let chain = "[listeners.back]\nbind = \"127.0.0.1:7081\"\npool = \"front\"\n[pools.front]\nbackends = [\"127.0.0.1:7080\"]\n";
    refused(&scene.write(scene.good(chain).as_bytes()), "", &["sends to itself over others"]);
}

#[test]
fn k7_durations() {
    let scene = Scene::new();
    for (value, part) in [
        ("\"10\"", "has no unit"),
        ("\"-1s\"", "is negative"),
        ("\"1y\"", "unknown unit `y`"),
        ("\"18446744073709551616s\"", "out of range"),
    ] {
        let file = scene.write(scene.good(&format!("[drain]\ntimeout = {value}\n")).as_bytes());
        refused(&file, "2:11", &[part, "`drain.timeout`", "\"30d\""]);
    }
}

#[test]
fn k8_more_sessions_than_descriptors() {
    let scene = Scene::new();
    let text = scene.good("").replace("threads = 1", "threads = 1\nmax_sessions = 1000000000");
    refused(&scene.write(text.as_bytes()), "9:16", &["descriptors, limit", "ulimit -Hn"]);
}

#[test]
fn k9_what_is_not_there_yet_is_not_taken_and_ignored() {
    let scene = Scene::new();
    for key in ["allow = [\"10.0.0.0/33\"]", "proxy_protocol = { trusted = [] }"] {
        let text = scene.good("").replace("pool = \"app\"", &format!("pool = \"app\"\n{key}"));
        refused(&scene.write(text.as_bytes()), "4:1", &["is not available in this version"]);
    }
}

#[test]
fn k10_where_the_admin_socket_lies() {
    let scene = Scene::new();
    let socket = |path: &str| scene.write(scene.good(&format!("[admin]\nsocket = {path:?}\n")).as_bytes());
    refused(&socket(&format!("/{}", "x".repeat(107))), "2:10", &["at most 107"]);
    refused(&socket("run/admin.sock"), "2:10", &["is not absolute"]);
    let open = scene.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    refused(&socket(open.join("a.sock").to_str().unwrap()), "2:10", &["can be written by everyone"]);
    let file = scene.path("plain");
    fs::write(&file, "mine").unwrap();
    refused(&socket(file.to_str().unwrap()), "2:10", &["exists and is not a socket"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn k11_metrics_for_everyone() {
    let scene = Scene::new();
    let file = scene.write(scene.good("[admin]\nlisten = \"0.0.0.0:9900\"\n").as_bytes());
    refused(&file, "2:10", &["can be reached from other machines", "`expose = true`"]);
    accepted(&scene.write(scene.good("[admin]\nlisten = \"0.0.0.0:9900\"\nexpose = true\n").as_bytes()));
}

#[test]
fn the_words_of_the_command_line() {
    for words in [&["--confg", "x"][..], &["check"], &["check", "a", "b"], &["--config"], &["serve"]] {
        let paths: Vec<&Path> = words.iter().map(Path::new).collect();
        let output = proxyd(&paths);
        assert_eq!(output.status.code(), Some(64), "{words:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
    for words in [&["--help"], &["--version"]] {
        let output = proxyd(&[Path::new(words[0])]);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty());
    }
}

/// Ends with this code, saying this.
#[track_caller]
fn does_not_start(starter: Starter, code: i32, parts: &[&str]) {
    let Err(exited) = starter.try_start() else { panic!("it started") };
    assert_eq!(exited.status.code(), Some(code), "{}", exited.stderr);
    for part in parts {
        assert!(exited.stderr.contains(part), "{part:?} is missing in {}", exited.stderr);
    }
}

#[test]
fn a_port_in_use_is_a_trouble_of_the_system_and_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let backend = [([127, 0, 0, 1], 9).into()];
    let conf = Conf::new().listener("main", &address.to_string(), "pool").pool("pool", &backend);
    does_not_start(Starter::new(&conf), 71, &["listener main", &address.to_string(), "another program holds it"]);
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &backend).with("admin", &format!("listen = \"{address}\""));
    does_not_start(Starter::new(&conf), 71, &["admin.listen", &address.to_string()]);
    assert!(TcpListener::bind(bind.address()).is_ok(), "what was bound before is left behind");
}

#[test]
fn one_state_directory_is_for_one_proxyd() {
    let backend = [([127, 0, 0, 1], 9).into()];
    let (first, second) = (Port::reserve(), Port::reserve());
    let running = Proxy::start(&Conf::simple(&first, &backend));
    let state = format!("state_dir = {:?}", running.directory().join("state"));
    does_not_start(Starter::new(&Conf::simple(&second, &backend).with("runtime", &state)), 71, &["state"]);
    assert!(running.is_ready() && running.status()["keeper"]["state"] == "serving", "the first one goes on");
}

#[test]
fn a_socket_of_another_program_is_not_taken_away() {
    let backend = [([127, 0, 0, 1], 9).into()];
    let bind = Port::reserve();
    let starter = Starter::new(&Conf::simple(&bind, &backend));
    let path = starter.state_dir().join("admin.sock");
    let others = UnixListener::bind(&path).unwrap();
    does_not_start(starter, 71, &["a running process answers there", path.to_str().unwrap()]);
    drop(others);
}
