//! The file of an upgrade, and the configuration it is started with, are not what they should be.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use crate::files::Mount;
use crate::harness::slim::copy;
use crate::harness::{Port, Steady, Tagged, slim, until};
use crate::row::{DEADLINE, Row, conf, rounds};

fn executable(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Each with its errno or its reason, and its path, before anything is started. (More of them in `upgrade_refused.rs`.)
#[test]
fn f14_a_file_that_cannot_be_executed() {
    let mut row = Row::start("F14");
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir(at("directory")).unwrap();
    executable(&at("empty"), b"");
    executable(&at("script"), b"#!/no/such/interpreter\n");
    executable(&at("cut"), &fs::read(slim()).unwrap()[..4096]);
    copy(slim(), &at("not-executable"));
    fs::set_permissions(at("not-executable"), fs::Permissions::from_mode(0o644)).unwrap();
    // e_machine, at 18 (elf(5)): 8 is MIPS.
    copy(slim(), &at("foreign"));
    File::options().write(true).open(at("foreign")).unwrap().write_all_at(&8_u16.to_ne_bytes(), 18).unwrap();
    for _ in 0..rounds() {
        for (name, word) in [
            ("missing", "No such file"),
            ("directory", "is a directory"),
            ("empty", "not an ELF"),
            ("script", "not an ELF"),
            ("cut", ""),
            ("not-executable", "not executable"),
            ("foreign", "another machine"),
        ] {
            let path = at(name).to_str().unwrap().to_owned();
            row.refuses(&format!("F14 {name}"), &["--binary", &path], &["preflight"], &[word, &path]);
        }
    }
    row.ends_well();
}

#[test]
fn f14_a_file_on_a_mount_without_exec() {
    let mut row = Row::start("F14");
    let place = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::tmpfs(place.path(), "noexec") else { return };
    executable(&place.path().join("proxyd"), &fs::read(slim()).unwrap()[..4096]);
    let path = place.path().join("proxyd").to_str().unwrap().to_owned();
    row.refuses("F14 noexec", &["--binary", &path], &["preflight"], &["noexec", &path]);
    row.ends_well();
}

/// What would be "text file busy" does not matter: a copy is executed.
#[test]
fn f14_a_file_that_is_open_for_writing_is_taken_as_it_is() {
    let row = Row::start("F14");
    let path = row.proxy.directory().join("busy");
    copy(slim(), &path);
    let _open = File::options().append(true).open(&path).unwrap();
    let report = row.proxy.ctl_json(&["upgrade", "--binary", path.to_str().unwrap()]);
    assert_eq!(report["result"], "committed", "{report}");
    until("it is settled", DEADLINE, || row.proxy.status()["generations"].as_array().unwrap().len() == 1);
    row.ends_well();
}

/// What was checked is what runs, whatever becomes of the path meanwhile.
#[test]
fn f59_the_file_is_replaced_while_the_new_process_starts() {
    let mut row = Row::start("F59");
    let gate = row.proxy.directory().join("gate");
    for _ in 0..rounds() {
        let Some(path) = row.impostor(&format!("worker:gate:{}", gate.display())) else { return };
        let output = row.upgrade_while(&["--binary", &path], |row, old| {
            crate::spawn::newcomer(row, old);
            let garbage = row.proxy.directory().join("garbage");
            executable(&garbage, b"\x7fELF but not really");
            fs::rename(garbage, &path).unwrap();
            fs::write(&gate, "").unwrap();
        });
        assert!(output.status.success(), "{output:?}");
        fs::remove_file(&gate).unwrap();
        row.holds_images(2);
        row.cleaned("F59");
        // The path of the last committed upgrade is garbage now.
        row.refuses("F59", &[], &["preflight"], &[&path]);
        let report = row.proxy.ctl_json(&["upgrade", "--binary", slim().to_str().unwrap()]);
        assert_eq!(report["result"], "committed", "{report}");
        row.cleaned("F59");
    }
    row.ends_well();
}

#[test]
fn f27_a_configuration_that_is_wrong() {
    let mut row = Row::start("F27");
    let good = fs::read_to_string(row.proxy.config()).unwrap();
    for _ in 0..rounds() {
        for (wrong, word) in [
            ("[drain]\ntimeout = \"soon\"\n".to_owned(), "proxyd.toml:2:"),
            (format!("{good}\n[nonsense]\n"), "nonsense"),
            (format!("{good}\n[["), "proxyd.toml:"),
            (String::new(), "proxyd.toml"),
        ] {
            fs::write(row.proxy.config(), &wrong).unwrap();
            row.refuses("F27", &[], &["preflight"], &[word]);
        }
        fs::remove_file(row.proxy.config()).unwrap();
        row.refuses("F27 without a file", &[], &["preflight"], &["proxyd.toml"]);
        fs::write(row.proxy.config(), &good).unwrap();
    }
    row.ends_well();
}

/// What is added is bound before, and given up with the rest; what is removed is served until the new one is the truth.
#[test]
fn f26_a_listener_that_cannot_be_added_and_one_that_is_removed() {
    let (other, backend) = (Port::reserve(), Tagged::start("other"));
    let address = backend.address();
    let more =
        |conf: crate::harness::Conf| conf.listener("other", &other.to_string(), "other").pool("other", &[address]);
    let mut row = Row::start_as("F26", more, |starter| starter);
    let Some(path) = row.impostor("worker:exit:3") else { return };
    let (free, taken) = (Port::reserve(), TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let taken = taken.local_addr().unwrap().to_string();
    let before = conf(&row.port, &row.backend);
    for _ in 0..rounds() {
        // Adds two, of which one is taken, and removes one.
        let conf = before.clone().listener("a-free", &free.to_string(), "pool").listener("b-taken", &taken, "pool");
        row.proxy.write_config(&conf);
        row.refuses("F26", &[], &["preflight"], &["b-taken", &taken, "in use"]);
        assert!(std::net::TcpStream::connect(free.address()).is_err(), "a socket of a failed upgrade is still open");
        assert_eq!(Steady::open(other.address()).tag, "other");
        row.proxy.write_config(&before.clone().listener("a-free", &free.to_string(), "pool"));
        row.refuses("F26", &["--binary", &path], &["spawn"], &["status 3"]);
        assert!(std::net::TcpStream::connect(free.address()).is_err(), "a socket of a failed upgrade is still open");
        assert_eq!(Steady::open(other.address()).tag, "other");
    }
    row.proxy.write_config(&more(before));
    row.ends_well();
}
