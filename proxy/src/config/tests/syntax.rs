//! Files that are no TOML, or no file at all.

use std::fs;
use std::path::Path;

use super::super::{Mistakes, load, parse_in};
use super::{REST, around, good, mistakes, refused};

fn bytes(text: &[u8]) -> Result<super::super::Parsed, Mistakes> {
    parse_in(Path::new("proxyd.toml"), text, &around())
}

#[track_caller]
fn not_loaded(path: &Path, part: &str) {
    let Err(mistakes) = load(path) else { panic!("{} is loaded", path.display()) };
    let told = mistakes.to_string();
    assert!(told.contains(part) && told.contains(path.to_str().unwrap()), "{told}");
}

#[test]
fn k1_what_is_no_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    not_loaded(&directory.path().join("none.toml"), "there is no such file");
    not_loaded(directory.path(), "this is a directory");
    not_loaded(Path::new("/dev/null"), "not a regular file");
    let under_file = directory.path().join("file");
    fs::write(&under_file, REST).unwrap();
    not_loaded(&under_file.join("x"), "cannot be read");
}

#[test]
fn k1_a_pipe_without_a_writer_does_not_hang() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    not_loaded(&pipe, "not a regular file");
}

#[test]
fn k1_a_file_above_16_mib_is_refused_and_one_of_16_mib_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.toml");
    let mut text = REST.to_owned();
    text.push('#');
    text.push_str(&"x".repeat((16 << 20) - text.len()));
    fs::write(&path, &text).unwrap();
    let (read, _) = load(&path).unwrap();
    assert_eq!(read.len(), 16 << 20);
    text.push('x');
    fs::write(&path, &text).unwrap();
    not_loaded(&path, "larger than 16 MiB");
}

#[test]
fn k1_the_bytes_of_a_loaded_file_are_given_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxyd.toml");
    let text = format!("\u{feff}{}", REST.replace('\n', "\r\n"));
    fs::write(&path, &text).unwrap();
    let (read, parsed) = load(&path).unwrap();
    assert_eq!(read, text.as_bytes());
    assert!(parsed.config.listeners.contains_key("web"));
}

#[test]
fn k1_an_empty_file_lacks_a_listener() {
    for text in ["", "\n\n", "# nothing\n", "\u{feff}"] {
        refused(text, "", &["there is no listener", "[listeners.NAME]"]);
    }
}

#[test]
fn k1_a_binary_file_is_called_one() {
    let mistakes = bytes(b"\x7fELF\x02\x01\x01\0\0").unwrap_err();
    assert!(mistakes.to_string().contains("binary file: there is a zero at byte 7"), "{mistakes}");
}

#[test]
fn k1_what_is_not_utf8_is_shown_with_its_position() {
    let mistakes = bytes(b"[admin]\nlisten = \"\xff\xfe\"\n").unwrap_err();
    let one = mistakes.iter().next().unwrap();
    assert_eq!(one.position(), Some((2, 11)));
    assert_eq!(one.title(), "this is not UTF-8: the byte 0xff");
}

#[test]
fn k1_byte_order_mark_and_crlf_are_accepted() {
    let crlf = REST.replace('\n', "\r\n");
    assert_eq!(good(&format!("\u{feff}{crlf}")), good(REST));
    // And positions do not count them.
    refused(&format!("\u{feff}x = 1\r\n{crlf}"), "1:1", &["unknown key `x`"]);
    refused(&format!("{crlf}y = 1\r\n"), "6:1", &["unknown key `y`"]);
}

#[test]
fn k1_several_errors_of_syntax_are_told_at_once() {
    let text = format!("[runtime\nthreads = 2\n[admin]\nlisten = 1 2\n[drain]\nclose = \"fin\nspeed = 3\n{REST}");
    let told = mistakes(&text);
    for line in [1, 4, 6] {
        let start = format!("proxyd.toml:{line}:");
        let at = told.iter().find(|mistake| mistake.starts_with(&start));
        assert!(at.is_some_and(|mistake| mistake.contains("not TOML")), "line {line}: {told:#?}");
    }
    // What else is wrong is told too, but nothing that follows from what could not be read.
    assert!(told.iter().any(|mistake| mistake.contains("unknown key `speed`")), "{told:#?}");
    assert_eq!(told.len(), 4, "{told:#?}");
}

#[test]
fn k1_a_garbled_header_does_not_make_the_rest_missing() {
    let text = "[listeners.web\nbind = \"127.0.0.1:80\"\npool = \"app\"\n[pools.app]\nbackends = [\"10.0.0.1:80\"]\n";
    refused(text, "1:15", &["not TOML", "unclosed table"]);
}

#[test]
fn k1_a_large_file_of_nonsense_is_told_once() {
    refused(&"a\n".repeat(1 << 20), "1:2", &["not TOML"]);
}

#[test]
fn k1_a_line_of_nonsense_takes_no_time() {
    let text = format!("[listeners.web]\nbind = [{}]\npool = \"app\"\n", "1,".repeat(1 << 19));
    assert_eq!(mistakes(&text).len(), 1000);
}

#[test]
fn k2_duplicate_keys_and_tables_are_named() {
    refused(&format!("[drain]\nclose = \"fin\"\nclose = \"fin\"\n{REST}"), "3:1", &["duplicate key"]);
    refused(&format!("{REST}[pools.app]\nsource = \"10.0.0.9\"\n"), "6:8", &["duplicate key"]);
}
